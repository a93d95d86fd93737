"""Edges between layers: planted paths, margins that are the accounts, cuts."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import channelscope as cs
import reference
from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.study.account import (
    Features,
    Pairs,
    Path,
    Tail,
    capture_masks,
    capture_pairs,
    integrate,
    pair_images,
)
from channelscope.study.edges import balance, cut_edges, trace_edges
from helpers.networks import gated, images, plain
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
    path, later = (
        Path(
            make_tail(network, layer, pairs, features),
            pairs,
            features,
            capture_masks(network, layer, pairs),
        )
        for layer, features in layers.items()
    )
    return *trace_edges(path, later), path, later


def make_tail(network: nn.Module, layer: str, pairs: Pairs, features: Features) -> Tail:
    return Tail(network, layer, pairs.x_adv, features.adversarial, pairs.adversarial)


def test_planted_edges_are_found_and_cut() -> None:
    mix = [[4.0, 0.0, 1.0], [0.0, 2.0, -1.0]]
    network = Crossed(mix).eval().requires_grad_(False)
    x, y = colours(0.4, 0.4, 0.4)
    falls = (-0.3, -0.2, -0.1)
    pairs = pair_images(network, x, Shift(*falls)(network, x, y), y)
    assert pairs.broken.all()
    edges, of_masks, path, later = trace(network, "first", "second", pairs)
    assert not of_masks.any()
    expected = -torch.tensor(falls)[:, None] * torch.tensor(mix).T
    torch.testing.assert_close(edges, expected.double().expand_as(edges), rtol=0, atol=1e-6)
    cut = torch.zeros(edges.shape, dtype=torch.bool)
    cut[:, 0, 0] = True
    parts = path.tail, later.tail, path.features, later.features
    logits = cut_edges(*parts, cut)
    gain = logits[:, 0] - logits[:, 1] - (pairs.margin - pairs.damage)
    torch.testing.assert_close(gain, torch.full_like(gain, 1.2), rtol=0, atol=1e-5)
    every = cut_edges(*parts, ~(cut & ~cut))
    torch.testing.assert_close(every, pairs.natural)


def test_rows_and_columns_are_the_accounts() -> None:
    network = plain().double().requires_grad_(False)
    x, _ = images(24, dtype=torch.float64)
    network.linear.bias -= network(x).mean(0)
    y = network(x).argmax(1)
    pairs = pair_images(network, x, PGD(eps=0.2, steps=5)(network, x, y), y)
    pairs = pairs.select(pairs.broken)
    edges, _, *paths = trace(network, "relu1", "relu2", pairs)
    for sums, path in zip((edges.sum(2), edges.sum(1)), paths, strict=True):
        account = integrate(path).channels
        assert ((sums - account).abs().sum(1) <= 0.03 * account.abs().sum(1)).all()


def test_masks_between_the_layers_contribute_what_no_edge_has() -> None:
    network = gated().double().requires_grad_(False)
    for weight in (w for gate in network.gates.values() for w in gate.parameters()):
        weight *= 30  # masks that differ from channel to channel
    x, _ = images(24, dtype=torch.float64)
    network.cnn.linear.bias -= network(x).mean(0)
    y = network(x).argmax(1)
    with attached(network):
        pairs = pair_images(network, x, PGD(eps=0.2, steps=5)(network, x, y), y)
    pairs = pairs.select(pairs.broken)
    assert len(pairs)
    edges, of_masks, path, later = trace(network, "layer3", "layer4", pairs)
    assert of_masks.abs().sum() > 0.01 * edges.abs().sum()
    first, second = integrate(path), integrate(later)
    assert not second.masks
    for sums, account in ((edges.sum(2), first), (edges.sum(1) + of_masks, second)):
        error = (sums - account.channels).abs().sum(1)
        assert (error <= 0.03 * account.channels.abs().sum(1)).all()
    of_gate = sum(first.masks.values()).sum(1)
    torch.testing.assert_close(of_masks.sum(1), of_gate, rtol=0.03, atol=1e-3)


def test_layers_in_another_order_are_refused() -> None:
    network = Crossed([[4.0, 0.0, 1.0], [0.0, 2.0, -1.0]]).eval().requires_grad_(False)
    x, y = colours(0.4, 0.4, 0.4)
    pairs = pair_images(network, x, Shift(-0.3, -0.2, -0.1)(network, x, y), y)
    with pytest.raises(UserError, match="'first' is not behind 'second'"):
        trace(network, "second", "first", pairs)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_balanced_tables_have_the_sums_of_others_and_their_zeros(seed: int, c: int, d: int) -> None:
    """Sums are those of tables with the same zeros, which nothing else need have in common."""
    rng = np.random.default_rng(seed)
    tables = rng.normal(size=(3, c, d)) * (rng.random((3, c, d)) < 0.7)
    others = tables * rng.normal(1, 0.5, tables.shape)
    rows, columns = others.sum(2), others.sum(1)
    balanced = balance(*map(torch.from_numpy, (tables, rows, columns))).numpy()
    np.testing.assert_allclose(balanced.sum(2), rows, atol=1e-7)
    np.testing.assert_allclose(balanced.sum(1), columns, atol=1e-7)
    assert not balanced[tables == 0].any()
    for table, row, column, nearest in zip(tables, rows, columns, balanced, strict=True):
        expected = reference.balance(table, row, column)
        np.testing.assert_allclose(nearest, expected, atol=1e-6)


def test_sums_that_no_table_has_are_missed_by_as_much_on_either_side() -> None:
    table = torch.tensor([[[3.0, 1.0], [2.0, 2.0]]], dtype=torch.float64)
    rows, columns = table.sum(2) + 0.4, table.sum(1)
    balanced = balance(table, rows, columns)
    missed = (rows - balanced.sum(2)).sum(), (balanced.sum(1) - columns).sum()
    assert missed[0] == pytest.approx(0.4)
    assert missed[1] == pytest.approx(0.4)


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
