"""From what stood to tidy rows: curves, the areas under them, the league of scorers, verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.integrate import trapezoid

from channelscope.intervention.results import COLUMNS
from channelscope.intervention.run import Stood
from channelscope.intervention.suppression import Plan, Point, Ranking
from channelscope.statistics.alignment import Estimate, estimate
from channelscope.study.models import Model

DATA = ("natural", "adversarial")
OPPOSITE = {"nr": "pr", "pr": "nr", "random": "random"}


@dataclass(frozen=True, eq=False)
class Intervened:
    """One network, and which images stood which suppression.

    Args:
        subject: the network.
        plan: what was suppressed.
        stood: what happened to the images, at each of the plan's points.
        weights: of the images in each bootstrap replicate (n, r).
    """

    subject: Model
    plan: Plan
    stood: Mapping[Point, Stood]
    weights: Float[ndarray, "n r"]

    def fractions(self, layer: str) -> Float[ndarray, " p"]:
        """Give the share of a layer's channels that is suppressed at each point of its curves."""
        return np.array(self.plan.counts[layer]) / self.plan.counts[layer][-1]

    def curve(self, layer: str, scorer: str, order: str, data: str) -> Float[ndarray, "r p"]:
        """Compute a deletion curve, replicate by replicate: the accuracy at each point, mean over the random orders.

        NaN for a replicate without images, as there are where images are few.
        """
        own = [
            ranking
            for ranking in self.plan.rankings
            if (ranking.layer, ranking.scorer) == (layer, scorer)
        ]
        curves = [self._stood(ranking, data) for ranking in own if ranking.order == order]
        hits = np.mean(curves, 0)
        with np.errstate(invalid="ignore"):
            return (self.weights.T @ hits.T) / self.weights.sum(0)[:, None]

    def _stood(self, ranking: Ranking, data: str) -> Float[ndarray, "p n"]:
        """Line up which images stood, from no suppression to that of all channels."""
        points = [
            self.stood[self.plan.point(ranking, count)] for count in self.plan.counts[ranking.layer]
        ]
        return np.stack([getattr(point, data).numpy() for point in points]).astype(float)

    def area(self, layer: str, scorer: str, order: str, data: str) -> Float[ndarray, " r"]:
        """Compute the area under a deletion curve, in [0, 1], replicate by replicate."""
        return trapezoid(self.curve(layer, scorer, order, data), self.fractions(layer), axis=1)

    def lead(self, layer: str, scorer: str, order: str, data: str) -> Float[ndarray, " r"]:
        """Compute how far a scorer's deletion curve lies from the random one where a true ranking puts it.

        nr: A_nr - A_random, pr: A_random - A_pr, both: (A_nr - A_pr) / 2
        """
        if order == "both":
            return (self.lead(layer, scorer, "nr", data) + self.lead(layer, scorer, "pr", data)) / 2
        beyond = self.area(layer, scorer, order, data) - self.area(layer, "random", "random", data)
        return beyond if order == "nr" else -beyond


def frames(networks: Sequence[Intervened], level: float) -> dict[str, pd.DataFrame]:
    """Lay out the curves, areas and the league of all networks."""
    makers = {"curves": _curves, "areas": _areas, "league": _league}
    rows = {
        name: [row for item in networks for row in make(item, level)]
        for name, make in makers.items()
    }
    return {
        name: pd.DataFrame(found, columns=sum(COLUMNS[name], ())) for name, found in rows.items()
    }


def _orders(item: Intervened) -> Iterator[dict[str, Any]]:
    """Name the deletion curves of a network: the random orders of a layer make one together."""
    names = dict.fromkeys(
        (ranking.layer, ranking.scorer, ranking.order) for ranking in item.plan.rankings
    )
    for (layer, scorer, order), data in ((name, data) for name in names for data in DATA):
        yield {"layer": layer, "scorer": scorer, "order": order, "data": data}


def _curves(item: Intervened, level: float) -> Iterator[dict[str, Any]]:
    for name in _orders(item):
        replicates, counts = item.curve(**name), item.plan.counts[name["layer"]]
        of_points = [
            _interval("accuracy", estimate(point, level, (0.0, 1.0))) for point in replicates.T
        ]
        channels = counts[-1]
        for count, found in zip(counts, of_points, strict=True):
            at = {"curve": "deletion", "channels": count, "fraction": count / channels}
            yield {"model": item.subject.label} | name | at | found
        for count, found in zip(reversed(counts), reversed(of_points), strict=True):
            at = {
                "curve": "insertion",
                "channels": channels - count,
                "fraction": (channels - count) / channels,
            }
            yield (
                {"model": item.subject.label}
                | name
                | {"order": OPPOSITE[name["order"]]}
                | at
                | found
            )


def _areas(item: Intervened, level: float) -> Iterator[dict[str, Any]]:
    for name in _orders(item):
        found = estimate(item.area(**name), level, (0.0, 1.0))
        yield {"model": item.subject.label} | name | _interval("area", found)


def _league(item: Intervened, level: float) -> Iterator[dict[str, Any]]:
    for layer, scorers in item.plan.relevance.items():
        for order, data in ((order, data) for order in ("both", "nr", "pr") for data in DATA):
            leads = {
                name: estimate(item.lead(layer, name, order, data), level, (-1.0, 1.0))
                for name in scorers
            }
            for scorer, found in leads.items():
                rank = 1 + sum(other.value > found.value for other in leads.values())
                row = {
                    "model": item.subject.label,
                    "layer": layer,
                    "scorer": scorer,
                    "order": order,
                    "data": data,
                }
                yield row | _interval("value", found) | {"rank": rank}


def _interval(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, "low": found.low, "high": found.high}
