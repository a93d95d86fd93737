"""The binarisation test: strong attacks pass, weak ones and masked networks fail."""

from typing import Any

import pytest
import torch
from torch import nn

from channelscope.attacks import PGD, find_correct
from channelscope.attacks.apgd import APGD
from channelscope.attacks.fallback import Noise
from channelscope.objectives import dlr, margin
from channelscope.study import binarisation as module
from channelscope.study.binarisation import Binarisation, binarisation
from helpers.expect import mistake
from helpers.masked import EPS, digits, honest, masked
from helpers.networks import images, mixed, plain, unchanged

pytestmark = pytest.mark.usefixtures("unchecked")


def outcome(network: nn.Module, attack: Any, **options: Any) -> Binarisation:
    return binarisation(network, *digits(64), attack, **{"images": 12, **options})


STRONG = PGD(eps=EPS, early_stop=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_strong_attack_on_an_honest_network_passes(seed: int) -> None:
    found = outcome(honest("at", seed), STRONG)
    assert found.passed
    assert found.finding is None
    assert found.random_success < 0.2
    assert found.images == 12


@pytest.mark.parametrize(
    "name", ["quantised input", "step function", "sine added", "noise injected"]
)
def test_strong_attack_on_a_masked_network_fails(name: str) -> None:
    found = outcome(masked(name), STRONG)
    assert not found.passed
    assert found.finding is not None
    assert f"{found.attack_success:.0%}" in found.finding.sentence


def test_weak_attack_fails() -> None:
    assert not outcome(honest("at"), PGD(eps=EPS, steps=1, step=0.0, random_start=False)).passed


@pytest.mark.parametrize(
    "attack",
    [
        APGD(eps=EPS, steps=20, objective=dlr),
        PGD(eps=EPS, objective=margin),
        PGD(eps=1.0, norm="2"),
    ],
    ids=str,
)
def test_every_kind_of_attack_works(attack: Any) -> None:
    found = outcome(honest("at"), attack, images=4)
    assert found.attack_success > found.random_success


def test_readouts_have_their_adversarial_point_and_start_right() -> None:
    net, (x, _) = honest("at"), digits(4)
    layer = module._penultimate(net, x)
    made = list(module._readouts(net, layer, x, EPS, "inf", 0))
    assert made
    for number, image, readout in made:
        generator = module.image_generators(0, "binarisation", range(4)).own[number]
        points = module._points(image, EPS, "inf", generator)
        assert (points - image).abs().amax() <= EPS + 1e-6
        classes = readout(points).argmax(1)
        assert classes.tolist() == [0] * (module.INNER + 1) + [1]


def test_everything_is_left_as_found_and_repeats_itself() -> None:
    net, (x, _) = mixed(plain()), images(12)
    y = plain_labels(net, x)
    attack = PGD(eps=0.2, steps=3)
    with unchanged(net):
        once = binarisation(net, x, y, attack, images=5)
    torch.rand(3)
    assert binarisation(net, x, y, attack, images=5) == once
    assert binarisation(net, x, y, attack, images=5, layer="relu2") == once  # the penultimate one


def plain_labels(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    modes = [(layer, layer.training) for layer in net.modules()]
    labels = net.eval()(x).argmax(1)
    for layer, training in modes:
        layer.training = training
    return labels


def test_random_search_gets_the_queries_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr(
        module, "Noise", lambda **given: tries.append(given["tries"]) or Noise(**given)
    )
    net, (x, _) = plain(), images(8)
    binarisation(net, x, net(x).argmax(1), PGD(eps=0.2, steps=50), images=3)
    assert all(50 <= count < 70 for count in tries)


@pytest.mark.parametrize(
    ("attack", "random", "passed"),
    [(1.0, 0.0, True), (1.0, 1.0, True), (0.95, 0.0, True), (0.5, 0.0, False), (0.8, 1.0, False)],
)
def test_passing(attack: float, random: float, passed: bool) -> None:
    assert Binarisation("pgd-20", 40, attack, random).passed is passed


def test_mistakes() -> None:
    net, (x, y) = plain(), images()
    right = net(x).argmax(1)
    with mistake("eps"):
        binarisation(net, x, right, PGD(eps=0.0))
    with mistake("right"):
        binarisation(net, x, (right + 1) % 5, PGD())
    with mistake("[0, 1]"):
        binarisation(net, 9 * x, y, PGD())
    assert find_correct(net, x, right).all()
