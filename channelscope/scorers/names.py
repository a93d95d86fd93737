"""The scorers by name."""

from channelscope.errors import UserError, suggest
from channelscope.scorers.ablation import Ablation
from channelscope.scorers.attributions import Conductance, IntegratedGradients, deeplift
from channelscope.scorers.base import RelevanceScorer
from channelscope.scorers.gradients import grad_cam, gradient, gradient_x_activation
from channelscope.scorers.last_layer import weights
from channelscope.scorers.probes import probe

SCORERS: dict[str, RelevanceScorer] = {
    "weights": weights,
    "gradient": gradient,
    "gradient-x-activation": gradient_x_activation,
    "integrated-gradients": IntegratedGradients(),
    "conductance": Conductance(),
    "deeplift": deeplift,
    "grad-cam": grad_cam,
    "probe": probe,
    "ablation": Ablation(),
    "ablation-mean": Ablation("mean"),
    "ablation-class-mean": Ablation("class-mean"),
}


def get_scorer(name: str) -> RelevanceScorer:
    """Give the scorer of this name.

    Raises:
        UserError: for a name that is not among ``SCORERS``.
    """
    if name not in SCORERS:
        raise UserError(
            f"There is no scorer {name!r}: choose from {', '.join(SCORERS)}.{suggest(name, SCORERS)}"
        )
    return SCORERS[name]
