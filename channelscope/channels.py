"""Where a layer's channels are: (n, c), (n, c, h, w), or last, as (n, tokens, c) and (n, h, w, c) of transformers."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from channelscope.errors import UserError
from channelscope.hooks import layer_named, named_layers


def channel_axis(model: nn.Module, layer: str, shape: Sequence[int]) -> int:
    """Tell which axis of a layer's features holds the channels, by what the layer is.

    Convolutions, BatchNorm and GroupNorm work on axis 1, linear layers and LayerNorm on the last. A layer made of
    such (a block, a stage) is asked for its parts: the axis is theirs where they agree, unless only the other one has
    as many entries as the last part has channels (after a permutation). A layer without such parts (a ReLU, a
    permutation) is like the nearest one before it in the network. Where nothing tells, features are (n, c, h, w), and
    of three axes (n, tokens, c).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    >>> channel_axis(net, "1", (2, 8, 5, 5))
    1
    >>> channel_axis(nn.Sequential(nn.Linear(3, 8), nn.GELU()), "1", (2, 5, 5, 8))
    3

    Args:
        model: the network.
        layer: the layer's name, as in ``hooks.hooked``.
        shape: of its features, the images first.

    Raises:
        UserError: for features without channels, or where the parts disagree and both axes are of the same size.
    """
    if len(shape) < 2:
        raise UserError(
            f"Features of shape {tuple(shape)} have no channels: choose a layer that returns (images, channels, ...) "
            "or (images, ..., channels)."
        )
    last = len(shape) - 1
    if last == 1:
        return 1
    parts = _parts(model, layer, len(shape))
    votes = {part.axis for part in parts if part.axis is not None}
    expected = votes.pop() if len(votes) == 1 else None
    by_size = {axis for axis in (1, last) if parts and shape[axis] == parts[-1].channels}
    if len(by_size) == 1:
        return by_size.pop()
    if expected is not None:
        return expected
    if by_size:
        raise UserError(
            f"Whether layer {layer!r} has its channels first or last cannot be told: its features are "
            f"{' x '.join(map(str, shape[1:]))}. Name a layer within it, or give images of another size."
        )
    return last if len(shape) == 3 else 1


def positions(axes: int, axis: int) -> tuple[int, ...]:
    """List the axes that are neither the images' nor the channels': those of space, or of tokens."""
    return tuple(other for other in range(1, axes) if other != axis)


def summed(z: Float[Tensor, "n *features"], axis: int) -> Float[Tensor, "n c"]:
    """Sum each channel over its positions."""
    over = positions(z.ndim, axis)
    return z.sum(over) if over else z


class _Part(NamedTuple):
    """One layer with weights: the axis it works on, None where that is open, and its number of channels."""

    axis: int | None
    channels: int


def _parts(model: nn.Module, layer: str, axes: int) -> list[_Part]:
    """List what the layer is made of; of a layer without weights of a known kind, the nearest one in the network."""
    layer = layer.removesuffix(".gated")  # what a gate selects is laid out as the features that it selects from
    module = layer_named(model, layer)
    if inside := list(_known(module.modules(), axes)):
        return inside
    order = list(named_layers(model).values())
    at = next((index for index, other in enumerate(order) if other is module), 0)
    nearest = next(_known(chain(reversed(order[:at]), order[at:]), axes), None)
    if nearest is None:
        return []
    return [nearest._replace(axis=None) if type(module).__name__ == "Permute" else nearest]


def _known(modules: Iterator[nn.Module], axes: int) -> Iterator[_Part]:
    for module in modules:
        match module:
            case _ConvNd():  # what it gives has one axis for each of its kernel's, unless it is flattened to tokens
                yield _Part(1 if axes == 2 + len(module.kernel_size) else None, module.out_channels)
            case _NormBase():
                yield _Part(1, module.num_features)
            case nn.GroupNorm():
                yield _Part(1, module.num_channels)
            case nn.Linear():
                yield _Part(axes - 1, module.out_features)
            case nn.LayerNorm() | nn.RMSNorm() if len(module.normalized_shape) > 1:
                yield _Part(1, module.normalized_shape[0])
            case nn.LayerNorm() | nn.RMSNorm():
                # Subclasses for maps (LayerNorm2d of torchvision and timm) permute in their own forward.
                own = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
                yield _Part(axes - 1 if own or axes == 3 else None, module.normalized_shape[-1])
