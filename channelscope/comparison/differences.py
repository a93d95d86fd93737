"""Differences between networks, paired over the images and corrected for many comparisons."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared
from channelscope.statistics.alignment import estimate, estimate_change, mean_over_classes
from channelscope.statistics.significance import bootstrap_p, correct_fdr, mcnemar

MEASURES = ("cosine", "nr_ratio", "relevance_spearman_adversarial")


def frame(networks: Sequence[Compared], classes: Sequence[str], level: float) -> pd.DataFrame:
    """Lay out the frame ``differences``: of each pair of networks, the later one less the earlier.

    Measures of alignment are compared layer by layer, in order, where both networks have as many: interval and p from
    the bootstrap, in which both see the same images. The measure "robust_accuracy", in the worst case, belongs to no
    layer: its p is that of McNemar's exact test. ``q`` is corrected over all that is compared of a pair.
    """
    pairs = [_of_pair(model, other, classes, level) for other, model in combinations(networks, 2)]
    return pd.concat(pairs, ignore_index=True) if pairs else tidy("differences", [])


def _of_pair(
    model: Compared, other: Compared, classes: Sequence[str], level: float
) -> pd.DataFrame:
    rows = [*_of_layers(model, other, classes, level), *_of_accuracy(model, other, classes, level)]
    found = tidy(
        "differences", [{"model": model.label, "other": other.label, **row} for row in rows]
    )
    return found.assign(q=correct_fdr(found["p"].to_numpy()))


def _of_layers(
    model: Compared, other: Compared, classes: Sequence[str], level: float
) -> Iterator[dict[str, Any]]:
    ours, theirs = model.measures, other.measures
    if len(ours) != len(theirs):
        return
    for (layer, own), (other_layer, others) in zip(ours.items(), theirs.items(), strict=True):
        for measure in MEASURES:
            names = {"layer": layer, "other_layer": other_layer, "measure": measure}
            for row in _by_class(own[measure], others[measure], classes, level):
                yield names | row


def _by_class(
    ours: Float[ndarray, "r k"], theirs: Float[ndarray, "r k"], classes: Sequence[str], level: float
) -> Iterator[dict[str, Any]]:
    """Compare a measure over all classes, by its mean, and class by class."""
    columns = [mean_over_classes(ours) - mean_over_classes(theirs), *(ours - theirs).T]
    for name, replicates in zip(("all", *classes), columns, strict=True):
        yield {"class": name, **vars(estimate(replicates, level)), "p": bootstrap_p(replicates)}


def _of_accuracy(
    model: Compared, other: Compared, classes: Sequence[str], level: float
) -> Iterator[dict[str, Any]]:
    measured, known = model.measurement, other.measurement
    one, another = measured.worst, known.worst
    names = {"layer": "", "other_layer": "", "measure": "robust_accuracy"}
    (ours, ours_by_class), (theirs, theirs_by_class) = (
        measured.accuracy(one),
        known.accuracy(another),
    )
    columns = [ours - theirs, *(ours_by_class - theirs_by_class).T]
    for k, (name, replicates) in enumerate(zip(("all", *classes), columns, strict=True), start=-1):
        rows = np.ones(len(one), dtype=bool) if k < 0 else (measured.labels == k).numpy()
        p = mcnemar(one.numpy()[rows], another.numpy()[rows])
        row = {"class": name, **vars(estimate_change(replicates, level)), "p": p}
        yield names | row
