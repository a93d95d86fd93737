"""The figure of a comparison's accuracies under its attacks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from channelscope.comparison import Comparison
from channelscope.plots import frames
from channelscope.plots.axes import grid, in_percent, model_look, title
from channelscope.plots.paper import styled

_ENDS = {"natural": "natural images", "worst": "worst case of all"}


def robustness_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `robustness` draws: model, attack (natural images first, worst case last) -> accuracy, low, high."""
    overall = frames.rows(comparison.robustness, **{"class": "all"})
    names = list(overall["attack"].unique())
    order = sorted(names, key=lambda name: (name == "worst") - (name == "natural"))
    parts = []
    for model in frames.models(comparison):
        of_model = frames.rows(overall, model=model)
        parts.append(of_model.sort_values("attack", key=lambda column: column.map(order.index), kind="stable"))
    found = pd.concat(parts, ignore_index=True)[["model", "attack", "accuracy", "low", "high"]]
    return found.assign(attack=found["attack"].map(lambda name: _ENDS.get(name, frames.in_capitals(name))))


@styled
def robustness(comparison: Comparison) -> Figure:
    """Draw the accuracy of every model under every attack, and in the worst case per image over them, with intervals.

    A row for each attack, in it a dot for each model that it was run on.
    """
    drawn, models = robustness_data(comparison), frames.models(comparison)
    attacks = sorted(drawn["attack"].unique(), key=lambda name: name == _ENDS["worst"])
    row = 0.05 + 0.055 * len(models)
    figure, axes = grid(1, 1, max(row, 0.14) * len(attacks), 0.9 + 0.12 * -(-len(models) // 3))
    ax, places = axes[0, 0], {name: place for place, name in enumerate(attacks)}
    for index, (model, beside) in enumerate(zip(models, np.linspace(-0.3, 0.3, len(models) + 2)[1:-1], strict=True)):
        rows, look = frames.rows(drawn, model=model), model_look(index)
        accuracy, reach = frames.bars(rows, "accuracy")
        height = rows["attack"].map(places).to_numpy() + beside
        label = frames.short(model)
        ax.errorbar(accuracy, height, xerr=reach, linestyle="none", markersize=3, elinewidth=0.8, label=label, **look)
    for place in range(1, len(attacks)):
        ax.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    ax.set_yticks([*places.values()], [frames.short(name, 26) for name in attacks])
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    in_percent(ax, "accuracy", "x")
    images = comparison.meta["data"]["images"]
    radius = frames.radius(float(comparison.meta["eps"]))
    title(figure, f"Accuracy under each attack, ε = {radius}, {images:,} images")
    note = f"bars: {comparison.meta['level']:.0%} intervals"
    if drawn.groupby("model").size().nunique() > 1:
        note += "; no mark: an attack for models with gates alone"
    figure.legend(title=note, loc="outside lower center", ncols=3)
    return figure
