"""Files from anybody, read with limits: they may be pipes, links, or small and unpack to much.

What is refused is refused with a ValueError of a few words, out of which each reader makes the
user's sentence. The limits are far above what honest files meet, and low enough that a small file
never takes a gigabyte.
"""

import io
import json
import math
import stat
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from channelscope.errors import has_controls

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LARGEST_TEXT = 16 * 2**20  # bytes of JSON: parsed, it takes 30 times as much
LARGEST_RECIPE = 64 * 2**10  # characters
LARGEST_LINE = 64 * 2**10  # bytes of a table's first line: a column takes more than a kilobyte
LARGEST_NUMBER = 1e100  # single precision ends far below it, matplotlib's axes fail above it
LONGEST_NAME = 4096  # letters of a word in a table, or a name: a path has as many
DEEPEST = 50  # lists and tables in one another
UNPACKED = 128 * 2**20  # bytes that any archive may unpack to
RATIO = 50  # and a larger one, times its size: images pack to a fifth, outcomes to a thousandth
SCALED_RATIO = 320  # the same where images are scaled, of 28 x 28 pixels to 224 x 224, say
MEMBERS = 10_000  # of an archive
# Numbers that tell rows apart.
_KEYS = {
    *("at", "beta_atk", "channel", "channels", "covered", "cut", "epoch", "eps"),
    *("rank", "source", "target"),
}


def check_regular(path: Path, *, within: Path | None = None) -> Path:
    """Return the path of an ordinary file, which may be a link, as people link their data.

    Args:
        path: the file.
        within: a folder of our making, out of which no link leads.

    Raises:
        ValueError: for a pipe, a device, a folder, or a link out of ``within``.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is no ordinary file")
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise ValueError(f"{path.name} is a link out of the folder")
    return path


def read_text(path: Path, *, within: Path | None = None) -> str:
    """Read a text of reasonable size, UTF-8; raises OSError or ValueError."""
    with check_regular(path, within=within).open("rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"{path.name} has more than {LARGEST_TEXT // 2**20} MB")
    return content.decode("utf-8")


def read_json(path: Path, *, within: Path | None = None) -> Any:
    """Read JSON whose texts can be written again; raises OSError or ValueError."""
    return parse_json(read_text(path, within=within))


def parse_json(text: str) -> Any:
    """Parse JSON whose texts can be written again; raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:  # perhaps half of a surrogate pair, which has no encoding
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML of the size and depth of a recipe; raises ValueError."""
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"it has more than {LARGEST_RECIPE // 1024} KB")
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    _check_depth(values)
    return values


def read_meta(path: Path, kinds: dict[str, Any]) -> Any:
    """Read the JSON that describes tables; raises OSError or ValueError where it does not do.

    Args:
        path: the file.
        kinds: what it must hold, for ``check_kinds``.
    """
    meta = read_json(path, within=path.parent)
    check_kinds(meta, kinds, path.name)
    if has_controls(meta):
        raise ValueError(f"{path.name} has words with control characters")
    return meta


def check_kinds(value: Any, kinds: Any, name: str) -> None:
    """Check the types of plain values.

    Args:
        value: what was read.
        kinds: a type or a union of some, whose numbers are finite; ``[kinds]`` of a list's items;
            ``{name: kinds}`` of a table's values, where ``"name?"`` may be missing or None and
            ``"*"`` is each. True passes as an int, as in Python.
        name: that of the value, for the message.

    Raises:
        ValueError: with the name of the first that is missing or of another type.

    >>> check_kinds({"eps": 0.1, "classes": ["cat", 3]}, {"eps": float, "classes": [str]}, "meta")
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


def read_table(
    path: Path, names: tuple[str, ...], numbers: tuple[str, ...], *, open_ended: bool = False
) -> "pd.DataFrame":
    """Read a CSV table; raises OSError or ValueError for another one.

    Args:
        path: the file.
        names: its columns of text. A class may be called NA: these know no missing values.
        numbers: its columns of numbers. No two rows have the same names and channel, epoch, ...
        open_ended: there may be further columns of text, at most as many.
    """
    import pandas as pd

    columns = len(names) + len(numbers)
    _check_head(path, columns, 2 * columns if open_ended else columns)
    if not path.read_bytes().endswith(b"\n"):
        raise ValueError(f"{path.name} is cut short")
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            # index_col: else pandas takes what is too much in a line for the row's name, slowly.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path.name} has lines of another length") from error
    if open_ended:
        names = (*names, *(name for name in frame.columns if name not in {*names, *numbers}))
    if set(frame.columns) != {*names, *numbers}:
        raise ValueError(f"{path.name} has other columns")
    words = [*names, *(word for name in names for word in frame[name].unique())]
    if has_controls(words):
        raise ValueError(f"{path.name} has names with control characters")
    check_lengths(words, path.name)
    for column in numbers:
        frame[column] = _parse_numbers(frame[column])
        check_sizes(frame[column].to_numpy(), path.name)
    if frame.duplicated([*names, *(column for column in numbers if column in _KEYS)]).any():
        raise ValueError(f"{path.name} has a row twice")
    return frame


def check_lengths(names: Iterable[str], where: str) -> None:
    """Refuse names that no figure and no page has room for, with ValueError."""
    if any(len(name) > LONGEST_NAME for name in names):
        raise ValueError(f"{where} has names of more than {LONGEST_NAME} letters")


def check_sizes(numbers: "np.ndarray", where: str) -> None:
    """Refuse finite numbers that no axis has room for, with ValueError."""
    import numpy as np

    if numbers.dtype == np.float64:
        sizes = np.abs(numbers)
        if ((sizes > LARGEST_NUMBER) & (sizes < np.inf)).any():
            raise ValueError(f"{where} has numbers beyond {LARGEST_NUMBER:g}")


def _check_head(path: Path, least: int, most: int) -> None:
    """Check the number of columns in a table's first line, of which the names have no commas."""
    with check_regular(path, within=path.parent).open("rb") as file:
        head = file.readline(LARGEST_LINE + 1)
    if len(head) > LARGEST_LINE:
        raise ValueError(f"the first line of {path.name} is too long")
    if not least <= head.count(b",") + 1 <= most:
        raise ValueError(f"{path.name} has other columns")


def _parse_numbers(words: "pd.Series[str]") -> "pd.Series[Any]":
    import pandas as pd

    numbers = pd.to_numeric(words.replace("", None))
    if numbers.dtype == float:  # of which older versions of pandas drop the last digit
        numbers = words.replace("", "nan").astype(float)
    return numbers


class Arrays:
    """The arrays of an ``.npz`` file, each read when it is asked for; nothing is unpickled."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = set(archive.namelist())
        self.files = [name.removesuffix(".npy") for name in archive.namelist()]

    def __getitem__(self, name: str) -> "np.ndarray":
        """Read an array; raises ValueError, or what zipfile raises, where its header lies."""
        import numpy as np

        if f"{name}.npy" not in self._names:
            raise ValueError("it is no array")
        member = self._archive.getinfo(f"{name}.npy")
        with cast(zipfile.ZipExtFile, self._archive.open(member)) as file:
            shape, is_transposed, dtype = check_array(file, member.file_size)
            array = np.empty(math.prod(shape), dtype)
            content = array.view(np.uint8) if array.size else array
            # To its end, where zipfile compares the checksum.
            while count := file.readinto(content.data):
                content = content[count:]
        return array.reshape(shape[::-1]).T if is_transposed else array.reshape(shape)


@contextmanager
def open_arrays(path: Path, *, within: Path | None = None) -> Iterator[Arrays]:
    """Open an ``.npz`` file; raises OSError, ValueError or what zipfile raises."""
    with check_regular(path, within=within).open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise ValueError("it holds a single array")
        with zipfile.ZipFile(stream) as archive:
            check_archive(archive, path.stat().st_size)
            yield Arrays(archive)


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive of so many bytes that unpacks to far more, with ValueError.

    Nothing is unpacked for that: a member's content ends where the archive's directory says.
    """
    members = archive.infolist()
    if len(members) > MEMBERS or len({member.filename for member in members}) < len(members):
        raise ValueError("it has too many members, or two of one name")
    if {member.compress_type for member in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("it is packed in an unusual way")
    check_unpacked(sum(member.file_size for member in members), size)


def check_unpacked(unpacked: int, size: int, ratio: int = RATIO) -> None:
    """Refuse what takes so many bytes in memory, and far fewer on disk, with ValueError."""
    if unpacked > max(UNPACKED, ratio * size):
        raise ValueError(f"it would unpack to {unpacked / 2**20:,.0f} MB, far more than its size")


def check_array(
    file: IO[bytes] | io.BufferedIOBase, size: int
) -> "tuple[tuple[int, ...], bool, np.dtype[Any]]":
    """Check the header of an array of so many bytes, header included.

    Returns:
        its shape, whether the first axis varies first, and its type.

    Raises:
        ValueError: where it holds Python objects, or its header promises another size.
    """
    import numpy as np

    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, is_transposed, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the header is Python's text: nearly anything comes of it
        raise ValueError("its header cannot be read") from error
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("it holds Python objects, which are never unpickled, or nothing at all")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("its header promises another size than it has")
    return shape, is_transposed, dtype


def _check_depth(value: Any) -> None:
    """Refuse plain values that are nested deeper than any of ours, with ValueError."""
    level = [value]
    for _ in range(DEEPEST):
        tables = [one.values() for one in level if isinstance(one, dict)]
        lists = [one for one in level if isinstance(one, list)]
        level = [item for items in (*tables, *lists) for item in items]
        if not level:
            return
    raise ValueError("it is nested too deep")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max
