"""The datasets everybody knows: the digits that scikit-learn brings, and those that torchvision reads and fetches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from channelscope.data.datasets import Dataset
from channelscope.data.images import channels_first
from channelscope.data.sampling import hold_out
from channelscope.data.splits import MemorySplit
from channelscope.errors import UserError
from channelscope.reading import regular

DIGITS = tuple("0123456789")
LARGEST = (
    256 * 2**20
)  # bytes of a file; SVHN's training part has 182 million, CIFAR-10's archive 170 million

# The class in torchvision.datasets, and what of it lies in the root folder.
TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "svhn": ("SVHN", "{part}_32x32.mat"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "mnist": ("MNIST", "MNIST/raw"),
}


def digits() -> Dataset:
    """Give scikit-learn's 1,797 digits, 8 x 8 in 17 greys, always divided 60/20/20 % into train, val and test."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = np.rint(stored.images * (255 / 16)).astype(np.uint8)
    everything = MemorySplit(
        channels_first(images), torch.from_numpy(stored.target.astype(np.int64))
    )
    rest, test = hold_out(everything.labels, 0.2, seed=0)
    train, val = hold_out(everything.labels[rest], 0.25, seed=0)
    indices = {"train": rest[train], "val": rest[val], "test": test}
    return Dataset(
        "digits", DIGITS, **{part: everything.subset(chosen) for part, chosen in indices.items()}
    )


def from_torchvision(name: str, root: Path, download: bool) -> Dataset:
    """Read the train and test parts of one of `TORCHVISION` in `root`, with `download` after fetching what is missing.

    Raises:
        UserError: files are missing, or differ from what was published.
    """
    stored = {part: _open(name, part, root, download) for part in ("train", "test")}
    classes = DIGITS if name in ("mnist", "svhn") else tuple(stored["test"].classes)
    return Dataset(
        name, classes, **{part: MemorySplit(*_tensors(data)) for part, data in stored.items()}
    )


def _open(name: str, part: str, root: Path, download: bool) -> Any:
    """Let torchvision open one part; of CIFAR-10 and SVHN it checks the MD5 sums before it unpickles or parses any.

    Of the others it checks nothing. What is no file, or larger than any that was published, is refused before.
    """
    from torchvision import datasets

    kind, place = TORCHVISION[name]
    path = root.absolute() / place.format(part=part)
    if not download and not path.exists():
        raise UserError(
            f"{path} is not there: pass --download to fetch {name}, or give the folder that holds it."
        )
    _check_files(path)
    which: dict[str, Any] = {"split": part} if name == "svhn" else {"train": part == "train"}
    try:
        return getattr(datasets, kind)(root.absolute(), download=download, **which)
    except (
        Exception
    ) as error:  # a network's, a disk's or a parser's: torchvision lets them all through
        what, why = (
            "cannot be fetched" if download else "is incomplete or damaged",
            " ".join(str(error).split()),
        )
        raise UserError(
            f"{path} {what} ({why}): remove it and pass --download, with a network at hand."
        ) from error


def _check_files(path: Path) -> None:
    """Refuse files that torchvision would wait for, take whole into memory, or read unasked."""
    if (old := path.parent / "processed").exists():
        raise UserError(
            f"{old} was written by an old torchvision, and would be read instead of {path}: remove it."
        )
    for file in sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []:
        try:
            if not file.is_dir() and regular(file).stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST // 2**20} MB")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} is not as it was published ({error}): remove it and pass --download."
            ) from error


def _tensors(stored: Any) -> tuple[Tensor, Tensor]:
    images = np.asarray(stored.data)
    if hasattr(stored, "labels"):  # SVHN, whose images have their channels first already
        return torch.from_numpy(images.copy()), torch.from_numpy(stored.labels)
    return channels_first(images), torch.as_tensor(stored.targets)
