"""Figures of a comparison and of a sweep, in the style of a paper; drawn from tables alone, never from a network."""

from channelscope.figures.catalogue import caption, data, draw, figures
from channelscope.figures.drawing import (
    alignment_robustness,
    frequency,
    magnitude,
    nr_share,
    relevance,
)
from channelscope.figures.flow import confusion, flow, flow_share
from channelscope.figures.gated import leakage, mask_share, masks
from channelscope.figures.logs import gates, training
from channelscope.figures.matching import layer_likeness, likeness, matched_channels
from channelscope.figures.network import classes, decay, depth, embedding, uniformity
from channelscope.figures.paper import save, style
from channelscope.figures.robustness import robustness
from channelscope.figures.sweeps import sweep

__all__ = [
    "alignment_robustness",
    "caption",
    "classes",
    "confusion",
    "data",
    "decay",
    "depth",
    "draw",
    "embedding",
    "figures",
    "flow",
    "flow_share",
    "frequency",
    "gates",
    "layer_likeness",
    "leakage",
    "likeness",
    "magnitude",
    "mask_share",
    "masks",
    "matched_channels",
    "nr_share",
    "relevance",
    "robustness",
    "save",
    "style",
    "sweep",
    "training",
    "uniformity",
]
