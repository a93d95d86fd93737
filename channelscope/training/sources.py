"""Where each value of a recipe comes from: its file, and the paper, release or reason behind it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from channelscope.recipes import read_recipe_file
from channelscope.training.recipes import Recipe, Values, catalogue, list_lineage, walk_files

_DEFAULT = "default"  # the file of what no file sets
_REST, _INHERITED = "*", "inherited"


@dataclass(frozen=True)
class Sourced:
    """A setting of a recipe.

    Args:
        name: its name in full, ``optimizer.lr``.
        value: as the recipe has it.
        file: of the recipes, that sets it, as ``settings/cifar10-resnet18``; "default" for none.
        source: the paper, release or reason that it has this value.
    """

    name: str
    value: Any
    file: str
    source: str


def list_sources(name: str) -> list[Sourced]:
    """List the settings of a recipe that ships with the package, in its own order.

    >>> [each.source for each in list_sources("svhn-resnet18-cifs") if each.name == "optimizer.lr"]
    ['paper of CIFS']

    Raises:
        KeyError: for a value without a source: ``recipes/sources.toml`` has to name one.
    """
    values = {path: value for path, value in flatten(Recipe.named(name).values()) if path}
    files = _find_files(name)
    setting, sources = catalogue()[name][0], _read_sources()
    listed = []
    for path, value in values.items():
        if path != "method":
            file = files.get(path, _DEFAULT)
            source = sources[file].get(path) or sources[file][_REST]
            if file.startswith("settings/") and file != setting:
                source = sources[setting].get(_INHERITED, source)
            listed.append(Sourced(path, value, file, source))
    return listed


def flatten(values: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of nested sections with their names in full."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _find_files(name: str) -> dict[str, str]:
    """Map each setting that a file sets to the last one that does."""
    parts = catalogue()[name]
    files = {path: file for file, changes in walk_files(parts) for path, _ in flatten(changes)}
    for method in list_lineage(parts[1]):  # what a setting's file says for a method comes last
        prefix = f"for.{method}."
        of_method = {path: file for path, file in files.items() if path.startswith(prefix)}
        files |= {path.removeprefix(prefix): file for path, file in of_method.items()}
    return files


@cache
def _read_sources() -> dict[str, dict[str, str]]:
    return read_recipe_file("sources")
