"""Activations: magnitude, frequency and relevance of each channel, by class and kind of data."""

from collections.abc import Iterator
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Subject,
    Table,
    register,
)
from channelscope.analyses.subjects import by_layer, list_layers
from channelscope.errors import UserError, suggest
from channelscope.figures.axes import (
    SPREAD_NOTE,
    add_data_legend,
    add_title,
    dot_look,
    label_percent,
    list_bottom,
    list_left,
    list_top,
    make_area_handle,
    make_panels,
    spread_small,
    start_at_zero,
    write_above,
    write_in_panel,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    DEAD_MARK,
    DEAD_NOTE,
    choose_layers,
    describe_attack,
    describe_class,
    describe_each,
    describe_layers,
    describe_worst_case,
    extreme_classes,
    find_interval,
    format_number,
    format_percent,
    list_groups,
    mark_dead,
    robust_by_class,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import frequency_by_class, mean_by_class

if TYPE_CHECKING:
    from channelscope.result import Result

EVERY_CLASS = 10  # up to so many classes each has its figures; else the most and the least robust

TABLE = Table(
    words=("model", "data", "layer"),
    numbers=("magnitude", "frequency", "relevance", "count"),
    help=(
        "of each class and channel, on natural and on adversarial data: magnitude, the mean "
        "activation; frequency, the share of images on which the channel is active; relevance, in "
        "logits per unit of activation; count, the class's images. NaN for a class without images"
    ),
    by_channel=True,
)


def compute_activations(study: Study) -> dict[str, Any]:
    """Compute the means of each class's activations and relevance, and its frequencies."""
    labels, classes = study.labels, len(study.classes)
    count = np.bincount(labels, minlength=classes)[:, None]
    groups: dict[tuple[str, str, str], dict[str, ndarray]] = {}
    for model in study.models:
        relevance = {
            layer: mean_by_class(study.relevance(model, layer), labels, classes)
            for layer in study.layers(model)
        }
        for data, layer in product(COLOURS, study.layers(model)):
            values = study.activations(model, layer, data)
            groups[model, data, layer] = {
                "magnitude": mean_by_class(values, labels, classes),
                "frequency": frequency_by_class(
                    values, labels, classes, study.settings["threshold"]
                ),
                "relevance": relevance[layer],
                "count": count,
            }
    return {"activations": groups}


def check_activations(result: "Result") -> None:
    """Check that every measured layer is there; raises ValueError where it is not."""
    groups = list_groups(result, "activations")
    wanted = [
        (model, data, layer)
        for model, known in result.meta["models"].items()
        for data, layer in product(COLOURS, known.get("layers", ()))
    ]
    if not wanted or set(groups) != set(wanted):
        raise ValueError("activations is of other layers than meta.json")
    for column, group in product(TABLE.numbers, groups):
        if np.isinf(result.array("activations", column, *group)).any():
            raise ValueError("activations holds values that are not finite")


# ------------------------------------------------------------ magnitude and frequency of a class


def _profile_data(
    result: "Result", quantity: str, class_name: str, layer: str | None
) -> pd.DataFrame:
    classes = result.meta["data"]["classes"]
    if class_name not in classes:
        raise UserError(f"No class {class_name!r} in this result.{suggest(class_name, classes)}")
    k = classes.index(class_name)
    parts = []
    for model, name in choose_layers(result, layer).items():
        values = {
            data: result.array("activations", quantity, model, data, name)[k] for data in COLOURS
        }
        order = np.argsort(-values["natural"], kind="stable")
        columns: dict[str, Any] = {
            "model": model,
            "layer": name,
            "robust_accuracy": robust_by_class(result, model, [class_name])[0, 0],
            "place": np.arange(1, len(order) + 1),
            "channel": order,
        }
        parts.append(pd.DataFrame(columns | {data: values[data][order] for data in COLOURS}))
    return pd.concat(parts, ignore_index=True)


def _draw_profile(result: "Result", quantity: str, class_name: str, layer: str | None) -> Figure:
    data = _profile_data(result, quantity, class_name, layer)
    layers = dict(data[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = make_panels(len(layers), 1, 1.15)
    spread = False
    for ax, model in zip(axes[:, 0], layers, strict=True):
        channels = select_rows(data, model=model)
        if quantity == "frequency":
            ax.set_ylim(0, 1.05)
            label_percent(ax, "")
        _draw_channels(ax, channels)
        if quantity == "magnitude":
            # The same for all classes, so that their figures can be compared.
            of_all = [
                result.array("activations", "magnitude", model, name, layers[model])
                for name in COLOURS
            ]
            spread |= spread_small(ax, "y", *of_all)
        accuracy = format_percent(channels["robust_accuracy"].iloc[0], 0)
        name = shorten(model, 24 if len(layers) == 1 else 8)
        ax.set_title(name, loc="left", weight="bold")
        ax.set_title(f"robust {accuracy}", loc="right", size=current_style().small)
    for ax in list_left(axes):
        ax.set_ylabel("mean activation" if quantity == "magnitude" else "active (%)")
    for ax in list_bottom(axes):
        ax.set_xlabel("channels, sorted")
    words = {
        "magnitude": "mean activation (magnitude)",
        "frequency": "share of images that activate it (frequency)",
    }
    where = describe_layers(layers)
    add_title(figure, f"{describe_class(class_name)}: each channel's {words[quantity]}, {where}")
    note = (
        f"a dot: a channel, sorted by the model's natural {quantity}; robust: accuracy on the "
        f"class, {describe_worst_case(result)}{SPREAD_NOTE if spread else ''}"
    )
    add_data_legend(figure, describe_attack(result), note=note, natural=make_area_handle())
    return figure


def _draw_channels(ax: Axes, channels: pd.DataFrame) -> None:
    if channels["natural"].isna().all():
        write_in_panel(ax, "no images of this class")
        return
    count = len(channels)
    natural, edges = channels["natural"].to_numpy(), np.arange(count + 1) + 0.5
    ax.stairs(natural, edges, fill=True, color=COLOURS["natural"], alpha=0.25, linewidth=0)
    ax.stairs(natural, edges, color=COLOURS["natural"], baseline=None)
    look = dot_look(count)
    ax.plot(channels["place"], channels["adversarial"], color=COLOURS["adversarial"], **look)
    ax.set_xlim(0.5, count + 0.5)
    start_at_zero(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def magnitude_data(result: "Result", class_name: str, layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, place on the axis, channel -> natural, adversarial magnitude."""
    return _profile_data(result, "magnitude", class_name, layer)


@styled
def draw_magnitude(result: "Result", class_name: str, layer: str | None = None) -> Figure:
    """Draw each channel's magnitude on a class's natural and adversarial images, a panel a model.

    Channels are sorted by that model's natural magnitude.
    """
    return _draw_profile(result, "magnitude", class_name, layer)


def frequency_data(result: "Result", class_name: str, layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, place on the axis, channel -> natural, adversarial frequency."""
    return _profile_data(result, "frequency", class_name, layer)


@styled
def draw_frequency(result: "Result", class_name: str, layer: str | None = None) -> Figure:
    """Draw how often each channel is active on a class's images, a panel a model.

    Channels are sorted by that model's natural frequency, as the release of CAS draws one class
    (Bai et al., ICLR 2021; ``plot_figure2.py``), there as numbers of images, here as shares.
    """
    return _draw_profile(result, "frequency", class_name, layer)


def describe_profile(data: pd.DataFrame) -> str:
    """Say how many channels an attack raises, and what becomes of their mean."""

    def describe(rows: pd.DataFrame) -> str:
        natural, adversarial = rows["natural"], rows["adversarial"]
        if natural.isna().all():
            return "no images"
        rise = f"under attack {int((adversarial > natural).sum())} of {len(rows)} channels rise"
        return f"{rise}, and their mean goes from {natural.mean():.3g} to {adversarial.mean():.3g}"

    return describe_each(data, ["model"], describe)


def by_class(result: "Result") -> Iterator[Subject]:
    """Return a figure for each class, the most and the least robust one first."""
    extremes, others = extreme_classes(result), extreme_classes(result, EVERY_CLASS // 2)
    layers = list_layers(result, last=True)
    for name, layer in product(dict.fromkeys([*extremes, *others]), layers):
        yield Subject({"class_name": name, "layer": layer}, main=name in extremes)


# ---------------------------------------------------------------- magnitude against relevance


def relevance_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, class, data, channel -> relevance, magnitude, of the extreme classes.

    Beside them Spearman's correlation of the two, the share of channels that never fire, and the
    class's robust accuracy.
    """
    classes = result.meta["data"]["classes"]
    layers = choose_layers(result, layer)
    parts = []
    for (model, name), class_name in product(layers.items(), extreme_classes(result)):
        accuracy = robust_by_class(result, model, [class_name])[0, 0]
        where = {"model": model, "layer": name, "class": class_name}
        alignment = select_rows(result.alignment, **where)
        dead = find_interval(alignment, measure="dead_channels")[0]
        shares = {"robust_accuracy": accuracy, "dead_channels": dead}
        for data in COLOURS:
            rho = find_interval(alignment, measure=f"relevance_spearman_{data}")[0]
            columns = shares | {"data": data, "spearman": rho}
            arrays = {
                column: result.array("activations", column, model, data, name)[
                    classes.index(class_name)
                ]
                for column in ("relevance", "magnitude")
            }
            channels = {"channel": np.arange(len(arrays["relevance"]))}
            parts.append(pd.DataFrame(where | columns | channels | arrays))
    return pd.concat(parts, ignore_index=True)


@styled
def draw_relevance(result: "Result", layer: str | None = None) -> Figure:
    """Draw magnitude against relevance per channel, a row a model, for the extreme classes.

    Each panel gives Spearman's correlation on natural and on adversarial images.
    """
    data, layers = relevance_data(result, layer), choose_layers(result, layer)
    classes = list(data["class"].unique())
    small = current_style().small
    figure, axes = make_panels(
        len(layers), len(classes), 1.2, 0.3, sharex="row", sharey="row", least=0.7
    )
    spread = False
    for row, model in zip(axes, layers, strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            channels = select_rows(data, **{"model": model, "class": class_name})
            _draw_dots(ax, channels)
            accuracy = format_percent(channels["robust_accuracy"].iloc[0], 0)
            ax.set_title(accuracy, size=small)
        start_at_zero(*row)
        of_model = select_rows(data, model=model)
        spread |= spread_small(row[0], "y", of_model["magnitude"].to_numpy())
        if spread_small(row[0], "x", of_model["relevance"].to_numpy()):
            spread = True
        else:
            row[0].xaxis.set_major_locator(MaxNLocator(4))
        row[0].set_ylabel(shorten(model, 14), weight="bold")
    figure.supylabel("mean activation", size=current_style().size)
    heads = dict(zip(classes, ("most", "least"), strict=False))
    for ax, class_name in zip(list_top(axes), cycle(classes), strict=False):
        head = f"{heads[class_name]} robust: {describe_class(class_name, 10)}"
        write_above(ax, head)
    for ax in list_bottom(axes):
        ax.set_xlabel("← NR  relevance  PR →")
    question = "Is a channel more active the more it speaks for the class?"
    add_title(figure, f"{question} ({describe_layers(layers)})")
    note = (
        "a dot: a channel; NR, PR: speaks against, for the class (logits per activation); above: "
        "ρ, Spearman's correlation, and the accuracy on the class "
        f"({describe_worst_case(result)})"
        f"{SPREAD_NOTE if spread else ''}"
    )
    if any(map(mark_dead, data["dead_channels"])):
        note += f"; {DEAD_MARK}: {DEAD_NOTE}"
    add_data_legend(figure, describe_attack(result), note=note)
    return figure


def _draw_dots(ax: Axes, data: pd.DataFrame) -> None:
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--")
    sides: dict[str, Literal["left", "right"]] = {"natural": "left", "adversarial": "right"}
    for name, side in sides.items():
        channels, colour = select_rows(data, data=name), COLOURS[name]
        look = dot_look(len(channels))
        ax.plot(channels["relevance"], channels["magnitude"], color=colour, alpha=0.7, **look)
        ax.set_title(
            f"ρ {_format_rho(channels)}", loc=side, color=colour, size=current_style().small
        )


def _format_rho(channels: pd.DataFrame) -> str:
    """Format the correlation of one panel and kind of data, marked where it rests on dead ones."""
    first = channels.iloc[0]
    return f"{format_number(first['spearman'])}{mark_dead(first['dead_channels'])}"


def describe_relevance(data: pd.DataFrame) -> str:
    """Say how magnitude and relevance correlate."""

    def describe(rows: pd.DataFrame) -> str:
        natural, adversarial = (_format_rho(select_rows(rows, data=name)) for name in COLOURS)
        text = f"ρ {natural} on natural images, {adversarial} on adversarial ones"
        return f"{text} ({DEAD_MARK}: {DEAD_NOTE})" if DEAD_MARK in text else text

    return describe_each(data, ["model", "class"], describe)


# ------------------------------------------------------------------- how evenly channels are active


def uniformity_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, data, place -> frequency; also uniformity with low and high.

    frequency is that of each class's most frequent channel (place 1), its second and so on, mean
    over the classes.
    """
    parts = []
    for (model, name), data in product(choose_layers(result, layer).items(), COLOURS):
        by_class = result.array("activations", "frequency", model, data, name)
        by_class = by_class[~np.isnan(by_class).any(1)]
        mean = (-np.sort(-by_class, axis=1)).mean(0) if len(by_class) else []
        where = {"model": model, "layer": name, "class": "all"}
        measure = f"uniformity_{data}"
        uniformity, low, high = find_interval(result.alignment, **where, measure=measure)
        columns: dict[str, Any] = {
            "model": model,
            "layer": name,
            "data": data,
            "uniformity": uniformity,
            "low": low,
            "high": high,
            "place": np.arange(1, len(mean) + 1),
            "frequency": mean,
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


@styled
def draw_uniformity(result: "Result", layer: str | None = None) -> Figure:
    """Draw how evenly the channels are active: their frequency, sorted, on both kinds of images.

    A panel for each model, the mean over the classes. The titles have the measure,
    ``measures.uniformity``.
    """
    data, layers = uniformity_data(result, layer), choose_layers(result, layer)
    figure, axes = make_panels(len(layers), 1, 1.15)
    fills: dict[str, dict[str, Any]] = {
        "natural": {"fill": True, "alpha": 0.25, "linewidth": 0},
        "adversarial": {"baseline": None},
    }
    for ax, model in zip(axes[:, 0], layers, strict=True):
        even = []
        for name, fill in fills.items():
            rows = select_rows(data, model=model, data=name)
            edges = np.arange(len(rows) + 1) + 0.5
            ax.stairs(rows["frequency"], edges, color=COLOURS[name], **fill)
            ax.set_xlim(0.5, len(rows) + 0.5)
            uniformity = rows["uniformity"].min()  # NaN without rows: no class has images
            even.append("–" if np.isnan(uniformity) else f"{uniformity:.3f}")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ax.set_ylim(0, 1.05)
        label_percent(ax, "")
        ax.set_title(shorten(model, 8), loc="left", weight="bold")
        ax.set_title(f"{even[0]}→{even[1]}", loc="right", size=current_style().small)
    for ax in list_left(axes):
        ax.set_ylabel("active on images (%)")
    for ax in list_bottom(axes):
        ax.set_xlabel("channels, by frequency")
    add_title(figure, f"How evenly channels are active, {describe_layers(layers)}")
    note = (
        "channels: each class's most frequent first, mean over the classes; above: uniformity, "
        "natural → adversarial: entropy of the frequencies, 1: all are equally often active"
    )
    natural = make_area_handle()
    add_data_legend(figure, describe_attack(result), "-", note=note, natural=natural)
    return figure


def describe_uniformity(data: pd.DataFrame) -> str:
    """Say how even frequencies are."""

    def describe(rows: pd.DataFrame) -> str:
        even = rows.drop_duplicates("data").set_index("data")["uniformity"]
        natural, adversarial = even["natural"], even["adversarial"]
        return f"uniformity {natural:.3f} on natural images, {adversarial:.3f} on adversarial ones"

    return describe_each(data, ["model"], describe)


register(
    Analysis(
        name="activations",
        help="magnitude, frequency and relevance of each channel, by class",
        tables={"activations": TABLE},
        compute=compute_activations,
        check=check_activations,
        plots=(
            Plot(
                name="relevance",
                draw=draw_relevance,
                data=relevance_data,
                alt_text=describe_relevance,
                caption=(
                    "Magnitude (mean activation) of each channel against its relevance to the "
                    "class, for {extremes}. Above each panel: the model's robust accuracy on the "
                    "class, and Spearman's correlation ρ on natural and on adversarial images. "
                    "Channels left of the dashed line are negatively relevant (NR), right of it "
                    "positively (PR). {layers} {adversarial} {robust}"
                ),
                section="claims",
                order=10,
                claims=("c2", "c3"),
                table="activations",
                needs=("alignment", "robustness"),
                subjects=by_layer,
            ),
            Plot(
                name="magnitude",
                draw=draw_magnitude,
                data=magnitude_data,
                alt_text=describe_profile,
                caption=(
                    "Magnitude (mean activation) of each channel on natural and on adversarial "
                    "images of class {class_name}. The channels of each model are sorted by its "
                    "natural magnitude. {layers} {adversarial} {robust}"
                ),
                section="claims",
                order=50,
                claims=("c1",),
                table="activations",
                needs=("robustness",),
                subjects=by_class,
            ),
            Plot(
                name="frequency",
                draw=draw_frequency,
                data=frequency_data,
                alt_text=describe_profile,
                caption=(
                    "Activation frequency of each channel (the share of the images on which it is "
                    "active) on natural and on adversarial images of class {class_name}. The "
                    "channels of each model are sorted by its natural frequency. {layers} "
                    "{adversarial} {robust}"
                ),
                section="claims",
                order=60,
                main=False,
                claims=("c1",),
                table="activations",
                needs=("robustness",),
                subjects=by_class,
            ),
            Plot(
                name="uniformity",
                draw=draw_uniformity,
                data=uniformity_data,
                alt_text=describe_uniformity,
                caption=(
                    "How evenly the channels are active: on which share of a class's images its "
                    "most frequent channel is active, its second and so on, mean over the classes. "
                    "Uniformity is the entropy of the frequencies over its largest possible value: "
                    "1 where all channels are active equally often, 0 where one alone ever is. "
                    "{layers} {adversarial}"
                ),
                section="network",
                order=80,
                main=False,
                claims=("c1",),
                table="activations",
                needs=("alignment",),
                subjects=by_layer,
            ),
        ),
    )
)
