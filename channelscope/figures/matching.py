"""Figures between models: which layers, and which channels, of two networks correspond."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from channelscope.comparison import Comparison
from channelscope.figures import frames
from channelscope.figures.axes import empty, grid, in_lines, in_percent, model_look, title
from channelscope.figures.paper import styled

SAME = 0.5  # the correlation from which two channels are taken to do the same
_CKA = "linear CKA on natural images; 1: alike, 0: unrelated"
NUMBERED = 8  # the most channels that are named by their numbers


def likeness_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `likeness` draws: model, layer, other, other_layer -> cka, low, high, of the models' last layers.

    Raises UserError where there is one model alone.
    """
    layers = frames.layers(comparison)
    found = frames.chosen(
        comparison.matching, "There is one model alone here: compare it with another."
    )
    last = (found["layer"] == found["model"].map(layers)) & (
        found["other_layer"] == found["other"].map(layers)
    )
    return found[last].reset_index(drop=True)


@styled
def likeness(comparison: Comparison) -> Figure:
    """Draw how alike the last measured layers of each two models are: linear CKA, with its interval."""
    drawn = likeness_data(comparison)
    figure, axes = grid(1, 1, 0.17 * len(drawn), 1.1)
    ax = axes[0, 0]
    cka, reach = frames.bars(drawn, "cka")
    ax.errorbar(
        cka, range(len(drawn)), xerr=reach, color="black", fmt="o", markersize=3.5, elinewidth=0.8
    )
    names = [f"{frames.short(one, 16)} – {frames.short(other, 16)}" for one, other in _pairs(drawn)]
    ax.set_yticks(range(len(drawn)), names)
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.set_xlim(min(0.0, drawn["low"].min(), drawn["cka"].min()), 1.02)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("CKA")
    _footer(figure, f"{_CKA}; bars: {frames.level(comparison)}")
    title(
        figure,
        f"How alike are the features of two models? {frames.where(frames.layers(comparison))}",
    )
    return figure


def _footer(figure: Figure, words: str) -> None:
    figure.legend(handles=[], title=in_lines(words), loc="outside lower center")


def _pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(frame[["model", "other"]].drop_duplicates().itertuples(index=False, name=None))


def layer_likeness_data(comparison: Comparison, model: str, other: str) -> pd.DataFrame:
    """Give what `layer_likeness` draws: layer, other_layer -> cka, low, high; raises UserError for an unknown pair."""
    lack = f"No pair of {model!r} and {other!r} here."
    return frames.chosen(comparison.matching, lack, model=model, other=other).reset_index(drop=True)


@styled
def layer_likeness(comparison: Comparison, model: str, other: str) -> Figure:
    """Draw how alike each layer of a model is to each of another: linear CKA, as numbers and as shades."""
    drawn = layer_likeness_data(comparison, model, other)
    cells = drawn.pivot(index="layer", columns="other_layer", values="cka")
    cells = cells.loc[drawn["layer"].unique(), drawn["other_layer"].unique()]
    rows, columns = cells.shape
    figure, axes = grid(1, 1, max(1.2, 0.26 * rows), 1.25)
    ax = axes[0, 0]
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    mesh = ax.pcolormesh(*edges, cells.to_numpy(), cmap="Greys", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(cells.to_numpy()):
        if max(rows, columns) <= 12:
            number = frames.number(value).removeprefix("0")
            ax.text(
                column, row, number, ha="center", va="center", color=_readable(mesh.to_rgba(value))
            )
    ax.set_xticks(range(columns), [*map(frames.short_layer, cells.columns)], rotation=90)
    ax.set_yticks(range(rows), [*map(frames.short_layer, cells.index)])
    ax.set_xlabel(f"layer of {frames.short(other, 24)}")
    ax.set_ylabel(f"layer of\n{frames.short(model, 16)}")
    _footer(figure, _CKA)
    title(
        figure, f"Which layers of {frames.short(model)} and {frames.short(other)} are alike? (CKA)"
    )
    return figure


def _readable(shade: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast to a shade (WCAG's relative luminance)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in shade[:3]
    ]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def matched_channels_data(
    comparison: Comparison, model: str, other: str, layer: str
) -> pd.DataFrame:
    """Give what `matched_channels` draws: channel, other_channel, correlation -> change, other_change, numbered.

    `change` is the magnitude on adversarial images less that on natural ones, over all images, as a share of the mean
    natural magnitude of the layer's channels. `numbered` marks the channels that the attack moves in the first model
    and less in the other, the largest differences first, of those that correspond (correlation from 0.5 on). Raises
    UserError for an unknown pair or layer.
    """
    lack = f"No match of {model!r} and {other!r} at {layer!r} here."
    pairs = frames.chosen(comparison.matched, lack, model=model, other=other, layer=layer)
    other_layer = str(pairs["other_layer"].iloc[0])
    change, other_change = (
        _change(comparison, model, layer),
        _change(comparison, other, other_layer),
    )
    drawn = pairs.assign(
        change=pairs["channel"].map(change), other_change=pairs["other_channel"].map(other_change)
    ).reset_index(drop=True)
    steadier = (drawn["change"].abs() - drawn["other_change"].abs()).where(
        drawn["correlation"] >= SAME
    )
    chosen = steadier[steadier > 0].nlargest(NUMBERED).index
    numbered = drawn.assign(numbered=drawn.index.isin(chosen), steadier=steadier)
    return numbered.sort_values("steadier", ascending=False, kind="stable", ignore_index=True).drop(
        columns="steadier"
    )


def _change(comparison: Comparison, model: str, layer: str) -> pd.Series:
    """By channel, the change of the magnitude under attack, as a share of the layer's mean natural magnitude."""
    found = frames.rows(comparison.activations, model=model, layer=layer)
    sums = found.assign(sum=(found["magnitude"] * found["count"]).fillna(0)).groupby(
        ["data", "channel"]
    )
    magnitude = (sums["sum"].sum() / sums["count"].sum()).unstack("data")
    return (magnitude["adversarial"] - magnitude["natural"]) / magnitude["natural"].abs().mean()


@styled
def matched_channels(comparison: Comparison, model: str, other: str, layer: str) -> Figure:
    """Draw how far an attack moves each channel of a model, and the channel of another model that corresponds to it.

    Above, a dot for each pair of channels: between the dashed lines are those that the attack moves less in the other
    model. Below, the largest such differences, with the numbers of the two channels and their correlation.
    """
    drawn = matched_channels_data(comparison, model, other, layer)
    named = drawn[drawn["numbered"]]
    heights = (1.7, 0.4 + 0.13 * max(2, len(named)))
    figure, axes = grid(2, 1, sum(heights) / 2, 1.35, height_ratios=heights)
    one, two = frames.short(model, 16), frames.short(other, 16)
    _pairs_of_channels(axes[0, 0], drawn)
    in_percent(axes[0, 0], f"change of mean activation\nin {one}", "x")
    in_percent(axes[0, 0], f"change of mean\nactivation in\n{two}")
    looks = {name: model_look(frames.models(comparison).index(name)) for name in (model, other)}
    _differences(axes[1, 0], named, looks)
    marks = [
        Line2D([], [], linestyle="none", markersize=3.5, label=frames.short(name, 16), **look)
        for name, look in looks.items()
    ]
    in_percent(axes[1, 0], "change of mean activation", "x")
    axes[1, 0].set_ylabel(
        f"channel of {frames.short(model, 12)}\n↔ its match in {frames.short(other, 12)}"
    )
    handles, _ = axes[0, 0].get_legend_handles_labels()
    how = f"attack: {frames.attack(comparison)}; %: of the layer's mean activation; r: correlation on natural images"
    if len(named):
        how += f"; below: the pairs (r ≥ {SAME}) that move less in {two}, the {len(named)} with the largest difference"
    figure.legend(
        handles=[*handles, *marks], title=in_lines(how), loc="outside lower center", ncols=2
    )
    title(
        figure,
        f"How far an attack moves channels of {one} and their matches in {two}, {frames.where({model: layer})}",
    )
    return figure


def _pairs_of_channels(ax: Axes, drawn: pd.DataFrame) -> None:
    same = drawn["correlation"] >= SAME
    kinds: tuple[tuple[str, pd.Series, dict[str, Any]], ...] = (
        (f"weak match: r < {SAME}", ~same, {"mfc": "white", "color": "0.6"}),
        (f"good match: r ≥ {SAME}", same, {"color": "0.2"}),
    )
    for words, chosen, look in kinds:
        x, y = drawn.loc[chosen, "change"], drawn.loc[chosen, "other_change"]
        ax.plot(x, y, "o", markersize=2.5, mew=0.6, label=f"{words} ({len(x)})", **look)
    reach = 1.1 * float(
        np.nanmax(np.abs(drawn[["change", "other_change"]].to_numpy()), initial=1e-3)
    )
    for sign, label in ((1, "equal, or equal but opposite, change"), (-1, "")):
        ax.plot(
            [-reach, reach],
            [-sign * reach, sign * reach],
            "--",
            color="0.6",
            linewidth=0.6,
            label=label or "_",
        )
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)


def _differences(ax: Axes, named: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    if named.empty:
        empty(ax, "no channel is moved less in the other model")
        ax.set_yticks([])
        return
    places = range(len(named))
    ax.hlines(places, named["change"], named["other_change"], color="0.8", linewidth=1)
    for column, look in zip(("change", "other_change"), looks.values(), strict=True):
        ax.plot(named[column], places, linestyle="none", markersize=3.5, **look)
    columns = (named[name] for name in ("channel", "other_channel", "correlation"))
    words = [
        f"{channel} ↔ {other}, r {frames.number(r)}"
        for channel, other, r in zip(*columns, strict=True)
    ]
    ax.set_yticks(places, words)
    ax.set_ylim(len(named) - 0.5, -0.5)
