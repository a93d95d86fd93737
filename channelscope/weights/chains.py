"""Small networks of one layer after the other, rebuilt where their tensors leave one way only.

LeNet and its kind: convolutions, each with a BatchNorm or without, ReLU and perhaps 2x2 max
pooling, then linear layers; VGG for small images; or, as networks to be verified are made,
convolutions with strides of 2 instead of pooling. No tensor tells padding, pooling and strides, but
the first linear layer says how many pixels are left of the image, and the numbers in a
``Sequential``'s names how many layers without tensors lie between. What is assumed besides, such as
ReLU and max pooling, is told.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal

from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.weights.architectures import BUILDERS, External
from channelscope.weights.cifar import AmbiguousError, Match

_SIDES = (28, 32)  # of images: MNIST and its kind; CIFAR and SVHN
_MOST_LAYERS = 24  # without BatchNorm
_MOST_CONVOLUTIONS = 16  # as VGG-19 has: the ways to pool grow with the fifth power of their number
_VGG = (8, 10, 13, 16)  # convolutions of VGG-11, 13, 16, 19
_MOST_HALVINGS = 5  # of the sides above
# The network that TRADES and others train on MNIST, whose names say where it pools.
_SMALL_CNN = re.compile(r"feature_extractor\.conv[1-4]|classifier\.fc[1-3]")


@dataclass(frozen=True)
class _Layer:
    """A layer with tensors: its name, kind, shape, and the layers without tensors after it.

    Args:
        name: of the layer, before its tensors' own names.
        kind: of the layer.
        shape: of its weight.
        bias: whether it has one.
        gap: number of layers without tensors between it and the next; None where no name tells.
    """

    name: str
    kind: Literal["conv", "bn", "linear"]
    shape: tuple[int, ...]
    bias: bool
    gap: int | None = None


@dataclass(frozen=True)
class _Plan:
    """One way to rebuild a network: the images' side, the padding, pooling or strides.

    Args:
        side: of the images.
        padded: whether convolutions keep the side, up to their strides.
        pools: which convolutions are followed by pooling.
        strides: of the convolutions.
    """

    side: int
    padded: bool
    pools: tuple[bool, ...]
    strides: tuple[int, ...]


def build_chain(num_classes: int, *, layers: str) -> nn.Sequential:
    """Build a chain of layers from words, such as ``conv 3 6 5 0 1, relu, pool 2, linear 24 3 1``.

    ``conv IN OUT KERNEL PADDING BIAS`` and perhaps the stride, ``bn CHANNELS``, ``relu``,
    ``pool SIZE``, ``flatten``, ``linear IN OUT BIAS``; the last layer has ``num_classes`` outputs.

    Raises:
        UserError: for other words.
    """
    words = layers.split(",")
    if len(words) > 4 * _MOST_LAYERS:
        raise UserError(f"layers: a chain has at most {4 * _MOST_LAYERS} layers, not {len(words)}.")
    modules = [_build_layer(word.split()) for word in words]
    last = modules[-1]
    if not isinstance(last, nn.Linear) or last.out_features != num_classes:
        raise UserError(f"layers: the last of {layers!r} is not a linear layer of the classes.")
    return nn.Sequential(*modules)


def _build_layer(words: Sequence[str]) -> nn.Module:
    numbers = [int(word) for word in words[1:] if word.isdecimal()]
    match words[0] if words else "", numbers:
        case "conv", [inputs, outputs, kernel, padding, bias, *stride] if stride in ([], [1], [2]):
            step = stride[0] if stride else 1
            return nn.Conv2d(inputs, outputs, kernel, step, padding, bias=bool(bias))
        case "bn", [channels]:
            return nn.BatchNorm2d(channels)
        case "linear", [inputs, outputs, bias]:
            return nn.Linear(inputs, outputs, bias=bool(bias))
        case "pool", [size]:
            return nn.MaxPool2d(size)
        case "relu", []:
            return nn.ReLU()
        case "flatten", []:
            return nn.Flatten()
    raise UserError(f"layers: {' '.join(words)!r} is no layer of a chain.")


BUILDERS["chain"] = build_chain


def match_chain(state: Mapping[str, Tensor]) -> Match | None:
    """Rebuild a chain of layers from its tensors; None where it is none.

    Raises:
        AmbiguousError: for a chain that could be rebuilt in several ways, or in none.
    """
    layers = _list_layers(state)
    if layers is None:
        return None
    # Networks that pool are the more usual; where no pooling fits, strides are tried.
    plans = list(_list_pooling_plans(layers)) or list(_list_strided_plans(layers))
    if len(plans) != 1:
        ways = "in several ways" if plans else "in no usual way"
        raise AmbiguousError(
            f"its {len(layers)} layers, one after the other, can be put together {ways}, as no "
            "tensor tells strides, padding and pooling: name its code, --arch FILE.py:NAME."
        )
    words, places = _write_layers(layers, plans[0])
    renamed = {}
    for layer, place in zip(layers, places, strict=True):
        for key, tensor in state.items():
            owner, _, name = key.rpartition(".")
            if owner == layer.name:
                renamed[f"{place}.{name}"] = tensor
    count = sum(layer.kind != "bn" for layer in layers)
    side = plans[0].side
    smaller = "strides of 2" if 2 in plans[0].strides else "max pooling"
    return Match(
        f"a chain of {count} layers ({words})",
        External(arch="chain", classes=layers[-1].shape[0], args={"layers": words}),
        renamed,
        assumed=f"ReLU and {smaller}, images of {side} x {side}; else name its code with --arch",
        side=side,
    )


def _list_layers(state: Mapping[str, Tensor]) -> list[_Layer] | None:
    """List the layers of a chain in their order; None where it is none."""
    owners: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        owner, _, name = key.rpartition(".")
        owners.setdefault(owner, {})[name] = tensor
    layers = []
    for owner, tensors in owners.items():
        weight = tensors.get("weight")
        kinds: dict[int, Literal["conv", "linear"]] = {4: "conv", 2: "linear"}
        if weight is None or tensors.keys() - {"weight", "bias"} - _STATISTICS:
            return None
        kind = "bn" if "running_mean" in tensors else kinds.get(weight.ndim)
        if kind is None:
            return None
        layers.append(_Layer(owner, kind, tuple(weight.shape), "bias" in tensors))
    counts = Counter(layer.kind for layer in layers)
    if not 2 <= counts["conv"] + counts["linear"] <= _MOST_LAYERS:
        return None
    if counts["conv"] > _MOST_CONVOLUTIONS or not _is_chain(layers):
        return None
    return [
        replace(layer, gap=_count_between(layer.name, following.name))
        for layer, following in zip(layers, [*layers[1:], layers[-1]], strict=True)
    ]


_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def _is_chain(layers: Sequence[_Layer]) -> bool:
    """Return whether each layer takes what the one before returns, linear layers last."""
    kinds = "".join({"conv": "c", "bn": "b", "linear": "l"}[layer.kind] for layer in layers)
    if not re.fullmatch(r"(cb?)+l+", kinds):
        return False
    channels = layers[0].shape[1]
    for layer in layers:
        inputs = layer.shape[0] if layer.kind == "bn" else layer.shape[1]
        is_first_linear = layer.kind == "linear" and layer.name == _first_linear(layers).name
        if inputs != channels and not (is_first_linear and inputs % channels == 0):
            return False
        if layer.kind == "conv" and layer.shape[2] != layer.shape[3]:
            return False
        channels = layer.shape[0]
    return True


def _first_linear(layers: Sequence[_Layer]) -> _Layer:
    return next(layer for layer in layers if layer.kind == "linear")


def _count_between(name: str, following: str) -> int | None:
    """Count the layers between two of one ``Sequential``, by their numbers; None of others."""
    (parent, _, place), (other, _, next_place) = (
        each.rpartition(".") for each in (name, following)
    )
    if parent != other or not (place.isdecimal() and next_place.isdecimal()):
        return None
    return int(next_place) - int(place) - 1


def _list_pooling_plans(layers: Sequence[_Layer]) -> Iterator[_Plan]:
    """List the ways to put the layers together with pooling or without, and no strides."""
    convs = [layer for layer in layers if layer.kind == "conv"]
    odd = all(conv.shape[2] % 2 for conv in convs)
    paddings = (False, True) if odd and any(conv.shape[2] > 1 for conv in convs) else (False,)
    for side, padded in product(_SIDES, paddings):
        for pools in _list_halvings(len(convs)):
            plan = _Plan(side, padded, pools, (1,) * len(convs))
            if _fits_names(pools, convs) and _fits(plan, layers):
                yield plan


def _list_strided_plans(layers: Sequence[_Layer]) -> Iterator[_Plan]:
    """List the ways to put the layers together with strides of 2 and no pooling.

    Kernels of even sides are made for strides: where there are some, they alone have them.
    """
    kernels = [layer.shape[2] for layer in layers if layer.kind == "conv"]
    even = tuple(kernel % 2 == 0 for kernel in kernels)
    halvings = [even] if any(even) else list(_list_halvings(len(kernels)))
    for side, padded, halving in product(_SIDES, (False, True), halvings):
        strides = tuple(2 if half else 1 for half in halving)
        plan = _Plan(side, padded, (False,) * len(kernels), strides)
        if _fits(plan, layers):
            yield plan


def _list_halvings(count: int) -> Iterator[tuple[bool, ...]]:
    """List which of so many convolutions may halve the image, which can be done a few times."""
    for halved in range(min(count, _MOST_HALVINGS) + 1):
        for places in combinations(range(count), halved):
            yield tuple(place in places for place in range(count))


def _fits(plan: _Plan, layers: Sequence[_Layer]) -> bool:
    """Return whether a plan leaves what the first linear layer takes, and fits the names."""
    convs = [layer for layer in layers if layer.kind == "conv"]
    linears = [layer for layer in layers if layer.kind == "linear"]
    *_, before, left = (plan.side, *_compute_sides(plan, convs))
    if left * left * convs[-1].shape[0] != linears[0].shape[1]:
        return False
    if any(layer.gap == 0 for layer in linears[:-1]):
        return False  # two linear layers without an activation between
    gaps = [layer.gap for index, layer in enumerate(layers) if _ends_convolution(layers, index)]
    if not _fits_gaps(plan.pools, gaps):
        return False
    if left > 1:
        return True
    # One pixel is what averaging leaves too, unless it is of a LeNet-5, the kernel covering all.
    return (before == convs[-1].shape[2] and not plan.padded) or _is_vgg(plan, gaps)


def _is_vgg(plan: _Plan, gaps: Sequence[int | None]) -> bool:
    """Return whether a plan is of a VGG, whose numbers tell all pooling but the last."""
    is_numbered = all(gap is not None for gap in gaps[:-1])
    return is_numbered and len(gaps) in _VGG and sum(plan.pools) == 5 and plan.pools[-1]


def _ends_convolution(layers: Sequence[_Layer], index: int) -> bool:
    """Return whether a layer is a convolution, or its BatchNorm, before its activation."""
    if layers[index].kind == "linear":
        return False
    return layers[index].kind == "bn" or layers[index + 1].kind != "bn"


def _fits_gaps(pools: Sequence[bool], gaps: Sequence[int | None]) -> bool:
    """Return whether as many layers without tensors lie between: ReLU, pooling, a flattening."""
    flattened = [False] * (len(gaps) - 1) + [True]
    return all(
        gap is None or gap == 1 + pool + flat
        for pool, gap, flat in zip(pools, gaps, flattened, strict=True)
    )


def _fits_names(pools: Sequence[bool], convs: Sequence[_Layer]) -> bool:
    if all(_SMALL_CNN.fullmatch(conv.name) for conv in convs):
        return tuple(pools) == (False, True, False, True)
    return True


def _compute_sides(plan: _Plan, convs: Sequence[_Layer]) -> Iterator[int]:
    """Compute the height and width that each convolution and its pooling leave; 0 for nothing."""
    side = plan.side
    for conv, pool, stride in zip(convs, plan.pools, plan.strides, strict=True):
        kernel = conv.shape[2]
        side = max(0, (side + 2 * _pad(plan, kernel) - kernel) // stride + 1)
        side = side // 2 if pool else side
        yield side


def _pad(plan: _Plan, kernel: int) -> int:
    return (kernel - 1) // 2 if plan.padded else 0


def _write_layers(layers: Sequence[_Layer], plan: _Plan) -> tuple[str, list[int]]:
    """Write the layers as words for ``build_chain``; return them and the place of each layer."""
    words: list[str] = []
    places: list[int] = []
    pools, strides = iter(plan.pools), iter(plan.strides)
    for index, layer in enumerate(layers):
        places.append(len(words))
        outputs = layer.shape[0]
        if layer.kind == "conv":
            kernel = layer.shape[2]
            numbers = [layer.shape[1], outputs, kernel, _pad(plan, kernel), int(layer.bias)]
            if (stride := next(strides)) > 1:
                numbers.append(stride)
            words.append(" ".join(["conv", *map(str, numbers)]))
        elif layer.kind == "bn":
            words.append(f"bn {outputs}")
        else:
            words.append(f"linear {layer.shape[1]} {outputs} {int(layer.bias)}")
            words += ["relu"] if index + 1 < len(layers) else []
        if _ends_convolution(layers, index):
            words += ["relu", "pool 2"] if next(pools) else ["relu"]
            words += ["flatten"] if layers[index + 1].kind == "linear" else []
    return ", ".join(words), places
