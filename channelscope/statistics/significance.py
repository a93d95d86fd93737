"""Tests of significance, and their correction where there are many: functions that return p.

p, in [0, 1], is the probability of an effect at least as large as the observed one if there were
none; NaN where there is nothing to test. All tests are two-sided.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.special import bdtr, ndtr, stdtr
from scipy.stats import false_discovery_control, rankdata

# The mean of fewer skewed differences, as those of activations are, is not normal enough to test.
FEWEST_PAIRS = 30
# What rounding leaves of the spread of replicates that are all alike; measures are of order 1.
_NO_SPREAD = 1e-9


def paired_t(
    mean: Float[ndarray, "*n"], variance: Float[ndarray, "*n"], count: Float[ndarray, "*#n"]
) -> Float[ndarray, "*n"]:
    """Test paired differences for a mean other than 0, from their statistics: Student's t-test.

        t = mean / sqrt(variance / n),    p = 2 P(T_{n-1} >= |t|)

    The differences are not normal, so p holds by the central limit theorem alone: it is NaN for
    fewer than 30, and very small ones are small rather than exact. Differences that are all 0 have
    p = 1.

    Args:
        mean, variance: of the differences, the variance with n - 1 in the denominator.
        count: n.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(mean) / np.sqrt(variance / count)
    p = np.where(mean == 0, 1.0, 2 * stdtr(count - 1, -t))
    return np.where((count < FEWEST_PAIRS) | np.isnan(mean), np.nan, p)


def bootstrap_p(replicates: Float[ndarray, "r *k"]) -> Float[ndarray, "*k"]:
    """Test quantities against 0 by their bootstrap: p = 2 P(Z >= |value| / s), Z standard normal.

    s, the standard error, is the standard deviation of the replicates (Efron & Tibshirani, 1993,
    section 12.4). Where they do not vary p is 1 for the value 0, else NaN.

    Args:
        replicates: the quantities (replicate 0), and their replicates, of which NaNs do not count.
    """
    value = replicates[0]
    others = replicates[1:]
    count = (~np.isnan(others)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.nansum((others - np.nansum(others, 0) / count) ** 2, 0)
        error = np.sqrt(squares / (count - 1))
        p = 2 * ndtr(-np.abs(value) / error)
    without_spread = np.where(np.abs(value) < _NO_SPREAD, 1.0, np.nan)
    p = np.where(error < _NO_SPREAD, without_spread, p)
    return np.where(np.isnan(value) | (count < 2), np.nan, p)


def mcnemar(ours: Bool[ndarray, " n"], theirs: Bool[ndarray, " n"]) -> float:
    """Test two classifiers for equal accuracy on the same images: McNemar's exact test, mid-p.

        p = 2 P(B < m) + P(B = m),    m = min(b, c),    B ~ Binomial(b + c, 1/2)

    b and c images are classified correctly by just one of the two, each by chance with probability
    1/2 (Psychometrika, 1947). Only half of the probability of what was observed counts: the exact
    test, which counts it all, rejects far too rarely (Fagerland, Lydersen & Laake, BMC Medical
    Research Methodology 13, 2013). 1 where no image differs, NaN without images.
    """
    if not len(ours):
        return float("nan")
    b = int((ours & ~theirs).sum())
    c = int((theirs & ~ours).sum())
    if b == c:
        return 1.0
    m = min(b, c)
    fewer = bdtr(m - 1, b + c, 0.5) if m else 0.0
    return float(fewer + bdtr(m, b + c, 0.5))


def mantel(
    a: Float[ndarray, "k k"], b: Float[ndarray, "k k"], *, permutations: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Correlate two matrices over pairs of classes: Spearman's rho, and p by Mantel's test (1967).

    rho is taken over the entries off the diagonal. They are not independent, as each class has part
    in many, so p counts how often classes in random order (the same for rows and columns of b) give
    at least that much: (1 + #{|rho_permuted| >= |rho|}) / (1 + permutations). N. Mantel, Cancer
    Research 27, 1967.

    NaN for fewer than three classes, and for matrices with NaN or constant off the diagonal.
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
    """Return q, the least false discovery rate at which each test is a discovery.

    Of the discoveries {q <= 0.05} at most 5 % are expected to be false, for tests that are
    independent or positively dependent (Benjamini & Hochberg, 1995). NaN stays NaN and is no test.
    """
    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known], axis=None)
    return q
