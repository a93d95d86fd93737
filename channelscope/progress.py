"""Bars of long steps: tqdm's on a terminal and in a notebook, and lines in a file.

A file gets a line when the step or its description goes on to another tenth or another phase, but
none within ``PAUSE`` seconds of the last, so that a minute is a few lines and a night some hundred.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

PAUSE = 20.0  # seconds


def open_bar(
    iterable: Iterable[Any] | None = None,
    description: str = "",
    total: float | None = None,
    *,
    shown: bool = True,
    **options: Any,
) -> Any:
    """Return a bar on the standard error: a context manager, or an iterable of what it goes over.

    Args:
        iterable: what it goes over, if anything.
        description: of the step or of its first phase.
        total: how much there is to do; None for the iterable's length.
        shown: whether anything is to be seen.
        options: of ``tqdm``.
    """
    shown = shown and sys.stderr is not None
    if shown and not sys.stderr.isatty() and not _is_notebook():
        return Lines(iterable, description, total, initial=options.get("initial", 0))
    return tqdm(iterable, description, total, disable=not shown, **options)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


class Lines:
    """Prints how far a step has come, a line at a time; used as ``tqdm`` is.

    Args:
        iterable, description, total: as of ``open_bar``.
        initial: what had been done before.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        description: str = "",
        total: float | None = None,
        *,
        initial: float = 0,
    ) -> None:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self.total = total
        self.n = self._initial = initial
        self._iterable, self._description, self._postfix = iterable, description, ""
        self._start = self._last = time.monotonic()
        self._told = (description, self._count_tenths())

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def update(self, n: float = 1) -> None:
        """Count what is done."""
        self.n += n
        self._tell()

    def set_description(self, description: str) -> None:
        """Name the phase that begins."""
        self._description = description
        self._tell()

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Say something beside the next lines."""
        self._postfix = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        """Say that the step is done, if it was long enough to say anything."""
        if time.monotonic() - self._start >= PAUSE:
            self._print("done")

    def _count_tenths(self) -> int:
        return min(9, int(10 * self.n / self.total)) if self.total else 0

    def _tell(self) -> None:
        state = self._description, self._count_tenths()
        if state == self._told or time.monotonic() - self._last < PAUSE:
            return
        self._told = state
        self._print(f"{self.n / self.total:.0%}" if self.total else f"{self.n:g}")

    def _print(self, how_far: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        text = f"{how_far} after {_format_seconds(seconds)}"
        done = self.n - self._initial
        if self.total and done > 0 and self.n < self.total:
            text += f", {_format_seconds(seconds * (self.total - self.n) / done)} left"
        start = f"{self._description}: " if self._description else ""
        tqdm.write(f"{start}{text}{self._postfix}", file=sys.stderr)


def _format_seconds(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
