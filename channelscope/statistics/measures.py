"""Measures of alignment: pure functions of activation, relevance and robustness.

Each works along the last axis (channels, or classes) and over any leading axes, so the replicates
of a bootstrap are one more axis. A class without images is NaN and stays NaN. The claims they bear
on are those of Yan et al., ICML 2021 (arXiv 2102.05311).
"""

import warnings

import numpy as np
from jaxtyping import Float, Int, Num
from numpy import ndarray

from channelscope.statistics.intervals import UNBOUNDED

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
    "signed_mass_robust_correlation": (-1.0, 1.0),
    "nr_mass_natural": (0.0, 1.0),
    "nr_mass_adversarial": (0.0, 1.0),
    "signed_mass_natural": (-1.0, 1.0),
    "signed_mass_adversarial": (-1.0, 1.0),
    "nr_fall": UNBOUNDED,
    "effective_channels_natural": (0.0, np.inf),
    "effective_channels_adversarial": (0.0, np.inf),
    "dead_channels": (0.0, 1.0),
    "cosine_centred": (-1.0, 1.0),
    "displacement": (0.0, np.inf),
}


def _dot(a: Float[ndarray, "*n c"], b: Num[ndarray, "*#n c"]) -> Float[ndarray, "*n"]:
    # In less than half the time of np.einsum; np.vecdot does the same from numpy 2 on.
    products: ndarray = a[..., None, :] @ b[..., :, None]
    return products[..., 0, 0]


def cosine(a: Float[ndarray, "*n c"], b: Float[ndarray, "*#n c"]) -> Float[ndarray, "*n"]:
    """Cosine similarity, in [-1, 1]: a . b / (|a| |b|); NaN where either is zero."""
    size = np.sqrt(_dot(a, a)) * np.sqrt(_dot(b, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, _dot(a, b) / size, np.nan)


def pearson(a: Float[ndarray, "*n c"], b: Float[ndarray, "*#n c"]) -> Float[ndarray, "*n"]:
    """Pearson correlation, in [-1, 1]: cosine of the centred vectors; NaN for a constant one."""
    return cosine(a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True))


def spearman(a: Float[ndarray, "*n c"], b: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Spearman rank correlation, in [-1, 1]: Pearson's of the ranks (see ``rank``)."""
    return pearson(rank(a), rank(b))


def rank(values: Float[ndarray, "*n c"]) -> Float[ndarray, "*n c"]:
    """Rank along the last axis, from 1, ties sharing their mean rank; NaN where any value is."""
    rows = np.ascontiguousarray(values, np.float64).reshape(-1, values.shape[-1])
    order, near = _sort_rows(rows)
    order += rows.shape[1] * np.arange(len(rows))[:, None]  # one index is quicker than two
    places = np.tile(np.arange(1.0, rows.shape[1] + 1), (len(rows), 1))
    if near.size:
        _share_places(rows, order, near, places)
    ranks = np.empty(rows.shape)
    ranks.ravel()[order] = places
    ranks[np.isnan(rows.max(1, initial=-np.inf))] = np.nan
    return ranks.reshape(values.shape)


def _sort_rows(
    rows: Float[ndarray, "n c"],
) -> tuple[Int[ndarray, "n c"], Int[ndarray, " m"]]:
    """Return the order of each row's values, and the flat places of those near the one before.

    Such values may be equal to it, or smaller. Sorting whole numbers is two to three times as quick
    as sorting their places, so a value's place replaces the last bits of its binary form, which as
    a whole number has the value's order.
    """
    keys = rows.view(np.int64)
    mask = (1 << (rows.shape[1] - 1).bit_length()) - 1
    if keys.min(initial=0) < 0:
        keys = keys ^ (keys >> 63 & np.int64(2**63 - 1))
    keys = keys & ~mask
    keys |= np.arange(rows.shape[1])
    keys.sort(1)
    near = np.zeros(rows.shape, bool)
    np.less_equal(keys[:, 1:] ^ keys[:, :-1], mask, out=near[:, 1:])
    keys &= mask
    return keys, np.flatnonzero(near)


def _share_places(
    rows: Float[ndarray, "n c"],
    order: Int[ndarray, "n c"],
    near: Int[ndarray, " m"],
    places: Float[ndarray, "n c"],
) -> None:
    """Put near values in order, and give equal ones their mean place, both within the arrays.

    Args:
        rows: the values.
        order: of each row's values, as places in all of ``rows``.
        near: where in ``order`` a value follows that may be equal to the one before, or smaller.
        places: of the values in ``order``, from 1 in each row.
    """
    sorted_rows, place = order.ravel(), places.ravel()
    smaller = rows.take(sorted_rows[near]) < rows.take(sorted_rows[near - 1])
    if smaller.any():
        unsorted = np.unique(near[smaller] // rows.shape[1])
        order[unsorted] = rows[unsorted].argsort(1) + rows.shape[1] * unsorted[:, None]
    equal = near[rows.take(sorted_rows[near]) == rows.take(sorted_rows[near - 1])]
    if not equal.size:
        return
    first = np.flatnonzero(np.diff(equal, prepend=-1) != 1)  # of a run of equal values
    lengths = np.diff(first, append=len(equal))
    means = place[equal[first] - 1] + lengths / 2
    place[equal[first] - 1] = means
    place[equal] = np.repeat(means, lengths)


def shift(
    natural: Float[ndarray, "*n c"], adversarial: Float[ndarray, "*n c"]
) -> Float[ndarray, "*n"]:
    """Mean relative shift, >= 0: sum_c |adversarial - natural| / sum_c |natural|; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(adversarial - natural).sum(-1) / np.abs(natural).sum(-1)
    return np.where(np.isinf(relative), np.nan, relative)


def nr_share(
    magnitude: Float[ndarray, "*n c"], relevance: Float[ndarray, "*#n c"]
) -> Float[ndarray, "*n"]:
    """Share of the activation mass on negatively relevant channels, in [0, 1].

    sum_{c: g_c < 0} |a_c| / sum_c |a_c|, with a the magnitude and g the relevance.
    """
    mass = np.abs(magnitude)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = _dot(mass, (relevance < 0).astype(float)) / mass.sum(-1)
    return np.where(np.isnan(relevance).any(-1), np.nan, share)


def nr_mass(
    magnitude: Float[ndarray, "*n c"], relevance: Float[ndarray, "*#n c"]
) -> Float[ndarray, "*n"]:
    """Share of the relevant activation mass on negatively relevant channels, in [0, 1].

        sum_{c: g_c < 0} |g_c a_c| / sum_c |g_c a_c|

    with a the magnitude and g the relevance: unlike ``nr_share``, a channel counts by how much it
    says. NaN where no relevant channel is active.
    """
    mass = np.abs(magnitude)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _dot(mass, np.maximum(-relevance, 0)) / _dot(mass, np.abs(relevance))


def signed_mass(
    magnitude: Float[ndarray, "*n c"], relevance: Float[ndarray, "*#n c"]
) -> Float[ndarray, "*n"]:
    """How far the active channels speak for the class, in [-1, 1]: sum g a / sum |g a|.

    1 where all that is active is positively relevant. Of activations that are nowhere negative it
    is 1 - 2 ``nr_mass``.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _dot(magnitude, relevance) / _dot(np.abs(magnitude), np.abs(relevance))


def nr_fall(
    natural: Float[ndarray, "*n c"],
    adversarial: Float[ndarray, "*n c"],
    relevance: Float[ndarray, "*#n c"],
) -> Float[ndarray, "*n"]:
    """Part of the logit's fall under an attack that comes from negatively relevant channels.

        sum_{c: g_c < 0} g_c (a_c - a'_c) / sum_c g_c (a_c - a'_c)

    with a the natural, a' the adversarial magnitude and g the relevance. At the penultimate layer
    the denominator is the fall of the class's logit. NaN where it does not fall.
    """
    lost = natural - adversarial
    fall, negative = _dot(lost, relevance), _dot(lost, np.minimum(relevance, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fall > 0, negative / fall, np.nan)


def effective_channels(magnitude: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Number of channels that carry the activation, in [1, C]: (sum |a|)^2 / sum a^2.

    The participation ratio of the magnitudes; NaN where no channel is active.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(magnitude).sum(-1) ** 2 / _dot(magnitude, magnitude)


def uniformity(
    frequency: Float[ndarray, "*n c"], counts: Num[ndarray, "*#n c"] | float = 1.0
) -> Float[ndarray, "*n"]:
    """Evenness of the activation frequency over the channels, in [0, 1]: 1 where all are equal.

        -sum_c p_c log p_c / log C,    p_c = f_c / sum_c' f_c'

    with f the frequency and C the number of channels; NaN where no channel is ever active, and for
    one channel. Bai et al., ICLR 2021 (arXiv 2103.08307) show in plots that adversarial images
    activate the channels more uniformly; the measure, the normalised entropy, is Pielou's evenness
    (J. Theoretical Biology, 1966).

    Args:
        frequency: of each channel.
        counts: how many channels each frequency stands for.
    """
    counts = np.asarray(counts, float) * np.ones(frequency.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = frequency / _dot(frequency, counts)[..., None]
        logs = np.log(np.maximum(shares, np.finfo(float).tiny))  # 0 log 0 is 0
        even = -_dot(shares * logs, counts) / np.log(counts.sum(-1))
    return np.where(np.isfinite(even), np.clip(even, 0, 1), np.nan)


def mask_share(mask: Float[ndarray, "*n c"]) -> Float[ndarray, "*n"]:
    """Share of a mask's C multipliers that is in effect: (sum |m|)^2 / (C sum m^2).

    The participation ratio, in [1 / C, 1]; 0 for a mask of zeros. With p = |m| / sum |m| it is
    exp(H) / C, H = -log sum p^2 being Rényi's entropy of order 2. Signs do not matter, so it serves
    masks that have them (CAS) as well.
    """
    size = np.abs(mask.astype(np.float64))
    squares = size.shape[-1] * (size**2).sum(-1)
    share = size.sum(-1) ** 2 / np.maximum(squares, np.finfo(np.float64).tiny)
    return share.astype(mask.dtype)


def overlap(relevance: Float[ndarray, "*n k c"]) -> Float[ndarray, "*n k k"]:
    """Overlap of the classes' positively relevant channels, in [0, 1]: |P_j & P_k| / |P_j | P_k|.

    P_k = {c: g_kc > 0}, with g the relevance (Jaccard index); NaN for a class whose relevance is
    not known, and for two of no such channel.
    """
    positive = (relevance > 0).astype(float)
    both = positive @ positive.swapaxes(-1, -2)
    count = positive.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = both / (count[..., :, None] + count[..., None, :] - both)
    unknown = np.isnan(relevance).any(-1)
    return np.where(unknown[..., :, None] | unknown[..., None, :], np.nan, share)


def measure_all(
    natural: Float[ndarray, "*n c"],
    adversarial: Float[ndarray, "*n c"],
    relevance: Float[ndarray, "*#n c"],
    centre: Float[ndarray, " c"],
    distance: float | Float[ndarray, "*#n"],
) -> dict[str, Float[ndarray, "*n"]]:
    """Compute every measure of a class.

    Args:
        natural, adversarial: magnitudes of the class's images.
        relevance: of the channels to the class.
        centre: mean over the classes of their natural magnitudes. What a class's magnitudes have
            beside it is the class's own: ``cosine_centred`` is the cosine of that, and 0, not 1,
            where the activation tells nothing of the class.
        distance: mean distance of the class's natural magnitudes to those of the other classes, the
            unit of ``displacement``, the distance by which the attack moves them.
    """
    # Centred, so that the cosine is Pearson's correlation: ranks have the same mean in every row.
    middle = (natural.shape[-1] + 1) / 2
    ranks = [rank(values) - middle for values in (natural, adversarial, relevance)]
    dead = ((natural == 0) & (adversarial == 0)).mean(-1)
    unknown = np.isnan(natural.sum(-1) + adversarial.sum(-1))
    share_natural = nr_share(natural, relevance)
    share_adversarial = nr_share(adversarial, relevance)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = share_adversarial / share_natural
        moved = np.linalg.norm(adversarial - natural, axis=-1) / np.asarray(distance)
    return {
        "cosine": cosine(natural, adversarial),
        "spearman": cosine(ranks[0], ranks[1]),
        "shift": shift(natural, adversarial),
        "nr_share_natural": share_natural,
        "nr_share_adversarial": share_adversarial,
        "nr_ratio": np.where(np.isinf(ratio), np.nan, ratio),
        "relevance_spearman_natural": cosine(ranks[0], ranks[2]),
        "relevance_spearman_adversarial": cosine(ranks[1], ranks[2]),
        "nr_mass_natural": nr_mass(natural, relevance),
        "nr_mass_adversarial": nr_mass(adversarial, relevance),
        "signed_mass_natural": signed_mass(natural, relevance),
        "signed_mass_adversarial": signed_mass(adversarial, relevance),
        "nr_fall": nr_fall(natural, adversarial, relevance),
        "effective_channels_natural": effective_channels(natural),
        "effective_channels_adversarial": effective_channels(adversarial),
        "dead_channels": np.where(unknown, np.nan, dead),
        "cosine_centred": cosine(natural - centre, adversarial - centre),
        "displacement": np.where(np.isinf(moved), np.nan, moved),
    }


def across_classes(
    alignment: Float[ndarray, "*n k"], robust: Float[ndarray, "*n k"]
) -> Float[ndarray, "*n"]:
    """Spearman correlation between alignment and robust accuracy, across the classes with images.

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
