"""The figures of the whole network: by depth, by class, by strength of the attack, and its class means at a glance."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, BboxBase

from channelscope.comparison import Comparison
from channelscope.errors import UserError
from channelscope.figures import frames
from channelscope.figures.axes import (
    area,
    data_legend,
    empty,
    from_zero,
    grid,
    in_lines,
    in_percent,
    model_legend,
    model_look,
    title,
)
from channelscope.figures.drawing import LABELLED, class_key
from channelscope.figures.paper import COLOURS, current, styled

_NATURAL: dict[str, Any] = {"linestyle": "--", "marker": None}
# What panels show: words for the axis, and whether it is a share.
_WORDS = {
    "robust_accuracy": ("robust\naccuracy", True),
    "cosine": ("cosine of mean\nactivations", False),
    "nr_share": ("activation on\nNR channels", True),
    "relevance_spearman": ("ρ of activation\nand relevance", False),
}
_NARROW = {
    "robust_accuracy": "robust\naccuracy",
    "cosine": "cosine of mean\nactivations",
    "nr_ratio": "NR share:\nadversarial\n/ natural",
}
_COSINE = "cosine: of a layer's mean activations, natural with adversarial"
_NR = "NR channels: negatively relevant, they speak against the class"
_RHO = "ρ: Spearman's rank correlation"


def depth_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `depth` draws: model, place on the axis, layer, measure, data -> value, low, high (mean over classes).

    The measures: cosine (of natural and adversarial magnitude, so of data "both"), nr_share and relevance_spearman.
    """
    if not any(len(names) > 1 for names in frames.layers_by_model(comparison).values()):
        raise UserError(
            "Only one layer was measured of each model: compare several, as with --layers 'layer*.*'."
        )
    found = []
    for model, layers in frames.layers_by_model(comparison).items():
        for (place, layer), (measure, data) in product(enumerate(layers, start=1), _by_data()):
            name = measure if data == "both" else f"{measure}_{data}"
            of_all = {"model": model, "layer": layer, "class": "all", "measure": name}
            found.append(
                (
                    model,
                    place,
                    layer,
                    measure,
                    data,
                    *frames.interval(comparison.alignment, **of_all),
                )
            )
    return pd.DataFrame(
        found, columns=["model", "place", "layer", "measure", "data", "value", "low", "high"]
    )


def _by_data() -> list[tuple[str, str]]:
    return [("cosine", "both"), *product(("nr_share", "relevance_spearman"), COLOURS)]


@styled
def depth(comparison: Comparison) -> Figure:
    """Draw how alignment changes from layer to layer: a panel for each measure, a line for each model.

    Dashed lines are natural images. Bars are the comparison's intervals. Raises UserError where only one layer of each
    model was measured.
    """
    drawn = depth_data(comparison)
    names = list(
        dict.fromkeys(
            tuple(rows["layer"].unique()) for _, rows in drawn.groupby("model", sort=False)
        )
    )
    ticks = [*map(frames.short_layer, names[0])] if len(names) == 1 else []
    upright = (
        0 if sum(map(len, ticks)) <= 40 else max(map(len, ticks))
    )  # letters of names that have to stand
    figure, axes = grid(3, 1, 0.95, 1.32 + 0.055 * upright, sharex=True)
    for ax, measure in zip(axes[:, 0], drawn["measure"].unique(), strict=True):
        for index, model in enumerate(frames.models(comparison)):
            for data, lines in frames.rows(drawn, model=model, measure=measure).groupby(
                "data", sort=False
            ):
                _line(ax, lines, "place", index, **_NATURAL if data == "natural" else {})
        _name(ax, measure)
    places = range(1, 1 + drawn["place"].max())
    axes[-1, 0].set_xticks(places, ticks or [*map(str, places)], rotation=90 if upright else 0)
    axes[-1, 0].set_xlabel("layer, from the images to the answer")
    title(figure, "What an attack does to the channels, by depth (mean over the classes)")
    dashed = Line2D([], [], color="0.4", label="dashed: natural images", linestyle="--")
    note = _note(comparison, "solid: on adversarial images", _COSINE, _NR, _RHO)
    model_legend(figure, frames.models(comparison), note, dashed)
    return figure


def _note(comparison: Comparison, *words: str, attack: str | None = None) -> str:
    """What the legend says besides: what is meant by the words of the axes, the attack, the bars."""
    made = f"adversarial: {attack or frames.attack(comparison)}"
    return in_lines("; ".join([*words, made, f"bars: {frames.level(comparison)}"]))


def _line(ax: Axes, drawn: pd.DataFrame, along: str, index: int, **options: Any) -> None:
    """Draw one model's values with their bars."""
    value, reach = frames.bars(drawn)
    look = model_look(index) | {"markersize": 3, "elinewidth": 0.6, "linewidth": 0.9} | options
    ax.errorbar(drawn[along], value, reach, **look)


def _name(ax: Axes, measure: str) -> None:
    words, is_share = _WORDS[measure]
    ax.set_ylabel(words)
    if is_share:
        in_percent(ax, words)
        from_zero(ax)


def classes_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `classes` draws: model, layer, class (the most robust first), measure -> value, low, high."""
    layers = frames.layers(comparison, layer)
    names = frames.ranked(comparison) or frames.classes(comparison)
    if len(names) > LABELLED:
        names = frames.extremes(comparison, LABELLED // 2)
    found = []
    for (model, name), class_name in product(layers.items(), names):
        found.append(
            (
                model,
                name,
                class_name,
                "robust_accuracy",
                *frames.robust(comparison, model, class_name),
            )
        )
        for measure in ("cosine", "nr_ratio"):
            where = {"model": model, "layer": name, "class": class_name, "measure": measure}
            found.append(
                (model, name, class_name, measure, *frames.interval(comparison.alignment, **where))
            )
    return pd.DataFrame(
        found, columns=["model", "layer", "class", "measure", "value", "low", "high"]
    )


@styled
def classes(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw each class's robust accuracy, cosine and NR ratio side by side: a row for each class, a dot for each model.

    Bars are the comparison's intervals. With more than 24 classes only the 12 most and the 12 least robust ones are
    shown. `layer` defaults to each model's last one. Raises UserError for an unknown layer.
    """
    drawn, layers = classes_data(comparison, layer), frames.layers(comparison, layer)
    names = list(drawn["class"].unique())
    figure, axes = grid(
        1, 3, max(0.05 + 0.05 * len(layers), 0.14) * max(len(names), 3), 1.45, sharey=True
    )
    beside = np.linspace(-0.3, 0.3, len(layers) + 2)[1:-1]
    for ax, measure in zip(axes[0], drawn["measure"].unique(), strict=True):
        for index, model in enumerate(frames.models(comparison)):
            rows = frames.rows(drawn, model=model, measure=measure)
            if len(rows):
                value, reach = frames.bars(rows)
                places = np.arange(len(names)) + beside[list(layers).index(model)]
                look = model_look(index) | {
                    "markersize": 2.5,
                    "elinewidth": 0.6,
                    "linestyle": "none",
                }
                ax.errorbar(value, places, xerr=reach, **look)
        _across(ax, measure, len(names))
    axes[0, 0].set_yticks(range(len(names)), [frames.class_called(name, 12) for name in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    order = (
        ", sorted by mean robust accuracy over the models"
        if len(layers) > 1
        else ", the most robust first"
    )
    title(figure, f"Each class{order}, {frames.where(layers)}")
    robust = f"robust: {frames.worst(comparison)}; dashed: no change"
    model_legend(figure, frames.models(comparison), _note(comparison, robust, _COSINE, _NR))
    return figure


def _across(ax: Axes, measure: str, rows: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.set_xlabel(_NARROW[measure])
    if measure == "robust_accuracy":
        in_percent(ax, _NARROW[measure], "x")
    for place in range(1, rows):
        ax.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    if measure == "nr_ratio":
        ax.axvline(1, color="0.6", linewidth=0.6, linestyle="--", zorder=0)


def decay_data(comparison: Comparison, varied: str, layer: str | None = None) -> pd.DataFrame:
    """Give what `decay` draws: model, layer, measure, at -> value, low, high (means over the classes).

    `at` is the radius in image units or the number of steps. Raises UserError where nothing was swept.
    """
    swept = frames.rows(comparison.decay, varied=varied)
    if swept.empty:
        raise UserError(f"No {varied} was swept: compare with --{varied}-sweep.")
    found = []
    measures = {
        "robust_accuracy": "robust_accuracy",
        "cosine": "cosine",
        "nr_share": "nr_share_adversarial",
        "relevance_spearman": "relevance_spearman_adversarial",
    }
    for (model, name), (measure, column) in product(
        frames.layers(comparison, layer).items(), measures.items()
    ):
        rows = frames.rows(
            swept, model=model, measure=column, layer="" if measure == "robust_accuracy" else name
        )
        found.append(rows.assign(layer=name, measure=measure))
    return pd.concat(found, ignore_index=True)[
        ["model", "layer", "measure", "at", "value", "low", "high"]
    ]


@styled
def decay(comparison: Comparison, varied: str, layer: str | None = None) -> Figure:
    """Draw how alignment and accuracy change as the attack gets stronger: a panel for each measure, a line per model.

    Bars are the comparison's intervals. `varied` is "eps" or "step", `layer` defaults to each model's last one. Raises
    UserError where that was not swept.
    """
    drawn, layers = decay_data(comparison, varied, layer), frames.layers(comparison, layer)
    drawn = drawn.assign(at=drawn["at"] * (255 if varied == "eps" else 1))
    figure, axes = grid(2, 2, 1.25, 1.19, sharex=True)
    for ax, measure in zip(axes.flat, drawn["measure"].unique(), strict=True):
        for index, model in enumerate(frames.models(comparison)):
            rows = frames.rows(drawn, model=model, measure=measure)
            if len(rows):
                _line(ax, rows, "at", index)
        _name(ax, measure)
    for ax in axes[-1]:
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("radius ε (1/255)" if varied == "eps" else "steps")
    grows = "the attack grows" if varied == "eps" else "the attack goes on"
    title(figure, f"Alignment as {grows}, {frames.where(layers)}")
    if varied == "eps":
        made = frames.in_capitals(comparison.meta["attack"])
    else:
        made = f"{frames.attack(comparison)}, after so many of its steps"
    model_legend(
        figure, frames.models(comparison), _note(comparison, _COSINE, _NR, _RHO, attack=made)
    )
    return figure


def embedding_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `embedding` draws: model, layer, class, data -> x, y, and the variance that each axis explains.

    x and y are the first two principal components of the magnitudes (classes, natural and adversarial, by channels).
    Classes without images are left out.
    """
    parts = []
    for model, name in frames.layers(comparison, layer).items():
        measured = frames.rows(comparison.activations, model=model, layer=name)
        means = measured.pivot(
            index=["class", "data"], columns="channel", values="magnitude"
        ).dropna()
        places, explained = _plane(means.to_numpy())
        part = means.index.to_frame(index=False).assign(
            model=model, layer=name, x=places[:, 0], y=places[:, 1]
        )
        parts.append(part.assign(explained_x=explained[0], explained_y=explained[1]))
    return pd.concat(parts)[
        ["model", "layer", "class", "data", "x", "y", "explained_x", "explained_y"]
    ]


def _plane(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place rows in the plane of their first two principal components: (n, 2), and the variance's shares (2,)."""
    from sklearn.decomposition import PCA

    places, explained, count = np.zeros((len(means), 2)), np.zeros(2), min(2, *means.shape)
    if count and np.ptp(means, axis=0).any():
        found = PCA(n_components=count, svd_solver="full").fit(means)
        places[:, :count], explained[:count] = (
            found.transform(means),
            found.explained_variance_ratio_,
        )
        places[:, explained < 1e-9] = 0  # rounding is no direction
    return places, explained


@styled
def embedding(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw where an attack moves the classes: an arrow from each class's natural mean activation to its adversarial.

    A panel for each model, in the plane of the first two principal components of its class means. `layer` defaults to
    each model's last one. Raises UserError for an unknown layer.
    """
    drawn, layers = embedding_data(comparison, layer), frames.layers(comparison, layer)
    names = frames.classes(comparison)
    figure, axes = grid(
        -(-len(layers) // 2), min(2, len(layers)), 1.6, 1.1 + 0.12 * len(class_key(names))
    )
    for ax, model in zip(axes.flat, layers, strict=False):
        rows = frames.rows(drawn, model=model)
        ax.set_title(frames.short(model), loc="left", weight="bold")
        if rows.empty:
            empty(ax, "no images")
            continue
        _arrows(ax, rows)
        for side, which, name in (("x", 1, ax.set_xlabel), ("y", 2, ax.set_ylabel)):
            getattr(ax, f"{side}axis").set_major_locator(MaxNLocator(4))
            name(
                f"component {which}:\n{frames.percent(rows[f'explained_{side}'].iloc[0], 0)} of variance"
            )
    for ax in [*axes.flat][len(layers) :]:
        ax.remove()
    title(figure, f"Mean activation of each class under attack, {frames.where(layers)}")
    data_legend(figure, frames.attack(comparison))
    note = in_lines(
        "a line joins a class to itself under attack; each model has principal components (PCA) of its own"
    )
    figure.legends[0].set_title("\n".join([*class_key(names), note]))
    if len(names) <= LABELLED:
        figure.draw_without_rendering()  # which gives panels their places: numbers are set where there is room
        for ax, model in zip(axes.flat, layers, strict=False):
            numbers = {name: str(number) for number, name in enumerate(names)}
            _number(ax, frames.rows(drawn, model=model), numbers, 72 / figure.dpi)
    return figure


def _arrows(ax: Axes, drawn: pd.DataFrame) -> None:
    for _, both in drawn.groupby("class", sort=False):
        ends = {data: both[both["data"] == data][["x", "y"]].to_numpy()[0] for data in COLOURS}
        arrow = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", ends["adversarial"], ends["natural"], arrowprops=arrow, zorder=1)
        for data, place in ends.items():
            ax.plot(*place, marker="o", markersize=3, color=COLOURS[data], linestyle="none")


def _number(ax: Axes, drawn: pd.DataFrame, numbers: Mapping[str, str], point: float) -> None:
    """Write each class's number beside its natural dot, or where that is crowded at the end of a line that leads there.

    The nearest place is taken that hides neither a dot nor another number. ``point``: points a pixel.
    """
    points = ax.transData.transform(drawn[["x", "y"]]) * point
    frame = ax.get_window_extent().transformed(Affine2D().scale(point))
    taken = [(x, y, 2.0, 2.0) for x, y in points]
    for (x, y), row in zip(points, drawn.itertuples(), strict=True):
        if row.data != "natural":
            continue
        number = numbers[str(row[3])]
        half = 0.36 * current().small * len(number), 0.42 * current().small
        dx, dy = _room((x, y), half, taken, frame)
        taken.append((x + dx, y + dy, *half))
        far = np.hypot(dx, dy) > 1.5 * current().small
        lead = {
            "arrowstyle": "-",
            "color": COLOURS["natural"],
            "linewidth": 0.4,
            "shrinkA": 0,
            "shrinkB": 1,
        }
        ax.annotate(
            number,
            (row.x, row.y),
            (dx, dy),
            textcoords="offset points",
            arrowprops=lead | {"relpos": (0.5, 0.5)} if far else None,
            size=current().small,
            color=COLOURS["natural"],
            ha="center",
            va="center",
        ).set_in_layout(False)


def _room(
    at: tuple[float, float],
    half: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
    frame: BboxBase,
) -> tuple[float, float]:
    """The shortest way (in points) from a dot to where a text of this half size hides nothing that is taken."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 4
    ways = [(r * np.cos(turn), r * np.sin(turn)) for r in np.arange(6, 60, 1.5) for turn in turns]
    for dx, dy in ways:
        x, y = at[0] + dx, at[1] + dy
        inside = (
            frame.x0 + half[0] <= x <= frame.x1 - half[0]
            and frame.y0 + half[1] <= y <= frame.y1 - half[1]
        )
        if inside and all(
            abs(x - a) > half[0] + w or abs(y - b) > half[1] + h for a, b, w, h in taken
        ):
            return dx, dy
    return ways[0]


def uniformity_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `uniformity` draws: model, layer, data, place -> frequency, and uniformity with low and high.

    frequency is that of each class's most frequent channel (place 1), its second and so on, mean over the classes.
    """
    parts = []
    for (model, layer_name), data in product(frames.layers(comparison, layer).items(), COLOURS):
        rows = frames.rows(comparison.activations, model=model, layer=layer_name, data=data)
        by_class = (
            rows.pivot(index="class", columns="channel", values="frequency").dropna().to_numpy()
        )
        profile = pd.DataFrame(-np.sort(-by_class, axis=1)).mean()
        found = pd.DataFrame({"place": np.arange(1, len(profile) + 1), "frequency": profile})
        where = {
            "model": model,
            "layer": layer_name,
            "class": "all",
            "measure": f"uniformity_{data}",
        }
        even, low, high = frames.interval(comparison.alignment, **where)
        parts.append(
            found.assign(
                model=model, layer=layer_name, data=data, uniformity=even, low=low, high=high
            )
        )
    columns = ["model", "layer", "data", "uniformity", "low", "high", "place", "frequency"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def uniformity(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw how evenly the channels are active: their frequency, sorted, on natural and on adversarial images.

    A panel for each model, the mean over the classes, as in Bai et al., ICLR 2021; the titles have the measure
    (``alignment.uniformity``) with its interval. `layer` defaults to each model's last one. Raises UserError for an
    unknown layer.
    """
    drawn, layers = uniformity_data(comparison, layer), frames.layers(comparison, layer)
    figure, axes = grid(len(layers), 1, 1.1, 0.95)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        for data in COLOURS:
            rows = frames.rows(drawn, model=model, data=data)
            edges = np.arange(len(rows) + 1) + 0.5
            fill = (
                {"fill": True, "alpha": 0.25, "linewidth": 0}
                if data == "natural"
                else {"baseline": None}
            )
            ax.stairs(rows["frequency"], edges, color=COLOURS[data], **fill)
            ax.set_xlim(0.5, len(rows) + 0.5)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ax.set_ylim(0, 1.05)
        in_percent(ax, "active on\nimages")
        ax.set_title(frames.short(model, 16), loc="left", weight="bold")
        evenness = [_evenness(frames.rows(drawn, model=model, data=data)) for data in COLOURS]
        said = f"uniformity: natural {evenness[0]}\n→ adversarial {evenness[1]}"
        ax.set_title(said, loc="right", size=current().small)
    axes[-1, 0].set_xlabel("channel, each class's most frequent first")
    title(figure, f"How evenly channels are active, {frames.where(layers)}")
    note = "uniformity: entropy of the frequencies; 1: all channels are equally often active"
    data_legend(figure, frames.attack(comparison), "-", note=note, natural=area())
    return figure


def _evenness(drawn: pd.DataFrame) -> str:
    value = float(drawn["uniformity"].iloc[0])
    return "–" if np.isnan(value) else f"{value:.3f}"
