"""What happens to the images: all networks under all of their attacks, the checks, and the sweep of eps."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from channelscope.attacks import PGD, Attack, Norm, attack_name
from channelscope.attacks.suites import attacks_on, resized
from channelscope.data import Split, block_size, sample_stratified
from channelscope.distributed import is_first, world_size
from channelscope.errors import UserError
from channelscope.evaluation.progress import Gallery, Progress
from channelscope.evaluation.run import Run
from channelscope.gates import Selective, attached
from channelscope.study.binarisation import binarisation
from channelscope.study.masking import Checks, findings
from channelscope.study.models import Model, check_network, get_parameter

_BINARISED = 24  # images of the binarisation test


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an evaluation does to each network; see ``evaluate``."""

    attacks: tuple[str | Attack, ...]
    eps: float
    norm: Norm
    eps_sweep: tuple[float, ...] = ()
    checks: int = 0
    cascade: bool = False
    seed: int
    batch_size: int

    def described(self) -> dict[str, Any]:
        """Describe the plan in plain values."""
        return vars(self) | {
            "attacks": list(map(attack_name, self.attacks)),
            "eps_sweep": sorted(set(self.eps_sweep)),
        }


@dataclass(eq=False)
class Outcomes:
    """What happened to one network's images.

    Args:
        hits: "natural" and the name of each attack -> which images stood (n,).
        attacked, broken: (attack, part) -> how many images the part was given, and how many it broke.
        checks: for signs of gradient masking.
        escalated: by name, the attacks that were added because a check found something by them.
        notes: what the attacks themselves had to say.
        sweep: eps -> which images stood the worst case (n,).
    """

    hits: dict[str, Bool[Tensor, " n"]] = field(default_factory=dict)
    attacked: dict[tuple[str, str], int] = field(default_factory=dict)
    broken: dict[tuple[str, str], int] = field(default_factory=dict)
    checks: Checks | None = None
    escalated: dict[str, Attack] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sweep: dict[float, Bool[Tensor, " n"]] = field(default_factory=dict)

    @property
    def worst(self) -> Bool[Tensor, " n"]:
        """The images that stood everything."""
        return torch.stack(list(self.hits.values())).all(0)


def outcomes(
    subjects: Sequence[Model],
    images: Split,
    classes: int,
    plan: Plan,
    progress: Progress,
    gallery: Gallery | None = None,
    known: Mapping[str, Mapping[str, Bool[Tensor, " n"]]] | None = None,
    shown: bool = True,
) -> dict[str, Outcomes]:
    """Attack every network.

    Args:
        subjects: the networks.
        images: the images.
        classes: number of classes.
        plan: what is done.
        progress, gallery: see ``Run``.
        known: by label, outcomes that are known already, of natural images and by attack: they are not asked for.
        shown: show a progress bar.

    Raises:
        UserError: for networks or attacks that do not fit the images, or fewer images than processes.
    """
    if len(images) < world_size():
        raise UserError(
            f"There are more processes ({world_size()}) than images ({len(images)}): start fewer, or add images."
        )
    for eps in plan.eps_sweep:
        _attacks(subjects[0], subjects, plan, eps, classes)
    named = {
        subject.label: _attacks(subject, subjects, plan, plan.eps, classes) for subject in subjects
    }
    for subject in subjects:  # before the first attack, which may take hours
        check_network(
            subject.network,
            next(_some(subject.network, images, torch.arange(min(2, len(images)))))[0],
            classes,
        )
    parts = sum(1 + _parts(attacks) * (1 + len(plan.eps_sweep)) for attacks in named.values())
    with tqdm(total=parts * len(images), unit="img", disable=not (shown and is_first())) as bar:
        found = {}
        for index, subject in enumerate(subjects):
            run = Run(
                index=index,
                network=subject.network,
                images=images,
                batch_size=plan.batch_size,
                seed=plan.seed,
                progress=progress,
                gallery=gallery,
                advance=bar.update,
            )
            own = (known or {}).get(subject.label, {})
            found[subject.label] = _outcomes_of(subject, run, named[subject.label], own, plan, bar)
            found[subject.label].sweep.update(
                _sweep(subject, subjects, run, found[subject.label], plan, classes, bar)
            )
    return found


def _outcomes_of(
    subject: Model,
    run: Run,
    attacks: Mapping[str, Attack],
    known: Mapping[str, Bool[Tensor, " n"]],
    plan: Plan,
    bar: Any,
) -> Outcomes:
    bar.set_description(f"{subject.label}: natural")
    result = Outcomes(hits=dict(known) or {"natural": run.natural()})
    run.attacked.clear()  # of attacks only
    run.broken.clear()
    for name, attack in attacks.items():
        if name in known:
            run.advance(len(run.images) * _parts({name: attack}))
            continue
        bar.set_description(f"{subject.label}: {name}")
        result.hits[name] = run.under(
            attack, result.worst if plan.cascade else result.hits["natural"]
        )
    if plan.checks and plan.eps:
        _check(subject, run, attacks, result, plan, bar)
    result.attacked, result.broken, result.notes = (
        dict(run.attacked),
        dict(run.broken),
        tuple(run.notes),
    )
    return result


def _check(
    subject: Model, run: Run, attacks: Mapping[str, Attack], result: Outcomes, plan: Plan, bar: Any
) -> None:
    """Look for signs of gradient masking, and run what revealed one on all images."""

    def at(check: str) -> None:
        bar.set_description(f"{subject.label}: check, {check}")

    rows = sample_stratified(run.images.labels.cpu(), min(plan.checks, len(run.images)), plan.seed)
    x, y = next(_some(subject.network, run.images, rows))
    with attached(subject.network):
        settings: dict[str, Any] = {"eps": plan.eps, "norm": plan.norm, "seed": plan.seed}
        settings["batch_size"] = block_size(run.images)
        result.checks = findings(subject.network, x, y, **settings, progress=at)
        at("binarisation")
        _binarise(subject.network, x, y, attacks, result.checks, plan)
    for attack in (finding.breaks for finding in result.checks.findings if finding.breaks):
        attack = dataclasses.replace(attack, early_stop=None) if isinstance(attack, PGD) else attack
        if (name := attack_name(attack)) in result.hits:
            continue
        bar.set_description(f"{subject.label}: {name}")
        bar.total += len(run.images)
        result.hits[name] = run.under(
            attack, result.worst if plan.cascade else result.hits["natural"]
        )
        result.escalated[name] = attack


def _binarise(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    checks: Checks,
    plan: Plan,
) -> None:
    """Test whether the first attack of several steps, or else PGD-20, is strong enough for the network."""
    several = (
        attack for attack in attacks.values() if isinstance(attack, PGD) and attack.steps > 1
    )
    attack = next(several, PGD(eps=plan.eps, norm=plan.norm))
    try:
        tested = binarisation(network, x, y, attack, images=_BINARISED, seed=plan.seed)
    except UserError as error:
        checks.skipped["binarisation"] = str(error)
        return
    if tested.finding is not None:
        checks.findings.append(tested.finding)


def _sweep(
    subject: Model,
    subjects: Sequence[Model],
    run: Run,
    result: Outcomes,
    plan: Plan,
    classes: int,
    bar: Any,
) -> dict[float, Bool[Tensor, " n"]]:
    """Take the worst case at each radius, the smallest first: an image broken in a ball is broken in every larger."""
    left, found = result.hits["natural"], {}
    at = dataclasses.replace(run, gallery=None, attacked={}, broken={})
    for eps in sorted(set(plan.eps_sweep)):
        if eps >= plan.eps:
            left = left & result.worst
        further = {name: resized(attack, eps) for name, attack in result.escalated.items()}
        for name, attack in (_attacks(subject, subjects, plan, eps, classes) | further).items():
            bar.set_description(f"{subject.label}: {name}, eps {eps:.3g}")
            left = at.under(attack, left, f"{name}@{eps!r}")
        found[eps] = left
    return found


def _attacks(
    subject: Model, subjects: Sequence[Model], plan: Plan, eps: float, classes: int
) -> dict[str, Attack]:
    twins = {}
    if isinstance(subject.network, Selective):
        twins = {
            other.label: other.network
            for other in subjects
            if not isinstance(other.network, Selective)
        }
    return attacks_on(
        subject.network, plan.attacks, eps=eps, norm=plan.norm, classes=classes, twins=twins
    )


def _parts(attacks: Mapping[str, Attack]) -> int:
    return sum(len(getattr(attack, "parts", (attack,))) for attack in attacks.values())


def _some(
    network: nn.Module, images: Split, rows: Int[Tensor, " m"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give some of the images, at once, as the network takes them."""
    like = get_parameter(network)
    return ((x.to(like), y) for x, y in images.batches(max(len(rows), 1), like.device, rows))
