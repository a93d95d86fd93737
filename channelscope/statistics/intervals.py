"""Intervals of estimates: bootstrap percentiles, re-centred, and Wilson's for plain shares."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri

FEWEST_REPLICATES = 20  # fewer have no quantiles worth the name: there is no interval then
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


def estimate_change(replicates: Float[ndarray, " r"], level: float = 0.95) -> Estimate:
    """Estimate a difference of two accuracies; see ``estimate_change_columns``."""
    value, low, high = estimate_change_columns(replicates[:, None], level)
    return Estimate(float(value[0]), float(low[0]), float(high[0]))


def estimate_change_columns(
    replicates: Float[ndarray, "r k"], level: float = 0.95
) -> tuple[Float[ndarray, " k"], Float[ndarray, " k"], Float[ndarray, " k"]]:
    """Return value, low and high of differences of two accuracies, one a column.

    The interval is the wider of that of ``estimate`` and the plain percentiles. Where few images
    differ the replicates take few values, and moving these onto the estimate would move the end of
    the interval off 0 on the evidence of a single image.
    """
    value, low, high = estimate_columns(replicates, level, (-1.0, 1.0))
    others = np.sort(replicates[1:], axis=0)  # NaN last
    count = (~np.isnan(others)).sum(0)
    plain_low, plain_high = (_quantile(others, count, (1 + side * level) / 2) for side in (-1, 1))
    return value, np.minimum(low, plain_low), np.maximum(high, plain_high)


def wilson(count: int, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share from ``count`` of ``n``, with Wilson's score interval (JASA, 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    p = count / n, z the quantile of the normal distribution at (1 + level) / 2. It has a width at
    0 and 1 too. NaN for n = 0.
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


def as_columns(estimate: Estimate, name: str = "value") -> dict[str, Any]:
    """Return an estimate as the columns NAME, low, high of a table."""
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}
