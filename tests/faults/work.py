"""The commands whose runs are disturbed, as small as possible, and how to read their results."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

Outcome = dict[str, Any]  # file -> what it holds, but for what the clock says

_DATA = ("--data", "npz:../digits.npz", "--device", "cpu", "-q")
_MODELS = ("--models", "../cifs.pt")
_SMALL = ("--arch", "resnet10", "--width", "1", "--batch-size", "8", "--set", "attack.steps=2")
_CLOCK = {"seconds", "created"}


@dataclass(frozen=True)
class Command:
    """A command, what it writes, and whether it goes on after a kill where it was or begins anew.

    Args:
        words: the command, run in a folder beside the data and the networks.
        out: the file or folder that it writes.
        earlier: the command of another result that may lie there before; empty where none may.
    """

    words: tuple[str, ...]
    out: str
    earlier: tuple[str, ...] = ()


def _measuring(name: str, out: str, *words: str) -> Command:
    command = (name, *_MODELS, *_DATA, "--out", out, *words)
    return Command(command, out, (*command, "--seed", "1"))


TRAIN = Command(
    ("train", "--method", "cifs", *_DATA, *_SMALL, "--epochs", "3", "--out", "net.pt", "--resume"),
    "net.pt",
)
EVALUATE = _measuring(
    "evaluate", "e", "--attacks", "fgsm", "pgd-3", "--checks", "0", "--eps", "0.1",
    "--batch-size", "4", "--save-adversarial",
)  # fmt: skip
COMPARE = _measuring("compare", "c", "--attack", "pgd-2", "--attacks", "fgsm", "--replicates", "20")
SWEEP = Command(
    (
        "sweep",
        "--vary",
        "gates.beta=1,2",
        *_DATA,
        *_SMALL,
        "--epochs",
        "1",
        "--attack",
        "fgsm",
        "--out",
        "s",
    ),
    "s",
)
INTERVENE = _measuring(
    "intervene",
    "i",
    "--attack",
    "fgsm",
    "--replicates",
    "20",
    "--fractions",
    "0.5",
    "--random",
    "1",
)
RELEVANCE = _measuring("relevance", "r", "--scorers", "weights", "gradient", "--replicates", "20")
COMMANDS = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "compare": COMPARE,
    "sweep": SWEEP,
    "intervene": INTERVENE,
    "relevance": RELEVANCE,
}


def outcome(folder: Path) -> Outcome:
    """Read all files of a folder, hidden ones too, without clock times and what depends on them."""
    found: Outcome = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = None if path.is_dir() else _reader(path)(path.read_bytes())
    return found


def _reader(path: Path) -> Callable[[bytes], Any]:
    if path.name == "SHA256SUMS":  # these files, and so their digests, have times
        return lambda content: [
            line
            for line in content.splitlines()
            if not line.endswith((b"meta.json", b"training.csv", b"sweep.csv"))
        ]
    return {
        ".json": lambda content: timeless(json.loads(content)),
        ".csv": _table,
        ".pt": _checkpoint,
        ".partial": _checkpoint,
        ".npz": _archive,
        ".html": partial(re.sub, rb"20\d\d-\d\d-\d\dT[\d:+]*", b"created"),
    }.get(path.suffix, bytes)


def timeless(value: Any) -> Any:
    """Leave out what the clock says."""
    if isinstance(value, dict):
        return {
            name: timeless(item) for name, item in value.items() if name not in (*_CLOCK, "digest")
        }
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def _table(content: bytes) -> list[dict[str, str]]:
    return [timeless(row) for row in csv.DictReader(io.StringIO(content.decode()))]


def _checkpoint(content: bytes) -> Any:
    return _plain(timeless(torch.load(io.BytesIO(content), weights_only=True)))


def _plain(value: Any) -> Any:
    """Make tensors comparable, to the bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _archive(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def different(one: Outcome, other: Outcome) -> list[str]:
    """Name the files in which two results differ."""
    return sorted(
        name for name in {*one, *other} if one.get(name, "missing") != other.get(name, "missing")
    )
