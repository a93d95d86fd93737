"""Studies from arrays, for tests of analyses and figures: no network is run, nothing needs torch.

Keys of arrays, with M a model's place, DATA natural, adversarial or a strength such as eps-0.05,
TOLD true or wrong: labels, weights, correct/M/ATTACK, answers/M/DATA, activations/M/DATA/LAYER,
relevance/M/LAYER, weight/M, bias/M, scores/M/LAYER/SCORER, masks/M/DATA/none|TOLD/GATE,
probes/M/DATA/GATE,
told_answers/M/DATA/TOLD, told_labels/TOLD, pictures/DATA, pictures/M/DATA.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from channelscope.analyses.base import (
    Damage,
    Edges,
    Finding,
    Kind,
    Outcome,
    SuppressedLayer,
    analyses_of,
    make_tables,
)
from channelscope.result import Result

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MODELS = ("nat", "at", "cifs")
METHODS = {"nat": "standard"}  # of the others: their names
ATTACK = "pgd-20"
# By model: how far an attack moves activations, how closely they follow the relevance, natural and
# robust accuracy.
CHARACTER = {
    "nat": (0.9, 0.5, 0.95, 0.1),
    "at": (0.35, 0.7, 0.84, 0.46),
    "cifs": (0.2, 0.9, 0.82, 0.51),
}


@dataclass(eq=False)
class KeptStudy:
    """A study whose arrays are given; see ``analyses.base.Study``.

    Args:
        arrays: see above.
        known: by label what is known of each model: method, arch, layers, penultimate, gates,
            settings, digest, compute, training (its log).
        classes: their names.
        settings: of the study.
        kind: of results.
        outcomes: of attacks and checks, by model.
        faulty: why a model's numbers cannot be trusted, by model.
        suppression: of interventions, by model and layer.
        damages: of an attack, by model.
    """

    arrays: Mapping[str, np.ndarray]
    known: Mapping[str, Mapping[str, Any]]
    classes: tuple[str, ...] = CLASSES
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "comparison"
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    faulty: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    suppression: Mapping[str, Mapping[str, SuppressedLayer]] = field(default_factory=dict)
    damages: Mapping[str, Damage] = field(default_factory=dict)
    memory: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["labels"]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.known)

    @property
    def weights(self) -> np.ndarray:
        return self.arrays["weights"].astype(np.float64)

    def describe(self, model: str) -> Mapping[str, Any]:
        return {key: value for key, value in self.known[model].items() if key != "training"}

    def history(self, model: str) -> Sequence[Mapping[str, Any]]:
        return self.known[model].get("training", ())

    def layers(self, model: str) -> tuple[str, ...]:
        return tuple(self.known[model]["layers"])

    def penultimate(self, model: str) -> tuple[str, ...]:
        return tuple(self.known[model].get("penultimate", ()))

    def head(self, model: str) -> tuple[np.ndarray, np.ndarray] | None:
        index = self.models.index(model)
        if f"weight/{index}" not in self.arrays:
            return None
        return self.arrays[f"weight/{index}"], self.arrays[f"bias/{index}"]

    def activations(self, model: str, layer: str, data: str = "natural") -> np.ndarray:
        return self._array("activations", model, data, layer)

    def relevance(self, model: str, layer: str, scorer: str | None = None) -> np.ndarray:
        if scorer is None:
            return self._array("relevance", model, layer)
        return self._array("scores", model, layer, scorer)

    def answers(self, model: str, data: str = "natural", told: str = "none") -> np.ndarray:
        if told == "none":
            return self._array("answers", model, data)
        return self._array("told_answers", model, data, told)

    def attacks(self, model: str) -> tuple[str, ...]:
        return tuple(name for name in self._names("correct", model) if name != "natural")

    def correct(self, model: str, attack: str = "natural") -> np.ndarray:
        return self._array("correct", model, attack)

    def gates(self, model: str) -> tuple[str, ...]:
        return tuple(self._names("masks", model, "natural", "none"))

    def masks(self, model: str, gate: str, data: str = "natural", told: str = "none") -> np.ndarray:
        return self._array("masks", model, data, told, gate)

    def probes(self, model: str, data: str = "natural") -> Mapping[str, np.ndarray]:
        names = self._names("probes", model, data)
        return {gate: self._array("probes", model, data, gate) for gate in names}

    def told(self, model: str) -> Mapping[str, np.ndarray]:
        index = self.models.index(model)
        names = ("true", "wrong") if f"told_answers/{index}/natural/true" in self.arrays else ()
        return {name: self.arrays[f"told_labels/{name}"] for name in names}

    def strengths(self) -> Sequence[tuple[str, float, str]]:
        names = [name.split("/")[2] for name in self.arrays if name.startswith("answers/0/")]
        matches = [re.fullmatch("(eps|step)-(.*)", name) for name in names]
        return sorted((match[1], float(match[2]), match[0]) for match in matches if match)

    def thumbnails(self, model: str, data: str, images: Sequence[int]) -> np.ndarray | None:
        key = f"pictures/{self.models.index(model)}/{data}"
        pictures = self.arrays.get(key, self.arrays.get(f"pictures/{data}"))
        return None if pictures is None else pictures[list(images)]

    def outcome(self, model: str) -> Outcome:
        return self.outcomes.get(model, Outcome())

    def faults(self, model: str) -> tuple[Finding, ...]:
        return self.faulty.get(model, ())

    def suppressed(self, model: str) -> Mapping[str, SuppressedLayer]:
        return self.suppression.get(model, {})

    def damage(self, model: str) -> Damage:
        return self.damages[model]

    def edges(self, model: str) -> Edges | None:
        return None

    def memo(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]

    def _array(self, what: str, model: str, *path: str) -> np.ndarray:
        return self.arrays["/".join((what, str(self.models.index(model)), *path))]

    def _names(self, what: str, model: str, *path: str) -> list[str]:
        prefix = "/".join((what, str(self.models.index(model)), *path, ""))
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]


def make_result(study: KeptStudy, *names: str) -> Result:
    """Compute analyses, those of these names or all, as a study's run does."""
    chosen = [item for item in analyses_of(study.kind) if not names or item.name in names]
    tables, further = make_tables(study, chosen)
    arrays = {
        name: array
        for name, array in study.arrays.items()
        if name == "labels" or name.startswith("correct/")
    }
    data = {"name": "cifar10", "classes": list(study.classes), "images": len(study.labels)}
    attacks = {model: {"attacks": list(study.attacks(model))} for model in study.models}
    meta = {
        "models": {
            model: {"digest": "ab" * 32, **study.describe(model), **attacks[model]}
            for model in study.models
        },
        "data": data | {"fingerprint": "ab" * 32},
        "versions": {"channelscope": "0.1.0"},
        **study.settings,
    }
    return Result(study.kind, tables, arrays | further, meta)


def synthetic_study(
    models: Sequence[str] = MODELS,
    classes: Sequence[str] = CLASSES,
    layers: Sequence[str] = ("layer4",),
    *,
    kind: Kind = "comparison",
    channels: int = 24,
    empty: Sequence[str] = (),
    epochs: int = 12,
    count: int = 30,
    gates: Sequence[str] = (),
    swept: bool = False,
    replicates: int = 40,
) -> KeptStudy:
    """Return a study of arrays drawn from a fixed seed.

    Args:
        models: labels; those of ``CHARACTER`` behave so.
        classes, empty: all classes, and those without images.
        layers: measured ones, the same in every model.
        kind: of the study.
        channels: of each layer and gate.
        epochs: of each model's training log; 0 for none.
        count: images of a class.
        gates: gated layers, of every model.
        swept: whether the attack has further strengths.
        replicates: of the bootstrap.
    """
    rng = np.random.default_rng(0)
    numbers = [k for k, name in enumerate(classes) if name not in empty]
    labels = rng.permutation(np.repeat(numbers, count)).astype(np.int64)
    drawn = rng.integers(len(labels), size=(replicates, len(labels)))
    weights = [np.ones(len(labels)), *(np.bincount(row, minlength=len(labels)) for row in drawn)]
    arrays: dict[str, np.ndarray] = {"labels": labels, "weights": np.stack(weights, 1)}
    if gates:
        wrong = (labels + rng.integers(1, max(len(classes), 2), len(labels))) % len(classes)
        arrays |= {"told_labels/true": labels, "told_labels/wrong": wrong}
    strengths = ("eps-0.01", "eps-0.02", "step-1", "step-5") if swept else ()
    for index, model in enumerate(models):
        arrays |= _draw_answers(rng, index, model, labels, len(classes), strengths)
        for layer in layers:
            arrays |= _draw_layer(rng, index, model, layer, labels, channels, strengths)
        for gate in gates:
            arrays |= _draw_gate(rng, index, gate, labels, len(classes), channels)
    known = {
        model: {
            "method": METHODS.get(model, model),
            "arch": "resnet18",
            "width": 16,
            "layers": list(layers),
            "penultimate": [layers[-1]],
            "gates": [{"layer": gate, "kind": "cifs"} for gate in gates],
            "compute": {"epochs": epochs},
            "digest": f"{index:064}",
            "training": _draw_history(model, epochs, gates),
        }
        for index, model in enumerate(models)
    }
    settings = {
        "attack": ATTACK,
        "attacks": [ATTACK],
        "eps": 8 / 255,
        "norm": "inf",
        "cascade": False,
        "seed": 0,
        "replicates": replicates,
        "level": 0.95,
        "threshold": 0.01,
        "versions": {"channelscope": "0.1.0"},
    }
    return KeptStudy(arrays, known, tuple(classes), settings, kind)


def _draw_answers(
    rng: np.random.Generator,
    index: int,
    model: str,
    labels: np.ndarray,
    classes: int,
    strengths: Sequence[str],
) -> dict[str, np.ndarray]:
    _, _, natural, robust = CHARACTER.get(model, CHARACTER["at"])
    level = np.clip(robust * (1 + 0.25 * rng.normal(size=classes)), 0, 1)[labels]
    chance = rng.random(len(labels))
    wrong = (labels + rng.integers(1, max(classes, 2), len(labels))) % classes
    arrays = {}
    for data, share in {"natural": natural, "adversarial": level}.items():
        arrays[f"answers/{index}/{data}"] = np.where(chance < share, labels, wrong)
    for place, name in enumerate(strengths):
        milder = level + (natural - level) / (2 + place)
        arrays[f"answers/{index}/{name}"] = np.where(chance < milder, labels, wrong)
    attacked = arrays[f"answers/{index}/adversarial"] == labels
    return arrays | {
        f"correct/{index}/natural": arrays[f"answers/{index}/natural"] == labels,
        f"correct/{index}/{ATTACK}": attacked,
    }


def _draw_layer(
    rng: np.random.Generator,
    index: int,
    model: str,
    layer: str,
    labels: np.ndarray,
    channels: int,
    strengths: Sequence[str],
) -> dict[str, np.ndarray]:
    shift, follow, _, _ = CHARACTER.get(model, CHARACTER["at"])
    classes = labels.max() + 1
    relevance = rng.normal(0, 0.1, (classes, channels))
    noise = rng.normal(size=(classes, channels))
    means = 0.3 * np.exp(10 * follow * relevance + (1 - follow) * noise)
    moved = rng.permuted(means, axis=1) * rng.uniform(0.5, 1.5, (classes, channels))
    spread = rng.gamma(4, 0.25, (len(labels), channels))
    arrays = {f"relevance/{index}/{layer}": relevance[labels]}
    parts = {"natural": 0.0, "adversarial": shift}
    parts |= {name: shift * (1 + place) / 5 for place, name in enumerate(strengths)}
    for data, part in parts.items():
        mixed = (1 - part) * means[labels] + part * moved[labels]
        # As after a ReLU: each channel is silent on some images.
        arrays[f"activations/{index}/{data}/{layer}"] = np.maximum(mixed * spread - 0.2, 0)
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def _draw_gate(
    rng: np.random.Generator,
    index: int,
    gate: str,
    labels: np.ndarray,
    classes: int,
    channels: int,
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    # Gates whose layers end in 0 have masks of both signs, as CAS.
    means = rng.normal(0 if gate.endswith("0") else 1, 0.2, (classes, channels))
    for data in ("natural", "adversarial"):
        for told in ("none", "true", "wrong"):
            masks = means[labels] + rng.normal(0, 0.05, (len(labels), channels))
            arrays[f"masks/{index}/{data}/{told}/{gate}"] = masks.astype(np.float32)
            if told != "none":
                answers = rng.integers(classes, size=len(labels))
                arrays[f"told_answers/{index}/{data}/{told}"] = answers
    return arrays


def _draw_history(model: str, epochs: int, gates: Sequence[str]) -> list[dict[str, Any]]:
    _, _, natural, robust = CHARACTER.get(model, CHARACTER["at"])
    rows = []
    for epoch in range(1, epochs + 1):
        done = 1 - np.exp(-3 * epoch / epochs)
        row = {
            "epoch": epoch,
            "loss": 2.3 * (1 - 0.7 * done),
            "accuracy": 0.9 * done,
            "lr": 0.1,
            "val_natural": natural * done,
            "val_robust": robust * (done - 0.1 * (epoch / epochs) ** 6),
            "seconds": 12.0,
            "best": epoch == max(1, epochs - 2),
        }
        for place, gate in enumerate(gates, start=1):
            depth = place / len(gates)
            row |= {
                f"{gate}.probe_natural": 0.9 * done * depth,
                f"{gate}.probe_robust": 0.5 * done * depth,
                f"{gate}.mask_natural": 1 - 0.6 * done,
                f"{gate}.mask_adversarial": 1 - 0.4 * done,
                f"{gate}.mask_cosine": 1 - 0.1 * done,
            }
        rows.append(row)
    return rows


def replace_tables(result: Result, **tables: Any) -> Result:
    """Return a result with other tables, by name."""
    return replace(result, tables={**result.tables, **tables})
