"""Attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x."""

from channelscope.attacks.adaptive import (
    Detached,
    JointSweep,
    MaskFrozen,
    ProbeLoss,
    Transfer,
    stop_early,
)
from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import (
    Attack,
    ImageGenerators,
    Norm,
    attack_name,
    check_images,
    find_correct,
    is_correct,
    make_generators,
)
from channelscope.attacks.library import (
    AttackWarning,
    AutoAttack,
    LibraryAttack,
    Square,
    collect_warnings,
)
from channelscope.attacks.names import parse_attack
from channelscope.attacks.pgd import FGSM, PGD
from channelscope.attacks.runs import NoGradient

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Attack",
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
    "Square",
    "Transfer",
    "attack_name",
    "check_images",
    "collect_warnings",
    "find_correct",
    "is_correct",
    "make_generators",
    "parse_attack",
    "stop_early",
]
