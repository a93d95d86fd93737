"""Claims: planted effects are found, in both directions; what cannot be judged is not, with why.

The networks are arrays. Channels 0 to K - 1 are the classes' own, without relevance; the next is
positively relevant to every class, the last negatively (NR). The activation of these two adds up to
1, so the last one's is the NR mass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from channelscope.analyses.base import (
    ANALYSES,
    VERDICTS,
    Finding,
    Outcome,
    Verdict,
    make_tables,
    measure_study,
)
from channelscope.analyses.claims import CLAIMS, FEWEST_CLASSES, LEAST, judge_claims
from channelscope.analyses.faults import find_faults
from channelscope.analyses.methods import get_base, list_methods
from channelscope.statistics.significance import mcnemar
from helpers.studies import KeptStudy

CLASSES, COUNT, REPLICATES = 10, 20, 200
CHECKED = Outcome(checked=True)
EQUAL: Mapping[str, Any] = {"epochs": 10}
JOINT = "pgd-20:joint-sweep"  # an attack that is made for gates
RESTARTS = "pgd-20x7"  # what the base has in its place


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a study; by default one that was adversarially trained, and does nothing else.

    Args:
        label: of the network.
        method: how it was trained.
        moved: the part of a class's own activation that the attack moves to the next class.
        mass: NR mass of natural images.
        rise: how far the attack raises it, on all images or by class.
        rise_withstanding: the same, on the images that withstand it; None: as on the others.
        natural, robust: accuracies, overall or by class.
        noise: standard deviation of the activations over the images of a class.
        attacks: the attacks that it was given.
        settings: its recipe, with the seed; none where it is not on record.
        copy_of: the network of which this one is a copy.
        outcome: of attacks and checks.
        known: what else is known of it.
    """

    label: str
    method: str | None
    moved: float = 0.1
    mass: float = 0.3
    rise: float | Sequence[float] = 0.0
    rise_withstanding: float | None = None
    natural: float | Sequence[float] = 0.9
    robust: float | Sequence[float] = 0.5
    noise: float = 0.01
    attacks: Sequence[str] = ("pgd-20",)
    settings: Mapping[str, Any] | None = None
    copy_of: str = ""
    compute: Mapping[str, Any] | None = field(default_factory=lambda: EQUAL)
    layers: Sequence[str] = ("layer4",)
    outcome: Outcome = CHECKED
    known: Mapping[str, Any] = field(default_factory=dict)


def standard(**changes: Any) -> Network:
    return Network(**{"label": "std", "method": "standard", "robust": 0.0, "moved": 0.5} | changes)


def trained(**changes: Any) -> Network:
    return Network(**{"label": "at", "method": "at"} | changes)


def gated(**changes: Any) -> Network:
    return Network(**{"label": "cifs", "method": "cifs"} | changes)


def study_of(
    *networks: Network,
    classes: int = CLASSES,
    count: int = COUNT,
    faulty: Mapping[str, tuple[Finding, ...]] | None = None,
    **settings: Any,
) -> KeptStudy:
    """Return a study of networks, on ``count`` images of each class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    n = len(labels)
    draws = [np.bincount(row, minlength=n) for row in rng.integers(n, size=(REPLICATES, n))]
    arrays = {"labels": labels, "weights": np.stack([np.ones(n), *draws], 1)}
    for index, network in enumerate(networks):
        drawn = _draw_network(np.random.default_rng(index), network, labels, classes)
        arrays |= {name.replace("/M", f"/{index}"): array for name, array in drawn.items()}
    known = {
        each.label: {
            "method": each.method,
            "compute": each.compute,
            "layers": each.layers,
            "penultimate": each.layers[-1:],
            "settings": each.settings,
            "digest": f"digest of {each.copy_of or each.label}",
            **each.known,
        }
        for each in networks
    }
    return KeptStudy(
        arrays,
        known,
        tuple(map(str, range(classes))),
        {"level": 0.95, "threshold": 0.01, "seed": 0, "method_groups": {}} | settings,
        outcomes={each.label: each.outcome for each in networks},
        faulty=faulty or {},
    )


def _draw_network(
    rng: np.random.Generator, network: Network, labels: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    n = len(labels)
    place = np.arange(n) - np.searchsorted(labels, labels)  # of each image, within its class
    count = int(place.max()) + 1
    natural, robust = (
        place < np.round(count * np.broadcast_to(share, classes))[labels]
        for share in (network.natural, network.robust)
    )
    robust &= natural
    rise = np.broadcast_to(network.rise, classes)[labels].copy()
    if network.rise_withstanding is not None:
        rise[robust] = network.rise_withstanding
    own, following = np.eye(classes)[labels], np.eye(classes)[(labels + 1) % classes]
    parts = {
        "natural": (own, network.mass + 0 * rise),
        "adversarial": (
            (1 - network.moved) * own + network.moved * following,
            network.mass + rise,
        ),
    }
    relevance = np.column_stack([np.zeros((n, classes)), np.ones(n), -np.ones(n)])
    arrays: dict[str, np.ndarray] = {}
    for data, (of_classes, mass) in parts.items():
        mass = mass + _draw_centred(rng, network.noise, labels)
        a = np.column_stack([of_classes, 1 - np.abs(mass), mass])
        for c in range(classes):
            a[:, c] += _draw_centred(rng, network.noise, labels)
        for layer in network.layers:
            arrays[f"activations/M/{data}/{layer}"] = a
            arrays[f"relevance/M/{layer}"] = relevance
    wrong = (labels + 1) % classes
    arrays["answers/M/natural"] = np.where(natural, labels, wrong)
    arrays["answers/M/adversarial"] = np.where(robust, labels, wrong)
    arrays["correct/M/natural"] = natural
    return arrays | {f"correct/M/{attack}": robust for attack in network.attacks}


def _draw_centred(rng: np.random.Generator, noise: float, labels: np.ndarray) -> np.ndarray:
    """Draw noise whose mean over each class is 0, so that effects are just what was planted."""
    drawn = rng.normal(0, noise, len(labels))
    for k in np.unique(labels):
        drawn[labels == k] -= drawn[labels == k].mean()
    return drawn


def judge(claim: str, *networks: Network, **options: Any) -> Verdict:
    """Return the only verdict on a claim."""
    return get_verdict(claim, study_of(*networks, **options))


def get_verdict(claim: str, study: KeptStudy) -> Verdict:
    (verdict,) = [verdict for verdict in judge_claims(study) if verdict.claim == claim]
    return verdict


# ---------------------------------------------------------------- what is planted is found


def compute_cosine(moved: float) -> float:
    """Return the centred cosine of e_k and (1 - m) e_k + m e_j, the centre being 1 / K."""
    own, other = np.eye(CLASSES)[:2]
    natural = own - 1 / CLASSES
    adversarial = (1 - moved) * own + moved * other - 1 / CLASSES
    lengths = np.linalg.norm(natural) * np.linalg.norm(adversarial)
    return float(natural @ adversarial / lengths)


@pytest.mark.parametrize(
    ("moved", "of_standard", "outcome"),
    [
        (0.1, 0.5, "supported"),
        (0.5, 0.1, "not supported"),
        (0.30, 0.34, "inconclusive"),
        (0.3, 0.3, "inconclusive"),
    ],
    ids=["aligned", "opposed", "small", "equal"],
)
def test_c1_compares_centred_alignment(moved: float, of_standard: float, outcome: str) -> None:
    verdict = judge("C1", standard(moved=of_standard), trained(moved=moved))
    assert verdict.verdict == outcome
    assert (verdict.models, verdict.layer) == ("at - std", "layer4")
    planted = compute_cosine(moved) - compute_cosine(of_standard)
    assert verdict.estimate == pytest.approx(planted, abs=0.01)
    assert f"In at the attack moves a class's activations by {100 * moved:.0f} %" in (
        verdict.statement
    )


@pytest.mark.parametrize(
    ("rise", "outcome"),
    [(0.06, "supported"), (-0.06, "not supported"), (0.01, "inconclusive"), (0, "inconclusive")],
)
def test_c2_measures_the_rise_of_the_weighted_nr_mass(rise: float, outcome: str) -> None:
    verdict = judge("C2", standard(rise=0.1), trained(rise=rise))
    assert verdict.verdict == outcome
    assert verdict.models == "at"
    assert verdict.estimate == pytest.approx(rise, abs=1e-4)
    assert "of std: +10.0 points" in verdict.statement


def test_c2_has_to_hold_on_images_that_withstand_the_attack() -> None:
    opposed = judge("C2", standard(rise=0.2), trained(rise=0.3, rise_withstanding=-0.1))
    assert opposed.verdict == "inconclusive"
    assert (opposed.p, opposed.estimate > 0.05) == (1.0, True)
    untouched = judge("C2", standard(rise=0.2), trained(rise=0.3, rise_withstanding=0.0))
    assert untouched.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("sign", "withstanding", "outcome"),
    [
        (1, 0.015, "inconclusive"),
        (1, 0.025, "supported"),
        (-1, 0.015, "inconclusive"),
        (-1, 0.025, "not supported"),
    ],
)
def test_c2_asks_the_least_effect_of_images_that_withstand_too(
    sign: int, withstanding: float, outcome: str
) -> None:
    """Of the two rises the smaller decides, and is the estimate."""
    network = trained(rise=sign * 0.3, rise_withstanding=sign * withstanding, noise=1e-3)
    verdict = judge("C2", standard(rise=0.2), network, count=100)
    assert verdict.verdict == outcome
    assert verdict.p < 0.05
    assert verdict.estimate == pytest.approx(sign * withstanding, abs=1e-3)
    assert verdict.low <= verdict.estimate <= verdict.high


def test_c2_takes_the_rise_on_all_images_where_it_is_the_smaller() -> None:
    verdict = judge("C2", standard(rise=0.2), trained(rise=0.03, rise_withstanding=0.3, robust=0.1))
    assert verdict.estimate == pytest.approx(0.1 * 0.3 + 0.9 * 0.03, abs=1e-3)


@pytest.mark.parametrize("rise", [0.0, -0.2])
def test_c2_is_not_judged_where_the_attack_does_not_raise_the_standard_networks_mass(
    rise: float,
) -> None:
    """Adversarial training leaves only what is there without it."""
    for trained_rise in (0.1, -0.1):
        verdict = judge("C2", standard(rise=rise), trained(rise=trained_rise))
        assert verdict.verdict == "not judged"
        assert "does not clearly raise the share in std" in verdict.statement


ORDERED = np.linspace(0.2, 0.8, CLASSES)


@pytest.mark.parametrize(
    ("sign", "outcome"), [(-1, "supported"), (1, "not supported")], ids=["aligned", "opposed"]
)
def test_c3_correlates_alignment_and_robustness_across_classes(sign: int, outcome: str) -> None:
    """The lower a class's NR mass under the attack, the more aligned it is."""
    network = trained(robust=ORDERED, rise=tuple(sign * 0.2 * ORDERED), mass=0.5)
    verdict = judge("C3", standard(), network, count=40)
    assert verdict.verdict == outcome
    assert abs(verdict.estimate) > 0.9
    assert (verdict.n, verdict.layer) == (CLASSES, "layer4")


def test_c3_of_alignment_that_has_nothing_to_do_with_robustness_is_open() -> None:
    shuffled = 0.2 * ORDERED[[3, 8, 1, 6, 9, 0, 4, 7, 2, 5]]
    verdict = judge("C3", standard(), trained(robust=ORDERED, rise=tuple(shuffled)), count=40)
    assert verdict.verdict == "inconclusive"
    assert abs(verdict.estimate) < 0.5


def test_c3_is_given_natural_accuracy() -> None:
    """Classes that are robust because they are easy, and aligned because they are easy."""
    network = trained(natural=ORDERED, robust=ORDERED, rise=tuple(-0.2 * ORDERED), mass=0.5)
    verdict = judge("C3", standard(), network, count=40)
    assert verdict.verdict == "not judged"
    assert "do not differ" in verdict.statement


@pytest.mark.parametrize("classes", [FEWEST_CLASSES - 1, FEWEST_CLASSES])
def test_c3_is_not_judged_on_few_classes(classes: int) -> None:
    robust = np.linspace(0.2, 0.8, classes)
    network = trained(robust=robust, rise=tuple(-0.2 * robust), mass=0.5)
    verdict = judge("C3", standard(), network, classes=classes, count=40)
    assert verdict.n == classes
    assert verdict.verdict == ("not judged" if classes < FEWEST_CLASSES else "supported")
    if classes < FEWEST_CLASSES:
        assert f"It takes {FEWEST_CLASSES} classes" in verdict.statement
        assert math.isnan(verdict.p)


def test_c3_leaves_out_classes_without_images_in_both_halves() -> None:
    network = trained(robust=ORDERED, rise=tuple(-0.2 * ORDERED), mass=0.5)
    study = study_of(standard(), network, count=40)
    labels = study.labels
    rows = np.flatnonzero((labels != 4) | (np.arange(len(labels)) == np.argmax(labels == 4)))
    study.arrays = {name: array[rows] for name, array in study.arrays.items()}
    verdict = get_verdict("C3", study)
    assert verdict.n == CLASSES - 1
    assert verdict.verdict == "supported"


@pytest.mark.parametrize(
    ("robust", "outcome"),
    [(0.6, "supported"), (0.4, "not supported"), (0.5, "inconclusive")],
)
def test_c4_compares_worst_cases_image_by_image(robust: float, outcome: str) -> None:
    verdict = judge("C4", trained(), gated(robust=robust))
    assert verdict.verdict == outcome
    assert (verdict.models, verdict.layer) == ("cifs - at", "")
    assert verdict.estimate == pytest.approx(robust - 0.5)
    points = f"{100 * (robust - 0.5):+.1f} points (95 % CI "
    start = "Worst-case robust accuracy, cifs minus at: "
    assert verdict.statement.startswith(start + points)


def test_c4_takes_no_few_images_word() -> None:
    """Three of 200 images differ, all to one side: chance alone does it in a quarter of cases."""
    study = study_of(trained(), gated())
    robust = study.arrays["correct/1/pgd-20"].copy()
    robust[np.flatnonzero(~robust & study.arrays["correct/1/natural"])[:3]] = True
    study.arrays = {**study.arrays, "correct/1/pgd-20": robust}
    verdict = get_verdict("C4", study)
    assert verdict.estimate == pytest.approx(3 / 200)
    assert verdict.low <= 0 <= verdict.high
    assert verdict.verdict == "inconclusive"


def test_c4_names_the_strongest_attacks_and_says_what_was_not_done() -> None:
    shared = "pgd-20", "apgd-ce"
    both = trained(attacks=(*shared, RESTARTS)), gated(attacks=(*shared, JOINT))
    study = study_of(*both)
    study.arrays = {**study.arrays, f"correct/1/{JOINT}": np.zeros(CLASSES * COUNT, dtype=bool)}
    complete = get_verdict("C4", study).statement
    assert f"The strongest attacks: {JOINT} on cifs, pgd-20 on at." in complete
    assert (
        "Attacks made for gates ran on cifs alone; at had as many restarts of PGD (pgd-20x7)."
        in complete
    )
    for words in ("No attack made for gates", "was not checked", "is not on record"):
        assert words not in complete
    plain = judge("C4", trained(), gated(outcome=Outcome(), compute=None)).statement
    assert "No attack made for gates was run." in plain
    assert "Gradient masking was not checked" in plain
    assert "Whether they were trained with equal compute is not on record." in plain


@pytest.mark.parametrize(
    ("mass", "outcome"),
    [(0.2, "supported"), (0.4, "not supported"), (0.29, "inconclusive"), (0.3, "inconclusive")],
)
def test_c5_compares_the_nr_mass_under_attack(mass: float, outcome: str) -> None:
    verdict = judge("C5", trained(mass=0.3), gated(mass=mass))
    assert verdict.verdict == outcome
    assert (verdict.models, verdict.layer) == ("cifs - at", "layer4")
    assert verdict.estimate == pytest.approx(0.3 - mass, abs=1e-6)
    if mass != 0.3:  # else the sign of 0 is rounding's
        assert f"cifs minus at: {2 * (0.3 - mass):+.3f}" in verdict.statement


def test_c5_is_decided_by_the_nr_mass_and_reports_the_signed_mass() -> None:
    """An NR channel whose activation is negative speaks for the class: more mass, more aligned."""
    verdict = judge("C5", trained(mass=0.3), gated(mass=-0.5))
    assert verdict.verdict == "not supported"
    assert verdict.estimate == pytest.approx(-0.2, abs=1e-6)
    assert "(signed mass), cifs minus at: +0.600" in verdict.statement


def test_where_no_activation_is_negative_the_signed_mass_follows_from_the_nr_mass() -> None:
    study = study_of(trained(mass=0.3, rise=0.1, noise=0.02))
    study.arrays = {
        name: np.abs(array) if name.startswith("activations") else array
        for name, array in study.arrays.items()
    }
    measures = measure_study(study, "at", "layer4")
    np.testing.assert_allclose(
        measures["signed_mass_adversarial"], 1 - 2 * measures["nr_mass_adversarial"], atol=1e-12
    )


# ---------------------------------------------------------------- least effects, level, correction


@pytest.mark.parametrize(
    ("claim", "networks"),
    [
        ("C1", (standard(moved=0.34), trained(moved=0.30))),
        ("C2", (standard(rise=0.2), trained(rise=0.015, noise=1e-3))),
        ("C4", (trained(), gated(robust=0.51))),
        ("C5", (trained(mass=0.3, noise=1e-3), gated(mass=0.285, noise=1e-3))),
    ],
    ids=["C1", "C2", "C4", "C5"],
)
def test_significant_but_small_effects_are_inconclusive(
    claim: str, networks: tuple[Network, ...]
) -> None:
    verdict = judge(claim, *networks, count=100)
    assert verdict.p < 0.05
    assert 0 < verdict.estimate < verdict.least == LEAST[claim]
    assert verdict.verdict == "inconclusive"
    assert "an estimate of at least " in verdict.change


def test_the_level_decides_which_p_is_enough() -> None:
    networks = trained(), gated(method="fsr", robust=0.55)
    p = judge("FSR", *networks, count=10).p
    assert 0 < p < 0.2
    for level, outcome in ((1 - 1.1 * p, "supported"), (1 - 0.9 * p, "inconclusive")):
        verdict = judge("FSR", *networks, count=10, level=level)
        assert verdict.verdict == outcome
        assert f"{100 * level:g} % CI" in verdict.statement


@pytest.mark.parametrize("others", [0, 1, 2])
def test_all_verdicts_of_a_run_are_corrected_together(others: int) -> None:
    """Of m equal p each becomes m p."""
    study = study_of(trained(), *(gated(label=f"fsr-{i}", method="fsr") for i in range(1 + others)))
    base = study.arrays["correct/0/pgd-20"]
    turned = np.flatnonzero(~base & study.arrays["correct/0/natural"])[:7]
    better = base.copy()
    better[turned] = True
    for index in range(1, 2 + others):
        study.arrays = {**study.arrays, f"correct/{index}/pgd-20": better}
    verdicts = [verdict for verdict in judge_claims(study) if verdict.claim == "FSR"]
    p = float(mcnemar(better, base))
    assert [verdict.p for verdict in verdicts] == pytest.approx([(1 + others) * p] * (1 + others))
    outcome = "supported" if (1 + others) * p < 0.05 else "inconclusive"
    assert {verdict.verdict for verdict in verdicts} == {outcome}
    corrected = f"corrected for {1 + others} verdicts"
    assert all((corrected in verdict.statement) == (others > 0) for verdict in verdicts)


def test_what_is_not_judged_is_no_test() -> None:
    """The p of C4 is the same whether or not C1 to C3, which cannot be judged, stand beside it."""
    networks = trained(), gated(robust=0.55)
    alone = judge("C4", *networks)
    beside = judge("C4", standard(natural=0.1), *networks)
    assert beside.p == alone.p


# ---------------------------------------------------------------- what is not judged


UNTRUSTED = Finding("zero-gradient", "The gradient in the image is zero.", {})


@pytest.mark.parametrize(
    ("network", "claims"),
    [("std", {"C1", "C2", "C3"}), ("at", {"C1", "C2", "C3", "C4", "C5"}), ("cifs", {"C4", "C5"})],
)
@pytest.mark.parametrize("fault", ["near chance", "zero gradients", "unreached"])
def test_claims_on_a_network_with_a_fault_are_not_judged(
    network: str, claims: set[str], fault: str
) -> None:
    changes: dict[str, Any] = {}
    faulty: dict[str, tuple[Finding, ...]] = {}
    if fault == "near chance":
        changes, words = {"natural": 0.15, "robust": 0.1}, "not clearly above chance"
    elif fault == "zero gradients":
        faulty, words = {network: (UNTRUSTED,)}, UNTRUSTED.sentence
    else:
        changes, words = {"moved": 0.0, "noise": 0.0, "rise": 0.0}, "exactly as they are on 100%"
    networks = [
        make(**defaults | (changes if label == network else {}))
        for label, make, defaults in (
            ("std", standard, {"rise": 0.2}),
            ("at", trained, {"robust": ORDERED, "rise": tuple(0.1 * ORDERED)}),
            ("cifs", gated, {}),
        )
    ]
    study = study_of(*networks, faulty=faulty)
    assert find_faults(study, network)
    verdicts = list(judge_claims(study))
    assert {verdict.claim for verdict in verdicts} == set(CLAIMS)
    for verdict in verdicts:
        assert (verdict.verdict == "not judged") == (verdict.claim in claims)
        assert (f"Not judged: {network}: " in verdict.statement) == (verdict.claim in claims)
        assert (words in verdict.statement) == (verdict.claim in claims)
        assert math.isnan(verdict.p) == (verdict.claim in claims)


@pytest.mark.parametrize("robust", [0.0, 0.02])
def test_training_that_has_not_made_robust_is_not_judged(robust: float) -> None:
    networks = standard(rise=0.2), trained(robust=robust, rise=0.1)
    for claim in ("C1", "C2", "C3"):
        verdict = judge(claim, *networks, count=50, classes=CLASSES)
        if robust == 0.0:
            assert verdict.verdict == "not judged"
            assert "at is not clearly more robust than std (worst case 0.0 % and 0.0 %)" in (
                verdict.statement
            )
        else:  # ten of 500 images, and none of the standard network's
            assert "not clearly more robust" not in verdict.statement


def test_labels_of_networks_that_are_exchanged_are_not_judged() -> None:
    networks = standard(robust=0.5, moved=0.1), trained(robust=0.0, moved=0.5, rise=0.1)
    for claim in ("C1", "C2", "C3"):
        assert judge(claim, *networks).verdict == "not judged"


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"epochs": 10, "eps": 0.1}, {"epochs": 10, "eps": 0.0}, "(eps)"),
        ({"epochs": 10}, {"epochs": 20, "eps": 0.0}, "(epochs, eps)"),
    ],
)
def test_gates_are_not_judged_at_unequal_compute(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], words: str
) -> None:
    networks = trained(compute=ours), gated(compute=theirs, robust=0.8, mass=0.1)
    for claim in ("C4", "C5"):
        verdict = judge(claim, *networks)
        assert verdict.verdict == "not judged"
        assert f"Not judged: Their training differs beside the gates {words}." in verdict.statement


@pytest.mark.parametrize(("ours", "theirs"), [(EQUAL, None), (None, EQUAL), (None, None)])
def test_compute_that_is_not_on_record_is_said(ours: Any, theirs: Any) -> None:
    verdict = judge("C4", trained(compute=ours), gated(compute=theirs, robust=0.8))
    assert verdict.verdict == "supported"
    assert "is not on record" in verdict.statement


@pytest.mark.parametrize(
    ("ours", "theirs", "missing"),
    [
        (("pgd-20", "apgd-ce"), ("pgd-20",), "apgd-ce"),
        (("pgd-20",), ("square", "apgd-ce", "pgd-20"), "apgd-ce, square"),
        (("pgd-20", JOINT), ("pgd-20", RESTARTS), ""),
        (("pgd-20", "pgd-20:from-std"), ("pgd-20", RESTARTS), ""),
        (("pgd-20", JOINT, RESTARTS), ("pgd-20", JOINT, RESTARTS), ""),
        (("pgd-20", JOINT), ("pgd-20", "apgd-ce", RESTARTS), "apgd-ce"),
        (("pgd-20",), ("pgd-20", RESTARTS), RESTARTS),
    ],
    ids=[
        "gates' extra",
        "base's extra",
        "made for gates",
        "from another",
        "named for both",
        "restarts and more",
        "restarts for nothing",
    ],
)
def test_c4_wants_the_same_attacks_on_both(
    ours: Sequence[str], theirs: Sequence[str], missing: str
) -> None:
    networks = trained(attacks=theirs), gated(attacks=ours, robust=0.8, mass=0.1)
    verdict = judge("C4", *networks)
    assert verdict.verdict == ("not judged" if missing else "supported")
    assert (f"Only one of them was given {missing}." in verdict.statement) == bool(missing)
    assert judge("C5", *networks).verdict == "supported"  # it is of one attack, on both


@pytest.mark.parametrize("extra", [JOINT, "pgd-20:from-std"])
def test_c4_wants_as_many_attempts_on_the_base(extra: str) -> None:
    more = gated(attacks=("pgd-20", extra), robust=0.3, mass=0.1)
    sentence = f"cifs was attacked more often than at, which had no restarts in place of {extra}."
    verdict = judge("C4", trained(), more)
    assert verdict.verdict == "not judged"
    assert sentence in verdict.statement
    # What a check called for is no match for attacks made for gates.
    outcome = Outcome(checked=True, fallbacks=(RESTARTS,))
    called = trained(attacks=("pgd-20", RESTARTS), outcome=outcome)
    assert judge("C4", called, more).verdict == "not judged"


@pytest.mark.parametrize("masked", ["cifs", "at"])
def test_c4_trusts_no_network_with_signs_of_gradient_masking(masked: str) -> None:
    findings = tuple(Finding(check, "", {}) for check in ("black-box", "zero-gradient"))
    outcome = Outcome(checked=True, findings=findings)
    networks = [
        make(robust=robust, **({"outcome": outcome} if label == masked else {}))
        for label, make, robust in (("at", trained, 0.5), ("cifs", gated, 0.8))
    ]
    verdict = judge("C4", *networks)
    assert verdict.verdict == "not judged"
    words = f"{masked} shows signs of gradient masking (black-box, zero-gradient)"
    assert verdict.statement.count("signs") == 1
    assert words in verdict.statement


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C5"])
def test_nothing_is_judged_of_a_network_with_signs_of_gradient_masking(claim: str) -> None:
    outcome = Outcome(checked=True, findings=(Finding("black-box", "", {}),))
    verdict = judge(claim, standard(), trained(outcome=outcome), gated())
    assert verdict.verdict == "not judged"
    assert "gradient masking (black-box)" in verdict.statement


# ---------------------------------------------------------------- which networks


@pytest.mark.parametrize(
    ("networks", "missing"),
    [
        ((), set(CLAIMS)),
        ((standard(),), set(CLAIMS)),
        ((trained(),), set(CLAIMS)),
        ((gated(),), set(CLAIMS)),
        ((standard(), gated()), set(CLAIMS)),
        ((standard(), trained()), {"C4", "C5"}),
        ((trained(), gated()), {"C1", "C2", "C3"}),
        ((trained(), gated(label="cas", method="cas")), set(CLAIMS)),
        ((Network(label="mine", method=None), trained()), set(CLAIMS)),
        ((standard(), trained(), gated()), set()),
    ],
    ids=lambda value: "+".join(each.label for each in value) if isinstance(value, tuple) else "",
)
def test_claims_without_their_networks_say_what_they_need(
    networks: tuple[Network, ...], missing: set[str]
) -> None:
    verdicts = list(judge_claims(study_of(*networks)))
    assert set(CLAIMS) <= {verdict.claim for verdict in verdicts}
    for verdict in verdicts:
        assert (verdict.models == "") == (verdict.claim in missing)
        if verdict.claim in missing:
            assert verdict.verdict == "not judged"
            assert verdict.statement.startswith("The claim needs a")
            assert math.isnan(verdict.estimate)
            unknown = any(network.method is None for network in networks)
            assert ("--methods" in verdict.statement) == unknown


def test_where_methods_are_unknown_the_option_that_names_them_is_said() -> None:
    study = study_of(Network(label="mine", method=None), Network(label="other", method=None))
    said = {verdict.claim: verdict.statement for verdict in judge_claims(study)}
    assert said.keys() == set(CLAIMS)
    for claim, statement in said.items():
        pair = ("at", "cifs") if claim in ("C4", "C5") else ("standard", "at")
        pairs = statement.partition("--methods ")[2].rstrip(".").split()
        named = dict(
            zip(("mine", "other"), (pair.partition("=")[2] for pair in pairs), strict=True)
        )
        assert tuple(named.values()) == pair
        changed = study_of(*(Network(label=label, method=name) for label, name in named.items()))
        judged = [one for one in judge_claims(changed) if one.claim == claim]
        assert not any("--methods" in verdict.statement for verdict in judged)


GATES = {
    "cifs": ("at", "C4"),
    "trades-cifs": ("trades", "C4"),
    "fat-cifs": ("fat", "C4"),
    "wat-cifs": ("wat", "C4"),
    "cas": ("at", "CAS"),
    "trades-cas": ("trades", "CAS"),
    "fsr": ("at", "FSR"),
    "eas": ("at", "EAS"),
    "kap": ("standard", "KAP"),
}


@pytest.mark.parametrize("method", GATES)
def test_gates_are_compared_with_the_method_that_they_were_added_to(method: str) -> None:
    base, claim = GATES[method]
    assert get_base(method) == base
    names = ("at", "trades", "fat", "wat")
    networks = [Network(label=f"a-{name}", method=name, robust=0.4) for name in names]
    networks.append(standard(label="a-standard", robust=0.4))
    verdicts = list(judge_claims(study_of(*networks, gated(label="gated", method=method))))
    (verdict,) = [verdict for verdict in verdicts if verdict.claim == claim]
    assert verdict.models == f"gated - a-{base}"
    assert verdict.verdict == "supported"
    # The mechanism is CIFS's claim alone.
    pairs = {verdict.models for verdict in verdicts if verdict.claim == "C5"}
    assert pairs == ({verdict.models} if claim == "C4" else {""})


def test_of_several_bases_the_one_of_equal_compute_is_chosen() -> None:
    bases = [trained(label=f"at-{e}", compute={"epochs": e}) for e in (5, 10, 20)]
    assert judge("C4", *bases, gated()).models == "cifs - at-10"
    unequal = judge("C4", *bases, gated(compute={"epochs": 40}))
    assert (unequal.models, unequal.verdict) == ("cifs - at-5", "not judged")


def test_there_is_one_verdict_a_pair_at_the_primary_layer() -> None:
    layers = ("layer3", "layer4")
    networks = [make(layers=layers) for make in (standard, trained, gated)]
    networks.append(trained(label="at2", layers=layers))
    study = study_of(*networks)
    expected = [
        *[("C1", f"{name} - std", "layer4") for name in ("at", "at2")],
        *[(claim, name, "layer4") for claim in ("C2", "C3") for name in ("at", "at2")],
        ("C4", "cifs - at", ""),
        ("C5", "cifs - at", "layer4"),
    ]
    verdicts = list(judge_claims(study))
    assert [(each.claim, each.models, each.layer) for each in verdicts] == expected
    for penultimate, primary in (((), "layer4"), (("layer3",), "layer3")):  # else the deepest
        known = {"penultimate": penultimate}
        study = study_of(*(make(layers=layers, known=known) for make in (standard, trained)))
        assert get_verdict("C1", study).layer == primary


# ---------------------------------------------------------------- seeds


def with_seeds(make: Any, label: str, values: Sequence[float], name: str) -> list[Network]:
    """Return networks whose recipes differ in the seed alone."""
    return [
        make(label=f"{label}-{seed}", settings={"lr": 0.1, "seed": seed}, **{name: value})
        for seed, value in enumerate(values)
    ]


def test_networks_whose_recipes_differ_in_the_seed_alone_are_one_method() -> None:
    networks = with_seeds(trained, "at", (0.4, 0.5, 0.6), "robust")
    other = trained(label="at-other", settings={"lr": 0.2, "seed": 0})
    unrecorded = trained(label="at-file")
    methods = list_methods(study_of(standard(), *networks, other, unrecorded))
    assert [method.models for method in methods] == [
        ("std",),
        ("at-0", "at-1", "at-2"),
        ("at-other",),
        ("at-file",),
    ]
    assert methods[1].label == "at (at-0, ...)"  # as there are others called at
    assert list_methods(study_of(standard(), *networks))[1].label == "at"


def test_users_can_say_which_networks_are_one_method() -> None:
    networks = [trained(label=f"mine-{i}") for i in range(2)]
    (method,) = list_methods(study_of(*networks, method_groups={"AT": ["mine-0", "mine-1"]}))
    assert (method.label, method.name, method.models) == ("AT", "at", ("mine-0", "mine-1"))


def test_copies_of_a_network_count_once() -> None:
    networks = with_seeds(trained, "at", (0.4, 0.5), "robust")
    copied = trained(label="again", settings=networks[0].settings, copy_of="at-0")
    (method,) = list_methods(study_of(*networks, copied))
    assert method.models == ("at-0", "at-1")


def test_networks_of_one_seed_count_once() -> None:
    """As the best and the last epoch of one run."""
    networks = with_seeds(trained, "at", (0.4, 0.5), "robust")
    later = trained(label="last", settings=networks[0].settings)
    (method,) = list_methods(study_of(*networks, later))
    assert method.models == ("at-0", "at-1")


def test_seeds_are_the_unit_where_there_are_several() -> None:
    """A gain of 10 points that seeds do not share is open; one that they share is found."""
    base = with_seeds(trained, "at", (0.3, 0.5, 0.7), "robust")
    scattered = with_seeds(gated, "cifs", (0.4, 0.6, 0.8), "robust")
    verdict = judge("C4", *base, *scattered)
    assert (verdict.models, verdict.seeds, verdict.n) == ("cifs - at", 3, CLASSES * COUNT)
    assert verdict.estimate == pytest.approx(0.1)
    assert verdict.verdict == "inconclusive"
    assert "3 seeds" in verdict.statement
    assert verdict.change.startswith("More seeds")
    pair = judge("C4", base[1], scattered[1])
    assert (pair.verdict, pair.seeds) == ("supported", 1)
    assert pair.low > verdict.low
    base = with_seeds(trained, "at", (0.5, 0.5, 0.55), "robust")
    alike = with_seeds(gated, "cifs", (0.7, 0.7, 0.75), "robust")
    assert judge("C4", *base, *alike).verdict == "supported"


@pytest.mark.parametrize("claim", CLAIMS)
def test_with_one_seed_verdicts_speak_of_these_networks(claim: str) -> None:
    one = judge(claim, standard(), trained(), gated())
    assert one.seeds == 1
    if one.verdict == "not judged":  # as C3 is of classes that are all alike
        return
    assert "one seed: of these networks alone" in one.statement
    several = judge(
        claim,
        *with_seeds(standard, "std", (0.9, 0.9), "natural"),
        *with_seeds(trained, "at", (0.5, 0.6), "robust"),
        *with_seeds(gated, "cifs", (0.5, 0.6), "robust"),
    )
    assert several.seeds == 2
    assert "2 seeds" in several.statement
    assert "alone" not in several.statement


# ---------------------------------------------------------------- what a verdict says


ALL = (
    standard(rise=0.1),
    trained(robust=ORDERED, rise=tuple(0.1 - 0.05 * ORDERED)),
    gated(mass=0.2, robust=0.7),
    gated(label="fsr", method="fsr", robust=0.51),
)


def test_every_verdict_says_all_that_it_rests_on() -> None:
    for verdict in judge_claims(study_of(*ALL)):
        assert verdict.verdict != "not judged"
        assert verdict.low <= verdict.estimate <= verdict.high
        assert verdict.low < verdict.high
        assert 0 <= verdict.p <= 1
        assert verdict.n == (CLASSES if verdict.claim == "C3" else CLASSES * COUNT)
        assert verdict.seeds == 1
        assert verdict.least == LEAST.get(verdict.claim, LEAST["C4"])
        assert verdict.change.endswith(".")
        decided = verdict.verdict in ("supported", "not supported")
        assert decided == verdict.change.startswith("It would be inconclusive")
        unit = "classes" if verdict.claim == "C3" else "images"
        for words in ("p ", f"{verdict.n:g} {unit}", "one seed", "least effect"):
            assert words in verdict.statement[verdict.statement.rindex("(") :]


def test_statements_are_plain_sentences() -> None:
    studies = [
        study_of(),
        study_of(*ALL),
        study_of(standard(natural=0.1), *ALL[1:]),
        study_of(standard(), trained(robust=0.05, rise=0.1)),
        study_of(standard(), trained(rise=-0.1)),  # no logit falls
        study_of(standard(), trained(robust=0.0)),
        study_of(standard(), trained(), gated(), classes=5, count=4),
        study_of(standard(), trained(), gated(), classes=1),
        study_of(standard(), trained(), gated(), count=1),
    ]
    for study in studies:
        for verdict in judge_claims(study):
            assert verdict.statement.endswith((".", ")"))
            assert "nan" not in verdict.statement
            assert "nan" not in verdict.change


def test_verdicts_are_a_table() -> None:
    study = study_of(*ALL)
    tables, _ = make_tables(study, [ANALYSES["claims"]])
    table = tables["verdicts"]
    assert list(table) == VERDICTS.columns
    assert table["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5", "FSR"]
