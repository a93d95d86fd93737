"""Comparisons of a network whose channels and answers an attack is known to change."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from channelscope import compare

pytestmark = pytest.mark.slow

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
    """Make four channels: an attack on colour 0 wakes 1 and silences 2; 0 and 3 decide."""
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
    x = torch.cat([first, torch.rand(N, 1, 1, 1, generator=generator)], 1).expand(N, 2, 4, 4)
    return x.contiguous(), torch.arange(N) % 2


def flow_of(x: Tensor, y: Tensor, **options: Any) -> pd.DataFrame:
    result = compare(
        {"net": network()}, (x, y), layers=["1"], **QUICK | {"attack": Raise()} | options
    )
    assert (result.flow["layer"] == "1").all()
    return result.flow.set_index(["class", "channel"])


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
    """The first colour lies below 0.4, so that on half of the images channel 1 stays asleep."""
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


def test_confusion_counts_the_answers_of_each_class() -> None:
    x, y = images(0.3, 0.45)
    net = network()
    with torch.no_grad():  # the attack decides half of the answers
        net[-1].weight[1, 1] = 2.0
    result = compare({"net": net}, (x, y), layers=["1"], **QUICK | {"attack": Raise()})
    for data, shown in (("natural", x), ("adversarial", Raise()(net, x, y))):
        answers = net(shown).argmax(1)
        rows = result.confusion[result.confusion["data"] == data].set_index(["class", "answer"])[
            "count"
        ]
        for k, answer in np.ndindex(2, 2):
            assert rows.get((str(k), str(answer)), 0) == int(((y == k) & (answers == answer)).sum())
    totals = result.confusion.groupby("data")["count"].sum()
    assert totals.tolist() == [N, N]
    right = result.confusion.query("`class` == answer").groupby("data")["count"].sum() / N
    accuracy = result.robustness.query("`class` == 'all'").set_index("attack")["accuracy"]
    assert right["natural"] == pytest.approx(accuracy["natural"])
    assert right["natural"] != right["adversarial"]
    # Confusion counts what the attack makes right, too; robust is what is right without it as well.
    both = [(net(shown).argmax(1) == y) for shown in (x, Raise()(net, x, y))]
    assert accuracy["raise"] == pytest.approx(float((both[0] & both[1]).float().mean()))
    assert accuracy["raise"] <= right.min()
