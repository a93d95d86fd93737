"""Edges: how the damage passes from the channels of one layer to those of the next.

Rows and columns of the edges between two layers are the layers' accounts (``study.edges``). Whether
edges are true is tested by cutting them: the share of the damage that is regained, beside what the
edges say and what as many random ones regain.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from channelscope.analyses.base import (
    ACCOUNT,
    RANDOM,
    Analysis,
    Edges,
    LayerEdges,
    Plot,
    Study,
    Subject,
    Table,
    register,
)
from channelscope.figures.axes import (
    add_legend,
    add_title,
    make_grid,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    describe_attack,
    describe_class,
    describe_each,
    format_number,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import weighted_means
from channelscope.statistics.intervals import as_columns, estimate

if TYPE_CHECKING:
    from channelscope.result import Result

ALL = "all"
_LISTED = 40  # edges of a class that are in the table, the worst first
_DRAWN = 15
_SHARES = (0.5, 0.9)


def compute_edges(study: Study) -> dict[str, Any]:
    """List the strongest edges by class, how few carry the damage, and what cutting them does."""
    tables: dict[str, list[dict[str, Any]]] = {"edges": [], "edge_cuts": []}
    for model in study.models:
        traced = study.edges(model)
        if traced is None or not traced.broken.any():
            continue
        for (first, second), layer in traced.layers.items():
            where = {"model": model, "first": first, "second": second}
            tables["edges"] += [where | row for row in _list_edges(study, traced, layer)]
            tables["edge_cuts"] += [where | row for row in _list_cuts(study, traced, layer)]
    return dict(tables)


def _list_edges(study: Study, traced: Edges, layer: LayerEdges) -> Iterator[dict[str, Any]]:
    """List the strongest edges, mean over all broken images, then over each class's."""
    labels = study.labels[: len(traced.broken)]
    names = [(ALL, traced.broken)]
    names += [(name, traced.broken & (labels == k)) for k, name in enumerate(study.classes)]
    for name, rows in names:
        if not rows.any():
            continue
        mean = np.asarray(layer.edges[rows], np.float64).mean(0)
        order = np.argsort(-mean, axis=None, kind="stable")[:_LISTED]
        sources, targets = np.unravel_index(order, mean.shape)
        whole = mean.sum()
        for i, j in zip(sources.tolist(), targets.tolist(), strict=True):
            ends = {"class": name, "source": i, "target": j, "images": rows.sum()}
            yield ends | {"damage": mean[i, j], "share": mean[i, j] / whole}


def _list_cuts(study: Study, traced: Edges, layer: LayerEdges) -> Iterator[dict[str, Any]]:
    """List the share of the damage that cutting edges regains, beside what the edges say."""
    broken = traced.broken
    edges = np.asarray(layer.edges[broken], np.float64).reshape(broken.sum(), -1)
    ordered = np.sort(edges, axis=1)[:, ::-1]
    whole = edges.sum(1)
    harms = np.clip(ordered, 0, None).cumsum(1)
    halves = {share: 1.0 + (harms >= share * harms[:, -1:]).argmax(1).mean() for share in _SHARES}
    errors = {
        "row_error": float(np.median(layer.row_error[broken])),
        "column_error": float(np.median(layer.column_error[broken])),
        "masks": float(np.mean(layer.masks[broken])),
    }
    weights = study.weights[: len(broken)][broken]
    for place, cut in enumerate(traced.cuts):
        count = max(1, round(cut * edges.shape[1]))
        predicted = ordered[:, :count].sum(1) / whole
        row: dict[str, Any] = {"cut": cut, "of": edges.shape[1], "images": broken.sum()}
        row |= {"half": halves[0.5], "most": halves[0.9], "predicted": predicted.mean()} | errors
        gains = {
            order: estimate(
                weighted_means(layer.gains[order][broken][:, place : place + 1], weights)[:, 0],
                study.settings["level"],
            )
            for order in (ACCOUNT, RANDOM)
        }
        yield row | as_columns(gains[ACCOUNT], "regained") | {"random": gains[RANDOM].value}


def by_class(result: "Result") -> Iterator[Subject]:
    """A figure of all classes, then of each."""
    for name in result.edges["class"].unique():
        yield Subject({"class_name": None if name == ALL else name}, main=name == ALL)


def edges_data(result: "Result", class_name: str | None = None) -> pd.DataFrame:
    """Return what ``draw_edges`` draws: model, first, second, source, target -> damage, share.

    The strongest edges of a class, or of all, between each pair of layers.
    """
    rows = result.select("edges", **{"class": class_name or ALL})
    groups = rows.groupby(["model", "first", "second"], sort=False)
    columns = ["model", "first", "second", "source", "target", "damage", "share"]
    return groups.head(_DRAWN).reset_index(drop=True)[columns]


@styled
def draw_edges(result: "Result", class_name: str | None = None) -> Figure:
    """Draw the strongest edges between consecutive layers, a row a model, a panel a pair of layers.

    Args:
        result: of damage, with edges.
        class_name: one of the classes; None for the mean over all broken images.
    """
    drawn = edges_data(result, class_name)
    models = list(dict.fromkeys(drawn["model"]))
    pairs = list(dict.fromkeys(zip(drawn["first"], drawn["second"], strict=True)))
    figure, axes = make_grid(len(models) or 1, len(pairs) or 1, 1.9, 0.05, 1.3)
    for row, model in zip(axes, models, strict=False):
        for ax, (first, second) in zip(row, pairs, strict=True):
            _draw_panel(ax, select_rows(drawn, model=model, first=first, second=second))
            ax.set_title(f"{first} → {second}", size=current_style().small)
        row[0].set_ylabel(shorten(model, 20))
    whose = "all classes" if class_name is None else describe_class(class_name)
    add_title(figure, f"Strongest paths of the damage, {whose}")
    note = (
        f"{describe_attack(result)}; mean over broken images. Lines: the {_DRAWN} edges of most "
        "damage, the thicker the more; left, right: channels of the first and the second layer, "
        "those of most damage on top"
    )
    add_legend(figure, note=note)
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if rows.empty:
        return
    places = []
    for end, x, side in (("source", 0.0, "right"), ("target", 1.0, "left")):
        order = rows.groupby(end)["damage"].sum().sort_values(ascending=False, kind="stable")
        heights = np.linspace(1, 0, len(order)) if len(order) > 1 else np.array([0.5])
        places.append(dict(zip(order.index, heights, strict=True)))
        beside = -0.04 if side == "right" else 0.04
        for channel, height in places[-1].items():
            text: dict[str, Any] = {"ha": side, "va": "center", "size": current_style().small - 1}
            ax.text(x + beside, height, str(channel), **text)
    most = rows["damage"].max()
    for source, target, damage in rows[["source", "target", "damage"]].to_numpy():
        ends = [places[0][source], places[1][target]]
        width = 0.3 + 2.7 * damage / most
        ax.plot([0, 1], ends, color=COLOURS["adversarial"], linewidth=width, alpha=0.7)
    ax.set_xlim(-0.25, 1.25)
    ax.set_ylim(-0.05, 1.05)


def describe_edges(drawn: pd.DataFrame) -> str:
    """Say which edges carry most of the damage."""

    def describe(rows: pd.DataFrame) -> str:
        parts = rows[["source", "target", "damage"]].head(3).to_numpy()
        return ", ".join(f"{i:.0f} to {j:.0f}: {format_number(damage)}" for i, j, damage in parts)

    return describe_each(drawn, ["model", "first", "second"], describe)


register(
    Analysis(
        name="edges",
        help="how the damage passes from channel to channel between layers",
        kinds=("damage",),
        tables={
            "edges": Table(
                words=("model", "first", "second", "class"),
                numbers=("source", "target", "images", "damage", "share"),
                help=f"the {_LISTED} strongest edges between channels of consecutive layers, from "
                "the channel source of the first to the channel target of the second, of all "
                "broken images and by class; damage: mean over the images; share: of all edges'",
            ),
            "edge_cuts": Table(
                words=("model", "first", "second"),
                numbers=(
                    *("cut", "of", "images", "half", "most", "row_error", "column_error"),
                    "masks",
                    *("predicted", "regained", "low", "high", "random"),
                ),
                help="cut: share of an image's edges that are cut, those of most damage first; of: "
                "edges; half, most: how many edges have half, and 90 %, of what lowers the margin; "
                "row_error, column_error: how far the edges' sums are from the layers' accounts, "
                "medians; masks: share of the damage that comes to the second layer from masks in "
                "between, on no edge; predicted: share of the damage that these edges have; "
                "regained: share of it that cutting them gives back, with its interval; random: "
                "the same of as many random edges",
            ),
        },
        compute=compute_edges,
        plots=(
            Plot(
                name="edges",
                draw=draw_edges,
                data=edges_data,
                alt_text=describe_edges,
                caption="The strongest paths of the damage between channels of consecutive layers: "
                "what comes back at the margin through a channel of the first layer by way of a "
                "channel of the second, mean over the broken images. {adversarial}",
                section="network",
                table="edges",
                subjects=by_class,
            ),
        ),
    )
)
