"""A run folder: arrays with one row an image, written row by row, that a killed run goes on from.

Every row has a checksum, written after it. So a row that a kill cut short, or that has changed on
disk since, counts as not written, and is computed again. Several processes write rows of the same
files, each its own, and read those of all once they have met at a barrier.

Folders are named by digests of what is in them (network, images, attack, seed), so a run folder can
serve any number of commands, and none takes what another computed of something else.
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt32
from numpy import ndarray

from channelscope.distributed import all_gather_words, barrier, is_first, rank, world_size
from channelscope.errors import UserError
from channelscope.files import atomic_write, check_no_link
from channelscope.reading import read_text

Spec = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape and type of one row
_CHECKSUMS = "checksums"
_MARK = "channelscope-run"  # a file by which a run folder is known


class Rows:
    """Arrays of n rows on disk, and which rows have been written.

    Args:
        folder: where the files are: one a name, and ``checksums.npy``.
        n: number of rows.
        spec: name -> shape and type of one row of each array.

    Raises:
        UserError: where the files cannot be written.
    """

    def __init__(self, folder: Path, n: int, spec: Spec) -> None:
        self.folder = folder
        self.n = n
        self.spec = dict(spec)
        if is_first():
            with _explain_writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                intact = [self._create(name) for name in (*self.spec, _CHECKSUMS)]
                intact += [_check_note(path) for path in self._note_files()]
                if not all(intact):
                    self._erase(np.arange(n))
                self._erase(np.flatnonzero(self._stored_checksums() != self._checksums()))
        barrier()

    @property
    def done(self) -> Bool[ndarray, " n"]:
        """Which rows have been written, by any process."""
        return self._stored_checksums() != 0

    def write(self, rows: Int[ndarray, " m"], values: Mapping[str, ndarray]) -> None:
        """Write some rows of every array, then note that they are there.

        Raises:
            UserError: where the disk is full or may not be written to.
        """
        contents = {
            name: np.ascontiguousarray(values[name], dtype).reshape(len(rows), *shape)
            for name, (shape, dtype) in self.spec.items()
        }
        checksums = np.array(
            [_checksum(array[row] for array in contents.values()) for row in range(len(rows))],
            np.uint32,
        )
        with _explain_writing(self.folder):
            for name, array in contents.items():
                self._write_rows(name, rows, array)
            self._write_rows(_CHECKSUMS, rows, checksums)

    def array(self, name: str) -> ndarray:
        """Return an array (n, ...), memory-mapped and read-only."""
        shape, dtype = self._row(name)
        if not self.n or 0 in shape:
            return np.zeros((self.n, *shape), dtype)
        offset = len(self._header(name))
        return np.memmap(self.path(name), dtype, "r", offset, (self.n, *shape))

    def note(self, sentence: str) -> None:
        """Keep a sentence beside the rows; one that is there already is not kept twice."""
        with atomic_write(self.folder / f"note-{digest_of(sentence)}.txt") as part:
            part.write_text(sentence, "utf-8")

    @property
    def notes(self) -> list[str]:
        """The sentences that any process has kept, in alphabetical order."""
        return sorted(read_text(path, within=self.folder) for path in self._note_files())

    def _note_files(self) -> list[Path]:
        return list(self.folder.glob("note-*.txt"))

    def _row(self, name: str) -> tuple[tuple[int, ...], str]:
        return ((), "<u4") if name == _CHECKSUMS else self.spec[name]

    def path(self, name: str) -> Path:
        """Return the file of an array."""
        return self.folder / f"{slug(name)}.npy"

    def _header(self, name: str) -> bytes:
        shape, dtype = self._row(name)
        described = {"descr": dtype, "fortran_order": False, "shape": (self.n, *shape)}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()

    def _create(self, name: str) -> bool:
        """Make a file of its whole size, unless it is there; return whether it was."""
        path = self.path(name)
        header = self._header(name)
        size = len(header) + self.n * row_bytes({name: self._row(name)})
        if path.is_file() and not path.is_symlink() and path.stat().st_size == size:
            with path.open("rb") as file:
                if file.read(len(header)) == header:
                    return True
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(header)
            file.truncate(size)
        return False

    def _write_rows(self, name: str, rows: Int[ndarray, " m"], array: ndarray) -> None:
        """Write rows, neighbours at once: not through a mapping, as a full disk kills that."""
        offset = len(self._header(name))
        size = row_bytes({name: self._row(name)})
        opened = os.open(self.path(name), os.O_WRONLY | os.O_NOFOLLOW)
        try:
            for first, last in _runs(rows):
                content = memoryview(array[first:last].tobytes())
                place = offset + int(rows[first]) * size
                while content:  # a disk that fills up may take a part
                    written = os.pwrite(opened, content, place)
                    content = content[written:]
                    place += written
        finally:
            os.close(opened)

    def _stored_checksums(self) -> UInt32[ndarray, " n"]:
        return np.asarray(self.array(_CHECKSUMS))

    def _checksums(self) -> UInt32[ndarray, " n"]:
        """Return the checksum of every row that is noted as written, 0 for the others."""
        arrays = [self.array(name) for name in self.spec]
        checksums = np.zeros(self.n, np.uint32)
        for row in np.flatnonzero(self.done):
            checksums[row] = _checksum(np.ascontiguousarray(array[row]) for array in arrays)
        return checksums

    def _erase(self, rows: Int[ndarray, " m"]) -> None:
        if len(rows):
            self._write_rows(_CHECKSUMS, rows, np.zeros(len(rows), np.uint32))


class RunFolder:
    """Where a study keeps its rows.

    Args:
        path: a folder of the user's, which stays; None for a temporary one, which goes with the
            study.

    Raises:
        UserError: for a folder that cannot be made or holds other files, or that not all processes
            see.
    """

    def __init__(self, path: Path | None) -> None:
        # One process names the place; the others are told it.
        made = path if path is not None else Path(_make_temporary())
        self.path = made.absolute()
        # A file of a new name: a folder of this path may be there on each of several machines.
        seen = self.path / all_gather_words([f"{secrets.token_hex(8)}.seen"])[0]
        if is_first():
            check_run_folder(self.path)
            check_no_link(self.path / _MARK, self.path)
            with _explain_writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / _MARK).touch()
                seen.touch()
        barrier()
        see = all_gather_words([str(rank())] if seen.exists() else [])
        if is_first():
            seen.unlink()
        if len(see) < world_size():
            raise UserError(
                "run_folder: the processes do not share a disk, and each sees a folder of its own: "
                "name a run folder that all see."
            )
        if path is None:
            user = self.path / f"{rank()}.user"
            user.touch()
            self._finalizer = weakref.finalize(self, _leave_temporary, user)
            barrier()  # no process leaves before all have come

    def check_space(self, needed: int) -> None:
        """Refuse a study that needs more bytes than the disk has free."""
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"The study needs {in_megabytes(needed)} in {self.path}, where "
                f"{in_megabytes(free)} are free: free space, name another run folder, or take "
                "fewer images or layers."
            )

    def holds(self, *names: str) -> bool:
        """Tell whether there are rows of this name, whole or not."""
        return self._place(names).is_dir()

    def rows(self, n: int, spec: Spec, *names: str) -> Rows:
        """Open the rows of this name, made of parts, as they were left; UserError for links."""
        place = self._place(names)
        check_no_link(place, self.path)
        return Rows(place, n, spec)

    def _place(self, names: Sequence[str]) -> Path:
        # The first process's name: a user's attack may describe itself differently in each process.
        return self.path / all_gather_words(["/".join(map(slug, names))])[0]


def check_run_folder(path: Path) -> None:
    """Refuse a folder that holds anything but a run.

    Raises:
        UserError: for a file, or a folder of other files.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name another run folder.")
    if path.is_dir() and any(path.iterdir()) and not (path / _MARK).exists():
        raise UserError(f"{path} holds other files: name another run folder.")


def remove_run_folder(path: Path) -> None:
    """Remove a run folder with all that is in it; leave any other folder alone."""
    if (path / _MARK).exists():
        shutil.rmtree(path, ignore_errors=True)


def row_bytes(spec: Spec) -> int:
    """Return how many bytes one row of the arrays takes."""
    return sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for shape, dtype in spec.values()
    )


def digest_of(*parts: object) -> str:
    """Return 20 hexadecimal digits that identify texts and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:20]


def slug(name: str) -> str:
    """Return a name of letters that every file system takes, no two names' the same.

    >>> slug("pgd-20"), slug("layer4.0/natural")[:17]
    ('pgd-20', 'layer4.0_natural-')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]", "_", name)[:80]
    if plain == name and plain.strip(".") and plain == plain.lower():
        return plain
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def in_megabytes(size: int) -> str:
    """Return a size in words.

    >>> in_megabytes(3 * 10**9), in_megabytes(12345)
    ('3.0 GB', '1 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _make_temporary() -> str:
    """Make a temporary folder in the first process; return its path in all of them."""
    words: Sequence[str] = [tempfile.mkdtemp(prefix="channelscope-")] if is_first() else []
    return all_gather_words(words)[0]


def _leave_temporary(user: Path) -> None:
    """Remove a process's mark from a temporary folder; the last to leave removes the folder."""
    user.unlink(missing_ok=True)
    if not any(user.parent.glob("*.user")):
        shutil.rmtree(user.parent, ignore_errors=True)


def _checksum(parts: Iterator[ndarray]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data.cast("B") if part.size else b"", value)
    return value or 1  # 0 says that there is no row


def _runs(rows: Int[ndarray, " m"]) -> Iterator[tuple[int, int]]:
    """Return where rows that follow each other begin and end."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *ends.tolist(), len(rows)] if len(rows) else [0]
    return pairwise(bounds)


def _check_note(path: Path) -> bool:
    """Remove a note that is not as it was written; return whether it was whole."""
    with contextlib.suppress(OSError, ValueError):
        if path.name == f"note-{digest_of(read_text(path, within=path.parent))}.txt":
            return True
    path.unlink()
    return False


@contextlib.contextmanager
def _explain_writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write in {folder}: {error.strerror or error}. Free space, or name another "
            "place, and give the same command again: it goes on where it was."
        ) from error
