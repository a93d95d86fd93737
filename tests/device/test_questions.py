"""What is asked of networks on the device is answered there, by the rules of CUDA and of MPS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.attacks import parse_attack
from channelscope.scorers import list_scorers
from device.conftest import BRIEF, make_network
from device.standin import NAME

pytestmark = pytest.mark.usefixtures("standin", "undrawn")

Images = tuple[Tensor, Tensor]
Networks = dict[str, nn.Module]


def is_there(network: nn.Module) -> bool:
    """Return whether all of a network is still on the device."""
    return all(value.device.type == NAME for value in network.state_dict().values())


# ---------------------------------------------------------------- layers


def test_features_are_captured_on_the_device(images: Images) -> None:
    network = make_network()
    with cs.capture(network, "relu2") as features, torch.no_grad():
        network(images[0].to(NAME))
    assert features["relu2"].device.type == NAME


@pytest.mark.parametrize("place", ["cpu", NAME])
def test_channels_and_values_may_lie_elsewhere(place: str, images: Images) -> None:
    network, x = make_network(), images[0].to(NAME)
    few = torch.zeros(8, dtype=torch.bool, device=place)
    few[2] = True
    with torch.no_grad():
        natural = network(x)
        with cs.ablated(network, {"relu2": few}, to={"relu2": torch.ones(8, device=place)}):
            ablated = network(x)
        values = torch.ones(8, device=place)
        with cs.patched(network, {"conv2": ([1, 3], values)}):
            patched = network(x)
    assert not torch.equal(natural.cpu(), ablated.cpu())
    assert not torch.equal(natural.cpu(), patched.cpu())


# ---------------------------------------------------------------- attacks

ATTACKS = ["fgsm", "pgd-3", "pgd-3x2", "pgd-3-l2", "pgd-4-1", "cw-3", "apgd-ce-5", "apgd-dlr-5x2"]


@pytest.mark.parametrize("name", [*ATTACKS, "joint-sweep", "apgd-ce-4-l2"])
@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_attacks_return_images_of_the_ball_there(name: str, kind: str, images: Images) -> None:
    network, (x, y) = make_network(kind), images
    x_adv = parse_attack(name, eps=0.1)(
        network, x.to(NAME), y.to(NAME), torch.Generator("cpu").manual_seed(0)
    )
    assert x_adv.device.type == NAME
    assert is_there(network)
    if not name.endswith("-l2"):
        assert (x_adv.cpu() - x).abs().max() <= 0.1 + 1e-6


def test_an_attack_is_the_same_as_on_the_cpu(images: Images) -> None:
    x, y = images
    attack = cs.APGD(eps=0.1, steps=10)
    on_device = attack(make_network(), x.to(NAME), y.to(NAME), torch.Generator().manual_seed(0))
    on_cpu = attack(make_network(device="cpu"), x, y, torch.Generator().manual_seed(0))
    assert (on_device.cpu() - on_cpu).abs().max() < 1e-5


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("scorer", [scorer.name for scorer in list_scorers()])
def test_channels_are_scored(scorer: str, both: Networks, images: Images) -> None:
    options: dict[str, Any] = {"replicates": 20, "progress": False}
    kind, layer = ("gated", "layer4.1") if scorer == "probe" else ("plain", "relu2")
    layers = ["pool"] if scorer == "weights" else [layer]
    result = cs.relevance({kind: both[kind]}, images, layers=layers, scorers=[scorer], **options)
    assert len(result.relevance)


def test_networks_are_compared(
    both: Networks, images: Images, compare: Callable[..., cs.Result], tmp_path: Path
) -> None:
    layers = {"plain": ["relu1", "conv2"], "gated": ["layer4.1"]}
    sweeps = {"eps_sweep": [0.05], "step_sweep": [1]}
    result = compare(both, images, layers=layers, checks=8, out=tmp_path / "compared", **sweeps)
    assert result.meta["hardware"]["device"].startswith(NAME)
    assert all(map(is_there, both.values()))


def test_images_may_lie_on_the_device(
    both: Networks, images: Images, compare: Callable[..., cs.Result]
) -> None:
    there = tuple(tensor.to(NAME) for tensor in images)
    plain = {"plain": both["plain"]}
    tables = [compare(plain, data, attacks=["fgsm"]).activations for data in (images, there)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("attacks", ["adaptive", "standard"])
def test_networks_are_evaluated(
    attacks: str, both: Networks, images: Images, evaluate: Callable[..., cs.Result], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"checks": 8, "save_adversarial": attacks == "adaptive"}
    small = {"attacks": ["pgd-2", "cw-2"]} if attacks == "standard" else {}
    result = evaluate(both, images, out=tmp_path / "evaluated", **options | small)
    assert set(result.robustness["model"]) == {"plain", "gated"}


def test_networks_are_evaluated_in_l2(
    both: Networks, images: Images, evaluate: Callable[..., cs.Result]
) -> None:
    options: dict[str, Any] = {"attacks": ["pgd-2-l2", "apgd-ce-3-l2"], "checks": 4}
    assert len(evaluate({"plain": both["plain"]}, images, norm="2", **options).attacks)


def test_autoattack_runs_there(
    both: Networks, images: Images, evaluate: Callable[..., cs.Result]
) -> None:
    pytest.importorskip("pyautoattack")
    assert len(evaluate({"plain": both["plain"]}, images, attacks=["square-20"]).attacks)


def test_channels_are_suppressed(both: Networks, images: Images) -> None:
    options: dict[str, Any] = {"fractions": [0.5], "random": 1, "attack": "pgd-2"}
    scorers = ("gradient", "ablation")
    result = cs.intervene({"plain": both["plain"]}, images, scorers=scorers, **options, **BRIEF)
    assert len(result.curves)


def test_damage_is_accounted_for(both: Networks, images: Images) -> None:
    options: dict[str, Any] = {"attack": "pgd-2", "fractions": [0.25], "scorers": ("gradient",)}
    layers = ["relu1", "pool"]
    result = cs.damage({"plain": both["plain"]}, images, layers=layers, edges=2, **options, **BRIEF)
    assert len(result.damage)


def test_networks_from_files_go_to_the_device(
    images: Images, compare: Callable[..., cs.Result], tmp_path: Path
) -> None:
    cs.save(make_network("gated", "cpu"), tmp_path / "net.pt")
    result = compare([tmp_path / "net.pt"], images, device=NAME)
    assert result.meta["hardware"]["device"].startswith(NAME)


def test_the_device_is_found_by_itself(
    images: Images, compare: Callable[..., cs.Result], tmp_path: Path
) -> None:
    cs.save(make_network("gated", "cpu"), tmp_path / "net.pt")
    result = compare([tmp_path / "net.pt"], images, attacks=["fgsm"])
    assert result.meta["hardware"]["device"].startswith(NAME)


def test_results_are_those_of_the_cpu(images: Images, evaluate: Callable[..., cs.Result]) -> None:
    there, here = (
        evaluate({"gated": make_network("gated", device)}, images).attacks
        for device in (NAME, "cpu")
    )
    assert there.equals(here)
