"""Self-describing network files: safe to load, written whole or not at all; converters from other formats.

A checkpoint is a ``.pt`` file of plain values and tensors, read with ``weights_only=True``: nothing in a file is
ever run as code.
"""

import dataclasses
import io
import platform
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from channelscope import __version__
from channelscope.errors import UserError
from channelscope.files import replacing
from channelscope.models import Architecture
from channelscope.selection import FeatureSelector, Imgf, LinearProbe, Selective, TwoLayerProbe

FORMAT = 1
METHOD_NAMES = ("standard", "at", "cifs", "cas")
LOG = ("epoch", "loss", "accuracy", "lr", "val_natural", "val_robust", "seconds", "best")  # columns of a training log


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What it takes to build the gate of one layer again; see ``selection.FeatureSelector``.

    Args:
        layer: the gated layer's name.
        channels: its number of channels.
        probe: "linear" or "two-layer"; ``hidden`` units with softplus of sharpness ``beta`` in the latter.
        k, imgf, detach: as in ``FeatureSelector``.
    """

    layer: str
    channels: int
    probe: Literal["linear", "two-layer"] = "linear"
    hidden: int = 128
    beta: float = 5.0
    k: int = 2
    imgf: Imgf = "softmax"
    detach: bool = True

    def build(self, classes: int) -> FeatureSelector:
        """Make the selector with fresh weights."""
        probe: nn.Module = (
            LinearProbe(self.channels, classes)
            if self.probe == "linear"
            else TwoLayerProbe(self.channels, classes, self.hidden, self.beta)
        )
        return FeatureSelector(probe, k=self.k, imgf=self.imgf, detach=self.detach)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network and all that is known of how it came about.

    Args:
        architecture: of the backbone.
        gates: of the gated layers, in the order of the network; none for a plain network.
        state: the network's ``state_dict``.
        image: channels, height and width of the images that it was trained on.
        class_names: names of the classes, or None where unknown.
        method: standard, at, cifs or cas, or None where unknown.
        meta: data, recipe, seed, metrics, history (one dict an epoch) and versions, as plain values.
    """

    architecture: Architecture
    gates: tuple[Gate, ...] = ()
    state: Mapping[str, Tensor]
    image: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None
    method: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the network, in eval mode, with the checkpoint's weights: a ``Selective`` if it has gates."""
        with torch.device("meta"):  # no memory, no random numbers: every tensor comes from the state
            network = build(self.architecture, self.gates)
        network.load_state_dict(dict(self.state), assign=True)
        return network.eval()

    def save(self, path: Path | str) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            UserError: where ``path`` cannot be written.
        """
        content = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        content |= {
            "channelscope": FORMAT,
            "architecture": dataclasses.asdict(self.architecture),
            "gates": [dataclasses.asdict(gate) for gate in self.gates],
            "state": {name: tensor.detach().cpu() for name, tensor in self.state.items()},
        }
        save_tensors(content, Path(path))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a checkpoint.

        Raises:
            UserError: one sentence for a file that is missing, damaged, foreign or hostile.
        """
        content = load_tensors(Path(path))
        if not isinstance(content, dict) or "channelscope" not in content:
            raise UserError(
                f"{path} is not a channelscope checkpoint: train one with 'channelscope train', "
                "or convert it with 'channelscope convert'."
            )
        if repr(content.pop("channelscope")) != repr(FORMAT):
            raise UserError(f"{path} was written by another version of channelscope: train or convert it again.")
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                checkpoint = cls._parse(content)
                build(checkpoint.architecture, checkpoint.gates).load_state_dict(dict(checkpoint.state), assign=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if isinstance(error, UserError) else "its parts do not fit together"
            raise UserError(f"{path} is damaged ({reason}): get it again or train it again.") from error
        if not is_finite(checkpoint.state):
            raise UserError(f"{path} holds weights that are not finite numbers: train the network again.")
        return checkpoint

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Self:
        """Make a checkpoint of what a file holds; raises anything where it does not fit."""
        described = content["architecture"]
        statistics = {key: tuple(map(float, described[key])) for key in ("mean", "std")}
        architecture = Architecture(**described | statistics)
        gates = tuple(Gate(**gate) for gate in content["gates"])
        image, names, meta = tuple(content["image"]), content["class_names"], content["meta"]
        fits = (
            all(type(gate.k) is int and gate.k <= architecture.classes for gate in gates)
            and all(gate.probe in ("linear", "two-layer") for gate in gates)
            and len(image) == 3
            and all(type(size) is int and 1 <= size <= 4096 for size in image)
            and image[0] == len(architecture.mean)
            and (names is None or (isinstance(names, list | tuple) and len(names) == architecture.classes))
            and all(isinstance(name, str) for name in names or ())
            and content["method"] in (None, *METHOD_NAMES)
            and isinstance(meta, dict)
        )
        if not fits:
            raise ValueError("mismatched parts")
        _check_meta(meta)
        values = {"architecture": architecture, "gates": gates, "image": image, "class_names": names and tuple(names)}
        return cls(**content | values)


def _check_meta(meta: dict[str, Any]) -> None:
    """Check what else is made use of; raises anything where it does not fit."""
    check_history(meta.get("history", []))
    known = [meta.get("versions", {})]
    if (settings := meta.get("settings")) is not None:
        known += [settings["recipe"], settings["data"]]
        if not isinstance(settings["data"]["name"], str):
            raise ValueError("the data has no name")
    if not all(isinstance(part, dict) for part in known):
        raise ValueError("settings of another kind")


def check_history(history: Any) -> list[dict[str, Any]]:
    """Check that a training log is a list of rows with the columns of ``LOG``; raises anything where it is not."""
    if not isinstance(history, list) or not all(row.keys() == set(LOG) for row in history):
        raise ValueError("not a training log")
    return history


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Tell whether all of a state's tensors hold finite numbers only."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def build(architecture: Architecture, gates: tuple[Gate, ...]) -> nn.Module:
    """Make a network with fresh weights: the plain backbone, or with gates a ``Selective`` around it."""
    cnn = architecture.build()
    if not gates:
        return cnn
    return Selective(cnn, {gate.layer: gate.build(architecture.classes) for gate in gates})


def load(path: Path | str) -> nn.Module:
    """Load a trained network in eval mode: ``net(x)`` gives plain logits for images x in [0, 1].

    A gated network also has ``net.probed(x)``, with its probes' logits and masks.

    Raises:
        UserError: one sentence for a file that is missing, damaged, foreign or hostile.
    """
    return Checkpoint.read(path).build()


def versions() -> dict[str, str]:
    """Name the versions that results depend on."""
    return {"channelscope": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write plain values and tensors to a ``.pt`` file, whole or not at all."""
    buffer = io.BytesIO()  # torch would report a full disk in words of its own
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read what ``save_tensors`` or any torch program wrote, plain values and tensors only.

    Raises:
        UserError: for a missing or unreadable file, and for one that holds anything else.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of files that are refused in a moment
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    if damaged := archive.testzip():  # torch does not look at the checksums
                        raise ValueError(damaged)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a network file: it is damaged, or holds code, which is never run. Get it again."
        ) from error
