"""Relevance by several scorers, and whether they rank the channels alike."""

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.figures.axes import (
    add_legend,
    add_title,
    draw_heatmap,
    make_panels,
    shrink_ticks,
)
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    describe_each,
    format_number,
    list_groups,
    shorten,
    shorten_layer,
)
from channelscope.statistics.channels import mean_by_class, rows_by_class, weighted_means
from channelscope.statistics.intervals import as_columns, estimate
from channelscope.statistics.measures import mean_over_classes, pearson, rank

if TYPE_CHECKING:
    from channelscope.result import Result

_ROW = 0.19  # inches, of a scorer
_AROUND = 0.95  # inches, of a panel's title and its columns' names


def compute_relevance(study: Study) -> dict[str, Any]:
    """Compute each scorer's relevance of the channels to each class, and how the scorers agree."""
    groups = {}
    agreement = []
    for model in study.models:
        for layer in study.layers(model):
            scores = _collect_scores(study, model, layer)
            for scorer, relevance in scores.items():
                mean = mean_by_class(relevance, study.labels, len(study.classes))
                groups[model, layer, scorer] = {"relevance": mean}
            where = {"model": model, "layer": layer}
            agreement += [where | row for row in _compare_scorers(study, scores)]
    return {"relevance": groups, "agreement": agreement}


def _collect_scores(study: Study, model: str, layer: str) -> dict[str, Float[ndarray, "n c"]]:
    """Return scorer -> relevance, of the scorers that did not refuse the layer."""
    scores = {}
    for scorer in study.settings["scorers"]:
        try:
            scores[scorer] = study.relevance(model, layer, scorer)
        except KeyError:
            continue  # settings["refused"] says why
    return scores


def _compare_scorers(study: Study, scores: dict[str, ndarray]) -> Iterator[dict[str, Any]]:
    """Compare two scorers at a time: Spearman's correlation over the channels, mean over classes.

    The ranks of one class's replicates at a time: memory does not grow with classes.
    """
    shape = (study.weights.shape[1], len(study.classes))
    correlations = {pair: np.full(shape, np.nan) for pair in combinations(scores, 2)}
    for k, rows in enumerate(rows_by_class(study.labels, len(study.classes))):
        ranks = {
            scorer: rank(weighted_means(np.asarray(relevance[rows], float), study.weights[rows]))
            for scorer, relevance in scores.items()
        }
        for (one, other), columns in correlations.items():
            columns[:, k] = pearson(ranks[one], ranks[other])
    for (one, other), replicates in correlations.items():
        mean = mean_over_classes(replicates)
        value = as_columns(estimate(mean, study.settings["level"], (-1.0, 1.0)))
        yield {"scorer": one, "other": other} | value


def count_signs(result: "Result") -> pd.DataFrame:
    """Count the channels that speak for a class and against it, mean over classes with images.

    Returns:
        model, layer, scorer -> positive, negative.
    """
    rows = []
    for group in list_groups(result, "relevance"):
        relevance = result.array("relevance", "relevance", *group)
        present = relevance[~np.isnan(relevance).any(1)]
        row = dict(zip(("model", "layer", "scorer"), group, strict=True))
        counts = {"positive": (present > 0).sum(1), "negative": (present < 0).sum(1)}
        rows.append(row | {name: count.mean() for name, count in counts.items()})
    return pd.DataFrame(rows, columns=["model", "layer", "scorer", "positive", "negative"])


def scorer_agreement_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_scorer_agreement`` draws: the table ``agreement``."""
    return result.select("agreement")


@styled
def draw_scorer_agreement(result: "Result") -> Figure:
    """Draw how far scorers agree on the order of a layer's channels, a panel by model and layer.

    A cell is Spearman's correlation of two scorers' relevance over the layer's channels, mean over
    the classes.
    """
    panels = list(scorer_agreement_data(result).groupby(["model", "layer"], sort=False))
    rows = max(cells["other"].nunique() for _, cells in panels)
    longest = max(map(len, result.agreement["scorer"].unique()))
    height = _ROW * rows + 0.2 + 0.055 * longest
    figure, axes = make_panels(len(panels), 1, height, 0.45, across=2.2, least=0.9 * height)
    look: dict[str, Any] = {"cmap": "PRGn", "vmin": -1, "vmax": 1}  # blue, orange: the data's
    for ax, ((model, layer), cells) in zip(axes[:, 0], panels, strict=True):
        order = [list(dict.fromkeys(cells[column])) for column in ("other", "scorer")]
        table = cells.pivot(index="other", columns="scorer", values="value")
        mesh = draw_heatmap(
            ax, table.reindex(index=order[0], columns=order[1]), write=".2f", **look
        )
        ax.set_title(f"{shorten(str(model))}, {shorten_layer(str(layer), 24)}", loc="left")
        ax.tick_params(length=0)
    place: dict[str, Any] = {"location": "bottom", "fraction": 0.06, "aspect": 30, "pad": 0.02}
    bar = figure.colorbar(mesh, ax=list(axes.flat), **place)
    bar.set_label("rank correlation (1: same order)")
    shrink_ticks(bar.ax)
    add_title(figure, "Do ways to score how relevant a channel is to a class agree?")
    images = result.meta["data"]["images"]
    note = (
        "Spearman's rank correlation over the layer's channels, mean over the classes, "
        f"{images} images"
    )
    add_legend(figure, note=note)
    return figure


def describe_scorer_agreement(drawn: pd.DataFrame) -> str:
    """Say which scorers agree least and most."""

    def describe(rows: pd.DataFrame) -> str:
        known = rows.dropna(subset=["value"]).sort_values("value", kind="stable")
        if known.empty:
            return "unknown"
        parts = [
            f"{format_number(row['value'])} ({row['scorer']} and {row['other']})"
            for row in (known.iloc[0], known.iloc[-1])
        ]
        return f"rank correlations from {parts[0]} to {parts[1]}"

    return describe_each(drawn, ["model", "layer"], describe)


def check_relevance(result: "Result") -> None:
    """Raise ValueError where scorers are compared that have no relevance."""
    groups = set(list_groups(result, "relevance"))
    for row in result.agreement.itertuples():
        if not {(row.model, row.layer, row.scorer), (row.model, row.layer, row.other)} <= groups:
            raise ValueError("agreement is of other scorers than relevance")


register(
    Analysis(
        name="relevance",
        help="how relevant several scorers find each channel, and whether they agree",
        kinds=("relevance",),
        tables={
            "relevance": Table(
                words=("model", "layer", "scorer"),
                numbers=("relevance",),
                help="relevance: of the channel to the class, mean over its images",
                by_channel=True,
            ),
            "agreement": Table(
                words=("model", "layer", "scorer", "other"),
                numbers=("value", "low", "high"),
                help="value: Spearman's correlation of the two scorers' relevance over the "
                "channels, mean over the classes, in [-1, 1]",
            ),
        },
        compute=compute_relevance,
        check=check_relevance,
        plots=(
            Plot(
                name="scorer-agreement",
                draw=draw_scorer_agreement,
                data=scorer_agreement_data,
                alt_text=describe_scorer_agreement,
                caption="How far ways to score the relevance of a channel agree: Spearman's "
                "correlation of two scorers' relevance over the channels of a layer, mean over the "
                "classes; 1 where both rank the channels alike.",
                section="network",
                table="agreement",
            ),
        ),
    )
)
