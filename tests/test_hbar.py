"""HBaR: the penalty of what features share with the images, as in its release."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from channelscope.layers.features import capture
from channelscope.training.hbar import HBaR, make_gaussian_kernel, project
from channelscope.training.state import State
from helpers.expect import mistake
from helpers.runs import digits, interrupted, run, same_run, tiny_job, trained

pytestmark = pytest.mark.usefixtures("unchecked")

LAYERS = ["layer1:input", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "linear:input"]
MIXED = torch.arange(0, 48, 5)  # images of all classes


def start(method: str, folder: Path, **changes: Any) -> State:
    return State.start(tiny_job(method, folder / "net.pt", precision="fp64", **changes), "cpu")


def draw(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 99))
def test_dependence_is_that_of_the_release(n: int, d: int, sigma: float, seed: int) -> None:
    a, b = draw(n, d, seed), draw(n, 3, seed + 1)
    projected = [project(make_gaussian_kernel(values, sigma)) for values in (a, b)]
    expected = reference.normalised_hsic(a, b, sigma)
    assert float((projected[0] * projected[1]).sum()) == pytest.approx(expected, abs=1e-6)


def test_dependence_is_from_0_to_n_less_1() -> None:
    a = draw(12, 40, 0)
    of_a = project(make_gaussian_kernel(a, 1.0))
    of_constant = project(make_gaussian_kernel(torch.ones_like(a), 1.0))
    assert float((of_a * of_a).sum()) == pytest.approx(11, abs=0.1)
    assert float((of_a * of_constant).sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["adversarial", "trades"])
def test_the_loss_has_the_penalty_of_every_layer(kind: str, tmp_path: Path) -> None:
    state = start(
        "hbar",
        tmp_path,
        **{"loss.kind": kind, "hbar.of_images": 0.5, "hbar.of_labels": 0.2, "sigma": 2.0},
    )
    loss, network = state.job.loss, state.network
    assert isinstance(loss, HBaR)
    x, y = next(digits().train.batches(10, indices=MIXED))
    x = x.double()
    x_adv = (x + 0.1).clamp(0, 1)
    values = loss(network, x, x_adv, y)
    with capture(network, *LAYERS) as features, torch.no_grad():
        network(x)
    one_hot = torch.nn.functional.one_hot(y).double()
    penalty = sum(
        0.5 * reference.normalised_hsic(features[layer].flatten(1), x.flatten(1), 2.0)
        - 0.2 * reference.normalised_hsic(features[layer].flatten(1), one_hot, 2.0, linear=True)
        for layer in LAYERS
    )
    own = loss.loss(network, x, x_adv, y)
    torch.testing.assert_close(values, own + penalty, rtol=1e-6, atol=1e-8)
    assert abs(penalty) > 0.1


def test_the_penalty_has_a_gradient_in_every_precision(tmp_path: Path) -> None:
    """Half precision has no inverses: the penalty is computed in 32 bits."""
    state = start("hbar", tmp_path)
    network = state.network.float()
    x, y = next(digits().train.batches(10, indices=MIXED))
    for weights in ({"of_images": 1.0, "of_labels": 0.0}, {"of_images": 0.0, "of_labels": 1.0}):
        own = state.job.loss
        assert isinstance(own, HBaR)
        loss = HBaR(own.loss, ("layer4.0",), **weights, sigma=5.0)
        with torch.autocast("cpu", torch.bfloat16):
            penalty = (loss(network, x, x, y) - own.loss(network, x, x, y)).mean()
        network.zero_grad()
        penalty.backward()
        gradient = network.conv1.weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    interrupted("hbar", tmp_path / "net.pt", 5)
    run("hbar", tmp_path / "net.pt", resume=True)
    assert same_run(tmp_path / "net.pt", trained("hbar"))


def test_gates_and_the_penalty_go_together(tmp_path: Path) -> None:
    penalty = {"hbar.features": ["layer4.0"], "epochs": 1}
    run("cifs", tmp_path / "net.pt", **penalty)


def test_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with mistake("'layer9'"):
        start("hbar", tmp_path, **{"hbar.features": ["layer9"]})
    with mistake("hbar.features"):
        tiny_job("at", tmp_path / "net.pt", **{"hbar.sigma": 5.0})
