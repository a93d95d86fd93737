"""Correlation across classes, tested by permuting the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri

from channelscope.statistics.measures import rank

_NO_SPREAD = 1e-9


class Correlation(NamedTuple):
    """A rank correlation, its interval, and the p of its permutation test (two-sided)."""

    value: float
    low: float
    high: float
    p: float


UNKNOWN = Correlation(float("nan"), float("nan"), float("nan"), float("nan"))


def correlate_given(
    pairs: Sequence[tuple[Float[ndarray, " k"], Float[ndarray, " k"]]],
    given: Sequence[Float[ndarray, " k"]],
    *,
    level: float = 0.95,
    permutations: int = 9999,
    seed: int = 0,
) -> Correlation:
    """Correlate two quantities of classes, given a third: partial rank correlation.

    Of each pair (x, y), both are ranked, and what a line in the ranks of ``given`` explains is
    taken off; the value is the mean over the pairs of the residuals' correlation. p counts how
    often it is as large when the residuals of y are exchanged among the classes, in all pairs alike
    (Freedman & Lane, J. Business & Economic Statistics 1, 1983):

        p = (1 + #{|r*| >= |r|}) / (1 + permutations)

    The interval is Fisher's, with the variance (1 + r^2 / 2) / (k - 4) of a rank correlation given
    one more quantity (Bonett & Wright, Psychometrika 65, 2000).

    Args:
        pairs: (x, y), both of the same k classes.
        given: of each pair, what it is taken given.
        level: coverage of the interval.
        permutations, seed: of the test.

    Returns:
        NaN for fewer than 5 classes, for NaN, and where nothing varies.
    """
    classes = len(given[0])
    values = np.array([*(array for pair in pairs for array in pair), *given])
    if classes < 5 or np.isnan(values).any():
        return UNKNOWN
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(classes), (permutations, 1)), axis=1)
    orders = np.vstack([np.arange(classes), orders])
    correlations = np.zeros(len(orders))
    for (x, y), control in zip(pairs, given, strict=True):
        residual_x, residual_y = (_residual(rank(values), rank(control)) for values in (x, y))
        if min(np.abs(residual_x).max(), np.abs(residual_y).max()) < _NO_SPREAD:
            return UNKNOWN
        exchanged = _residual(residual_y[orders], rank(control))
        sizes = np.linalg.norm(exchanged, axis=1) * np.linalg.norm(residual_x)
        correlations += (exchanged @ residual_x) / np.maximum(sizes, _NO_SPREAD) / len(pairs)
    value = float(np.clip(correlations[0], -1, 1))
    as_large = int((np.abs(correlations[1:]) >= abs(value) - 1e-12).sum())
    reach = float(ndtri((1 + level) / 2)) * np.sqrt((1 + value**2 / 2) / (classes - 4))
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    low, high = map(float, np.tanh([middle - reach, middle + reach]))
    p = (1 + as_large) / (1 + permutations)
    return Correlation(value, min(low, value), max(high, value), p)  # the middle of 1 is below 1


def _residual(values: Float[ndarray, "*n k"], control: Float[ndarray, " k"]) -> ndarray:
    """Return what the best line in ``control`` leaves of values."""
    line = control - control.mean()
    centred = values - values.mean(-1, keepdims=True)
    square = line @ line
    if square < _NO_SPREAD:
        return centred
    residual: ndarray = centred - (centred @ line)[..., None] / square * line
    return residual
