"""An attack at several strengths: other radii, or stopped after some of its steps."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks import PGD, AttackLike, attack_name
from channelscope.attacks.suites import with_eps
from channelscope.errors import UserError


@dataclass(frozen=True)
class Stopped:
    """PGD, stopped after some of its steps, or going on after its last.

    It has the attack's name, and so its random starts, and its step length: after t steps it is
    where a run of PGD of that step length is after t.

    Args:
        attack: the attack.
        after: number of steps, >= 1.
    """

    attack: PGD
    after: int

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""
        return self.attack.eps

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n *image"]:
        """AttackLike images x (n, c, h, w) with labels y (n,)."""
        step = self.attack.step_length
        shorter = dataclasses.replace(self.attack, step=step, steps=self.after)
        return shorter(model, x, y, generator)

    def __str__(self) -> str:
        return str(self.attack)


@dataclass(frozen=True)
class Strength:
    """The attack at one strength: what varies, its value (eps in image units, or steps)."""

    varied: Literal["eps", "step"]
    value: float
    attack: AttackLike

    @property
    def name(self) -> str:
        """The name of the data that it makes."""
        return f"{self.varied}-{self.value}"


def list_strengths(
    attack: AttackLike, eps_sweep: Sequence[float], step_sweep: Sequence[int]
) -> list[Strength]:
    """Return the attack at the strengths asked for, in rising order.

    Raises:
        UserError: for strengths that are none, and for an attack that has no such strength.
    """
    if wrong := [eps for eps in eps_sweep if not 0 <= eps < float("inf")]:
        raise UserError(
            f"eps_sweep: {wrong[0]} is no radius from 0 up, in image units, such as 8/255."
        )
    if wrong := [after for after in step_sweep if after < 1]:
        raise UserError(f"step_sweep: {wrong[0]} is no number of steps from 1 up.")
    strengths = [Strength("eps", eps, with_eps(attack, eps)) for eps in sorted(set(eps_sweep))]
    for after in sorted(set(step_sweep)):
        if not isinstance(attack, PGD) or attack.restarts > 1 or attack.early_stop is not None:
            raise UserError(
                f"step_sweep: {attack_name(attack)} has no steps to sweep: use PGD of one start, "
                "such as pgd-20."
            )
        strengths.append(Strength("step", after, Stopped(attack, after)))
    return strengths
