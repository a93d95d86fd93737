"""Logs beside the CSV: what TensorBoard and Weights & Biases hold, also after interruptions."""

import json
import os
import resource
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from channelscope.training import logs, train
from channelscope.training.logs import open_logs
from helpers.expect import contents, mistake
from helpers.runs import TINY, digits, interrupted_at

SCALARS = ["loss", "accuracy", "lr", "val_natural", "val_robust", "seconds"]


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    values = {name: (place + 1) / (epoch + 3) for place, name in enumerate(SCALARS)}
    return {"epoch": epoch, **values, "best": epoch == 1, **changes}


def run(out: Path, *names: str, resume: bool = False) -> pd.DataFrame:
    """Train a little; return the log."""
    train(
        "at", digits(2), out=out, logs=names, resume=resume, progress=False, **TINY | {"epochs": 3}
    )
    return pd.read_csv(f"{out}.csv")


def run_until(epoch: int, out: Path, name: str) -> None:
    """Train, and stop in an epoch of two steps, counted from 1, as Ctrl-C does."""
    with interrupted_at(2 * epoch - 1):
        run(out, name)


# ---------------------------------------------------------------- TensorBoard


def scalars(out: Path) -> pd.DataFrame:
    """Read a run's log as TensorBoard itself does; the rows by epoch."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(f"{out}.tensorboard", size_guidance={"scalars": 0}).Reload()
    assert read.Tags()["scalars"] == SCALARS
    columns = {
        name: pd.Series({event.step: event.value for event in read.Scalars(name)})
        for name in SCALARS
    }
    assert all(
        len(read.Scalars(name)) == len(columns[name]) for name in SCALARS
    )  # no step comes twice
    return pd.DataFrame(columns)


def agree(log: pd.DataFrame, csv: pd.DataFrame) -> None:
    """Assert that a log has the epochs and the values of the CSV, to single precision."""
    expected = csv.set_index("epoch")[SCALARS].rename_axis(None)
    pd.testing.assert_frame_equal(
        log, expected, check_dtype=False, check_index_type=False, rtol=1e-6
    )


def test_tensorboard_has_what_the_csv_has(tmp_path: Path) -> None:
    csv = run(tmp_path / "net.pt", "tensorboard")
    assert len(csv) == 3
    agree(scalars(tmp_path / "net.pt"), csv)


def test_tensorboard_has_the_settings(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_logs(["tensorboard"], tmp_path / "net.pt", {"recipe": {"optimizer": {"lr": 0.125}}}):
        pass
    read = accumulator.EventAccumulator(f"{tmp_path / 'net.pt'}.tensorboard").Reload()
    (event,) = read.Tensors("settings/text_summary")
    assert '"lr": 0.125' in event.tensor_proto.string_val[0].decode()


def test_tensorboard_goes_on_after_an_interruption(tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    run_until(3, out, "tensorboard")
    assert list(scalars(out).index) == [1, 2]
    csv = run(out, "tensorboard", resume=True)
    agree(scalars(out), csv)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_tensorboard_misses_no_epoch_wherever_the_kill_came(written: int, tmp_path: Path) -> None:
    """The state is saved before the row is logged: the last row may be missing, or all."""
    pytest.importorskip("tensorboard")
    out, history = tmp_path / "net.pt", [row(1), row(2)]
    if written:
        with open_logs(["tensorboard"], out, {}) as write:
            for earlier in history[:written]:
                write(earlier)
    with open_logs(["tensorboard"], out, {}, history) as write:
        write(row(3))
    agree(scalars(out), pd.DataFrame([*history, row(3)]))


def test_tensorboard_hides_an_earlier_run_of_the_same_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "net.pt"
    for loss in (7.0, 1.0):
        with open_logs(["tensorboard"], out, {}) as write:
            write(row(1, loss=loss))
    assert scalars(out)["loss"].tolist() == [1.0]


# ---------------------------------------------------------------- Weights & Biases


def records(file: Path) -> Iterator[Any]:
    """Read the records of an offline run: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:  # the rest of a block is too short for a record
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def offline(out: Path) -> list[tuple[str, pd.DataFrame]]:
    """Read a run's offline folders, the oldest first: id, and the rows by epoch."""
    runs = []
    for file in sorted(Path(f"{out}.wandb").glob("wandb/offline-run-*/*.wandb")):
        read = list(records(file))
        histories = [
            record.history for record in read if record.WhichOneof("record_type") == "history"
        ]
        rows = [
            {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in h.item}
            for h in histories
        ]
        assert [row["_step"] for row in rows] == [row["epoch"] for row in rows]
        (identity,) = {
            record.run.run_id for record in read if record.WhichOneof("record_type") == "run"
        }
        runs.append((identity, pd.DataFrame(rows).set_index("epoch")[SCALARS].rename_axis(None)))
    return runs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move to an empty home."""
    pytest.importorskip("wandb")
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def children() -> list[str]:
    """List the processes that this one has started and that still run."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "ppid=,args="], capture_output=True, text=True, check=True
    )
    own = [
        line.split(maxsplit=1)
        for line in listed.stdout.splitlines()
        if line.split()[0] == str(os.getpid())
    ]
    return [command for _, command in own if not command.startswith("ps ")]


def test_wandb_has_what_the_csv_has_and_leaves_nothing_else(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, environment = children(), dict(os.environ)
    csv = run(tmp_path / "net.pt", "wandb")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert contents(home) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "home",
        "net.pt",
        "net.pt.csv",
        "net.pt.wandb",
    ]
    assert dict(os.environ) == environment
    assert children() == before
    ((_, log),) = offline(tmp_path / "net.pt")
    agree(log, csv)


def test_wandb_reports_nothing_to_its_makers(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is told so by an option; the telemetry in this one is in threads of its own."""
    import threading

    commands, start = [], subprocess.Popen

    def noted(command: Any, **options: Any) -> Any:
        commands.append(command)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", noted)
    with open_logs(["wandb"], tmp_path / "net.pt", {}) as write:
        write(row(1))
        assert not [
            thread.name for thread in threading.enumerate() if "otel" in thread.name.lower()
        ]
    (service,) = [command for command in commands if "wandb-core" in str(command[0])]
    assert "--no-observability" in service


def test_wandb_goes_on_under_the_same_id_with_all_rows(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    run_until(3, out, "wandb")
    csv = run(out, "wandb", resume=True)
    (first, before), (second, after) = offline(out)
    assert first == second
    agree(before, csv[:2])
    agree(after, csv)


def test_a_new_run_has_a_new_id(home: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with open_logs(["wandb"], tmp_path / "net.pt", {"seed": 0}) as write:
            write(row(1))
    (first, _), (second, _) = offline(tmp_path / "net.pt")
    assert first != second


def test_a_wandb_run_of_the_users_own_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path) as own:
        with open_logs(["wandb"], tmp_path / "net.pt", {}) as write:
            write(row(1))
        own.log({"still": 1})
        assert wandb.run is own
        assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    wandb.teardown()
    assert len(offline(tmp_path / "net.pt")) == 1


# ---------------------------------------------------------------- several, none, and mistakes


def test_two_logs_at_once(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_logs(["tensorboard", "wandb", "tensorboard"], tmp_path / "net.pt", {}) as write:
        write(row(1))
    ((_, log),) = offline(tmp_path / "net.pt")
    agree(scalars(tmp_path / "net.pt"), pd.DataFrame([row(1)]))
    agree(log, pd.DataFrame([row(1)]))


def test_without_a_name_nothing_is_written(tmp_path: Path) -> None:
    with open_logs([], tmp_path / "net.pt", {}) as write:
        write(row(1))
    assert contents(tmp_path) == {}


def test_an_unknown_log_is_refused(tmp_path: Path) -> None:
    with (
        mistake("tensorbord", "Did you mean 'tensorboard'?"),
        open_logs(["tensorbord"], tmp_path / "net.pt", {}),
    ):
        pass


@pytest.mark.parametrize("name", logs.LOGS)
def test_a_library_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda _: None)
    with (
        mistake(name, f"pip install 'channelscope[{name}]'"),
        open_logs([name], tmp_path / "net.pt", {}),
    ):
        pass
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", logs.LOGS)
def test_a_folder_that_cannot_be_made_is_one_sentence(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    (tmp_path / f"net.pt.{name}").write_text("a file in its place")
    with (
        mistake("Cannot write the log", f"net.pt.{name}"),
        open_logs([name], tmp_path / "net.pt", {}),
    ):
        pass


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """Seen as a limit to the size of files, which fails in the same place."""
    pytest.importorskip("tensorboard")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        mistake("Cannot write the log", "File too large"),
        open_logs(["tensorboard"], tmp_path / "net.pt", {}) as write,
    ):
        write(row(1))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            for epoch in range(2, 10):
                write(row(epoch))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_log_that_fails_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def failing(*_: Any) -> Iterator[Any]:
        def write(_: Any) -> None:
            raise OSError(28, "No space left on device")

        yield write

    pytest.importorskip("tensorboard")
    monkeypatch.setitem(logs.LOGS, "tensorboard", failing)
    with mistake("Cannot write the log", "No space left on device"):
        run(tmp_path / "net.pt", "tensorboard")
    assert (tmp_path / "net.pt.partial").exists()
    monkeypatch.undo()
    assert len(run(tmp_path / "net.pt", "tensorboard", resume=True)) == 3
