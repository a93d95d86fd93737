"""One run at a time for each file or folder that is written; what a kill left half done there is put right first."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from channelscope.distributed import is_first
from channelscope.errors import UserError
from channelscope.files import hidden_name, recover

_MOMENT = 0.3  # seconds, for a run that is about to end


@contextmanager
def lock_path(path: Path, *parts: Path) -> Iterator[None]:
    """Keep other runs from writing to a file or folder for as long as the context lasts.

    The system takes the lock from a process that is killed. Several processes of one run are one: the first holds it. A
    process that holds it may take it again. Where there can be none, in a folder that is closed or on a disk that knows
    no locks, it is done without: what is written tells what is wrong.

    Args:
        path: what the run is known by.
        parts: what else it writes to, and what a kill may have left half done, as at ``path``.

    Raises:
        UserError: where another run writes there.
    """
    if not is_first():
        yield
        return
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    lock = _taken(path)
    try:
        if lock is not None and lock.lock_counter == 1:
            for each in (path, *parts):
                recover(each)
        yield
    finally:
        if lock is not None:
            _give_back(lock)
        for folder in missing:  # that nothing was written to
            with suppress(OSError):
                folder.rmdir()


def recover_unlocked(path: Path) -> None:
    """Put right what a kill left half done at ``path``, before it is read, unless a run is writing there."""
    with suppress(UserError, OSError):
        if path.parent.is_dir():
            with lock_path(path):
                pass


def _taken(path: Path) -> FileLock | None:
    """Take a lock; None where there can be none."""
    file = path.absolute().with_name(hidden_name(path, "lock"))
    for _ in range(2):  # again where there is no file: its run may have just ended
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file.parent.resolve() / file.name, timeout=_MOMENT, is_singleton=True)
            lock.acquire(poll_interval=0.02)
            return lock
        except Timeout:
            if file.exists():
                raise UserError(
                    f"Another run is writing to {path}: wait until it has ended, or choose another --out."
                ) from None
        except (
            OSError,
            NotImplementedError,
            ValueError,
        ):  # the last of a name that no file can have
            return None
    return None  # where no file can be made, as in /proc, whose refusal looks like another run


def _give_back(lock: FileLock) -> None:
    """Give a lock back and remove its file: whoever has opened that meanwhile sees it gone, and makes another."""
    if lock.lock_counter == 1:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
