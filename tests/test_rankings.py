"""Rankings: what each scorer says, whether they agree, and the folder that holds it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from channelscope.figures.scorers import scorer_agreement, scorer_agreement_data
from channelscope.rankings import Rankings, rank
from torch import Tensor, nn

import reference
from channelscope.errors import UserError
from channelscope.files import DIGESTS
from channelscope.scorers import relevance
from helpers.networks import CLASSES, deciding, gated, images, plain, resnet

QUICK = {"replicates": 20, "progress": False}


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    return images(n)[0], torch.arange(n) % CLASSES


@pytest.fixture(scope="module")
def found() -> Rankings:
    torch.manual_seed(0)
    scorers = ("gradient", "ablation", "weights", "probe")
    return rank(
        {"plain": resnet(), "gated": gated()},
        data(),
        layers=["layer3", "layer4.?"],
        scorers=scorers,
        **QUICK,
    )


def test_table_has_what_cs_relevance_gives() -> None:
    net, xy = plain(), data()
    rows = rank(
        {"net": net}, xy, layers=["bn1"], scorers=["gradient", "ablation"], **QUICK
    ).relevance
    for scorer in ("gradient", "ablation"):
        wanted = relevance(net, "bn1", xy, scorer=scorer, progress=False)
        one = rows[rows["scorer"] == scorer].pivot(
            index="class", columns="channel", values="relevance"
        )
        np.testing.assert_allclose(one.to_numpy(), wanted.numpy(), rtol=1e-4, atol=1e-8)


def test_agreement_is_the_mean_rank_correlation_and_lies_in_its_interval() -> None:
    rows = rank({"net": plain()}, data(), layers=["bn1"], scorers=["gradient", "ablation"], **QUICK)
    table = dict(list(rows.relevance.groupby("scorer")))
    naive = [
        reference.spearman(
            *(at[at["class"] == str(k)]["relevance"].tolist() for at in table.values())
        )
        for k in range(CLASSES)
    ]
    (agreed,) = rows.agreement.itertuples()
    assert agreed.value == pytest.approx(sum(naive) / CLASSES)
    assert -1 <= agreed.low <= agreed.value <= agreed.high <= 1
    assert agreed.low < agreed.high


def test_layers_follow_the_order_given_and_scorers_theirs(found: Rankings) -> None:
    order = list(
        found.relevance[["model", "layer", "scorer"]]
        .drop_duplicates()
        .itertuples(index=False, name=None)
    )
    assert order == [
        ("plain", "layer3", "gradient"),
        ("plain", "layer3", "ablation"),
        ("plain", "layer4.0", "gradient"),
        ("plain", "layer4.0", "ablation"),
        ("plain", "layer4.0", "weights"),
        ("gated", "layer3", "gradient"),
        ("gated", "layer3", "ablation"),
        ("gated", "layer4.0", "gradient"),
        ("gated", "layer4.0", "ablation"),
        ("gated", "layer4.0", "probe"),
        ("gated", "layer4.1", "gradient"),
        ("gated", "layer4.1", "ablation"),
        ("gated", "layer4.1", "probe"),
    ]
    assert found.meta["models"]["gated"]["layers"] == ["layer3", "layer4.0", "layer4.1"]


def test_what_a_scorer_refuses_is_told(found: Rankings) -> None:
    refused = {
        (row["model"], row["layer"], row["scorer"]): row["reason"] for row in found.meta["refused"]
    }
    assert refused["plain", "layer3", "weights"].startswith(
        "Layer 'layer3' is not the penultimate one"
    )
    assert "has no gates" in refused["plain", "layer4.0", "probe"]
    assert ("plain", "layer3", "gradient") not in refused


def test_every_two_scorers_of_a_layer_are_compared_once(found: Rankings) -> None:
    pairs = found.agreement.groupby(["model", "layer"]).size()
    assert pairs.to_dict() == {
        ("plain", "layer3"): 1,
        ("plain", "layer4.0"): 3,
        ("gated", "layer3"): 1,
        ("gated", "layer4.0"): 3,
        ("gated", "layer4.1"): 3,
    }
    weights = found.agreement.set_index(["model", "layer", "scorer", "other"])["value"]
    assert weights["plain", "layer4.0", "gradient", "weights"] == pytest.approx(1)


def test_counts_are_of_the_known_network() -> None:
    net, x, y, _ = deciding()
    counts = rank(
        {"net": net}, (x, y), layers=["relu2"], scorers=["gradient", "ablation"], **QUICK
    ).counts
    assert counts["positive"].tolist() == [1, 1]
    assert counts["negative"].tolist() == [1, 1]


def test_penultimate_layer_is_the_default() -> None:
    assert set(
        rank({"net": resnet()}, data(), scorers=["weights"], **QUICK).relevance["layer"]
    ) == {"layer4"}


def test_same_seed_gives_the_same_tables() -> None:
    net = plain()
    one, two = (
        rank({"net": net}, data(), layers=["bn1"], images=10, seed=3, **QUICK) for _ in range(2)
    )
    pd.testing.assert_frame_equal(one.relevance, two.relevance)
    pd.testing.assert_frame_equal(one.agreement, two.agreement)


# ---------------------------------------------------------------- the folder


def test_saved_folder_has_tables_settings_and_the_figure(found: Rankings, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "out")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/scorer-agreement.{ending}" for ending in ("pdf", "png", "csv")}
    assert names == {"relevance.csv", "agreement.csv", "meta.json", DIGESTS, *figures}
    assert len(pd.read_csv(folder / "relevance.csv")) == len(found.relevance)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta == found.meta
    assert meta["seed"] == 0
    assert meta["scorers"]["ablation"] == "1 + 1 a channel"
    assert {"torch", "captum"} <= meta["versions"].keys()
    found.save(folder)  # once again replaces
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names


def test_one_scorer_has_no_agreement_and_no_figure(tmp_path: Path) -> None:
    alone = rank({"net": plain()}, data(), layers=["bn1"], scorers=["gradient"], **QUICK)
    assert alone.agreement.empty
    assert {path.name for path in alone.save(tmp_path / "out").iterdir()} == {
        "relevance.csv",
        "agreement.csv",
        "meta.json",
        DIGESTS,
    }


def test_empty_names_of_layers_are_refused() -> None:
    with pytest.raises(UserError, match="layer's name is empty"):
        rank({"net": plain()}, images(8), layers=[""], progress=False)


def test_other_files_are_not_replaced(found: Rankings, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        found.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scorers": ["slope"]}, "There is no scorer 'slope'"),
        ({"scorers": ["probe"]}, "has no gates"),
        ({"replicates": 3}, "at least 20 replicates"),
        ({"layers": ["layer9.*"]}, "No layer's name matches"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rank({"net": resnet()}, data(), **(QUICK | options))


# ---------------------------------------------------------------- the figure


def test_figure_draws_every_pair_of_every_layer(found: Rankings) -> None:
    figure = scorer_agreement(found.agreement, found.meta)
    drawn = scorer_agreement_data(found.agreement)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title("left") for ax in panels] == [
        "plain, layer3",
        "plain, layer4.0",
        "gated, layer3",
        "gated, layer4.0",
        "gated, layer4.1",
    ]
    shown = np.concatenate(
        [np.asarray(ax.images[0].get_array().filled(np.nan)).ravel() for ax in panels]
    )
    np.testing.assert_allclose(np.sort(shown[~np.isnan(shown)]), np.sort(drawn["value"].to_numpy()))
    for ax, (_, cells) in zip(panels, drawn.groupby(["model", "layer"], sort=False), strict=True):
        array = ax.images[0].get_array()
        rows, columns = (
            [label.get_text() for label in labels]
            for labels in (ax.get_yticklabels(), ax.get_xticklabels())
        )
        for cell in cells.itertuples():
            assert array[rows.index(cell.other), columns.index(cell.scorer)] == pytest.approx(
                cell.value
            )
        assert len(ax.texts) == len(cells)
    assert "20 images" in figure.get_suptitle().replace("\n", " ")


def test_network_of_any_kind_is_taken() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)
    )
    assert set(rank({"net": net}, data(), **QUICK).relevance["layer"]) == {"0"}
