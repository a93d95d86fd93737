"""The figures: each a function of a comparison, drawn from its frames alone, never from a network."""

import textwrap
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest
from channelscope.plots import frames
from channelscope.plots.paper import COLOURS, COLUMN, MODEL_COLOURS, MODEL_MARKERS, styled

LABELLED = 24  # the most classes that one figure names
TRAINED: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 0.8}  # on the training images


def _grid(rows: int, columns: int, height: float, beside: float = 0.75, **options: Any) -> tuple[Figure, np.ndarray]:
    """`height` in inches is each row's, `beside` that of the title, the legend and the last row's labels."""
    figure = Figure(figsize=(COLUMN, height * rows + beside), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(labelsize=6.5, length=2.5, width=0.6)  # not by the style: the user's would rule later drawings
    return figure, axes


def _title(figure: Figure, text: str) -> None:
    figure.suptitle("\n".join(textwrap.wrap(text, 44)), x=0.02, ha="left")


def _data_legend(figure: Figure, adversarial: str, linestyle: Literal["-", "none"] = "none", *further: Artist) -> None:
    handles = [
        Line2D([], [], color=COLOURS[data], label=label, linestyle=linestyle, marker="o", markersize=3.5)
        for data, label in (("natural", "natural"), ("adversarial", f"adversarial ({adversarial})"))
    ]
    figure.legend(handles=[*handles, *further], loc="outside lower center", ncols=1 if further else 2)


def _in_percent(ax: Axes, label: str) -> None:
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}"))
    ax.set_ylabel(f"{label} (%)")


def _empty(ax: Axes, reason: str) -> None:
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.4")


def _from_zero(*sharing: Axes) -> None:
    """Start the axis that these axes share at 0, unless there are values below: layers without a ReLU have them.

    To be called once all is drawn, as it ends the adaptation of the axis to what is drawn.
    """
    if min(ax.dataLim.y0 for ax in sharing) >= 0:
        highest = max(ax.dataLim.y1 for ax in sharing)
        sharing[0].set_ylim(0, 1.05 * highest if 0 < highest < np.inf else 1)


def _markers(channels: int) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "none", "markersize": float(np.clip(160 / channels, 1.2, 3.5)), "mew": 0}


def _profile(comparison: Comparison, quantity: str, class_name: str, layer: str | None) -> Figure:
    known = frames.classes(comparison)
    if class_name not in known:
        raise UserError(f"No class {class_name!r} in this comparison.{suggest(class_name, known)}")
    layers = frames.layers(comparison, layer)
    figure, axes = _grid(len(layers), 1, 1.05)
    for ax, (model, name) in zip(axes[:, 0], layers.items(), strict=True):
        rows = frames.rows(comparison.activations, **{"class": class_name, "model": model, "layer": name})
        natural, adversarial = (frames.rows(rows, data=data)[quantity].to_numpy(float) for data in COLOURS)
        ax.set_ylabel(quantity)
        if quantity == "frequency":
            ax.set_ylim(0, 1.05)
            _in_percent(ax, quantity)
        _channels(ax, natural, adversarial)
        ax.set_title(frames.short(model, 24), loc="left", weight="bold")
        ax.set_title(f"robust accuracy {frames.percent(frames.robust(comparison, model, class_name)[0])}", loc="right")
    axes[-1, 0].set_xlabel(f"channel, sorted by the model's natural {quantity}")
    _title(figure, f"{frames.class_called(class_name)}: {quantity} per channel, {frames.where(layers)}")
    _data_legend(figure, frames.attack(comparison))
    return figure


def _channels(ax: Axes, natural: np.ndarray, adversarial: np.ndarray) -> None:
    if np.isnan(natural).all():
        _empty(ax, "no images of this class")
        return
    order, count = np.argsort(-natural, kind="stable"), len(natural)
    edges = np.arange(count + 1) + 0.5
    ax.stairs(natural[order], edges, fill=True, color=COLOURS["natural"], alpha=0.25, linewidth=0)
    ax.stairs(natural[order], edges, color=COLOURS["natural"], baseline=None)
    ax.plot(edges[1:] - 0.5, adversarial[order], color=COLOURS["adversarial"], **_markers(count))
    ax.set_xlim(0.5, count + 0.5)
    _from_zero(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


@styled
def magnitude(comparison: Comparison, class_name: str, layer: str | None = None) -> Figure:
    """Draw the magnitude of each channel on natural and on adversarial images of a class, one panel per model.

    Channels are sorted by that model's natural magnitude, as in Yan et al., ICML 2021, Figure 1. `layer` defaults to
    each model's last one. Raises UserError for an unknown class or layer.
    """
    return _profile(comparison, "magnitude", class_name, layer)


@styled
def frequency(comparison: Comparison, class_name: str, layer: str | None = None) -> Figure:
    """Draw how often each channel is active on natural and on adversarial images of a class, one panel per model.

    Channels are sorted by that model's natural frequency, as in Bai et al., ICLR 2021. `layer` defaults to each
    model's last one. Raises UserError for an unknown class or layer.
    """
    return _profile(comparison, "frequency", class_name, layer)


@styled
def relevance(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw magnitude against relevance per channel, a row per model: the most robust class, then the least robust.

    Each panel gives Spearman's correlation on natural and on adversarial images. `layer` defaults to each model's
    last one. Raises UserError for an unknown layer.
    """
    layers, classes = frames.layers(comparison, layer), frames.extremes(comparison)
    figure, axes = _grid(len(layers), len(classes), 1.25, 0.9, sharex="row", sharey="row")
    for row, (model, name) in zip(axes, layers.items(), strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            _scatter(ax, comparison, **{"class": class_name, "model": model, "layer": name})
            accuracy = frames.percent(frames.robust(comparison, model, class_name)[0], 0)
            ax.set_title(f"{frames.class_called(class_name, 10)}, robust {accuracy}", pad=12, size=6.5)
        _from_zero(*row)
        row[0].set_ylabel(f"{frames.short(model, 16)}\nmagnitude")
    for ax, extreme in zip(axes[0], ("most", "least"), strict=False):
        ax.set_title(f"{extreme} robust class:\n{ax.get_title()}", pad=12, size=6.5)
    for ax in axes[-1]:
        ax.set_xlabel("← NR   relevance   PR →\n(logits / activation)")
    _title(figure, f"Magnitude and relevance (Spearman ρ), {frames.where(layers)}")
    _data_legend(figure, frames.attack(comparison))
    return figure


def _scatter(ax: Axes, comparison: Comparison, **panel: str) -> None:
    rows = frames.rows(comparison.activations, **panel)
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--")
    for data, side, edge in (("natural", "left", 0), ("adversarial", "right", 1)):
        channels = frames.rows(rows, data=data)
        ax.plot(channels["relevance"], channels["magnitude"], color=COLOURS[data], alpha=0.7, **_markers(len(channels)))
        rho = frames.interval(comparison.alignment, **panel, measure=f"relevance_spearman_{data}")[0]
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side}
        ax.annotate(f"ρ {frames.number(rho)}", (edge, 1), (0, 3.5), color=COLOURS[data], size=6.5, **place)
    ax.xaxis.set_major_locator(MaxNLocator(4))


@styled
def nr_share(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw the share of activation mass on NR channels per class, natural and adversarial, one panel per model.

    Bars are the comparison's intervals; "mean" is the mean over the classes. With more than 24 classes only the
    12 most and the 12 least robust ones are shown. `layer` defaults to each model's last one. Raises UserError for
    an unknown layer.
    """
    layers, classes = frames.layers(comparison, layer), frames.classes(comparison)
    if len(classes) > LABELLED:
        classes = frames.extremes(comparison, LABELLED // 2)
    names = [*map(frames.short, classes), "mean"]
    figure, axes = _grid(len(layers), 1, 0.9, 0.6 + 0.055 * max(map(len, names)), sharex=True, sharey=True)
    places = np.arange(len(classes) + 1)
    for ax, (model, name) in zip(axes[:, 0], layers.items(), strict=True):
        measured = frames.rows(comparison.alignment, model=model, layer=name)
        for data, beside in (("natural", -0.15), ("adversarial", 0.15)):
            of_data = frames.rows(measured, measure=f"nr_share_{data}")
            share, reach = frames.reach(frames.interval(of_data, **{"class": c}) for c in [*classes, "all"])
            ax.errorbar(places + beside, share, reach, color=COLOURS[data], fmt="o", markersize=3, elinewidth=0.8)
        ax.axvline(len(classes) - 0.5, color="0.8", linewidth=0.6)
        ax.set_title(frames.short(model, 40), loc="left", weight="bold")
        _in_percent(ax, "NR share")
    _from_zero(*axes[:, 0])
    axes[-1, 0].set_xticks(places, names, rotation=90)
    _title(figure, f"Activation mass on NR channels, {frames.where(layers)}")
    _data_legend(figure, frames.attack(comparison))
    return figure


@styled
def alignment_robustness(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw each class's robust accuracy against Spearman's correlation of its adversarial magnitude with relevance.

    Colour and marker tell the model, the number in a marker the class; bars are the comparison's intervals, and the
    legend has the correlation across classes. With more than 24 classes the numbers are left out. `layer` defaults
    to each model's last one. Raises UserError for an unknown layer.
    """
    layers, classes = frames.layers(comparison, layer), frames.classes(comparison)
    key = _key(classes)
    figure, axes = _grid(1, 1, 2.5 + 0.14 * len(layers), 0.75 + 0.12 * len(key))
    ax = axes[0, 0]
    for index, (model, name) in enumerate(layers.items()):
        _classes_of_model(ax, comparison, index, model, name)
    if not any(np.isfinite(line.get_xydata()).all() and len(line.get_xydata()) for line in ax.lines):
        _empty(ax, "no class has a correlation")
    ax.set_xlabel("\n".join(["Spearman ρ of adversarial magnitude and relevance", *key]))
    _in_percent(ax, "robust accuracy")
    _title(figure, f"Robustness of classes by alignment, {frames.where(layers)}")
    how = f"adversarial: {frames.attack(comparison)}; robust: worst case of all attacks"
    figure.legend(title=how, loc="outside lower center", markerscale=0.6 if len(classes) <= LABELLED else 2)
    return figure


def _classes_of_model(ax: Axes, comparison: Comparison, index: int, model: str, layer: str) -> None:
    classes = frames.classes(comparison)
    measured = frames.rows(comparison.alignment, model=model, layer=layer)
    aligned = frames.rows(measured, measure="relevance_spearman_adversarial")
    x, across = frames.reach(frames.interval(aligned, **{"class": name}) for name in classes)
    y, up = frames.reach(frames.robust(comparison, model, name) for name in classes)
    rho = frames.bounded(*frames.interval(measured, **{"class": "across"}))
    colour, marker = MODEL_COLOURS[index % len(MODEL_COLOURS)], MODEL_MARKERS[index % len(MODEL_MARKERS)]
    numbered = len(classes) <= LABELLED
    size: dict[str, Any] = {"markersize": 8, "mfc": "white"} if numbered else {"markersize": 2, "mew": 0.5}
    ax.errorbar(x, y, up, across, fmt="none", ecolor=colour, elinewidth=0.5, alpha=0.6 if numbered else 0.2, zorder=2)
    ax.plot([], [], marker, color=colour, label=f"{frames.short(model)}: across classes ρ = {rho}", **size)
    for number in np.flatnonzero(np.isfinite(x + y)):
        above = 3 + index + number / len(classes)  # each marker hides the number of the one below it
        ax.plot(x[number], y[number], marker, color=colour, zorder=above, **size)
        if numbered:
            centre: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": above}
            ax.text(float(x[number]), float(y[number]), str(number), size=6.5, **centre)


def _key(classes: list[str]) -> list[str]:
    """Lines that say which class a number is; none when there are too many, or their names are the numbers."""
    if len(classes) > LABELLED or classes == [*map(str, range(len(classes)))]:
        return []
    names = [f"{number} {frames.short(name)}".replace(" ", "\u00a0") for number, name in enumerate(classes)]
    return textwrap.wrap("   ".join(names), 52)


@styled
def training(comparison: Comparison) -> Figure:
    """Draw each model's training loss and its accuracy on the validation images, natural and attacked, per epoch.

    A dotted line is the accuracy on the training images as they were trained on, where gates are given the labels; a
    dashed one marks the epoch whose network was kept. Raises UserError when no model has a training log.
    """
    logs = comparison.training
    models = [model for model in frames.models(comparison) if model in set(logs["model"])]
    if not models:
        raise UserError("No model of this comparison has a training log; train them with channelscope to draw one.")
    figure, axes = _grid(len(models), 2, 1.05, 1.0, sharex="row")
    for (left, right), model in zip(axes, models, strict=True):
        log = frames.rows(logs, model=model)
        left.plot(log["epoch"], log["loss"], ".-", color="0.2", markersize=3)
        right.plot(log["epoch"], log["accuracy"], **TRAINED)
        _by_epoch(right, log, natural="val_natural", adversarial="val_robust")
        _epochs(comparison, model, left, right)
        left.set_title(frames.short(model, 14), loc="left", weight="bold")
        left.set_ylabel("training loss")
        right.set_ylim(0, 1)
        right.set_title("validation images", loc="right")
        _in_percent(right, "accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    _title(figure, "Training (dashed: the epoch that was kept)")
    _data_legend(figure, "as set in training", "-", Line2D([], [], label="training images, as trained on", **TRAINED))
    return figure


def _by_epoch(ax: Axes, log: pd.DataFrame, **columns: str) -> None:
    """Draw a column of a log for each kind of data; epochs that were not measured are left out."""
    for data, column in columns.items():
        measured = log.dropna(subset=[column])
        ax.plot(measured["epoch"], measured[column], ".-", color=COLOURS[data], markersize=3, clip_on=False)


def _epochs(comparison: Comparison, model: str, *axes: Axes) -> None:
    """Number the epochs and mark the one that was kept."""
    log = frames.rows(comparison.training, model=model)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        for epoch in log.loc[log["best"].astype(bool), "epoch"]:
            ax.axvline(epoch, color="0.4", linestyle="--", linewidth=0.7)


@styled
def gates(comparison: Comparison) -> Figure:
    """Draw, per epoch, each CIFS gate's probe accuracy and the share of the channels that its mask lets through.

    A row for each model and gated layer, measured on the natural and the attacked validation images; the share is that
    of ``selection.mask_share``. A dashed line marks the epoch whose network was kept. Raises UserError when no model
    has a log of such gates.
    """
    panels = comparison.gates[["model", "layer"]].drop_duplicates().to_numpy().tolist()
    if not panels:
        raise UserError("No model of this comparison has a log of CIFS gates; train one with channelscope to draw it.")
    figure, axes = _grid(len(panels), 2, 1.15, sharex="row")
    for (left, right), (model, layer) in zip(axes, panels, strict=True):
        log = frames.rows(comparison.gates, model=model, layer=layer)
        _by_epoch(left, log, natural="probe_natural", adversarial="probe_robust")
        _by_epoch(right, log, natural="mask_natural", adversarial="mask_adversarial")
        _epochs(comparison, model, left, right)
        left.set_title(f"{frames.short(model, 16)}\n{frames.short_layer(layer)}", loc="left", weight="bold")
        for ax, label in ((left, "probe's\naccuracy"), (right, "channels\npassed")):
            ax.set_ylim(0, 1)
            _in_percent(ax, label)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    _title(figure, "Gates (dashed: the epoch that was kept)")
    _data_legend(figure, "as set in training", "-")
    return figure
