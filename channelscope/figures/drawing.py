"""The figures of the claims: what each shows as a table (``NAME_data``), and its drawing (``NAME``)."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest
from channelscope.figures import frames
from channelscope.figures.axes import (
    area,
    data_legend,
    empty,
    from_zero,
    grid,
    in_lines,
    in_percent,
    markers,
    model_look,
    title,
    wrapped,
)
from channelscope.figures.paper import COLOURS, current, styled

LABELLED = 24  # the most classes that one figure names
MEAN = "mean"  # of the classes, beside them
_SPEARMAN = ("spearman", "spearman_low", "spearman_high")
_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")


def _profile_data(
    comparison: Comparison, quantity: str, class_name: str, layer: str | None
) -> pd.DataFrame:
    known = frames.classes(comparison)
    if class_name not in known:
        raise UserError(f"No class {class_name!r} in this comparison.{suggest(class_name, known)}")
    parts = []
    for model, name in frames.layers(comparison, layer).items():
        of_class = frames.rows(
            comparison.activations, **{"class": class_name, "model": model, "layer": name}
        )
        channels = of_class.pivot(index="channel", columns="data", values=quantity)[
            [*COLOURS]
        ].reset_index()
        channels = channels.sort_values("natural", ascending=False, kind="stable").rename_axis(
            columns=None
        )
        place = range(1, len(channels) + 1)
        accuracy = frames.robust(comparison, model, class_name)[0]
        parts.append(
            channels.assign(place=place, model=model, layer=name, robust_accuracy=accuracy)
        )
    columns = ["model", "layer", "robust_accuracy", "place", "channel", *COLOURS]
    return pd.concat(parts, ignore_index=True)[columns]


def _profile(comparison: Comparison, quantity: str, class_name: str, layer: str | None) -> Figure:
    drawn = _profile_data(comparison, quantity, class_name, layer)
    layers = dict(drawn[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = grid(len(layers), 1, 1.05, 0.87)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        channels = frames.rows(drawn, model=model)
        ax.set_ylabel("mean activation")
        if quantity == "frequency":
            ax.set_ylim(0, 1.05)
            in_percent(ax, "active")
        _channels(ax, channels)
        ax.set_title(frames.short(model, 24), loc="left", weight="bold")
        ax.set_title(
            f"robust accuracy {frames.percent(channels['robust_accuracy'].iloc[0])}", loc="right"
        )
    axes[-1, 0].set_xlabel(f"channel, sorted by the model's natural {quantity}")
    shown = {
        "magnitude": "mean activation (magnitude)",
        "frequency": "share of images that activate it (frequency)",
    }
    title(
        figure,
        f"{frames.class_called(class_name)}: each channel's {shown[quantity]}, {frames.where(layers)}",
    )
    data_legend(
        figure,
        frames.attack(comparison),
        note=f"robust accuracy: {frames.worst(comparison)}",
        natural=area(),
    )
    return figure


def _channels(ax: Axes, channels: pd.DataFrame) -> None:
    if channels["natural"].isna().all():
        empty(ax, "no images of this class")
        return
    count = len(channels)
    natural, edges = channels["natural"].to_numpy(), np.arange(count + 1) + 0.5
    ax.stairs(natural, edges, fill=True, color=COLOURS["natural"], alpha=0.25, linewidth=0)
    ax.stairs(natural, edges, color=COLOURS["natural"], baseline=None)
    ax.plot(
        channels["place"], channels["adversarial"], color=COLOURS["adversarial"], **markers(count)
    )
    ax.set_xlim(0.5, count + 0.5)
    from_zero(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def magnitude_data(
    comparison: Comparison, class_name: str, layer: str | None = None
) -> pd.DataFrame:
    """Give what `magnitude` draws: model, layer, place on the axis, channel -> natural, adversarial magnitude."""
    return _profile_data(comparison, "magnitude", class_name, layer)


@styled
def magnitude(comparison: Comparison, class_name: str, layer: str | None = None) -> Figure:
    """Draw the magnitude of each channel on natural and on adversarial images of a class, one panel per model.

    Channels are sorted by that model's natural magnitude, as in Yan et al., ICML 2021, Figure 1. `layer` defaults to
    each model's last one. Raises UserError for an unknown class or layer.
    """
    return _profile(comparison, "magnitude", class_name, layer)


def frequency_data(
    comparison: Comparison, class_name: str, layer: str | None = None
) -> pd.DataFrame:
    """Give what `frequency` draws: model, layer, place on the axis, channel -> natural, adversarial frequency."""
    return _profile_data(comparison, "frequency", class_name, layer)


@styled
def frequency(comparison: Comparison, class_name: str, layer: str | None = None) -> Figure:
    """Draw how often each channel is active on natural and on adversarial images of a class, one panel per model.

    Channels are sorted by that model's natural frequency, as in Bai et al., ICLR 2021. `layer` defaults to each
    model's last one. Raises UserError for an unknown class or layer.
    """
    return _profile(comparison, "frequency", class_name, layer)


def relevance_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `relevance` draws: model, layer, class, data, channel -> relevance, magnitude.

    Spearman's correlation of the two is beside, and the class's robust accuracy.
    """
    parts = []
    layers, classes = frames.layers(comparison, layer), frames.extremes(comparison)
    for (model, name), class_name, data in product(layers.items(), classes, COLOURS):
        where = {"model": model, "layer": name, "class": class_name}
        rho = frames.interval(comparison.alignment, **where, measure=f"relevance_spearman_{data}")[
            0
        ]
        accuracy = frames.robust(comparison, model, class_name)[0]
        channels = frames.rows(comparison.activations, **where, data=data)
        parts.append(channels.assign(spearman=rho, robust_accuracy=accuracy))
    columns = [
        "model",
        "layer",
        "class",
        "robust_accuracy",
        "data",
        "spearman",
        "channel",
        "relevance",
        "magnitude",
    ]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def relevance(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw magnitude against relevance per channel, a row per model: the most robust class, then the least robust.

    Each panel gives Spearman's correlation on natural and on adversarial images. `layer` defaults to each model's
    last one. Raises UserError for an unknown layer.
    """
    drawn, layers = relevance_data(comparison, layer), frames.layers(comparison, layer)
    classes = list(drawn["class"].unique())
    figure, axes = grid(len(layers), len(classes), 1.25, 1.27, sharex="row", sharey="row")
    for row, model in zip(axes, layers, strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            channels = frames.rows(drawn, **{"model": model, "class": class_name})
            _scatter(ax, channels)
            accuracy = frames.percent(channels["robust_accuracy"].iloc[0], 0)
            ax.set_title(
                f"{frames.class_called(class_name, 10)}, robust {accuracy}",
                pad=12,
                size=current().small,
            )
        from_zero(*row)
        row[0].set_ylabel(f"{frames.short(model, 16)}\nmean activation")
    for ax, extreme in zip(axes[0], ("most", "least"), strict=False):
        ax.set_title(f"{extreme} robust class:\n{ax.get_title()}", pad=12, size=current().small)
    for ax in axes[-1]:
        ax.set_xlabel("← NR   relevance   PR →\n(logits / activation)")
    title(figure, f"Is a channel more active the more it speaks for the class? {_place(layers)}")
    note = (
        "a dot: a channel; ρ: Spearman's correlation; NR, PR: negatively, positively relevant: against, for the class; "
        f"robust: {frames.worst(comparison)}; most, least robust: mean over the models"
    )
    data_legend(figure, frames.attack(comparison), note=note)
    return figure


def _place(layers: dict[str, str]) -> str:
    return f"({frames.where(layers)})"


def _scatter(ax: Axes, drawn: pd.DataFrame) -> None:
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--")
    for data, side, edge in (("natural", "left", 0), ("adversarial", "right", 1)):
        channels = frames.rows(drawn, data=data)
        ax.plot(
            channels["relevance"],
            channels["magnitude"],
            color=COLOURS[data],
            alpha=0.7,
            **markers(len(channels)),
        )
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": side,
        }
        rho = f"ρ {frames.number(channels['spearman'].iloc[0])}"
        ax.annotate(rho, (edge, 1), (0, 3.5), color=COLOURS[data], size=current().small, **place)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def nr_share_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `nr_share` draws: model, layer, class ("mean" last), data -> share, low, high."""
    layers, classes = frames.layers(comparison, layer), frames.classes(comparison)
    if len(classes) > LABELLED:
        classes = frames.extremes(comparison, LABELLED // 2)
    found = []
    for (model, name), data, class_name in product(layers.items(), COLOURS, [*classes, "all"]):
        where = {"model": model, "layer": name, "class": class_name, "measure": f"nr_share_{data}"}
        shown = MEAN if class_name == "all" else class_name
        found.append((model, name, shown, data, *frames.interval(comparison.alignment, **where)))
    return pd.DataFrame(found, columns=["model", "layer", "class", "data", "share", "low", "high"])


@styled
def nr_share(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw the share of activation mass on NR channels per class, natural and adversarial, one panel per model.

    Bars are the comparison's intervals; "mean" is the mean over the classes. With more than 24 classes only the
    12 most and the 12 least robust ones are shown. `layer` defaults to each model's last one. Raises UserError for
    an unknown layer.
    """
    drawn, layers = nr_share_data(comparison, layer), frames.layers(comparison, layer)
    count = len(drawn) // (len(layers) * len(COLOURS))
    names = [*map(frames.short, drawn["class"][:count])]
    figure, axes = grid(
        len(layers), 1, 0.9, 0.8 + 0.055 * max(map(len, names)), sharex=True, sharey=True
    )
    places = np.arange(count)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        for data, beside in (("natural", -0.15), ("adversarial", 0.15)):
            share, reach = frames.bars(frames.rows(drawn, model=model, data=data), "share")
            ax.errorbar(
                places + beside,
                share,
                reach,
                color=COLOURS[data],
                fmt="o",
                markersize=1.8,
                elinewidth=0.9,
            )
        ax.axvline(count - 1.5, color="0.8", linewidth=0.6)
        ax.set_title(frames.short(model, 40), loc="left", weight="bold")
        in_percent(ax, "NR share")
    from_zero(*axes[:, 0])
    axes[-1, 0].set_xticks(places, names, rotation=90)
    title(
        figure,
        f"Share of the activation on negatively relevant (NR) channels, {frames.where(layers)}",
    )
    note = f"by class; NR: the channel speaks against the class; bars: {comparison.meta['level']:.0%} intervals"
    data_legend(figure, frames.attack(comparison), note=note)
    return figure


def alignment_robustness_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `alignment_robustness` draws: model, layer, class -> spearman, accuracy, each with low and high.

    The row of the class "across" has, in place of the classes' correlations, the one across them.
    """
    found: list[tuple[object, ...]] = []
    for model, name in frames.layers(comparison, layer).items():
        measured = frames.rows(comparison.alignment, model=model, layer=name)
        aligned = frames.rows(measured, measure="relevance_spearman_adversarial")
        for class_name in frames.classes(comparison):
            spearman = frames.interval(aligned, **{"class": class_name})
            found.append(
                (model, name, class_name, *spearman, *frames.robust(comparison, model, class_name))
            )
        across = frames.interval(measured, **{"class": "across"})
        found.append((model, name, "across", *across, *[float("nan")] * 3))
    return pd.DataFrame(found, columns=["model", "layer", "class", *_SPEARMAN, *_ACCURACY])


@styled
def alignment_robustness(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw each class's robust accuracy against Spearman's correlation of its adversarial magnitude with relevance.

    Colour and marker tell the model, the number in a marker the class; bars are the comparison's intervals, and the
    legend has the correlation across classes. With more than 24 classes the numbers are left out. `layer` defaults
    to each model's last one. Raises UserError for an unknown layer.
    """
    drawn, layers = alignment_robustness_data(comparison, layer), frames.layers(comparison, layer)
    key = class_key(frames.classes(comparison))
    numbered = len(frames.classes(comparison)) <= LABELLED
    figure, axes = grid(1, 1, 2.3 + 0.14 * len(layers), 1.2 + 0.12 * len(key))
    ax = axes[0, 0]
    for index, model in enumerate(layers):
        _classes_of_model(ax, frames.rows(drawn, model=model), index, numbered)
    if not any(
        np.isfinite(line.get_xydata()).all() and len(line.get_xydata()) for line in ax.lines
    ):
        empty(ax, "no class has a correlation")
    ax.set_xlabel(
        "alignment: Spearman's ρ of the channels' mean\nactivation under attack and relevance"
    )
    in_percent(ax, "robust accuracy")
    title(
        figure,
        f"Are classes robust whose activation follows the channels' relevance? {_place(layers)}",
    )
    how = (
        f"robust: {frames.worst(comparison)}; activation under {frames.attack(comparison)}; "
        f"bars and brackets: {frames.level(comparison)}; ρ over classes: rank correlation of the two axes"
    )
    numbers = ["number: the class" + (":" if key else ""), *key] if numbered else []
    heading = "\n".join([*numbers, in_lines(how)])
    figure.legend(title=heading, loc="outside lower center", markerscale=0.6 if numbered else 2)
    return figure


def _classes_of_model(ax: Axes, drawn: pd.DataFrame, index: int, numbered: bool) -> None:
    classes, across = drawn.iloc[:-1], drawn.iloc[-1]  # a class may be called "across"
    x, beside = frames.bars(classes, *_SPEARMAN)
    y, above = frames.bars(classes, *_ACCURACY)
    bounds = [float(across[column]) for column in _SPEARMAN]
    rho = "undefined" if np.isnan(bounds[0]) else frames.bounded(*bounds)
    look = model_look(index)
    colour, size = (
        look["color"],
        {"markersize": 8, "mfc": "white"} if numbered else {"markersize": 2, "mew": 0.5},
    )
    ax.errorbar(
        x,
        y,
        above,
        beside,
        fmt="none",
        ecolor=colour,
        elinewidth=0.5,
        alpha=0.6 if numbered else 0.2,
        zorder=2,
    )
    name = frames.short(str(across["model"]))
    ax.plot([], [], linestyle="none", label=f"{name}: ρ over classes {rho}", **look, **size)
    for number in np.flatnonzero(np.isfinite(x + y)):
        order = (
            3 + index + number / len(classes)
        )  # each marker hides the number of the one below it
        ax.plot(x[number], y[number], linestyle="none", zorder=order, **look, **size)
        if numbered:
            centre: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": order}
            ax.text(float(x[number]), float(y[number]), str(number), size=current().small, **centre)


def class_key(classes: list[str]) -> list[str]:
    """Lines that say which class a number is; none when there are too many, or their names are the numbers."""
    if len(classes) > LABELLED or classes == [*map(str, range(len(classes)))]:
        return []
    names = [
        f"{number} {frames.short(name)}".replace(" ", "\u00a0")
        for number, name in enumerate(classes)
    ]
    return wrapped("   ".join(names), 52)
