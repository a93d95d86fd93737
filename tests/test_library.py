"""AutoAttack and its components: what the library itself would find, checked."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelscope.attacks.library as library_module
from channelscope.attacks import ImageGenerators, find_correct
from channelscope.attacks.adaptive import run_cascade
from channelscope.attacks.library import (
    AttackWarning,
    AutoAttack,
    Component,
    LibraryAttack,
    Square,
    collect_warnings,
)
from channelscope.data import load
from channelscope.errors import UserError
from channelscope.layers.hooks import get_logits
from helpers.networks import (
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
    unchanged,
)

pytestmark = pytest.mark.slow

NAMES: list[Component] = ["apgd-ce", "apgd-t", "fab-t", "square"]
PARTS = [
    LibraryAttack(name=name, norm=norm, eps=eps, iterations=20)
    for norm, eps in (("inf", 0.1), ("2", 0.6))
    for name in NAMES
]
parts = pytest.mark.parametrize("attack", PARTS, ids=str)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "cifs": gated,
    "dict": lambda: Returns(FORMS["dict"]),
    "called twice": Twice,
}


def fitted(net: nn.Module, steps: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a network of digits for a moment; return it, images and labels, one of them wrong."""
    data = load("digits").test
    x, y = data.images[:100].float() / 255, data.labels[:100].long()
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    labels = y[:12].clone()
    labels[3] = (labels[3] + 1) % 10
    return net.eval(), x[:12], labels


def perceptron() -> nn.Module:
    """Make a network with nothing to fold, so that all its numbers are the library's own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


def raw(net: nn.Module, x: Tensor, y: Tensor, attack: AutoAttack, seed: int) -> Tensor:
    """Run the library as its authors do, and give a debugger or the coverage its trace back."""
    trace = sys.gettrace()
    try:
        library = library_of(attack, net, seed)
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = 4
        library.square.n_queries = 300
        adversarial, _ = library.run_standard_evaluation(x, y, batch_size=len(x))
    finally:
        sys.settrace(trace)
    return adversarial


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(net: nn.Module, x: Tensor) -> Tensor:
    """Take the network's own answers for labels, so that each image can be broken."""
    return get_logits(net.eval()(x)).argmax(1).detach()


def radius(x: Tensor, adversarial: Tensor, norm: str) -> float:
    delta = (adversarial.double() - x.double()).flatten(1)
    return float((delta.abs() if norm == "inf" else delta.norm(dim=1)).max())


# ---------------------------------------------------------------- as the library itself


def library_of(attack: AutoAttack, net: nn.Module, seed: int | None = None) -> Any:
    """Make the library's own AutoAttack, its standard version."""
    from pyautoattack import AutoAttack as Raw

    return Raw(net, eps=attack.eps, norm={"inf": "Linf", "2": "L2"}[attack.norm], seed=seed)


@pytest.mark.parametrize("attack", [AutoAttack(eps=0.1), AutoAttack(eps=0.6, norm="2")], ids=str)
def test_settings_are_those_of_the_standard_version(attack: AutoAttack) -> None:
    library = library_of(attack, perceptron())
    made = {
        part.name: vars(part._make(nn.Identity(), torch.device("cpu"), 10, 0))
        for part in attack.parts
    }
    assert list(made) == library.attacks_to_run
    # What AutoAttack sets as it runs: the loss of APGD, and that FAB is targeted.
    library.apgd.loss, library.fab.targeted = "ce", True
    theirs = (library.apgd, library.apgd_targeted, library.fab, library.square)
    own = {"model", "predict", "seed", "logger", "device"}
    for settings, other in zip(made.values(), theirs, strict=True):
        assert settings.keys() == vars(other).keys()
        assert {name: settings[name] for name in settings.keys() - own} == {
            name: value for name, value in vars(other).items() if name not in own
        }


@pytest.mark.parametrize(
    ("attack", "seed"), [(AutoAttack(eps=0.1), 0), (AutoAttack(eps=0.6, norm="2"), 3)], ids=str
)
def test_agrees_with_the_library_image_by_image(
    monkeypatch: pytest.MonkeyPatch, attack: AutoAttack, seed: int
) -> None:
    monkeypatch.setattr(library_module, "_TARGETS", 4)  # to save time, here and there
    net, x, y = fitted(perceptron())
    wanted = raw(net, x, y, attack, seed)
    *parts, square = attack.parts
    parts.append(replace(square, iterations=300))
    found = run_cascade(parts, net, x, y, seeded(seed) if seed else None)
    broken = (wanted != x).flatten(1).any(1)
    assert 2 <= broken.sum() <= 9  # some resist
    assert torch.equal((found != x).flatten(1).any(1), broken)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if attack.norm == "inf" else 1e-6)


@parts
def test_component_agrees_with_the_library_on_a_folded_network(attack: LibraryAttack) -> None:
    attack = replace(attack, eps=3 * attack.eps)
    net, x, y = fitted(convolutional())
    right = find_correct(net, x, y)
    x, y = x[right], y[right]
    with torch.no_grad():
        library = attack._make(lambda images: net(images).clone(), x.device, 10, 5)
        broken = ~find_correct(net, library.perturb(x, y), y)
    assert broken.any()
    assert torch.equal(~find_correct(net, attack(net, x, y, seeded(5)), y), broken)


# ---------------------------------------------------------------- whatever the network


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@parts
def test_network_and_randomness_are_left_as_found(
    attack: LibraryAttack, make: Callable[[], nn.Module]
) -> None:
    net, (x, _) = make(), images()
    y = answers(net, x)
    before, numpy = x.clone(), np.random.get_state()  # noqa: NPY002
    with unchanged(mixed(net)), collect_warnings():
        adversarial = attack(net, x, y)
    assert torch.equal(x, before)
    assert all(map(np.array_equal, numpy, np.random.get_state()))  # noqa: NPY002
    assert adversarial.shape == x.shape
    assert not adversarial.requires_grad
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert radius(x, adversarial, attack.norm) <= attack.eps + 1e-6
    changed = (adversarial != x).flatten(1).any(1)
    assert torch.equal(changed, ~find_correct(net.eval(), adversarial, y))


def test_network_is_left_as_found_after_an_exception() -> None:
    net = mixed(TrainsItself())
    x, y = images()
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        Square(queries=3)(net, x, y)


def test_trace_of_a_debugger_is_kept() -> None:
    trace = sys.gettrace()

    def watch(*_: Any) -> None: ...

    try:
        sys.settrace(watch)
        AutoAttack(eps=0.5)(*_easy())
        kept = sys.gettrace()
    finally:
        sys.settrace(trace)
    assert kept is watch


def test_gpu_yet_to_be_used_gets_the_seed_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    example = _easy()
    torch.manual_seed(77)
    Square(eps=0.5)(*example)
    assert seeds[-2:] == [0, 77]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@parts
def test_works_where_gradients_are_off(attack: LibraryAttack, context: Callable[[], Any]) -> None:
    net, x, y = _easy()
    wanted = attack(net, x, y)
    with context():
        assert torch.equal(attack(net, x.clone(), y.clone()), wanted)
    assert not torch.equal(wanted, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@parts
def test_ball_and_verdict_hold_in_every_precision(
    attack: LibraryAttack, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    net, x = Linear(64, 5).to(dtype), images(12)[0].to(dtype)
    y = answers(net, x)
    with collect_warnings():
        adversarial = attack(net, x, y)
    assert adversarial.dtype == dtype
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert radius(x, adversarial, attack.norm) <= attack.eps + 1e-6
    changed = (adversarial != x).flatten(1).any(1)
    assert changed.any()
    assert torch.equal(changed, ~find_correct(net, adversarial, y))


def test_seed_is_the_generators_own_and_its_state_plays_no_part() -> None:
    net, x, y = fitted(perceptron())
    attack = Square(eps=0.2, queries=30)
    generator = seeded(4)
    first = attack(net, x, y, generator)
    torch.rand(3, generator=generator)
    assert torch.equal(attack(net, x, y, generator), first)
    own = ImageGenerators([seeded(4), *(seeded(n) for n in range(11))])
    assert torch.equal(attack(net, x, y, own), first)
    assert not torch.equal(attack(net, x, y, seeded(5)), first)
    assert torch.equal(attack(net, x, y), attack(net, x, y, seeded(0)))


@pytest.mark.parametrize("attack", [AutoAttack(eps=0), Square(eps=0), PARTS[0]], ids=str)
def test_nothing_to_attack(attack: AutoAttack) -> None:
    net, x, y = _easy()
    some = slice(0) if attack.eps else slice(None)
    found = attack(net, x[some], y[some])
    assert torch.equal(found, x[some])
    assert attack.eps or found.data_ptr() != x.data_ptr()


# ---------------------------------------------------------------- what the library says is checked


class Pixels(nn.Module):
    """Takes an image's pixels, doubled, for the logits of its classes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1)


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, 5).float().view(-1, 1, 1, 5)


class Scripted:
    """Stands in for the library's attacks: returns an answer, and keeps what it gets."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer, self.given = answer, list[Tensor]()

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        assert len(x) == len(y)
        self.given.append(x)
        return self.answer(x)


def scripted(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tensor], Tensor]) -> Scripted:
    script = Scripted(answer)
    monkeypatch.setattr(LibraryAttack, "_make", lambda *_: script)
    return script


def test_components_get_the_images_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripted(monkeypatch, lambda x: torch.cat([x[:1].roll(1, -1), x[1:]]))
    shown, y = (
        torch.tensor([0, 1, 2, 3, 4, 0]),
        torch.tensor([0, 3, 2, 3, 4, 0]),
    )  # the second is wrong anyhow
    found = AutoAttack(eps=1)(Pixels(), one_hot(shown), y)
    given = [[0, 2, 3, 4, 0], [2, 3, 4, 0], [3, 4, 0], [4, 0]]
    assert [x.flatten(1).argmax(1).tolist() for x in script.given] == given
    assert found.flatten(1).argmax(1).tolist() == [1, 1, 3, 4, 0, 0]


def test_all_broken_ends_the_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripted(monkeypatch, lambda x: x.roll(1, -1))
    AutoAttack(eps=1)(Pixels(), one_hot(torch.arange(5)), torch.arange(5))
    assert len(script.given) == 1


@pytest.mark.parametrize(
    "factor", [0.9, -4, torch.nan], ids=["in the ball", "outside", "not a number"]
)
def test_network_decides_what_is_broken(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    scripted(monkeypatch, lambda x: x * factor)
    y = torch.arange(5)
    found = LibraryAttack(name="apgd-ce", eps=0.25)(Pixels(), one_hot(y), y)
    assert torch.equal(found, one_hot(y))


def test_overshoot_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda x: 50 * (0.55 - x))
    y = torch.arange(5)
    x = 0.5 + 0.1 * one_hot(y)
    found = LibraryAttack(name="apgd-ce", eps=0.125)(Pixels(), x, y)
    torch.testing.assert_close(found, 0.625 - 0.15 * one_hot(y))


# ---------------------------------------------------------------- refusals


def _easy() -> tuple[nn.Module, Tensor, Tensor]:
    """Make a network that is broken at once, and images."""
    torch.manual_seed(0)
    net, x = Linear(64, 5), images()[0]
    return net, x, answers(net, x)


def test_too_few_classes_are_refused() -> None:
    x = torch.rand(3, 1, 4, 4)
    for attack in (AutoAttack(), LibraryAttack(name="apgd-t")):
        with pytest.raises(
            UserError, match=r"compares four logits, and this network has 3: attack it with square"
        ):
            attack(Linear(16, 3), x, torch.tensor([0, 1, 2]))
    for attack in (Square(), LibraryAttack(name="apgd-ce")):
        with pytest.raises(UserError, match="a single class"):
            attack(Linear(16, 1), x, torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("name", ["square", "fab-t", "apgd-ce"])
def test_two_classes_suffice(name: Any) -> None:
    net, x = Linear(64, 2), torch.rand(4, 1, 8, 8)
    y = answers(net, x)
    found = LibraryAttack(name=name, eps=1, iterations=20)(net, x, y)
    assert not find_correct(net, found, y).any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LibraryAttack(name="apgd-dlr"), "it has no 'apgd-dlr'"),  # type: ignore[arg-type]
        (lambda: LibraryAttack(name="fab-t", iterations=0), "at least one iteration"),
        (lambda: Square(queries=0), "at least one query"),
        (lambda: Square(eps=-1), "a number from 0 up"),
        (lambda: AutoAttack(norm="1"), "norm is 'inf' or '2'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make: Callable[[], Any], sentence: str, unchecked: None
) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_images_outside_the_range_are_refused() -> None:
    net, x, y = _easy()
    for attack in (AutoAttack(), Square()):
        with pytest.raises(UserError, match=r"Images must lie in \[0, 1\]"):
            attack(net, x + 1, y)


def test_missing_package_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    for make in (AutoAttack, Square, lambda: LibraryAttack(name="apgd-ce")):
        with pytest.raises(UserError, match=r"pip install 'channelscope\[autoattack\]'"):
            make()


class Detached(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach())


def test_network_without_a_gradient_is_for_square_alone() -> None:
    net, x, y = _easy()
    with pytest.raises(UserError, match=r"no gradient in its input .*: attack it with square"):
        AutoAttack(eps=0.5)(Detached(net), x, y)
    assert torch.equal(Square(eps=0.5)(Detached(net), x, y), Square(eps=0.5)(net, x, y))


# ---------------------------------------------------------------- doubts


class Then(nn.Module):
    """Does something to a network's logits."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.then = plain(), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.net(x))


class TakesItsGradient(nn.Module):
    """Adds a gradient that torch.func takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + torch.func.grad(lambda z: (z**2).sum())(logits)


DOUBTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "randomised": (lambda: Then(lambda z: z + 0.01 * torch.randn_like(z)), "differently each time"),
    "probabilities": (lambda: Then(lambda z: z.softmax(1)), "returns probabilities"),
    "dynamic": (CallsAutograd, "takes gradients in its forward pass"),
    "torch.func": (TakesItsGradient, "takes gradients in its forward pass"),
    "flat": (lambda: Then(lambda z: z.round(decimals=3)), "zero"),
}


@pytest.mark.parametrize(("make", "sentence"), DOUBTS.values(), ids=DOUBTS.keys())
def test_reason_to_doubt_is_given_once(make: Callable[[], nn.Module], sentence: str) -> None:
    net, (x, _) = make().eval(), images()
    y = answers(net, x)
    attack = LibraryAttack(name="apgd-ce", iterations=2)
    with collect_warnings() as found:
        for _ in range(2):
            attack(net, x, y)
    assert len(found) == 1
    assert sentence in found[0]
    with pytest.warns(AttackWarning, match=sentence):
        attack(net, x, y)


def test_sound_network_raises_no_doubts() -> None:
    with collect_warnings() as found:
        AutoAttack(eps=0.5)(*_easy())
    assert found == []


def test_square_needs_no_gradients_and_does_not_ask_for_them() -> None:
    make, _ = DOUBTS["flat"]
    net, (x, _) = make().eval(), images()
    with collect_warnings() as found:
        Square(queries=3)(net, x, answers(net, x))
    assert found == []


# ---------------------------------------------------------------- names


def test_names() -> None:
    assert str(AutoAttack()) == "autoattack"
    assert str(AutoAttack(norm="2")) == "autoattack-l2"
    parts = ["autoattack/apgd-ce", "autoattack/apgd-t", "autoattack/fab-t", "autoattack/square"]
    assert [str(part) for part in AutoAttack().parts] == parts
    assert str(AutoAttack(norm="2").parts[2]) == "autoattack-l2/fab-t"
    assert str(LibraryAttack(name="apgd-t", iterations=10)) == "autoattack/apgd-t-10"
    assert str(Square()) == "square"
    assert str(Square(queries=1000, norm="2")) == "square-1000-l2"


def test_parts_have_the_settings_of_the_whole() -> None:
    assert {
        (part.eps, part.norm, part.iterations) for part in AutoAttack(eps=0.3, norm="2").parts
    } == {(0.3, "2", None)}
