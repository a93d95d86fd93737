"""Networks saved by other programs, turned into checkpoints key by key."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from channelscope.errors import UserError, suggest
from channelscope.networks import RESNETS, Architecture, Normalise
from channelscope.recipes import METHODS
from channelscope.weights.checkpoints import Checkpoint, Gate, build, is_finite, versions
from channelscope.weights.tensors import load_tensors

# How the releases name a gate's parts: the two-layer and linear probes of CIFS; CAS as in the CIFS
# release (in each block, or once after the last stage) and as in its own release.
_GATE_PARTS = (
    (re.compile(r"(layer4\.\d+)\.Probe\.Probe\.0\.fc\.(weight|bias)"), "hidden"),
    (re.compile(r"(layer4\.\d+)\.Probe\.Probe\.1\.(weight|bias)"), "output"),
    (re.compile(r"(layer4\.\d+)\.CAS\.fc\.(weight|bias)"), "cas"),
    (re.compile(r"(layer4\.\d+)\.fc\.(weight|bias)"), "cas"),
    (re.compile(r"()CAS\.fc\.(weight|bias)"), "cas"),
)


def convert(
    source: str, path: Path | str, out: Path | str, method: str | None = None
) -> Checkpoint:
    """Convert another program's network file to a checkpoint, which is written and returned.

    Args:
        source: the program that wrote it, a key of ``CONVERTERS``.
        path: the file; nothing in it is run.
        out: the file to write, which must not exist.
        method: how the network was trained, where the file cannot tell.

    Raises:
        UserError: for an unknown source or method; where ``path`` is missing, damaged or of another
            program; where ``out`` exists or cannot be written.
    """
    if source not in CONVERTERS:
        raise UserError(
            f"There is no converter {source!r}: choose from {', '.join(CONVERTERS)}."
            f"{suggest(source, CONVERTERS)}"
        )
    if method not in (None, *METHODS):
        raise UserError(
            f"There is no method {method!r}: choose from {', '.join(METHODS)}."
            f"{suggest(str(method), METHODS)}"
        )
    if Path(out).exists():
        raise UserError(f"{out} exists: choose another file to write to, or delete it first.")
    checkpoint = CONVERTERS[source](path, method=method)
    checkpoint.save(out)
    return checkpoint


def from_cifs_release(path: Path | str, *, method: str | None = None) -> Checkpoint:
    """Convert a CIFAR ResNet saved by the release of CIFS (Yan et al., ICML 2021).

    It is gated by CIFS or CAS, or plain. Such files hold ``{"state_dict": ...}`` or the bare state;
    depth, width, classes and gates follow from the tensors. The release feeds its networks images
    in [0, 1], so the normalisation is the identity.

    Args:
        path: the file.
        method: how the network was trained (standard, at, cifs or cas); by default cifs or cas for
            a gated network, and unknown for a plain one.

    Raises:
        UserError: one sentence for a file that is missing, damaged or not of that release.
    """
    state = _read_state(Path(path))
    try:
        architecture = _infer_architecture(state)
        parts = {key: part for key in state if (part := _find_gate_part(key))}
        gates = _infer_gates({part: state[key] for key, part in parts.items()})
        converted = _rename(state, parts, architecture)
        with torch.device("meta"):
            build(architecture, gates).load_state_dict(dict(converted), assign=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is not a ResNet of the CIFS release: its tensors do not fit. Check --from."
        ) from error
    if not is_finite(converted):
        raise UserError(f"{path} holds weights that are not finite numbers: get another file.")
    guess = ("cas" if gates[0].options.get("k") == 1 else "cifs") if gates else None
    return Checkpoint(
        architecture=architecture,
        gates=gates,
        state=converted,
        image=(len(architecture.mean), 32, 32),
        method=method or guess,
        meta={"converted_from": "cifs-release", "file": Path(path).name, "versions": versions()},
    )


CONVERTERS: dict[str, Callable[..., Checkpoint]] = {"cifs-release": from_cifs_release}


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a file's state, without the prefix that DataParallel adds to every key."""
    content = load_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in state.values()
    ):
        raise UserError(
            f"{path} holds no state of a network: a dict of tensors, or one under 'state_dict'."
        )
    return {str(key).removeprefix("module."): tensor for key, tensor in state.items()}


def _infer_architecture(state: Mapping[str, Tensor]) -> Architecture:
    """Infer depth, width, classes and input channels from the tensors."""
    expansion = 4 if "layer1.0.conv3.weight" in state else 1  # bottlenecks or basic blocks
    blocks = tuple(
        1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"layer{stage}."))
        for stage in (1, 2, 3, 4)
    )
    arch = next(
        name
        for name, (block, counts) in RESNETS.items()
        if counts == blocks and block.expansion == expansion
    )
    width, channels = state["conv1.weight"].shape[:2]
    classes = state["linear.weight"].shape[0]
    return Architecture(
        arch=arch, width=width, classes=classes, mean=(0.0,) * channels, std=(1.0,) * channels
    )


def _find_gate_part(key: str) -> tuple[str, str, str] | None:
    """Return the (layer, part, parameter) of a gate that a key names, if it names one."""
    for pattern, part in _GATE_PARTS:
        if match := pattern.fullmatch(key):
            return match[1] or "layer4", part, match[2]
    return None


def _infer_gates(parts: Mapping[tuple[str, str, str], Tensor]) -> tuple[Gate, ...]:
    gates = []
    for layer in sorted({layer for layer, _, _ in parts}):
        options: dict[str, bool | int | float | str] = {}
        weight = parts.get((layer, "output", "weight"))
        if (cas := parts.get((layer, "cas", "weight"))) is not None:
            weight, options = cas, {"k": 1, "imgf": "identity"}
        elif (hidden := parts.get((layer, "hidden", "weight"))) is not None:
            weight, options = hidden, {"probe": "two-layer", "hidden": hidden.shape[0]}
        gates.append(Gate(layer=layer, channels=cast(Tensor, weight).shape[1], options=options))
    return tuple(gates)


def _rename(
    state: Mapping[str, Tensor],
    parts: Mapping[str, tuple[str, str, str]],
    architecture: Architecture,
) -> dict[str, Tensor]:
    """Name every tensor as in our network; the release has no normalisation."""
    prefix = "cnn." if parts else ""
    identity = Normalise(architecture.mean, architecture.std).state_dict()
    ours = {
        f"{prefix}normalise.{name}": tensor.to(state["conv1.weight"])
        for name, tensor in identity.items()
    }
    for key, tensor in state.items():
        if key in parts:
            layer, part, parameter = parts[key]
            part = "output" if part == "cas" else part
            ours[f"selectors.{layer.replace('.', '/')}.probe.{part}.{parameter}"] = tensor
        else:
            ours[f"{prefix}{key}"] = tensor
    return ours
