"""Relevance of a layer's channels to the classes: how a class's logit changes with a channel's activation.

A scorer gives the relevance to each image's own class; ``SCORERS`` has them by name, ``COSTS`` what they cost. Their
signs agree: above 0 a channel speaks for the class (positively relevant, PR), below 0 against it (NR).
"""

from channelscope.scorers.ablation import Ablation
from channelscope.scorers.attributions import Conductance, IntegratedGradients, deeplift
from channelscope.scorers.base import RelevanceScorer
from channelscope.scorers.costs import COSTS, Cost
from channelscope.scorers.gradients import grad_cam, gradient, gradient_x_activation
from channelscope.scorers.last_layer import LastLayer, weights
from channelscope.scorers.names import SCORERS, get_scorer
from channelscope.scorers.probes import probe
from channelscope.scorers.scoring import Scored, choose_layers, relevance, score_layers, take_few

__all__ = [
    "COSTS",
    "SCORERS",
    "Ablation",
    "Conductance",
    "Cost",
    "IntegratedGradients",
    "LastLayer",
    "RelevanceScorer",
    "Scored",
    "choose_layers",
    "deeplift",
    "get_scorer",
    "grad_cam",
    "gradient",
    "gradient_x_activation",
    "probe",
    "relevance",
    "score_layers",
    "take_few",
    "weights",
]
