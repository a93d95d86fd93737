"""Figures of a comparison and of a sweep, one paper column wide; drawn from tables alone, never from a network."""

from channelscope.plots.catalogue import caption, draw, figures
from channelscope.plots.drawing import alignment_robustness, frequency, gates, magnitude, nr_share, relevance, training
from channelscope.plots.paper import save
from channelscope.plots.sweeps import sweep

__all__ = [
    "alignment_robustness",
    "caption",
    "draw",
    "figures",
    "frequency",
    "gates",
    "magnitude",
    "nr_share",
    "relevance",
    "save",
    "sweep",
    "training",
]
