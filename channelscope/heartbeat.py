"""Sign of life of several processes: one that stops is told of, and then ends the run.

A process that dies closes its connections, which the others see at once. One that is stopped, or
whose machine hangs, keeps them: the others would wait for it in silence. So each process counts
beats in the store of ``torchrun``, in a thread of its own, however long its work takes.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from channelscope.errors import UserError

VARIABLE = "CHANNELSCOPE_TIMEOUT"  # seconds
_TIMEOUT = 1800.0
_NOTICE = 60.0  # seconds after which a process that does not answer is told of
_INTERVAL = 5.0  # seconds between beats
_KEY = "channelscope/beats"


class Store(Protocol):
    """A store that processes share: torch's ``TCPStore``."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, 0 at first, and return it."""


def get_timeout() -> float:
    """Return after how many seconds a process that does not answer ends the run.

    Raises:
        UserError: for a setting that is no such number.
    """
    text = os.environ.get(VARIABLE, str(_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{VARIABLE}: {text!r} is no number of seconds above 0, such as 1800.")
    return seconds


class Watch:
    """What one process knows of the others' beats.

    Args:
        store: where beats are counted.
        rank, size: this process's number, and how many there are.
        timeout: seconds without an answer after which the run ends.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.rank, self.timeout, self.clock = store, rank, timeout, clock
        self._counts = [0] * size
        self._heard = [clock()] * size  # when each process was last heard of
        self._told: set[int] = set()

    def beat(self) -> None:
        """Count a beat of this process, and look for those of the others."""
        for rank, count in enumerate(self._counts):
            now = self.store.add(f"{_KEY}/{rank}", int(rank == self.rank))
            if now != count:
                self._counts[rank], self._heard[rank] = now, self.clock()

    def find_silent(self, seconds: float) -> list[int]:
        """Return the processes that have not answered for so long.

        A process that cannot reach the store hears of nobody, of itself neither: the store is on
        the machine of process 0.
        """
        now = self.clock()
        silent = [rank for rank, heard in enumerate(self._heard) if now - heard > seconds]
        return [0] if self.rank in silent else silent

    def speaks(self, silent: list[int]) -> bool:
        """Return whether this is the process that speaks: the first of those that answer."""
        others = [rank for rank in range(len(self._counts)) if rank not in silent]
        return not others or self.rank == others[0]

    def list_news(self) -> list[str]:
        """Return sentences on processes that have stopped answering, or answer again."""
        silent = self.find_silent(_NOTICE)
        gone, back = set(silent) - self._told, self._told - set(silent)
        self._told = set(silent)
        news = [
            f"Process {rank} has not answered for {_NOTICE:.0f} s: it was stopped, or its machine "
            f"is out of reach. The run ends after {self.timeout:.0f} s ({VARIABLE})."
            for rank in sorted(gone)
        ]
        news += [f"Process {rank} answers again." for rank in sorted(back)]
        return news if self.speaks(silent) else []

    def get_last_words(self) -> str | None:
        """Return why the run has to end, "" for a process that need not say it; None to go on."""
        silent = self.find_silent(self.timeout)
        if not silent:
            return None
        if not self.speaks(silent):
            return ""
        return (
            f"Process {silent[0]} has not answered for {self.timeout:.0f} s ({VARIABLE}), so the "
            "run ends: start it again to go on."
        )


@contextmanager
def keep_watch(store: Store, rank: int, size: int, timeout: float) -> Iterator[None]:
    """Beat and watch the others while the context lasts; end the process if one falls silent.

    A thread cannot raise an error in one that waits for another process, so the whole process
    ends at once, with exit status 2; every file is whole, as after a kill.
    """
    watch, is_over = Watch(store, rank, size, timeout), threading.Event()
    interval = min(_INTERVAL, timeout / 4)

    def beat() -> None:
        while not is_over.wait(interval):
            try:
                watch.beat()
            except RuntimeError:  # the store is gone; connections break then, too
                is_over.set()

    def look() -> None:
        while not is_over.wait(interval):
            for sentence in watch.list_news():
                _say(sentence)
            words = watch.get_last_words()
            if words is not None:
                _say(words)
                os._exit(2)

    # Apart, as a store whose machine hangs does not answer.
    threads = [threading.Thread(target=work, daemon=True) for work in (beat, look)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()


def _say(sentence: str) -> None:
    if sentence:
        sys.stderr.write(f"\nchannelscope: {sentence}\n")
        sys.stderr.flush()
