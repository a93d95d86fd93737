"""Relevance of a layer's channels to the classes: how a class's logit changes with a channel's activation.

A scorer gives the relevance to each image's own class; ``SCORERS`` has them by name. Their signs agree: above 0 a
channel speaks for the class (positively relevant, PR), below 0 against it (NR).
"""

from channelscope.errors import UserError, suggest
from channelscope.relevance.ablation import Ablation
from channelscope.relevance.gradients import grad_cam, gradient, gradient_x_activation
from channelscope.relevance.last_layer import LastLayer, weights
from channelscope.relevance.probes import probe
from channelscope.relevance.scorers import RelevanceScorer

__all__ = [
    "SCORERS",
    "Ablation",
    "LastLayer",
    "RelevanceScorer",
    "grad_cam",
    "gradient",
    "gradient_x_activation",
    "probe",
    "scorer_named",
    "weights",
]

SCORERS: dict[str, RelevanceScorer] = {
    "weights": weights,
    "gradient": gradient,
    "gradient-x-activation": gradient_x_activation,
    "grad-cam": grad_cam,
    "probe": probe,
    "ablation": Ablation(),
    "ablation-mean": Ablation("mean"),
    "ablation-class-mean": Ablation("class-mean"),
}


def scorer_named(name: str) -> RelevanceScorer:
    """Give the scorer of this name.

    Raises:
        UserError: for a name that is not among ``SCORERS``.
    """
    if name not in SCORERS:
        raise UserError(f"There is no scorer {name!r}: choose from {', '.join(SCORERS)}.{suggest(name, SCORERS)}")
    return SCORERS[name]
