"""The penultimate layers: those whose activations the last linear map turns into the logits."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.features import pool_features
from channelscope.layers.hooks import INPUT, Call, trace

_CANDIDATES = 4  # layers that a refusal lists
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Map = nn.Linear | Convolution


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The linear map that makes the logits, and the layers whose activations are its input.

    The map is a linear layer or a convolution, of which the logits may be the spatial mean, as they
    come or divided by a temperature; log_softmax, which shifts all logits of an image alike, counts
    as nothing. ``inputs`` names the feature maps first, the largest and the least nested ahead:
    ``layer4`` before ``layer4.1``. The last is what the map itself reads, ``fc:input``, and the
    only one where no layer returns just that: where a ReLU that is no layer lies between, or a
    class token is picked.

    Args:
        linear: the linear layer or convolution.
        inputs: names of layers, at least one.
        weight: (k, c), the gradient of each logit by each activation of these layers; None where it
            is none that is the same for all images, as behind a further ReLU.
        bias: (k,), what the logits are beside; None where the weight is.
    """

    linear: Map
    inputs: tuple[str, ...]
    weight: Float[Tensor, "k c"] | None
    bias: Float[Tensor, " k"] | None

    @classmethod
    def find(cls, model: nn.Module, x: Float[Tensor, "n *image"]) -> Self:
        """Run the network on a few images x and compare what its layers return.

        Raises:
            UserError: for a network whose logits do not come from a linear map, with layers to
                choose from.
        """
        calls, logits = trace(model, x)
        for last in reversed(calls):
            if last.input is None or not isinstance(last.module, Map):
                continue
            if (scale := _find_scale(last, logits)) is not None:
                axis = 1 if isinstance(last.module, Convolution) else last.input.ndim - 1
                target = pool_features(last.input, axis)
                inputs = [call for call in calls if _pools_to(call.output, target)]
                inputs.sort(key=lambda call: (-call.output.numel(), call.name.count(".")))
                names = *(call.name for call in inputs), last.name + INPUT
                weight = _scale_weight(last.module, scale, logits.shape[1])
                return cls(last.module, names, weight, _scale_bias(last.module, scale, weight))
        raise UserError(_explain_absence(calls, logits))


def _find_scale(last: Call, logits: Float[Tensor, "n k"]) -> float | None:
    """Return the factor by which a map's output becomes the logits; NaN behind a ReLU, or None.

    Logits are compared less their mean over the classes, which no decision depends on.
    """
    for rectified, output in _list_outputs(last, logits.shape[1]):
        if output.shape != logits.shape:
            continue
        if _same(output, logits):
            return float("nan") if rectified else 1.0
        if logits.numel() - len(logits) < 2:  # any factor fits a single difference
            continue
        wanted, centred = (z - z.mean(1, keepdim=True) for z in (logits, output))
        scale = float((wanted * centred).sum() / (centred * centred).sum().clamp_min(1e-30))
        if scale > 0 and _same(scale * centred, wanted):
            return float("nan") if rectified else scale
    return None


def _list_outputs(last: Call, classes: int) -> Iterator[tuple[bool, Tensor]]:
    """Yield what may be made of a map's output, and whether a ReLU lies in between."""
    axis = 1 if isinstance(last.module, Convolution) else last.output.ndim - 1
    for rectified in (False, True) if last.output.ndim > 2 else (False,):
        output = pool_features(last.output.relu() if rectified else last.output, axis)
        if output.shape[1] == 1 and classes == 2:  # one logit z stands for [0, z]
            output = torch.cat([torch.zeros_like(output), output], 1)
        yield rectified, output


def _scale_weight(linear: Map, scale: float, classes: int) -> Tensor | None:
    """Return the gradient (k, c) of the logits; None where it is not the weight."""
    if math.isnan(scale):
        return None
    if isinstance(linear, Convolution):
        padded = not isinstance(linear.padding, str) and any(linear.padding)
        if math.prod(linear.kernel_size) > 1 or linear.groups > 1 or padded:
            return None
    weight = linear.weight.detach().flatten(1)
    if len(weight) == 1 and classes == 2:
        weight = torch.cat([torch.zeros_like(weight), weight])
    return weight if scale == 1 else scale * weight


def _scale_bias(linear: Map, scale: float, weight: Tensor | None) -> Tensor | None:
    """Return the logits (k,) of activations of 0; None where there is no weight."""
    if weight is None or linear.bias is None:
        return None if weight is None else weight.new_zeros(len(weight))
    bias = linear.bias.detach()
    if len(bias) < len(weight):
        bias = torch.cat([torch.zeros_like(bias), bias])
    return bias if scale == 1 else scale * bias


def _explain_absence(calls: Sequence[Call], logits: Float[Tensor, "n k"]) -> str:
    """Say why there is no penultimate layer, and which layers could be named."""
    one = logits.new_ones(len(logits))
    if bool((logits >= 0).all()) and _same(logits.sum(1), one):
        return (
            "The network returns probabilities (its logits come from no linear layer but a "
            "softmax), whose gradient vanishes: return the logits, or name the layers to analyse."
        )
    maps = [call for call in calls if call.output.ndim > 2 and len(call.output) == len(logits)]
    depth = min((call.name.count(".") for call in maps[-2 * _CANDIDATES :]), default=0)
    names = [call.name for call in maps if call.name.count(".") <= depth][-_CANDIDATES:]
    such = f", such as {', '.join(names)}" if names else ""
    return (
        f"The network's logits do not come from a linear layer: name the layers to analyse{such}."
    )


def _pools_to(output: Tensor, target: Tensor) -> bool:
    """Tell whether an output's mean over positions, its channels second or last, is the target."""
    axes = {1, output.ndim - 1} if output.ndim > 1 else ()
    return any(_same(pool_features(output, axis), target) for axis in axes)


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal but for rounding, on the scale of their largest value."""
    tolerance = max(1e-5, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
