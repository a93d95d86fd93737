"""Images that stay on disk, for sets larger than memory: processes decode them while a pass goes on."""

import hashlib
import math
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader

from channelscope.data.images import fitted
from channelscope.data.splits import check_labels, checked_indices, checked_order, in_unit_range
from channelscope.errors import UserError

CHUNK = 32  # images to a task: few enough to begin soon, enough to make the handing over small
MOST_WORKERS = 16  # decode some thousand images a second; starting more for every pass takes longer than they save


def processors() -> int:
    """Count the processors that this process can use; those of one machine are shared by its torchrun processes."""
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@dataclass(frozen=True, eq=False, repr=False)
class StreamedSplit:
    """Image files and their labels; takes the place of a `Split`, and gives the same images to the bit.

    Args:
        folder: what the files' names are relative to.
        files: their names, n of them.
        labels: (n,), int64, each at least 0.
        image_shape: channels, height and width of every image; of 1 channel only where every image is 8-bit grey.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.
        workers: how many processes decode; 0: this one does.

    Raises:
        UserError: not one label for each file, or negative ones.
    """

    folder: Path
    files: tuple[str, ...]
    labels: Tensor
    image_shape: tuple[int, int, int]
    image_size: int | None = None
    workers: int = field(default_factory=lambda: min(processors(), MOST_WORKERS))

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"Streamed({len(self)} images of {' x '.join(map(str, self.image_shape))}, in {self.folder})"

    def to(self, device: str | torch.device) -> "StreamedSplit":
        """Give itself: the files stay where they are, and `batches` brings the images to the device."""
        return self

    def batches(
        self, size: int, device: str | torch.device = "cpu", indices: Int[Tensor, "m"] | None = None
    ) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]]:
        """Go through the images in order, or in that of `indices`, `size` at a time; the last batch may be smaller.

        The processes are forked (Linux, macOS) with the first batch, keep one batch ahead, and end with the iterator,
        also one that is dropped. Images travel as bytes, from pinned memory where `device` is a GPU.

        Yields:
            images (b, c, h, w), float32 in [0, 1], and labels (b,), both on `device`.

        Raises:
            UserError: `size` below 1, or an index that is not there; in its turn, a file that cannot be decoded, that
                has another size than `image_shape`, or colours where that has 1 channel.
        """
        order = checked_order(indices, size, len(self)).cpu()
        return self._batches(order, min(size, len(order)) or 1, torch.device(device))

    def subset(self, indices: Int[Tensor, "m"]) -> "StreamedSplit":
        """Keep the images at `indices`, in that order, reading none; UserError for an index that is not there."""
        indices = checked_indices(indices, len(self)).cpu()
        return replace(
            self, files=tuple(self.files[k] for k in indices.tolist()), labels=self.labels[indices]
        )

    def fingerprint(self) -> str:
        """Identify the files: SHA-256, in hexadecimal, of the images' shape, and of the files' names, sizes and labels.

        The names are relative to the folder, the sizes are in bytes. It is not of the pixels, which to read would take
        as long as a pass; so it differs from that of a `Split` of the same images.

        Raises:
            UserError: a file is not there.
        """
        digest = hashlib.sha256(f"{self.image_shape} {self.image_size}".encode())
        for file in self.files:
            digest.update(os.fsencode(f"{file}\0{self._bytes(file)}\0"))
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def decode(self, index: int) -> UInt8[ndarray, "k h w"]:
        """Decode one image, here and now, k being 1 if it is grey, else 3; UserError as `batches`."""
        channels, height, width = self.image_shape
        file = str(self.folder / self.files[index])
        image = fitted(file, (height, width), self.image_size)
        if len(image) > channels:
            raise UserError(
                f"{file} has colours, and the images looked at before are grey: "
                "convert it to grey, or pass --no-stream to have all of them read at once."
            )
        return image

    def _bytes(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"The image {self.folder / name} cannot be read ({reason}): put it back."
            ) from error

    def _batches(
        self, order: Tensor, size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.image_size is not None:
            import torchvision.transforms  # noqa: F401  # takes long, and done here it is done for the processes too
        labels, chunks = self.labels[order].to(device), _Pass(self, order, size).chunks()
        for start in range(0, len(order), size):
            y = labels[start : start + size]
            images = torch.empty(
                (len(y), *self.image_shape), dtype=torch.uint8, pin_memory=device.type == "cuda"
            )
            for part, chunk in zip(images.split(CHUNK), chunks, strict=False):
                part.copy_(torch.from_numpy(chunk[: len(part)]))
            yield in_unit_range(images.to(device, non_blocking=True)), y


class _Pass(torch.utils.data.Dataset[int | str]):
    """A pass over images: processes decode them, chunk by chunk, into memory that they share with this one.

    A task is a place in that memory and the indices of a chunk; what comes back is the place or, of an image that
    cannot be used, the sentence that says so, because torch makes a traceback of what a process raises. Nothing larger
    travels: torch would send tensors through /dev/shm, of which a container has little.
    """

    def __init__(self, images: StreamedSplit, order: Tensor, size: int) -> None:
        self.images, self.order, self.size = images, order, size
        self.workers = min(images.workers, -(-len(order) // min(size, CHUNK)))
        self.ahead = (
            -(-size // (CHUNK * max(1, self.workers))) + 1
        )  # tasks a process: its share of a batch, and one
        shape = (self.ahead * self.workers + 1, min(size, CHUNK), *images.image_shape)
        self.shared = np.frombuffer(mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
        self.free = deque(range(len(self.shared)))

    def __getitem__(self, task: tuple[int, list[int]]) -> int | str:
        place, indices = task
        try:
            for pixels, index in zip(self.shared[place], indices, strict=False):
                pixels[:] = self.images.decode(index)
        except UserError as error:
            return str(error)
        return place

    def chunks(self) -> Iterator[UInt8[ndarray, "k c h w"]]:
        """Give the images chunk by chunk, in order; each time in memory that is used again after the next step."""
        for place in self._started():
            if isinstance(place, str):
                raise UserError(place)
            yield self.shared[place]
            self.free.append(place)

    def _tasks(self) -> Iterator[tuple[int, list[int]]]:
        for batch in range(0, len(self.order), self.size):
            for chunk in self.order[batch : batch + self.size].split(CHUNK):
                yield self.free.popleft(), chunk.tolist()

    def _started(self) -> Iterator[int | str]:
        """Start the processes, forked, so that they begin at once; they end with the iterator or with this process."""
        several = self.workers > 0
        loader = DataLoader(
            self,
            batch_size=None,  # a chunk is a task
            sampler=self._tasks(),
            num_workers=self.workers,
            prefetch_factor=self.ahead if several else None,
            multiprocessing_context="fork" if several else None,
            worker_init_fn=_await_end,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        # A terminal and torchrun send these to all processes alike. Ours inherit that they are blocked: torch would
        # take one that a signal ended for a fault, and this process ends the others as soon as it knows itself.
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _await_end(_: int) -> None:
    """Let SIGTERM, which torch also sends to a process that does not end by itself, end this one without a word."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
