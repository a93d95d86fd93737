"""An epoch of training and of validation, alone or as one of several processes.

Every process goes through the same global batches and takes its share of each. Whatever is drawn by chance is drawn for
the whole batch, so the result does not depend on the number of processes; but for the noise that some gates draw, and
for portions of a step (``accumulate``), in each of which BatchNorm sees the images of that portion alone.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from channelscope import distributed
from channelscope.attacks import PGD, find_correct, is_correct
from channelscope.data import augment
from channelscope.gates import FeatureSelector, Selective, mask_share
from channelscope.layers.features import capture
from channelscope.layers.hooks import eval_mode
from channelscope.training.job import Job
from channelscope.training.state import Diverged, State
from channelscope.weights import LOG, log_columns

_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOOK_EVERY = 16  # steps: each look at the loss waits for the device
# Half precision begins with 2**16, halves it and leaves out a step whenever gradients are not finite, which is its way
# to find the scale: it comes to this only where they never are.
_LEAST_SCALE = 2.0**-10


@dataclass(frozen=True)
class _Batch:
    """This process's share of a batch: ``whole`` images in all, of which x begins at number ``first``."""

    x: Tensor
    y: Tensor
    whole: int
    first: int


def train_epoch(job: Job, state: State, epoch: int, bar: Any) -> dict[str, float]:
    """Make one pass over the training part; give its mean loss and accuracy on the images trained on, labels given."""
    generator, attack = job.generator(epoch), job.attack_at(epoch)
    sums, recent = (
        torch.zeros(3, dtype=torch.float64),
        [],
    )  # loss, hits, images; those of the steps not looked at yet
    steps = len(_starts(job))
    lr = 0.0
    with _chance(job, epoch, state.device), _computing(job, state.device):
        for step, batch in enumerate(_augmented(job, state, generator)):
            moment = epoch + step / steps
            lr = job.recipe.lr_at(moment)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            recent.append(_step(job, state, batch, attack, generator))
            if (
                state.average is not None
                and job.recipe.averaging.kind == "ema"
                and state.average_begins(job, moment)
            ):
                state.average.update_parameters(state.network)
            bar.update(batch.whole)
            if step % _LOOK_EVERY == 0 or step == steps - 1:
                sums += _looked_at(job, state, recent, step)
                recent.clear()
                loss, hits, seen = sums.tolist()
                bar.set_postfix(
                    epoch=epoch + 1,
                    loss=f"{loss / seen:.3f}",
                    acc=f"{hits / seen:.1%}",
                    refresh=False,
                )
    if state.average_begins(job, epoch + 1):
        _settle_average(job, state, epoch)
    return {"loss": loss / seen, "accuracy": hits / seen, "lr": lr}


def validate(job: Job, state: State) -> dict[str, float]:
    """Measure natural and robust accuracy on the validation part, the same random starts each time.

    Of the gates of CIFS also what ``log_columns`` names.
    """
    part, attack, generator = (
        distributed.get_slice(len(job.val)),
        job.validation_attack,
        job.generator(-1),
    )
    names = ["val_natural", "val_robust", *log_columns(job.gates)[len(LOG) :]]
    sums = torch.zeros(len(names), dtype=torch.float64, device=state.device)
    indices = torch.arange(part.start, part.stop)
    with eval_mode(state.chosen), _computing(job, state.device):
        skipped = torch.empty(1, job.data.channels, *job.data.image_size, dtype=_dtype(job))
        attack.skip(skipped, part.start, generator)
        for x, y in state.val.batches(256, state.device, indices):
            x = x.to(_dtype(job))
            x_adv = attack(state.chosen, x, y, generator)
            sums += torch.stack(
                [part.sum(dtype=torch.float64) for part in _measured(state.chosen, x, x_adv, y)]
            )
    return dict(zip(names, (distributed.all_reduce(sums) / len(job.val)).tolist(), strict=True))


@torch.no_grad()
def _measured(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Give validation's measurements per image, in the order of their columns."""
    if not isinstance(network, Selective):
        yield from (find_correct(network, images, y) for images in (x, x_adv))
        return
    natural, adversarial = network.probed(x), network.probed(x_adv)
    yield from (is_correct(answer.logits, y) for answer in (natural, adversarial))
    for layer in (
        layer for layer, gate in network.gates.items() if isinstance(gate, FeatureSelector)
    ):
        yield from (is_correct(answer.probes[layer], y) for answer in (natural, adversarial))
        masks = natural.masks[layer], adversarial.masks[layer]
        yield from map(mask_share, masks)
        yield F.cosine_similarity(*masks)


def _starts(job: Job) -> range:
    """Give the number of the first image of each batch; a last batch of one image is left out: BatchNorm needs two."""
    size = job.recipe.optimizer.batch_size
    return range(0, len(job.train) - (len(job.train) % size == 1), size)


def _augmented(job: Job, state: State, generator: torch.Generator) -> Iterator[_Batch]:
    """Give this process's share of the training part's batches, in random order and augmented."""
    n, size = len(job.train), job.recipe.optimizer.batch_size
    order = torch.randperm(n, generator=generator)
    wholes = [min(size, n - start) for start in _starts(job)]
    shares = [distributed.get_slice(whole) for whole in wholes]
    own = [
        order[start : start + size][share]
        for start, share in zip(_starts(job), shares, strict=True)
    ]
    stream = state.train.batches(size // distributed.world_size(), state.device, torch.cat(own))
    for indices, whole, share in zip(own, wholes, shares, strict=True):
        x, y = next(stream) if len(indices) else _nothing(job, state.device)
        x = augment(
            x.to(_dtype(job)),
            generator,
            crop=job.recipe.data.crop,
            flip=job.recipe.data.flip,
            whole=whole,
            first=share.start,
        )
        yield _Batch(x, y, whole, share.start)


def _dtype(job: Job) -> torch.dtype:
    return torch.float64 if job.recipe.engine.precision == "fp64" else torch.float32


def _nothing(job: Job, device: str) -> tuple[Tensor, Tensor]:
    shape = (0, job.data.channels, *job.data.image_size)
    return torch.empty(shape, device=device), torch.empty(0, dtype=torch.int64, device=device)


def _step(job: Job, state: State, batch: _Batch, attack: PGD, generator: torch.Generator) -> Tensor:
    """Take one step of SGD; give the sums of loss and hits over this process's images, and their number."""
    sums = torch.zeros(3, dtype=torch.float64, device=state.device)
    # BatchNorm needs two images in a portion, and all processes as many portions.
    portions = max(
        1, min(job.recipe.optimizer.accumulate, batch.whole // distributed.world_size() // 2)
    )
    shares = list(zip(batch.x.tensor_split(portions), batch.y.tensor_split(portions), strict=True))
    if job.adversarial:
        attack.skip(batch.x, batch.first, generator)
    for index, (x, y) in enumerate(shares):
        x_adv = (
            _attack(job, attack, state.network, x)(state.network, x, y, generator)
            if job.adversarial
            else x
        )
        last = index == len(shares) - 1
        with nullcontext() if last else _unsynchronised(state.minimised):
            sums += _backward(state, x, x_adv, y, batch.whole)
    if job.adversarial:
        attack.skip(batch.x, batch.whole - batch.first - len(batch.x), generator)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    return sums


def _backward(state: State, x: Tensor, x_adv: Tensor, y: Tensor, whole: int) -> Tensor:
    """Add the gradient of some images' share of the batch's mean loss to the weights' gradients."""
    state.network.train()
    with capture(state.network, "") as answer:
        loss = state.minimised(x, x_adv, y)
    # Data parallelism takes the mean over the processes.
    state.scaler.scale(loss.sum() * (distributed.world_size() / whole)).backward()
    hits = (answer[""].argmax(1) == y).sum()
    return torch.stack(
        [loss.detach().double().sum(), hits.double(), hits.new_tensor(len(y)).double()]
    )


def _attack(job: Job, attack: PGD, network: nn.Module, x: Tensor) -> PGD:
    """Aim the attack at what the recipe's loss wants attacked on natural images x."""
    with eval_mode(network):
        return dataclasses.replace(attack, objective=job.loss.attacked(network, x))


def _looked_at(job: Job, state: State, recent: list[Tensor], step: int) -> Tensor:
    """Add up all processes' sums over the last steps, up to this one; refuse to go on where they are no numbers."""
    sums, advice = distributed.all_reduce(torch.stack(recent)).cpu(), state.advice(job)
    place = f"epoch {len(state.history) + 1}, at step {{}} of {len(_starts(job))}"
    for number, loss in enumerate(sums[:, 0].tolist(), step + 2 - len(recent)):
        if not isfinite(loss):
            raise Diverged(f"The loss is no longer a number in {place.format(number)}: {advice}")
    if state.scaler.is_enabled() and state.scaler.get_scale() < _LEAST_SCALE:
        raise Diverged(
            f"The gradients are no longer numbers, however scaled, in {place.format(step + 1)}: {advice}"
        )
    return sums.sum(0)


def _settle_average(job: Job, state: State, epoch: int) -> None:
    """Take the epoch's weights into a plain average, and compute an average's BatchNorm statistics anew.

    They are those of natural training images, as in Izmailov et al., UAI 2018 (arXiv 1803.05407), section 3.2, and, for
    adversarial training, Chen et al., ICLR 2021.
    """
    assert state.average is not None
    if job.recipe.averaging.kind == "swa":
        state.average.update_parameters(state.network)
    images = (batch.x for batch in _augmented(job, state, job.generator(epoch)))
    with torch.no_grad(), _chance(job, epoch, state.device), _computing(job, state.device):
        update_bn(images, state.average.module)


@contextmanager
def _computing(job: Job, device: str) -> Iterator[None]:
    """Compute in the recipe's precision."""
    kind = torch.device(device).type
    dtype = _MIXED.get(job.recipe.engine.precision)
    # Autocast's cache would go on with the weights as they were before the first step.
    with torch.autocast(kind, dtype, cache_enabled=False) if dtype is not None else nullcontext():
        yield


@contextmanager
def _chance(job: Job, epoch: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, from which gates draw their noise, for an epoch; put them back afterwards."""
    seed = job.generator(epoch).initial_seed() + 1_000_000_007 * (1 + distributed.rank())
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        yield


def _unsynchronised(minimised: nn.Module) -> Any:
    """Leave the gradients in this process for now."""
    return minimised.no_sync() if isinstance(minimised, DistributedDataParallel) else nullcontext()
