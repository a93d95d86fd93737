"""The penultimate layers: those whose activations the last linear layer turns into the logits."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.features import pool_features
from channelscope.layers.hooks import trace


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that makes the logits, and the layers whose activations are its input.

    ``inputs`` names the feature maps first, the largest and the least nested ahead: ``layer4``
    before ``layer4.1``.
    """

    linear: nn.Linear
    inputs: tuple[str, ...]

    @classmethod
    def find(cls, model: nn.Module, x: Float[Tensor, "n *image"]) -> Self:
        """Run the network on a few images x and compare what its layers return.

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
                inputs = [call for call in calls if _pools_to(call.output, last.input)]
                inputs.sort(key=lambda call: (-call.output.numel(), call.name.count(".")))
                return cls(last.module, tuple(call.name for call in inputs))
        raise UserError(
            "The network's logits do not come from a linear layer: name the layers to analyse."
        )


def _pools_to(output: Tensor, target: Tensor) -> bool:
    """Tell whether an output's mean over positions, its channels second or last, is the target."""
    axes = {1, output.ndim - 1} if output.ndim > 1 else ()
    return any(_same(pool_features(output, axis), target) for axis in axes)


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal but for rounding, on the scale of their largest value."""
    tolerance = max(1e-5, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
