"""The penultimate layers, whose channels the last linear layer weighs: their relevance is exactly its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.features import pool_features
from channelscope.layers.hooks import trace


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
            if (
                isinstance(last.module, nn.Linear)
                and last.input is not None
                and _same(last.output, logits)
            ):
                inputs = [call for call in calls if _is_pooled(call.output, last.input)]
                inputs.sort(key=lambda call: (-call.output.numel(), call.name.count(".")))
                return cls(last.module, tuple(call.name for call in inputs))
        raise UserError(
            "The network's logits do not come from a linear layer: name the layers to analyse."
        )

    def __call__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score penultimate layers for each image's own class.

        Raises:
            UserError: for a layer whose activations are not what the last linear layer gets.
        """
        for layer in layers:
            if layer not in self.inputs:
                choose = (
                    f"choose {' or '.join(map(repr, self.inputs[:3]))}, or " if self.inputs else ""
                )
                raise UserError(
                    f"Layer {layer!r} is not the penultimate one, whose channels the last linear layer weighs: "
                    f"{choose}score by gradient."
                )
        return dict.fromkeys(layers, self.linear.weight.detach()[y])


def weights(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score penultimate layers by the last linear layer's weights: g[i, c] = W[y_i, c], exactly the gradient there.

    Raises:
        UserError: for another layer, or a network whose logits do not come from a linear layer.
    """
    return LastLayer.find(model, x[:2])(model, layers, x, y) if layers else {}


def _is_pooled(output: Tensor, given: Tensor) -> bool:
    """Tell whether the mean over the positions of an output, its channels second or last, is what was given."""
    return any(
        _same(pool_features(output, axis), given)
        for axis in {1, output.ndim - 1}
        if output.ndim > 1
    )


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal but for rounding, on the scale of their largest value."""
    tolerance = max(1e-5, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
