"""How alike two networks' channels are: linear CKA of layers, channels matched one to one.

Pure functions of activations: row i of both arguments is image i.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

FEWEST = 4  # images: an unbiased HSIC needs as many


def cka(a: Float[ndarray, "n c"], b: Float[ndarray, "n d"]) -> float:
    """Linear CKA of two layers: 1 for equal up to rotation and scale, about 0 for unrelated.

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),    K = A A^T, L = B B^T

    (Kornblith et al., ICML 2019, arXiv 1905.00414). HSIC is Song et al.'s unbiased estimator (JMLR
    2012), as in Nguyen et al. (ICLR 2021, arXiv 2010.15327): the biased one calls unrelated layers
    alike when images are not many more than channels. So CKA lies in [-1, 1], about 0, not above
    it, where layers have nothing in common.

    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(50, 3))
    >>> turned = a @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    >>> round(cka(a, 5 * turned + 1), 6)
    1.0

    Args:
        a, b: activations of the same n images; NaN for fewer than four, and for a layer that is
            constant.
    """
    once = np.ones((len(a), 1))
    a, b = standardise(a), standardise(b)
    between, own, others = (compute_hsic(*pair, once) for pair in ((a, b), (a, a), (b, b)))
    return float(normalise_hsic(between, own, others)[0])


def normalise_hsic(
    between: Float[ndarray, " r"], own: Float[ndarray, " r"], others: Float[ndarray, " r"]
) -> Float[ndarray, " r"]:
    """Make CKA of HSIC(K, L), HSIC(K, K), HSIC(L, L), by replicate; NaN for a constant K or L."""
    return between / np.sqrt(np.where((own > 0) & (others > 0), own * others, np.nan))


def compute_hsic(
    a: Float[ndarray, "n c"], b: Float[ndarray, "n d"], weights: Num[ndarray, "n r"]
) -> Float[ndarray, " r"]:
    """Unbiased HSIC of two linear kernels, by replicate of the bootstrap.

        HSIC = 1 / (n (n - 3)) sum_{i != j} K~_ij L~_ij

    with K~ the U-centred kernel, whose rows and columns have the sum 0 without their diagonal. It
    is the mean of the images' parts h_i = sum_j K~_ij L~_ij / (n - 3), and a replicate moves it to
    first order (HSIC is a U-statistic, and its derivative by an image's weight 2 h_i / n, as moving
    the centre adds nothing):

        HSIC_r = HSIC + 2 sum_i (w_ir / sum_j w_jr - 1 / n) h_i

    Drawing images repeatedly instead would count their likeness to their own copies, which is what
    the unbiased estimator leaves out. Time and memory grow with n c d and n r, with n^2 only where
    channels outnumber images.

    Args:
        a, b: activations of the same images, standardised.
        weights: of each image in each replicate; see ``stats.bootstrap_weights``. Column 0, all 1,
            is the estimate.
    """
    n = len(a)
    if n < FEWEST:
        return np.full(weights.shape[1], np.nan)
    parts = _parts(a, b) / (n - 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        return parts.mean() + 2 * (parts @ (weights / weights.sum(0)) - parts.mean())


def standardise(a: Float[ndarray, "n c"]) -> Float[ndarray, "n c"]:
    """Centre activations and scale them to a total variance of 1; zeros for constant ones."""
    centred = a.astype(np.float64) - a.mean(0, dtype=np.float64)
    size = np.sqrt((centred**2).sum(1).mean())
    return centred / size if size > 1e-12 * np.abs(a).max(initial=0) else np.zeros_like(centred)


def _parts(a: Float[ndarray, "n c"], b: Float[ndarray, "n d"]) -> Float[ndarray, " n"]:
    """Sum each image's row of the U-centred kernels' product: sum_{j != i} K~_ij L~_ij.

    With d and e the kernels' diagonals, K~_ij = K_ij + (d_i + d_j) / (n - 2) - sum(d) / ((n - 1) (n
    - 2)), as the rows of K = A A^T have the sum 0.
    """
    n = len(a)
    d, e = (a**2).sum(1), (b**2).sum(1)
    level = d / (n - 2) - d.sum() / (
        (n - 1) * (n - 2)
    )  # what K~_ij has beside K_ij and d_j / (n - 2)
    with_kernel = _multiply_kernels(a, b) - d * e - level * e + (b @ (b.T @ d) - d * e) / (n - 2)
    with_diagonal = a @ (a.T @ e) - d * e + level * (e.sum() - e) + (d @ e - d * e) / (n - 2)
    return with_kernel + with_diagonal / (n - 2)


def _multiply_kernels(a: Float[ndarray, "n c"], b: Float[ndarray, "n d"]) -> Float[ndarray, " n"]:
    """Return sum_j K_ij L_ij: by the kernels where channels outnumber images, else without them."""
    n, c, d = len(a), a.shape[1], b.shape[1]
    if n * (c + d) < 4 * c * d:  # A A^T costs half of a product of two matrices
        kernel = a @ a.T
        return _dot_rows(kernel, kernel if a is b else b @ b.T)
    return _dot_rows(a @ (a.T @ b), b)


def _dot_rows(a: Float[ndarray, "n m"], b: Float[ndarray, "n m"]) -> Float[ndarray, " n"]:
    return np.asarray(np.einsum("ij,ij->i", a, b))


class Match(NamedTuple):
    """Channels of one network and of another that correspond, the surest pair first.

    Args:
        channel, other: numbers of the matched channels (m,), no number twice.
        correlation: Pearson's, of each pair's activations over the images (m,); NaN where one of
            them is constant.
    """

    channel: Int[ndarray, " m"]
    other: Int[ndarray, " m"]
    correlation: Float[ndarray, " m"]


def match_channels(a: Float[ndarray, "n c"], b: Float[ndarray, "n d"]) -> Match:
    """Match channels one to one, with the largest possible sum of correlations over images.

    Li et al. (ICLR 2016, arXiv 1511.07543), bipartite matching; of layers of unequal width, min(c,
    d) channels each.

    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(50, 3))
    >>> match = match_channels(a, a[:, [2, 0, 1]])
    >>> dict(zip(match.channel.tolist(), match.other.tolist()))
    {0: 1, 1: 2, 2: 0}

    Args:
        a, b: activations of the same n images.
    """
    correlations = _correlations(a, b)
    channel, other = linear_sum_assignment(np.nan_to_num(correlations), maximize=True)
    found = correlations[channel, other]
    order = np.argsort(-np.nan_to_num(found, nan=-np.inf), kind="stable")
    return Match(channel[order], other[order], found[order])


def _correlations(a: Float[ndarray, "n c"], b: Float[ndarray, "n d"]) -> Float[ndarray, "c d"]:
    """Correlate each column of one with each of the other; NaN for a constant one."""
    return np.clip(_unit(a).T @ _unit(b), -1, 1)


def _unit(a: Float[ndarray, "n c"]) -> Float[ndarray, "n c"]:
    """Centre each column and bring it to length 1; NaN for a constant one."""
    centred = a.astype(np.float64) - a.mean(0, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.ptp(a, 0) > 0, centred / np.linalg.norm(centred, axis=0), np.nan)
