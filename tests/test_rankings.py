"""The relevance of networks' channels by several scorers, end to end, and its folder."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from channelscope import Result, relevance
from channelscope.analyses.relevance import count_signs
from channelscope.errors import UserError
from channelscope.files import DIGESTS
from helpers.networks import CLASSES, deciding, gated, images, plain, resnet

pytestmark = pytest.mark.slow

QUICK = {"replicates": 20, "progress": False}


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    return images(n)[0], torch.arange(n) % CLASSES


@pytest.fixture(scope="module")
def result() -> Result:
    torch.manual_seed(0)
    scorers = ("gradient", "ablation", "weights", "probe")
    return relevance(
        {"plain": resnet(), "gated": gated()},
        data(),
        layers=["layer3", "layer4.?"],
        scorers=scorers,
        **QUICK,
    )


def test_layers_follow_the_order_given_and_scorers_theirs(result: Result) -> None:
    order = list(
        result.relevance[["model", "layer", "scorer"]]
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
    assert result.meta["models"]["gated"]["layers"] == ["layer3", "layer4.0", "layer4.1"]


def test_what_a_scorer_refuses_is_told(result: Result) -> None:
    refused = {
        (row["model"], row["layer"], row["scorer"]): row["reason"] for row in result.meta["refused"]
    }
    assert refused["plain", "layer3", "weights"].startswith(
        "Layer 'layer3' is not the penultimate one"
    )
    assert "has no gates" in refused["plain", "layer4.0", "probe"]
    assert ("plain", "layer3", "gradient") not in refused


def test_every_two_scorers_of_a_layer_are_compared_once(result: Result) -> None:
    pairs = result.agreement.groupby(["model", "layer"]).size()
    assert pairs.to_dict() == {
        ("plain", "layer3"): 1,
        ("plain", "layer4.0"): 3,
        ("gated", "layer3"): 1,
        ("gated", "layer4.0"): 3,
        ("gated", "layer4.1"): 3,
    }
    weights = result.agreement.set_index(["model", "layer", "scorer", "other"])["value"]
    assert weights["plain", "layer4.0", "gradient", "weights"] == pytest.approx(1)


def test_counts_are_of_the_known_network() -> None:
    net, x, y, _ = deciding()
    options = {"layers": ["relu2"], "scorers": ["gradient", "ablation"], **QUICK}
    counts = count_signs(relevance({"net": net}, (x, y), **options))
    assert counts["positive"].tolist() == [1, 1]
    assert counts["negative"].tolist() == [1, 1]


def test_penultimate_layer_is_the_default() -> None:
    assert set(
        relevance({"net": resnet()}, data(), scorers=["weights"], **QUICK).relevance["layer"]
    ) == {"layer4"}


def test_same_seed_gives_the_same_tables() -> None:
    net = plain()
    one, two = (
        relevance({"net": net}, data(), layers=["bn1"], images=10, seed=3, **QUICK)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(one.relevance, two.relevance)
    pd.testing.assert_frame_equal(one.agreement, two.agreement)


# ---------------------------------------------------------------- the folder


def test_saved_folder_has_tables_settings_and_the_figure(result: Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/scorer-agreement.{ending}" for ending in ("pdf", "png", "svg", "csv")}
    tables = {f"{name}.csv" for name in ("relevance", "agreement")}
    captions = {f"figures/captions.{ending}" for ending in ("json", "txt")}
    assert names == {
        *tables,
        "arrays.npz",
        "meta.json",
        "report.html",
        DIGESTS,
        *figures,
        *captions,
    }
    assert len(pd.read_csv(folder / "relevance.csv")) == len(result.relevance)
    loaded = Result.load(folder)
    assert loaded.meta.items() >= result.meta.items()
    assert loaded.meta["seed"] == 0
    assert list(loaded.meta["scorers"]) == ["gradient", "ablation", "weights", "probe"]
    assert {"torch", "captum"} <= loaded.meta["versions"].keys()
    pd.testing.assert_frame_equal(loaded.relevance, result.relevance, check_dtype=False)
    result.save(folder)  # once again replaces
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names


def test_empty_names_of_layers_are_refused() -> None:
    with pytest.raises(UserError, match="name is empty"):
        relevance({"net": plain()}, images(8), layers=[""], progress=False)


def test_other_files_are_not_replaced(result: Result, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        result.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scorers": ["slope"]}, "There is no scorer 'slope'"),
        ({"scorers": ["probe"]}, "has no gates"),
        ({"replicates": 3}, "use at least 20"),
        ({"layers": ["layer9.*"]}, "No layer's name matches"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        relevance({"net": resnet()}, data(), **(QUICK | options))


def test_network_of_any_kind_is_taken() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)
    )
    assert set(relevance({"net": net}, data(), **QUICK).relevance["layer"]) == {"0"}
