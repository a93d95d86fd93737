"""Tests of significance, and their correction where there are many: pure functions that give p, in [0, 1].

p is the probability, were there no effect, of one at least as large as that found; NaN where there is nothing to test.
All tests are two-sided.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.special import ndtr, stdtr
from scipy.stats import binomtest, false_discovery_control, rankdata

# Below so many pairs the mean of skewed differences, as those of activations are, is not normal enough to test.
FEWEST_PAIRS = 30
_NO_SPREAD = 1e-9  # of measures, which are of the order of 1: what rounding leaves of replicates that are all alike


def paired_t(
    mean: Float[ndarray, "*n"], variance: Float[ndarray, "*n"], count: Float[ndarray, "*#n"]
) -> Float[ndarray, "*n"]:
    """Test paired differences for a mean other than 0: Student's paired t-test, from the differences' statistics.

        t = mean / sqrt(variance / n),    p = 2 P(T_{n-1} >= |t|)

    The differences are not normal, so p holds by the central limit theorem alone: it is NaN for fewer than 30, and very
    small ones are small rather than exact. Differences that are all 0 have p = 1.

    Args:
        mean, variance: of the differences, the variance with n - 1 in the denominator.
        count: n.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(mean) / np.sqrt(variance / count)
    p = np.where(mean == 0, 1.0, 2 * stdtr(count - 1, -t))
    return np.where((count < FEWEST_PAIRS) | np.isnan(mean), np.nan, p)


def bootstrap_p(replicates: Float[ndarray, " r"]) -> float:
    """Test a quantity against 0 by its bootstrap: p = 2 P(Z >= |value| / s), Z standard normal.

    s, its standard error, is the standard deviation of its replicates (Efron & Tibshirani, 1993, section 12.4). Where
    they do not vary p is 1 for the value 0, else NaN.

    Args:
        replicates: the quantity (replicate 0), and its replicates, of which NaNs are left out.
    """
    value, others = replicates[0], replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(value) or len(others) < 2:
        return float("nan")
    error = float(others.std(ddof=1))
    if error < _NO_SPREAD:
        return 1.0 if abs(value) < _NO_SPREAD else float("nan")
    return float(2 * ndtr(-abs(value) / error))


def mcnemar(one: Bool[ndarray, " n"], other: Bool[ndarray, " n"]) -> float:
    """Test two classifiers for equal accuracy on the same images: McNemar's exact test (Psychometrika, 1947).

    Of the images that just one of them gets right, each has it by chance with probability 1/2:
    p = min(1, 2 P(B <= min(b, c))), B binomial of b + c trials; 1 where there are none, NaN without images.

    Args:
        one, other: the images that each gets right.
    """
    if not len(one):
        return float("nan")
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def mantel(
    a: Float[ndarray, "k k"], b: Float[ndarray, "k k"], *, permutations: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Correlate two matrices over pairs of classes, and test it: Spearman's rho and p (Mantel, Cancer Research, 1967).

    rho is taken over the entries off the diagonal. They are not independent, as each class has part in many, so p
    counts how often classes in random order (the same for rows and columns of b) give at least that much:
    (1 + #{|rho_permuted| >= |rho|}) / (1 + permutations).

    NaN for fewer than three classes, and for matrices with NaN or that are constant off the diagonal.
    """
    n = len(a)
    off = ~np.eye(n, dtype=bool)
    if (
        n < 3
        or np.isnan(a[off]).any()
        or np.isnan(b[off]).any()
        or not (np.ptp(a[off]) and np.ptp(b[off]))
    ):
        return float("nan"), float("nan")
    ranks = np.zeros((2, n, n))
    for rank, matrix in zip(ranks, (a, b), strict=True):
        rank[off] = rankdata(matrix[off])
        rank[off] -= rank[off].mean()
        rank[off] /= np.linalg.norm(rank[off])
    rho = float((ranks[0] * ranks[1]).sum())
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(n) for _ in range(permutations))
    as_large = sum(
        abs((ranks[0] * ranks[1][np.ix_(order, order)]).sum()) >= abs(rho) - 1e-12
        for order in orders
    )
    return rho, (1 + as_large) / (1 + permutations)


def correct_fdr(p: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """Correct many tests: q, the least false discovery rate at which each is a discovery (Benjamini & Hochberg, 1995).

    Of the discoveries {q <= 0.05} at most 5 % are expected to be false, for tests that are independent or positively
    dependent. NaN stays NaN and is no test.
    """
    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known], axis=None)
    return q
