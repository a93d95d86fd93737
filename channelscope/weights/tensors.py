"""Files of plain values and tensors, as torch writes them; nothing in one is ever run as code.

``torch.load(weights_only=True)`` runs no code of a file's. But it believes every size that it
reads, calls functions that take memory, and ignores checksums: files are checked besides.
"""

import io
import mmap
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from channelscope.errors import UserError
from channelscope.files import atomic_write
from channelscope.reading import DEEPEST, check_archive

# What the pickle in a network's file calls: it makes tensors, and the dict that torch's states are.
_CALLS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch Size|"
    r"torch [A-Z][A-Za-z0-9]*Storage"
)
_MOST_VALUES = 1_000_000  # of a file; a hundred thousand names of classes take a fifth
_SHARED = 4  # times a file's size is the most that its tensors have, some weights being there twice
_FOLDER = 0x10  # the attribute by which torch, unlike Python, knows a folder in an archive


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write plain values and tensors to a ``.pt`` file, whole or not at all."""
    buffer = io.BytesIO()  # on a full disk, torch would raise an error of its own
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read what ``save_tensors`` or any torch program wrote: plain values and tensors only.

    Raises:
        UserError: for a missing or unreadable file, and for one that holds anything else.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the network file in it.")
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of files that are refused anyway
            _check_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _check_content(content, path.stat().st_size)
            return content
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a network file: it is damaged, or holds code, which is "
            "never run. Get it again."
        ) from error


def _check_file(path: Path) -> None:
    """Check a file before torch reads it; raises anything where it is damaged or takes memory."""
    if not zipfile.is_zipfile(path):  # as before torch 1.6: five pickles, then the tensors' bytes
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            for _ in range(5):
                _check_pickle(content)
        return
    with zipfile.ZipFile(path) as archive:
        size, members = path.stat().st_size, archive.infolist()
        check_archive(archive, size)
        if sum(member.file_size for member in members) > size:
            raise ValueError("members that are packed, or share their bytes")
        if any(member.is_dir() or member.external_attr & _FOLDER for member in members):
            raise ValueError("a folder, for whose bytes torch gives whatever lies in its memory")
        if damaged := archive.testzip():
            raise ValueError(f"a damaged member {damaged}")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_pickle(archive.read(member))


def _check_pickle(pickle: bytes | mmap.mmap) -> None:
    """Go through a pickle without running it; raises ValueError where it is too long or calls more.

    What is refused would not run as code either: ``bytearray`` and ``torch.Tensor`` make room for
    as many bytes as they are told.
    """
    operations = pickletools.genops(pickle)  # type: ignore[arg-type]  # it reads and reads lines
    for number, (code, argument, _) in enumerate(operations):
        if number > _MOST_VALUES:
            raise ValueError("a pickle without end")
        if code.name == "GLOBAL" and not _CALLS.fullmatch(str(argument)):
            raise ValueError(f"a call of {argument}")


def _check_content(content: Any, size: int) -> None:
    """Check what a file of so many bytes held; raises ValueError for more than it can have held.

    A value may be in many others, and a tensor be a view of a few bytes: each counts each time.
    """
    level, values, held = [content], 0, 0
    for _ in range(DEEPEST):
        values += len(level)
        held += sum(map(_check_value, level))
        if values > _MOST_VALUES or held > _SHARED * size:
            raise ValueError("more than the file can hold")
        level = list(islice(chain.from_iterable(map(_children, level)), _MOST_VALUES + 1))
        if not level:
            return
    raise ValueError("nested too deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    return value if isinstance(value, list | tuple) else ()


def _check_value(value: Any) -> int:
    """Return the bytes of a tensor, 0 for any plain value; raises ValueError for anything else."""
    if isinstance(value, Tensor):
        return _check_tensor(value)
    if isinstance(value, str):
        value.encode()  # raises where it is half of a surrogate pair
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number beyond reason")
    elif not isinstance(value, Mapping | list | tuple | int | float | None):
        raise ValueError(f"a value of type {type(value).__name__}")
    return 0


def _check_tensor(tensor: Tensor) -> int:
    """Return a tensor's bytes; raises ValueError where it is not a block of numbers in memory."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.is_quantized or tensor.is_nested or tensor.is_complex():
        raise ValueError("a tensor of a rare kind")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its memory")
    return size
