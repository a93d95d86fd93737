"""Networks for small images: files as papers' releases write them give our networks' answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import channelscope as cs
from channelscope.gates import Importance, Selective
from channelscope.networks import Architecture
from channelscope.weights import Checkpoint, Gate, build, read_network
from channelscope.weights.loading import describe_network
from helpers import networks
from helpers.expect import contents, mistake, same_state

CLASSES = 7

# Our name of a tensor -> the release's, written down by hand for the two gates of CIFAR ResNet-18.
CIFS = {
    "selectors.layer4/0.probe.hidden.weight": "layer4.0.Probe.Probe.0.fc.weight",
    "selectors.layer4/0.probe.hidden.bias": "layer4.0.Probe.Probe.0.fc.bias",
    "selectors.layer4/0.probe.output.weight": "layer4.0.Probe.Probe.1.weight",
    "selectors.layer4/0.probe.output.bias": "layer4.0.Probe.Probe.1.bias",
    "selectors.layer4/1.probe.output.weight": "layer4.1.Probe.Probe.1.weight",
    "selectors.layer4/1.probe.output.bias": "layer4.1.Probe.Probe.1.bias",
}
CAS_IN_CIFS = {
    "selectors.layer4/0.probe.output.weight": "layer4.0.CAS.fc.weight",
    "selectors.layer4/0.probe.output.bias": "layer4.0.CAS.fc.bias",
    "selectors.layer4/1.probe.output.weight": "layer4.1.CAS.fc.weight",
    "selectors.layer4/1.probe.output.bias": "layer4.1.CAS.fc.bias",
}
CAS_AFTER_THE_STAGE = {
    "selectors.layer4.probe.output.weight": "CAS.fc.weight",
    "selectors.layer4.probe.output.bias": "CAS.fc.bias",
}
CAS_OWN = {
    "selectors.layer4/0.probe.output.weight": "layer4.0.fc.weight",
    "selectors.layer4/0.probe.output.bias": "layer4.0.fc.bias",
    "selectors.layer4/1.probe.output.weight": "layer4.1.fc.weight",
    "selectors.layer4/1.probe.output.bias": "layer4.1.fc.bias",
}


def cas(layer: str, channels: int) -> Gate:
    return Gate(layer=layer, channels=channels, options={"k": 1, "imgf": "identity"})


def two_gates(channels: int) -> tuple[Gate, ...]:
    return Gate(
        layer="layer4.0", channels=channels, options={"probe": "two-layer", "hidden": 11}
    ), Gate(layer="layer4.1", channels=channels)


KINDS: dict[str, tuple[Callable[[int], tuple[Gate, ...]], dict[str, str], str | None]] = {
    "plain": (lambda _: (), {}, None),
    "CIFS": (two_gates, CIFS, "cifs"),
    "CAS of the CIFS release": (
        lambda c: (cas("layer4.0", c), cas("layer4.1", c)),
        CAS_IN_CIFS,
        "cas",
    ),
    "CAS after the stage": (lambda c: (cas("layer4", c),), CAS_AFTER_THE_STAGE, "cas"),
    "CAS of its own release": (lambda c: (cas("layer4.0", c), cas("layer4.1", c)), CAS_OWN, "cas"),
}


def network(
    kind: str, arch: str = "resnet18", width: int = 2, channels: int = 3
) -> torch.nn.Module:
    known = Architecture(
        arch=arch, width=width, classes=CLASSES, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    return networks.randomise_batchnorm(build(known, KINDS[kind][0](known.channels)))


def as_release(ours: torch.nn.Module, kind: str, prefix: str = "") -> dict[str, Tensor]:
    """Name our tensors as the release does, which has no normalisation."""
    names, state = KINDS[kind][1], {}
    for name, tensor in ours.state_dict().items():
        if "normalise" not in name:
            state[
                prefix
                + (names[name] if name.startswith("selectors.") else name.removeprefix("cnn."))
            ] = tensor
    return state


def converted(state: Any, path: Path) -> Checkpoint:
    """Convert and write; give what is read again."""
    torch.save(state, path)
    read_network(path).save(path.with_name("ours.pt"))
    return Checkpoint.read(path.with_name("ours.pt"))


def agree(ours: torch.nn.Module, found: torch.nn.Module, channels: int = 3) -> None:
    x = torch.rand(3, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), found(x))
        if isinstance(ours, Selective):
            assert isinstance(found, Selective)
            one, other = ours.probed(x), found.probed(x)
            assert same_state(one.probes, other.probes)
            assert same_state(one.masks, other.masks)
            assert same_state(one.features, other.features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain keys", "DataParallel"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare state", "in a dict"])
def test_a_release_file_gives_the_same_answers(
    kind: str, prefix: str, wrapped: bool, tmp_path: Path
) -> None:
    ours = network(kind)
    state = as_release(ours, kind, prefix)
    found = converted(
        {"state_dict": state, "epoch": 3, "acc": 51.4} if wrapped else state, tmp_path / "theirs.pt"
    )
    agree(ours, found.build())
    assert found.gates == KINDS[kind][0](16)
    assert found.method == KINDS[kind][2]
    assert found.image == (3, 32, 32)
    assert found.class_names is None
    assert found.architecture == Architecture(
        arch="resnet18", width=2, classes=CLASSES, mean=(0,) * 3, std=(1,) * 3
    )
    assert found.meta["converted_from"].startswith("resnet18, width 2")
    assert found.meta["file"] == "theirs.pt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 3, 8])
def test_any_width(kind: str, width: int, tmp_path: Path) -> None:
    ours = network(kind, width=width)
    agree(ours, converted(as_release(ours, kind), tmp_path / "theirs.pt").build())


@pytest.mark.parametrize("arch", ["resnet10", "resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_depth(arch: str, channels: int, tmp_path: Path) -> None:
    ours = network("plain", arch=arch, width=1, channels=channels)
    found = converted(as_release(ours, "plain"), tmp_path / "theirs.pt")
    agree(ours, found.build(), channels)
    assert found.architecture.arch == arch
    assert found.image == (channels, 32, 32)


def test_gates_on_a_deeper_network(tmp_path: Path) -> None:
    known = Architecture(arch="resnet34", width=1, classes=CLASSES)
    two_layer = {"probe": "two-layer", "hidden": 5}
    gates = (
        Gate(layer="layer4.1", channels=8, options=two_layer),
        Gate(layer="layer4.2", channels=8),
    )
    ours = networks.randomise_batchnorm(build(known, gates))
    state = {}
    for name, tensor in ours.state_dict().items():
        if name.startswith("selectors."):
            _, block, _, part, parameter = name.split(".")
            place = {"hidden": "0.fc", "output": "1"}[part]
            state[f"{block.replace('/', '.')}.Probe.Probe.{place}.{parameter}"] = tensor
        elif "normalise" not in name:
            state[name.removeprefix("cnn.")] = tensor
    found = converted(state, tmp_path / "theirs.pt")
    agree(ours, found.build())
    assert found.gates == gates


def test_a_file_is_converted_and_written(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.pt", tmp_path / "ours.pt"
    network_ours = network("CIFS")
    torch.save(as_release(network_ours, "CIFS"), theirs)
    checkpoint = cs.convert(theirs, ours, method="cifs")
    agree(network_ours, checkpoint.build())
    agree(network_ours, cs.load(ours))
    before = contents(tmp_path)
    with mistake("ours.pt exists: choose another file"):
        cs.convert(theirs, ours)
    with mistake("no method 'cfis'", "'cifs'"):
        cs.convert(theirs, tmp_path / "new.pt", method="cfis")
    with mistake("zoo:new"):
        cs.convert(theirs, "zoo:new")
    with mistake("no file"):
        cs.convert(tmp_path / "none.pt", tmp_path / "new.pt")
    assert contents(tmp_path) == before


def test_the_scale_of_masks_is_named_where_no_tensor_tells(tmp_path: Path) -> None:
    ours = network("CIFS")
    assert isinstance(ours, Selective)
    for gate in ours.gates.values():
        gate.function = Importance(budget=2.0)
    theirs = tmp_path / "theirs.pt"
    torch.save(as_release(ours, "CIFS"), theirs)
    named = cs.convert(theirs, tmp_path / "named.pt", imgf_scale=2)
    agree(ours, cs.load(tmp_path / "named.pt"))
    assert "masks of sum 2 as named" in describe_network(named)
    assumed = cs.convert(theirs, tmp_path / "assumed.pt")
    x = torch.rand(3, 3, 32, 32)
    assert not torch.allclose(assumed.build()(x), ours(x))
    assert "assumed: k = 2 and softmax masks of sum 1" in describe_network(assumed)


@pytest.mark.parametrize("kind", ["plain", "CAS after the stage"])
def test_masks_that_are_not_there_have_no_scale(kind: str, tmp_path: Path) -> None:
    torch.save(as_release(network(kind), kind), tmp_path / "theirs.pt")
    with mistake("imgf_scale: ", "theirs.pt is recognised as resnet18", "leave --imgf-scale out"):
        cs.convert(tmp_path / "theirs.pt", tmp_path / "ours.pt", imgf_scale=2)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_of_masks_is_a_positive_number(scale: float, tmp_path: Path) -> None:
    torch.save(as_release(network("CIFS"), "CIFS"), tmp_path / "theirs.pt")
    with mistake("imgf_scale: "):
        cs.convert(tmp_path / "theirs.pt", tmp_path / "ours.pt", imgf_scale=scale)


def test_the_release_file_stays_as_it_is(tmp_path: Path) -> None:
    torch.save(as_release(network("CIFS"), "CIFS"), tmp_path / "theirs.pt")
    before = contents(tmp_path)
    read_network(tmp_path / "theirs.pt")
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- files of something else


def with_key(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**as_release(network("CIFS"), "CIFS"), name: value}


def without(name: str, kind: str = "CIFS") -> dict[str, Tensor]:
    return {key: value for key, value in as_release(network(kind), kind).items() if key != name}


FOREIGN: dict[str, Callable[[], Any]] = {
    "another CNN": lambda: networks.plain().state_dict(),
    "a linear layer": lambda: torch.nn.Linear(3, 2).state_dict(),
    "an empty dict": dict,
    "an empty state": lambda: {"state_dict": {}},
    "a state that is a number": lambda: {"state_dict": 3},
    "a state of lists": lambda: {"state_dict": {"conv1.weight": [1.0]}},
    "a list": lambda: [torch.zeros(1)],
    "a tensor": lambda: torch.zeros(3),
    "nothing": lambda: None,
    "a missing weight": lambda: without("layer3.1.conv2.weight"),
    "a missing stem": lambda: without("conv1.weight"),
    "a missing last layer": lambda: without("linear.weight"),
    "a missing bias": lambda: without("linear.bias"),
    "a missing half of a probe": lambda: without("layer4.0.Probe.Probe.1.weight"),
    "a missing bias of a probe": lambda: without("layer4.1.Probe.Probe.1.bias"),
    "a weight too many": lambda: with_key("layer4.0.more.weight", torch.zeros(2)),
    "a weight of another shape": lambda: with_key("layer2.0.conv1.weight", torch.zeros(4, 2, 1, 1)),
    "a stem of another shape": lambda: with_key("conv1.weight", torch.zeros(2)),
    "a probe of another shape": lambda: with_key("layer4.1.Probe.Probe.1.weight", torch.zeros(7)),
    "a probe at a block that is not there": lambda: with_key(
        "layer4.5.Probe.Probe.1.weight", torch.zeros(7, 16)
    ),
    "a block without a number": lambda: with_key("layer4.x.conv1.weight", torch.zeros(2)),
    "weights that are no numbers": lambda: with_key(
        "linear.bias", torch.full((CLASSES,), float("nan"))
    ),
    "keys that are numbers": lambda: {3: torch.zeros(1)},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    torch.save(FOREIGN[kind](), tmp_path / "theirs.pt")
    with mistake("theirs.pt"):
        read_network(tmp_path / "theirs.pt")


@pytest.mark.parametrize("content", [b"", b"text", bytes(1000)], ids=["empty", "text", "zeros"])
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.pt").write_bytes(content)
    with mistake("theirs.pt"):
        read_network(tmp_path / "theirs.pt")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with mistake("theirs.pt", "no file"):
        read_network(tmp_path / "theirs.pt")
