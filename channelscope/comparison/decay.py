"""Decay: how alignment changes as the attack gets stronger, by its radius and by its steps."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks import PGD, Attack, attack_name
from channelscope.attacks.suites import resized
from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared, Point
from channelscope.errors import UserError
from channelscope.statistics.alignment import BOUNDS, estimate, mean_over_classes
from channelscope.study.measurement import Measurement


@dataclass(frozen=True)
class Stopped:
    """An attack by PGD, stopped after some of its steps, or going on after its last.

    It has the attack's name, and so its random starts, and its step length: after t steps it is where a run of PGD of
    that step length is after t.

    Args:
        attack: the attack.
        after: number of steps, >= 1.
    """

    attack: PGD
    after: int

    @property
    def eps(self) -> float:
        return self.attack.eps

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n *image"]:
        shorter = dataclasses.replace(self.attack, step=self.attack.step_length, steps=self.after)
        return shorter(model, x, y, generator)

    def __str__(self) -> str:
        return str(self.attack)


@dataclass(frozen=True)
class Strength:
    """The attack at one strength: what varies, its value (eps in image units, or number of steps), and the attack."""

    varied: Literal["eps", "step"]
    at: float
    attack: Attack


def points(
    strengths: Sequence[Strength], measured: Callable[..., Measurement]
) -> tuple[Point, ...]:
    """Measure a network, ``measured(attack=...)``, under each strength of the attack; keep means over the classes."""
    return tuple(_point(strength, measured(attack=strength.attack)) for strength in strengths)


def _point(strength: Strength, measured: Measurement) -> Point:
    measures = {
        layer: {
            name: mean_over_classes(values) for name, values in measured.measures(layer).items()
        }
        for layer in measured.layers
    }
    robust, _ = measured.accuracy(measured.hits[attack_name(strength.attack)])
    return Point(strength.varied, strength.at, measures, robust)


def strengths(
    attack: Attack, eps_sweep: Sequence[float], step_sweep: Sequence[int]
) -> list[Strength]:
    """Give the attack at the strengths asked for, in rising order.

    Raises:
        UserError: for strengths that are none, and for an attack that has no such strength.
    """
    if any(not 0 <= eps < float("inf") for eps in eps_sweep):
        raise UserError("A sweep of eps takes radii from 0 up, in image units, such as 8/255.")
    if any(after < 1 for after in step_sweep):
        raise UserError("A sweep of steps takes numbers of steps from 1 up.")
    found = [Strength("eps", eps, resized(attack, eps)) for eps in sorted(set(eps_sweep))]
    for after in sorted(set(step_sweep)):
        if not isinstance(attack, PGD) or attack.restarts > 1 or attack.early_stop is not None:
            raise UserError(
                f"{attack_name(attack)} has no steps to sweep: compare under PGD of one start, such as pgd-20."
            )
        found.append(Strength("step", after, Stopped(attack, after)))
    return found


def frame(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``decay``: each measure, mean over the classes, at each strength of the attack.

    By "step" the attack is stopped after so many steps (``Stopped``). The measure "robust_accuracy", under this attack
    alone, belongs to no layer.
    """
    points = [(subject, point) for subject in networks for point in subject.points]
    return tidy("decay", [row for subject, point in points for row in _rows(subject, point, level)])


def _rows(subject: Compared, point: Point, level: float) -> Iterator[dict[str, Any]]:
    known = {"model": subject.label, "varied": point.varied, "at": point.at}
    for layer, measures in point.measures.items():
        for measure, replicates in measures.items():
            row = known | {"layer": layer, "measure": measure}
            yield row | vars(estimate(replicates, level, BOUNDS[measure]))
    yield (
        known
        | {"layer": "", "measure": "robust_accuracy"}
        | vars(estimate(point.robust, level, (0.0, 1.0)))
    )
