"""Train networks from recipes: resumable after a kill, the same to the bit, in one process or many.

Standard training, AT, TRADES, MART and FAT, each with gates or without: see ``recipes`` and ``objectives``.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from channelscope import distributed
from channelscope.data import as_dataset
from channelscope.errors import UserError, suggest
from channelscope.locks import lock_path
from channelscope.training.engine import train_epoch, validate
from channelscope.training.job import Job
from channelscope.training.logs import LOGS, logging
from channelscope.training.recipes import METHODS, Recipe, default_eps
from channelscope.training.state import Diverged, State
from channelscope.weights import Checkpoint

__all__ = ["LOGS", "METHODS", "Diverged", "Recipe", "default_eps", "recipe_for", "train"]


def train(
    recipe: str | Recipe,
    data: Any = "digits",
    *,
    out: Path | str,
    seed: int = 0,
    images: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    logs: Sequence[str] = (),
    progress: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Train a network and write its best checkpoint to ``out`` and its log, epoch by epoch, to ``out`` + ``.csv``.

    The best epoch is chosen on the validation part: by robust accuracy under the training attack, ties by natural
    accuracy; for training on natural images, which knows of no attack, by natural accuracy. After every epoch the whole
    state is kept in ``out`` + ``.partial``, until the run is complete: a checkpoint too, of the best network so far.

    Where ``torch.distributed`` is initialised, the processes share every batch, and the first one writes.

    Args:
        recipe: a recipe or the name of one, as ``cifar10-resnet18-cifs-fast``, the path of a ``.toml`` file, or a
            method (standard, at, trades, mart, fat, cifs, cas, ...), for which the data's own recipe is taken.
        data: a data set, its name, or what else ``data.as_dataset`` takes, with a training part.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random starts.
        images: how many training images to use, class shares kept; None for all.
        resume: go on where an interrupted run of the same settings stopped (or begin, where there is none).
        device: cpu, cuda, ...
        logs: beside the CSV: "tensorboard" (in ``out`` + ``.tensorboard``), "wandb" (offline, in ``out`` + ``.wandb``).
        progress: show a progress bar.
        **overrides: what to change of the recipe: epochs=20, optimizer_lr=0.05, ...: see ``Recipe.override``.

    Returns:
        The best network, in eval mode, on the CPU.

    Raises:
        UserError: for settings that do not fit, an ``out`` that exists, or a loss that is no longer a number.
    """
    dataset = as_dataset(data)
    if images is not None:
        dataset = dataset.limited(images, seed)
    job = Job(recipe_for(recipe, dataset.name).override(**overrides), dataset, Path(out), seed)
    with lock_path(job.out, job.partial, job.log):
        distributed.barrier()  # what a kill left is put right before any process looks
        state = State.take_up(job, device) if resume else State.fresh(job, device)
        if state is not None:
            with logging(logs, job.out, job.settings, state.history) as log:
                _run(job, state, log, progress and distributed.is_first())
        distributed.barrier()
    return Checkpoint.read(out).build()


def recipe_for(recipe: str | Recipe, data_name: str) -> Recipe:
    """Find the recipe that a name, a file or a method means for a data set; UserError where there is none."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in METHODS:
        return Recipe.suited_to(data_name, recipe)
    if not recipe.endswith(".toml") and "-resnet" not in recipe and "-wrn" not in recipe:
        raise UserError(
            f"There is no method or recipe {recipe!r}: the methods are {', '.join(METHODS)}, and "
            f"'channelscope recipes' lists the recipes.{suggest(recipe, METHODS)}"
        )
    return Recipe.named(recipe)


def _run(job: Job, state: State, log: Any, progress: bool) -> None:
    """Train the epochs that are left and write the best network's checkpoint."""
    epochs, done = job.recipe.schedule.epochs, len(state.history)
    state.keep(job)  # a disk that is full or closed shows now, and not after the first epoch
    with tqdm(
        total=epochs * len(job.train),
        initial=done * len(job.train),
        desc=job.recipe.method,
        unit="img",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        while len(state.history) < epochs and not state.is_stale(job):
            epoch, start = len(state.history), perf_counter()
            row = {"epoch": epoch + 1} | train_epoch(job, state, epoch, bar) | validate(job, state)
            state.record(job, row | {"seconds": perf_counter() - start})
            state.keep(job)
            log(state.history[-1])
    if distributed.is_first():
        job.checkpoint(state.best, state.history).save(job.out)
        job.partial.unlink()
