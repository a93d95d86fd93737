"""Intervals of estimates: Wilson's for shares, Newcombe's for their differences, the bootstrap's.

Those of shares have a width where all images agree too. The bootstrap's, re-centred percentiles,
are for everything else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.special import ndtri

from channelscope.statistics.significance import mcnemar

FEWEST_REPLICATES = 20  # fewer have no quantiles worth the name: there is no interval then
# What rounding leaves of the width of an interval of replicates that are all alike.
_NO_WIDTH = 1e-12
Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-np.inf, np.inf)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, low <= high; NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def estimate(
    replicates: Float[ndarray, " r"], level: float = 0.95, bounds: Bounds = UNBOUNDED
) -> Estimate:
    """Return the estimate (replicate 0) and the bootstrap interval (the others) of a quantity.

    See ``estimate_columns``.
    """
    value, low, high = estimate_columns(replicates[:, None], level, bounds)
    return Estimate(float(value[0]), float(low[0]), float(high[0]))


def estimate_columns(
    replicates: Float[ndarray, "r k"], level: float = 0.95, bounds: Bounds = UNBOUNDED
) -> tuple[Float[ndarray, " k"], Float[ndarray, " k"], Float[ndarray, " k"]]:
    """Return value, low and high of each column: the estimate and its bootstrap interval.

    The interval is the percentile one, moved so that the replicates' mean lies on the estimate:
    resampling adds noise of its own, which pulls correlations down in every replicate. Replicates
    that are NaN (a resample without an image of a class) do not count; of fewer than
    ``FEWEST_REPLICATES`` there is no interval.

    Args:
        replicates: row 0 is the estimate, the others its bootstrap replicates.
        level: coverage of the interval, in (0, 1).
        bounds: the quantity's range, which the interval does not leave.
    """
    value = replicates[0].astype(float)
    others = np.sort(replicates[1:], axis=0)  # NaN last
    count = (~np.isnan(others)).sum(0)
    low, high = (_quantile(others, count, (1 + side * level) / 2) for side in (-1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = value - np.nansum(others, 0) / count
    usable = (count >= FEWEST_REPLICATES) & ~np.isnan(value)
    # Rounding, or a few outlying replicates, can move the interval off the estimate: hold it there.
    low = np.where(usable, np.maximum(np.minimum(low + shift, value), bounds[0]), np.nan)
    high = np.where(usable, np.minimum(np.maximum(high + shift, value), bounds[1]), np.nan)
    return value, low, high


def _quantile(ordered: Float[ndarray, "r k"], count: ndarray, share: float) -> Float[ndarray, " k"]:
    """Return a quantile of the first ``count`` values of each ordered column, interpolated."""
    if not len(ordered):
        return np.full(ordered.shape[1], np.nan)
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    columns = np.arange(ordered.shape[1])
    start, end = ordered[below, columns], ordered[above, columns]
    quantile: ndarray = start + (end - start) * (place - below)
    return quantile


def wilson(count: float, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share from ``count`` of ``n``, with Wilson's score interval (JASA, 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    p = count / n, z the quantile of the normal distribution at (1 + level) / 2. It has a width at
    0 and 1 too. NaN for n = 0. Means of n values in [0, 1], which vary less than zeros and ones of
    the same mean, are covered all the more: ``count`` is then the values' sum.
    """
    if n == 0:
        return UNKNOWN
    p = count / n
    z = float(ndtri((1 + level) / 2))
    middle = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = (middle - reach) / (1 + z * z / n)
    high = (middle + reach) / (1 + z * z / n)
    return Estimate(p, max(0.0, min(low, p)), min(1.0, max(high, p)))


def paired_difference(
    ours: Bool[ndarray, " n"], theirs: Bool[ndarray, " n"], level: float = 0.95
) -> Estimate:
    """Estimate a difference of two accuracies on the same images, ours less theirs.

        low  = value - sqrt(d1^2 - 2 phi d1 e2 + e2^2),    d1 = p1 - l1,  e2 = u2 - p2
        high = value + sqrt(e1^2 - 2 phi e1 d2 + d2^2),    e1 = u1 - p1,  d2 = p2 - l2

    Newcombe's square-and-add interval for paired proportions (Statistics in Medicine 17, 1998,
    2635-2650, method 10): p1 and p2 are the accuracies, l and u the ends of their Wilson intervals,
    phi the correlation of the two over images, corrected for continuity (``_correlate``). It has a
    width where no image differs too. NaN without images.

    Of two to four images Newcombe's interval may lie beyond 0, which is no evidence: chance alone
    puts four images to the same side in one of eight cases. The interval therefore holds 0 unless
    McNemar's test rejects at the same level (``significance.mcnemar``).
    """
    n = len(ours)
    if n == 0:
        return UNKNOWN
    first = wilson(int(ours.sum()), n, level)
    second = wilson(int(theirs.sum()), n, level)
    phi = _correlate(ours, theirs)
    value = (int(ours.sum()) - int(theirs.sum())) / n
    below = _add_squares(first.value - first.low, second.high - second.value, phi)
    above = _add_squares(first.high - first.value, second.value - second.low, phi)
    low = max(-1.0, value - below)
    high = min(1.0, value + above)
    if mcnemar(ours, theirs) > 1 - level:
        return Estimate(value, min(low, 0.0), max(high, 0.0))
    return Estimate(value, low, high)


def _correlate(ours: Bool[ndarray, " n"], theirs: Bool[ndarray, " n"]) -> float:
    """Return the correlation phi of two binary columns, a positive one corrected for continuity.

        phi = c / sqrt((both + ours)(theirs + neither)(both + theirs)(ours + neither))
        x = both neither - ours theirs,    c = max(x - n / 2, 0) for x > 0, else x

    both, neither, ours and theirs are counts of images. 0 where a column is constant.
    """
    both = int((ours & theirs).sum())
    neither = int((~ours & ~theirs).sum())
    only_ours = int((ours & ~theirs).sum())
    only_theirs = len(ours) - both - neither - only_ours
    product = (both + only_ours) * (only_theirs + neither)
    product *= (both + only_theirs) * (only_ours + neither)
    if not product:
        return 0.0
    covariance = both * neither - only_ours * only_theirs
    if covariance > 0:
        return max(covariance - len(ours) / 2, 0.0) / math.sqrt(product)
    return covariance / math.sqrt(product)


def _add_squares(first: float, second: float, phi: float) -> float:
    """Return sqrt(a^2 - 2 phi a b + b^2): how far a difference of correlated values reaches."""
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


def average_intervals(estimates: Sequence[Estimate]) -> Estimate:
    """Estimate the mean of quantities on the same images: the means of values, lows and highs.

    The standard deviation of a mean is at most the mean of the standard deviations, with equality
    where the quantities rise and fall together: the interval is wide enough for any dependence.
    NaN where there are none.
    """
    if not estimates:
        return UNKNOWN
    value, low, high = np.mean([(each.value, each.low, each.high) for each in estimates], axis=0)
    return Estimate(float(value), float(low), float(high))


def estimate_bounded_columns(
    replicates: Float[ndarray, "r k"], n: int, level: float, bounds: Bounds
) -> tuple[Float[ndarray, " k"], Float[ndarray, " k"], Float[ndarray, " k"]]:
    """Return value, low and high of means over n images of values within bounds, one a column.

    The interval is that of ``estimate_columns``, unless all replicates are alike. Then no image of
    n was seen to differ, and w, the high end of Wilson's interval for 0 of n, is the largest share
    of images that may: the interval reaches as far as that share at either bound moves the mean.

        low = value - w (value - bounds[0]),    high = value + w (bounds[1] - value)

    For shares of 0 and 1 this is Wilson's interval itself.
    """
    value, low, high = estimate_columns(replicates, level, bounds)
    if not n:
        return value, low, high
    unseen = wilson(0, n, level).high
    alike = high - low < _NO_WIDTH
    low = np.where(alike, value - unseen * (value - bounds[0]), low)
    high = np.where(alike, value + unseen * (bounds[1] - value), high)
    return value, low, high


def as_columns(estimate: Estimate, name: str = "value") -> dict[str, Any]:
    """Return an estimate as the columns NAME, low, high of a table."""
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}
