"""Write files whole or not at all."""

import glob
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from channelscope.errors import UserError
from channelscope.reading import check_head

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; move it into place when the context ends without error.

    A reader sees the old file or the new one, never a part, also after a kill or on a full disk.

    Raises:
        UserError: where the file cannot be written, with the system's reason. What stood at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix[:20], dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except Exception as error:
        if (refusal := _system_error(error)) is None:
            raise
        raise _cannot_write(path, refusal) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what kills in the middle of ``replacing`` left beside ``path``."""
    for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        if leftover.is_file():
            leftover.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}.writing-"


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it takes the place of ``path`` when the context ends well.

    Raises:
        UserError: where the folder cannot be written. What stood at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists() and not path.is_dir():
            raise FileExistsError(17, "there is a file of that name")
        if path.exists():
            # Two renames: the earlier folder is there, whole, until the new one is complete.
            earlier = temporary.with_name(temporary.name + "-earlier")
            path.rename(earlier)
            try:
                temporary.rename(path)
            except OSError:
                earlier.rename(path)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            temporary.rename(path)
    except Exception as error:
        if (refusal := _system_error(error)) is None:
            raise
        raise _cannot_write(path, refusal) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Refuse a path that nothing can be written to, before the work that would be lost.

    Raises:
        UserError: where the nearest folder that exists is no folder, or may not be written to.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "may not be written to" if folder.is_dir() else "is a file, not a folder"
        raise UserError(f"Cannot write {path}: {folder} {reason}. Choose another place.")


def check_folder(folder: Path, tables: Collection[str], others: Collection[str]) -> None:
    """Refuse an --out that holds anything but an earlier result: all of its tables, and of the other files any.

    Raises:
        UserError: for a file, a disk of its own, a folder with other files or one that may not be written to.
    """
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    if folder.is_mount():
        raise UserError(f"{folder} is a disk of its own, which cannot be replaced: choose a folder on it.")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if held and not set(tables) <= held <= {*tables, *others}:
        raise UserError(f"{folder} holds other files, which would be lost: choose another --out.")


def read_table(path: Path, names: tuple[str, ...], numbers: tuple[str, ...]) -> "pd.DataFrame":
    """Read a table with columns of words and of numbers; raises anything for another one.

    A class may be called NA or nan, so only columns of numbers know of missing values.
    """
    import pandas as pd

    check_head(path, within=path.parent)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if len(frame.columns) != len(names) + len(numbers) or set(frame.columns) != {*names, *numbers}:
        raise ValueError(f"{path.name} has other columns")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes what is too much in a line for its name
        raise ValueError(f"{path.name} has lines of another length")
    for column in numbers:
        frame[column] = pd.to_numeric(frame[column].replace("", None))
    return frame


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _system_error(error: BaseException | None) -> OSError | None:
    """Find the system's refusal behind an error: a library that cannot finish its file may fail once more over it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path}: {error.strerror or error}. Free space or choose another place.")
