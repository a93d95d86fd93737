"""What a training will cost, stage by stage: measured by single steps on this machine."""

import dataclasses
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from tqdm import tqdm

from channelscope.data import Dataset, MemorySplit
from channelscope.devices import is_accelerator, resolve_device
from channelscope.training.engine import reweigh_classes, train_epoch, validate
from channelscope.training.job import Job
from channelscope.training.precision import choose_precision
from channelscope.training.recipes import Recipe
from channelscope.training.state import State

_TRIAL = 8  # images of a measured step on a CPU; a GPU needs a whole batch to be itself
_FLOATS = 5  # of a weight: itself, its gradient, its momentum, the best epoch's, what is written


@dataclass(frozen=True)
class Images:
    """The images of a training.

    Args:
        name: of the data.
        shape: channels, height and width.
        classes: their number.
        train, val: the numbers of images to train on and to validate on.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    val: int


# What ``data.load`` makes of data sets that may not be here yet: a tenth is held out.
KNOWN = {
    "cifar10": Images("cifar10", (3, 32, 32), 10, 45_000, 5_000),
    "svhn": Images("svhn", (3, 32, 32), 10, 65_931, 7_326),
    "fashion-mnist": Images("fashion-mnist", (1, 28, 28), 10, 54_000, 6_000),
    "mnist": Images("mnist", (1, 28, 28), 10, 54_000, 6_000),
}


@dataclass(frozen=True)
class Cost:
    """What a stage of a training takes.

    Args:
        loss: the kind of loss that it minimises.
        epochs: passes over the images, at most.
        steps: steps of the optimiser, in all epochs.
        seconds: of an epoch and its validation.
        memory: bytes that training takes at most, beside what Python and torch take themselves.
        disk: bytes of its checkpoint.
    """

    loss: str
    epochs: int
    steps: int
    seconds: float
    memory: int
    disk: int

    @property
    def hours(self) -> float:
        """The time of all epochs."""
        return self.epochs * self.seconds / 3600


def describe_images(dataset: Dataset) -> Images:
    """Return the shape and the numbers of a data set's images."""
    shape = (dataset.channels, *dataset.image_size)
    val = 0 if dataset.val is None else len(dataset.val)
    return Images(dataset.name, shape, len(dataset.classes), len(dataset.require_train()), val)


def plan_training(recipe: Recipe, images: Images, device: str = "auto") -> list[Cost]:
    """Measure what each stage of a training will take here, by two steps on random images.

    Nothing is kept of them. The time is that of the machine as it is now; where
    others use it as well, it varies by a factor of two and more. FAT is measured without its early
    stopping, so it takes less.

    Args:
        recipe: how to train, in one stage or two.
        images: what to train on.
        device: "auto", "cpu", "cuda", ...

    Raises:
        UserError: for a recipe that does not fit the images.
    """
    device = resolve_device(device)
    stages = (recipe.first_stage, recipe)
    return [_measure_stage(stage, images, device) for stage in stages if stage is not None]


def _measure_stage(recipe: Recipe, images: Images, device: str) -> Cost:
    is_cuda = torch.device(device).type == "cuda"
    batch_size = recipe.optimizer.batch_size
    trial = batch_size if is_accelerator(device) else min(batch_size, _TRIAL)
    with TemporaryDirectory() as folder:
        job = _make_trial_job(recipe, images, trial, Path(folder) / "net.pt")
        state = State(choose_precision(job, device), device)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        train_epoch(state, 0, tqdm(disable=True))  # the first pays for what is done once
        start = perf_counter()
        train_epoch(state, 1, tqdm(disable=True))  # its sums are read: a GPU has come to its end
        train_seconds = (perf_counter() - start) / trial
        start = perf_counter()
        validate(state)
        reweigh_classes(state, 1)
        val_seconds = (perf_counter() - start) / trial
        saved = _count_saved_bytes(state) // trial
    merged = images.val if recipe.data.validation == "none" else 0
    train, val = images.train + merged, images.val - merged
    weights = sum(value.nbytes for value in state.network.state_dict().values())
    if is_cuda:
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = _FLOATS * weights + saved * ceil(batch_size / recipe.optimizer.accumulate)
    return Cost(
        loss=recipe.loss.kind,
        epochs=recipe.schedule.epochs,
        steps=ceil(train / batch_size) * recipe.schedule.epochs,
        seconds=train_seconds * train + val_seconds * val,
        memory=memory + (train + val) * prod(images.shape),  # pixels are bytes
        disk=weights,
    )


def _make_trial_job(recipe: Recipe, images: Images, trial: int, out: Path) -> Job:
    """Describe the same training on a few random images, with steps too small to diverge."""
    recipe = recipe.override(batch_size=trial, lr=1e-9, tau=[], tau_milestones=[])
    # Other initial weights take as long, and a stage is measured by itself.
    recipe = dataclasses.replace(recipe, init=None, before=None)
    classes = min(images.classes, trial)
    generator = torch.Generator("cpu").manual_seed(0)
    pixels = torch.randint(
        256, (trial, *images.shape), dtype=torch.uint8, generator=generator, device="cpu"
    )
    part = MemorySplit(pixels, torch.arange(trial, device="cpu") % classes)
    data = Dataset(images.name, tuple(map(str, range(classes))), part, part, part)
    return Job(recipe, data, out, seed=0)


def _count_saved_bytes(state: State) -> int:
    """Count what the loss of all training images keeps for its backward pass, weights apart."""
    weights = {value.untyped_storage().data_ptr() for value in state.network.parameters()}
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, y = next(state.train.batches(len(state.train), state.device))
    x = x.to(state.job.dtype)
    state.network.train()
    with saved_tensors_hooks(count, lambda tensor: tensor):
        loss = state.loss(x, x, y)
    del loss  # alive until here, so that no two of its tensors shared a place
    return sum(size for pointer, size in storages.items() if pointer not in weights)
