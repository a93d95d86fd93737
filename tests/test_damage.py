"""cs.damage: planted networks through the whole study, and what must always hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.attacks import PGD
from channelscope.gates import FeatureSelector, LinearProbe, Selective
from channelscope.study.account import pair_images
from channelscope.study.damage import Restored, capture_pairs
from helpers.expect import mistake
from helpers.networks import CLASSES, images, plain, unchanged
from helpers.planted import Chain, Chooses, Shift, Skip, Tokens, colours, masked

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"replicates": 30, "progress": False, "scorers": ()}


def of_network(network: nn.Module, x: Tensor, y: Tensor, attack: Any, **options: Any) -> cs.Result:
    return cs.damage({"net": network.eval()}, (x, y), attack=attack, **QUICK | options)


def read_ledger(result: cs.Result, layer: str, part: str = "features") -> np.ndarray:
    """Return the damage of each channel on class 0, by the account that figures show."""
    rows = result.select("completeness", layer=layer)
    masks = "held" if "held" in set(rows["masks"]) else "attached"
    damage: np.ndarray = result.array("ledger", "damage", "net", layer, masks, part, "all")[0]
    return damage


def right(result: cs.Result, layer: str, curve: str = "repair", **wanted: Any) -> list[float]:
    rows = result.select("repairs", layer=layer, curve=curve, **{"ranking": "account"} | wanted)
    return rows.sort_values("channels")["right"].tolist()


# ---------------------------------------------------------------- networks whose account is known


def lonely(network: nn.Module, start: list[float], amounts: list[float]) -> cs.Result:
    """Account for an attack that moves one colour; every layer of the network is measured."""
    layers = [name for name, _ in network.named_children() if name != "linear"]
    return of_network(
        network,
        *colours(*start),
        Shift(*amounts),
        layers=[layer for layer in layers if layer not in ("pool", "flatten", "head")],
        fractions=[0.3],
    )


@pytest.mark.parametrize(
    ("network", "start", "amounts", "channel"),
    [
        (Chain([1.0, -1.0, 5.0], [0, 0, 0.45]), [0.3, 0.5, 0.6], [0, 0, -0.3], 2),
        (Chain([1.0, -1.0, 5.0], [0, 0, 0.45], inplace=True), [0.3, 0.5, 0.6], [0, 0, -0.3], 2),
        (Tokens([5.0, 1.0, -2.0]), [0.4, 0.1, 0.3], [-0.4, 0, 0], 0),
    ],
    ids=["fragile", "in place", "tokens"],
)
def test_planted_channel_has_all_the_damage_and_repairs_it(
    network: nn.Module, start: list[float], amounts: list[float], channel: int, tmp_path: Path
) -> None:
    result = lonely(network, start, amounts)
    result.write_tables(tmp_path)
    assert len(cs.Result.load(tmp_path).concentration) == len(result.concentration)
    damage = result.damage.set_index("class")["damage"]["all"]
    for layer in result.meta["models"]["net"]["layers"]:
        expected = np.where(np.arange(3) == channel, damage, 0)
        np.testing.assert_allclose(read_ledger(result, layer), expected, rtol=1e-6, atol=1e-6)
        assert right(result, layer) == [0, 1, 1]
        assert right(result, layer, "harm") == [0, 1, 1]
    counts = result.concentration["channels"]
    assert (counts == 1).all()
    kinds = result.kinds.groupby("kind")["share"].sum()
    assert kinds.drop("PR falls").abs().max() <= 1e-6


def test_channels_that_cancel_are_a_fall_and_a_counter() -> None:
    result = lonely(Chain([3.0, -1.0, 0.5], [0, 0, 0]), [0.25, 0.5, 0.1], [-0.2, -0.1, 0.0])
    for layer in ("conv", "relu"):
        np.testing.assert_allclose(read_ledger(result, layer), [0.6, -0.1, 0], atol=1e-6)
        kinds = result.select("kinds", layer=layer, **{"class": "all"}).set_index("kind")["share"]
        assert kinds["PR falls"] == pytest.approx(1.2, abs=1e-5)
        assert kinds["counter"] == pytest.approx(-0.2, abs=1e-5)
        assert kinds.sum() == pytest.approx(1, abs=1e-5)
        assert right(result, layer) == [0, 1, 1]


def test_damage_around_a_layer_is_told_and_is_no_channels() -> None:
    result = lonely(Skip([2.0, 1.0], [1.0, 3.0]), [0.5, 0.5], [-0.3, -0.3])
    for layer, weights in {"branch": (2.0, 1.0), "skip": (1.0, 3.0), "sum": (3.0, 4.0)}.items():
        np.testing.assert_allclose(read_ledger(result, layer), 0.3 * np.array(weights), atol=1e-6)
        kinds = result.select("kinds", layer=layer, **{"class": "all"}).set_index("kind")["share"]
        assert kinds["around"] == pytest.approx(1 - sum(weights) / 7, abs=1e-5)
        passing = result.select("completeness", layer=layer)["passing"].item()
        assert passing == pytest.approx(sum(weights) / 7, abs=1e-5)


def test_damage_through_a_mask_is_the_masks_where_it_is_held() -> None:
    network = masked([4.0, 0.0, -1.0], mask_of=0, follows=1)
    x, y = colours(0.5, 0.6, 0.5)
    result = of_network(network, x, y, Shift(0, -0.5, 0), layers=["relu"], fractions=[0.3])
    damage = result.damage.set_index("class")["damage"]["all"]
    np.testing.assert_allclose(read_ledger(result, "relu"), 0, atol=1e-6)
    mask = read_ledger(result, "relu", "mask of relu")
    np.testing.assert_allclose(mask, [damage, 0, 0], rtol=1e-6, atol=1e-6)
    attached = result.array("ledger", "damage", "net", "relu", "attached", "features", "all")[0]
    np.testing.assert_allclose(attached, [0, damage, 0], rtol=1e-6, atol=1e-6)
    kinds = result.select("kinds", masks="held", **{"class": "all"}).set_index("kind")["share"]
    assert kinds["masks"] == pytest.approx(1)


def test_account_that_jumps_is_refused_with_its_number_and_in_no_table() -> None:
    network = Chooses([6.0, -4.0, 0.0], [[4.0, -4.0, 0.0], [-4.0, 4.0, 4.0]])
    x, y = colours(0.5, 0.4, 0.0)
    result = of_network(network, x, y, Shift(0, 0, 0.5), layers=["relu"])
    table = result.completeness.set_index("masks")
    assert table["refused"].to_dict() == {"attached": len(x), "held": 0}
    assert table["error"]["attached"] > 0.5 > 0.02 >= table["error_max"]["held"]
    assert set(result.kinds["masks"]) == {"held"}


# ---------------------------------------------------------------- drawn networks


def drawn() -> tuple[dict[str, nn.Module], tuple[Tensor, Tensor]]:
    """Make a network without gates and one with, and images that they mostly get right."""
    torch.manual_seed(0)
    gates = {"relu1": FeatureSelector(LinearProbe(6, CLASSES), imgf="sigmoid")}
    networks = {"plain": plain(), "gated": Selective(plain(), gates).eval()}
    x, _ = images(60)
    with torch.no_grad():
        for network in networks.values():
            linear = [m for name, m in network.named_modules() if name.endswith("linear")][-1]
            linear.bias -= network(x).mean(0)
        y = networks["plain"](x).argmax(1)
    return networks, (x, y)


OPTIONS: dict[str, Any] = {
    "attack": PGD(eps=0.2, steps=4),
    "layers": ["conv1", "relu1", "relu2"],
    "fractions": [0.25, 0.5],
    **QUICK,
}


@pytest.fixture(scope="module")
def result() -> cs.Result:
    networks, data = drawn()
    return cs.damage(networks, data, **OPTIONS | {"scorers": ["gradient", "weights"]})


def test_ledger_adds_up_to_the_damage_and_the_kinds_to_one(result: cs.Result) -> None:
    assert (result.damage["broken"] > 5).any()
    for (model, layer, masks), rows in result.completeness.groupby(["model", "layer", "masks"]):
        (row,) = rows.itertuples()
        if row.refused:
            continue
        total = result.select("damage", model=model, **{"class": "all"})["damage"].item()
        sums = 0.0
        for group in result.tables["ledger"].groups:
            if group[:3] == (model, layer, masks) and group[4] == "all":
                damage = result.array("ledger", "damage", *group)
                count = result.array("ledger", "count", *group)
                sums += float(np.nansum(damage * count) / row.images)
        assert sums == pytest.approx(total, rel=0.02)
        kinds = result.select("kinds", model=model, layer=layer, masks=masks, **{"class": "all"})
        assert kinds["share"].sum() == pytest.approx(1, abs=0.02)


def test_all_channels_repair_all_and_curves_are_of_every_ranking(result: cs.Result) -> None:
    for (_, layer, ranking, curve), rows in result.repairs.groupby(
        ["model", "layer", "ranking", "curve"]
    ):
        points = rows.sort_values("channels")["right"]
        assert points.iloc[0] == 0
        assert points.iloc[-1] == 1, (layer, ranking, curve)
    by_layer = result.repairs.groupby("layer")["ranking"].unique()
    assert set(by_layer["relu2"]) == {"account", "random", "gradient", "weights"}
    assert set(by_layer["conv1"]) == {"account", "random", "gradient"}  # weights refuses it
    areas = result.select("repair_areas", layer="relu2", curve="repair", model="plain")
    areas = areas.set_index("ranking")["area"]
    assert areas["account"] > areas["random"]


def test_account_predicts_what_putting_a_single_channel_back_does() -> None:
    networks, (x, y) = drawn()
    network = networks["plain"].requires_grad_(False)
    x_adv = OPTIONS["attack"](network, x, y)
    pairs = pair_images(network, x, x_adv, y)
    pairs = pairs.select(pairs.broken)
    features = capture_pairs(network, ["relu1"], pairs)["relu1"]
    study_result = cs.damage({"net": network}, (x, y), **OPTIONS)
    account = read_all(study_result, "relu1")
    repairs = []
    for c in range(6):
        only = torch.zeros(len(pairs), 6, dtype=torch.bool)
        only[:, c] = True
        with torch.no_grad():
            logits = Restored(network, "relu1", only, pairs, features)(pairs.x_adv)
        margins = logits.gather(1, pairs.y[:, None]) - logits.gather(1, pairs.rivals[:, None])
        repairs.append(float((margins[:, 0] - (pairs.margin - pairs.damage)).mean()))
    assert np.corrcoef(account, repairs)[0, 1] > 0.9


def read_all(result: cs.Result, layer: str) -> np.ndarray:
    damage = result.array("ledger", "damage", "net", layer, "attached", "features", "all")
    count = result.array("ledger", "count", "net", layer, "attached", "features", "all")
    mean: np.ndarray = np.nansum(damage * count, 0) / count[:, 0].sum()
    return mean


def test_restored_network_knows_an_image_in_any_company() -> None:
    networks, (x, y) = drawn()
    network = networks["plain"]
    pairs = pair_images(network, x, (x + 0.05).clamp(0, 1), y)
    features = capture_pairs(network, ["relu1"], pairs)["relu1"]
    some = torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    restored = Restored(network, "relu1", some, pairs, features)
    with torch.no_grad():
        whole = restored(pairs.x_adv)
        order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:17]
        torch.testing.assert_close(restored(pairs.x_adv[order]), whole[order])
        every = Restored(network, "relu1", torch.ones_like(some), pairs, features)
        torch.testing.assert_close(every(pairs.x_adv), network(x))


def test_adaptive_attack_leaves_at_most_what_was_repaired() -> None:
    networks, data = drawn()
    result = cs.damage({"net": networks["plain"]}, data, **OPTIONS | {"adaptive": True})
    keys = ["layer", "channels"]
    rows = result.select("repairs", ranking="account").pivot(
        index=keys, columns="curve", values="right"
    )
    assert (rows["adaptive"] <= rows["repair"]).all()
    assert (rows["adaptive"] < rows["repair"]).any()


def test_blocks_do_not_matter_and_networks_are_left_as_found(
    request: pytest.FixtureRequest, result: cs.Result
) -> None:
    networks, data = drawn()
    request.getfixturevalue("small_blocks")
    with unchanged(networks["gated"]):
        again = cs.damage(networks, data, **OPTIONS | {"scorers": ["gradient", "weights"]})
    for name in ("damage", "repairs"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), rtol=1e-4)


def test_saved_result_is_read_and_drawn_again(result: cs.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out", formats=["png"], progress=False)
    loaded = cs.Result.load(tmp_path / "out", "damage")
    pd.testing.assert_frame_equal(loaded.ledger, result.ledger)
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"kinds", "repairs-relu2"} <= drawn
    assert any(name.startswith("waterfall-") for name in drawn)
    assert loaded.caption("kinds")


def test_network_that_withstands_has_empty_tables_and_no_verdict() -> None:
    networks, data = drawn()
    result = cs.damage({"net": networks["plain"]}, data, **OPTIONS | {"attack": Shift(0.0)})
    assert result.damage["broken"].tolist() == [0]
    assert result.kinds.empty
    assert (result.verdicts["verdict"] == "not judged").all()
    result.plot("kinds")
    result.plot("repairs", layer="relu1")
    result.plot("waterfall", layer="relu1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": []}, "fractions: "),
        ({"fractions": [1.5]}, "fractions: "),
        ({"bound": 0}, "bound: 0"),
        ({"bound": 2}, "bound: 2"),
        ({"layers": ["conv9"]}, "no layer 'conv9'"),
        ({"scorers": ["tea leaves"]}, "no scorer 'tea leaves'"),
        ({"attack": "pgd"}, "no attack 'pgd'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(options: dict[str, Any], words: str) -> None:
    networks, data = drawn()
    with mistake(words):
        cs.damage({"net": networks["plain"]}, data, **OPTIONS | options)
