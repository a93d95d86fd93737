"""Which attacks an evaluation makes: suites by name, and what is added for gated networks."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn

from channelscope.attacks import (
    PGD,
    Attack,
    AutoAttack,
    Detached,
    JointSweep,
    MaskFrozen,
    Norm,
    ProbeLoss,
    Transfer,
    attack_name,
    parse_attack,
)
from channelscope.errors import UserError
from channelscope.gates import Selective, hides_gradient, takes_labels
from channelscope.objectives import margin

STANDARD = ("fgsm", "pgd-20", "pgd-100x5", "cw-30", "apgd-ce", "apgd-dlr")
PAPER = ("fgsm", "pgd-20", "pgd-100", "cw-30")
PLAIN = ("pgd-20", "cw-30", "apgd-ce", "apgd-dlr")  # what the adaptive attacks are set beside
SUITES = {
    "standard": "FGSM, PGD-20, PGD-100 with 5 restarts, C&W-inf, APGD on the cross-entropy and on DLR",
    "paper": "FGSM, PGD-20, PGD-100, C&W-inf as in the CIFS paper; on gated networks also the sweep of the joint loss",
    "adaptive": "PGD-20, C&W-inf, APGD on both losses; on gated networks also the attacks made for them",
    "auto": "standard AutoAttack (APGD-CE, APGD-T, FAB-T, Square) by the package pyautoattack",
    "all": "all of these",
}


def attacks_on(
    network: nn.Module,
    wanted: Sequence[str | Attack],
    *,
    eps: float,
    norm: Norm,
    classes: int,
    twins: Mapping[str, nn.Module],
) -> dict[str, Attack]:
    """Name the attacks on one network, in the order in which they are made; each once.

    Args:
        network: gated or not.
        wanted: suites, short names as ``attacks.parse`` knows them, and attacks as such.
        eps, norm: the ball, for all but attacks as such. Of the L2 norm, "-l2" at the end of a name may be left out.
        classes: number of classes; APGD on DLR, which needs three, is on the margin for two.
        twins: label -> network without gates that the images of a transfer are made on.

    Raises:
        UserError: for an unknown name, a name of another norm, or AutoAttack without its package.
    """
    found: dict[str, Attack] = {}
    for item in wanted:
        for attack in _expanded(network, item, eps, norm, twins):
            if isinstance(attack, str):
                attack = _parsed(
                    attack.replace("dlr", "margin") if classes < 3 else attack, eps, norm
                )
            elif attack.eps != eps:
                attack = resized(attack, eps)
            if found.setdefault(attack_name(attack), attack) != attack:
                raise UserError(
                    f"Two different attacks are called {attack_name(attack)}: evaluate one after the other."
                )
            if isinstance(attack, AutoAttack) and classes < 4:
                raise UserError(
                    f"AutoAttack needs at least four classes, not {classes}: name other attacks."
                )
    return found


def ball_of(
    attacks: Sequence[str | Attack], eps: float | None, norm: Norm
) -> tuple[float | None, Norm]:
    """Give the ball that all attacks as such share, or else the one that is asked for.

    Raises:
        UserError: for attacks that are none, and for those on different balls.
    """
    own = [attack for attack in attacks if not isinstance(attack, str)]
    for attack in own:
        radius = getattr(attack, "eps", None)
        if not isinstance(radius, int | float) or not 0 <= radius < math.inf or not _takes(attack):
            raise UserError(
                "An attack is a name such as 'pgd-20', or an object such as cs.PGD(): with an eps, and called with "
                "(model, x, y, generator)."
            )
    balls = {(float(attack.eps), norm_of(attack, norm)) for attack in own}
    if len(balls) > 1 or any(eps not in (None, radius) for radius, _ in balls):
        raise UserError(
            "The attacks are on different balls: give all of them, and the evaluation, one eps and norm."
        )
    return balls.pop() if balls else (eps, norm)


def norm_of(attack: Attack, default: Norm = "inf") -> Norm:
    """Give the norm of an attack's ball, looking into one that changes another."""
    within: Any = getattr(attack, "attack", None)
    own: Norm | None = getattr(attack, "norm", None)
    return own or (default if within is None else norm_of(within, default))


def resized(attack: Attack, eps: float) -> Attack:
    """Give an attack with another radius.

    Raises:
        UserError: for one that has no eps to set.
    """
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        names = {item.name for item in dataclasses.fields(attack)}
        if "eps" in names:
            return dataclasses.replace(attack, eps=eps)
        if "attack" in names:
            return dataclasses.replace(attack, attack=resized(attack.attack, eps))
    raise UserError(
        f"{attack_name(attack)} has no eps that can be set: leave it out of a sweep of eps."
    )


def _takes(attack: Attack) -> bool:
    """Tell whether an attack can be called with a network, images, labels and a generator."""
    try:
        signature(attack).bind(None, None, None, None)
    except TypeError:
        return False
    return True


def _parsed(name: str, eps: float, norm: Norm) -> Attack:
    if norm == "inf" and name.endswith("-l2"):
        raise UserError(
            f"{name} is of the L2 norm, whose radii are others: evaluate it by itself, with the norm '2'."
        )
    return parse_attack(name, eps=eps, norm=norm)


def _expanded(
    network: nn.Module, item: str | Attack, eps: float, norm: Norm, twins: Mapping[str, nn.Module]
) -> Iterator[str | Attack]:
    gated = network if isinstance(network, Selective) else None
    match item:
        case "standard":
            yield from STANDARD
        case "paper":
            yield from PAPER
            if gated:
                yield from _sweeps(gated, eps, norm)
        case "adaptive":
            yield from PLAIN
            if gated:
                yield from _adaptive(gated, eps, norm, twins)
        case "auto":
            yield "autoattack"
        case "all":
            for suite in ("standard", "paper", "adaptive", "auto"):
                yield from _expanded(network, suite, eps, norm, twins)
        case _:
            yield item


def _sweeps(network: Selective, eps: float, norm: Norm) -> Iterator[Attack]:
    sweep = JointSweep(attack=PGD(eps=eps, norm=norm))
    yield sweep
    if hides_gradient(network):
        yield Detached(attack=sweep)


def _adaptive(
    network: Selective, eps: float, norm: Norm, twins: Mapping[str, nn.Module]
) -> Iterator[Attack]:
    """Attack where gates may hide something: their probes, their masks, and around them."""
    base = PGD(eps=eps, norm=norm)
    yield from _sweeps(network, eps, norm)
    gates = list(network.gates.items())
    if any(hasattr(gate, "importance") for _, gate in gates):
        yield MaskFrozen(attack=base, at="natural")
    if any(takes_labels(gate) for _, gate in gates):
        yield MaskFrozen(attack=base, at="label")
    for index, (layer, gate) in enumerate(gates):
        if hasattr(gate, "probe") or hasattr(gate, "classifier"):
            yield dataclasses.replace(base, objective=ProbeLoss(index, layer))
    for name, twin in twins.items():
        yield Transfer(attack=dataclasses.replace(base, objective=margin), source=twin, name=name)
