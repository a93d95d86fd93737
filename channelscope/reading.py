"""Look at files before they are read: they may be pipes, links, or small and unpack to much.

What is refused here is refused with a ValueError in a few words, out of which each reader makes the user's sentence.
The limits are far above what honest files meet, and low enough that a small file never takes a gigabyte.
"""

import io
import json
import math
import stat
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Binary = IO[bytes] | io.BufferedIOBase  # what zipfile says that it opens, and what it opens

LARGEST_TEXT = (
    16 * 2**20
)  # bytes of JSON and of recipes, which have some thousands: parsed, it takes 30 times as much
LARGEST_RECIPE = 64 * 2**10  # characters
DEEPEST = 50  # lists and tables in one another
LARGEST_LINE = (
    64 * 2**10
)  # bytes of a table's first line: each of its columns takes more than a kilobyte
UNPACKED = 128 * 2**20  # bytes that any archive may unpack to
RATIO = 50  # and any larger one, times its own size: images pack to a fifth, an image's outcomes to a thousandth
MEMBERS = 10_000  # of an archive


def regular(path: Path, *, within: Path | None = None) -> Path:
    """Give the path of an ordinary file back; raises ValueError for a pipe, a device, a folder, or a link out.

    Args:
        path: may be a link, as people link their data.
        within: a folder of our making, out of which no link leads.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is no ordinary file")
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise ValueError(f"{path.name} is a link out of the folder")
    return path


def read_text(path: Path, *, within: Path | None = None) -> str:
    """Read a text of reasonable size, UTF-8; raises OSError or ValueError."""
    with regular(path, within=within).open("rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"{path.name} has more than {LARGEST_TEXT // 2**20} MB")
    return content.decode("utf-8")


def read_json(path: Path, *, within: Path | None = None) -> Any:
    """Read JSON whose texts can be written again; raises OSError or ValueError."""
    return parse_json(read_text(path, within=within))


def parse_json(text: str) -> Any:
    """Read JSON whose texts can be written again; raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    check_depth(value)
    if "\\ud" in text or "\\uD" in text:  # half of a letter, perhaps, which no file can hold
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def check_kinds(value: Any, kinds: Any, name: str) -> None:
    """Check what plain values are of; raises ValueError with the name of the first that is lacking or of another kind.

    Args:
        value: what was read.
        kinds: a type or a union of some, whose numbers are finite; ``[kinds]`` of a list's items; ``{name: kinds}`` of
            what a table has, where ``"name?"`` may be lacking or None and ``"*"`` is each. To Python, True is an int.
        name: that of the value, for the sentence.

    >>> check_kinds({"eps": 0.1, "classes": ["cat", 3]}, {"eps": float, "seed?": int, "classes": [str]}, "meta.json")
    Traceback (most recent call last):
    ...
    ValueError: classes is missing or of another kind
    """
    if isinstance(kinds, list) and isinstance(value, list):
        for item in value:
            check_kinds(item, kinds[0], name)
    elif isinstance(kinds, dict) and isinstance(value, dict):
        for key, inner in kinds.items():
            for each in value if key == "*" else [key.removesuffix("?")]:
                if value.get(each) is not None or not key.endswith("?"):
                    check_kinds(value.get(each), inner, each)
    elif isinstance(kinds, dict | list) or not isinstance(value, kinds) or not _is_finite(value):
        raise ValueError(f"{name} is missing or of another kind")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML of the size and depth of a recipe; raises ValueError."""
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"it has more than {LARGEST_RECIPE // 1024} KB")
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    check_depth(values)
    return values


def check_depth(value: Any) -> None:
    """Refuse plain values that are nested deeper than any of ours, with ValueError."""
    inside = [value]
    for _ in range(DEEPEST):
        lists = [
            one.values() if isinstance(one, dict) else one
            for one in inside
            if isinstance(one, dict | list)
        ]
        inside = [item for one in lists for item in one]
        if not inside:
            return
    raise ValueError("it is nested too deep")


def check_head(path: Path, columns: int, *, within: Path | None = None) -> None:
    """Refuse a table whose first line is endless or has another number of columns, with ValueError."""
    with regular(path, within=within).open("rb") as file:
        head = file.readline(LARGEST_LINE + 1)
    if len(head) > LARGEST_LINE:
        raise ValueError(f"the first line of {path.name} is too long")
    if head.count(b",") + 1 != columns:  # whose names have no commas
        raise ValueError(f"{path.name} has other columns")


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive of so many bytes that unpacks to much more, with ValueError.

    Nothing is unpacked for that: a member's content ends where the archive's directory says.
    """
    members = archive.infolist()
    if len(members) > MEMBERS or len({member.filename for member in members}) < len(members):
        raise ValueError("it has too many members, or two of one name")
    if any(
        member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members
    ):
        raise ValueError("it is packed in an unusual way")
    unpacked, most = sum(member.file_size for member in members), max(UNPACKED, RATIO * size)
    if unpacked > most:
        raise ValueError(f"it would unpack to {unpacked / 2**20:,.0f} MB, far more than its size")


def check_array(file: Binary, size: int) -> None:
    """Refuse an array of so many bytes, header and all, that holds objects, or whose header says another size."""
    import numpy as np

    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the header is Python's text: nearly anything comes of it
        raise ValueError("its header cannot be read") from error
    if dtype.hasobject or not dtype.itemsize:  # numbers and words are whatever else there is
        raise ValueError("it holds Python objects, which are never unpickled, or nothing at all")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("its header promises another size than it has")


class Arrays:
    """The arrays of an ``.npz`` file, each read when it is asked for: plain numbers and words, nothing is unpickled."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.files = [name.removesuffix(".npy") for name in archive.namelist()]

    def __getitem__(self, name: str) -> "np.ndarray":
        """Read an array; raises ValueError, or what zipfile raises, where its header promises more than is there."""
        import numpy as np

        if f"{name}.npy" not in self._archive.namelist():
            raise ValueError("it is no array")
        member = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(member) as file:
            check_array(file, member.file_size)
        with self._archive.open(member) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array


@contextmanager
def arrays(path: Path, *, within: Path | None = None) -> Iterator[Arrays]:
    """Open an ``.npz`` file; raises OSError, ValueError or what zipfile raises."""
    with (
        regular(path, within=within).open("rb") as stream,
        zipfile.ZipFile(_not_bare(stream)) as archive,
    ):
        check_archive(archive, path.stat().st_size)
        yield Arrays(archive)


def _not_bare(stream: io.BufferedReader) -> io.BufferedReader:
    if stream.read(6) == b"\x93NUMPY":
        raise ValueError("it holds a single array")
    stream.seek(0)
    return stream
