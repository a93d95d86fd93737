"""Alignment measures of the CIFS paper's claims: pure functions of activation, relevance and robustness.

Every measure works along the last axis (channels, or classes) and over any leading axes, so the replicates of a
bootstrap are one more axis. A class without images is NaN and stays NaN. Claims C1 to C4 are those of Yan et al.,
ICML 2021 (arXiv 2102.05311).
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import entr, ndtri
from scipy.stats import rankdata

# The range of each measure, which an interval does not leave.
BOUNDS = {
    "cosine": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "shift": (0.0, np.inf),
    "nr_share_natural": (0.0, 1.0),
    "nr_share_adversarial": (0.0, 1.0),
    "nr_ratio": (0.0, np.inf),
    "relevance_spearman_natural": (-1.0, 1.0),
    "relevance_spearman_adversarial": (-1.0, 1.0),
    "uniformity_natural": (0.0, 1.0),
    "uniformity_adversarial": (0.0, 1.0),
    "relevance_robust_correlation": (-1.0, 1.0),
}

# Fewer replicates have no quantiles worth the name: there is no interval then.
FEWEST_REPLICATES = 20

Outcome = Literal["supported", "not supported", "inconclusive"]


def cosine(a: Float[ndarray, "*n c"], b: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Cosine similarity, in [-1, 1]: a . b / (|a| |b|); NaN where either is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def pearson(a: Float[ndarray, "*n c"], b: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Pearson correlation, in [-1, 1]: the cosine of the centred vectors; NaN where either is constant."""
    return cosine(a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True))


def spearman(a: Float[ndarray, "*n c"], b: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Spearman rank correlation, in [-1, 1]: Pearson's of the ranks, ties sharing their mean rank."""
    undefined = np.isnan(a).any(-1) | np.isnan(b).any(-1)
    ranks_a, ranks_b = (rankdata(np.nan_to_num(values), axis=-1) for values in (a, b))
    return np.where(undefined, np.nan, pearson(ranks_a, ranks_b))


def shift(
    natural: Float[ndarray, "*n c"], adversarial: Float[ndarray, "*n c"]
) -> Float[ndarray, "*n"]:
    """Mean relative shift, >= 0: sum_c |adversarial - natural| / sum_c |natural|; NaN where natural is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(adversarial - natural).sum(-1) / np.abs(natural).sum(-1)
    return np.where(np.isinf(relative), np.nan, relative)


def nr_share(
    magnitude: Float[ndarray, "*n c"], relevance: Float[ndarray, "*n c"]
) -> Float[ndarray, "*n"]:
    """Share of the activation mass on negatively relevant channels, in [0, 1].

    sum_{c: g_c < 0} |a_c| / sum_c |a_c|, with a the magnitude and g the relevance.
    """
    mass = np.abs(magnitude)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(relevance < 0, mass, 0).sum(-1) / mass.sum(-1)
    return np.where(np.isnan(relevance).any(-1), np.nan, share)


def uniformity(frequency: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Evenness of the activation frequency over the channels, in [0, 1]: 1 where all are equally often active.

        -sum_c p_c log p_c / log C,    p_c = f_c / sum_c' f_c'

    with f the frequency and C the number of channels; NaN where no channel is ever active, and for one channel. Bai et
    al., ICLR 2021 (arXiv 2103.08307) show in plots that adversarial images activate the channels more uniformly; the
    measure, the normalised entropy, is Pielou's evenness (J. Theoretical Biology, 1966).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        even = entr(frequency / frequency.sum(-1, keepdims=True)).sum(-1) / np.log(
            frequency.shape[-1]
        )
    return np.where(np.isfinite(even), np.clip(even, 0, 1), np.nan)


def overlap(relevance: Float[ndarray, "*n k c"]) -> Float[ndarray, "*n k k"]:
    """Overlap of the classes' positively relevant channels, in [0, 1]: |P_j & P_k| / |P_j | P_k| (Jaccard).

    P_k = {c: g_kc > 0}, with g the relevance; NaN for a class whose relevance is not known, and for two of no such
    channel.
    """
    positive = (relevance > 0).astype(float)
    both = positive @ positive.swapaxes(-1, -2)
    count = positive.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = both / (count[..., :, None] + count[..., None, :] - both)
    unknown = np.isnan(relevance).any(-1)
    return np.where(unknown[..., :, None] | unknown[..., None, :], np.nan, share)


def measures(
    natural: Float[ndarray, "*n c"],
    adversarial: Float[ndarray, "*n c"],
    relevance: Float[ndarray, "*n c"],
) -> dict[str, Float[ndarray, "*n"]]:
    """Compute every alignment measure from natural and adversarial magnitude and relevance (..., class, channel)."""
    share_natural, share_adversarial = (
        nr_share(natural, relevance),
        nr_share(adversarial, relevance),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = share_adversarial / share_natural
    return {
        "cosine": cosine(natural, adversarial),
        "spearman": spearman(natural, adversarial),
        "shift": shift(natural, adversarial),
        "nr_share_natural": share_natural,
        "nr_share_adversarial": share_adversarial,
        "nr_ratio": np.where(np.isinf(ratio), np.nan, ratio),
        "relevance_spearman_natural": spearman(natural, relevance),
        "relevance_spearman_adversarial": spearman(adversarial, relevance),
    }


def across_classes(
    alignment: Float[ndarray, "*n k"], robust: Float[ndarray, "*n k"]
) -> Float[ndarray, "*n"]:
    """Spearman correlation across the classes that have images, between alignment and robust accuracy.

    NaN with fewer than three such classes, and for a replicate that lacks one of them.
    """
    absent = np.isnan(alignment) | np.isnan(robust)
    present = ~absent.reshape(-1, alignment.shape[-1]).all(0)
    if present.sum() < 3:
        return np.full(alignment.shape[:-1], np.nan)
    return spearman(alignment[..., present], robust[..., present])


def mean_over_classes(values: Float[ndarray, "*n k"]) -> Float[ndarray, "*n"]:
    """Mean over the classes that have images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: no class has images
        return np.nanmean(values, -1)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, low <= high; NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float


def estimate(
    replicates: Float[ndarray, " r"],
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Read the estimate (replicate 0) and the bootstrap interval (the others) of a quantity.

    The interval is the percentile one, moved so that the replicates' mean lies on the estimate: resampling adds noise
    of its own, which pulls correlations down in every replicate. Replicates that are NaN (a resample without any
    image of a class) are left out; of fewer than ``FEWEST_REPLICATES`` there is no interval.

    Args:
        replicates: the quantity for each column of ``stats.bootstrap_weights``.
        level: coverage of the interval, in (0, 1).
        bounds: the quantity's range, which the interval does not leave.
    """
    others = replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(replicates[0]) or len(others) < FEWEST_REPLICATES:
        return Estimate(float(replicates[0]), float("nan"), float("nan"))
    value = float(replicates[0])
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2]) - others.mean() + value
    # Rounding, and a few replicates far from all others, can move the interval off the estimate: it is held.
    return Estimate(
        value, max(min(float(low), value), bounds[0]), min(max(float(high), value), bounds[1])
    )


def estimate_change(replicates: Float[ndarray, " r"], level: float = 0.95) -> Estimate:
    """Estimate a difference of two accuracies, by the wider of the interval of ``estimate`` and the plain percentiles.

    Where few images differ, the replicates are few values, and moving these onto the estimate would move the end of the
    interval off 0, on the word of a single image.
    """
    found, others = (
        estimate(replicates, level, (-1.0, 1.0)),
        replicates[1:][~np.isnan(replicates[1:])],
    )
    if math.isnan(found.low):
        return found
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(found.value, min(found.low, float(low)), max(found.high, float(high)))


def wilson(count: int, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share from count of n, with Wilson's score interval (JASA, 1927), which has a width at 0 and 1 too.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    p = count / n, z the quantile of the normal distribution at (1 + level) / 2; NaN for n = 0.
    """
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    p, z = count / n, float(ndtri((1 + level) / 2))
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)
    return Estimate(p, max(0.0, min(low, p)), min(1.0, max(high, p)))


def judge(quantity: Estimate, null: float = 0.0) -> Outcome:
    """Judge a claim that says ``quantity > null``: by where the interval lies.

    Supported if it lies above ``null`` as a whole, not supported if at or below it as a whole, else inconclusive: so
    also without an interval, or with one of no width, as of a single image or of networks that are always wrong.
    """
    if np.isclose(quantity.low, quantity.high, rtol=1e-9, atol=1e-12):
        return "inconclusive"
    if quantity.low > null:
        return "supported"
    if quantity.high <= null:
        return "not supported"
    return "inconclusive"
