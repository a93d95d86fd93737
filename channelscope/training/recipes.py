"""Recipes and methods: how networks are trained, as data."""

import dataclasses
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from typing import Any, Self

from channelscope.checkpoints import Gate
from channelscope.errors import UserError, suggest
from channelscope.models import Architecture

_HIGHEST = {"momentum": 1, "weight_decay": 1, "eps": 1, "attack_step": 1, "beta": 1e6, "crop": 1e6}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD with a stepped learning rate, and the inner attack of adversarial training.

    Args:
        arch, width: see ``models.Architecture``.
        epochs, batch_size, lr, momentum, weight_decay: of SGD.
        milestones: shares of the epochs after which the learning rate falls to a tenth.
        crop, flip: augmentation: padding of the random crop in pixels, and mirroring.
        eps, attack_steps, attack_step: of the training and validation attack, PGD with a random start (L-inf).
        beta: weight of the probes in the joint loss of gated networks.
    """

    arch: str
    width: int | None = None
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]
    crop: int
    flip: bool
    eps: float
    attack_steps: int
    attack_step: float
    beta: float

    def __post_init__(self) -> None:
        for name, low in {"epochs": 1, "batch_size": 2, "attack_steps": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"A recipe's {name} is a whole number from {low} up, not {value!r}.")
        if not 0 < self.lr <= 1e6:
            raise UserError(f"A recipe's lr (learning rate) lies above 0 and below a million, not at {self.lr}.")
        for name, high in _HIGHEST.items():
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"A recipe's {name} lies between 0 and {high:g}, not at {getattr(self, name)}.")

    @classmethod
    def named(cls, name: str) -> Self:
        """Read a recipe that ships with the package: ``paper`` or ``digits``."""
        text = resources.files("channelscope").joinpath(f"recipes/{name}.toml").read_text(encoding="utf-8")
        values = tomllib.loads(text)
        lengths = {key: float(Fraction(values[key])) for key in ("eps", "attack_step")}
        return cls(**values | lengths | {"milestones": tuple(values["milestones"])})

    @classmethod
    def suited_to(cls, data_name: str) -> Self:
        """Choose the recipe for a data set: its own, or the paper's."""
        return cls.named("digits" if data_name == "digits" else "paper")

    def override(self, **changes: Any) -> Self:
        """Change what is not None; a new eps takes the step of the inner attack along."""
        changes = {name: value for name, value in changes.items() if value is not None}
        if unknown := changes.keys() - {item.name for item in dataclasses.fields(self)}:
            raise UserError(f"A recipe has no setting {min(unknown)!r}.{suggest(min(unknown), dir(self))}")
        if "eps" in changes and self.eps:
            changes.setdefault("attack_step", self.attack_step * changes["eps"] / self.eps)
        return dataclasses.replace(self, **changes)

    def lr_at(self, epoch: int) -> float:
        """Give the learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(share * self.epochs) for share in self.milestones)


@dataclass(frozen=True)
class Method:
    """What sets the ways of training apart: adversarial images or natural ones, and which gates.

    ``gates`` makes the gates of an architecture, by layer; gated networks train, and are attacked, on the joint loss.
    """

    adversarial: bool
    gates: Callable[[Architecture], tuple[Gate, ...]] = lambda _: ()


def _cifs(architecture: Architecture) -> tuple[Gate, ...]:
    """Gate the last stage's blocks, a linear probe at the last and two-layer ones before, as in the paper."""
    *earlier, last = architecture.last_stage
    gates = [Gate(layer=layer, channels=architecture.channels, probe="two-layer") for layer in earlier]
    return (*gates, Gate(layer=last, channels=architecture.channels))


def _cas(architecture: Architecture) -> tuple[Gate, ...]:
    return tuple(
        Gate(layer=layer, channels=architecture.channels, k=1, imgf="identity") for layer in architecture.last_stage
    )


METHODS = {
    "standard": Method(adversarial=False),
    "at": Method(adversarial=True),
    "cifs": Method(adversarial=True, gates=_cifs),
    "cas": Method(adversarial=True, gates=_cas),
}
