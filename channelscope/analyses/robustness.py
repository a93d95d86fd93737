"""Robustness: accuracy on natural images, under each attack and in the worst case, by class."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
from channelscope.figures.axes import (
    add_legend,
    add_title,
    choose_looks,
    label_percent,
    make_grid,
)
from channelscope.figures.paper import current_style, styled
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

    A row for each attack, the weakest first, between natural images and the worst case. In it a dot
    for each model that it was run on; in a style wide enough each model has a panel of its own.
    """
    data, models = robustness_data(result), list(result.meta["models"])
    attacks, looks = _sort_attacks(data), choose_looks(result)
    names = [break_name(name, 27) for name in attacks]
    needed = [0.02 + 0.12 * (1 + name.count("\n")) for name in names]
    row = max(0.05 + 0.035 * len(models), float(np.mean(needed)))
    count = len(attacks)
    apart = len(models) if current_style().width >= 1.2 * (1 + len(models)) else 1
    least = sum(needed) * 0.9
    figure, axes = make_grid(1, apart, row * count, least=least, sharex=True, sharey=True)
    places = {name: place for place, name in enumerate(attacks)}
    offsets = np.linspace(-0.3, 0.3, len(models) + 2)[1:-1] if apart == 1 else [0.0] * apart
    size: dict[str, Any] = {"linestyle": "none", "markersize": 3, "elinewidth": 0.8}
    size_of_dot: dict[str, Any] = {"linestyle": "none", "markersize": 3.5}
    handles = []
    for index, model in enumerate(models):
        ax = axes[0, index % apart]
        rows = select_rows(data, model=model)
        accuracy, bars = error_bars(rows, "accuracy")
        height = rows["attack"].map(places).to_numpy() + offsets[index]
        look = looks[model] | size
        ax.errorbar(accuracy, height, xerr=bars, **look)
        label = f"{shorten(model)} ({format_percent(rows['accuracy'].iloc[-1])})"
        handles.append(Line2D([], [], label=label, **size_of_dot | looks[model]))
        if apart > 1:
            ax.set_title(shorten(model, 16), loc="left", weight="bold")
    for ax in axes[0]:
        for place in range(0, count, 2):
            ax.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=0)
        for border in (0.5, count - 1.5):
            ax.axhline(border, color="0.4", linewidth=0.6, zorder=1)
        ax.set_xlim(-0.02, 1.02)
        label_percent(ax, "accuracy", "x")
    ax = axes[0, 0]
    ax.set_yticks([*places.values()], names)
    for label, name in zip(ax.get_yticklabels(), attacks, strict=True):
        label.set_fontstyle("italic" if is_made_for_gates(name) else "normal")
        label.set_fontweight("bold" if name in _ENDS.values() else "normal")
    ax.set_ylim(count - 0.5, -0.5)
    images, radius = result.meta["data"]["images"], format_radius(result.meta["eps"])
    add_title(figure, f"Accuracy under each attack, ε = {radius}, {images:,} images")
    note = _make_note(result, data)
    if apart == 1:
        note += "\nin brackets below: the worst case, image by image, over the attacks on the model"
    add_legend(figure, handles if apart == 1 else (), note)
    return figure


def _sort_attacks(data: pd.DataFrame) -> list[str]:
    """Return natural images, the attacks from the weakest to the strongest, the worst case.

    By the mean over the models; those made for gates, which not all models have, come after others.
    """
    mean = data.groupby("attack", sort=False)["accuracy"].mean()
    ends = list(_ENDS.values())

    def rank(name: str) -> tuple[int, bool, float]:
        place = 1 if name not in ends else 2 * ends.index(name)
        return place, is_made_for_gates(name), -float(mean[name])

    return sorted(mean.index, key=rank)


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
    bars = f"right on natural images and under the attack; bars: {describe_level(result)}"
    if data.groupby("model").size().nunique() > 1:
        bars += "; no mark: not run on this model"
    parts = dict.fromkeys(part for name in data["attack"].unique() for part in _find_parts(name))
    notes = [bars]
    if any(_PARTS[part][1] for part in parts):
        notes.append(
            "in italics: an attack made for gates, layers that multiply channels by a mask; a "
            "gate's probe, a small classifier, guesses the class that the mask is made for"
        )
    notes.append("; ".join(f"{part}: {_PARTS[part][0]}" for part in parts))
    return "\n".join(notes)


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
