"""Claims: each verdict follows from the evidence; without it the statement says what is missing."""

import math
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from channelscope.analyses.base import Finding, Outcome, Verdict
from channelscope.analyses.claims import CLAIMS, judge_claims
from helpers.studies import KeptStudy

REPLICATES, CLASSES = 201, 6
IMAGES = 600
# What a network's measures are by default: neither aligned nor misaligned.
USUAL = {
    "cosine": 0.5,
    "spearman": 0.5,
    "shift": 0.5,
    "nr_ratio": 1.0,
    "relevance_spearman_adversarial": 0.1,
}
EQUAL: dict[str, Any] = {"epochs": 10}
CHECKED = Outcome(checked=True)


def add_noise(mean: ndarray | float, noise: float, seed: int) -> ndarray:
    """Make replicates by class around a mean, which is the estimate itself."""
    replicates = np.broadcast_to(mean, (REPLICATES, CLASSES)).copy()
    replicates[1:] += np.random.default_rng(seed).normal(0, noise, replicates[1:].shape)
    return replicates


class Evidence(dict[str, Any]):
    """What a study tells of one model; see ``model``."""


def model(
    label: str,
    method: str | None,
    *,
    compute: dict[str, Any] | None = EQUAL,
    layers: tuple[str, ...] = ("layer4",),
    robust: ndarray | float = 0.4,
    noise: float = 0.01,
    correct: ndarray | None = None,
    attacks: tuple[str, ...] = ("pgd-20", "pgd-20:joint-sweep"),
    outcome: Outcome = CHECKED,
    **measures: Any,
) -> Evidence:
    """Describe one network, all measures but those named being as usual."""
    seed = sum(map(ord, label))
    by_class = add_noise(robust, noise, seed + 99)
    return Evidence(
        label=label,
        known={"method": method, "compute": compute, "layers": layers},
        measures={
            name: add_noise(value, noise, seed + index)
            for index, (name, value) in enumerate((USUAL | measures).items())
        },
        robust=(np.nanmean(by_class, 1), by_class),
        correct=np.ones(IMAGES, dtype=bool) if correct is None else correct,
        attacks=attacks,
        outcome=outcome,
    )


def study_of(*models: Evidence, level: float = 0.95) -> KeptStudy:
    """Return a study that remembers what was measured of these models."""
    arrays = {"labels": np.zeros(IMAGES, dtype=np.int64), "weights": np.ones((IMAGES, REPLICATES))}
    memory: dict[tuple[Any, ...], Any] = {}
    for index, item in enumerate(models):
        arrays[f"correct/{index}/natural"] = np.ones(IMAGES, dtype=bool)
        for attack in item["attacks"]:
            arrays[f"correct/{index}/{attack}"] = item["correct"]
        memory["robustness", item["label"]] = item["robust"]
        for layer in item["known"]["layers"]:
            memory["measures", item["label"], layer, "adversarial"] = item["measures"]
    return KeptStudy(
        arrays,
        {item["label"]: item["known"] for item in models},
        tuple(map(str, range(CLASSES))),
        {"level": level},
        outcomes={item["label"]: item["outcome"] for item in models},
        memory=memory,
    )


def judge(claim: str, *models: Evidence, level: float = 0.95) -> Verdict:
    """Return the only verdict on a claim."""
    verdicts = judge_claims(study_of(*models, level=level))
    (verdict,) = [verdict for verdict in verdicts if verdict.claim == claim]
    return verdict


STANDARD = model("std", "standard", robust=0.0)
AT = model("at", "at", cosine=0.9, spearman=0.8, shift=0.2)
CHANGES = {
    "better": {"cosine": 0.9, "spearman": 0.8, "shift": 0.2},
    "worse": {"cosine": 0.2, "spearman": 0.3, "shift": 0.8},
    "mixed": {"cosine": 0.9, "spearman": 0.8, "shift": 0.8},
    "same": {},
}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("better", "supported"),
        ("worse", "not supported"),
        ("mixed", "inconclusive"),
        ("same", "inconclusive"),
    ],
)
def test_c1_needs_all_three_measures_to_agree(change: str, verdict: str) -> None:
    found = judge("C1", STANDARD, model("at", "at", **CHANGES[change]))
    assert found.verdict == verdict
    assert (found.models, found.layer) == ("at - std", "layer4")
    assert found.estimate == pytest.approx(CHANGES[change].get("cosine", 0.5) - 0.5)
    assert found.low <= found.estimate <= found.high


def test_c1_says_by_how_much_each_measure_changes() -> None:
    statement = judge("C1", STANDARD, AT).statement
    for words in (
        "at minus std: cosine +0.400 (95 % CI +0.",
        "Spearman's correlation +0.300 (95 % CI +0.",
        "relative shift -0.300 (95 % CI -0.3",
    ):
        assert words in statement


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [(1.5, 0.01, "supported"), (0.7, 0.01, "not supported"), (1.05, 1.0, "inconclusive")],
)
def test_c2_compares_the_nr_ratio_with_one(ratio: float, noise: float, verdict: str) -> None:
    found = judge("C2", model("at", "at", nr_ratio=ratio, noise=noise))
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(ratio)
    assert f"adversarial over natural: {ratio:.2f} (95 % CI " in found.statement


@pytest.mark.parametrize(
    ("order", "correlation", "noise", "verdict"),
    [
        ((1, 2, 3, 4, 5, 6), 1, 0.05, "supported"),
        ((6, 5, 4, 3, 2, 1), -1, 0.05, "not supported"),
        ((4, 1, 3, 6, 2, 5), 0.3142857, 0.3, "inconclusive"),
    ],
    ids=["aligned", "opposed", "mixed"],
)
def test_c3_correlates_alignment_with_robust_accuracy_across_classes(
    order: tuple[int, ...], correlation: float, noise: float, verdict: str
) -> None:
    aligned, robust = np.array(order) / 10, np.arange(CLASSES) / 10
    measures = {"relevance_spearman_adversarial": aligned}
    found = judge("C3", model("at", "at", robust=robust, noise=noise, **measures))
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(correlation)
    assert -1 <= found.low <= found.high <= 1


def test_c3_leaves_absent_classes_out() -> None:
    ranks = np.linspace(0.1, 0.6, CLASSES)
    robust = np.where(np.arange(CLASSES) == 2, np.nan, ranks)
    measures = {"relevance_spearman_adversarial": ranks}
    found = judge("C3", model("at", "at", robust=robust, noise=0.05, **measures))
    assert found.estimate == pytest.approx(1)  # of five classes; the missing one would make it NaN
    assert found.verdict == "supported"


@pytest.mark.parametrize("method", ["cifs", "cas"])
@pytest.mark.parametrize(
    ("robust", "noise", "verdict"),
    [(0.5, 0.01, "supported"), (0.3, 0.01, "not supported"), (0.41, 0.2, "inconclusive")],
)
def test_c4_compares_robust_accuracy_at_equal_compute(
    robust: float, noise: float, verdict: str, method: str
) -> None:
    found = judge("C4", AT, model("gated", method, robust=robust, noise=noise))
    assert found.verdict == verdict
    assert found.models == "gated - at"
    assert found.estimate == pytest.approx(robust - 0.4)
    points = f"{100 * (robust - 0.4):.1f} points (95 % CI "
    assert found.statement.startswith(f"Worst-case robust accuracy, gated minus at: {points}")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sign", [1, -1])
def test_c4_takes_no_single_images_word(sign: int, seed: int) -> None:
    """Of 200 images one alone differs: moved onto the estimate, the interval might exclude 0."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(200, size=(REPLICATES - 1, 200))
    weights = np.stack([np.ones(200), *(np.bincount(row, minlength=200) for row in drawn)], 1)
    both = []
    for name, correct in (("at", 100), ("cifs", 100 + sign)):
        item = model(name, name)
        item["robust"] = (weights[:correct].sum(0) / 200, item["robust"][1])
        both.append(item)
    found = judge("C4", *both)
    assert found.estimate == pytest.approx(sign / 200)
    assert found.low <= 0 <= found.high
    assert found.verdict != "supported"


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (None, {"epochs": 10}, "the compute of their training is not known to be equal"),
        ({"epochs": 10}, None, "the compute of their training is not known to be equal"),
        (None, None, "the compute of their training is not known to be equal"),
        ({"epochs": 10, "eps": 0.1}, {"epochs": 10, "eps": 0.0}, "their training differs (eps)"),
        ({"epochs": 10}, {"epochs": 20, "eps": 0.0}, "their training differs (epochs, eps)"),
    ],
    ids=["ours unknown", "theirs unknown", "both unknown", "other eps", "other epochs and eps"],
)
def test_c4_gives_no_verdict_at_unequal_or_unknown_compute(
    ours: dict[str, Any] | None, theirs: dict[str, Any] | None, words: str
) -> None:
    gated = model("cifs", "cifs", compute=theirs, robust=0.9)
    found = judge("C4", model("at", "at", compute=ours), gated)
    assert found.verdict == "inconclusive"
    assert f"No verdict: {words}." in found.statement


def test_c4_names_the_strongest_attacks() -> None:
    study = study_of(AT, model("cifs", "cifs"))
    study.arrays = {**study.arrays, "correct/1/pgd-20:joint-sweep": np.zeros(IMAGES, dtype=bool)}
    (found,) = [verdict for verdict in judge_claims(study) if verdict.claim == "C4"]
    assert "pgd-20:joint-sweep on cifs, pgd-20 on at" in found.statement


@pytest.mark.parametrize("masked", ["cifs", "at"])
def test_c4_trusts_no_network_with_signs_of_gradient_masking(masked: str) -> None:
    findings = tuple(Finding(check, "", {}) for check in ("black-box", "zero-gradient"))
    outcomes = dict.fromkeys(("at", "cifs"), CHECKED)
    both = [model(name, name, robust=0.4 + 0.4 * (name == "cifs")) for name in outcomes]
    assert judge("C4", *both).verdict == "supported"
    for item in both:
        if item["label"] == masked:
            item["outcome"] = Outcome(checked=True, findings=findings)
    found = judge("C4", *both)
    assert found.verdict == "inconclusive"
    words = f"{masked} shows signs of gradient masking (black-box, zero-gradient)"
    assert found.statement.count("signs") == 1
    assert words in found.statement


def test_c4_says_what_was_not_done() -> None:
    plain = judge("C4", AT, model("cifs", "cifs")).statement
    unchecked = judge("C4", AT, model("cifs", "cifs", outcome=Outcome())).statement
    assert "not checked" not in plain
    assert unchecked.startswith(plain)
    assert "not checked" in unchecked
    without = judge("C4", AT, model("cifs", "cifs", attacks=("pgd-20",))).statement
    assert "No attack made for gates" not in plain
    assert "No attack made for gates" in without


# ---------------------------------------------------------------- which networks


@pytest.mark.parametrize(
    ("models", "missing"),
    [
        ([], {"C1", "C2", "C3", "C4"}),
        ([STANDARD], {"C1", "C2", "C3", "C4"}),
        ([AT], {"C1", "C4"}),
        ([STANDARD, AT], {"C4"}),
        ([model("cifs", "cifs")], {"C1", "C2", "C3", "C4"}),
        ([model("unknown", None), AT, model("cas", "cas")], {"C1"}),
        ([STANDARD, AT, model("cifs", "cifs")], set()),
    ],
    ids=["nothing", "standard", "at", "standard and at", "cifs", "unknown, at and cas", "all"],
)
def test_claim_without_its_networks_is_inconclusive_and_says_what_it_needs(
    models: list[Evidence], missing: set[str]
) -> None:
    verdicts = list(judge_claims(study_of(*models)))
    assert {verdict.claim for verdict in verdicts} == set(CLAIMS)
    for verdict in verdicts:
        assert (verdict.models == "") == (verdict.claim in missing)
        if verdict.claim in missing:
            assert verdict.verdict == "inconclusive"
            assert verdict.statement.startswith("The claim needs a")
            assert math.isnan(verdict.estimate)


def test_c1_needs_as_many_layers_of_both_networks() -> None:
    found = judge("C1", STANDARD, model("at", "at", layers=("layer3", "layer4")))
    assert found.verdict == "inconclusive"
    assert "as many layers of the one as of the other" in found.statement


def test_every_layer_and_network_is_judged_in_the_order_of_the_claims() -> None:
    layers = ("layer3", "layer4")
    methods = {"std": "standard", "at": "at", "at2": "at"}
    models = [model(name, method, layers=layers) for name, method in methods.items()]
    models += [model("cifs", "cifs"), model("cas", "cas")]
    verdicts = judge_claims(study_of(*models))
    assert [(verdict.claim, verdict.models, verdict.layer) for verdict in verdicts] == [
        *[("C1", names, layer) for names in ("at - std", "at2 - std") for layer in layers],
        *[("C2", name, layer) for name in ("at", "at2") for layer in layers],
        *[("C3", name, layer) for name in ("at", "at2") for layer in layers],
        ("C4", "cifs - at", ""),
        ("C4", "cas - at", ""),
    ]


def test_layers_of_c1_correspond_by_their_place() -> None:
    at = model("at", "at", layers=("features",), cosine=0.9)
    assert judge("C1", STANDARD, at).layer == "features"


def test_level_widens_the_intervals() -> None:
    narrow, wide = (judge("C2", AT, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert "(99 % CI " in wide.statement


def test_statements_are_plain_sentences() -> None:
    for models in ([STANDARD, AT, model("cifs", "cifs")], []):
        for verdict in judge_claims(study_of(*models)):
            assert verdict.statement.endswith(".")
            assert "nan" not in verdict.statement
