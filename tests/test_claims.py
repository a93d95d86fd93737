"""Claims: each verdict follows from the evidence; without enough of it the statement says what is missing."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from channelscope.claims import CLAIMS, Evidence, Verdict, verdicts
from channelscope.statistics.streaming import bootstrap_weights

REPLICATES, CLASSES = 201, 6
# What a network's measures are by default: neither aligned nor misaligned.
USUAL = {
    "cosine": 0.5,
    "spearman": 0.5,
    "shift": 0.5,
    "nr_share_natural": 0.3,
    "nr_share_adversarial": 0.3,
    "nr_ratio": 1.0,
    "relevance_spearman_natural": 0.1,
    "relevance_spearman_adversarial": 0.1,
}


def noisy(mean: ndarray | float, noise: float, seed: int) -> ndarray:
    """Make replicates by class around a mean, which is the estimate itself."""
    found = np.broadcast_to(mean, (REPLICATES, CLASSES)).copy()
    found[1:] += np.random.default_rng(seed).normal(0, noise, found[1:].shape)
    return found


EQUAL: dict[str, object] = {"epochs": 10}


def evidence(
    model: str,
    method: str | None,
    *,
    compute: dict[str, object] | None = EQUAL,
    layers: tuple[str, ...] = ("layer4",),
    robust: ndarray | float = 0.4,
    noise: float = 0.01,
    decided_by: str = "pgd-20",
    **of: Any,
) -> Evidence:
    """Make the evidence of one network, all measures but those given being as usual."""
    seed = sum(map(ord, model))
    measured = {
        name: noisy(value, noise, seed + index)
        for index, (name, value) in enumerate((USUAL | of).items())
    }
    by_class = noisy(robust, noise, seed + 99)
    return Evidence(
        model,
        method,
        compute,
        dict.fromkeys(layers, measured),
        by_class,
        by_class.mean(1),
        decided_by,
    )


STANDARD = evidence("std", "standard", robust=0.0)
AT = evidence("at", "at", cosine=0.9, spearman=0.8, shift=0.2)


def judged(claim: str, *given: Evidence) -> Verdict:
    """Give the only verdict on a claim."""
    (found,) = [verdict for verdict in verdicts(given) if verdict.claim == claim]
    return found


def all_of(quantity: str) -> dict[str, float]:
    """Give the measures of C1 when all, none or some of them improve on the usual ones."""
    return {
        "better": {"cosine": 0.9, "spearman": 0.8, "shift": 0.2},
        "worse": {"cosine": 0.2, "spearman": 0.3, "shift": 0.8},
        "mixed": {"cosine": 0.9, "spearman": 0.8, "shift": 0.8},
        "same": {},
    }[quantity]


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
    found = judged("C1", STANDARD, evidence("at", "at", **all_of(change)))
    assert found.verdict == verdict
    assert (found.models, found.layer) == ("at - std", "layer4")
    assert found.estimate == pytest.approx(all_of(change).get("cosine", 0.5) - 0.5)
    assert found.low <= found.estimate <= found.high


def test_c1_says_by_how_much_each_measure_changes() -> None:
    statement = judged("C1", STANDARD, AT).statement
    assert statement.startswith(
        "From std to at, the cosine between natural and adversarial activation changes by +0.400 ["
    )
    assert "Spearman's correlation by +0.300 [" in statement
    assert "the relative shift by -0.300 [-0.3" in statement


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [(1.5, 0.01, "supported"), (0.7, 0.01, "not supported"), (1.05, 1.0, "inconclusive")],
)
def test_c2_compares_the_nr_ratio_with_one(ratio: float, noise: float, verdict: str) -> None:
    found = judged("C2", evidence("at", "at", nr_ratio=ratio, noise=noise))
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(ratio)
    assert f"of at hold {ratio:.2f} [" in found.statement


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
    found = judged(
        "C3",
        evidence("at", "at", robust=robust, noise=noise, relevance_spearman_adversarial=aligned),
    )
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(correlation)
    assert -1 <= found.low <= found.high <= 1


def test_c3_leaves_absent_classes_out() -> None:
    ranks = np.linspace(0.1, 0.6, CLASSES)
    robust = np.where(np.arange(CLASSES) == 2, np.nan, ranks)
    found = judged(
        "C3", evidence("at", "at", robust=robust, noise=0.05, relevance_spearman_adversarial=ranks)
    )
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
    found = judged("C4", AT, evidence("gated", method, robust=robust, noise=noise))
    assert found.verdict == verdict
    assert found.models == "gated - at"
    assert found.estimate == pytest.approx(robust - 0.4)
    assert f"gated less at is {100 * (robust - 0.4):.1f} [" in found.statement


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sign", [1, -1])
def test_c4_takes_no_single_images_word(sign: int, seed: int) -> None:
    """Of 200 images one alone has another outcome: moved onto the estimate, the interval might begin beyond 0."""
    weights = bootstrap_weights(200, REPLICATES - 1, seed).double().numpy()
    robust = {"at": np.arange(200) < 100, "cifs": np.arange(200) < 100 + sign}
    shares = {name: (weights.T @ hits) / weights.sum(0) for name, hits in robust.items()}
    networks = (
        dataclasses.replace(evidence(name, name), robust_overall=share)
        for name, share in shares.items()
    )
    found = judged("C4", *networks)
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
    ours: dict[str, object] | None, theirs: dict[str, object] | None, words: str
) -> None:
    found = judged(
        "C4",
        evidence("at", "at", compute=ours),
        evidence("cifs", "cifs", compute=theirs, robust=0.9),
    )
    assert found.verdict == "inconclusive"
    assert f"No verdict, as {words}." in found.statement


def test_c4_names_the_attacks_that_decided() -> None:
    found = judged("C4", AT, evidence("cifs", "cifs", decided_by="pgd-20:joint"))
    assert "(decided by pgd-20:joint and pgd-20)" in found.statement


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], {"C1", "C2", "C3", "C4"}),
        ([STANDARD], {"C1", "C2", "C3", "C4"}),
        ([AT], {"C1", "C4"}),
        ([STANDARD, AT], {"C4"}),
        ([evidence("cifs", "cifs")], {"C1", "C2", "C3", "C4"}),
        ([evidence("unknown", None), AT, evidence("cas", "cas")], {"C1"}),
        ([STANDARD, AT, evidence("cifs", "cifs")], set()),
    ],
    ids=["nothing", "standard", "at", "standard and at", "cifs", "unknown, at and cas", "all"],
)
def test_claim_without_its_networks_is_inconclusive_and_says_what_it_needs(
    given: list[Evidence], missing: set[str]
) -> None:
    found = verdicts(given)
    assert {verdict.claim for verdict in found} == set(CLAIMS)
    for verdict in found:
        unjudged = verdict.models == ""
        assert unjudged == (verdict.claim in missing)
        assert (
            verdict.statement.startswith("The claim needs an") == unjudged or verdict.claim == "C1"
        )
        if unjudged:
            assert verdict.verdict == "inconclusive"
            assert verdict.statement.startswith("The claim needs a")
            assert math.isnan(verdict.estimate)


def test_c1_needs_as_many_layers_of_both_networks() -> None:
    found = judged("C1", STANDARD, evidence("at", "at", layers=("layer3", "layer4")))
    assert found.verdict == "inconclusive"
    assert "as many layers of the one as of the other" in found.statement


def test_every_layer_and_network_is_judged_in_the_order_of_the_claims() -> None:
    layers = ("layer3", "layer4")
    given = [
        dataclasses.replace(item, measures=dict.fromkeys(layers, item.measures["layer4"]))
        for item in (STANDARD, AT)
    ]
    given += [
        evidence("at2", "at", layers=layers),
        evidence("cifs", "cifs"),
        evidence("cas", "cas"),
    ]
    found = [(verdict.claim, verdict.models, verdict.layer) for verdict in verdicts(given)]
    assert found == [
        *[("C1", models, layer) for models in ("at - std", "at2 - std") for layer in layers],
        *[("C2", model, layer) for model in ("at", "at2") for layer in layers],
        *[("C3", model, layer) for model in ("at", "at2") for layer in layers],
        ("C4", "cifs - at", ""),
        ("C4", "cas - at", ""),
    ]


def test_layers_of_c1_correspond_by_their_place() -> None:
    at = evidence("at", "at", layers=("features",), cosine=0.9)
    assert judged("C1", STANDARD, at).layer == "features"


def test_level_widens_the_intervals() -> None:
    narrow, wide = (
        next(verdict for verdict in verdicts([AT], level) if verdict.claim == "C2")
        for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_statements_are_plain_sentences() -> None:
    for verdict in verdicts([STANDARD, AT, evidence("cifs", "cifs")]) + verdicts([]):
        assert verdict.statement.endswith((".", ")."))
        assert "nan" not in verdict.statement


@pytest.mark.parametrize("masked", ["cifs", "at"])
def test_c4_trusts_no_network_with_signs_of_gradient_masking(masked: str) -> None:
    both = [evidence("at", "at", robust=0.4), evidence("cifs", "cifs", robust=0.8)]
    assert judged("C4", *both).verdict == "supported"
    signs = ("black-box", "zero-gradient")
    both = [
        dataclasses.replace(item, masked=signs if item.model == masked else ()) for item in both
    ]
    found = judged("C4", *both)
    assert found.verdict == "inconclusive"
    assert found.statement.endswith(
        f"{masked} shows signs of gradient masking (black-box, zero-gradient): do not trust it."
    )
    assert found.statement.count("signs") == 1


def test_c4_says_what_was_not_done() -> None:
    at, cifs = evidence("at", "at", robust=0.4), evidence("cifs", "cifs", robust=0.8)
    plain = judged("C4", at, cifs).statement
    assert judged("C4", at, dataclasses.replace(cifs, masked=None)).statement == (
        f"{plain} It was not checked whether gradients are masked (channelscope evaluate does)."
    )
    assert judged("C4", at, dataclasses.replace(cifs, adaptive=False)).statement == (
        f"{plain} No attack made for gates was among the attacks."
    )
