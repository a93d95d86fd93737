"""Data folders, disks and memory."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from channelscope.doctor import devices
from channelscope.doctor.lines import Line, size_of

LEAST_DISK = 2**30  # bytes: a sweep's checkpoints and a comparison's arrays fit
LEAST_MEMORY = 2 * 2**30  # bytes: torch and a batch of attacked images fit
LEAST_SHARED = 2**27  # bytes: processes that decode images (--stream) hand them over there
# What of the downloaded data sets lies in their folder: data.standard knows it too, but is not there without torch.
PLACES = {
    "cifar10": "cifar-10-batches-py",
    "svhn": "test_32x32.mat",
    "fashion-mnist": "FashionMNIST/raw",
    "mnist": "MNIST/raw",
}


def data(root: Path) -> Iterator[Line]:
    """Tell where data sets are looked for, and which are there; a missing one is no trouble."""
    yield Line("digits", "embedded, needs no file")
    root = root.expanduser().absolute()
    found, trouble = _folder(root, "not there")
    yield Line("--data-root", f"{root}: {found}", trouble)
    for name, place in PLACES.items() if found == "there" else ():
        yield Line(f"  {name}", *_folder(root / place, "not there: --download fetches it"))
    value = os.environ.get("CHANNELSCOPE_DATA")
    if value is None:
        yield Line(
            "CHANNELSCOPE_DATA", "not set; only tests and benchmarks on image folders need it"
        )
        return
    found, trouble = _folder(Path(value), "not there")
    if not trouble and found != "there":
        trouble = f"CHANNELSCOPE_DATA names {value}, which is not there: set it to the folder that holds cifar10-jpeg."
    yield Line("CHANNELSCOPE_DATA", f"{value}: {found}", trouble)


def _folder(path: Path, absent: str) -> tuple[str, str]:
    """Say whether a file or folder is there and can be read, and what is amiss."""
    try:
        if not path.exists():
            return absent, ""
        next(path.iterdir(), None) if path.is_dir() else path.open("rb").close()
    except OSError as error:
        reason = error.strerror or str(error)
        return (
            f"cannot be read: {reason}",
            f"{path} cannot be read ({reason}): give yourself the right to read it.",
        )
    return "there", ""


def disks(root: Path) -> Iterator[Line]:
    """Tell the free space of the places that are written to, and write something there."""
    places = {
        "results (here)": Path(),
        "--data-root": root.expanduser(),
        "temporary files": Path(tempfile.gettempdir()),
        "matplotlib's cache": _cache(),
    }
    for name, place in places.items():
        yield _disk(name, place, LEAST_DISK if name != "matplotlib's cache" else 0)
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield _disk("shared memory", shared, LEAST_SHARED)


def _cache() -> Path:
    named = os.environ.get("MPLCONFIGDIR") or os.environ.get("XDG_CACHE_HOME")
    return Path(named or "~/.cache").expanduser()


def _disk(name: str, place: Path, least: int) -> Line:
    try:
        place = place.absolute()
        folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"channelscope")
    except OSError as error:
        reason = error.strerror or str(error)
        return Line(
            name, f"{place}: cannot be written to: {reason}", _unwritable(name, place, reason)
        )
    found = f"{size_of(free)} free, {folder}"
    if free < least:
        return Line(
            name,
            found,
            f"Only {size_of(free)} are free in {folder} ({name}): free {size_of(least)} or more.",
        )
    return Line(name, found)


def _unwritable(name: str, folder: Path, reason: str) -> str:
    what = {
        "results (here)": "start channelscope in another folder or give --out another place",
        "--data-root": "name another folder with --data-root",
        "temporary files": "set TMPDIR to a folder that can",
        "matplotlib's cache": "set MPLCONFIGDIR to a folder that can",
    }.get(name, "ask who looks after the machine")
    return f"{folder} ({name}) cannot be written to ({reason}): {what}."


def memory() -> Iterator[Line]:
    """Tell how much memory is free."""
    free, total = _free_memory()
    if not total:
        yield Line("memory", "not known on this system")
        return
    advice = "end other programs, or use a smaller --batch-size and fewer --images"
    few = f"Only {size_of(free)} of memory are free: {advice}." if free < LEAST_MEMORY else ""
    yield Line("memory", f"{size_of(free)} of {size_of(total)} free", few)


def _free_memory() -> tuple[int, int]:
    """Read what is free, and all there is, of the machine or of the part that this process is given; 0: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
        }
        free, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0
    try:  # a container's limit
        limit, used = (
            int((devices.CGROUP / f"memory.{name}").read_text("ascii"))
            for name in ("max", "current")
        )
    except (OSError, ValueError):
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)
