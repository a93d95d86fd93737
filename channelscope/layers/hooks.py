"""Look into, or edit, the features of any network by layer name: the only user of torch's hooks.

A layer is named as in ``model.named_modules()``; the empty name is the network itself. A module that runs more than
once in a forward pass is addressed call by call: ``relu@0``, ``relu@1``. A wrapper such as ``Selective`` may offer its
own names through a method ``named_layers() -> dict[str, nn.Module]``.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from channelscope.errors import UserError, suggest

Edit = Callable[[Tensor], Tensor | None]


class LayerError(UserError):
    """A layer that does not exist, did not run, or ran more often than its name allows for."""


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List every layer of ``model`` that can be hooked, by name, in the order of registration."""
    own: Callable[[], dict[str, nn.Module]] | None = getattr(model, "named_layers", None)
    return (
        own() if callable(own) else {name: module for name, module in model.named_modules() if name}
    )


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """Give the layer of this name, of which ``@call`` may be a part.

    Raises:
        LayerError: for a name that is not there, with suggestions.
    """
    return _resolve(name, named_layers(model) | {"": model})[0]


def match_layers(model: nn.Module, names: Sequence[str], x: Float[Tensor, "n *image"]) -> list[str]:
    """Turn patterns among layer names into the layers that they match, in the order in which these run.

    As in a shell ``*`` stands for any characters but the dot, ``?`` for one and ``[0-9]`` for one of several:
    ``layer4.*`` are the blocks of ``layer4``, ``layer4.*.*`` what is in them. A layer that runs more than once is
    matched with its calls, ``relu@0`` and ``relu@1``, by ``relu*`` as well as by ``relu@*``. Names that are no patterns
    stay as they are; none is listed twice.

    Args:
        model: any network.
        names: names and patterns.
        x: images for one forward pass, which tells what runs; there is none without a pattern.

    Raises:
        LayerError: for a pattern that no layer's name matches.
    """
    known, found, calls = named_layers(model), list[str](), list[str]()
    for name in names:
        if name in known or not set("*?[") & set(name):
            found.append(name)
            continue
        calls = calls or [call.name for call in trace(model, x)[0]]
        matched = [
            call
            for call in calls
            if _matches(call, name) or _matches(call.rpartition("@")[0] or call, name)
        ]
        if not matched:
            raise LayerError(
                f"No layer's name matches {name!r}, in which * stands for anything but a dot: "
                "'channelscope layers' lists the names."
            )
        found += matched
    return list(dict.fromkeys(found))


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


@contextmanager
def hooked(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Pass the output of each named layer through its edit for as long as the context lasts.

    Args:
        model: any network. Every forward pass of it inside the context is watched.
        edits: layer name -> function of the layer's output tensor. It returns the tensor that the rest of the
            network shall see, or None to leave the output alone. Of a layer that returns a tuple, list, dict or
            dataclass, the edit gets and replaces the first tensor, which may lie one level deeper, as in
            ``((features, weights), cache)``.

    Raises:
        LayerError: at once for an unknown name (with suggestions); in the forward pass for a layer that ran more
            than once though its name has no ``@call``; at its end for a layer that did not run.

    All hooks are removed on leaving, also after an error.
    """
    layers = named_layers(model) | {"": model}
    watches = [_Watch(name, edit, *_resolve(name, layers)) for name, edit in edits.items()]
    with ExitStack() as handles:

        def start(*_: Any) -> None:
            for watch in watches:
                watch.calls = 0

        def finish(*_: Any) -> None:
            for watch in watches:
                watch.check_ran()

        # The root's own hooks frame one forward pass: calls are counted, and missed, within it.
        handles.callback(model.register_forward_pre_hook(start, prepend=True).remove)
        for watch in watches:
            handles.callback(watch.module.register_forward_hook(watch).remove)
        handles.callback(model.register_forward_hook(finish).remove)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode and its parameters out of the graph; leave everything as it was found.

    Raises:
        UserError: at the end, for a network whose own forward switches it to train mode, be it in passing. Its
            buffers (the statistics of BatchNorm, which such a network would let drift) are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = list(model.buffers())
    before = _bytes_of(buffers)
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        trained = any(module.training for module in model.modules())
        drifted = _put_back(buffers, before)
        for module, training in modes:
            module.training = training
        for parameter in wanted:
            parameter.requires_grad_(True)
    statistics = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers()
    }
    if trained or any(id(buffer) in statistics for buffer in drifted):
        raise UserError(
            "The network switches itself to train mode in its forward pass, so its answers are not those of "
            "evaluation: remove the call of train() from its forward."
        )


def _bytes_of(buffers: list[Tensor]) -> dict[torch.device, Tensor]:
    """Copy all buffers, device by device, into one row of bytes: one comparison tells whether any has changed."""
    rows: dict[torch.device, list[Tensor]] = {buffer.device: [] for buffer in buffers}
    for buffer in buffers:
        rows[buffer.device].append(buffer.detach().flatten().view(torch.uint8))
    return {device: torch.cat(row) for device, row in rows.items()}


@torch.no_grad()
def _put_back(buffers: list[Tensor], before: dict[torch.device, Tensor]) -> list[Tensor]:
    """Give the buffers the values that they had before; list those that had others."""
    drifted = []
    after = _bytes_of(buffers)
    for device in (device for device in before if not torch.equal(after[device], before[device])):
        here = [buffer for buffer in buffers if buffer.device == device]
        sizes = [buffer.numel() * buffer.element_size() for buffer in here]
        for buffer, was, now in zip(
            here, before[device].split(sizes), after[device].split(sizes), strict=True
        ):
            if not torch.equal(was, now):
                buffer.copy_(
                    was.clone().view(buffer.dtype).view(buffer.shape)
                )  # cloned, it begins where its type may
                drifted.append(buffer)
    return drifted


@dataclass(frozen=True)
class Call:
    """One call of a layer in a forward pass; ``name`` carries ``@call`` where the layer is called more than once."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor


def trace(
    model: nn.Module, x: Float[Tensor, "n *image"]
) -> tuple[list[Call], Float[Tensor, "n k"]]:
    """Run the network once on x and list every layer's calls, in the order in which they end, and the logits.

    Layers whose output holds no tensor are left out.
    """
    seen: list[tuple[str, nn.Module, Tensor | None, Tensor]] = []
    with ExitStack() as handles, eval_mode(model), torch.no_grad():
        for name, module in named_layers(model).items():

            def record(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                tensor = _first_or_none(output)
                if tensor is not None:
                    seen.append((name, module, _first_or_none(inputs), tensor.clone()))

            handles.callback(module.register_forward_hook(record).remove)
        logits = get_logits(model(x))
    times, calls = Counter(name for name, *_ in seen), Counter[str]()
    listed = []
    for name, module, given, output in seen:
        listed.append(
            Call(f"{name}@{calls[name]}" if times[name] > 1 else name, module, given, output)
        )
        calls[name] += 1
    return listed, logits


def handed_on(
    model: nn.Module, x: Float[Tensor, "n *image"], layers: Mapping[str, nn.Module]
) -> tuple[dict[str, str], Float[Tensor, "n k"]]:
    """Run the network once on x and tell which of these layers gives its output, the tensor itself, to which other.

    Listed are pairs of layers that are called once each, where the output of the first goes to one other of the
    layers only (whoever else may use it). The logits come with them.
    """
    calls, takers, given = Counter[str](), Counter[str](), list[tuple[str, Tensor]]()
    pairs: dict[str, str] = {}
    with ExitStack() as handles:
        for name, layer in layers.items():

            def record(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                calls[name] += 1
                for giver in (giver for giver, tensor in given if inputs and tensor is inputs[0]):
                    takers[giver] += 1
                    pairs[giver] = name
                given.append((name, output))

            handles.callback(layer.register_forward_hook(record).remove)
        logits = get_logits(model(x))
    once = {name for name in layers if calls[name] == 1}
    return {a: b for a, b in pairs.items() if {a, b} <= once and takers[a] == 1}, logits


@contextmanager
def logits_for(model: nn.Module, x: Float[Tensor, "n *image"]) -> Iterator[list[Tensor]]:
    """Keep the logits of each forward pass inside the context that is given x, the tensor itself."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        if any(given is x for given in (*inputs, *named.values())):
            kept.append(get_logits(output).detach())

    handle = model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()


def has_hooks(module: nn.Module) -> bool:
    """Tell whether anything watches or edits what goes through this very module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


@dataclass
class _Watch:
    """One edit at one layer, counting the layer's calls within a forward pass."""

    name: str
    edit: Edit
    module: nn.Module
    call: int | None
    calls: int = field(default=0)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        self.calls += 1
        if self.call is None and self.calls > 1:
            raise LayerError(
                f"Layer {self.name!r} runs more than once in a forward pass: "
                f"name the call, as in '{self.name}@0' or '{self.name}@1'."
            )
        if self.call not in (None, self.calls - 1):
            return None
        edited = self.edit(first_tensor(output, f"layer {self.name!r}"))
        return None if edited is None else _replace_first(output, edited)

    def check_ran(self) -> None:
        needed = 1 if self.call is None else self.call + 1
        if self.calls < needed:
            times = "did not run" if self.calls == 0 else f"ran only {self.calls} time(s)"
            raise LayerError(
                f"Layer {self.name!r} {times} in the forward pass: choose a layer that the network uses."
            )


def _resolve(name: str, layers: Mapping[str, nn.Module]) -> tuple[nn.Module, int | None]:
    layer, at, call = name.rpartition("@")
    if name in layers:
        return layers[name], None
    if at and call.isdecimal() and layer in layers:
        return layers[layer], int(call)
    raise LayerError(f"There is no layer {name!r} in this network.{suggest(layer or name, layers)}")


def first_tensor(output: Any, source: str) -> Tensor:
    """Take the first tensor of what a module returned: a tensor, or a tuple, list, dict or dataclass that holds one."""
    tensor = _first_or_none(output)
    if tensor is None:
        raise UserError(
            f"The {source} returns a {type(output).__name__} that holds no tensor: it cannot be analysed."
        )
    return tensor


def _items(output: Any) -> dict[Any, Any]:
    """List what an output holds: the entries of a dict, tuple or list, the fields of a dataclass."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {entry.name: getattr(output, entry.name) for entry in dataclasses.fields(output)}
    return {}


def _first_or_none(output: Any, depth: int = 2) -> Tensor | None:
    """Take the first tensor of an output, at most ``depth`` levels deep."""
    if isinstance(output, Tensor) or not depth:
        return output if isinstance(output, Tensor) else None
    found = (_first_or_none(item, depth - 1) for item in _items(output).values())
    return next((tensor for tensor in found if tensor is not None), None)


def _replace_first(output: Any, new: Tensor, depth: int = 2) -> Any:
    """Rebuild ``output`` with ``new`` in the place of its first tensor."""
    if isinstance(output, Tensor):
        return new
    items = _items(output)
    first = next(key for key, item in items.items() if _first_or_none(item, depth - 1) is not None)
    items[first] = _replace_first(items[first], new, depth - 1)
    if isinstance(output, Mapping):
        return type(output)(items)  # type: ignore[call-arg]
    if isinstance(output, tuple | list):
        rebuild: Callable[[Any], Any] = getattr(
            output, "_make", type(output)
        )  # named tuples take fields one by one
        return rebuild(items.values())
    changed = copy(output)
    object.__setattr__(
        changed, first, items[first]
    )  # frozen ones too, and without running what checks the fields
    return changed


def get_logits(output: Any) -> Float[Tensor, "n k"]:
    """Take the logits (n, classes) from what a network returned.

    A tensor is taken as it is; of a dict or dataclass the entry ``logits``, ``out`` or, without either, the first
    tensor; of a tuple or list the first tensor (as of networks with auxiliary heads).
    """
    for name in ("logits", "out"):
        named = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(named, Tensor):
            output = named
    logits = first_tensor(output, "network")
    if logits.ndim != 2:
        raise UserError(
            f"The network returns a tensor of shape {tuple(logits.shape)}, not logits (images, classes): "
            "wrap it in a module that returns the logits."
        )
    return logits
