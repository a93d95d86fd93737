"""The networks under comparison: what is known of each, and what was measured."""

from dataclasses import dataclass
from typing import Any

from channelscope import claims
from channelscope.measurement import Measurement
from channelscope.subjects import Subject


@dataclass(frozen=True)
class Compared:
    """One network, its measurement, and the signs of gradient masking that an evaluation found."""

    subject: Subject
    measurement: Measurement
    masked: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        return self.subject.label

    @property
    def description(self) -> dict[str, Any]:
        attacks = [name for name in self.measurement.hits if name != "natural"]
        return self.subject.description | {"layers": list(self.measurement.layers), "attacks": attacks}

    @property
    def evidence(self) -> claims.Evidence:
        measured = self.measurement
        overall, by_class = measured.accuracy(measured.worst)
        return claims.Evidence(
            model=self.label,
            method=self.subject.method,
            compute=self.subject.compute,
            measures={layer: measured.measures(layer) for layer in measured.layers},
            robust=by_class,
            robust_overall=overall,
            decided_by=measured.decided_by,
            masked=self.masked,
            adaptive=any("joint-sweep" in name for name in measured.hits),
        )
