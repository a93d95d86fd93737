"""Files of plain values and tensors, as torch writes them; nothing in one is ever run as code.

``torch.load(weights_only=True)`` runs no code of a file's. But it believes every size that it
reads, calls functions that take memory, and ignores checksums: files are checked besides.
"""

import io
import mmap
import pickle
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
_RARE_TENSORS = re.compile(r"torch\._utils _rebuild_(qtensor|sparse.*|nested.*|meta.*)")
# What stands beside weights in other programs' files, and torch's safe reading knows.
_FOREIGN_CALLS = re.compile(
    rf"{_CALLS.pattern}|collections Counter|_codecs encode|(__builtin__|builtins) (set|complex)|"
    r"torch\._utils _rebuild_(parameter_with_state|device_tensor_from_cpu_tensor)|torch device|"
    r"torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|"
    r"torch (b?float|u?int|complex)[0-9]+|torch bool"
)
# Settings that programs save beside weights. Empty objects of ours stand for them: what the file
# calls is not even imported, and what it would fill them with is dropped.
_SETTINGS = re.compile(
    r"argparse Namespace|types SimpleNamespace|easydict EasyDict|torch\.torch_version TorchVersion|"
    r"pathlib(\._local)? (Pure)?(Posix|Windows)?Path|datetime (date|datetime|timedelta)|"
    r"numpy(\._?core)?(\.multiarray)? (scalar|dtype)"
)
_UNREAD_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # by other ways to pickle
_MOST_VALUES = 1_000_000  # of a file; a hundred thousand names of classes take a fifth
_SHARED = 4  # times a file's size is the most that its tensors have, some weights being there twice
_FOLDER = 0x10  # the attribute by which torch, unlike Python, knows a folder in an archive
# How files begin that get mistaken for a network's, and what each is.
_BEGINNINGS = {
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"BZh": "packed with bzip2: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
    b"7z\xbc\xaf": "packed with 7-Zip: unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes: channelscope reads networks of PyTorch",
    b"version https://git-lfs": "a pointer of Git LFS, not the weights: fetch them with 'git lfs "
    "pull'",
    b"<": "a web page, not a network: the download went wrong, so get the file again",
    b"\x93NUMPY": "an array of NumPy, not a network: name the file of the network's weights",
}


class Setting:
    """Stands for an object in another program's file that is not a network's: it holds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Setting":
        """Make an empty object, whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


_FOREIGN_VALUES = (set, bytes, complex, torch.dtype, torch.device, Setting)


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write plain values and tensors to a ``.pt`` file, whole or not at all."""
    buffer = io.BytesIO()  # on a full disk, torch would raise an error of its own
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path, *, foreign: bool = False) -> Any:
    """Read what ``save_tensors`` or any torch program wrote: plain values and tensors only.

    Args:
        path: the file.
        foreign: read all that ``torch.load(weights_only=True)`` reads, not only what is in our
            files; empty objects of type ``Setting`` stand for settings of other programs.

    Raises:
        UserError: for a missing or unreadable file, and for one that holds anything else.
    """
    check_file(path)
    _check_beginning(path)
    calls = _FOREIGN_CALLS if foreign else _CALLS
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of files that are refused anyway
            settings = _check_file(path, calls)
            stand_ins: list[Any] = (
                [_make_setting(name) for name in sorted(settings)] if foreign else []
            )
            with torch.serialization.safe_globals(stand_ins):
                content = torch.load(path, map_location="cpu", weights_only=True)
            _check_content(content, path.stat().st_size, foreign)
            return content
    except UserError:
        raise
    except Exception as error:
        raise _explain(path, error) from error


def check_file(path: Path) -> None:
    """Refuse a path that is no file that can be read.

    Raises:
        UserError: one sentence that says so.
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


def _check_beginning(path: Path) -> None:
    """Refuse a file of another kind, some of which begin as a pickle could; raises UserError."""
    with path.open("rb") as file:
        beginning = file.read(100)
    for mark, kind in _BEGINNINGS.items():
        if beginning.startswith(mark):
            raise UserError(f"{path} is {kind}.")


def _explain(path: Path, error: Exception) -> UserError:
    """Return the sentence on a file that cannot be read."""
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
        reason = "holds what torch's safe reading refuses, and other reading could run code"
        return UserError(f"{path} {reason}, which is never run: {SAVE_WEIGHTS}")
    return UserError(
        f"{path} cannot be read as a network file: it is damaged, or no file of PyTorch. Get it "
        "again."
    )


SAVE_WEIGHTS = (
    "where you trust it, open it with the program that wrote it and save the weights alone, "
    "torch.save(network.state_dict(), 'weights.pt')."
)


def _make_setting(name: str) -> type[Setting]:
    """Make the class that stands for one that a file names, ``module name``."""
    module, _, qualname = name.partition(" ")
    return type(qualname, (Setting,), {"__module__": module, "__qualname__": qualname})


def _check_file(path: Path, calls: re.Pattern[str]) -> set[str]:
    """Check a file before torch reads it; raises anything where it is damaged or takes memory.

    Returns the names of the settings in it, which are no more than named.
    """
    if not zipfile.is_zipfile(path):  # as before torch 1.6: five pickles, then the tensors' bytes
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return set().union(*(_check_pickle(content, path, calls) for _ in range(5)))
    with zipfile.ZipFile(path) as archive:
        size, members = path.stat().st_size, archive.infolist()
        _check_kind(path, {member.filename.partition("/")[2] for member in members})
        check_archive(archive, size)
        if sum(member.file_size for member in members) > size:
            raise ValueError("members that are packed, or share their bytes")
        if any(member.is_dir() or member.external_attr & _FOLDER for member in members):
            raise ValueError("a folder, for whose bytes torch gives whatever lies in its memory")
        if damaged := archive.testzip():
            raise ValueError(f"a damaged member {damaged}")
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return set().union(*(_check_pickle(archive.read(name), path, calls) for name in pickles))


def _check_kind(path: Path, names: set[str]) -> None:
    """Refuse archives that torch writes and that are no plain weights, and other archives.

    Args:
        path: of the archive.
        names: its members', without the first folder.

    Raises:
        UserError: one sentence that says what it is.
    """
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UserError(
            f"{path} is a TorchScript file: its network is code in the file, which is never run: "
            f"{SAVE_WEIGHTS}"
        )
    if any("exported_program" in name or name == "archive_format" for name in names) or (
        "models/model.json" in names
    ):
        raise UserError(
            f"{path} is a file of torch.export: its network is a program in the file, which is "
            f"never run: {SAVE_WEIGHTS}"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(
            f"{path} is an archive without a network that torch saved: name the file of its "
            "weights."
        )


def _check_pickle(content: bytes | mmap.mmap, path: Path, calls: re.Pattern[str]) -> set[str]:
    """Go through a pickle without running it; return the names of settings in it.

    What is refused would not run as code either: ``bytearray`` and ``torch.Tensor`` make room for
    as many bytes as they are told.

    Raises:
        ValueError: where it is too long, or a text.
        UserError: where it calls more than ``calls``.
    """
    settings, has_protocol = set(), False
    operations = pickletools.genops(content)  # type: ignore[arg-type]  # it reads and reads lines
    for number, (code, argument, _) in enumerate(operations):
        if number > _MOST_VALUES:
            raise ValueError("a pickle without end")
        has_protocol |= code.name == "PROTO"
        if code.name in _UNREAD_CALLS:
            if not has_protocol:
                raise ValueError("a text, the letters of which could be of a pickle")
            raise UserError(_refuse_call(path, "named in a way that torch's safe reading lacks"))
        if code.name == "GLOBAL" and not calls.fullmatch(str(argument)):
            if calls is not _FOREIGN_CALLS or not _SETTINGS.fullmatch(str(argument)):
                raise UserError(_refuse_call(path, str(argument)))
            settings.add(str(argument))
    return settings


def _refuse_call(path: Path, call: str) -> str:
    if _RARE_TENSORS.fullmatch(call):
        return (
            f"{path} holds quantised, sparse or empty tensors: save the network's weights in "
            "floating point, as they are before it is quantised or pruned."
        )
    name = call.replace(" ", ".") if call.count(" ") == 1 else call
    return (
        f"{path} holds more than weights, an object of Python ({name}), and reading that could run "
        f"code, which is never run: {SAVE_WEIGHTS}"
    )


def _check_content(content: Any, size: int, foreign: bool) -> None:
    """Check what a file of so many bytes held; raises ValueError for more than it can have held.

    A value may be in many others, and a tensor be a view of a few bytes: each counts each time.
    """
    level, values, held = [content], 0, 0
    for _ in range(DEEPEST):
        values += len(level)
        held += sum(_check_value(value, foreign) for value in level)
        if values > _MOST_VALUES or held > _SHARED * size:
            raise ValueError("more than the file can hold")
        level = list(islice(chain.from_iterable(map(_children, level)), _MOST_VALUES + 1))
        if not level:
            return
    raise ValueError("nested too deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    return value if isinstance(value, list | tuple | set) else ()


def _check_value(value: Any, foreign: bool) -> int:
    """Return the bytes of a tensor, 0 for any plain value; raises ValueError for anything else."""
    if isinstance(value, Tensor):
        return _check_tensor(value, foreign)
    if isinstance(value, str):
        value.encode()  # raises where it is half of a surrogate pair
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number beyond reason")
    elif foreign and isinstance(value, _FOREIGN_VALUES):
        pass
    elif not isinstance(value, Mapping | list | tuple | int | float | None):
        raise ValueError(f"a value of type {type(value).__name__}")
    return 0


def _check_tensor(tensor: Tensor, foreign: bool) -> int:
    """Return a tensor's bytes; raises ValueError where it is not a block of numbers in memory."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    rare = tensor.is_quantized or tensor.is_nested or (tensor.is_complex() and not foreign)
    if not dense or rare:
        raise ValueError("a tensor of a rare kind")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its memory")
    return size
