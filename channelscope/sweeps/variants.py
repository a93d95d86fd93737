"""Which settings vary in a sweep, and what their combinations are called."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from typing import Any

from channelscope.errors import UserError, suggest
from channelscope.training import Recipe
from channelscope.training.recipes import parse_value

ABLATIONS: dict[str, dict[str, list[Any]]] = tomllib.loads(
    resources.files("channelscope").joinpath("recipes/sweeps.toml").read_text(encoding="utf-8")
)
"""The settings that an ablation varies, each with its values, by the ablation's name."""


@dataclass(frozen=True)
class Variant:
    """A recipe with some settings changed: in words, as a part of file names, one by one, and as a whole."""

    name: str
    slug: str
    changes: dict[str, Any]
    recipe: Recipe


def varied_settings(
    ablation: str | None, vary: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Put an ablation's settings and further ones together."""
    if ablation is not None and ablation not in ABLATIONS:
        raise UserError(
            f"There is no ablation {ablation!r}: choose from {', '.join(ABLATIONS)}.{suggest(ablation, ABLATIONS)}"
        )
    known = ABLATIONS[ablation] if ablation else {}
    if twice := known.keys() & vary.keys():
        raise UserError(
            f"The ablation {ablation} varies {min(twice)} itself: give its values once."
        )
    for name, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(
                f"{name} varies over a list of values, as in [1, 2], not over {values!r}."
            )
    if not known and not vary:
        raise UserError(
            f"Nothing varies: name an ablation ({', '.join(ABLATIONS)}), or settings, as in --vary gates.beta=1,2."
        )
    return {name: list(values) for name, values in {**known, **vary}.items()}


def variants_of(base: Recipe, varied: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Combine the settings' values; no two combinations may come to the same."""
    names = short_names(varied)
    variants: list[Variant] = []
    for values in product(*varied.values()):
        changes = dict(zip(varied, values, strict=True))
        words = ", ".join(f"{names[name]} {_in_words(value)}" for name, value in changes.items())
        flat = {part: value for name, value in changes.items() for part in name.split("+")}
        recipe = base.override(**flat)
        if recipe != base.override(**dict(reversed(flat.items()))):  # the last one counts
            raise UserError(f"Two of {', '.join(flat)} are one setting: give its values once.")
        for other in variants:
            if _essence(other.recipe) == _essence(recipe):
                gates = " The recipe has no gates." if recipe.gates.kind == "none" else ""
                raise UserError(
                    f"{other.name!r} and {words!r} are the same training: vary something else.{gates}"
                )
        variants.append(
            Variant(words, _slug(words, [other.slug for other in variants]), changes, recipe)
        )
    return variants


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Call each setting by its last word that says something, where no other has the same."""
    last = {name: name.partition("+")[0].removesuffix(".kind").rpartition(".")[2] for name in names}
    counts = Counter(last.values())
    return {name: word if counts[word] == 1 else name for name, word in last.items()}


def _in_words(value: Any) -> str:
    match value:
        case list() | tuple():
            return "+".join(map(_in_words, value)) or "[]"
        case bool():
            return str(value).lower()
        case float() if float(f"{value:g}") == value:
            return f"{value:g}"
        case _:
            return str(value)


def in_cell(value: Any) -> str | int | float:
    """Give a value as the table has it: a number, or words."""
    return value if type(value) in (int, float) else _in_words(value)


def _slug(name: str, taken: Sequence[str]) -> str:
    """Turn a variant's name into a part of a file's name, that no other variant has."""
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", name.replace(", ", "_"))[:120]
    return next(
        free
        for free in (slug, *(f"{slug}-{n}" for n in range(2, len(taken) + 3)))
        if free not in taken
    )


def _essence(recipe: Recipe) -> dict[str, Any]:
    """Give what makes a difference: without gates, their settings make none."""
    values = recipe.values()
    return {**values, "gates": None} if recipe.gates.kind == "none" else values


def values_of(text: str) -> list[Any]:
    """Read values with commas between them, each as in TOML or a plain word; quotes may be left out in lists too.

    >>> values_of("softmax,sigmoid"), values_of("1,2.5"), values_of("[layer4.1],[layer4.0,layer4.1]")
    (['softmax', 'sigmoid'], [1, 2.5], [['layer4.1'], ['layer4.0', 'layer4.1']])
    """
    return [_value(part.strip()) for part in _parts(text)]


def _value(text: str) -> Any:
    value = parse_value(text)
    if value == text and text.startswith("[") and text.endswith("]"):
        return values_of(text[1:-1])
    return value


def _parts(text: str) -> Iterator[str]:
    """Split at the commas that are in no brackets and in no quotes."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if letter == "," and not depth and not quote:
            yield part
            part = ""
            continue
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote:
            depth += (letter == "[") - (letter == "]")
        part += letter
    yield part
