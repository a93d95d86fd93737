"""The claims of the CIFS paper (Yan et al., ICML 2021, arXiv 2102.05311), judged on the networks at hand.

Each claim is a statement that a quantity exceeds a value; its verdict follows from where the bootstrap interval of
that quantity lies (``alignment.judge``). A claim for which the networks or their records do not suffice is
inconclusive, and its statement says what is missing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from channelscope.statistics.alignment import (
    BOUNDS,
    Estimate,
    Outcome,
    across_classes,
    estimate,
    estimate_change,
    judge,
    mean_over_classes,
)

CLAIMS = {
    "C1": "Adversarial training aligns the channel-wise activations of adversarial data with those of natural data.",
    "C2": "Adversarial training leaves negatively relevant channels over-activated on adversarial data.",
    "C3": "Robust classes have activation aligned with relevance; non-robust classes do not.",
    "C4": "Suppressing negatively relevant channels and aligning positively relevant ones (CIFS) makes adversarial "
    "training more robust.",
}
_NEEDS = {
    "C1": "needs a standard and an AT network, with as many layers of the one as of the other",
    "C2": "needs an AT network",
    "C3": "needs an AT network",
    "C4": "needs an AT network and a CIFS or CAS network",
}
_UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Evidence:
    """What was measured of one network, replicate by replicate of the bootstrap (r), class by class (k).

    Args:
        model: its label.
        method: standard, at, cifs, cas, or None where unknown.
        compute: what decides the cost and the strength of its training, by name; None where unknown.
        measures: layer name -> measure -> (r, k); see ``alignment.measures``. The last layer is the deepest.
        robust: accuracy in the worst case over the attacks, by class (r, k).
        robust_overall: the same over all images (r,).
        decided_by: short name of the attack that broke the most images.
        masked: signs of gradient masking, by the names of the checks; None where it was not checked.
        adaptive: whether attacks made for gates were among the attacks.
    """

    model: str
    method: str | None
    compute: Mapping[str, object] | None
    measures: Mapping[str, Mapping[str, Float[ndarray, "r k"]]]
    robust: Float[ndarray, "r k"]
    robust_overall: Float[ndarray, " r"]
    decided_by: str
    masked: tuple[str, ...] | None = ()
    adaptive: bool = True


@dataclass(frozen=True)
class Verdict:
    """A claim, judged: the quantity's estimate and interval, the outcome, and one plain sentence."""

    claim: str
    models: str
    layer: str
    verdict: Outcome
    estimate: float
    low: float
    high: float
    statement: str


def verdicts(evidence: Sequence[Evidence], level: float = 0.95) -> list[Verdict]:
    """Judge C1 to C4, once for every network, pair of networks and layer that a claim speaks of.

    C1 compares every AT network with the first standard one, C2 and C3 speak of every AT network, C4 compares every
    CIFS and CAS network with the first AT one.
    """
    standard = next((item for item in evidence if item.method == "standard"), None)
    trained = [item for item in evidence if item.method == "at"]
    gated = [item for item in evidence if item.method in ("cifs", "cas")]
    found: list[Verdict] = []
    for at in trained:
        if standard and len(standard.measures) == len(at.measures):
            found += _c1(standard, at, level)
        found += [*_c2(at, level), *_c3(at, level)]
    found += [_c4(trained[0], item, level) for item in gated if trained]
    judged = {verdict.claim for verdict in found}
    for claim in CLAIMS.keys() - judged:
        found.append(
            _verdict(claim, "", "", _UNKNOWN, "inconclusive", f"The claim {_NEEDS[claim]}.")
        )
    return sorted(found, key=lambda verdict: verdict.claim)


def _c1(standard: Evidence, at: Evidence, level: float) -> Iterator[Verdict]:
    """C1: mean over classes of the alignment under AT less that under standard training, by three measures."""
    for (layer, ours), theirs in zip(at.measures.items(), standard.measures.values(), strict=True):
        gains = {
            name: estimate(
                sign * mean_over_classes(ours[name]) - sign * mean_over_classes(theirs[name]), level
            )
            for name, sign in {"cosine": 1, "spearman": 1, "shift": -1}.items()
        }
        outcomes = {judge(gain) for gain in gains.values()}
        outcome = outcomes.pop() if len(outcomes) == 1 else "inconclusive"
        statement = (
            f"From {standard.model} to {at.model}, the cosine between natural and adversarial activation changes by "
            f"{_signed(gains['cosine'])}, Spearman's correlation by {_signed(gains['spearman'])}, "
            f"the relative shift by {_signed(gains['shift'], -1)}."
        )
        yield _verdict(
            "C1", f"{at.model} - {standard.model}", layer, gains["cosine"], outcome, statement
        )


def _c2(at: Evidence, level: float) -> Iterator[Verdict]:
    """C2: mean over classes of the NR share of the activation mass, adversarial over natural, against 1."""
    for layer, measure in at.measures.items():
        ratio = estimate(mean_over_classes(measure["nr_ratio"]), level, BOUNDS["nr_ratio"])
        statement = (
            f"On adversarial data the negatively relevant channels of {at.model} hold {_number(ratio)} times the share "
            "of the activation that they hold on natural data."
        )
        yield _verdict("C2", at.model, layer, ratio, judge(ratio, 1.0), statement)


def _c3(at: Evidence, level: float) -> Iterator[Verdict]:
    """C3: Spearman across classes between activation-relevance alignment and robust accuracy, against 0."""
    for layer, measure in at.measures.items():
        link = estimate(
            across_classes(measure["relevance_spearman_adversarial"], at.robust), level, (-1.0, 1.0)
        )
        statement = (
            f"Across the classes of {at.model}, robust accuracy and the alignment of activation with relevance "
            f"correlate by {_number(link)} (Spearman)."
        )
        yield _verdict("C3", at.model, layer, link, judge(link), statement)


def _c4(at: Evidence, gated: Evidence, level: float) -> Verdict:
    """C4: worst-case robust accuracy of the gated network less that of AT, at equal compute."""
    gain = estimate_change(gated.robust_overall - at.robust_overall, level)
    statement = (
        f"Robust accuracy in the worst case over attacks: {gated.model} less {at.model} is {_number(gain, 100)} points "
        f"(decided by {gated.decided_by} and {at.decided_by})."
    )
    outcome = judge(gain)
    if at.compute is None or at.compute != gated.compute:
        outcome = "inconclusive"
        statement += f" No verdict, as {_difference(at.compute, gated.compute)}."
    if not gated.adaptive:
        statement += " No attack made for gates was among the attacks."
    if at.masked is None or gated.masked is None:
        statement += (
            " It was not checked whether gradients are masked (channelscope evaluate does)."
        )
    for item in (gated, at):
        if item.masked:
            outcome = "inconclusive"
            statement += f" {item.model} shows signs of gradient masking ({', '.join(item.masked)}): do not trust it."
    return _verdict("C4", f"{gated.model} - {at.model}", "", gain, outcome, statement)


def _difference(a: Mapping[str, object] | None, b: Mapping[str, object] | None) -> str:
    if a is None or b is None:
        return "the compute of their training is not known to be equal"
    return f"their training differs ({', '.join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))})"


def _verdict(
    claim: str, models: str, layer: str, quantity: Estimate, outcome: Outcome, statement: str
) -> Verdict:
    return Verdict(
        claim, models, layer, outcome, quantity.value, quantity.low, quantity.high, statement
    )


def _number(quantity: Estimate, scale: float = 1) -> str:
    if math.isnan(quantity.value):
        return "an amount that the images cannot tell"
    digits = 1 if scale == 100 else 2
    value, low, high = (scale * part for part in (quantity.value, quantity.low, quantity.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _signed(quantity: Estimate, sign: int = 1) -> str:
    low, high = sorted((sign * quantity.low, sign * quantity.high))
    return f"{sign * quantity.value:+.3f} [{low:+.3f}, {high:+.3f}]"
