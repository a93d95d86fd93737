"""Scorers beside each other: how relevant each finds the channels of networks, and whether they rank them alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from channelscope import files
from channelscope.data import as_dataset, sample_stratified
from channelscope.errors import UserError
from channelscope.figures.paper import write
from channelscope.figures.scorers import scorer_agreement, scorer_agreement_data
from channelscope.files import atomic_folder, write_digests
from channelscope.locks import lock_path
from channelscope.scorers import COSTS, Scored, choose_layers, get_scorer, score_layers, take_few
from channelscope.statistics.alignment import (
    FEWEST_REPLICATES,
    estimate,
    mean_over_classes,
    spearman,
)
from channelscope.statistics.streaming import ChannelStats, bootstrap_weights
from channelscope.study.models import (
    Model,
    Network,
    get_parameter,
    layers_by_label,
    load_models,
    widen_classes,
)
from channelscope.weights import versions

COLUMNS = {
    "relevance": ("model", "layer", "scorer", "class", "channel", "relevance"),
    "agreement": ("model", "layer", "scorer", "other", "value", "low", "high"),
}


@dataclass(frozen=True)
class Rankings:
    """What several scorers say of the channels of networks.

    Args:
        relevance: model, layer, scorer, class, channel -> relevance; NaN for a class without images.
        agreement: model, layer, scorer, other -> Spearman's correlation of the two scorers' relevance over the
            channels, mean over the classes: value, low, high.
        meta: settings, data, versions, and, under ``refused``, which scorer has no scores of which layer, and why.
    """

    relevance: pd.DataFrame
    agreement: pd.DataFrame
    meta: dict[str, Any]

    @property
    def counts(self) -> pd.DataFrame:
        """Count the channels that speak for a class (PR) and against it (NR), mean over the classes with images."""
        known = self.relevance.dropna(subset=["relevance"])
        by_scorer = known.groupby(["model", "layer", "scorer"], sort=False)
        classes = by_scorer["class"].nunique()
        signs = {"positive": known["relevance"] > 0, "negative": known["relevance"] < 0}
        keys = [known[name] for name in ("model", "layer", "scorer")]
        return pd.DataFrame(
            {name: sign.groupby(keys, sort=False).sum() / classes for name, sign in signs.items()}
        )

    def save(self, folder: Path | str) -> Path:
        """Write the tables (CSV), ``meta.json`` and the figure of agreement (PDF, PNG, CSV) into a folder.

        An earlier result there is replaced, when the new one is complete.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder).resolve()
        check_folder(folder)
        with lock_path(folder), atomic_folder(folder) as temporary:
            for name in COLUMNS:
                getattr(self, name).to_csv(temporary / f"{name}.csv", index=False)
            (temporary / "meta.json").write_text(
                json.dumps(self.meta, indent=1, ensure_ascii=False), "utf-8"
            )
            write_digests(temporary)
            if len(self.agreement):
                (temporary / "figures").mkdir()
                figure = scorer_agreement(self.agreement, self.meta)
                drawn = scorer_agreement_data(self.agreement)
                write(figure, drawn, temporary / "figures" / "scorer-agreement", ("pdf", "png"))
        return folder


def rank(
    models: Mapping[str, Network] | Sequence[str | Path],
    data: Any = "digits",
    *,
    layers: Sequence[str] | None = None,
    scorers: Sequence[str] = ("gradient", "gradient-x-activation", "ablation"),
    images: int | None = None,
    seed: int = 0,
    replicates: int = 200,
    level: float = 0.95,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Rankings:
    """Let several scorers rank the channels of networks on the test part of a data set, and compare the rankings.

    A scorer that does not apply to a layer is left out there; ``meta["refused"]`` says why.

    Args:
        models, data, images, seed, batch_size, device, progress: as in ``compare``.
        layers: names and patterns, such as ``layer4.*``; None for each network's penultimate layer.
        scorers: names among ``relevance.SCORERS``.
        replicates, level: of the bootstrap over images behind the intervals.

    Raises:
        UserError: for models, data, layers or settings that do not fit together, or where no scorer has any scores.
    """
    if replicates < FEWEST_REPLICATES or not 0 < level < 1 or batch_size < 1:
        raise UserError(
            f"Intervals need at least {FEWEST_REPLICATES} replicates and a level between 0 and 1, and a batch an image."
        )
    named = {name: get_scorer(name) for name in scorers}
    subjects, dataset = load_models(models, {}, device), as_dataset(data)
    by_label = layers_by_label(layers, [subject.label for subject in subjects])
    for subject in subjects:
        subject.check(dataset)
    classes = widen_classes(dataset, [subject.network for subject in subjects]).classes
    part = (
        dataset.test
        if images is None
        else dataset.test.subset(sample_stratified(dataset.test.labels, images, seed))
    )
    found: dict[str, Scored] = {}
    with tqdm(
        total=len(part) * len(subjects) * len(named), unit="img", disable=not progress
    ) as bar:
        for subject in subjects:
            bar.set_description(subject.label)
            chosen, _ = choose_layers(
                subject.network,
                by_label[subject.label],
                take_few(subject.network, part),
                len(classes),
            )
            found[subject.label] = score_layers(
                subject.network,
                part,
                len(classes),
                layers=chosen,
                scorers=named,
                weights=bootstrap_weights(len(part), replicates, seed),
                batch_size=batch_size,
                progress=bar.update,
            )
    if not any(of_scorer for scored in found.values() for of_scorer in scored.relevance.values()):
        raise UserError(
            next(reason for scored in found.values() for reason in scored.refused.values())
        )
    settings = {
        "scorers": {name: str(COSTS[name]) for name in named},
        "layers": None if layers is None else list(layers),
        "seed": seed,
        "replicates": replicates,
        "level": level,
        "batch_size": batch_size,
    }
    known = {
        "name": dataset.name,
        "classes": list(classes),
        "images": len(part),
        "fingerprint": part.fingerprint(),
    }
    return Rankings(
        relevance=_frame(
            "relevance", (row for item in found.items() for row in _relevance(*item, classes))
        ),
        agreement=_frame(
            "agreement", (row for item in found.items() for row in _agreement(*item, level))
        ),
        meta=_meta(subjects, found, known, settings),
    )


def _meta(
    subjects: Sequence[Model],
    found: Mapping[str, Scored],
    data: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Say what was done, on what and with what, as plain values."""
    refused = [
        {"model": model, "scorer": scorer, "layer": layer, "reason": reason}
        for model, scored in found.items()
        for (scorer, layer), reason in scored.refused.items()
    ]
    packages = ("captum", "torchvision", "numpy", "scipy", "pandas", "matplotlib")
    meta = {
        "models": {
            subject.label: subject.description | {"layers": list(found[subject.label].layers)}
            for subject in subjects
        },
        "data": data,
        **settings,
        "refused": refused,
        "versions": versions() | {name: version(name) for name in packages},
        "hardware": {
            "device": str(get_parameter(subjects[0].network).device),
            "threads": torch.get_num_threads(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return dict(json.loads(json.dumps(meta)))  # tuples are lists, as they are when it is read again


def _frame(name: str, rows: Iterator[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS[name]))


def _relevance(model: str, scored: Scored, classes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for layer, at in _by_layer(scored).items():
        for scorer, stats in at.items():
            for name, row in zip(classes, stats.magnitude[0].tolist(), strict=True):
                for channel, value in enumerate(row):
                    yield model, layer, scorer, name, channel, value


def _agreement(model: str, scored: Scored, level: float) -> Iterator[tuple[Any, ...]]:
    """Compare the scorers of each layer, two and two."""
    for layer, at in _by_layer(scored).items():
        relevance = {scorer: stats.magnitude.numpy() for scorer, stats in at.items()}
        for one, other in combinations(relevance, 2):
            alike = estimate(
                mean_over_classes(spearman(relevance[one], relevance[other])), level, (-1.0, 1.0)
            )
            yield model, layer, one, other, alike.value, alike.low, alike.high


def _by_layer(scored: Scored) -> dict[str, dict[str, ChannelStats]]:
    """Give layer -> scorer -> statistics, the layers in the order given."""
    return {
        layer: {
            name: by_layer[layer]
            for name, by_layer in scored.relevance.items()
            if layer in by_layer
        }
        for layer in scored.layers
    }


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but earlier rankings."""
    files.check_result_folder(folder, {f"{name}.csv" for name in COLUMNS}, {"meta.json", "figures"})
