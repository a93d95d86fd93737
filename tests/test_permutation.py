"""Correlation across classes: against a naive one, its level and its power."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, spearmanr

import reference
from channelscope.statistics.permutation import UNKNOWN, Correlation, correlate_given

seeds = st.integers(0, 2**32)
CASES = 300
Pairs = list[tuple[np.ndarray, np.ndarray]]


def draw(
    rng: np.random.Generator, classes: int, *, relation: float = 0.0, halves: int = 2
) -> tuple[Pairs, list[np.ndarray]]:
    """Draw alignment and robust accuracy of classes, both of which natural accuracy shifts.

    Beside that they have ``relation`` in common. Halves of the images are alike up to noise.
    """
    natural, own = rng.normal(size=(2, classes))
    aligned = natural + own
    robust = 2 * natural + relation * own + rng.normal(size=classes)
    pairs, controls = [], []
    for _ in range(halves):
        noise = 0.1 * rng.normal(size=(3, classes))
        pairs.append((aligned + noise[0], robust + noise[1]))
        controls.append(natural + noise[2])
    return pairs, controls


def as_lists(pairs: Pairs, controls: list[np.ndarray]) -> tuple[list, list]:
    return [(x.tolist(), y.tolist()) for x, y in pairs], [values.tolist() for values in controls]


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("classes", [5, 6])
@pytest.mark.parametrize("ties", [False, True])
@settings(max_examples=4)
@given(seed=seeds, halves=st.integers(1, 2))
def test_correlation_is_the_naive_one(
    ties: bool, classes: int, level: float, seed: int, halves: int
) -> None:
    """And its p, of permutations drawn, is near that of all there are."""
    pairs, controls = draw(np.random.default_rng(seed), classes, relation=1.0, halves=halves)
    if ties:
        pairs = [(np.round(x), np.round(y)) for x, y in pairs]
    correlation = correlate_given(pairs, controls, level=level)
    assume(not math.isnan(correlation.value))  # ranks that are those of what is given
    *expected, p = reference.correlation_given(*as_lists(pairs, controls), level)
    assert correlation[:3] == pytest.approx(expected, abs=1e-9)
    assert abs(correlation.p - p) < 5 * math.sqrt(p * (1 - p) / 9999) + 2e-4


def test_where_nothing_varies_that_is_given_it_is_spearmans() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    correlation = correlate_given([(x, y)], [np.ones(12)])
    expected = spearmanr(x, y)
    assert correlation.value == pytest.approx(expected.statistic)
    assert correlation.p == pytest.approx(expected.pvalue, abs=0.03)


# ---------------------------------------------------------------- level and power


def count_rejections(classes: int, relation: float, *, permute: bool) -> int:
    """Count in how many of 300 cases p is at most 5 %."""
    count = 0
    for seed in range(CASES):
        rng = np.random.default_rng((classes, seed))
        pairs, controls = draw(rng, classes, relation=relation)
        if permute:  # the robust accuracies of the classes, in both halves alike
            order = rng.permutation(classes)
            pairs = [(x, y[order]) for x, y in pairs]
        p = correlate_given(pairs, controls, permutations=999, seed=seed).p
        count += p <= 0.05
    return count


@pytest.mark.parametrize("permute", [False, True], ids=["given", "permuted"])
@pytest.mark.parametrize("classes", [10, 20])
def test_the_test_keeps_its_level(classes: int, permute: bool) -> None:
    """Where classes have nothing in common but natural accuracy; where they are exchanged."""
    rejections = count_rejections(classes, 2.0 if permute else 0.0, permute=permute)
    assert rejections <= binom.ppf(0.999, CASES, 0.05)


@pytest.mark.parametrize("classes", [10, 20])
def test_the_test_finds_a_strong_relation(classes: int) -> None:
    assert count_rejections(classes, 4.0, permute=False) >= 0.9 * CASES


def test_what_natural_accuracy_explains_is_no_relation() -> None:
    """Spearman's correlation alone would find one in most cases."""
    alone = 0
    for seed in range(CASES):
        pairs, _ = draw(np.random.default_rng((20, seed)), 20)
        alone += spearmanr(*pairs[0]).pvalue <= 0.05
    assert alone > 0.5 * CASES


# ---------------------------------------------------------------- what must hold


@given(seeds, st.integers(5, 12), st.sampled_from([0.0, 1.0]))
def test_it_is_of_ranks_alone(seed: int, classes: int, relation: float) -> None:
    pairs, controls = draw(np.random.default_rng(seed), classes, relation=relation)
    correlation = correlate_given(pairs, controls, permutations=99)
    assume(not math.isnan(correlation.value))
    stretched = [(np.exp(x), y**3) for x, y in pairs], [5 + 2 * values for values in controls]
    assert correlate_given(*stretched, permutations=99) == correlation
    assert -1 <= correlation.low <= correlation.value <= correlation.high <= 1
    assert 1 / 100 <= correlation.p <= 1


@given(seeds, st.integers(5, 12))
def test_the_opposite_has_the_opposite_sign(seed: int, classes: int) -> None:
    pairs, controls = draw(np.random.default_rng(seed), classes, relation=0.5)
    correlation = correlate_given(pairs, controls, permutations=99)
    assume(not math.isnan(correlation.value))
    turned = correlate_given([(-x, y) for x, y in pairs], controls, permutations=99)
    expected = Correlation(-correlation.value, -correlation.high, -correlation.low, correlation.p)
    assert tuple(turned) == pytest.approx(tuple(expected), abs=1e-9)


@given(seeds)
def test_the_classes_order_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs, controls = draw(rng, 8, relation=1.0)
    order = rng.permutation(8)
    correlation = correlate_given(pairs, controls)
    assume(not math.isnan(correlation.value))
    moved = correlate_given([(x[order], y[order]) for x, y in pairs], [c[order] for c in controls])
    assert moved[:3] == pytest.approx(correlation[:3], abs=1e-9)
    error = math.sqrt(correlation.p * (1 - correlation.p) / 9999)
    assert abs(moved.p - correlation.p) <= 7 * error + 4e-4


def test_a_higher_level_widens_the_interval_and_leaves_p() -> None:
    case = draw(np.random.default_rng(0), 10, relation=1.0)
    narrow, wide = (correlate_given(*case, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.p == narrow.p


def test_the_same_seed_draws_the_same_permutations() -> None:
    case = draw(np.random.default_rng(0), 10, relation=0.7)
    assert correlate_given(*case, seed=3) == correlate_given(*case, seed=3)
    assert correlate_given(*case, seed=3).p != correlate_given(*case, seed=4).p


@pytest.mark.parametrize(
    "case",
    ["few classes", "x is NaN", "y is NaN", "given is NaN", "x is constant", "y is constant"],
)
def test_without_an_answer_all_is_nan(case: str) -> None:
    classes = 4 if case == "few classes" else 9
    pairs, controls = draw(np.random.default_rng(0), classes)
    if case.endswith("NaN"):
        {"x": pairs[0][0], "y": pairs[1][1], "given": controls[1]}[case.split()[0]][3] = math.nan
    elif case.endswith("constant"):
        pairs[1]["xy".index(case[0])][:] = 0.5
    assert correlate_given(pairs, controls) is UNKNOWN


def test_what_is_given_leaves_nothing_of_itself() -> None:
    pairs, controls = draw(np.random.default_rng(0), 9)
    assert correlate_given([(controls[0], pairs[0][1])], controls[:1]) is UNKNOWN
