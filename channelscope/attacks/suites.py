"""Which attacks an evaluation makes: suites by name, and the attacks for gated networks.

What networks without gates get in the place of the latter is said in ``study.evaluation``.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import NamedTuple

from torch import nn

from channelscope.attacks.adaptive import BETAS, Transfer, norm_of
from channelscope.attacks.ball import Norm
from channelscope.attacks.base import AttackLike
from channelscope.attacks.library import AutoAttack
from channelscope.attacks.pgd import PGD
from channelscope.attacks.registry import attack_name, parse_attack
from channelscope.errors import UserError
from channelscope.gates import Selective, hides_gradient, takes_labels
from channelscope.objectives import margin

# Label -> network without gates, on which the images of a transfer are made.
Twins = Mapping[str, nn.Module]
# (network, its twins, PGD-20 in the ball) -> short names, and attacks that have none to parse.
Expand = Callable[[nn.Module, Twins, PGD], Iterator[str | AttackLike]]


class Suite(NamedTuple):
    """Attacks that go by one name."""

    name: str
    help: str
    expand: Expand


SUITES: dict[str, Suite] = {}


def suite(name: str, help: str) -> Callable[[Expand], Expand]:
    """Enter a function as a suite, with one line of help."""

    def enter(expand: Expand) -> Expand:
        SUITES[name] = Suite(name, help, expand)
        return expand

    return enter


@suite("standard", "FGSM, PGD-20, PGD-100 with 5 restarts, C&W-inf, APGD on cross-entropy and DLR")
def _standard(_network: nn.Module, _twins: Twins, _pgd: PGD) -> Iterator[str]:
    yield from ("fgsm", "pgd-20", "pgd-100x5", "cw-30", "apgd-ce", "apgd-dlr")


@suite(
    "paper",
    "as CIFS's authors: FGSM, PGD-20, PGD-100, C&W-inf, begun at the image; with gates PGD-20 on "
    "each probe, and on the joint loss at each of seven weights",
)
def _paper(network: nn.Module, _twins: Twins, _pgd: PGD) -> Iterator[str]:
    yield from ("fgsm", "pgd-20:fixed", "pgd-100:fixed", "cw-30:fixed")
    if not isinstance(network, Selective):
        return
    for number in range(1, 1 + len(_list_probed(network))):
        yield f"pgd-20:probe{number}:fixed"
    for change in ("", ":detached") if hides_gradient(network) else ("",):
        for beta in BETAS:
            yield f"pgd-20:joint{beta:g}:fixed{change}"


@suite("adaptive", "PGD-20, C&W-inf, APGD on both losses; with gates the attacks made for them")
def _adaptive(network: nn.Module, twins: Twins, pgd: PGD) -> Iterator[str | AttackLike]:
    yield from ("pgd-20", "cw-30", "apgd-ce", "apgd-dlr", *_list_sweeps(network))
    if not isinstance(network, Selective):
        return
    # Where gates may hide something: their masks, their probes, and around them.
    if any(hasattr(gate, "importance") for gate in network.gates.values()):
        yield "pgd-20:frozen-natural"
    if any(takes_labels(gate) for gate in network.gates.values()):
        yield "pgd-20:frozen-label"
    for layer in _list_probed(network):
        yield f"pgd-20:probe-{layer}"
    for name, twin in twins.items():
        yield Transfer(attack=dataclasses.replace(pgd, objective=margin), source=twin, name=name)


def _list_probed(network: Selective) -> list[str]:
    """List the layers of the gates with a probe."""
    gates = network.gates.items()
    return [layer for layer, gate in gates if hasattr(gate, "probe") or hasattr(gate, "classifier")]


def _list_sweeps(network: nn.Module) -> list[str]:
    if not isinstance(network, Selective):
        return []
    detached = ["pgd-20:joint-sweep:detached"] if hides_gradient(network) else []
    return ["pgd-20:joint-sweep", *detached]


@suite("auto", "standard AutoAttack (needs: pip install 'channelscope[autoattack]')")
def _auto(_network: nn.Module, _twins: Twins, _pgd: PGD) -> Iterator[str]:
    yield "autoattack"


@suite("all", "all of these")
def _all(network: nn.Module, twins: Twins, pgd: PGD) -> Iterator[str | AttackLike]:
    for expand in (_standard, _paper, _adaptive, _auto):
        yield from expand(network, twins, pgd)


def attacks_on(
    network: nn.Module,
    wanted: Sequence[str | AttackLike],
    *,
    eps: float,
    norm: Norm,
    classes: int,
    twins: Twins,
) -> dict[str, AttackLike]:
    """Return the attacks on one network by name, in the order in which they are made; each once.

    Args:
        network: gated or not.
        wanted: suites, short names (see ``parse_attack``) and attacks as such.
        eps, norm: the ball. In the L2 norm, "-l2" at the end of a name may be left out.
        classes: number of classes; APGD on DLR, which needs three, is on the margin for two.
        twins: label -> network without gates that the images of a transfer are made on.

    Raises:
        UserError: for an unknown name, a name of another norm, or AutoAttack without its package.
    """
    pgd = PGD(eps=eps, norm=norm)
    attacks: dict[str, AttackLike] = {}
    for item in wanted:
        named = SUITES.get(item) if isinstance(item, str) else None
        for choice in named.expand(network, twins, pgd) if named else (item,):
            attack = _make_attack(choice, eps, norm, classes)
            name = attack_name(attack)
            if attacks.setdefault(name, attack) != attack:
                raise UserError(
                    f"Two different attacks are called {name}: evaluate one after the other."
                )
    return attacks


def _make_attack(choice: str | AttackLike, eps: float, norm: Norm, classes: int) -> AttackLike:
    if isinstance(choice, str):
        name = choice.replace("dlr", "margin") if classes < 3 else choice
        attack: AttackLike = parse_attack(name, eps=eps, norm=norm, suites=SUITES)
        if norm_of(attack) != norm:
            raise UserError(
                f"{name} is of the L2 norm, whose radii are others: "
                "evaluate it by itself, with --norm 2 (norm='2')."
            )
    else:
        attack = choice if choice.eps == eps else with_eps(choice, eps)
    if isinstance(attack, AutoAttack) and classes < 4:
        raise UserError(
            f"AutoAttack needs at least four classes, not {classes}: name other attacks."
        )
    return attack


def resolve_ball(
    attacks: Sequence[str | AttackLike], eps: float | None, norm: Norm
) -> tuple[float | None, Norm]:
    """Return the ball that all attacks as such share, or else the one that is asked for.

    Raises:
        UserError: for objects that are no attacks, and for attacks on different balls.
    """
    balls = set()
    for attack in attacks:
        if isinstance(attack, str):
            continue
        radius = getattr(attack, "eps", None)
        if not isinstance(radius, int | float) or not 0 <= radius < math.inf or not _takes(attack):
            raise UserError(
                "An attack is a name such as 'pgd-20', or an object such as cs.PGD(): with an eps, "
                f"and called with (model, x, y, generator), not {attack!r}."
            )
        balls.add((float(radius), norm_of(attack, norm)))
    if len(balls) > 1 or any(eps not in (None, radius) for radius, _ in balls):
        raise UserError(
            "The attacks are on different balls: "
            "give all of them, and the evaluation, one eps and norm."
        )
    return balls.pop() if balls else (eps, norm)


def _takes(attack: AttackLike) -> bool:
    """Tell whether an attack can be called with a network, images, labels and a generator."""
    try:
        signature(attack).bind(None, None, None, None)
    except TypeError:
        return False
    return True


def with_eps(attack: AttackLike, eps: float) -> AttackLike:
    """Return an attack with another radius.

    Raises:
        UserError: for one that has no eps to set.
    """
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        names = {field.name for field in dataclasses.fields(attack) if field.init}
        if "eps" in names:
            return dataclasses.replace(attack, eps=eps)
        if "attack" in names:
            return dataclasses.replace(attack, attack=with_eps(attack.attack, eps))
    raise UserError(
        f"{attack_name(attack)} has no eps that can be set: leave it out of a sweep of eps."
    )
