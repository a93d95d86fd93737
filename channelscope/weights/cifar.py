"""Networks for small images as the releases of papers save them, named key by key as ours.

ResNets as in pytorch-cifar, TRADES, MART, and with the gates of the releases of CIFS, CAS and FSR;
WideResNets as in TRADES, MART, AWP and FSR; pre-activation ResNets; ResNet-20 and its kind, of
three stages. Depth, width, classes, input channels and gates follow from the tensors' names and
shapes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from channelscope.errors import UserError
from channelscope.networks import RESNETS, Architecture, Normalise
from channelscope.weights.architectures import External
from channelscope.weights.checkpoints import Gate

# How the releases name a gate's parts: the two-layer and linear probes of CIFS; CAS as in the CIFS
# release (in each block, or once after the last stage) and as in its own release; FSR; and ours.
_BLOCK = r"(layer\d(?:\.\d+)?|features)"
_GATE_PARTS = (
    (re.compile(rf"{_BLOCK}\.Probe\.Probe\.0\.fc\.(weight|bias)"), "cifs", "probe.hidden"),
    (re.compile(rf"{_BLOCK}\.Probe\.Probe\.1\.(weight|bias)"), "cifs", "probe.output"),
    (re.compile(rf"{_BLOCK}\.CAS\.fc\.(weight|bias)"), "cas", "probe.output"),
    (re.compile(rf"{_BLOCK}\.fc\.(weight|bias)"), "cas", "probe.output"),
    (re.compile(r"()CAS\.fc\.(weight|bias)"), "cas", "probe.output"),
    (re.compile(r"()separation\.sep_net\.(.+)"), "fsr", "separation"),
    (re.compile(r"()recalibration\.rec_net\.(.+)"), "fsr", "recalibration"),
    (re.compile(r"()aux\.0\.(weight|bias)"), "fsr", "classifier"),
)
_OUR_GATES = re.compile(r"selectors\.([^.]+)\.((?:probe|separation|recalibration|classifier)\..+)")
_STAGE_GATES = ("Probe", "CAS", "fc")  # of a whole stage, beside its blocks
_WIDE_BLOCK = re.compile(r"block([123])\.layer\.(\d+)\.(.+)")


class AmbiguousError(UserError):
    """Tensors that fit networks which compute different logits."""


@dataclass(frozen=True)
class Match:
    """A network that was recognised.

    Args:
        name: what it is, for people.
        architecture: to build it by.
        state: its tensors, named as in what is built.
        gates: of its gated layers.
        method: cifs, cas or fsr, where the gates say so.
        assumed: what no tensor tells, and is taken as in the releases; empty for nothing.
        side: height and width of the images that it takes, where the tensors tell.
    """

    name: str
    architecture: Architecture | External
    state: Mapping[str, Tensor]
    gates: tuple[Gate, ...] = ()
    method: str | None = None
    assumed: str = ""
    side: int | None = None


@dataclass(frozen=True)
class _Part:
    """A tensor of a gate: of which layer and kind, and its name there."""

    layer: str
    kind: str
    name: str


def match_cifar(state: Mapping[str, Tensor]) -> Match | None:
    """Recognise a network for small images by its tensors; None where it is none of these.

    The match may still differ from what it names: its tensors are to be compared.

    Raises:
        AmbiguousError: for gates that no tensor tells from others.
    """
    state = _name_backbone(state)
    if "conv1.weight" not in state or state["conv1.weight"].ndim != 4:
        return None
    try:
        if "block1.layer.0.conv1.weight" in state:
            return _match_wide(state)
        if "layer1.0.bn1.weight" in state and "bn1.weight" not in state:
            if "layer4.0.conv1.weight" in state:
                return _match_preact(state)
            return _match_our_wide(state)
        if "layer3.0.conv1.weight" in state and "layer4.0.conv1.weight" not in state:
            return _match_thin(state)
        return _match_resnet(state)
    except AmbiguousError:
        raise
    except (ArithmeticError, LookupError, ValueError, StopIteration):
        return None  # a tensor is missing or of another shape, or a block has no number


def _name_backbone(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Name the tensors of a gated network of ours as those of its backbone."""
    if not any(key.startswith("selectors.") for key in state):
        return state
    return {key.removeprefix("cnn."): tensor for key, tensor in state.items()}


def _match_resnet(state: Mapping[str, Tensor]) -> Match:
    expansion = 4 if "layer1.0.conv3.weight" in state else 1  # bottlenecks or basic blocks
    blocks = tuple(_count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    arch = next(
        name
        for name, (block, counts) in RESNETS.items()
        if counts == blocks and block.expansion == expansion
    )
    filtered = state["conv1.weight"].shape[2:] == (15, 15)
    return _make_match(f"anf-{arch}" if filtered else arch, state, last="layer4")


def _match_wide(state: Mapping[str, Tensor]) -> Match:
    """Name the tensors of a WideResNet of TRADES as ours; what its forward leaves out is dropped.

    ``sub_block1`` belongs to no forward pass of the release.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if match := _WIDE_BLOCK.fullmatch(key):
            rest = match[3].replace("convShortcut", "shortcut")
            renamed[f"layer{match[1]}.{match[2]}.{rest}"] = tensor
        elif key.startswith(("bn1.", "fc.")):
            name = key.replace("bn1.", "features.0.").replace("fc.", "linear.")
            renamed[name] = tensor
        elif not key.startswith("sub_block1."):
            renamed[key] = tensor
    return _match_our_wide(renamed)


def _match_our_wide(state: Mapping[str, Tensor]) -> Match:
    width, planes = state["conv1.weight"].shape[0], state["layer1.0.conv1.weight"].shape[0]
    arch = f"wrn-{6 * _count_blocks(state, 'layer1.') + 4}-{planes // width}"
    return _make_match(arch, state, last="features")


def _match_preact(state: Mapping[str, Tensor]) -> Match:
    blocks = tuple(_count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    width, channels = state["conv1.weight"].shape[:2]
    bottleneck = "layer1.0.conv3.weight" in state
    depth = 2 + sum(blocks) * (3 if bottleneck else 2)
    architecture = External(
        arch="preact-resnet",
        classes=state["linear.weight"].shape[0],
        args={
            "blocks": blocks,
            "width": width,
            "bottleneck": bottleneck,
            "final_norm": "bn.weight" in state,
            "channels": channels,
        },
    )
    return Match(f"pre-activation ResNet-{depth}, width {width}", architecture, state)


def _match_thin(state: Mapping[str, Tensor]) -> Match:
    """Match ResNet-20 and its kind; others than its authors call the last layers otherwise."""
    renamed = {
        re.sub(r"^fc\.", "linear.", key).replace(".downsample.", ".shortcut."): item
        for key, item in state.items()
    }
    blocks = tuple(_count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3))
    width, channels = state["conv1.weight"].shape[:2]
    projected = any(".shortcut." in key for key in renamed)
    architecture = External(
        arch="thin-resnet",
        classes=renamed["linear.weight"].shape[0],
        args={"blocks": blocks, "width": width, "projected": projected, "channels": channels},
    )
    depth = 2 + 2 * sum(blocks)
    assumed = "" if projected else "shortcuts without weights, with as many zeros on both sides"
    return Match(f"ResNet-{depth}, width {width}", architecture, renamed, assumed=assumed)


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {key.split(".")[1] for key in state if key.startswith(prefix)}
    return 1 + max(int(number) for number in numbers if number not in _STAGE_GATES)


def _make_match(arch: str, state: Mapping[str, Tensor], last: str) -> Match:
    """Name the gates' parts as ours; ``last`` is the layer of a gate that stands for itself."""
    stem, channels = state["conv1.weight"].shape[:2]
    width = stem // 4 if arch.startswith("anf-") else stem
    architecture = Architecture(
        arch=arch,
        width=width,
        classes=state["linear.weight"].shape[0],
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    parts = {key: part for key in state if (part := _find_part(key, last))}
    ours = any(key.startswith("selectors.") for key in parts)
    if ours and {part.name for part in parts.values()} == {
        "probe.output.weight",
        "probe.output.bias",
    }:
        raise AmbiguousError(
            "its gates are those of CIFS or of CAS, which no tensor tells: save the network with "
            "cs.save(network, path)."
        )
    gates = _infer_gates({part: state[key] for key, part in parts.items()})
    prefix = "cnn." if parts else ""
    identity = Normalise(architecture.mean, architecture.std).state_dict()
    renamed = {
        f"{prefix}normalise.{name}": tensor.to(state["conv1.weight"])
        for name, tensor in identity.items()
    }
    for key, tensor in state.items():
        if part := parts.get(key):
            renamed[f"selectors.{part.layer.replace('.', '/')}.{part.name}"] = tensor
        else:
            renamed[f"{prefix}{key}"] = tensor
    method = next((part.kind for part in parts.values()), None)
    places = f", gates of {method} at {', '.join(gate.layer for gate in gates)}" if gates else ""
    return Match(
        f"{arch}, width {width}{places}",
        architecture,
        renamed,
        gates,
        method,
        {"cifs": "k = 2 and softmax masks of sum 1", "fsr": "tau = 0.1"}.get(method or "", ""),
    )


def _find_part(key: str, last: str) -> _Part | None:
    """Return what part of a gate a key names, if it names one."""
    for pattern, kind, part in _GATE_PARTS:
        if match := pattern.fullmatch(key):
            return _Part(match[1] or last, kind, f"{part}.{match[2]}")
    if match := _OUR_GATES.fullmatch(key):
        kind = "cifs" if match[2].startswith("probe.") else "fsr"
        return _Part(match[1].replace("/", "."), kind, match[2])
    return None


def _infer_gates(parts: Mapping[_Part, Tensor]) -> tuple[Gate, ...]:
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for part, tensor in parts.items():
        layers.setdefault((part.layer, part.kind), {})[part.name] = tensor
    return tuple(_infer_gate(layer, kind, layers[layer, kind]) for layer, kind in sorted(layers))


def _infer_gate(layer: str, kind: str, tensors: Mapping[str, Tensor]) -> Gate:
    options: dict[str, bool | int | float | str] = {}
    if kind == "fsr":
        hidden, channels = tensors["separation.0.weight"].shape[:2]
        return Gate(layer=layer, channels=channels, kind="fsr", options={"hidden": hidden})
    if "probe.hidden.weight" in tensors:
        hidden, channels = tensors["probe.hidden.weight"].shape
        options = {"probe": "two-layer", "hidden": hidden}
        return Gate(layer=layer, channels=channels, options=options)
    if kind == "cas":
        options = {"k": 1, "imgf": "identity"}
    channels = tensors["probe.output.weight"].shape[1]
    return Gate(layer=layer, channels=channels, options=options)
