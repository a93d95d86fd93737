"""From measurements to tidy rows."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from torch import nn

from channelscope import claims
from channelscope.comparison import (
    confusion,
    decay,
    differences,
    excitation,
    flow,
    leakage,
    masks,
    matching,
)
from channelscope.comparison.frames import COLUMNS, Comparison, tidy
from channelscope.comparison.subjects import Compared
from channelscope.data import Dataset, Split
from channelscope.distributed import world_size
from channelscope.statistics import alignment
from channelscope.weights import GATE_LOG, versions


def assemble(
    networks: Sequence[Compared], dataset: Dataset, part: Split, settings: dict[str, Any]
) -> Comparison:
    """Put the measurements into frames."""
    level = settings["level"]
    judged = claims.verdicts([subject.evidence for subject in networks], level)
    packages = ("torchvision", "numpy", "scipy", "pandas", "matplotlib")
    meta = {
        "models": {subject.label: subject.description for subject in networks},
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "images": len(part),
            "fingerprint": part.fingerprint(),
        },
        **settings,
        "versions": versions() | {name: version(name) for name in packages},
        "hardware": {
            "device": str(_device(networks[0].subject.network)),
            "threads": torch.get_num_threads(),
            "processes": world_size(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    meta = json.loads(json.dumps(meta))  # as it is when it is read again: tuples are lists
    arrays = {"labels": part.labels.cpu().numpy()}
    for index, subject in enumerate(networks):
        arrays |= {
            f"correct/{index}/{name}": hits.numpy()
            for name, hits in subject.measurement.hits.items()
        }
    arrays |= excitation.thumbnails(networks)
    return Comparison(
        activations=pd.concat(
            [_activations(subject, dataset.classes) for subject in networks], ignore_index=True
        ),
        alignment=tidy(
            "alignment", [row for s in networks for row in _alignment(s, dataset.classes, level)]
        ),
        robustness=tidy(
            "robustness", [row for s in networks for row in _robustness(s, dataset.classes, level)]
        ),
        verdicts=tidy("verdicts", [dataclasses.asdict(verdict) for verdict in judged]),
        training=tidy("training", [row for s in networks for row in _training(s)]),
        gates=tidy("gates", [row for s in networks for row in _gates(s)]),
        flow=flow.frame(networks, dataset.classes),
        confusion=confusion.frame(networks, dataset.classes),
        decay=decay.frame(networks, level),
        differences=differences.frame(networks, dataset.classes, level),
        masks=masks.frame(networks, dataset.classes),
        spread=masks.spread(networks, dataset.classes, level),
        leakage=leakage.frame(networks, level),
        matching=matching.of_layers(networks, level),
        matched=matching.of_channels(networks),
        excitation=excitation.frame(networks),
        arrays=arrays,
        meta=meta,
    )


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


def _activations(subject: Compared, classes: Sequence[str]) -> pd.DataFrame:
    """Lay out one network's statistics, a row for each kind of data, layer, class and channel."""
    measured, frames = subject.measurement, []
    for data, statistics in (("natural", measured.natural), ("adversarial", measured.adversarial)):
        for layer, stats in statistics.items():
            rows = pd.MultiIndex.from_product(
                [classes, range(stats.channels)], names=["class", "channel"]
            )
            frame = rows.to_frame(index=False)
            frame["magnitude"] = stats.magnitude[0].flatten().numpy()
            frame["frequency"] = stats.frequency[0].flatten().numpy()
            frame["relevance"] = measured.relevance[layer].magnitude[0].flatten().numpy()
            frame["count"] = stats.count[0].repeat_interleave(stats.channels).long().numpy()
            frames.append(frame.assign(model=subject.label, data=data, layer=layer))
    return pd.concat(frames, ignore_index=True)[
        [*COLUMNS["activations"][0], *COLUMNS["activations"][1]]
    ]


def _alignment(subject: Compared, classes: Sequence[str], level: float) -> Iterator[dict[str, Any]]:
    """Give the alignment measures' rows: each class, all classes, and the correlation across them."""
    evidence = subject.evidence
    for layer, measures in evidence.measures.items():
        for measure, values in measures.items():
            columns = {"all": alignment.mean_over_classes(values)} | dict(
                zip(classes, values.T, strict=True)
            )
            for name, replicates in columns.items():
                row = {"model": subject.label, "layer": layer, "class": name, "measure": measure}
                yield row | vars(alignment.estimate(replicates, level, alignment.BOUNDS[measure]))
        link = alignment.across_classes(measures["relevance_spearman_adversarial"], evidence.robust)
        row = {
            "model": subject.label,
            "layer": layer,
            "class": "across",
            "measure": "relevance_robust_correlation",
        }
        yield row | vars(
            alignment.estimate(link, level, alignment.BOUNDS["relevance_robust_correlation"])
        )


def _training(subject: Compared) -> list[dict[str, Any]]:
    """Give the rows of one network's training log; none where it is unknown."""
    return [{"model": subject.label} | row for row in subject.subject.training.get("history", ())]


def _gates(subject: Compared) -> Iterator[dict[str, Any]]:
    """Give the rows of each gate, epoch by epoch: the log names their columns by layer and measure."""
    log = _training(subject)
    columns = [name.rpartition(".") for name in (log[0] if log else ())]
    for layer in dict.fromkeys(layer for layer, dot, _ in columns if dot):
        for row in log:
            measured = {name: row[f"{layer}.{name}"] for name in GATE_LOG}
            yield {"model": subject.label, "layer": layer, "epoch": row["epoch"]} | measured


def _robustness(
    subject: Compared, classes: Sequence[str], level: float
) -> Iterator[dict[str, Any]]:
    """Give the accuracy's rows: natural, under each attack and in the worst case, over all images and by class."""
    measured = subject.measurement
    counts = torch.bincount(measured.labels, minlength=len(classes)).tolist()
    for attack, hits in {**measured.hits, "worst": measured.worst}.items():
        overall, by_class = measured.accuracy(hits)
        columns = [("all", overall, len(hits)), *zip(classes, by_class.T, counts, strict=True)]
        for name, replicates, count in columns:
            found = alignment.estimate(replicates, level, (0.0, 1.0))
            row = {"model": subject.label, "attack": attack, "class": name, "accuracy": found.value}
            yield row | {"low": found.low, "high": found.high, "count": count}
