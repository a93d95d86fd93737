"""Attacks by their short names."""

import re
from collections.abc import Callable

from channelscope.attacks.adaptive import JointSweep
from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import Attack, Norm
from channelscope.attacks.library import AutoAttack, Square
from channelscope.attacks.pgd import FGSM, PGD
from channelscope.errors import UserError
from channelscope.objectives import Objective, cross_entropy, dlr, margin

_RUNS = r"(?P<steps>[0-9]{1,6})(?:x(?P<restarts>[0-9]{1,4}))?"
_NAME = re.compile(
    rf"(?:fgsm|(?P<pgd>pgd|cw)-{_RUNS}|apgd-(?P<apgd>ce|dlr|margin)(?:-{_RUNS.replace('P<', 'P<a_')})?"
    r"|(?P<other>square|autoattack|joint-sweep))(?P<l2>-l2)?"
)
_OTHERS: dict[str, Callable[[float, Norm], Attack]] = {
    "square": lambda eps, norm: Square(eps=eps, norm=norm),
    "autoattack": lambda eps, norm: AutoAttack(eps=eps, norm=norm),
    "joint-sweep": lambda eps, norm: JointSweep(attack=PGD(eps=eps, norm=norm)),
}
_OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


def parse_attack(
    name: str, *, eps: float = 8 / 255, norm: Norm = "inf", objective: Objective = cross_entropy
) -> Attack:
    """Make an attack from its short name, with ``-l2`` at its end for the L2 norm.

    ``fgsm``; ``pgd-STEPS`` and, on the margin of Carlini & Wagner, ``cw-STEPS``; ``apgd-ce``, ``apgd-dlr`` and
    ``apgd-margin``, of 100 steps or with ``-STEPS``. ``xRESTARTS`` may follow the steps. ``square`` and ``autoattack``
    need a package of their own; ``joint-sweep`` is for networks with gates.

    Args:
        name: the short name.
        eps: radius of the ball in image units.
        norm: of a name without ``-l2``.
        objective: what FGSM and PGD maximise; the others' names say it.

    >>> str(parse("pgd-100x5-l2"))
    'pgd-100x5-l2'

    Raises:
        UserError: for any other name.
    """
    found = _NAME.fullmatch(name)
    if found and found["other"]:
        return _OTHERS[found["other"]](eps, "2" if found["l2"] else norm)
    if not found:
        raise UserError(
            f"There is no attack {name!r}: write fgsm, pgd-20 or pgd-100x5 (five restarts), cw-30, apgd-ce, apgd-dlr, "
            "apgd-margin, apgd-ce-50x5 (50 steps), square, autoattack or joint-sweep, with -l2 for the L2 norm."
        )
    norm = "2" if found["l2"] else norm
    if found["apgd"]:
        steps, restarts = int(found["a_steps"] or 100), int(found["a_restarts"] or 1)
        return APGD(
            eps=eps, steps=steps, restarts=restarts, norm=norm, objective=_OBJECTIVES[found["apgd"]]
        )
    if found["pgd"]:
        steps, restarts = int(found["steps"]), int(found["restarts"] or 1)
        of = margin if found["pgd"] == "cw" else objective
        return PGD(eps=eps, steps=steps, restarts=restarts, norm=norm, objective=of)
    return FGSM(eps=eps, norm=norm, objective=objective)
