"""Write files whole or not at all; tell whether they are still as they were written."""

import glob
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from channelscope.errors import UserError, has_controls
from channelscope.reading import check_head, check_kinds, read_json, read_text, regular

if TYPE_CHECKING:
    import pandas as pd


# Columns of numbers that tell rows apart.
_COUNTED = {"at", "channel", "channels", "epoch", "eps", "rank"}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; move it into place when the context ends without error.

    A reader sees the old file or the new one, never a part, also after a kill or on a full disk.

    Raises:
        UserError: where the file cannot be written, with the system's reason. What stood at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=_prefix(path), suffix=path.suffix[:20], dir=path.parent
        )
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


def recover(path: Path) -> None:
    """Put right what kills in the middle of ``replacing`` or ``replacing_folder`` left; only while nobody writes there.

    A folder whose place was being taken when the kill came is put there: it is complete. All else is removed, also what
    is in a folder ``path`` or one of its folders.
    """
    left = [
        other for other in path.parent.glob(f"{glob.escape(_prefix(path))}*") if _is_leftover(other)
    ]
    complete = [other for other in left if other.with_name(f"{other.name}{_EARLIER}") in left]
    if complete and not path.exists():
        complete[0].rename(path)
        left.remove(complete[0])
    if path.is_dir():
        left += [
            other
            for pattern in (".*", "*/.*")
            for other in path.glob(pattern)
            if _is_leftover(other)
        ]
    for leftover in left:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


_EARLIER = "-earlier"  # ends the name of a folder whose place is being taken


def hidden_name(path: Path, ending: str) -> str:
    """Make the name of a hidden file beside ``path`` that no other path has, and that is not too long for any disk."""
    name = path.name
    if len(os.fsencode(name)) > 150:
        name = f"{name[:30]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}.{ending}"


def _prefix(path: Path) -> str:
    return hidden_name(path, "writing-")


def _is_leftover(path: Path) -> bool:
    """Tell whether a name is one that ``tempfile`` makes for us."""
    return re.fullmatch(rf"\..+\.writing-[a-z0-9_]{{8}}({_EARLIER}|\..*)?", path.name) is not None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
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
            # Two renames: the earlier folder is there, whole, until the new one is complete. After a kill between
            # them, both have hidden names, and the next command puts the new one in its place (``settle``).
            earlier = temporary.with_name(f"{temporary.name}{_EARLIER}")
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
    if folder.resolve().is_mount():
        raise UserError(
            f"{folder} is a disk of its own, which cannot be replaced: choose a folder on it."
        )
    held = (
        {path.name for path in folder.iterdir() if not _is_leftover(path)}
        if folder.exists()
        else set()
    )
    if held and (
        not set(tables) <= held <= {*tables, *others, DIGESTS} or not _are_drawn(folder / "figures")
    ):
        raise UserError(f"{folder} holds other files, which would be lost: choose another --out.")


def _are_drawn(figures: Path) -> bool:
    """Tell whether a folder holds nothing but figures, each beside its data, and their captions."""
    names = (
        {path.name for path in figures.iterdir() if not _is_leftover(path)}
        if figures.is_dir()
        else set()
    )
    ours = {f"captions.{ending}" for ending in ("txt", "tex", "json")}
    for stem in (name.removesuffix(".csv") for name in names if name.endswith(".csv")):
        ours |= {f"{stem}.{ending}" for ending in ("csv", "pdf", "png", "svg")}
    return names <= ours


DIGESTS = "SHA256SUMS"
"""The file of a folder's digests, as ``sha256sum --check`` reads it."""


def write_digests(folder: Path) -> None:
    """Note the digest of every file in a folder."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    lines = [f"{_digest(folder / name)}  {name}\n" for name in names if name != DIGESTS]
    (folder / DIGESTS).write_text("".join(lines), "utf-8")


def check_digests(folder: Path, names: Iterable[str]) -> None:
    """Check that files of a folder are as they were written; raises ValueError or OSError for the first that is not.

    A table has nothing of its own by which a changed digit would show. A folder without digests, of tables that
    somebody has put together, is taken as it is.
    """
    if not (folder / DIGESTS).exists():
        return
    lines = read_text(folder / DIGESTS, within=folder).splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if known.get(name) != _digest(regular(folder / name, within=folder)):
            raise ValueError(f"{name} is not as it was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_table(path: Path, names: tuple[str, ...], numbers: tuple[str, ...]) -> "pd.DataFrame":
    """Read a table with columns of words and of numbers; raises anything for another one.

    A class may be called NA or nan, so only columns of numbers know of missing values. No two rows are of the same.
    """
    import pandas as pd

    check_head(path, len(names) + len(numbers), within=path.parent)
    if not path.read_bytes().endswith(b"\n"):
        raise ValueError(f"{path.name} is cut short")
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            # index_col: else pandas takes what is too much in a line for its name, which takes seconds for thousands.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path.name} has lines of another length") from error
    if set(frame.columns) != {*names, *numbers}:
        raise ValueError(f"{path.name} has other columns")
    if any(has_controls(name) for column in names for name in frame[column].unique()):
        raise ValueError(f"{path.name} has names with control characters")
    for column in numbers:
        words = frame[column]
        found = pd.to_numeric(words.replace("", None))
        if found.dtype == float:  # of which older versions of pandas drop the last digit
            found = words.replace("", "nan").astype(float)
        frame[column] = found
    if frame.duplicated([*names, *(column for column in numbers if column in _COUNTED)]).any():
        raise ValueError(f"{path.name} has a row twice")
    return frame


def read_meta(path: Path, kinds: dict[str, Any]) -> Any:
    """Read the settings that lie beside tables; raises anything where they cannot be read or shown.

    Args:
        path: the file.
        kinds: what there must be, for ``reading.check_kinds``.
    """
    meta = read_json(path, within=path.parent)
    check_kinds(meta, kinds, path.name)
    if has_controls(meta):
        raise ValueError(f"{path.name} has words with control characters")
    return meta


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
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Free space or choose another place."
    )
