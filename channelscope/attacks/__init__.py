"""Attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x.

An attack is one class in one module of this package: a subclass of ``Attack`` that implements
``run``, under a decorator ``register`` that gives it a short name.
"""

import importlib
import pkgutil

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

# Attacks register when their module is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
