"""Worker processes that decode images while the pass over them goes on."""

import math
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from mmap import mmap

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from channelscope.errors import UserError

CHUNK = 32  # images in a task: few enough to begin soon, enough to make the handing over small
MAX_WORKERS = 16  # decode some thousand images a second; starting more takes longer than they save


def count_workers() -> int:
    """Count the processors for this process; the torchrun processes of a machine share its own."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    available //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(1, available), MAX_WORKERS)


class Pass(torch.utils.data.Dataset[int | str]):
    """A pass over images: processes decode them, chunk by chunk, into memory shared with this one.

    A task is a place in that memory and the indices of a chunk. A process returns the place or, of
    an image that cannot be used, the sentence that says so, because torch makes a traceback of what
    a process raises. Nothing larger is sent: torch would send tensors through /dev/shm, of which a
    container has little.

    Args:
        read: decodes the image of an index to (c, h, w), or (1, h, w) where it is grey.
        indices: the order of the images.
        size: the size of a batch; no chunk reaches over the end of one.
        shape: that of a chunk's images.
        workers: how many processes decode, at least one.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        indices: Int[Tensor, " m"],
        size: int,
        shape: tuple[int, int, int],
        workers: int,
    ) -> None:
        self.read, self.indices, self.size = read, indices, size
        self.workers = min(workers, -(-len(indices) // min(size, CHUNK)))
        # Tasks that each process is ahead: its share of a batch, and one.
        self.ahead = -(-size // (CHUNK * self.workers)) + 1
        places = (self.ahead * self.workers + 1, min(size, CHUNK), *shape)
        self.shared = torch.frombuffer(mmap(-1, math.prod(places)), dtype=torch.uint8).view(places)
        self.free = deque(range(len(self.shared)))

    def __getitem__(self, task: tuple[int, list[int]]) -> int | str:
        place, indices = task
        try:
            for pixels, index in zip(self.shared[place], indices, strict=False):
                pixels.copy_(self.read(index))
        except UserError as error:
            return str(error)
        return place

    def chunks(self) -> Iterator[UInt8[Tensor, "k c h w"]]:
        """Yield the images chunk by chunk, in order, in memory that is soon used again."""
        for place in self._start():
            if isinstance(place, str):
                raise UserError(place)
            yield self.shared[place]
            self.free.append(place)

    def _tasks(self) -> Iterator[tuple[int, list[int]]]:
        for batch in self.indices.split(self.size):
            for chunk in batch.split(CHUNK):
                yield self.free.popleft(), chunk.tolist()

    def _start(self) -> Iterator[int | str]:
        """Fork the processes; they begin at once and end with the iterator or this process."""
        loader = DataLoader(
            self,
            batch_size=None,  # a chunk is a task
            sampler=self._tasks(),
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            multiprocessing_context="fork",
            worker_init_fn=_await_end,
            generator=torch.Generator("cpu"),  # else it would draw from the global one
        )
        # A terminal and torchrun send these signals to all processes alike. The workers inherit
        # that they are blocked: torch would report a worker ended by a signal as a fault, and this
        # process ends them anyway.
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _await_end(_: int) -> None:
    """Let SIGTERM, which torch sends to a process that does not end, end this one silently."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
