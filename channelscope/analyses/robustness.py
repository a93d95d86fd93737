"""Robustness: accuracy on natural images, under each attack and in the worst case, by class."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.figure import Figure
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Subject,
    Table,
    register,
    worst_case,
)
from channelscope.figures.axes import add_title, label_percent, make_grid, model_look, wrap_note
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    break_name,
    describe_each,
    describe_level,
    error_bars,
    format_attack,
    format_percent,
    format_radius,
    select_rows,
    shorten,
)
from channelscope.statistics.intervals import as_columns, wilson

if TYPE_CHECKING:
    from channelscope.result import Result

TABLE = Table(
    words=("model", "attack", "class"),
    numbers=("accuracy", "low", "high", "count"),
    help=(
        "accuracy, with Wilson's interval, on natural images ('natural'), under each attack and in "
        "the worst case per image over them ('worst'), of all images ('all') and of each class"
    ),
)
_ENDS = {"natural": "natural images", "worst": "worst case of all"}
# Parts of the names of attacks: words for them, and whether such attacks are made for gates.
_PARTS = {
    "joint": ("on the answer and so many times the gates' probes, 2 without a number", True),
    "joint-sweep": ("on the answer and the gates' probes together, weighed in seven ways", True),
    "detached": ("without the gradient through the gates' masks", True),
    "frozen-natural": ("masks held as for the natural image", True),
    "frozen-label": ("masks held as told the label", True),
    "probe": ("on one gate's probe alone", True),
    "from": ("images made on another model", False),
    "fixed": ("begun at the image itself, not at random", False),
}
_NUMBER = r"(inf|[\d.]+(e[+-]?\d+)?)?"  # of joint0.1 and probe1


def compute_robustness(study: Study) -> dict[str, Any]:
    """Compute accuracies with intervals, of all images and by class."""
    rows = []
    for model in study.models:
        attacks = ("natural", *study.attacks(model))
        correct = {attack: study.correct(model, attack) for attack in attacks}
        for attack, images in (correct | {"worst": worst_case(study, model)}).items():
            words = {"model": model, "attack": attack}
            rows += [words | row for row in _rows(study, images)]
    return {"robustness": rows}


def _rows(study: Study, correct: Bool[ndarray, " n"]) -> Iterator[dict[str, Any]]:
    classes = len(study.classes)
    right = np.bincount(study.labels[correct], minlength=classes)
    count = np.bincount(study.labels, minlength=classes)
    names = ("all", *study.classes)
    counts = zip([right.sum(), *right], [count.sum(), *count], strict=True)
    for name, (hits, images) in zip(names, counts, strict=True):
        interval = wilson(int(hits), int(images), study.settings["level"])
        yield {"class": name} | as_columns(interval, "accuracy") | {"count": int(images)}


def check_robustness(result: "Result") -> None:
    """Check that every model and class is there; raises ValueError where it is not."""
    table, classes = result.robustness, ["all", *result.meta["data"]["classes"]]
    if set(table["model"]) != set(result.meta["models"]):
        raise ValueError("robustness is of other models than meta.json")
    for _, rows in table.groupby(["model", "attack"]):
        if list(rows["class"]) != classes or rows["count"].isna().any():
            raise ValueError("robustness is incomplete")


def robustness_data(result: "Result") -> pd.DataFrame:
    """Return model, attack (natural first, the worst case last) -> accuracy, low, high."""
    overall = select_rows(result.robustness, **{"class": "all"})
    names = list(overall["attack"].unique())
    order = sorted(names, key=lambda name: (name == "worst") - (name == "natural"))
    models = list(result.meta["models"])
    data = overall.assign(
        place=overall["model"].map(models.index), rank=overall["attack"].map(order.index)
    ).sort_values(["place", "rank"], kind="stable", ignore_index=True)
    words = {name: _ENDS.get(name, format_attack(name)) for name in names}
    data["attack"] = data["attack"].map(words)
    return data[["model", "attack", "accuracy", "low", "high"]]


@styled
def draw_robustness(result: "Result") -> Figure:
    """Draw the accuracy of every model under every attack, and in the worst case, with intervals.

    A row for each attack, in it a dot for each model that it was run on.
    """
    data, models = robustness_data(result), list(result.meta["models"])
    attacks = sorted(data["attack"].unique(), key=lambda name: name == _ENDS["worst"])
    names, note = [break_name(name) for name in attacks], _make_note(result, data)
    needed = [0.02 + 0.12 * (1 + name.count("\n")) for name in names]
    lines = 1 + note.count("\n") - -len(models) // 3
    row = max(0.05 + 0.055 * len(models), *needed)
    figure, axes = make_grid(1, 1, row * len(attacks), 0.75 + 0.12 * lines)
    ax, places = axes[0, 0], {name: place for place, name in enumerate(attacks)}
    offsets = np.linspace(-0.3, 0.3, len(models) + 2)[1:-1]
    size: dict[str, Any] = {"linestyle": "none", "markersize": 3, "elinewidth": 0.8}
    for index, model in enumerate(models):
        rows = select_rows(data, model=model)
        accuracy, bars = error_bars(rows, "accuracy")
        height = rows["attack"].map(places).to_numpy() + offsets[index]
        look = model_look(index) | size
        ax.errorbar(accuracy, height, xerr=bars, label=shorten(model), **look)
    for place in range(1, len(attacks)):
        ax.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    ax.set_yticks([*places.values()], names)
    for label, name in zip(ax.get_yticklabels(), attacks, strict=True):
        for_gates = is_made_for_gates(name)
        label.set_fontstyle("italic" if for_gates else "normal")
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    label_percent(ax, "accuracy", "x")
    images, radius = result.meta["data"]["images"], format_radius(result.meta["eps"])
    add_title(figure, f"Accuracy under each attack, ε = {radius}, {images:,} images")
    figure.legend(title=note, loc="outside lower center", ncols=3)
    return figure


def is_made_for_gates(attack: str) -> bool:
    """Tell whether an attack of this name can be made on networks with gates alone."""
    return any(_PARTS[part][1] for part in _find_parts(attack))


def _find_parts(attack: str) -> list[str]:
    """Return the parts of an attack's name that say what is special about it."""
    words = f"{attack.partition(':')[2]}:"
    suffix = {"joint": f"{_NUMBER}:", "probe": f"{_NUMBER}[-:]", "from": "-"}
    return [part for part in _PARTS if re.search(rf"(^|:){part}{suffix.get(part, ':')}", words)]


def _make_note(result: "Result", data: pd.DataFrame) -> str:
    """Say what bars, gaps and the names of attacks mean, of those that occur."""
    bars = f"bars: {describe_level(result)}"
    if data.groupby("model").size().nunique() > 1:
        bars += "; no mark: not run on this model"
    parts = dict.fromkeys(part for name in data["attack"].unique() for part in _find_parts(name))
    notes = [bars]
    if any(_PARTS[part][1] for part in parts):
        notes.append("in italics: an attack made for gates")
    notes += [f"{part}: {_PARTS[part][0]}" for part in parts]
    return "\n".join(map(wrap_note, notes))


def describe_robustness(data: pd.DataFrame) -> str:
    """Say each model's accuracy on natural images and in the worst case."""

    def describe(rows: pd.DataFrame) -> str:
        natural, worst = (format_percent(rows["accuracy"].iloc[end]) for end in (0, -1))
        return f"{natural} on natural images, {worst} in the worst case"

    return describe_each(data, ["model"], describe)


def of_comparison(result: "Result") -> Iterator[Subject]:
    """Return one figure of a comparison; evaluations have their own, a panel for each model."""
    if result.kind == "comparison":
        yield Subject({})


register(
    Analysis(
        name="robustness",
        help="accuracy under each attack and in the worst case, by class",
        kinds=("comparison", "evaluation"),
        tables={"robustness": TABLE},
        compute=compute_robustness,
        check=check_robustness,
        plots=(
            Plot(
                name="robustness",
                draw=draw_robustness,
                data=robustness_data,
                alt_text=describe_robustness,
                caption=(
                    "Accuracy of each model on natural images, under each attack, and in the worst "
                    "case: an image counts as correct there only if it withstands every attack. An "
                    "attack that is made for gates is run on models with gates alone. {wilson}"
                ),
                section="claims",
                order=40,
                claims=("c4",),
                table="robustness",
                subjects=of_comparison,
            ),
        ),
    )
)
