"""Interventions: is a relevance ranking true? Suppress channels and see what accuracy is left.

If the relevance is a true account of what the channels do, accuracy lasts when the most negatively
relevant (NR) channels go first, and falls at once when the most positively relevant (PR) ones do;
random orders lie between. The area between a scorer's curve and the random one ranks the scorers.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray
from scipy.integrate import trapezoid

from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Subject,
    SuppressedLayer,
    Table,
    register,
)
from channelscope.analyses.subjects import check_layers, list_layers
from channelscope.errors import UserError, suggest
from channelscope.figures.axes import (
    add_legend,
    add_title,
    label_percent,
    list_bottom,
    list_left,
    make_panels,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    choose_layers,
    describe_each,
    describe_layers,
    error_bars,
    format_attack,
    format_interval,
    format_percent,
    format_radius,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import weighted_means
from channelscope.statistics.intervals import (
    Bounds,
    as_columns,
    estimate_bounded_columns,
    wilson,
)

if TYPE_CHECKING:
    from channelscope.result import Result

_DATA = ("natural", "adversarial")
_OPPOSITE = {"nr": "pr", "pr": "nr", "random": "random"}
_SHARE: Bounds = (0.0, 1.0)
# By order: what is suppressed first, and how its curve is drawn.
_ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
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

_Key = tuple[str, str, str]  # scorer, order, data


def compute_interventions(study: Study) -> dict[str, Any]:
    """Compute deletion curves, the areas under them, and the league of scorers."""
    tables: dict[str, list[dict[str, Any]]] = {"curves": [], "areas": [], "league": []}
    for model in study.models:
        for layer, suppressed in study.suppressed(model).items():
            curves = measure_curves(study, model, layer)
            fractions = find_fractions(suppressed)
            areas = {key: trapezoid(curve, fractions, axis=1) for key, curve in curves.items()}
            level = study.settings["level"]
            images = len(study.labels)
            scorers = list(suppressed.relevance)
            rows = {
                "curves": _list_curves(curves, suppressed.counts, images, level),
                "areas": _list_areas(areas, images, level),
                "league": _rank_scorers(areas, scorers, images, level),
            }
            for name, of_layer in rows.items():
                tables[name] += [{"model": model, "layer": layer} | row for row in of_layer]
    return dict(tables)


def measure_curves(study: Study, model: str, layer: str) -> dict[_Key, Float[ndarray, "r p"]]:
    """Compute a layer's deletion curves: the accuracy at each point, replicate by replicate.

    The mean over the random orders; NaN for a replicate without images, as there are where images
    are few.
    """

    def compute() -> dict[_Key, ndarray]:
        curves = {}
        for (scorer, order), rankings in study.suppressed(model)[layer].correct.items():
            for data in _DATA:
                correct = np.mean([ranking[data] for ranking in rankings], axis=0)
                curves[scorer, order, data] = weighted_means(correct.T, study.weights)
        return curves

    curves: dict[_Key, ndarray] = study.memo(("curves", model, layer), compute)
    return curves


def find_fractions(suppressed: SuppressedLayer) -> Float[ndarray, " p"]:
    """Return the share of the layer's channels that is suppressed at each point."""
    return np.array(suppressed.counts) / suppressed.counts[-1]


def _list_curves(
    curves: Mapping[_Key, ndarray], counts: Sequence[int], images: int, level: float
) -> Iterator[dict[str, Any]]:
    """List the points of the deletion curves, and of the insertion curves, with Wilson's intervals.

    What the first channels of one order insert, the last of the opposite order have left: the
    insertion curves are the deletion curves, read from the other end.
    """
    channels = counts[-1]
    for (scorer, order, data), curve in curves.items():
        estimates = [wilson(images * float(share), images, level) for share in curve[0]]
        deleted = list(zip(counts, estimates, strict=True))
        inserted = [(channels - count, values) for count, values in reversed(deleted)]
        for name, of_order, points in (
            ("deletion", order, deleted),
            ("insertion", _OPPOSITE[order], inserted),
        ):
            words = {"scorer": scorer, "curve": name, "order": of_order, "data": data}
            for count, accuracy in points:
                place = {"channels": count, "fraction": count / channels}
                yield words | place | as_columns(accuracy, "accuracy")


def _list_areas(
    areas: Mapping[_Key, ndarray], images: int, level: float
) -> Iterator[dict[str, Any]]:
    replicates = np.stack(list(areas.values()), 1)
    estimates = estimate_bounded_columns(replicates, images, level, _SHARE)
    for (scorer, order, data), area, low, high in zip(areas, *estimates, strict=True):
        words = {"scorer": scorer, "order": order, "data": data}
        yield words | {"area": area, "low": low, "high": high}


def _rank_scorers(
    areas: Mapping[_Key, ndarray], scorers: Sequence[str], images: int, level: float
) -> Iterator[dict[str, Any]]:
    """Rank scorers by how far their curves lie from the random one, where a true ranking puts it.

    nr: A_nr - A_random, pr: A_random - A_pr, both: (A_nr - A_pr) / 2
    """
    for order, data in product(("both", "nr", "pr"), _DATA):
        random = areas["random", "random", data]
        leads = []
        for scorer in scorers:
            kept = areas[scorer, "nr", data] - random
            lost = random - areas[scorer, "pr", data]
            leads.append({"nr": kept, "pr": lost, "both": (kept + lost) / 2}[order])
        replicates = np.stack(leads, 1)
        values, lows, highs = estimate_bounded_columns(replicates, images, level, (-1.0, 1.0))
        for place, scorer in enumerate(scorers):
            row = {"scorer": scorer, "order": order, "data": data, "value": values[place]}
            rank = 1 + int((values > values[place]).sum())
            yield row | {"low": lows[place], "high": highs[place], "rank": rank}


def by_scorer(result: "Result") -> Iterator[Subject]:
    """A figure for each layer and each scorer that ranks its channels."""
    for layer in list_layers(result):
        rows = result.league if layer is None else result.select("league", layer=layer)
        for scorer in rows["scorer"].unique():
            yield Subject({"scorer": scorer, "layer": layer})


def by_any_layer(result: "Result") -> Iterator[Subject]:
    """A figure for each layer."""
    for layer in list_layers(result):
        yield Subject({"layer": layer})


def curves_data(
    result: "Result", layer: str | None = None, scorer: str | None = None, curve: str = "deletion"
) -> pd.DataFrame:
    """Return what ``draw_curves`` draws.

    Columns: model, layer, scorer, curve, order, data, fraction of the channels -> accuracy, low,
    high.

    Raises:
        UserError: for an unknown layer or scorer.
    """
    scorers = list(result.league["scorer"].unique())
    scorer = scorers[0] if scorer is None else scorer
    parts = []
    for model, name in choose_layers(result, layer).items():
        rows = result.select("curves", model=model, layer=name, curve=curve)
        if scorer in set(rows["scorer"]):
            parts.append(rows[rows["scorer"].isin([scorer, "random"])])
    if not parts:
        choice = f"choose from {', '.join(scorers)}.{suggest(scorer, scorers)}"
        raise UserError(f"No {curve} curves of {scorer!r} here; {choice}")
    columns = ["model", "layer", "scorer", "curve", "order", "data"]
    return pd.concat(parts, ignore_index=True)[[*columns, "fraction", "accuracy", "low", "high"]]


@styled
def draw_curves(
    result: "Result", layer: str | None = None, scorer: str | None = None, curve: str = "deletion"
) -> Figure:
    """Draw accuracy against the share of a layer's channels that is suppressed, a row a model.

    Args:
        result: of interventions.
        layer: one of the layers; None for the last of each model.
        scorer: one of the scorers; None for the first.
        curve: "deletion", or "insertion" against the share that is not suppressed.

    Raises:
        UserError: for an unknown layer or scorer.
    """
    drawn = curves_data(result, layer, scorer, curve)
    layers = dict(zip(drawn["model"], drawn["layer"], strict=True))
    figure, axes = make_panels(len(layers), 2, 1.1, sharex="all", sharey="all")
    for row, model in zip(axes, layers, strict=True):
        for ax, data in zip(row, COLOURS, strict=True):
            _draw_panel(ax, select_rows(drawn, model=model, data=data), COLOURS[data])
        label_percent(row[0], "")
        row[0].set_title(shorten(model, 20), loc="left", weight="bold")
    for ax, data in zip(axes[0], COLOURS, strict=True):
        ax.set_title(f"{data} images", loc="right", color=COLOURS[data])
    for ax in list_left(axes):
        ax.set_ylabel("accuracy (%)")
    for ax in list_bottom(axes):
        label_percent(
            ax, f"channels {'set to 0' if curve == 'deletion' else 'kept, others 0'}", "x"
        )
    by = drawn["scorer"][drawn["scorer"] != "random"].iloc[0]
    heading = f"Accuracy without some channels of {describe_layers(layers)}"
    add_title(figure, f"{heading}; relevance of the channels by {by}")
    handles = [
        Line2D([], [], color="0.3", markersize=2.5, label=words, **look)
        for words, look in _ORDERS.values()
    ]
    first = "set to 0" if curve == "deletion" else "kept"
    _add_key(figure, result, handles, f"Below: which channels are {first} first.")
    return figure


def _draw_panel(ax: Axes, drawn: pd.DataFrame, colour: str) -> None:
    for order, (_, look) in _ORDERS.items():
        rows = select_rows(drawn, order=order).sort_values("fraction")
        band: dict[str, Any] = {"color": colour, "alpha": 0.15, "linewidth": 0}
        ax.plot(rows["fraction"], rows["accuracy"], color=colour, markersize=2.5, **look)
        ax.fill_between(rows["fraction"], rows["low"], rows["high"], **band)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(0, 1.04)


def describe_curves(drawn: pd.DataFrame) -> str:
    """Say what accuracy under attack is without channels, by what is suppressed first."""
    attacked = drawn[drawn["data"] == "adversarial"]

    def describe(rows: pd.DataFrame) -> str:
        ordered = rows.sort_values("fraction", kind="stable")
        inner = ordered[(ordered["fraction"] > 0) & (ordered["fraction"] < 1)]
        means = inner.groupby("order")["accuracy"].mean()
        words = [f"{format_percent(means[order])} {order}" for order in _ORDERS if order in means]
        start = format_percent(ordered["accuracy"].iloc[0])
        return f"robust accuracy {start} untouched, then by order on average {', '.join(words)}"

    return describe_each(attacked, ["model"], describe)


def league_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return what ``draw_league`` draws: model, layer, scorer, order, data -> value, low, high.

    The scorer that is best on adversarial images, mean over both orders, comes first; ``rank`` is
    that place.

    Raises:
        UserError: for an unknown layer.
    """
    parts = []
    for model, name in choose_layers(result, layer).items():
        rows = result.select("league", model=model, layer=name)
        best = select_rows(rows, order="both", data="adversarial").set_index("scorer")["rank"]
        rows = rows.assign(rank=rows["scorer"].map(best)).sort_values("rank", kind="stable")
        parts.append(rows[rows["order"] != "both"])
    return pd.concat(parts, ignore_index=True)


@styled
def draw_league(result: "Result", layer: str | None = None) -> Figure:
    """Draw how far each scorer's curves lie from the random ones, the best on top, by model.

    ``layer`` defaults to each model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = league_data(result, layer)
    layers = dict(zip(drawn["model"], drawn["layer"], strict=True))
    height = _ROW * drawn.groupby("model")["scorer"].nunique().max() + 0.35
    figure, axes = make_panels(
        len(layers), 2, height, 0.4, sharex="all", sharey="row", least=0.65 * height
    )
    for row, model in zip(axes, layers, strict=True):
        of_model = select_rows(drawn, model=model)
        for ax, order in zip(row, ("nr", "pr"), strict=True):
            _draw_leads(ax, select_rows(of_model, order=order))
        names = list(of_model["scorer"].unique())
        row[0].set_yticks(range(len(names)), [shorten(name, 24) for name in names])
        row[0].set_ylim(len(names) - 0.5, -0.5)
        row[0].set_title(shorten(model, 20), loc="left", weight="bold")
    below = ("NR first: accuracy\nkept", "PR first: accuracy\nlost")
    for ax, words in zip(list_bottom(axes), cycle(below), strict=False):
        label_percent(ax, words, "x")
        ax.set_xlabel(f"{words} beyond\nrandom (points)")
    where = describe_layers(layers)
    add_title(figure, f"Which relevance ranking finds the channels that matter? ({where})")
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 3}
    handles = [
        Line2D([], [], color=COLOURS[data], label=f"{data} images", **dot) for data in COLOURS
    ]
    words = (
        "Channels are set to 0 one after the other, by each ranking from its negatively relevant "
        "(NR) or its positively relevant (PR) end, or in random order. Shown is by how much more "
        "accuracy is kept (NR) or lost (PR) than in random order (dashed), mean over all numbers "
        "of channels: the further right, the truer."
    )
    _add_key(figure, result, handles, words)
    return figure


def _draw_leads(ax: Axes, drawn: pd.DataFrame) -> None:
    ax.axvline(0, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
    look: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.8}
    for data, beside in (("natural", -0.12), ("adversarial", 0.12)):
        value, reach = error_bars(select_rows(drawn, data=data))
        ax.errorbar(value, np.arange(len(value)) + beside, xerr=reach, color=COLOURS[data], **look)


def describe_league(drawn: pd.DataFrame) -> str:
    """Say which scorer's ranking is best under attack, and by how much."""
    attacked = drawn[drawn["data"] == "adversarial"]

    def describe(rows: pd.DataFrame) -> str:
        best = rows.iloc[0]
        interval = format_interval(float(best["value"]), float(best["low"]), float(best["high"]))
        return f"under attack {best['scorer']} leads the random order by {interval}"

    return describe_each(attacked, ["model", "order"], describe)


def _add_key(figure: Figure, result: "Result", handles: list[Line2D], words: str) -> None:
    """Write below a figure how it was made, then what its marks mean."""
    meta = result.meta
    of_answer = meta["relevant_to"] == "answer"
    whose = "that the network answers" if of_answer else "that is true (an oracle)"
    note = (
        f"{meta['data']['images']} images, {meta['level']:.0%} intervals; adversarial: "
        f"{format_attack(meta['attack'])}, ε = {format_radius(meta['eps'])}, on the network "
        f"without the channels; relevance to the class {whose}. {words}"
    )
    add_legend(figure, handles, note)


def check_interventions(result: "Result") -> None:
    """Raise ValueError where the tables are not of all models and layers."""
    check_layers(result, "curves", "areas", "league")
    places = set(product(("nr", "pr", "both"), _DATA))
    for (_, layer, scorer), rows in result.league.groupby(["model", "layer", "scorer"]):
        if set(zip(rows["order"], rows["data"], strict=True)) != places:
            raise ValueError(f"league lacks rows of {scorer} at {layer}")


register(
    Analysis(
        name="interventions",
        help="what accuracy is left when channels are suppressed, and which scorer ranks them best",
        kinds=("intervention",),
        tables={
            "curves": Table(
                words=("model", "layer", "scorer", "curve", "order", "data"),
                numbers=("channels", "fraction", "accuracy", "low", "high"),
                help='curve: "deletion" (so many channels are suppressed) or "insertion" (all but '
                'so many are); order: "nr" (the most negatively relevant first), "pr" (the most '
                'positively relevant first) or "random", whose scorer is "random" too; fraction: '
                "of the layer's channels",
            ),
            "areas": Table(
                words=("model", "layer", "scorer", "order", "data"),
                numbers=("area", "low", "high"),
                help="area: under the deletion curve, in [0, 1]; that under the insertion curve of "
                "the opposite order is the same",
            ),
            "league": Table(
                words=("model", "layer", "scorer", "order", "data"),
                numbers=("value", "low", "high", "rank"),
                help="value: how far the deletion curve lies from the random one on the side where "
                'a true ranking puts it, as an area: above it for "nr", below it for "pr", and the '
                'mean of the two for "both"; rank: 1 for the highest of the scorers',
            ),
        },
        compute=compute_interventions,
        check=check_interventions,
        plots=(
            Plot(
                name="curves",
                draw=draw_curves,
                data=curves_data,
                alt_text=describe_curves,
                caption="Natural and robust accuracy against the share of a layer's channels that "
                "is set to 0: the most negatively relevant ones for the class first, the most "
                "positively relevant ones first, or in random order; relevance by {scorer}. The "
                "attack sees the network without the channels. {layers} {adversarial} {wilson}",
                section="network",
                claims=("c4",),
                table="curves",
                subjects=by_scorer,
            ),
            Plot(
                name="league",
                draw=draw_league,
                data=league_data,
                alt_text=describe_league,
                caption="How true each scorer's ranking of the channels is: by how much more "
                "accuracy is kept when its most negatively relevant channels are set to 0 first, "
                "and by how much more is lost when its most positively relevant ones are, than in "
                "random order, mean over all numbers of channels. {layers} {adversarial} {bars}",
                section="network",
                claims=("c4",),
                table="league",
                subjects=by_any_layer,
            ),
        ),
    )
)
