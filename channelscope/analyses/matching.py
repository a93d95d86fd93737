"""Matching: which layers and which channels of two models correspond, by natural activations.

Done on at most 2,000 images, at even steps (see ``channels.choose_evenly``).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Subject, Table, register
from channelscope.figures.axes import (
    add_legend,
    add_title,
    choose_looks,
    draw_heatmap,
    label_percent,
    make_grid,
    make_panels,
    write_in_panel,
)
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    choose_layers,
    describe_attack,
    describe_each,
    describe_layers,
    describe_level,
    error_bars,
    format_interval,
    require_rows,
    shorten,
    shorten_layer,
)
from channelscope.statistics.channels import choose_evenly
from channelscope.statistics.intervals import estimate_columns
from channelscope.statistics.similarity import (
    compute_hsic,
    match_channels,
    normalise_hsic,
    standardise,
)

if TYPE_CHECKING:
    from channelscope.result import Result

_Layer = tuple[str, str]  # a model and a layer of it
SAME = 0.5  # the correlation from which two channels are taken to do the same
_CKA = "linear CKA on natural images; 1: alike, 0: unrelated"
_NUMBERED = 8  # the most pairs of channels that are named by their numbers
_WRITTEN = 12  # the most rows and columns whose cells have their numbers


def compute_matching(study: Study) -> dict[str, Any]:
    """Compute the likeness of each two models' layers, and match the channels of those in order."""
    chosen = choose_evenly(len(study.labels))
    weights = np.asarray(study.weights[chosen], float)
    activations = {
        (model, layer): np.asarray(study.activations(model, layer)[chosen], float)
        for model in study.models
        for layer in study.layers(model)
    }
    matching = _compare_layers(study, activations, weights)
    return {"matching": matching, "matched": _match_channels(study, activations)}


def _compare_layers(
    study: Study, activations: dict[_Layer, ndarray], weights: Num[ndarray, "n r"]
) -> list[dict[str, Any]]:
    """Compare each pair of models once, every layer with every one of the other."""
    if len(study.models) < 2:
        return []
    standard = {layer: standardise(a) for layer, a in activations.items()}
    hsic = {layer: compute_hsic(a, a, weights) for layer, a in standard.items()}
    pairs = [
        ((model, layer), (other, other_layer))
        for model, other in combinations(study.models, 2)
        for layer, other_layer in product(study.layers(model), study.layers(other))
    ]
    replicates = [
        normalise_hsic(
            compute_hsic(standard[one], standard[other], weights), hsic[one], hsic[other]
        )
        for one, other in pairs
    ]
    estimates = estimate_columns(np.stack(replicates, 1), study.settings["level"], (-1.0, 1.0))
    return [
        _name_pair(one, other) | {"cka": cka, "low": low, "high": high}
        for (one, other), cka, low, high in zip(pairs, *estimates, strict=True)
    ]


def _match_channels(study: Study, activations: dict[_Layer, ndarray]) -> Iterator[dict[str, Any]]:
    """Match the channels of each pair of models, their layers in order, from the deepest."""
    for model, other in combinations(study.models, 2):
        layers, other_layers = (study.layers(name) for name in (model, other))
        depth = min(len(layers), len(other_layers))
        for layer, other_layer in zip(layers[-depth:], other_layers[-depth:], strict=True):
            pair = _name_pair((model, layer), (other, other_layer))
            match = match_channels(activations[model, layer], activations[other, other_layer])
            columns = ("channel", "other_channel", "correlation")
            for numbers in zip(*(column.tolist() for column in match), strict=True):
                yield pair | dict(zip(columns, numbers, strict=True))


def _name_pair(one: _Layer, other: _Layer) -> dict[str, Any]:
    return {"model": one[0], "layer": one[1], "other": other[0], "other_layer": other[1]}


def by_pair(result: "Result") -> Iterator[Subject]:
    """A figure for each pair of models of which one has several layers, the first model's first."""
    pairs = result.matching.groupby(["model", "other"], sort=False).size()
    for model, other in pairs[pairs > 1].index:
        first = model == next(iter(result.meta["models"]))
        yield Subject({"model": model, "other": other}, main=first)


def by_matched_layers(result: "Result") -> Iterator[Subject]:
    """A figure for each pair of models and of layers in the same place.

    The first model's last layer comes before all.
    """
    first = next(iter(choose_layers(result).items()))
    names = ["model", "other", "layer"]
    for row in result.matched[names].drop_duplicates().to_dict("records"):
        yield Subject(row, main=(row["model"], row["layer"]) == first)


def likeness_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_likeness`` draws: the rows of ``matching`` of the models' last layers.

    Raises:
        UserError: where there is one model alone.
    """
    layers = choose_layers(result)
    lacking = "There is one model alone here: compare it with another."
    pairs = require_rows(result.matching, lacking)
    last = pairs["layer"] == pairs["model"].map(layers)
    other_last = pairs["other_layer"] == pairs["other"].map(layers)
    return pairs[last & other_last].reset_index(drop=True)


@styled
def draw_likeness(result: "Result") -> Figure:
    """Draw how alike the last measured layers of each two models are: linear CKA, its interval."""
    drawn = likeness_data(result)
    figure, axes = make_grid(1, 1, 0.3 + 0.15 * len(drawn), least=0.3 + 0.12 * len(drawn))
    ax = axes[0, 0]
    cka, reach = error_bars(drawn, "cka")
    look: dict[str, Any] = {"color": "black", "fmt": "o", "markersize": 3.5, "elinewidth": 0.8}
    ax.errorbar(cka, range(len(drawn)), xerr=reach, **look)
    names = [
        f"{shorten(model, 16)} – {shorten(other, 16)}"
        for model, other in zip(drawn["model"], drawn["other"], strict=True)
    ]
    ax.set_yticks(range(len(drawn)), names)
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.set_xlim(min(0.0, drawn["low"].min(), drawn["cka"].min()), 1.02)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("CKA")
    add_legend(figure, note=f"{_CKA}; bars: {describe_level(result)}")
    where = describe_layers(choose_layers(result))
    add_title(figure, f"How alike are the features of two models? {where}")
    return figure


def layer_likeness_data(result: "Result", model: str, other: str) -> pd.DataFrame:
    """Return what ``draw_layer_likeness`` draws: the rows of ``matching`` of a pair of models.

    Raises:
        UserError: for an unknown pair.
    """
    lacking = f"No pair of {model!r} and {other!r} here."
    pairs = require_rows(result.matching, lacking, model=model, other=other)
    return pairs.reset_index(drop=True)


@styled
def draw_layer_likeness(result: "Result", model: str, other: str) -> Figure:
    """Draw how alike each layer of a model is to each of another: linear CKA, number and shade."""
    drawn = layer_likeness_data(result, model, other)
    cells = drawn.pivot(index="layer", columns="other_layer", values="cka")
    cells = cells.loc[drawn["layer"].unique(), drawn["other_layer"].unique()]
    cells = cells.rename(index=shorten_layer, columns=shorten_layer)
    rows, columns = cells.shape
    longest = max(map(len, cells.columns))
    figure, axes = make_grid(1, 1, max(1.2, 0.2 * rows), 0.1 + 0.055 * longest, 0.11 * rows)
    ax = axes[0, 0]
    write = ".2f" if max(rows, columns) <= _WRITTEN else None
    draw_heatmap(ax, cells, write=write, cmap="Greys", vmin=0, vmax=1)
    ax.set_xlabel(f"layer of {shorten(other, 24)}")
    ax.set_ylabel(f"layer of\n{shorten(model, 16)}")
    add_legend(figure, note=_CKA)
    add_title(figure, f"Which layers of {shorten(model)} and {shorten(other)} are alike? (CKA)")
    return figure


def describe_likeness(drawn: pd.DataFrame) -> str:
    """Say how alike each two models are, in their most alike layers."""

    def describe(rows: pd.DataFrame) -> str:
        most = rows.sort_values("cka", kind="stable").iloc[-1]
        cka = format_interval(float(most["cka"]), float(most["low"]), float(most["high"]))
        return f"CKA {cka} for {most['layer']} and {most['other_layer']}"

    return describe_each(drawn, ["model", "other"], describe)


def matched_channels_data(result: "Result", model: str, other: str, layer: str) -> pd.DataFrame:
    """Return what ``draw_matched_channels`` draws: a row for each matched pair of channels.

    Columns: channel, other_channel, correlation -> change, other_change, numbered. ``change`` is
    the magnitude on adversarial images minus that on natural ones, over all images, as a share of
    the mean natural magnitude of the layer's channels. ``numbered`` marks the channels that the
    attack moves in the first model and less in the other, the largest differences first, of those
    that correspond (correlation from 0.5 on).

    Raises:
        UserError: for an unknown pair or layer.
    """
    lacking = f"No match of {model!r} and {other!r} at {layer!r} here."
    pairs = require_rows(result.matched, lacking, model=model, other=other, layer=layer)
    change = _relative_change(result, model, layer)
    other_change = _relative_change(result, other, str(pairs["other_layer"].iloc[0]))
    drawn = pairs.assign(
        change=change[pairs["channel"].astype(int)],
        other_change=other_change[pairs["other_channel"].astype(int)],
    ).reset_index(drop=True)
    steadier = drawn["change"].abs() - drawn["other_change"].abs()
    steadier = steadier.where(drawn["correlation"] >= SAME)
    chosen = steadier[steadier > 0].nlargest(_NUMBERED).index
    drawn["numbered"] = drawn.index.isin(chosen)
    order = steadier.sort_values(ascending=False, kind="stable").index
    return drawn.loc[order].reset_index(drop=True)


def _relative_change(result: "Result", model: str, layer: str) -> Float[ndarray, " c"]:
    """Return, by channel, the change of the magnitude under attack, over all images.

    As a share of the layer's mean natural magnitude.
    """
    means = []
    for data in ("natural", "adversarial"):
        magnitude = result.array("activations", "magnitude", model, data, layer)
        count = result.array("activations", "count", model, data, layer)
        means.append(np.nansum(magnitude * count, 0) / count.sum(0))
    natural, adversarial = means
    change: ndarray = (adversarial - natural) / np.abs(natural).mean()
    return change


@styled
def draw_matched_channels(result: "Result", model: str, other: str, layer: str) -> Figure:
    """Draw how far an attack moves each channel of a model, and the channel that matches it.

    First a dot for each pair of channels, at the sizes of their changes: below the line are those
    that the attack moves less in the other model. Then those pairs where it does so most, with the
    numbers of the two channels.
    """
    drawn = matched_channels_data(result, model, other, layer)
    named = drawn[drawn["numbered"]]
    figure, axes = make_panels(2, 1, 1.45, 0.35, across=2.4)
    all_pairs, largest = axes[:, 0]
    one, two = shorten(model, 16), shorten(other, 16)
    _draw_pairs(all_pairs, drawn)
    beside: dict[str, Any] = {"transform": all_pairs.transAxes, "va": "top", "color": "0.4"}
    all_pairs.text(0.02, 0.97, f"moves more in {two}", **beside)
    all_pairs.text(0.98, 0.6, f"moves less in {two}", ha="right", **beside)
    all_pairs.set_title("each pair of channels", loc="left", weight="bold")
    all_pairs.set_xlabel(f"|change| in {one} (%)")
    all_pairs.set_ylabel(f"|change| in\n{two} (%)")
    looks = {name: choose_looks(result)[name] for name in (model, other)}
    _draw_differences(largest, named, list(looks.values()))
    largest.set_title("the largest differences", loc="left", weight="bold")
    label_percent(largest, "change of mean activation", "x")
    channel, match = (shorten(name, 12) for name in (model, other))
    largest.set_ylabel(f"channel of {channel}\n↔ its match in {match}")
    handles = all_pairs.get_legend_handles_labels()[0]
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 3.5}
    for name, look in looks.items():
        handles.append(Line2D([], [], label=shorten(name, 16), **dot, **look))
    note = (
        f"attack: {describe_attack(result)}; change: of a channel's mean activation, in % of the "
        "layer's mean; channels are matched by the correlation r of their activations on the same "
        f"natural images; with numbers: pairs of r ≥ {SAME}"
    )
    add_legend(figure, handles, note)
    where = describe_layers({model: layer})
    add_title(figure, f"How far does an attack move {one}'s channels and {two}'s, {where}?")
    return figure


def _draw_pairs(ax: Axes, drawn: pd.DataFrame) -> None:
    """Draw the sizes of the changes in percent, a dot a pair."""
    same = drawn["correlation"] >= SAME
    sizes = 100 * drawn[["change", "other_change"]].abs()
    kinds: list[tuple[str, pd.Series, dict[str, Any]]] = [
        (f"weak match: r < {SAME}", ~same, {"mfc": "white", "color": "0.6"}),
        (f"good match: r ≥ {SAME}", same, {"color": "0.2"}),
    ]
    for words, chosen, look in kinds:
        label = f"{words} ({chosen.sum()})"
        look |= {"markersize": 2.5, "mew": 0.6, "label": label}
        ax.plot(sizes["change"][chosen], sizes["other_change"][chosen], "o", **look)
    high = 1.05 * max(0.1, float(sizes.max().max()))
    ax.plot([0, high], [0, high], "--", color="0.6", linewidth=0.6, label="equal change")
    ax.set_xlim(-0.01 * high, high)
    ax.set_ylim(-0.03 * high, high)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def _draw_differences(ax: Axes, named: pd.DataFrame, looks: Sequence[dict[str, Any]]) -> None:
    if named.empty:
        write_in_panel(ax, "no channel is moved less in the other model")
        ax.set_yticks([])
        return
    places = range(len(named))
    ax.hlines(places, named["change"], named["other_change"], color="0.8", linewidth=1)
    ax.axvline(0, color="0.6", linewidth=0.6)
    for column, look in zip(("change", "other_change"), looks, strict=True):
        ax.plot(named[column], places, linestyle="none", markersize=3.5, **look)
    words = [
        f"{row['channel']:.0f} ↔ {row['other_channel']:.0f}" for row in named.to_dict("records")
    ]
    ax.set_yticks(places, words)
    ax.set_ylim(len(named) - 0.5, -0.5)


def describe_matched_channels(drawn: pd.DataFrame) -> str:
    """Say how many channels correspond, and how many of those are moved less in the other model."""

    def describe(rows: pd.DataFrame) -> str:
        same = rows[rows["correlation"] >= SAME]
        less = int((same["other_change"].abs() < same["change"].abs()).sum())
        return (
            f"{len(same)} of {len(rows)} pairs correspond, and the attack moves {less} of them "
            "less in the other"
        )

    return describe_each(drawn, ["model", "other"], describe)


def check_matching(result: "Result") -> None:
    """Raise ValueError where layers or channels are not among those that were measured."""
    for model, layer, channel in (
        ("model", "layer", "channel"),
        ("other", "other_layer", "other_channel"),
    ):
        for name in ("matching", "matched"):
            table = result.select(name)
            for owner, of_layer in set(zip(table[model], table[layer], strict=True)):
                if of_layer not in result.meta["models"][owner]["layers"]:
                    raise ValueError(f"{name} is of layers that were not measured")
        if "activations" not in result.tables:
            continue
        for (owner, of_layer), rows in result.matched.groupby([model, layer]):
            magnitude = result.array("activations", "magnitude", owner, "natural", of_layer)
            if not rows[channel].isin(range(magnitude.shape[1])).all():
                raise ValueError(f"matched has channels that {of_layer} of {owner} does not have")


_ALIKE = (
    "by linear CKA (centred kernel alignment, without bias) of their channels' activations on the "
    "same natural images: 1 where one is the other rotated and scaled"
)

register(
    Analysis(
        name="matching",
        help="which layers and which channels of two models correspond",
        tables={
            "matching": Table(
                words=("model", "layer", "other", "other_layer"),
                numbers=("cka", "low", "high"),
                help="cka: likeness of the two layers' natural activations, in [-1, 1]",
            ),
            "matched": Table(
                words=("model", "layer", "other", "other_layer"),
                numbers=("channel", "other_channel", "correlation"),
                help="of layers in the same place: channels matched one to one, the surest first; "
                "correlation: of their activations over natural images, in [-1, 1]",
            ),
        },
        compute=compute_matching,
        check=check_matching,
        plots=(
            Plot(
                name="likeness",
                draw=draw_likeness,
                data=likeness_data,
                alt_text=describe_likeness,
                caption=f"How alike the last measured layers of each two models are, {_ALIKE}, "
                "such as a copy with its channels in another order, about 0 where they have "
                "nothing in common. {layers} {bars}",
                section="models",
                main=False,
                table="matching",
            ),
            Plot(
                name="layer-likeness",
                draw=draw_layer_likeness,
                data=layer_likeness_data,
                alt_text=describe_likeness,
                caption="How alike each layer of {model} is to each layer of {other}, "
                f"{_ALIKE}, about 0 where they have nothing in common.",
                section="models",
                main=False,
                table="matching",
                subjects=by_pair,
            ),
            Plot(
                name="matched-channels",
                draw=draw_matched_channels,
                data=matched_channels_data,
                alt_text=describe_matched_channels,
                caption="Channels of {model} (at {layer}) and of {other} that correspond, and how "
                "far the attack moves each: its mean activation on adversarial images minus that "
                "on natural ones, in percent of the layer's mean magnitude. Each channel of the "
                "one is matched with one of the other, so that their activations on the same "
                "natural images correlate (r) most. First all pairs, at the sizes of the two "
                "changes: below the dashed line are those that are moved less in {other}. Then, of "
                "the pairs that correspond, those that are moved less by most, with the numbers of "
                "the two channels and the signs of the changes. {adversarial} They "
                "were made for each model by itself.",
                section="models",
                main=False,
                table="matched",
                needs=("activations",),
                subjects=by_matched_layers,
            ),
        ),
    )
)
