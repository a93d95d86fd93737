"""Gradient masking: networks built to mask are detected, honest ones not, nothing is changed."""

import copy
from collections.abc import Callable
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from channelscope.attacks import PGD, Attack, find_correct
from channelscope.attacks.fallback import Averaged, Estimated, Noise
from channelscope.errors import UserError
from channelscope.objectives import cross_entropy, margin
from channelscope.study import masking
from channelscope.study.masking import LEVEL, Checks, check_masking, exceeds
from helpers.expect import mistake
from helpers.masked import EPS, MASKED, SEEDS, digits, honest, masked
from helpers.networks import Linear, images, mixed, plain, unchanged

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

IMAGES = 64


def check_digits(network: nn.Module, **options: Any) -> Checks:
    return check_masking(network, *digits(IMAGES), eps=EPS, **options)


def measure_robust(network: nn.Module, attack: Attack) -> float:
    """Return robust accuracy by the majority of five answers, as a network may be random."""
    x, y = digits(IMAGES)
    adversarial = attack(network, x, y, torch.Generator().manual_seed(1))
    votes = torch.stack([find_correct(network, adversarial, y) for _ in range(5)])
    return (votes.float().mean(0) > 0.5).float().mean().item()


# ---------------------------------------------------------------- who is accused


@pytest.mark.parametrize(("method", "seed"), [*(("at", seed) for seed in SEEDS), ("standard", 0)])
def test_honest_networks_are_not_accused(method: str, seed: int) -> None:
    checks = check_digits(honest(method, seed))
    assert not checks.signs
    assert set(checks.skipped) <= {"square"}


EXPECTED = {
    "quantised input": {"zero-gradient", "unbounded-eps", "random-noise", "black-box"},
    "saturated logits": {"zero-gradient", "other-loss"},
    "shattered gate": {"rugged-loss", "black-box"},
    "random gate": {"randomness"},
    "step function": {"zero-gradient", "unbounded-eps", "random-noise", "black-box"},
    "detached purification": {"zero-gradient", "black-box"},
    "noise injected": {"randomness"},
    "sine added": {"rugged-loss", "black-box"},
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_network_is_found_out_and_broken(name: str) -> None:
    network = masked(name)
    assert find_correct(network, *digits(IMAGES)).float().mean() > 0.8
    checks = check_digits(network)
    assert EXPECTED[name] <= set(checks.signs)
    attacks = [sign.breaks for sign in checks.signs.values() if sign.breaks]
    assert min(measure_robust(network, attack) for attack in attacks) < 0.3
    for sign in checks.signs.values():
        assert sign.sentence.endswith(".")
        assert sign.evidence["images"] > 50


def test_saturated_logits_are_told_from_gradients_that_are_missing_altogether() -> None:
    sign = check_digits(masked("saturated logits")).signs["zero-gradient"]
    assert sign.breaks == PGD(eps=EPS, objective=margin, early_stop=0)
    assert sign.evidence["without_gradient_of_margin"] == 0


class Still(nn.Module):
    """Answers the same whatever the image shows, by its mean's sign."""

    def __init__(self, within: nn.Module, share: float) -> None:
        super().__init__()
        self.within, self.share = within, share

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.arange(len(x)) < self.share * len(x)
        return self.within(torch.where(hidden.view(-1, 1, 1, 1), x.detach(), x))


def test_zero_gradients_are_counted_image_by_image() -> None:
    sign = check_digits(Still(honest("standard"), 0.3)).signs["zero-gradient"]
    n = sign.evidence["images"]
    assert sign.evidence["without_gradient"] == pytest.approx(0.3 * n, abs=1)
    assert "zero-gradient" not in check_digits(Still(honest("standard"), 0.05)).signs


def test_randomness_below_rounding_is_none() -> None:
    class Trembling(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.within, self.size = honest("standard"), size

        def forward(self, x: Tensor) -> Tensor:
            logits = self.within(x)
            return logits + self.size * torch.randn_like(logits)

    assert "randomness" not in check_digits(Trembling(1e-5)).signs
    assert "randomness" in check_digits(Trembling(1.0)).signs


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("n", [1, 20, 64, 128])
def test_exceeding_is_the_binomial_tail(n: int, limit: float) -> None:
    for count in range(n + 1):
        tail = sum(comb(n, k) * limit**k * (1 - limit) ** (n - k) for k in range(count, n + 1))
        assert exceeds(count, n, limit) == (tail < LEVEL)


# ---------------------------------------------------------------- what is left behind


@pytest.mark.parametrize("name", [None, "noise injected", "quantised input"])
def test_network_and_randomness_are_left_as_found_and_the_outcome_repeats_itself(
    name: str | None,
) -> None:
    network = mixed(copy.deepcopy(masked(name) if name else honest("standard")))
    x, y = digits(32)
    with unchanged(network):
        once = check_masking(network, x, y, eps=EPS)
    torch.rand(7)
    assert check_masking(network, x, y, eps=EPS) == once


def test_batches_are_of_any_size() -> None:
    network, (x, y) = masked("saturated logits"), digits(32)
    in_batches = check_masking(network, x, y, eps=EPS, batch_size=9)
    assert in_batches.signs == check_masking(network, x, y, eps=EPS).signs


def test_progress_names_the_checks_in_turn() -> None:
    names: list[str] = []
    check_digits(honest("standard"), progress=names.append)
    assert names == [check.name for check in masking.CHECKS]


def test_nothing_is_said_where_no_image_is_right() -> None:
    net, (x, _) = Linear(64).eval(), images()
    wrong = (net(x).argmax(1) + 1) % 3
    checks = check_masking(net, x, wrong, eps=0.1)
    assert not checks.signs
    assert "all" in checks.skipped


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": -1.0}])
def test_what_is_no_ball_is_refused(options: dict[str, float]) -> None:
    with mistake("eps"):
        check_masking(plain(), *images(), **options)


def test_images_outside_the_range_are_refused() -> None:
    x, y = images()
    with mistake("[0, 1]"):
        check_masking(plain(), x * 255, y, eps=0.1)


def test_without_the_optional_package_the_gradient_is_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(**_: Any) -> None:
        raise UserError("Install it.")

    monkeypatch.setattr(masking, "Square", missing)
    checks = check_digits(masked("quantised input"))
    assert checks.skipped["square"] == "Install it."
    attack = checks.signs["black-box"].breaks
    assert isinstance(attack, PGD)
    assert measure_robust(masked("quantised input"), attack) < 0.5


# ---------------------------------------------------------------- fallback attacks


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_noise_lies_on_the_surface_and_keeps_what_fools(norm: Any) -> None:
    net, x = plain(), 0.25 + images(16)[0] / 2
    y, eps = net(x).argmax(1), 0.2
    found = Noise(eps=eps, norm=norm, tries=30)(net, x, y, torch.Generator().manual_seed(0))
    delta = (found - x).flatten(1)
    size = delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)
    torch.testing.assert_close(size, torch.full_like(size, eps), rtol=0, atol=1e-5)
    few = Noise(eps=eps, norm=norm, tries=1)(net, x, y, torch.Generator().manual_seed(0))
    assert set((~find_correct(net, few, y)).nonzero().flatten().tolist()) <= set(
        (~find_correct(net, found, y)).nonzero().flatten().tolist()
    )


def test_estimated_slope_is_that_of_a_linear_objective_on_average() -> None:
    weight = torch.randn(1, 16)
    x, y = torch.rand(1, 1, 4, 4).requires_grad_(), torch.tensor([0])

    def objective(_model: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        return (x.flatten(1) * weight).sum(1)

    loss = Estimated(objective=objective, spread=0.1, samples=4000)(nn.Identity(), x, y)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert loss.item() == pytest.approx(objective(nn.Identity(), x, y).item())
    # Each entry is a mean of 4000 draws of variance at most |w|^2.
    assert slope.flatten() == pytest.approx(
        weight.flatten(), abs=5 * float(weight.norm()) / 4000**0.5
    )


def test_averaged_objective_is_the_mean_over_the_networks_randomness() -> None:
    values = iter([1.0, 2.0, 6.0])

    def objective(_model: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        return next(values) * x.flatten(1).sum(1)

    x = torch.ones(2, 1, 1, 1)
    assert Averaged(objective=objective, samples=3)(
        nn.Identity(), x, torch.tensor([0, 1])
    ).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Noise(tries=7), "noise-7"),
        (Noise(norm="2", tries=7), "noise-7-l2"),
        (Averaged(objective=cross_entropy), "averaged-cross_entropy"),
        (Estimated(objective=margin, spread=0.1), "estimated-margin"),
    ],
)
def test_names(attack: Callable[..., Tensor], name: str) -> None:
    assert str(attack) == name


def test_no_tries_are_refused() -> None:
    with mistake("try"):
        Noise(tries=0)
