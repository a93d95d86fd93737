"""Differences between networks: none between copies, naive tests on the images, corrected over all of a pair."""

from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from channelscope.statistics.alignment import mean_over_classes
from scipy.stats import binomtest, norm

import networks
import reference
from channelscope.attacks import parse_attack
from channelscope.comparison import Comparison, compare
from channelscope.comparison.differences import MEASURES
from channelscope.data import as_dataset
from channelscope.statistics.streaming import bootstrap_weights
from channelscope.study.measurement import measure

QUICK: dict[str, Any] = {
    "attack": "pgd-2",
    "attacks": (),
    "replicates": 30,
    "progress": False,
    "thumbnails": False,
}
KEYS = ["layer", "other_layer", "class", "measure"]
LAYERS = ["layer2", "layer4"]


def three(**options: Any) -> Comparison:
    """Compare a network, another one, and a copy of the first."""
    one, other = networks.resnet(), networks.resnet()
    models = {"one": one, "other": other, "copy": deepcopy(one)}
    return compare(models, networks.images(40), layers=LAYERS, **QUICK | options)


@pytest.fixture(scope="module")
def found() -> Comparison:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return three()


def of(found: Comparison, model: str, other: str) -> pd.DataFrame:
    rows = found.differences
    return rows[(rows["model"] == model) & (rows["other"] == other)].set_index(KEYS)


def test_every_pair_is_the_later_network_less_the_earlier(found: Comparison) -> None:
    pairs = list(
        dict.fromkeys(zip(found.differences["model"], found.differences["other"], strict=True))
    )
    assert pairs == [("other", "one"), ("copy", "one"), ("copy", "other")]
    classes = ["all", *map(str, range(networks.CLASSES))]
    table = found.alignment.set_index(["model", "layer", "class", "measure"])["value"]
    for model, other in pairs:
        rows = of(found, model, other)
        assert len(rows) == len(classes) * (1 + len(LAYERS) * len(MEASURES))
        for layer in LAYERS:
            for name, kind in product(classes, MEASURES):
                difference = table[model, layer, name, kind] - table[other, layer, name, kind]
                assert rows.loc[(layer, layer, name, kind), "value"] == pytest.approx(difference)


def test_copies_do_not_differ(found: Comparison) -> None:
    rows = of(found, "copy", "one")
    assert (rows["value"] == 0).all()
    assert (rows["p"] == 1).all()
    assert (rows["q"] == 1).all()
    assert (rows[["low", "high"]] == 0).all().all()


def test_mcnemars_test_is_on_the_images_of_the_class(found: Comparison) -> None:
    labels = found.arrays["labels"]
    worst = [
        found.arrays[f"correct/{index}/natural"] & found.arrays[f"correct/{index}/pgd-2"]
        for index in range(2)
    ]
    rows = of(found, "other", "one")
    for name, chosen in [("all", labels >= 0)] + [
        (str(k), labels == k) for k in range(networks.CLASSES)
    ]:
        other, one = (hits[chosen] for hits in reversed(worst))
        gained, lost = int((other & ~one).sum()), int((one & ~other).sum())
        row = rows.loc[("", "", name, "robust_accuracy")]
        assert row["value"] == pytest.approx((gained - lost) / chosen.sum())
        assert row["p"] == pytest.approx(
            binomtest(gained, gained + lost).pvalue if gained + lost else 1
        )


def test_q_is_corrected_over_all_that_is_compared_of_a_pair(found: Comparison) -> None:
    for model, other in (("other", "one"), ("copy", "other")):
        rows = of(found, model, other)
        known = rows.dropna(subset=["p"])
        assert known["q"].tolist() == pytest.approx(reference.false_discovery(known["p"].tolist()))
        assert rows[rows["p"].isna()]["q"].isna().all()


def test_p_is_of_the_paired_bootstrap() -> None:
    """Take the replicates of both networks, image by image the same weights, and their differences' spread."""
    models, (x, y) = {"one": networks.resnet(), "other": networks.resnet()}, networks.images(40)
    found = compare(models, (x, y), layers=["layer4"], **QUICK)
    part = as_dataset((x, y)).test
    both = [
        measure(
            network,
            part,
            networks.CLASSES,
            layers=["layer4"],
            attack=parse_attack("pgd-2"),
            weights=bootstrap_weights(40, 30, 0),
            threshold=0.01,
            pictures=False,
            batch_size=128,
            seed=0,
            progress=lambda _: None,
        ).measures("layer4")["cosine"]
        for network in models.values()
    ]
    replicates = mean_over_classes(both[1]) - mean_over_classes(both[0])
    row = of(found, "other", "one").loc[("layer4", "layer4", "all", "cosine")]
    assert row["p"] == pytest.approx(
        2 * norm.sf(abs(replicates[0]) / np.std(replicates[1:], ddof=1))
    )
    low, high = np.quantile(replicates[1:], [0.025, 0.975]) - replicates[1:].mean() + replicates[0]
    assert (row["low"], row["high"]) == pytest.approx(
        (min(low, replicates[0]), max(high, replicates[0]))
    )


def test_networks_of_unequally_many_layers_differ_in_accuracy_alone() -> None:
    models = {"one": networks.resnet(), "other": networks.resnet()}
    layers = {"one": ["layer4"], "other": LAYERS}
    found = compare(models, networks.images(12), layers=layers, **QUICK)
    assert set(found.differences["measure"]) == {"robust_accuracy"}
    layers = {"one": ["layer1", "layer3"], "other": LAYERS}
    found = compare(models, networks.images(12), layers=layers, **QUICK)
    pairs = set(zip(found.differences["layer"], found.differences["other_layer"], strict=True))
    assert pairs == {("", ""), ("layer2", "layer1"), ("layer4", "layer3")}


def test_one_network_has_nothing_to_differ_from() -> None:
    found = compare({"net": networks.resnet()}, networks.images(12), **QUICK)
    assert found.differences.empty
