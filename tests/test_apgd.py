"""Auto-PGD: the paper's algorithm and the authors' code, point by point; who takes part."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from channelscope.attacks import APGD, find_correct, make_generators
from channelscope.errors import UserError
from channelscope.objectives import Joint, cross_entropy, dlr, margin
from helpers.networks import (
    CLASSES,
    FORMS,
    CallsAutograd,
    Linear,
    Returns,
    TrainsItself,
    Twice,
    gated,
    images,
    mixed,
    plain,
    resnet,
    unchanged,
)

ATTACKS = [
    APGD(steps=6),
    APGD(steps=6, norm="2", eps=0.5),
    APGD(steps=4, restarts=2, objective=dlr),
    APGD(steps=4, objective=margin, eot=2),
    APGD(steps=4, objective=Joint()),
    APGD(steps=4, objective=Joint(float("inf"))),
]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "wrn-10-1": lambda: resnet("wrn-10-1"),
    "cifs": gated,
    "dict": lambda: Returns(FORMS["dict"]),
    "called twice": Twice,
    "calls autograd": CallsAutograd,
}
norms = pytest.mark.parametrize("norm", ["inf", "2"])


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def distance(x: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    delta = (adversarial.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)


def assert_inside(x: Tensor, adversarial: Tensor, attack: APGD) -> None:
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert distance(x, adversarial, attack.norm).max() <= attack.eps + 1e-6


@torch.no_grad()
def sure_of(net: Any, x: Tensor) -> Tensor:
    """Give the network's own answers as labels, after the mean logits have been taken out of it."""
    last = net.linear if hasattr(net, "linear") else net.cnn.linear
    last.bias -= net(x).mean(0)
    return net(x).argmax(1)


# ---------------------------------------------------------------- every network


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_apgd_stays_inside_harms_and_leaves_everything_as_found(
    attack: APGD, make: Callable[[], nn.Module]
) -> None:
    net, (x, _) = make().eval(), images()
    with torch.no_grad():
        answer = net(x)
        logits = answer if isinstance(answer, Tensor) else answer["logits"]
    y, net = logits.argmax(1), mixed(net)
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    with unchanged(net):
        adversarial = attack(net, x, y, seed())
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert_inside(x, adversarial, attack)
    assert not adversarial.requires_grad
    net.eval()
    assert attack.objective(net, adversarial, y).mean() > attack.objective(net, x, y).mean()


def test_network_that_switches_itself_to_train_mode_is_refused() -> None:
    net, (x, y) = TrainsItself(), images()
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        APGD(steps=2)(net, x, y, seed())


def test_network_is_left_as_found_after_an_exception() -> None:
    net, (x, y) = mixed(gated()), images()
    with unchanged(net), pytest.raises(RuntimeError):
        APGD(steps=2)(net, x.expand(-1, 7, -1, -1), y, seed())


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [8 / 255, 0.3])
def test_networks_of_any_precision_do_not_overshoot(
    dtype: torch.dtype, norm: Any, eps: float
) -> None:
    x, _ = images(8)
    net = plain()
    y, attack = sure_of(net, x), APGD(eps=eps, steps=5, norm=norm)
    x, net = x.to(dtype), net.to(dtype)
    adversarial = attack(net, x, y, seed())
    assert_inside(x, adversarial, attack)
    assert not torch.equal(adversarial, x)


@settings(max_examples=60)
@given(
    st.builds(
        APGD,
        eps=st.sampled_from([0, 1e-4, 8 / 255, 0.5, 1]) | st.floats(1e-6, 1),
        steps=st.integers(1, 12),
        restarts=st.integers(1, 3),
        norm=st.sampled_from(["inf", "2"]),
        objective=st.sampled_from([cross_entropy, dlr, margin]),
        rho=st.floats(0, 1),
    ),
    st.integers(0, 2**32),
)
def test_results_lie_in_the_ball_and_no_restart_is_lost(attack: APGD, number: int) -> None:
    # Every third pixel is black or white: the ball is cut there.
    x = (3 * torch.rand(4, 1, 4, 4, generator=seed(number)) - 1).clamp(0, 1)
    before, net = x.clone(), Linear()
    y = net(x).argmax(1)
    adversarial = attack(net, x, y, seed(number))
    assert_inside(x, adversarial, attack)
    assert torch.equal(x, before)
    assert adversarial.data_ptr() != x.data_ptr()
    if attack.eps == 0:
        assert torch.equal(adversarial, x)


@norms
def test_empty_batch_comes_back_empty(norm: Any) -> None:
    x, y = torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)
    assert APGD(norm=norm, restarts=2)(Linear(), x, y, seed()).shape == x.shape


# ---------------------------------------------------------------- the paper's algorithm


def losses_of(objective: Any, net: nn.Module) -> reference.Loss:
    return lambda x, label: objective(net, x, torch.tensor([label]))[0]


@norms
@pytest.mark.parametrize("objective", [cross_entropy, dlr, margin], ids=lambda o: o.__name__)
@pytest.mark.parametrize("steps", [7, 40, 100])
def test_apgd_takes_the_papers_steps_exactly(steps: int, objective: Any, norm: Any) -> None:
    net, (x, _) = plain().double(), images(8, dtype=torch.float64)
    with torch.no_grad():
        net.conv1.weight.mul_(3)  # so bent that steps fail
        y = sure_of(net, x)
        y[-1] = (y[-1] + 1) % CLASSES
    attack = APGD(
        eps=0.02 if norm == "inf" else 0.2, steps=steps, norm=norm, objective=objective, rho=0.9
    )
    starts = attack.get_random_starts(x, seed(3))[0] - x
    papers = reference.apgd(
        losses_of(objective, net),
        lambda image: int(net(image.unsqueeze(0)).argmax(1)),
        x, y, eps=attack.eps, steps=steps, norm=norm, starts=starts, rho=0.9,
    )  # fmt: skip
    found = attack(net, x, y, seed(3))
    torch.testing.assert_close(found, papers, rtol=0, atol=1e-10)
    right = find_correct(net, found, y)
    assert right.any()
    assert not right.all()


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 77, 100, 1000])
def test_checkpoints_are_the_papers(steps: int) -> None:
    assert APGD(steps=steps).checkpoints == set(reference.apgd_checkpoints(steps))
    assert APGD().checkpoints == {0, 22, 41, 57, 70, 80, 87, 93, 99}


@norms
def test_starts_are_points_of_the_surface(norm: Any) -> None:
    x = torch.full((500, 1, 3, 3), 0.5, dtype=torch.float64)
    starts = APGD(eps=0.3, norm=norm, restarts=3).get_random_starts(x, seed())
    for start in starts:
        torch.testing.assert_close(
            distance(x, start, norm), torch.full((500,), 0.3, dtype=torch.float64)
        )
        assert (start - x).mean(0).abs().max() < 0.05
    assert not torch.equal(starts[0], starts[1])


def authors(
    net: nn.Module, x: Tensor, y: Tensor, attack: APGD, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the authors' best points from the same start, and which are still right."""
    theirs = pytest.importorskip("pyautoattack.autopgd_base").APGDAttack(
        net, n_iter=attack.steps, norm={"inf": "Linf", "2": "L2"}[attack.norm], eps=attack.eps,
        rho=attack.rho, loss="ce" if attack.objective is cross_entropy else "dlr", device="cpu",
    )  # fmt: skip
    theirs.init_hyperparam(x)
    best, right, _, broken = theirs.attack_single_run(x, y, x_init=start)
    return torch.where(right.bool().view(-1, 1, 1, 1), best, broken), right.bool()


@norms
@pytest.mark.parametrize("objective", [cross_entropy, dlr], ids=["ce", "dlr"])
def test_apgd_is_the_authors_point_by_point(objective: Any, norm: Any) -> None:
    # At a share of exactly rho the authors halve and the paper does not: none is 0.74.
    net, (x, _) = plain().double(), images(40, dtype=torch.float64)
    with torch.no_grad():
        net.conv1.weight.mul_(3)
        y = sure_of(net, x)
    attack = APGD(eps=0.012 if norm == "inf" else 0.1, norm=norm, objective=objective, rho=0.74)
    start = attack.get_random_starts(x, seed(5))[0].clamp(0, 1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of what they keep their losses in
    with torch.random.fork_rng(devices=[]):
        try:
            theirs, right = authors(net, x, y, attack, start)
        finally:
            torch.set_default_dtype(default)
    ours = attack(net, x, y, seed(5))
    assert torch.equal(find_correct(net, ours, y), right)
    assert 5 < right.sum() < 35
    # They add 1e-12 to every length that they divide by, which a hundred steps amplify.
    torch.testing.assert_close(
        ours[right], theirs[right], rtol=0, atol=1e-9 if norm == "inf" else 1e-4
    )


# ---------------------------------------------------------------- who takes part


def test_broken_images_leave_at_once_and_are_spared_the_restarts() -> None:
    net, (x, _) = plain(), images(8)
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % CLASSES
    asked: list[int] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        asked.append(len(x))
        return cross_entropy(model, x, y)

    found = APGD(eps=1e-4, steps=3, restarts=2, objective=objective)(net, x, y, seed())
    # The start and three steps, which point is best so far, and once more for those left.
    assert asked == [8, 5, 5, 5, 8, 5, 5, 5, 5, 5]
    assert distance(x, found, "inf").max() <= 1e-4 + 1e-7
    asked.clear()
    wrong = (net(x).argmax(1) + 1) % CLASSES
    APGD(eps=1e-4, objective=objective)(net, x, wrong, seed())
    assert asked == [8]


def test_last_point_is_looked_at_without_a_gradient() -> None:
    net, (x, _) = plain(), images()
    y, passes = net(x).argmax(1), []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        passes.append(torch.is_grad_enabled())
        return cross_entropy(model, x, y)

    APGD(eps=1e-4, steps=3, objective=objective)(net, x, y, seed())
    assert passes == [True, True, True, False]


def test_gradients_are_averaged_over_passes() -> None:
    slopes = iter([1.0, -3.0, 2.0, -1.0] + [0.0] * 8)

    def objective(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return next(slopes) * x.flatten(1).sum(1) + 0 * model(x).sum(1)

    net, x = Linear(), torch.full((2, 1, 4, 4), 0.5)
    y = net(x).argmax(1)
    attack = APGD(eps=1e-3, steps=1, eot=2, objective=objective)
    start = attack.get_random_starts(x, seed())[0]
    # Mean slope -1: the step of 2 eps takes every pixel to the lower end of its interval.
    torch.testing.assert_close(attack(net, x, y, seed()), x - 1e-3)
    assert (start > x - 1e-3).any()


def test_an_objective_that_knows_its_batch_is_narrowed() -> None:
    class Weighted:
        def __init__(self, weights: Tensor) -> None:
            self.weights = weights

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return self.weights * cross_entropy(model, x, y)

        def rows(self, indices: Tensor) -> "Weighted":
            return Weighted(self.weights[indices])

    net, (x, _) = plain().double(), images(8, dtype=torch.float64)
    y, weights = sure_of(net, x), torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    attack = APGD(eps=0.05, steps=10, restarts=2)
    whole = replace(attack, objective=Weighted(weights))(
        net, x, y, make_generators(0, "", range(8))
    )
    for i in range(8):
        own = replace(attack, objective=Weighted(weights[i : i + 1]))
        alone = own(net, x[i : i + 1], y[i : i + 1], make_generators(0, "", [i]))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-9)


def test_results_are_those_of_the_seed() -> None:
    net, (x, _) = plain(), images(8)
    y, attack = sure_of(net, x), APGD(eps=0.01, steps=8)
    first = attack(net, x, y, seed(1))
    assert torch.equal(attack(net, x, y, seed(1)), first)
    assert not torch.equal(attack(net, x, y, seed(2)), first)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), 255.0])
def test_images_outside_the_range_are_refused(value: float) -> None:
    x, y = images()
    x[2, 0, 3, 3] = value
    for attack in (APGD(), APGD(eps=0)):
        with pytest.raises(UserError, match=r"must lie in \[0, 1\], without NaN"):
            attack(plain(), x, y)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": -1e-9}, "eps is a number from 0 up"),
        ({"norm": "1"}, "norm is 'inf' or '2', not '1'"),
        ({"steps": 0}, "at least one step"),
        ({"restarts": 0}, "one restart"),
        ({"eot": 0}, "one forward pass"),
        ({"rho": 1.1}, "rho is a share"),
        ({"rho": float("nan")}, "rho is a share"),
    ],
    ids=str,
)
def test_impossible_attacks_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        APGD(**options)


def test_dlr_needs_three_classes() -> None:
    net, x = Linear(classes=2), torch.rand(3, 1, 4, 4)
    y = net(x).argmax(1)
    with pytest.raises(UserError, match="three largest logits, and this network has 2"):
        APGD(objective=dlr)(net, x, y, seed())
