"""Tests of significance: against scipy's and naive ones, and what must hold of every p."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr, ttest_rel

import reference
from channelscope.statistics.significance import (
    FEWEST_PAIRS,
    bootstrap_p,
    correct_fdr,
    mantel,
    mcnemar,
    paired_t,
)

seeds = st.integers(0, 2**32)


def of_pairs(a: np.ndarray, b: np.ndarray) -> float:
    change = b - a
    return float(
        paired_t(
            np.array([change.mean()]), np.array([change.var(ddof=1)]), np.array([float(len(a))])
        )[0]
    )


@given(seeds, st.integers(FEWEST_PAIRS, 80), st.floats(-1, 1))
def test_paired_t_is_students(seed: int, n: int, effect: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(effect, 2, size=n)
    assert of_pairs(a, b) == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-6, abs=1e-12)


def test_few_pairs_are_not_tested() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, FEWEST_PAIRS))
    assert 0 < of_pairs(a, b) < 1
    assert math.isnan(of_pairs(a[1:], b[1:]))


@pytest.mark.parametrize(("change", "p"), [(0.0, 1.0), (0.5, 0.0), (math.nan, math.nan)])
def test_pairs_that_all_change_alike(change: float, p: float) -> None:
    found = paired_t(np.array([change]), np.array([0 * change]), np.array([40.0]))
    assert found[0] == pytest.approx(p, nan_ok=True)


@given(seeds, st.integers(2, 60), st.floats(-3, 3))
def test_bootstrapped_is_a_z_test_on_the_replicates_spread(seed: int, r: int, value: float) -> None:
    others = np.random.default_rng(seed).normal(size=r)
    expected = 2 * norm.sf(abs(value) / np.std(others, ddof=1))
    assert bootstrap_p(np.array([value, *others])) == pytest.approx(expected, abs=1e-12)
    assert bootstrap_p(np.array([value, *others, math.nan])) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("replicates", "p"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.2, 0.2, 0.2 + 1e-16, 0.2], math.nan),
        ([math.nan, 0.1, 0.2, 0.3], math.nan),
        ([0.1, 0.2], math.nan),
        ([0.1], math.nan),
    ],
)
def test_replicates_without_spread(replicates: list[float], p: float) -> None:
    assert bootstrap_p(np.array(replicates)) == pytest.approx(p, nan_ok=True)


def of_discordant(first: int, second: int, alike: int = 5) -> float:
    """Test two classifiers of which each alone is right on so many images."""
    ours = np.repeat([True, False, True], [first, second, alike])
    theirs = np.repeat([False, True, True], [first, second, alike])
    return mcnemar(ours, theirs)


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_binomial_tail_with_half_of_what_was_observed(
    first: int, second: int
) -> None:
    n, m = first + second, min(first, second)
    tail = sum(math.comb(n, k) for k in range(m)) + math.comb(n, m) / 2
    p = of_discordant(first, second)
    assert p == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-12)
    assert p == of_discordant(second, first)
    if n:
        assert p == of_discordant(first, second, 0)


def test_mcnemar_without_a_difference_is_1_and_of_nothing_unknown() -> None:
    assert of_discordant(0, 0) == 1
    assert math.isnan(of_discordant(0, 0, 0))


@pytest.mark.parametrize("n", [5, 20, 60])
def test_mcnemar_rejects_no_more_often_than_it_says(n: int) -> None:
    """Of n images that differ, each to either side by chance; mid-p may exceed 5 % by little."""
    size = sum(math.comb(n, k) / 2**n for k in range(n + 1) if of_discordant(k, n - k) <= 0.05)
    assert size <= 0.0625


@given(seeds, st.integers(3, 4))
def test_mantel_approaches_the_share_of_all_orders(seed: int, k: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, k, k))
    off = ~np.eye(k, dtype=bool)
    of_orders = [
        spearmanr(a[off], b[np.ix_(order, order)][off]).statistic
        for order in permutations(range(k))
    ]
    rho, p = mantel(a, b, permutations=400, seed=seed)
    assert rho == pytest.approx(of_orders[0])
    exact = np.mean(np.abs(of_orders) >= abs(rho) - 1e-12)
    assert abs(p - exact) < 5 * math.sqrt(exact * (1 - exact) / 400) + 0.01


def test_mantel_is_blind_to_the_diagonal_and_repeats_itself() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6, 6))
    found = mantel(a, b, permutations=50)
    np.fill_diagonal(a, 1e6)
    np.fill_diagonal(b, math.nan)
    assert mantel(a, b, permutations=50) == found
    assert mantel(b, a, permutations=50, seed=1)[0] == pytest.approx(found[0])


def test_mantel_finds_a_matrix_in_itself() -> None:
    a = np.random.default_rng(1).normal(size=(8, 8))
    rho, p = mantel(a, 2 * a + 1, permutations=199)
    assert rho == pytest.approx(1)
    assert p == pytest.approx(1 / 200)


@pytest.mark.parametrize("spoilt", ["two classes", "constant", "nan"])
def test_mantel_needs_matrices_that_say_something(spoilt: str) -> None:
    a = np.arange(16.0).reshape(4, 4)
    b = {
        "two classes": a[:2, :2],
        "constant": np.ones((4, 4)),
        "nan": np.where(a == 1, math.nan, a),
    }[spoilt]
    rho, p = mantel(a[: len(b), : len(b)], b)
    assert math.isnan(rho)
    assert math.isnan(p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 3))
def test_q_is_that_of_benjamini_and_hochberg(p: list[float], unknown: int) -> None:
    q = correct_fdr(np.array([math.nan] * unknown + p))
    assert np.isnan(q[:unknown]).all()
    assert q[unknown:] == pytest.approx(reference.false_discovery(p), abs=1e-12)
    assert (q[unknown:] >= np.array(p) - 1e-12).all()


def test_without_tests_nothing_is_corrected() -> None:
    assert np.isnan(correct_fdr(np.full((2, 2), math.nan))).all()
    assert correct_fdr(np.array([])).shape == (0,)
