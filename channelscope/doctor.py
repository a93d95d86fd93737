"""What is here and what is amiss: versions, devices, threads, data, disks, memory and the package's own files.

It must tell when things are broken, so this module needs nothing but Python. What may fail to load is loaded by another
process, which may fail too.
"""

import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channelscope import __version__, zoo

HERE = Path(__file__).parent
# Packages with compiled parts, which may be there and yet not load; their modules' names where these differ.
COMPILED = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "torch", "torchvision")
MODULES = {"scikit-learn": "sklearn"}
EXTRAS = ("autoattack", "notebooks", "tensorboard", "wandb")
PATIENCE = 120  # seconds for loading them all: a cold disk takes half of it
LEAST_DISK = 2**30  # bytes: a sweep's checkpoints and a comparison's arrays fit
LEAST_MEMORY = 2 * 2**30  # bytes: torch and a batch of attacked images fit
LEAST_SHARED = 2**27  # bytes: processes that decode images (--stream) hand them over there
DRIVER = Path("/proc/driver/nvidia/version")
CGROUP = Path("/sys/fs/cgroup")
# What of the downloaded data sets lies in their folder: data.standard knows it too, but is not there without torch.
PLACES = {
    "cifar10": "cifar-10-batches-py",
    "svhn": "test_32x32.mat",
    "fashion-mnist": "FashionMNIST/raw",
    "mnist": "MNIST/raw",
}


@dataclass(frozen=True)
class Line:
    """One thing that was looked at, what there is of it, and what is amiss with it and to be done, if anything."""

    name: str
    found: str
    trouble: str = ""


@dataclass(frozen=True)
class Examination:
    """What was found: title of a section -> its lines, in a fixed order."""

    sections: dict[str, list[Line]]

    @property
    def troubles(self) -> list[str]:
        """What is amiss, a sentence each, and what to do."""
        return [line.trouble for lines in self.sections.values() for line in lines if line.trouble]

    def text(self) -> str:
        """Lay it out for people; the home folder, and so the user's name, is written ~."""
        parts = []
        for title, lines in self.sections.items():
            parts.append(f"{title}\n" + "\n".join(f"  {line.name:<18} {line.found}".rstrip() for line in lines))
        count = len(self.troubles)
        head = {0: "nothing is amiss", 1: "1 thing is amiss"}.get(count, f"{count} things are amiss")
        parts.append("\n".join([head, *(f"  - {trouble}" for trouble in self.troubles)]))
        return without_home("\n\n".join(parts))


def examine(data_root: Path) -> Examination:
    """Look at everything; what cannot be looked at is a trouble too, and never an error.

    Args:
        data_root: the folder of the downloaded data sets.
    """
    loaded = load_apart()
    looks: dict[str, Callable[[], Iterator[Line]]] = {
        "versions": lambda: _versions(loaded),
        "extras": _extras,
        "devices": lambda: _devices(loaded),
        "threads": lambda: _threads(loaded),
        "data": lambda: _data(data_root),
        "disks": lambda: _disks(data_root),
        "memory": _memory,
        "package": _package,
    }
    return Examination({title: _looked(look) for title, look in looks.items()})


def _looked(look: Callable[[], Iterator[Line]]) -> list[Line]:
    lines: list[Line] = []
    try:
        lines.extend(look())
    except Exception as error:
        reason = _reason(error)
        lines.append(Line("?", f"cannot be looked at: {reason}", f"Doctor met what it does not know: {reason}."))
    return lines


def without_home(text: str) -> str:
    """Write the home folder as ~, wherever it stands in a text."""
    home = os.path.expanduser("~").rstrip("/\\")  # noqa: PTH111  # Path.home() raises where there is none
    return text.replace(home, "~") if len(home) > 1 else text


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": .")


# ------------------------------------------------------------------ versions


def _versions(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    yield Line("channelscope", f"{__version__}, in {HERE}")
    yield Line("python", f"{platform.python_version()}, {sys.executable}", _trouble_of_python())
    yield Line("system", f"{platform.platform()}, {platform.machine()}")
    if not (required := _required("")):
        yield Line("packages", "not known", "channelscope runs without being installed: pip install channelscope.")
    for package, wanted in required:
        yield _version(package, wanted, loaded.get(package, {}))


def _trouble_of_python() -> str:
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return ""
    return f"Python {platform.python_version()} is not supported: use Python 3.11, 3.12 or 3.13."


def _version(package: str, wanted: str, known: dict[str, Any]) -> Line:
    """Tell a required package's version, whether it is one that will do, and whether it loads."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Line(package, "not there", f"{package} is not there: pip install '{package}{wanted}'.")
    if not _suits(version, wanted):
        trouble = f"{package} {version} is installed, and {wanted} is needed: pip install '{package}{wanted}'."
        return Line(package, f"{version} ({wanted} is needed)", trouble)
    if failure := known.get("failure"):
        trouble = f"{package} {version} does not load ({failure}): pip install --force-reinstall '{package}{wanted}'."
        return Line(package, f"{version}, does not load: {failure}", trouble)
    return Line(package, version)


def _suits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # matplotlib brings it
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def _required(extra: str) -> list[tuple[str, str]]:
    """List what the installed package asks for, or one of its extras: name and versions, as in ("torch", ">=2.6")."""
    try:
        lines = importlib.metadata.requires("channelscope") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    halves = [line.partition(";") for line in lines]
    wanted = [
        words.strip() for words, _, marker in halves if marker.strip() == (f'extra == "{extra}"' if extra else "")
    ]
    return [(found[1], found[2]) for words in wanted if (found := re.fullmatch(r"([\w.-]+)\s*([^\[]*)", words))]


def _extras() -> Iterator[Line]:
    """Tell which optional parts are there; a missing one is no trouble."""
    for extra in EXTRAS:
        there, missing = [], []
        for package, wanted in _required(extra):
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
                continue
            there.append(f"{package} {version}")
            if not _suits(version, wanted):
                missing.append(f"{package}{wanted}")
        how = f"missing {', '.join(missing)}: pip install 'channelscope[{extra}]'" if missing else ""
        yield Line(extra, "; ".join(filter(None, (", ".join(there), how))))


# ------------------------------------------------------------------ loading, in a process of its own


def load_apart() -> dict[str, dict[str, Any]]:
    """Load the compiled packages in another process, which may crash or hang: package -> what is known of it.

    Of every package `failure` is known, empty where it loads; of torch also what devices and threads it finds.
    """
    command = [sys.executable, "-P", "-m", "channelscope.doctor", *COMPILED]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    }  # finds what we find
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )
        said, ending = done.stdout, _ending(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        said, ending = error.stdout or b"", f"no answer in {PATIENCE} seconds"
    except OSError as error:
        said, ending = b"", _reason(error)
    known: dict[str, dict[str, Any]] = {}
    for line in said.decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition("\t")
        if name in COMPILED and rest.startswith("{"):  # packages may talk as well
            known[name] = json.loads(rest)
    if missing := [name for name in COMPILED if name not in known]:
        known[missing[0]] = {"failure": ending}  # those behind it were not tried
    return known


def _ending(code: int, words: bytes) -> str:
    status = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    last = (words.decode("utf-8", "replace").strip().splitlines() or [""])[-1].strip()[:300]
    return f"the process that loads it ended with {status}" + (f": {last}" if last else "")


def _load(package: str) -> dict[str, Any]:
    """Load a package, here; and ask torch what it finds."""
    try:
        importlib.import_module(MODULES.get(package, package))
        return {"failure": ""} | (_ask_torch() if package == "torch" else {})
    except Exception as error:
        return {"failure": _reason(error)}


def _ask_torch() -> dict[str, Any]:
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "built for": _built_for(torch.version.cuda, torch.version.hip),
        "cuda": [_ask_device(torch, number) for number in range(torch.cuda.device_count())] if cuda else [],
        "mps": torch.backends.mps.is_available(),
        "warnings": [" ".join(str(warning.message).split())[:300] for warning in caught],
    }


def _built_for(cuda: str | None, rocm: str | None) -> str:
    return f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "the CPU alone"


def _ask_device(torch: Any, number: int) -> dict[str, Any]:
    """Tell a GPU's name and memory, and compute something on it."""
    device = f"cuda:{number}"
    try:
        known = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        answer = float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum())
        failure = "" if answer == 512 else f"it computes {answer} where 512 is right"
        return {"name": known.name, "free": free, "total": total, "failure": failure}
    except Exception as error:
        return {"name": device, "free": 0, "total": 0, "failure": _reason(error)}


# ------------------------------------------------------------------ devices, threads


def _devices(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    yield Line("cpu", f"{_processor()}, {_usable()} of {os.cpu_count() or '?'} cores usable")
    torch = loaded.get("torch", {"failure": "not tried"})
    if torch["failure"]:
        yield Line("gpu", "not known, as torch does not load")
        return
    for number, device in enumerate(torch["cuda"]):
        memory = f"{device['name']}, {_size(device['free'])} of {_size(device['total'])} free"
        failure = device["failure"]
        trouble = f"cuda:{number} cannot be used ({failure}): try another torch, or --device cpu." if failure else ""
        yield Line(f"cuda:{number}", f"{memory}, {torch['built for']}" + (f", {failure}" if failure else ""), trouble)
    if not torch["cuda"]:
        yield _no_cuda(torch)
    yield Line("mps", "available: --device mps" if torch["mps"] else "none")


def _no_cuda(torch: dict[str, Any]) -> Line:
    """Say why there is no GPU to compute on: none in the machine, or one that torch cannot use."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return Line("cuda", "hidden by CUDA_VISIBLE_DEVICES")
    if not DRIVER.exists() and not torch["warnings"]:
        return Line("cuda", f"no GPU (torch is built for {torch['built for']})")
    words = torch["warnings"][0] if torch["warnings"] else "there is a driver of NVIDIA's"
    return Line(
        "cuda",
        f"none that torch can use: {words}",
        f"torch, built for {torch['built for']}, finds no GPU that it can use ({words}): update the driver, or install "
        "the torch that suits it, as https://pytorch.org has it.",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _usable() -> int:
    """Count the processors that this process may use; a container may be given the time of fewer."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        given, period = map(int, (CGROUP / "cpu.max").read_text("ascii").split())
    except (OSError, ValueError):
        return count
    return min(count, max(1, math.ceil(given / period)))


def _threads(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    threads, cores = loaded.get("torch", {}).get("threads"), _usable()
    trouble = ""
    if threads and threads > cores:
        trouble = f"torch uses {threads} threads on {cores} cores, which is slow: set OMP_NUM_THREADS={cores}."
    yield Line("torch", "not known" if threads is None else f"{threads}, for {cores} cores", trouble)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name)
        number = value is None or value.replace(",", "").isdecimal()
        yield Line(
            name,
            "not set" if value is None else value if number else "set, to what is no number",
            "" if number else f"{name} is set to what is no number: unset it, or set it to {cores}.",
        )


# ------------------------------------------------------------------ data, disks, memory


def _data(root: Path) -> Iterator[Line]:
    """Tell where data sets are looked for, and which are there; a missing one is no trouble."""
    yield Line("digits", "embedded, needs no file")
    root = root.expanduser().absolute()
    found, trouble = _folder(root, "not there")
    yield Line("--data-root", f"{root}: {found}", trouble)
    for name, place in PLACES.items() if found == "there" else ():
        yield Line(f"  {name}", *_folder(root / place, "not there: --download fetches it"))
    value = os.environ.get("CHANNELSCOPE_DATA")
    if value is None:
        yield Line("CHANNELSCOPE_DATA", "not set; only tests and benchmarks on image folders need it")
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
        return f"cannot be read: {reason}", f"{path} cannot be read ({reason}): give yourself the right to read it."
    return "there", ""


def _disks(root: Path) -> Iterator[Line]:
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
        return Line(name, f"{place}: cannot be written to: {reason}", _unwritable(name, place, reason))
    found = f"{_size(free)} free, {folder}"
    if free < least:
        return Line(name, found, f"Only {_size(free)} are free in {folder} ({name}): free {_size(least)} or more.")
    return Line(name, found)


def _unwritable(name: str, folder: Path, reason: str) -> str:
    what = {
        "results (here)": "start channelscope in another folder or give --out another place",
        "--data-root": "name another folder with --data-root",
        "temporary files": "set TMPDIR to a folder that can",
        "matplotlib's cache": "set MPLCONFIGDIR to a folder that can",
    }.get(name, "ask who looks after the machine")
    return f"{folder} ({name}) cannot be written to ({reason}): {what}."


def _memory() -> Iterator[Line]:
    free, total = _free_memory()
    if not total:
        yield Line("memory", "not known on this system")
        return
    few = (
        f"Only {_size(free)} of memory are free: end other programs, or use a smaller --batch-size and fewer --images."
    )
    yield Line("memory", f"{_size(free)} of {_size(total)} free", few if free < LEAST_MEMORY else "")


def _free_memory() -> tuple[int, int]:
    """Read what is free, and all there is, of the machine or of the part that this process is given; 0: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        free, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0
    try:  # a container's limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text("ascii")) for name in ("max", "current"))
    except (OSError, ValueError):
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


# ------------------------------------------------------------------ the package's own files


def _package() -> Iterator[Line]:
    """Tell whether what ships beside the code is there and whole."""
    for title, names, intact in (
        ("zoo", [f"zoo/{name}.pt" for name in zoo.NAMES], _is_archive),
        ("recipes", _names("recipes", "*.toml"), _is_toml),
        ("templates", ["templates/report.html.j2", "templates/report.css", "templates/report.js"], _is_text),
    ):
        damaged = [name for name in names if not intact(HERE / name)]
        found = f"{len(names) - len(damaged)} of {len(names)} files intact"
        trouble = f"{', '.join(damaged) or title} is missing or damaged: install channelscope again."
        yield Line(title, found, trouble if damaged or not names else "")


def _names(folder: str, pattern: str) -> list[str]:
    return sorted(path.relative_to(HERE).as_posix() for path in (HERE / folder).rglob(pattern))


def _is_archive(path: Path) -> bool:
    """Tell whether all parts of a network's file have the checksums that it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def _is_toml(path: Path) -> bool:
    try:
        return bool(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return False


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        sys.stdout.write(f"{wanted}\t{json.dumps(_load(wanted))}\n")
        sys.stdout.flush()
