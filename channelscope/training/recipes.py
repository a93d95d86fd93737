"""Recipes: how networks are trained, as data files that ship with the package, one for each setting and each method.

A recipe is named SETTING-METHOD, as ``cifar10-resnet18-cifs``, or SETTING-METHOD-fast. A file may extend others, whose
values it then changes.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Self

from channelscope.errors import UserError, suggest
from channelscope.reading import parse_toml, read_text
from channelscope.training.settings import (
    Attack,
    Augmentation,
    Averaging,
    Engine,
    Gates,
    Loss,
    Model,
    Optimizer,
    Schedule,
    shown,
)
from channelscope.weights import METHOD_NAMES

METHODS = METHOD_NAMES
SETTINGS = (
    "digits-resnet18",
    "cifar10-resnet18",
    "cifar10-resnet18-small",
    "cifar10-wrn-28-10",
    "svhn-resnet18",
    "fashion-mnist-resnet10",
)
_L2_EPS = 0.5  # usual for CIFAR-10; a recipe's radius is of the L-inf norm
SUITED = {
    "digits": SETTINGS[0],
    "svhn": SETTINGS[4],
    "fashion-mnist": SETTINGS[5],
}  # by data; others: CIFAR-10's
_QUICK = (SETTINGS[0], SETTINGS[2])  # are fast as they are
_IMPOSSIBLE = {
    ("fashion-mnist-resnet10", "eas")
}  # its place is the block before the last, and there is but one

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; ``settings`` describes each section.

    Args:
        method: its short name in comparisons (standard, at, cifs, trades, ...); None for a way of your own.
    """

    method: str | None = None
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    data: Augmentation
    attack: Attack
    loss: Loss
    gates: Gates = dataclasses.field(default_factory=Gates)
    averaging: Averaging = dataclasses.field(default_factory=Averaging)
    engine: Engine = dataclasses.field(default_factory=Engine)

    @classmethod
    def named(cls, name: str) -> Self:
        """Read a recipe that ships with the package, or a ``.toml`` file of the same form.

        Raises:
            UserError: for a name that is unknown, and a file that is missing or no recipe.
        """
        if name.endswith(".toml"):
            return cls.from_values(_read(Path(name)))
        return cls.from_values(_named(name))

    @classmethod
    def suited_to(cls, data_name: str, method: str = "at") -> Self:
        """Choose the recipe of a method for a data set: its own setting, or that of CIFAR-10."""
        return cls.named(f"{SUITED.get(data_name, 'cifar10-resnet18')}-{method}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe of plain values, by section; UserError for what is missing, unknown or out of range."""
        sections = {
            item.name: item.type for item in dataclasses.fields(cls) if item.name != "method"
        }
        if unknown := values.keys() - sections.keys() - {"method"}:
            raise UserError(
                f"A recipe has no section {min(unknown)!r}.{suggest(min(unknown), sections)}"
            )
        if missing := sections.keys() - values.keys() - {"gates", "averaging", "engine"}:
            raise UserError(
                f"The recipe lacks the section [{min(missing)}]: add it, or extend a recipe that has it."
            )
        method = values.get("method")
        if method not in (None, *METHODS):
            raise UserError(
                f"A recipe's method is one of {', '.join(METHODS)}, not {shown(method)}: or leave it out."
            )
        made = {
            name: kind.of(name, values[name]) for name, kind in sections.items() if name in values
        }  # type: ignore[union-attr]
        return cls(method=method, **made)

    def values(self) -> Values:
        """Give the recipe as plain values, by section."""
        return _plain(dataclasses.asdict(self))

    def override(self, /, **changes: Any) -> Self:
        """Change what is not None; a new eps takes the step of the attack along, unless that is given too.

        A setting is named in full, ``optimizer.lr`` (or ``optimizer_lr``), or by its last word alone where only one
        setting ends with it: ``lr``.

        Raises:
            UserError: for an unknown or ambiguous name, or a value that does not do.
        """
        values, paths = self.values(), dict(_paths(self.values()))
        changed = {
            _path(name, paths): value for name, value in changes.items() if value is not None
        }
        for (*sections, last), value in changed.items():
            table = values
            for section in sections:
                table = table[section]
            table[last] = value
        new = type(self).from_values(values)
        if ("attack", "eps") in changed and ("attack", "step") not in changed and self.attack.eps:
            step = self.attack.step * new.attack.eps / self.attack.eps
            new = dataclasses.replace(new, attack=dataclasses.replace(new.attack, step=step))
        return new

    def toml(self) -> str:
        """Write the recipe as a file that can be read, changed and trained from."""
        return "\n".join(_toml(self.values()))

    def lr_at(self, epoch: float) -> float:
        """Give the learning rate at a moment, in epochs from 0."""
        return self.optimizer.lr * self.schedule.factor(epoch)


@cache
def catalogue() -> dict[str, tuple[str, ...]]:
    """List the recipes that ship with the package: name -> the files that it is made of."""
    names = {}
    for setting, method, fast in product(SETTINGS, METHODS, (False, True)):
        if not (fast and setting in _QUICK) and (setting, method) not in _IMPOSSIBLE:
            files = (f"settings/{setting}", f"methods/{method}", *["fast"] * fast)
            names[f"{setting}-{method}" + "-fast" * fast] = files
    return names


def summary(name: str) -> str:
    """Say in a line what a recipe that ships with the package is: the first sentence of its method's file."""
    text = _shipped(catalogue()[name][1])
    return text.partition("\n")[0].removeprefix("# ").rstrip(".:")


def name_of(values: Values) -> str:
    """Find the recipe that ships with the package and has these values; "your own" where there is none."""
    return next((name for name in catalogue() if Recipe.named(name).values() == values), "your own")


def parse_value(text: str) -> Any:
    """Read a value as TOML has it (0.1, true, [1, 2], "softmax"); anything else is a plain word."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _shipped(name: str) -> str:
    return (
        resources.files("channelscope").joinpath(f"recipes/{name}.toml").read_text(encoding="utf-8")
    )


def _named(name: str) -> Values:
    """Read what the files of a recipe that ships with the package say."""
    known = catalogue()
    if name not in known:
        raise UserError(
            f"There is no recipe {name!r}.{suggest(name, known)} 'channelscope recipes' lists them; your own is a "
            "file whose name ends in .toml."
        )
    return _merged(*known[name]) | {"method": known[name][1].partition("/")[2]}


def _read(file: Path) -> Values:
    """Read a user's recipe, which may extend recipes that ship with the package."""
    try:
        values = parse_toml(read_text(file))
    except OSError as error:
        raise UserError(f"Cannot read the recipe {file}: {error.strerror or error}.") from error
    except ValueError as error:  # no TOML, no UTF-8, thousands of digits or of brackets
        raise UserError(f"{file} is no TOML file ({str(error).rstrip('.')}): mend it.") from error
    base: Values = {}
    extends = values.pop("extends", [])
    for name in extends if isinstance(extends, list) else [extends]:
        if not isinstance(name, str) or name.endswith(".toml"):
            raise UserError(
                f"A recipe extends recipes that ship with the package, and {shown(name)} is none."
            )
        base = _over(base, _named(name))
    return _over(base, values)


def _merged(*names: str) -> Values:
    """Put files, and what they extend, one over the other."""
    merged: Values = {}
    for name in names:
        own = tomllib.loads(_shipped(name))
        folder = name.rpartition("/")[0]
        extended = _merged(*(f"{folder}/{base}" for base in own.pop("extends", ())))
        merged = _over(merged, _over(extended, own))
    return merged


def _over(below: Values, above: Values) -> Values:
    both = {
        key: _over(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | both


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


def _paths(values: Values, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """List the settings by path; those that may be left out, and are, have a path too."""
    for section in dataclasses.fields(Recipe) if not above else ():
        for item in (
            dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else ()
        ):
            yield (section.name, item.name), None
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))
        elif above:
            yield (*above, key), value


def _path(name: str, paths: Mapping[tuple[str, ...], Any]) -> tuple[str, ...]:
    """Find the setting that a name means."""
    found = [path for path in paths if name in (".".join(path), "_".join(path))]
    found = found or [path for path in paths if name in _spellings(path)]
    found = found or [path for path in paths if name == path[-1]]
    if not found and name.startswith("gates.options."):  # a gate checks its options itself
        found = [("gates", "options", name.removeprefix("gates.options."))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{name!r} may be {' or '.join('.'.join(path) for path in found)}: write it in full."
        )
    known = (
        ["_".join(path) for path in paths]
        + [".".join(path) for path in paths]
        + [path[-1] for path in paths]
    )
    raise UserError(
        f"A recipe has no setting {name!r}.{suggest(name, known)} 'channelscope recipes NAME' lists them."
    )


def default_eps(data_name: str, norm: str = "inf") -> float:
    """Give the radius of attacks whose radius is not named: that of the data set's recipe, of the L2 norm 0.5."""
    return Recipe.suited_to(data_name).attack.eps if norm == "inf" else _L2_EPS


def _spellings(path: tuple[str, ...]) -> set[str]:
    """Spell a setting's full name: the options of a gate need not be called so."""
    short = [part for part in path if part != "options"] if path[-1] != "options" else path
    return {join.join(parts) for join in "._" for parts in (path, short)}


def _toml(values: Values, above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in values.items():
        if isinstance(value, dict) and value:
            table = f"{above}{_toml_key(key)}"
            yield from ("", f"[{table}]")
            yield from _toml(value, f"{table}.")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace(
                "\x7f", "\\u007f"
            )  # all that TOML has spelt
        case list():
            return f"[{', '.join(map(_toml_value, value))}]"
        case _:
            return repr(value)
