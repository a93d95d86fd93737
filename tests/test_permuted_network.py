"""Comparisons of a network with a copy whose channels are in another order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelscope import compare
from channelscope.result import Result
from helpers.networks import CLASSES, images, plain

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"attack": "pgd-2", "attacks": (), "replicates": 30, "progress": False}
ORDERS = {"relu1": [4, 0, 5, 2, 1, 3], "relu2": [7, 6, 0, 1, 3, 2, 5, 4]}


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plain().double()


@torch.no_grad()
def permuted() -> nn.Module:
    """The same network with its channels in another order."""
    net, (first, second) = made(), ORDERS.values()
    for name, parameter in [
        *net.conv1.named_parameters(),
        *net.bn1.named_parameters(),
        *net.bn1.named_buffers(),
    ]:
        if name != "num_batches_tracked":
            parameter.copy_(parameter[first].clone())
    net.conv2.weight.copy_(net.conv2.weight[second][:, first].clone())
    net.conv2.bias.copy_(net.conv2.bias[second].clone())
    net.linear.weight.copy_(net.linear.weight[:, second].clone())
    return net


@pytest.fixture(scope="module")
def result() -> Result:
    data = (images(40)[0], torch.arange(40) % CLASSES)
    nets = {"net": made(), "permuted": permuted(), "other": plain()}
    layers = {"net": ["relu1", "relu2"], "permuted": ["relu1", "relu2"], "other": ["relu2"]}
    return compare(nets, data, layers=layers, **QUICK)


@pytest.mark.parametrize("layer", ORDERS)
def test_the_channels_of_a_permuted_copy_are_found(result: Result, layer: str) -> None:
    rows = result.matched[
        (result.matched["other"] == "permuted") & (result.matched["layer"] == layer)
    ]
    assert set(rows["model"]) == {"net"}
    assert set(rows["other_layer"]) == {layer}
    moving = rows.dropna()
    assert len(moving) > 3
    np.testing.assert_array_equal(
        np.array(ORDERS[layer])[moving["other_channel"]], moving["channel"]
    )
    np.testing.assert_allclose(moving["correlation"], 1, atol=1e-6)


def test_the_layers_of_a_permuted_copy_are_alike(result: Result) -> None:
    rows = result.matching[result.matching["other"] == "permuted"].set_index(
        ["layer", "other_layer"]
    )
    assert len(rows) == 4
    for layer in ORDERS:
        np.testing.assert_allclose(
            rows.loc[(layer, layer), ["cka", "low", "high"]].astype(float), 1, atol=1e-6
        )
    assert rows.loc[("relu1", "relu2"), "cka"] == pytest.approx(rows.loc[("relu2", "relu1"), "cka"])
    assert rows.loc[("relu1", "relu2"), "cka"] < 0.99


def test_layers_of_unequal_number_are_matched_from_the_deepest(result: Result) -> None:
    rows = result.select("matched", model="net", other="other")
    assert set(zip(rows["layer"], rows["other_layer"], strict=True)) == {("relu2", "relu2")}
    pairs = result.matching[["model", "other"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["net", "permuted"], ["net", "other"], ["permuted", "other"]]
