"""Alignment: the papers' measures to the last tie, and intervals that hold their estimate."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy import ndarray

import reference
from channelscope.analyses.base import judge_estimate
from channelscope.statistics import measures
from channelscope.statistics.intervals import (
    FEWEST_REPLICATES,
    Estimate,
    average_intervals,
    estimate,
    estimate_bounded_columns,
    estimate_columns,
    paired_difference,
    wilson,
)
from channelscope.statistics.measures import (
    BOUNDS,
    across_classes,
    mean_over_classes,
    measure_all,
)

# Few different values make ties; their negatives and 0 make empty sums.
values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(-5, 5, width=16)
PAIRS: dict[str, tuple[Callable[..., ndarray], Callable[..., float]]] = {
    "cosine": (measures.cosine, reference.cosine),
    "spearman": (measures.spearman, reference.spearman),
    "shift": (measures.shift, reference.shift),
    "nr_share": (measures.nr_share, reference.nr_share),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[ndarray, ndarray]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8)))
    return tuple(draw(arrays.arrays(np.float64, shape, elements=values)) for _ in range(2))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize("name", PAIRS)
@given(pair=pairs())
def test_measure_is_the_papers_along_the_last_axis(
    name: str, pair: tuple[ndarray, ndarray]
) -> None:
    ours, papers = PAIRS[name]
    found = ours(*pair)
    for index in np.ndindex(found.shape):
        wanted = papers(pair[0][index].tolist(), pair[1][index].tolist())
        assert found[index] == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)


@given(pairs())
def test_uniformity_is_the_normalised_entropy(pair: tuple[ndarray, ndarray]) -> None:
    frequency = np.clip(pair[0], 0, 1)
    found = measures.uniformity(frequency)
    for index in np.ndindex(found.shape):
        wanted = reference.uniformity(frequency[index].tolist())
        assert found[index] == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


def test_uniformity_is_1_where_all_channels_are_alike_and_0_where_one_is_alone() -> None:
    frequency = np.array([[0.2, 0.2, 0.2], [0.7, 0, 0], [0, 0, 0], [0.5, np.nan, 0.5]])
    assert measures.uniformity(frequency) == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)


@given(pairs())
def test_overlap_is_the_jaccard_index_of_pr_channels(pair: tuple[ndarray, ndarray]) -> None:
    found = measures.overlap(pair[0])
    for index in np.ndindex(found.shape[:-2]):
        for j, k in np.ndindex(found.shape[-2:]):
            wanted = reference.overlap(pair[0][index][j].tolist(), pair[0][index][k].tolist())
            assert found[index][j, k] == pytest.approx(wanted, nan_ok=True)


def test_overlap_with_an_unknown_class_is_unknown() -> None:
    relevance = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [np.nan, 1.0, 1.0]])
    assert measures.overlap(relevance)[:2, :2].tolist() == [
        [1, pytest.approx(1 / 3)],
        [pytest.approx(1 / 3), 1],
    ]
    assert np.isnan(measures.overlap(relevance)[2]).all()


@settings(max_examples=15)
@given(pair=pairs())
def test_all_measures_follow_from_activation_and_relevance(pair: tuple[ndarray, ndarray]) -> None:
    natural, adversarial = np.abs(pair)
    relevance = pair[0] - pair[1]
    found = measure_all(natural, adversarial, relevance)
    others = {"relevance_robust_correlation", "uniformity_natural", "uniformity_adversarial"}
    assert found.keys() == BOUNDS.keys() - others
    for index in np.ndindex(natural.shape[:-1]):
        a, b, g = (part[index].tolist() for part in (natural, adversarial, relevance))
        shares = reference.nr_share(a, g), reference.nr_share(b, g)
        wanted = {
            "cosine": reference.cosine(a, b),
            "spearman": reference.spearman(a, b),
            "shift": reference.shift(a, b),
            "nr_share_natural": shares[0],
            "nr_share_adversarial": shares[1],
            "nr_ratio": shares[1] / shares[0] if shares[0] else math.nan,
            "relevance_spearman_natural": reference.spearman(a, g),
            "relevance_spearman_adversarial": reference.spearman(b, g),
        }
        assert {name: float(value[index]) for name, value in found.items()} == pytest.approx(
            wanted, rel=1e-9, abs=1e-9, nan_ok=True
        )


@given(pair=pairs())
def test_measures_stay_in_their_bounds(pair: tuple[ndarray, ndarray]) -> None:
    for name, value in measure_all(np.abs(pair[0]), np.abs(pair[1]), pair[0]).items():
        low, high = BOUNDS[name]
        defined = value[~np.isnan(value)]
        assert (defined >= low - 1e-9).all(), name
        assert (defined <= high + 1e-9).all(), name


def test_equal_activation_is_fully_aligned() -> None:
    a = rng().random((2, 3, 6))
    found = measure_all(a, a, rng().standard_normal((2, 3, 6)))
    for name, value in {"cosine": 1, "spearman": 1, "shift": 0, "nr_ratio": 1}.items():
        np.testing.assert_allclose(found[name], value, atol=1e-12)


def test_spearman_is_scipys() -> None:
    a, b = rng().integers(0, 4, (2, 1, 9)).astype(float)
    assert measures.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a[0], b[0]).statistic)


def test_pearson_is_numpys() -> None:
    a, b = rng().random((2, 1, 9))
    assert measures.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_nr_share_counts_negative_relevance_only() -> None:
    magnitude, relevance = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[-1.0, 0.0, 1.0, -0.1]])
    assert measures.nr_share(magnitude, relevance) == 0.5


def test_class_without_images_stays_nan() -> None:
    a, g = rng().random((2, 3, 6)), rng().standard_normal((2, 3, 6))
    a[:, 1], g[:, 1] = np.nan, np.nan
    for name, value in measure_all(a, a, g).items():
        assert np.isnan(value[:, 1]).all(), name
        assert not np.isnan(value[:, [0, 2]]).any(), name


def test_channels_that_are_never_active_align_with_nothing() -> None:
    a, g = np.zeros((1, 3, 4)), rng().standard_normal((1, 3, 4))
    for name, value in measure_all(a, 1 - a, g).items():
        assert np.isnan(value).all() or name == "nr_share_adversarial", name


def test_few_far_replicates_do_not_move_the_interval_off_the_estimate() -> None:
    found = estimate(np.array([0.5] * 99 + [1000.0]), 0.95)
    assert found.low <= 0.5 <= found.high


# ---------------------------------------------------------------- classes


def test_across_classes_correlates_those_that_have_images() -> None:
    aligned, robust = rng().random((4, 6)), rng().random((4, 6))
    aligned[:, 2], robust[:, 4] = np.nan, np.nan
    present = [0, 1, 3, 5]
    wanted = [
        reference.spearman(aligned[r, present].tolist(), robust[r, present].tolist())
        for r in range(4)
    ]
    np.testing.assert_allclose(across_classes(aligned, robust), wanted)


def test_across_classes_is_nan_for_a_replicate_that_lacks_a_class() -> None:
    aligned, robust = rng().random((3, 5)), rng().random((3, 5))
    aligned[1, 2] = np.nan
    assert np.isnan(across_classes(aligned, robust)).tolist() == [False, True, False]


@pytest.mark.parametrize("absent", [2, 3, 4])
def test_across_fewer_than_three_classes_there_is_no_correlation(absent: int) -> None:
    aligned, robust = rng().random((3, 4)), rng().random((3, 4))
    aligned[:, :absent] = np.nan
    assert np.isnan(across_classes(aligned, robust)).all()


def test_mean_over_classes_leaves_absent_ones_out() -> None:
    assert mean_over_classes(
        np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    ).tolist() == pytest.approx([2.0, np.nan], nan_ok=True)


# ---------------------------------------------------------------- intervals


@given(
    arrays.arrays(np.float64, st.integers(2, 60), elements=st.floats(-1, 1) | st.just(math.nan)),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_interval_holds_the_estimate_and_stays_in_its_bounds(
    replicates: ndarray, level: float
) -> None:
    found = estimate(replicates, level, (-1.0, 1.0))
    if np.isnan(replicates[0]) or (~np.isnan(replicates[1:])).sum() < FEWEST_REPLICATES:
        assert np.isnan([found.low, found.high]).all()
        return
    assert found.value == replicates[0]
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_interval_of_a_mean_is_the_textbooks() -> None:
    found = estimate(np.concatenate([[5.0], rng().normal(5.0, 0.3, 20_000)]), 0.95)
    assert (found.low, found.high) == pytest.approx((5 - 1.96 * 0.3, 5 + 1.96 * 0.3), abs=0.02)


def test_interval_lies_around_the_estimate_though_the_replicates_do_not() -> None:
    replicates = np.concatenate([[0.8], rng().normal(0.6, 0.05, 4000)])
    found = estimate(replicates)
    assert found.low + found.high == pytest.approx(1.6, abs=0.02)


def test_higher_level_widens_the_interval() -> None:
    replicates = rng().normal(0, 1, 500)
    low, high = estimate(replicates, 0.5), estimate(replicates, 0.99)
    assert high.low < low.low < low.high < high.high


def test_replicates_that_are_nan_are_left_out() -> None:
    replicates = rng().normal(0, 1, 50)
    assert estimate(np.concatenate([replicates, [np.nan] * 5])) == estimate(replicates)


@pytest.mark.parametrize("replicates", [[np.nan, 1.0, 2.0], [1.0], [1.0, np.nan]], ids=str)
def test_interval_of_nothing_is_nan(replicates: list[float]) -> None:
    found = estimate(np.array(replicates))
    assert found.value == pytest.approx(replicates[0], nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("low", "high", "null", "verdict"),
    [
        (0.1, 0.3, 0.0, "supported"),
        (0.0, 0.3, 0.0, "inconclusive"),
        (-0.1, 0.3, 0.0, "inconclusive"),
        (-0.3, 0.0, 0.0, "not supported"),
        (-0.3, -0.1, 0.0, "not supported"),
        (0.9, 1.2, 1.0, "inconclusive"),
        (1.1, 1.2, 1.0, "supported"),
        (0.8, 0.9, 1.0, "not supported"),
        (math.nan, math.nan, 0.0, "inconclusive"),
    ],
)
def test_verdict_follows_from_where_the_interval_lies(
    low: float, high: float, null: float, verdict: str
) -> None:
    assert judge_estimate(Estimate((low + high) / 2, low, high), null) == verdict


def test_few_replicates_and_intervals_of_no_width_decide_nothing() -> None:
    few = estimate(np.linspace(0.4, 0.6, FEWEST_REPLICATES))  # one of them is the estimate itself
    assert np.isnan([few.low, few.high]).all()
    assert judge_estimate(few) == "inconclusive"
    assert judge_estimate(estimate(np.zeros(201))) == "inconclusive"
    assert judge_estimate(estimate(np.full(201, 0.3))) == "inconclusive"


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (187, 500)])
def test_wilson_is_where_the_score_test_turns(count: int, n: int, level: float) -> None:
    """Both ends are the shares p with |count / n - p| = z sqrt(p (1 - p) / n)."""
    found, z = wilson(count, n, level), NormalDist().inv_cdf((1 + level) / 2)
    assert found.value == count / n
    for end in (found.low, found.high):
        assert abs(count / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.low < found.high


def test_wilson_of_nothing_is_unknown() -> None:
    assert all(math.isnan(value) for value in vars(wilson(0, 0)).values())


def make_pair(counts: tuple[int, int, int, int]) -> tuple[ndarray, ndarray]:
    """Make two classifiers' answers: how often both, only one, only the other, neither is right."""
    ours = np.repeat([True, True, False, False], counts)
    return ours, np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((53, 1, 0, 0), -0.0496, 0.0977),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((0, 30, 0, 0), 0.8395, 1.0),
    ],
)
def test_paired_difference_is_newcombes_of_his_examples(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Statistics in Medicine 17, 1998: method 10 on cases of the paper's table of examples."""
    difference = paired_difference(*make_pair(counts))
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=5e-5)


@given(
    st.tuples(*[st.integers(0, 20)] * 4).filter(any),
    st.sampled_from([0.9, 0.95]),
)
def test_paired_difference_is_the_naive_one(
    counts: tuple[int, int, int, int], level: float
) -> None:
    ours, theirs = make_pair(counts)
    difference = paired_difference(ours, theirs, level)
    expected = reference.paired_difference(ours.tolist(), theirs.tolist(), level)
    assert (difference.value, difference.low, difference.high) == pytest.approx(expected, abs=1e-9)
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    assert difference.low < difference.high
    turned = paired_difference(theirs, ours, level)
    assert (turned.low, turned.high) == pytest.approx((-difference.high, -difference.low))


@pytest.mark.parametrize(("images", "decides"), [(1, False), (4, False), (5, True), (30, True)])
def test_few_images_that_differ_alike_decide_nothing(images: int, decides: bool) -> None:
    """By chance four go to the same side in one of eight cases, and five in one of sixteen."""
    difference = paired_difference(*make_pair((0, images, 0, 0)))
    assert (difference.low > 0) == decides


def test_paired_difference_of_nothing_is_unknown() -> None:
    assert all(
        math.isnan(value) for value in vars(paired_difference(*make_pair((0,) * 4))).values()
    )


def test_averaged_intervals_are_those_of_quantities_that_move_together() -> None:
    each = Estimate(0.2, 0.1, 0.4)
    assert vars(average_intervals([each, each])) == pytest.approx(vars(each))
    mean = average_intervals([each, Estimate(0.0, -0.2, 0.2)])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.1, -0.05, 0.3))
    assert math.isnan(average_intervals([]).value)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_replicates_that_are_all_alike_have_the_interval_of_images_not_seen(value: float) -> None:
    _, low, high = estimate_bounded_columns(np.full((60, 1), value), 30, 0.95, (0.0, 1.0))
    unseen = wilson(0, 30).high
    assert low[0] == pytest.approx((1 - unseen) * value)
    assert high[0] == pytest.approx(value + unseen * (1 - value))
    if value in (0, 1):
        share = wilson(int(30 * value), 30)
        assert (low[0], high[0]) == pytest.approx((share.low, share.high))


def test_replicates_that_vary_have_the_bootstraps_interval() -> None:
    replicates = np.random.default_rng(0).uniform(size=(60, 3))
    bounded = estimate_bounded_columns(replicates, 30, 0.95, (0.0, 1.0))
    assert np.array_equal(bounded, estimate_columns(replicates, 0.95, (0.0, 1.0)))
    few = estimate_bounded_columns(replicates[:5], 30, 0.95, (0.0, 1.0))
    assert np.isnan(few[1:]).all()
