"""Labelled images: in memory, or read as they are needed."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from channelscope.data import streams
from channelscope.data.sampling import sample_stratified
from channelscope.errors import UserError
from channelscope.progress import open_bar

MEMORY_SHARE = 0.5  # a split that takes more of the machine's memory is not loaded into it
THREADS = 4  # large images are decoded side by side, small ones only get into each other's way
CHUNK = 64  # images in a thread's task: enough to make the bookkeeping small

Batch = tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]


class Split(ABC):
    """Labelled images: what is trained, evaluated and analysed on.

    Attributes:
        labels: (n,), int64, the class of each image, at least 0.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    @abstractmethod
    def subset(self, indices: Int[Tensor, " m"]) -> Self:
        """Return the images at `indices`, in that order, reading none; or UserError."""

    @abstractmethod
    def load(self, progress: bool = False) -> "Split":
        """Return the images in memory, or the split itself if they are there or should not be."""

    @abstractmethod
    def to(self, device: str | torch.device) -> Self:
        """Put images in memory on a device, as they are stored; no copy if they are there."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of the images' type, shape and bytes and of the labels.

        The bytes of image files are those of the files, not of the pixels, also after they have
        been loaded.
        """

    def sample(self, n: int | None, seed: int | Generator = 0) -> "Split":
        """Return `n` images chosen by `sample_stratified`; the split itself if `n` is None."""
        return self if n is None else self.subset(sample_stratified(self.labels, n, seed))

    def batches(
        self,
        size: int,
        device: str | torch.device = "cpu",
        indices: Int[Tensor, " m"] | None = None,
    ) -> Iterator[Batch]:
        """Go through the images, or those at `indices`, in order; the last batch may be smaller.

        Yields:
            images (b, c, h, w), float32 in [0, 1], and labels (b,), both on `device`.

        Raises:
            UserError: `size` below 1, or an index that is not there; of an image that is read and
                cannot be used, in its turn.
        """
        if size < 1:
            raise UserError(f"A batch needs at least 1 image, not {size}.")
        order = (
            torch.arange(len(self), device="cpu")
            if indices is None
            else _check_indices(indices, len(self))
        )
        return self._batches(order, size, torch.device(device))

    @abstractmethod
    def _batches(self, order: Tensor, size: int, device: torch.device) -> Iterator[Batch]: ...

    def _hash(self, dtype: torch.dtype, contents: Iterable[Any]) -> str:
        digest = hashlib.sha256(f"{dtype} {(len(self), *self.image_shape)}".encode())
        for content in contents:
            digest.update(content)
        digest.update(_to_bytes(self.labels))
        return digest.hexdigest()

    def _describe(self, ending: object) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"{type(self).__name__}({len(self)} images of {shape}, {ending})"


@dataclass(frozen=True, eq=False, repr=False)
class MemorySplit(Split):
    """Images in memory, of the machine or of a device, as they were stored: mostly a byte a pixel.

    Args:
        images: (n, c, h, w), uint8 or float in [0, 1]; n may be 0.
        labels: (n,), int64, each at least 0.
        source: the image files that were loaded, if there are any: the fingerprint is theirs.

    Raises:
        UserError: wrong dimensions or type, pixels that are NaN or outside [0, 1], negative labels,
            unequal lengths or devices.
    """

    images: Tensor
    labels: Tensor
    source: "LazySplit | None" = None

    def __post_init__(self) -> None:
        check_images(self.images)
        _check_labels(self.labels, len(self.images))
        if self.images.device != self.labels.device:
            raise UserError(
                f"Images are on {self.images.device}, labels on {self.labels.device}: "
                "move them to one."
            )

    def __repr__(self) -> str:
        return self._describe(str(self.images.dtype).removeprefix("torch."))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Int[Tensor, " m"]) -> "MemorySplit":
        rows = _check_indices(indices, len(self)).to(self.images.device)
        return MemorySplit(
            self.images.index_select(0, rows),
            self.labels.index_select(0, rows),
            None if self.source is None else self.source.subset(indices),
        )

    def load(self, progress: bool = False) -> "MemorySplit":
        return self

    def to(self, device: str | torch.device) -> "MemorySplit":
        images = self.images.to(device)
        if images is self.images:
            return self
        return MemorySplit(images, self.labels.to(device), self.source)

    def fingerprint(self) -> str:
        if self.source is not None:
            return self.source.fingerprint()
        return self._hash(self.images.dtype, [_to_bytes(self.images)])

    def _batches(self, order: Tensor, size: int, device: torch.device) -> Iterator[Batch]:
        # The images are picked out where they lie, on a device that is sent the indices once.
        return (self._batch(rows, device) for rows in _split(order.to(self.images.device), size))

    def _batch(self, rows: Tensor, device: torch.device) -> Batch:
        # Bytes travel to the device, and only there become four times as many.
        images = self.images.index_select(0, rows).to(device)
        return in_unit_range(images), self.labels.index_select(0, rows).to(device)


class Reader(ABC):
    """Reads the images of a lazy split one by one; as text it says where they are.

    Attributes:
        shape: channels, height and width of every image.
        dtype: uint8, or that of floats in [0, 1].
        on_disk: whether images are files of bytes, which threads and forked processes may read.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    on_disk: bool

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Return an image (c, h, w), or (1, h, w) if it is grey; UserError if it cannot be used."""

    @abstractmethod
    def digest(self, index: int) -> bytes:
        """Return bytes that identify the contents of an image; UserError if it cannot be read."""


@dataclass(frozen=True, eq=False, repr=False)
class LazySplit(Split):
    """Images on disk, or in somebody's dataset, each of which is read when it is needed.

    Every pass of `batches` reads its images: `load` those that are passed over more than once. Many
    files are decoded by processes, which are forked (Linux, macOS) with the first batch, keep one
    batch ahead, and end with the iterator, also one that is dropped. Values are those of a
    `MemorySplit`, to the bit.

    Args:
        reader: reads an image by its index.
        labels: (n,), int64, each at least 0.
        rows: (n,), int64, the reader's index of each image.
        stream: whether `load` leaves the images where they are; None: where they would take more
            than half of the machine's memory.
        workers: how many processes decode, 0 for this one alone; None: one for each processor.

    Raises:
        UserError: labels that are not one class for each image.
    """

    reader: Reader
    labels: Tensor
    rows: Tensor
    stream: bool | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.rows))

    def __repr__(self) -> str:
        return self._describe(f"in {self.reader}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.reader.shape

    def subset(self, indices: Int[Tensor, " m"]) -> "LazySplit":
        indices = _check_indices(indices, len(self)).cpu()
        return replace(self, labels=self.labels[indices], rows=self.rows[indices])

    def load(self, progress: bool = False) -> Split:
        """Read the images into memory, with a progress bar if it takes long and `progress` is true.

        Returns:
            a `MemorySplit` of the same fingerprint; the split itself where `stream` says so.

        Raises:
            UserError: an image cannot be used, or there are more than memory can hold.
        """

        shape = (len(self), *self.image_shape)
        size = math.prod(shape) * self.reader.dtype.itemsize
        if size > MEMORY_SHARE * _memory() if self.stream is None else self.stream:
            return self
        try:
            images = torch.empty(shape, dtype=self.reader.dtype, device="cpu")
        except RuntimeError as error:
            raise UserError(
                f"{len(self)} images of this size need {size / 2**30:.0f} GiB: "
                "pass --stream or a smaller --image-size."
            ) from error
        rows = self.rows.tolist()

        def read(start: int) -> None:
            for index in range(start, min(start + CHUNK, len(rows))):
                images[index] = self.reader.read(rows[index])

        starts = range(0, len(rows), CHUNK)
        with ThreadPoolExecutor(THREADS) as pool:
            chunks = pool.map(read, starts) if self.reader.on_disk else map(read, starts)
            for _ in open_bar(
                chunks,
                "reading images",
                len(starts),
                shown=progress,
                leave=False,
                delay=2,
                unit="image",
                unit_scale=CHUNK,
            ):
                pass
        return MemorySplit(images, self.labels, self if self.reader.on_disk else None)

    def to(self, device: str | torch.device) -> "LazySplit":
        return self

    def fingerprint(self) -> str:
        return self._hash(self.reader.dtype, map(self.reader.digest, self.rows.tolist()))

    def _batches(self, order: Tensor, size: int, device: torch.device) -> Iterator[Batch]:
        # A pass of one task is over before a process has started.
        workers = self._count_workers() if len(order) > streams.CHUNK else 0
        order, size = order.cpu(), min(size, len(order)) or 1
        labels, rows = self.labels[order].to(device), self.rows[order]
        if workers:
            chunks = streams.Pass(self.reader.read, rows, size, self.image_shape, workers).chunks()
        for own, y in zip(_split(rows, size), _split(labels, size), strict=True):
            images = torch.empty(
                (len(own), *self.image_shape),
                dtype=self.reader.dtype,
                pin_memory=device.type == "cuda",
                device="cpu",
            )
            if workers:
                for part, chunk in zip(images.split(streams.CHUNK), chunks, strict=False):
                    part.copy_(chunk[: len(part)])
            else:
                for image, row in zip(images, own.tolist(), strict=True):
                    image.copy_(self.reader.read(row))
            yield in_unit_range(images.to(device, non_blocking=True)), y

    def _count_workers(self) -> int:
        if not self.reader.on_disk:
            return 0
        return streams.count_workers() if self.workers is None else self.workers


def in_unit_range(images: Tensor) -> Tensor:
    """Turn bytes into float32 in [0, 1], and other images, which are in [0, 1], into float32."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


def check_images(images: Tensor) -> None:
    """Refuse what are not images (n, c, h, w), uint8 or float in [0, 1], with a UserError."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            "Images must have the shape (n, c, h, w), with no empty side, "
            f"not {tuple(images.shape)}."
        )
    if images.is_floating_point():
        _check_range(images)
    elif images.dtype != torch.uint8:
        raise UserError(
            f"Images must be uint8, or float in [0, 1], not {images.dtype}: convert them first."
        )


def _check_range(images: Tensor) -> None:
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low != low:  # aminmax passes NaN on, so one pass finds all three faults
        raise UserError("The images contain NaN: replace or remove the damaged ones.")
    if low >= 0 and high <= 1:
        return
    if low < 0:
        remedy = (
            "take the normalisation out of the transform and put it before the network, as "
            "cs.normalised(network, mean, std) or --normalise do; images in [-1, 1] are (x + 1) / "
            "2, and their network's normalisation is called half"
        )
    elif high < 2:
        remedy = "clip them"
    else:
        remedy = "divide by 255"
    raise UserError(f"Pixels must lie in [0, 1], and these span [{low:.3g}, {high:.3g}]: {remedy}.")


def _check_labels(labels: Tensor, n: int) -> None:
    if labels.shape != (n,):
        raise UserError(
            f"Labels must have the shape ({n},), one per image, not {tuple(labels.shape)}."
        )
    if labels.dtype != torch.int64:
        raise UserError(
            f"Labels must be int64, not {labels.dtype}: "
            "convert the numbers of the classes with .long()."
        )
    if n and (smallest := int(labels.min())) < 0:
        raise UserError(
            f"Labels must be 0 or more, and the smallest is {smallest}: number the classes from 0."
        )


def _check_indices(indices: Tensor, n: int) -> Tensor:
    if indices.ndim != 1 or indices.dtype != torch.int64:
        raise UserError(
            "Indices must be a one-dimensional int64 tensor: "
            "of a mask, pass mask.nonzero().flatten()."
        )
    if len(indices):
        low, high = torch.stack(indices.aminmax()).tolist()  # at once: a GPU is waited for once
        if low < 0 or high >= n:
            raise UserError(f"Indices must lie between 0 and {n - 1}, for there are {n} images.")
    return indices


def _split(order: Tensor, size: int) -> tuple[Tensor, ...]:
    return order.split(size) if len(order) else ()


def _to_bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _memory() -> int:
    """Return the bytes of the machine's memory; what is free of it differs from run to run."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
