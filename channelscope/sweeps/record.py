"""The record of a sweep, ``sweep.json``: its settings, and the results so far."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from channelscope import distributed
from channelscope.analyses.sweeps import ACCURACIES, TABLE, VARIANTS
from channelscope.data import Dataset
from channelscope.errors import UserError
from channelscope.files import atomic_write
from channelscope.reading import read_json
from channelscope.statistics.effects import estimate_effect
from channelscope.statistics.intervals import Estimate, wilson
from channelscope.sweeps.variants import Variant, to_words

Row = dict[str, Any]
_REPLICATES = 500  # resamples of the images

# The numbers of the table but for the seed, and their types.
COLUMNS = {name: "float64" for name in TABLE.numbers if name != "seed"} | {
    "best_epoch": "Int64",
    "trained_epochs": "Int64",
}


@dataclass(frozen=True)
class Training:
    """The training of a variant with a seed."""

    variant: Variant
    seed: int

    @property
    def file(self) -> str:
        return f"{self.variant.slug}-s{self.seed}.pt"


def sweep_rows(
    trainings: Sequence[Training], settings: Sequence[str], results: Mapping[str, Row]
) -> pd.DataFrame:
    """Make the table of a sweep: a row for each training that has a result.

    Args:
        trainings: in the order of the table.
        settings: the varied settings.
        results: file of a checkpoint -> its measurements, or {"trouble": why there are none}.
    """
    rows = []
    for training in trainings:
        if (result := results.get(training.file)) is not None:
            values = {
                name: value if type(value) in (int, float) else to_words(value)
                for name, value in training.variant.changes.items()
            }
            row = {"variant": training.variant.name, "seed": training.seed, **values, **result}
            rows.append({"trouble": "", **row, "file": training.file})
    columns = ["variant", "seed", *settings, *COLUMNS, "trouble", "file"]
    return pd.DataFrame(rows, columns=columns).astype(COLUMNS)


def variant_rows(
    trainings: Sequence[Training], results: Mapping[str, Row], images: int, level: float
) -> pd.DataFrame:
    """Make the table of a sweep's variants: mean accuracies, with intervals.

    Args:
        trainings: in the order of the table.
        results: file of a checkpoint -> its measurements, among them which images were "correct".
        images: number of test images.
        level: coverage of the intervals, in (0, 1).
    """
    networks: dict[str, list[Row]] = {}
    for training in trainings:
        row = results.get(training.file, {})
        networks.setdefault(training.variant.name, []).extend([row] if "correct" in row else [])
    # The same resamples of the images for all networks, which were attacked on the same ones.
    draws = np.random.default_rng(0).poisson(1, (images, _REPLICATES))
    weights = np.concatenate([np.ones((images, 1)), draws], 1)
    rows = []
    for variant, of_variant in networks.items():
        columns: Row = {"variant": variant, "seeds": len(of_variant)}
        for name in ACCURACIES:
            correct = [unpack_bits(row["correct"][name], images) for row in of_variant]
            mean = _estimate_mean(np.array(correct).reshape(-1, images), weights, level)
            columns |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
        rows.append(columns)
    return VARIANTS.frame(rows)


def _estimate_mean(correct: Bool[ndarray, "s n"], weights: ndarray, level: float) -> Estimate:
    """Estimate the mean accuracy of networks that differ in their seed; NaN for none.

    Of one network, or where no resample changes anything, it is Wilson's interval of the images.
    """
    networks, images = correct.shape
    if networks > 1:
        accuracy = correct @ weights / weights.sum(0)
        effect = estimate_effect([accuracy], (1,), level, (0.0, 1.0))
        if effect.low < effect.high:
            return Estimate(effect.value, effect.low, effect.high)
    return wilson(correct.sum() / max(networks, 1), images if networks else 0, level)


def pack_bits(correct: Bool[ndarray, " n"]) -> str:
    """Write which images are classified correctly as hexadecimal digits, four images each."""
    return np.packbits(correct).tobytes().hex()


def unpack_bits(text: str, images: int) -> Bool[ndarray, " n"]:
    """Read what ``pack_bits`` wrote.

    >>> unpack_bits(pack_bits(np.array([True, False, True])), 3).tolist()
    [True, False, True]

    Raises:
        ValueError: for another number of images, or other digits.
    """
    digits = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(digits) != -(-images // 8):
        raise ValueError(f"{len(digits)} bytes are not of {images} images")
    return np.unpackbits(digits, count=images).astype(bool)


@dataclass
class Record:
    """What is known of a sweep so far.

    Args:
        folder: of the files.
        trainings: in the order of the table.
        meta: "settings", "results" by the checkpoint's file, and how they came about.
    """

    folder: Path
    trainings: Sequence[Training]
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any], trainings: Sequence[Training]) -> Self:
        """Begin a record, or go on with that of an earlier sweep.

        Raises:
            UserError: for an earlier sweep of other settings, and a damaged record.
        """
        file = folder / "sweep.json"
        settings = json.loads(json.dumps(settings))  # as they are when they are read again
        meta = read_record(file) if file.exists() else {"settings": settings, "results": {}}
        # The order matters, too: it is that of the words in the variants' names.
        different = [
            key
            for key, value in settings.items()
            if json.dumps(meta["settings"].get(key)) != json.dumps(value)
        ]
        if different:
            raise UserError(
                f"{folder} holds a sweep of other settings ({', '.join(different)}): repeat those, "
                "or choose another --out."
            )
        distributed.barrier()  # all processes have looked before one writes
        record = cls(folder, trainings, meta)
        record._write()
        return record

    def get_result(self, training: Training) -> Row | None:
        """Return the result of a network that is complete; None where there is none."""
        row: Row | None = self.meta["results"].get(training.file)
        exists = (self.folder / training.file).exists()
        return row if row is not None and "correct" in row and exists else None

    def add(self, training: Training, row: Row) -> None:
        """Write a training's result, or its trouble."""
        self.meta["results"][training.file] = row
        self._write()

    def make_tables(self) -> dict[str, pd.DataFrame]:
        """Make the tables of the results so far, of the networks and of the variants."""
        settings, results = self.meta["settings"], self.meta["results"]
        images, level = self.meta["images"]["test"], settings["level"]
        return {
            "sweep": sweep_rows(self.trainings, list(settings["vary"]), results),
            "variants": variant_rows(self.trainings, results, images, level),
        }

    def describe(self, dataset: Dataset) -> dict[str, Any]:
        """Return the settings of the sweep's result, as plain values."""
        models: dict[str, Any] = {training.variant.name: {} for training in self.trainings}
        data = {"name": dataset.name, "images": len(dataset.test), "classes": list(dataset.classes)}
        meta = {name: value for name, value in self.meta.items() if name != "results"}
        described: dict[str, Any] = json.loads(json.dumps({"models": models, "data": data, **meta}))
        return described

    def _write(self) -> None:
        if distributed.is_first():
            with atomic_write(self.folder / "sweep.json") as temporary:
                content = self.meta | {"digest": compute_digest(self.meta)}
                temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def read_record(file: Path) -> dict[str, Any]:
    """Read ``sweep.json``.

    Raises:
        UserError: for a damaged file.
    """
    try:
        meta = read_json(file, within=file.parent)
        if meta.pop("digest") != compute_digest(meta):
            raise ValueError
        settings, rows = meta["settings"], meta["results"].values()
        if not isinstance(settings, dict) or not all(map(_is_row, rows)):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged: delete it, and start again with the networks that are there."
        ) from error
    return dict(meta)


def compute_digest(meta: dict[str, Any]) -> str:
    """Hash a record's content: nothing else would tell that a digit changed on the disk."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _is_row(row: Any) -> bool:
    """Whether a value is a training's measurements, or its trouble."""
    numbers = [value for name, value in row.items() if name in COLUMNS]
    words = [row.get("trouble", ""), *row.get("correct", {}).values()]
    return all(isinstance(word, str) for word in words) and all(
        type(value) in (int, float, type(None)) for value in numbers
    )
