"""The claims of the CIFS paper (Yan et al., ICML 2021, arXiv 2102.05311), judged on a study.

A claim is that a quantity is above 0. It is *supported* where the quantity is at least as large as
the least effect that counts and a two-sided test rejects 0, *not supported* where the same holds of
its opposite, else *inconclusive*. All tests of a run are corrected together (Bonferroni: p times
their number, so that what is found for one claim does not make it easier to decide another). A
claim is *not judged* where a condition fails: a network is not clearly above chance or has another
fault (``faults``), the adversarially trained network is not more robust than the standard one, the
attack does not raise the standard network's NR mass (C2), or one of a gated network and its base
was attacked more often, or trained otherwise, than the other (C4).
How often these rules decide where there is nothing to find, and how often they find what is there,
is measured by ``benchmarks/calibration.py``.

Networks that differ in their seed alone are one method (``methods``), and seeds are what varies;
with one network a method, a verdict is on these networks and says so.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Judgement,
    Study,
    Verdict,
    get_primary_layer,
    measure_robustness,
    measure_study,
    register,
    worst_case,
)
from channelscope.analyses.faults import find_faults
from channelscope.analyses.methods import Method, get_base, list_methods
from channelscope.analyses.robustness import is_made_for_gates
from channelscope.statistics.channels import mass_replicates, mean_by_class
from channelscope.statistics.effects import Effect, estimate_effect
from channelscope.statistics.intervals import paired_difference
from channelscope.statistics.measures import mean_over_classes, signed_mass
from channelscope.statistics.permutation import correlate_given
from channelscope.statistics.significance import mcnemar

CLAIMS = {
    "C1": "Adversarial training aligns the channel-wise activations of adversarial data with those "
    "of natural data.",
    "C2": "Adversarial training leaves negatively relevant channels over-activated on adversarial "
    "data.",
    "C3": "Robust classes have activation aligned with relevance; non-robust classes do not.",
    "C4": "CIFS makes adversarial training more robust.",
    "C5": "CIFS does so by suppressing negatively relevant channels and aligning positively "
    "relevant ones.",
}
# The least effects that count, in the quantities' own units.
LEAST = {
    "C1": 0.10,  # a tenth of the way from unrelated (cosine 0) to unchanged (1)
    "C2": 0.02,  # 2 points of the relevant activation mass
    "C3": 0.45,  # a fifth of the variance of ranks (0.45^2)
    "C4": 0.02,  # 2 points of accuracy: defences are published for gains of 2 and more
    "C5": 0.02,  # as C2
    "NR damage": 0.05,  # 55 or 45 % of the damage, in place of half
    "Cross-class": 0.02,  # of a mean cosine
}
_TRAINING = "needs a standard and an AT network", ("standard", "at")
_GATES = "needs a CIFS network and the method it adds gates to, such as AT", ("at", "cifs")
# What a claim is about, and the methods as --methods names them.
_NEEDS = {"C1": _TRAINING, "C2": _TRAINING, "C3": _TRAINING, "C4": _GATES, "C5": _GATES}
FEWEST_CLASSES = 8  # fewer cannot be ordered surprisingly enough

_RESTARTS = re.compile(r"pgd-\d+x\d+(-l2)?")  # names of restarts of PGD on the cross-entropy

Unit = Literal["number", "points"]


@dataclass(frozen=True)
class Question:
    """A claim on some networks, with what was measured, to be judged; see ``Verdict``.

    Args:
        effect: the quantity; None where it was not measured.
        blocked: why it is not judged; empty where it is.
    """

    claim: str
    models: str
    layer: str
    statement: str
    effect: Effect | None = None
    n: float = math.nan
    blocked: str = ""

    @property
    def least(self) -> float:
        return LEAST.get(self.claim, LEAST["C4"])

    @property
    def p(self) -> float:
        return math.nan if self.blocked or self.effect is None else self.effect.p


def judge_claims(study: Study) -> Iterator[Verdict]:
    """Judge every claim on all networks that it is about, at each network's primary layer.

    C1 to C3 are about every AT method beside the standard one, of the same architecture where there
    are several; C4 and C5 about every method with gates beside the method that they were added to.
    Gates other than CIFS's have a claim of their own in place of C4, as the paper's is about CIFS.
    """
    methods = list_methods(study)
    questions = [*_ask_of_training(study, methods), *_ask_of_gates(study, methods)]
    asked = {question.claim for question in questions}
    questions += [
        Question(claim, "", "", "", blocked=f"The claim {needs}{_advise_methods(study, names)}.")
        for claim, (needs, names) in _NEEDS.items()
        if claim not in asked
    ]
    verdicts = judge_questions(questions, study.settings["level"])
    yield from sorted(verdicts, key=lambda verdict: verdict.claim)


def judge_questions(questions: Sequence[Question], level: float) -> list[Verdict]:
    """Judge questions by their effects, all p of them corrected together."""
    tests = sum(not math.isnan(question.p) for question in questions)
    return [_judge(question, tests, level) for question in questions]


def _advise_methods(study: Study, names: Sequence[str]) -> str:
    """Say how methods are named, where those of some networks are not on record."""
    if all(study.describe(model).get("method") for model in study.models):
        return ""
    option = " ".join(f"LABEL={name}" for name in names)
    return f": if these are among the models, say which, --methods {option}"


def _ask_of_training(study: Study, methods: Sequence[Method]) -> Iterator[Question]:
    """Measure C1, C2 and C3 of every AT method."""
    for trained in (method for method in methods if method.name == "at"):
        standards = _list_standards(study, methods, trained)
        if not standards:
            continue
        standard, others = standards[0], [method.label for method in standards[1:]]
        blocked = find_obstacle(study, standard, trained) or _compare_robustness(
            study, standard, trained
        )
        for ask in (_ask_c1, _ask_c2, _ask_c3):
            question = ask(study, trained, standard)
            if others:
                known = (
                    f"{standard.label} stands for the standard networks, not {', '.join(others)}."
                )
                question = replace(question, statement=f"{question.statement} {known}".strip())
            yield replace(question, blocked=blocked or question.blocked)


def _list_standards(study: Study, methods: Sequence[Method], trained: Method) -> list[Method]:
    """Return the standard methods to compare with, those of the same architecture first."""

    def describe(method: Method) -> list[object]:
        known = study.describe(method.models[0])
        return [known.get("arch"), known.get("width")]

    standards = [method for method in methods if method.name == "standard"]
    return sorted(standards, key=lambda method: describe(method) != describe(trained))


def _ask_of_gates(study: Study, methods: Sequence[Method]) -> Iterator[Question]:
    """Measure C4 and C5 of every method with gates that CIFS has, and what gates of others do."""
    for gated in methods:
        bases = [method for method in methods if method.name == get_base(gated.name)]
        if not get_base(gated.name) or not bases:
            continue
        equal = [base for base in bases if not _compare_compute(study, gated, base)]
        base = (equal or bases)[0]
        blocked = find_obstacle(study, gated, base)
        unequal = _compare_compute(study, gated, base) or _compare_attacks(study, gated, base)
        question = _ask_c4(study, gated, base)
        yield replace(question, blocked=blocked or unequal or question.blocked)
        if question.claim == "C4":
            yield replace(
                _ask_c5(study, gated, base),
                blocked=blocked or _compare_compute(study, gated, base),
            )


# ------------------------------------------------------------------------------ what is measured


def _ask_c1(study: Study, trained: Method, standard: Method) -> Question:
    """C1: centred cosine of natural and adversarial magnitudes, AT less standard."""
    cosines, shifts = (
        [_mean_measure(study, method, name) for method in (trained, standard)]
        for name in ("cosine_centred", "displacement")
    )
    effect = estimate_effect(cosines, (1, -1), study.settings["level"])
    moved = [100 * float(shift[:, 0].mean()) for shift in shifts]
    statement = (
        "Alignment of a class's adversarial with its natural activations (cosine of the two, "
        f"each less the mean over all classes), {trained.label} minus {standard.label}: "
        f"{_format(study, effect, '+.3f')}."
    )
    if not np.isnan(moved).any():  # as with images of one class
        statement += (
            f" In {trained.label} the attack moves a class's activations by {moved[0]:.0f} % of "
            f"the distance between classes, in {standard.label} by {moved[1]:.0f} %."
        )
    models = f"{trained.label} - {standard.label}"
    return _ask(study, "C1", models, statement, effect, trained)


def _ask_c2(study: Study, trained: Method, standard: Method) -> Question:
    """C2: rise of the weighted NR mass under the attack, on all images and on those that withstand.

    Both have to show it, each by the least effect: images that the attack breaks have lost their
    logit by definition. The smaller of the two is the effect. "Leaves" is said of what is there
    without adversarial training: so the attack has to raise the standard networks' mass.
    """
    level = study.settings["level"]
    every, withstanding, usual = (
        estimate_effect([_measure_rises(study, method, where)], (1,), level)
        for method, where in ((trained, "all"), (trained, "withstanding"), (standard, "all"))
    )
    part = math.nan
    if all(study.penultimate(model) for model in trained.models):  # elsewhere it is no logit's fall
        part = float(_mean_measure(study, trained, "nr_fall")[:, 0].mean())
    statement = (
        f"Share of {trained.label}'s relevant activation on negatively relevant channels, rise "
        f"under the attack: {_format(study, every, '+.1f', 'points')}; on the images that "
        f"withstand it: {_format(study, withstanding, '+.1f', 'points')}; of {standard.label}: "
        f"{_format(study, usual, '+.1f', 'points')}. Of the first two the smaller decides."
    )
    if not math.isnan(part):  # as where no class's logit falls
        statement += f" Of the fall of the class's logit {part:.0%} comes from these channels."
    blocked = ""
    if math.isnan(withstanding.value):
        blocked = "No image withstands the attack."
    elif not (usual.value > 0 and usual.p < 1 - level):
        blocked = (
            f"The attack does not clearly raise the share in {standard.label}: there is nothing "
            "for adversarial training to leave."
        )
    effect = _combine(every, withstanding)
    question = _ask(study, "C2", trained.label, statement, effect, trained)
    return replace(question, blocked=blocked)


def _combine(one: Effect, other: Effect) -> Effect:
    """Return the smaller of two effects that both have to be there, with the larger p."""
    if math.isnan(other.p):
        return replace(one, p=math.nan)
    if one.value * other.value <= 0:
        return replace(one, p=1.0)
    smaller = min(one, other, key=lambda effect: abs(effect.value))
    return replace(smaller, p=max(one.p, other.p))


def _ask_c3(study: Study, trained: Method, _standard: Method) -> Question:
    """C3: rank correlation across classes of alignment and robust accuracy, given natural accuracy.

    Alignment, the signed mass of the adversarial activations, is taken from one half of each
    class's images and the accuracies from the other, and the other way round: so no image's luck
    is in both.
    """
    classes, labels = len(study.classes), study.labels
    half = _halve(labels, classes)
    enough = np.array([np.bincount(labels[half == h], minlength=classes) for h in (0, 1)]).all(0)
    pairs, given = [], []
    for h in (0, 1):
        aligned, robust, natural = (
            np.mean([measure(study, model, half == side) for model in trained.models], axis=0)
            for measure, side in ((_align, h), (_share_robust, 1 - h), (_share_natural, 1 - h))
        )
        pairs.append((aligned[enough], robust[enough]))
        given.append(natural[enough])
    settings = study.settings
    found = correlate_given(pairs, given, level=settings["level"], seed=settings.get("seed", 0))
    effect = Effect(found.value, found.low, found.high, found.p, len(trained.models))
    count = int(enough.sum())
    statement = (
        f"Rank correlation across the {count} classes of {trained.label} between robust accuracy "
        "and the alignment of activation with relevance, given natural accuracy: "
        f"{_format(study, effect, '+.2f')}."
    )
    blocked = ""
    if count < FEWEST_CLASSES:
        blocked = f"It takes {FEWEST_CLASSES} classes with images in both halves; here are {count}."
    elif math.isnan(found.p):
        blocked = "The classes do not differ in robust accuracy or alignment."
    question = _ask(study, "C3", trained.label, statement, effect, trained)
    return replace(question, n=count, blocked=blocked)


def _ask_c4(study: Study, gated: Method, base: Method) -> Question:
    """C4: worst-case robust accuracy of the gated networks less that of their base.

    The worst case is lower the more attempts it is over. Attacks made for gates cannot be made on
    the base, where all of them are PGD on the cross-entropy: it has as many restarts of that.
    """
    level = study.settings["level"]
    if len(gated.models) == len(base.models) == 1:
        ours, theirs = (worst_case(study, method.models[0]) for method in (gated, base))
        change = paired_difference(ours, theirs, level)
        effect = Effect(change.value, change.low, change.high, float(mcnemar(ours, theirs)), 1)
    else:
        accuracy = [
            np.array([measure_robustness(study, model)[0] for model in method.models])
            for method in (gated, base)
        ]
        effect = estimate_effect(accuracy, (1, -1), level, (-1.0, 1.0))
        if effect.low == effect.high:  # all replicates alike: an accuracy is not known so exactly
            ours, theirs = (worst_case(study, method.models[0]) for method in (gated, base))
            change = paired_difference(ours, theirs, level)
            p = float(mcnemar(ours, theirs))
            effect = replace(effect, low=change.low, high=change.high, p=p)
    names = [_strongest_attack(study, method.models[0]) for method in (gated, base)]
    statement = (
        f"Worst-case robust accuracy, {gated.label} minus {base.label}: "
        f"{_format(study, effect, '+.1f', 'points')}. The strongest attacks: {names[0]} on "
        f"{gated.label}, {names[1]} on {base.label}."
    )
    if not any(map(is_made_for_gates, study.attacks(gated.models[0]))):
        statement += " No attack made for gates was run."
    elif restarts := _find_restarts(study, gated, base):
        statement += (
            f" Attacks made for gates ran on {gated.label} alone; {base.label} had as many "
            f"restarts of PGD ({restarts})."
        )
    outcomes = [study.outcome(model) for model in (*gated.models, *base.models)]
    if not all(outcome.checked for outcome in outcomes):
        statement += " Gradient masking was not checked (--checks, or 'channelscope evaluate')."
    if any(study.describe(method.models[0]).get("compute") is None for method in (gated, base)):
        statement += " Whether they were trained with equal compute is not on record."
    name = str(gated.name)
    claim = "C4" if "cifs" in name.split("-") else name.rpartition("-")[2].upper()
    models = f"{gated.label} - {base.label}"
    return replace(_ask(study, claim, models, statement, effect, gated), layer="")


def _ask_c5(study: Study, gated: Method, base: Method) -> Question:
    """C5: weighted NR mass on adversarial data, base less gated.

    The signed mass is reported beside it: of activations that are nowhere negative it is
    1 - 2 (NR mass), so it has nothing to decide.
    """
    mass, signed = (
        estimate_effect(
            [_mean_measure(study, method, f"{name}_adversarial") for method in (gated, base)],
            signs,
            study.settings["level"],
        )
        for name, signs in (("nr_mass", (-1, 1)), ("signed_mass", (1, -1)))
    )
    statement = (
        "Share of the relevant activation on negatively relevant channels under the attack, "
        f"{base.label} minus {gated.label}: {_format(study, mass, '+.1f', 'points')}; alignment of "
        f"activation with relevance (signed mass), {gated.label} minus {base.label}: "
        f"{_format(study, signed, '+.3f')}. Whether it is more robust for that is C4's question."
    )
    models = f"{gated.label} - {base.label}"
    return _ask(study, "C5", models, statement, mass, gated)


def _ask(
    study: Study, claim: str, models: str, statement: str, effect: Effect, method: Method
) -> Question:
    """Put a question, at the primary layer of the method that it is about."""
    layer = get_primary_layer(study, method.models[0])
    return Question(claim, models, layer, statement, effect, n=len(study.labels))


def _mean_measure(study: Study, method: Method, name: str) -> Float[ndarray, "s r"]:
    """Return a measure's mean over the classes, of each network in each replicate."""
    return np.array(
        [
            mean_over_classes(measure_study(study, model, get_primary_layer(study, model))[name])
            for model in method.models
        ]
    )


def _measure_rises(study: Study, method: Method, where: str) -> Float[ndarray, "s r"]:
    """Return the rise of the weighted NR mass under the attack, mean over the classes."""
    rises = []
    for model in method.models:
        layer = get_primary_layer(study, model)
        rows = np.ones(len(study.labels), bool)
        if where == "withstanding":
            attacked = study.answers(model, "adversarial") == study.labels
            rows = study.correct(model) & attacked
        natural, adversarial = (
            mass_replicates(
                study.activations(model, layer, data)[rows],
                study.relevance(model, layer)[rows],
                study.labels[rows],
                study.weights[rows],
                len(study.classes),
            )
            for data in ("natural", "adversarial")
        )
        rises.append(mean_over_classes(adversarial - natural))
    return np.array(rises)


def _halve(labels: ndarray, classes: int) -> ndarray:
    """Put the images of each class into halves 0 and 1 by turns."""
    half = np.zeros(len(labels), int)
    for k in range(classes):
        rows = np.flatnonzero(labels == k)
        half[rows] = np.arange(len(rows)) % 2
    return half


def _align(study: Study, model: str, rows: Bool[ndarray, " n"]) -> Float[ndarray, " k"]:
    """Return each class's signed mass on adversarial images, of some rows."""
    layer, classes = get_primary_layer(study, model), len(study.classes)
    means = (
        mean_by_class(values[rows], study.labels[rows], classes)
        for values in (
            study.activations(model, layer, "adversarial"),
            study.relevance(model, layer),
        )
    )
    return signed_mass(*means)


def _share_robust(study: Study, model: str, rows: ndarray) -> Float[ndarray, " k"]:
    return _share_by_class(study, worst_case(study, model), rows)


def _share_natural(study: Study, model: str, rows: ndarray) -> Float[ndarray, " k"]:
    return _share_by_class(study, study.correct(model), rows)


def _share_by_class(study: Study, correct: ndarray, rows: ndarray) -> Float[ndarray, " k"]:
    values = correct[rows, None].astype(float)
    shares = mean_by_class(values, study.labels[rows], len(study.classes))
    return shares[:, 0]


# ------------------------------------------------------------------------------------ conditions


def find_obstacle(study: Study, *methods: Method) -> str:
    """Say which network has which fault; nothing where none has."""
    sentences = (
        f"{model}: {fault.sentence}"
        for method in methods
        for model in method.models
        for fault in find_faults(study, model)
    )
    return next(sentences, "") or _find_masking(study, *methods)


def _compare_robustness(study: Study, standard: Method, trained: Method) -> str:
    """Say that adversarial training has not made networks more robust; nothing where it has."""
    accuracy = [
        np.mean([worst_case(study, model) for model in method.models], axis=0)
        for method in (trained, standard)
    ]
    gain = accuracy[0] - accuracy[1]
    error = float(gain.std(ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
    if gain.mean() > 1.96 * error:
        return ""
    shares = [f"{100 * share.mean():.1f} %" for share in accuracy]
    return (
        f"{trained.label} is not clearly more robust than {standard.label} (worst case "
        f"{shares[0]} and {shares[1]}): what adversarial training does cannot be seen."
    )


def _compare_compute(study: Study, gated: Method, base: Method) -> str:
    """Say how the compute of two trainings differs; nothing where it does not, or is unknown."""
    models = [model for method in (gated, base) for model in method.models]
    records = [study.describe(model).get("compute") for model in models]
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return ""
    different = sorted(
        key for key in known[0] if any(other.get(key) != known[0][key] for other in known)
    )
    what = ", ".join(different)
    return f"Their training differs beside the gates ({what})." if different else ""


def _compare_attacks(study: Study, gated: Method, base: Method) -> str:
    """Say which attacks only one of them was given; nothing where both had as many attempts.

    Attacks that are made for gates, or from another network, have their match in restarts.
    """
    ours, theirs = (set(study.attacks(method.models[0])) for method in (gated, base))
    restarts = _find_restarts(study, gated, base)
    extras = sorted(filter(_is_extra, ours))
    if extras and not restarts and not any(map(_is_extra, theirs)):
        return (
            f"{gated.label} was attacked more often than {base.label}, which had no restarts in "
            f"place of {', '.join(extras)}."
        )
    matched = {restarts} if extras else set()
    different = sorted(name for name in (ours ^ theirs) - matched if not _is_extra(name))
    return f"Only one of them was given {', '.join(different)}." if different else ""


def _find_restarts(study: Study, gated: Method, base: Method) -> str:
    """Return the restarts of PGD that the base alone has; empty where there are none."""
    model = base.models[0]
    others = {*study.attacks(gated.models[0]), *study.outcome(model).fallbacks}
    return next((a for a in study.attacks(model) if _RESTARTS.fullmatch(a) and a not in others), "")


def _is_extra(attack: str) -> bool:
    """Tell whether an attack can be made on some networks only: with gates, or from another."""
    return is_made_for_gates(attack) or ":from-" in attack


def _find_masking(study: Study, *methods: Method) -> str:
    """Say which network shows signs of gradient masking; nothing where none does."""
    for model in (model for method in methods for model in method.models):
        if findings := study.outcome(model).findings:
            checks = ", ".join(finding.check for finding in findings)
            return f"{model} shows signs of gradient masking ({checks}): do not trust its accuracy."
    return ""


def _strongest_attack(study: Study, model: str) -> str:
    """Return the attack that leaves the fewest images correct."""
    return min(study.attacks(model), key=lambda name: int(study.correct(model, name).sum()))


# -------------------------------------------------------------------------------------- verdicts


def _judge(question: Question, tests: int, level: float) -> Verdict:
    """Judge a question by its effect, its p corrected for the number of tests."""
    effect, p = question.effect, question.p
    p = p if math.isnan(p) else min(1.0, tests * p)
    if question.blocked or effect is None:
        statement = " ".join(filter(None, [question.statement, f"Not judged: {question.blocked}"]))
        effect = effect or Effect(math.nan, math.nan, math.nan, math.nan, 0)
        return Verdict(
            claim=question.claim,
            models=question.models,
            layer=question.layer,
            verdict="not judged",
            statement=statement if question.statement else question.blocked,
            change="It is judged when that is mended." if question.statement else "",
            estimate=effect.value,
            low=effect.low,
            high=effect.high,
            n=question.n,
            seeds=effect.seeds,
            least=question.least,
        )
    decided = p < 1 - level and abs(effect.value) >= question.least
    outcome: Judgement = "inconclusive"
    if decided:
        outcome = "supported" if effect.value > 0 else "not supported"
    return Verdict(
        claim=question.claim,
        models=question.models,
        layer=question.layer,
        verdict=outcome,
        statement=f"{question.statement} {_describe_test(question, effect, p, tests)}",
        change=_describe_change(question, effect, p, level, decided),
        estimate=effect.value,
        low=effect.low,
        high=effect.high,
        p=p,
        n=question.n,
        seeds=effect.seeds,
        least=question.least,
    )


def _describe_test(question: Question, effect: Effect, p: float, tests: int) -> str:
    """Say p, n, seeds and the least effect."""
    several = f", corrected for {tests} verdicts" if tests > 1 else ""
    if math.isnan(p):
        shown = "p unknown"
    else:
        shown = f"p < 0.001{several}" if p < 0.001 else f"p = {p:.3f}{several}"
    unit = "classes" if question.claim == "C3" else "images"
    seeds = "one seed: of these networks alone"
    if effect.seeds > 1:
        seeds = f"{effect.seeds} seeds"
    least = _format_least(question)
    return f"({shown}; {question.n:g} {unit}; {seeds}; least effect {least})"


def _format_least(question: Question) -> str:
    if question.claim in ("C1", "C3", "Cross-class"):
        return f"{question.least:.2f}"
    return f"{100 * question.least:g} points"


def _describe_change(
    question: Question, effect: Effect, p: float, level: float, decided: bool
) -> str:
    """Say what would change the verdict."""
    limit = f"{1 - level:.2g}"
    if decided:
        return (
            f"It would be inconclusive with an estimate within {_format_least(question)} of 0, or "
            f"p of {limit} or more."
        )
    if math.isnan(p):
        return "More images are needed to test it."
    if abs(effect.value) < question.least:
        least = _format_least(question)
        return f"It would be decided by an estimate of at least {least}, with p below {limit}."
    what = "seeds" if effect.seeds > 1 else "images"
    what = "classes" if question.claim == "C3" else what
    return f"More {what}: the estimate is large enough, p is not below {limit}."


def _format(study: Study, effect: Effect, spec: str, unit: Unit = "number") -> str:
    """Return an effect as in "-2.8 points (95 % CI -7.1 to 2.0)"."""
    if math.isnan(effect.value):
        return "not known from these images"
    scale = 100 if unit == "points" else 1
    value, low, high = (
        f"{scale * part:{spec}}" for part in (effect.value, effect.low, effect.high)
    )
    name = " points" if unit == "points" else ""
    return f"{value}{name} ({100 * study.settings['level']:g} % CI {low} to {high})"


register(
    Analysis(
        name="claims",
        help="verdicts on the claims C1 to C5 of the CIFS paper",
        judge=judge_claims,
    )
)
