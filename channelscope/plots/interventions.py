"""The figures of interventions: accuracy against the channels suppressed, and the league of scorers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from channelscope.errors import UserError, suggest
from channelscope.intervention import Interventions
from channelscope.plots import frames
from channelscope.plots.axes import grid, in_percent, title
from channelscope.plots.paper import COLOURS, save, styled

ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "nr": ("most negatively relevant (NR) channels first", {"linestyle": "-", "marker": "o"}),
    "pr": ("most positively relevant (PR) channels first", {"linestyle": "--", "marker": "s"}),
    "random": ("random channels first", {"linestyle": ":", "marker": "D"}),
}
_LINE = 0.2  # inches, of a scorer


def curves_data(
    interventions: Interventions, layer: str | None = None, scorer: str | None = None, curve: str = "deletion"
) -> pd.DataFrame:
    """Give what `curves` draws: model, layer, order, data, fraction of the channels -> accuracy, low, high."""
    of_scorer = [_scorer(interventions, scorer), "random"]
    parts = []
    for model, name in _layers(interventions, layer).items():
        rows = frames.rows(interventions.curves, model=model, layer=name, curve=curve)
        parts.append(rows[rows["scorer"].isin(of_scorer)])
    columns = ["model", "layer", "scorer", "curve", "order", "data", "fraction", "accuracy", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def curves(
    interventions: Interventions, layer: str | None = None, scorer: str | None = None, curve: str = "deletion"
) -> Figure:
    """Draw natural and robust accuracy against the share of a layer's channels that is suppressed, a row a model.

    `layer` defaults to each model's last one, `scorer` to the first; `curve` is "deletion" or "insertion". Raises
    UserError for an unknown layer or scorer.
    """
    drawn = curves_data(interventions, layer, scorer, curve)
    models = list(drawn["model"].unique())
    figure, axes = grid(len(models), 2, 1.1, 1.35, sharex=True, sharey=True)
    for row, model in zip(axes, models, strict=True):
        for ax, data in zip(row, COLOURS, strict=True):
            _panel(ax, frames.rows(drawn, model=model, data=data), COLOURS[data])
        in_percent(row[0], "accuracy")
        row[0].set_title(frames.short(model, 24), loc="left", weight="bold")
    for ax, words in zip(axes[0], ("natural images", "attacked images"), strict=True):
        ax.set_title(words, loc="right", color=COLOURS[words.replace("attacked", "adversarial").split()[0]])
    what = "suppressed" if curve == "deletion" else "kept, others suppressed"
    for ax in axes[-1]:
        in_percent(ax, f"channels {what}", "x")
    ranked = _scorer(interventions, scorer)
    title(
        figure,
        f"What is lost without some channels of {frames.where(_layers(interventions, layer))}, ranked by {ranked}",
    )
    _orders_legend(figure, interventions)
    return figure


def _panel(ax: Axes, drawn: pd.DataFrame, colour: str) -> None:
    for order, (_, look) in ORDERS.items():
        rows = frames.rows(drawn, order=order).sort_values("fraction")
        ax.plot(rows["fraction"], rows["accuracy"], color=colour, markersize=2.5, **look)
        ax.fill_between(rows["fraction"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)


def _orders_legend(figure: Figure, interventions: Interventions) -> None:
    handles = [Line2D([], [], color="0.3", markersize=2.5, label=label, **look) for label, look in ORDERS.values()]
    figure.legend(handles=handles, title=_made(interventions.meta), loc="outside lower center", ncols=1)


def _made(meta: Mapping[str, Any]) -> str:
    """Say below a figure how it was made."""
    class_ = "the network answers" if meta["relevant_to"] == "answer" else "is true (an oracle)"
    return (
        f"{meta['data']['images']} images; attacked: {_attack(meta)}, which sees the\nsuppression; relevant: to the "
        f"class that {class_}; bands: {meta['level']:.0%} intervals"
    )


def league_data(interventions: Interventions, layer: str | None = None) -> pd.DataFrame:
    """Give what `league` draws: model, layer, scorer, order, data -> value, low, high, rank; the best scorer first."""
    parts = []
    for model, name in _layers(interventions, layer).items():
        rows = frames.rows(interventions.league, model=model, layer=name)
        best = frames.rows(rows, order="both", data="adversarial").sort_values("rank", kind="stable")["scorer"]
        parts += [frames.rows(rows, scorer=scorer) for scorer in best]
    drawn = pd.concat(parts, ignore_index=True)
    return drawn[drawn["order"] != "both"].reset_index(drop=True)


@styled
def league(interventions: Interventions, layer: str | None = None) -> Figure:
    """Draw how far each scorer's curves lie from the random ones, a row of panels for each model.

    The best scorer, mean over both orders on adversarial images, is on top. `layer` defaults to each model's last one.
    """
    drawn = league_data(interventions, layer)
    models = list(drawn["model"].unique())
    scorers = drawn["scorer"].nunique()
    figure, axes = grid(len(models), 2, _LINE * scorers + 0.4, 1.0, sharex=True, sharey="row")
    for row, model in zip(axes, models, strict=True):
        of_model = frames.rows(drawn, model=model)
        for ax, order in zip(row, ("nr", "pr"), strict=True):
            _places(ax, frames.rows(of_model, order=order))
        names = list(of_model["scorer"].unique())
        row[0].set_yticks(range(len(names)), [frames.short(name, 24) for name in names])
        row[0].set_ylim(len(names) - 0.5, -0.5)
        row[0].set_title(frames.short(model, 24), loc="left", weight="bold")
    for ax, words in zip(axes[0], ("NR first: accuracy kept", "PR first: accuracy lost"), strict=True):
        ax.set_title(words, loc="right")
    for ax in axes[-1]:
        in_percent(ax, "beyond random order", "x")
    title(figure, f"How true is each ranking of the channels of {frames.where(_layers(interventions, layer))}?")
    handles = [
        Line2D([], [], color=COLOURS[data], marker="o", linestyle="none", markersize=3, label=f"{data} images")
        for data in COLOURS
    ]
    figure.legend(handles=handles, title=_made(interventions.meta), loc="outside lower center", ncols=2)
    return figure


def _places(ax: Axes, drawn: pd.DataFrame) -> None:
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
    for data, beside in (("natural", -0.12), ("adversarial", 0.12)):
        rows = frames.rows(drawn, data=data)
        value, reach = frames.reach(rows[["value", "low", "high"]].itertuples(index=False, name=None))
        places = np.arange(len(rows)) + beside
        ax.errorbar(value, places, xerr=reach, fmt="o", color=COLOURS[data], markersize=3, elinewidth=0.8)


def draw(interventions: Interventions, folder: Path) -> list[Path]:
    """Write the figures into a folder as .pdf and .png; give the paths."""
    made = {"league": league(interventions)}
    for scorer in _scorers(interventions):
        made[f"curves-{scorer}"] = curves(interventions, scorer=scorer)
    return [save(figure, folder / f"{name}.{ending}") for name, figure in made.items() for ending in ("pdf", "png")]


def _scorers(interventions: Interventions) -> list[str]:
    return list(interventions.league["scorer"].unique())


def _scorer(interventions: Interventions, scorer: str | None) -> str:
    known = _scorers(interventions)
    if scorer is not None and scorer not in known:
        raise UserError(f"No scorer {scorer!r} here; choose from {', '.join(known)}.{suggest(scorer, known)}")
    return scorer or known[0]


def _layers(interventions: Interventions, layer: str | None) -> dict[str, str]:
    """Of each model the layer to show: the one asked for, or else its last; models without it are left out."""
    known = {model: list(described["layers"]) for model, described in interventions.meta["models"].items()}
    if layer is None:
        return {model: names[-1] for model, names in known.items()}
    shown = {model: layer for model, names in known.items() if layer in names}
    if not shown:
        names = list(dict.fromkeys(name for names in known.values() for name in names))
        raise UserError(f"No layer {layer!r} here; choose from {', '.join(names)}.{suggest(layer, names)}")
    return shown


def _attack(meta: Mapping[str, Any]) -> str:
    levels = round(255 * meta["eps"], 4)
    radius = f"{levels:g}/255" if levels.is_integer() and 0 < meta["eps"] < 1 else f"{meta['eps']:.4g}"
    return f"{frames.in_capitals(meta['attack'])}, ε = {radius}"
