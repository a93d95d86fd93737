"""Attacks: the papers' steps, inside the ball, as strong as other libraries'."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import channelscope
import reference
from channelscope.attacks import (
    APGD,
    FGSM,
    PGD,
    Attack,
    Detached,
    JointSweep,
    MaskFrozen,
    Search,
    Square,
    attack_name,
    describe_attacks,
    estimate_cost,
    find_correct,
    make_generators,
    parse_attack,
    register,
    registry,
)
from channelscope.attacks.adaptive import ProbeLoss
from channelscope.attacks.fallback import Averaged, Estimated, Noise
from channelscope.data import load
from channelscope.errors import UserError
from channelscope.objectives import Joint, cross_entropy, dlr, get_loss, margin
from helpers.examples import run_example
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
    margin_of,
    mixed,
    plain,
    resnet,
    unchanged,
)

ATTACKS = [
    FGSM(),
    FGSM(norm="2", eps=0.5),
    PGD(steps=3),
    PGD(steps=3, random_start=False, step=0.1),
    PGD(steps=2, restarts=3),
    PGD(steps=3, norm="2", eps=0.5),
    PGD(steps=2, objective=Joint()),
    PGD(steps=3, random_start=0.001),
    PGD(steps=3, early_stop=1, objective=Joint()),
    PGD(steps=2, early_stop=1, restarts=2),
    PGD(steps=3, objective=margin),
    PGD(steps=3, objective=Joint(float("inf"))),
]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "resnet10": resnet,
    "wrn-10-1": lambda: resnet("wrn-10-1"),
    "cifs": gated,
    "dict": lambda: Returns(FORMS["dict"]),
    "dataclass": lambda: Returns(FORMS["dataclass"]),
    "called twice": Twice,
    "calls autograd": CallsAutograd,
}


norms = pytest.mark.parametrize("norm", ["inf", "2"])


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def distance(x: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    delta = (adversarial.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)


def assert_inside(x: Tensor, adversarial: Tensor, attack: PGD | FGSM) -> None:
    """Assert that adversarial images are images, of the ball around x."""
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert distance(x, adversarial, attack.norm).max() <= attack.eps + 1e-6


# ---------------------------------------------------------------- every attack on every network


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attack_stays_inside_harms_and_leaves_the_network_as_found(
    attack: PGD | FGSM, make: Callable[[], nn.Module]
) -> None:
    net, (x, y) = mixed(make()), images()
    with unchanged(net):
        adversarial = attack(net, x, y, seed())
    assert_inside(x, adversarial, attack)
    assert not adversarial.requires_grad
    net.eval()
    assert attack.objective(net, adversarial, y).mean() > attack.objective(net, x, y).mean()


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2)], ids=str)
def test_attack_works_where_gradients_are_off(attack: Attack) -> None:
    net, (x, y) = gated(), images()
    wanted = attack(net, x, y, seed())
    with torch.no_grad():
        assert torch.equal(attack(net, x, y, seed()), wanted)
    assert not torch.equal(wanted, x)


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2)], ids=str)
def test_network_that_switches_itself_to_train_mode_is_refused(attack: Attack) -> None:
    net, (x, y) = TrainsItself(), images()
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        attack(net, x, y, seed())


def test_network_is_left_as_found_after_an_exception() -> None:
    net, (x, y) = mixed(gated()), images()
    with unchanged(net), pytest.raises(RuntimeError):
        PGD(steps=2)(net, x.expand(-1, 7, -1, -1), y, seed())


stops = st.fixed_dictionaries({"early_stop": st.integers(0, 3)})


@st.composite
def attacks(draw: st.DrawFn) -> PGD | FGSM:
    norm = draw(st.sampled_from(["inf", "2"]))
    largest = 1 if norm == "inf" else 3
    eps = draw(st.sampled_from([0, 1e-4, 8 / 255, 0.5, largest]) | st.floats(1e-6, largest))
    if draw(st.booleans()):
        return FGSM(eps=eps, norm=norm)
    return PGD(
        eps=eps,
        step=draw(st.none() | st.floats(0, 4)),
        steps=draw(st.integers(1, 3)),
        random_start=draw(st.booleans() | st.floats(0, 2)),
        norm=norm,
        **draw(st.fixed_dictionaries({}, optional={"restarts": st.integers(1, 3)}) | stops),
    )


@settings(max_examples=80)
@given(attacks(), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float64]))
def test_results_lie_in_the_ball_and_in_the_range_of_images(
    attack: PGD | FGSM, number: int, dtype: torch.dtype
) -> None:
    # Every third pixel is black or white: the ball is cut there.
    x = (3 * torch.rand(4, 1, 4, 4, generator=seed(number), dtype=dtype) - 1).clamp(0, 1)
    before, net, y = x.clone(), Linear().to(dtype), torch.tensor([0, 1, 2, 0])
    adversarial = attack(net, x, y, seed(number))
    assert_inside(x, adversarial, attack)
    assert torch.equal(x, before)
    assert adversarial.data_ptr() != x.data_ptr()
    if attack.eps == 0:
        assert torch.equal(adversarial, x)


@norms
def test_ball_too_small_for_the_precision_leaves_the_images(norm: str) -> None:
    net, (x, y) = plain(), images()
    torch.testing.assert_close(PGD(eps=1e-60, norm=norm)(net, x, y, seed()), x)


@norms
def test_empty_batch_comes_back_empty(norm: str) -> None:
    x, y = torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)
    assert PGD(norm=norm, restarts=2)(Linear(), x, y, seed()).shape == x.shape


@norms
@pytest.mark.parametrize("eps", [8 / 255, 0.3])
def test_bf16_networks_do_not_overshoot(norm: str, eps: float) -> None:
    net, (x, y) = plain().bfloat16(), images(dtype=torch.bfloat16)
    attack = PGD(eps=eps, steps=3, norm=norm)
    assert_inside(x, attack(net, x, y, seed()), attack)


@norms
def test_networks_that_cast_to_bf16_inside_do_not_overshoot(norm: str) -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.bfloat16())

    (x, y), attack = images(), PGD(steps=3, norm=norm)
    adversarial = attack(Casts(), x, y, seed())
    assert_inside(x, adversarial, attack)
    assert not torch.equal(x, adversarial)


def test_networks_under_autocast_do_not_overshoot() -> None:
    net, (x, y) = plain(), images()
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = PGD()(net, x, y, seed())
    assert_inside(x, adversarial, PGD())
    assert not torch.equal(x, adversarial)


# ---------------------------------------------------------------- the contract


class Wild(Attack):
    """Ends far outside the ball, with pixels that are no numbers."""

    def run(self, model: nn.Module, search: Search) -> Tensor:
        points = 9 * search.exact - 4
        points[:, :, 0, 0] = float("nan")
        return points


@norms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_whatever_a_run_ends_with_is_brought_into_the_ball(norm: Any, dtype: torch.dtype) -> None:
    net, (x, y) = mixed(plain().to(dtype)), images(dtype=dtype)
    attack = Wild(eps=0.1, norm=norm)
    with unchanged(net):
        adversarial = attack(net, x, y)
    assert_inside(x, adversarial, attack)
    assert not torch.equal(adversarial, x)
    assert str(attack) == "Wild"


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2, early_stop=0), APGD(steps=2)], ids=str)
def test_attack_works_in_inference_mode(attack: Attack) -> None:
    net, (x, y) = gated(), images()
    wanted = attack(net, x, y, seed())
    with torch.inference_mode():
        assert torch.equal(attack(net, x.clone(), y.clone(), seed()), wanted)


class Probe(nn.Module):
    """Notes how many functions of the package stand between its caller and its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.depths = plain(), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        files = [Path(frame.filename) for frame in inspect.stack(context=0)]
        here = files.index(Path(__file__), 1)  # the test, further down than this method
        package = Path(channelscope.__file__).parent
        self.depths.append(sum(file.is_relative_to(package) for file in files[:here]))
        return self.net(x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("attack", "deepest"),
    [
        (PGD(steps=3), 3),
        (PGD(steps=3, norm="2", restarts=2, early_stop=0, objective=margin), 3),
        (FGSM(), 3),
        (APGD(steps=3, restarts=2), 4),
    ],
    ids=str,
)
def test_few_functions_stand_between_an_attack_and_the_network(
    attack: Attack, deepest: int
) -> None:
    net, (x, y) = Probe().eval(), images()
    attack(net, x, y, seed())
    net.depths.clear()
    net.net.linear.bias.data[0] += 0.1  # the plan to fold is known: what follows are the steps
    attack(net, x, y, seed())
    assert max(net.depths) <= deepest


# ---------------------------------------------------------------- the papers' steps


def losses_of(net: nn.Module, objective: Any) -> reference.Loss:
    """Give the naive loss of one image."""
    of_head = reference.margin if get_loss(objective) is margin else reference.cross_entropy

    def loss(x: Tensor, label: int) -> Tensor:
        if objective is get_loss(objective):
            return of_head(net(x)[0], label)
        answer = net.probed(x)
        probes = [p[0] for p in answer.probes.values()]
        if isinstance(objective, ProbeLoss):
            return of_head(probes[int(objective.gate) - 1], label)
        return reference.joint_loss(answer.logits[0], probes, label, objective.beta, of_head)

    return loss


NAIVE = [(plain, cross_entropy), (gated, cross_entropy), (gated, Joint()), (gated, Joint(0.5))]
naive = pytest.mark.parametrize(
    ("make", "objective"), NAIVE, ids=["plain", "cifs", "cifs-joint", "cifs-joint0.5"]
)
OF_HEADS = {
    "cw": margin,
    "cw-joint0": Joint(0, loss=margin),
    "cw-joint2": Joint(2, loss=margin),
    "cw-jointinf": Joint(float("inf"), loss=margin),
    "probe1": ProbeLoss(1),
    "cw-probe2": ProbeLoss(2, loss=margin),
}


@naive
@norms
def test_pgd_takes_the_papers_steps_exactly(
    make: Callable[[], nn.Module], objective: Any, norm: str
) -> None:
    net, (x, y) = make().double(), images(4, dtype=torch.float64)
    eps, step, steps = (0.05, 0.02, 4) if norm == "inf" else (0.6, 0.25, 4)
    attack = PGD(eps=eps, step=step, steps=steps, norm=norm, objective=objective)
    starts = reference.random_starts(x, eps, norm, seed(3))
    papers = reference.pgd(
        losses_of(net, objective), x, y, eps=eps, step=step, steps=steps, norm=norm, starts=starts
    )
    torch.testing.assert_close(attack(net, x, y, seed(3)), papers, rtol=0, atol=1e-12)


@naive
@norms
def test_fgsm_takes_the_papers_step_exactly(
    make: Callable[[], nn.Module], objective: Any, norm: str
) -> None:
    net, (x, y) = make().double(), images(4, dtype=torch.float64)
    papers = reference.fgsm(losses_of(net, objective), x, y, 0.1, norm)
    torch.testing.assert_close(
        FGSM(eps=0.1, norm=norm, objective=objective)(net, x, y), papers, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", OF_HEADS)
def test_attacks_on_other_heads_take_the_naive_steps(name: str) -> None:
    """PGD and FGSM on the joint loss and on probes, of cross-entropy and of the margin."""
    net, (x, y), objective = gated().double(), images(4, dtype=torch.float64), OF_HEADS[name]
    eps, step, steps, loss = 0.05, 0.02, 4, losses_of(net, objective)
    options = {"eps": eps, "step": step, "steps": steps}
    wanted = reference.pgd(loss, x, y, norm="inf", starts=x - x, **options)
    made = PGD(random_start=False, objective=objective, **options)(net, x, y)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)
    wanted = reference.fgsm(loss, x, y, eps, "inf")
    made = FGSM(eps=eps, objective=objective)(net, x, y)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)


def predictions(net: nn.Module) -> Callable[[Tensor], int]:
    return lambda x: int(net(x.unsqueeze(0)).argmax(1))


@torch.no_grad()
def undecided(net: Any, x: Tensor) -> nn.Module:
    """Take the mean logits out of a network's, so that it is sure of no image."""
    last = net.linear if hasattr(net, "linear") else net.cnn.linear
    last.bias -= net(x).mean(0)
    return net


@naive
@norms
@pytest.mark.parametrize("tau", [0, 2])
def test_early_stop_follows_the_papers_algorithm(
    make: Callable[[], nn.Module], objective: Any, norm: str, tau: int
) -> None:
    x, _ = images(8, dtype=torch.float64)
    net = undecided(make().double(), x)
    y = net(x).argmax(1)
    y[-1] = (
        y[-1] + 1
    ) % CLASSES  # one image is misclassified from the start, others on the way, or never
    eps, step, steps = (0.5, 0.01, 6) if norm == "inf" else (5.0, 0.06, 6)
    options = {"eps": eps, "step": step, "steps": steps, "norm": norm}
    papers = reference.friendly_pgd(
        losses_of(net, objective),
        predictions(net),
        x,
        y,
        tau=tau,
        starts=torch.zeros_like(x),
        **options,
    )
    attack = PGD(**options, objective=objective, random_start=False)
    torch.testing.assert_close(
        replace(attack, early_stop=tau)(net, x, y), papers, rtol=0, atol=1e-6
    )
    stopped = distance(attack(net, x, y), papers, "inf") > 1e-6
    assert stopped[:-1].any()
    assert stopped[-1]
    assert not stopped.all()


def test_early_stop_asks_about_the_images_that_are_left_only() -> None:
    net, (x, _) = plain(), images(8)
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % CLASSES
    asked: list[int] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        asked.append(len(x))
        return cross_entropy(model, x, y)

    PGD(eps=1e-4, steps=4, early_stop=1, objective=objective)(net, x, y, seed())
    assert asked == [8, 8, 5, 5]
    asked.clear()
    wrong = PGD(eps=0.1, steps=4, early_stop=0, random_start=False, objective=objective)(
        net, x, (y + 1) % 2 + 3, seed()
    )
    assert asked == [8]
    assert torch.equal(wrong, x)


def test_early_stop_takes_no_forward_pass_of_its_own() -> None:
    net, (x, y), passes = plain(), images(), []
    PGD(steps=1)(net, x, y, seed())
    net.register_forward_hook(lambda *_: passes.append(1))
    PGD(steps=1)(net, x, y, seed())
    before = len(passes)
    PGD(eps=1e-4, steps=5, early_stop=5)(net, x, y, seed())
    assert len(passes) - before == 5


@dataclass
class Apart:
    """How far the logits are from others, a row an image: an objective that knows its batch."""

    natural: Tensor

    def __call__(self, model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return (
            (model(1 * x) - self.natural).square().sum(1)
        )  # nor does the network get the very images

    def rows(self, indices: Tensor) -> "Apart":
        return Apart(self.natural[indices])


def test_early_stop_narrows_an_objective_that_knows_its_batch() -> None:
    net, (x, y) = plain().double(), images(8, dtype=torch.float64)
    options = {"eps": 0.15, "step": 0.03, "steps": 5, "early_stop": 0}
    with torch.no_grad():
        natural = net(x)
    found = PGD(**options, objective=Apart(natural))(net, x, y, seed())
    alone = [
        PGD(**options, objective=Apart(natural[i : i + 1]))(
            net, x[i : i + 1], y[i : i + 1], generator
        )
        for generator in [seed()]
        for i in range(8)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-9)


# ---------------------------------------------------------------- early stop and restarts


@naive
@norms
@torch.no_grad()
def test_later_restarts_are_for_images_that_no_earlier_one_has_broken(
    make: Callable[[], nn.Module], objective: Any, norm: Any
) -> None:
    x, _ = images(8, dtype=torch.float64)
    net = undecided(make().double(), x)
    y = net(x).argmax(1)
    eps, step, steps = (0.03, 0.01, 3) if norm == "inf" else (0.3, 0.1, 3)
    attack = PGD(
        eps=eps, step=step, steps=steps, norm=norm, objective=objective, early_stop=0, restarts=4
    )
    loss, predicts = losses_of(net, objective), predictions(net)
    starts = attack.get_random_starts(x, seed(1)) - x
    options: dict[str, Any] = {"eps": eps, "step": step, "steps": steps, "norm": norm}
    with torch.enable_grad():
        runs = [
            reference.friendly_pgd(loss, predicts, x, y, tau=0, starts=start, **options)
            for start in starts
        ]
    at_run = []
    found = attack(net, x, y, seed(1))
    for i, label in enumerate(y.tolist()):
        breaks = [r for r in range(4) if predicts(runs[r][i]) != label]
        best = (
            breaks[0]
            if breaks
            else max(range(4), key=lambda r: float(loss(runs[r][i].unsqueeze(0), label)))
        )
        torch.testing.assert_close(found[i], runs[best][i], rtol=0, atol=1e-6)
        at_run.append(bool(breaks))
    assert any(at_run)
    assert not all(at_run)


def test_images_broken_in_one_restart_cost_the_next_ones_nothing() -> None:
    net, (x, _) = plain(), images(8)
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % CLASSES
    asked: list[int] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        asked.append(len(x))
        return cross_entropy(model, x, y)

    PGD(eps=1e-4, steps=2, restarts=3, early_stop=0, objective=objective)(net, x, y, seed())
    # Two steps, of which the first finds the broken ones; then which point of an image is best.
    assert asked == [8, 5, 8, 5, 5, 5, 5, 5, 5]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(["inf", "2"]), st.integers(1, 3), st.booleans())
def test_early_stop_loses_no_image_that_the_whole_run_breaks(
    number: int, norm: Any, restarts: int, own: bool
) -> None:
    x, net = torch.rand(12, 1, 4, 4, generator=seed(number), dtype=torch.float64), Linear().double()
    y = net(x).argmax(1)
    attack = PGD(
        eps=0.1 if norm == "inf" else 0.3, step=0.02, steps=3, restarts=restarts, norm=norm
    )
    randomness = [make_generators(number, "", range(12)) if own else seed(number) for _ in range(2)]
    whole, early = (
        attack(net, x, y, randomness[0]),
        replace(attack, early_stop=0)(net, x, y, randomness[1]),
    )
    assert not (find_correct(net, early, y) & ~find_correct(net, whole, y)).any()


@pytest.mark.parametrize(
    "attack", [PGD(steps=4, eps=0.1, early_stop=0), APGD(steps=4, eps=0.1)], ids=str
)
def test_what_only_the_folded_network_takes_for_broken_is_attacked_further(
    attack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, _) = plain().double(), images(8, dtype=torch.float64)
    y = net(x).argmax(1)
    wanted = attack(net, x, y, seed())
    assert (wanted - x).abs().max() > 0.09

    @contextmanager
    def lying(model: nn.Module) -> Iterator[None]:
        with model.register_forward_hook(lambda _, __, logits: -logits):
            yield

    monkeypatch.setattr("channelscope.attacks.base.prepare", lambda model, _: [lying(model)])
    torch.testing.assert_close(attack(net, x, y, seed()), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [PGD(eps=0.3, early_stop=0), APGD(eps=0.3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_images_are_returned_as_they_were_seen_broken(attack: Any, dtype: torch.dtype) -> None:
    x, _ = images(16)
    net = undecided(plain(), x).to(dtype)
    x = x.to(dtype)
    y = net(x).argmax(1)
    seen: list[Tensor] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrong = model(x).argmax(1) != y
        seen.extend(x.detach()[wrong].flatten(1).float())
        return cross_entropy(model, x, y)

    found = replace(attack, objective=objective)(net, x, y, seed())
    broken = found[~find_correct(net, found, y)].flatten(1).float()
    assert len(broken)
    assert all(any(torch.equal(row, one) for one in seen) for row in broken)


@dataclass(frozen=True, kw_only=True)
class Shaken(Attack):
    """Draws in every step, while images leave."""

    early_stop = 1

    def run(self, model: nn.Module, search: Search) -> Tensor:
        points = search.start
        for _ in search.steps(4):
            points = search.project(points + self.eps * (search.uniform() - 0.5))
            with search.watch(model, points):
                model(points)
            (points,) = search.drop_broken(points)
        return points


@pytest.mark.parametrize(
    "attack",
    [
        Shaken(eps=0.1),
        Noise(tries=4, eps=0.1),
        PGD(steps=4, eps=0.1, early_stop=0, restarts=2),
        APGD(steps=6, eps=0.1, restarts=2),
        PGD(steps=4, eps=0.5, early_stop=0, norm="2"),
        PGD(steps=2),
    ],
    ids=str,
)
def test_with_a_generator_each_images_are_attacked_alike_in_any_company(attack: Any) -> None:
    x, _ = images(9, dtype=torch.float64)
    net = undecided(plain().double(), x)
    y = net(x).argmax(1)
    whole = attack(net, x, y, make_generators(7, str(attack), range(9)))
    for rows in ([0, 1, 2, 3], [8, 4, 6], [5], [7]):
        found = attack(net, x[rows], y[rows], make_generators(7, str(attack), rows))
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-9)


def opposed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Be largest where the network is surest: what fools it has the smaller objective."""
    return -margin_of(model, x, y)


def runs_of(
    attack: PGD, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """Run each restart of an attack by itself."""
    runs = []
    for start in attack.get_random_starts(x, generator):
        search = Search(x, y, start, attack.eps, attack.norm, attack.objective)
        with torch.enable_grad():
            search.end(attack.run(net, search))
        runs.append(search.images)
    return torch.stack(runs)


@torch.no_grad()
@pytest.mark.parametrize("objective", [cross_entropy, opposed], ids=["cross-entropy", "opposed"])
def test_restarts_keep_per_image_what_fools_else_what_has_the_largest_objective(
    objective: Any,
) -> None:
    net, x = Linear(classes=2).double(), torch.rand(8, 1, 4, 4, dtype=torch.float64)
    net.linear.bias[1] += (
        net(x)[:, 0] - net(x)[:, 1]
    ).median()  # so close that some starts fool, others do not
    y = net(x).argmax(1)
    options = {"eps": 0.2, "step": 0.001, "steps": 1, "objective": objective}
    attack = PGD(**options, restarts=4)
    found, runs = attack(net, x, y, seed()), runs_of(attack, net, x, y, seed())
    fools = torch.stack([net(run).argmax(1) != y for run in runs])
    losses = torch.stack([objective(net, run, y) for run in runs])
    assert (fools.any(0) & ~fools.all(0)).any()
    for i in range(len(x)):
        best = max(range(4), key=lambda r: (bool(fools[r, i]), float(losses[r, i])))
        assert torch.equal(found[i], runs[best, i])


@given(st.integers(0, 2**32), st.sampled_from(["inf", "2"]))
def test_restarts_fool_wherever_one_of_their_runs_does(number: int, norm: Any) -> None:
    x, net = torch.rand(12, 1, 4, 4, generator=seed(number)), Linear()
    y = net(x).argmax(1)
    attack = PGD(eps=0.1 if norm == "inf" else 0.3, step=0.02, steps=1, restarts=5, norm=norm)
    by_runs = torch.stack(
        [~find_correct(net, run, y) for run in runs_of(attack, net, x, y, seed(number))]
    )
    assert torch.equal(~find_correct(net, attack(net, x, y, seed(number)), y), by_runs.any(0))


@pytest.mark.parametrize(
    "attack", [PGD(steps=2), PGD(steps=2, restarts=3), PGD(eps=1.0, steps=2, norm="2")], ids=str
)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_random_starts_are_the_same_whatever_the_batch_size(attack: PGD, size: int) -> None:
    net, (x, y) = plain().double(), images(10, dtype=torch.float64)
    generator = seed()
    parts = [attack(net, x[i : i + size], y[i : i + size], generator) for i in range(0, 10, size)]
    torch.testing.assert_close(torch.cat(parts), attack(net, x, y, seed()))


def test_attack_on_an_image_is_the_same_whatever_the_others() -> None:
    net, (x, y) = plain().double(), images(5, dtype=torch.float64)
    attack = PGD(steps=3, random_start=False)
    together = attack(net, x, y)
    alone = torch.cat([attack(net, x[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@norms
def test_attack_on_a_linear_network_reaches_the_optimum(norm: str) -> None:
    net = Linear(classes=2).double()
    x, y = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    away = (net.linear.weight[1 - y] - net.linear.weight[y]).view_as(x).detach()
    best = away.sign() if norm == "inf" else away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adversarial = PGD(eps=0.2, steps=20, norm=norm, random_start=False)(net, x, y)
    torch.testing.assert_close(adversarial, x + 0.2 * best, rtol=0, atol=1e-9)


def test_default_step_is_the_papers() -> None:
    net, (x, y) = plain(), images()
    for steps, step in ((20, 0.8 / 255), (100, 0.8 / 255), (10, 1.6 / 255), (1, 16 / 255)):
        named = PGD(steps=steps, step=step, random_start=False)(net, x, y)
        torch.testing.assert_close(PGD(steps=steps, random_start=False)(net, x, y), named)


def test_random_start_is_spread_over_the_ball() -> None:
    x, y = (
        torch.full((2000, 1, 1, 2), 0.5, dtype=torch.float64),
        torch.zeros(2000, dtype=torch.int64),
    )
    net = Linear(pixels=2).double()
    for norm, share in (
        ("inf", 0.25),
        ("2", 0.25),
    ):  # half the radius holds a quarter of a square, and of a disc
        starts = PGD(eps=0.4, step=0, steps=1, norm=norm)(net, x, y, seed())
        inside = (distance(x, starts, norm) < 0.2).double().mean()
        assert abs(inside - share) < 0.04
        assert (starts - x).mean(0).abs().max() < 0.03


@norms
def test_normal_start_is_spread_around_the_image_and_projected(norm: Any) -> None:
    net, (x, y) = plain().double(), images(dtype=torch.float64)
    x = 0.4 + 0.2 * x
    noise = reference.normal_starts(x, 0.01, seed(3))
    wide, narrow = (
        PGD(eps=eps, step=0, steps=1, norm=norm, random_start=0.01) for eps in (1.0, 0.01)
    )
    torch.testing.assert_close(wide(net, x, y, seed(3)), x + noise, rtol=0, atol=1e-9)
    projected = torch.stack(
        [reference.project(x[i] + noise[i], x[i], 0.01, norm) for i in range(len(x))]
    )
    torch.testing.assert_close(narrow(net, x, y, seed(3)), projected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "attack",
    [attack for attack in ATTACKS if isinstance(attack, PGD)],
    ids=lambda attack: f"{attack}-{getattr(attack, 'random_start', '')}",
)
def test_skipped_images_leave_the_generator_where_their_attack_would(
    attack: PGD, dtype: torch.dtype
) -> None:
    net, (x, y) = plain().to(dtype), images(5, dtype=dtype)
    attacked, skipped = seed(3), seed(3)
    attack(net, x, y, attacked)
    attack.skip(x[:0], 5, skipped)
    assert torch.equal(attacked.get_state(), skipped.get_state())


def test_parts_of_a_batch_are_attacked_from_the_starts_of_the_whole() -> None:
    net, (x, y) = plain().double(), images(6, dtype=torch.float64)
    attack, generator = PGD(steps=2, restarts=2), seed()
    attack.skip(x, 2, generator)
    torch.testing.assert_close(
        attack(net, x[2:], y[2:], generator), attack(net, x, y, seed())[2:], rtol=0, atol=1e-9
    )
    attack = PGD(eps=0.0)
    untouched = seed()
    attack.skip(x, 2, untouched)
    assert torch.equal(untouched.get_state(), seed().get_state())


def test_starts_come_from_the_generator_alone() -> None:
    net, (x, y) = plain(), images()
    attack = PGD(steps=1)
    assert torch.equal(attack(net, x, y, seed(1)), attack(net, x, y, seed(1)))
    assert not torch.equal(attack(net, x, y, seed(1)), attack(net, x, y, seed(2)))


def test_any_function_of_model_images_and_labels_is_an_objective() -> None:
    net, (x, y) = plain(), images()
    adversarial = PGD(eps=0.3, objective=margin_of)(net, x, y, seed())
    assert (margin_of(net, adversarial, y) > margin_of(net, x, y)).all()


def test_gradients_that_are_no_numbers_move_nothing() -> None:
    def broken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x, y) * torch.tensor([1.0, float("nan"), float("inf")])

    net, (x, y) = plain(), images(3)
    adversarial = FGSM(objective=broken)(net, x, y)
    assert adversarial.isfinite().all()
    assert torch.equal(adversarial[1], x[1])
    assert not torch.equal(adversarial[0], x[0])


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), 255.0])
@pytest.mark.parametrize("attack", [FGSM(), PGD(), PGD(eps=0)], ids=["fgsm", "pgd", "pgd of eps 0"])
def test_images_outside_the_range_are_refused(attack: Attack, value: float) -> None:
    x, y = images()
    x[2, 0, 3, 3] = value
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], without NaN"):
        attack(plain(), x, y)


def test_network_without_gradient_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :CLASSES]

    with pytest.raises(UserError, match="no gradient in its input"):
        FGSM()(Cut(), *images())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": -1e-9}, "eps is a number from 0 up"),
        ({"eps": float("nan")}, "eps is a number from 0 up"),
        ({"eps": float("inf")}, "eps is a number from 0 up"),
        ({"norm": "1"}, "norm is 'inf' or '2', not '1'"),
        ({"steps": 0}, "at least one step"),
        ({"restarts": 0}, "at least one step and one restart"),
        ({"step": -0.1}, "step is a number from 0 up"),
        ({"random_start": -0.1}, "random_start .* from 0 up, not -0.1"),
        ({"random_start": float("nan")}, "random_start .* from 0 up, not nan"),
        ({"early_stop": -1}, "early_stop .* from 0 up, not -1"),
        ({"eps": 8}, r"eps is in \[0, 1\] .*, not 8: write 8/255"),
    ],
    ids=str,
)
def test_impossible_attacks_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PGD(**options)
    if options.keys() <= {"eps", "norm"}:
        with pytest.raises(UserError, match=words):
            FGSM(**options)


# ---------------------------------------------------------------- names


@given(
    st.builds(FGSM, norm=st.sampled_from(["inf", "2"]))
    | st.builds(
        PGD,
        steps=st.integers(1, 999_999),
        restarts=st.integers(1, 9999),
        norm=st.sampled_from(["inf", "2"]),
    ),
    st.sampled_from([0.0, 0.1, 8 / 255]),
)
def test_names_and_attacks_correspond(attack: PGD | FGSM, eps: float) -> None:
    assert parse_attack(str(attack)) == attack
    assert str(parse_attack(str(attack), eps=eps, objective=Joint())) == f"{attack}:joint"
    assert parse_attack(str(attack), eps=eps, norm="2") == replace(attack, eps=eps, norm="2")


@given(
    st.builds(
        PGD, steps=st.integers(1, 999_999), restarts=st.integers(1, 9999), objective=st.just(margin)
    )
    | st.builds(
        APGD,
        steps=st.integers(1, 999_999) | st.just(100),
        restarts=st.integers(1, 9999) | st.just(1),
        objective=st.sampled_from([cross_entropy, dlr, margin]),
    ),
    st.sampled_from(["inf", "2"]),
)
def test_names_that_say_their_objective_correspond_too(attack: PGD | APGD, norm: Any) -> None:
    attack = replace(attack, norm=norm, eps=0.1)
    assert parse_attack(str(attack), eps=0.1, objective=Joint()) == attack


def test_margin_and_auto_pgd_have_the_names_of_the_literature() -> None:
    assert str(PGD(steps=30, objective=margin)) == "cw-30"
    assert str(PGD(steps=30, restarts=2, norm="2", objective=margin)) == "cw-30x2-l2"
    assert str(APGD()) == "apgd-ce"
    assert str(APGD(objective=dlr, norm="2")) == "apgd-dlr-l2"
    assert str(APGD(steps=50, restarts=5)) == "apgd-ce-50x5"
    assert str(APGD(objective=margin, restarts=5)) == "apgd-margin-100x5"
    assert str(APGD(objective=Joint(), steps=50)) == "apgd-ce-50:joint"


def test_joint_and_probe_losses_are_of_what_the_attack_maximises() -> None:
    """C&W on the joint loss takes the margin of every head."""
    assert parse_attack("cw-30:joint2") == PGD(steps=30, objective=Joint(2, loss=margin))
    assert parse_attack("cw-30:probe1") == PGD(steps=30, objective=ProbeLoss(1, loss=margin))
    assert parse_attack("pgd-100:probe1") == PGD(steps=100, objective=ProbeLoss(1))
    assert parse_attack("fgsm:margin:joint0.1") == FGSM(objective=Joint(0.1, loss=margin))
    assert parse_attack("apgd-dlr:joint") == APGD(objective=Joint(loss=dlr))
    sweep: Any = parse_attack("cw-30:joint-sweep")
    assert {part.objective.loss for part in sweep.parts} == {margin}
    with pytest.raises(UserError, match="takes no objective joint"):
        parse_attack("pgd-20:averaged-margin:joint")
    with pytest.raises(UserError, match="one of logits, cross_entropy, margin, dlr"):
        Joint(loss=Joint())


def test_attacks_may_begin_at_the_image_itself() -> None:
    """So do those within others; an attack that draws nothing stays as it is."""
    assert parse_attack("pgd-20:fixed") == PGD(random_start=False)
    assert parse_attack("cw-30:fixed:joint2") == parse_attack("cw-30:joint2:fixed")
    assert parse_attack("fgsm:fixed") == FGSM()
    fixed = PGD(random_start=False)
    assert parse_attack("joint-sweep:detached:fixed") == Detached(attack=JointSweep(attack=fixed))
    for name in ("pgd-20x5:fixed", "apgd-ce:fixed", "square:fixed"):
        with pytest.raises(UserError, match="no random start"):
            parse_attack(name)
    net, (x, y) = gated(), images(4)
    for name in ("pgd-3:fixed", "cw-3:joint2:fixed", "pgd-3:probe1:fixed"):
        attack = parse_attack(name, eps=0.1)
        # Nothing is drawn: without and with generators, of any seed, the images are the same.
        first, second = attack(net, x, y), attack(net, x, y, seed(1))
        assert torch.equal(first, second)
        assert not torch.equal(first, x)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "pgd",
        "pgd-",
        "pgd20",
        "pgd-20x",
        "pgd-x5",
        "PGD-20",
        "fgsm-20",
        "pgd-20-l1",
        "pgd--1",
        " fgsm",
        "cw",
        "cw-",
        "apgd-x5",
        "apgd-cex5",
        "apgd-ce-x5",
        "apgd-dlr-l1",
        "pgd-20:",
        "pgd-20:other",
        "pgd-20:joint:joint-sweep:joint",
        "square:joint",
        "pgd-20:frozen-label:from-other",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"There is no attack '{name}'") as caught:
        parse_attack(name)
    assert "pgd-100x5" in str(caught.value)


@pytest.mark.parametrize("name", ["pgd-0", "pgd-20x0", "cw-0", "apgd-ce-0", "apgd-ce-50x0"])
def test_names_of_impossible_attacks_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="at least one step"):
        parse_attack(name)


CHANGED = [
    JointSweep(attack=PGD()),
    JointSweep(attack=APGD(steps=50, norm="2", eps=0.1)),
    Detached(attack=PGD(steps=7)),
    Detached(attack=JointSweep(attack=FGSM())),
    MaskFrozen(attack=PGD(restarts=2)),
    MaskFrozen(attack=PGD(), at="label"),
    PGD(objective=ProbeLoss("layer4.0")),
    PGD(objective=ProbeLoss(2, loss=margin), random_start=False),
    PGD(objective=Joint(0.1, loss=dlr), steps=7, random_start=False, norm="2"),
    FGSM(objective=ProbeLoss("layer4.0", loss=margin)),
    APGD(objective=Joint(loss=margin), restarts=2),
    Detached(attack=JointSweep(attack=PGD(random_start=False, objective=margin))),
    PGD(objective=dlr, steps=10, early_stop=0),
    APGD(objective=Joint(0.5)),
    FGSM(objective=Joint(float("inf"))),
    PGD(objective=Averaged(objective=margin)),
    PGD(eps=0.2, steps=50, objective=Estimated(objective=margin, spread=0.1)),
    Noise(tries=30, norm="2"),
    Square(queries=1000, norm="2", eps=0.5),
]


@pytest.mark.parametrize("attack", CHANGED, ids=str)
def test_whatever_an_attack_prints_is_parsed(attack: Any) -> None:
    assert parse_attack(str(attack), eps=attack.eps) == attack


def test_change_alone_is_one_of_pgd_20() -> None:
    assert parse_attack("joint-sweep", eps=0.1) == JointSweep(attack=PGD(eps=0.1))
    assert parse_attack("detached-l2") == Detached(attack=PGD(norm="2"))


@pytest.mark.parametrize(
    ("name", "close"),
    [("pdg-20", "pgd-20"), ("sqare", "square"), ("pgd-20:joint-swep", ":joint-sweep")],
)
def test_close_names_are_suggested(name: str, close: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{close}'"):
        parse_attack(name)


def test_attack_is_entered_where_it_is_written() -> None:
    template = "stay-TIMES[-l2]"
    try:

        @register(template, "goes nowhere", cost=lambda stay: 2 * stay.times)
        @dataclass(frozen=True, kw_only=True)
        class Stay(Attack):
            eps: float = 0.1
            norm: Any = "inf"
            times: int = 3

            def run(self, model: nn.Module, search: Search) -> Tensor:
                return search.x

        attack = parse_attack("stay-5-l2", eps=0.3)
        assert attack == Stay(eps=0.3, norm="2", times=5)
        assert str(attack) == attack_name(attack) == "stay-5-l2"
        assert estimate_cost(attack) == 10
        assert "goes nowhere (stay-3: 6 passes)" in describe_attacks()
    finally:
        registry.ATTACKS.pop(template, None)
    with pytest.raises(UserError, match="There is no attack 'stay-5'"):
        parse_attack("stay-5")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("pgd-STEPS[xRESTARTS][-EARLY_STOP][-l2]", "that of another attack, 'pgd-STEPS"),
        ("cw-STEPS", "that of another attack, 'cw-STEPS"),
        ("pgd[-STEPS]-STOP", r"needs a field 'stop', which Stay does not have: capitals stand"),
        ("stay-STEP", "needs a field 'step'"),
        ("stay-STEPS-STEPS", "is no template"),
        ("stay[-STEPS", "is no template"),
        ("stay-TRIES", "is not parsed with its defaults, 'stay-None': a field outside brackets"),
        ("stay-STEPS:far", "is not parsed with its defaults, 'stay-3:far'"),
        (":detached", "that of another attack, ':detached'"),
    ],
)
def test_names_that_would_not_be_parsed_as_their_attack_are_refused(
    template: str, words: str
) -> None:
    before = dict(registry.ATTACKS)
    with pytest.raises(ValueError, match=words):

        @register(template, "goes nowhere", cost=1)
        @dataclass(frozen=True, kw_only=True)
        class Stay(Attack):
            steps: int = 3
            restarts: int = 1
            early_stop: int | None = None
            tries: int | None = None

    assert before == registry.ATTACKS


def test_a_name_says_why_it_takes_neither_an_objective_nor_a_norm() -> None:
    template = "stay-TIMES"
    try:

        @register(template, "goes nowhere", cost=1)
        @dataclass(frozen=True, kw_only=True)
        class Stay(Attack):
            times: int = 3

            def run(self, model: nn.Module, search: Search) -> Tensor:
                return search.x

        for name in ("stay-5:margin", "stay-5:joint"):
            with pytest.raises(UserError, match=f"no attack '{name}': stay-5 takes no objective"):
                parse_attack(name)
        with pytest.raises(UserError, match="no attack 'stay-5-l2': stay-5 has no -l2 in its name"):
            parse_attack("stay-5-l2")
    finally:
        registry.ATTACKS.pop(template, None)


def test_the_docstrings_example_works() -> None:
    try:
        Away = run_example(channelscope.attacks)["Away"]
        attack = parse_attack("away-4-l2:margin", eps=0.5)
        assert attack == Away(steps=4, norm="2", eps=0.5, objective=margin)
        net, (x, y) = plain(), images()
        assert_inside(x, attack(net, x, y, seed()), attack)
    finally:
        registry.ATTACKS.pop("away-STEPS[-l2]", None)


def test_every_module_of_attacks_is_found() -> None:
    package = channelscope.attacks
    modules = {f"{package.__name__}.{module.name}" for module in iter_modules(package.__path__)}
    assert modules <= sys.modules.keys()


def test_costs_are_forward_and_backward_passes() -> None:
    costs = {"fgsm": 1, "pgd-20x5": 100, "apgd-ce": 100, "joint-sweep": 7 * 20, "noise-30": 10}
    assert {name: estimate_cost(parse_attack(name)) for name in costs} == costs
    assert estimate_cost(lambda *_: _) is None  # type: ignore[arg-type]


def test_function_as_objective_gives_its_own_name() -> None:
    assert str(PGD(objective=margin_of)) == "pgd-20:margin_of"


def test_early_stop_is_named_as_in_the_paper() -> None:
    assert str(PGD(steps=10, early_stop=1)) == "pgd-10-1"
    assert str(PGD(steps=10, early_stop=0, norm="2", objective=Joint())) == "pgd-10-0-l2:joint"


def test_attacks_are_values() -> None:
    assert len({PGD(), PGD(steps=20), FGSM(), FGSM(eps=0.1)}) == 3
    with pytest.raises(AttributeError):
        PGD().eps = 0.1


def test_answers_that_are_no_numbers_are_never_correct() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [1.0, float("nan")], [0.0, 1.0]])

    assert find_correct(Fixed(), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)).tolist() == [
        True,
        False,
        False,
        False,
    ]


# ---------------------------------------------------------------- other libraries

EPS = 0.12


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Train a small network on the digits for a few epochs; give it with the test images."""
    digits = load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(4):
            order = torch.randperm(len(digits.train))
            for x, y in digits.train.batches(64, indices=order):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
    x, y = next(digits.test.batches(200))
    assert find_correct(net.eval(), x, y).float().mean() > 0.9
    return net, x, y


def robust(net: nn.Module, adversarial: Tensor, y: Tensor) -> float:
    return float(find_correct(net, adversarial, y).float().mean())


Oracle = Callable[..., Tensor]


def by_torchattacks(net: nn.Module, x: Tensor, y: Tensor, attack: PGD | FGSM) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    if isinstance(attack, FGSM):
        return torchattacks.FGSM(net, eps=attack.eps)(x, y)
    options = {"eps": attack.eps, "steps": attack.steps, "random_start": attack.random_start}
    if attack.norm == "2":
        return torchattacks.PGDL2(net, alpha=attack.step, **options)(x, y)
    return torchattacks.PGD(net, alpha=attack.step, **options)(x, y)


def by_foolbox(net: nn.Module, x: Tensor, y: Tensor, attack: PGD | FGSM) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    known = foolbox.attacks
    if isinstance(attack, FGSM):
        theirs = (
            known.LinfFastGradientAttack if attack.norm == "inf" else known.L2FastGradientAttack
        )()
    else:
        make = known.LinfPGD if attack.norm == "inf" else known.L2PGD
        theirs = make(
            abs_stepsize=attack.step, steps=attack.steps, random_start=attack.random_start
        )
    return theirs(
        foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=attack.eps
    )[1]


oracles = pytest.mark.parametrize(
    "oracle", [by_torchattacks, by_foolbox], ids=["torchattacks", "foolbox"]
)
DETERMINISTIC = [
    FGSM(eps=EPS),
    PGD(eps=EPS, step=EPS / 10, steps=20, random_start=False),
    PGD(eps=0.7, step=0.07, steps=20, norm="2", random_start=False),
]
# In L2 each library begins at random in its own way.
RANDOM = [PGD(eps=EPS, step=EPS / 10, steps=20)]


@oracles
@pytest.mark.parametrize("attack", DETERMINISTIC, ids=str)
def test_attack_without_randomness_finds_what_other_libraries_find(
    attack: PGD | FGSM, oracle: Oracle, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = trained
    ours, theirs = attack(net, x, y), oracle(net, x, y, attack)
    # Rounding may turn the sign of a gradient next to 0: an image in a hundred may differ.
    same = distance(ours, theirs, "inf") < 1e-5
    assert same.float().mean() >= 0.99
    assert abs(robust(net, ours, y) - robust(net, theirs, y)) <= 0.005
    assert 0.02 < robust(net, ours, y) < 0.9  # neither hopeless nor harmless


@oracles
@pytest.mark.parametrize("attack", RANDOM, ids=str)
def test_robust_accuracy_is_that_which_other_libraries_find(
    attack: PGD, oracle: Oracle, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = trained
    ours, theirs = (
        robust(net, attack(net, x, y, seed()), y),
        robust(net, oracle(net, x, y, attack), y),
    )
    assert abs(ours - theirs) < 0.03
    assert 0.02 < ours < 0.9


@pytest.mark.parametrize("attack", [*DETERMINISTIC, *RANDOM], ids=str)
def test_folding_changes_nothing_but_rounding(
    attack: PGD | FGSM, trained: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = trained
    folded = attack(net, x, y, seed())
    monkeypatch.setattr("channelscope.attacks.base.prepare", lambda *_: [nullcontext()])
    plainly = attack(net, x, y, seed())
    assert (distance(folded, plainly, "inf") < 1e-5).float().mean() >= 0.99
    assert robust(net, folded, y) == robust(net, plainly, y)


def test_margin_attack_is_as_strong_as_foolboxs(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    foolbox, eagerpy = pytest.importorskip("foolbox"), pytest.importorskip("eagerpy")

    class OnMargin(foolbox.attacks.LinfPGD):
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            return lambda x: eagerpy.astensor(
                margin_of(lambda x: model(eagerpy.astensor(x)).raw, x.raw, labels.raw).sum()
            )

    net, x, y = trained
    attack = PGD(eps=EPS, step=EPS / 10, steps=30, random_start=False, objective=margin)
    theirs = OnMargin(abs_stepsize=EPS / 10, steps=30, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    by_theirs = robust(net, theirs(model, x, y, epsilons=EPS)[1], y)
    for ours in (attack, replace(attack, early_stop=0)):
        assert abs(robust(net, ours(net, x, y), y) - by_theirs) <= 0.005
    assert 0.02 < by_theirs < 0.9


@pytest.mark.parametrize(
    ("objective", "loss"), [(cross_entropy, "ce"), (dlr, "dlr")], ids=["ce", "dlr"]
)
def test_auto_pgd_is_as_strong_as_the_authors(
    objective: Any, loss: str, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    library = pytest.importorskip("pyautoattack.autopgd_base")
    net, x, y = trained
    eps = 0.07
    with torch.random.fork_rng(devices=[]):
        theirs = library.APGDAttack(
            net, n_iter=50, norm="Linf", eps=eps, loss=loss, device="cpu"
        ).perturb(x, y)
    by_theirs = robust(net, theirs, y)
    assert (
        abs(
            robust(net, APGD(eps=eps, steps=50, objective=objective)(net, x, y, seed()), y)
            - by_theirs
        )
        <= 0.005
    )
    assert 0.02 < by_theirs < 0.9


def test_more_steps_and_larger_balls_are_stronger(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    net, x, y = trained
    by_steps = [
        robust(net, PGD(eps=EPS, steps=n, random_start=False)(net, x, y), y) for n in (1, 20)
    ]
    by_eps = [
        robust(net, PGD(eps=eps, steps=10)(net, x, y, seed()), y) for eps in (0.0, 0.05, 0.1, 0.2)
    ]
    assert by_steps[0] > by_steps[1]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[0] == robust(net, x, y)
