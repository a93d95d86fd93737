"""The recipes that ship with the package: a file for each setting and each method, and ablations.

A new method is one file, ``methods/NAME.toml``: its name is the file's, and ``summary`` its help.
This module imports no torch, so that the command line can list the recipes at once.
"""

import tomllib
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def read_recipe_file(name: str) -> dict[str, Any]:
    """Read ``recipes/NAME.toml``, NAME being for example "methods/at"."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text("utf-8"))


def _read_or_skip(name: str) -> dict[str, Any]:
    """Read a file; nothing where it is damaged, so that ``channelscope doctor`` can report it."""
    try:
        return read_recipe_file(name)
    except (OSError, ValueError):
        return {}


def _list_files(folder: str) -> list[str]:
    return sorted(path.stem for path in (_FOLDER / folder).glob("*.toml"))


def _list_methods() -> dict[str, str]:
    """Map methods to their summaries: first those that extend no other, last combinations."""
    files = {name: _read_or_skip(f"methods/{name}") for name in _list_files("methods")}
    names = sorted(files, key=lambda name: (len(files[name].get("extends", ())), name))
    return {name: str(files[name].get("summary", "")) for name in names}


METHODS = _list_methods()
SETTINGS = tuple(_list_files("settings"))
ABLATIONS: dict[str, dict[str, list[Any]]] = _read_or_skip("sweeps")
"""The settings that each ablation varies, with their values."""
