"""The values that hold images: a split, and a dataset made of splits. Neither can be built from bad images."""

import hashlib
import operator
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.errors import UserError

MAX_CLASSES = 100_000  # a number beyond is no class, and naming so many would fill the memory


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images and their labels, kept as they were stored: a byte a pixel wherever possible.

    Args:
        images: (n, c, h, w), uint8 or float in [0, 1]; n may be 0.
        labels: (n,), int64, each at least 0.

    Raises:
        UserError: wrong dimensions or type, pixels that are NaN or outside [0, 1], negative labels, unequal lengths or
            devices.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images))
        if self.images.device != self.labels.device:
            raise UserError(f"Images are on {self.images.device}, labels on {self.labels.device}: move them to one.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"Split({len(self)} images of {size}, {str(self.images.dtype).removeprefix('torch.')})"

    def batches(
        self, size: int, device: str | torch.device = "cpu", indices: Int[Tensor, "m"] | None = None
    ) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]]:
        """Go through the images in order, or in that of `indices`, `size` at a time; the last batch may be smaller.

        Yields:
            images (b, c, h, w), float32 in [0, 1], and labels (b,), both on `device`.

        Raises:
            UserError: `size` below 1, or an index that is not there.
        """
        if size < 1:
            raise UserError(f"A batch needs at least 1 image, not {size}.")
        order = self._checked(torch.arange(len(self)) if indices is None else indices)
        return (self._batch(order[start : start + size], device) for start in range(0, len(order), size))

    def subset(self, indices: Int[Tensor, "m"]) -> "Split":
        """Keep the images at `indices`, in that order; UserError for an index that is not there."""
        indices = self._checked(indices)
        return Split(self.images.index_select(0, indices), self.labels.index_select(0, indices))

    def fingerprint(self) -> str:
        """Identify the contents: SHA-256, in hexadecimal, of the images' type, shape and bytes and of the labels."""
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _batch(self, indices: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor]:
        # Bytes travel to the device, and only there become four times as many.
        images = self.images.index_select(0, indices).to(device)
        scaled = images.float() if images.is_floating_point() else images.float().div_(255)
        return scaled, self.labels.index_select(0, indices).to(device)

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.ndim != 1 or indices.dtype != torch.int64:
            raise UserError("Indices must be a one-dimensional int64 tensor: of a mask, pass mask.nonzero().flatten().")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise UserError(f"Indices must lie between 0 and {len(self) - 1}, for there are {len(self)} images.")
        return indices.to(self.images.device)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of images that share one size and one list of classes.

    Args:
        name: how reports call it.
        classes: the classes' names; label k is the class `classes[k]`. A class may be without images.
        test: the images to analyse and evaluate on; at least one.
        train: the images to train on, if there are any.
        val: the images held out of training, on which checkpoints are chosen.

    Raises:
        UserError: a split without images or of another image size, a label without a class, repeated class names.
    """

    name: str
    classes: tuple[str, ...]
    test: Split
    train: Split | None = None
    val: Split | None = None

    def __post_init__(self) -> None:
        name, count = max(Counter(self.classes).items(), key=operator.itemgetter(1), default=("", 0))
        if count > 1:
            raise UserError(f"Class names must differ, and {name!r} comes {count} times in {self.name}: rename one.")
        if strange := [name for name in self.classes if not name.isprintable()]:
            raise UserError(f"The class name {strange[0]!r} has characters that cannot be printed: rename the class.")
        for part, split in self.parts.items():
            self._check(part, split)

    @property
    def parts(self) -> dict[str, Split]:
        """The splits there are, by name: "train", "val", "test"."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {part: split for part, split in parts.items() if split is not None}

    @property
    def channels(self) -> int:
        """The number of colour channels of every image."""
        return self.test.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of every image, in pixels."""
        _, _, height, width = self.test.images.shape
        return height, width

    def require_train(self) -> Split:
        """Give the training split; UserError if there is none, or if one of the classes has no image in it."""
        if self.train is None:
            raise UserError(f"{self.name} has no training images: choose a dataset that has a training part.")
        counts = self.train.labels.bincount(minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts.tolist(), strict=True) if not count]:
            raise UserError(f"Class {empty[0]!r} of {self.name} has no training images: add some, or remove the class.")
        return self.train

    def _check(self, part: str, split: Split) -> None:
        if not len(split):
            raise UserError(f"{self.name} has no {part} images: add at least one.")
        if split.images.shape[1:] != self.test.images.shape[1:]:
            sizes = [tuple(images.shape[1:]) for images in (split.images, self.test.images)]
            raise UserError(
                f"The {part} images of {self.name} are {sizes[0]} (channels, height, width) "
                f"and the test images {sizes[1]}: give them one size."
            )
        if (largest := int(split.labels.max())) >= len(self.classes):
            raise UserError(
                f"The {part} labels of {self.name} go up to {largest}, but there are only {len(self.classes)} classes: "
                f"labels must lie between 0 and {len(self.classes) - 1}."
            )


def numbered(splits: Iterable[Split]) -> tuple[str, ...]:
    """Name the classes after their numbers, "0" up to the largest label; UserError if it is beyond reason."""
    largest = max((int(split.labels.max()) for split in splits if len(split)), default=-1)
    if largest >= MAX_CLASSES:
        raise UserError(f"A label is {largest}: number the classes from 0, without gaps.")
    return tuple(map(str, range(largest + 1)))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(f"Images must have the shape (n, c, h, w), with no empty side, not {tuple(images.shape)}.")
    if images.is_floating_point():
        _check_range(images)
    elif images.dtype != torch.uint8:
        raise UserError(f"Images must be uint8, or float in [0, 1], not {images.dtype}: convert them first.")


def _check_range(images: Tensor) -> None:
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low != low:  # aminmax passes NaN on, so one pass finds all three faults
        raise UserError("The images contain NaN: replace or remove the damaged ones.")
    if low < 0 or high > 1:
        raise UserError(
            f"Pixels must lie in [0, 1], and these span [{low:.3g}, {high:.3g}]: "
            "divide by 255, or take the normalisation out of the transform (it belongs inside the model)."
        )


def _check_labels(labels: Tensor, n: int) -> None:
    if labels.dtype != torch.int64:
        raise UserError(f"Labels must be int64, not {labels.dtype}: convert the numbers of the classes with .long().")
    if labels.shape != (n,):
        raise UserError(f"Labels must have the shape ({n},), one per image, not {tuple(labels.shape)}.")
    if n and (smallest := int(labels.min())) < 0:
        raise UserError(f"Labels must be 0 or more, and the smallest is {smallest}: number the classes from 0.")
