"""Recipes: how a network is trained, composed of a setting's file and a method's file.

A recipe is named SETTING-METHOD, as ``cifar10-resnet18-cifs``, or SETTING-METHOD-fast. A file may
extend others, whose values it changes.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Self, get_args

from channelscope.errors import UserError, suggest
from channelscope.reading import parse_toml, read_text
from channelscope.recipes import METHODS, SETTINGS, read_recipe_file
from channelscope.training.settings import (
    Attack,
    Augmentation,
    Averaging,
    Changes,
    Engine,
    Gates,
    Hbar,
    Init,
    Loss,
    Model,
    Optimizer,
    Schedule,
    Section,
    shorten,
)

_DEFAULT_SETTING = "cifar10-resnet18"
_QUICK = (  # fast as they are
    "digits-resnet18",
    *(f"cifar10-resnet18-{name}" for name in ("small", "w16", "w32", "overfit")),
)
_IMPOSSIBLE = (
    # EAS gates the block before the last, and this network has only one in its last stage.
    ("fashion-mnist-resnet10", "eas"),
    # Their authors' places, in residual networks, are not in this one.
    ("cifar10-vgg16", "eas"),
    ("cifar10-vgg16", "fsr"),
    ("cifar10-vgg16", "kap"),
    ("cifar10-vgg16", "hbar"),
)
_L2_EPS = 0.5  # the usual radius for CIFAR-10; a recipe's radius is of the L-inf norm

Values = dict[str, Any]  # plain values, by section
_Path = tuple[str, ...]  # of a setting: ("optimizer", "lr"), ("gates", "options", "k")


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """How a network is trained; ``settings`` describes the sections.

    Args:
        method: its short name in comparisons (standard, at, cifs, trades, ...); None for your own.
        before: what is otherwise in a training that comes before, a first stage. This one begins
            with the weights that it saves, gates included, and with a fresh optimiser.
        init: a network whose weights the (first) training begins with; None for random weights.
        hbar: the penalty of HBaR; None for none.
    """

    method: str | None = None
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    data: Augmentation
    attack: Attack
    loss: Loss
    gates: Gates = field(default_factory=Gates)
    averaging: Averaging = field(default_factory=Averaging)
    engine: Engine = field(default_factory=Engine)
    init: Init | None = None
    before: Changes | None = None
    hbar: Hbar | None = None

    @classmethod
    def named(cls, name: str) -> Self:
        """Read a recipe that ships with the package, or a ``.toml`` file of the same form.

        Raises:
            UserError: for an unknown name, and a file that is missing or no recipe.
        """
        values = _read_file(Path(name)) if name.endswith(".toml") else _read_shipped(name)
        return cls.from_values(values)

    @classmethod
    def suited_to(cls, data_name: str, method: str = "at") -> Self:
        """Read a method's recipe for a data set: that of its own setting, else that of CIFAR-10."""
        prefix = f"{data_name}-"
        setting = next((name for name in SETTINGS if name.startswith(prefix)), _DEFAULT_SETTING)
        return cls.named(f"{setting}-{method}")

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise UserError(
                f"A recipe's method is one of {', '.join(METHODS)}, not {shorten(self.method)}: "
                "choose one, or leave it out."
            )
        _ = self.first_stage  # refuses changes that are none

    @property
    def first_stage(self) -> Self | None:
        """The training that comes before this one, if there is one; it is no method of its own."""
        if self.before is None:
            return None
        values = {name: value for name, value in self.values().items() if name != "method"}
        changes = values.pop("before")
        try:
            return type(self).from_values(_merge(values, changes))
        except UserError as error:
            raise UserError(f"The stage before: {error}") from error

    def values(self) -> Values:
        """Return the recipe as plain values, by section."""
        return dataclasses.asdict(self, dict_factory=_to_plain)

    def override(self, /, **changes: Any) -> Self:
        """Change the settings that are not None; a new eps scales the attack's step unless given.

        A setting is named in full, ``optimizer.lr`` (or ``optimizer_lr``), or by its last word
        alone where only one setting ends with it: ``lr``.

        Raises:
            UserError: for an unknown or ambiguous name, or a value out of range.
        """
        values = self.values()
        paths = _list_settings(values)
        changed = {
            _find_setting(name, paths): value
            for name, value in changes.items()
            if value is not None
        }
        for (*sections, last), value in changed.items():
            table = values
            for section in sections:
                table = table.setdefault(section, {})
            table[last] = value
        new = type(self).from_values(values)
        if ("attack", "eps") in changed and ("attack", "step") not in changed and self.attack.eps:
            step = self.attack.step * new.attack.eps / self.attack.eps
            new = dataclasses.replace(new, attack=dataclasses.replace(new.attack, step=step))
        return new

    def toml(self) -> str:
        """Write the recipe as a file that can be changed and trained from."""
        return "\n".join(_write_toml(self.values()))

    def lr_at(self, epoch: float) -> float:
        """Return the learning rate at a moment, in epochs from 0."""
        return self.optimizer.lr * self.schedule.factor(epoch)


def find_recipe(recipe: str | Recipe, data_name: str) -> Recipe:
    """Find the recipe that a name, a file or a method means for a data set.

    Raises:
        UserError: where there is none.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in METHODS:
        return Recipe.suited_to(data_name, recipe)
    return Recipe.named(recipe)


def default_eps(data_name: str, norm: str = "inf") -> float:
    """Return the default radius of attacks: that of the data set's recipe; 0.5 in the L2 norm."""
    return Recipe.suited_to(data_name).attack.eps if norm == "inf" else _L2_EPS


@cache
def catalogue() -> dict[str, tuple[str, ...]]:
    """List the recipes that ship with the package: name -> setting and method, and "fast" or not.

    >>> catalogue()["svhn-resnet18-at-fast"]
    ('settings/svhn-resnet18', 'methods/at', 'fast')
    """
    files: dict[str, tuple[str, ...]] = {}
    for setting, method in product(SETTINGS, METHODS):
        if (setting, method) not in _IMPOSSIBLE:
            name, parts = f"{setting}-{method}", (f"settings/{setting}", f"methods/{method}")
            files[name] = parts
            if setting not in _QUICK:
                files[f"{name}-fast"] = (*parts, "fast")
    return files


def summary(name: str) -> str:
    """Return the summary of a recipe's method, for a recipe that ships with the package."""
    return METHODS[catalogue()[name][1].removeprefix("methods/")]


def find_name(values: Values) -> str:
    """Return the name of the shipped recipe with these values, or "your own"."""
    return next((name for name in catalogue() if Recipe.named(name).values() == values), "your own")


def parse_value(text: str) -> Any:
    """Read a value as TOML has it (0.1, true, [1, 2], "softmax"); anything else is a plain word."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _read_shipped(name: str) -> Values:
    """Read the files of a recipe that ships with the package."""
    recipes = catalogue()
    if name not in recipes:
        raise UserError(
            f"There is no recipe {name!r}.{suggest(name, [*METHODS, *recipes])} Choose a method "
            f"({', '.join(METHODS)}), a recipe that 'channelscope recipes' lists, or your own file "
            "whose name ends in .toml."
        )
    values = _compose(recipes[name])
    # What a setting's file says for a method holds for those that extend the method as well.
    of_methods = values.pop("for", {})
    for method in list_lineage(recipes[name][1]):
        values = _merge(values, of_methods.get(method, {}))
    return values | {"method": recipes[name][1].removeprefix("methods/")}


def list_lineage(file: str) -> list[str]:
    """List a method by its file, and the methods that it extends, these first."""
    return list(dict.fromkeys(name.removeprefix("methods/") for name, _ in walk_files([file])))


def _read_file(file: Path) -> Values:
    """Read a user's recipe, which may extend recipes that ship with the package."""
    try:
        values = parse_toml(read_text(file))
    except OSError as error:
        raise UserError(f"Cannot read the recipe {file}: {error.strerror or error}.") from error
    except ValueError as error:  # not TOML, not UTF-8, too large or nested too deep
        raise UserError(f"{file} is no TOML file ({str(error).rstrip('.')}): mend it.") from error
    base: Values = {}
    extends = values.pop("extends", [])
    for name in extends if isinstance(extends, list) else [extends]:
        if not isinstance(name, str) or name.endswith(".toml"):
            raise UserError(
                f"A recipe extends recipes that ship with the package, and {shorten(name)} is none."
            )
        base = _merge(base, _read_shipped(name))
    return _merge(base, values)


def _compose(files: Iterable[str]) -> Values:
    """Merge files that ship with the package, and what they extend; later ones win."""
    values: Values = {}
    for _, changes in walk_files(files):
        values = _merge(values, changes)
    return values


def walk_files(files: Iterable[str]) -> Iterator[tuple[str, Values]]:
    """Yield files that ship with the package, and before each those that it extends, with values.

    Each is named as ``read_recipe_file`` takes it.
    """
    for name in files:
        changes = read_recipe_file(name)
        changes.pop("summary", None)
        folder = name.rpartition("/")[0]
        yield from walk_files(f"{folder}/{base}" for base in changes.pop("extends", ()))
        yield name, changes


def _merge(values: Values, changes: Values) -> Values:
    """Return values with some changed, section by section."""
    merged = values | changes
    for key in values.keys() & changes.keys():
        if isinstance(values[key], dict) and isinstance(changes[key], dict):
            merged[key] = _merge(values[key], changes[key])
    return merged


def _to_plain(items: Iterable[tuple[str, Any]]) -> Values:
    """Turn a section's settings into plain values, leaving out None."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in items
        if value is not None
    }


def _list_settings(values: Values) -> list[_Path]:
    """List the paths of all settings, also of those that are left out."""
    paths: list[_Path] = []
    for section in dataclasses.fields(Recipe):
        for kind in (section.type, *get_args(section.type)):  # a section, or a section or None
            if dataclasses.is_dataclass(kind):
                paths += [(section.name, item.name) for item in dataclasses.fields(kind)]
    return paths + [("gates", "options", name) for name in values["gates"]["options"]]


def _find_setting(name: str, paths: Sequence[_Path]) -> _Path:
    """Find the setting with a name: its whole path, or without "options", or its last word."""
    for spell in (_spell, lambda path: _spell((path[0], path[-1])), lambda path: path[-1:]):
        matches = [path for path in paths if name in spell(path)]
        if len(matches) > 1:
            choices = " or ".join(".".join(path) for path in matches)
            raise UserError(f"{name!r} may be {choices}: write it in full.")
        if matches:
            return matches[0]
    if name.startswith("gates.options."):  # a gate checks its options itself
        return ("gates", "options", name.removeprefix("gates.options."))
    if (path := tuple(name.split(".")))[0] == "before" and len(path) == 3:  # as a recipe does
        return path
    known = [spelling for path in paths for spelling in (*_spell(path), path[-1])]
    raise UserError(
        f"A recipe has no setting {name!r}.{suggest(name, known)} 'channelscope recipes NAME' "
        "lists them."
    )


def _spell(path: _Path) -> tuple[str, ...]:
    return ".".join(path), "_".join(path)


def _write_toml(values: Values, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{_write_key(key)} = {_write_value(value)}"
    for key, value in values.items():
        if isinstance(value, dict) and value:
            table = f"{prefix}{_write_key(key)}"
            if not all(isinstance(item, dict) for item in value.values()):
                yield from ("", f"[{table}]")
            yield from _write_toml(value, f"{table}.")


def _write_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _write_value(key)


def _write_value(value: Any) -> str:
    if isinstance(value, float):  # JSON has other words for infinity
        return repr(value)
    # TOML allows in strings what JSON does, but for this control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
