"""What is installed and present on this machine, what is amiss, and how to mend it."""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from channelscope import __version__

HERE = Path(__file__).parent
PATIENCE = 120  # seconds for importing all packages: a cold disk takes half of it
COMPILED = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "torch", "torchvision")
EXTRAS = ("autoattack", "notebooks", "tensorboard", "wandb")
FILES = {
    "zoo": [f"weights/zoo/cifar10-{name}.pt" for name in ("standard", "at", "cas", "cifs")],
    "recipes": sorted(str(path.relative_to(HERE)) for path in HERE.glob("recipes/**/*.toml")),
    "templates": [f"templates/report.{ending}" for ending in ("html.j2", "css", "js")],
}
# What of each downloaded data set lies in the data folder.
DATA = {
    "cifar10": "cifar-10-batches-py",
    "svhn": "test_32x32.mat",
    "fashion-mnist": "FashionMNIST/raw",
    "mnist": "MNIST/raw",
}
_PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name.replace("scikit-learn", "sklearn"))
    print(name, flush=True)
import torch
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
sums = [torch.ones(8, device=f"cuda:{number}").sum().item() for number in range(len(gpus))]
mps = torch.backends.mps.is_available()
print(json.dumps({"gpus": gpus, "mps": mps, "threads": torch.get_num_threads()}))
"""


class Finding(NamedTuple):
    """One thing that was examined: what there is of it, and what is amiss and how to mend it."""

    name: str
    text: str
    problem: str = ""


def examine(data_root: Path) -> list[Finding]:
    """Examine packages, devices, data and our own files; ``data_root`` holds downloaded data sets.

    It works where packages are broken: another process imports them, which may crash or hang.
    """
    facts = _probe_packages()
    findings = [Finding("channelscope", f"{__version__}, in {HERE}")]
    try:
        findings += _check_packages(facts)
    except ModuleNotFoundError as error:  # the package's metadata, or packaging is not there
        findings.append(Finding("packages", "unknown", f"{error}: pip install channelscope."))
    return [*findings, *_check_devices(facts), *_check_data(data_root), *_check_files()]


def format_findings(findings: list[Finding]) -> str:
    """Format findings for people; the home folder, and so the user's name, becomes ~."""
    problems = [finding.problem for finding in findings if finding.problem]
    lines = [f"{finding.name:<18} {finding.text}" for finding in findings]
    lines += ["", f"problems: {len(problems) or 'none'}", *(f"  - {each}" for each in problems)]
    home = os.path.expanduser("~").rstrip("/\\")  # noqa: PTH111  # Path.home() raises without one
    return "\n".join(lines).replace(home if len(home) > 1 else "\0", "~")


def _probe_packages() -> dict[str, Any]:
    """Import packages elsewhere; return which were imported, why not all, and torch's devices."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)  # to find what we find
    command = [sys.executable, "-P", "-c", _PROBE, *COMPILED]
    environment = os.environ | {"PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, input=b"", env=environment, capture_output=True, timeout=PATIENCE
        )
        output, status = done.stdout, done.returncode
        ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        failure = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or ending
    except subprocess.TimeoutExpired as error:
        output, status, failure = error.stdout or b"", 1, f"no answer in {PATIENCE} seconds"
    lines = output.decode("utf-8", "replace").splitlines()
    facts = {} if status else json.loads(lines[-1])
    return facts | {"failure": failure[:300], "imported": set(lines) & set(COMPILED)}


def _check_packages(facts: dict[str, Any]) -> Iterator[Finding]:
    from packaging.requirements import Requirement  # which matplotlib brings

    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    python = f"{platform.python_version()}, {sys.executable}"
    yield Finding("python", python, "" if supported else "Use Python 3.11, 3.12 or 3.13.")
    yield Finding("system", platform.platform())
    broken = next((name for name in COMPILED if name not in facts["imported"]), None)
    for requirement in map(Requirement, importlib.metadata.requires("channelscope") or []):
        name, marker = requirement.name, requirement.marker
        extras = [extra for extra in EXTRAS if marker and marker.evaluate({"extra": extra})]
        if marker and not extras:
            continue
        target = f"channelscope[{extras[0]}]" if extras else f"{name}{requirement.specifier}"
        install = f"pip install{' --force-reinstall' * (name == broken)} '{target}'"
        try:
            text = version = importlib.metadata.version(name)
            if not requirement.specifier.contains(version, prereleases=True):
                text = f"{version}, but {requirement.specifier} is needed: {install}"
            elif name == broken:
                text = f"{version}, cannot be imported ({facts['failure']}): {install}"
        except importlib.metadata.PackageNotFoundError:
            text, version = f"missing: {install}", ""
        yield Finding(name, text, "" if text == version or extras else f"{name} {text}.")


def _check_devices(facts: dict[str, Any]) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    yield Finding("cpu", f"{cores} of {os.cpu_count()} cores usable")
    if "gpus" not in facts:
        problem = f"torch fails on its devices ({facts['failure']}): use --device cpu."
        yield Finding("gpu", "unknown", problem if set(COMPILED) == facts["imported"] else "")
        return
    slow = f"torch uses more threads than there are cores: set OMP_NUM_THREADS={cores}."
    yield Finding("threads", str(facts["threads"]), slow if facts["threads"] > cores else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    unused = Path("/proc/driver/nvidia/version").exists() and not facts["gpus"] and not hidden
    problem = "torch finds no GPU, though NVIDIA's driver is there: update the driver or torch."
    yield Finding("cuda", ", ".join(facts["gpus"]) or "none", problem if unused else "")
    yield Finding("mps", "available" if facts["mps"] else "none")


def _check_data(root: Path) -> Iterator[Finding]:
    root = root.expanduser().absolute()
    present = [name for name, place in DATA.items() if (root / place).exists()]
    text = f"{root}: {', '.join(present) or 'nothing yet (--download fetches data sets)'}"
    unreadable = root.exists() and not os.access(root, os.R_OK | os.X_OK)
    problem = f"{root} may not be read: change its permissions, or name another --data-root."
    yield Finding("--data-root", text, problem if unreadable else "")
    if folder := os.environ.get("CHANNELSCOPE_DATA"):
        problem = f"CHANNELSCOPE_DATA names {folder}, which is no folder: unset or correct it."
        yield Finding("CHANNELSCOPE_DATA", folder, "" if Path(folder).is_dir() else problem)


def _check_files() -> Iterator[Finding]:
    for title, names in FILES.items():
        damaged = [name for name in names if not _is_intact(HERE / name)]
        text = f"{len(names) - len(damaged)} of {len(names)} files intact"
        problem = f"{', '.join(damaged) or title} missing or damaged: install channelscope again."
        yield Finding(title, text, problem if damaged or not names else "")


def _is_intact(path: Path) -> bool:
    try:
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        text = path.read_text("utf-8")
        return bool(tomllib.loads(text) if path.suffix == ".toml" else text)
    except Exception:
        return False
