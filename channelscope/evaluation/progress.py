"""How far an evaluation has come, kept on disk after every block of images."""

import io
import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from channelscope.distributed import is_first, rank
from channelscope.errors import UserError
from channelscope.evaluation.results import gallery_name
from channelscope.files import atomic_write, check_writable
from channelscope.reading import LARGEST_TEXT, check_regular, parse_json, read_text

Key = tuple[int, str, str]  # model, attack, part of the attack
_LARGEST = 2**29  # bytes of a process's record: an image takes ten for each part of an attack


class Progress:
    """Which images have met which attack, and whether they stood; what a killed run goes on from.

    Every process appends a line to its own file after each block, with a checksum. A line that a kill cut short or
    that has changed since is left out, and its block is attacked again.

    Args:
        folder: where to keep it; None for nowhere.
        settings: what the evaluation is of, as plain values.

    Raises:
        UserError: where the folder cannot be written, or holds an evaluation of something else.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.dumps(settings, indent=1)
        self.met: defaultdict[Key, dict[int, bool]] = defaultdict(dict)
        if folder is None:
            return
        check_writable(folder / "settings.json")
        self._check(folder)
        for path in sorted(folder.glob("met-*.jsonl")):
            for key, images, stood in _lines(path, folder):
                self.met[key] |= dict(zip(images, stood, strict=True))

    def _check(self, folder: Path) -> None:
        """Refuse a folder that holds anything else."""
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        try:
            known = read_text(folder / "settings.json", within=folder)
        except (OSError, ValueError):
            raise UserError(f"{folder} holds other files: choose another --out.") from None
        if known != self.settings:
            raise UserError(
                f"{folder} holds an evaluation of other models, data or settings that was interrupted: give the same "
                "command again to go on with it, delete it, or choose another --out."
            )

    @cached_property
    def _own(self) -> Path:
        """This process's file, ready for the next line."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "settings.json") as temporary:
            temporary.write_text(self.settings, "utf-8")
        path = self.folder / f"met-{rank()}.jsonl"
        _end_line(path)
        return path

    def record(self, key: Key, images: list[int], stood: list[bool]) -> None:
        """Note that these images have met a part of an attack, and which of them stood."""
        self.met[key] |= dict(zip(images, stood, strict=True))
        if self.folder is None:
            return
        line = [*key, images, [int(one) for one in stood]]
        try:
            with self._own.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*line, _checksum(line)]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write in {self.folder}: {error.strerror or error}. Free space and give the same command again."
            ) from error

    def remove(self) -> None:
        """Forget all, once the evaluation is complete."""
        if self.folder is not None and is_first():
            shutil.rmtree(self.folder, ignore_errors=True)


class Gallery:
    """Adversarial images on disk: for each model and attack a file of all of the part's images.

    Beside the folder is another, ``sums``, with a checksum of each image that is there.

    Args:
        folder: where the files are.
        shape: of all images, (n, c, h, w).
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self._size = 4 * int(np.prod(shape[1:]))  # of an image, in bytes

    @cached_property
    def _header(self) -> bytes:
        header = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()

    def keep(self, model: int, attack: str, images: list[int], x: Float[Tensor, "n c h w"]) -> None:
        """Write some of the images."""
        path, sums = self._paths(model, attack)
        contents = [
            np.ascontiguousarray(image).tobytes() for image in x.detach().cpu().float().numpy()
        ]
        try:
            start = len(self._header)
            self._write(
                path,
                self._header,
                {start + row * self._size: c for row, c in zip(images, contents, strict=True)},
            )
            self._write(
                sums, b"", {4 * row: _sum(c) for row, c in zip(images, contents, strict=True)}
            )
        except OSError as error:
            raise UserError(
                f"Cannot write {path}: {error.strerror or error}. Free space and give the same command again."
            ) from error

    def whole(self, model: int, attack: str) -> list[bool]:
        """Tell which images are there as they were written."""
        path, sums = self._paths(model, attack)
        try:
            with path.open("rb") as file, sums.open("rb") as known:
                intact = file.read(len(self._header)) == self._header
                return [
                    intact and known.read(4) == _sum(file.read(self._size))
                    for _ in range(self.shape[0])
                ]
        except OSError:
            return [False] * self.shape[0]

    def _paths(self, model: int, attack: str) -> tuple[Path, Path]:
        name = gallery_name(model, attack)
        return self.folder / name, self.folder.with_name("sums") / name

    def _write(self, path: Path, header: bytes, parts: dict[int, bytes]) -> None:
        """Write parts of a file, each at its place, into a file of its whole size, which takes up no space yet."""
        size = len(header) + self.shape[0] * (self._size if header else 4)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes write parts of the same file: whoever is first makes it, and nobody replaces it.
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(
            opened, "rb+"
        ) as file:  # not through the memory, where a full disk would end the process
            if os.fstat(opened).st_size != size:
                file.truncate(size)
            for place, part in {0: header, **parts}.items():
                file.seek(place)
                file.write(part)
            file.flush()
            os.fsync(opened)


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _lines(path: Path, folder: Path) -> Iterator[tuple[Key, list[int], list[bool]]]:
    """Read the lines that ``record`` wrote; UserError for a file of others."""
    try:
        with check_regular(path, within=folder).open("rb") as file:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST // 2**20} MB")
            while line := file.readline(LARGEST_TEXT):
                try:
                    *known, checksum = parse_json(line.decode("utf-8"))
                except (ValueError, TypeError):  # a kill came while it was written
                    continue
                if checksum == _checksum(known):
                    yield _batch(known)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {folder}, and evaluate again."
        ) from error


def _batch(content: list[Any]) -> tuple[Key, list[int], list[bool]]:
    match content:
        case [int(model), str(attack), str(part), [*images], [*stood]] if len(images) == len(stood):
            known = all(type(index) is int and index >= 0 for index in [model, *images])
            if known and all(one in (0, 1) for one in stood):
                return (model, attack, part), images, [bool(one) for one in stood]
    raise ValueError("a line is of no batch")


def _checksum(line: list[Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


def _end_line(path: Path) -> None:
    """End a line that was cut short, so that the next begins anew."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
