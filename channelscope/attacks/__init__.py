"""Attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x."""

from channelscope.attacks.adaptive import Detached, JointSweep, MaskFrozen, ProbeLoss, Transfer, thrifty
from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import (
    Attack,
    ImageGenerators,
    Norm,
    called,
    check_images,
    correct,
    image_generators,
    is_right,
)
from channelscope.attacks.library import AttackWarning, AutoAttack, LibraryAttack, Square, doubts
from channelscope.attacks.names import parse
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
    "called",
    "check_images",
    "correct",
    "doubts",
    "image_generators",
    "is_right",
    "parse",
    "thrifty",
]
