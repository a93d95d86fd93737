"""The claims of the CIFS paper (Yan et al., ICML 2021, arXiv 2102.05311), judged on a study.

Each claim is a statement that a quantity exceeds a value; its verdict follows from where the
bootstrap interval of that quantity lies. A claim for which the networks or their records do not
suffice is inconclusive, and its statement says what is missing.
"""

import math
from collections.abc import Iterator, Mapping

from channelscope.analyses.base import (
    Analysis,
    Judgement,
    Study,
    Verdict,
    judge_estimate,
    measure_robustness,
    measure_study,
    register,
)
from channelscope.statistics.intervals import UNKNOWN, Estimate, estimate, estimate_change
from channelscope.statistics.measures import BOUNDS, across_classes, mean_over_classes

CLAIMS = {
    "C1": "Adversarial training aligns the channel-wise activations of adversarial data with those "
    "of natural data.",
    "C2": "Adversarial training leaves negatively relevant channels over-activated on adversarial "
    "data.",
    "C3": "Robust classes have activation aligned with relevance; non-robust classes do not.",
    "C4": "Suppressing negatively relevant channels and aligning positively relevant ones (CIFS) "
    "makes adversarial training more robust.",
}
_NEEDS = {
    "C1": "needs a standard and an AT network, with as many layers of the one as of the other",
    "C2": "needs an AT network",
    "C3": "needs an AT network",
    "C4": "needs an AT network and a CIFS or CAS network",
}
_MADE_FOR_GATES = "joint-sweep"  # in the name of an attack


def judge_claims(study: Study) -> Iterator[Verdict]:
    """Judge C1 to C4, once for every network, pair of networks and layer that a claim is about.

    C1 compares every AT network with the first standard one, C2 and C3 are about every AT network,
    C4 compares every CIFS and CAS network with the first AT one.
    """
    methods = {model: study.describe(model).get("method") for model in study.models}
    standard = next((model for model, method in methods.items() if method == "standard"), None)
    trained = [model for model, method in methods.items() if method == "at"]
    gated = [model for model, method in methods.items() if method in ("cifs", "cas")]
    verdicts: list[Verdict] = []
    for model in trained:
        if standard and len(study.layers(standard)) == len(study.layers(model)):
            verdicts += _judge_c1(study, model, standard)
        verdicts += [*_judge_c2(study, model), *_judge_c3(study, model)]
    if trained:
        verdicts += [_judge_c4(study, model, trained[0]) for model in gated]
    for claim in CLAIMS.keys() - {verdict.claim for verdict in verdicts}:
        statement = f"The claim {_NEEDS[claim]}."
        verdicts.append(_make_verdict(claim, "", "", UNKNOWN, "inconclusive", statement))
    yield from sorted(verdicts, key=lambda verdict: verdict.claim)


def _judge_c1(study: Study, model: str, standard: str) -> Iterator[Verdict]:
    """C1: mean over classes of the alignment under AT less that under standard training."""
    signs = {"cosine": 1, "spearman": 1, "shift": -1}  # a smaller shift is a better alignment
    for layer, other in zip(study.layers(model), study.layers(standard), strict=True):
        ours, theirs = measure_study(study, model, layer), measure_study(study, standard, other)
        gains = {
            name: estimate(
                sign * (mean_over_classes(ours[name]) - mean_over_classes(theirs[name])),
                study.settings["level"],
            )
            for name, sign in signs.items()
        }
        outcomes = {judge_estimate(gain) for gain in gains.values()}
        outcome = outcomes.pop() if len(outcomes) == 1 else "inconclusive"
        cosine, spearman, shift = gains.values()
        fall = Estimate(-shift.value, -shift.high, -shift.low)
        statement = (
            "Alignment of adversarial with natural activation, "
            f"{model} minus {standard}: cosine {_format(study, cosine, '+.3f')}, Spearman's "
            f"correlation {_format(study, spearman, '+.3f')}, relative shift "
            f"{_format(study, fall, '+.3f')}."
        )
        models = f"{model} - {standard}"
        yield _make_verdict("C1", models, layer, cosine, outcome, statement)


def _judge_c2(study: Study, model: str) -> Iterator[Verdict]:
    """C2: mean over classes of the NR share, adversarial over natural, against 1."""
    for layer in study.layers(model):
        replicates = mean_over_classes(measure_study(study, model, layer)["nr_ratio"])
        ratio = estimate(replicates, study.settings["level"], BOUNDS["nr_ratio"])
        statement = (
            f"Share of {model}'s activation on negatively relevant channels, adversarial over "
            f"natural: {_format(study, ratio)}."
        )
        yield _make_verdict("C2", model, layer, ratio, judge_estimate(ratio, 1.0), statement)


def _judge_c3(study: Study, model: str) -> Iterator[Verdict]:
    """C3: Spearman across classes of activation-relevance alignment and robust accuracy."""
    _, robust = measure_robustness(study, model)
    for layer in study.layers(model):
        alignment = measure_study(study, model, layer)["relevance_spearman_adversarial"]
        replicates = across_classes(alignment, robust)
        correlation = estimate(replicates, study.settings["level"], (-1.0, 1.0))
        statement = (
            f"Correlation (Spearman) across the classes of {model} between robust accuracy and the "
            f"alignment of activation with relevance: {_format(study, correlation)}."
        )
        outcome = judge_estimate(correlation)
        yield _make_verdict("C3", model, layer, correlation, outcome, statement)


def _judge_c4(study: Study, gated: str, base: str) -> Verdict:
    """C4: worst-case robust accuracy of the gated network less that of AT, at equal compute."""
    ours, theirs = measure_robustness(study, gated)[0], measure_robustness(study, base)[0]
    gain = estimate_change(ours - theirs, study.settings["level"])
    statement = (
        f"Worst-case robust accuracy, {gated} minus {base}: "
        f"{_format(study, gain, '.1f', scale=100, unit=' points')}. The strongest attacks: "
        f"{_strongest_attack(study, gated)} on {gated}, {_strongest_attack(study, base)} on {base}."
    )
    outcome = judge_estimate(gain)
    if difference := _compare_compute(study, gated, base):
        outcome = "inconclusive"
        statement += f" No verdict: {difference}."
    if not any(_MADE_FOR_GATES in attack for attack in study.attacks(gated)):
        statement += " No attack made for gates was run."
    outcomes = {model: study.outcome(model) for model in (gated, base)}
    if not all(known.checked for known in outcomes.values()):
        statement += " Gradient masking was not checked ('channelscope evaluate' does)."
    for model, known in outcomes.items():
        if known.checked and known.findings:
            outcome = "inconclusive"
            checks = ", ".join(finding.check for finding in known.findings)
            statement += (
                f" {model} shows signs of gradient masking ({checks}): do not trust its accuracy."
            )
    return _make_verdict("C4", f"{gated} - {base}", "", gain, outcome, statement)


def _strongest_attack(study: Study, model: str) -> str:
    """Return the attack that leaves the fewest images correct."""
    return min(study.attacks(model), key=lambda name: int(study.correct(model, name).sum()))


def _compare_compute(study: Study, model: str, other: str) -> str:
    """Say how the compute of two trainings differs; nothing where it is the same."""
    ours: Mapping[str, object] | None = study.describe(model).get("compute")
    theirs: Mapping[str, object] | None = study.describe(other).get("compute")
    if ours is None or theirs is None:
        return "the compute of their training is not known to be equal"
    keys = ours.keys() | theirs.keys()
    different = sorted(key for key in keys if ours.get(key) != theirs.get(key))
    return f"their training differs ({', '.join(different)})" if different else ""


def _make_verdict(
    claim: str, models: str, layer: str, quantity: Estimate, outcome: Judgement, statement: str
) -> Verdict:
    numbers = (quantity.value, quantity.low, quantity.high)
    return Verdict(claim, models, layer, outcome, *numbers, statement)


def _format(
    study: Study, quantity: Estimate, spec: str = ".2f", *, scale: float = 1, unit: str = ""
) -> str:
    """Return a quantity as in "-2.8 points (95 % CI -7.1 to 2.0)"."""
    if math.isnan(quantity.value):
        return "not known from these images"
    value, low, high = (
        f"{scale * part:{spec}}" for part in (quantity.value, quantity.low, quantity.high)
    )
    return f"{value}{unit} ({100 * study.settings['level']:g} % CI {low} to {high})"


register(
    Analysis(
        name="claims",
        help="verdicts on the claims C1 to C4 of the CIFS paper",
        judge=judge_claims,
    )
)
