"""Repair and harm: is the damage account true? Put channels back, and see what is right again.

*Repair* puts natural values of some channels into the adversarial run, *harm* adversarial values
into the natural run. If the account is a true one, the channels at its top repair and harm far more
than as many random ones, or the most relevant ones by any scorer.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.integrate import trapezoid

from channelscope.analyses.base import (
    ACCOUNT,
    RANDOM,
    Analysis,
    DamagedLayer,
    Plot,
    Study,
    Table,
    register,
)
from channelscope.analyses.subjects import by_layer, check_layers
from channelscope.figures.axes import (
    add_legend,
    add_title,
    label_percent,
    list_bottom,
    list_left,
    make_panels,
)
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    choose_layers,
    describe_attack,
    describe_each,
    describe_layers,
    format_percent,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import weighted_means
from channelscope.statistics.intervals import as_columns, estimate, wilson

_SCORER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")

if TYPE_CHECKING:
    from channelscope.result import Result


def compute_repairs(study: Study) -> dict[str, Any]:
    """Compute the repair and harm curves of each ranking, and the areas under them."""
    curves: list[dict[str, Any]] = []
    areas: list[dict[str, Any]] = []
    for model in study.models:
        damage = study.damage(model)
        for layer, damaged in damage.layers.items():
            where = {"model": model, "layer": layer}
            curves += [where | row for row in _list_curves(study, damaged, damage.broken)]
            areas += [where | row for row in _list_areas(study, damaged, damage.broken)]
    return {"repairs": curves, "repair_areas": areas}


def _list_curves(
    study: Study, damaged: DamagedLayer, broken: np.ndarray
) -> Iterator[dict[str, Any]]:
    """List the points of each curve, with Wilson's intervals."""
    images, level = int(broken.sum()), study.settings["level"]
    for (ranking, curve), right in damaged.curves.items():
        counts = _count_hits(right[broken], curve).sum(0)
        for channels, count in zip((0, *damaged.counts), (0, *counts), strict=True):
            place = {"channels": channels, "fraction": channels / damaged.counts[-1]}
            share = as_columns(wilson(float(count), images, level), "right")
            yield {"ranking": ranking, "curve": curve} | place | share


def _count_hits(right: np.ndarray, curve: str) -> np.ndarray:
    """Return which images a point has made right or, of harm, wrong."""
    return ~right if curve == "harm" else right


def _list_areas(
    study: Study, damaged: DamagedLayer, broken: np.ndarray
) -> Iterator[dict[str, Any]]:
    """List the area under each curve, from no channel to all, and its rank among the rankings."""
    if not broken.any():
        return
    fractions = np.array((0, *damaged.counts)) / damaged.counts[-1]
    rows = []
    for (ranking, curve), right in damaged.curves.items():
        hits = _count_hits(right[broken], curve).astype(float)
        heights = np.concatenate([np.zeros((len(hits), 1)), hits], 1)
        of_image = trapezoid(heights, fractions, axis=1)
        means = weighted_means(of_image[:, None], study.weights[broken])[:, 0]
        area = estimate(means, study.settings["level"], (0.0, 1.0))
        rows.append({"ranking": ranking, "curve": curve} | as_columns(area, "area"))
    for row in rows:
        others = [other["area"] for other in rows if other["curve"] == row["curve"]]
        yield row | {"rank": 1 + sum(area > row["area"] for area in others)}


def repairs_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return what ``draw_repairs`` draws: model, layer, curve, ranking, fraction -> right.

    ``right`` is the share of the broken images that are right again; of harm, of those that are
    wrong. Of the scorers, the one with the largest area is drawn.
    """
    parts = []
    for model, name in choose_layers(result, layer).items():
        rows = result.select("repairs", model=model, layer=name)
        areas = result.select("repair_areas", model=model, layer=name)
        for curve in rows["curve"].unique():
            of_curve = select_rows(areas, curve=curve)
            scorers = of_curve[~of_curve["ranking"].isin([ACCOUNT, RANDOM])]
            best = scorers.sort_values("area", ascending=False, kind="stable")["ranking"].head(1)
            shown = [ACCOUNT, *best, RANDOM]
            drawn = select_rows(rows, curve=curve)
            parts.append(drawn[drawn["ranking"].isin(shown)])
    columns = ["model", "layer", "curve", "ranking", "fraction", "right", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_repairs(result: "Result", layer: str | None = None) -> Figure:
    """Draw which share of the broken images is right again as channels are put back.

    A row a model: repair, then harm. ``layer`` defaults to each model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = repairs_data(result, layer)
    layers = dict(zip(drawn["model"], drawn["layer"], strict=True))
    figure, axes = make_panels(len(layers), 2, 1.15, sharex="all", sharey="all")
    looks: dict[str, dict[str, Any]] = {}
    for row, model in zip(axes, layers, strict=True):
        of_model = select_rows(drawn, model=model)
        _draw_curves(row[0], select_rows(of_model, curve="repair"), looks)
        again = select_rows(of_model, curve="adaptive")
        row[0].plot(again["fraction"], again["right"], "k--", linewidth=0.8)
        _draw_curves(row[1], select_rows(of_model, curve="harm"), looks)
        label_percent(row[0], "")
        row[0].set_title(shorten(model, 20), loc="left", weight="bold")
    for ax, words in zip(axes[0], ("right again", "made wrong"), strict=True):
        ax.set_title(words, loc="right")
    for ax in list_left(axes):
        ax.set_ylabel("images (%)")
    for ax, words in zip(list_bottom(axes), cycle(("put back", "exchanged")), strict=False):
        label_percent(ax, f"channels {words}", "x")
    add_title(figure, f"What putting channels of {describe_layers(layers)} back repairs")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    if "adaptive" in set(drawn["curve"]):
        label = "account, attacked anew"
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=0.8, label=label))
    note = (
        f"{describe_attack(result)}; share of the images that it breaks. Left: with natural values "
        "of some channels in the adversarial run; right: with adversarial values in the natural "
        "run. First those that did most damage (account), or that are most relevant by the scorer "
        "that repairs most, or random ones"
    )
    add_legend(figure, handles, note)
    return figure


def _draw_curves(ax: Axes, rows: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """Draw a curve for each ranking; those not met before get the next look."""
    for ranking, of_ranking in rows.groupby("ranking", sort=False):
        fixed = {
            ACCOUNT: {"color": "black", "marker": "o"},
            RANDOM: {"color": "0.6", "marker": "D"},
        }
        scorers = [name for name in looks if name not in fixed]
        colour = _SCORER_COLOURS[len(scorers) % len(_SCORER_COLOURS)]
        other = {"color": colour, "marker": "s"}
        look = looks.setdefault(str(ranking), fixed.get(str(ranking), other) | {"markersize": 2.5})
        ax.plot(of_ranking["fraction"], of_ranking["right"], **look)
        ax.fill_between(
            of_ranking["fraction"],
            of_ranking["low"],
            of_ranking["high"],
            color=look["color"],
            alpha=0.15,
            linewidth=0,
        )
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.04)


def describe_repairs(drawn: pd.DataFrame) -> str:
    """Say what an eighth of the channels, or the nearest share drawn, repairs by each ranking."""

    def describe(rows: pd.DataFrame) -> str:
        inner = rows[(rows["fraction"] > 0) & (rows["fraction"] < 1)]
        if inner.empty:
            return "no point between none and all"
        nearest = inner["fraction"].iloc[(inner["fraction"] - 0.125).abs().argmin()]
        at = inner[inner["fraction"] == nearest]
        shares = zip(at["ranking"], at["right"], strict=True)
        words = ", ".join(f"{format_percent(share)} by {ranking}" for ranking, share in shares)
        return f"with {format_percent(float(nearest))} of the channels {words}"

    return describe_each(drawn, ["model", "curve"], describe)


register(
    Analysis(
        name="repairs",
        help="whether putting the account's channels back repairs what the attack broke",
        kinds=("damage",),
        tables={
            "repairs": Table(
                words=("model", "layer", "ranking", "curve"),
                numbers=("channels", "fraction", "right", "low", "high"),
                help='right: share of the broken images that are right again ("repair"), '
                'also under an attack on that network ("adaptive"), or that are wrong '
                'with adversarial values in the natural run ("harm"); ranking: "account" (what did '
                'most damage first), "random", or a scorer (what is most relevant first)',
            ),
            "repair_areas": Table(
                words=("model", "layer", "ranking", "curve"),
                numbers=("area", "low", "high", "rank"),
                help="area: under the curve, from no channel to all, in [0, 1]; rank: 1 for the "
                "largest of the rankings",
            ),
        },
        compute=compute_repairs,
        check=lambda result: check_layers(result, "repairs"),
        plots=(
            Plot(
                name="repairs",
                draw=draw_repairs,
                data=repairs_data,
                alt_text=describe_repairs,
                caption="Share of the broken images that are right again when natural values of "
                "some channels are put into the adversarial run (left), and share that is made "
                "wrong by adversarial values in the natural run (right): channels that did most "
                "damage first, the most relevant ones by the best scorer, or random ones. {layers} "
                "{adversarial} {wilson}",
                section="network",
                table="repairs",
                needs=("repair_areas",),
                subjects=by_layer,
            ),
        ),
    )
)
