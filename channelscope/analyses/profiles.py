"""Profiles: magnitude over sorted channels, the most robust class beside the least robust one.

As Yan et al., ICML 2021, ask: is a channel more active the more it speaks for the class, with and
without an attack, before and after a gate's mask? And CAS's figure of magnitudes, by the definition
of its release (Bai et al., ICLR 2021; ``plot_figure1.py``).
"""

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Subject, register
from channelscope.figures.axes import (
    add_data_legend,
    add_title,
    list_bottom,
    list_top,
    make_area_handle,
    make_panels,
    start_at_zero,
    write_in_panel,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    choose_layers,
    describe_attack,
    describe_class,
    describe_each,
    describe_worst_case,
    extreme_classes,
    format_percent,
    measured_layers,
    robust_by_class,
    select_rows,
    shorten,
    shorten_layer,
)

if TYPE_CHECKING:
    from channelscope.result import Result

Order = Literal["relevance", "magnitude", "each"]
_GATED = ".gated"  # ends the name of a layer's output behind its gate


def choose_places(result: "Result", layer: str | None = None) -> list[tuple[str, str]]:
    """Return (model, measured layer) of what is shown: before and after a gate's mask, if measured.

    Args:
        result: a comparison.
        layer: a layer's name, without ``.gated``; None for each model's last.
    """
    if layer is None:
        last = {model: _base(name) for model, name in choose_layers(result).items()}
    else:
        last = dict.fromkeys(measured_layers(result), _base(layer))
    places = [
        (model, name)
        for model, names in measured_layers(result).items()
        for name in (last[model], f"{last[model]}{_GATED}")
        if name in names
    ]
    if not places:
        choose_layers(result, layer)  # says which layers there are
    return places


def _base(layer: str) -> str:
    return layer.removesuffix(_GATED)


def by_place(result: "Result") -> Iterator[Subject]:
    """Return a figure for each measured layer, before and after its gate's mask in one."""
    measured = [[_base(name) for name in names] for names in measured_layers(result).values()]
    if all(len(set(names)) == 1 for names in measured):
        yield Subject({"layer": None})
        return
    last = {names[-1] for names in measured}
    for layer in dict.fromkeys(name for names in measured for name in names):
        yield Subject({"layer": layer}, main=layer in last)


def profile_data(result: "Result", order: Order, layer: str | None = None) -> pd.DataFrame:
    """Return what is drawn, of the most and the least robust class.

    Columns: model, layer, class, robust_accuracy, data, place on the axis, channel -> value,
    relevance. The value is the magnitude, or with ``order`` "each" the mean over the images on
    which the channel is active, 0 where there are none.

    Args:
        result: a comparison.
        order: of the channels on the axis, falling: by relevance, by natural magnitude, or by
            value on natural and on adversarial images "each", so that a place has two channels.
        layer: see ``choose_places``.
    """
    classes, parts = result.meta["data"]["classes"], []
    for model, name in choose_places(result, layer):
        for class_name in extreme_classes(result):
            k = classes.index(class_name)
            arrays = {
                data: {
                    column: result.array("activations", column, model, data, name)[k]
                    for column in ("magnitude", "frequency", "relevance")
                }
                for data in COLOURS
            }
            for data, columns in arrays.items():
                value = _active_mean(columns) if order == "each" else columns["magnitude"]
                natural = arrays["natural"]
                key = value if order == "each" else natural[order]
                channels = np.argsort(-key, kind="stable")
                part = {
                    "model": model,
                    "layer": name,
                    "class": class_name,
                    "robust_accuracy": robust_by_class(result, model, [class_name])[0, 0],
                    "data": data,
                    "place": np.arange(1, len(channels) + 1),
                    "channel": channels,
                    "value": value[channels],
                    "relevance": natural["relevance"][channels],
                }
                parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _active_mean(columns: dict[str, Float[ndarray, " c"]]) -> Float[ndarray, " c"]:
    """Return the sum of a channel's activations over the number of images on which it is active."""
    magnitude, frequency = columns["magnitude"], columns["frequency"]
    zero = np.where(np.isnan(frequency), frequency, 0.0)  # of a class without images: NaN
    return np.divide(magnitude, frequency, out=zero, where=frequency > 0)


@styled
def draw_profile(result: "Result", order: Order, layer: str | None = None) -> Figure:
    """Draw magnitudes over the sorted channels, a column a class, a row a model or side of a mask.

    The two classes of a row share their axes.
    """
    data = profile_data(result, order, layer)
    places = list(data[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    classes, small = list(data["class"].unique()), current_style().small
    figure, axes = make_panels(len(places), len(classes), 1.1, sharex="row", sharey="row")
    for row, (model, name) in zip(axes, places, strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            rows = select_rows(data, **{"model": model, "layer": name, "class": class_name})
            _draw_panel(ax, rows, order)
            accuracy = format_percent(rows["robust_accuracy"].iloc[0], 0)
            ax.set_title(f"robust {accuracy}", size=small)
        start_at_zero(*row)
        row[0].set_ylabel(f"{shorten(model, 16)}{_describe_side(places, model, name)}", size=small)
    heads = cycle(zip(("most", "least"), classes, strict=False))
    for ax, (extreme, name) in zip(list_top(axes), heads, strict=False):
        head = f"{extreme} robust: {describe_class(name, 10)}"
        ax.set_title(f"{head}\n{ax.get_title()}", size=small)
    for ax in list_bottom(axes):
        ax.set_xlabel("← PR   channel   NR →" if order == "relevance" else "channel")
    shown = ", ".join(dict.fromkeys(_base(name) for _, name in places))
    shown = shown if shown.startswith("layer") else f"layer {shorten_layer(shown)}"
    titles = {
        "relevance": f"Mean activation of the channels, sorted by relevance to the class, {shown}",
        "magnitude": f"Mean activation of the channels, sorted by its natural value, {shown}",
        "each": f"Mean activation over the images on which a channel is active, {shown}",
    }
    add_title(figure, titles[order])
    note = (
        f"{_NOTES[order]}; robust: {describe_worst_case(result)}; most, least robust: mean over "
        "the models"
    )
    linestyle: Literal["-", "none"] = "-" if order == "each" else "none"
    handle = make_area_handle()
    add_data_legend(figure, describe_attack(result), linestyle, note=note, natural=handle)
    return figure


_NOTES = {
    "relevance": (
        "sorted by each class's own relevance, from the most positively relevant (PR) channel to "
        "the most negatively relevant one (NR); dashed: where the sign changes"
    ),
    "magnitude": "sorted by each class's own natural mean activation",
    "each": (
        "natural and adversarial values are each sorted by themselves, so that a place on the axis "
        "is two channels"
    ),
}


def _describe_side(places: list[tuple[str, str]], model: str, name: str) -> str:
    """Say on which side of a gate's mask a layer is, where it has one."""
    if name.endswith(_GATED):
        return "\nafter the mask"
    return "\nbefore the mask" if (model, f"{name}{_GATED}") in places else ""


def _draw_panel(ax: Axes, rows: pd.DataFrame, order: Order) -> None:
    if rows["value"].isna().all():
        write_in_panel(ax, "no images of this class")
        return
    natural, adversarial = (select_rows(rows, data=data) for data in COLOURS)
    edges = np.arange(len(natural) + 1) + 0.5
    area: dict[str, Any] = {"fill": True, "alpha": 0.25, "linewidth": 0}
    ax.stairs(natural["value"], edges, color=COLOURS["natural"], **area)
    ax.stairs(natural["value"], edges, color=COLOURS["natural"], baseline=None, linewidth=0.5)
    if order == "each":
        line: dict[str, Any] = {"baseline": None, "linewidth": 0.9}
        ax.stairs(adversarial["value"], edges, color=COLOURS["adversarial"], **line)
    else:
        size = float(np.clip(200 / len(natural), 1.2, 3.0))
        look: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": size, "mew": 0}
        points = adversarial["place"], adversarial["value"]
        ax.plot(*points, color=COLOURS["adversarial"], **look)
    if order == "relevance":
        boundary = (natural["relevance"] > 0).sum() + 0.5
        ax.axvline(boundary, color="0.4", linewidth=0.7, linestyle="--")
    ax.set_xlim(0.5, len(natural) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def describe_profile(data: pd.DataFrame) -> str:
    """Say what share of the mean activation lies on positively relevant channels, or the mean."""

    def describe(rows: pd.DataFrame) -> str:
        if rows["value"].isna().all():
            return "no images"
        shares = []
        for name in COLOURS:
            values = select_rows(rows, data=name)
            total = values["value"].abs().sum()
            positive = values.loc[values["relevance"] > 0, "value"].abs().sum()
            share = format_percent(positive / total if total else float("nan"), 0)
            shares.append(f"{name} mean {values['value'].mean():.3g}, {share} on PR channels")
        return ", ".join(shares)

    return describe_each(data, ["model", "layer", "class"], describe)


def _plot(name: str, order: Order, section_order: int, caption: str) -> Plot:
    return Plot(
        name=name,
        draw=partial(draw_profile, order=order),
        data=partial(profile_data, order=order),
        alt_text=describe_profile,
        caption=caption,
        section="claims",
        order=section_order,
        main=False,
        claims=("c1", "c3"),
        table="activations",
        needs=("robustness",),
        subjects=by_place,
    )


_CAPTION = (
    "{extremes} side by side, with common axes in a row; of a gated layer that is measured on both "
    "sides (--layers NAME NAME.gated), before and after the mask. {adversarial} {robust}"
)
register(
    Analysis(
        name="profiles",
        help="magnitude over channels sorted by relevance or magnitude, two classes side by side",
        plots=(
            _plot(
                "profile-relevance",
                "relevance",
                51,
                "Magnitude (mean activation) of the channels sorted by their relevance to the "
                f"class, on natural and on adversarial images: {_CAPTION}",
            ),
            _plot(
                "profile-magnitude",
                "magnitude",
                52,
                "Magnitude (mean activation) of the channels sorted by their natural magnitude, on "
                f"natural and on adversarial images: {_CAPTION}",
            ),
            _plot(
                "profile-active",
                "each",
                53,
                "Mean activation of each channel over those images on which it is active (above "
                "the threshold), natural and adversarial values each sorted by themselves, which "
                f"is how the release of CAS draws magnitudes: {_CAPTION}",
            ),
        ),
    )
)
