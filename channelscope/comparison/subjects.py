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

_OF_GATES = ("attack.beta_atk",)  # settings outside the recipe's section on gates that matter to gates alone


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
        """What decides the cost and the strength of the training, as far as it is on record."""
        settings = self.training.get("settings")
        if settings is None:
            return None
        assert self.checkpoint is not None  # it has settings
        recipe = {name: value for name, value in _flat(settings["recipe"]).items() if name not in _OF_GATES}
        return recipe | {"model.width": self.checkpoint.architecture.base_width, "data": settings["data"]}

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


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Name a recipe's settings in full, ``optimizer.lr``, but for those of its gates."""
    sections = {name: values for name, values in recipe.items() if isinstance(values, Mapping) and name != "gates"}
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def subjects_of(
    models: Mapping[str, Network] | Sequence[str | Path], methods: Mapping[str, str], device: str
) -> list[Subject]:
    """Load what is named by path, and label what is not."""
    by_label = _labelled(models)
    if unknown := methods.keys() - by_label.keys():
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(by_label)}.")
    if unknown := set(methods.values()) - set(METHOD_NAMES):
        raise UserError(f"There is no method {min(unknown)!r}: choose from {', '.join(METHOD_NAMES)}.")
    return [_subject(label, model, methods.get(label), device) for label, model in by_label.items()]


def _labelled(models: Mapping[str, Network] | Sequence[str | Path]) -> dict[str, Network]:
    if isinstance(models, str | Path | nn.Module):
        raise UserError("Give the models as a list of paths, or as {label: network or path}.")
    if not isinstance(models, Mapping):
        if not all(isinstance(path, str | Path) for path in models):
            raise UserError("Only paths can be listed without labels: give networks as {label: network}.")
        labels = [Path(path).stem for path in models]
        if len(set(labels)) < len(labels):
            raise UserError("Two models have the same file name: give each its own label.")
        models = dict(zip(labels, models, strict=True))
    if not models:
        raise UserError("There is nothing to compare: name at least one model.")
    if strange := [label for label in models if not label.isprintable()]:
        raise UserError(f"The label {strange[0]!r} has characters that cannot be printed: choose another.")
    return dict(models)


def _subject(label: str, model: Network, method: str | None, device: str) -> Subject:
    if isinstance(model, nn.Module):
        return Subject(label, model, method, None)
    if not isinstance(model, Checkpoint | str | Path):
        raise UserError(f"{label} is a {type(model).__name__}: give a network (torch.nn.Module) or a path.")
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.read(model)
    return Subject(label, checkpoint.build().to(device), method or checkpoint.method, checkpoint)
