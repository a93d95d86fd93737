"""A dataset: its parts, which share one size of image and one list of classes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from channelscope.data.splits import LazySplit, MemorySplit, Split
from channelscope.errors import UserError, has_controls

MAX_CLASSES = 100_000  # a larger label is no class, and naming so many would fill the memory


@dataclass(frozen=True, eq=False)
class Dataset:
    """Parts that share one size of image and one list of classes.

    Args:
        name: how reports call it.
        classes: the classes' names; label k is the class `classes[k]`. A class may be without
            images.
        test: the images to analyse and evaluate on; at least one.
        train: the images to train on, if there are any.
        val: the images held out of training, on which checkpoints are chosen.

    Raises:
        UserError: a part without images or of another image size, a label without a class, repeated
            class names.
    """

    name: str
    classes: tuple[str, ...]
    test: Split
    train: Split | None = None
    val: Split | None = None

    def __post_init__(self) -> None:
        for name, count in Counter(self.classes).items():
            if count > 1:
                raise UserError(
                    f"Class names must differ, and {name!r} comes {count} times in {self.name}: "
                    "rename one."
                )
            if not name.isprintable():
                raise UserError(
                    f"The class name {name!r} has characters that cannot be printed: "
                    "rename the class."
                )
        if has_controls(self.name):  # it is printed, drawn and kept in files
            raise UserError(
                f"The data's name {self.name!r} has characters that cannot be printed: "
                "rename the folder."
            )
        for part, split in self.parts.items():
            self._check(part, split)

    @property
    def parts(self) -> dict[str, Split]:
        """The parts there are, by name: "train", "val", "test"."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {part: split for part, split in parts.items() if split is not None}

    @property
    def channels(self) -> int:
        """The number of colour channels of every image."""
        return self.test.image_shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of every image, in pixels."""
        _, height, width = self.test.image_shape
        return height, width

    def require_train(self) -> Split:
        """Return the training part; UserError if there is none or if it lacks a class."""
        if self.train is None:
            raise UserError(
                f"{self.name} has no training images: choose a dataset that has a training part."
            )
        counts = self.train.labels.bincount(minlength=len(self.classes)).tolist()
        for name, count in zip(self.classes, counts, strict=True):
            if not count:
                raise UserError(
                    f"Class {name!r} of {self.name} has no training images: "
                    "add some, or remove the class."
                )
        return self.train

    def limited(self, n: int, seed: int) -> "Dataset":
        """Cut the training part to `n` images, chosen by `Split.sample`.

        Raises:
            UserError: no training part; `n` is below the number of classes, leaves one without
                images, or is more than there are; `seed` out of range.
        """
        train = self.require_train()
        if not len(self.classes) <= n <= len(train):
            raise UserError(
                f"The training part of {self.name} cannot be cut to {n} images: ask for a number "
                f"from {len(self.classes)}, one of each class, to {len(train)}, all there are."
            )
        chosen = train.sample(n, seed)
        if missing := set(range(len(self.classes))) - set(chosen.labels.tolist()):
            raise UserError(
                f"Of {n} training images of {self.name} none would be of class "
                f"{self.classes[min(missing)]!r}, the classes' shares kept: ask for more."
            )
        return replace(self, train=chosen)

    def merge_validation(self) -> "Dataset":
        """Add the validation images to the training part; there is no validation part then.

        Raises:
            UserError: no training part, or parts that are read from different places as they are
                needed.
        """
        train = self.require_train()
        if self.val is None:
            return self
        return replace(self, train=join_splits(train, self.val), val=None)

    def load(self, *parts: str, progress: bool = False) -> "Dataset":
        """Load parts of the dataset ("train", "val", "test"; none named: all) by `Split.load`."""
        loaded: dict[str, Any] = {
            part: split.load(progress)
            for part, split in self.parts.items()
            if not parts or part in parts
        }
        return replace(self, **loaded)

    def _check(self, part: str, split: Split) -> None:
        if not len(split):
            raise UserError(f"{self.name} has no {part} images: add at least one.")
        if split.image_shape != self.test.image_shape:
            raise UserError(
                f"The {part} images of {self.name} are {split.image_shape} (channels, height, "
                f"width) and the test images {self.test.image_shape}: give them one size."
            )
        if (largest := int(split.labels.max())) >= len(self.classes):
            raise UserError(
                f"The {part} labels of {self.name} go up to {largest}, but there are only "
                f"{len(self.classes)} classes: "
                f"labels must lie between 0 and {len(self.classes) - 1}."
            )


def join_splits(first: Split, second: Split) -> Split:
    """Return the images of both, first those of the first.

    Raises:
        UserError: for splits that cannot be joined without reading them.
    """
    labels = torch.cat([first.labels, second.labels])
    match first, second:
        case MemorySplit(), MemorySplit() if first.images.dtype == second.images.dtype:
            return MemorySplit(torch.cat([first.images, second.images]), labels)
        case LazySplit(), LazySplit() if first.reader is second.reader:
            return replace(first, labels=labels, rows=torch.cat([first.rows, second.rows]))
    raise UserError(
        f"{first} and {second} cannot be joined: load both into memory, with pixels of one type."
    )


def number_classes(splits: Iterable[Split]) -> tuple[str, ...]:
    """Name the classes "0" up to the largest label; UserError if that is beyond reason."""
    largest = max((int(split.labels.max()) for split in splits if len(split)), default=-1)
    if largest >= MAX_CLASSES:
        raise UserError(f"A label is {largest}: number the classes from 0, without gaps.")
    return tuple(map(str, range(largest + 1)))
