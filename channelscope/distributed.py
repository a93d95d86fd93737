"""Several processes on one job, started by ``torchrun``: their ranks, shares and exchanges.

Without ``torchrun`` there is one process, and every function here is nearly free. The processes are
torch's (``torch.distributed``: NCCL between GPUs, gloo otherwise) and see one file system.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.heartbeat import Store, get_timeout, keep_watch

T = TypeVar("T")

# For a slower process, or one that fetches data. A dead one shows at once by its closed connection,
# a stopped one by its missing beats (see ``heartbeat``).
_PATIENCE = timedelta(hours=12)
_STORE_SECONDS = 60
_MOMENT = 0.05  # seconds; a thread that has done its part needs microseconds


class ProcessLost(UserError):
    """Another process of the run has stopped, so that this one cannot go on."""


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if _has_joined() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _has_joined() else 1


def is_first() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def started_by_torchrun() -> bool:
    """Return whether ``torchrun`` started this process beside others."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started while the context lasts; alone, do nothing.

    A process that is stopped, or out of reach, is told of and ends the run: see ``heartbeat``.

    Raises:
        ProcessLost: where another process has gone.
    """
    if not started_by_torchrun() or _has_joined():
        yield
        return
    on_gpu, timeout = device.startswith("cuda"), get_timeout()
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        # Tensors on the CPU, such as statistics, travel by gloo beside those of GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
        with keep_watch(_connect_store(), rank(), world_size(), timeout):
            yield
        if on_gpu:  # not after an error: NCCL would wait for those that have stopped
            _leave()
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        raise ProcessLost(
            "Another of the run's processes has stopped, so this one cannot go on: see what that "
            "one said, then start the run again."
        ) from error
    finally:
        if not on_gpu and _has_joined():
            _leave()


def _connect_store() -> Store:
    """Return a connection of its own to the processes' store: operations on one take turns."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=_STORE_SECONDS)
    store: Store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, timeout=patience
    )
    return store


def _leave() -> None:
    """Leave the other processes, after a moment in which gloo's threads release their tensors.

    torch 2.6 waits for these threads while it holds Python's lock, for which a thread with a tensor
    waits.
    """
    time.sleep(_MOMENT)
    dist.destroy_process_group()


@contextmanager
def run_first() -> Iterator[None]:
    """Let the first process do something, such as fetch files, before the others do it."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def get_slice(n: int) -> slice:
    """Return this process's share of n things: neighbours, at most one more than any other's."""
    return slice(rank() * n // world_size(), (rank() + 1) * n // world_size())


def shard(things: Sequence[T]) -> Sequence[T]:
    """Return this process's share of things that are dealt out in turn, one by one."""
    return things[rank() :: world_size()]


def all_reduce(value: Tensor) -> Tensor:
    """Add up the processes' tensors, of one shape and type: the same bits in every process."""
    if not _has_joined():
        return value
    sums = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(sums)
    return sums


def all_gather(rows: Shaped[Tensor, "own *row"]) -> Shaped[Tensor, "all *row"]:
    """Concatenate the processes' rows (n_i, ...), in the order of the processes."""
    if not _has_joined():
        return rows
    counts = [int(count) for count in _gather(torch.tensor([len(rows)], device=rows.device))]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_gather(padded), counts, strict=True)])


def all_gather_words(words: Iterable[str]) -> list[str]:
    """Gather the processes' words, which hold no NUL, in the order of the processes."""
    encoded = "".join(f"{word}\0" for word in words).encode()
    letters = all_gather(torch.tensor(list(encoded), dtype=torch.uint8, device="cpu"))
    return bytes(letters.tolist()).decode().split("\0")[:-1]


def check_same(digests: Mapping[str, str]) -> None:
    """Check that all processes work on one job; alone, do nothing.

    Args:
        digests: what the job depends on, by a name for the message ("the data", "the weights of
            at"): digests, or texts of any length.

    Raises:
        UserError: the same in every process, naming what differs and between which processes.
    """
    if not _has_joined():
        return
    short = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in digests.items()}
    jobs: list[dict[str, str]] = [json.loads(job) for job in all_gather_words([json.dumps(short)])]
    names = dict.fromkeys(name for job in jobs for name in job)
    different = [name for name in names if len({job.get(name) for job in jobs}) > 1]
    if different:
        others = [str(number) for number, job in enumerate(jobs) if job != jobs[0]]
        raise UserError(
            f"The processes do not share one job: {_join(different)} differ between processes "
            f"{_join(['0', *others])}. Give all of them the same files and options."
        )


def barrier() -> None:
    """Wait until every process is here."""
    all_reduce(torch.zeros((), device="cpu"))


def synchronise_batchnorm(network: nn.Module) -> nn.Module:
    """Let each BatchNorm in training use the statistics of all processes' images; in place."""
    if not _has_joined():
        return network
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm2d
    return network


class _AllReduce(torch.autograd.Function):
    """``all_reduce`` with a gradient: a process's value is part of every process's result."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return all_reduce(value)

    @staticmethod
    def backward(_context: Any, slope: Tensor) -> Tensor:
        return all_reduce(slope)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over all processes' images, also on CPUs, where SyncBatchNorm does not run."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision cannot even count
        n = all_reduce(wide.new_tensor(float(x.numel() // x.shape[1])))
        mean = _AllReduce.apply(wide.sum((0, 2, 3))) / n
        centred = wide - mean.view(-1, 1, 1)
        variance = _AllReduce.apply(centred.square().sum((0, 2, 3))) / n
        self._update_running_statistics(mean.detach(), variance.detach() * (n / (n - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)

    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's; without a momentum, to their mean."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def _has_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(value: Tensor) -> list[Tensor]:
    """Gather the processes' tensors, of one shape and type."""
    value = value.contiguous()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value)
    return parts


def _join(words: Sequence[str]) -> str:
    """Join words as a list in a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether NCCL, the store or gloo raised an error; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
