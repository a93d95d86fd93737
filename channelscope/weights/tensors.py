"""Files of plain values and tensors, as torch writes them: nothing in one is ever run as code, nor takes more room.

What torch would make of a file is looked at before and after: torch itself runs no code with ``weights_only=True``, but
believes every size that it reads.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from channelscope.errors import UserError
from channelscope.files import atomic_write
from channelscope.reading import DEEPEST, Binary, check_archive

# What a network's file calls: tensors, their storages and types, and the dict that torch's states are.
_NEEDED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter)|torch Size|"
    r"torch (storage\.)?([A-Z][A-Za-z0-9]*Storage|b?float\w*|u?int\w*|bool|half|double|long)"
)
_MOST_OPERATIONS = (
    1_000_000  # of a pickle, and values written out: 100,000 classes' names take a fifth
)
_LONGEST_TEXT = 2**20  # bytes of a single value in a pickle: tensors' are not in it
_FOLDER = 0x10  # the attribute by which torch, unlike Python, tells a member of an archive that is a folder
_SHARED = (
    4  # times a file's size its tensors may have together: a state holds some of its weights twice
)


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write plain values and tensors to a ``.pt`` file, whole or not at all."""
    buffer = io.BytesIO()  # torch would report a full disk in words of its own
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read what ``save_tensors`` or any torch program wrote, plain values and tensors only.

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
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch's, of files that are refused in a moment
            _check_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _check_content(content, path.stat().st_size)
            return content
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a network file: it is damaged, or holds code, which is never run. Get it again."
        ) from error


def _check_file(path: Path) -> None:
    """Look at a file before torch reads it; raises anything for one that is damaged, or would take far more memory.

    torch itself runs no code, but makes whatever a few harmless functions make, of any size: those that no network's
    file needs are refused here, and so are members that are packed, as torch packs none.
    """
    if not zipfile.is_zipfile(path):
        with (
            path.open("rb") as file
        ):  # written before torch 1.6: four values and the storages' names, then their bytes
            for _ in range(5):
                _check_pickle(_Bounded(file))
        return
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        check_archive(archive, size)
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("members that are packed, or share their bytes")
        if any(member.is_dir() or member.external_attr & _FOLDER for member in archive.infolist()):
            raise ValueError("a folder, for whose bytes torch gives whatever lies in its memory")
        if damaged := archive.testzip():  # torch does not look at the checksums
            raise ValueError(damaged)
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    _check_pickle(_Bounded(file))


class _Bounded:
    """A file of which no one takes much at once: room is made for all that is asked for before any is read."""

    def __init__(self, file: Binary) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        return self.file.read(self._checked(size))

    def readline(self) -> bytes:
        return self.file.readline(self._checked(_LONGEST_TEXT))

    def _checked(self, size: int) -> int:
        if not 0 <= size <= _LONGEST_TEXT:
            raise ValueError("a text without end")
        return size


def _check_pickle(file: _Bounded) -> None:
    """Go through a pickle, not executing it; raises ValueError where it is endless or asks for what is not needed."""
    for number, (code, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]  # it is read only
        if number > _MOST_OPERATIONS:
            raise ValueError("a pickle without end")
        if code.name in (
            "STACK_GLOBAL",
            "INST",
            "OBJ",
            "NEWOBJ",
            "NEWOBJ_EX",
            "EXT1",
            "EXT2",
            "EXT4",
        ):
            raise ValueError("objects")
        if code.name == "GLOBAL" and not _NEEDED.fullmatch(str(argument)):
            raise ValueError(f"a call of {argument}")


def _check_content(content: Any, size: int) -> None:
    """Check what a file of so many bytes held; raises ValueError for what it cannot have held, and nobody has written.

    Values may be in one another again and again, and tensors be views of a few bytes: both are counted as if they were
    written out.
    """
    values, bytes_held, inside = 0, 0, [content]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in inside:
            if isinstance(value, Tensor):
                bytes_held += _size(value)
            elif isinstance(value, Mapping):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                below += value
            else:
                _check_value(value)
            if (values := values + 1) + len(
                below
            ) > _MOST_OPERATIONS or bytes_held > _SHARED * size:
                raise ValueError("more than the file can hold")
        if not (inside := below):
            return
    raise ValueError("it is nested too deep")


def _size(tensor: Tensor) -> int:
    """Give a tensor's bytes; raises ValueError for one that is not made of numbers one beside the other in memory."""
    plain = (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )
    if not plain or tensor.is_nested or tensor.is_complex():
        raise ValueError("a tensor of a rare kind")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its memory")
    return size


def _check_value(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # raises where it is half of a letter
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number beyond reason")
