"""An input: a few files, folders, links and pipes, as a value that can be written and kept."""

import base64
import contextlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


@dataclass(frozen=True)
class Special:
    """No plain file: "fifo", "socket", "folder", a "locked" or a "sparse" file of a terabyte."""

    kind: str


Entry = bytes | Link | Special


@dataclass(frozen=True)
class Tree:
    """What lies in the folder that is read, ``in``, and beside it.

    Args:
        entries: by name, below the folder that holds all of it.
        refuse: whether a reader must refuse it, whatever else it finds: it lies where nothing may
            be taken from.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    refuse: bool = False

    def write(self, place: Path) -> None:
        """Make the files in a fresh folder, except those the system has no room or no name for."""
        remove(place)
        place.mkdir()
        for name, entry in self.entries.items():
            with contextlib.suppress(OSError, ValueError):
                _make(place / name, entry)

    def text(self) -> str:
        """Give the tree as JSON."""
        entries = [
            [name.encode("utf-8", "surrogateescape").hex(), *_told(entry)]
            for name, entry in self.entries.items()
        ]
        return json.dumps({"refuse": self.refuse, "entries": entries})

    @classmethod
    def of(cls, text: str) -> "Tree":
        """Read what ``text`` gave."""
        content = json.loads(text)
        named = (
            (bytes.fromhex(name).decode("utf-8", "surrogateescape"), rest)
            for name, *rest in content["entries"]
        )
        return cls({name: _entry(*rest) for name, rest in named}, content["refuse"])


def remove(place: Path) -> None:
    """Remove a folder of any content."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)


def _make(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match entry:
        case bytes():
            path.write_bytes(entry)
        case Link(to):
            path.symlink_to(to)
        case Special("fifo"):
            os.mkfifo(path)
        case Special("folder"):
            path.mkdir()
        case Special("socket"):
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case Special("locked"):
            path.write_bytes(b"{}")
            path.chmod(0)
        case Special("sparse"):
            path.touch()
            os.truncate(path, 2**40)


def _told(entry: Entry) -> tuple[str, str]:
    match entry:
        case bytes():
            return "file", base64.b64encode(zlib.compress(entry)).decode()
        case Link(to):
            return "link", to
        case Special(kind):
            return "special", kind


def _entry(kind: str, value: str) -> Entry:
    match kind:
        case "file":
            return zlib.decompress(base64.b64decode(value))
        case "link":
            return Link(value)
        case _:
            return Special(value)
