"""One run at a time for each place; a lock leaves nothing behind."""

import os
from pathlib import Path

import pytest

from channelscope import locks
from channelscope.files import hidden_name
from channelscope.locks import lock_path, recover_unlocked
from helpers.expect import contents, mistake


def in_a_fork(path: Path) -> str:
    """Take a lock in another process; give the sentence by which it is refused."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with lock_path(path):
                os._exit(0)
        except BaseException as error:
            os.write(writer, str(error).encode())
            os._exit(1)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        return said.read()


def test_another_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with lock_path(tmp_path / "out"):
        assert in_a_fork(tmp_path / "out").startswith(
            f"Another run is writing to {tmp_path / 'out'}: wait until"
        )
        assert in_a_fork(tmp_path / "other") == ""
        with lock_path(tmp_path / "out"):
            pass
        assert in_a_fork(tmp_path / "out") != "", "the inner lock's end must not be the outer one's"
    assert in_a_fork(tmp_path / "out") == ""


def test_a_lock_and_folders_made_for_it_leave_nothing_behind(tmp_path: Path) -> None:
    with mistake("mine"), lock_path(tmp_path / "new" / "deeper" / "out"):
        assert sorted(contents(tmp_path)) == ["new", "new/deeper", "new/deeper/.out.lock"]
        raise locks.UserError("It is mine.")
    assert contents(tmp_path) == {}


def test_what_a_kill_left_is_put_right_first_and_once(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    left = tmp_path / f"{hidden_name(path, 'writing-')}abcd1234.csv"
    left.touch()
    with lock_path(tmp_path / "out", path):
        assert not left.exists()
        left.touch()
        with lock_path(tmp_path / "out", path):
            assert left.exists(), "it may be of the run that holds the lock"
    left.touch()
    recover_unlocked(path)
    assert not left.exists()


def test_reading_does_not_disturb_a_run_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with lock_path(path):
        left = tmp_path / f"{hidden_name(path, 'writing-')}abcd1234"
        left.touch()
        if (child := os.fork()) == 0:
            recover_unlocked(path)
            os._exit(0)
        os.waitpid(child, 0)
        assert left.exists()


def test_where_there_can_be_no_lock_it_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.FileLock, "acquire", unknown)
    with lock_path(tmp_path / "out"):
        (tmp_path / "out").touch()
    assert sorted(contents(tmp_path)) == ["out"]


def test_the_lock_of_a_run_that_has_just_ended_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, tried = locks.FileLock.acquire, []

    def late(lock: locks.FileLock, **how: float) -> object:
        tried.append(lock)
        if len(tried) == 1:
            tmp_path.joinpath("new").rmdir()  # as the other run does, which made it
            raise locks.Timeout(lock.lock_file)
        return acquire(lock, **how)

    monkeypatch.setattr(locks.FileLock, "acquire", late)
    with lock_path(tmp_path / "new" / "out"):
        assert in_a_fork(tmp_path / "new" / "out").startswith("Another run")
    assert contents(tmp_path) == {}


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder of the system, where no file can be made"
)
def test_a_folder_that_takes_no_files_is_not_said_to_be_busy() -> None:
    with lock_path(Path("/proc/out")):
        pass


def test_the_other_processes_of_a_run_take_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_is_first", lambda: False)
    with lock_path(tmp_path / "out"):
        assert contents(tmp_path) == {}
