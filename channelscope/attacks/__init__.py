"""Attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x.

A new attack is one file in this package, found by itself:

    from dataclasses import dataclass

    from torch import Tensor, nn

    from channelscope.attacks.base import Attack, Search
    from channelscope.attacks.registry import register
    from channelscope.objectives import Objective, cross_entropy


    @register("away-STEPS[-l2]", "walks away from the label", cost=lambda away: away.steps)
    @dataclass(frozen=True, kw_only=True)
    class Away(Attack):
        steps: int = 10
        objective: Objective = cross_entropy

        def run(self, model: nn.Module, search: Search) -> Tensor:
            x_adv = search.project(search.start + self.eps * (2 * search.uniform() - 1))
            for _ in search.steps(self.steps):
                x_in = search.as_input(x_adv)
                gradient = search.gradient(search.objective(model, x_in, search.y), x_in)
                x_adv = search.project(x_adv + self.eps * search.direction(gradient) / self.steps)
            return x_adv

``Attack`` does the rest, ``Search`` is what the loop is made of, and ``parse_attack("away-10")``,
the command line and its help know the name. Capitals in it are fields, whole numbers; ``[-l2]``
lets it say the norm; a field ``objective`` makes ``away-10:margin`` work, a field ``random_start``
``away-10:fixed``. Random numbers come from ``search.uniform()``, whose numbers are an image's own
whatever its batch: one generator for all images would give an image other numbers in other company.
"""

from channelscope.attacks.adaptive import (
    Detached,
    JointSweep,
    MaskFrozen,
    ProbeLoss,
    Transfer,
    stop_early,
)
from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import ImageGenerators, Norm, make_generators
from channelscope.attacks.base import (
    Attack,
    AttackLike,
    NoGradient,
    Search,
    check_images,
    find_correct,
    is_correct,
)
from channelscope.attacks.library import (
    AttackWarning,
    AutoAttack,
    LibraryAttack,
    Square,
    collect_warnings,
)
from channelscope.attacks.pgd import FGSM, PGD
from channelscope.attacks.registry import (
    ATTACKS,
    attack_name,
    describe_attacks,
    estimate_cost,
    parse_attack,
    register,
)
from channelscope.errors import import_modules

__all__ = [
    "APGD",
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "AttackLike",
    "AttackWarning",
    "AutoAttack",
    "Detached",
    "ImageGenerators",
    "JointSweep",
    "LibraryAttack",
    "MaskFrozen",
    "NoGradient",
    "Norm",
    "ProbeLoss",
    "Search",
    "Square",
    "Transfer",
    "attack_name",
    "check_images",
    "collect_warnings",
    "describe_attacks",
    "estimate_cost",
    "find_correct",
    "is_correct",
    "make_generators",
    "parse_attack",
    "register",
    "stop_early",
]

import_modules(__name__, __path__)  # every attack registers itself
