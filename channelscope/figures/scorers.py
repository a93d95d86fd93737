"""The figure of several scorers' rankings: how much they agree, drawn from their table alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from channelscope.figures import frames
from channelscope.figures.axes import blank, small_ticks, title
from channelscope.figures.paper import current, styled

_ROW = 0.19  # inches, of a scorer
_AROUND = 0.95  # inches, of a panel's title and its columns' names
_COLOURS = "PRGn"  # from -1 to 1; blue and orange are the data's


def scorer_agreement_data(agreement: pd.DataFrame) -> pd.DataFrame:
    """Give what `scorer_agreement` draws: model, layer, scorer, other -> value."""
    return agreement[["model", "layer", "scorer", "other", "value", "low", "high"]]


@styled
def scorer_agreement(agreement: pd.DataFrame, meta: Mapping[str, Any]) -> Figure:
    """Draw how much scorers agree on the ranking of a layer's channels: a panel for each model and layer.

    A cell is Spearman's correlation of two scorers' relevance over the layer's channels, mean over the classes.

    Args:
        agreement: of ``rankings.Rankings``, or its ``agreement.csv`` read again.
        meta: its ``meta.json``.
    """
    drawn = scorer_agreement_data(agreement)
    panels = list(drawn.groupby(["model", "layer"], sort=False))
    rows = [rows["other"].nunique() for _, rows in panels]
    figure = blank(1.1 + sum(_ROW * count + _AROUND for count in rows))
    axes = figure.subplots(
        len(panels), 1, squeeze=False, height_ratios=[_ROW * n + 0.3 for n in rows]
    )[:, 0]
    for ax, ((model, layer), cells) in zip(axes, panels, strict=True):
        picture = _panel(ax, cells)
        ax.set_title(
            f"{frames.short(str(model))}, {frames.short_layer(str(layer), 24)}", loc="left"
        )
    figure.colorbar(
        picture, ax=list(axes), location="bottom", fraction=0.06, aspect=30, pad=0.02
    ).set_label("rank correlation (1: same order)")
    title(
        figure,
        "Do these ways to score how relevant a channel is to a class agree? Rank correlation (Spearman) over the "
        f"layer's channels, mean over the classes, {meta['data']['images']} images",
    )
    return figure


def _panel(ax: Axes, cells: pd.DataFrame) -> AxesImage:
    rows, columns = list(dict.fromkeys(cells["other"])), list(dict.fromkeys(cells["scorer"]))
    values = np.full((len(rows), len(columns)), np.nan)
    for cell in cells.itertuples():
        values[rows.index(cell.other), columns.index(cell.scorer)] = cell.value
    picture = ax.imshow(values, cmap=_COLOURS, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.6 else "black"
            ax.text(
                column,
                row,
                frames.number(value),
                ha="center",
                va="center",
                color=colour,
                size=current().small,
            )
    small_ticks(ax)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return picture
