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
from channelscope.study.binarisation import Binarisation, run_binarisation_test
from helpers.expect import mistake
from helpers.masked import EPS, digits, honest, masked
from helpers.networks import images, mixed, plain, unchanged

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


def run_on_digits(network: nn.Module, attack: Any, **options: Any) -> Binarisation:
    return run_binarisation_test(network, *digits(64), attack, **{"images": 12, **options})


STRONG = PGD(eps=EPS, early_stop=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_strong_attack_on_an_honest_network_passes(seed: int) -> None:
    test = run_on_digits(honest("at", seed), STRONG)
    assert test.passed
    assert test.sign is None
    assert test.random_success < 0.2
    assert test.images == 12


@pytest.mark.parametrize(
    "name", ["quantised input", "step function", "sine added", "noise injected"]
)
def test_strong_attack_on_a_masked_network_fails(name: str) -> None:
    test = run_on_digits(masked(name), STRONG)
    assert not test.passed
    assert test.sign is not None
    assert f"{test.attack_success:.0%}" in test.sign.sentence


def test_weak_attack_fails() -> None:
    weak = PGD(eps=EPS, steps=1, step=0.0, random_start=False)
    assert not run_on_digits(honest("at"), weak).passed


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
    test = run_on_digits(honest("at"), attack, images=4)
    assert test.attack_success > test.random_success


def test_readouts_have_their_adversarial_point_and_start_right() -> None:
    net, (x, _) = honest("at"), digits(4)
    layer = module._find_penultimate(net, x)
    readouts = list(module._make_readouts(net, layer, x, EPS, "inf", 0))
    assert readouts
    for number, image, readout in readouts:
        generator = module.make_generators(0, "binarisation", range(4)).each[number]
        points = module._draw_points(image, EPS, "inf", generator)
        assert (points - image).abs().amax() <= EPS + 1e-6
        classes = readout(points).argmax(1)
        assert classes.tolist() == [0] * (module.INNER_POINTS + 1) + [1]


def test_everything_is_left_as_found_and_repeats_itself() -> None:
    net, (x, _) = mixed(plain()), images(12)
    y = plain_labels(net, x)
    attack = PGD(eps=0.2, steps=3)
    with unchanged(net):
        once = run_binarisation_test(net, x, y, attack, images=5)
    torch.rand(3)
    assert run_binarisation_test(net, x, y, attack, images=5) == once
    penultimate = run_binarisation_test(net, x, y, attack, images=5, layer="relu2")
    assert penultimate == once


def plain_labels(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    modes = [(layer, layer.training) for layer in net.modules()]
    labels = net.eval()(x).argmax(1)
    for layer, training in modes:
        layer.training = training
    return labels


def test_random_search_gets_the_queries_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr(
        module, "Noise", lambda **settings: tries.append(settings["tries"]) or Noise(**settings)
    )
    net, (x, _) = plain(), images(8)
    run_binarisation_test(net, x, net(x).argmax(1), PGD(eps=0.2, steps=50), images=3)
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
        run_binarisation_test(net, x, right, PGD(eps=0.0))
    with mistake("right"):
        run_binarisation_test(net, x, (right + 1) % 5, PGD())
    with mistake("[0, 1]"):
        run_binarisation_test(net, 9 * x, y, PGD())
    assert find_correct(net, x, right).all()
