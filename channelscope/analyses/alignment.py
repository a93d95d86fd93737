"""Alignment: how an attack changes the activation of a layer's channels, by class."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Table,
    measure_robustness,
    measure_study,
    register,
)
from channelscope.analyses.subjects import by_layer, check_layers
from channelscope.figures.axes import (
    add_data_legend,
    add_legend,
    add_model_legend,
    add_title,
    choose_looks,
    label_percent,
    list_bottom,
    list_left,
    make_grid,
    make_panels,
    number_classes,
    start_at_zero,
    write_above,
    write_beside,
    write_in_panel,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    LABELLED,
    MEAN,
    NO_INTERVAL,
    choose_layers,
    classes_to_name,
    describe_attack,
    describe_class,
    describe_each,
    describe_layers,
    describe_level,
    describe_worst_case,
    error_bars,
    extreme_classes,
    format_interval,
    format_number,
    format_percent,
    intervals_by_class,
    rank_classes,
    robust_by_class,
    select_rows,
    shorten,
)
from channelscope.statistics.intervals import estimate_columns
from channelscope.statistics.measures import BOUNDS, across_classes, mean_over_classes

if TYPE_CHECKING:
    from channelscope.result import Result

TABLE = Table(
    words=("model", "layer", "class", "measure"),
    numbers=("value", "low", "high"),
    help=(
        "each measure of alignment with its bootstrap interval, by class; class 'all' is the mean "
        "over the classes, 'across' the correlation over them; see ``statistics.measures``"
    ),
)
ALIGNMENT_NOTE = (
    "alignment: cosine of a class's natural and adversarial mean activations, each less the mean "
    "over all classes"
)
NR_NOTE = "NR mass: share of activation times relevance on channels that speak against the class"
SIGNED_NOTE = (
    "signed mass: 1 where all active channels speak for the class, −1 against it (1 − 2 NR mass, "
    "where none is negative)"
)
_PANELS = {
    "robust_accuracy": "robust\naccuracy",
    "cosine_centred": "alignment with\nnatural (cosine)",
    "nr_mass_adversarial": "NR mass,\nattacked",
}
_SIGNED = ("signed_mass", "signed_low", "signed_high")
_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")


def compute_alignment(study: Study) -> dict[str, Any]:
    """Compute each measure with its interval, for each class, their mean, and across them."""
    level = study.settings["level"]
    columns: dict[str, list[Any]] = {name: [] for name in TABLE.columns}

    def add(
        words: Sequence[str], classes: Sequence[str], replicates: Float[ndarray, "r k"]
    ) -> None:
        """Add a row for each class, a column of the replicates each."""
        for name, word in zip(("model", "layer", "measure"), words, strict=True):
            columns[name] += [word] * len(classes)
        columns["class"] += classes
        intervals = estimate_columns(replicates, level, BOUNDS[words[-1]])
        for name, numbers in zip(TABLE.numbers, intervals, strict=True):
            columns[name] += numbers.tolist()

    for model in study.models:
        _, robust = measure_robustness(study, model)
        for layer in study.layers(model):
            measures = measure_study(study, model, layer)
            for measure, by_class in measures.items():
                replicates = np.column_stack([mean_over_classes(by_class), by_class])
                add((model, layer, measure), ("all", *study.classes), replicates)
            across = across_classes(measures["signed_mass_adversarial"], robust)
            words = model, layer, "signed_mass_robust_correlation"
            add(words, ("across",), across[:, None])
    return {"alignment": pd.DataFrame(columns)}


# --------------------------------------------------------------------------------------- NR mass


def nr_mass_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, class ("mean" last), data -> share, low, high."""
    classes = classes_to_name(result)
    parts = []
    for (model, name), data in product(choose_layers(result, layer).items(), COLOURS):
        where = {"model": model, "layer": name, "measure": f"nr_mass_{data}"}
        intervals = intervals_by_class(select_rows(result.alignment, **where), [*classes, "all"])
        part = pd.DataFrame(intervals, columns=["share", "low", "high"])
        words = {"model": model, "layer": name, "class": [*classes, MEAN], "data": data}
        parts.append(part.assign(**words))
    columns = ["model", "layer", "class", "data", "share", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_nr_mass(result: "Result", layer: str | None = None) -> Figure:
    """Draw the NR mass by class and kind of data, a panel a model.

    With more than 24 classes only the 12 most and the 12 least robust ones are shown.
    """
    data, layers = nr_mass_data(result, layer), choose_layers(result, layer)
    count = len(data) // (len(layers) * len(COLOURS))
    names = [shorten(name) for name in data["class"][:count]]
    across = max(1.35, 0.13 * count)
    figure, axes = make_panels(
        len(layers),
        1,
        0.9,
        0.1 + 0.055 * max(map(len, names)),
        across=across,
        sharex="all",
        sharey="all",
    )
    places = np.arange(count)
    look: dict[str, Any] = {"fmt": "o", "markersize": 1.8, "elinewidth": 0.9}
    for ax, model in zip(axes[:, 0], layers, strict=True):
        for name, offset in (("natural", -0.15), ("adversarial", 0.15)):
            share, bars = error_bars(select_rows(data, model=model, data=name), "share")
            ax.errorbar(places + offset, share, bars, color=COLOURS[name], **look)
        ax.axvline(count - 1.5, color="0.8", linewidth=0.6)
        ax.set_title(shorten(model, 20), loc="left", weight="bold")
        label_percent(ax, "")
    start_at_zero(*axes[:, 0])
    for ax in list_bottom(axes):
        ax.set_xticks(places, names, rotation=90)
    for ax in list_left(axes):
        ax.set_ylabel("NR mass (%)")
    what = "NR mass: activation times relevance, the share on channels against the class"
    add_title(figure, f"{what}, {describe_layers(layers)}")
    level = describe_level(result)
    note = (
        "by class; negatively relevant (NR): the channel speaks against the class; mean: over the "
        f"classes; bars: {level}"
    )
    add_data_legend(figure, describe_attack(result), note=note)
    return figure


def describe_nr_mass(data: pd.DataFrame) -> str:
    """Say the mean of the NR mass, and the class with the highest."""

    def describe(rows: pd.DataFrame) -> str:
        mean = rows.groupby("data").tail(1).set_index("data")["share"].map(format_percent)
        text = f"mean {mean['natural']} natural, {mean['adversarial']} adversarial"
        attacked = rows[rows["data"] == "adversarial"][:-1].dropna(subset=["share"])
        if attacked.empty:
            return text
        highest = attacked.sort_values("share", kind="stable").iloc[-1]
        share = format_percent(highest["share"])
        return f"{text}, the highest adversarial share {share} on class {highest['class']}"

    return describe_each(data, ["model"], describe)


# ------------------------------------------------------------------ robust accuracy and alignment


def alignment_robustness_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, class -> signed_mass, accuracy, each with low and high.

    The row of the class "across" has, in place of a class's correlation, the one across them.
    """
    classes = result.meta["data"]["classes"]
    parts = []
    for model, name in choose_layers(result, layer).items():
        table = select_rows(result.alignment, model=model, layer=name)
        by_class = select_rows(table, measure="signed_mass_adversarial")
        across = select_rows(table, measure="signed_mass_robust_correlation")
        signed = np.vstack(
            [intervals_by_class(by_class, classes), intervals_by_class(across, ["across"])]
        )
        robust = np.vstack([robust_by_class(result, model, classes), NO_INTERVAL])
        part = pd.DataFrame(np.hstack([signed, robust]), columns=[*_SIGNED, *_ACCURACY])
        parts.append(part.assign(model=model, layer=name, **{"class": [*classes, "across"]}))
    columns = ["model", "layer", "class", *_SIGNED, *_ACCURACY]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_alignment_robustness(result: "Result", layer: str | None = None) -> Figure:
    """Draw each class's robust accuracy against its signed mass, a panel a model.

    A dot is a class, with its number beside it unless there are more than 24. Above each panel
    stands the correlation across the classes.
    """
    data, layers = alignment_robustness_data(result, layer), choose_layers(result, layer)
    classes = result.meta["data"]["classes"]
    key, numbered = number_classes(classes), len(classes) <= LABELLED
    figure, axes = make_panels(len(layers), 1, 1.45, across=1.55, sharex="all", sharey="all")
    looks = choose_looks(result)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        _draw_classes(ax, select_rows(data, model=model), looks[model], numbered)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        rows = select_rows(data, model=model)[:-1].reset_index(drop=True).dropna()
        if numbered:  # when the limits, which panels share, stand
            places = rows[["signed_mass", "accuracy"]].to_numpy()
            write_beside(ax, places, [str(number) for number in rows.index])
        write_above(ax, shorten(model, 20), weight="bold")
        label_percent(ax, "")
    for ax in list_left(axes):
        ax.set_ylabel("robust accuracy (%)")
    for ax in list_bottom(axes):
        ax.set_xlabel("signed mass under attack")
    question = "Are classes of higher signed mass more robust?"
    add_title(figure, f"{question} ({describe_layers(layers)})")
    note = (
        f"{SIGNED_NOTE}; robust: {describe_worst_case(result)}; activation under "
        f"{describe_attack(result)}; bars and brackets: {describe_level(result)}; ρ: rank "
        "correlation of the two over the classes"
    )
    numbers = ["a number: a class" + (":" if key else ""), *key] if numbered else []
    add_legend(figure, note=note, key=numbers)
    return figure


def _draw_classes(ax: Axes, data: pd.DataFrame, look: dict[str, Any], numbered: bool) -> None:
    classes, across = data.iloc[:-1], data.iloc[-1]
    x, beside = error_bars(classes, *_SIGNED)
    y, above = error_bars(classes, *_ACCURACY)
    value, low, high = (float(across[column]) for column in _SIGNED)
    rho = "undefined" if np.isnan(value) else format_interval(value, low, high)
    ax.set_title(f"ρ {rho}", size=current_style().small)
    if np.isnan(x + y).all():
        write_in_panel(ax, "no class has a correlation")
        return
    colour = look["color"]
    bars: dict[str, Any] = {"elinewidth": 0.5, "alpha": 0.4 if numbered else 0.2, "zorder": 2}
    ax.errorbar(x, y, above, beside, fmt="none", ecolor=colour, **bars)
    ax.plot(x, y, **(look | {"linestyle": "none", "markersize": 2, "mew": 0.5}))


def describe_alignment_robustness(data: pd.DataFrame) -> str:
    """Say the correlation across classes, and the classes at both ends."""

    def describe(rows: pd.DataFrame) -> str:
        value, low, high = (float(rows.iloc[-1][name]) for name in _SIGNED)
        rho = f"ρ across classes {format_interval(value, low, high)}"
        classes = rows[:-1].dropna(subset=["accuracy"]).sort_values("accuracy", kind="stable")
        if classes.empty:
            return rho
        lowest, highest = (
            f"{format_percent(classes.iloc[end]['accuracy'])} (class {classes.iloc[end]['class']})"
            for end in (0, -1)
        )
        return f"{rho}, robust accuracy from {lowest} to {highest}"

    return describe_each(data, ["model"], describe)


# ----------------------------------------------------------------------------------- class by class


def classes_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, class (the most robust first), measure -> value, low, high."""
    names = rank_classes(result) or result.meta["data"]["classes"]
    if len(names) > LABELLED:
        names = extreme_classes(result, LABELLED // 2)
    parts = []
    for (model, name), measure in product(choose_layers(result, layer).items(), _PANELS):
        if measure == "robust_accuracy":
            intervals = robust_by_class(result, model, names)
        else:
            where = {"model": model, "layer": name, "measure": measure}
            intervals = intervals_by_class(select_rows(result.alignment, **where), names)
        part = pd.DataFrame(intervals, columns=["value", "low", "high"])
        parts.append(part.assign(model=model, layer=name, measure=measure, **{"class": names}))
    columns = ["model", "layer", "class", "measure", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_classes(result: "Result", layer: str | None = None) -> Figure:
    """Draw each class's robust accuracy, alignment and NR mass: a row a class, a dot a model.

    With more than 24 classes only the 12 most and the 12 least robust ones are shown.
    """
    data, layers = classes_data(result, layer), choose_layers(result, layer)
    names = list(data["class"].unique())
    robust = f"robust: {describe_worst_case(result)}"
    note = join_notes(result, [robust, ALIGNMENT_NOTE, NR_NOTE])
    row = max(0.05 + 0.05 * len(layers), 0.14)
    count = max(len(names), 3)
    figure, axes = make_grid(1, 3, row * count, 0.3, 0.12 * count, sharey=True)
    looks = choose_looks(result)
    offsets = dict(zip(layers, np.linspace(-0.3, 0.3, len(layers) + 2)[1:-1], strict=True))
    size: dict[str, Any] = {"markersize": 2.5, "elinewidth": 0.6, "linestyle": "none"}
    for ax, measure in zip(axes[0], data["measure"].unique(), strict=True):
        for model, offset in offsets.items():
            value, bars = error_bars(select_rows(data, model=model, measure=measure))
            look = looks[model] | size
            ax.errorbar(value, np.arange(len(names)) + offset, xerr=bars, **look)
        _label_column(ax, measure, len(names))
    axes[0, 0].set_yticks(range(len(names)), [describe_class(name, 12) for name in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    several = ", sorted by mean robust accuracy over the models"
    order = several if len(layers) > 1 else ", the most robust first"
    add_title(figure, f"Each class{order}, {describe_layers(layers)}")
    add_model_legend(figure, result, layers, note)
    return figure


def join_notes(result: "Result", notes: Sequence[str], attack: str | None = None) -> str:
    """Return a legend's note: what the axes' words mean, the attack, the bars."""
    made = f"adversarial: {attack or describe_attack(result)}"
    return "; ".join([*notes, made, f"bars: {describe_level(result)}"])


def _label_column(ax: Axes, measure: str, rows: int) -> None:
    words = _PANELS[measure]
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.set_xlabel(words)
    if measure == "robust_accuracy":
        label_percent(ax, words, "x")
    for place in range(1, rows):
        ax.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    if measure == "nr_mass_adversarial":
        label_percent(ax, words, "x")


def describe_classes(data: pd.DataFrame) -> str:
    """Say between which classes each measure lies."""

    def describe(rows: pd.DataFrame) -> str:
        parts = []
        for measure, values in rows.dropna(subset=["value"]).groupby("measure", sort=False):
            ends = values.sort_values("value", kind="stable").iloc[[0, -1]].to_dict("records")
            span = " to ".join(f"{format_number(end['value'])} ({end['class']})" for end in ends)
            parts.append(f"{str(measure).replace('_', ' ')} {span}")
        return ", ".join(parts) or "no images"

    return describe_each(data, ["model"], describe)


register(
    Analysis(
        name="alignment",
        help="how an attack changes the activation of channels, in measures by class",
        tables={"alignment": TABLE},
        compute=compute_alignment,
        check=lambda result: check_layers(result, "alignment"),
        plots=(
            Plot(
                name="nr-mass",
                draw=draw_nr_mass,
                data=nr_mass_data,
                alt_text=describe_nr_mass,
                caption=(
                    "NR mass: share of the relevant activation (activation times relevance) that "
                    "lies on negatively relevant (NR) channels, per class and as the mean over the "
                    "classes. {layers} {adversarial} {bars}"
                ),
                section="claims",
                order=20,
                claims=("c2", "c5"),
                table="alignment",
                needs=("robustness",),
                subjects=by_layer,
            ),
            Plot(
                name="alignment-robustness",
                draw=draw_alignment_robustness,
                data=alignment_robustness_data,
                alt_text=describe_alignment_robustness,
                caption=(
                    "Robust accuracy of each class against its signed mass on adversarial images: "
                    "1 where all active channels speak for the class, -1 where all speak against "
                    "it. ρ is the rank correlation of the two over the classes. {layers} "
                    "{adversarial} {robust} {mixed_bars}"
                ),
                section="claims",
                order=30,
                claims=("c3",),
                table="alignment",
                needs=("robustness",),
                subjects=by_layer,
            ),
            Plot(
                name="classes",
                draw=draw_classes,
                data=classes_data,
                alt_text=describe_classes,
                caption=(
                    "Each class: its robust accuracy; its alignment, the cosine of what its "
                    "natural and its adversarial magnitudes (mean activations) have beside the "
                    "mean of all classes, 1 where the attack leaves them in proportion; and its NR "
                    "mass, the share of the relevant activation that lies on negatively relevant "
                    "channels under attack. {layers} {adversarial} {robust} {mixed_bars}"
                ),
                section="network",
                order=20,
                claims=("c1", "c2", "c3"),
                table="alignment",
                needs=("robustness",),
                subjects=by_layer,
            ),
        ),
    )
)
