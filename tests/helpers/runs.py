"""Tiny data and tiny trained networks, shared by the tests of training and of all that builds on it."""

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from channelscope.data import Dataset, MemorySplit, load
from channelscope.training import Recipe, engine, train
from channelscope.training.job import Job
from channelscope.weights import Checkpoint
from helpers.expect import same_state

METHODS = ("standard", "at", "cifs", "cas")  # those that stand for the others, ``training.METHODS``
TINY: dict[str, Any] = {
    "arch": "resnet10",
    "width": 2,
    "epochs": 2,
    "batch_size": 16,
    "attack_steps": 2,
}


def _few(split: MemorySplit | None, classes: int, each: int) -> MemorySplit:
    """Keep the first images of the first classes."""
    assert split is not None
    return split.subset(
        torch.cat([(split.labels == k).nonzero().flatten()[:each] for k in range(classes)])
    )


@cache
def digits(classes: int = 4) -> Dataset:
    """Give a few images of a few of scikit-learn's digits."""
    whole = load("digits")
    splits = {"train": (whole.train, 12), "val": (whole.val, 6), "test": (whole.test, 5)}
    parts = {name: _few(split, classes, each) for name, (split, each) in splits.items()}
    return Dataset("digits", whole.classes[:classes], **parts)


def write_npz(folder: Path, kinds: int = 2, /, **changes: Any) -> str:
    """Write the same digits into an .npz file; give its name for ``--data``. Values None leave a key out."""
    few, arrays = digits(kinds), {}
    for name, split in few.parts.items():
        arrays[f"{name}_images"] = split.images[:, 0].numpy()
        arrays[f"{name}_labels"] = split.labels.numpy()
    kept = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(folder / "digits.npz", **kept)
    return f"npz:{folder / 'digits.npz'}"


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="channelscope-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def trained(method: str, classes: int = 4) -> Path:
    """Train a tiny network, once for all tests; give its checkpoint, which no test may change."""
    path = _folder() / f"{method}-{classes}.pt"
    train(method, digits(classes), out=path, progress=False, **TINY)
    return path


def run(method: str, out: Path, **changes: Any) -> torch.nn.Module:
    """Train a tiny network."""
    return train(
        method, changes.pop("data", digits()), out=out, progress=False, **{**TINY, **changes}
    )


def tiny_job(method: str, out: Path, **changes: Any) -> Job:
    """Describe the same run, without training."""
    data, seed = changes.pop("data", digits()), changes.pop("seed", 0)
    return Job(Recipe.suited_to(data.name, method).override(**{**TINY, **changes}), data, out, seed)


class Interrupted:
    """Stand in for the training step: a Ctrl-C comes at one of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls, self.at, self.step = 0, at, engine._step
        monkeypatch.setattr(engine, "_step", self)

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.step(*args)


def interrupted(method: str, out: Path, at: int = 5, **changes: Any) -> Path:
    """Train a tiny network, with a Ctrl-C at one of its steps, three of which are an epoch; give the partial file."""
    with pytest.MonkeyPatch.context() as patched:
        Interrupted(patched, at)
        with pytest.raises(KeyboardInterrupt):
            run(method, out, **changes)
    return out.with_name(f"{out.name}.partial")


def same_run(a: Path, b: Path) -> bool:
    """Tell whether two checkpoints are of the same run, to the bit; only the seconds of the epochs may differ."""

    def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if name != "seconds"} for row in history
        ]

    one, other = Checkpoint.read(a), Checkpoint.read(b)
    histories = timeless(one.meta["history"]) == timeless(other.meta["history"])
    return histories and same_state(dict(one.state), dict(other.state))
