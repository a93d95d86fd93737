"""Channel flow and confusion: the channels and answers that an attack is known to change, and the naive numbers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from torch import Tensor, nn

import reference
from channelscope.comparison import compare
from channelscope.statistics.streaming import PairedStats

QUICK: dict[str, Any] = {"attacks": (), "replicates": 20, "progress": False, "thumbnails": False}
N = 80


class Raise:
    """An attack that raises the first colour by eps, and nothing else."""

    eps = 0.3

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.cat([x[:, :1] + self.eps, x[:, 1:]], 1)

    def __str__(self) -> str:
        return "raise"


def network() -> nn.Sequential:
    """Make four channels: an attack of the first colour wakes 1, silences 2 and leaves 0 and 3; 0 and 3 decide."""
    conv, linear = nn.Conv2d(2, 4, 1), nn.Linear(4, 2)
    with torch.no_grad():
        conv.weight.copy_(
            torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).view(4, 2, 1, 1)
        )
        conv.bias.copy_(torch.tensor([0.0, -0.5, 0.5, 1.0]))
        linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, -1.0], [-1.0, 0.0, 0.0, 1.0]]))
        linear.bias.zero_()
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def images(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Draw images whose first colour lies between two values, and labels in turn."""
    generator = torch.Generator().manual_seed(3)
    first = low + (high - low) * torch.rand(N, 1, 1, 1, generator=generator)
    x = torch.cat([first, torch.rand(N, 1, 1, 1, generator=generator)], 1).expand(N, 2, 3, 3)
    return x.contiguous(), torch.arange(N) % 2


def flow_of(x: Tensor, y: Tensor, **options: Any) -> pd.DataFrame:
    found = compare(
        {"net": network()}, (x, y), layers=["1"], **QUICK | {"attack": Raise()} | options
    )
    assert (found.flow["layer"] == "1").all()
    return found.flow.set_index(["class", "channel"])


def test_a_channel_that_only_adversarial_data_excites_is_found_and_no_other() -> None:
    """The first colour lies above 0.3: channel 1 wakes on all images and channel 2 falls silent."""
    flow = flow_of(*images(0.3, 0.45))
    for k in ("0", "1"):
        assert flow.loc[k]["awakened"].tolist() == [0, 1, 0, 0]
        assert flow.loc[k]["silenced"].tolist() == [0, 0, 1, 0]
        assert flow.loc[k]["change"].tolist() == pytest.approx([0, 0.175, -0.125, 0], abs=0.02)
        assert (flow.loc[k]["q"] < 1e-6).tolist() == [False, True, True, False]
        assert flow.loc[k]["p"][[0, 3]].tolist() == [1, 1]
        assert (flow.loc[k]["count"] == N // 2).all()


def test_channels_that_wake_on_some_images() -> None:
    """The first colour lies below 0.4, so that on half of the images channel 1 reaches its bias only just, or not."""
    x, y = images(0.0, 0.4)
    flow = flow_of(x, y)
    first = x[:, 0, 0, 0]
    on = (
        first + 0.3 - 0.5 > 0.01 * (torch.stack([x[:, 1, 0, 0], 1 - x[:, 1, 0, 0]]).amax(0))
    ).double()
    for k in (0, 1):
        share = float(on[y == k].mean())
        assert 0.1 < share < 0.9
        assert flow.loc[(str(k), 1), "awakened"] == pytest.approx(share)


def test_few_images_of_a_class_are_not_tested_and_none_are_nan() -> None:
    x, y = images(0.3, 0.45)
    y = torch.where(torch.arange(N) < 29, 1, 0)
    flow = flow_of(x, y)
    assert flow.loc["1"][["p", "q"]].isna().all().all()
    assert not flow.loc["1"][["change", "silenced", "awakened"]].isna().any().any()
    assert not flow.loc["0"].isna().any().any()
    flow = flow_of(x, torch.zeros_like(y), methods={})
    assert "1" not in flow.index.get_level_values("class") or flow.loc["1"]["change"].isna().all()


def test_q_is_corrected_over_all_classes_and_channels_of_a_network() -> None:
    x, y = images(0.0, 0.45)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 0.1

    class Noise(Raise):
        def __call__(
            self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
        ) -> Tensor:
            return (x + noise - 0.048).clamp(0, 1)

    found = compare(
        {"a": network(), "b": network()},
        (x, y),
        layers=["0", "1"],
        batch_size=N,
        attack=Noise(),
        **QUICK,
    )
    for _, rows in found.flow.groupby("model"):
        assert len(rows) == 2 * 2 * 4
        assert rows["q"].tolist() == pytest.approx(reference.false_discovery(rows["p"].tolist()))
        assert rows["q"].nunique() > 3


# ---------------------------------------------------------------- the sums


@st.composite
def paired(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw activations (n, c) before and after, some of them 0, and labels of at most two of three classes."""
    n, c = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    a, b = torch.randn(2, n, c, generator=generator, dtype=torch.float64).relu()
    return a, b, torch.randint(0, 2, (n,), generator=generator)


def collected(a: Tensor, b: Tensor, y: Tensor, size: int) -> PairedStats:
    stats = PairedStats(classes=3, channels=a.shape[1], threshold=0.3)
    for start in range(0, len(a), size):
        batch = slice(start, start + size)
        stats.update(a[batch], b[batch], y[batch])
    return stats


@given(paired(), st.integers(1, 13))
def test_flow_is_the_naive_one_whatever_the_batches(
    sample: tuple[Tensor, Tensor, Tensor], size: int
) -> None:
    a, b, y = sample
    stats = collected(a, b, y, size)
    for k in range(3):
        of_class = y == k
        assert stats.count[k] == of_class.sum()
        if not of_class.any():
            assert stats.change[k].isnan().all()
            continue
        wanted = reference.flow(a[of_class].tolist(), b[of_class].tolist(), 0.3)
        for name in ("change", "silenced", "awakened"):
            assert getattr(stats, name)[k].tolist() == pytest.approx(
                [row[name] for row in wanted], abs=1e-12
            )
        assert (stats.silenced[k] + stats.awakened[k] <= 1 + 1e-12).all()


@given(paired(), st.integers(0, 12))
def test_the_two_directions_mirror_each_other_and_parts_add_up(
    sample: tuple[Tensor, Tensor, Tensor], cut: int
) -> None:
    a, b, y = sample
    forth, back = collected(a, b, y, 5), collected(b, a, y, 5)
    torch.testing.assert_close(forth.change, -back.change, equal_nan=True)
    torch.testing.assert_close(forth.silenced, back.awakened, equal_nan=True)
    parts = collected(a[:cut], b[:cut], y[:cut], 5) + collected(a[cut:], b[cut:], y[cut:], 5)
    for name in ("change", "change_variance", "silenced", "awakened"):
        torch.testing.assert_close(getattr(parts, name), getattr(forth, name), equal_nan=True)


def test_the_test_is_students_on_the_images() -> None:
    x, y = images(0.0, 0.45)
    found = flow_of(x, y)
    net = network()[:2]
    with torch.no_grad():
        a, b = (net(images).mean((2, 3)).double().numpy() for images in (x, Raise()(net, x, y)))
    for k, c in ((0, 1), (1, 2)):
        rows = (y == k).numpy()
        assert found.loc[(str(k), c), "p"] == pytest.approx(
            ttest_rel(a[rows, c], b[rows, c]).pvalue, rel=1e-4
        )


# ---------------------------------------------------------------- confusion


def test_confusion_counts_the_answers_of_each_class() -> None:
    x, y = images(0.3, 0.45)
    net = network()
    with torch.no_grad():  # the attack decides half of the answers
        net[-1].weight[1, 1] = 2.0
    found = compare({"net": net}, (x, y), layers=["1"], **QUICK | {"attack": Raise()})
    for data, shown in (("natural", x), ("adversarial", Raise()(net, x, y))):
        answers = net(shown).argmax(1)
        rows = found.confusion[found.confusion["data"] == data].set_index(["class", "answer"])[
            "count"
        ]
        for k, answer in np.ndindex(2, 2):
            assert rows.get((str(k), str(answer)), 0) == int(((y == k) & (answers == answer)).sum())
    totals = found.confusion.groupby("data")["count"].sum()
    assert totals.tolist() == [N, N]
    right = found.confusion.query("`class` == answer").groupby("data")["count"].sum() / N
    accuracy = found.robustness.query("`class` == 'all'").set_index("attack")["accuracy"]
    assert right["natural"] == pytest.approx(accuracy["natural"])
    assert right["adversarial"] == pytest.approx(accuracy["raise"])
    assert right["natural"] != right["adversarial"]
