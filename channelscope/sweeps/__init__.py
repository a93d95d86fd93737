"""Sweeps: a recipe's variants trained with each seed, and the networks attacked and compared.

An interrupted sweep goes on when it is started again; complete networks and results are reused.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from channelscope import distributed
from channelscope.analyses.sweeps import ACCURACIES
from channelscope.api import compare
from channelscope.attacks import JointSweep, parse_attack
from channelscope.attacks.adaptive import can_sweep
from channelscope.data import Dataset, as_dataset, sample_stratified
from channelscope.devices import resolve_device
from channelscope.errors import UserError
from channelscope.files import check_no_link, check_writable
from channelscope.locks import lock_path
from channelscope.result import Result, check_folder
from channelscope.sweeps.record import Record, Row, Training, pack_bits
from channelscope.sweeps.variants import list_settings, make_variants, parse_values, shorten_names
from channelscope.training import Diverged, Recipe, find_recipe, train
from channelscope.training.job import Job
from channelscope.training.logs import check_logs
from channelscope.weights import build

__all__ = ["parse_values", "sweep"]

_CORRECT = "correct/0/"  # of a comparison's arrays, those of its only network


def sweep(
    recipe: str | Recipe = "cifs",
    data: Any = "digits",
    *,
    out: Path | str,
    ablation: str | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    images: int | None = None,
    test_images: int | None = None,
    attack: str = "pgd-20",
    test_eps: float | None = None,
    device: str = "auto",
    logs: Sequence[str] = (),
    progress: bool = True,
    command: str | None = None,
    **overrides: Any,
) -> Result:
    """Train every combination of the varied settings' values with every seed; attack the networks.

    The folder ``out`` gets a checkpoint and a log of each network, VARIANT-sSEED.pt and .pt.csv,
    the record of the sweep as ``sweep.json``, and the result, with its figure, as the folder
    ``result``. A network whose loss is no longer a number does not stop the others: its row has
    the reason.

    Where several processes are joined (see ``distributed``), they share every batch, and the first
    one writes.

    Args:
        recipe: a recipe, the name of one, the path of a ``.toml`` file, or a method: see
            ``training.train``.
        data: a data set with a training part, its name, or what else ``data.as_dataset`` takes.
        out: the folder.
        ablation: a key of ``recipes.ABLATIONS``: the settings that vary.
        vary: further settings, each with its values. "A+B" gives both settings the same value.
        seeds: number of networks of each variant, with the seeds 0, 1, ...; more of them may be
            added to a sweep that is complete.
        images, test_images: number of images to train and to test on, class shares kept; None: all.
        attack: of the test, a name that ``attacks.parse_attack`` knows.
        test_eps: its radius; None: the recipe's.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        logs: logs besides the CSV: see ``training.train``.
        progress: show progress bars.
        command: the command line to note in ``sweep.json``.
        **overrides: settings of the recipe to change in all variants: see ``Recipe.override``.

    Returns:
        The table ``sweep``, a row for each network: variant, seed and the varied settings;
        accuracies on the test part, each with a 95 % interval (_low, _high): natural, attacked, and
        robust, which is the worst case over natural and attacked images (the attack is repeated on
        the joint loss, with seven weights); val_natural and val_robust of the best epoch,
        best_epoch, trained_epochs, seconds of training; trouble, why there is no result, or "";
        file, the checkpoint's. The table ``variants``: the mean accuracies of each variant's
        networks, with 95 % intervals over seeds and test images, see
        ``statistics.effects.estimate_effect``.

    Raises:
        UserError: for settings that do not fit, or a sweep of other settings in ``out``.
    """
    dataset = _select_images(as_dataset(data, progress=progress), images, test_images)
    folder = Path(out)
    base = find_recipe(recipe, dataset.name).override(**overrides)
    varied = list_settings(ablation, vary or {})
    if seeds < 1:
        raise UserError(f"seeds is a number of networks of each variant, from 1 up, not {seeds}.")
    variants = make_variants(base, varied)
    trainings = [Training(variant, seed) for variant in variants for seed in range(seeds)]
    test = {
        "attack": str(parse_attack(attack)),
        "eps": base.attack.eps if test_eps is None else test_eps,
        "level": 0.95,
    }
    options = {"device": resolve_device(device), "progress": progress}
    check_logs(logs)
    _check(trainings, dataset, folder)
    fingerprints = {name: part.fingerprint() for name, part in dataset.parts.items()}
    identity = {"name": dataset.name, **fingerprints}
    settings = {"recipe": base.values(), "vary": varied, "data": identity, **test}
    dataset = dataset.load(progress=progress)  # once, not for every training
    names = ", ".join(shorten_names(varied).values())
    with lock_path(folder / "sweep.json"):
        record = Record.open(folder, settings, trainings)
        record.meta |= {
            "title": f"{base.method or 'own recipe'} on {dataset.name}, by {names}",
            "images": {name: len(part) for name, part in dataset.parts.items()},
            "command": command,
        }
        for number, training in enumerate(trainings, 1):
            heading = f"{number}/{len(trainings)}: {training.variant.name}, seed {training.seed}"
            _print(heading, progress)
            record.add(training, _run(training, record, dataset, test, logs, options))
        result = Result("sweep", record.make_tables(), {}, record.describe(dataset))
        if distributed.is_first():
            result.save(folder / "result", progress=False)
        distributed.barrier()
    return result


def _select_images(dataset: Dataset, images: int | None, test_images: int | None) -> Dataset:
    if images is not None:
        dataset = dataset.limited(images, 0)
    if test_images is not None:
        if test_images < 1:
            raise UserError(f"A test needs at least one image, not {test_images}.")
        test = dataset.test.subset(sample_stratified(dataset.test.labels, test_images, 0))
        dataset = dataclasses.replace(dataset, test=test)
    return dataset


def _check(trainings: Sequence[Training], dataset: Dataset, folder: Path) -> None:
    """Raise UserError now for what would go wrong after hours of work."""
    check_writable(folder / "sweep.json")
    check_no_link(folder / "result", folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    check_folder(folder / "result")
    # With one image of each class, the pixels' mean and standard deviation are soon computed.
    train_part = dataset.require_train()
    firsts = [(train_part.labels == k).nonzero()[0, 0] for k in range(len(dataset.classes))]
    small = dataclasses.replace(dataset, train=train_part.subset(torch.stack(firsts)))
    for training in trainings:
        job = Job(training.variant.recipe, small, folder / training.file, training.seed)
        if training.seed == 0:  # the other seeds of a variant are built alike
            architecture, gates = job.architecture, job.gates
            with torch.device("meta"):
                build(architecture, gates)


def _run(
    training: Training,
    record: Record,
    dataset: Dataset,
    test: dict[str, Any],
    logs: Sequence[str],
    options: dict[str, Any],
) -> Row:
    """Train a network and attack it, unless that is done; return the results or the trouble."""
    file, variant = record.folder / training.file, training.variant
    earlier = record.get_result(training)
    attack = parse_attack(test["attack"], eps=test["eps"])
    # The attack is repeated on the joint loss, where its objective can be set.
    repeated = [JointSweep(attack=attack)] if can_sweep(attack) else []
    try:
        train(
            variant.recipe, dataset, out=file, seed=training.seed, resume=True, logs=logs, **options
        )
        if earlier is not None:
            return earlier
        comparison = compare(
            {variant.name: file}, dataset, attacks=repeated, thumbnails=False, **test, **options
        )
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:
        # Only this process may be in trouble, unless the loss diverged, which all of them know.
        if distributed.world_size() > 1 and not isinstance(error, Diverged):
            raise
        is_ours = isinstance(error, UserError)
        trouble = str(error) if is_ours else "There is not enough memory for it."
        _print(f"no result: {trouble}", options["progress"])
        return {"trouble": trouble}
    meta = comparison.meta
    record.meta |= {name: meta[name] for name in ("versions", "hardware", "created")}
    return _summarise(comparison)


def _summarise(comparison: Result) -> Row:
    """Collect the measurements of a comparison's only network."""
    robustness, log = comparison.robustness, comparison.training
    accuracy = robustness[robustness["class"] == "all"].set_index("attack")
    correct = {
        name.removeprefix(_CORRECT): images
        for name, images in comparison.arrays.items()
        if name.startswith(_CORRECT)
    }
    correct["worst"] = np.all([*correct.values()], axis=0)
    row: Row = {"correct": {}}
    for name, attack in zip(
        ACCURACIES, ("natural", comparison.meta["attack"], "worst"), strict=True
    ):
        for end, column in (("", "accuracy"), ("_low", "low"), ("_high", "high")):
            row[f"{name}{end}"] = float(accuracy.loc[attack, column])
        row["correct"][name] = pack_bits(correct[attack])
    best = log[log["best"].astype(bool)].iloc[0]
    row |= {name: float(best[name]) for name in ("val_natural", "val_robust")}
    row |= {"best_epoch": int(best["epoch"]), "trained_epochs": len(log)}
    row["seconds"] = float(log["seconds"].sum())
    # JSON has no NaN.
    return {name: value if value == value else None for name, value in row.items()}


def _print(sentence: str, progress: bool) -> None:
    if progress and distributed.is_first():
        tqdm.write(sentence, file=sys.stderr)
