"""Several processes on one job, started by ``torchrun``: who one is, one's part of the work, what they tell each other.

Without ``torchrun`` there is one process, and every function here is nearly free. The processes are torch's
(``torch.distributed``: NCCL between GPUs, gloo otherwise); all of them see one file system.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from channelscope.errors import UserError

T = TypeVar("T")

# For a slower process, or one that fetches data; one that has died is noticed at once, by its closed connection.
_PATIENCE = timedelta(hours=12)
_MOMENT = 0.05  # seconds; a thread that has done its part needs microseconds


class ProcessLost(UserError):
    """Another process of the run has stopped, so this one cannot go on."""


def rank() -> int:
    """Give this process's number, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Tell whether this is the process that writes files and talks."""
    return rank() == 0


def started_by_torchrun() -> bool:
    """Tell whether ``torchrun`` started this process beside others."""
    return (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
        and "RANK" in os.environ
        and "MASTER_ADDR" in os.environ
    )


def own_device(device: str) -> str:
    """Name this process's own device: of ``cuda``, the GPU of its number on this machine."""
    return (
        f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        if device == "cuda" and started_by_torchrun()
        else device
    )


@contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for as long as the context lasts; alone, do nothing.

    Raises:
        ProcessLost: where another process has gone.
    """
    if not started_by_torchrun() or _together():
        yield
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        # Tensors on the CPU, such as statistics, travel by gloo beside those of GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
        yield
        if on_gpu:  # not after an error: NCCL would wait for those that have stopped
            _leave()
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        raise ProcessLost(
            "Another of the run's processes has stopped, so this one cannot go on: see what that one said, then start "
            "the run again."
        ) from error
    finally:
        if not on_gpu and _together():
            _leave()


def _leave() -> None:
    """Leave the other processes, after a moment in which gloo's threads give back their tensors.

    torch 2.6 waits for these threads while it holds Python's lock, which one that still has a tensor waits for.
    """
    time.sleep(_MOMENT)
    dist.destroy_process_group()


@contextmanager
def run_first() -> Iterator[None]:
    """Let the first process do something, such as fetch files, before the others, which then find it done."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def get_slice(n: int) -> slice:
    """Give this process's share of n things: neighbours, at most one more than any other process's."""
    return slice(rank() * n // world_size(), (rank() + 1) * n // world_size())


def shard(things: Sequence[T]) -> Sequence[T]:
    """Give this process's hand of things that are dealt out in turn, one by one."""
    return things[rank() :: world_size()]


def all_reduce(value: Tensor) -> Tensor:
    """Add up the processes' tensors of numbers, of one shape and type: the same bits in every process."""
    if not _together():
        return value
    sums = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(sums)
    return sums


def all_gather(rows: Shaped[Tensor, "own *row"]) -> Shaped[Tensor, "all *row"]:
    """Put the processes' rows (n_i, ...) one below the other, in the order of their numbers."""
    if not _together():
        return rows
    counts = [int(count) for count in _all(torch.tensor([len(rows)], device=rows.device))]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all(padded), counts, strict=True)])


def all_gather_words(words: Iterable[str]) -> set[str]:
    """Put the processes' words, which hold no NUL, together: those that any of them has."""
    said = torch.frombuffer(
        bytearray("".join(f"{word}\0" for word in words).encode() or b"\0"), dtype=torch.uint8
    )
    return {word for word in bytes(all_gather(said).tolist()).decode().split("\0") if word}


def barrier() -> None:
    """Wait until every process is here."""
    all_reduce(torch.zeros(()))


def synchronise_batchnorm(network: nn.Module) -> nn.Module:
    """Let every BatchNorm of a network, in training, use the statistics of all processes' images; in place."""
    if not _together():
        return network
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm2d
    return network


class _Total(torch.autograd.Function):
    """``total`` with a gradient: a process's value takes part in every process's result."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return all_reduce(value)

    @staticmethod
    def backward(_context: Any, slope: Tensor) -> Tensor:
        return all_reduce(slope)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over all processes' images, also on CPUs, for which torch's own SyncBatchNorm is not made."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision cannot even count
        n = all_reduce(wide.new_tensor(float(x.numel() // x.shape[1])))
        mean = _Total.apply(wide.sum((0, 2, 3))) / n
        centred = wide - mean.view(-1, 1, 1)
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / n
        self._follow(mean.detach(), variance.detach() * (n / (n - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's, as torch does: momentum None stands for their plain mean."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all(value: Tensor) -> list[Tensor]:
    value = value.contiguous()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value)
    return parts


def _is_of_a_connection(error: RuntimeError) -> bool:
    """Tell NCCL's, the store's and gloo's errors from others; gloo's have no type of their own, but name its source."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
