"""Relevance of a layer's channels to the classes: how a class's logit changes with an activation.

A scorer computes the relevance to each image's own class. Their signs agree: above 0 a channel
speaks for the class (positively relevant, PR), below 0 against it (NR). A new scorer is one file in
this package, found by itself:

    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from channelscope.gates import attached
    from channelscope.layers.channels import channel_axis
    from channelscope.layers.features import capture, pool_features
    from channelscope.layers.hooks import eval_mode, get_logits
    from channelscope.scorers.base import Cost, register_scorer


    @register_scorer("steepness", cost=Cost(once=2), help="the gradient's mean over positions")
    def steepness(
        model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        with (
            eval_mode(model),  # and parameters frozen, so the graph starts at the images
            attached(model),  # the gradient through the masks of gates too
            torch.enable_grad(),
            capture(model, *layers) as features,
        ):
            logits = get_logits(model(x.detach().requires_grad_()))
            zs = [features[layer] for layer in layers]
            slopes = torch.autograd.grad(logits.gather(1, y.unsqueeze(1)).sum(), zs)
        return {
            layer: pool_features(slope, channel_axis(model, layer, slope.shape))
            for layer, slope in zip(layers, slopes, strict=True)
        }

Where the command line and ``relevance`` call it, eval mode and the graph are seen to already. What
it cannot score it refuses with a ``UserError``. Wherever a scorer's name is taken, a function
``(model, layers, x, y) -> {layer: (n, c)}`` is taken too.
"""

from channelscope.errors import import_modules
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

import_modules(__name__, __path__)  # every scorer registers itself
