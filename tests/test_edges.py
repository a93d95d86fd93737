"""Edges between layers: planted paths, margins that are the accounts, cuts."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.study.account import (
    Features,
    Pairs,
    Path,
    Tail,
    capture_pairs,
    integrate,
    pair_images,
)
from channelscope.study.edges import cut_edges, trace_edges
from helpers.networks import images, plain
from helpers.planted import Shift, colours, pick, read


class Crossed(nn.Module):
    """Three channels, mixed by a known matrix into two, whose sum is the margin."""

    def __init__(self, mix: list[list[float]]) -> None:
        super().__init__()
        self.first = pick(torch.eye(3).tolist(), [0.0] * 3)
        self.second, self.linear = pick(mix, [0.0] * 2), read([1.0, 1.0])
        with torch.no_grad():
            self.linear.bias[0] = -1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.second(self.first(x)).mean((2, 3)))


def trace(network: nn.Module, first: str, second: str, pairs: Pairs) -> tuple[Any, ...]:
    layers = capture_pairs(network, [first, second], pairs)
    path = Path(make_tail(network, first, pairs, layers[first]), pairs, layers[first])
    end = layers[second]
    edges = trace_edges(path, second, end.axis, end.natural.shape[end.axis])
    return edges, path, layers


def make_tail(network: nn.Module, layer: str, pairs: Pairs, features: Features) -> Tail:
    return Tail(network, layer, pairs.x_adv, features.adversarial, pairs.adversarial)


def test_planted_edges_are_found_and_cut() -> None:
    mix = [[4.0, 0.0, 1.0], [0.0, 2.0, -1.0]]
    network = Crossed(mix).eval().requires_grad_(False)
    x, y = colours(0.4, 0.4, 0.4)
    falls = (-0.3, -0.2, -0.1)
    pairs = pair_images(network, x, Shift(*falls)(network, x, y), y)
    assert pairs.broken.all()
    edges, path, layers = trace(network, "first", "second", pairs)
    expected = -torch.tensor(falls)[:, None] * torch.tensor(mix).T
    torch.testing.assert_close(edges, expected.double().expand_as(edges), rtol=0, atol=1e-6)
    cut = torch.zeros(edges.shape, dtype=torch.bool)
    cut[:, 0, 0] = True
    second = make_tail(network, "second", pairs, layers["second"])
    logits = cut_edges(path.tail, second, layers["first"], layers["second"], cut)
    gain = logits[:, 0] - logits[:, 1] - (pairs.margin - pairs.damage)
    torch.testing.assert_close(gain, torch.full_like(gain, 1.2), rtol=0, atol=1e-5)
    every = cut_edges(path.tail, second, layers["first"], layers["second"], ~(cut & ~cut))
    torch.testing.assert_close(every, pairs.natural)


def test_rows_and_columns_are_the_accounts() -> None:
    network = plain().double().requires_grad_(False)
    x, _ = images(24, dtype=torch.float64)
    network.linear.bias -= network(x).mean(0)
    y = network(x).argmax(1)
    pairs = pair_images(network, x, PGD(eps=0.2, steps=5)(network, x, y), y)
    pairs = pairs.select(pairs.broken)
    edges, path, layers = trace(network, "relu1", "relu2", pairs)
    first = integrate(path).channels
    assert ((edges.sum(2) - first).abs().sum(1) <= 0.03 * first.abs().sum(1)).all()
    tail = make_tail(network, "relu2", pairs, layers["relu2"])
    second = integrate(Path(tail, pairs, layers["relu2"])).channels
    assert ((edges.sum(1) - second).abs().sum(1) <= 0.05 * second.abs().sum(1)).all()


def test_layers_in_another_order_are_refused() -> None:
    network = Crossed([[4.0, 0.0, 1.0], [0.0, 2.0, -1.0]]).eval().requires_grad_(False)
    x, y = colours(0.4, 0.4, 0.4)
    pairs = pair_images(network, x, Shift(-0.3, -0.2, -0.1)(network, x, y), y)
    with pytest.raises(UserError, match="'first' is not behind 'second'"):
        trace(network, "second", "first", pairs)


@pytest.mark.slow
def test_study_lists_and_cuts_the_planted_edges(tmp_path: pathlib.Path) -> None:
    network = Crossed([[4.0, 0.0, 1.0], [0.0, 2.0, -1.0]]).eval()
    x, y = colours(0.4, 0.4, 0.4)
    result = cs.damage(
        {"net": network},
        (x, y),
        attack=Shift(-0.3, -0.2, -0.1),
        layers=["first", "second"],
        scorers=(),
        edges=30,
        replicates=30,
        progress=False,
    )
    top = result.select("edges", **{"class": "all"}).iloc[0]
    assert (top["source"], top["target"], top["images"]) == (0, 0, 30)
    assert top["damage"] == pytest.approx(1.2, abs=1e-6)
    assert top["share"] == pytest.approx(0.75, abs=1e-6)
    cuts = result.edge_cuts
    assert cuts[["row_error", "column_error"]].to_numpy().max() <= 1e-5
    np.testing.assert_allclose(cuts["predicted"], cuts["regained"], atol=1e-5)
    assert (cuts["half"] == 1).all()
    result.save(tmp_path / "out", formats=["png"], progress=False)
    pd.testing.assert_frame_equal(
        cs.Result.load(tmp_path / "out").edge_cuts, cuts, check_dtype=False
    )
    (ax,) = result.plot("edges").axes
    assert max(line.get_linewidth() for line in ax.lines) == pytest.approx(3.0)
    again = cs.damage(
        {"net": network}, (x, y), attack=Shift(-0.3, -0.2, -0.1), scorers=(), progress=False
    )
    assert again.edges.empty
