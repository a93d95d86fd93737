"""Attacks by their short names."""

import re

from channelscope.attacks.ball import Norm
from channelscope.attacks.pgd import FGSM, PGD
from channelscope.errors import UserError
from channelscope.objectives import Objective, cross_entropy

_NAME = re.compile(r"(?:(?P<fgsm>fgsm)|pgd-(?P<steps>[0-9]{1,6})(?:x(?P<restarts>[0-9]{1,4}))?)(?P<l2>-l2)?")


def parse(name: str, *, eps: float = 8 / 255, objective: Objective = cross_entropy) -> PGD | FGSM:
    """Make an attack from its short name: ``fgsm``, ``pgd-STEPS`` or ``pgd-STEPSxRESTARTS``, ``-l2`` for the L2 norm.

    >>> str(parse("pgd-100x5-l2"))
    'pgd-100x5-l2'

    Raises:
        UserError: for any other name.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"There is no attack {name!r}: write fgsm, pgd-20 or pgd-100x5 (five restarts), with -l2 for the L2 norm."
        )
    norm: Norm = "2" if found["l2"] else "inf"
    if found["fgsm"]:
        return FGSM(eps=eps, norm=norm, objective=objective)
    return PGD(eps=eps, steps=int(found["steps"]), restarts=int(found["restarts"] or 1), norm=norm, objective=objective)
