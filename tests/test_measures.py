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
from channelscope.statistics.channels import mass_replicates, measure_replicates
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


def measure(
    natural: ndarray, adversarial: ndarray, relevance: ndarray, centre: ndarray | float = 0.0
) -> dict[str, ndarray]:
    """Measure by a centre of the classes, their distance being 2."""
    centre = np.broadcast_to(centre, natural.shape[-1:])
    return measure_all(natural, adversarial, relevance, centre, 2.0)


@settings(max_examples=15)
@given(pair=pairs(), middle=st.floats(-1, 1))
def test_all_measures_follow_from_activation_and_relevance(
    pair: tuple[ndarray, ndarray], middle: float
) -> None:
    natural, adversarial = np.abs(pair)
    relevance = pair[0] - pair[1]
    centre = middle * np.arange(natural.shape[-1])
    found = measure(natural, adversarial, relevance, centre)
    others = {"signed_mass_robust_correlation", "uniformity_natural", "uniformity_adversarial"}
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
            "nr_fall": reference.nr_fall(a, b, g),
            "dead_channels": reference.dead_channels(a, b),
            "cosine_centred": reference.cosine_centred(a, b, centre.tolist()),
            "displacement": reference.displacement(a, b, 2.0),
        }
        for data, magnitude in (("natural", a), ("adversarial", b)):
            of_data = {
                "relevance_spearman": reference.spearman(magnitude, g),
                "nr_mass": reference.nr_mass(magnitude, g),
                "signed_mass": reference.signed_mass(magnitude, g),
                "effective_channels": reference.effective_channels(magnitude),
            }
            wanted |= {f"{name}_{data}": value for name, value in of_data.items()}
        assert {name: float(value[index]) for name, value in found.items()} == pytest.approx(
            wanted, rel=1e-9, abs=1e-9, nan_ok=True
        )


@given(pair=pairs())
def test_measures_stay_in_their_bounds(pair: tuple[ndarray, ndarray]) -> None:
    for name, value in measure(np.abs(pair[0]), np.abs(pair[1]), pair[0]).items():
        low, high = BOUNDS[name]
        defined = value[~np.isnan(value)]
        assert (defined >= low - 1e-9).all(), name
        assert (defined <= high + 1e-9).all(), name


def test_equal_activation_is_fully_aligned() -> None:
    a = rng().random((2, 3, 6))
    found = measure(a, a, rng().standard_normal((2, 3, 6)), 0.5)
    values = {"cosine": 1, "spearman": 1, "shift": 0, "nr_ratio": 1}
    for name, value in (values | {"cosine_centred": 1, "displacement": 0}).items():
        np.testing.assert_allclose(found[name], value, atol=1e-12)
    assert np.isnan(found["nr_fall"]).all()  # no logit falls


# ---------------------------------------------------------------- measures weighted by relevance


@given(pair=pairs())
def test_signed_mass_of_activations_that_are_nowhere_negative_is_1_less_twice_the_nr_mass(
    pair: tuple[ndarray, ndarray],
) -> None:
    a, g = np.abs(pair[0]), pair[1]
    expected = 1 - 2 * measures.nr_mass(a, g)
    np.testing.assert_allclose(measures.signed_mass(a, g), expected, atol=1e-12)


@given(pair=pairs(), scale=st.floats(0.01, 100))
def test_masses_do_not_depend_on_scale(pair: tuple[ndarray, ndarray], scale: float) -> None:
    a, g = np.abs(pair[0]), pair[1]
    for name in ("nr_mass", "signed_mass"):
        of = getattr(measures, name)
        np.testing.assert_allclose(of(scale * a, g), of(a, g), atol=1e-9)
        np.testing.assert_allclose(of(a, scale * g), of(a, g), atol=1e-9)
        assert np.isnan(of(a, 0 * g)).all()
    np.testing.assert_allclose(
        measures.effective_channels(scale * a), measures.effective_channels(a)
    )
    b = np.abs(pair[1])
    np.testing.assert_allclose(
        measures.nr_fall(scale * a, scale * b, g), measures.nr_fall(a, b, g), atol=1e-6
    )


@given(pair=pairs())
def test_against_a_class_nr_channels_are_what_pr_channels_are_for_it(
    pair: tuple[ndarray, ndarray],
) -> None:
    a, g = np.abs(pair[0]), pair[1]
    np.testing.assert_allclose(measures.signed_mass(a, -g), -measures.signed_mass(a, g))
    np.testing.assert_allclose(measures.nr_mass(a, -g), 1 - measures.nr_mass(a, g), atol=1e-12)


def test_nr_mass_weighs_channels_and_nr_share_does_not() -> None:
    magnitude, relevance = np.array([[4.0, 4.0]]), np.array([[3.0, -1.0]])
    assert measures.nr_share(magnitude, relevance) == 0.5
    assert measures.nr_mass(magnitude, relevance) == 0.25
    assert measures.signed_mass(magnitude, relevance) == 0.5


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ([2.0, 0.0], [1.0, 0.0], 0.0),  # a PR channel falls
        ([2.0, 0.0], [2.0, 1.0], 1.0),  # an NR channel rises
        ([2.0, 0.0], [1.0, 3.0], 0.75),
        ([2.0, 3.0], [0.0, 2.0], -1.0),  # an NR channel falls too, which the logit gains from
        ([2.0, 0.0], [3.0, 0.0], math.nan),  # the logit rises
        ([2.0, 1.0], [2.0, 1.0], math.nan),
    ],
)
def test_nr_fall_is_the_part_of_the_logits_fall(
    before: list[float], after: list[float], part: float
) -> None:
    fall = measures.nr_fall(np.array(before), np.array(after), np.array([1.0, -1.0]))
    assert fall == pytest.approx(part, nan_ok=True)


@given(st.integers(1, 12), st.integers(1, 12))
def test_effective_channels_counts_channels_that_are_alike(active: int, silent: int) -> None:
    magnitude = np.array([[0.3] * active + [0.0] * silent])
    assert measures.effective_channels(magnitude) == pytest.approx(active)


@given(pair=pairs())
def test_effective_channels_are_at_least_one_and_at_most_all(
    pair: tuple[ndarray, ndarray],
) -> None:
    count = measures.effective_channels(pair[0])
    count = count[~np.isnan(count)]
    assert ((count > 1 - 1e-9) & (count < pair[0].shape[-1] + 1e-9)).all()


def test_dead_channels_never_fire_on_either_kind_of_image() -> None:
    natural, adversarial = np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([[0.0, 1.0, 0.0, 1.0]])
    assert measure(natural, adversarial, np.ones((1, 4)))["dead_channels"] == 0.25


# ---------------------------------------------------------------- centred measures


def measure_network(spread: float, moved: float, common: float = 5.0) -> dict[str, ndarray]:
    """Measure a network whose classes differ by ``spread``, beside what all have in common.

    An attack moves each image by noise of size ``moved``, unlike for each class.
    """
    classes, each, channels = 6, 200, 60
    draws = rng()
    labels = np.repeat(np.arange(classes), each)
    own = spread * draws.normal(size=(classes, channels))
    natural = common + own[labels] + 0.3 * draws.normal(size=(len(labels), channels))
    shifts = moved * draws.normal(size=(classes, channels))
    adversarial = natural + shifts[labels]
    relevance = draws.normal(size=(classes, channels))[labels]
    weights = np.ones((len(labels), 1))
    return measure_replicates(natural, adversarial, relevance, labels, weights, classes, 0.01)


def test_centred_cosine_of_activations_that_tell_nothing_of_the_class_is_near_0() -> None:
    """The cosine itself is near 1, as of any two means of the same activations."""
    found = measure_network(spread=0.0, moved=0.5)
    assert found["cosine"].min() > 0.98
    assert abs(found["cosine_centred"].mean()) < 0.15
    assert found["displacement"].min() > 5


def test_centred_cosine_of_classes_that_an_attack_leaves_where_they_are_is_near_1() -> None:
    found = measure_network(spread=1.0, moved=0.1)
    assert found["cosine_centred"].min() > 0.98
    assert found["displacement"].max() < 0.1


@given(st.floats(0.1, 10), st.floats(-3, 3))
def test_centred_measures_depend_on_neither_scale_nor_place(scale: float, place: float) -> None:
    draws = rng()
    labels = np.arange(40) % 4
    natural, adversarial, relevance = draws.random((3, 40, 5))
    others = (relevance, labels, np.ones((40, 1)), 4, 0.01)
    found = measure_replicates(natural, adversarial, *others)
    moved = measure_replicates(scale * natural + place, scale * adversarial + place, *others)
    for name in ("cosine_centred", "displacement"):
        np.testing.assert_allclose(moved[name], found[name], rtol=1e-6)


def test_classes_without_images_do_not_move_the_centre() -> None:
    draws = rng()
    natural, adversarial, relevance = draws.random((3, 40, 5))
    labels = np.arange(40) % 4
    for classes, places in ((4, [0, 1, 2, 3]), (6, [0, 2, 3, 5])):
        found = measure_replicates(
            natural, adversarial, relevance, np.array(places)[labels], np.ones((40, 1)), classes, 0
        )
        means = [natural[labels == k].mean(0).tolist() for k in range(4)]
        centre, distances = reference.place_classes(means)
        for k, place in enumerate(places):
            attacked = adversarial[labels == k].mean(0).tolist()
            assert found["cosine_centred"][0, place] == pytest.approx(
                reference.cosine_centred(means[k], attacked, centre)
            )
            assert found["displacement"][0, place] == pytest.approx(
                reference.displacement(means[k], attacked, distances[k])
            )
        assert np.isnan(np.delete(found["cosine_centred"][0], places)).all()


def test_with_one_class_there_is_nothing_beside_the_centre() -> None:
    a, b, g = rng().random((3, 8, 5))
    found = measure_replicates(a, b, g, np.zeros(8, np.int64), np.ones((8, 1)), 1, 0.01)
    assert np.isnan(found["cosine_centred"]).all()
    assert np.isnan(found["displacement"]).all()


@given(st.integers(0, 2**32))
def test_replicates_of_the_nr_mass_are_those_of_all_measures(seed: int) -> None:
    draws = np.random.default_rng(seed)
    natural, adversarial, relevance = draws.normal(size=(3, 20, 5))
    labels = draws.integers(3, size=20)
    weights = np.column_stack([np.ones(20), draws.poisson(1, (20, 7))])
    found = measure_replicates(natural, adversarial, relevance, labels, weights, 3, 0.01)
    for values, name in ((natural, "natural"), (adversarial, "adversarial")):
        mass = mass_replicates(values, relevance, labels, weights, 3)
        np.testing.assert_allclose(mass, found[f"nr_mass_{name}"], atol=1e-9)


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
    for name, value in measure(a, 0.9 * a, g).items():
        assert np.isnan(value[:, 1]).all(), name
        # Of a class whose logit rises there is no part of a fall.
        assert not np.isnan(value[:, [0, 2]]).any() or name == "nr_fall", name


def test_channels_that_are_never_active_align_with_nothing() -> None:
    a, g = np.zeros((1, 3, 4)), rng().standard_normal((1, 3, 4))
    found = measure(a, 1 - a, g)
    defined = {name for name, value in found.items() if not np.isnan(value).all()}
    of_adversarial = {"nr_share", "nr_mass", "signed_mass", "effective_channels"}
    others = {"dead_channels", "nr_fall", "displacement"}
    assert defined == {f"{name}_adversarial" for name in of_adversarial} | others
    assert np.isnan(measure(a, a, g)["cosine_centred"]).all()


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


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 65, 700])
def test_ranks_are_those_of_scipy_also_of_values_that_differ_by_rounding(channels: int) -> None:
    rng = np.random.default_rng(channels)
    rows = rng.normal(size=(9, channels))
    rows[0] = 0
    rows[1] = np.where(rng.random(channels) < 0.5, 0.0, -0.0)
    rows[2] = 1 + 2.0**-52 * rng.integers(0, 50, channels)
    rows[3] = -rows[2]
    rows[4] *= 1e300
    rows[5] *= 1e-310
    rows[6, : channels // 3] = np.inf
    rows[7, : channels // 3] = -np.inf
    rows[8] = np.round(rows[8], 1)
    held_back = np.maximum(rows, 0)  # by a ReLU
    for values in (rows, held_back, held_back[[1, 4, 5]], held_back[[2, 8]], 1e-310 * rows[[1, 8]]):
        np.testing.assert_array_equal(measures.rank(values), scipy.stats.rankdata(values, axis=-1))


def test_a_row_with_an_unknown_value_has_no_ranks() -> None:
    ranks = measures.rank(np.array([[3.0, np.nan, 1.0], [3.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(ranks, [[np.nan] * 3, [3, 2, 1]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_few_images_have_the_uniformity_of_their_frequencies(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.normal(size=(images, 6)), 0)
    weights = np.concatenate([np.ones((images, 1)), rng.poisson(1, (images, 5))], 1)
    labels = np.zeros(images, int)
    replicates = measure_replicates(values, values, values - 0.3, labels, weights, 1, 0.5)
    for column, weight in enumerate(weights.T):
        if weight.any():
            active = values > 0.5 * values.max(1, keepdims=True)
            expected = measures.uniformity(weight @ active / weight.sum())
            value = replicates["uniformity_natural"][column, 0]
            np.testing.assert_allclose(value, expected, atol=1e-12)
