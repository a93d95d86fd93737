"""Logs beside the CSV: TensorBoard and Weights & Biases, each an optional extra.

Neither touches the network, nor anything outside the log's own folder.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from time import time
from typing import Any

from channelscope import distributed
from channelscope.errors import UserError, suggest

Row = dict[str, Any]  # an epoch's measurements, by the columns of the CSV


@contextmanager
def logging(
    names: Sequence[str], out: Path, settings: dict[str, Any], history: Sequence[Row] = ()
) -> Iterator[Callable[[Row], None]]:
    """Open the named logs of a run; give the function that writes an epoch's row to each of them.

    Args:
        names: of the logs, keys of ``LOGS``.
        out: the run's checkpoint; a log is in the folder ``out`` + ``.`` + name.
        settings: of the run.
        history: the rows of the epochs that an interrupted run has behind it; the logs go on after them.

    Raises:
        UserError: for an unknown log, one whose library is not installed, and one that cannot be written.
    """
    check_logs(names)
    with ExitStack() as stack:
        writers = []
        for name in dict.fromkeys(names) if distributed.is_first() else ():
            folder = out.with_name(f"{out.name}.{name}")
            writers.append(
                stack.enter_context(_refusing(name, folder, LOGS[name], settings, history))
            )

        def write(row: Row) -> None:
            for writer in writers:
                writer(row)

        yield write


def check_logs(names: Sequence[str]) -> None:
    """Refuse what is no log, or one whose library is missing."""
    if unknown := set(names) - LOGS.keys():
        raise UserError(
            f"There is no log {min(unknown)!r}: choose from {', '.join(LOGS)}.{suggest(min(unknown), LOGS)}"
        )
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(f"{missing[0]} is not installed: pip install 'channelscope[{missing[0]}]'.")


Opener = Callable[[Path, dict[str, Any], Sequence[Row]], Any]


@contextmanager
def _refusing(
    name: str, folder: Path, open_log: Opener, settings: dict[str, Any], history: Sequence[Row] = ()
) -> Iterator[Callable[[Row], None]]:
    """Open a log; what goes wrong with it, then or later, is told in one sentence."""
    try:
        with open_log(folder, settings, history) as write:

            def checked(row: Row) -> None:
                try:
                    write(row)
                except OSError as error:
                    raise _cannot_write(folder, error) from error

            yield checked
    except ImportError as error:
        raise UserError(
            f"{name} is damaged ({error}): pip install --force-reinstall {name}."
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write the log {folder}: {error.strerror or error}. Free space, or go on without it."
    )


@contextmanager
def _tensorboard(
    folder: Path, settings: dict[str, Any], history: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    """Write scalars; of an interrupted run the last row again, lest the kill came before it was written.

    Torch's SummaryWriter would write in a thread of its own, whose errors nobody gets.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar, text

    folder.mkdir(parents=True, exist_ok=True)
    going_on = bool(history) and any(folder.iterdir())
    missing = history[-1:] if going_on else history
    with (folder / f"events.out.tfevents.{_next(folder):.6f}").open("xb") as file:
        records = RecordWriter(file)

        def add(step: int, **content: Any) -> None:
            records.write(Event(wall_time=time(), step=step, **content).SerializeToString())

        def write(row: Row) -> None:
            for name, value in row.items():
                if name not in ("epoch", "best"):
                    add(row["epoch"], summary=scalar(name, value))
            file.flush()

        add(0, file_version="brain.Event:2")
        # What an earlier file of the folder has from this step on is hidden.
        add(missing[0]["epoch"] if going_on else 0, session_log=SessionLog(status=SessionLog.START))
        if not going_on:
            add(0, summary=text("settings", f"```\n{json.dumps(settings, indent=1)}\n```"))
        for row in missing:
            write(row)
        yield write


def _next(folder: Path) -> float:
    """Give the time, for a file's name; later than those of the files there, which TensorBoard reads in their order."""
    earlier = [
        float(".".join(name.rsplit(".", 2)[1:]))
        for name in map(str, folder.glob("events.out.tfevents.*.*"))
    ]
    return max([time(), *(moment + 1 for moment in earlier)])


@contextmanager
def _wandb(
    folder: Path, settings: dict[str, Any], history: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    """Write an offline run; an interrupted one goes on in a second folder, of the same id and with all of its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder)
    with _confined_wandb(folder) as wandb:
        unasked = (
            "disable_git",
            "x_disable_meta",
            "x_disable_stats",
            "x_disable_machine_info",
        )  # of the machine
        quiet: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "symlink": False,
            "x_save_requirements": False,
        }
        run = wandb.init(
            project="channelscope",
            name=folder.stem,
            id=_earlier_id(folder) if history else None,
            dir=folder,
            config=settings,
            mode="offline",
            reinit="create_new",  # a run of the user's own goes on
            settings=wandb.Settings(**quiet | dict.fromkeys(unasked, True)),
        )

        def write(row: Row) -> None:
            run.log(
                {name: value for name, value in row.items() if name != "best"}, step=row["epoch"]
            )

        with run:
            for row in history:
                write(row)
            yield write


@contextmanager
def _confined_wandb(folder: Path) -> Iterator[Any]:
    """Import wandb; keep its telemetry from the network, its caches in the folder, and its process to our time.

    These are settings of its background process, which only the environment reaches.
    """
    own = dict.fromkeys(
        ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), str(folder / "cache")
    )
    own["WANDB_ERROR_REPORTING"] = "false"
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        import wandb

        in_use = "WANDB_SERVICE" in os.environ  # by runs of the user's own
        try:
            yield wandb
        finally:
            if not in_use:
                wandb.teardown()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _check_room(folder: Path) -> None:
    """Raise OSError where the disk is full: wandb loses what it cannot write without a word."""
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(2**16))


def _earlier_id(folder: Path) -> str | None:
    """Look up the id of the last offline run in a folder."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return files[-1].stem.removeprefix("run-") if files else None


LOGS: dict[str, Opener] = {"tensorboard": _tensorboard, "wandb": _wandb}
