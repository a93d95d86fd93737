"""Depth: alignment from layer to layer."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from channelscope.analyses.alignment import ALIGNMENT_NOTE, NR_NOTE, SIGNED_NOTE, join_notes
from channelscope.analyses.base import Analysis, Plot, Subject, register
from channelscope.analyses.subjects import list_layers
from channelscope.errors import UserError
from channelscope.figures.axes import (
    add_model_legend,
    add_title,
    choose_looks,
    label_percent,
    list_bottom,
    make_panels,
    start_at_zero,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    describe_each,
    error_bars,
    find_interval,
    format_number,
    measured_layers,
    select_rows,
    shorten_layer,
)

if TYPE_CHECKING:
    from channelscope.result import Result

# What the panels of measures show: words for the axis, and whether it is a share.
_PANELS = {
    "robust_accuracy": ("robust\naccuracy", True),
    "cosine_centred": ("alignment with\nnatural (cosine)", False),
    "nr_mass": ("NR mass", True),
    "signed_mass": ("signed mass", False),
}


def depth_data(result: "Result") -> pd.DataFrame:
    """Return model, place on the axis, layer, measure, data -> value, low, high, over all classes.

    The measures: cosine_centred (of natural and adversarial magnitude, so of data "both"), nr_mass
    and signed_mass.

    Raises:
        UserError: where only one layer of each model was measured.
    """
    if list_layers(result) == [None]:
        raise UserError(
            "Only one layer was measured of each model: compare several, as with --layers "
            "'layer*.*'."
        )
    measures = [("cosine_centred", "both"), *product(("nr_mass", "signed_mass"), COLOURS)]
    means = select_rows(result.alignment, **{"class": "all"})
    rows = []
    for model, layers in measured_layers(result).items():
        for (place, layer), (measure, data) in product(enumerate(layers, start=1), measures):
            name = measure if data == "both" else f"{measure}_{data}"
            interval = find_interval(means, model=model, layer=layer, measure=name)
            rows.append((model, place, layer, measure, data, *interval))
    columns = ["model", "place", "layer", "measure", "data", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


@styled
def draw_depth(result: "Result") -> Figure:
    """Draw how alignment changes from layer to layer: a panel a measure, a line a model.

    Dashed lines are natural images.
    """
    data, models = depth_data(result), list(result.meta["models"])
    names = {tuple(layers) for layers in measured_layers(result).values()}
    ticks = [*map(shorten_layer, names.pop())] if len(names) == 1 else []
    # Letters of the longest name, where names have to stand upright.
    upright = 0 if sum(map(len, ticks)) <= 40 else max(map(len, ticks))
    figure, axes = make_panels(3, 1, 0.85, 0.25 + 0.055 * upright, across=2.2, sharex="all")
    looks = choose_looks(result)
    natural: dict[str, Any] = {"linestyle": "--", "marker": None}
    for ax, measure in zip(axes[:, 0], data["measure"].unique(), strict=True):
        for model in models:
            of_model = select_rows(data, model=model, measure=measure)
            for name, line in of_model.groupby("data", sort=False):
                draw_line(ax, line, "place", looks[model] | (natural if name == "natural" else {}))
        label_measure(ax, measure)
    places = range(1, 1 + data["place"].max())
    names_of_places = ticks or [*map(str, places)]
    for ax in list_bottom(axes):
        ax.set_xticks(places, names_of_places, rotation=90 if upright else 0)
        ax.set_xlabel("layer, from the images to the answer")
    add_title(figure, "What an attack does to the channels, by depth (mean over the classes)")
    dashed = Line2D([], [], color="0.4", label="dashed: natural images", linestyle="--")
    note = join_notes(
        result, ["solid: on adversarial images", ALIGNMENT_NOTE, NR_NOTE, SIGNED_NOTE]
    )
    add_model_legend(figure, result, models, note, dashed)
    return figure


def draw_line(ax: Axes, data: pd.DataFrame, along: str, look: dict[str, Any]) -> None:
    """Draw the values of a model with their bars, along a column."""
    value, bars = error_bars(data)
    look = {"markersize": 3, "elinewidth": 0.6, "linewidth": 0.9} | look
    ax.errorbar(data[along], value, bars, **look)


def label_measure(ax: Axes, measure: str) -> None:
    """Name the axis of a measure, once it is drawn."""
    words, is_share = _PANELS[measure]
    ax.set_ylabel(words)
    if is_share:
        label_percent(ax, words)
        start_at_zero(ax)


def describe_ends(rows: pd.DataFrame) -> str:
    """Say the first and the last value of each measure."""
    parts = []
    for measure, values in rows.groupby("measure", sort=False)["value"]:
        first, last = format_number(values.iloc[0]), format_number(values.iloc[-1])
        parts.append(f"{str(measure).replace('_', ' ')} from {first} to {last}")
    return ", ".join(parts)


def describe_depth(data: pd.DataFrame) -> str:
    """Say the first and the last values along the network."""
    start = "under attack, from the first layer to the last, "
    attacked = data[data["data"] != "natural"]
    return describe_each(attacked, ["model"], lambda rows: start + describe_ends(rows))


def several_layers(result: "Result") -> Iterator[Subject]:
    """Return one figure, where several layers of a model were measured."""
    if list_layers(result) != [None]:
        yield Subject({})


register(
    Analysis(
        name="depth",
        help="alignment from layer to layer",
        plots=(
            Plot(
                name="depth",
                draw=draw_depth,
                data=depth_data,
                alt_text=describe_depth,
                caption=(
                    "Alignment from layer to layer, mean over the classes: cosine of the natural "
                    "and the adversarial magnitudes (mean activations) of a layer's channels, 1 "
                    "where the attack leaves them in proportion; share of the activation mass that "
                    "lies on negatively relevant (NR) channels, which speak against the class; "
                    "Spearman's correlation ρ of magnitude and relevance. Dashed: on natural "
                    "images. {adversarial} {bars}"
                ),
                section="network",
                order=10,
                claims=("c1", "c2"),
                table="alignment",
                subjects=several_layers,
            ),
        ),
    )
)
