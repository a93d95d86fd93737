"""The networks under comparison, and what is known of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from channelscope import claims
from channelscope.checkpoints import METHOD_NAMES, Checkpoint
from channelscope.data import Dataset
from channelscope.errors import UserError
from channelscope.measurement import Measurement

Network = nn.Module | Checkpoint | str | Path


@dataclass
class Subject:
    """One network under comparison."""

    label: str
    network: nn.Module
    method: str | None
    checkpoint: Checkpoint | None
    measurement: Measurement = field(init=False)

    def check(self, dataset: Dataset) -> None:
        names = self.checkpoint.class_names if self.checkpoint else None
        if names and names != dataset.classes:
            raise UserError(
                f"{self.label} was trained on other classes ({_some(names)}) than {dataset.name} has "
                f"({_some(dataset.classes)}): choose the data that it was trained on."
            )

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the network's training."""
        return self.checkpoint.meta if self.checkpoint else {}

    @property
    def compute(self) -> dict[str, Any] | None:
        """What the training cost, as far as it is on record."""
        settings = self.training.get("settings")
        if settings is None:
            return None
        costly = ("arch", "width", "epochs", "batch_size", "attack_steps")
        return {name: settings["recipe"].get(name) for name in costly} | {"data": settings["data"]}

    @property
    def description(self) -> dict[str, Any]:
        known: dict[str, Any] = {"method": self.method, "layers": list(self.measurement.layers)}
        if self.checkpoint:
            known |= dataclasses.asdict(self.checkpoint.architecture)
            known["gates"] = [dataclasses.asdict(gate) for gate in self.checkpoint.gates]
            known |= {name: self.training[name] for name in ("settings", "versions") if name in self.training}
        else:
            known["arch"] = type(self.network).__name__
        return known | {"attacks": [name for name in self.measurement.hits if name != "natural"]}

    @property
    def evidence(self) -> claims.Evidence:
        measured = self.measurement
        overall, by_class = measured.accuracy(measured.worst)
        return claims.Evidence(
            model=self.label,
            method=self.method,
            compute=self.compute,
            measures={layer: measured.measures(layer) for layer in measured.layers},
            robust=by_class,
            robust_overall=overall,
            decided_by=measured.decided_by,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def subjects_of(
    models: Mapping[str, Network] | Sequence[str | Path], methods: Mapping[str, str], device: str
) -> list[Subject]:
    """Load what is named by path, and label what is not."""
    if not isinstance(models, Mapping):
        labels = [Path(path).stem for path in models]
        if len(set(labels)) < len(labels):
            raise UserError("Two models have the same file name: give each its own label.")
        models = dict(zip(labels, models, strict=True))
    if not models:
        raise UserError("There is nothing to compare: name at least one model.")
    if unknown := methods.keys() - models.keys():
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(models)}.")
    if unknown := set(methods.values()) - set(METHOD_NAMES):
        raise UserError(f"There is no method {min(unknown)!r}: choose from {', '.join(METHOD_NAMES)}.")
    subjects = []
    for label, model in models.items():
        if isinstance(model, nn.Module):
            subjects.append(Subject(label, model, methods.get(label), None))
        else:
            checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.read(model)
            method = methods.get(label, checkpoint.method)
            subjects.append(Subject(label, checkpoint.build().to(device), method, checkpoint))
    return subjects
