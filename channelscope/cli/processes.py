"""Several processes at the command line, started by ``torchrun``: which of them says what, and how they end."""

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, NoReturn

from channelscope.errors import UserError

_SHARED = (
    "train",
    "sweep",
    "compare",
    "evaluate",
)  # the commands whose work several processes share
_LOST = "Another process of this run has ended, or torchrun was stopped."
_MOMENT = 5.0  # seconds


class _Terminated(KeyboardInterrupt):
    """SIGTERM, by which ``torchrun`` ends its processes when one of them has ended."""


def several() -> bool:
    """Tell whether ``torchrun`` started this process beside others."""
    if "RANK" not in os.environ:  # a look at torch would take seconds
        return False
    from channelscope.distributed import started_by_torchrun

    return started_by_torchrun()


def number() -> int:
    """Give this process's number, from 0; the first talks, and the others only of what concerns them alone."""
    return int(os.environ["RANK"]) if several() else 0


def check(args: argparse.Namespace) -> None:
    """Refuse several processes for a command that is for one."""
    command = args.run.__name__
    if several() and command not in _SHARED:
        raise UserError(f"'channelscope {command}' runs in one process: start it without torchrun.")


@contextmanager
def together(args: argparse.Namespace, device: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for a command's work; alone, do nothing.

    Raises:
        ProcessLost: where another process has gone, with advice (``args.after_stop``, where it is set).
    """
    if not several():
        yield
        return
    from channelscope.distributed import ProcessLost, join_processes

    try:
        with join_processes(device):
            signal.signal(signal.SIGTERM, _terminate)
            yield
    except (ProcessLost, _Terminated) as error:
        advice = getattr(args, "after_stop", " Start the same command again.")
        raise ProcessLost(f"{_LOST}{advice}") from error
    finally:
        # What is left is to say how it ended, and torchrun may send its signals once more.
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, signal.SIG_IGN)


def is_said(sentence: str) -> bool:
    """Tell whether the first process ends with the same sentence, so that this one need not say it too.

    The first leaves its own in the store that ``torchrun`` keeps, and the others wait a moment for it. That a process
    is lost is not worth repeating either, whatever the first said.
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
    except RuntimeError:  # torchrun has gone, and its store with it
        return False


def _terminate(_signal: int, _frame: Any) -> NoReturn:
    raise _Terminated
