"""Checkpoints: network files that describe themselves, of plain values and tensors only."""

import dataclasses
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shorten
from types import UnionType
from typing import Any, Literal, Self, Union, cast, get_args, get_origin

import torch
from torch import Tensor, nn

from channelscope import __version__
from channelscope.errors import UserError, has_controls
from channelscope.gates import KINDS, Selective
from channelscope.networks import Architecture
from channelscope.recipes import METHODS
from channelscope.weights import zoo
from channelscope.weights.architectures import External, MisfitError
from channelscope.weights.tensors import load_tensors, save_tensors

FORMAT = 2
LOG = ("epoch", "loss", "accuracy", "lr", "val_natural", "val_robust", "seconds", "best")
"""The columns of a training log."""
GATE_LOG = ("probe_natural", "probe_robust", "mask_natural", "mask_adversarial", "mask_cosine")
"""Its further columns for each CIFS gate."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What it takes to build the gate of one layer again.

    Args:
        layer: the gated layer's name.
        channels: its number of channels.
        kind: of the gate, a key of ``gates.KINDS``.
        options: of that kind, by name; those left out have the kind's own values.

    Raises:
        UserError: for an unknown kind, an unknown option, or a value of the wrong type.
    """

    layer: str
    channels: int
    kind: str = "cifs"
    options: dict[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.channels) is not int or not 1 <= self.channels <= 2**20:
            raise UserError(
                f"A gated layer has between 1 and {2**20:,} channels, not {shorten(self.channels)}."
            )
        if self.kind not in KINDS:
            raise UserError(
                f"There is no gate {shorten(self.kind)}: choose from {', '.join(KINDS)}."
            )
        for name, value in self.options.items():
            self._check_option(name, value)

    def _check_option(self, name: str, value: Any) -> None:
        types = KINDS[self.kind].options
        if name not in types:
            raise UserError(
                f"A gate of kind {self.kind} has no option {shorten(name)}: "
                f"choose from {', '.join(types)}."
            )
        is_union = get_origin(types[name]) in (Union, UnionType)
        kinds = get_args(types[name]) if is_union else (types[name],)
        if not any(_is_of_kind(value, kind) for kind in kinds):
            form = " or ".join(map(_describe_kind, kinds))
            raise UserError(
                f"The option {name} of a gate of kind {self.kind} is {form}, not {shorten(value)}."
            )

    def build(self, classes: int) -> nn.Module:
        """Build the gate with fresh weights.

        Raises:
            UserError: for options out of range.
        """
        return KINDS[self.kind].build(self.channels, classes, **self.options)


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Tell whether a value is of an option's type; True is no number, though Python counts it."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return type(value) in ((int, float) if kind is float else (kind,))


def _describe_kind(kind: Any) -> str:
    if get_origin(kind) is not Literal:
        return {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    words = get_args(kind)
    return f"one of {', '.join(words)}" if len(words) > 1 else f'"{words[0]}"'


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network and all that is known of how it was trained.

    Args:
        architecture: of the backbone.
        gates: of the gated layers, in the order of the network; none for a plain network.
        state: the network's ``state_dict``.
        image: channels, height and width of the images that it was trained on.
        class_names: names of the classes, or None where unknown.
        method: one of ``recipes.METHODS``, or None where unknown.
        meta: data, recipe, seed, metrics, history (a dict an epoch) and versions, as plain values.
    """

    architecture: Architecture | External
    gates: tuple[Gate, ...] = ()
    state: Mapping[str, Tensor]
    image: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None
    method: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Build the network with its weights, in eval mode: a ``Selective`` if it has gates.

        Raises:
            UserError: for an architecture of other code that is not installed or does not fit.
        """
        if isinstance(self.architecture, External):
            return self.architecture.build_with(self.state)
        with torch.device("meta"):  # no memory, no random numbers: all tensors are the state's
            network = build(self.architecture, self.gates)
        network.load_state_dict(dict(self.state), assign=True)
        return network.eval()

    def to_half(self) -> Self:
        """Return the checkpoint with its matrices and kernels in half precision.

        What is small keeps its precision: BatchNorm's variances behind a mask, which shrinks what
        it lets through, would vanish in half precision.
        """
        state = {name: _to_half(tensor) for name, tensor in self.state.items()}
        return dataclasses.replace(self, state=state)

    def save(self, path: Path | str) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            UserError: where ``path`` cannot be written.
        """
        zoo.check_target(path)
        save_tensors(self.content(), Path(path))

    def content(self) -> dict[str, Any]:
        """Return the plain values and tensors that a file holds."""
        content = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return content | {
            "channelscope": FORMAT,
            "architecture": dataclasses.asdict(self.architecture),
            "gates": [dataclasses.asdict(gate) for gate in self.gates],
            "state": {name: tensor.detach().cpu() for name, tensor in self.state.items()},
        }

    @classmethod
    def read(cls, path: Path | str, code: str | None = None) -> Self:
        """Read a checkpoint: a file, or ``zoo:NAME``, a network that ships with the package.

        Weights that a file holds in half precision come back in single precision.

        Args:
            path: the file.
            code: the user's own code that builds the network, ``FILE.py:NAME``: where a checkpoint
                needs any, the user must name it, for no file says what to run.

        Raises:
            UserError: one sentence for a file that is missing, damaged, foreign or hostile.
        """
        content = load_tensors(zoo.locate(path))
        if not isinstance(content, dict) or "channelscope" not in content:
            raise UserError(
                f"{path} is not a channelscope checkpoint: train one with 'channelscope train', "
                "or convert it with 'channelscope convert'."
            )
        version = content.pop("channelscope")
        if type(version) is not int or version != FORMAT:
            raise UserError(
                f"{path} was written by another version of channelscope: train or convert it again."
            )
        content.pop("progress", None)  # of a training run that is not complete
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                checkpoint = cls._parse(content)
                if isinstance(checkpoint.architecture, Architecture):
                    network = build(checkpoint.architecture, checkpoint.gates)
                    network.load_state_dict(dict(checkpoint.state), assign=True)
        except Exception as error:
            is_sentence = isinstance(error, UserError)
            reason = str(error) if is_sentence else "its parts do not fit together"
            raise UserError(
                f"{path} is damaged ({reason}): get it again or train it again."
            ) from error
        if not is_finite(checkpoint.state):
            raise UserError(
                f"{path} holds weights that are not finite numbers: train the network again."
            )
        if isinstance(checkpoint.architecture, External):
            return checkpoint._check_external(path, code)
        return checkpoint

    def _check_external(self, path: Path | str, code: str | None) -> Self:
        """Check that an architecture of other code can be built and fits the weights."""
        external = cast(External, self.architecture)
        if external.is_code:
            if code is None:
                raise UserError(
                    f"{path} needs code of your own, which no file may say to run: type "
                    f"{path}@{external.arch}, or name it with --arch or arch=."
                )
            external = dataclasses.replace(external, arch=code)
        else:
            try:
                external.check_plain()
            except ValueError as error:
                raise UserError(
                    f"{path} is damaged, or was saved with arguments for {external.arch} that "
                    f"files may not have ({error}): convert it again."
                ) from error
        expected = {key: item.shape for key, item in external.build_shapes().items()}
        if expected != {key: item.shape for key, item in self.state.items()}:
            raise MisfitError(
                f"{path} does not fit {external.arch} as it is installed here: install the version "
                "that it was saved with, or convert it again."
            )
        return dataclasses.replace(self, architecture=external)

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Self:
        """Make a checkpoint of what a file holds; raises anything where it does not fit."""
        described = content["architecture"]
        statistics = {key: tuple(map(float, described[key])) for key in ("mean", "std")}
        is_ours = "args" not in described
        architecture = (Architecture if is_ours else External)(**described | statistics)
        gates = tuple(Gate(**gate) for gate in content["gates"])
        image = tuple(content["image"])
        names = content["class_names"]
        if len({gate.layer for gate in gates}) != len(gates):
            raise ValueError("two gates of one layer")
        if gates and not is_ours:
            raise ValueError("gates around other code")
        if len(image) != 3 or (is_ours and image[0] != len(architecture.mean)):
            raise ValueError("an image of another kind")
        if not all(type(size) is int and 1 <= size <= 4096 for size in image):
            raise ValueError("an image of an impossible size")
        if names is not None:
            _check_class_names(names, architecture.classes)
        if content["method"] not in (None, *METHODS):
            raise ValueError("an unknown method")
        _check_meta(content["meta"], gates, names or ())
        values = {
            "architecture": architecture,
            "gates": gates,
            "image": image,
            "class_names": names and tuple(names),
            "state": {name: _to_single(tensor) for name, tensor in content["state"].items()},
        }
        return cls(**content | values)


def _to_half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if tensor.ndim > 1 and half.isfinite().all() else tensor


def _to_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def _check_class_names(names: Any, classes: int) -> None:
    if not isinstance(names, list | tuple) or len(names) != classes:
        raise ValueError("class names of another number")
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("class names that cannot be printed")


def _check_meta(meta: Any, gates: tuple[Gate, ...], classes: Sequence[str]) -> None:
    """Check those of the meta data that are used; raises anything where they do not fit."""
    if has_controls(meta):
        raise ValueError("words with control characters")
    tables = [meta.get("versions", {})]
    if (settings := meta.get("settings")) is not None:
        tables += [settings["recipe"], settings["data"]]
        if not isinstance(settings["data"]["name"], str):
            raise ValueError("the data has no name")
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError("settings of another kind")
    loss = settings["recipe"].get("loss", {}) if settings is not None else {}
    columns = log_columns(gates, classes if "eta" in loss else ())
    check_history(meta.get("history", []), columns)


def log_columns(gates: Sequence[Gate], weighed: Sequence[str] = ()) -> list[str]:
    """Return the columns of a training log.

    A CIFS gate has, each as ``LAYER.`` and a name of ``GATE_LOG`` and measured on the validation
    images: the probe's natural and robust accuracy, the share of the mask that is in effect
    (``mask_share``) on natural and on adversarial images, and the cosine of an image's two masks.
    A class of WAT has ``CLASS.class_weight``: its images' weight in the loss.
    """
    layers = [gate.layer for gate in gates if gate.kind == "cifs"]
    of_gates = [f"{layer}.{name}" for layer in layers for name in GATE_LOG]
    return [*LOG, *of_gates, *name_weights(weighed)]


def name_weights(classes: Sequence[str]) -> list[str]:
    """Return the columns of a training log with the weights of classes."""
    return [f"{name}.class_weight" for name in classes]


def check_history(history: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return a training log if it is a list of rows with these columns.

    Raises:
        ValueError, or anything: where it is not.
    """
    if not isinstance(history, list) or not all(row.keys() == set(columns) for row in history):
        raise ValueError("not a training log")
    return history


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Return whether all of a state's tensors hold finite numbers only."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def build(architecture: Architecture | External, gates: tuple[Gate, ...]) -> nn.Module:
    """Build a network with fresh weights: the plain backbone, or a ``Selective`` around it."""
    cnn = architecture.build()
    if not gates:
        return cnn
    return Selective(cnn, {gate.layer: gate.build(architecture.classes) for gate in gates})


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {
        "channelscope": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
