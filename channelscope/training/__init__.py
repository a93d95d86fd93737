"""Train networks from recipes: resumable after a kill, and the same to the bit in any processes.

Standard training, AT, TRADES, MART, FAT and WAT, each with gates or without: see ``recipes`` and
``objectives``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from channelscope import distributed
from channelscope.data import as_dataset
from channelscope.devices import resolve_device
from channelscope.errors import UserError
from channelscope.locks import lock_path
from channelscope.progress import open_bar
from channelscope.training.engine import reweigh_classes, train_epoch, validate
from channelscope.training.job import Job
from channelscope.training.logs import Write, open_logs
from channelscope.training.precision import choose_precision
from channelscope.training.recipes import Recipe, default_eps, find_recipe
from channelscope.training.settings import Init
from channelscope.training.state import Diverged, State, refuse_existing
from channelscope.weights import Checkpoint

__all__ = ["Diverged", "Recipe", "default_eps", "find_recipe", "train"]


def train(
    recipe: str | Recipe,
    data: Any = "digits",
    *,
    out: Path | str,
    seed: int = 0,
    images: int | None = None,
    init: Path | str | None = None,
    init_gates: bool = False,
    keep_epochs: int = 0,
    resume: bool = False,
    device: str = "auto",
    logs: Sequence[str] = (),
    progress: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Train a network; write its best checkpoint to ``out`` and its log to ``out`` + ``.csv``.

    The best epoch is chosen on the validation part: by robust accuracy under the training attack,
    ties by natural accuracy; for training on natural images by natural accuracy. Recipes may keep
    the last epoch instead. After every epoch the whole state is written to ``out`` + ``.partial``,
    until the run is complete: this is a checkpoint, too, of the best network so far.

    A recipe of two stages (``before``) trains one network after the other: the checkpoint of the
    first, ``out`` + ``.before``, is what the second begins with, under a fresh optimiser.

    Where ``torch.distributed`` is initialised, the processes share every batch, and the first one
    writes.

    Args:
        recipe: a recipe or the name of one, as ``cifar10-resnet18-cifs-fast``, the path of a
            ``.toml`` file, or a method (standard, at, trades, mart, fat, cifs, cas, ...), which
            means its recipe for the data.
        data: a data set with a training part, its name, or what else ``data.as_dataset`` takes.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random
            starts; from 0 to 2**31 - 1.
        images: number of training images to use, class shares kept; None: all.
        init: a network's file whose weights training begins with (instead of the recipe's
            ``init``), of the same architecture; None for the recipe's, else random weights.
        init_gates: take the gates' weights from ``init``, too.
        keep_epochs: keep a checkpoint of every so many epochs, in half precision, as ``out`` +
            ``.epoch-N``; 0 for none. Of a recipe's two stages, both have them.
        resume: go on where an interrupted run of the same settings stopped, or begin where there
            is none.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        logs: logs besides the CSV: "tensorboard" (in ``out`` + ``.tensorboard``), "wandb" (offline,
            in ``out`` + ``.wandb``).
        progress: show a progress bar.
        **overrides: settings of the recipe to change: epochs=20, optimizer_lr=0.05, ...: see
            ``Recipe.override``.

    Returns:
        The best network, in eval mode, on the CPU.

    Raises:
        UserError: for settings that do not fit, an ``out`` that exists, or a loss that is no longer
            a number.
    """
    shown = progress and distributed.is_first()
    dataset = as_dataset(data, progress=shown)
    if images is not None:
        dataset = dataset.limited(images, seed)
    device = resolve_device(device)
    recipe = find_recipe(recipe, dataset.name).override(**overrides)
    if init is not None:
        recipe = replace(recipe, init=Init(file=str(init), with_gates=init_gates))
    elif init_gates:
        raise UserError("init_gates takes the gates of init, and no file is named: name one.")
    if keep_epochs < 0:
        raise UserError(f"keep_epochs is a number of epochs, or 0 for none, not {keep_epochs}.")
    # Read once, not in every epoch.
    dataset = dataset.load("train", "val", progress=shown)
    run = partial(_run, device=device, resume=resume, logs=logs, keep=keep_epochs, progress=shown)
    job = Job(recipe, dataset, Path(out), seed)
    first = job.make_first_stage()
    if first is None:
        run(job.started_from_file())
    else:
        _train_stages(first.started_from_file(), job, run, resume)
    return Checkpoint.read(out).build()


def _train_stages(first: Job, job: Job, run: Callable[[Job], None], resume: bool) -> None:
    """Train the first stage, and what follows it from its checkpoint."""
    _ = first.gates, job.gates  # what does not fit is refused before hours of training
    with lock_path(job.out, job.partial, job.log):
        if not resume:
            refuse_existing(job)
        # What is complete needs no first stage: its file may be gone.
        if not (resume and job.is_complete):
            run(first)
            job = job.started_from(first.out)
        run(job)


def _run(
    job: Job, *, device: str, resume: bool, logs: Sequence[str], keep: int, progress: bool
) -> None:
    """Do what is left of a run, or refuse one of other settings."""
    distributed.check_same({f"the {name}": repr(value) for name, value in job.settings.items()})
    with lock_path(job.out, job.partial, job.log):
        distributed.barrier()  # the first process has recovered from a kill before any looks
        if resume:  # processes of other folders would go on from other epochs
            there = f"{job.partial.exists()} {job.out.exists()}"
            distributed.check_same({"the files of the run so far": there})
        if not (resume and (job.partial.exists() or job.out.exists())):
            job = choose_precision(job, device)  # a run that goes on keeps its own
        state = State.resume(job, device) if resume else State.start(job, device)
        if resume:
            so_far = repr(state.history) if state is not None else ""
            distributed.check_same({"the files of the run so far": so_far})
        if state is not None:
            settings = job.settings | _describe_precision(state.job, progress)
            with open_logs(logs, job.out, settings, state.history) as write:
                _train_epochs(state, write, keep, progress)
        distributed.barrier()


def _describe_precision(job: Job, progress: bool) -> dict[str, Any]:
    """Return what logs say of a precision that was measured, and print it."""
    if job.speeds is None:
        return {}
    fp32, bf16 = (f"{job.speeds[name]:.3g}" for name in ("fp32", "bf16"))
    sentence = f"{job.precision}, as measured: fp32 {fp32}, bf16 {bf16} images a second in a step"
    if progress:
        tqdm.write(f"precision: {sentence}", file=sys.stderr)
    return {"precision": sentence}


def _train_epochs(state: State, write: Write, keep: int, progress: bool) -> None:
    """Train the remaining epochs and write the best network's checkpoint."""
    job = state.job
    epochs, images = job.recipe.schedule.epochs, len(job.train)
    state.save()  # a full disk or a closed folder shows now, and not after the first epoch
    with open_bar(
        None,
        job.recipe.method or job.out.name,
        epochs * images,
        shown=progress,
        initial=len(state.history) * images,
        unit="img",
        unit_scale=True,
    ) as bar:
        while len(state.history) < epochs and not state.is_out_of_patience():
            epoch, start = len(state.history), perf_counter()
            row = {"epoch": epoch + 1} | train_epoch(state, epoch, bar) | validate(state)
            row |= reweigh_classes(state, epoch)
            state.record(row | {"seconds": perf_counter() - start})
            if keep and (epoch + 1) % keep == 0:
                state.save_epoch()  # before the state: after a kill it is written again
            state.save()
            write(state.history[-1])
    if distributed.is_first():
        job.make_checkpoint(state.best, state.history).save(job.out)
        job.partial.unlink()
