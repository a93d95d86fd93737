"""An epoch of training and of validation, in one process or several.

All processes go through the same batches, and each takes its share of every batch. Whatever is
random is drawn for the whole batch, so results do not depend on the number of processes; exceptions
are the noise that some gates draw, and the portions of a step (``accumulate``), in each of which
BatchNorm sees that portion alone.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from channelscope import distributed
from channelscope.attacks import PGD, find_correct, is_correct
from channelscope.data import augment
from channelscope.devices import fork_rng, wide_dtype, widen
from channelscope.gates import FeatureSelector, Selective, mask_share
from channelscope.layers.features import capture
from channelscope.layers.hooks import eval_mode
from channelscope.training.job import Job
from channelscope.training.precision import autocast
from channelscope.training.state import Diverged, State
from channelscope.weights import LOG, log_columns, name_weights

_CHECK_EVERY = 16  # steps: each look at the loss waits for the device
# The scaler of fp16 begins at 2**16 and is halved whenever gradients are not finite, which is its
# way to find the right scale: it falls this low only where they never are.
_MIN_SCALE = 2.0**-10


@dataclass(frozen=True)
class _Batch:
    """This process's share of a batch of ``size`` images, of which x begins at number ``first``."""

    x: Tensor
    y: Tensor
    size: int
    first: int


def train_epoch(state: State, epoch: int, bar: Any) -> dict[str, float]:
    """Make one pass over the training part.

    Returns:
        Mean loss and accuracy on the images that were trained on, and the last learning rate.

    Raises:
        Diverged: for a loss that is no longer a number.
    """
    job, recipe = state.job, state.job.recipe
    generator, attack = job.make_generator(epoch), job.attack_at(epoch)
    steps = len(_list_starts(job))
    sums = torch.zeros(3, dtype=torch.float64, device="cpu")  # loss, correct answers, images
    unchecked: list[Tensor] = []  # the sums of the steps since the last check
    row: dict[str, float] = {}
    with _seed_global_generators(state, epoch), _autocast(state):
        for step, batch in enumerate(_iterate_batches(state, generator)):
            moment = epoch + step / steps
            lr = recipe.lr_at(moment)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            unchecked.append(_step(state, batch, attack, generator))
            state.update_average("ema", moment)
            bar.update(batch.size)
            if step % _CHECK_EVERY == 0 or step == steps - 1:
                sums += _check_sums(state, unchecked, step)
                unchecked.clear()
                loss, correct, images = sums.tolist()
                row = {"loss": loss / images, "accuracy": correct / images, "lr": lr}
                bar.set_postfix(
                    epoch=epoch + 1,
                    loss=f"{row['loss']:.3f}",
                    acc=f"{row['accuracy']:.1%}",
                    refresh=False,
                )
    state.update_average("swa", epoch + 1)
    if state.is_averaging(epoch + 1):
        _update_batchnorm(state, epoch)
    return row


def validate(state: State) -> dict[str, float]:
    """Measure natural and robust accuracy on the validation part, with the same random starts.

    For the gates of CIFS, measure also what ``log_columns`` names. NaN without validation images.
    """
    job, network = state.job, state.candidate
    names = ["val_natural", "val_robust", *log_columns(job.gates)[len(LOG) :]]
    if state.val is None:
        return dict.fromkeys(names, nan)
    images = len(state.val)
    attack, generator = job.validation_attack, job.make_generator(-1)
    share = distributed.get_slice(images)
    sums = torch.zeros(len(names), dtype=wide_dtype(state.device), device=state.device)
    with eval_mode(network), _autocast(state):
        attack.skip(
            torch.empty(1, *job.image_shape, dtype=job.dtype, device="cpu"), share.start, generator
        )
        indices = torch.arange(share.start, share.stop, device="cpu")
        for x, y in state.val.batches(256, state.device, indices):
            x = x.to(job.dtype)
            x_adv = attack(network, x, y, generator)
            values = _measure(network, x, x_adv, y)
            sums += torch.stack([value.sum(dtype=sums.dtype) for value in values])
    means = distributed.all_reduce(sums) / images
    return dict(zip(names, means.tolist(), strict=True))


def reweigh_classes(state: State, epoch: int) -> dict[str, float]:
    """Add the classes' losses on attacked validation images to what they cost; see ``State``.

    The images are attacked as in training, but for early stopping, with the same random starts in
    every epoch. The cost of a class is the mean over its images: in the release the classes have as
    many images each.

    Returns:
        The weights that the epoch was trained with, by the log's columns.
    """
    job, weights = state.job, state.class_weights
    if weights is None or state.val is None:
        return {}
    attack = dataclasses.replace(job.attack_at(epoch), early_stop=None)
    generator, share = job.make_generator(-2), distributed.get_slice(len(state.val))
    sums = torch.zeros(len(weights), dtype=wide_dtype(state.device), device=state.device)
    attack.skip(
        torch.empty(1, *job.image_shape, dtype=job.dtype, device="cpu"), share.start, generator
    )
    indices = torch.arange(share.start, share.stop, device="cpu")
    with eval_mode(state.network), _autocast(state):
        for x, y in state.val.batches(256, state.device, indices):
            x = x.to(job.dtype)
            x_adv = _attack(state, attack, x, y, generator) if job.adversarial else x
            with torch.no_grad():
                sums.index_add_(0, y, job.loss(state.network, x, x_adv, y).to(sums.dtype))
    sums = distributed.all_reduce(sums).cpu().double()
    counts = torch.bincount(state.val.labels.cpu(), minlength=len(weights))
    state.class_costs += torch.cat([sums / counts, sums.sum(0, True) / len(state.val)])
    return dict(zip(name_weights(job.weighed_classes), weights.tolist(), strict=True))


@torch.no_grad()
def _measure(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Compute validation's measurements per image, in the order of their columns."""
    if not isinstance(network, Selective):
        yield from (find_correct(network, images, y) for images in (x, x_adv))
        return
    natural, adversarial = network.probed(x), network.probed(x_adv)
    yield from (is_correct(answer.logits, y) for answer in (natural, adversarial))
    for layer, gate in network.gates.items():
        if isinstance(gate, FeatureSelector):
            yield from (is_correct(answer.probes[layer], y) for answer in (natural, adversarial))
            masks = natural.masks[layer], adversarial.masks[layer]
            yield from map(mask_share, masks)
            yield F.cosine_similarity(*masks)


def _list_starts(job: Job) -> range:
    """List the number of each batch's first image.

    A last batch of one image is left out: BatchNorm needs two.
    """
    size = job.recipe.optimizer.batch_size
    return range(0, len(job.train) - (len(job.train) % size == 1), size)


def _iterate_batches(state: State, generator: torch.Generator) -> Iterator[_Batch]:
    """Yield this process's share of the training part's batches, in random order and augmented."""
    job = state.job
    order = torch.randperm(len(job.train), generator=generator, device="cpu")
    batch_size = job.recipe.optimizer.batch_size
    batches = [order[start : start + batch_size] for start in _list_starts(job)]
    firsts = [distributed.get_slice(len(batch)).start for batch in batches]
    shares = [batch[distributed.get_slice(len(batch))] for batch in batches]
    per_process = batch_size // distributed.world_size()
    stream = state.train.batches(per_process, state.device, torch.cat(shares))
    no_images = torch.empty(0, *job.image_shape, device=state.device)
    no_labels = torch.empty(0, dtype=torch.int64, device=state.device)
    for batch, share, first in zip(batches, shares, firsts, strict=True):
        # A last batch of fewer images than processes has none for some of them.
        x, y = next(stream) if len(share) else (no_images, no_labels)
        x = augment(
            x.to(job.dtype),
            generator,
            crop=job.recipe.data.crop,
            flip=job.recipe.data.flip,
            whole=len(batch),
            first=first,
        )
        yield _Batch(x, y, len(batch), first)


def _step(state: State, batch: _Batch, attack: PGD, generator: torch.Generator) -> Tensor:
    """Take one step of SGD.

    Returns:
        The sums of loss and correct answers over this process's images, and their number.
    """
    job = state.job
    sums = torch.zeros(3, dtype=wide_dtype(state.device), device=state.device)
    # BatchNorm needs two images in a portion, and all processes the same number of portions.
    most = batch.size // distributed.world_size() // 2
    portions = max(1, min(job.recipe.optimizer.accumulate, most))
    pairs = list(zip(batch.x.tensor_split(portions), batch.y.tensor_split(portions), strict=True))
    if job.adversarial:
        attack.skip(batch.x, batch.first, generator)
    for index, (x, y) in enumerate(pairs):
        x_adv = _attack(state, attack, x, y, generator) if job.adversarial else x
        with nullcontext() if index == portions - 1 else _without_sync(state.loss):
            sums += _backward(state, x, x_adv, y, batch.size)
    if job.adversarial:
        attack.skip(batch.x, batch.size - batch.first - len(batch.x), generator)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    return sums


def _attack(state: State, attack: PGD, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Make adversarial images that maximise the objective of the training loss."""
    with eval_mode(state.network):
        objective = state.job.loss.attacked(state.network, x)
    return dataclasses.replace(attack, objective=objective)(state.network, x, y, generator)


def _backward(state: State, x: Tensor, x_adv: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Add the gradient of these images' share of the batch's mean loss to the weights'."""
    state.network.train()
    with capture(state.network, "") as outputs:
        loss = state.loss(x, x_adv, y)
    if (weights := state.class_weights) is not None:
        loss = loss * weights.to(loss.dtype).to(loss.device)[y]
    # Data parallelism divides by the number of processes.
    state.scaler.scale(loss.sum() * (distributed.world_size() / batch_size)).backward()
    correct = (outputs[""].argmax(1) == y).sum()
    images = correct.new_tensor(len(y))
    return torch.stack([widen(loss.detach()).sum(), widen(correct), widen(images)])


def _without_sync(loss: nn.Module) -> AbstractContextManager[None]:
    """Leave the gradients of the next backward pass in this process."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()


def _check_sums(state: State, unchecked: list[Tensor], step: int) -> Tensor:
    """Add up all processes' sums of the last steps; Diverged for a loss that is no number."""
    sums = distributed.all_reduce(torch.stack(unchecked)).cpu()
    epoch, steps = len(state.history) + 1, len(_list_starts(state.job))
    for number, loss in enumerate(sums[:, 0].tolist(), step + 2 - len(unchecked)):
        if not isfinite(loss):
            raise Diverged(
                f"The loss is no longer a number in epoch {epoch}, at step {number} of {steps}: "
                f"{state.advice()}"
            )
    if state.scaler.is_enabled() and state.scaler.get_scale() < _MIN_SCALE:
        raise Diverged(
            f"The gradients are no longer numbers, however scaled, in epoch {epoch}, at step "
            f"{step + 1} of {steps}: {state.advice()}"
        )
    return sums.sum(0)


def _update_batchnorm(state: State, epoch: int) -> None:
    """Recompute the BatchNorm statistics of the average, on natural training images.

    As in Izmailov et al., UAI 2018 (arXiv 1803.05407), section 3.2, and, for adversarial training,
    Chen et al., ICLR 2021.
    """
    assert state.average is not None
    generator = state.job.make_generator(epoch)
    images = (batch.x for batch in _iterate_batches(state, generator))
    with torch.no_grad(), _seed_global_generators(state, epoch), _autocast(state):
        update_bn(images, state.average.module)


def _autocast(state: State) -> AbstractContextManager[Any]:
    """Compute in the run's precision."""
    return autocast(state.job.precision, state.device)


@contextmanager
def _seed_global_generators(state: State, epoch: int) -> Iterator[None]:
    """Seed torch's global generators, from which gates draw noise, and restore them afterwards."""
    first_seed = state.job.make_generator(epoch).initial_seed()
    seed = first_seed + 1_000_000_007 * (1 + distributed.rank())
    with fork_rng(state.device, seed=seed):
        yield
