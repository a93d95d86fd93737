"""Effects of methods: differences between groups of networks, with seeds and images as noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.special import stdtr, stdtrit

from channelscope.statistics.intervals import FEWEST_REPLICATES, UNBOUNDED, Bounds

# What rounding leaves of the variance of replicates that are all alike; statistics are of order 1.
_NO_VARIANCE = 1e-18


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

        value = sum_g sign_g mean_s theta[g, s]
        V = sum_g sign_g^2 s_g^2 / S_g  +  V_images  -  sum_g sign_g^2 interaction_g
        interval = value +- t_df sqrt(V),    p = 2 P(T_df >= |value| / sqrt(V))

    s_g^2 is the sample variance of the S_g estimates of a group, V_images the variance of the whole
    sum over resamples of the images, in which the noise that networks share stays shared (Davison &
    Hinkley, Bootstrap Methods, 1997, section 3.8, on hierarchical data). How differently the images
    treat two seeds is in both, so it is taken off once (``_interaction``). V is at least the larger
    of the two: nothing is known more exactly of methods than of the very networks that were
    trained. df is that of Satterthwaite (Biometrics Bulletin 2, 1946), S_g - 1 for a group's seeds
    and one less than the replicates for the images.

    Seeds are not resampled: the variance of 3 resampled values is 2/3 of what it should be, and
    percentiles know nothing of a t with few degrees of freedom. The two-level percentile bootstrap
    then covers as little as 73 % instead of 95 % (``benchmarks/coverage.py``). See Agarwal et al.,
    NeurIPS 2021, on conclusions from few runs. The price of the minimum of V is that intervals are
    too wide where seeds hardly differ and images are all the noise: up to 98 %.

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
    variance, df = _compute_variance(groups, signs, usable)
    if variance < _NO_VARIANCE:
        return Effect(value, value, value, 1.0 if value == 0 else math.nan, seeds)
    error = math.sqrt(variance)
    reach = float(stdtrit(df, (1 + level) / 2)) * error
    low = min(max(value - reach, bounds[0]), value)
    high = max(min(value + reach, bounds[1]), value)
    return Effect(value, low, high, float(2 * stdtr(df, -abs(value) / error)), seeds)


def _compute_variance(
    groups: Sequence[Float[ndarray, "_ r"]], signs: Sequence[float], usable: Bool[ndarray, " b"]
) -> tuple[float, float]:
    """Return the variance of an effect and its degrees of freedom; see ``estimate_effect``."""
    replicates = [group[:, 1:][:, usable] for group in groups]
    means = [sign * rows.mean(0) for sign, rows in zip(signs, replicates, strict=True)]
    of_images = float(np.sum(means, axis=0).var(ddof=1))
    of_seeds = 0.0
    twice = 0.0
    spread = of_images**2 / (usable.sum() - 1)
    for group, rows, sign in zip(groups, replicates, signs, strict=True):
        if len(group) > 1:
            between = sign**2 * float(group[:, 0].var(ddof=1)) / len(group)
            of_seeds += between
            twice += sign**2 * _interaction(rows)
            spread += between**2 / (len(group) - 1)
    variance = max(of_seeds + of_images - twice, of_seeds, of_images)
    return variance, variance**2 / spread if spread else math.inf


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
