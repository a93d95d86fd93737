"""What a comparison's frames say, and the words for it in figures."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest


def rows(frame: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Keep the rows whose columns have the wanted values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def chosen(frame: pd.DataFrame, lack: str, **wanted: str) -> pd.DataFrame:
    """Keep the wanted rows; where there are none, raise UserError: what is lacking, and what is there."""
    found = rows(frame, **wanted)
    if found.empty:
        there = frame[[*wanted]].drop_duplicates().itertuples(index=False, name=None)
        listed = "; ".join(", ".join(map(str, names)) for names in there)
        raise UserError(f"{lack}{f' Choose from {listed}.' if listed else ''}")
    return found


def interval(
    frame: pd.DataFrame, value: str = "value", **wanted: str
) -> tuple[float, float, float]:
    """Value, low and high of the one row that is wanted; NaN where there is none."""
    found = rows(frame, **wanted)
    if found.empty:
        return float("nan"), float("nan"), float("nan")
    middle, low, high = found.iloc[0][[value, "low", "high"]].astype(float)
    return float(middle), float(low), float(high)


def reach(intervals: Iterable[tuple[float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and the lengths of their error bars (2, n), as matplotlib wants them."""
    middle, low, high = np.array(list(intervals), dtype=float).reshape(-1, 3).T
    return middle, np.clip([middle - low, high - middle], 0, None)


def bars(
    frame: pd.DataFrame, value: str = "value", low: str = "low", high: str = "high"
) -> tuple[Any, Any]:
    """The same of a table's columns: values (n,) and the lengths of their error bars (2, n)."""
    return reach(frame[[value, low, high]].itertuples(index=False, name=None))


def models(comparison: Comparison) -> list[str]:
    """The models' labels, in the comparison's order."""
    return list(comparison.meta["models"])


def classes(comparison: Comparison) -> list[str]:
    """The names of the classes, in the data's order."""
    return list(comparison.meta["data"]["classes"])


def layers_by_model(comparison: Comparison) -> dict[str, list[str]]:
    """Of each model the names of its measured layers, the deepest last."""
    measured = comparison.alignment
    return {
        model: list(rows(measured, model=model)["layer"].unique()) for model in models(comparison)
    }


def layers(comparison: Comparison, layer: str | None = None) -> dict[str, str]:
    """Of each model the layer to show: the one asked for, or else its last; models without it are left out."""
    return shown(layers_by_model(comparison), layer)


def shown(known: Mapping[str, Sequence[str]], layer: str | None) -> dict[str, str]:
    """The same of layers that are known by model."""
    if layer is None:
        return {model: names[-1] for model, names in known.items()}
    found = {model: layer for model, names in known.items() if layer in names}
    if not found:
        names = list(dict.fromkeys(name for names in known.values() for name in names))
        raise UserError(
            f"No layer {layer!r} here; choose from {', '.join(names)}.{suggest(layer, names)}"
        )
    return found


def robust(comparison: Comparison, model: str, class_name: str) -> tuple[float, float, float]:
    """Worst-case accuracy of a model on a class, over the attacks: value, low, high."""
    return interval(
        comparison.robustness,
        "accuracy",
        **{"model": model, "attack": "worst", "class": class_name},
    )


def ranked(comparison: Comparison) -> list[str]:
    """The classes that have images, the most robust first: by worst-case accuracy, mean over the models."""
    worst = rows(comparison.robustness, attack="worst").dropna(subset=["accuracy"])
    mean = worst.groupby("class")["accuracy"].mean()
    return sorted(
        (name for name in classes(comparison) if name in mean.index), key=lambda name: -mean[name]
    )


def extremes(comparison: Comparison, count: int = 1) -> list[str]:
    """The `count` most robust classes, then the `count` least robust ones, each in falling order, none twice."""
    by_rank = ranked(comparison) or classes(comparison)[:1]
    return list(dict.fromkeys([*by_rank[:count], *by_rank[-count:]]))


def short(name: str, length: int = 18) -> str:
    """A name on one line, cut to a length."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def broken(name: str, length: int = 22) -> str:
    """A name in lines of at most a length, broken after colons, or else after hyphens: nothing is cut."""
    first, *parts = [
        part for whole in re.findall("[^:]+:*", name) for part in textwrap.wrap(whole, length)
    ]
    lines = [first]
    for part in parts:
        if len(lines[-1] + part) > length:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)


def short_layer(name: str, length: int = 16) -> str:
    """A layer's name, cut to a length at its beginning: layers of one network differ in the end of their names."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def percent(value: float, digits: int = 1) -> str:
    """As in "51.0 %"; a dash for NaN."""
    return "–" if np.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float) -> str:
    """Two decimals and a true minus sign; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:z.2f}".replace("-", "−")


def bounded(value: float, low: float, high: float) -> str:
    """As in "0.71 [0.30, 0.90]"; a dash for NaN."""
    return "–" if np.isnan(value) else f"{number(value)} [{number(low)}, {number(high)}]"


def attack(comparison: Comparison) -> str:
    """The attack that made the adversarial images, as in "PGD-20, ε = 8/255"."""
    return f"{short(in_capitals(comparison.meta['attack']), 22)}, ε = {radius(float(comparison.meta['eps']))}"


def radius(eps: float) -> str:
    """As papers have it: "8/255", or a decimal number where it is no such fraction."""
    levels = round(float(eps) * 255, 4)
    return f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:.4g}"


def attacks(comparison: Comparison) -> str:
    """The attacks whose worst case is the robust accuracy, as in "worst case over PGD-20, CW-30"."""
    return f"worst case over {', '.join(map(in_capitals, _attacks(comparison)))}"


def worst(comparison: Comparison) -> str:
    """The same in few words, for the note of a figure."""
    names = _attacks(comparison)
    return (
        "worst case over all attacks"
        if len(names) > 1
        else f"under {', '.join(map(in_capitals, names))}"
    )


def _attacks(comparison: Comparison) -> list[str]:
    return [
        name
        for name in comparison.robustness["attack"].unique()
        if name not in ("natural", "worst")
    ]


def level(comparison: Comparison) -> str:
    """That of the intervals, as in "95% intervals"."""
    return f"{comparison.meta['level']:.0%} intervals"


def training_attack(comparison: Comparison) -> str:
    """The attack on validation images, as in "PGD-3, ε = 8/255, as in training", where the models tell and share it."""
    settings = [described.get("settings") or {} for described in comparison.meta["models"].values()]
    known = [(each.get("recipe") or {}).get("attack") or {} for each in settings]
    told = {(attack.get("steps"), attack.get("eps")) for attack in known if attack}
    steps, eps = told.pop() if len(told) == 1 else (None, None)
    if steps is None or eps is None:
        return "as in training"
    return f"PGD-{steps}, ε = {radius(eps)}, as in training"


def in_capitals(name: str) -> str:
    """The name of an attack as papers have it: "PGD-20" for "pgd-20"."""
    name = re.sub("^(apgd(-ce|-dlr)?|pgd|fgsm|cw)", lambda method: method[0].upper(), name)
    return re.sub("^(auto|square)", lambda method: method[0].capitalize(), name).replace(
        "Autoattack", "AutoAttack"
    )


def where(shown: dict[str, str]) -> str:
    """The layers that a figure shows, as in "layer4" or "layer features.3", shortened."""
    names = ", ".join(dict.fromkeys(shown.values()))
    return short(names if names.startswith("layer") else f"layer {names}", 30)


def class_called(name: str, length: int = 18) -> str:
    """A class's name, shortened; a bare number is said to be a class."""
    return short(f"class {name}" if name.isdecimal() else name, length)
