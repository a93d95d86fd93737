"""The networks under comparison: what is known of each, and what was measured."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from channelscope import claims
from channelscope.study.measurement import Measurement
from channelscope.study.models import Model


@dataclass(frozen=True)
class Point:
    """What was measured of a network under one strength of the attack, by replicate of the bootstrap (r,).

    Args:
        varied: what of the attack.
        at: eps in image units, or number of steps.
        measures: layer -> measure -> mean over the classes (r,).
        robust: accuracy (r,).
    """

    varied: str
    at: float
    measures: dict[str, dict[str, Float[ndarray, " r"]]]
    robust: Float[ndarray, " r"]


@dataclass(frozen=True)
class Compared:
    """One network and what was found of it.

    Args:
        subject: the network.
        measurement: what was measured under the attack.
        masked: the signs of gradient masking that an evaluation found; None where it was not checked.
        points: what was measured under other strengths of the attack.
    """

    subject: Model
    measurement: Measurement
    masked: tuple[str, ...] | None = None
    points: tuple[Point, ...] = ()

    @property
    def label(self) -> str:
        return self.subject.label

    @property
    def description(self) -> dict[str, Any]:
        attacks = [name for name in self.measurement.hits if name != "natural"]
        layers = {
            "layers": list(self.measurement.layers),
            "penultimate": list(self.measurement.penultimate),
        }
        return (
            self.subject.description | layers | {"attacks": attacks, "digest": self.subject.digest}
        )

    @cached_property
    def measures(self) -> dict[str, dict[str, Float[ndarray, "r k"]]]:
        """The alignment measures by layer."""
        return {layer: self.measurement.measures(layer) for layer in self.measurement.layers}

    @property
    def evidence(self) -> claims.Evidence:
        measured = self.measurement
        overall, by_class = measured.accuracy(measured.worst)
        return claims.Evidence(
            model=self.label,
            method=self.subject.method,
            compute=self.subject.compute,
            measures=self.measures,
            robust=by_class,
            robust_overall=overall,
            decided_by=measured.decided_by,
            masked=self.masked,
            adaptive=any("joint-sweep" in name for name in measured.hits),
        )
