"""The figure of a sweep: the accuracy of every variant, drawn from the sweep's table alone."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from channelscope.figures import frames
from channelscope.figures.axes import blank, small_ticks, title
from channelscope.figures.paper import COLOURS, styled

_PANELS = {
    "natural": "natural",
    "robust": "adversarial",
}  # a column of the table, and the colour of its data
_LINE = 0.12  # inches, of a line of text or a dot
_HIGHEST = 60  # inches: a picture has so many pixels at most


@styled
def sweep(table: pd.DataFrame, meta: Mapping[str, Any]) -> Figure:
    """Draw natural and worst-case accuracy of every variant: a dot and its interval a seed, a line for their mean.

    Args:
        table: what ``sweep.sweep`` returned, or its ``sweep.csv`` read again.
        meta: its ``sweep.json``.
    """
    known, variants = meta["settings"], list(dict.fromkeys(table["variant"]))
    names = [_in_lines(name) for name in variants]
    seeds = int(table["variant"].value_counts().max())
    lines = max(seeds, *(name.count("\n") + 1 for name in names)) + 1
    height = min(1.4 + _LINE * lines * len(variants), _HIGHEST)
    figure = blank(height)
    for ax, (column, colour) in zip(
        figure.subplots(1, 2, sharey=True), _PANELS.items(), strict=True
    ):
        for place, variant in enumerate(variants):
            _variant(ax, frames.rows(table, variant=variant), column, place, COLOURS[colour])
        ax.set_title("natural images" if column == "natural" else "worst case")
        ax.set_xlabel("accuracy (%)")
        small_ticks(ax)
        ax.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.set_yticks(range(len(variants)), names)
    title(figure, meta["title"])
    _legend(figure, known, int(meta["images"]["test"]), seeds)
    return figure


def _in_lines(name: str) -> str:
    """Break a variant's name after each setting, and long lists between their members."""
    lines = []
    for setting in name.split(", "):
        broken = textwrap.wrap(setting.replace("+", "+ "), 20, break_on_hyphens=False)
        lines += [line.replace("+ ", "+") for line in broken]
    return "\n".join(lines[:6])


def _variant(ax: Axes, rows: pd.DataFrame, column: str, place: int, colour: str) -> None:
    measured = rows.dropna(subset=[column])
    if measured.empty:
        ax.text(
            0.5,
            place,
            "no result",
            transform=ax.get_yaxis_transform(),
            ha="center",
            va="center",
            color="0.4",
        )
        return
    beside = np.linspace(-0.3, 0.3, len(rows)) if len(rows) > 1 else np.zeros(1)
    places = place + beside[rows[column].notna().to_numpy()]
    columns = [column, f"{column}_low", f"{column}_high"]
    accuracy, reach = frames.reach((100 * measured[columns]).itertuples(index=False, name=None))
    ax.errorbar(accuracy, places, xerr=reach, fmt="o", color=colour, markersize=3, elinewidth=0.8)
    if len(rows) > 1:
        ax.plot(
            [accuracy.mean()] * 2,
            [place - 0.42, place + 0.42],
            color=colour,
            linewidth=1.5,
            alpha=0.5,
        )


def _legend(figure: Figure, known: Mapping[str, Any], images: int, seeds: int) -> None:
    grey: dict[str, Any] = {"color": "0.3", "markersize": 3.5}
    dot = f"a network with its {known['level']:.0%} interval"
    handles = [Line2D([], [], marker="o", label=dot, linewidth=0.8, **grey)]
    if seeds > 1:
        handles.append(
            Line2D(
                [],
                [],
                marker="|",
                linestyle="none",
                label="mean of the seeds",
                **grey | {"markersize": 8},
            )
        )
    attack = f"{frames.in_capitals(known['attack'])}, ε = {frames.radius(known['eps'])}"
    figure.legend(
        handles=handles,
        title=f"{images} test images; worst case over natural images and\n{attack}, "
        "the same on the joint loss with seven weights",
        loc="outside lower center",
        ncols=2,
    )
