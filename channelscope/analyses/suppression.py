"""Suppression: does a trained network get more robust without its negatively relevant channels?"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Study,
    SuppressedLayer,
    Table,
    Verdict,
    judge_estimate,
    register,
)
from channelscope.analyses.interventions import find_fractions
from channelscope.statistics.intervals import Estimate, average_intervals, paired_difference

if TYPE_CHECKING:
    from channelscope.result import Result

CLAIM = "C4 by intervention"


def compute_suppression(study: Study) -> dict[str, Any]:
    """Estimate what suppressing NR channels changes, by model, layer and scorer."""
    return {"suppression": _list_changes(study)}


def _list_changes(study: Study) -> Iterator[dict[str, Any]]:
    for model in study.models:
        for layer, suppressed in study.suppressed(model).items():
            for scorer in suppressed.relevance:
                row: dict[str, Any] = {"model": model, "layer": layer, "scorer": scorer}
                for name, change in measure_changes(study, model, layer, scorer).items():
                    prefix = "" if name == "estimate" else f"{name}_"
                    row[name] = change.value
                    row |= {f"{prefix}low": change.low, f"{prefix}high": change.high}
                yield row


def measure_changes(study: Study, model: str, layer: str, scorer: str) -> dict[str, Estimate]:
    """Estimate what suppressing NR channels changes, mean over the points where only NR ones go.

    Returns:
        "estimate": the change of the robust accuracy; "over_random": how far it exceeds that by as
        many random channels; "natural": the change of the natural accuracy. NaN without any point.
    """

    def compute() -> dict[str, Estimate]:
        suppressed = study.suppressed(model)[layer]
        points = np.flatnonzero(_find_nr_points(suppressed, scorer))
        (ranking,) = suppressed.correct[scorer, "nr"]
        adversarial, natural = ranking["adversarial"], ranking["natural"]
        orders = [order["adversarial"] for order in suppressed.correct["random", "random"]]
        pairs = {
            "estimate": [(adversarial[p], adversarial[0]) for p in points],
            "over_random": [(adversarial[p], order[p]) for p, order in product(points, orders)],
            "natural": [(natural[p], natural[0]) for p in points],
        }
        level = study.settings["level"]
        return {
            name: average_intervals([paired_difference(*pair, level) for pair in of_points])
            for name, of_points in pairs.items()
        }

    changes: dict[str, Estimate] = study.memo(("changes", model, layer, scorer), compute)
    return changes


def _find_nr_points(suppressed: SuppressedLayer, scorer: str) -> Bool[ndarray, " p"]:
    """Return the points at which it is NR channels that are suppressed, and no others."""
    fractions = find_fractions(suppressed)
    negative = (suppressed.relevance[scorer] < 0).mean()
    return (fractions > 0) & (fractions < 1) & (fractions <= negative)


def judge_suppression(study: Study) -> Iterator[Verdict]:
    """Judge "C4 by intervention" on each model, layer and scorer.

    The claim: suppressing negatively relevant channels of a trained network, without retraining,
    raises its robust accuracy (the hypothesis behind CIFS: Yan et al., ICML 2021). The quantity
    that decides is

        mean over points p of
            robust accuracy at p, the most NR channels suppressed  -  that of the network untouched

    over those points of the curve at which no more channels are suppressed than are negatively
    relevant (mean over the classes), and not all: beyond them it is PR channels that are
    suppressed, and without any channel a network has but one answer, which no attack can change.
    The relevance decides which points these are, and no accuracy. By how much this exceeds the same
    for random channels decides nothing: suppression that does less harm than chance shows that the
    ranking is true, which is the league's matter, and not that anything is gained.
    """
    for model in study.models:
        for layer, suppressed in study.suppressed(model).items():
            for scorer in suppressed.relevance:
                changes = measure_changes(study, model, layer, scorer)
                estimate = changes["estimate"]
                verdict = judge_estimate(estimate)
                statement = _state(model, layer, scorer, suppressed, changes)
                if study.settings["relevant_to"] == "label":
                    verdict = "inconclusive"
                    statement += " No verdict, as the labels of the images chose the channels."
                if study.settings["ranked_on"]["part"] == "test":
                    statement += " The channels were ranked on the very images that are judged: "
                    statement += "there are no others."
                is_gated = study.gates(model) or study.describe(model).get("gates")
                if is_gated and "joint" not in study.settings["attack"]:
                    statement += " No attack made for gates was run."
                yield Verdict(
                    claim=CLAIM,
                    models=model,
                    layer=layer,
                    verdict=verdict,
                    estimate=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    statement=statement,
                )


def _state(
    model: str,
    layer: str,
    scorer: str,
    suppressed: SuppressedLayer,
    changes: Mapping[str, Estimate],
) -> str:
    """Say in a sentence what suppressing the NR channels changes."""
    points = find_fractions(suppressed)[_find_nr_points(suppressed, scorer)]
    if not len(points):
        negative = (suppressed.relevance[scorer] < 0).mean()
        return (
            f"By {scorer}, {negative:.1%} of the channels of {layer} in {model} are negatively "
            "relevant, and every point of the curve suppresses more: ask for smaller fractions."
        )
    *others, last = [f"{fraction:.1%}" for fraction in points]
    shares = f"{', '.join(others)} and {last}" if others else last
    mean = " on average" if others else ""
    robust, over_random, natural = (
        _format_points(changes[name]) for name in ("estimate", "over_random", "natural")
    )
    return (
        f"Suppressing {shares} of the channels of {layer}, the most negatively relevant by "
        f"{scorer}, without retraining changes the robust accuracy of {model} by {robust} points"
        f"{mean}, which is {over_random} points beyond what as many random channels do; the "
        f"natural accuracy changes by {natural} points."
    )


def _format_points(change: Estimate) -> str:
    if math.isnan(change.value):
        return "an unknown number of"
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def check_suppression(result: "Result") -> None:
    """Raise ValueError where the table is of other scorers than the league."""
    columns = ["model", "layer", "scorer"]
    named = [
        set(table[columns].itertuples(index=False, name=None))
        for table in (result.suppression, result.league)
    ]
    if named[0] != named[1]:
        raise ValueError("suppression is of other scorers than league")


register(
    Analysis(
        name="suppression",
        help="whether robust accuracy rises without NR channels",
        kinds=("intervention",),
        tables={
            "suppression": Table(
                words=("model", "layer", "scorer"),
                numbers=(
                    *("estimate", "low", "high"),
                    *("over_random", "over_random_low", "over_random_high"),
                    *("natural", "natural_low", "natural_high"),
                ),
                help="without NR channels: the change of the robust accuracy (estimate), how far "
                "it exceeds that by random channels, and the change of the natural accuracy",
            ),
        },
        compute=compute_suppression,
        judge=judge_suppression,
        check=check_suppression,
    )
)
