"""Several processes at the command line, started by ``torchrun``: who says what, how they end."""

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, NoReturn

from channelscope.errors import UserError

_LOST = "Another process of this run has ended, or torchrun was stopped."
_MOMENT = 5.0  # seconds


class _Terminated(KeyboardInterrupt):
    """SIGTERM, by which ``torchrun`` ends its processes when one of them has ended."""


def several() -> bool:
    """Return whether ``torchrun`` started this process beside others."""
    if "RANK" not in os.environ:  # importing torch would take seconds
        return False
    from channelscope.distributed import started_by_torchrun

    return started_by_torchrun()


def number() -> int:
    """Return this process's number; 0 prints, the others only what concerns them alone."""
    return int(os.environ["RANK"]) if several() else 0


def check(args: argparse.Namespace) -> None:
    """Refuse several processes for a command that is for one."""
    if several() and "after_stop" not in args:
        raise UserError(
            f"'channelscope {args.name}' runs in one process: start it without torchrun."
        )


@contextmanager
def join(args: argparse.Namespace) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for a command's work; alone, do nothing.

    Raises:
        ProcessLost: where another process has ended, with the advice ``args.after_stop``.
    """
    if not several():
        yield
        return
    from channelscope.devices import resolve_device
    from channelscope.distributed import ProcessLost, join_processes

    try:
        with join_processes(resolve_device(args.device)):
            signal.signal(signal.SIGTERM, _terminate)
            yield
    except (ProcessLost, _Terminated) as error:
        raise ProcessLost(f"{_LOST}{args.after_stop}") from error
    finally:
        # What remains is to say how it ended, and torchrun may send its signals once more.
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, signal.SIG_IGN)


def is_said(sentence: str) -> bool:
    """Return whether the first process ends with the same sentence, so this one can be silent.

    The first leaves its own in the store that ``torchrun`` keeps, and the others wait a moment for
    it. That a process is lost is not worth repeating either, whatever the first said.
    """
    if not several() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    from torch.distributed.rendezvous import rendezvous

    key = f"channelscope/last words/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=_MOMENT)))
        if number() == 0:
            store.set(key, sentence)
            return False
        end = monotonic() + _MOMENT
        while not store.check([key]) and monotonic() < end:
            sleep(0.05)
        return store.check([key]) and (
            sentence.startswith(_LOST) or store.get(key) == sentence.encode()
        )
    except RuntimeError:  # torchrun has ended, and its store with it
        return False


def _terminate(_signal: int, _frame: Any) -> NoReturn:
    raise _Terminated
