"""The variants of a sweep: which settings vary, and what their combinations are called."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

from channelscope.errors import UserError, suggest
from channelscope.recipes import ABLATIONS
from channelscope.training import Recipe
from channelscope.training.recipes import parse_value


@dataclass(frozen=True)
class Variant:
    """A recipe with some settings changed.

    Args:
        name: the changes in words: "imgf softmax, k 2".
        slug: the name as a part of file names.
        changes: setting -> value.
        recipe: the whole recipe.
    """

    name: str
    slug: str
    changes: dict[str, Any]
    recipe: Recipe


def list_settings(ablation: str | None, vary: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """List the varied settings with their values: an ablation's, and further ones."""
    if ablation is not None and ablation not in ABLATIONS:
        raise UserError(
            f"There is no ablation {ablation!r}: choose from {', '.join(ABLATIONS)}."
            f"{suggest(ablation, ABLATIONS)}"
        )
    settings: Mapping[str, Sequence[Any]] = ABLATIONS[ablation] if ablation else {}
    if twice := settings.keys() & vary.keys():
        raise UserError(f"The ablation {ablation} varies {min(twice)} already: leave it out.")
    for name, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(
                f"{name} varies over a list of values, as in [1, 2], not over {values!r}."
            )
    if not settings and not vary:
        raise UserError(
            f"Nothing varies: name an ablation ({', '.join(ABLATIONS)}), or settings, as in --vary "
            "gates.beta=1,2."
        )
    return {name: list(values) for name, values in {**settings, **vary}.items()}


def make_variants(base: Recipe, settings: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Combine the settings' values.

    Raises:
        UserError: where two combinations are the same training.
    """
    names = shorten_names(settings)
    variants: list[Variant] = []
    for values in product(*settings.values()):
        changes = dict(zip(settings, values, strict=True))
        name = ", ".join(f"{names[key]} {to_words(value)}" for key, value in changes.items())
        single = {part: value for key, value in changes.items() for part in key.split("+")}
        recipe = base.override(**single)
        if recipe != base.override(**dict(reversed(single.items()))):  # the last one counts
            raise UserError(f"Two of {', '.join(single)} are one setting: give its values once.")
        for other in variants:
            if _drop_unused(other.recipe) == _drop_unused(recipe):
                hint = " The recipe has no gates." if recipe.gates.kind == "none" else ""
                raise UserError(
                    f"{other.name!r} and {name!r} are the same training: vary something else.{hint}"
                )
        slug = _make_slug(name, {variant.slug for variant in variants})
        variants.append(Variant(name, slug, changes, recipe))
    return variants


def shorten_names(settings: Iterable[str]) -> dict[str, str]:
    """Map each setting to its last telling word, or to itself where another has the same."""
    words = {
        name: name.partition("+")[0].removesuffix(".kind").rpartition(".")[2] for name in settings
    }
    counts = Counter(words.values())
    return {name: word if counts[word] == 1 else name for name, word in words.items()}


def to_words(value: Any) -> str:
    """Write a setting's value in words: "true", "0.5", "layer4.0+layer4.1"."""
    match value:
        case list() | tuple():
            return "+".join(map(to_words, value)) or "[]"
        case bool():
            return str(value).lower()
        case float() if float(f"{value:g}") == value:
            return f"{value:g}"
        case _:
            return str(value)


def _make_slug(name: str, others: set[str]) -> str:
    """Turn a variant's name into a part of a file name that no other variant has."""
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", name.replace(", ", "_"))[:120]
    numbered = (f"{slug}-{number}" for number in count(2))
    return slug if slug not in others else next(name for name in numbered if name not in others)


def _drop_unused(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's values without those that change nothing: of gates that are not there."""
    values = recipe.values()
    return {**values, "gates": None} if recipe.gates.kind == "none" else values


def parse_values(text: str) -> list[Any]:
    """Read values separated by commas, each as in TOML or a plain word; lists need no quotes.

    >>> parse_values("softmax,sigmoid"), parse_values("1,2.5")
    (['softmax', 'sigmoid'], [1, 2.5])
    >>> parse_values("[layer4.1],[layer4.0,layer4.1]")
    [['layer4.1'], ['layer4.0', 'layer4.1']]
    """
    return [_parse_item(item.strip()) for item in _split_items(text)]


def _parse_item(text: str) -> Any:
    value = parse_value(text)
    if value == text and text.startswith("[") and text.endswith("]"):
        return parse_values(text[1:-1])
    return value


def _split_items(text: str) -> Iterator[str]:
    """Split a text at the commas that are in no brackets and in no quotes."""
    depth, quote, item = 0, "", ""
    for letter in text:
        if letter == "," and not depth and not quote:
            yield item
            item = ""
            continue
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote:
            depth += (letter == "[") - (letter == "]")
        item += letter
    yield item
