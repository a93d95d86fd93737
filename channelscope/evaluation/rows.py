"""From outcomes to tidy rows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from channelscope.data import Dataset, Split
from channelscope.distributed import world_size
from channelscope.evaluation.outcomes import Outcomes
from channelscope.evaluation.results import COLUMNS, Evaluation
from channelscope.statistics import alignment
from channelscope.study.models import Model
from channelscope.weights import versions

_PACKAGES = ("torchvision", "numpy", "pandas", "pyautoattack")


def assemble(
    subjects: Sequence[Model],
    found: Mapping[str, Outcomes],
    dataset: Dataset,
    part: Split,
    settings: Mapping[str, Any],
) -> Evaluation:
    """Put the outcomes into frames."""
    summary = _Summary(part.labels.cpu(), dataset.classes, settings)
    rows = {
        name: [row for item in found.items() for row in make(summary, *item)]
        for name, make in _ROWS.items()
    }
    frames = {
        name: pd.DataFrame(rows[name], columns=[*words, *numbers])
        for name, (words, numbers) in COLUMNS.items()
    }
    arrays = {"labels": part.labels.cpu().numpy()}
    for index, subject in enumerate(subjects):
        hits = found[subject.label].hits
        arrays |= {f"correct/{index}/{name}": stood.numpy() for name, stood in hits.items()}
    meta = _meta(subjects, found, dataset, part, settings)
    return Evaluation(**frames, arrays=arrays, meta=json.loads(json.dumps(meta)))


def _meta(
    subjects: Sequence[Model],
    found: Mapping[str, Outcomes],
    dataset: Dataset,
    part: Split,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    described = {}
    for subject in subjects:
        outcome = found[subject.label]
        described[subject.label] = subject.description | {
            "digest": subject.digest,
            "escalated": list(outcome.escalated),
            "notes": list(outcome.notes),
            "unchecked": dict(outcome.checks.skipped) if outcome.checks else {},
        }
    return {
        "models": described,
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "images": len(part),
            "fingerprint": part.fingerprint(),
        },
        **settings,
        "versions": versions() | {name: known for name in _PACKAGES if (known := _version(name))},
        "hardware": {
            "device": str(
                next((p.device for p in subjects[0].network.parameters()), torch.device("cpu"))
            ),
            "threads": torch.get_num_threads(),
            "processes": world_size(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _Summary:
    """Turns outcomes into accuracies with intervals."""

    def __init__(
        self, labels: Tensor, classes: tuple[str, ...], settings: Mapping[str, Any]
    ) -> None:
        self.labels, self.classes = labels, classes
        self.level, self.cascade = settings["level"], settings["cascade"]

    def overall(self, hits: Bool[Tensor, " n"]) -> alignment.Estimate:
        return alignment.wilson(int(hits.sum()), len(hits), self.level)

    def by_class(self, hits: Bool[Tensor, " n"]) -> Iterator[tuple[str, alignment.Estimate, int]]:
        for k, name in enumerate(self.classes):
            of_class = hits[self.labels == k]
            yield name, self.overall(of_class), len(of_class)


def _table(summary: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    hits = dict(outcome.hits)
    so_far = natural = hits.pop("natural")
    for name, stood in hits.items():
        so_far = so_far & stood
        alone, worst = summary.overall(stood), summary.overall(so_far)
        yield {
            "model": model,
            "attack": name,
            "natural": summary.overall(natural).value,
            "robust": alone.value,
            "low": alone.low,
            "high": alone.high,
            "worst": worst.value,
            "worst_low": worst.low,
            "worst_high": worst.high,
            "count": len(stood),
        }


def _classes(summary: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    for attack, stood in {**outcome.hits, "worst": outcome.worst}.items():
        for name, found, count in summary.by_class(stood):
            row = {"model": model, "attack": attack, "class": name, "accuracy": found.value}
            yield row | {"low": found.low, "high": found.high, "count": count}


def _worst(summary: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    found, natural = summary.overall(outcome.worst), outcome.hits["natural"]
    yield {
        "model": model,
        "decided_by": _decided_by(outcome, summary.cascade),
        "natural": summary.overall(natural).value,
        "robust": found.value,
        "low": found.low,
        "high": found.high,
        "count": len(natural),
    }


def _decided_by(outcome: Outcomes, cascade: bool) -> str:
    """Name the attack that broke the most images; in a cascade, of those that it was given."""
    given, broken = outcome.hits["natural"], {}
    for name, stood in outcome.hits.items():
        broken[name] = int((given & ~stood).sum())
        given = stood if cascade else given
    most = max(broken, key=lambda name: broken[name])
    return most if broken[most] else "no attack"


def _parts(_: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    for (attack, part), given in outcome.attacked.items():
        broken = outcome.broken[attack, part]
        yield {"model": model, "attack": attack, "part": part, "attacked": given, "broken": broken}


def _warnings(_: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    for finding in outcome.checks.findings if outcome.checks else ():
        evidence = json.dumps(finding.evidence)
        yield {
            "model": model,
            "check": finding.check,
            "sentence": finding.sentence,
            "evidence": evidence,
        }


def _eps_sweep(summary: _Summary, model: str, outcome: Outcomes) -> Iterator[dict[str, Any]]:
    for eps, stood in outcome.sweep.items():
        found = summary.overall(stood)
        yield {
            "model": model,
            "eps": eps,
            "robust": found.value,
            "low": found.low,
            "high": found.high,
        }


_ROWS = {
    "table": _table,
    "classes": _classes,
    "worst": _worst,
    "parts": _parts,
    "warnings": _warnings,
    "eps_sweep": _eps_sweep,
}
