"""Train standard, AT, CIFS and CAS networks from recipes: resumable after a kill, the same to the bit.

AT: Madry et al., ICLR 2018. CIFS: Yan et al., ICML 2021. CAS: Bai et al., ICLR 2021.
"""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from channelscope.attacks import correct
from channelscope.capture import capture
from channelscope.checkpoints import Checkpoint, versions
from channelscope.data import as_dataset, augment
from channelscope.errors import UserError, suggest
from channelscope.hooks import evaluating
from channelscope.training.recipes import METHODS, Recipe
from channelscope.training.state import Job, State

__all__ = ["METHODS", "Recipe", "train"]


def train(
    method: str,
    data: Any = "digits",
    *,
    out: Path | str,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Train a network and write its best checkpoint to ``out`` and its log, epoch by epoch, to ``out`` + ``.csv``.

    The best epoch is chosen on the validation part: by robust accuracy under the training attack, ties by natural
    accuracy; for ``standard``, which knows of no attack, by natural accuracy. After every epoch the whole state is
    kept in ``out`` + ``.partial``, until the run is complete.

    Args:
        method: standard, at, cifs or cas.
        data: a data set, its name, or what else ``data.as_dataset`` takes, with a training part.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random starts.
        resume: go on where an interrupted run of the same settings stopped (or begin, where there is none).
        device: cpu, cuda, ...
        progress: show a progress bar.
        **overrides: what to change of the recipe: arch, width, epochs, batch_size, lr, eps, ... (None: as it is).

    Returns:
        The best network, in eval mode, on the CPU.

    Raises:
        UserError: for settings that do not fit, an ``out`` that exists, or a loss that is no longer a number.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}: choose from {', '.join(METHODS)}.{suggest(method, METHODS)}")
    dataset = as_dataset(data)
    recipe = Recipe.suited_to(dataset.name).override(**overrides)
    job = Job(method, recipe, dataset, Path(out), seed)
    state = State.take_up(job, device) if resume else State.fresh(job, device)
    if state is not None:
        _run(job, state, progress)
    return Checkpoint.read(out).build()


def _run(job: Job, state: State, progress: bool) -> None:
    """Train the epochs that are left and write the best network's checkpoint."""
    epochs, done = job.recipe.epochs, len(state.history)
    state.keep(job)  # a disk that is full or closed shows now, and not after the first epoch
    with tqdm(
        total=epochs * len(job.train),
        initial=done * len(job.train),
        desc=job.method,
        unit="img",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for epoch in range(done, epochs):
            start = perf_counter()
            row = {"epoch": epoch + 1} | _train_epoch(job, state, epoch, bar) | _validate(job, state)
            state.record(job, row | {"seconds": perf_counter() - start})
            state.keep(job)
    best = next(row for row in state.history if row["best"])
    Checkpoint(
        architecture=job.architecture,
        gates=job.gates,
        state=state.best,
        image=(job.data.channels, *job.data.image_size),
        class_names=job.data.classes,
        method=job.method,
        meta={"settings": job.settings, "metrics": best, "history": state.history, "versions": versions()},
    ).save(job.out)
    job.partial.unlink()


def _train_epoch(job: Job, state: State, epoch: int, bar: Any) -> dict[str, float]:
    """Make one pass over the training part; give its mean loss and accuracy on the images trained on, labels given."""
    lr, generator = job.recipe.lr_at(epoch), job.generator(epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss_sum = hits = seen = 0.0
    for x, y in _shuffled(job, generator, state.device):
        if METHODS[job.method].adversarial:
            x = job.attack(state.network, x, y, generator)
        loss, correct_now = _step(job, state, x, y)
        if not loss < float("inf"):
            raise UserError(
                f"The loss is no longer a number in epoch {epoch + 1}: lower the learning rate "
                f"(the state of epoch {epoch} is in {job.partial})."
            )
        loss_sum, hits, seen = loss_sum + loss * len(y), hits + correct_now, seen + len(y)
        bar.update(len(y))
        bar.set_postfix(epoch=epoch + 1, loss=f"{loss_sum / seen:.3f}", acc=f"{hits / seen:.1%}", refresh=False)
    return {"loss": loss_sum / seen, "accuracy": hits / seen, "lr": lr}


def _shuffled(job: Job, generator: torch.Generator, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the training part's batches in random order, augmented; a last batch of one image is left out."""
    order = torch.randperm(len(job.train), generator=generator)
    for x, y in job.train.batches(job.recipe.batch_size, device, order):
        if len(y) > 1:  # BatchNorm needs two
            yield augment(x, generator, crop=job.recipe.crop, flip=job.recipe.flip), y


def _step(job: Job, state: State, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Take one step of SGD; give the mean loss and the number of correct answers."""
    state.network.train()
    with capture(state.network, "") as answer:
        loss = job.objective(state.network, x, y).mean()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return loss.item(), int((answer[""].argmax(1) == y).sum())


def _validate(job: Job, state: State) -> dict[str, float]:
    """Measure natural and robust accuracy on the validation part, the same random starts each time."""
    generator, natural, robust = job.generator(-1), 0, 0
    with evaluating(state.network):
        for x, y in job.val.batches(256, state.device):
            natural += int(correct(state.network, x, y).sum())
            robust += int(correct(state.network, job.attack(state.network, x, y, generator), y).sum())
    return {"val_natural": natural / len(job.val), "val_robust": robust / len(job.val)}
