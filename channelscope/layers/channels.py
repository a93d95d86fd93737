"""The axis of a layer's channels: (n, c), (n, c, h, w), or last: (n, tokens, c), (n, h, w, c)."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from channelscope.errors import UserError
from channelscope.layers.hooks import INPUT, get_layer, named_layers


def channel_axis(model: nn.Module, layer: str, shape: Sequence[int]) -> int:
    """Return the axis of a layer's features that holds the channels, by what the layer is.

    Convolutions, BatchNorm and GroupNorm work on axis 1, linear layers and LayerNorm on the last. A
    layer made of such (a block, a stage) is judged by its parts, a layer without (a ReLU) by the
    nearest one registered before it that can have made its features. Linear layers count only where
    there is nothing else: beside convolutions they mostly work on pooled features (squeeze and
    excitation). Where parts disagree, or features are permuted, the axis is the one that has as
    many entries as the last part has channels. Where nothing tells, features are (n, c, h, w), and
    of three axes (n, tokens, c).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    >>> channel_axis(net, "1", (2, 8, 5, 5))
    1
    >>> channel_axis(nn.Sequential(nn.Linear(3, 8), nn.GELU()), "1", (2, 5, 5, 8))
    3

    Args:
        model: the network.
        layer: the layer's name, as in ``layers.hooks.hooked``.
        shape: of its features, the images first.

    Raises:
        UserError: for features without channels, or where the parts disagree and both axes are of
            the same size.
    """
    if len(shape) < 2:
        raise UserError(
            f"Features of shape {tuple(shape)} have no channels: choose a layer that returns "
            "(images, channels, ...) or (images, ..., channels)."
        )
    last = len(shape) - 1
    if last == 1:
        return 1
    if layer.endswith(INPUT):
        return _find_input_axis(get_layer(model, layer), last)
    parts, permuted = _find_parts(model, layer, shape)
    voters = [part for part in parts if not part.linear] or parts
    votes = set() if permuted else {axis for part in voters for axis in part.axes}
    if len(votes) == 1:
        return votes.pop()
    by_size = {axis for axis in (1, last) if parts and shape[axis] == parts[-1].channels}
    if len(by_size) == 1:
        return by_size.pop()
    if votes or by_size:
        raise UserError(
            f"Whether layer {layer!r} has its channels first or last cannot be told: its features "
            f"are {' x '.join(map(str, shape[1:]))}. Name a layer within it, or give images of "
            "another size."
        )
    return last if len(shape) == 3 else 1


def _find_input_axis(module: nn.Module, last: int) -> int:
    """Return the axis of the channels that a module reads: that of the first layer in it."""
    for part in module.modules():
        if isinstance(part, _ConvNd) and last == 1 + len(part.kernel_size):
            return 1
        if described := _describe(part, last + 1):
            return described.axes[0] if described.axes else last
    return last if last == 2 else 1


def positions(axes: int, axis: int) -> tuple[int, ...]:
    """List the axes that are neither the images' nor the channels': space, or tokens."""
    return tuple(other for other in range(1, axes) if other != axis)


def summed(z: Float[Tensor, "n *features"], axis: int) -> Float[Tensor, "n c"]:
    """Sum each channel over its positions."""
    over = positions(z.ndim, axis)
    return z.sum(over) if over else z


class _Part(NamedTuple):
    """One layer with weights: the axes that it may work on, its number of channels, its kind."""

    axes: tuple[int, ...]
    channels: int
    linear: bool = False


class _Neighbour(NamedTuple):
    """A layer with weights near one without, and whether features are permuted in between."""

    name: str
    part: _Part
    permuted: bool

    def fits(self, shape: Sequence[int]) -> bool:
        axes = (1, len(shape) - 1) if self.permuted else self.part.axes
        return any(shape[axis] == self.part.channels for axis in axes)


def _find_parts(model: nn.Module, layer: str, shape: Sequence[int]) -> tuple[Sequence[_Part], bool]:
    """List the layers with weights in this one, or else the one that made its features.

    The flag tells whether features are permuted in the layer, or between the two.
    """
    # What a gate selects is laid out as the features that it selects from.
    module = get_layer(model, layer.removesuffix(".gated"))
    ndim = len(shape)
    inside = [_describe(part, ndim) for part in module.modules()]
    if parts := [part for part in inside if part is not None]:
        return parts, any(map(_permutes, module.modules()))
    layers = named_layers(model)
    order = list(layers)
    at = next((index for index, name in enumerate(order) if layers[name] is module), 0)
    neighbours, permuted = list[_Neighbour](), _permutes(module)
    for name in chain(reversed(order[:at]), order[at:]):
        if (described := _describe(layers[name], ndim)) is not None:
            neighbours.append(_Neighbour(name, described, permuted))
        permuted |= _permutes(layers[name])
    maker = _choose_maker(neighbours, layers, shape)
    return ([maker.part], maker.permuted) if maker else ((), permuted)


def _choose_maker(
    neighbours: Sequence[_Neighbour], layers: Mapping[str, nn.Module], shape: Sequence[int]
) -> _Neighbour | None:
    """Choose the layer that made the features of one without weights, the nearest first.

    Layers are listed as registered, which need not be the order in which they run: a ReLU may come
    after the linear layer at the network's end. A linear layer is passed over if it is of another
    width, and, where a map happens to be as wide, if it is beside convolutions, as those that work
    on pooled features are.
    """
    fitting = (one for one in neighbours if not one.part.linear or one.fits(shape))
    nearest = next(fitting, None)
    if nearest is None or not nearest.part.linear:
        return nearest or next(iter(neighbours), None)
    parent = nearest.name.rpartition(".")[0]
    siblings = [module for name, module in layers.items() if name.rpartition(".")[0] == parent]
    described = [_describe(module, len(shape)) for module in siblings]
    if shape[1] == shape[-1] or any(part and part.axes == (1,) for part in described):
        for other in neighbours:
            alike = other.permuted == nearest.permuted and other.fits(shape)
            if alike and not other.part.linear:
                return other
    return nearest


def _permutes(module: nn.Module) -> bool:
    """Tell whether this is torchvision's Permute; timm permutes in its layers' own code."""
    return type(module).__name__ == "Permute"


def _describe(module: nn.Module, ndim: int) -> _Part | None:
    """Describe a layer whose features have ``ndim`` axes; None for one without weights."""
    last = ndim - 1
    match module:
        case _ConvNd():  # an axis for each of its kernel's, unless flattened to tokens
            return _Part((1,) * (ndim == 2 + len(module.kernel_size)), module.out_channels)
        case _NormBase():
            return _Part((1,), module.num_features)
        case nn.GroupNorm():
            return _Part((1,), module.num_channels)
        case nn.Linear():
            return _Part((last,), module.out_features, linear=True)
        case nn.LayerNorm() | nn.RMSNorm() if len(module.normalized_shape) > 1:
            return _Part((1,), module.normalized_shape[0])
        case nn.LayerNorm() | nn.RMSNorm():
            # Subclasses for maps (LayerNorm2d of torchvision and timm) permute in their forward.
            standard = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
            axes = (last,) if standard or ndim == 3 else (1, last)
            return _Part(axes, module.normalized_shape[-1])
    return None
