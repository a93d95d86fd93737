"""Files and folders are written whole or not at all, and a change of them shows."""

import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from channelscope.errors import UserError
from channelscope.reading import check_regular, read_text

DIGESTS = "SHA256SUMS"
"""The file of a folder's digests, as ``sha256sum --check`` reads it."""

_EARLIER = "-earlier"  # ends the name of a folder that is being replaced


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, which takes its place when the context ends well.

    A reader sees the earlier file or the new one, never a part, even after a kill.

    Raises:
        UserError: where it cannot be written, with the system's reason; what was at ``path`` stays.
    """
    with _temporary_path(path, path.suffix[:20]) as temporary:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which takes the place of ``path`` when the context ends well.

    Raises:
        UserError: where it cannot be written, with the system's reason; what was at ``path`` stays.
    """
    with _temporary_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        if not path.exists():
            temporary.rename(path)
            return
        if not path.is_dir():
            raise FileExistsError(17, "there is a file of that name")
        # Two renames: the earlier folder stays whole until the new one is complete. A kill between
        # them leaves both under hidden names, and ``recover`` puts the new one in its place.
        earlier = temporary.with_name(f"{temporary.name}{_EARLIER}")
        path.rename(earlier)
        try:
            temporary.rename(path)
        except OSError:
            earlier.rename(path)
            raise
        _remove(earlier)


def recover(path: Path) -> None:
    """Clean up after kills within ``atomic_write`` or ``atomic_folder``; only while nobody writes.

    A complete folder that was about to replace ``path`` does so. All other temporary files and
    folders are removed, also those in a folder ``path`` and in its folders.
    """
    leftovers = [
        other
        for other in path.parent.glob(f"{glob.escape(_prefix(path))}*")
        if _is_temporary(other)
    ]
    complete = [
        other for other in leftovers if other.with_name(f"{other.name}{_EARLIER}") in leftovers
    ]
    if complete and not path.exists():
        complete[0].rename(path)
        leftovers.remove(complete[0])
    for pattern in (".*", "*/.*") if path.is_dir() else ():
        leftovers += [
            other
            for other in path.glob(pattern)
            if _is_temporary(other) and (other.parent == path or not other.parent.is_symlink())
        ]
    for leftover in leftovers:
        _remove(leftover)


def hidden_name(path: Path, ending: str) -> str:
    """Return a hidden file's name beside ``path``, unique to it and short enough for any disk."""
    name = path.name
    if len(os.fsencode(name)) > 150:
        name = f"{name[:30]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}.{ending}"


def check_writable(path: Path) -> None:
    """Refuse a path that nothing can be written to, before the work that would be lost.

    Raises:
        UserError: where the nearest existing folder is a file, or may not be written to.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "may not be written to" if folder.is_dir() else "is a file, not a folder"
        raise UserError(f"Cannot write {path}: {folder} {reason}. Choose another place.")


def check_no_link(path: Path, within: Path) -> None:
    """Refuse to write where a link leads, that lies in a folder which somebody else may have made.

    Args:
        path: what is written, or the folder of it; there may be nothing yet.
        within: the folder; it may be a link itself, which the user has named.

    Raises:
        UserError: for a link on the way from ``within`` to ``path``, that included.
    """
    for name in (path, *path.parents):
        if name == within:
            return
        if name.is_symlink():
            raise UserError(
                f"{name} is a link, and nothing is written through links in a result: remove it."
            )


def check_result_folder(folder: Path, tables: Collection[str], others: Collection[str]) -> None:
    """Refuse to replace a folder that holds anything but an earlier result.

    Args:
        folder: may be missing or empty.
        tables: files of which an earlier result has all.
        others: further files that it may have; its ``figures`` hold nothing but figures.

    Raises:
        UserError: for a file, a mount point, a folder of other files, or one that is not writable.
    """
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    if folder.resolve().is_mount():
        raise UserError(
            f"{folder} is a disk of its own, which cannot be replaced: choose a folder on it."
        )
    names = _list_names(folder)
    is_result = set(tables) <= names <= {*tables, *others, DIGESTS}
    if names and not (is_result and _holds_figures_only(folder / "figures")):
        raise UserError(f"{folder} holds other files, which would be lost: choose another --out.")


def write_digests(folder: Path) -> None:
    """Write the digest of every file in a folder."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    lines = [f"{_digest(folder / name)}  {name}\n" for name in names if name != DIGESTS]
    (folder / DIGESTS).write_text("".join(lines), "utf-8")


def check_digests(folder: Path, names: Iterable[str]) -> None:
    """Check that files of a folder are as they were written: a changed digit shows nowhere else.

    A folder without digests, of tables that somebody has put together, passes.

    Raises:
        ValueError: for the first file that has changed.
        OSError: for one that cannot be read.
    """
    if not (folder / DIGESTS).exists():
        return
    lines = read_text(folder / DIGESTS, within=folder).splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if digests.get(name) != _digest(check_regular(folder / name, within=folder)):
            raise ValueError(f"{name} is not as it was written")


@contextmanager
def _temporary_path(path: Path, ending: str = "") -> Iterator[Path]:
    """Yield a new hidden path beside ``path``, which is removed in the end; tell of OSErrors."""
    temporary = path.parent / f"{_prefix(path)}{secrets.token_hex(4)}{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except Exception as error:
        # A library that cannot finish its file may fail once more over the system's refusal.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(
            f"Cannot write {path}: {cause.strerror or cause}. Free space or choose another place."
        ) from error
    finally:
        _remove(temporary)


def _prefix(path: Path) -> str:
    return hidden_name(path, "writing-")


def _is_temporary(path: Path) -> bool:
    """Return whether a name is one that ``_temporary_path`` makes."""
    return re.fullmatch(rf"\..+\.writing-[0-9a-f]{{8}}({_EARLIER}|\..*)?", path.name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _list_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not _is_temporary(path)}


def _holds_figures_only(folder: Path) -> bool:
    """Return whether a folder holds nothing but figures, each beside its data, and captions.

    Folders in it hold the same: figures in the styles of papers.
    """
    names = _list_names(folder)
    styles = {name for name in names if (folder / name).is_dir()}
    if not all(_holds_figures_only(folder / name) for name in styles):
        return False
    names -= styles
    allowed = {f"captions.{ending}" for ending in ("txt", "tex", "json")}
    for stem in (name.removesuffix(".csv") for name in names if name.endswith(".csv")):
        allowed |= {f"{stem}.{ending}" for ending in ("csv", "pdf", "png", "svg")}
    return names <= allowed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
