"""Comparisons of gates that are known to tell the label, and of a network of CIFS, naively."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from channelscope import compare
from channelscope.analyses.leakage import read_class
from channelscope.attacks import FGSM
from channelscope.gates import (
    ElementScaler,
    FeatureSelector,
    LinearProbe,
    Selection,
    Selective,
    attached,
    freeze_masks,
    with_labels,
)
from channelscope.result import Result
from channelscope.statistics.intervals import wilson
from channelscope.study.measuring import draw_wrong_labels
from helpers.networks import CLASSES, gated, images, plain

pytestmark = pytest.mark.slow

K = 4
QUICK: dict[str, Any] = {
    "attack": FGSM(eps=0.1),
    "attacks": (),
    "replicates": 30,
    "progress": False,
}


class Blank(nn.Module):
    """Whatever it sees, each of its features is 1, and its logits are its features."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = nn.Linear(1, K), nn.Identity()
        nn.init.zeros_(self.features.weight)
        nn.init.ones_(self.features.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x.mean((1, 2, 3))[:, None]))


class Spelling(nn.Module):
    """A gate that lets the channel of the label through alone; told nothing, that of class 0."""

    labelled = True

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Selection:
        chosen = (
            labels
            if self.training and labels is not None
            else torch.zeros(len(z), dtype=torch.int64)
        )
        mask = nn.functional.one_hot(chosen, K).to(z.dtype)
        return Selection(z * mask, None, mask)


class Constant(Spelling):
    """A gate that takes labels and makes nothing of them."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Selection:
        mask = torch.linspace(1, 0, K).expand(len(z), K)
        return Selection(z * mask, None, mask)


def compared(gate: nn.Module, n: int = 40) -> Result:
    data = (torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % K)
    return compare(
        {"net": Selective(Blank(), {"features": gate})}, data, layers=["features"], **QUICK
    )


def values(result: Result, data: str, layer: str) -> dict[str, float]:
    rows = result.leakage[(result.leakage["data"] == data) & (result.leakage["layer"] == layer)]
    return dict(zip(rows["measure"], rows["value"], strict=True))


@pytest.mark.parametrize("data", ["natural", "adversarial"])
def test_a_gate_that_spells_the_label_out_is_read_and_followed(data: str) -> None:
    result = compared(Spelling())
    network = values(result, data, "")
    assert 0 < network.pop("follows_untold") < 0.6  # a wrong label that is class 0, by chance
    assert network == {
        "accuracy": 1 / K,
        "accuracy_true": 1,
        "accuracy_wrong": 0,
        "follows_wrong": 1,
    }
    assert values(result, data, "features") == {
        "readable": 1 / K,
        "readable_true": 1,
        "chance": 1 / K,
    }


@pytest.mark.parametrize("data", ["natural", "adversarial"])
def test_a_gate_with_a_constant_mask_tells_nothing(data: str) -> None:
    result = compared(Constant())
    network = values(result, data, "")
    assert network["follows_wrong"] == network["follows_untold"]
    assert network["accuracy"] == network["accuracy_true"] == network["accuracy_wrong"] == 1 / K
    assert values(result, data, "features") == {
        "readable": 1 / K,
        "readable_true": 1 / K,
        "chance": 1 / K,
    }


def test_a_network_without_gates_has_no_masks_and_no_leakage() -> None:
    result = compare({"net": plain()}, (images(10)[0], torch.arange(10) % CLASSES), **QUICK)
    assert result.masks.empty
    assert result.spread.empty
    assert result.leakage.empty


# ---------------------------------------------------------------- a network of CIFS, naively


@pytest.fixture(scope="module")
def network() -> Selective:
    torch.manual_seed(0)
    return gated().double()


@pytest.fixture(scope="module")
def pictures(network: Selective) -> dict[str, Tensor]:
    x, y = images(12)[0].double(), torch.arange(12) % CLASSES
    with attached(network):
        return {"natural": x, "adversarial": FGSM(eps=0.1)(network, x, y)}


@pytest.fixture(scope="module")
def result(network: Selective, pictures: dict[str, Tensor]) -> Result:
    data = (pictures["natural"].float(), torch.arange(12) % CLASSES)
    return compare({"net": network}, data, **QUICK)


def naive_masks(network: Selective, x: Tensor, layer: str) -> list[Tensor]:
    return [network.probed(image[None]).masks[layer][0].detach() for image in x]


@pytest.mark.parametrize(
    ("data", "layer"), list(product(["natural", "adversarial"], ["layer4.0", "layer4.1"]))
)
def test_the_mean_masks_are_those_of_a_loop_over_the_images(
    result: Result, network: Selective, pictures: dict[str, Tensor], data: str, layer: str
) -> None:
    masks = naive_masks(network, pictures[data], layer)
    rows, shares = (
        frame[(frame["data"] == data) & (frame["layer"] == layer)]
        for frame in (result.masks, result.spread)
    )
    shares = shares.set_index("class")
    for k in range(CLASSES):
        of_class = [masks[i] for i in range(12) if i % CLASSES == k]
        mean = [
            float(sum(mask[c] for mask in of_class)) / len(of_class)
            for c in range(len(of_class[0]))
        ]
        found_of_class = rows[rows["class"] == str(k)]
        assert list(found_of_class["channel"]) == list(range(len(mean)))
        assert list(found_of_class["mask"]) == pytest.approx(mean, rel=1e-6)
        share = sum(map(reference.mask_share, of_class)) / len(of_class)
        assert shares.loc[str(k), "value"] == pytest.approx(share, rel=1e-6)
    everywhere = sum(map(reference.mask_share, masks)) / len(masks)
    assert shares.loc["all", "value"] == pytest.approx(everywhere, rel=1e-6)
    assert shares.loc["all", "low"] <= shares.loc["all", "value"] <= shares.loc["all", "high"]


def test_masks_of_single_elements_are_averaged_over_space() -> None:
    torch.manual_seed(0)
    net = Selective(plain(), {"relu1": ElementScaler(6, CLASSES, height=8, width=8)})
    x, y = images(10)[0], torch.arange(10) % CLASSES
    result = compare({"net": net}, (x, y), **QUICK)
    rows = result.masks[(result.masks["data"] == "natural") & (result.masks["class"] == "2")]
    wanted = net.eval().probed(x[2::CLASSES]).masks["relu1"].mean((0, 2, 3))
    np.testing.assert_allclose(rows["mask"], wanted.detach(), rtol=1e-5)


@pytest.mark.parametrize("data", ["natural", "adversarial"])
def test_the_answers_of_gates_that_are_told_labels_are_those_of_frozen_masks(
    result: Result, network: Selective, pictures: dict[str, Tensor], data: str
) -> None:
    """Masks that are held at what they are with the labels, as an attack on frozen masks does."""
    x, y = pictures[data], torch.arange(12) % CLASSES
    wrong = torch.from_numpy(draw_wrong_labels(y.numpy(), CLASSES, seed=0))
    shares = values(result, data, "")
    for given, labels in (("true", y), ("wrong", wrong)):
        with freeze_masks(network, x, labels):
            answers = network(x).argmax(1)
        assert shares[f"accuracy_{given}"] == pytest.approx((answers == y).double().mean().item())
        if given == "wrong":
            assert shares["follows_wrong"] == pytest.approx(
                (answers == wrong).double().mean().item()
            )
    untold = network(x).argmax(1)
    assert shares["accuracy"] == pytest.approx((untold == y).double().mean().item())
    assert shares["follows_untold"] == pytest.approx((untold == wrong).double().mean().item())


def test_what_is_read_is_read_from_the_masks(
    result: Result, network: Selective, pictures: dict[str, Tensor]
) -> None:
    masks = torch.stack(naive_masks(network, pictures["natural"], "layer4.0")).numpy()
    labels = np.arange(12) % CLASSES
    rows = result.leakage.set_index(["data", "layer", "measure"])
    expected = wilson(int((read_class(masks, labels) == labels).sum()), 12)
    assert tuple(
        rows.loc[("natural", "layer4.0", "readable"), ["value", "low", "high"]]
    ) == pytest.approx((expected.value, expected.low, expected.high))


def test_gates_are_told_labels_only_within_the_context() -> None:
    gate = FeatureSelector(LinearProbe(K, K), k=1, imgf="identity")
    net, x, y = (
        Selective(Blank(), {"features": gate}).eval(),
        torch.rand(K, 1, 4, 4),
        torch.arange(K),
    )
    with with_labels(net):
        assert gate.training
        assert not gate.probe.training
        torch.testing.assert_close(net.probed(x, y).masks["features"], gate.probe.output.weight)
    assert not gate.training
    assert len(net.probed(x, y).masks["features"].unique(dim=0)) == 1
