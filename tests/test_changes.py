"""Where a curve jumps, against curves that only bend and scatter."""

from collections.abc import Callable

import numpy as np
import pytest

from channelscope.statistics.changes import FEWEST_VALUES, find_change, measure_scatter

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _walk(rng: np.random.Generator, epochs: np.ndarray) -> np.ndarray:
    return rng.normal(size=len(epochs)).cumsum()


NULLS: dict[str, Draw] = {
    "scatter": lambda rng, epochs: rng.normal(size=len(epochs)),
    "heavy tails": lambda rng, epochs: rng.standard_t(6, size=len(epochs)),
    "random walk": _walk,
    "steep learning": lambda rng, epochs: 60 * (1 - np.exp(-epochs)) + rng.normal(size=len(epochs)),
    "slow learning": lambda rng, epochs: (
        60 * (1 - np.exp(-epochs / 8)) + rng.normal(size=len(epochs))
    ),
    "a line": lambda rng, epochs: 5 * epochs + rng.normal(size=len(epochs)),
    "calmer later": lambda rng, epochs: (
        rng.normal(size=len(epochs)) * np.where(epochs > 13, 0.5, 1)
    ),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_curve_without_a_jump_rarely_has_one(name: str) -> None:
    rng = np.random.default_rng(0)
    epochs = np.arange(1.0, 21.0)
    p = np.array([find_change(epochs, NULLS[name](rng, epochs)).p for _ in range(400)])
    assert (p < 0.05).mean() < 0.05 + 2.4 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("place", [8, 20, 34])
def test_a_planted_jump_is_located(place: int) -> None:
    rng = np.random.default_rng(place)
    epochs = np.arange(2.0, 82.0, 2.0)
    values = 0.5 * (1 - np.exp(-epochs / 6)) + 0.005 * rng.normal(size=40)
    values[place:] -= 0.15
    change = find_change(epochs, values)
    assert (change.before, change.epoch) == (epochs[place - 1], epochs[place])
    assert change.p < 0.005
    assert change.step == pytest.approx(-0.15, abs=0.02)


def test_curves_of_any_kind_have_an_answer() -> None:
    epochs = np.arange(20.0)
    assert find_change(epochs, np.full(20, 0.3)).p == 1
    assert find_change(epochs, 0.1 * epochs).p == 1, "rounding is no jump"
    clean = find_change(epochs, (epochs >= 10).astype(float))
    assert (clean.epoch, clean.step) == (10, pytest.approx(1))
    assert clean.p < 0.001
    assert np.isnan(find_change(epochs[: FEWEST_VALUES - 1], epochs[: FEWEST_VALUES - 1]).p)
    gaps = np.where(epochs % 10 == 9, np.nan, epochs >= 10)
    assert find_change(epochs, gaps).epoch == 10
    assert np.isnan(find_change(epochs, np.full(20, np.nan)).epoch)


def test_scatter_is_that_about_a_smooth_course() -> None:
    rng = np.random.default_rng(0)
    curve = 3 * np.arange(2000) + rng.normal(0, 0.2, 2000)
    variance, df = measure_scatter(curve)
    assert variance == pytest.approx(0.04, rel=0.15)
    assert df == 999
    assert np.isnan(measure_scatter(curve[:4])[0])
