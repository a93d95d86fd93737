"""Networks are recognised by their tensors alone, and give their own logits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from channelscope.gates import Selective
from channelscope.networks import Architecture, normalised
from channelscope.weights import Checkpoint, Gate, build, load, read_network
from channelscope.weights.architectures import External
from channelscope.weights.files import State, Weights
from channelscope.weights.recognise import read_signatures, recognise, sign
from helpers import networks
from helpers.expect import mistake

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(IMAGES)


def named(state: dict[str, Tensor], name: str = "x.pt") -> Weights:
    return Weights(Path(name), (State(state),))


# ---------------------------------------------------------------- one network, saved in ten ways


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Sequential(normalise, network) names it, with the statistics outside."""
    inner = {f"1.{key}": item for key, item in state.items() if "normalise" not in key}
    mean, std = state["normalise.mean"], state["normalise.std"]
    return {"0.mean": mean.view(1, 3, 1, 1), "0.std": std.view(1, 3, 1, 1)} | inner


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": item for key, item in state.items()}


def safetensors(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"net": state, "epoch": 1}, path, _use_new_zipfile_serialization=False)


def save(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[dict[str, Tensor], Path], None]:
    return lambda state, path: torch.save(change(state), path)


WAYS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "bare": save(lambda state: state),
    "among others": save(lambda state: {"state_dict": state, "epoch": 9, "best_acc": 48.2}),
    "DataParallel": save(lambda state: {"model_state_dict": prefixed(state, "module.")}),
    "compiled": save(lambda state: {"model": prefixed(state, "_orig_mod.")}),
    "Lightning": save(lambda state: {"state_dict": prefixed(state, "model."), "global_step": 7}),
    "normalised outside": save(lambda state: {"net": wrapped(state)}),
    "an average": save(lambda state: {"ema": {"model": prefixed(state, "net.")}}),
    "double precision": save(lambda state: {key: item.double() for key, item in state.items()}),
    "safetensors": safetensors,
    "before torch 1.6": legacy,
    "without counters": save(
        lambda state: {key: item for key, item in state.items() if "num_batches" not in key}
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_at_network_of_the_zoo_comes_back(way: str, tmp_path: Path) -> None:
    zoo = load("zoo:cifar10-at")
    path = tmp_path / "theirs.bin"
    WAYS[way](zoo.state_dict(), path)
    network = load(path).float()
    torch.testing.assert_close(logits(network), logits(zoo), rtol=0, atol=1e-5)


def test_normalisation_may_be_named(tmp_path: Path) -> None:
    zoo = Checkpoint.read("zoo:cifar10-at")
    state = {key: item for key, item in zoo.state.items() if "normalise" not in key}
    torch.save(state, tmp_path / "theirs.pt")
    bare = load(tmp_path / "theirs.pt")
    told = load(tmp_path / "theirs.pt", normalise=(zoo.architecture.mean, zoo.architecture.std))
    torch.testing.assert_close(logits(told), logits(zoo.build()), rtol=0, atol=0.01)
    assert not torch.allclose(logits(bare), logits(told))
    with mistake("normalise: 2 numbers for a network of 3 input channels"):
        load(tmp_path / "theirs.pt", normalise=((0.5, 0.5), (0.5, 0.5)))


@pytest.mark.parametrize("named", ["imagenet", "none", "0.5;0.25", ((0.5,) * 2, (0.25,) * 2)])
def test_a_normalisation_that_contradicts_the_file_is_refused(named: Any, tmp_path: Path) -> None:
    zoo = Checkpoint.read("zoo:cifar10-at")
    torch.save(wrapped(dict(zoo.state)), tmp_path / "theirs.pt")
    own = "theirs.pt has a normalisation of its own (mean 0.491, 0.4819, 0.4465 and standard"
    with mistake("normalise: ", own, "is named: leave --normalise out", "LABEL=VALUE"):
        load(tmp_path / "theirs.pt", normalise=named)
    alike = load(tmp_path / "theirs.pt", normalise="0.491,0.482,0.447;0.245,0.243,0.261")
    torch.testing.assert_close(logits(alike), logits(load(tmp_path / "theirs.pt")), rtol=0, atol=0)
    load("zoo:cifar10-at", normalise=named)  # beside other files; its own is known


# ---------------------------------------------------------------- releases


def as_trades(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a WideResNet of ours as TRADES does, with the stage that its forward leaves out."""
    renamed = {}
    for key, item in state.items():
        stage, _, rest = key.partition(".")
        if stage.startswith("layer"):
            rest = rest.replace("shortcut", "convShortcut")
            renamed[f"block{stage[-1]}.layer.{rest}"] = item
            if stage == "layer1":
                renamed[f"sub_block1.layer.{rest}"] = torch.zeros_like(item)
        elif key.startswith("features.0."):
            renamed[key.replace("features.0", "bn1")] = item
        elif key.startswith("linear."):
            renamed[key.replace("linear", "fc")] = item
        elif "normalise" not in key:
            renamed[key] = item
    return renamed


@pytest.mark.parametrize(("depth", "widen", "classes"), [(10, 1, 10), (16, 3, 7), (28, 2, 100)])
def test_wide_resnets_as_trades_saves_them(
    depth: int, widen: int, classes: int, tmp_path: Path
) -> None:
    architecture = Architecture(arch=f"wrn-{depth}-{widen}", width=4, classes=classes)
    network = networks.randomise_batchnorm(build(architecture, ())).eval()
    torch.save(as_trades(network.state_dict()), tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    assert checkpoint.architecture == architecture
    assert torch.equal(logits(checkpoint.build()), logits(network))


def as_fsr(state: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    renamed = {}
    gate = f"selectors.{layer}"
    for key, item in state.items():
        key = key.replace(f"{gate}.separation", "separation.sep_net")
        key = key.replace(f"{gate}.recalibration", "recalibration.rec_net")
        key = key.replace(f"{gate}.classifier", "aux.0").removeprefix("cnn.")
        if "normalise" not in key:
            renamed[key] = item
    return renamed


@pytest.mark.parametrize(("arch", "layer"), [("resnet18", "layer4"), ("wrn-10-2", "features")])
def test_networks_of_fsr_come_with_their_gates(arch: str, layer: str, tmp_path: Path) -> None:
    architecture = Architecture(arch=arch, width=4, classes=6)
    gate = Gate(layer=layer, channels=architecture.channels, kind="fsr", options={"hidden": 5})
    network = networks.randomise_batchnorm(build(architecture, (gate,))).eval()
    state = as_fsr(network.state_dict(), layer)
    torch.save(as_trades(state) if arch.startswith("wrn") else state, tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    assert checkpoint.gates == (gate,)
    assert (checkpoint.method, checkpoint.meta["assumed"]) == ("fsr", "tau = 0.1")
    assert torch.equal(logits(checkpoint.build()), logits(network))


@pytest.mark.parametrize("layer", ["layer3.0", "layer3", "layer4.0"])
def test_gates_of_cifs_at_other_layers_of_a_resnet10(layer: str, tmp_path: Path) -> None:
    architecture = Architecture(arch="resnet10", width=2, classes=5, mean=(0.0,), std=(1.0,))
    channels = 16 if layer.startswith("layer4") else 8
    gate = Gate(layer=layer, channels=channels, options={"probe": "two-layer", "hidden": 3})
    network = build(architecture, (gate,)).eval()
    names = {"hidden": "Probe.Probe.0.fc", "output": "Probe.Probe.1"}
    state = {}
    for key, item in network.state_dict().items():
        if key.startswith("selectors."):
            part, parameter = key.split(".")[-2:]
            state[f"{layer}.{names[part]}.{parameter}"] = item
        elif "normalise" not in key:
            state[key.removeprefix("cnn.")] = item
    torch.save(state, tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    assert checkpoint.gates == (gate,)
    assert checkpoint.method == "cifs"
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(checkpoint.build()(x), network(x))


class PreAct(nn.Module):
    """A pre-activation ResNet of basic blocks, written as the paper has it."""

    def __init__(self, width: int, blocks: tuple[int, ...], classes: int, last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        channels = width
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                out, stride = width * 2**stage, 1 + (index == 0 and stage > 0)
                block = nn.Module()
                block.bn1 = nn.BatchNorm2d(channels)
                block.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
                block.bn2 = nn.BatchNorm2d(out)
                block.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
                if stride != 1 or channels != out:
                    conv = nn.Conv2d(channels, out, 1, stride, bias=False)
                    block.shortcut = nn.Sequential(conv)
                layers.append(block)
                channels = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        if last:
            self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv1(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                y = block.bn1(z).relu()
                skip = block.shortcut(y) if hasattr(block, "shortcut") else z
                z = block.conv2(block.bn2(block.conv1(y)).relu()) + skip
        if hasattr(self, "bn"):
            z = self.bn(z).relu()
        return self.linear(z.mean((2, 3)))


@pytest.mark.parametrize("last", [False, True], ids=["pytorch-cifar", "AWP"])
@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3)], ids=str)
def test_pre_activation_resnets(last: bool, blocks: tuple[int, ...], tmp_path: Path) -> None:
    network = networks.randomise_batchnorm(PreAct(3, blocks, 9, last)).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    assert checkpoint.meta["converted_from"].startswith("pre-activation ResNet-")
    torch.testing.assert_close(logits(checkpoint.build()), logits(network))
    checkpoint.save(tmp_path / "ours.pt")
    assert torch.equal(logits(load(tmp_path / "ours.pt")), logits(checkpoint.build()))


class Thin(nn.Module):
    """ResNet-20 and its kind, written as the paper has it: basic blocks in three stages.

    Shortcuts to more channels are of option A, which have no weights, or B, convolutions.
    """

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int, names: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, self.names = width, names
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                out, stride = width * 2**stage, 1 + (index == 0 and stage > 0)
                block = nn.Module()
                block.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
                block.bn1 = nn.BatchNorm2d(out)
                block.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
                block.bn2 = nn.BatchNorm2d(out)
                if names and channels != out:
                    conv = nn.Conv2d(channels, out, 1, stride, bias=False)
                    block.add_module(names, nn.Sequential(conv, nn.BatchNorm2d(out)))
                layers.append(block)
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.head = "fc" if names == "downsample" else "linear"
        self.add_module(self.head, nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                y = block.bn2(block.conv2(block.bn1(block.conv1(z)).relu()))
                if y.shape == z.shape:
                    skip = z
                elif self.names:
                    skip = block.get_submodule(self.names)(z)
                else:
                    zeros = torch.zeros_like(z[:, ::2, ::2, ::2])
                    skip = torch.cat([zeros, z[:, :, ::2, ::2], zeros], 1)
                z = (y + skip).relu()
        return self.get_submodule(self.head)(z.mean((2, 3)))


@pytest.mark.parametrize("names", ["", "shortcut", "downsample"])
@pytest.mark.parametrize("blocks", [(1, 1, 1), (3, 3, 3), (5, 5, 5), (9, 9, 9)], ids=str)
def test_resnets_of_three_stages(names: str, blocks: tuple[int, ...], tmp_path: Path) -> None:
    network = networks.randomise_batchnorm(Thin(blocks, 4, 7, names)).eval()
    state = {f"module.{key}": item for key, item in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.8}, tmp_path / "theirs.th")
    checkpoint = read_network(tmp_path / "theirs.th")
    assert checkpoint.meta["converted_from"] == f"ResNet-{2 + 2 * sum(blocks)}, width 4"
    assert bool(checkpoint.meta["assumed"]) == (not names)
    torch.testing.assert_close(logits(checkpoint.build()), logits(network))
    checkpoint.save(tmp_path / "ours.pt")
    assert torch.equal(logits(load(tmp_path / "ours.pt")), logits(checkpoint.build()))


# ---------------------------------------------------------------- libraries


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "wide_resnet50_2", "vgg11_bn", "alexnet", "squeezenet1_1"),
        *("mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121"),
        *("convnext_tiny", "regnet_y_400mf", "vit_b_32", "swin_t", "mnasnet0_5", "inception_v3"),
    ],
)
def test_classifiers_of_torchvision_by_names_and_shapes(name: str) -> None:
    external = External(arch=f"torchvision:{name}", classes=23)
    match = recognise(named(external.build_shapes()))
    args = {"aux_logits": True} if name == "inception_v3" else {}
    assert match.architecture == replace(external, args=args)
    assert match.name == f"torchvision {name}"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("resnet18", "timm:resnetblur18"),
        ("resnet50", "timm:resnetaa50 or timm:resnetblur50"),
        ("resnet34", ""),
    ],
)
def test_networks_of_the_same_tensors_are_told(name: str, others: str) -> None:
    match = recognise(named(External(arch=f"torchvision:{name}", classes=5).build_shapes()))
    assert match.architecture.arch == f"torchvision:{name}"
    told = f"strides without blur; for {others}, name it with --arch"
    assert match.assumed == (told if others else "")


@pytest.mark.parametrize("name", ["resnet26", "convnext_atto", "mixer_s32_224"])
def test_classifiers_of_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=11).eval()
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    assert checkpoint.architecture == External(arch=f"timm:{name}", classes=11)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(checkpoint.build()(x), network(x))


def test_every_signature_names_networks() -> None:
    table = read_signatures()
    names = [name for _, group in table.values() for name in group]
    assert len(names) > 1000
    assert all(name.startswith(("torchvision:", "timm:")) for name in names)
    state = External(arch="torchvision:resnet18", classes=3).build_shapes()
    assert "torchvision:resnet18" in table[sign(state)][1]


# ---------------------------------------------------------------- none, or several


def small_images() -> nn.Module:
    """The usual change of torchvision's ResNet for small images: its stride is in no tensor."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


def test_what_is_nearly_known_is_told_with_the_difference(tmp_path: Path) -> None:
    torch.save(small_images().state_dict(), tmp_path / "theirs.pt")
    with mistake(
        "not recognised; the nearest is torchvision:resnet18",
        "conv1.weight is (64, 3, 3, 3) in the file and (64, 3, 7, 7) there",
        "--arch",
    ):
        load(tmp_path / "theirs.pt")


def test_what_resembles_nothing_is_told_so(tmp_path: Path) -> None:
    torch.save(nn.LSTM(3, 4).state_dict(), tmp_path / "theirs.pt")
    with mistake("not recognised, with the tensors weight_ih_l0", "--arch"):
        load(tmp_path / "theirs.pt")


def test_gates_that_no_tensor_tells_are_asked_for(tmp_path: Path) -> None:
    architecture = Architecture(arch="resnet10", width=2)
    gated = build(architecture, (Gate(layer="layer4.0", channels=16),))
    assert isinstance(gated, Selective)
    torch.save(gated.state_dict(), tmp_path / "theirs.pt")
    with mistake("theirs.pt is not recognised", "CIFS or of CAS", "cs.save"):
        load(tmp_path / "theirs.pt")


def test_a_network_that_is_normalised_twice(tmp_path: Path) -> None:
    architecture = Architecture(
        arch="resnet10", width=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)
    )
    network = normalised(architecture.build().eval(), (0.5,) * 3, (0.25,) * 3)
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    torch.testing.assert_close(logits(load(tmp_path / "theirs.pt")), logits(network))


@pytest.mark.parametrize("written_as", ["ResNetForImageClassification", "os.system", 3])
def test_a_network_of_transformers_is_told_by_its_name(written_as: Any, tmp_path: Path) -> None:
    safetensors({"resnet.stem.weight": torch.rand(3, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [written_as]}))
    is_name = written_as == "ResNetForImageClassification"
    with mistake(f"a {written_as} of transformers" if is_name else "is not recognised", "--arch"):
        load(tmp_path)
