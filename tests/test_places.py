"""Gates at their authors' places: whole networks, as naive versions have them.

Every network is that of a shipped recipe, but narrow. Compared are logits, probe logits and masks,
and the gradients of all parameters and images, in double precision.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import channelscope as cs
import reference
from channelscope.data import Dataset, MemorySplit
from channelscope.gates import FeatureSelector, Selective, TwoLayerProbe
from channelscope.training import Recipe
from channelscope.training.job import Job
from channelscope.weights import Checkpoint, build
from helpers.networks import randomise_batchnorm
from helpers.runs import digits, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

SIZE, CLASSES = 8, 4
# Recipe -> the naive network, its channels of colour, and the naive place of each gate.
CASES: dict[str, tuple[Any, int, list[str]]] = {
    "cifar10-resnet18-cifs": (
        reference.gated_resnet, 3, ["after layer4.0", "after layer4.1"]
    ),
    "fashion-mnist-resnet10-cifs": (
        reference.gated_resnet, 1, ["after layer3.0", "after layer4.0"]
    ),
    "fashion-mnist-resnet10-cas": (
        reference.gated_resnet, 1, ["after layer3.0", "after layer4.0"]
    ),
    "cifar10-wrn-28-10-cifs": (reference.gated_wide_resnet, 3, ["within layer3.3", "final"]),
    "cifar10-wrn-28-10-cas": (reference.gated_wide_resnet, 3, ["within layer3.3", "final"]),
    "cifar10-vgg16-cas": (
        reference.gated_vgg, 3, ["after layer5.0", "after layer5.1", "after layer5.2"]
    ),
}  # fmt: skip


def describe(name: str, channels: int, **changes: Any) -> Job:
    """Describe a shipped recipe's run on a few small images."""
    images = torch.randint(256, (CLASSES, channels, SIZE, SIZE), dtype=torch.uint8)
    part = MemorySplit(images, torch.arange(CLASSES))
    data = Dataset("noise", tuple("abcd"), part, part, part)
    return Job(Recipe.named(name).override(width=1, **changes), data, Path("net.pt"), 0)


def build_network(name: str, channels: int, **changes: Any) -> Selective:
    """Build the network of a recipe in double precision, with BatchNorms as after training."""
    job = describe(name, channels, **changes)
    network = build(job.architecture, job.gates).double()
    randomise_batchnorm(network)
    assert isinstance(network, Selective)
    return network


def differentiate(answer: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a loss in which every number of the answer has a weight of its own."""
    loss = sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in answer)
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_gated_networks_are_those_of_the_papers_with_all_their_gradients(
    name: str, train: bool, detach: bool
) -> None:
    naive, channels, places = CASES[name]
    network = build_network(name, channels).train(train)
    gates = dict(zip(places, network.gates.values(), strict=True))
    for gate in gates.values():
        assert isinstance(gate, FeatureSelector)
        gate.detach = detach
    state = {**dict(network.cnn.named_parameters()), **dict(network.cnn.named_buffers())}
    state = {key: value.clone() if "running" in key else value for key, value in state.items()}
    x = torch.rand(3, channels, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    y = torch.arange(3)
    labels = y if train else None
    probes: list[Tensor] = []
    masks: list[Tensor] = []

    def select(place: str, z: Tensor) -> Tensor:
        if place not in gates:
            return z
        gate = gates[place]
        features, logits, mask = reference.gate(z, gate.probe, gate.k, gate.imgf, labels, detach)
        probes.append(logits)
        masks.append(mask)
        return features

    answer = network.probed(x, y)
    ours = [answer.logits, *answer.probes.values(), *answer.masks.values()]
    papers = [naive(state, x, select, train), *probes, *masks]
    assert len(ours) == len(papers) == 1 + 2 * len(places)
    torch.testing.assert_close(ours, papers, rtol=1e-10, atol=1e-10)
    wanted = [x, *network.parameters()]
    torch.testing.assert_close(
        differentiate(ours, wanted), differentiate(papers, wanted), rtol=1e-10, atol=1e-10
    )


def test_a_wide_resnets_probe_has_240_hidden_units_and_others_128() -> None:
    hidden = {
        name: [
            gate.probe.hidden.out_features
            for gate in build_network(name, channels).gates.values()
            if isinstance(gate.probe, TwoLayerProbe)
        ]
        for name, (_, channels, _) in CASES.items()
        if name.endswith("cifs")
    }
    assert hidden == {
        "cifar10-resnet18-cifs": [128],
        "fashion-mnist-resnet10-cifs": [128],
        "cifar10-wrn-28-10-cifs": [240],
    }


@pytest.mark.parametrize(
    ("place", "tensor"),
    [
        ("layer1:input", "relu(bn1(conv1(x)))"),
        ("layer4.1.bn1:input", "conv1 before its BatchNorm"),
        ("layer4.1.conv2:input", "the ReLU within a block"),
        ("linear:input", "pooled features"),
    ],
)
def test_any_place_can_be_gated_functional_relus_too(place: str, tensor: str) -> None:
    """Only what stands behind the gate sees its multipliers, also where an attack folds layers."""
    network = build_network("cifar10-resnet18-cifs", 3, layers=[place], probes=["linear"]).eval()
    x, y = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64), torch.arange(4)
    with torch.no_grad(), cs.capture(network, place, f"{place}.gated") as features:
        answer = network.probed(x)
    mask = answer.masks[place].view(4, -1, *[1] * (features[place].ndim - 2))
    torch.testing.assert_close(features[f"{place}.gated"], features[place] * mask)
    with torch.no_grad(), cs.hooked(network.cnn, {place: partial(torch.mul, mask)}):
        torch.testing.assert_close(answer.logits, network.cnn(x))
    plain = cs.PGD(eps=0.1, step=0.05, steps=2, random_start=False)
    x_adv = plain(network, x, y)
    x_next = x
    for _ in range(2):
        leaf = x_next.clone().requires_grad_()
        with cs.attached(network):
            loss = torch.nn.functional.cross_entropy(network(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        x_next = (x_next + 0.05 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(x_adv, x_next)


def test_a_network_gated_at_what_a_layer_reads_is_trained_saved_and_compared(
    tmp_path: Path,
) -> None:
    out = tmp_path / "net.pt"
    network = run("cifs", out, arch="wrn-10-1", width=2, epochs=1)
    places = ["layer3.0.conv1:input", "features"]
    assert [gate.layer for gate in Checkpoint.read(out).gates] == places
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x), Checkpoint.read(out).build()(x))
    options = {"attack": "pgd-1", "attacks": "fgsm", "replicates": 20, "progress": False}
    result = cs.compare([out], digits(), layers=places, out=tmp_path / "result", **options)
    assert set(result.masks["layer"]) == set(places)
