"""Packages: which versions there are, whether they will do, and whether they load."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from typing import Any

from channelscope import __version__
from channelscope.doctor.contents import HERE
from channelscope.doctor.lines import Line

EXTRAS = ("autoattack", "notebooks", "tensorboard", "wandb")


def versions(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    """Tell the versions of all that is required."""
    yield Line("channelscope", f"{__version__}, in {HERE}")
    yield Line("python", f"{platform.python_version()}, {sys.executable}", _trouble_of_python())
    yield Line("system", f"{platform.platform()}, {platform.machine()}")
    if not (required := _required("")):
        yield Line(
            "packages",
            "not known",
            "channelscope runs without being installed: pip install channelscope.",
        )
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
        return Line(
            package, "not there", f"{package} is not there: pip install '{package}{wanted}'."
        )
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
        words.strip()
        for words, _, marker in halves
        if marker.strip() == (f'extra == "{extra}"' if extra else "")
    ]
    return [
        (found[1], found[2])
        for words in wanted
        if (found := re.fullmatch(r"([\w.-]+)\s*([^\[]*)", words))
    ]


def extras() -> Iterator[Line]:
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
        how = (
            f"missing {', '.join(missing)}: pip install 'channelscope[{extra}]'" if missing else ""
        )
        yield Line(extra, "; ".join(filter(None, (", ".join(there), how))))
