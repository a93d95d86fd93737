"""Effects of methods: against a naive one, at their edges, and their coverage in simulations."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

import reference
from channelscope.statistics.effects import Effect, estimate_effect
from channelscope.statistics.intervals import FEWEST_REPLICATES

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.coverage import Cell, run_simulations

seeds = st.integers(0, 2**32)


def draw_groups(
    seed: int, sizes: tuple[int, ...], *, of_seeds: float = 1.0, of_images: float = 1.0, r: int = 60
) -> list[np.ndarray]:
    """Draw groups whose networks share half of their images' noise."""
    rng = np.random.default_rng(seed)
    shared = of_images * rng.normal(size=r)
    return [
        of_seeds * rng.normal(size=(size, 1)) + shared + of_images * rng.normal(size=(size, r))
        for size in sizes
    ]


@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 1), (3, 3), (1, 4), (5, 2), (2, 3, 4)])
@given(seeds, st.sampled_from([0.0, 0.3, 3.0]), st.sampled_from([0.9, 0.95]))
def test_effects_are_those_of_the_naive_one(
    sizes: tuple[int, ...], seed: int, of_seeds: float, level: float
) -> None:
    groups = draw_groups(seed, sizes, of_seeds=of_seeds)
    signs = [1.0, -1.0, -0.5][: len(sizes)]
    effect = estimate_effect(groups, signs, level)
    expected = reference.effect([group.tolist() for group in groups], signs, level)
    assert (effect.value, effect.low, effect.high, effect.p) == pytest.approx(expected, abs=1e-9)
    assert effect.seeds == min(sizes)


@given(seeds, st.integers(2, 8))
def test_without_noise_of_images_effects_are_students(seed: int, size: int) -> None:
    """One method is a t-test; two are Welch's."""
    first, second = draw_groups(seed, (size, size + 1), of_images=0)
    assert estimate_effect([first], [1]).p == pytest.approx(ttest_1samp(first[:, 0], 0).pvalue)
    welch = ttest_ind(first[:, 0], second[:, 0], equal_var=False)
    assert estimate_effect([first, second], [1, -1]).p == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.9)
    effect = estimate_effect([first, second], [1, -1], 0.9)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


@given(seeds, st.sampled_from([(3,), (1, 1), (3, 3), (2, 5)]), st.floats(0.5, 0.99))
def test_p_is_where_the_interval_reaches_0(seed: int, sizes: tuple[int, ...], level: float) -> None:
    effect = estimate_effect(draw_groups(seed, sizes), [1, -1][: len(sizes)], level)
    assert effect.low < effect.value < effect.high
    assert (effect.p > 1 - level) == (effect.low < 0 < effect.high)


@given(seeds)
def test_order_sign_and_scale_of_groups_carry_over(seed: int) -> None:
    first, second = draw_groups(seed, (3, 4))
    effect = estimate_effect([first, second], [1, -1])
    turned = estimate_effect([second[::-1], first], [1, -1])
    assert (turned.value, turned.low, turned.high, turned.p) == pytest.approx(
        (-effect.value, -effect.high, -effect.low, effect.p)
    )
    scaled = estimate_effect([10 * first, 10 * second], [1, -1])
    assert (scaled.low, scaled.high, scaled.p) == pytest.approx(
        (10 * effect.low, 10 * effect.high, effect.p)
    )


def test_noise_that_all_networks_share_cancels_in_a_difference() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=100), 0.01 * rng.normal(size=(2, 100))
    effect = estimate_effect([shared + own[:1], 0.5 + shared + own[1:]], [1, -1])
    assert -0.6 < effect.low < effect.high < -0.4
    assert effect.seeds == 1


def test_more_seeds_are_no_narrower_than_the_networks_own_images_allow() -> None:
    """Seeds that agree by chance do not make images less noisy."""
    groups = draw_groups(1, (3, 3), of_seeds=0, r=400)
    for group in groups:
        group[:, 0] = 0
    of_images = (groups[0].mean(0) - groups[1].mean(0))[1:].std(ddof=1)
    effect = estimate_effect(groups, [1, -1])
    assert effect.high == pytest.approx(1.966 * of_images, rel=1e-3)


def test_bounds_hold_the_interval() -> None:
    groups = [0.98 + 0.02 * group for group in draw_groups(2, (3,))]
    effect = estimate_effect(groups, [1], bounds=(-1, 1))
    assert effect.low < effect.value <= 1
    assert effect.high == max(1, effect.value)


def test_replicates_that_are_unknown_for_one_network_do_not_count() -> None:
    groups = draw_groups(3, (3, 2), r=80)
    without = [np.delete(group, [5, 9], 1) for group in groups]
    groups[0][1, 5] = groups[1][0, 9] = math.nan
    assert estimate_effect(groups, [1, -1]) == estimate_effect(without, [1, -1])


def test_few_replicates_and_unknown_estimates_have_no_interval() -> None:
    (group,) = draw_groups(4, (3,), r=FEWEST_REPLICATES)  # one of them is the estimate itself
    effect = estimate_effect([group], [1])
    assert effect.value == pytest.approx(group[:, 0].mean())
    assert np.isnan([effect.low, effect.high, effect.p]).all()
    (group,) = draw_groups(4, (3,), r=FEWEST_REPLICATES + 1)
    assert estimate_effect([group], [1]).p > 0
    group[1, 0] = math.nan
    assert np.isnan([*vars(estimate_effect([group], [1])).values()][:4]).all()


def test_effects_without_any_variance_decide_nothing() -> None:
    same = np.full((3, 60), 0.3)
    assert estimate_effect([same, same], [1, -1]) == Effect(0.0, 0.0, 0.0, 1.0, 3)
    effect = estimate_effect([same], [1])
    assert effect.low == effect.high == pytest.approx(0.3)
    assert math.isnan(effect.p)


def test_groups_without_their_signs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups have 1 signs"):
        estimate_effect(draw_groups(5, (2, 2)), [1])


@pytest.mark.parametrize("part", ["alone", "dominant", "equal", "small"])
@pytest.mark.parametrize("methods", [1, 2])
def test_intervals_of_three_seeds_cover_and_resampled_seeds_do_not(methods: int, part: str) -> None:
    """A few simulations; ``python -m benchmarks.coverage`` runs thousands."""
    cell = Cell(methods, 3, 200, part, shared=True)
    covered = run_simulations(cell, 400, np.random.default_rng(0))
    noise = 2.6 * math.sqrt(0.05 * 0.95 / 400)
    assert abs(covered["effect_95%"] - 0.95) < 0.03 + noise
    if part == "alone":
        assert covered["two_level_95%"] < 0.9
