"""The verdict "C4 by intervention": does a trained network get more robust without its NR channels?"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from numpy import ndarray

from channelscope.gates import Selective
from channelscope.intervention.rows import Intervened
from channelscope.statistics.alignment import Estimate, estimate_change, judge

CLAIM = "C4 by intervention"
_NONE = Estimate(float("nan"), float("nan"), float("nan"))


def verdicts(item: Intervened, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Judge the claim on one network, for every layer and scorer.

    The claim: suppressing negatively relevant channels of a trained network, without retraining, raises its robust
    accuracy (the hypothesis behind CIFS: Yan et al., ICML 2021). The quantity that decides is

        mean over points p of  (robust accuracy at p, the most NR channels suppressed  -  that of the network untouched)

    over those points of the curve at which no more channels are suppressed than are negatively relevant (mean over
    the classes), and not all: beyond them it is PR channels that are suppressed, and without any channel a network has
    but one answer, which no attack can change. The relevance decides which points these are, and no accuracy. By how
    much this exceeds the same for random channels (``over_random``) decides nothing: suppression that does less harm
    than chance shows that the ranking is true, which is the league's matter, and not that anything is gained.
    """
    for layer, by_scorer in item.plan.relevance.items():
        for scorer, relevance in by_scorer.items():
            case = _Case(item, layer, scorer, float((relevance < 0).double().mean()))
            changes = case.changes(settings["level"])
            outcome = judge(changes["estimate"])
            statement = case.statement(changes)
            if settings["relevant_to"] == "label":
                outcome = "inconclusive"
                statement += " No verdict, as the labels of the images chose the channels."
            if settings["ranked_on"]["part"] == "test":
                statement += " The channels were ranked on the very images that are judged: there are no others."
            if isinstance(item.subject.network, Selective) and "joint" not in settings["attack"]:
                statement += " No attack made for gates was run."
            row = {"claim": CLAIM, "model": item.subject.label, "layer": layer, "scorer": scorer}
            yield row | {"verdict": outcome, "statement": statement} | _numbers(changes)


# The columns of the verdicts: what a change is called there, and of which data it is, beyond what.
_CHANGES = {
    "estimate": ("adversarial", "untouched"),
    "over_random": ("adversarial", "random"),
    "natural": ("natural", "untouched"),
}


@dataclass(frozen=True)
class _Case:
    """One network, layer and scorer, and the share of the channels that is negatively relevant."""

    item: Intervened
    layer: str
    scorer: str
    negative: float

    @property
    def within(self) -> Bool[ndarray, " p"]:
        """Tell at which points of the curve it is NR channels that are suppressed, and no others."""
        fractions = self.item.fractions(self.layer)
        return (fractions > 0) & (fractions < 1) & (fractions <= self.negative)

    def changes(self, level: float) -> dict[str, Estimate]:
        """Estimate what suppression of NR channels changes, mean over these points; NaN without any."""
        found: dict[str, Estimate] = {}
        for name, (data, beyond) in _CHANGES.items():
            curve = self.item.curve(self.layer, self.scorer, "nr", data)
            random = self.item.curve(self.layer, "random", "random", data)
            gain = (curve - (curve[:, :1] if beyond == "untouched" else random))[:, self.within]
            found[name] = estimate_change(gain.mean(1), level) if gain.size else _NONE
        return found

    def statement(self, changes: dict[str, Estimate]) -> str:
        """Say it in a sentence."""
        model, fractions = self.item.subject.label, self.item.fractions(self.layer)[self.within]
        if not len(fractions):
            return (
                f"By {self.scorer}, {self.negative:.1%} of the channels of {self.layer} in {model} are negatively "
                "relevant, and every point of the curve suppresses more: ask for smaller fractions."
            )
        return (
            f"Suppressing {_shares(fractions)} of the channels of {self.layer}, the most negatively relevant by "
            f"{self.scorer}, without retraining changes the robust accuracy of {model} by "
            f"{_points(changes['estimate'])} points{' on average' if len(fractions) > 1 else ''}, which is "
            f"{_points(changes['over_random'])} points beyond what as many random channels do; the natural accuracy "
            f"changes by {_points(changes['natural'])} points."
        )


def _shares(fractions: Float[ndarray, " p"]) -> str:
    *others, last = [f"{share:.1%}" for share in fractions]
    return f"{', '.join(others)} and {last}" if others else last


def _points(change: Estimate) -> str:
    if math.isnan(change.value):
        return "an unknown number of"
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _numbers(changes: dict[str, Estimate]) -> dict[str, float]:
    """Give the changes' columns."""
    found: dict[str, float] = {}
    for name, change in changes.items():
        before = "" if name == "estimate" else f"{name}_"
        found |= {name: change.value, f"{before}low": change.low, f"{before}high": change.high}
    return found
