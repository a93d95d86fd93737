"""cs.Result: networks whose answer is known, a naive loop, and what must always hold."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import channelscope as cs
import reference
from channelscope.attacks import PGD, JointSweep
from channelscope.data import Dataset, MemorySplit
from channelscope.errors import UserError
from channelscope.objectives import Gated
from channelscope.study.study import Suppression
from channelscope.study.suppression import plan_suppression, suppress
from helpers.networks import CLASSES, gated, images, plain, unchanged

pytestmark = pytest.mark.slow

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
    result: cs.Result, order: str, data: str, curve: str = "deletion", **wanted: str
) -> list[float]:
    """Read a curve's accuracies, from no channel to all of them."""
    rows = result.select("curves", order=order, data=data, curve=curve, **wanted)
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
    result = cs.intervene(
        {"net": network},
        data,
        layers=["features"],
        fractions=[0.25, 0.5, 0.75],
        relevant_to=relevant_to,
        **QUICK,
    )
    for kind in ("natural", "adversarial"):
        # Without any channel, the answer is the first class.
        assert accuracies(result, "nr", kind) == [1, 1, 1, 1, 0.25]
        assert accuracies(result, "pr", kind) == [1, 0, 0, 0, 0.25]
        assert accuracies(result, "pr", kind, "insertion") == [0.25, 1, 1, 1, 1]
        assert accuracies(result, "nr", kind, "insertion") == [0.25, 0, 0, 0, 1]
    areas = result.areas.set_index(["order", "data"])["area"]
    assert areas["nr", "natural"] == pytest.approx(0.75 + 0.25 * 0.625)
    assert areas["pr", "natural"] == pytest.approx(0.25 * 0.5 + 0.25 * 0.125)
    league = result.league.set_index(["order", "data"])["value"]
    assert league["both", "natural"] == pytest.approx(
        (areas["nr", "natural"] - areas["pr", "natural"]) / 2
    )
    assert (league > 0).all()


def harmed_by_one(third: list[float]) -> tuple[nn.Module, Dataset]:
    """Pixel 0 tells classes 0 and 1; pixel 1 hardly exceeds its threshold, but favours class 2."""
    network = Pixels([[-1.0, -30.0], [1.0, -30.0], third], [1.0, 0.0, 0.0], [0.0, 0.4])
    return network, of_pixels([[0.2, 0.41], [0.8, 0.41]] * 12, [0, 1] * 12, 3)


def test_without_a_harmful_channel_robust_accuracy_rises_to_a_known_value() -> None:
    network, data = harmed_by_one(third=[0.0, -1.0])
    result = cs.intervene({"net": network}, data, layers=["features"], fractions=[0.5], **QUICK)
    assert accuracies(result, "nr", "natural") == [1, 1, 0.5]
    assert accuracies(result, "nr", "adversarial") == [0, 1, 0.5]
    (verdict,) = result.verdicts.itertuples()
    assert verdict.estimate == 1
    assert verdict.claim == "C4 by intervention"
    assert verdict.verdict == "supported"  # every image says the same, and they are many


def test_attack_that_changes_the_answer_changes_what_is_suppressed() -> None:
    """The harmful channel speaks for class 2: the attacked network answers 2, whose NR go."""
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


# ---------------------------------------------------------------- a naive loop


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("relevant_to", ["answer", "label"])
def test_images_that_stand_are_those_of_a_naive_loop(relevant_to: str) -> None:
    network, (x, _) = small().double(), images(8)
    with torch.no_grad():
        y = network(x.double()).argmax(1)
    y[::4] = (y[::4] + 1) % CLASSES
    relevance = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(2))

    def known(model: nn.Module, layers: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(layers, relevance[y])

    one_each = MemorySplit(images(CLASSES)[0], torch.arange(CLASSES))
    data = Dataset("drawn", tuple("abcde"), test=MemorySplit(x, y), val=one_each)
    study = cs.Study(
        {"net": network},
        data,
        kind="intervention",
        attack=PGD(eps=0.02, step=0.01, steps=3, random_start=False),
        attacks=(),
        layers=["bn1"],
        scorers=[known],
        suppression=Suppression(fractions=[0.2, 0.5], random=1, relevant_to=relevant_to),
        batch_size=4,
        progress=False,
    )
    suppressed = study.suppressed("net")["bn1"]
    assert suppressed.counts == (0, 1, 3, 6)
    (scorer,) = suppressed.relevance
    plan = plan_suppression({"bn1": {scorer: relevance.double().numpy()}}, [0.2, 0.5], 1, seed=0)
    for ranking in plan.rankings:
        if ranking.order != "random":
            sign = 1 if ranking.order == "nr" else -1
            orders = [sorted(range(6), key=lambda c: sign * row[c]) for row in relevance]
            assert ranking.channels.tolist() == orders
        (correct,) = suppressed.correct[ranking.scorer, ranking.order]
        for point, count in enumerate(suppressed.counts):
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
            assert correct["natural"][point].tolist() == natural
            assert correct["adversarial"][point].tolist() == robust
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
def result() -> cs.Result:
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


def test_no_suppression_is_the_plain_accuracy_and_of_all_the_constant_answer(
    result: cs.Result,
) -> None:
    networks, data = drawn()
    x, y = next(data.test.batches(len(data.test)))
    deleted = {"curve": "deletion", "data": "natural"}
    for name, network in networks.items():
        untouched = result.select("curves", **deleted, model=name, channels=0)
        with torch.no_grad():
            accuracy = float((network(x).argmax(1) == y).double().mean())
        assert set(untouched["accuracy"]) == {accuracy}
    of_all = result.select("curves", **deleted, layer="relu2", fraction=1)
    constant = int(networks["plain"].linear.bias.argmax())
    assert set(of_all["accuracy"]) == {float((y == constant).double().mean())}


def test_robust_images_are_right_as_they_are(result: cs.Result) -> None:
    keys = ["model", "layer", "scorer", "curve", "order", "channels"]
    both = result.curves.pivot(index=keys, columns="data", values="accuracy")
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
        result.select("curves", scorer="random").reset_index(drop=True) for result in (one, other)
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
    result: cs.Result,
) -> None:
    by_model = result.verdicts.groupby("models")["statement"].apply(list)
    assert all(
        statement.endswith("No attack made for gates was run.") for statement in by_model["gated"]
    )
    assert not any("gates" in statement for statement in by_model["plain"])
    assert result.meta["ranked_on"] == {"part": "val", "images": 15}
    x, y = images(12)
    alone = cs.intervene({"net": small()}, (x, y), layers=["bn1"], fractions=[0.5], **QUICK)
    assert alone.meta["ranked_on"] == {"part": "test", "images": 12}
    assert "ranked on the very images that are judged" in alone.verdicts["statement"][0]


def test_penultimate_layer_is_the_default_and_networks_are_left_as_found() -> None:
    network, (x, y) = small(), images(12)
    with unchanged(network):
        result = cs.intervene({"net": network}, (x, y), fractions=[0.5], **QUICK)
    assert result.meta["models"]["net"]["layers"] == ["relu2"]


def test_attacks_made_for_gates_see_the_gates_without_the_channels() -> None:
    network, (x, y) = gated(), images(12)
    masks = torch.zeros(CLASSES, 16, dtype=torch.bool)
    masks[:, 3:9] = True
    with torch.no_grad():
        probed = suppress(network, "layer4.0", masks).probed(x)
        with cs.ablated(network, {"layer4.0": masks[0]}):
            expected = network.probed(x)
    assert not probed.features["layer4.0"][:, 3:9].any()
    for layer in expected.probes:
        assert torch.equal(probed.probes[layer], expected.probes[layer])
    assert isinstance(suppress(network, "layer4.0", masks), Gated)
    assert not isinstance(suppress(plain(), "relu2", masks[:, :8]), Gated)
    attack = JointSweep(attack=PGD(eps=0.05, steps=1), betas=(0.0, 2.0))
    result = cs.intervene(
        {"net": network},
        (x, y),
        layers=["layer4.0"],
        fractions=[0.25],
        **QUICK | {"attack": attack},
    )
    assert "No attack made for gates" not in result.verdicts["statement"][0]


def test_suppressed_network_follows_its_own_answer() -> None:
    network, (x, _) = plain(), images()
    masks = torch.rand(CLASSES, 8) < 0.5
    with torch.no_grad():
        answers = network(x).argmax(1)
        logits = suppress(network, "relu2", masks)(x)
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
    values = torch.tensor(relevance, dtype=torch.float64)
    classes, channels = values.shape
    plan = plan_suppression({"layer": {"gradient": values.numpy()}}, fractions, 2, seed=3)
    counts = plan.counts["layer"]
    assert counts == tuple(sorted(set(counts)))
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": []}, "fractions: "),
        ({"fractions": [1.5]}, "fractions: "),
        ({"random": 0}, "random: 0"),
        ({"relevant_to": "truth"}, "relevant_to: 'truth'"),
        ({"scorers": "gradient"}, "scorers: "),
        ({"scorers": ["tea leaves"]}, "no scorer 'tea leaves'"),
        ({"layers": ["conv9"]}, "no layer 'conv9'"),
        ({"layers": "conv1"}, "layers: "),
        ({"replicates": 3}, "replicates: 3"),
        ({"images": 0}, "images: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"attack": "pgd"}, "no attack 'pgd'"),
        ({"attack": 3}, "3 is no attack"),
        ({"attack": SimpleNamespace(eps="0.1")}, "is no attack"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_said_in_a_sentence(options: dict[str, Any], words: str) -> None:
    x, y = images(12)
    with pytest.raises(UserError, match=f"(?i){words}"):
        cs.intervene({"net": small()}, (x, y), **{"progress": False, **options})
