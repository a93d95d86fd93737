"""Run a network faster: BatchNorm folded into the convolution before it, features channels last.

In eval mode, a BatchNorm that follows a convolution scales and shifts each of its output channels,
so one convolution does the work of both:

    weight' = weight * gamma / sqrt(var + eps)
    bias' = beta + (bias - mean) * gamma / sqrt(var + eps)

An attack runs the same weights many times; folding them once pays for itself in the first steps.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope import distributed
from channelscope.devices import fork_rng
from channelscope.layers.hooks import get_logits, handed_on, has_hooks

T = TypeVar("T")

# In eval mode these all do what a BatchNorm does.
_BATCHNORMS = (
    nn.BatchNorm2d.forward,
    nn.SyncBatchNorm.forward,
    distributed.SynchronisedBatchNorm2d.forward,
)

_TRIAL_IMAGES = 8  # on which the folded network must agree with the network itself


def prepare(model: nn.Module, x: Float[Tensor, "n *image"]) -> Iterator["Prepared"]:
    """Yield contexts in which to run a network: folded, and as it is should the first one fail.

        for prepared in prepare(model, x):
            with prepared:
                result = work(x.to(memory_format=prepared.layout))

    Which BatchNorm follows which convolution is traced with a few of the images, once for a
    network's structure; the folded network must then give the same logits. The folded weights are
    computed anew each time. The network's parameters, buffers and hooks are never touched. Not
    folded: networks and images of half precision, convolutions and BatchNorms with hooks or
    parametrisations, compiled and replicated networks.

    Args:
        model: any network, in eval mode.
        x: images like those that it will get, at least one.
    """
    plan = _get_plan(model, x)
    if not plan.is_empty:
        with suppress(Exception):
            prepared = Prepared(model, plan)
            yield prepared
            if not prepared.failed:
                return
    yield Prepared(model, _Plan(plan.structure))
    if not plan.is_empty:
        # What fails on the folded network and not on this one will do so the next time.
        _PLANS[model] = _Plan(plan.structure)


def run_folded(
    model: nn.Module, x: Float[Tensor, "n *image"], work: Callable[[torch.memory_format], T]
) -> T:
    """Return the result of some work on a network in eval mode, folded where possible.

    Args:
        model, x: see ``prepare``.
        work: a function of the memory format that its images shall have. Where it fails on the
            folded network it is called again, and what it then raises is its own.
    """
    for prepared in prepare(model, x):
        with prepared:
            result = work(prepared.layout)
    return result


def same_randomness(x: Tensor) -> Any:
    """Return a context after which the random state is what it was before."""
    return fork_rng(x.device)


# ---------------------------------------------------------------- what to fold


@dataclass(frozen=True)
class _Plan:
    """The pairs to fold in networks of some structure: convolution -> BatchNorm, by name."""

    structure: tuple[Any, ...]
    pairs: dict[str, str] = field(default_factory=dict)
    layout: torch.memory_format = torch.preserve_format

    @property
    def is_empty(self) -> bool:
        """Tell that the network is left as it is."""
        return not self.pairs and self.layout == torch.preserve_format


_PLANS: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()


def _get_plan(model: nn.Module, x: Tensor) -> _Plan:
    structure = _describe(model, x)
    plan = _PLANS.get(model)
    if plan is None or plan.structure != structure:
        plan = _PLANS[model] = _make_plan(model, x[:_TRIAL_IMAGES], structure)
    return plan


def _describe(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Return what a plan depends on: the layers, their hooks, and the kind of the images."""
    layers = [
        (name, type(layer), has_hooks(layer), _is_patched(layer))
        for name, layer in model.named_modules()
    ]
    return (x.shape[1:], x.dtype, *layers)


def _make_plan(model: nn.Module, x: Tensor, structure: tuple[Any, ...]) -> _Plan:
    """Trace the pairs; choose the first layout in which the folded network gives its logits."""
    layers = dict(model.named_modules())
    if any(map(_is_opaque, layers.values())):
        return _Plan(structure)
    foldable = {name: layer for name, layer in layers.items() if _is_foldable(layer, x)}
    convolutions = {name for name, layer in foldable.items() if type(layer) is nn.Conv2d}
    if not convolutions:
        return _Plan(structure)
    with suppress(Exception), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        with same_randomness(x):
            handed, logits = handed_on(model, x, foldable)
        pairs = {a: b for a, b in handed.items() if a in convolutions and b not in convolutions}
        # Code that calls view() on its features wants them contiguous.
        for layout in (torch.channels_last, torch.preserve_format):
            prepared = Prepared(model, _Plan(structure, pairs, layout))
            if _agrees(prepared, x, logits):
                # A convolution whose own output is used as well would be computed twice.
                folded = zip(pairs.items(), prepared.pairs, strict=True)
                single = dict(names for names, pair in folded if not pair.was_unfolded)
                return _Plan(structure, single, layout)
    return _Plan(structure)


def _agrees(prepared: "Prepared", x: Tensor, logits: Tensor) -> bool:
    """Tell whether the folded network gives these logits for x, and does not fail."""
    # A GPU may convolve in TF32, of 10 bits; what a wrong plan does to the logits is larger by far.
    tolerance = 1e-4 if x.device.type == "cpu" else 1e-2
    with same_randomness(x), prepared:
        folded = get_logits(prepared.model(x.to(memory_format=prepared.layout)))
    if prepared.failed:
        return False
    return bool((folded - logits).abs().max() <= tolerance * logits.abs().max())


def _is_foldable(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer is a convolution or BatchNorm and nothing more, of the images' type."""
    if type(layer) is nn.Conv2d:
        numbers = getattr(layer, "weight", None)
    elif type(layer).forward in _BATCHNORMS:
        numbers = getattr(layer, "running_var", None)
    else:
        return False
    return (
        x.dtype in (torch.float32, torch.float64)
        and isinstance(numbers, Tensor)
        and numbers.dtype == x.dtype
        and not has_hooks(layer)
        and not _is_patched(layer)
    )


def _is_patched(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def _is_opaque(layer: nn.Module) -> bool:
    """Tell whether a layer runs code other than its layers' forward: compiled, or copies."""
    if isinstance(layer, nn.DataParallel | torch.jit.ScriptModule):
        return True
    return "_orig_mod" in layer._modules or layer._compiled_call_impl is not None


# ---------------------------------------------------------------- folding


class Prepared:
    """A context in which the pairs of a plan are folded; a failure in it is noted, not raised.

    With nothing to fold, the network is as it is and errors are raised.
    """

    def __init__(self, model: nn.Module, plan: _Plan) -> None:
        self.model, self.plan, self.layout = model, plan, plan.layout
        self.pairs = [
            _Pair(model.get_submodule(convolution), model.get_submodule(batchnorm), plan.layout)
            for convolution, batchnorm in plan.pairs.items()
        ]
        self.failed = False

    def __enter__(self) -> Self:
        for pair in self.pairs:
            vars(pair.convolution)["forward"] = pair.convolve
            vars(pair.batchnorm)["forward"] = pair.normalise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        for pair in self.pairs:
            vars(pair.convolution).pop("forward", None)
            vars(pair.batchnorm).pop("forward", None)
        self.failed = isinstance(error, Exception)
        return self.failed and not self.plan.is_empty


class _Pair:
    """A convolution and the BatchNorm behind it, folded into one."""

    def __init__(self, convolution: Any, batchnorm: Any, layout: torch.memory_format) -> None:
        self.convolution, self.batchnorm, self.layout = convolution, batchnorm, layout
        self.sources = self._list_sources()
        self.weight, self.bias = self._fold()
        self.was_unfolded = False  # the convolution's own output was asked for

    @torch.no_grad()
    def _fold(self) -> tuple[Tensor, Tensor]:
        convolution, batchnorm = self.convolution, self.batchnorm
        scale = (batchnorm.running_var + batchnorm.eps).rsqrt()
        if batchnorm.weight is not None:
            scale = scale * batchnorm.weight
        mean = batchnorm.running_mean
        if convolution.bias is not None:
            mean = mean - convolution.bias
        bias = -mean * scale if batchnorm.bias is None else batchnorm.bias - mean * scale
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        return weight.to(memory_format=self.layout), bias

    def _list_sources(self) -> list[tuple[Tensor | None, int | None]]:
        """List the tensors that the folded ones are computed from, each with its version."""
        c, b = self.convolution, self.batchnorm
        tensors = (c.weight, c.bias, b.weight, b.bias, b.running_mean, b.running_var)
        return [
            (tensor, None if tensor is None or tensor.is_inference() else tensor._version)
            for tensor in tensors
        ]

    def _is_current(self) -> bool:
        """Tell whether the folded weights are still the layers': an objective may replace them."""
        pairs = zip(self._list_sources(), self.sources, strict=True)
        same = (now is then and version == old for (now, version), (then, old) in pairs)
        return not self.batchnorm.training and all(same)

    def convolve(self, input: Tensor) -> Tensor:
        """Stand in for the convolution's forward."""
        if not self._is_current():
            return nn.Conv2d.forward(self.convolution, input)
        output: _Folded = torch.empty(0, device="cpu").as_subclass(_Folded)
        output.pair, output.input = self, input
        output.normalised = self.convolution._conv_forward(input, self.weight, self.bias)
        return output

    def normalise(self, input: Tensor) -> Tensor:
        """Stand in for the BatchNorm's forward."""
        if isinstance(input, _Folded) and input.pair is self and input.unfolded is None:
            return input.normalised
        return type(self.batchnorm).forward(self.batchnorm, input)


class _Folded(Tensor):
    """A folded convolution's output on its way to the BatchNorm.

    The BatchNorm takes what comes out of both. For anything else that touches it (a skip
    connection, a hook, a question for its shape) it is what the convolution alone gives, computed
    then.
    """

    pair: _Pair
    input: Tensor
    normalised: Tensor
    unfolded: Tensor | None = None

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_unfold(args), **_unfold(kwargs or {}))

    def convolve(self) -> Tensor:
        """Return the convolution's own output."""
        if self.unfolded is None:
            self.pair.was_unfolded = True
            self.unfolded = nn.Conv2d.forward(self.pair.convolution, self.input)
        return self.unfolded


def _unfold(value: Any) -> Any:
    """Replace folded outputs by the convolutions' own, wherever a function takes tensors."""
    if isinstance(value, _Folded):
        return value.convolve()
    if isinstance(value, dict):
        return {key: _unfold(item) for key, item in value.items()}
    return type(value)(map(_unfold, value)) if type(value) in (list, tuple) else value
