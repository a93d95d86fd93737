"""Similarity: CKA is that of the papers, with its invariances; permuted channels are matched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

import reference
from channelscope.statistics.similarity import (
    cka,
    compute_hsic,
    match_channels,
    normalise_hsic,
    standardise,
)

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 6)


def layer(rng: np.random.Generator, n: int, channels: int) -> ndarray:
    """Draw activations that share something, as those of any two layers on the same images do."""
    common = np.linspace(-1, 1, n)[:, None] * rng.normal(size=channels)
    return np.maximum(0, common + rng.normal(size=(n, channels))) + 0.1 * rng.random((n, channels))


def rotation(rng: np.random.Generator, channels: int) -> ndarray:
    return np.linalg.qr(rng.normal(size=(channels, channels)))[0]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(4, 7), widths, widths)
def test_cka_is_that_of_the_papers(seed: int, n: int, c: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = layer(rng, n, c), layer(rng, n, d)
    assert cka(a, b) == pytest.approx(reference.cka(a.tolist(), b.tolist()), rel=1e-6, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(4, 30), widths, widths, st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_cka_does_not_see_rotation_scale_place_or_order(
    seed: int, n: int, c: int, d: int, scale: float, place: float
) -> None:
    rng = np.random.default_rng(seed)
    a, b = layer(rng, n, c), layer(rng, n, d)
    found = cka(a, b)
    assert cka(b, a) == pytest.approx(found, abs=1e-6)
    assert cka(scale * a @ rotation(rng, c) + place, b) == pytest.approx(found, abs=1e-6)
    assert cka(a, b[:, rng.permutation(d)]) == pytest.approx(found, abs=1e-6)
    order = rng.permutation(n)
    assert cka(a[order], b[order]) == pytest.approx(found, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(4, 20), widths, widths)
def test_cka_lies_between_minus_one_and_one_and_is_one_with_itself(
    seed: int, n: int, c: int, d: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = layer(rng, n, c), layer(rng, n, d)
    assert -1 - 1e-9 <= cka(a, b) <= 1 + 1e-9
    assert cka(a, a) == pytest.approx(1)


def test_unrelated_layers_have_no_cka_though_channels_outnumber_images() -> None:
    """The biased estimator is above 0.7 here."""
    rng = np.random.default_rng(0)
    found = [cka(rng.normal(size=(40, 100)), rng.normal(size=(40, 100))) for _ in range(30)]
    assert abs(np.mean(found)) < 0.01
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize(
    "a", [np.ones((8, 3)), np.full((8, 3), 0.1), np.zeros((8, 1))], ids=["one", "tenth", "zero"]
)
def test_constant_layers_have_no_cka(a: ndarray) -> None:
    assert np.isnan(cka(a, np.random.default_rng(0).normal(size=(8, 2))))


def test_fewer_than_four_images_have_no_cka() -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(cka(rng.normal(size=(3, 2)), rng.normal(size=(3, 2))))


def test_activations_in_single_precision_far_from_zero_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = (layer(rng, 50, 4) for _ in range(2))
    far = (a + 1000).astype(np.float32)
    assert cka(far, b) == pytest.approx(cka(a, b), abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(5, 12))
def test_of_weights_only_their_proportions_matter(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = standardise(layer(rng, n, 3)), standardise(layer(rng, n, 2))
    weights = np.concatenate([np.ones((n, 1)), rng.poisson(1, (n, 5)) + 0.1], 1)
    found = compute_hsic(a, b, weights)
    assert compute_hsic(a, b, 7 * weights) == pytest.approx(found)
    for_each = np.concatenate([np.ones((n, 1)), 1 + np.eye(n)], 1)
    assert compute_hsic(a, b, for_each)[1:].mean() == pytest.approx(found[0])


def test_replicates_spread_as_estimates_of_new_images_do() -> None:
    rng = np.random.default_rng(0)
    mixing, n = rng.normal(size=(3, 12)), 150

    def draw() -> tuple[ndarray, ndarray]:
        common = rng.normal(size=(n, 3))
        return np.maximum(0, common @ mixing), np.maximum(
            0, common @ mixing[:, :5] + 2 * rng.normal(size=(n, 5))
        )

    spread = np.std([cka(*draw()) for _ in range(150)])
    a, b = map(standardise, draw())
    weights = np.concatenate([np.ones((n, 1)), rng.poisson(1, (n, 300))], 1).astype(float)
    replicates = normalise_hsic(
        compute_hsic(a, b, weights), compute_hsic(a, a, weights), compute_hsic(b, b, weights)
    )
    assert replicates[0] == pytest.approx(cka(a, b))
    assert np.std(replicates[1:]) == pytest.approx(spread, rel=0.25)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 20))
def test_permuted_channels_are_found_again(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    a, order = layer(rng, 25, channels), rng.permutation(channels)
    found = match_channels(a, 3 * a[:, order] + 1)
    np.testing.assert_array_equal(order[found.other], found.channel)
    assert sorted(found.channel) == list(range(channels))
    np.testing.assert_allclose(found.correlation, 1)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_no_other_pairs_correlate_more(seed: int, c: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = layer(rng, 9, c), layer(rng, 9, d)
    found = match_channels(a, b)
    correlations = np.corrcoef(a.T, b.T)[:c, c:]
    assert len(set(found.channel)) == len(set(found.other)) == min(c, d)
    np.testing.assert_allclose(found.correlation, correlations[found.channel, found.other])
    assert found.correlation.sum() == pytest.approx(reference.best_match(correlations.tolist()))
    assert (np.diff(found.correlation) <= 0).all()


def test_a_channel_that_never_varies_is_matched_last_and_correlates_with_nothing() -> None:
    rng = np.random.default_rng(0)
    a = layer(rng, 20, 3)
    b = a.copy()
    b[:, 0] = 0.1
    found = match_channels(a, b)
    assert found.channel.tolist()[2] == found.other.tolist()[2] == 0
    np.testing.assert_allclose(found.correlation, [1, 1, np.nan])
