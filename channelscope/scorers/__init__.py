"""Relevance of a layer's channels to the classes: how a class's logit changes with an activation.

A scorer computes the relevance to each image's own class. Their signs agree: above 0 a channel
speaks for the class (positively relevant, PR), below 0 against it (NR). A scorer is one function in
a module here, which ``@register_scorer(name, cost=..., help=...)`` makes known; wherever a scorer's
name is taken, a function ``(model, layers, x, y) -> {layer: (n, c)}`` is taken too.
"""

import pkgutil
from importlib import import_module

from channelscope.scorers.ablation import Ablation
from channelscope.scorers.attributions import Conductance, IntegratedGradients
from channelscope.scorers.base import (
    Cost,
    ScoreFunction,
    Scorer,
    fit_scorers,
    get_scorer,
    get_scorers,
    list_scorers,
    register_scorer,
    score_block,
)
from channelscope.scorers.gradients import gradient
from channelscope.scorers.last_layer import weights

__all__ = [
    "Ablation",
    "Conductance",
    "Cost",
    "IntegratedGradients",
    "ScoreFunction",
    "Scorer",
    "fit_scorers",
    "get_scorer",
    "get_scorers",
    "gradient",
    "list_scorers",
    "register_scorer",
    "score_block",
    "weights",
]

for _module in pkgutil.iter_modules(__path__):  # every scorer registers itself
    import_module(f"{__name__}.{_module.name}")
