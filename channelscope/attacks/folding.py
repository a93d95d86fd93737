"""Attack a network faster: BatchNorm folded into the convolution before it, features in channels-last order.

In eval mode, a BatchNorm that follows a convolution scales and shifts each of its output channels, so one
convolution does the work of both:

    weight' = weight * gamma / sqrt(var + eps)
    bias' = beta + (bias - mean) * gamma / sqrt(var + eps)

An attack runs the same weights many times, and the folding, done once for it, pays for itself in the first steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope import distributed
from channelscope.layers.hooks import get_logits, handed_on, has_hooks

T = TypeVar("T")

# What a BatchNorm does in eval mode, it does in all of these.
_BATCHNORMS = (
    nn.BatchNorm2d.forward,
    nn.SyncBatchNorm.forward,
    distributed.SynchronisedBatchNorm2d.forward,
)

# Images that the network is tried out on, to see whether it can be folded.
_TRIED = 8


def run_folded(
    model: nn.Module, x: Float[Tensor, "n *image"], work: Callable[[torch.memory_format], T]
) -> T:
    """Do some work on a network in eval mode, its BatchNorms folded for as long as it lasts where that is possible.

    Which BatchNorm follows which convolution is found by running a few of the images, once for a network's
    structure; the folded network must then give the same logits. The folded weights are made anew for each call.
    The network's parameters, buffers and hooks are never touched. Left as they are: networks and images of
    half precision, convolutions and BatchNorms with hooks or parametrisations, compiled and replicated networks.

    Args:
        model: any network, in eval mode.
        x: images like those that it will get, one at least.
        work: is called with the memory format that its images shall have; where it fails with a folded network,
            it is called again with the network as it is, so whatever it then raises is its own.
    """
    plan = _plan(model, x)
    if plan.is_none:
        return work(torch.preserve_format)
    with suppress(Exception), _folded(model, plan):
        return work(plan.layout)
    result = work(torch.preserve_format)
    _PLANS[model] = _Plan(
        plan.structure
    )  # what does not like the folded network will not like it the next time
    return result


# ---------------------------------------------------------------- what to fold


@dataclass(frozen=True)
class _Plan:
    """What was found out about a network of some structure: the convolutions to fold by name, with their BatchNorms."""

    structure: tuple[Any, ...]
    pairs: dict[str, str] = field(default_factory=dict)
    layout: torch.memory_format = torch.preserve_format

    @property
    def is_none(self) -> bool:
        """Tell that the network is left as it is."""
        return not self.pairs and self.layout == torch.preserve_format


_PLANS: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()


def _plan(model: nn.Module, x: Tensor) -> _Plan:
    structure = _structure(model, x)
    plan = _PLANS.get(model)
    if plan is None or plan.structure != structure:
        plan = _PLANS[model] = _find(model, x[:_TRIED], structure)
    return plan


def _structure(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Describe what a plan depends on: the layers, who watches them, and the kind of the images."""
    layers = [
        (name, type(layer), has_hooks(layer), _patched(layer))
        for name, layer in model.named_modules()
    ]
    return (x.shape[1:], x.dtype, *layers)


def _find(model: nn.Module, x: Tensor, structure: tuple[Any, ...]) -> _Plan:
    """Find the pairs, and the first of two layouts in which the folded network still gives the same logits."""
    layers = dict(model.named_modules())
    foldable = {
        name: layer
        for name, layer in layers.items()
        if _is_convolution(layer, x) or _is_batchnorm(layer, x)
    }
    none = _Plan(structure)
    if any(map(_is_opaque, layers.values())) or not any(map(_is_conv2d, foldable.values())):
        return none
    with suppress(Exception), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        with same_randomness(x):
            pairs, logits = handed_on(model, x, foldable)
        fold = {
            a: b for a, b in pairs.items() if _is_conv2d(layers[a]) and not _is_conv2d(layers[b])
        }
        fold = _unshared(model, x, _Plan(structure, fold))
        # Code that calls view() on its features wants them contiguous.
        for plan in (_Plan(structure, fold, torch.channels_last), _Plan(structure, fold)):
            if _agrees(model, x, logits, plan):
                return plan
    return none


def _unshared(model: nn.Module, x: Tensor, plan: _Plan) -> dict[str, str]:
    """Leave out the convolutions whose own output is asked for as well: they would be computed twice."""
    with same_randomness(x), _folded(model, plan) as pairs:
        model(x)
    used = zip(plan.pairs.items(), pairs, strict=True)
    return dict(names for names, pair in used if not pair.asked_for_alone)


def _agrees(model: nn.Module, x: Tensor, logits: Tensor, plan: _Plan) -> bool:
    """Tell whether the folded network gives these logits for x, and does not fail."""
    # A GPU may convolve in TF32, of 10 bits; what a wrong plan does to the logits is larger by far.
    tolerance = 1e-4 if x.device.type == "cpu" else 1e-2
    with suppress(Exception), same_randomness(x), _folded(model, plan):
        found = get_logits(model(x.to(memory_format=plan.layout)))
        return bool((found - logits).abs().max() <= tolerance * logits.abs().max())
    return False


def same_randomness(x: Tensor) -> Any:
    """Let a network that draws random numbers draw the same each time, and the attack know nothing of it."""
    return torch.random.fork_rng([x.device] if x.is_cuda else [])


def _is_conv2d(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d


def _is_convolution(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer is a convolution and nothing more: not one of a subclass, hooked or parametrised."""
    return _is_conv2d(layer) and _is_plain(layer, getattr(layer, "weight", None), x)


def _is_batchnorm(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer does in eval mode what a BatchNorm with running statistics does, and nothing more."""
    return type(layer).forward in _BATCHNORMS and _is_plain(
        layer, getattr(layer, "running_var", None), x
    )


def _is_plain(layer: nn.Module, numbers: Any, x: Tensor) -> bool:
    wide = x.dtype in (torch.float32, torch.float64)
    return (
        wide
        and isinstance(numbers, Tensor)
        and numbers.dtype == x.dtype
        and not has_hooks(layer)
        and not _patched(layer)
    )


def _patched(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def _is_opaque(layer: nn.Module) -> bool:
    """Tell whether a layer runs something else than the forward of the layers in it: compiled code or copies."""
    compiled = "_orig_mod" in layer._modules or layer._compiled_call_impl is not None
    return compiled or isinstance(layer, nn.DataParallel)


# ---------------------------------------------------------------- folding


@contextmanager
def _folded(model: nn.Module, plan: _Plan) -> Iterator[list["_Pair"]]:
    """Replace the forward of the plan's layers, and nothing else of them."""
    folded: list[_Pair] = []
    try:
        for convolution, batchnorm in plan.pairs.items():
            pair = _Pair(
                model.get_submodule(convolution), model.get_submodule(batchnorm), plan.layout
            )
            folded.append(pair)
            vars(pair.convolution)["forward"], vars(pair.batchnorm)["forward"] = (
                pair.convolve,
                pair.normalise,
            )
        yield folded
    finally:
        for pair in folded:
            vars(pair.convolution).pop("forward", None)
            vars(pair.batchnorm).pop("forward", None)


class _Pair:
    """A convolution and the BatchNorm behind it, folded into one."""

    def __init__(self, convolution: Any, batchnorm: Any, layout: torch.memory_format) -> None:
        self.convolution, self.batchnorm, self.layout = convolution, batchnorm, layout
        self.made_of = self._sources()
        self.weight, self.bias = self._fold()
        self.asked_for_alone = False

    @torch.no_grad()
    def _fold(self) -> tuple[Tensor, Tensor]:
        convolution, batchnorm = self.convolution, self.batchnorm
        scale = (batchnorm.running_var + batchnorm.eps).rsqrt()
        if batchnorm.weight is not None:
            scale = scale * batchnorm.weight
        mean = (
            batchnorm.running_mean
            if convolution.bias is None
            else batchnorm.running_mean - convolution.bias
        )
        bias = -mean * scale if batchnorm.bias is None else batchnorm.bias - mean * scale
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        return weight.to(memory_format=self.layout), bias

    def _sources(self) -> list[tuple[Tensor | None, int | None]]:
        """List the tensors that the folded ones are made of, each with its version."""
        c, b = self.convolution, self.batchnorm
        tensors = (c.weight, c.bias, b.weight, b.bias, b.running_mean, b.running_var)
        return [
            (tensor, None if tensor is None or tensor.is_inference() else tensor._version)
            for tensor in tensors
        ]

    def _is_current(self) -> bool:
        """Tell whether the folded weights still are the layers'; an objective may have put others in their place."""
        same = (
            now is then and version == of_then
            for (now, version), (then, of_then) in zip(self._sources(), self.made_of, strict=True)
        )
        return not self.batchnorm.training and all(same)

    def convolve(self, input: Tensor) -> Tensor:
        """Stand in for the convolution's forward."""
        if not self._is_current():
            return nn.Conv2d.forward(self.convolution, input)
        output: _Folded = torch.empty(0).as_subclass(_Folded)
        output.pair, output.input = self, input
        output.normalised = self.convolution._conv_forward(input, self.weight, self.bias)
        return output

    def normalise(self, input: Tensor) -> Tensor:
        """Stand in for the BatchNorm's forward."""
        if isinstance(input, _Folded) and input.pair is self and input.alone is None:
            return input.normalised
        return type(self.batchnorm).forward(self.batchnorm, input)


class _Folded(Tensor):
    """A folded convolution's output on its way to the BatchNorm.

    To the BatchNorm it is worth what comes out of both. To anything else that touches it (a skip connection, a hook,
    a question for its shape) it is what the convolution alone would have given, computed then.
    """

    pair: _Pair
    input: Tensor
    normalised: Tensor
    alone: Tensor | None = None

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_real(args), **_real(kwargs or {}))

    def convolved(self) -> Tensor:
        """Give the convolution's own output."""
        if self.alone is None:
            self.pair.asked_for_alone = True
            self.alone = nn.Conv2d.forward(self.pair.convolution, self.input)
        return self.alone


def _real(given: Any) -> Any:
    """Put real outputs in the place of folded ones, wherever a function takes tensors."""
    if isinstance(given, _Folded):
        return given.convolved()
    if isinstance(given, dict):
        return {key: _real(value) for key, value in given.items()}
    return type(given)(map(_real, given)) if type(given) in (list, tuple) else given
