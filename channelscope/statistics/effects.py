"""Effects of methods: differences between groups of networks, with seeds and images as noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.optimize import brentq
from scipy.special import stdtrit

from channelscope.statistics.intervals import FEWEST_REPLICATES, UNBOUNDED, Bounds

# What rounding leaves of the variance of replicates that are all alike; statistics are of order 1.
_NO_VARIANCE = 1e-18
_LEAST_P = 1e-15


@dataclass(frozen=True)
class Effect:
    """An effect and its interval, low <= high; NaN where there is nothing to estimate from.

    Args:
        value: the estimate.
        low, high: its interval.
        p: of a two-sided test against 0.
        seeds: networks in the smallest group. With 1 the effect is that of these networks: nothing
            is known of how much another seed would change it.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int


def estimate_effect(
    groups: Sequence[Float[ndarray, "_ r"]],
    signs: Sequence[float],
    level: float = 0.95,
    bounds: Bounds = UNBOUNDED,
) -> Effect:
    """Estimate a signed sum of methods' means over seeds, of any statistic of a network.

        value = sum_g sign_g mean_s theta[g, s],    interval = value +- reach
        reach^2 = t_b^2 V_images  +  t_df^2 max(0, V_seeds - V_both)
        V_seeds = sum_g sign_g^2 s_g^2 / S_g

    V_images is the variance of the whole sum over b resamples of the images, in which the noise
    that networks share stays shared (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8, on
    hierarchical data). s_g^2 is the sample variance of the S_g estimates of a group. How
    differently the images treat two seeds, V_both (``_interaction``), is in both, so it is taken
    off once. t are Student's quantiles: the images' variance is known well (b - 1 degrees of
    freedom), that of seeds from S_g - 1 a group (df by Satterthwaite, Biometrics Bulletin 2, 1946).
    Each part has its own quantile, squared and added as in Newcombe's and Howe's intervals (JASA
    69, 1974): one quantile for the sum would take its degrees of freedom from the very seeds that
    agree by chance, and covers 91 % instead of 95 % where three seeds are most of the noise. p is
    1 - level where the interval ends at 0.

    No interval is narrower than the images alone make it: nothing is known more exactly of methods
    than of the very networks that were trained.

    Seeds are not resampled: the variance of 3 resampled values is 2/3 of what it should be, and
    percentiles know nothing of so few degrees of freedom. The two-level percentile bootstrap covers
    as little as 74 % instead of 95 % (Agarwal et al., NeurIPS 2021, on few runs). This interval
    covers 92 to 97 % (``benchmarks/coverage.py``). Only of one method with three networks that find
    no image easy or hard in common, which networks do not do, can it be as little as 90 %.

    A group of one network has no variance between seeds: its seed counts as fixed. Replicates that
    are NaN for any network do not count; of fewer than ``FEWEST_REPLICATES`` there is no interval.
    Without any variance p is 1 for the value 0, else NaN: the interval, of no width, decides
    nothing.

    Args:
        groups: of each method, a row a network: the estimate, then its bootstrap replicates. All
            networks see the same images in the same column.
        signs: factor of each group, as 1 and -1 for a difference of two methods.
        level: coverage of the interval, in (0, 1).
        bounds: the effect's range, which the interval does not leave.
    """
    if len(groups) != len(signs):
        raise ValueError(f"{len(groups)} groups have {len(signs)} signs")
    seeds = min(len(group) for group in groups)
    total = sum(sign * group.mean(0) for sign, group in zip(signs, groups, strict=True))
    value = float(np.asarray(total)[0])
    usable = ~np.isnan(np.asarray(total)[1:])
    if math.isnan(value) or usable.sum() < FEWEST_REPLICATES:
        return Effect(value, math.nan, math.nan, math.nan, seeds)
    spread = _measure_spread(groups, signs, usable)
    if spread.images + spread.seeds < _NO_VARIANCE:
        return Effect(value, value, value, 1.0 if value == 0 else math.nan, seeds)
    reach = spread.reach(1 - level)
    low = min(max(value - reach, bounds[0]), value)
    high = max(min(value + reach, bounds[1]), value)
    return Effect(value, low, high, _find_p(abs(value), spread), seeds)


@dataclass(frozen=True)
class _Spread:
    """Variances of an effect, and their degrees of freedom: of the images; of seeds beyond it."""

    images: float
    images_df: float
    seeds: float
    seeds_df: float

    def reach(self, p: float) -> float:
        """Return how far the interval of level 1 - p reaches."""
        of_images = float(stdtrit(self.images_df, p / 2)) ** 2 * self.images
        if not self.seeds:
            return math.sqrt(of_images)
        return math.sqrt(of_images + float(stdtrit(self.seeds_df, p / 2)) ** 2 * self.seeds)


def _measure_spread(
    groups: Sequence[Float[ndarray, "_ r"]], signs: Sequence[float], usable: Bool[ndarray, " b"]
) -> _Spread:
    """Measure the variances of an effect; see ``estimate_effect``."""
    total = np.zeros(usable.sum())
    parts = []  # of V_seeds, each with its degrees of freedom
    both = 0.0
    for group, sign in zip(groups, signs, strict=True):
        replicates = group[:, 1:][:, usable]
        total += sign * replicates.mean(0)
        if len(group) > 1:
            variance = sign**2 * float(group[:, 0].var(ddof=1)) / len(group)
            parts.append((variance, len(group) - 1))
            both += sign**2 * _interaction(replicates)
    of_seeds = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / df for variance, df in parts)
    return _Spread(
        images=float(total.var(ddof=1)),
        images_df=len(total) - 1,
        seeds=max(0.0, of_seeds - both),
        seeds_df=of_seeds**2 / squares if squares else math.inf,
    )


def _find_p(distance: float, spread: _Spread) -> float:
    """Return the p whose interval reaches just so far; ``_LEAST_P`` for all that is smaller."""
    if distance == 0:
        return 1.0
    if spread.reach(_LEAST_P) <= distance:
        return _LEAST_P
    # In logarithms, so that small p are as exact as large ones.
    found = brentq(lambda log: spread.reach(math.exp(log)) - distance, math.log(_LEAST_P), 0.0)
    return math.exp(float(found))


def _interaction(replicates: Float[ndarray, "s b"]) -> float:
    """Return what the images' different treatment of each seed adds to the variance of a mean.

        (mean_s var_b(theta[s]) - var_b(mean_s theta[s])) S / (S - 1) / S,    at least 0

    The variance over resamples is C + I for one network and C + I / S for the mean of S, where C
    is what the networks have in common; this solves for I / S.
    """
    seeds = len(replicates)
    alone = float(replicates.var(1, ddof=1).mean())
    together = float(replicates.mean(0).var(ddof=1))
    return max(alone - together, 0.0) / (seeds - 1)
