"""Interventions: networks whose answer is known, a naive loop, and what must always hold."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from channelscope.figures.interventions import curves_data, league_data
from channelscope.intervention import Interventions
from channelscope.intervention.results import COLUMNS
from channelscope.intervention.run import Run
from channelscope.intervention.suppression import Plan, suppressed
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.integrate import trapezoid
from torch import Tensor, nn

import channelscope as cs
import reference
from channelscope.attacks import PGD, JointSweep
from channelscope.cli import main, parser
from channelscope.data import Dataset, MemorySplit
from channelscope.errors import UserError
from channelscope.figures import interventions
from channelscope.figures.paper import COLOURS
from channelscope.files import DIGESTS
from channelscope.objectives import Gated
from helpers.networks import CLASSES, gated, images, plain, unchanged
from helpers.runs import trained, write_npz

ATTACK = PGD(eps=0.1, steps=4, random_start=False)
QUICK: dict[str, Any] = {"attack": ATTACK, "replicates": 30, "progress": False, "random": 2}


def lively(model: nn.Module, linear: nn.Linear) -> nn.Module:
    """Let an untrained network answer with all of its classes, and hardly sure of any."""
    x, _ = images(60)
    with torch.no_grad():
        linear.bias -= model(x).mean(0)
    return model.eval()


def small() -> nn.Sequential:
    """Make the smallest CNN, lively."""
    torch.manual_seed(0)
    network = plain()
    lively(network, network[-1])
    return network


class Pixels(nn.Module):
    """A network whose channels are its pixels, less a threshold: logits = W relu(x - t) + b."""

    def __init__(
        self, weight: list[list[float]], bias: list[float], thresholds: list[float]
    ) -> None:
        super().__init__()
        self.features, self.linear = nn.ReLU(), nn.Linear(len(thresholds), len(bias))
        self.linear.weight.data, self.linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        self.register_buffer("thresholds", torch.tensor(thresholds))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x.flatten(1) - self.thresholds))


def of_pixels(rows: list[list[float]], labels: list[int], classes: int) -> Dataset:
    """Make data of images whose pixels are given, twice: to rank the channels on, and to judge."""
    split = MemorySplit(torch.tensor(rows).view(len(rows), 1, 1, -1), torch.tensor(labels))
    return Dataset("pixels", tuple(f"class {k}" for k in range(classes)), test=split, val=split)


def accuracies(
    found: Interventions, order: str, data: str, curve: str = "deletion", **wanted: str
) -> list[float]:
    """Read a curve's accuracies, from no channel to all of them."""
    rows = found.curves
    for column, value in {"order": order, "data": data, "curve": curve, **wanted}.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("channels")["accuracy"].tolist()


# ---------------------------------------------------------------- networks whose answer is known


def decided_by_one() -> tuple[nn.Module, Dataset]:
    """Channel j alone decides class j, and the attack is too weak to change that."""
    rows = [[1.0 if c == k else 0.2 for c in range(4)] for k in range(4)]
    network = Pixels((10 * torch.eye(4)).tolist(), [0.0] * 4, [0.0] * 4)
    return network, of_pixels(rows * 3, [0, 1, 2, 3] * 3, 4)


@pytest.mark.parametrize("relevant_to", ["answer", "label"])
def test_channel_that_alone_decides_the_class_kills_it_at_once_and_the_others_change_nothing(
    relevant_to: str,
) -> None:
    network, data = decided_by_one()
    found = cs.intervene(
        {"net": network},
        data,
        layers=["features"],
        fractions=[0.25, 0.5, 0.75],
        relevant_to=relevant_to,
        **QUICK,
    )
    for kind in ("natural", "adversarial"):
        assert accuracies(found, "nr", kind) == [
            1,
            1,
            1,
            1,
            0.25,
        ]  # without any channel, the answer is the first class
        assert accuracies(found, "pr", kind) == [1, 0, 0, 0, 0.25]
        assert accuracies(found, "pr", kind, "insertion") == [0.25, 1, 1, 1, 1]
        assert accuracies(found, "nr", kind, "insertion") == [0.25, 0, 0, 0, 1]
    areas = found.areas.set_index(["order", "data"])["area"]
    assert areas["nr", "natural"] == pytest.approx(0.75 + 0.25 * 0.625)
    assert areas["pr", "natural"] == pytest.approx(0.25 * 0.5 + 0.25 * 0.125)
    league = found.league.set_index(["order", "data"])["value"]
    assert league["both", "natural"] == pytest.approx(
        (areas["nr", "natural"] - areas["pr", "natural"]) / 2
    )
    assert (league > 0).all()


def harmed_by_one(third: list[float]) -> tuple[nn.Module, Dataset]:
    """Pixel 0 tells classes 0 and 1; pixel 1, which hardly exceeds its threshold, pushes both below class 2."""
    network = Pixels([[-1.0, -30.0], [1.0, -30.0], third], [1.0, 0.0, 0.0], [0.0, 0.4])
    return network, of_pixels([[0.2, 0.41], [0.8, 0.41]] * 12, [0, 1] * 12, 3)


def test_without_a_harmful_channel_robust_accuracy_rises_to_a_known_value() -> None:
    network, data = harmed_by_one(third=[0.0, -1.0])
    found = cs.intervene({"net": network}, data, layers=["features"], fractions=[0.5], **QUICK)
    assert accuracies(found, "nr", "natural") == [1, 1, 0.5]
    assert accuracies(found, "nr", "adversarial") == [0, 1, 0.5]
    (verdict,) = found.verdicts.itertuples()
    assert verdict.estimate == 1
    assert verdict.claim == "C4 by intervention"
    assert verdict.verdict == "inconclusive"  # every image says the same: the interval has no width


def test_attack_that_changes_the_answer_changes_what_is_suppressed() -> None:
    """The harmful channel speaks for class 2: as the attacked network answers 2, it is that class's NR that go."""
    network, data = harmed_by_one(third=[-1.0, 30.0])
    extra = of_pixels([[0.2, 0.41], [0.8, 0.41], [0.0, 1.0]], [0, 1, 2], 3)
    data = dataclasses.replace(data, val=extra.val)
    honest = cs.intervene({"net": network}, data, layers=["features"], fractions=[0.5], **QUICK)
    assert accuracies(honest, "nr", "natural") == [1, 1, 0.5]
    assert accuracies(honest, "nr", "adversarial") == [0, 0, 0.5]
    oracle = cs.intervene(
        {"net": network}, data, layers=["features"], fractions=[0.5], relevant_to="label", **QUICK
    )
    assert accuracies(oracle, "nr", "adversarial") == [0, 1, 0.5]
    (verdict,) = oracle.verdicts.itertuples()
    assert verdict.verdict == "inconclusive"
    assert verdict.statement.endswith("No verdict, as the labels of the images chose the channels.")


def test_verdict_follows_the_interval_of_the_change() -> None:
    """Half of the images are broken by the harmful channel alone, half by the other too: the gain has an interval."""
    network, _ = harmed_by_one(third=[0.0, -1.0])
    mixed = of_pixels([[0.2, 0.41], [0.45, 0.41]] * 30, [0] * 60, 3)
    found = cs.intervene({"net": network}, mixed, layers=["features"], fractions=[0.5], **QUICK)
    assert accuracies(found, "nr", "adversarial") == [0, 0.5, 1]
    (verdict,) = found.verdicts.itertuples()
    assert verdict.verdict == "supported"
    assert (verdict.estimate, verdict.natural) == (0.5, 0)
    assert 0.2 < verdict.low < 0.5 < verdict.high < 0.8
    assert verdict.statement.startswith(
        "Suppressing 50.0% of the channels of features, the most negatively relevant by gradient, without retraining "
        "changes the robust accuracy of net by +50.0 [+"
    )


@pytest.mark.parametrize("images", [4, 60])
def test_one_image_supports_nothing(images: int) -> None:
    """A single image is saved: an interval that is moved onto the estimate would lie above 0.

    Of four images some replicates have none at all.
    """
    network, _ = harmed_by_one(third=[0.0, -1.0])
    data = of_pixels([[0.2, 0.41]] + [[0.45, 0.41]] * (images - 1), [0] * images, 3)
    found = cs.intervene(
        {"net": network}, data, layers=["features"], fractions=[0.5], **QUICK | {"replicates": 500}
    )
    (verdict,) = found.verdicts.itertuples()
    assert verdict.estimate == pytest.approx(1 / images)
    assert verdict.low <= 0
    assert verdict.verdict == "inconclusive"


def test_points_that_suppress_more_than_the_nr_channels_have_no_say() -> None:
    network, data = harmed_by_one(
        third=[0.0, 0.0]
    )  # class 2 has no images: its relevance is [0, -30], their mean
    found = cs.intervene({"net": network}, data, layers=["features"], fractions=[0.75], **QUICK)
    (verdict,) = found.verdicts.itertuples()
    assert verdict.verdict == "inconclusive"
    assert np.isnan(verdict.estimate)
    assert "66.7% of the channels of features in net are negatively relevant" in verdict.statement
    assert found.meta["models"]["net"]["nr_share"] == {"features": {"gradient": 4 / 6}}


# ---------------------------------------------------------------- a naive loop


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("relevant_to", ["answer", "label"])
@pytest.mark.parametrize("order", ["nr", "pr", "random"])
def test_images_that_stand_are_those_of_the_naive_loop(order: str, relevant_to: str) -> None:
    network, (x, _) = small().double(), images(8)
    with torch.no_grad():
        y = network(x.double()).argmax(1)
    y[::4] = (y[::4] + 1) % CLASSES
    relevance = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(2))
    plan = Plan.of({"bn1": {"gradient": relevance}}, [0.2, 0.5], 1, seed=0)
    assert plan.counts["bn1"] == [0, 1, 3, 6]
    attack = PGD(eps=0.02, step=0.01, steps=3, random_start=False)
    run = Run(network=network, attack=attack, relevant_to=relevant_to, batch_size=4, seed=0)
    stood = run.outcomes(MemorySplit(x, y), plan, lambda _: None)
    ranking = next(one for one in plan.rankings if one.order == order)
    if order != "random":
        sign = 1 if order == "nr" else -1
        assert ranking.channels.tolist() == [
            sorted(range(6), key=lambda c: sign * row[c]) for row in relevance
        ]
    for count in plan.counts["bn1"]:
        natural, robust = reference.intervened(
            network[:2],
            network[2:],
            x.double(),
            y,
            ranking.channels.tolist(),
            count,
            eps=0.02,
            step=0.01,
            steps=3,
            oracle=relevant_to == "label",
        )
        found = stood[plan.point(ranking, count)]
        assert (found.natural.tolist(), found.adversarial.tolist()) == (natural, robust)
        if count == 0:
            assert True in robust
            assert robust != natural


# ---------------------------------------------------------------- what must always hold


def drawn() -> tuple[dict[str, nn.Module], Dataset]:
    """Make two networks, and images that either is right about half of."""
    torch.manual_seed(0)
    gates = gated()
    networks = {"plain": small(), "gated": lively(gates, gates.cnn.linear)}
    (x, y), (others, labels) = images(24), images(15)
    with torch.no_grad():
        for start, network in enumerate(networks.values()):
            y[start::2] = network(x).argmax(1)[start::2]
    return networks, Dataset(
        "drawn", tuple("abcde"), test=MemorySplit(x, y), val=MemorySplit(others.flip(0), labels)
    )


@pytest.fixture(scope="module")
def found() -> Interventions:
    networks, data = drawn()
    return cs.intervene(
        networks,
        data,
        layers={"plain": ["bn1", "relu2"], "gated": ["layer4.0"]},
        scorers=["gradient", "gradient-x-activation"],
        methods={"gated": "cifs"},
        fractions=[0.3, 0.6],
        **QUICK | {"attack": PGD(eps=0.1, steps=2)},
    )


@pytest.fixture(scope="module")
def folder(found: Interventions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found.save(tmp_path_factory.mktemp("saved") / "interventions")


def test_no_suppression_is_the_plain_accuracy_and_of_all_the_constant_answer(
    found: Interventions,
) -> None:
    networks, data = drawn()
    x, y = next(data.test.batches(len(data.test)))
    deleted = found.curves[
        (found.curves["curve"] == "deletion") & (found.curves["data"] == "natural")
    ]
    for name, network in networks.items():
        untouched = deleted[(deleted["model"] == name) & (deleted["channels"] == 0)]
        with torch.no_grad():
            assert (
                untouched["accuracy"] == float((network(x).argmax(1) == y).double().mean())
            ).all()
    of_all = deleted[(deleted["layer"] == "relu2") & (deleted["fraction"] == 1)]
    constant = int(networks["plain"].linear.bias.argmax())
    assert (of_all["accuracy"] == float((y == constant).double().mean())).all()


def test_insertion_is_deletion_from_the_other_end(found: Interventions) -> None:
    opposite = {"nr": "pr", "pr": "nr", "random": "random"}
    deleted, inserted = (
        found.curves[found.curves["curve"] == kind].copy() for kind in ("deletion", "insertion")
    )
    inserted["order"] = inserted["order"].map(opposite)
    inserted["fraction"] = 1 - inserted["fraction"]
    keys = ["model", "layer", "scorer", "order", "data", "fraction"]
    for frame in (deleted, inserted):
        frame["fraction"] = frame["fraction"].round(9)
    values = ["accuracy", "low", "high"]
    pd.testing.assert_frame_equal(
        deleted.sort_values(keys)[keys + values].reset_index(drop=True),
        inserted.sort_values(keys)[keys + values].reset_index(drop=True),
    )


def test_areas_and_league_follow_from_the_curves(found: Interventions) -> None:
    keys = ["model", "layer", "scorer", "order", "data"]
    deleted = found.curves[found.curves["curve"] == "deletion"]
    areas = {
        key: trapezoid(rows["accuracy"], rows["fraction"]) for key, rows in deleted.groupby(keys)
    }
    for row in found.areas.itertuples():
        assert row.area == pytest.approx(
            areas[row.model, row.layer, row.scorer, row.order, row.data]
        )
    for row in found.league.itertuples():
        of = {
            order: areas[row.model, row.layer, row.scorer, order, row.data]
            for order in ("nr", "pr")
        }
        random = areas[row.model, row.layer, "random", "random", row.data]
        leads = {
            "nr": of["nr"] - random,
            "pr": random - of["pr"],
            "both": (of["nr"] - of["pr"]) / 2,
        }
        assert row.value == pytest.approx(leads[row.order])
    for _, rows in found.league.groupby(["model", "layer", "order", "data"]):
        assert sorted(rows["value"], reverse=True) == rows.sort_values("rank")["value"].tolist()
        assert rows["rank"].min() == 1


def test_intervals_contain_the_estimates(found: Interventions) -> None:
    for frame, value in (
        (found.curves, "accuracy"),
        (found.areas, "area"),
        (found.league, "value"),
    ):
        assert ((frame["low"] <= frame[value]) & (frame[value] <= frame["high"])).all()
    judged = found.verdicts.dropna(subset=["estimate"])
    assert len(judged)
    assert ((judged["low"] <= judged["estimate"]) & (judged["estimate"] <= judged["high"])).all()
    assert found.curves[["accuracy", "low", "high"]].stack().between(0, 1).all()


def test_robust_images_are_right_as_they_are(found: Interventions) -> None:
    keys = ["model", "layer", "scorer", "curve", "order", "channels"]
    both = found.curves.pivot(index=keys, columns="data", values="accuracy")
    assert (both["adversarial"] <= both["natural"] + 1e-12).all()
    assert (both["adversarial"] < both["natural"]).any()


def test_random_curves_do_not_depend_on_the_scorers() -> None:
    x, y = images(12)
    options = {"layers": ["bn1"], "fractions": [0.5], **QUICK}
    one, other = (
        cs.intervene({"net": small()}, (x, y), scorers=[scorer], **options)
        for scorer in ("gradient", "grad-cam")
    )
    random = [
        frame.curves[frame.curves["scorer"] == "random"].reset_index(drop=True)
        for frame in (one, other)
    ]
    assert random[0]["accuracy"].nunique() > 2
    pd.testing.assert_frame_equal(*random)


def test_blocks_do_not_matter(request: pytest.FixtureRequest) -> None:
    x, y = images(12)
    network = small()
    options = {
        "layers": ["relu2"],
        "fractions": [0.5],
        **QUICK | {"attack": PGD(eps=0.05, steps=2)},
    }
    whole = cs.intervene({"net": network}, (x, y), **options)
    request.getfixturevalue("small_blocks")
    pd.testing.assert_frame_equal(
        whole.curves, cs.intervene({"net": network}, (x, y), **options).curves
    )


def test_gated_networks_and_images_that_rank_and_are_judged_are_told_of(
    found: Interventions,
) -> None:
    by_model = found.verdicts.groupby("model")["statement"].apply(list)
    assert all(
        statement.endswith("No attack made for gates was run.") for statement in by_model["gated"]
    )
    assert not any("gates" in statement for statement in by_model["plain"])
    assert found.meta["ranked_on"] == {"part": "val", "images": 15}
    x, y = images(12)
    alone = cs.intervene({"net": small()}, (x, y), layers=["bn1"], fractions=[0.5], **QUICK)
    assert alone.meta["ranked_on"] == {"part": "test", "images": 12}
    assert "ranked on the very images that are judged" in alone.verdicts["statement"][0]


def test_penultimate_layer_is_the_default_and_networks_are_left_as_found() -> None:
    network, (x, y) = small(), images(12)
    with unchanged(network):
        found = cs.intervene({"net": network}, (x, y), fractions=[0.5], **QUICK)
    assert found.meta["models"]["net"]["layers"] == ["relu2"]


def test_attacks_made_for_gates_see_the_gates_without_the_channels() -> None:
    network, (x, y) = gated(), images(12)
    masks = torch.zeros(CLASSES, 16, dtype=torch.bool)
    masks[:, 3:9] = True
    with torch.no_grad():
        probed = suppressed(network, "layer4.0", masks).probed(x)
        with cs.ablated(network, {"layer4.0": masks[0]}):
            expected = network.probed(x)
    assert not probed.features["layer4.0"][:, 3:9].any()
    for layer in expected.probes:
        assert torch.equal(probed.probes[layer], expected.probes[layer])
    assert isinstance(suppressed(network, "layer4.0", masks), Gated)
    assert not isinstance(suppressed(plain(), "relu2", masks[:, :8]), Gated)
    attack = JointSweep(attack=PGD(eps=0.05, steps=1), betas=(0.0, 2.0))
    found = cs.intervene(
        {"net": network},
        (x, y),
        layers=["layer4.0"],
        fractions=[0.25],
        **QUICK | {"attack": attack},
    )
    assert "No attack made for gates" not in found.verdicts["statement"][0]


def test_suppressed_network_follows_its_own_answer() -> None:
    network, (x, _) = plain(), images()
    masks = torch.rand(CLASSES, 8) < 0.5
    with torch.no_grad():
        answers = network(x).argmax(1)
        logits = suppressed(network, "relu2", masks)(x)
        for i, answer in enumerate(answers.tolist()):
            with cs.ablated(network, {"relu2": masks[answer]}):
                torch.testing.assert_close(logits[i : i + 1], network(x[i : i + 1]))


@given(
    relevance=st.integers(2, 5).flatmap(
        lambda k: st.integers(2, 9).flatmap(
            lambda c: st.lists(
                st.lists(st.integers(-2, 2), min_size=c, max_size=c), min_size=k, max_size=k
            )
        )
    ),
    fractions=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
)
def test_rankings_are_orders_of_all_channels_and_masks_grow(
    relevance: list[list[int]], fractions: list[float]
) -> None:
    values = torch.tensor(relevance, dtype=torch.float32)
    classes, channels = values.shape
    plan = Plan.of({"layer": {"gradient": values}}, fractions, 2, seed=3)
    counts = plan.counts["layer"]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (0, channels)
    by_order = {ranking.order: ranking for ranking in plan.rankings}
    assert (values.gather(1, by_order["nr"].channels).diff(dim=1) >= 0).all()
    assert torch.equal(by_order["pr"].channels, by_order["nr"].channels.flip(1))
    for ranking in plan.rankings:
        assert ranking.channels.sort(1).values.tolist() == [list(range(channels))] * classes
        before = ranking.masks(0)
        assert not before.any()
        for count in counts[1:]:
            masks = ranking.masks(count)
            assert (masks.sum(1) == count).all()
            assert (masks | ~before).all()
            before = masks
    assert len(plan.points) == 2 + 4 * (len(counts) - 2)


# ---------------------------------------------------------------- files and mistakes


def test_what_is_saved_is_what_is_loaded(found: Interventions, folder: Path) -> None:
    again = Interventions.load(folder)
    assert again.meta == found.meta
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_dtype=False)


def test_other_folders_and_damaged_ones_are_refused(
    found: Interventions, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        found.save(tmp_path)
    with pytest.raises(UserError, match="holds no interventions"):
        Interventions.load(tmp_path)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / DIGESTS).unlink()  # by which any change shows
    meta = json.loads((damaged / "meta.json").read_text())
    (damaged / "meta.json").write_text(json.dumps(meta | {"models": {"other": {}}}))
    with pytest.raises(UserError, match="damaged"):
        Interventions.load(damaged)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda league: pd.concat([league, league[:1]]), "league.csv has a row twice"),
        (lambda league: league[league["order"] != "nr"], "lacks rows of"),
        (lambda league: league.assign(layer=league["layer"] + "x"), "of other layers"),
        (lambda league: league[:0], "of other models"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(
    how: Callable[[pd.DataFrame], pd.DataFrame],
    words: str,
    found: Interventions,
    folder: Path,
    tmp_path: Path,
) -> None:
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / DIGESTS).unlink()  # by which any change shows
    found.league.to_csv(damaged / "league.csv", index=False)
    Interventions.load(damaged)
    how(found.league).to_csv(damaged / "league.csv", index=False)
    with pytest.raises(UserError, match=words):
        Interventions.load(damaged)


def test_no_scorers_name_leads_out_of_the_folder(found: Interventions, tmp_path: Path) -> None:
    name = "x/../../../outside"
    strange = {
        table: getattr(found, table).replace("gradient", name) for table in ("curves", "league")
    }
    assert name in set(strange["league"]["scorer"])
    paths = interventions.draw(
        dataclasses.replace(found, **strange), tmp_path / "deep" / "figures", formats=["svg"]
    )
    assert {path.parent for path in paths} == {tmp_path / "deep" / "figures"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": []}, "name at least one"),
        ({"fractions": [1.5]}, "between 0 and 1"),
        ({"random": 0}, "at least one"),
        ({"relevant_to": "truth"}, "answer or the label, not to the truth"),
        ({"scorers": "gradient"}, "as a list of names"),
        ({"scorers": ["tea leaves"]}, "no scorer 'tea leaves'"),
        ({"layers": ["conv9"]}, "no layer 'conv9'"),
        ({"layers": "conv1"}, "as a list of names"),
        ({"replicates": 3}, "at least 20 replicates"),
        ({"images": 0}, "at least one image, not 0"),
        ({"seed": -1}, "seed lies between"),
        ({"attack": "pgd"}, "no attack 'pgd'"),
        ({"attack": ATTACK, "eps": 0.1}, "has its own eps"),
        ({"attack": 3}, "an attack is a name"),
        ({"attack": SimpleNamespace(eps="0.1")}, "an attack is a name"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_said_in_a_sentence(options: dict[str, Any], words: str) -> None:
    x, y = images(12)
    with pytest.raises(UserError, match=f"(?i){words}"):
        cs.intervene({"net": small()}, (x, y), **{"progress": False, **options})


# ---------------------------------------------------------------- figures


def test_curves_draw_their_data_and_nothing_else(found: Interventions) -> None:
    data = curves_data(found, "bn1", "gradient-x-activation")
    assert set(data["model"]) == {"plain"}  # the only network that has the layer
    axes = found.plot_curves("bn1", "gradient-x-activation").axes
    assert len(axes) == 2
    for ax, kind in zip(axes, ("natural", "adversarial"), strict=True):
        of_kind = data[data["data"] == kind]
        drawn = sorted(tuple(map(tuple, line.get_xydata().round(9).tolist())) for line in ax.lines)
        expected = [rows[["fraction", "accuracy"]].round(9) for _, rows in of_kind.groupby("order")]
        assert drawn == sorted(tuple(rows.itertuples(index=False, name=None)) for rows in expected)
        assert {line.get_color() for line in ax.lines} == {COLOURS[kind]}
        bands = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in ax.collections])
        assert bands.max() == pytest.approx(of_kind["high"].max())
        assert bands.min() == pytest.approx(of_kind["low"].min())


def test_insertion_can_be_drawn_too(found: Interventions) -> None:
    figure = found.plot_curves(curve="insertion")
    assert len(figure.axes) == 4  # two networks, each at its last layer
    assert figure.axes[-1].get_xlabel() == "channels kept, others 0 (%)"
    starts = {line.get_ydata()[0] for line in figure.axes[0].lines}
    assert len(starts) == 1  # from all suppressed, all orders begin alike
    assert starts == set(
        accuracies(found, "nr", "natural", "insertion", layer="relu2", scorer="gradient")[:1]
    )


def test_league_draws_every_scorer_of_a_layer_the_best_on_top(found: Interventions) -> None:
    data = league_data(found, "relu2")
    assert set(data["order"]) == {"nr", "pr"}
    best = found.league[(found.league["layer"] == "relu2") & (found.league["order"] == "both")]
    best = best[best["data"] == "adversarial"].sort_values("rank", kind="stable")["scorer"].tolist()
    figure = found.plot_league("relu2")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == best
    for ax, order in zip(figure.axes, ("nr", "pr"), strict=True):
        for dots, kind in zip(ax.containers, ("natural", "adversarial"), strict=True):
            rows = data[(data["order"] == order) & (data["data"] == kind)]
            assert rows["scorer"].tolist() == best
            np.testing.assert_allclose(dots[0].get_xdata(), rows["value"])
            (bars,) = dots[2]
            reach = [[start[0], end[0]] for start, end in bars.get_segments()]
            np.testing.assert_allclose(reach, rows[["low", "high"]], atol=1e-12)


@pytest.mark.parametrize("draw", [Interventions.plot_curves, Interventions.plot_league])
def test_figures_say_what_they_show(
    found: Interventions, draw: Callable[[Interventions], Figure]
) -> None:
    figure = draw(found)
    (key,) = figure.legends
    words = " ".join(key.get_title().get_text().split())
    for part in (
        "24 images",
        "95% intervals",
        "PGD-2, ε = 0.1",
        "the class that the network answers",
    ):
        assert part in words
    width, renderer = (
        figure.get_size_inches()[0] * figure.dpi,
        FigureCanvasAgg(figure).get_renderer(),
    )
    for text in (*figure.texts, figure._suptitle, key.get_title(), *key.get_texts()):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= width


def test_every_figure_lies_beside_its_data(folder: Path, found: Interventions) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    layers = ("bn1", "relu2", "layer4.0")
    stems = {f"league-{layer}" for layer in layers}
    stems |= {
        f"curves-{scorer}-{layer}"
        for scorer in ("gradient", "gradient-x-activation")
        for layer in layers
    }
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("pdf", "png", "csv")}
    held = pd.read_csv(folder / "figures" / "league-bn1.csv")
    pd.testing.assert_frame_equal(held, league_data(found, "bn1"), check_dtype=False)


@pytest.mark.parametrize(
    ("layer", "scorer", "words"),
    [
        ("layer9", None, "No layer 'layer9' here; choose from bn1, relu2"),
        ("bn1", "tea", "No curves of 'tea' here"),
    ],
)
def test_unknown_layers_and_scorers_are_refused(
    found: Interventions, layer: str, scorer: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        found.plot_curves(layer, scorer)


# ---------------------------------------------------------------- at the command line


def test_command_prints_the_league_and_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interventions, "draw", lambda *_: [])
    words = [
        "intervene",
        "--models",
        str(trained("at")),
        "--labels",
        "AT",
        "--data",
        write_npz(tmp_path, 4),
        "-q",
    ]
    words += [
        "--images",
        "8",
        "--eps",
        "0.1",
        "--attack",
        "pgd-1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    words += [
        "--fractions",
        "0.25",
        "--random",
        "1",
        "--replicates",
        "20",
        "--scorer",
        "weights",
        "probe",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in (
        "NR attacked",
        "8 test images",
        "C4 by intervention",
        "note, AT: The network has no gates",
    ):
        assert part in said
    held = Interventions.load(tmp_path / "out")
    assert held.meta["command"].startswith("channelscope intervene --models")
    assert held.league["scorer"].unique().tolist() == ["weights"]
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {"out", "areas", "league", "verdicts"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fractions", "1.5"], "'1.5' is no share between 0 and 1"),
        (["--relevant-to", "truth"], "--relevant-to"),
        (
            ["--scorer", "probe"],
            "The network has no gates, and so no probes: choose another scorer.",
        ),
        (["--scorer", "tea"], "invalid choice: 'tea'"),
    ],
)
def test_mistakes_at_the_command_line_are_answered_in_one_line(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "intervene",
        "--models",
        str(trained("at")),
        "--data",
        write_npz(tmp_path, 4),
        "--images",
        "4",
        "-q",
    ]
    with suppress(SystemExit):
        assert main([*command, "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_commands_defaults_are_the_functions() -> None:
    given = parser.make_parser().parse_args(["intervene", "--models", "at.pt"])
    defaults = {name: item.default for name, item in signature(cs.intervene).parameters.items()}
    for name in (
        "scorers",
        "attack",
        "eps",
        "fractions",
        "random",
        "relevant_to",
        "images",
        "seed",
        "replicates",
    ):
        value = getattr(given, name)
        assert (tuple(value) if isinstance(value, list) else value) == defaults[name], name
