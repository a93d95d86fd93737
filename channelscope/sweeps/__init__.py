"""Sweeps: a recipe's settings varied, each variant trained with each seed, and the networks attacked and compared.

A sweep that was interrupted goes on when it is started again; networks and results that are complete are used again.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from tqdm.auto import tqdm

from channelscope import distributed
from channelscope import figures as plots
from channelscope.attacks import APGD, FGSM, PGD, Attack, JointSweep, parse_attack
from channelscope.comparison import Comparison, compare
from channelscope.data import Dataset, as_dataset, sample_stratified
from channelscope.errors import UserError
from channelscope.files import atomic_write, check_writable
from channelscope.locks import lock_path
from channelscope.reading import read_json
from channelscope.sweeps.variants import (
    ABLATIONS,
    Variant,
    in_cell,
    short_names,
    values_of,
    variants_of,
    varied_settings,
)
from channelscope.training import Diverged, Recipe, recipe_for, train
from channelscope.training.job import Job
from channelscope.training.logs import check_logs
from channelscope.weights import build

__all__ = ["ABLATIONS", "sweep", "values_of"]

_ACCURACIES = ("natural", "attacked", "robust")
_MEASURED = {f"{name}{end}": "float64" for name in _ACCURACIES for end in ("", "_low", "_high")}
_TRAINED = {
    "val_natural": "float64",
    "val_robust": "float64",
    "best_epoch": "Int64",
    "trained_epochs": "Int64",
}
_NUMBERS = {**_MEASURED, **_TRAINED, "seconds": "float64"}  # the table's columns, and their types

_Row = dict[str, Any]


def sweep(
    recipe: str | Recipe = "cifs",
    data: Any = "digits",
    *,
    out: Path | str,
    ablation: str | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0,),
    images: int | None = None,
    test_images: int | None = None,
    attack: str = "pgd-20",
    test_eps: float | None = None,
    device: str = "cpu",
    logs: Sequence[str] = (),
    progress: bool = True,
    command: str | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Train every combination of the varied settings' values with every seed, and attack the networks.

    The folder ``out`` gets a checkpoint and a log for each network, VARIANT-sSEED.pt and .pt.csv, the table as
    ``sweep.csv``, the settings as ``sweep.json``, and the figure as ``sweep.pdf`` and ``sweep.png``. A network that
    cannot be trained, because its loss is no longer a number, does not stop the others: its row has the reason.

    Where several processes are joined (see ``distributed``), they share every batch, and the first one writes.

    Args:
        recipe: a recipe, the name of one, the path of a ``.toml`` file, or a method: see ``training.train``.
        data: a data set, its name, or what else ``data.as_dataset`` takes, with a training part.
        out: the folder.
        ablation: a key of ``ABLATIONS``, by which settings vary.
        vary: further settings, each with its values. "A+B" gives both settings the same value.
        seeds: of the trainings; to a sweep that is complete, others may be added.
        images, test_images: how many images to train and to test on, class shares kept; None for all.
        attack: of the test, a name that ``attacks.parse`` knows.
        test_eps: its radius; None for the recipe's.
        device: cpu, cuda, ...
        logs: beside the CSV: see ``training.train``.
        progress: show progress bars.
        command: what to note in ``sweep.json`` as the command that was given.
        **overrides: what to change of the recipe in all variants: see ``Recipe.override``.

    Returns:
        A row a network: variant, seed and the varied settings; accuracy on the test part, each with a 95 % interval
        (_low, _high): natural, attacked, and robust, which is the worst case over the natural and all attacked images
        (the attack is repeated on the joint loss, with seven weights); val_natural and val_robust of the best epoch,
        best_epoch, trained_epochs, seconds of training; trouble, why there is no result, or ""; the checkpoint's file.

    Raises:
        UserError: for settings that do not fit, or a sweep of other settings in ``out``.
    """
    dataset, folder = _dataset(data, images, test_images), Path(out)
    base = recipe_for(recipe, dataset.name).override(**overrides)
    varied = varied_settings(ablation, vary or {})
    runs = [
        _Run(variant, seed)
        for variant in variants_of(base, varied)
        for seed in dict.fromkeys(seeds)
    ]
    test = {
        "attack": str(parse_attack(attack)),
        "eps": base.attack.eps if test_eps is None else test_eps,
        "level": 0.95,
    }
    check_logs(logs)
    _check(runs, dataset, folder)
    settings = {"recipe": base.values(), "vary": varied, "data": _known(dataset), **test}
    with lock_path(*(folder / f"sweep.{name}" for name in ("json", "csv", "pdf", "png"))):
        record = _Record.take_up(folder, settings, runs)
        record.meta |= {
            "title": f"{base.method or 'own recipe'} on {dataset.name}, by {', '.join(short_names(varied).values())}",
            "images": {name: len(part) for name, part in dataset.parts.items()},
            "command": command,
        }
        for number, run in enumerate(runs, 1):
            _say(f"{number}/{len(runs)}: {run.variant.name}, seed {run.seed}", progress)
            record.add(
                run,
                _result(run, record, dataset, test, logs, {"device": device, "progress": progress}),
            )
        return record.finish()


@dataclass(frozen=True)
class _Run:
    """A training, of a variant with a seed."""

    variant: Variant
    seed: int

    @property
    def file(self) -> str:
        return f"{self.variant.slug}-s{self.seed}.pt"


@dataclass
class _Record:
    """What ``sweep.json`` and ``sweep.csv`` hold.

    Args:
        folder: where they are.
        runs: the trainings, in the order of the table.
        meta: the settings, how the results came about, and the results, by the checkpoint's file.
    """

    folder: Path
    runs: Sequence[_Run]
    meta: dict[str, Any]

    @classmethod
    def take_up(cls, folder: Path, settings: dict[str, Any], runs: Sequence[_Run]) -> Self:
        """Begin a record, or go on with that of an earlier sweep of the same settings."""
        file, settings = (
            folder / "sweep.json",
            json.loads(json.dumps(settings)),
        )  # as they are when read again
        meta = {"settings": settings, "results": {}}
        if file.exists():
            meta = _read(file)
            known = meta["settings"]
            # The order matters too: variants are named in it.
            different = [
                key for key in settings if json.dumps(known.get(key)) != json.dumps(settings[key])
            ]
            if different:
                raise UserError(
                    f"{folder} holds a sweep of other settings ({', '.join(different)}): repeat those, or choose "
                    "another --out."
                )
        distributed.barrier()  # all have looked before one writes
        record = cls(folder, runs, meta)
        record._write()
        return record

    def result(self, run: _Run) -> _Row:
        """Give the result of a network that is complete; nothing where there is none."""
        row: _Row = self.meta["results"].get(run.file, {})
        return {} if "trouble" in row or not (self.folder / run.file).exists() else row

    def add(self, run: _Run, row: _Row) -> None:
        """Note a training's result, or its trouble."""
        self.meta["results"][run.file] = row
        self._write()

    def table(self) -> pd.DataFrame:
        """Lay out a row for each training that is over."""
        varied, rows = list(self.meta["settings"]["vary"]), []
        for run in self.runs:
            if (row := self.meta["results"].get(run.file)) is not None:
                changes = {name: in_cell(value) for name, value in run.variant.changes.items()}
                identity = {"variant": run.variant.name, "seed": run.seed} | changes
                rows.append(identity | row | {"trouble": row.get("trouble", ""), "file": run.file})
        table = pd.DataFrame(
            rows, columns=["variant", "seed", *varied, *_NUMBERS, "trouble", "file"]
        )
        return table.astype(_NUMBERS)

    def finish(self) -> pd.DataFrame:
        """Draw the figure; give the table."""
        table = self.table()
        if distributed.is_first():
            figure = plots.sweep(table, self.meta)
            for ending in ("pdf", "png"):
                plots.save(figure, self.folder / f"sweep.{ending}")
        return table

    def _write(self) -> None:
        if distributed.is_first():
            with atomic_write(self.folder / "sweep.json") as temporary:
                written = self.meta | {"digest": _digest(self.meta)}
                temporary.write_text(json.dumps(written, indent=1, ensure_ascii=False), "utf-8")
            with atomic_write(self.folder / "sweep.csv") as temporary:
                self.table().to_csv(temporary, index=False)


def _digest(meta: dict[str, Any]) -> str:
    """Identify what a record holds: a digit that has changed on the disk shows by nothing else."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        meta = read_json(file, within=file.parent)
        if meta.pop("digest") != _digest(meta):
            raise ValueError
        if not isinstance(meta["settings"], dict) or not all(
            map(_is_row, meta["results"].values())
        ):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged: delete it, and start again with the networks that are there."
        ) from error
    return dict(meta)


def _is_row(row: Any) -> bool:
    """Tell whether something is what ``_measured`` gives, or the trouble that came instead."""
    numbers = [value for name, value in row.items() if name in _NUMBERS]
    return isinstance(row.get("trouble", ""), str) and all(
        type(value) in (int, float, type(None)) for value in numbers
    )


def _result(
    run: _Run,
    record: _Record,
    dataset: Dataset,
    test: dict[str, Any],
    logs: Sequence[str],
    how: dict[str, Any],
) -> _Row:
    """Train a network and attack it, unless that is done; say what came out, or why nothing did."""
    file, earlier = record.folder / run.file, record.result(run)
    try:
        train(run.variant.recipe, dataset, out=file, seed=run.seed, resume=True, logs=logs, **how)
        if earlier:
            return earlier
        found = compare({run.variant.name: file}, dataset, attacks=_further(test), **test, **how)
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:
        if distributed.world_size() > 1 and not isinstance(
            error, Diverged
        ):  # the others may have got through, and go on
            raise
        trouble = (
            str(error) if isinstance(error, UserError) else "There is not enough memory for it."
        )
        _say(f"no result: {trouble}", how["progress"])
        return {"trouble": trouble}
    record.meta |= {name: found.meta[name] for name in ("versions", "hardware", "created")}
    return _measured(found)


def _further(test: dict[str, Any]) -> list[Attack]:
    """Give what the test's attack is followed by: itself on the joint loss, whose weight of the probes varies."""
    attack = parse_attack(test["attack"], eps=test["eps"])
    return [JointSweep(attack=attack)] if isinstance(attack, PGD | FGSM | APGD) else []


def _measured(found: Comparison) -> _Row:
    """Lay out what a comparison found about its one network."""
    accuracy = found.robustness[found.robustness["class"] == "all"].set_index("attack")
    attacks = dict(zip(_ACCURACIES, ("natural", found.meta["attack"], "worst"), strict=True))
    row = {}
    for name, attack in attacks.items():
        for end, column in (("", "accuracy"), ("_low", "low"), ("_high", "high")):
            row[f"{name}{end}"] = float(accuracy.loc[attack, column])
    best = found.training[found.training["best"].astype(bool)].iloc[0]
    row |= {name: float(best[name]) for name in ("val_natural", "val_robust")}
    row |= {"best_epoch": int(best["epoch"]), "trained_epochs": len(found.training)}
    row["seconds"] = float(found.training["seconds"].sum())
    return {
        name: value if value == value else None for name, value in row.items()
    }  # JSON knows no NaN


def _dataset(data: Any, images: int | None, test_images: int | None) -> Dataset:
    dataset = as_dataset(data)
    if images is not None:
        dataset = dataset.limited(images, 0)
    if test_images is not None:
        if test_images < 1:
            raise UserError(f"A test needs at least one image, not {test_images}.")
        test = dataset.test.subset(sample_stratified(dataset.test.labels, test_images, 0))
        dataset = dataclasses.replace(dataset, test=test)
    return dataset


def _known(dataset: Dataset) -> dict[str, str]:
    """Identify a data set."""
    return {"name": dataset.name} | {
        name: part.fingerprint() for name, part in dataset.parts.items()
    }


def _check(runs: Sequence[_Run], dataset: Dataset, folder: Path) -> None:
    """Refuse, before hours of work, what would go wrong in the midst of it."""
    if not runs:
        raise UserError("A sweep needs at least one seed.")
    check_writable(folder / "sweep.json")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    labels = dataset.require_train().labels
    one_each = torch.stack([(labels == k).nonzero()[0, 0] for k in range(len(dataset.classes))])
    small = dataclasses.replace(
        dataset, train=dataset.require_train().subset(one_each)
    )  # its pixels are soon counted
    for run in runs:
        job = Job(run.variant.recipe, small, folder / run.file, run.seed)
        if run.seed == runs[0].seed:  # the others of the variant are built alike
            architecture, gates = job.architecture, job.gates
            with torch.device("meta"):
                build(architecture, gates)


def _say(sentence: str, progress: bool) -> None:
    if progress and distributed.is_first():
        tqdm.write(sentence, file=sys.stderr)
