"""What figures select from a result's tables, and how they word it."""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from channelscope.errors import UserError, suggest

if TYPE_CHECKING:
    from channelscope.result import Result

LABELLED = 24  # the most classes that one figure names
MEAN = "mean"  # of the classes, drawn beside them
NO_INTERVAL = (float("nan"), float("nan"), float("nan"))
# Channels that never fire share a rank. Where more of all channels do than this share, a rank
# correlation over the channels rests on them.
_MOST_DEAD = 0.05
DEAD_MARK = "†"
DEAD_NOTE = f"rests on dead channels: more than {_MOST_DEAD:.0%} never fire, and share one rank"


def select_rows(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Return the rows whose columns have the wanted values."""
    matches = np.ones(len(table), bool)
    for column, value in wanted.items():
        matches &= (table[column] == value).to_numpy(bool)
    return table[matches]


def require_rows(table: pd.DataFrame, message: str, **wanted: str) -> pd.DataFrame:
    """Return the wanted rows; where there are none, raise UserError with the choices."""
    rows = select_rows(table, **wanted)
    if rows.empty:
        choices = table[[*wanted]].drop_duplicates().itertuples(index=False, name=None)
        listed = "; ".join(", ".join(map(str, names)) for names in choices)
        raise UserError(f"{message}{f' Choose from {listed}.' if listed else ''}")
    return rows


def list_groups(result: "Result", table: str) -> list[tuple[str, ...]]:
    """Return the words of each group of a channel table."""
    channels: Any = result.tables[table]
    return list(channels.groups)


def find_interval(
    table: pd.DataFrame, value: str = "value", **wanted: str
) -> tuple[float, float, float]:
    """Return value, low and high of the one wanted row; NaN where there is none."""
    rows = select_rows(table, **wanted)
    if rows.empty:
        return NO_INTERVAL
    middle, low, high = rows.iloc[0][[value, "low", "high"]].astype(float)
    return float(middle), float(low), float(high)


def error_bars(
    table: pd.DataFrame, value: str = "value", low: str = "low", high: str = "high"
) -> tuple[ndarray, ndarray]:
    """Return values (n,) and the lengths of their error bars (2, n), as matplotlib wants them."""
    middle, below, above = table[[value, low, high]].to_numpy(float).T
    return middle, np.clip([middle - below, above - middle], 0, None)


def measured_layers(result: "Result") -> dict[str, list[str]]:
    """Return each model's measured layers, the deepest last."""
    return {model: known["layers"] for model, known in result.meta["models"].items()}


def choose_layers(result: "Result", layer: str | None = None) -> dict[str, str]:
    """Return each model's layer to show: ``layer``, or its last; models without it are left out."""
    measured = measured_layers(result)
    if layer is None:
        return {model: names[-1] for model, names in measured.items()}
    chosen = {model: layer for model, names in measured.items() if layer in names}
    if not chosen:
        names = list(dict.fromkeys(name for of_model in measured.values() for name in of_model))
        raise UserError(
            f"No layer {layer!r} here; choose from {', '.join(names)}.{suggest(layer, names)}"
        )
    return chosen


def intervals_by_class(
    table: pd.DataFrame, classes: Sequence[str], value: str = "value"
) -> Float[ndarray, "k 3"]:
    """Return value, low and high of each class's row; NaN where there is none."""
    return table.set_index("class")[[value, "low", "high"]].reindex(list(classes)).to_numpy(float)


def robust_by_class(result: "Result", model: str, classes: Sequence[str]) -> Float[ndarray, "k 3"]:
    """Return a model's worst-case accuracy on classes, over the attacks: value, low, high."""
    rows = select_rows(result.robustness, model=model, attack="worst")
    return intervals_by_class(rows, classes, "accuracy")


def rank_classes(result: "Result") -> list[str]:
    """Return the classes with images by their worst-case accuracy, mean over models, falling."""
    worst = select_rows(result.robustness, attack="worst").dropna(subset=["accuracy"])
    mean = worst.groupby("class")["accuracy"].mean()
    names = [name for name in result.meta["data"]["classes"] if name in mean.index]
    return sorted(names, key=lambda name: -mean[name])


def extreme_classes(result: "Result", count: int = 1) -> list[str]:
    """Return the ``count`` most robust classes, then the ``count`` least robust, none twice."""
    ranked = rank_classes(result) or result.meta["data"]["classes"][:1]
    return list(dict.fromkeys([*ranked[:count], *ranked[-count:]]))


def classes_to_name(result: "Result") -> list[str]:
    """Return all classes; where they are too many, the most and the least robust ones."""
    names: list[str] = result.meta["data"]["classes"]
    return names if len(names) <= LABELLED else extreme_classes(result, LABELLED // 2)


def classes_with_images(result: "Result") -> list[str]:
    """Return those of ``classes_to_name`` that have images."""
    ranked = set(rank_classes(result))
    return [name for name in classes_to_name(result) if name in ranked]


def make_slug(text: str) -> str:
    """Keep letters and digits of any script, and dashes, so that no name leaves the folder.

    At most 48 characters and 144 bytes: file systems take 255.

    >>> make_slug("Katze / 猫"), make_slug("../x")
    ('katze-猫', 'x')
    """
    text = unicodedata.normalize("NFC", text).lower()
    plain = "".join(sign if unicodedata.category(sign)[0] in "LMN" else "-" for sign in text)
    short = re.sub("-+", "-", plain).strip("-")[:48]
    return short.encode()[:144].decode(errors="ignore").strip("-")


def is_slug(name: str) -> bool:
    """Tell whether a name is one that ``make_slug`` may have made a part of."""
    return bool(name) and all(
        sign == "-" or unicodedata.category(sign)[0] in "LMN" for sign in name
    )


def shorten(name: str, length: int = 18) -> str:
    """Return a name on one line, cut to a length."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def shorten_layer(name: str, length: int = 16) -> str:
    """Return a layer's name, cut at its beginning: layers of one network differ in their ends."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def break_name(name: str, length: int = 22) -> str:
    """Return a name in lines of at most ``length``, broken after colons, else after hyphens."""
    pieces = re.findall("[^:]+:*", name)
    first, *parts = [part for piece in pieces for part in textwrap.wrap(piece, length)]
    lines = [first]
    for part in parts:
        if len(lines[-1] + part) > length:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)


def format_percent(value: float, digits: int = 1) -> str:
    """Return a share as in "51.0 %", with a true minus sign; a dash for NaN."""
    return "–" if np.isnan(value) else f"{100 * value:z.{digits}f} %".replace("-", "−")


def format_number(value: float, digits: int = 2) -> str:
    """Return a number with so many decimals and a true minus sign; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def mark_dead(share: float) -> str:
    """Return the mark of rank correlations over channels of which this share never fires."""
    return DEAD_MARK if share > _MOST_DEAD else ""


def format_interval(value: float, low: float, high: float) -> str:
    """Return a value and its interval as in "0.71 [0.30, 0.90]"; a dash for NaN."""
    if np.isnan(value):
        return "–"
    return f"{format_number(value)} [{format_number(low)}, {format_number(high)}]"


def format_radius(eps: float) -> str:
    """Return eps as papers have it: "8/255", or a decimal where it is no such fraction."""
    levels = round(float(eps) * 255, 4)
    return f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:.4g}"


def format_attack(name: str) -> str:
    """Return an attack's name as papers have it: "PGD-20" for "pgd-20"."""
    name = re.sub("^(apgd(-ce|-dlr)?|pgd|fgsm|cw)", lambda method: method[0].upper(), name)
    name = re.sub("^(auto|square)", lambda method: method[0].capitalize(), name)
    return name.replace("Autoattack", "AutoAttack")


def describe_attack(result: "Result") -> str:
    """Return the attack that made the adversarial images, as in "PGD-20, ε = 8/255"."""
    name = shorten(format_attack(result.meta["attack"]), 22)
    return f"{name}, ε = {format_radius(result.meta['eps'])}"


def list_attacks(result: "Result") -> list[str]:
    """Return the attacks behind the worst case, as papers have them."""
    names = result.robustness["attack"].unique()
    return [format_attack(name) for name in names if name not in ("natural", "worst")]


def describe_worst_case(result: "Result") -> str:
    """Return in a few words over what the worst case is, for the note of a figure."""
    names = list_attacks(result)
    return f"under {names[0]}" if len(names) == 1 else "worst case over all attacks"


def describe_level(result: "Result") -> str:
    """Return the level of the intervals, as in "95% intervals"."""
    return f"{result.meta['level']:.0%} intervals"


def describe_training_attack(result: "Result") -> str:
    """Return the attack on validation images, as in "PGD-3, ε = 8/255, as in training".

    Without its steps and radius where the models do not tell or share them.
    """
    settings = [known.get("settings") or {} for known in result.meta["models"].values()]
    attacks = [(each.get("recipe") or {}).get("attack") or {} for each in settings]
    strengths = {(attack.get("steps"), attack.get("eps")) for attack in attacks if attack}
    steps, eps = strengths.pop() if len(strengths) == 1 else (None, None)
    if steps is None or eps is None:
        return "as in training"
    return f"PGD-{steps}, ε = {format_radius(eps)}, as in training"


def describe_layers(layers: dict[str, str]) -> str:
    """Return the layers that a figure shows, as in "layer4" or "layer features.3", shortened."""
    names = ", ".join(dict.fromkeys(layers.values()))
    return shorten(names if names.startswith("layer") else f"layer {names}", 30)


def describe_class(name: str, length: int = 18) -> str:
    """Return a class's name, shortened; a bare number is said to be a class."""
    return shorten(f"class {name}" if name.isdecimal() else name, length)


def describe_each(
    drawn: pd.DataFrame, by: list[str], describe: Callable[[pd.DataFrame], str]
) -> str:
    """Return a sentence with a part for each group of rows, named by what the group is."""
    parts = [
        f"{', '.join(map(str, group))}: {describe(rows)}"
        for group, rows in drawn.groupby(by, sort=False)
    ]
    return f"{'; '.join(parts)}."


def describe_ranges(data: pd.DataFrame) -> str:
    """Return an alternative text of any figure: the range of each of its quantities."""

    def describe(rows: pd.DataFrame) -> str:
        numbers = rows.select_dtypes(np.number).dropna(axis="columns", how="all")
        return ", ".join(
            f"{str(name).replace('_', ' ')} {column.min():.3g} to {column.max():.3g}"
            for name, column in numbers.items()
        )

    return describe_each(data, ["model"], describe) if "model" in data else f"{describe(data)}."
