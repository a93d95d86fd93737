"""Read or edit the features of any network by layer name: the only user of torch's hooks.

A layer is named as in ``model.named_modules()``; the empty name is the network itself. A module
that runs more than once in a forward pass is addressed call by call: ``relu@0``, ``relu@1``.
``linear:input`` is what the layer ``linear`` reads, whether or not a layer returns just that. A
wrapper such as ``Selective`` may offer its own names through a method ``named_layers() -> dict[str,
nn.Module]``. Within ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` layers keep
their names, and names with their ``module.`` or ``_orig_mod.`` are understood.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from channelscope.errors import UserError, join_first, suggest

Edit = Callable[[Tensor], Tensor | None]
_PARALLEL = nn.DataParallel, nn.parallel.DistributedDataParallel
_WRAPPERS = {"module", "_orig_mod"}  # where DataParallel and torch.compile keep the network
INPUT = ":input"  # ends the name of what a layer reads
_LISTED = 8  # layers that a sentence names


class LayerError(UserError):
    """A layer that does not exist, did not run, or ran more often than its name allows for."""


# ---------------------------------------------------------------- names


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List every layer of ``model`` that can be hooked, by name, in the order of registration."""
    model = _unwrap(model)
    custom: Callable[[], dict[str, nn.Module]] | None = getattr(model, "named_layers", None)
    if callable(custom):
        return custom()
    return {name: module for name, module in model.named_modules() if name}


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the layer of this name, which may end in ``@call`` or ``:input``.

    Raises:
        LayerError: for an unknown name, with suggestions.
    """
    return _resolve(name, named_layers(model) | {"": model}).module


def match_layers(model: nn.Module, names: Sequence[str], x: Float[Tensor, "n *image"]) -> list[str]:
    """Replace patterns among layer names by the layers that they match, in the order of running.

    As in a shell ``*`` stands for any characters but the dot, ``?`` for one and ``[0-9]`` for one
    of several: ``layer4.*`` are the blocks of ``layer4``, ``layer4.*.*`` what is in them. A layer
    that runs more than once is matched with its calls, ``relu@0`` and ``relu@1``, by ``relu*`` as
    well as by ``relu@*``. Names without a pattern are passed through; none is listed twice.

    Args:
        model: any network.
        names: names and patterns.
        x: images for one forward pass, which tells what runs; without a pattern there is no pass.

    Raises:
        LayerError: for a pattern that no layer's name matches.
    """
    layers, matches, calls = named_layers(model), list[str](), list[str]()
    for name in names:
        if name in layers or not set("*?[") & set(name):
            matches.append(name)
            continue
        calls = calls or [call.name for call in trace(model, x)[0]]
        matching = [
            call
            for call in calls
            if _matches(call, name) or _matches(call.rpartition("@")[0] or call, name)
        ]
        if not matching:
            raise LayerError(
                f"No layer's name matches {name!r}, in which * stands for anything but a dot: "
                "'channelscope layers' lists the names."
            )
        matches += matching
    return list(dict.fromkeys(matches))


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the network that ``torch.compile`` wrapped; any other as it is.

    Compiled code ignores hooks that come later, and compiling takes minutes.
    """
    return unwrap_compiled(model.get_submodule("_orig_mod")) if _is_wrapped(model) else model


def _unwrap(model: nn.Module) -> nn.Module:
    while isinstance(model, _PARALLEL) or _is_wrapped(model):
        name = "module" if isinstance(model, _PARALLEL) else "_orig_mod"
        model = model.get_submodule(name)
    return model


def _is_wrapped(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule"  # its import takes seconds


def _is_compiled(module: nn.Module) -> bool:
    return _is_wrapped(module) or module._compiled_call_impl is not None


def _run_eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Let what ``torch.compile`` wrapped run as written: compiled code ignores later hooks."""
    if any(map(_is_compiled, model.modules())):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


class _Place(NamedTuple):
    """Where a name points to: a module, its call if the name has one, its output or its input."""

    module: nn.Module
    call: int | None
    at_input: bool


def _list_outermost(layers: Mapping[str, nn.Module]) -> str:
    """Return the end of an error message on a name that is like none of the layers."""
    names = [name for name in layers if name and "." not in name]
    listed = join_first(names, _LISTED)
    return f" It has {listed}; 'channelscope layers' lists all." if names else ""


def _resolve(name: str, layers: Mapping[str, nn.Module]) -> _Place:
    """Return the place of this name; names with or without those of wrappers are the same."""
    if name in layers:
        return _Place(layers[name], None, False)
    whole, at_input = name.removesuffix(INPUT), name.endswith(INPUT)
    layer, at, call = whole.rpartition("@")
    if not (at and call.isdecimal()) or whole in layers:
        layer, call = whole, ""
    module = layers.get(layer)
    if module is None:
        alike = {each for each in layers if each and _drop_wrappers(each) == _drop_wrappers(layer)}
        if len(alike) != 1:
            hint = suggest(layer or name, layers) or _list_outermost(layers)
            raise LayerError(f"There is no layer {name!r} in this network.{hint}")
        module = layers[alike.pop()]
    return _Place(module, int(call) if call else None, at_input)


def _drop_wrappers(name: str) -> str:
    """Drop the names under which DataParallel and torch.compile keep what they wrap."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


# ---------------------------------------------------------------- hooks


@contextmanager
def hooked(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Pass the output of each named layer through its edit while the context lasts.

    All hooks are removed on leaving, also after an error.

    Args:
        model: any network. Every forward pass of it inside the context is watched.
        edits: layer name -> function of the layer's output tensor. It returns the tensor that the
            rest of the network shall see, or None to leave the output alone. Of a layer that
            returns a tuple, list, dict or dataclass, the edit gets and replaces the first tensor,
            which may lie one level deeper, as in ``((features, weights), cache)``.

    Raises:
        LayerError: at once for an unknown name (with suggestions); in the forward pass for a layer
            that ran more than once though its name has no ``@call``; at its end for a layer that
            did not run. What activation checkpointing runs again in the backward pass is edited
            again and does not count; a layer that runs more than once is refused there.
    """
    layers = named_layers(model) | {"": model}
    watches = [_Watch(name, edit, _resolve(name, layers)) for name, edit in edits.items()]

    def start(*_: Any) -> None:
        for watch in watches:
            watch.calls, watch.running = 0, True

    def finish(*_: Any) -> None:
        for watch in watches:
            watch.running = False
            watch.check_ran()

    with ExitStack() as handles, _run_eagerly(model):
        # The root's own hooks frame one forward pass: calls are counted, and missed, within it.
        handles.callback(model.register_forward_pre_hook(start, prepend=True).remove)
        for watch in watches:
            handles.callback(watch.register().remove)
        handles.callback(model.register_forward_hook(finish).remove)
        yield


@dataclass
class _Watch:
    """One edit at one layer; counts the layer's calls within a forward pass."""

    name: str
    edit: Edit
    place: _Place
    calls: int = 0
    running: bool = True

    def register(self) -> RemovableHandle:
        """Hook the layer, before or after it runs."""
        module = self.place.module
        if self.place.at_input:
            return module.register_forward_pre_hook(self.edit_input, with_kwargs=True)
        return module.register_forward_hook(self.edit_output)

    def edit_output(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return self._edit(output, depth=2) if self._is_wanted() else None

    def edit_input(self, _module: nn.Module, inputs: Any, keywords: Any) -> Any:
        if not self._is_wanted():
            return None
        return self._edit((inputs, keywords), depth=4)

    def _edit(self, value: Any, depth: int) -> Any:
        edited = self.edit(first_tensor(value, f"layer {self.name!r}", depth))
        return None if edited is None else _replace_first(value, edited, depth)

    def _is_wanted(self) -> bool:
        """Count a call; tell whether it is the one to edit."""
        call = self.place.call
        if not self.running:
            return self._is_repeated()
        self.calls += 1
        if call is None and self.calls > 1:
            layer, ending = self.name.removesuffix(INPUT), INPUT if self.place.at_input else ""
            raise LayerError(
                f"Layer {self.name!r} runs more than once in a forward pass: "
                f"name the call, as in '{layer}@0{ending}' or '{layer}@1{ending}'."
            )
        return call in (None, self.calls - 1)

    def _is_repeated(self) -> bool:
        """Tell whether a call after the forward pass, of a checkpoint, repeats the one to edit."""
        if self.calls > 1:
            raise LayerError(
                f"Layer {self.name!r} runs more than once, and activation checkpointing runs it "
                "again in the backward pass, where its calls cannot be told apart: switch "
                "checkpointing off, or name another layer."
            )
        return True

    def check_ran(self) -> None:
        if self.calls <= (self.place.call or 0):
            times = "did not run" if self.calls == 0 else f"ran only {self.calls} time(s)"
            raise LayerError(
                f"Layer {self.name!r} {times} in the forward pass: "
                "choose a layer that the network uses."
            )


@dataclass(frozen=True)
class Call:
    """One call of a layer in a forward pass; ``name`` ends in ``@call`` if there are several."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor


def trace(
    model: nn.Module, x: Float[Tensor, "n *image"]
) -> tuple[list[Call], Float[Tensor, "n k"]]:
    """Run the network once on x; return every layer's calls and the logits.

    Calls come in the order in which they end. Layers whose output holds no tensor are left out.
    """
    calls: list[Call] = []
    with ExitStack() as handles, _run_eagerly(model), eval_mode(model), torch.no_grad():
        for name, module in named_layers(model).items():

            def record(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                tensor = find_tensor(output)
                if tensor is not None:  # cloned, as what follows may work in place
                    calls.append(Call(name, module, find_tensor(inputs), tensor.clone()))

            handles.callback(module.register_forward_hook(record).remove)
        logits = get_logits(model(x))
    totals, counts = Counter(call.name for call in calls), Counter[str]()
    for index, call in enumerate(calls):
        if totals[call.name] > 1:
            calls[index] = dataclasses.replace(call, name=f"{call.name}@{counts[call.name]}")
            counts[call.name] += 1
    return calls, logits


def measure_shapes(
    model: nn.Module, calls: Sequence[Call], x: Float[Tensor, "n *image"]
) -> list[Call]:
    """Return the calls with the shapes for other images, keeping nothing of what layers return."""
    measured: list[Call] = []

    def record(_: nn.Module, inputs: Any, output: Any) -> None:
        if (tensor := find_tensor(output)) is not None:  # as in ``trace``
            call, read = calls[len(measured)], find_tensor(inputs)
            empty = None if read is None else read.to("meta")
            measured.append(dataclasses.replace(call, input=empty, output=tensor.to("meta")))

    with ExitStack() as handles, eval_mode(model), torch.no_grad():
        for module in named_layers(model).values():
            handles.callback(module.register_forward_hook(record).remove)
        model(x)
    return measured


def handed_on(
    model: nn.Module, x: Float[Tensor, "n *image"], layers: Mapping[str, nn.Module]
) -> tuple[dict[str, str], Float[Tensor, "n k"]]:
    """Run the network once on x; return which layer passes its output to which, and the logits.

    Listed are pairs of layers that are called once each, where the output tensor of the first is
    the input of one other of the layers only (modules that are not among the layers may use it
    too).
    """
    calls, takers, outputs = Counter[str](), Counter[str](), list[tuple[str, Tensor]]()
    pairs: dict[str, str] = {}
    with ExitStack() as handles:
        for name, layer in layers.items():

            def record(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                calls[name] += 1
                for giver, tensor in outputs:
                    if inputs and tensor is inputs[0]:
                        takers[giver] += 1
                        pairs[giver] = name
                outputs.append((name, output))

            handles.callback(layer.register_forward_hook(record).remove)
        logits = get_logits(model(x))
    once = {name for name in layers if calls[name] == 1}
    return {a: b for a, b in pairs.items() if {a, b} <= once and takers[a] == 1}, logits


@contextmanager
def logits_for(model: nn.Module, x: Float[Tensor, "n *image"]) -> Iterator[list[Tensor]]:
    """Collect the logits of each forward pass inside the context whose input is this tensor x."""
    collected: list[Tensor] = []

    def collect(_: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        if any(value is x for value in (*inputs, *keywords.values())):
            collected.append(get_logits(output).detach())

    handle = model.register_forward_hook(collect, with_kwargs=True)
    try:
        yield collected
    finally:
        handle.remove()


def has_hooks(module: nn.Module) -> bool:
    """Tell whether this very module has hooks, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


# ---------------------------------------------------------------- eval mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode and its parameters out of the graph; restore both afterwards.

    Raises:
        UserError: at the end, for a network whose own forward switches it to train mode, even in
            passing. Its buffers (the statistics of BatchNorm, which such a network would let drift)
            are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = list(model.buffers())
    before = _join_bytes(buffers)
    try:
        with suppress(NotImplementedError):  # exported programs have the mode of their export
            model.eval()
        for module, _ in modes:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        switched = any(module.training for module in model.modules())
        drifted = {id(buffer) for buffer in _restore(buffers, before)}
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    if switched or any(id(buffer) in drifted for norm in norms for buffer in norm.buffers()):
        raise UserError(
            "The network switches itself to train mode in its forward pass, so its answers are not "
            "those of evaluation: remove the call of train() from its forward."
        )


def _join_bytes(buffers: list[Tensor]) -> dict[torch.device, Tensor]:
    """Copy all buffers of a device into one row of bytes: a single comparison finds a change."""
    rows: dict[torch.device, list[Tensor]] = {buffer.device: [] for buffer in buffers}
    for buffer in buffers:
        rows[buffer.device].append(buffer.detach().flatten().view(torch.uint8))
    return {device: torch.cat(row) for device, row in rows.items()}


@torch.no_grad()
def _restore(buffers: list[Tensor], before: dict[torch.device, Tensor]) -> list[Tensor]:
    """Write the earlier values back into the buffers; return those that had changed."""
    changed = []
    for device, after in _join_bytes(buffers).items():
        if torch.equal(after, before[device]):
            continue
        of_device = [buffer for buffer in buffers if buffer.device == device]
        sizes = [buffer.numel() * buffer.element_size() for buffer in of_device]
        rows = zip(of_device, before[device].split(sizes), after.split(sizes), strict=True)
        for buffer, old, new in rows:
            if not torch.equal(old, new):
                # A clone begins at an address where a tensor of the buffer's type may begin.
                buffer.copy_(old.clone().view(buffer.dtype).view(buffer.shape))
                changed.append(buffer)
    return changed


def get_parameter(network: nn.Module) -> Tensor:
    """Return a tensor of the device and the precision that the network's images must have."""
    floats = (parameter for parameter in network.parameters() if parameter.is_floating_point())
    return next(floats, torch.zeros(1, device="cpu"))


# ---------------------------------------------------------------- outputs


def get_logits(output: Any) -> Float[Tensor, "n k"]:
    """Return the logits (n, classes) in what a network returned.

    A tensor is taken as it is; of a dict or dataclass the entry ``logits``, ``out`` or, without
    either, the first tensor; of a tuple or list the first tensor (as of networks with auxiliary
    heads).
    """
    for name in ("logits", "out"):
        entry = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(entry, Tensor):
            output = entry
    logits = first_tensor(output, "network")
    if logits.ndim != 2:
        raise UserError(
            f"The network returns a tensor of shape {tuple(logits.shape)}, not logits (images, "
            "classes): wrap it in a module that returns the logits."
        )
    return logits


def first_tensor(output: Any, source: str, depth: int = 2) -> Tensor:
    """Return the first tensor of what a module returned: a tensor, tuple, list, dict or dataclass.

    Raises:
        UserError: where there is none; ``source`` says in the message whose output it is.
    """
    tensor = find_tensor(output, depth)
    if tensor is None:
        raise UserError(
            f"The {source} returns a {type(output).__name__} that holds no tensor: "
            "it cannot be analysed."
        )
    return tensor


def list_items(output: Any) -> dict[Any, Any]:
    """List the entries of a dict, tuple or list, or the fields of a dataclass."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {entry.name: getattr(output, entry.name) for entry in dataclasses.fields(output)}
    return {}


def find_tensor(output: Any, depth: int = 2) -> Tensor | None:
    """Return the first tensor of an output, at most ``depth`` levels deep, or None."""
    if isinstance(output, Tensor) or not depth:
        return output if isinstance(output, Tensor) else None
    tensors = (find_tensor(item, depth - 1) for item in list_items(output).values())
    return next((tensor for tensor in tensors if tensor is not None), None)


def _replace_first(output: Any, new: Tensor, depth: int = 2) -> Any:
    """Rebuild ``output`` with ``new`` in the place of its first tensor."""
    if isinstance(output, Tensor):
        return new
    items = list_items(output)
    first = next(key for key, item in items.items() if find_tensor(item, depth - 1) is not None)
    items[first] = _replace_first(items[first], new, depth - 1)
    if isinstance(output, Mapping):
        return type(output)(items)  # type: ignore[call-arg]
    if isinstance(output, tuple | list):
        # Named tuples take their fields one by one.
        rebuild: Callable[[Any], Any] = getattr(output, "_make", type(output))
        return rebuild(items.values())
    changed = copy(output)
    # Also for frozen dataclasses, and without running what checks their fields.
    object.__setattr__(changed, first, items[first])
    return changed
