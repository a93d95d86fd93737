"""Scorers of one backward pass: the gradient, times the activation, and Grad-CAM's weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.channels import channel_axis, summed
from channelscope.layers.features import capture, pool_features
from channelscope.layers.hooks import eval_mode, get_logits
from channelscope.scorers.base import Cost, register_scorer


@register_scorer(
    "gradient", cost=Cost(once=2), help="how the class's logit changes with the activation"
)
def gradient(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by gradient: g[i, c] = d logit_{y_i} / d activation_c.

    With z = features (n, c, h, w) whose spatial mean is the activation, moving the activation by d
    moves every position by d, so g = sum over positions of d logit / dz. Its mean over a class's
    images is the class's relevance. Gates are attached: the derivative includes the masks' own (see
    ``gates.attached``).

    Args:
        model: any network; its mode and parameters are left as found.
        layers: layer names.
        x, y: images and labels.

    Returns:
        layer -> relevance (n, c). A layer that the logits do not depend on has relevance 0.

    Raises:
        UserError: for a network whose gradient is cut, or features without channels.
    """
    slopes = _differentiate(model, layers, x, y)
    return {layer: summed(slope, axis) for layer, (_, slope, axis) in slopes.items()}


@register_scorer(
    "gradient-x-activation", cost=Cost(once=2), help="the gradient times the activation"
)
def gradient_x_activation(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by gradient times activation: the sum over positions of z * d logit_{y_i} / dz.

    To first order this is how much the logit falls when the channel is set to zero (see
    ``Ablation``); of what is piecewise linear and without biases behind the layer, the channels'
    scores add up to the logit. Shrikumar et al., 2016 (arXiv 1605.01713). Arguments, result and
    errors are those of ``gradient``.
    """
    slopes = _differentiate(model, layers, x, y)
    return {layer: summed(z * slope, axis) for layer, (z, slope, axis) in slopes.items()}


@register_scorer(
    "grad-cam",
    cost=Cost(once=2),
    help="Grad-CAM's weights: the gradient's spatial mean, which ranks as the gradient",
)
def grad_cam(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by Grad-CAM's weights: alpha[i, c] = mean over positions of d logit_{y_i} / dz.

    Selvaraju et al., ICCV 2017 (arXiv 1610.02391), equation 1. The gradient divided by the number
    of positions: it ranks a layer's channels as ``gradient`` does. Arguments, result and errors are
    those of ``gradient``.
    """
    slopes = _differentiate(model, layers, x, y)
    return {layer: pool_features(slope, axis) for layer, (_, slope, axis) in slopes.items()}


def _differentiate(
    model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Return by layer the features z, d logit_{y_i} / dz and the axis of the channels."""
    if not layers:
        return {}
    with (
        eval_mode(model),
        attached(model),
        torch.enable_grad(),
        capture(model, *layers) as features,
    ):
        # A graph is needed even where every parameter is frozen, so it starts at the input.
        logits = get_logits(model(x.detach().requires_grad_()))
        logit = logits.gather(1, y.unsqueeze(1)).sum()
        zs = [features[layer] for layer in layers]
        if not all(tensor.requires_grad for tensor in (logit, *zs)):
            raise UserError(
                "The network's gradient is cut: remove inference_mode around it, and detach or "
                "no_grad from its forward."
            )
        slopes = torch.autograd.grad(logit, zs, allow_unused=True, materialize_grads=True)
    return {
        layer: (z.detach(), slope, channel_axis(model, layer, z.shape))
        for layer, z, slope in zip(layers, zs, slopes, strict=True)
    }
