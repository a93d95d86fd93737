"""Tiny data and tiny trained networks, for the tests of training and of all that builds on it."""

import atexit
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from channelscope.data import Dataset, MemorySplit, load
from channelscope.training import Recipe, train
from channelscope.training.job import Job
from channelscope.weights import Checkpoint
from helpers.expect import same_state

METHODS = ("standard", "at", "cifs", "cas")  # those that stand for all of ``recipes.METHODS``
TINY: dict[str, Any] = {
    "arch": "resnet10",
    "width": 2,
    "epochs": 2,
    "batch_size": 16,
    "attack_steps": 2,
}


@cache
def digits(classes: int = 4, times: int = 1) -> Dataset:
    """Return a few images of the first of scikit-learn's digits: 12, 6 and 5 of each class.

    Args:
        classes: how many.
        times: so many times as many images.
    """
    whole = load("digits")
    parts = {}
    for name, each in (("train", 12), ("val", 6), ("test", 5)):
        split: MemorySplit = getattr(whole, name)
        indices = [(split.labels == k).nonzero().flatten()[: times * each] for k in range(classes)]
        parts[name] = split.subset(torch.cat(indices))
    return Dataset("digits", whole.classes[:classes], **parts)


def write_npz(folder: Path, classes: int = 2, /, **changes: Any) -> str:
    """Write the same digits into an .npz file, with some arrays changed, or left out for None.

    Returns:
        The file's name for ``--data``.
    """
    arrays: dict[str, Any] = {}
    for name, split in digits(classes).parts.items():
        arrays[f"{name}_images"] = split.images[:, 0].numpy()
        arrays[f"{name}_labels"] = split.labels.numpy()
    arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(folder / "digits.npz", **arrays)
    return f"npz:{folder / 'digits.npz'}"


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="channelscope-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def trained(method: str, classes: int = 4) -> Path:
    """Train a tiny network, once for all tests; return its checkpoint, which no test may change."""
    path = _folder() / f"{method}-{classes}.pt"
    run(method, path, data=digits(classes))
    return path


def run(method: str, out: Path, **changes: Any) -> torch.nn.Module:
    """Train a tiny network."""
    data = changes.pop("data", digits())
    return train(method, data, out=out, progress=False, device="cpu", **{**TINY, **changes})


def tiny_job(method: str, out: Path, **changes: Any) -> Job:
    """Describe the same run, without training."""
    data, seed = changes.pop("data", digits()), changes.pop("seed", 0)
    return Job(Recipe.suited_to(data.name, method).override(**{**TINY, **changes}), data, out, seed)


@contextmanager
def after_steps(react: Callable[[torch.optim.SGD], None]) -> Iterator[None]:
    """Call a function with the optimiser after every step of SGD."""
    zero_grad = torch.optim.SGD.zero_grad

    def watched(self: torch.optim.SGD) -> None:
        react(self)
        zero_grad(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "zero_grad", watched)
        yield


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Let Ctrl-C come at a step of SGD, counted from 1, and expect it."""
    steps = count(1)

    def stop(_: torch.optim.SGD) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt

    with after_steps(stop), pytest.raises(KeyboardInterrupt):
        yield


def interrupted(method: str, out: Path, at: int = 5, **changes: Any) -> Path:
    """Train a tiny network until Ctrl-C at a step, three of which are an epoch.

    Returns:
        The file of the state.
    """
    with interrupted_at(at):
        run(method, out, **changes)
    return out.with_name(f"{out.name}.partial")


def same_run(a: Path, b: Path) -> bool:
    """Return whether two checkpoints are of the same run, to the bit; seconds may differ."""
    one, other = Checkpoint.read(a), Checkpoint.read(b)
    histories = [
        [row | {"seconds": None} for row in checkpoint.meta["history"]]
        for checkpoint in (one, other)
    ]
    return histories[0] == histories[1] and same_state(one.state, other.state)
