"""Logs besides the CSV: TensorBoard and Weights & Biases, each an optional extra.

They touch neither the network nor anything outside their own folder.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from time import time
from typing import Any

from channelscope import distributed
from channelscope.errors import UserError, suggest
from channelscope.training.state import Row

Write = Callable[[Row], None]  # writes an epoch's row


@contextmanager
def open_logs(
    names: Sequence[str], out: Path, settings: dict[str, Any], history: Sequence[Row] = ()
) -> Iterator[Write]:
    """Open the named logs of a run; yield the function that writes an epoch's row to all of them.

    Args:
        names: keys of ``LOGS``.
        out: the run's checkpoint; a log is in the folder ``out`` + ``.`` + name.
        settings: of the run.
        history: the rows of the epochs before an interruption; the logs continue after them.

    Raises:
        UserError: for an unknown log, one whose library is missing, and one that cannot be written.
    """
    check_logs(names)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(_open_log(name, out, settings, history))
            for name in dict.fromkeys(names)
            if distributed.is_first()
        ]

        def write(row: Row) -> None:
            for writer in writers:
                writer(row)

        yield write


def check_logs(names: Sequence[str]) -> None:
    """Raise UserError for an unknown log, or one whose library is missing."""
    for name in names:
        if name not in LOGS:
            raise UserError(
                f"There is no log {name!r}: choose from {', '.join(LOGS)}.{suggest(name, LOGS)}"
            )
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install 'channelscope[{name}]'.")


@contextmanager
def _open_log(
    name: str, out: Path, settings: dict[str, Any], history: Sequence[Row]
) -> Iterator[Write]:
    """Open a log; errors of opening, writing and closing it become UserErrors."""
    folder = out.with_name(f"{out.name}.{name}")
    try:
        with LOGS[name](folder, settings, history) as write:
            yield write
    except ImportError as error:
        raise UserError(
            f"{name} is damaged ({error}): pip install --force-reinstall {name}."
        ) from error
    except OSError as error:
        raise UserError(
            f"Cannot write the log {folder}: {error.strerror or error}. Free space, or go on "
            "without it."
        ) from error


@contextmanager
def _open_tensorboard(
    folder: Path, settings: dict[str, Any], history: Sequence[Row]
) -> Iterator[Write]:
    """Write scalars, without torch's SummaryWriter, which hides its errors in a thread.

    After an interruption the last row is written again, as the kill may have come before it was.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar, text

    folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(folder.glob("events.out.tfevents.*"))
    continues = bool(history and earlier)
    missing = history[-1:] if continues else history
    # TensorBoard reads the files of a folder in the order of their names.
    number = int(earlier[-1].suffix[1:]) + 1 if earlier else 0
    with (folder / f"events.out.tfevents.{number:010}").open("xb") as file:
        records = RecordWriter(file)

        def add(step: int, **content: Any) -> None:
            records.write(Event(wall_time=time(), step=step, **content).SerializeToString())

        def write(row: Row) -> None:
            for name, value in row.items():
                if name not in ("epoch", "best"):
                    add(row["epoch"], summary=scalar(name, value))
            file.flush()

        add(0, file_version="brain.Event:2")
        # TensorBoard hides what an earlier file of the folder has from this step on.
        first_step = missing[0]["epoch"] if continues else 0
        add(first_step, session_log=SessionLog(status=SessionLog.START))
        if not continues:
            add(0, summary=text("settings", f"```\n{json.dumps(settings, indent=1)}\n```"))
        for row in missing:
            write(row)
        yield write


@contextmanager
def _open_wandb(folder: Path, settings: dict[str, Any], history: Sequence[Row]) -> Iterator[Write]:
    """Write an offline run; after an interruption a second folder of the same id has all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(2**16))  # fails on a full disk, where wandb loses data without a word
    options: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "symlink": False,
        "x_save_requirements": False,
        # Nothing about the machine is noted.
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
    }
    with _import_wandb(folder) as wandb:
        run = wandb.init(
            project="channelscope",
            name=folder.stem,
            id=_find_run_id(folder) if history else None,
            dir=folder,
            config=settings,
            mode="offline",
            reinit="create_new",  # a run of the user's own goes on
            settings=wandb.Settings(**options),
        )

        def write(row: Row) -> None:
            values = {name: value for name, value in row.items() if name != "best"}
            run.log(values, step=row["epoch"])

        with run:
            for row in history:
                write(row)
            yield write


@contextmanager
def _import_wandb(folder: Path) -> Iterator[Any]:
    """Import wandb without telemetry, with its caches in the folder; end its process afterwards.

    These are settings of its background process, which only reads them from the environment.
    """
    names = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    environment = dict.fromkeys(names, str(folder / "cache")) | {"WANDB_ERROR_REPORTING": "false"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
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


def _find_run_id(folder: Path) -> str | None:
    """Return the id of the last offline run in a folder."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return files[-1].stem.removeprefix("run-") if files else None


Opener = Callable[[Path, dict[str, Any], Sequence[Row]], AbstractContextManager[Write]]
LOGS: dict[str, Opener] = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
