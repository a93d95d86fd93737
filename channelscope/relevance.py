"""Relevance of a layer's channels to the classes: how a class's logit changes with a channel's activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.capture import activations, capture
from channelscope.errors import UserError
from channelscope.hooks import evaluating, logits_of, trace
from channelscope.selection import attached


class RelevanceScorer(Protocol):
    """Score a layer's channels for each image's own class."""

    def __call__(
        self, model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Give, by layer, the relevance (n, c) of each channel to the class y of each image x."""


def gradient(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by gradient, all layers in one backward pass: g[i, c] = d logit_{y_i} / d activation_c.

    With z = features (n, c, h, w) whose spatial mean is the activation, moving the activation by d moves every
    position by d, so g = sum over space of d logit / dz. Its mean over a class's images is the class's relevance.
    Gates are attached: the derivative includes the masks' own (see ``selection.attached``).

    Args:
        model: any network; its mode and parameters are left as found.
        layers: layer names.
        x, y: images and labels.

    Returns:
        layer -> relevance (n, c). A layer that the logits do not depend on has relevance 0.
    """
    if not layers:
        return {}
    with evaluating(model), attached(model), torch.enable_grad(), capture(model, *layers) as features:
        # A graph is needed even where every parameter is frozen, so it starts at the input.
        logits = logits_of(model(x.detach().requires_grad_()))
        own = logits.gather(1, y.unsqueeze(1)).sum()
        zs = [features[layer] for layer in layers]
        if not (own.requires_grad and all(z.requires_grad for z in zs)):
            raise UserError(
                "The network's gradient is cut (inference_mode around it, or detach or no_grad within): mend that."
            )
        slopes = torch.autograd.grad(own, zs, allow_unused=True, materialize_grads=True)
    sums = [slope.flatten(2).sum(2) if slope.ndim > 2 else slope for slope in slopes]
    return dict(zip(layers, sums, strict=True))


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that makes the logits, and the layers whose activations it gets: the penultimate ones.

    A scorer of those layers: the relevance is exactly the layer's weight, g[i, c] = W[y_i, c]. ``inputs`` names the
    feature maps first, the largest and the least nested ahead: ``layer4`` before ``layer4.1``.
    """

    linear: nn.Linear
    inputs: tuple[str, ...]

    @classmethod
    def find(cls, model: nn.Module, x: Float[Tensor, "n *image"]) -> Self:
        """Find them by running the network on a few images x and comparing what its layers return.

        Raises:
            UserError: for a network whose logits do not come from a linear layer.
        """
        calls, logits = trace(model, x)
        for last in reversed(calls):
            if isinstance(last.module, nn.Linear) and last.input is not None and _same(last.output, logits):
                inputs = [call for call in calls if _same(_pooled(call.output), last.input)]
                inputs.sort(key=lambda call: (-call.output[0, 0].numel(), call.name.count(".")))
                return cls(last.module, tuple(call.name for call in inputs))
        raise UserError("The network's logits do not come from a linear layer: name the layers to analyse.")

    def __call__(
        self, model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score penultimate layers for each image's own class.

        Raises:
            UserError: for a layer whose activations are not what the last linear layer gets.
        """
        for layer in layers:
            if layer not in self.inputs:
                raise UserError(
                    f"Layer {layer!r} is not the penultimate one, whose channels the last linear layer weighs: "
                    f"choose {' or '.join(map(repr, self.inputs[:3]))}, or score by gradient."
                )
        return dict.fromkeys(layers, self.linear.weight.detach()[y])


def _pooled(output: Tensor) -> Tensor:
    return activations(output) if output.ndim in (2, 4) else output


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal but for rounding, on the scale of their largest value."""
    tolerance = max(1e-5, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
