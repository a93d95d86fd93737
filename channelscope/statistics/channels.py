"""Statistics of channels from kept values (n, c): by class, and by replicate of the bootstrap.

Everything is computed class by class in float64, so memory does not grow with the number of
classes times replicates times channels: replicates of one class, or of some that have few images,
are made, measured, dropped.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy import ndarray

from channelscope.statistics.measures import measure_all, nr_mass, uniformity

# Images of a class: so few have few different weights, each of which is measured once; and so few
# have few kinds of channels, those that are active on the same images.
_FEW_WEIGHTS, _FEW_KINDS = 4, 8
_STACK = 2**17  # values of classes that are measured together: they fit a processor's cache


def active(values: Float[ndarray, "*n c"], threshold: float) -> Bool[ndarray, "*n c"]:
    """Return which channels exceed ``threshold`` times the image's largest channel."""
    values = np.asarray(values, np.float64)
    return values > threshold * values.max(-1, keepdims=True)


def rows_by_class(labels: Int[ndarray, " n"], classes: int) -> list[Int[ndarray, " n_k"]]:
    """Return the indices of each class's images, in their order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, classes)))


def mean_by_class(
    values: Float[ndarray, "n c"], labels: Int[ndarray, " n"], classes: int
) -> Float[ndarray, "k c"]:
    """Return each channel's mean over the images of a class; NaN for a class without images."""
    means = np.full((classes, values.shape[1]), np.nan)
    for chosen, rows in _stack_alike(_with_images(labels, classes), values.shape[1]):
        means[chosen] = np.asarray(values[rows], np.float64).mean(1)
    return means


def frequency_by_class(
    values: Float[ndarray, "n c"], labels: Int[ndarray, " n"], classes: int, threshold: float
) -> Float[ndarray, "k c"]:
    """Return the share of a class's images on which a channel is active (see ``active``)."""
    shares = np.full((classes, values.shape[1]), np.nan)
    for chosen, rows in _stack_alike(_with_images(labels, classes), values.shape[1]):
        shares[chosen] = active(values[rows], threshold).mean(1)
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
    for chosen, rows in _stack_alike(_with_images(labels, classes), natural.shape[1]):
        before = np.asarray(natural[rows], np.float64)
        after = np.asarray(adversarial[rows], np.float64)
        difference = after - before
        result.change[chosen] = difference.mean(1)
        if rows.shape[1] > 1:
            result.variance[chosen] = difference.var(1, ddof=1)
        was_active = active(before, threshold)
        is_active = active(after, threshold)
        result.silenced[chosen] = (was_active & ~is_active).mean(1)
        result.awakened[chosen] = (is_active & ~was_active).mean(1)
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
    kept = [np.asarray(values) for values in (natural, adversarial, relevance)]
    names: tuple[str, ...] = ()
    by_class = np.empty(0)
    found = _list_classes(labels, np.asarray(weights), classes)
    for chosen, rows, back, of_images in _stack_alike(found, natural.shape[1]):
        measures = _measure_classes(
            *(values[rows].astype(np.float64) for values in kept),
            weights=of_images.astype(np.float64),
            threshold=threshold,
            centre=centre,
            distances=distances[chosen, None],
        )
        if not names:
            names = tuple(measures)
            by_class = np.full((len(names), classes, weights.shape[1]), np.nan)
        columns = np.take_along_axis(np.stack(list(measures.values())), back[None], 2)
        columns[:, back < 0] = np.nan
        by_class[:, chosen] = columns
    return {name: by_class[place].T for place, name in enumerate(names)}


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


def _list_classes(
    labels: Int[ndarray, " n"], weights: Num[ndarray, "n r"], classes: int
) -> Iterator[tuple[int, ndarray, ndarray, ndarray]]:
    """Go through the classes that have images: number, images, and see ``_list_weights``."""
    for k, rows in _with_images(labels, classes):
        distinct, back = _list_weights(weights[rows])
        yield k, rows, back, distinct


def _list_weights(
    weights: Num[ndarray, "n r"],
) -> tuple[Num[ndarray, "n q"], Int[ndarray, " r"]]:
    """Return the weights that differ, and which of these each replicate has; -1 for all 0.

    Weights of one proportion are equal: of two images some 15 of 500 differ. Many images have many.
    """
    if len(weights) > _FEW_WEIGHTS:
        present = weights.any(0)
        return weights[:, present], np.where(present, np.cumsum(present) - 1, -1)
    # The smallest whole weights of one proportion, a byte each, are its key.
    whole = weights.astype(np.uint8)
    smallest = whole // np.maximum(np.gcd.reduce(whole, axis=0), 1)
    places = 1 << 8 * np.arange(len(whole), dtype=np.uint64)
    keys, first, back = np.unique(
        smallest.T.astype(np.uint64) @ places, return_index=True, return_inverse=True
    )
    lacking = int(keys[0] == 0)
    return weights[:, first[lacking:]], back - lacking


def _measure_classes(
    natural: Float[ndarray, "g n c"],
    adversarial: Float[ndarray, "g n c"],
    relevance: Float[ndarray, "g n c"],
    *,
    weights: Float[ndarray, "g n q"],
    threshold: float,
    centre: Float[ndarray, " c"],
    distances: Float[ndarray, "g 1"],
) -> dict[str, Float[ndarray, "g q"]]:
    """Measure some classes of equally many images, under each of their weights.

    Replicates share the centre and the distance: their own error is small beside a class's.
    """
    constant = (relevance == relevance[:, :1]).all()
    measures = measure_all(
        weighted_means(natural, weights),
        weighted_means(adversarial, weights),
        # The last layer's weights are the same for all images of a class: no replicate differs.
        relevance[:, :1] if constant else weighted_means(relevance, weights),
        centre,
        distances,
    )
    for name, values in (("natural", natural), ("adversarial", adversarial)):
        measures[f"uniformity_{name}"] = _measure_uniformity(active(values, threshold), weights)
    return measures


def _measure_uniformity(
    is_active: Bool[ndarray, "g n c"], weights: Float[ndarray, "g n q"]
) -> Float[ndarray, "g q"]:
    """Measure the uniformity of the frequency with which channels are active, by weights."""
    n = is_active.shape[1]
    if n > _FEW_KINDS:
        return uniformity(weighted_means(is_active.astype(float), weights))
    # A channel's kind is a number whose bits are the images that it is active on.
    kinds = (
        np.tensordot(1 << np.arange(n), is_active, (0, 1))
        + 2**n * np.arange(len(is_active))[:, None]
    )
    counts = np.bincount(kinds.ravel(), minlength=2**n * len(is_active)).reshape(-1, 1, 2**n)
    of_kinds = (np.arange(2**n) >> np.arange(n)[:, None] & 1).astype(float)
    return uniformity(weighted_means(of_kinds, weights), counts)


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
    values: Float[ndarray, "*#g n c"], weights: Num[ndarray, "*#g n r"]
) -> Float[ndarray, "*g r c"]:
    """Return the mean of the rows under each column of weights; NaN where these sum to 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: ndarray = (weights.swapaxes(-1, -2) @ values) / weights.sum(-2)[..., None]
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


def _stack_alike(items: Iterable[tuple[Any, ...]], channels: int) -> Iterator[tuple[ndarray, ...]]:
    """Stack items, their last arrays being of one shape: what is measured of them fits a cache.

    Calling numpy for the few rows of a small class takes longer than what it does with them.
    """
    waiting: dict[tuple[int, ...], list[tuple[Any, ...]]] = {}
    for item in items:
        shape = item[-1].shape
        alike = waiting.setdefault(shape, [])
        alike.append(item)
        if len(alike) * shape[-1] * channels >= _STACK:
            yield tuple(map(np.array, zip(*alike, strict=True)))
            alike.clear()
    for alike in filter(None, waiting.values()):
        yield tuple(map(np.array, zip(*alike, strict=True)))


def _with_images(
    labels: Int[ndarray, " n"], classes: int
) -> Iterator[tuple[int, Int[ndarray, " n_k"]]]:
    """Go through the classes that have images, with the indices of these."""
    for k, rows in enumerate(rows_by_class(labels, classes)):
        if len(rows):
            yield k, rows
