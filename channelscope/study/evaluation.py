"""Attacks on networks: which images withstand them, checks for masking, the sweep of eps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor, nn

from channelscope.analyses.base import Outcome
from channelscope.attacks import (
    PGD,
    AttackLike,
    NoGradient,
    Norm,
    attack_name,
    collect_warnings,
    find_correct,
    make_generators,
    stop_early,
)
from channelscope.attacks.adaptive import norm_of
from channelscope.attacks.suites import attacks_on, with_eps
from channelscope.data import Split, block_size, iterate_blocks, sample_stratified
from channelscope.devices import widen
from channelscope.distributed import barrier, shard, world_size
from channelscope.errors import UserError
from channelscope.gates import Selective, attached
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.study.binarisation import run_binarisation_test
from channelscope.study.masking import ROUNDING, Checks, check_masking, measure_change
from channelscope.study.models import Model
from channelscope.study.seeding import seed_globally
from channelscope.study.store import Rows, RunFolder, digest_of

_ROUNDING = 1e-6  # by which an image may leave the ball: its pixels are numbers of 32 bits
_BINARISED = 24  # images of the binarisation test

Mask = Bool[ndarray, " n"]


class Progress:
    """Tells how far a study has come: the stage it is in, and how many images are done."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def start(self, stage: str) -> None:
        """Name the stage that begins."""
        self._bar.set_description(stage)

    def extend(self, images: int) -> None:
        """Expect more images than were planned."""
        self._bar.total += images

    def advance(self, images: int) -> None:
        """Count images that are done."""
        self._bar.update(images)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to each network.

    Args:
        attacks: suites, names and attacks as such.
        eps, norm: the ball, of named attacks.
        eps_sweep: further radii at which the worst case over the attacks is taken.
        checks: how many images the checks for gradient masking are made on; 0 for no checks.
        cascade: give each attack only the images that all before it have left.
        save_adversarial: keep the adversarial images; every image is then attacked to the end.
    """

    attacks: tuple[str | AttackLike, ...]
    eps: float
    norm: Norm
    eps_sweep: tuple[float, ...] = ()
    checks: int = 0
    cascade: bool = False
    save_adversarial: bool = False


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images that a study goes through, and how.

    Args:
        split: the images, whose order fixes the attacks' random numbers.
        fingerprint: identifies them.
        classes: number of classes.
        batch_size: how many are read at a time; results do not depend on it.
        seed: of all that is drawn by chance.
        block: how many go through a network together; None for ``data.block_size``.
    """

    split: Split
    fingerprint: str
    classes: int
    batch_size: int
    seed: int
    block: int | None = None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def block_size(self) -> int:
        """The number of images that go through a network together, which decides the last bits."""
        return self.block or block_size(self.split)

    @property
    def key(self) -> str:
        """What identifies them and all that a network's answers for them depend on."""
        if self.block_size == block_size(self.split):
            return self.fingerprint
        return f"{self.fingerprint} in blocks of {self.block_size}"

    @property
    def labels(self) -> Int[ndarray, " n"]:
        """Their classes."""
        labels: ndarray = self.split.labels.cpu().numpy()
        return labels

    def shard_blocks(
        self, chosen: Int[ndarray, " m"], rows: Rows, progress: Progress
    ) -> "list[tuple[Tensor, int]]":
        """Return this process's blocks of the chosen images that are not done yet.

        With each the number of images of all processes' blocks in the same turn: what is done when
        all keep pace. What is done already counts as progress at once.
        """
        blocks = torch.from_numpy(chosen).split(self.block_size) if len(chosen) else ()
        turns = [
            sum(map(len, blocks[first : first + world_size()]))
            for first in range(0, len(blocks), world_size())
        ]
        done = rows.done
        missing = [
            (block, turn)
            for block, turn in zip(shard(blocks), turns, strict=False)
            if not done[block.numpy()].all()
        ]
        progress.advance(len(self) - sum(turn for _, turn in missing))
        return missing

    def read_blocks(self, blocks: "Sequence[Tensor]", like: Tensor) -> Any:
        """Go through blocks: (indices, images as the network takes them, labels)."""
        for rows, x, y in iterate_blocks(self.split, blocks, self.batch_size, like.device):
            yield rows, x.to(like), y

    def read_some(self, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Read some images at once, as the network takes them, and their labels."""
        x, y = next(self.split.batches(max(len(rows), 1), like.device, rows))
        return x.to(like), y


class Evaluated(NamedTuple):
    """What is known of one network once it was attacked and checked.

    Args:
        correct: "natural" and each attack's name -> which images are classified correctly.
        outcome: what else the attacks and checks did.
        checked: the names of the checks for gradient masking that were made.
    """

    correct: dict[str, Mask]
    outcome: Outcome
    checked: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class AttackRunner:
    """Runs attacks on one network, and keeps which images withstand them.

    An attack gets images in blocks (see ``data.blocks``), which depend on nothing but the images
    that it is given: so outcomes are the same for any batch size and number of processes, and after
    a kill. An image that the network misclassifies as it is, or that a part of an attack has
    broken, is not given to (the other parts of) the attack.

    Args:
        model: the network.
        images: the images.
        folder: where outcomes are kept.
        save_adversarial: keep the adversarial images too; every image is then attacked to the end.
        progress: is told of images whose outcome is known.
    """

    model: Model
    images: Images
    folder: RunFolder
    save_adversarial: bool
    progress: Progress
    digests: Mapping[int, str] = field(default_factory=dict)
    attacked: dict[tuple[str, str], int] = field(default_factory=dict)
    broken: dict[tuple[str, str], int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    @cached_property
    def is_random(self) -> bool:
        """Whether two forward passes on the same images differ by more than rounding."""
        network = self.model.network
        like = get_parameter(network)
        first = torch.arange(min(self.images.block_size, len(self.images)), device="cpu")
        x, _ = self.images.read_some(first, like)
        with seed_globally(x, self.images.seed), eval_mode(network), torch.no_grad():
            one, other = (get_logits(network(x)) for _ in range(2))
        return bool((measure_change(one, other) > ROUNDING).any())

    def find_natural(self) -> Mask:
        """Return which images are classified correctly as they are."""
        everything = np.ones(len(self.images), bool)
        return self._run("natural", "natural", "", everything, lambda x, _y, _rows: x)

    def find_robust(self, attack: AttackLike, chosen: Mask, name: str | None = None) -> Mask:
        """Return which of the chosen images withstand an attack, under its name or another."""
        name = name or attack_name(attack)
        if self.save_adversarial:
            everything = np.ones_like(chosen)
            make = self._make_images(attack, name)
            return chosen & self._run(name, name, self._identify(attack), everything, make)
        robust = chosen
        for part in getattr(attack, "parts", (attack,)):
            # An image that a random network errs on once is not broken yet.
            search = part if self.is_random else stop_early(part)
            make = self._make_images(search, attack_name(part))
            identity = self._identify(search)
            robust = robust & self._run(name, attack_name(part), identity, robust, make)
        return robust

    def open_adversarial(self, attack: AttackLike) -> Rows | None:
        """Return the kept adversarial images of an attack, where all of them are there."""
        name = attack_name(attack)
        everything = np.ones(len(self.images), bool)
        keys = self._keys(name, self._identify(attack), everything, images=True)
        if not self.folder.holds(*keys):
            return None
        rows = self.folder.rows(len(self.images), self._spec(images=True), *keys)
        return rows if rows.done.all() else None

    def _make_images(
        self, attack: AttackLike, name: str
    ) -> Callable[[Tensor, Tensor, list[int]], Tensor]:
        def make(x: Tensor, y: Tensor, rows: list[int]) -> Tensor:
            generators = make_generators(self.images.seed, name, rows)
            x_adv = attack(self.model.network, x, y, generators)
            _check_ball(attack, name, x, x_adv)
            return x_adv

        return make

    def _run(
        self,
        attack: str,
        part: str,
        identity: str,
        chosen: Mask,
        make: Callable[[Tensor, Tensor, list[int]], Tensor],
    ) -> Mask:
        """Run a part of an attack on the chosen images; return which of them withstand it."""
        images = self.save_adversarial and attack != "natural"
        keys = self._keys(part, identity, chosen, images=images)
        rows = self.folder.rows(len(self.images), self._spec(images=images), *keys)
        missing = self.images.shard_blocks(np.flatnonzero(chosen), rows, self.progress)
        network = self.model.network
        like = get_parameter(network)
        blocks = self.images.read_blocks([block for block, _ in missing], like)
        for (block, x, y), (_, turn) in zip(blocks, missing, strict=True):
            with (
                seed_globally(x, self.images.seed),
                eval_mode(network),
                attached(network),
                collect_warnings() as warnings,
            ):
                try:
                    x_adv = make(x, y, block.tolist())
                except NoGradient as error:  # an attack that asks for no gradient may go on
                    rows.note(f"{part} could not be made: {error}")
                    x_adv = x
                values = {"withstood": find_correct(network, x_adv, y).cpu().numpy()}
            for sentence in warnings:
                rows.note(f"{part}: {sentence}")
            if images:
                values["images"] = x_adv.detach().float().cpu().numpy()
            rows.write(block.numpy(), values)
            self.progress.advance(turn)
        barrier()
        self.notes |= dict.fromkeys(rows.notes)
        withstood = chosen & (rows.array("withstood") != 0)
        if attack != "natural":
            self.attacked[attack, part] = int(chosen.sum())
            self.broken[attack, part] = int((chosen & ~withstood).sum())
        return withstood

    def _spec(self, *, images: bool) -> dict[str, tuple[tuple[int, ...], str]]:
        spec: dict[str, tuple[tuple[int, ...], str]] = {"withstood": ((), "|u1")}
        if images:
            spec["images"] = (self.images.split.image_shape, "<f4")
        return spec

    def _keys(self, part: str, identity: str, chosen: Mask, *, images: bool) -> tuple[str, str]:
        key = digest_of(identity, chosen.tobytes(), images, self.images.seed)
        return self.model.key(self.images.key), f"{part} {key}"

    def _identify(self, attack: AttackLike) -> str:
        return identify_attack(attack, self.digests) + f" random={self.is_random}"


def identify_attack(attack: object, digests: Mapping[int, str]) -> str:
    """Return a text that is the same for attacks that do the same.

    Args:
        attack: any attack, or a part of one.
        digests: id of a network -> its digest, for attacks that hold networks.
    """
    if isinstance(attack, nn.Module):
        return digests.get(id(attack), type(attack).__name__)
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        fields = ", ".join(
            f"{item.name}={identify_attack(getattr(attack, item.name), digests)}"
            for item in dataclasses.fields(attack)
        )
        return f"{type(attack).__qualname__}({fields})"
    if isinstance(attack, tuple | list):
        return f"({', '.join(identify_attack(item, digests) for item in attack)})"
    if callable(attack) and hasattr(attack, "__qualname__"):
        return f"{attack.__module__}.{attack.__qualname__}"
    if isinstance(attack, str | int | float | None):
        return repr(attack)
    settings = sorted(getattr(attack, "__dict__", {}).items())
    return f"{type(attack).__qualname__} {settings}"


def evaluate_model(
    model: Model,
    attacks: Mapping[str, AttackLike],
    runner: AttackRunner,
    plan: Plan,
    known: Mapping[str, Mask],
    sweep: Callable[[float], Mapping[str, AttackLike]],
) -> Evaluated:
    """Attack one network, check it for gradient masking, and sweep eps.

    Args:
        model: the network.
        attacks: by name, in their order.
        runner: runs them.
        plan: what is done.
        known: outcomes that are known already, of natural images and by attack.
        sweep: eps -> the attacks at this radius.
    """
    progress = runner.progress
    progress.start(f"{model.label}: natural")
    correct = dict(known) or {"natural": runner.find_natural()}
    if known:
        progress.advance(len(runner.images))
    for name, attack in attacks.items():
        if name in known:
            progress.advance(len(runner.images) * count_parts([attack]))
            continue
        progress.start(f"{model.label}: {name}")
        chosen = worst_of(correct) if plan.cascade else correct["natural"]
        correct[name] = runner.find_robust(attack, chosen)
    checks, fallbacks = _check(model, attacks, runner, plan, correct)
    swept = _sweep(model, runner, plan, correct, fallbacks, sweep)
    outcome = Outcome(
        attacked={key: value for key, value in runner.attacked.items() if "@" not in key[0]},
        broken={key: value for key, value in runner.broken.items() if "@" not in key[0]},
        fallbacks=tuple(fallbacks),
        checked=checks is not None,
        findings=checks.findings if checks else (),
        skipped=dict(checks.skipped) if checks else {},
        notes=tuple(runner.notes),
        sweep=swept,
    )
    return Evaluated(correct, outcome, tuple(checks.made) if checks else ())


def _check(
    model: Model,
    attacks: Mapping[str, AttackLike],
    runner: AttackRunner,
    plan: Plan,
    correct: dict[str, Mask],
) -> tuple[Checks | None, dict[str, AttackLike]]:
    """Look for signs of gradient masking, and run what revealed one on all images."""
    if not plan.checks or not plan.eps:
        return None, {}
    progress = runner.progress
    network = model.network
    images = runner.images
    count = min(plan.checks, len(images))
    rows = sample_stratified(images.split.labels.cpu(), count, images.seed)
    x, y = images.read_some(rows, get_parameter(network))
    with attached(network):
        checks = check_masking(
            network,
            x,
            y,
            eps=plan.eps,
            norm=plan.norm,
            seed=images.seed,
            batch_size=images.block_size,
            progress=lambda check: progress.start(f"{model.label}: check, {check}"),
        )
        progress.start(f"{model.label}: check, binarisation")
        _binarise(network, x, y, attacks, checks, plan, images.seed)
    fallbacks: dict[str, AttackLike] = {}
    for attack in (sign.breaks for sign in checks.signs.values() if sign.breaks):
        if isinstance(attack, PGD):
            attack = dataclasses.replace(attack, early_stop=None)
        if (name := attack_name(attack)) in correct:
            continue
        progress.start(f"{model.label}: {name}")
        progress.extend(len(images))
        chosen = worst_of(correct) if plan.cascade else correct["natural"]
        correct[name] = runner.find_robust(attack, chosen)
        fallbacks[name] = attack
    return checks, fallbacks


def _binarise(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, AttackLike],
    checks: Checks,
    plan: Plan,
    seed: int,
) -> None:
    """Test whether the first attack of several steps, or else PGD-20, is strong enough."""
    several = (one for one in attacks.values() if isinstance(one, PGD) and one.steps > 1)
    attack = next(several, PGD(eps=plan.eps, norm=plan.norm))
    try:
        tested = run_binarisation_test(network, x, y, attack, images=_BINARISED, seed=seed)
    except UserError as error:
        checks.skipped["binarisation"] = str(error)
        return
    checks.made.append("binarisation")
    if tested.sign is not None:
        checks.signs["binarisation"] = tested.sign


def _sweep(
    model: Model,
    runner: AttackRunner,
    plan: Plan,
    correct: Mapping[str, Mask],
    fallbacks: Mapping[str, AttackLike],
    attacks_at: Callable[[float], Mapping[str, AttackLike]],
) -> dict[float, Mask]:
    """Take the worst case at each radius, the smallest first.

    An image that is broken in a ball is broken in every larger one.
    """
    robust = correct["natural"]
    swept: dict[float, Mask] = {}
    search = dataclasses.replace(runner, save_adversarial=False)
    for eps in sorted(set(plan.eps_sweep)):
        if eps >= plan.eps:
            robust = robust & worst_of(correct)
        further = {name: with_eps(attack, eps) for name, attack in fallbacks.items()}
        for name, attack in {**attacks_at(eps), **further}.items():
            runner.progress.start(f"{model.label}: {name}, eps {eps:.3g}")
            robust = search.find_robust(attack, robust, f"{name}@{eps!r}")
        swept[eps] = robust
    return swept


def attacks_on_model(
    model: Model, models: Sequence[Model], plan: Plan, eps: float, classes: int
) -> dict[str, AttackLike]:
    """Name the attacks on one network, which is attacked as often as the others.

    A gated one also gets attacks made for gates, and images made on the others. The worst case is
    lower the more attempts it is over, so a network without gates beside it gets as many restarts
    of PGD-20. That is what attacks made for gates are on it: without gates the joint loss, a
    probe's and masks that are held or detached all leave the cross-entropy.
    """
    twins = {
        other.label: other.network for other in models if not isinstance(other.network, Selective)
    }

    def expand(network: nn.Module) -> dict[str, AttackLike]:
        others = twins if isinstance(network, Selective) else {}
        return attacks_on(
            network, plan.attacks, eps=eps, norm=plan.norm, classes=classes, twins=others
        )

    attacks = expand(model.network)
    if isinstance(model.network, Selective):
        return attacks
    for_gates = [
        [attack for name, attack in expand(other.network).items() if name not in attacks]
        for other in models
        if isinstance(other.network, Selective)
    ]
    if count := max(map(count_parts, for_gates), default=0):
        restarts = PGD(eps=eps, norm=plan.norm, restarts=max(count, 2))  # with 1 it would be PGD-20
        attacks.setdefault(attack_name(restarts), restarts)
    return attacks


def count_parts(attacks: Sequence[AttackLike]) -> int:
    """Return how many parts attacks have, an attack without parts being one."""
    return sum(len(getattr(attack, "parts", (attack,))) for attack in attacks)


def worst_of(correct: Mapping[str, Mask]) -> Mask:
    """Return the images that are correct in all outcomes."""
    worst: ndarray = np.all(list(correct.values()), axis=0)
    return worst


def _check_ball(attack: AttackLike, name: str, x: Tensor, x_adv: Tensor) -> None:
    """Refuse images that are not the attack's to make."""
    inside = x_adv.shape == x.shape and bool(x_adv.isfinite().all())
    if not inside or x_adv.min() < 0 or x_adv.max() > 1:
        raise UserError(
            f"The attack {name} returns images outside [0, 1], or of another shape: correct the "
            "attack, as its result says nothing."
        )
    delta = (widen(x_adv) - widen(x)).flatten(1)
    distance = float(delta.abs().max() if norm_of(attack) == "inf" else delta.norm(dim=1).max())
    if distance > attack.eps + _ROUNDING:
        raise UserError(
            f"The attack {name} leaves its ball ({distance:.6f} > eps {attack.eps:.6f}): correct "
            "the attack."
        )
