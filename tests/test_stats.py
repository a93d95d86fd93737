"""Channel statistics: the plain sums, whatever the batches, their order, their split and their merging."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from channelscope.statistics.streaming import ChannelStats, bootstrap_weights

STATISTICS = ("magnitude", "variance", "frequency")


def collected(
    a: Tensor, y: Tensor, w: Tensor | None = None, size: int | None = None, **options: object
) -> ChannelStats:
    """Take the statistics of activations in batches of a size."""
    replicates = 1 if w is None else w.shape[1]
    stats = ChannelStats(
        **{"classes": 4, "channels": a.shape[1], "replicates": replicates} | options
    )
    for start in range(0, len(a), size or max(len(a), 1)):
        batch = slice(start, start + (size or len(a)))
        stats.update(a[batch], y[batch], None if w is None else w[batch])
    return stats


def assert_same(a: ChannelStats, b: ChannelStats) -> None:
    torch.testing.assert_close(a.count, b.count)
    for name in STATISTICS:
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), equal_nan=True, rtol=1e-9, atol=1e-9
        )


@st.composite
def samples(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw activations (n, c), some of them 0, labels of at most three of four classes, and two columns of weights."""
    n, c, seed = draw(st.integers(1, 24)), draw(st.integers(1, 5)), draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, c, generator=generator, dtype=torch.float64)
    a = draw(st.sampled_from([a.abs(), a.relu(), a, a.sign(), 1000 + a]))
    y = torch.randint(0, 3, (n,), generator=generator)
    w = torch.randint(0, 4, (n, 2), generator=generator).double()
    return a, y, w


@given(samples(), st.sampled_from([0.0, 0.01, 0.5]))
def test_statistics_are_those_of_the_papers(
    sample: tuple[Tensor, Tensor, Tensor], threshold: float
) -> None:
    a, y, w = sample
    stats = collected(a, y, w, threshold=threshold)
    for r in range(2):
        expected = reference.channel_statistics(
            a.tolist(), y.tolist(), w[:, r].tolist(), 4, threshold
        )
        found = {"magnitude": stats.magnitude[r], "frequency": stats.frequency[r]}
        found |= {} if r else {"variance": stats.variance}
        for name, values in found.items():
            # 1000 + a loses seven digits in the difference of squares.
            wanted = torch.tensor(expected[name], dtype=torch.float64)
            torch.testing.assert_close(values, wanted, equal_nan=True, rtol=1e-9, atol=1e-8)
        assert stats.count[r].tolist() == [row[0] for row in expected["count"]]


@given(samples(), st.data())
def test_statistics_are_the_same_whatever_the_batch_size_order_and_split(
    sample: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    a, y, w = sample
    whole = collected(a, y, w)
    order = torch.tensor(data.draw(st.permutations(range(len(a)))))
    assert_same(collected(a[order], y[order], w[order], data.draw(st.integers(1, 9))), whole)
    cut = data.draw(st.integers(0, len(a)))
    parts = [collected(a[part], y[part], w[part], 3) for part in (order[:cut], order[cut:])]
    assert_same(parts[0] + parts[1], whole)
    assert_same(parts[1] + parts[0], whole)


@given(samples())
def test_integer_weights_count_an_image_as_often(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    a, y, w = sample
    often = w[:, 0].long()
    weighted, repeated = (
        collected(a, y, w[:, :1]),
        collected(a.repeat_interleave(often, 0), y.repeat_interleave(often)),
    )
    assert_same(weighted, repeated)


def test_unequal_last_batch_weighs_by_its_images() -> None:
    a = torch.tensor([[1.0], [1.0], [1.0], [9.0]])
    stats = collected(a, torch.zeros(4, dtype=torch.int64), size=3)
    assert stats.magnitude[0, 0, 0] == 3  # and not 5, the mean of the batches' means


def test_class_without_images_is_nan_with_count_zero() -> None:
    stats = collected(torch.rand(3, 2), torch.tensor([0, 0, 2]))
    assert stats.count[0].tolist() == [2, 0, 1, 0]
    for values in (stats.magnitude[0], stats.variance, stats.frequency[0]):
        assert values.isnan().all(1).tolist() == [False, True, False, True]


def test_frequency_is_the_share_of_images_on_which_a_channel_exceeds_one_percent_of_the_largest() -> (
    None
):
    a = torch.tensor([[100.0, 1.0, 1.01, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    stats = collected(a, torch.zeros(2, dtype=torch.int64))
    assert stats.frequency[0, 0].tolist() == [0.5, 0.0, 0.5, 0.0]


def test_sums_are_kept_in_double_precision() -> None:
    a = torch.cat([torch.full((1, 1), 2.0**12), torch.full((4096, 1), 2.0**-13)]).bfloat16()
    stats = collected(a, torch.zeros(len(a), dtype=torch.int64), size=100)
    assert stats.sum[0, 0, 0] == 2.0**12 + 0.5


def test_variance_of_a_constant_is_zero_and_never_below() -> None:
    stats = collected(
        torch.full((7, 3), 1e4 / 3, dtype=torch.float64), torch.zeros(7, dtype=torch.int64)
    )
    assert (stats.variance[0] >= 0).all()
    assert stats.variance[0].max() < 1e-6


def test_update_keeps_no_graph() -> None:
    a = torch.rand(3, 2, requires_grad=True)
    stats = collected(a, torch.tensor([0, 1, 1]))
    assert not stats.sum.requires_grad


def test_merging_leaves_both_parts_alone() -> None:
    a, b = (collected(torch.rand(3, 2), torch.tensor([0, 1, k])) for k in (1, 2))
    sums = a.sum.clone(), b.sum.clone()
    merged = a + b
    merged.update(torch.ones(1, 2), torch.tensor([0]))
    assert torch.equal(a.sum, sums[0])
    assert torch.equal(b.sum, sums[1])


@pytest.mark.parametrize(
    "other", [{"classes": 3}, {"channels": 3}, {"replicates": 2}, {"threshold": 0.1}], ids=str
)
def test_statistics_of_different_settings_are_not_merged(other: dict[str, int]) -> None:
    settings = {"classes": 2, "channels": 2}
    with pytest.raises(
        ValueError, match="Only statistics of the same classes, channels, replicates and threshold"
    ):
        ChannelStats(**settings) + ChannelStats(**settings | other)


# ---------------------------------------------------------------- bootstrap weights


def test_bootstrap_weights_are_ones_then_poisson_draws() -> None:
    weights = bootstrap_weights(4000, 20, seed=3)
    assert weights.shape == (4000, 21)
    assert (weights[:, 0] == 1).all()
    draws = weights[:, 1:].double().flatten()
    assert set(draws.unique().tolist()) >= {0, 1, 2, 3}
    # 80,000 draws: the standard errors of mean and variance are 0.0035 and 0.006.
    assert abs(draws.mean() - 1) < 0.02
    assert abs(draws.var() - 1) < 0.03


def test_bootstrap_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(bootstrap_weights(50, 4, seed=1), bootstrap_weights(50, 4, seed=1))
    assert not torch.equal(bootstrap_weights(50, 4, seed=1), bootstrap_weights(50, 4, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_bootstrap_spread_is_the_standard_error_of_the_mean() -> None:
    a = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stats = collected(a, torch.zeros(400, dtype=torch.int64), bootstrap_weights(400, 500, seed=0))
    replicates = stats.magnitude[1:, 0, 0].numpy()
    assert np.std(replicates) == pytest.approx(float(a.std()) / 20, rel=0.15)
