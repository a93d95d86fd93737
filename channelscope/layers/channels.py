"""Where a layer's channels are: (n, c), (n, c, h, w), or last, as (n, tokens, c) and (n, h, w, c) of transformers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from channelscope.errors import UserError
from channelscope.layers.hooks import get_layer, named_layers


def channel_axis(model: nn.Module, layer: str, shape: Sequence[int]) -> int:
    """Tell which axis of a layer's features holds the channels, by what the layer is.

    Convolutions, BatchNorm and GroupNorm work on axis 1, linear layers and LayerNorm on the last. A layer made of
    such (a block, a stage) is asked for its parts, a layer without (a ReLU) is like the nearest one made before it that
    can have made its features. Linear layers are heard only where there is nothing else: beside convolutions they
    mostly work on pooled features (squeeze and excitation). Where parts disagree, or features are permuted, the axis is
    the one that has as many entries as the last part has channels. Where nothing tells, features are (n, c, h, w), and
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
    parts, permuted = _parts(model, layer, shape)
    votes = set() if permuted else _votes(parts)
    if len(votes) == 1:
        return votes.pop()
    by_size = {axis for axis in (1, last) if parts and shape[axis] == parts[-1].channels}
    if len(by_size) == 1:
        return by_size.pop()
    if votes or by_size:
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
    """One layer with weights: the axes that it may work on, its number of channels, and whether it is linear."""

    axes: tuple[int, ...]
    channels: int
    linear: bool = False


class _Near(NamedTuple):
    """A layer with weights near one without: whether features are permuted between the two, and its name."""

    part: _Part
    permuted: bool
    name: str


def _votes(parts: Sequence[_Part]) -> set[int]:
    heard = [part for part in parts if not part.linear] or parts
    return {axis for part in heard for axis in part.axes}


def _parts(model: nn.Module, layer: str, shape: Sequence[int]) -> tuple[list[_Part], bool]:
    """List what the layer is made of, or else the layer with weights before it; tell whether features are permuted."""
    layer = layer.removesuffix(
        ".gated"
    )  # what a gate selects is laid out as the features that it selects from
    module = get_layer(model, layer)
    if inside := list(_known(module.modules(), len(shape))):
        return inside, any(map(_permutes, module.modules()))
    layers = named_layers(model)
    order = list(layers)
    at = next((index for index, name in enumerate(order) if layers[name] is module), 0)
    near, permuted = list[_Near](), _permutes(module)
    for name in chain(reversed(order[:at]), order[at:]):
        near += [_Near(part, permuted, name) for part in _known(iter([layers[name]]), len(shape))]
        permuted |= _permutes(layers[name])
    found = _before(near, layers, shape)
    return ([found.part], found.permuted) if found else ([], permuted)


def _before(
    near: Sequence[_Near], layers: Mapping[str, nn.Module], shape: Sequence[int]
) -> _Near | None:
    """Choose the layer that made the features of one without weights, the nearest first.

    Layers are listed in the order in which they were made, which need not be that in which they run: a ReLU may be made
    after the linear layer at the network's end. A linear layer is passed over if it is of another width, and, where a
    map happens to be as wide, if it is beside convolutions, as those that work on pooled features are.
    """
    nearest = next((one for one in near if not one.part.linear or _fits(one, shape)), None)
    if nearest is None or not nearest.part.linear:
        return nearest or next(iter(near), None)
    others = [
        one
        for one in near
        if not one.part.linear and _fits(one, shape) and one.permuted == nearest.permuted
    ]
    parent = nearest.name.rpartition(".")[0]
    beside = (module for name, module in layers.items() if name.rpartition(".")[0] == parent)
    pooled = any(part.axes == (1,) for part in _known(beside, len(shape)))
    return others[0] if others and (pooled or shape[1] == shape[-1]) else nearest


def _fits(near: _Near, shape: Sequence[int]) -> bool:
    axes = (1, len(shape) - 1) if near.permuted else near.part.axes
    return any(shape[axis] == near.part.channels for axis in axes)


def _permutes(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "Permute"
    )  # torchvision's; timm permutes in its layers' own code


def _known(modules: Iterator[nn.Module], axes: int) -> Iterator[_Part]:
    last = axes - 1
    for module in modules:
        match module:
            case _ConvNd():  # what it gives has one axis for each of its kernel's, unless it is flattened to tokens
                yield _Part(
                    (1,) if axes == 2 + len(module.kernel_size) else (), module.out_channels
                )
            case _NormBase():
                yield _Part((1,), module.num_features)
            case nn.GroupNorm():
                yield _Part((1,), module.num_channels)
            case nn.Linear():
                yield _Part((last,), module.out_features, linear=True)
            case nn.LayerNorm() | nn.RMSNorm() if len(module.normalized_shape) > 1:
                yield _Part((1,), module.normalized_shape[0])
            case nn.LayerNorm() | nn.RMSNorm():
                # Subclasses for maps (LayerNorm2d of torchvision and timm) permute in their own forward.
                own = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
                yield _Part((last,) if own or axes == 3 else (1, last), module.normalized_shape[-1])
