"""The package's own files: whether what ships beside the code is there and whole."""

import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from channelscope.doctor.lines import Line
from channelscope.weights import zoo

HERE = Path(zoo.__file__).parents[2]


def package() -> Iterator[Line]:
    """Tell whether what ships beside the code is there and whole."""
    for title, names, intact in (
        ("zoo", [f"zoo/{name}.pt" for name in zoo.NAMES], _is_archive),
        ("recipes", _names("recipes", "*.toml"), _is_toml),
        (
            "templates",
            ["templates/report.html.j2", "templates/report.css", "templates/report.js"],
            _is_text,
        ),
    ):
        damaged = [name for name in names if not intact(HERE / name)]
        found = f"{len(names) - len(damaged)} of {len(names)} files intact"
        trouble = (
            f"{', '.join(damaged) or title} is missing or damaged: install channelscope again."
        )
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
