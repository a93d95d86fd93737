"""What may go wrong in a process: each function prepares a trouble of the process that calls it."""

import errno
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

# What a program does to files, as Python's audit hooks see it.
FILE_EVENTS = {
    *(
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.chmod",
        "os.truncate",
        "os.listdir",
    ),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "shutil.rmtree", "shutil.copyfile", "fcntl.flock"),
}


def kill_at_file_operation(number: int, folder: str) -> None:
    """Kill the process at its NUMBER-th operation on files in a folder, counted from 1."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and (event == "fcntl.flock" or folder in str(arguments[0])):
            seen += 1
            if seen == number:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


def count_file_operations(file: str, folder: str) -> None:
    """Note in a file how many such operations there are."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and (event == "fcntl.flock" or folder in str(arguments[0])):
            os.write(handle, b"x")

    sys.addaudithook(watch)


def file_limit(size: int) -> None:
    """Let no file grow beyond a number of bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def failing_write(number: int, code: int) -> None:
    """Let the NUMBER-th row or flush of a file, and all after it, fail with a system's error."""
    calls = 0

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= number:
                raise OSError(code, os.strerror(code))
            return function(*arguments)

        return refuse

    os.fsync = refusing(os.fsync)
    os.pwrite = refusing(os.pwrite)


def few_figures(number: int) -> None:
    """Let a result have few figures: all are written alike, and drawing takes most of the time."""
    from channelscope import gallery

    list_all = gallery.list_figures
    gallery.list_figures = lambda result: dict(islice(list_all(result).items(), number))


def full_disk(number: int) -> None:
    """Let the disk be full from the NUMBER-th row or flush on."""
    failing_write(number, errno.ENOSPC)


def jumping_clock(seed: int) -> None:
    """Let the wall clock jump by up to a year, forwards and back, at every other reading."""
    chance, now, now_ns = random.Random(seed), time.time, time.time_ns
    shift = 0.0

    def jumped() -> float:
        nonlocal shift
        if chance.random() < 0.5:
            shift = chance.uniform(-1, 1) * 365 * 86400
        return now() + shift

    time.time = jumped
    time.time_ns = lambda: now_ns() + int(1e9 * (jumped() - now()))
    _replace(now, jumped)


def _replace(before: Any, after: Any) -> None:
    """Put a function in another's place in every module that has taken it by name."""
    for module in [*sys.modules.values()]:
        for name, value in [*vars(module).items()] if hasattr(module, "__dict__") else ():
            if value is before and module is not sys.modules[__name__]:
                setattr(module, name, after)


def little_memory(more: int) -> None:
    """Let the process have a number of bytes more than it has now."""
    with open("/proc/self/statm", encoding="utf-8") as file:  # noqa: PTH123
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))


def no_memory_at_step(number: int, rank: int, kind: str) -> None:
    """Let a step of training, in one process, find no memory, with Python's error or torch's."""
    from channelscope.training import engine

    step, calls = engine._step, 0
    words = (
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9 GB"
    )

    def short(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number and int(os.environ.get("RANK", "0")) == rank:
            raise MemoryError if kind == "python" else RuntimeError(words)
        return step(*given)

    engine._step = short


def no_memory_at_batch(number: int) -> None:
    """Let the NUMBER-th batch that is attacked find no memory."""
    from channelscope.attacks.base import Attack

    call, calls = Attack.__call__, 0

    def short(*given: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            raise MemoryError
        return call(*given, **options)

    Attack.__call__ = short


def nan_at_steps(first: int, last: int, what: str) -> None:
    """Let the loss, or the gradients alone, be NaN at some steps of training, counted from 1."""
    from channelscope.training import engine

    backward, calls = engine._backward, 0

    def spoilt(state: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        sums = backward(state, *given)
        if first <= calls <= last:
            for parameter in state.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            if what == "loss":
                sums[0] = float("nan")
        return sums

    engine._backward = spoilt


def killed_reader(after: int) -> None:
    """Let a process that reads images be killed at its AFTER-th chunk."""
    from channelscope.data import streams

    streams.CHUNK = 2  # a few images are several chunks
    read, calls = streams.Pass.__getitem__, 0

    def deadly(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*given)

    streams.Pass.__getitem__ = deadly
