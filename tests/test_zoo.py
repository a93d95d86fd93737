"""The networks that ship with the package: what they say of themselves is so."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch

import channelscope as cs
from channelscope.cli import main
from channelscope.errors import UserError
from channelscope.gates import Selective
from channelscope.study.models import load_models
from channelscope.training.recipes import find_name
from channelscope.weights import Checkpoint, zoo
from channelscope.weights.tensors import load_tensors
from helpers.expect import mistake

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

ROOT = Path(__file__).parent.parent
NAMES = ["cifar10-standard", "cifar10-at", "cifar10-cas", "cifar10-cifs"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_zoo_holds_the_four_kinds_of_network() -> None:
    assert list(zoo.NAMES) == NAMES
    assert {file.stem for file in zoo.HERE.glob("*.pt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_and_half_precise_and_its_network_is_not(name: str) -> None:
    file = zoo.HERE / f"{name}.pt"
    assert file.stat().st_size < 2_000_000
    for tensor in load_tensors(file)["state"].values():
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else tensor.dtype)
    network = cs.load(f"zoo:{name}")
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert isinstance(network, Selective) == (name in ("cifar10-cas", "cifar10-cifs"))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_says_how_it_was_trained(name: str) -> None:
    checkpoint = Checkpoint.read(f"zoo:{name}")
    settings = checkpoint.meta["settings"]
    assert find_name(settings["recipe"]) == f"cifar10-resnet18-small-{checkpoint.method}"
    assert settings["data"]["name"] == zoo.TRAINED_ON
    assert len(checkpoint.meta["history"]) == settings["recipe"]["schedule"]["epochs"]
    assert checkpoint.class_names is not None
    assert len(checkpoint.class_names) == 10


def test_the_adversarially_trained_networks_had_equal_compute() -> None:
    _, at, cas, cifs = load_models([f"zoo:{name}" for name in NAMES], {}, "cpu")
    assert at.label == "cifar10-at"
    assert at.compute == cas.compute == cifs.compute


def test_any_other_path_is_left_as_it_is() -> None:
    assert zoo.locate("a/zoo:b.pt") == Path("a/zoo:b.pt")
    assert zoo.get_label("a/b.c.pt") == "b.c"
    assert zoo.get_label("a/r18.pth.tar") == "r18"
    assert zoo.get_label("a/r18.v2.tar") == "r18.v2"


@pytest.mark.parametrize(
    "name", ["zoo:", "zoo:cifar10-ta", "zoo:../zoo/cifar10-at", "zoo:cifar10-at.pt"]
)
def test_an_unknown_name_is_the_users_to_know(name: str) -> None:
    with pytest.raises(UserError, match="choose from cifar10-standard, cifar10-at"):
        cs.load(name)


@pytest.mark.parametrize("name", ["zoo:cifar10-at", "zoo:mine"])
def test_nothing_is_written_under_a_name_of_the_zoo(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint.read("zoo:cifar10-at")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="choose another file"):
        checkpoint.save(name)
    assert main(["train", "--method", "at", "--epochs", "1", "--out", name, "-q"]) == 2
    assert "choose another file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_half_precision_are_not_halved() -> None:
    checkpoint = Checkpoint.read("zoo:cifar10-at")
    large = {"linear.weight": torch.full_like(checkpoint.state["linear.weight"], 1e5)}
    halved = (
        Checkpoint(**vars(checkpoint) | {"state": dict(checkpoint.state) | large}).to_half().state
    )
    assert torch.equal(halved["linear.weight"], large["linear.weight"])


def test_halving_keeps_what_is_small(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read("zoo:cifar10-cifs")
    behind = "cnn.layer4.1.bn1.running_var"
    state = dict(checkpoint.state) | {behind: torch.full_like(checkpoint.state[behind], 1e-12)}
    Checkpoint(**vars(checkpoint) | {"state": state}).to_half().save(tmp_path / "half.pt")
    again = Checkpoint.read(tmp_path / "half.pt")
    assert torch.equal(again.state[behind], state[behind])
    for name, tensor in again.state.items():
        torch.testing.assert_close(
            tensor, checkpoint.state[name] if name != behind else tensor, rtol=1e-3, atol=1e-7
        )


def test_adversarial_training_is_worth_more_than_15_points() -> None:
    table = pd.read_csv(zoo.RESULTS).query("attack == 'pgd-20'").set_index("model")["accuracy"]
    assert (table.drop("cifar10-standard") > table["cifar10-standard"] + 0.15).all()


def test_the_command_lists_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    told = capsys.readouterr().out
    with zoo.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in NAMES:
        line = next(line for line in told.splitlines() if line.startswith(f"zoo:{name} "))
        shares = {
            row["attack"]: f"{float(row['accuracy']):.1%}" for row in rows if row["model"] == name
        }
        assert line.split()[1:6] == [
            shares[key] for key in ("natural", "pgd-20", "cw-30", "worst", "autoattack")
        ]
        assert zoo.TRAINED_ON in line
        assert f"cifar10-resnet18-small-{name.removeprefix('cifar10-')}" in line


def test_the_zoo_is_a_table() -> None:
    table, measured = cs.zoo(), pd.read_csv(zoo.RESULTS)
    assert list(table["model"]) == [f"zoo:{name}" for name in measured["model"]]
    pd.testing.assert_frame_equal(table[measured.columns[1:]], measured[measured.columns[1:]])
    recipes = dict(zip(table["model"], table["recipe"], strict=True))
    for name in NAMES:
        settings = Checkpoint.read(f"zoo:{name}").meta["settings"]
        assert recipes[f"zoo:{name}"] == find_name(settings["recipe"])
        assert set(table["data"]) == {settings["data"]["name"]}


def test_data_has_to_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status = main(
        [
            "compare",
            "--models",
            "zoo:cifar10-at",
            "zoo:cifar10-cifs",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert status == 2
    assert "cifar10 or imagefolder:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a,b\n1,2\n",
        "model,attack,accuracy,low,high,count\nx,y,z,0,0,0\n",
        "\udcff",
        '"' + "x" * 200_000,
    ],
)
def test_results_that_are_damaged_are_refused(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "RESULTS", tmp_path / "results.csv")
    zoo.RESULTS.write_bytes(content.encode("utf-8", "surrogateescape"))
    with mistake("results.csv", "install channelscope again"):
        zoo.zoo()
