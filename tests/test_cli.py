"""The command line: from training to figures, exit statuses, and every kind of bad input answered in one line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import networks
import test_converters as releases
from channelscope import cli
from channelscope.attacks import PGD
from channelscope.cli import commands, inspection, options
from channelscope.cli.parser import make_parser
from channelscope.comparison import Comparison, compare
from channelscope.data import Dataset
from channelscope.scorers import COSTS
from channelscope.training import Recipe
from channelscope.training.recipes import catalogue, summary
from channelscope.weights import Checkpoint
from channelscope.weights.tensors import load_tensors
from helpers.expect import contents
from helpers.runs import METHODS, digits, same_run, trained, write_npz

pytestmark = pytest.mark.usefixtures("unchecked")

COMMANDS = (
    "train",
    "recipes",
    "sweep",
    "compare",
    "evaluate",
    "relevance",
    "intervene",
    "figures",
    "demo",
    "convert",
    "layers",
    "zoo",
)
TINY = [
    "--arch",
    "resnet10",
    "--width",
    "2",
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--device",
    "cpu",
    "-q",
]


def main(*words: str | Path) -> int:
    """Run the command line in this process; give its exit status."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:  # argparse's
        return int(stop.code or 0)


def shell(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "channelscope", *map(str, words)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, **options
    )


# ---------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network by each method, from the command line."""
    folder = tmp_path_factory.mktemp("work")
    data = write_npz(folder)
    for method in METHODS:
        assert (
            main(
                "train", "--method", method, "--data", data, "--out", folder / f"{method}.pt", *TINY
            )
            == 0
        )
    return folder


@pytest.fixture(scope="module")
def compared(work: Path, few_figures: None) -> Path:
    """Compare two of them, and draw figures."""
    out = work / "comparison"
    models = ["--models", work / "standard.pt", work / "cifs.pt", "--labels", "nat", "CIFS"]
    settings = [
        "--attack",
        "pgd-2",
        "--attacks",
        "cw-2",
        "--replicates",
        "20",
        "--device",
        "cpu",
        "-q",
    ]
    assert main("compare", *models, "--out", out, *settings) == 0
    return out


def test_training_leaves_a_checkpoint_and_its_log(work: Path) -> None:
    for method in METHODS:
        found = Checkpoint.read(work / f"{method}.pt")
        assert found.method == method
        assert found.meta["settings"]["data"]["name"] == f"npz:{work / 'digits.npz'}"
        assert len(pd.read_csv(work / f"{method}.pt.csv")) == 1
    assert not list(work.glob("*.partial"))
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_training_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_npz(tmp_path)
    assert main("train", "--method", "at", "--data", data, "--out", tmp_path / "net.pt", *TINY) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(f"{tmp_path / 'net.pt'}: best epoch 1")
    assert f"{tmp_path / 'net.pt'}.csv" in said.out
    before = contents(tmp_path)
    assert (
        main(
            "train",
            "--method",
            "at",
            "--data",
            data,
            "--out",
            tmp_path / "net.pt",
            "--resume",
            *TINY,
        )
        == 0
    )
    assert contents(tmp_path) == before


def test_the_checkpoint_is_named_after_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_npz(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main("train", "--method", "standard", "--data", data, *TINY) == 0
    assert sorted(contents(tmp_path)) == ["digits.npz", "standard.pt", "standard.pt.csv"]


def test_settings_reach_the_recipe(tmp_path: Path) -> None:
    data = write_npz(tmp_path)
    words = ["--lr", "0.02", "--eps", "4/255", "--seed", "7"]
    assert (
        main("train", "--method", "at", "--data", data, "--out", tmp_path / "net.pt", *words, *TINY)
        == 0
    )
    settings = Checkpoint.read(tmp_path / "net.pt").meta["settings"]
    assert Recipe.from_values(settings["recipe"]) == Recipe.suited_to("npz", "at").override(
        lr=0.02, eps=4 / 255, step=1 / 255, arch="resnet10", width=2, epochs=1, batch_size=16
    )
    assert settings["seed"] == 7


def test_a_recipe_is_trained_by_name_and_by_file_with_changes(tmp_path: Path) -> None:
    data, out = write_npz(tmp_path), tmp_path / "net.pt"
    words = ["--data", data, "--images", "10", *TINY]
    changes = [
        "--set",
        "gates.k=1",
        'probes=["linear"]',
        "attack.eps=4/255",
        "--set",
        "averaging.kind=ema",
    ]
    assert main("train", "--recipe", "svhn-resnet18-cifs", "--out", out, *words, *changes) == 0
    found = Checkpoint.read(out)
    recipe = Recipe.from_values(found.meta["settings"]["recipe"])
    assert recipe.method == found.method == "cifs"
    assert (recipe.gates.options["k"], recipe.gates.probes) == (1, ("linear",))
    assert (recipe.attack.eps, recipe.attack.step) == pytest.approx((4 / 255, 1 / 255))
    assert (recipe.averaging.kind, recipe.optimizer.weight_decay) == ("ema", 5e-4)
    assert [gate.options["k"] for gate in found.gates] == [1]
    (tmp_path / "mine.toml").write_text(recipe.toml())
    again = [
        "--recipe",
        tmp_path / "mine.toml",
        "--data",
        data,
        "--images",
        "10",
        "--device",
        "cpu",
        "-q",
    ]
    assert main("train", *again, "--out", tmp_path / "again.pt") == 0
    assert same_run(tmp_path / "again.pt", out)


def test_the_checkpoint_is_named_after_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_npz(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "digits-resnet18-standard"')
    for name in ("digits-resnet18-standard", "mine.toml"):
        assert main("train", "--recipe", name, "--data", data, *TINY) == 0
    made = {
        "digits-resnet18-standard.pt",
        "digits-resnet18-standard.pt.csv",
        "mine.pt",
        "mine.pt.csv",
    }
    assert set(contents(tmp_path)) - {"digits.npz", "mine.toml"} == made


def test_recipes_are_listed_by_the_words_in_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("recipes") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(catalogue())
    assert all(summary(name) in row for name, row in zip(catalogue(), rows, strict=True))
    assert main("recipes", "svhn", "fast", "cas") == 0
    names = [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]]
    assert names == [
        f"svhn-resnet18-{method}-fast" for method in ("cas", "trades-cas", "mart-cas", "fat-cas")
    ]


@pytest.mark.parametrize("name", ["cifar10-resnet18-cifs", "svhn-resnet18-at-fast"])
def test_a_recipe_is_shown_as_a_file_to_change(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("recipes", name) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"# {name}: {summary(name)}\n")
    (tmp_path / "mine.toml").write_text(said)
    assert Recipe.named(str(tmp_path / "mine.toml")) == Recipe.named(name)


def test_the_examples_of_train_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """Their recipes and settings exist; what they would take is hours."""
    assert main("train", "--help") == 0
    examples = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  channelscope")
    ]
    assert len(examples) == 3
    for _, *words in examples:
        args = make_parser().parse_args(words)
        recipe = (
            Recipe.named(args.recipe) if args.recipe else Recipe.suited_to(args.data, args.method)
        )
        assert recipe.override(**commands._overrides(args)) != recipe or not (
            args.set or args.epochs
        )


def test_comparing_writes_a_folder(compared: Path) -> None:
    found = Comparison.load(compared)
    assert list(found.meta["models"]) == ["nat", "CIFS"]
    assert found.meta["eps"] == pytest.approx(8 / 255)
    assert "channelscope" in found.meta["command"]
    assert (compared / "report.html").stat().st_size > 10_000
    assert list((compared / "figures").glob("*.pdf"))


def test_comparing_prints_a_table_and_verdicts(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [work / f"{method}.pt" for method in METHODS]
    settings = [
        "--attack",
        "fgsm",
        "--replicates",
        "20",
        "--eps",
        "0.1",
        "--images",
        "8",
        "-q",
        "--layers",
        "layer4",
    ]
    settings += ["--attacks", "cw-2", "--eps-sweep", "2/255", "0.1"]
    assert main("compare", "--models", *models, "--out", tmp_path / "out", *settings) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for words in (
        *METHODS,
        "worst case",
        "fgsm, eps 0.1, 8 test images",
        "C1 ",
        "C2 ",
        "C3 ",
        "C4 ",
        "report.html",
    ):
        assert words in said.out
    found = Comparison.load(tmp_path / "out")
    assert found.meta["data"]["images"] == 8
    assert found.decay["at"].unique().tolist() == [2 / 255, 0.1]


def test_comparing_prints_json(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", tmp_path / "out", "--attack", "pgd-2", "--replicates", "20", "--json", "-q"]
    words += ["--step-sweep", "1", "3"]
    assert main("compare", "--models", work / "at.pt", work / "cas.pt", *words) == 0
    said = json.loads(
        capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert said["out"] == str(tmp_path / "out")
    assert {row["model"] for row in said["robustness"]} == {"at", "cas"}
    assert {row["claim"] for row in said["verdicts"]} == {"C1", "C2", "C3", "C4"}
    assert Comparison.load(tmp_path / "out").decay["at"].unique().tolist() == [1, 3]


def test_figures_are_drawn_again_from_the_tables_the_same_to_the_byte(
    compared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(compared, tmp_path / "copy")
    shutil.rmtree(folder / "figures")
    (folder / "report.html").unlink()
    assert main("figures", folder, "-q") == 0
    assert contents(folder) == contents(compared)


def test_figures_for_a_paper_are_drawn_in_its_style(compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "copy")
    shutil.rmtree(folder / "figures")
    words = [
        "--style",
        "ieee",
        "--wide",
        "--only",
        "c4,training",
        "gates",
        "--formats",
        "svg",
        "-q",
    ]
    assert main("figures", folder, *words) == 0
    drawn = {path.name for path in (folder / "figures").glob("*.svg")}
    assert drawn == {"robustness.svg", "training.svg", "gates.svg"}
    assert f'width="{72 * 7.16}pt"' in (folder / "figures" / "training.svg").read_text("utf-8")
    assert (folder / "figures" / "robustness.csv").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--style", "icm"),
        ("--only", "c9"),
        ("--only", "relevnce"),
        ("--formats", "jpg"),
        ("--only", "masks-nobody"),
    ],
)
def test_figures_that_are_not_known_are_told_in_a_sentence(
    words: tuple[str, ...], compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(compared)
    assert main("figures", compared, "-q", *words) == 2
    said = capsys.readouterr().err
    assert repr(words[1]) in said
    assert said.count("\n") == 1
    assert contents(compared) == before


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_listed(method: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / f"{method}.pt") == 0
    said = capsys.readouterr().out
    names = [line.split()[0] for line in said.splitlines()]
    assert names[0] == "layer"
    assert "layer4.0.conv1" in names
    assert ("layer4.0.gated" in names) == (method in ("cifs", "cas"))
    assert said.count("<- penultimate") == 1


def test_layers_are_listed_by_patterns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / "cifs.pt", "layer?.0", "layer4.*.gated", "linear") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    names = ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.0.gated", "linear"]
    assert [row[0] for row in rows] == names
    assert [int(row[2]) for row in rows] == [2, 4, 8, 16, 16, 2]


def test_layers_of_other_libraries_networks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", "torchvision:squeezenet1_0", "features.?", "--image-size", "64") == 0
    said = capsys.readouterr().out
    assert "features.3  Fire" in said
    assert "<- penultimate" not in said  # a convolution makes its logits
    assert main("layers", "timm:vit_tiny_patch16_224", "blocks.1?") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["blocks.10", "Block", "192"],
        ["blocks.11", "Block", "192"],
    ]
    assert rows[0][3:] == ["197", "x", "192"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("torchvision:vit_b_16", "--image-size", "30"),
            "does not take images of shape (3, 30, 30)",
        ),
        (
            ("torchvision:squeezenet1_0", "", "--image-size", "64"),
            "No layer '' runs in this network",
        ),
    ],
)
def test_layers_that_cannot_be_listed_are_told(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("layers", *words) == 2
    assert said in capsys.readouterr().err


def test_every_call_of_a_layer_that_runs_twice_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main("layers", "torchvision:resnet18", "layer1.0.relu", "--image-size", "32") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["layer1.0.relu@0", "layer1.0.relu@1"]


def test_relevance_is_scored_written_and_told(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--models", work / "standard.pt", work / "cifs.pt"]
    words = [
        "--layers",
        "layer4.*",
        "--scorer",
        "gradient",
        "weights",
        "probe",
        "--images",
        "8",
        "--replicates",
        "20",
    ]
    assert (
        main("relevance", *models, *words, "--out", tmp_path / "out", "-q", "--device", "cpu") == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    assert "no scores, standard, layer4.0, probe: The network has no gates" in said.out
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["model", "layer", "scorer", "PR", "NR", "gradient", "weights", "probe"]
    assert ["cifs", "layer4.0", "probe"] in [row[:3] for row in rows]
    assert rows[1] == [
        "standard",
        "layer4.0",
        "gradient",
        *rows[1][3:5],
        "1.00",
    ]  # what the weights say
    table = pd.read_csv(tmp_path / "out" / "relevance.csv")
    assert set(table["model"]) == {"standard", "cifs"}
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["command"].startswith("channelscope relevance --models")
    assert (tmp_path / "out" / "figures" / "scorer-agreement.pdf").is_file()
    assert main("relevance", *models, *words, "--out", tmp_path / "out", "-q", "--json") == 0
    assert {"counts", "agreement", "refused", "out"} == json.loads(capsys.readouterr().out).keys()


def test_help_states_what_each_scorer_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name: cost for name, (cost, _) in options.SCORERS.items()} == {
        name: str(cost) for name, cost in COSTS.items()
    }
    assert main("relevance", "--help") == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COSTS)


def test_every_listed_layer_can_be_compared(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / "cifs.pt") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    data = Dataset("digits", ("0", "1"), digits(2).test)
    found = compare({"net": Checkpoint.read(work / "cifs.pt").build()}, data, layers=names, attack=PGD(steps=1),
                    attacks=(), replicates=20, progress=False)  # fmt: skip
    assert list(found.activations["layer"].unique()) == names


def test_a_release_file_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = releases.network("CIFS")
    torch.save({"state_dict": releases.as_release(ours, "CIFS")}, tmp_path / "theirs.pt")
    assert (
        main("convert", "--from", "cifs-release", tmp_path / "theirs.pt", tmp_path / "ours.pt") == 0
    )
    assert "resnet18, width 2, 7 classes, gates at: layer4.0, layer4.1" in capsys.readouterr().out
    releases.agree(ours, Checkpoint.read(tmp_path / "ours.pt").build())
    assert main("layers", tmp_path / "ours.pt") == 0


def test_the_demo_trains_and_compares(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a few digits: the whole would take a minute."""
    monkeypatch.setattr("channelscope.data.load", lambda name: digits(2))
    small = {"arch": "resnet10", "width": 2, "epochs": 1, "attack_steps": 1}
    train, measured = cli_module("training").train, cli_module("comparison").compare
    monkeypatch.setattr(
        "channelscope.training.train", lambda *args, **kwargs: train(*args, **kwargs, **small)
    )
    quick = {"attack": "pgd-2", "replicates": 20}
    monkeypatch.setattr(
        "channelscope.comparison.compare",
        lambda *args, **kwargs: measured(*args, **kwargs, **quick),
    )
    assert main("demo", "--out", tmp_path / "demo", "-q") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "demo").glob("*.pt")}
    assert sorted(path.stem for path in before) == ["at", "cifs", "standard"]
    assert Comparison.load(tmp_path / "demo" / "comparison").meta["data"]["name"] == "digits"
    assert main("demo", "--out", tmp_path / "demo", "-q") == 0
    assert {path: path.read_bytes() for path in (tmp_path / "demo").glob("*.pt")} == before


def cli_module(name: str) -> Any:
    from importlib import import_module

    return import_module(f"channelscope.{name}")


# ---------------------------------------------------------------- help, statuses, signals


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, "--help") == 0
    said = capsys.readouterr().out
    assert "example" in said
    assert f"channelscope {command}" in said
    assert max(map(len, said.splitlines())) <= 130


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in said


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--version") == 0
    assert capsys.readouterr().out.startswith("channelscope 0.")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    assert shell("--help").returncode == 0
    done = shell("layers", tmp_path / "none.pt")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_broken_pipe_is_no_error(work: Path) -> None:
    command = (
        f"set -o pipefail; '{sys.executable}' -m channelscope layers '{work / 'cifs.pt'}' | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_with_130_and_tells_how_to_go_on(tmp_path: Path) -> None:
    data, out = write_npz(tmp_path), tmp_path / "net.pt"
    words = [
        "--method",
        "at",
        "--data",
        data,
        "--out",
        str(out),
        "--arch",
        "resnet10",
        "--width",
        "2",
        "--epochs",
        "9999",
    ]
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may have told us to ignore it
    try:
        command = [sys.executable, "-m", "channelscope", "train", *words, "--device", "cpu"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stderr is not None
            seen = b""
            while (
                seen.count(b"%|") < 3
            ):  # the first is of a bar in the making, whose own troubles tqdm would tell
                seen += process.stderr.read(1) or pytest.fail(f"the run ended early: {seen!r}")
            process.send_signal(signal.SIGINT)
            said = (seen + process.communicate()[1]).decode()
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "--resume" in said.splitlines()[-1]
    assert "net.pt.partial" in said.splitlines()[-1]


def test_a_fault_of_ours_is_told_as_such(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr(inspection, "layers", fail)
    assert main("layers", work / "at.pt") == 1
    told = capsys.readouterr().err
    assert "please report it" in told
    assert "'channelscope doctor'" in told
    monkeypatch.setenv("CHANNELSCOPE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main("layers", work / "at.pt")


def test_too_little_memory_is_told(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(inspection, "layers", fail)
    assert main("layers", work / "at.pt") == 2
    assert "memory" in capsys.readouterr().err


# ---------------------------------------------------------------- bad input

Case = Callable[[Path], list[Any]]
BAD: dict[str, Case] = {}


def bad(name: str) -> Callable[[Case], Case]:
    def keep(case: Case) -> Case:
        BAD[name] = case
        return case

    return keep


def words_of(name: str, *words: str) -> None:
    """List bad words that need no files but those in every folder."""
    BAD[name] = lambda _: [*words]


def training(*words: Any, method: str = "standard") -> list[Any]:
    return ["train", "--method", method, "--out", "out.pt", *TINY, *words]


def comparing(*words: Any) -> list[Any]:
    return [
        "compare",
        "--attack",
        "pgd-1",
        "--replicates",
        "20",
        "--device",
        "cpu",
        "-q",
        "--out",
        "out",
        *words,
    ]


NPZ = ("--data", "npz:digits.npz")
NET = ("--models", "net.pt")

words_of("no command")
words_of("an unknown command", "teach")
words_of("an unknown option", *training("--speed", "3"))
words_of("no method", "train", "-q")
words_of("an unknown method", "train", "--method", "pgd", "-q")
words_of("an unknown architecture", *training(*NPZ, "--arch", "resnet19"))
words_of("a WideResNet of no whole number of blocks", *training(*NPZ, "--arch", "wrn-27-1"))
words_of("an unknown data set", *training("--data", "digit"))
words_of("an empty data name", *training("--data", ""))
words_of("an unknown attack", *comparing(*NET, "--attack", "carlini"))
words_of("an attack without steps", *comparing(*NET, "--attack", "pgd-0"))
words_of("an unknown layer", *comparing(*NET, "--layers", "layer5"))
words_of("an unknown device to train", *training(*NPZ, "--device", "gpu"))
words_of("an unknown device to compare", *comparing(*NET, "--device", "gpu"))
words_of("a device that is not there", *comparing(*NET, "--device", "cuda:77"))
words_of("a device without memory", *comparing(*NET, "--device", "meta"))
words_of("a device without memory to train", *training(*NPZ, "--device", "meta"))
words_of("eps in pixels", *comparing(*NET, "--eps", "8"))
words_of("eps that is no number", *comparing(*NET, "--eps", "nan"))
words_of("a negative eps", *comparing(*NET, "--eps", "-1"))
words_of("eps in words", *comparing(*NET, "--eps", "abc"))
words_of("eps over zero", *comparing(*NET, "--eps", "8/0"))
words_of("eps in pixels to train", *training(*NPZ, "--eps", "8"))
words_of("an infinite eps to train", *training(*NPZ, "--eps", "inf"))
words_of("no epochs", *training(*NPZ, "--epochs", "0"))
words_of("half an epoch", *training(*NPZ, "--epochs", "0.5"))
words_of("a batch of one image", *training(*NPZ, "--batch-size", "1"))
words_of("a negative seed", *training(*NPZ, "--seed", "-1"))
words_of("a seed in words", *comparing(*NET, "--seed", "lucky"))
words_of("no images", *comparing(*NET, "--images", "0"))
words_of("too many images", *comparing(*NET, "--images", "11"))
words_of("no replicates", *comparing(*NET, "--replicates", "0"))
words_of("no images per batch", *comparing(*NET, "--batch-size", "0"))
words_of("a width too large", *training(*NPZ, "--width", "2000"))
words_of("a width of nothing", *training(*NPZ, "--width", "0"))
words_of("a learning rate that is no number", *training(*NPZ, "--lr", "nan"))
words_of("a negative learning rate", *training(*NPZ, "--lr", "-0.1"))
words_of("a learning rate of 0", *training(*NPZ, "--lr", "0"))
words_of("a learning rate in words", *training(*NPZ, "--lr", "fast"))
words_of("a learning rate beyond numbers", *training(*NPZ, "--lr", "1e300"))
words_of("a method and a recipe", *training(*NPZ, "--recipe", "digits-resnet18-at"))
words_of("an unknown recipe", "train", "--recipe", "cifar10-resnet18-bt", *NPZ, "-q")
words_of("a recipe of another name", "train", "--recipe", "fast", *NPZ, "-q")
words_of("a missing recipe file", "train", "--recipe", "none.toml", *NPZ, "-q")
words_of("a recipe file that is none", "train", "--recipe", "recipe.toml", *NPZ, "-q")
words_of("a folder for a recipe", "train", "--recipe", "folder.toml", *NPZ, "-q")
words_of("recipes of unknown words", "recipes", "cifar11")
words_of("a setting without a value", *training(*NPZ, "--set", "lr"))
words_of("a value without a setting", *training(*NPZ, "--set", "=3"))
words_of("no setting", *training(*NPZ, "--set"))
words_of("an unknown setting", *training(*NPZ, "--set", "speed=3"))
words_of("an ambiguous setting", *training(*NPZ, "--set", "kind=none"))
words_of("a setting in words", *training(*NPZ, "--set", "optimizer.lr=fast"))
words_of("a setting in brackets", *training(*NPZ, "--set", f"optimizer.lr={'[' * 3000}"))
words_of("a setting of thousands of digits", *training(*NPZ, "--set", f"optimizer.lr={'9' * 5000}"))
words_of("the seed for a setting", *training(*NPZ, "--set", "seed=3"))
words_of("the data for a setting", *training(*NPZ, "--set", "data=digits"))
words_of("gates of an unknown kind", *training(*NPZ, "--set", "gates.kind=cif"))
words_of(
    "gates at an unknown layer",
    *training(*NPZ, "--set", "gates.kind=cifs", 'gates.layers=["layer5"]'),
)
words_of("TRADES that stops early", *training(*NPZ, "--set", "attack.tau=[0]", method="trades"))
words_of("no training images", *training(*NPZ, "--images", "0"))
words_of("fewer training images than classes", *training(*NPZ, "--images", "1"))
words_of("more training images than there are", *training(*NPZ, "--images", "99"))
words_of("an unknown log", *training(*NPZ, "--log-to", "paper"))
words_of("an image size of 0", *training(*NPZ, "--image-size", "0"))
words_of("images too small for the crop", *training(*NPZ, "--image-size", "4"))
words_of("fewer labels than models", *comparing("--models", "net.pt", "again.pt", "--labels", "a"))
words_of("more labels than models", *comparing(*NET, "--labels", "a", "b"))
words_of("labels twice", *comparing("--models", "net.pt", "again.pt", "--labels", "a", "a"))
words_of("the same model twice", *comparing("--models", "net.pt", "net.pt"))
words_of("no models", *comparing())
words_of("no value for models", *comparing("--models"))
words_of("a missing model", *comparing("--models", "none.pt"))
words_of("a folder for a model", *comparing("--models", "mine"))
words_of("a text for a model", *comparing("--models", "notes.txt"))
words_of("layers of a missing model", "layers", "none.pt")
words_of("layers of a folder", "layers", "mine")
words_of("layers of a text", "layers", "notes.txt")
words_of("layers that do not run", "layers", "net.pt", "layer5")
words_of("layers by a pattern without a match", "layers", "net.pt", "layer5.*")
words_of("layers of an unknown torchvision network", "layers", "torchvision:resnet51")
words_of("layers of an unknown timm network", "layers", "timm:resnet51")
words_of("layers of a library without a network", "layers", "timm:")
words_of("an unknown scorer", "relevance", *NET, "--scorer", "slope", *NPZ, "-q")
words_of("a scorer of gates without gates", "relevance", *NET, "--scorer", "probe", *NPZ, "-q")
words_of("relevance of an unknown layer", "relevance", *NET, "--layers", "layer5", *NPZ, "-q")
words_of("relevance with too few replicates", "relevance", *NET, "--replicates", "3", *NPZ, "-q")
words_of("relevance written over other files", "relevance", *NET, "--out", "mine", *NPZ, "-q")
words_of("out is a file, to compare", *comparing(*NET, "--out", "notes.txt"))
words_of("out is below a file, to compare", *comparing(*NET, "--out", "notes.txt/out"))
words_of("out is a folder of something else", *comparing(*NET, "--out", "mine"))
words_of("out is below a file, to train", *training(*NPZ, "--out", "notes.txt/net.pt"))
words_of("out exists, to train", *training(*NPZ, "--out", "net.pt"))
words_of("out is a folder, to train", *training(*NPZ, "--out", "mine"))
words_of("out has too long a name", *training(*NPZ, "--out", "x" * 300))
words_of("figures of a missing folder", "figures", "none", "-q")
words_of("figures of a foreign folder", "figures", "mine", "-q")
words_of("figures of a file", "figures", "notes.txt", "-q")
words_of("a missing npz file", *training("--data", "npz:none.npz"))
words_of("npz without a file", *training("--data", "npz:"))
words_of("the npz file's bare name", *training("--data", "digits.npz"))
words_of("a missing image folder", *training("--data", "imagefolder:none"))
words_of("an image folder without images", *training("--data", "imagefolder:mine"))
words_of("a folder's bare name", *training("--data", "mine"))
words_of("CIFAR-10 that is not there", *training("--data", "cifar10"))
words_of("SVHN that is not there", *training("--data", "svhn"))
words_of("MNIST that is not there", *comparing(*NET, "--data", "mnist"))
words_of("data of other classes", *comparing(*NET, "--data", "digits"))
words_of("a missing file to convert", "convert", "--from", "cifs-release", "none.pt", "out.pt")
words_of(
    "a file of an unknown program to convert", "convert", "--from", "keras", "net.pt", "out.pt"
)
words_of("our own file to convert", "convert", "--from", "cifs-release", "net.pt", "out.pt")
words_of("a text to convert", "convert", "--from", "cifs-release", "notes.txt", "out.pt")
words_of("converting over a file", "convert", "--from", "cifs-release", "theirs.pt", "net.pt")
words_of(
    "converting to below a file",
    "convert",
    "--from",
    "cifs-release",
    "theirs.pt",
    "notes.txt/out.pt",
)
words_of("the demo in a file", "demo", "--out", "notes.txt", "-q")


@bad("a damaged model")
def _(folder: Path) -> list[Any]:
    (folder / "half.pt").write_bytes((folder / "net.pt").read_bytes()[:5000])
    return comparing("--models", "half.pt")


@bad("an empty model")
def _(folder: Path) -> list[Any]:
    (folder / "empty.pt").write_bytes(b"")
    return ["layers", "empty.pt"]


@bad("a hostile model")
def _(folder: Path) -> list[Any]:
    torch.save(releases.Hostile(folder / "harm"), folder / "hostile.pt")
    return comparing("--models", "hostile.pt")


@bad("a hostile model to convert")
def _(folder: Path) -> list[Any]:
    torch.save({"state_dict": releases.Hostile(folder / "harm")}, folder / "hostile.pt")
    return ["convert", "--from", "cifs-release", "hostile.pt", "out.pt"]


@bad("a foreign model")
def _(folder: Path) -> list[Any]:
    torch.save(networks.plain().state_dict(), folder / "foreign.pt")
    return comparing("--models", "foreign.pt")


@bad("a foreign model to convert")
def _(folder: Path) -> list[Any]:
    torch.save(networks.plain().state_dict(), folder / "foreign.pt")
    return ["convert", "--from", "cifs-release", "foreign.pt", "out.pt"]


@bad("models of other classes")
def _(folder: Path) -> list[Any]:
    shutil.copy(trained("standard", 3), folder / "three.pt")
    return comparing("--models", "net.pt", "three.pt", *NPZ)


@bad("models of other data, and none named")
def _(folder: Path) -> list[Any]:
    shutil.copy(trained("standard", 3), folder / "three.pt")
    return comparing("--models", "net.pt", "three.pt")


@bad("a model that does not tell its data")
def _(folder: Path) -> list[Any]:
    torch.save(releases.as_release(releases.network("plain"), "plain"), folder / "theirs.pt")
    assert main("convert", "--from", "cifs-release", folder / "theirs.pt", folder / "ours.pt") == 0
    return comparing("--models", "ours.pt")


@bad("a grey model on colour images")
def _(folder: Path) -> list[Any]:
    x = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(folder / "colour.npz", test_images=x, test_labels=np.array([0, 1, 0, 1]))
    return comparing(*NET, "--data", "npz:colour.npz")


@bad("a recorded run of other settings")
def _(folder: Path) -> list[Any]:
    state = load_tensors(folder / "net.pt")
    torch.save({"meta": {"settings": state["meta"]["settings"]}}, folder / "out.pt.partial")
    return training(*NPZ, "--resume", "--lr", "0.03")


@bad("a damaged state to resume from")
def _(folder: Path) -> list[Any]:
    (folder / "out.pt.partial").write_bytes(b"half")
    return training(*NPZ, "--resume")


@bad("a foreign state to resume from")
def _(folder: Path) -> list[Any]:
    torch.save([1, 2], folder / "out.pt.partial")
    return training(*NPZ, "--resume")


@bad("a complete run of other settings")
def _(folder: Path) -> list[Any]:
    return training(*NPZ, "--resume", "--out", "net.pt", "--seed", "3")


@bad("a state of an interrupted run, and no --resume")
def _(folder: Path) -> list[Any]:
    (folder / "out.pt.partial").write_bytes(b"state")
    return training(*NPZ)


def npz(name: str, **changes: Any) -> None:
    """A training run on an .npz file with some of its arrays changed, None for one left out."""

    def case(folder: Path) -> list[Any]:
        write_npz(folder, **changes)
        return training(*NPZ)

    BAD[name] = case


def pixels(value: float) -> np.ndarray[Any, Any]:
    x = np.zeros((24, 8, 8), np.float32)
    x[3, 2, 1] = value
    return x


npz("an npz file without test images", test_images=None)
npz("an npz file without labels", train_labels=None)
npz("an npz file without a training part", train_images=None, train_labels=None)
npz("an npz file with a pickled object", train_images=np.array([{}] * 24, dtype=object))
npz("an npz file with NaN", train_images=pixels(float("nan")))
npz("an npz file with pixels out of range", train_images=pixels(255.0))
npz("an npz file with labels too few", train_labels=np.zeros(23, np.int64))
npz("an npz file with negative labels", train_labels=np.arange(24) % 2 - 1)
npz("an npz file with labels in words", train_labels=np.array(["a"] * 24))
npz(
    "an npz file with labels of no class",
    train_labels=np.arange(24) % 3,
    classes=np.array(["a", "b"]),
)
npz("an npz file with four colours", train_images=np.zeros((24, 8, 8, 4), np.uint8))
npz("an npz file with a class without training images", train_labels=np.zeros(24, np.int64))
npz("an npz file with classes of one name", classes=np.array(["a", "a"]))
npz("an npz file with whole numbers for pixels", train_images=np.zeros((24, 8, 8), np.int32))


@bad("a damaged npz file")
def _(folder: Path) -> list[Any]:
    whole = (folder / "digits.npz").read_bytes()
    (folder / "digits.npz").write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    return training(*NPZ)


@bad("an npz file cut short")
def _(folder: Path) -> list[Any]:
    (folder / "digits.npz").write_bytes((folder / "digits.npz").read_bytes()[:2000])
    return training(*NPZ)


@bad("a zip of something else for an npz file")
def _(folder: Path) -> list[Any]:
    with zipfile.ZipFile(folder / "digits.npz", "w") as file:
        file.writestr("notes.txt", "mine")
    return training(*NPZ)


def image_folder(folder: Path, sizes: tuple[int, ...] = (8,) * 6) -> Path:
    """Write a folder of pictures, train and test, two classes."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "pictures" / part / name).mkdir(parents=True)
            for index, size in enumerate(sizes):
                Image.new("RGB", (size, size), (index * 20, 0, 0)).save(
                    folder / "pictures" / part / name / f"{index}.png"
                )
    return folder / "pictures"


PICTURES = ("--data", "imagefolder:pictures")


@bad("a damaged image")
def _(folder: Path) -> list[Any]:
    file = image_folder(folder) / "train" / "cat" / "3.png"
    file.write_bytes(file.read_bytes()[:40])
    return training(*PICTURES)


@bad("a text for an image")
def _(folder: Path) -> list[Any]:
    (image_folder(folder) / "test" / "dog" / "9.jpg").write_text("mine")
    return training(*PICTURES)


@bad("images of different sizes")
def _(folder: Path) -> list[Any]:
    image_folder(folder, (8, 8, 9))
    return training(*PICTURES)


@bad("a class that the training images lack")
def _(folder: Path) -> list[Any]:
    root = image_folder(folder)
    shutil.copytree(root / "test" / "dog", root / "test" / "wolf")
    return training(*PICTURES)


@bad("a class without training images")
def _(folder: Path) -> list[Any]:
    root = image_folder(folder)
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").mkdir()
    return training(*PICTURES)


@bad("no training images at all")
def _(folder: Path) -> list[Any]:
    shutil.rmtree(image_folder(folder) / "train")
    return training(*PICTURES)


@bad("classes of other names than the model's")
def _(folder: Path) -> list[Any]:
    image_folder(folder)
    return comparing(*NET, *PICTURES)


@bad("downloaded files that are damaged")
def _(folder: Path) -> list[Any]:
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (folder / "data" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    return training("--data", "cifar10")


def recorded(name: str, spoil: Callable[[Path], Any]) -> None:
    """Figures of a recorded comparison that is spoilt."""

    def case(folder: Path) -> list[Any]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Comparison, "draw", lambda *_, **__: None)
            models, data = (
                {"net": networks.resnet(classes=2)},
                Dataset("mine", ("a", "b"), digits(2).test),
            )
            found = compare(models, data, attack="pgd-1", attacks=(), replicates=20, progress=False)
            found.save(folder / "recorded", progress=False)
        spoil(folder / "recorded")
        return ["figures", "recorded", "-q"]

    BAD[name] = case


def meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        known = json.loads((folder / "meta.json").read_text())
        change(known)
        (folder / "meta.json").write_text(json.dumps(known))

    return spoil


def table(name: str, change: Callable[[pd.DataFrame], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        change(pd.read_csv(folder / f"{name}.csv")).to_csv(folder / f"{name}.csv", index=False)

    return spoil


recorded(
    "a recorded comparison without a table", lambda folder: (folder / "activations.csv").unlink()
)
recorded(
    "a recorded comparison with bytes for a table",
    lambda folder: (folder / "alignment.csv").write_bytes(b"\xff"),
)
recorded(
    "a recorded comparison with an empty table",
    lambda folder: (folder / "verdicts.csv").write_text(""),
)
recorded(
    "a recorded comparison with bad JSON", lambda folder: (folder / "meta.json").write_text("{")
)
recorded(
    "a recorded comparison with foreign JSON",
    lambda folder: (folder / "meta.json").write_text("{}"),
)
recorded(
    "a recorded comparison with damaged arrays",
    lambda folder: (folder / "arrays.npz").write_bytes(b"x"),
)
recorded("a recorded comparison without a level", meta(lambda known: known.pop("level")))
recorded("a recorded comparison without replicates", meta(lambda known: known.pop("replicates")))
recorded("a recorded comparison of no models", meta(lambda known: known.update(models={})))
recorded(
    "a recorded comparison of other models", meta(lambda known: known.update(models={"other": {}}))
)
recorded(
    "a recorded comparison with a number for models", meta(lambda known: known.update(models=3))
)
recorded(
    "a recorded comparison of other classes",
    meta(lambda known: known["data"].update(classes=["x", "y"])),
)
recorded("a recorded comparison without classes", meta(lambda known: known["data"].pop("classes")))
recorded("a recorded comparison with words for eps", meta(lambda known: known.update(eps="large")))
recorded("a recorded comparison without activations", table("activations", lambda rows: rows[:0]))
recorded("a recorded comparison without alignment", table("alignment", lambda rows: rows[:0]))
recorded("a recorded comparison without robustness", table("robustness", lambda rows: rows[:0]))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one line on stderr, no traceback, and the folder as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    shutil.copy(trained("standard", 2), "net.pt")
    shutil.copy(trained("at", 2), "again.pt")
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("mine")
    Path("notes.txt").write_text("mine")
    Path("recipe.toml").write_text("lr: 0.1")
    Path("folder.toml").mkdir()
    write_npz(tmp_path)
    words = BAD[case](tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    status = main(*words)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert (status, len(said.err.splitlines())) == (2, 1), said.err
    assert said.err.startswith("channelscope")
    assert said.out == ""
    assert contents(tmp_path) == before


def test_there_are_many_kinds_of_bad_input() -> None:
    assert len(BAD) >= 40


def test_class_folders_of_other_sizes_pass_with_an_image_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out that the message names works."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path, (8, 8, 9, 12, 8, 10))
    assert main(*training(*PICTURES, "--image-size", "8")) == 0
    assert Checkpoint.read("out.pt").class_names == ("cat", "dog")
