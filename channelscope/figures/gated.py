"""Figures of gates in use: their masks, how much of them is in effect, and what they tell of the label."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from channelscope.comparison import Comparison
from channelscope.figures import frames
from channelscope.figures.axes import data_legend, from_zero, grid, in_lines, in_percent, title
from channelscope.figures.drawing import LABELLED
from channelscope.figures.paper import COLOURS, styled

MEAN = "all images"
NEGLIGIBLE = 0.01  # of a mask's largest factor: channels below it for every class are not drawn
_NO_GATES = "No model of this comparison has gates with masks: compare one of CIFS or CAS."
_CHANCE: dict[str, Any] = {"color": "0.35", "marker": "|", "linestyle": "none", "markersize": 6}


def masks_data(comparison: Comparison, model: str, gate: str) -> pd.DataFrame:
    """Give what `masks` draws, of a gate (the layer where it is): data, class, place on the axis, channel -> mask.

    Channels are sorted by the class whose natural images they are let through most for, then by that mask. Those whose
    factors are negligible for every class, below 1 % of the largest one, come last and are not `shown`. Classes without
    images are left out, and all but the most and the least robust 12 where there are more than 24. Raises UserError for
    an unknown gate.
    """
    found = frames.chosen(
        comparison.masks, f"No gate {gate!r} of {model!r} here.", model=model, layer=gate
    )
    found = found.dropna(subset=["mask"])
    names = [name for name in frames.classes(comparison) if name in set(found["class"])]
    if len(names) > LABELLED:
        names = frames.extremes(comparison, LABELLED // 2)
    natural = (
        frames.rows(found, data="natural")
        .pivot(index="class", columns="channel", values="mask")
        .loc[names]
    )
    most, height = natural.to_numpy().argmax(0), natural.to_numpy().max(0)
    largest = (
        found.query("`class` in @names").groupby("channel")["mask"].agg(lambda m: m.abs().max())
    )
    shown = (largest >= NEGLIGIBLE * largest.max()).loc[natural.columns].to_numpy()
    order = np.lexsort((-height, most, ~shown))
    place = dict(zip(natural.columns[order], range(1, len(order) + 1), strict=True))
    parts = [
        frames.rows(found, **{"data": data, "class": name})
        for data, name in product(COLOURS, names)
    ]
    drawn = pd.concat(parts, ignore_index=True)
    drawn = drawn.assign(
        place=drawn["channel"].map(place),
        shown=drawn["channel"].map(dict(zip(natural.columns, shown, strict=True))),
    )
    rank = drawn["data"].map([*COLOURS].index) * len(names) + drawn["class"].map(names.index)
    drawn = drawn.assign(rank=rank).sort_values(["rank", "place"], kind="stable")
    return drawn[
        ["model", "layer", "data", "class", "place", "channel", "shown", "mask"]
    ].reset_index(drop=True)


@styled
def masks(comparison: Comparison, model: str, gate: str) -> Figure:
    """Draw a gate's mean mask by class (rows) and channel (columns), on natural and on adversarial images.

    The channels have the same order in both panels, that of `masks_data`; so do the colours. Channels whose factors are
    negligible are left out, which the figure says.
    """
    drawn = masks_data(comparison, model, gate)
    hidden = int(drawn.loc[~drawn["shown"], "channel"].nunique())
    drawn = drawn[drawn["shown"]]
    names = list(drawn["class"].unique())
    figure, axes = grid(2, 1, 0.25 + 0.095 * len(names), 1.0, sharex=True)
    low, high = min(0.0, drawn["mask"].min()), max(drawn["mask"].max(), 0.0)
    if low < 0:
        low, high = -max(-low, high), max(-low, high)
    for ax, data in zip(axes[:, 0], COLOURS, strict=True):
        cells = (
            frames.rows(drawn, data=data)
            .pivot(index="class", columns="place", values="mask")
            .loc[names]
        )
        edges = np.arange(cells.shape[1] + 1) + 0.5, np.arange(len(names) + 1) - 0.5
        mesh = ax.pcolormesh(
            *edges, cells.to_numpy(), cmap="RdBu_r" if low < 0 else "Greys", vmin=low, vmax=high
        )
        ax.set_yticks(range(len(names)), [frames.short(name, 12) for name in names])
        ax.invert_yaxis()
        described = data if data == "natural" else f"{data} ({frames.attack(comparison)})"
        ax.set_title(f"{described} images", loc="left", color=COLOURS[data])
    axes[-1, 0].set_xlabel("channel, sorted by the class it is let through for most")
    note = "mean over the images of each class (true class)"
    if hidden:
        others = f"the other {hidden} channels" if hidden > 1 else "one more channel"
        note += f"; {others}: below {NEGLIGIBLE:.0%} of the largest factor"
    figure.legend(handles=[], title=in_lines(note), loc="outside lower center")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    bar = figure.colorbar(mesh, ax=axes[:, 0], aspect=30, pad=0.01)
    bar.set_label("the channel is multiplied by")
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    where = f"{frames.short(model, 16)}, gate at {frames.short_layer(gate)}"
    title(figure, f"What the gate's mask lets through, by class: {where}")
    return figure


def mask_share_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `mask_share` draws: model, layer, class (all images last), data -> value, low, high.

    Raises UserError where no model has gates.
    """
    names = frames.classes(comparison)
    if len(names) > LABELLED:
        names = frames.extremes(comparison, LABELLED // 2)
    found = []
    for model, layer in _gates(frames.chosen(comparison.spread, _NO_GATES)):
        for data, name in product(COLOURS, [*names, "all"]):
            where = {"model": model, "layer": layer, "data": data, "class": name}
            shown = MEAN if name == "all" else name
            found.append((model, layer, shown, data, *frames.interval(comparison.spread, **where)))
    return pd.DataFrame(found, columns=["model", "layer", "class", "data", "value", "low", "high"])


@styled
def mask_share(comparison: Comparison) -> Figure:
    """Draw how much of each gate's mask is in effect, by class, natural and adversarial, a panel for each gate."""
    drawn = mask_share_data(comparison)
    gates = _gates(drawn)
    names = list(drawn["class"].unique())
    longest = max(len(frames.short(name)) for name in names)
    figure, axes = grid(len(gates), 1, 0.85, 0.98 + 0.055 * longest, sharex=True, sharey=True)
    places = np.arange(len(names))
    for ax, (model, layer) in zip(axes[:, 0], gates, strict=True):
        for data, beside in (("natural", -0.15), ("adversarial", 0.15)):
            value, reach = frames.bars(frames.rows(drawn, model=model, layer=layer, data=data))
            ax.errorbar(
                places + beside,
                value,
                reach,
                color=COLOURS[data],
                fmt="o",
                markersize=3,
                elinewidth=0.8,
            )
        ax.axvline(len(names) - 1.5, color="0.8", linewidth=0.6)
        ax.set_title(
            f"{frames.short(model, 20)}, gate at {frames.short_layer(layer)}",
            loc="left",
            weight="bold",
        )
        in_percent(ax, "effective\nchannels")
    from_zero(*axes[:, 0])
    axes[-1, 0].set_xticks(places, [*map(frames.short, names)], rotation=90)
    title(figure, "Effective channels: how much each gate's mask lets pass")
    note = (
        "effective channels: participation ratio of the mask's factors (all channels alike: 100 %, one of N alone: "
        f"1/N), by true class; bars: {frames.level(comparison)}"
    )
    data_legend(figure, frames.attack(comparison), note=note)
    return figure


def _gates(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The gates that a frame is about: model and layer."""
    return list(frame[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))


# What is asked of the whole network, and of each gate: measure, words, the measure that says what is by chance.
_NETWORK = (
    ("network answers the true class", "", ""),
    ("told nothing (as in use)", "accuracy", ""),
    ("told the true class", "accuracy_true", ""),
    ("told a wrong class", "accuracy_wrong", ""),
    ("network answers what it is told", "", ""),
    ("told a wrong class", "follows_wrong", "follows_untold"),
)
_MASK = (
    ("gate told nothing", "readable", "chance"),
    ("gate told the true class", "readable_true", "chance"),
)


def leakage_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `leakage` draws: model, place on the axis, words -> layer, data, measure, value, low, high, chance.

    Rows without a measure are headings. Raises UserError where no model has gates.
    """
    parts = []
    for model in frames.chosen(comparison.leakage, _NO_GATES)["model"].unique():
        for place, (words, layer, measure, chance) in enumerate(_asked(comparison, str(model))):
            for data in COLOURS:
                where = {"model": str(model), "layer": layer, "data": data}
                value, low, high = frames.interval(comparison.leakage, **where, measure=measure)
                by_chance = frames.interval(comparison.leakage, **where, measure=chance)[0]
                parts.append(
                    (model, place, words, layer, data, measure, value, low, high, by_chance)
                )
    columns = [
        "model",
        "place",
        "words",
        "layer",
        "data",
        "measure",
        "value",
        "low",
        "high",
        "chance",
    ]
    return pd.DataFrame(parts, columns=columns)


def _asked(comparison: Comparison, model: str) -> list[tuple[str, str, str, str]]:
    """The lines of a model's panel: words, layer, measure, measure by chance; without a measure, a heading."""
    measured = frames.rows(comparison.leakage, model=model)
    network, gates = _NETWORK, [layer for layer in measured["layer"].unique() if layer]
    lines = (
        [(words, "", measure, chance) for words, measure, chance in network]
        if "" in set(measured["layer"])
        else []
    )
    for layer in gates:
        lines.append((f"true class from mask, {frames.short_layer(layer, 12)}", layer, "", ""))
        known = set(frames.rows(measured, layer=layer)["measure"])
        lines += [
            (words, layer, measure, chance) for words, measure, chance in _MASK if measure in known
        ]
    return lines


@styled
def leakage(comparison: Comparison) -> Figure:
    """Draw whether gated networks read the label in what their gates are told, a panel for each model.

    Above: what the network answers when its gates are told nothing, the true class or a wrong one. Below: of how many
    images a linear classifier reads the class from a gate's mask alone. Bars are intervals; a grey stroke marks what
    comes about by chance.
    """
    drawn = leakage_data(comparison)
    models = list(drawn["model"].unique())
    heights = [
        0.2 + 0.125 * (1 + drawn.loc[drawn["model"] == model, "place"].max()) for model in models
    ]
    figure, axes = grid(
        len(models), 1, float(np.mean(heights)), 1.65, sharex=True, height_ratios=heights
    )
    for ax, model in zip(axes[:, 0], models, strict=True):
        _lines(ax, frames.rows(drawn, model=model))
        ax.set_title(frames.short(model, 24), loc="left", weight="bold")
    in_percent(axes[-1, 0], "share of the images", "x")
    axes[-1, 0].set_xlim(-0.03, 1.03)
    title(figure, "Do gates leak the label? What is answered when gates are told a class")
    note = (
        "adversarial images: made with gates told nothing; from mask: by a linear classifier that knows it alone, "
        "cross-validated; by chance: how often the network answers that wrong class when told nothing, for masks "
        f"the share of the most frequent class; bars: {frames.level(comparison)}"
    )
    chance = Line2D([], [], **_CHANCE, label="by chance")
    data_legend(figure, frames.attack(comparison), "none", chance, note=note)
    return figure


def _lines(ax: Axes, drawn: pd.DataFrame) -> None:
    words = drawn.drop_duplicates("place")
    for data, beside in (("natural", -0.17), ("adversarial", 0.17)):
        of_data = frames.rows(drawn, data=data)
        known = of_data[of_data["measure"] != ""]
        value, reach = frames.bars(known)
        ax.plot(known["chance"], known["place"] + beside, **_CHANCE)
        ax.errorbar(
            value,
            known["place"] + beside,
            xerr=reach,
            color=COLOURS[data],
            fmt="o",
            markersize=3,
            elinewidth=0.8,
        )
    ax.set_yticks(words["place"], words["words"])
    for tick, measure in zip(ax.yaxis.get_major_ticks(), words["measure"], strict=True):
        tick.label1.set_fontstyle("normal" if measure else "italic")
        tick.tick1line.set_visible(bool(measure))
    for place in words.loc[words["measure"] == "", "place"][1:]:
        ax.axhline(place - 0.5, color="0.85", linewidth=0.6)
    ax.set_ylim(words["place"].max() + 0.5, -0.5)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
