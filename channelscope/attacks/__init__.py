"""Attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x."""

from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import Attack, Norm, Randomness, check_images, correct, image_generators
from channelscope.attacks.names import parse
from channelscope.attacks.pgd import FGSM, PGD

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Attack",
    "Norm",
    "Randomness",
    "check_images",
    "correct",
    "image_generators",
    "parse",
]
