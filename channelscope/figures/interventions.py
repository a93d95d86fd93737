"""The figures of interventions: accuracy against the channels suppressed, and the league of scorers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from channelscope.errors import UserError, suggest
from channelscope.figures import frames, paper
from channelscope.figures.axes import grid, in_percent, title, wrapped
from channelscope.figures.paper import COLOURS, styled
from channelscope.intervention import Interventions

ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "nr": (
        "those that speak most against it (negatively relevant, NR)",
        {"linestyle": "-", "marker": "o"},
    ),
    "random": ("random ones", {"linestyle": ":", "marker": "D"}),
    "pr": (
        "those that speak most for it (positively relevant, PR)",
        {"linestyle": "--", "marker": "s"},
    ),
}
_ROW = 0.2  # inches, of a scorer


def curves_data(
    interventions: Interventions,
    layer: str | None = None,
    scorer: str | None = None,
    curve: str = "deletion",
) -> pd.DataFrame:
    """Give what `curves` draws: model, layer, order, data, fraction of the channels -> accuracy, low, high."""
    known = list(interventions.league["scorer"].unique())
    parts = []
    for model, name in _layers(interventions, layer).items():
        of_layer = frames.rows(interventions.curves, model=model, layer=name, curve=curve)
        own = frames.rows(of_layer, scorer=scorer or known[0])
        parts += [own, frames.rows(of_layer, scorer="random")] if len(own) else []
    if not parts:
        raise UserError(
            f"No curves of {scorer!r} here; choose from {', '.join(known)}.{suggest(scorer or '', known)}"
        )
    columns = [
        "model",
        "layer",
        "scorer",
        "curve",
        "order",
        "data",
        "fraction",
        "accuracy",
        "low",
        "high",
    ]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def curves(
    interventions: Interventions,
    layer: str | None = None,
    scorer: str | None = None,
    curve: str = "deletion",
) -> Figure:
    """Draw natural and robust accuracy against the share of a layer's channels that is suppressed, a row a model.

    `layer` defaults to each model's last one, `scorer` to the first; `curve` is "deletion" or, against the share that
    is not suppressed, "insertion". Raises UserError for an unknown layer or scorer.
    """
    drawn = curves_data(interventions, layer, scorer, curve)
    layers = dict(drawn[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = grid(len(layers), 2, 1.1, 1.75, sharex=True, sharey=True)
    for row, model in zip(axes, layers, strict=True):
        for ax, data in zip(row, COLOURS, strict=True):
            _panel(ax, frames.rows(drawn, model=model, data=data), COLOURS[data])
        in_percent(row[0], "accuracy")
        row[0].set_title(frames.short(model, 20), loc="left", weight="bold")
    for ax, data in zip(axes[0], COLOURS, strict=True):
        ax.set_title(f"{data} images", loc="right", color=COLOURS[data])
    verb = "set to 0" if curve == "deletion" else "kept, others 0"
    for ax in axes[-1]:
        in_percent(ax, f"channels {verb}", "x")
    scorers = drawn["scorer"][drawn["scorer"] != "random"]
    title(
        figure,
        f"Accuracy without some channels of {frames.where(layers)}; relevance of the channels by {scorers.iloc[0]}",
    )
    handles = [
        Line2D([], [], color="0.3", markersize=2.5, label=words, **look)
        for words, look in ORDERS.values()
    ]
    first = "Set to 0 first:" if curve == "deletion" else "Kept first:"
    _key(figure, interventions, handles, first)
    return figure


def _panel(ax: Axes, drawn: pd.DataFrame, colour: str) -> None:
    for order, (_, look) in ORDERS.items():
        rows = frames.rows(drawn, order=order).sort_values("fraction")
        ax.plot(rows["fraction"], rows["accuracy"], color=colour, markersize=2.5, **look)
        ax.fill_between(
            rows["fraction"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0
        )
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(0, 1.04)


def league_data(interventions: Interventions, layer: str | None = None) -> pd.DataFrame:
    """Give what `league` draws: model, layer, scorer, order, data -> value, low, high.

    The scorer that is best on adversarial images, mean over both orders, comes first; ``rank`` is that place.
    """
    parts = []
    for model, name in _layers(interventions, layer).items():
        rows = frames.rows(interventions.league, model=model, layer=name)
        best = frames.rows(rows, order="both", data="adversarial").set_index("scorer")["rank"]
        rows = rows.assign(rank=rows["scorer"].map(best)).sort_values("rank", kind="stable")
        parts.append(rows[rows["order"] != "both"])
    return pd.concat(parts, ignore_index=True)


@styled
def league(interventions: Interventions, layer: str | None = None) -> Figure:
    """Draw how far each scorer's curves lie from the random ones, a row of panels for each model, the best on top.

    `layer` defaults to each model's last one. Raises UserError for an unknown one.
    """
    drawn = league_data(interventions, layer)
    layers = dict(drawn[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    height = _ROW * drawn.groupby("model")["scorer"].nunique().max() + 0.35
    figure, axes = grid(len(layers), 2, height, 1.87, sharex=True, sharey="row")
    for row, model in zip(axes, layers, strict=True):
        of_model = frames.rows(drawn, model=model)
        for ax, order in zip(row, ("nr", "pr"), strict=True):
            _places(ax, frames.rows(of_model, order=order))
        names = list(of_model["scorer"].unique())
        row[0].set_yticks(range(len(names)), [frames.short(name, 24) for name in names])
        row[0].set_ylim(len(names) - 0.5, -0.5)
        row[0].set_title(frames.short(model, 20), loc="left", weight="bold")
    for ax, words in zip(
        axes[-1],
        ("NR first: accuracy\nkept beyond\nrandom", "PR first: accuracy\nlost beyond\nrandom"),
        strict=True,
    ):
        in_percent(ax, words, "x")
        ax.set_xlabel(f"{words} (points)")
    title(
        figure, f"Which relevance ranking finds the channels that matter? ({frames.where(layers)})"
    )
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[data],
            marker="o",
            linestyle="none",
            markersize=3,
            label=f"{data} images",
        )
        for data in COLOURS
    ]
    area = (
        "Channels are set to 0 one after the other, by each ranking from its negatively relevant (NR) or its "
        "positively relevant (PR) end, or in random order. Shown is by how much more accuracy is kept (NR) or lost "
        "(PR) than in random order (dashed), mean over all numbers of channels: the further right, the truer."
    )
    _key(figure, interventions, handles, area, columns=2)
    return figure


def _places(ax: Axes, drawn: pd.DataFrame) -> None:
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
    for data, beside in (("natural", -0.12), ("adversarial", 0.12)):
        rows = frames.rows(drawn, data=data)
        value, reach = frames.bars(rows)
        places = np.arange(len(rows)) + beside
        ax.errorbar(
            value, places, xerr=reach, fmt="o", color=COLOURS[data], markersize=3, elinewidth=0.8
        )


def _key(
    figure: Figure,
    interventions: Interventions,
    handles: list[Line2D],
    words: str,
    columns: int = 1,
) -> None:
    """Say below a figure how it was made, then who is who."""
    meta = interventions.meta
    whose = (
        "that the network answers"
        if meta["relevant_to"] == "answer"
        else "that is true (an oracle)"
    )
    attack = f"{frames.in_capitals(meta['attack'])}, ε = {frames.radius(meta['eps'])}"
    made = (
        f"{meta['data']['images']} images, {meta['level']:.0%} intervals; adversarial: {attack}, on the network "
        f"without the channels; relevance to the class {whose}. {words}"
    )
    lines = "\n".join(wrapped(made, 60))
    figure.legend(
        handles=handles, title=lines, loc="outside lower left", ncols=columns, alignment="left"
    )


def draw(
    interventions: Interventions,
    folder: Path,
    *,
    style: str | None = None,
    formats: Sequence[str] = ("pdf", "png"),
) -> list[Path]:
    """Write the figures of every layer into a folder in a style (see ``paper.style``), each beside its data (.csv)."""
    paper.check_formats(formats)
    several = any(
        len(described["layers"]) > 1 for described in interventions.meta["models"].values()
    )
    scored = interventions.league.groupby("layer", sort=False)["scorer"].unique()
    paths = []
    with paper.style(style):
        for layer, scorers in (
            scored.items() if several else [(None, interventions.league["scorer"].unique())]
        ):
            end = "" if layer is None else f"-{_safe(str(layer))}"
            shown = None if layer is None else str(layer)
            drawn = league(interventions, shown), league_data(interventions, shown)
            paths += paper.write(*drawn, folder / f"league{end}", formats)
            for scorer in scorers:
                drawn = (
                    curves(interventions, shown, scorer),
                    curves_data(interventions, shown, scorer),
                )
                paths += paper.write(*drawn, folder / f"curves-{_safe(scorer)}{end}", formats)
    return paths


def _safe(name: str) -> str:
    """Spell a name with letters that lead nowhere in a path."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)


def _layers(interventions: Interventions, layer: str | None) -> dict[str, str]:
    known = {
        model: described["layers"] for model, described in interventions.meta["models"].items()
    }
    return frames.shown(known, layer)
