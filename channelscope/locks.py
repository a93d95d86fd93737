"""One run at a time for each file or folder that is written; a killed run is cleaned up first."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from channelscope.errors import UserError
from channelscope.files import hidden_name, recover

_MOMENT = 0.3  # seconds, for a run that is about to end


@contextmanager
def lock_path(path: Path, *others: Path) -> Iterator[None]:
    """Keep other runs from writing to a file or folder while the context lasts.

    The system takes the lock from a process that is killed. Several processes of one run are one:
    the first holds the lock. A process that holds it may take it again. In a folder that takes no
    files, or on a disk without locks, there is none: what is written there tells what is wrong.

    Args:
        path: what the run is known by.
        others: what else it writes, and what a kill may have left half done, as at ``path``.

    Raises:
        UserError: where another run writes there.
    """
    if not _is_first():
        yield
        return
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    lock = _acquire(path)
    try:
        if lock is not None and lock.lock_counter == 1:
            for each in (path, *others):
                recover(each)
        yield
    finally:
        if lock is not None:
            _release(lock)
        for folder in missing:  # to which nothing was written
            with suppress(OSError):
                folder.rmdir()


def recover_unlocked(path: Path) -> None:
    """Clean up after a killed run before ``path`` is read, unless a run is writing there."""
    with suppress(UserError, OSError):
        if path.parent.is_dir():
            with lock_path(path):
                pass


def _acquire(path: Path) -> FileLock | None:
    """Acquire a lock; return None where there can be none."""
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
                    f"Another run is writing to {path}: wait until it has ended, or choose another "
                    "--out."
                ) from None
        except (OSError, NotImplementedError, ValueError):  # the last for an impossible name
            return None
    return None  # where no file can be made, as in /proc, whose refusal looks like another run


def _release(lock: FileLock) -> None:
    """Release a lock and remove its file: whoever has opened that sees it gone, and makes one."""
    if lock.lock_counter == 1:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


def _is_first() -> bool:
    """Tell whether this is the first of a run's processes, without importing torch for it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return True
    return bool(distributed.get_rank() == 0)
