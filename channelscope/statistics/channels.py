"""Statistics of channels from kept values (n, c): by class, and by replicate of the bootstrap.

Everything is computed class by class in float64, so memory does not grow with the number of
classes times replicates times channels: the replicates of one class are made, measured, dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy import ndarray

from channelscope.statistics.measures import measure_all, nr_mass, uniformity

# Images of a class: so few have few different weights, each of which is measured once; and so few
# have few kinds of channels, those that are active on the same images.
_FEW_WEIGHTS, _FEW_KINDS = 4, 8


def active(values: Float[ndarray, "n c"], threshold: float) -> Bool[ndarray, "n c"]:
    """Return which channels exceed ``threshold`` times the image's largest channel."""
    values = np.asarray(values, np.float64)
    return values > threshold * values.max(1, keepdims=True)


def rows_by_class(labels: Int[ndarray, " n"], classes: int) -> list[Int[ndarray, " n_k"]]:
    """Return the indices of each class's images, in their order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, classes)))


def mean_by_class(
    values: Float[ndarray, "n c"], labels: Int[ndarray, " n"], classes: int
) -> Float[ndarray, "k c"]:
    """Return each channel's mean over the images of a class; NaN for a class without images."""
    means = np.full((classes, values.shape[1]), np.nan)
    for k, rows in _with_images(labels, classes):
        means[k] = np.asarray(values[rows], np.float64).mean(0)
    return means


def frequency_by_class(
    values: Float[ndarray, "n c"], labels: Int[ndarray, " n"], classes: int, threshold: float
) -> Float[ndarray, "k c"]:
    """Return the share of a class's images on which a channel is active (see ``active``)."""
    shares = np.full((classes, values.shape[1]), np.nan)
    for k, rows in _with_images(labels, classes):
        shares[k] = active(values[rows], threshold).mean(0)
    return shares


class Change(NamedTuple):
    """How an attack moves each channel (k, c), over the image pairs of each class.

    Args:
        change: mean of adversarial minus natural activation.
        variance: of that difference, with n - 1 in the denominator; NaN for fewer than two images.
        silenced: share of the images on which the channel is active on the natural image alone.
        awakened: share on which it is active on the adversarial image alone.
    """

    change: Float[ndarray, "k c"]
    variance: Float[ndarray, "k c"]
    silenced: Float[ndarray, "k c"]
    awakened: Float[ndarray, "k c"]


def change_by_class(
    natural: Float[ndarray, "n c"],
    adversarial: Float[ndarray, "n c"],
    labels: Int[ndarray, " n"],
    classes: int,
    threshold: float,
) -> Change:
    """Compute how the activations change from each natural image to its adversarial one."""
    result = Change(*(np.full((classes, natural.shape[1]), np.nan) for _ in Change._fields))
    for k, rows in _with_images(labels, classes):
        before = np.asarray(natural[rows], np.float64)
        after = np.asarray(adversarial[rows], np.float64)
        difference = after - before
        result.change[k] = difference.mean(0)
        if len(rows) > 1:
            result.variance[k] = difference.var(0, ddof=1)
        was_active = active(before, threshold)
        is_active = active(after, threshold)
        result.silenced[k] = (was_active & ~is_active).mean(0)
        result.awakened[k] = (is_active & ~was_active).mean(0)
    return result


def measure_replicates(
    natural: Float[ndarray, "n c"],
    adversarial: Float[ndarray, "n c"],
    relevance: Float[ndarray, "n c"],
    labels: Int[ndarray, " n"],
    weights: Num[ndarray, "n r"],
    classes: int,
    threshold: float,
) -> dict[str, Float[ndarray, "r k"]]:
    """Compute every alignment measure, replicate by replicate and class by class.

    Args:
        natural, adversarial: activations of the same images.
        relevance: of the channels to each image's class.
        labels: of the images, below ``classes``.
        weights: how often each image counts in each replicate; column 0, all 1, is the estimate.
        classes: number of classes.
        threshold: see ``active``.

    Returns:
        measure -> (r, k); see ``measures.measure_all`` and ``measures.uniformity``. NaN for a class
        without images, in the data or in a replicate.
    """
    centre, distances = _place_classes(natural, labels, classes)
    natural, adversarial, relevance = map(np.asarray, (natural, adversarial, relevance))
    measures: dict[str, ndarray] = {}
    for k, rows in _with_images(labels, classes):
        columns = _measure_class(
            np.asarray(natural[rows], np.float64),
            np.asarray(adversarial[rows], np.float64),
            np.asarray(relevance[rows], np.float64),
            np.asarray(weights[rows], np.float64),
            threshold,
            centre,
            float(distances[k]),
        )
        for name, column in columns.items():
            if name not in measures:
                measures[name] = np.full((classes, weights.shape[1]), np.nan)
            measures[name][k] = column
    return {name: by_class.T for name, by_class in measures.items()}


def _place_classes(
    natural: Float[ndarray, "n c"], labels: Int[ndarray, " n"], classes: int
) -> tuple[Float[ndarray, " c"], Float[ndarray, " k"]]:
    """Return the mean over the classes of their means, and each one's mean distance to the others.

    NaN for the distance of a class without images, and for both where fewer than two have images:
    rounding alone would then lie beside the centre.
    """
    means = mean_by_class(natural, labels, classes)
    present = ~np.isnan(means).any(1)
    own = means[present]
    squares = (own**2).sum(1)
    between = -2 * own @ own.T  # in place, as there may be a million pairs
    between += squares
    between += squares[:, None]
    np.sqrt(np.maximum(between, 0, out=between), out=between)
    np.fill_diagonal(between, 0)
    distances = np.full(classes, np.nan)
    if len(own) < 2:
        return np.full(natural.shape[1], np.nan), distances
    distances[present] = between.sum(1) / (len(own) - 1)
    return own.mean(0), distances


def _measure_class(
    natural: Float[ndarray, "n c"],
    adversarial: Float[ndarray, "n c"],
    relevance: Float[ndarray, "n c"],
    weights: Num[ndarray, "n r"],
    threshold: float,
    centre: Float[ndarray, " c"],
    distance: float,
) -> dict[str, Float[ndarray, " r"]]:
    """Measure one class, in each replicate.

    Replicates share the centre and the distance: their own error is small beside a class's.
    """
    back: ndarray | slice = slice(None)
    if len(weights) <= _FEW_WEIGHTS:
        # Replicates that weigh the images in the same proportion are equal: of two images some 17
        # of 500 differ. The smallest whole weights of one proportion, a byte each, are its key.
        whole = weights.astype(np.uint8)
        smallest = whole // np.maximum(np.gcd.reduce(whole, axis=0), 1)
        keys = smallest.T.astype(np.uint64) @ (1 << 8 * np.arange(len(whole), dtype=np.uint64))
        _, chosen, back = np.unique(keys, return_index=True, return_inverse=True)
        weights = weights[:, chosen]
    present: ndarray = weights.sum(0) > 0  # nothing is measured without images
    weights = weights[:, present]
    constant = (relevance == relevance[0]).all()
    measured = measure_all(
        weighted_means(natural, weights),
        weighted_means(adversarial, weights),
        # The last layer's weights are the same for all images of a class: no replicate differs.
        relevance[:1] if constant else weighted_means(relevance, weights),
        centre,
        distance,
    )
    for name, values in (("natural", natural), ("adversarial", adversarial)):
        measured[f"uniformity_{name}"] = _measure_uniformity(active(values, threshold), weights)
    columns = np.full((len(measured), len(present)), np.nan)
    columns[:, present] = list(measured.values())
    return dict(zip(measured, columns[:, back], strict=True))


def _measure_uniformity(
    is_active: Bool[ndarray, "n c"], weights: Float[ndarray, "n r"]
) -> Float[ndarray, " r"]:
    """Measure the uniformity of the frequency with which channels are active, by replicate."""
    if len(is_active) > _FEW_KINDS:
        return uniformity(weighted_means(is_active.astype(float), weights))
    counts = np.bincount(np.packbits(is_active, axis=0)[0])
    kinds = np.flatnonzero(counts).astype(np.uint8)
    of_kinds = np.unpackbits(kinds[None], axis=0)[: len(is_active)]
    return uniformity(weighted_means(of_kinds.astype(float), weights), counts[kinds])


def mass_replicates(
    values: Float[ndarray, "n c"],
    relevance: Float[ndarray, "n c"],
    labels: Int[ndarray, " n"],
    weights: Num[ndarray, "n r"],
    classes: int,
) -> Float[ndarray, "r k"]:
    """Compute the NR mass (``measures.nr_mass``) of each class's mean activation, by replicate.

    NaN for a class without images.
    """
    mass = np.full((weights.shape[1], classes), np.nan)
    for k, rows in _with_images(labels, classes):
        of_class = np.asarray(weights[rows], np.float64)
        means = weighted_means(np.asarray(values[rows], np.float64), of_class)
        relevant = weighted_means(np.asarray(relevance[rows], np.float64), of_class)
        mass[:, k] = nr_mass(means, relevant)
    return mass


def weighted_means(
    values: Float[ndarray, "n c"], weights: Num[ndarray, "n r"]
) -> Float[ndarray, "r c"]:
    """Return the mean of the rows under each column of weights; NaN where these sum to 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: ndarray = (weights.T @ values) / weights.sum(0)[:, None]
    return means


def accuracy_replicates(
    correct: Bool[ndarray, " n"],
    labels: Int[ndarray, " n"],
    weights: Num[ndarray, "n r"],
    classes: int,
) -> tuple[Float[ndarray, " r"], Float[ndarray, "r k"]]:
    """Compute the accuracy over all images (r,) and by class (r, k); NaN for an empty class."""
    weights = np.asarray(weights, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        overall = (weights.T @ correct.astype(float)) / weights.sum(0)
    by_class = np.full((weights.shape[1], classes), np.nan)
    for k, rows in _with_images(labels, classes):
        by_class[:, k] = weighted_means(correct[rows, None].astype(float), weights[rows])[:, 0]
    return overall, by_class


def top_images(values: Float[ndarray, "n c"], keep: int) -> Int[ndarray, "c keep"]:
    """Return the images with the largest values of each channel, the largest first.

    Of equal values the image with the lower number comes first.
    """
    remaining = np.array(values.T, np.float32, order="C")
    channels = np.arange(len(remaining))
    images = []
    for _ in range(min(keep, len(values))):
        images.append(remaining.argmax(1))  # of equal values the first
        remaining[channels, images[-1]] = -np.inf
    return np.stack(images, 1)


def choose_evenly(n: int, most: int = 2000) -> Int[ndarray, " m"]:
    """Return at most ``most`` of ``n`` images, at even steps: for what is done image by image."""
    m = min(n, most)
    return np.arange(m) * n // max(m, 1)


def _with_images(
    labels: Int[ndarray, " n"], classes: int
) -> Iterator[tuple[int, Int[ndarray, " n_k"]]]:
    """Go through the classes that have images, with the indices of these."""
    for k, rows in enumerate(rows_by_class(labels, classes)):
        if len(rows):
            yield k, rows
