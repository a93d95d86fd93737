"""Changes: where a curve over epochs jumps, tested against curves that only bend and scatter."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_HALF = 3  # values on either side of a jump that tell how large it is
_SKIPPED = 8  # one value of so many, at the beginning, is left out
FEWEST_VALUES = 14  # that leave 12 after these: fewer hold no clear jump
_PERSISTENCE = (0.0, 0.5, 0.9, 1.0)  # of the scatter under the null: none to a random walk
_TAILS, _CALM = 6, 0.5  # degrees of freedom of heavy tails; scatter beside what it was before
_DRAWS = 4000
_NOTHING = 1e-12  # what rounding leaves of the jump of a constant


class Change(NamedTuple):
    """The largest jump of a curve; NaN for a curve of too few values.

    Args:
        before, epoch: the jump lies between these two epochs.
        step: its size.
        p: how often a curve without a jump has as large a one beside its others.
    """

    before: float
    epoch: float
    step: float
    p: float


UNKNOWN = Change(math.nan, math.nan, math.nan, math.nan)


def find_change(epochs: Float[ndarray, " t"], values: Float[ndarray, " t"]) -> Change:
    """Return the largest jump of a curve, and whether it is larger than its others allow.

    At every place two parallel lines are fitted to the three values before and the three after it;
    their distance is the jump there. The statistic is the largest jump over the root mean square of
    those at least three places away from it: a curve that bends, or scatters, does so everywhere.
    Its null distribution is drawn (4,000 curves of so many values at these epochs) for Gaussian
    scatter, each value with 0, 0.5, 0.9 or all of the one before; for heavy tails (Student's t with
    6 degrees of freedom); and for scatter that halves after half of the values, as where
    a learning rate ends. The largest p of the six counts, so it holds for independent scatter and
    for a random walk alike. The first eighth of the values is left out: there networks learn most,
    and no line fits.

    Args:
        epochs: ascending.
        values: at these epochs; those that are NaN do not count.
    """
    present = ~np.isnan(values)
    if present.sum() < FEWEST_VALUES:
        return UNKNOWN
    skipped = math.ceil(present.sum() / _SKIPPED)
    epochs, values = epochs[present][skipped:], values[present][skipped:]
    weights = _weigh_jumps(epochs)
    jumps = weights @ values
    statistics, places = _compare_jumps(jumps[None])
    place = int(places[0])
    step = float(jumps[place])
    p = 1.0
    if abs(step) > _NOTHING * np.abs(values).max(initial=1.0):
        as_large = [(null >= statistics[0]).sum() for null in _draw_null(tuple(epochs))]
        p = (1 + max(as_large)) / (1 + _DRAWS)
    middle = place + _HALF
    return Change(float(epochs[middle - 1]), float(epochs[middle]), step, float(p))


def _weigh_jumps(epochs: Float[ndarray, " t"]) -> Float[ndarray, "places t"]:
    """Return the weights of the values in the jump at each place: least squares with a line."""
    places = len(epochs) - 2 * _HALF + 1
    weights = np.zeros((places, len(epochs)))
    side = np.repeat([-0.5, 0.5], _HALF)
    for place in range(places):
        window = slice(place, place + 2 * _HALF)
        line = epochs[window] - epochs[window].mean()
        alone = side - line * (line @ side) / (line @ line)  # what no line explains of the jump
        weights[place, window] = alone / (alone @ alone)
    return weights


def _compare_jumps(jumps: Float[ndarray, "n places"]) -> tuple[ndarray, ndarray]:
    """Return the largest jump of each curve in units of its others, and its place."""
    sizes = np.abs(jumps)
    places = sizes.argmax(1)
    largest = sizes[np.arange(len(sizes)), places]
    is_far = np.abs(np.arange(sizes.shape[1]) - places[:, None]) >= _HALF
    others = np.sqrt((sizes**2 * is_far).sum(1) / is_far.sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return largest / others, places


@lru_cache(maxsize=64)
def _draw_null(epochs: tuple[float, ...]) -> list[Float[ndarray, " draws"]]:
    """Draw the statistic of curves without a jump, for each kind of scatter."""
    rng = np.random.default_rng(0)
    shape = _DRAWS, len(epochs)
    curves = [rng.standard_t(_TAILS, shape), rng.standard_normal(shape)]
    curves[1][:, len(epochs) // 2 :] *= _CALM
    for persistence in _PERSISTENCE:
        noise = rng.standard_normal(shape)
        for place in range(1, len(epochs)):
            noise[:, place] += persistence * noise[:, place - 1]
        curves.append(noise)
    weights = _weigh_jumps(np.array(epochs)).T
    return [_compare_jumps(noise @ weights)[0] for noise in curves]


def measure_scatter(values: Float[ndarray, " t"]) -> tuple[float, float]:
    """Return the variance of a curve's values about a smooth course, and its degrees of freedom.

        variance = mean_t (x[t-1] - 2 x[t] + x[t+1])^2 / 6

    Second differences, as a line has none (von Neumann's successive differences, Annals of
    Mathematical Statistics 12, 1941, once more). They overlap, and count as half as many. NaN for
    fewer than five values.
    """
    if len(values) < 5:
        return math.nan, math.nan
    differences = np.diff(values, 2)
    return float((differences**2).mean() / 6), len(differences) / 2
