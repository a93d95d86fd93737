"""The command line: from training to figures, its options, and one sentence for every mistake."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import channelscope as cs
from channelscope import api, cli
from channelscope.analyses.base import ANALYSES
from channelscope.attacks import PGD
from channelscope.attacks.registry import ATTACKS
from channelscope.attacks.suites import SUITES
from channelscope.cli import commands
from channelscope.cli.parser import make_parser
from channelscope.data import load
from channelscope.networks import Architecture
from channelscope.scorers import list_scorers
from channelscope.training import Recipe
from channelscope.training.recipes import catalogue, summary
from channelscope.weights import Checkpoint, build
from channelscope.weights.tensors import load_tensors
from helpers import networks
from helpers.expect import Hostile, contents
from helpers.runs import METHODS, digits, same_run, trained, write_npz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

QUESTIONS = ("compare", "evaluate", "intervene", "relevance", "damage")
LISTINGS = ("attacks", "scorers", "analyses", "recipes", "zoo", "layers")
COMMANDS = (
    *("demo", "train", "sweep", *QUESTIONS, "film", *LISTINGS),
    *("figures", "convert", "doctor"),
)
TINY = "--arch resnet10 --width 2 --epochs 1 --batch-size 16 --device cpu -q"
FEW = "--replicates 20 --device cpu -q"


def main(*words: str | Path) -> int:
    """Run a command in this process; the first words may be several in one text."""
    try:
        return cli.main([*shlex.split(str(words[0])), *map(str, words[1:])] if words else [])
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
        out = folder / f"{method}.pt"
        assert main(f"train --method {method} {TINY} --data", data, "--out", out) == 0
    return folder


@pytest.fixture(scope="module")
def compared(work: Path) -> Path:
    """Compare two of them, without figures, which take long; keep the run folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("channelscope.result.Result.draw", lambda *_, **__: None)
        models = ("--models", work / "standard.pt", work / "cifs.pt", "--labels", "nat", "CIFS")
        places = ("--out", work / "comparison", "--run-folder", work / "run")
        command = f"compare --attack pgd-2 --attacks cw-2 {FEW}"
        assert main(command, *models, *places) == 0
    return work / "comparison"


def test_training_leaves_a_checkpoint_and_its_log(work: Path) -> None:
    for method in METHODS:
        checkpoint = Checkpoint.read(work / f"{method}.pt")
        assert checkpoint.method == method
        assert checkpoint.meta["settings"]["data"]["name"] == f"npz:{work / 'digits.npz'}"
        assert len(pd.read_csv(work / f"{method}.pt.csv")) == 1
    assert not list(work.glob("*.partial"))
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_training_says_what_it_wrote_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tmp_path / "net.pt"
    command = (f"train --method at {TINY} --data", write_npz(tmp_path), "--out", net)
    assert main(*command) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert f"{net}: best epoch 1" in output.out
    assert f"{net}.csv" in output.out
    before = contents(tmp_path)
    assert main(*command, "--resume") == 0
    assert contents(tmp_path) == before


def test_settings_reach_the_recipe(tmp_path: Path) -> None:
    command = f"train --method at --lr 0.02 --eps 4/255 --seed 7 {TINY}"
    assert main(command, "--data", write_npz(tmp_path), "--out", tmp_path / "net.pt") == 0
    settings = Checkpoint.read(tmp_path / "net.pt").meta["settings"]
    assert Recipe.from_values(settings["recipe"]) == Recipe.suited_to("npz", "at").override(
        lr=0.02, eps=4 / 255, step=1 / 255, arch="resnet10", width=2, epochs=1, batch_size=16
    )
    assert settings["seed"] == 7


def test_a_recipe_is_trained_by_name_and_by_file_with_changes(tmp_path: Path) -> None:
    data = ("--images", "10", "--data", write_npz(tmp_path))
    net, again, mine = tmp_path / "net.pt", tmp_path / "again.pt", tmp_path / "mine.toml"
    command = (
        f"train --recipe svhn-resnet18-cifs {TINY} --set gates.k=1 'probes=[\"linear\"]' "
        "attack.eps=4/255 --set averaging.kind=ema"
    )
    assert main(command, *data, "--out", net) == 0
    checkpoint = Checkpoint.read(net)
    recipe = Recipe.from_values(checkpoint.meta["settings"]["recipe"])
    assert recipe.method == checkpoint.method == "cifs"
    assert (recipe.gates.options["k"], recipe.gates.probes) == (1, ("linear",))
    assert (recipe.attack.eps, recipe.attack.step) == pytest.approx((4 / 255, 1 / 255))
    assert (recipe.averaging.kind, recipe.optimizer.weight_decay) == ("ema", 5e-4)
    assert [gate.options["k"] for gate in checkpoint.gates] == [1, 1]
    mine.write_text(recipe.toml())
    assert main("train --device cpu -q --recipe", mine, *data, "--out", again) == 0
    assert same_run(again, net)


def test_the_checkpoint_is_named_after_method_or_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_npz(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "digits-resnet18-standard"')
    names = ("--method standard", "--recipe digits-resnet18-standard", "--recipe mine.toml")
    for words in names:
        assert main(f"train {words} {TINY} --data", data) == 0
    written = {"standard.pt", "digits-resnet18-standard.pt", "mine.pt"}
    assert {name for name in contents(tmp_path) if name.endswith(".pt")} == written


def test_the_examples_of_train_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """Their recipes and settings exist; training them would take hours."""
    assert main("train --help") == 0
    lines = capsys.readouterr().out.replace(" \\\n", " ").splitlines()
    examples = [line.split() for line in lines if line.startswith("  channelscope")]
    assert len(examples) == 5
    for _, *words in examples:
        args = make_parser().parse_args(words)
        named = Recipe.named(args.recipe) if args.recipe else None
        recipe = named or Recipe.suited_to(args.data, args.method)
        changed = recipe.override(**commands._read_overrides(args))
        assert (changed == recipe) == (not args.set and not args.epochs)


def test_comparing_writes_a_result(compared: Path) -> None:
    result = cs.Result.load(compared, "comparison")
    assert list(result.meta["models"]) == ["nat", "CIFS"]
    assert result.meta["eps"] == pytest.approx(8 / 255)
    assert "channelscope compare --attack pgd-2" in result.meta["command"]


def test_a_run_folder_shares_outcomes_between_commands(
    compared: Path, work: Path, undrawn: None, tmp_path: Path
) -> None:
    """What the same networks make of the same images under the same attacks is not made again."""
    before = contents(work / "run")
    models = ("--models", work / "standard.pt", work / "cifs.pt")
    places = ("--out", tmp_path / "out", "--run-folder", work / "run")
    command = f"evaluate --attacks pgd-2 cw-2 --checks 0 {FEW}"
    assert main(command, *models, *places) == 0
    again = cs.Result.load(tmp_path / "out", "evaluation")
    assert set(again.attacks["attack"]) == {"pgd-2", "cw-2"}
    attacked = [name for name in before if "cw-2" in name]
    assert attacked
    after = contents(work / "run")
    assert [name for name in after if "cw-2" in name] == attacked
    assert not list(tmp_path.glob("*.partial"))


def test_comparing_prints_a_table_and_verdicts(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [work / f"{method}.pt" for method in METHODS]
    command = (
        f"compare --attack fgsm --eps 0.1 --images 8 --layers layer4 --attacks cw-2 "
        f"--eps-sweep 2/255 0.1 {FEW} --out"
    )
    assert main(command, tmp_path / "out", "--models", *models) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for words in (*METHODS, "fgsm", "0.1", "8 test images", "C1 ", "C2 ", "C3 ", "C4 "):
        assert words in output.out
    result = cs.Result.load(tmp_path / "out")
    assert result.meta["data"]["images"] == 8
    assert result.decay["at"].unique().tolist() == [2 / 255, 0.1]


def test_comparing_prints_json(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"compare --attack pgd-2 --attacks cw-2 --step-sweep 1 3 --json {FEW} --out"
    assert main(command, tmp_path / "out", "--models", work / "at.pt", work / "cas.pt") == 0
    printed = read_json(capsys.readouterr().out)
    assert printed["out"] == str(tmp_path / "out")
    assert {row["model"] for row in printed["robustness"]} == {"at", "cas"}
    claims = {"C1", "C2", "C3", "C4", "C5", "CAS"}
    assert {row["claim"] for row in printed["verdicts"]} == claims
    assert cs.Result.load(tmp_path / "out").decay["at"].unique().tolist() == [1, 3]


def read_json(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_evaluating_prints_attacks_and_worst_cases(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"evaluate --attacks fgsm pgd-2 --eps-sweep 0.05 --checks 4 {FEW} --out"
    words = (tmp_path / "out", "--models", work / "at.pt")
    assert main(command, *words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    result = cs.Result.load(tmp_path / "out", "evaluation")
    for sentence in result.warnings["sentence"]:
        assert sentence in output.out
    for words_of_row in ("at     fgsm ", "at     pgd-2 ", "at eps 0.05", "decided by"):
        assert words_of_row in output.out
    assert f"{result.worst_case['robust'].item():.1%}" in output.out
    assert main(command, *words, "--json") == 0
    printed = read_json(capsys.readouterr().out)
    keys = ("out", "attacks", "worst_case", "warnings", "eps_sweep", "checks")
    assert printed.keys() == {*keys}


def test_intervening_prints_the_league_and_verdicts(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"intervene --attack fgsm --scorers weights ablation --fractions 0.5 {FEW} --out"
    words = (tmp_path / "out", "--models", work / "at.pt")
    assert main(command, *words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    result = cs.Result.load(tmp_path / "out", "intervention")
    assert sum(line.startswith("at ") for line in output.out.splitlines()) == 2
    for statement in result.verdicts["statement"]:
        assert statement in output.out
    assert main(command, *words, "--json") == 0
    printed = read_json(capsys.readouterr().out)
    assert printed.keys() == {"out", "areas", "league", "suppression", "verdicts", "notes"}


def test_damage_prints_a_row_for_each_account_and_the_verdicts(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = "--layers layer3 layer4 --fractions 0.125 0.5"
    command = f"damage --attack pgd-3 --eps 0.3 --images 80 --adaptive {layers} {FEW} --out"
    words = (tmp_path / "out", "--models", work / "standard.pt", work / "cifs.pt")
    assert main(command, *words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    result = cs.Result.load(tmp_path / "out", "damage")
    rows = output.out.splitlines()
    for row in result.completeness.itertuples():
        words_of_row = [row.model, row.layer, row.masks]
        assert sum(line.split()[:3] == words_of_row for line in rows) == 1
    assert set(result.repairs["curve"]) == {"repair", "harm", "adaptive"}
    for statement in result.verdicts["statement"]:
        assert statement in output.out
    assert main(command, *words, "--json") == 0
    printed = read_json(capsys.readouterr().out)
    assert len(printed["completeness"]) == len(result.completeness)


def test_relevance_is_scored_written_and_printed(
    work: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"relevance --layers 'layer4.*' --scorers gradient weights probe --images 8 {FEW} --out"
    )
    words = (tmp_path / "out", "--models", work / "standard.pt", work / "cifs.pt")
    assert main(command, *words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "no scores, standard, layer4.0, probe: The network has no gates" in output.out
    rows = [line.split() for line in output.out.splitlines()[2:]]  # behind the answer
    assert rows[0] == ["model", "layer", "scorer", "PR", "NR", "gradient", "weights", "probe"]
    assert ["cifs", "layer4.0", "probe"] in [row[:3] for row in rows]
    # The gradient is what the weights say.
    assert rows[1] == ["standard", "layer4.0", "gradient", *rows[1][3:5], "1.00"]
    result = cs.Result.load(tmp_path / "out", "relevance")
    assert set(result.relevance["model"]) == {"standard", "cifs"}
    assert result.meta["command"].startswith("channelscope relevance --layers")
    assert main(command, *words, "--json") == 0
    printed = read_json(capsys.readouterr().out)
    assert printed.keys() == {"out", "counts", "agreement", "refused", "notes"}


def test_scorers_that_all_refuse_are_answered_in_a_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--models", work / "at.pt", "--out", tmp_path / "out")
    assert main(f"relevance --scorers probe {FEW}", *words) == 2
    output = capsys.readouterr()
    assert "has no gates" in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_every_listed_layer_can_be_scored(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / "cifs.pt") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    result = cs.compare(
        {"net": Checkpoint.read(work / "cifs.pt")},
        digits(2),
        layers=names,
        attack=PGD(steps=1),
        attacks=(),
        replicates=20,
        methods={"net": "cifs"},
        progress=False,
    )
    assert list(result.activations["layer"].unique()) == names


# ---------------------------------------------------------------- figures


def test_figures_are_drawn_from_the_tables_the_same_to_the_byte(
    compared: Path, tmp_path: Path
) -> None:
    one, other = (shutil.copytree(compared, tmp_path / name) for name in ("one", "other"))
    for folder in (one, other):
        assert main("figures", folder, *["-q", "--only", "relevance", "training"]) == 0
    assert (one / "report.html").stat().st_size > 10_000
    assert list((one / "figures").glob("*.pdf"))
    assert contents(one) == contents(other)


def test_figures_for_a_paper_are_drawn_in_its_style(compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "copy")
    words = ("--only", "c4,training", "gates", "--formats", "svg", "-q")
    assert main("figures --style ieee --wide", folder, *words) == 0
    figures = folder / "figures" / "ieee-wide"
    drawn = {path.name for path in figures.glob("*.svg")}
    assert drawn == {"robustness.svg", "training.svg", "gates.svg"}
    assert f'width="{72 * 7.16}pt"' in (figures / "training.svg").read_text("utf-8")
    assert (figures / "robustness.csv").exists()


def test_figures_of_any_result_are_drawn(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("channelscope.result.Result.draw", lambda *_, **__: None)
        command = f"relevance --scorers gradient weights --images 8 {FEW} --models"
        assert main(command, work / "at.pt", "--out", tmp_path / "out") == 0
    assert main("figures", tmp_path / "out", "-q", "--formats", "svg") == 0
    assert (tmp_path / "out" / "figures" / "scorer-agreement.svg").is_file()
    assert str(tmp_path / "out" / "figures") in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", ["--style icm", "--only c9", "--only relevnce", "--formats jpg", "--only masks-nobody"]
)
def test_unknown_figures_are_answered_in_a_sentence(
    words: str, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(compared)
    assert main("figures", compared, "-q", *words.split()) == 2
    message = capsys.readouterr().err
    assert repr(words.split()[1]) in message
    assert message.count("\n") == 1
    assert contents(compared) == before


# ---------------------------------------------------------------- listings, conversion, demo


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_listed(method: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / f"{method}.pt") == 0
    printed = capsys.readouterr().out
    names = [line.split()[0] for line in printed.splitlines()]
    assert names[0] == "layer"
    assert "layer4.0.conv1" in names
    assert ("layer4.0.gated" in names) == (method in ("cifs", "cas"))
    assert printed.count("<- penultimate") == 1


def test_layers_are_listed_by_patterns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers", work / "cifs.pt", "layer?.0", "layer4.*.gated", "linear") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    names = ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.0.gated", "linear"]
    assert [row[0] for row in rows] == names
    assert [int(row[2]) for row in rows] == [2, 4, 8, 16, 16, 2]


def test_layers_of_other_libraries_networks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("layers torchvision:squeezenet1_0 features.? --image-size 64") == 0
    printed = capsys.readouterr().out
    assert "features.3  Fire" in printed
    assert "<- penultimate" not in printed  # it is features, which the pattern leaves out
    assert main("layers torchvision:densenet121 classifier --image-size 32") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["classifier:input", "classifier"]
    assert "1024 1024 <- penultimate: measured by default" in " ".join(rows[0])
    assert main("layers timm:vit_tiny_patch16_224 blocks.1?") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["blocks.10", "Block", "192"],
        ["blocks.11", "Block", "192"],
    ]
    assert rows[0][3:] == ["197", "x", "192"]


def test_layers_are_listed_with_their_shapes_for_larger_images(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only shapes are kept of these, so the rows are those of a small image, times its size."""
    printed = []
    for size in (32, 128):
        assert main(f"layers --image-size {size}", work / "cifs.pt") == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        printed.append([(row[:3], [int(side) for side in row[5:8:2]]) for row in rows])
    for (row, sides), (large_row, large_sides) in zip(*printed, strict=True):
        assert large_row == row
        assert large_sides == [4 * side for side in sides]


def test_a_file_does_not_say_how_large_images_layers_are_listed_for(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(work / "cifs.pt", weights_only=True)
    torch.save(content | {"image": (1, 4096, 4096)}, tmp_path / "net.pt")
    assert main("layers", tmp_path / "net.pt") == 2
    assert "choose an --image-size" in capsys.readouterr().err
    assert main("layers --image-size 16", tmp_path / "net.pt") == 0


def test_every_call_of_a_layer_that_runs_twice_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main("layers torchvision:resnet18 layer1.0.relu --image-size 32") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["layer1.0.relu@0", "layer1.0.relu@1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("torchvision:vit_b_16 --image-size 30", "does not take images of shape (3, 30, 30)"),
        ("torchvision:squeezenet1_0 '' --image-size 64", "No layer '' runs in this network"),
    ],
)
def test_layers_that_cannot_be_listed_are_explained(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"layers {words}") == 2
    assert message in capsys.readouterr().err


def test_scorers_attacks_and_analyses_are_listed_as_they_are_registered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main("scorers") == 0
    rows = capsys.readouterr().out.splitlines()
    for scorer in list_scorers():
        row = next(row for row in rows if row.split(maxsplit=1)[:1] == [scorer.name])
        assert str(scorer.cost) in row
        assert scorer.help in row
    assert main("attacks") == 0
    printed = capsys.readouterr().out
    for suite in SUITES.values():
        assert f"\n{suite.name} " in printed
        assert suite.help in printed
    for name, attack in ATTACKS.items():
        assert name in printed
        assert attack.help in printed
    assert main("analyses") == 0
    rows = capsys.readouterr().out.splitlines()
    for analysis in ANALYSES.values():
        figures = ", ".join(plot.name for plot in analysis.plots) or "none"
        wanted = [analysis.name, figures, analysis.help]
        found = [row for row in rows if re.split("  +", row) == wanted]
        assert len(found) == len(analysis.kinds)


def test_recipes_are_listed_by_the_words_in_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("recipes") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(catalogue())
    assert all(summary(name) in row for name, row in zip(catalogue(), rows, strict=True))
    assert main("recipes svhn fast cas") == 0
    names = [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]]
    methods = {"cas", "trades-cas", "mart-cas", "fat-cas"}
    assert set(names) == {f"svhn-resnet18-{method}-fast" for method in methods}


@pytest.mark.parametrize("name", ["cifar10-resnet18-cifs", "svhn-resnet18-at-fast"])
def test_a_recipe_is_shown_as_a_file_to_change(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("recipes", name) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {name}: {summary(name)}\n")
    (tmp_path / "mine.toml").write_text(printed)
    assert Recipe.named(str(tmp_path / "mine.toml")) == Recipe.named(name)


def write_release(path: Path) -> torch.nn.Module:
    """Write a plain network as the CIFS authors' code does; return it as ours."""
    known = Architecture(arch="resnet18", width=2, classes=7, mean=(0.0,) * 3, std=(1.0,) * 3)
    network = networks.randomise_batchnorm(build(known, ()))
    state = {
        name.removeprefix("cnn."): tensor
        for name, tensor in network.state_dict().items()
        if "normalise" not in name  # which theirs has not
    }
    torch.save({"state_dict": state}, path)
    return network


def test_a_release_file_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = tmp_path / "theirs.pt", tmp_path / "ours.pt"
    network = write_release(theirs)
    assert main("convert --method at", theirs, ours) == 0
    assert "resnet18, width 2, 7 classes" in capsys.readouterr().out
    checkpoint = Checkpoint.read(ours)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(checkpoint.build()(x), network(x))
    assert checkpoint.method == "at"
    assert main("layers", ours) == 0
    assert main("convert --imgf-scale 2", theirs, tmp_path / "two.pt") == 2
    assert "leave --imgf-scale out" in capsys.readouterr().err


def test_the_demo_trains_and_compares(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a few digits: the whole would take a minute."""
    monkeypatch.setattr("channelscope.data.load", lambda name: digits(2))
    train, compare = cs.train, cs.compare
    small: Any = {"arch": "resnet10", "width": 2, "epochs": 1, "attack_steps": 1}
    quick: Any = {"attack": "pgd-2", "attacks": ("cw-2",), "replicates": 20}
    monkeypatch.setattr("channelscope.training.train", partial(train, **small))
    monkeypatch.setattr("channelscope.api.compare", partial(compare, **quick))
    out = tmp_path / "demo"
    assert main("demo -q --out", out) == 0
    before = {path: path.read_bytes() for path in out.glob("*.pt")}
    assert sorted(path.stem for path in before) == ["at", "cifs", "standard"]
    assert cs.Result.load(out / "comparison").meta["data"]["name"] == "digits"
    assert main("demo -q --out", out) == 0
    assert {path: path.read_bytes() for path in out.glob("*.pt")} == before


# ---------------------------------------------------------------- options as in Python


class _CalledError(cs.UserError):
    """A function was called."""


@pytest.mark.parametrize("command", QUESTIONS)
def test_a_command_has_the_options_and_defaults_of_its_function(
    command: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are called with nothing but models: the same reaches the study, and no more."""
    calls: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def record(kind: str, models: Any, data: Any, options: Any, **arguments: Any) -> None:
        calls.append((dict(options), {"kind": kind} | arguments))
        raise _CalledError("It was called.")

    monkeypatch.setattr(api, "_answer", record)
    function = getattr(api, command)
    with pytest.raises(_CalledError):
        function({"at": work / "at.pt"})
    assert main(command, "--models", work / "at.pt") == 2
    (options, arguments), (typed_options, typed_arguments) = calls
    assert typed_arguments == arguments
    assert typed_options.keys() == api.Options.__annotations__.keys()
    parameters = signature(cs.Study).parameters
    defaults = {name: parameters[name].default for name in typed_options.keys() & parameters.keys()}
    of_the_command = {"out", "all_figures", "formats", "command"}
    assert defaults.keys() == typed_options.keys() - of_the_command
    assert {name: typed_options[name] for name in defaults} == defaults | options


@pytest.mark.parametrize(
    ("command", "function", "renamed"),
    [
        ("train --method at", cs.train, {}),
        ("sweep", cs.sweep, {}),
        ("figures DIR", cs.draw_figures, {}),
        ("train --method at", load, {"root": "data_root"}),
    ],
)
def test_other_commands_have_the_defaults_of_their_functions(
    command: str, function: Callable[..., Any], renamed: dict[str, str]
) -> None:
    typed = vars(make_parser().parse_args(command.split()))
    elsewhere = {"recipe", "data", "out", "command", "vary", "validation"}
    for name, parameter in signature(function).parameters.items():
        if name in elsewhere or parameter.default is Parameter.empty:
            continue
        value = typed[renamed.get(name, name)]
        default = parameter.default
        assert (Path(value) if isinstance(default, Path) else value) == default, name


# ---------------------------------------------------------------- help, statuses, signals


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(command, "--help") == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"\n  channelscope {command}" in text
    assert max(map(len, text.splitlines())) <= 110
    if command in QUESTIONS:
        assert "disk:" in text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--version") == 0
    assert capsys.readouterr().out == f"channelscope {cs.__version__}\n"


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("comapre --models net.pt", "'compare'"),
        ("train --method cis", "'cifs'"),
        ("train --recipe cifar10-resnet18-cif", "'cifar10-resnet18-cifs'"),
        ("sweep img", "'imgf'"),
        ("compare --imges 3 --models net.pt", "'--images'"),
        ("relevance --models {net} --scorers gradent", "'gradient'"),
        ("evaluate --models {net} --attacks adaptve", "'adaptive'"),
        ("compare --models {net} --attack pdg-20", "'pgd-20'"),
        ("intervene --models {net} --relevant-to lable", "'label'"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(
    words: str, suggestion: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.format(net=shlex.quote(str(work / "at.pt")))) == 2
    message = capsys.readouterr().err
    assert "Did you mean" in message
    assert suggestion in message


def test_names_are_checked_before_images_are_read(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("channelscope.data.load", lambda *_, **__: pytest.fail("images are read"))
    for words in ("--attack pdg-20", "--attacks adaptve", "--layers layer5", "--device gpu"):
        assert main(f"compare {words} -q --models", work / "at.pt") == 2


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    assert shell("--help").returncode == 0
    done = shell("layers", tmp_path / "none.pt")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_broken_pipe_is_no_error(work: Path) -> None:
    layers = f"'{sys.executable}' -m channelscope layers '{work / 'cifs.pt'}'"
    command = f"set -o pipefail; {layers} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str, work: Path) -> None:
    layers = f"'{sys.executable}' -m channelscope layers '{work / 'cifs.pt'}'"
    assert subprocess.run(["bash", "-c", f"{layers} {closed}"], check=False).returncode == 0


def test_another_backend_of_matplotlib_is_left_out(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    folder = shutil.copytree(compared, tmp_path / "result")
    assert shell("figures", folder, "-q", "--only", "relevance").returncode == 0


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = "train --method at --arch resnet10 --width 2 --epochs 9999 --device cpu --data {}"
    command = [sys.executable, "-m", "channelscope"]
    command += [*words.format(write_npz(tmp_path)).split(), "--out", str(tmp_path / "net.pt")]
    # A shell may have told us to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stderr is not None
            while not (tmp_path / "net.pt.csv").exists():  # until an epoch is done
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            last = process.communicate()[1].decode()
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert "Traceback" not in last
    assert "--resume" in last.splitlines()[-1]
    assert "net.pt.partial" in last.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyError("x\ny"), 1, ["please report it", "'channelscope doctor'"]),
        (MemoryError(), 2, ["memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, ["memory"]),
        (OSError(28, "No space left on device", "net.pt"), 2, ["net.pt", "No space left"]),
    ],
)
def test_errors_are_answered_in_a_line(
    error: Exception,
    status: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("channelscope.weights.zoo.zoo", fail)
    assert main("zoo") == status
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words)
    if status == 1:
        monkeypatch.setenv("CHANNELSCOPE_TRACEBACK", "1")
        with pytest.raises(type(error)):
            main("zoo")


# ---------------------------------------------------------------- bad input

NPZ = "--data npz:digits.npz"
NET = "--models net.pt"
TRAIN = f"train --method standard --out out.pt {TINY}"
TRAIN_NPZ = f"{TRAIN} {NPZ}"
COMPARE = f"compare --attack pgd-1 --attacks cw-1 {FEW} --out out"
COMPARE_NET = f"{COMPARE} {NET}"
CONVERT = "convert"
LONG = "x" * 300

# Mistakes that need no files but those in every test's folder.
BAD: dict[str, str] = {
    "an unknown command": "teach",
    "an unknown option": f"{TRAIN_NPZ} --speed 3",
    "no method": "train -q",
    "an unknown method": "train --method pgd -q",
    "an unknown architecture": f"{TRAIN_NPZ} --arch resnet19",
    "a WideResNet of no whole number of blocks": f"{TRAIN_NPZ} --arch wrn-27-1",
    "an unknown data set": f"{TRAIN} --data digit",
    "an empty data name": f"{TRAIN} --data ''",
    "an unknown attack": f"{COMPARE_NET} --attack carlini",
    "an attack without steps": f"{COMPARE_NET} --attack pgd-0",
    "an unknown layer": f"{COMPARE_NET} --layers layer5",
    "an unknown device to train": f"{TRAIN_NPZ} --device gpu",
    "an unknown device to compare": f"{COMPARE_NET} --device gpu",
    "a device that is not there": f"{COMPARE_NET} --device cuda:77",
    "a device without memory": f"{COMPARE_NET} --device meta",
    "a device without memory to train": f"{TRAIN_NPZ} --device meta",
    "eps in pixels": f"{COMPARE_NET} --eps 8",
    "eps that is no number": f"{COMPARE_NET} --eps nan",
    "a negative eps": f"{COMPARE_NET} --eps -1",
    "eps in words": f"{COMPARE_NET} --eps abc",
    "eps over zero": f"{COMPARE_NET} --eps 8/0",
    "eps in pixels to train": f"{TRAIN_NPZ} --eps 8",
    "an infinite eps to train": f"{TRAIN_NPZ} --eps inf",
    "no epochs": f"{TRAIN_NPZ} --epochs 0",
    "half an epoch": f"{TRAIN_NPZ} --epochs 0.5",
    "a batch of one image": f"{TRAIN_NPZ} --batch-size 1",
    "a negative seed": f"{TRAIN_NPZ} --seed -1",
    "a seed in words": f"{COMPARE_NET} --seed lucky",
    "a seed of thousands of digits": f"{COMPARE_NET} --seed {'9' * 5000}",
    "no images": f"{COMPARE_NET} --images 0",
    "too many images": f"{COMPARE_NET} --images 11",
    "no replicates": f"{COMPARE_NET} --replicates 0",
    "a level in percent": f"{COMPARE_NET} --level 95",
    "a level of 1": f"{COMPARE_NET} --level 1",
    "a threshold of 1": f"{COMPARE_NET} --threshold 1",
    "no images per batch": f"{COMPARE_NET} --batch-size 0",
    "a method of no model": f"{COMPARE_NET} --methods other=at",
    "an unknown method of a model": f"{COMPARE_NET} --methods net=pgd",
    "a method without a model": f"{COMPARE_NET} --methods at",
    "a group of no model": f"{COMPARE_NET} --group AT=at-*",
    "a group without a pattern": f"{COMPARE_NET} --group AT",
    "a group without a name": f"{COMPARE_NET} --group =net",
    "a model in two groups": f"{COMPARE_NET} --group AT=net mine=n*",
    "a width too large": f"{TRAIN_NPZ} --width 2000",
    "a width of nothing": f"{TRAIN_NPZ} --width 0",
    "a learning rate that is no number": f"{TRAIN_NPZ} --lr nan",
    "a negative learning rate": f"{TRAIN_NPZ} --lr -0.1",
    "a learning rate of 0": f"{TRAIN_NPZ} --lr 0",
    "a learning rate in words": f"{TRAIN_NPZ} --lr fast",
    "a learning rate beyond numbers": f"{TRAIN_NPZ} --lr 1e300",
    "a method and a recipe": f"{TRAIN_NPZ} --recipe digits-resnet18-at",
    "an unknown recipe": f"train --recipe cifar10-resnet18-bt {NPZ} -q",
    "a recipe of another name": f"train --recipe fast {NPZ} -q",
    "a missing recipe file": f"train --recipe none.toml {NPZ} -q",
    "a recipe file that is none": f"train --recipe recipe.toml {NPZ} -q",
    "a folder for a recipe": f"train --recipe folder.toml {NPZ} -q",
    "recipes of unknown words": "recipes cifar11",
    "a setting without a value": f"{TRAIN_NPZ} --set lr",
    "a value without a setting": f"{TRAIN_NPZ} --set =3",
    "no setting": f"{TRAIN_NPZ} --set",
    "an unknown setting": f"{TRAIN_NPZ} --set speed=3",
    "an ambiguous setting": f"{TRAIN_NPZ} --set kind=none",
    "a setting in words": f"{TRAIN_NPZ} --set optimizer.lr=fast",
    "a setting in brackets": f"{TRAIN_NPZ} --set optimizer.lr={'[' * 3000}",
    "a setting of thousands of digits": f"{TRAIN_NPZ} --set optimizer.lr={'9' * 5000}",
    "the seed for a setting": f"{TRAIN_NPZ} --set seed=3",
    "the data for a setting": f"{TRAIN_NPZ} --set data=digits",
    "gates of an unknown kind": f"{TRAIN_NPZ} --set gates.kind=cif",
    "gates at an unknown layer": f"{TRAIN_NPZ} --set gates.kind=cifs 'gates.layers=[\"layer5\"]'",
    "TRADES that stops early": f"{TRAIN_NPZ} --method trades --set 'attack.tau=[0]'",
    "a setting that varies twice": f"sweep {NPZ} --vary k=1 --vary k=2 --out out -q",
    "an unknown ablation": f"sweep gate {NPZ} --out out -q",
    "no training images": f"{TRAIN_NPZ} --images 0",
    "fewer training images than classes": f"{TRAIN_NPZ} --images 1",
    "more training images than there are": f"{TRAIN_NPZ} --images 99",
    "an unknown log": f"{TRAIN_NPZ} --logs paper",
    "an image size of 0": f"{TRAIN_NPZ} --image-size 0",
    "images too small for the crop": f"{TRAIN_NPZ} --image-size 4",
    "fewer labels than models": f"{COMPARE} --models net.pt again.pt --labels a",
    "more labels than models": f"{COMPARE_NET} --labels a b",
    "labels twice": f"{COMPARE} --models net.pt again.pt --labels a a",
    "the same model twice": f"{COMPARE} --models net.pt net.pt",
    "no models": COMPARE,
    "no value for models": f"{COMPARE} --models",
    "a missing model": f"{COMPARE} --models none.pt",
    "a folder for a model": f"{COMPARE} --models mine",
    "a text for a model": f"{COMPARE} --models notes.txt",
    "a network of no zoo": f"{COMPARE} --models zoo:cifar10-bt",
    "layers of a missing model": "layers none.pt",
    "layers of a folder": "layers mine",
    "layers of a text": "layers notes.txt",
    "layers that do not run": "layers net.pt layer5",
    "layers by a pattern without a match": "layers net.pt 'layer5.*'",
    "layers of an unknown torchvision network": "layers torchvision:resnet51",
    "layers of an unknown timm network": "layers timm:resnet51",
    "layers of a library without a network": "layers timm:",
    "an unknown scorer": f"relevance {NET} --scorers slope {NPZ} -q",
    "relevance of an unknown layer": f"relevance {NET} --layers layer5 {NPZ} -q",
    "relevance with too few replicates": f"relevance {NET} --replicates 3 {NPZ} -q",
    "relevance written over other files": f"relevance {NET} --out mine {NPZ} -q",
    "an unknown suite": f"evaluate {NET} --attacks everything {NPZ} -q",
    "all channels as a fraction": f"intervene {NET} --fractions 1 {NPZ} -q",
    "no random orders": f"intervene {NET} --random 0 {NPZ} -q",
    "out is a file, to compare": f"{COMPARE_NET} --out notes.txt",
    "out is below a file, to compare": f"{COMPARE_NET} --out notes.txt/out",
    "out is a folder of something else": f"{COMPARE_NET} --out mine",
    "a run folder of something else": f"{COMPARE_NET} --run-folder mine",
    "a file for a run folder": f"{COMPARE_NET} --run-folder notes.txt",
    "out is below a file, to train": f"{TRAIN_NPZ} --out notes.txt/net.pt",
    "out exists, to train": f"{TRAIN_NPZ} --out net.pt",
    "out is a folder, to train": f"{TRAIN_NPZ} --out mine",
    "out has too long a name": f"{TRAIN_NPZ} --out {LONG}",
    "figures of a missing folder": "figures none -q",
    "figures of a foreign folder": "figures mine -q",
    "figures of a file": "figures notes.txt -q",
    "a missing npz file": f"{TRAIN} --data npz:none.npz",
    "npz without a file": f"{TRAIN} --data npz:",
    "the npz file's bare name": f"{TRAIN} --data digits.npz",
    "a missing image folder": f"{TRAIN} --data imagefolder:none",
    "an image folder without images": f"{TRAIN} --data imagefolder:mine",
    "a folder's bare name": f"{TRAIN} --data mine",
    "CIFAR-10 that is not there": f"{TRAIN} --data cifar10",
    "SVHN that is not there": f"{TRAIN} --data svhn",
    "MNIST that is not there": f"{COMPARE_NET} --data mnist",
    "data of other classes": f"{COMPARE_NET} --data digits",
    "a missing file to convert": f"{CONVERT} none.pt out.pt",
    "a file of an unknown program to convert": "convert --from keras net.pt out.pt",
    "our own file to convert": f"{CONVERT} net.pt out.pt",
    "a text to convert": f"{CONVERT} notes.txt out.pt",
    "converting over a file": f"{CONVERT} theirs.pt net.pt",
    "converting to below a file": f"{CONVERT} theirs.pt notes.txt/out.pt",
    "the demo in a file": "demo --out notes.txt -q",
}

# Mistakes with files of their own: a function writes these and returns the words.
PREPARED: dict[str, Callable[[Path], str]] = {}


def prepared(name: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    def enter(case: Callable[[Path], str]) -> Callable[[Path], str]:
        PREPARED[name] = case
        return case

    return enter


@prepared("a damaged model")
def _(folder: Path) -> str:
    (folder / "half.pt").write_bytes((folder / "net.pt").read_bytes()[:5000])
    return f"{COMPARE} --models half.pt"


@prepared("an empty model")
def _(folder: Path) -> str:
    (folder / "empty.pt").write_bytes(b"")
    return "layers empty.pt"


@prepared("a hostile model")
def _(folder: Path) -> str:
    torch.save(Hostile(folder / "harm"), folder / "hostile.pt")
    return f"{COMPARE} --models hostile.pt"


@prepared("a hostile model to convert")
def _(folder: Path) -> str:
    torch.save({"state_dict": Hostile(folder / "harm")}, folder / "hostile.pt")
    return f"{CONVERT} hostile.pt out.pt"


@prepared("a foreign model")
def _(folder: Path) -> str:
    torch.save(networks.plain().state_dict(), folder / "foreign.pt")
    return f"{COMPARE} --models foreign.pt"


@prepared("a foreign model to convert")
def _(folder: Path) -> str:
    torch.save(networks.plain().state_dict(), folder / "foreign.pt")
    return f"{CONVERT} foreign.pt out.pt"


@prepared("models of other classes")
def _(folder: Path) -> str:
    shutil.copy(trained("standard", 3), folder / "three.pt")
    return f"{COMPARE} --models net.pt three.pt {NPZ}"


@prepared("models of other data, and none named")
def _(folder: Path) -> str:
    shutil.copy(trained("standard", 3), folder / "three.pt")
    return f"{COMPARE} --models net.pt three.pt"


@prepared("a model that does not name its data")
def _(folder: Path) -> str:
    write_release(folder / "theirs.pt")
    assert main(CONVERT, folder / "theirs.pt", folder / "ours.pt") == 0
    return f"{COMPARE} --models ours.pt"


@prepared("a grey model on colour images")
def _(folder: Path) -> str:
    x = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(folder / "colour.npz", test_images=x, test_labels=np.array([0, 1, 0, 1]))
    return f"{COMPARE_NET} --data npz:colour.npz"


@prepared("a recorded run of other settings")
def _(folder: Path) -> str:
    state = load_tensors(folder / "net.pt")
    torch.save({"meta": {"settings": state["meta"]["settings"]}}, folder / "out.pt.partial")
    return f"{TRAIN_NPZ} --resume --lr 0.03"


@prepared("a damaged state to resume from")
def _(folder: Path) -> str:
    (folder / "out.pt.partial").write_bytes(b"half")
    return f"{TRAIN_NPZ} --resume"


@prepared("a foreign state to resume from")
def _(folder: Path) -> str:
    torch.save([1, 2], folder / "out.pt.partial")
    return f"{TRAIN_NPZ} --resume"


@prepared("a complete run of other settings")
def _(folder: Path) -> str:
    return f"{TRAIN_NPZ} --resume --out net.pt --seed 3"


@prepared("a state of an interrupted run, and no --resume")
def _(folder: Path) -> str:
    (folder / "out.pt.partial").write_bytes(b"state")
    return TRAIN_NPZ


def pixels(value: float) -> np.ndarray[Any, Any]:
    x = np.zeros((24, 8, 8), np.float32)
    x[3, 2, 1] = value
    return x


_CLASSES = {"train_labels": np.arange(24) % 3, "classes": np.array(["a", "b"])}
# Arrays of an .npz file that are changed; None for one that is left out.
ARRAYS: dict[str, dict[str, Any]] = {
    "no test images": {"test_images": None},
    "no labels": {"train_labels": None},
    "no training part": {"train_images": None, "train_labels": None},
    "a pickled object": {"train_images": np.array([{}] * 24, dtype=object)},
    "NaN": {"train_images": pixels(float("nan"))},
    "pixels out of range": {"train_images": pixels(255.0)},
    "labels too few": {"train_labels": np.zeros(23, np.int64)},
    "negative labels": {"train_labels": np.arange(24) % 2 - 1},
    "labels in words": {"train_labels": np.array(["a"] * 24)},
    "labels of no class": _CLASSES,
    "four colours": {"train_images": np.zeros((24, 8, 8, 4), np.uint8)},
    "a class without training images": {"train_labels": np.zeros(24, np.int64)},
    "classes of one name": {"classes": np.array(["a", "a"])},
    "whole numbers for pixels": {"train_images": np.zeros((24, 8, 8), np.int32)},
}


def _write_arrays(changes: dict[str, Any]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        write_npz(folder, **changes)
        return TRAIN_NPZ

    return write


PREPARED |= {f"an npz file with {name}": _write_arrays(ARRAYS[name]) for name in ARRAYS}


@prepared("a damaged npz file")
def _(folder: Path) -> str:
    whole = (folder / "digits.npz").read_bytes()
    (folder / "digits.npz").write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    return TRAIN_NPZ


@prepared("an npz file cut short")
def _(folder: Path) -> str:
    (folder / "digits.npz").write_bytes((folder / "digits.npz").read_bytes()[:2000])
    return TRAIN_NPZ


@prepared("a zip of something else for an npz file")
def _(folder: Path) -> str:
    with zipfile.ZipFile(folder / "digits.npz", "w") as file:
        file.writestr("notes.txt", "mine")
    return TRAIN_NPZ


def image_folder(folder: Path, sizes: tuple[int, ...] = (8,) * 6) -> Path:
    """Write a folder of pictures, train and test, two classes."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            place = folder / "pictures" / part / name
            place.mkdir(parents=True)
            for index, size in enumerate(sizes):
                Image.new("RGB", (size, size), (index * 20, 0, 0)).save(place / f"{index}.png")
    return folder / "pictures"


PICTURES = "--data imagefolder:pictures"


@prepared("a damaged image")
def _(folder: Path) -> str:
    file = image_folder(folder) / "train" / "cat" / "3.png"
    file.write_bytes(file.read_bytes()[:40])
    return f"{TRAIN} {PICTURES}"


@prepared("a text for an image")
def _(folder: Path) -> str:
    (image_folder(folder) / "train" / "dog" / "9.jpg").write_text("mine")
    return f"{TRAIN} {PICTURES}"


@prepared("images of different sizes")
def _(folder: Path) -> str:
    image_folder(folder, (8, 8, 9))
    return f"{TRAIN} {PICTURES}"


@prepared("a class that the training images lack")
def _(folder: Path) -> str:
    root = image_folder(folder)
    shutil.copytree(root / "test" / "dog", root / "test" / "wolf")
    return f"{TRAIN} {PICTURES}"


@prepared("a class without training images")
def _(folder: Path) -> str:
    root = image_folder(folder)
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").mkdir()
    return f"{TRAIN} {PICTURES}"


@prepared("no training images at all")
def _(folder: Path) -> str:
    shutil.rmtree(image_folder(folder) / "train")
    return f"{TRAIN} {PICTURES}"


@prepared("classes of other names than the model's")
def _(folder: Path) -> str:
    image_folder(folder)
    return f"{COMPARE_NET} {PICTURES}"


@prepared("downloaded files that are damaged")
def _(folder: Path) -> str:
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (folder / "data" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    return f"{TRAIN} --data cifar10"


@pytest.mark.parametrize("case", [*BAD, *PREPARED])
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
    words = BAD[case] if case in BAD else PREPARED[case](tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    status = main(words)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert (status, len(output.err.splitlines())) == (2, 1), output.err
    assert output.err.startswith("channelscope")
    assert output.out == ""
    assert contents(tmp_path) == before


def test_class_folders_of_other_sizes_pass_with_an_image_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out that the message names works."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path, (8, 8, 9, 12, 8, 10))
    assert main(f"{TRAIN} {PICTURES} --image-size 8") == 0
    assert Checkpoint.read("out.pt").class_names == ("cat", "dog")


# ---------------------------------------------------------------- damaged results


def change_meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return spoil


def empty_table(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        pd.read_csv(folder / f"{name}.csv")[:0].to_csv(folder / f"{name}.csv", index=False)

    return spoil


SPOILT: dict[str, Callable[[Path], Any]] = {
    "without a table": lambda folder: (folder / "alignment.csv").unlink(),
    "with bytes for a table": lambda folder: (folder / "alignment.csv").write_bytes(b"\xff"),
    "with an empty file for a table": lambda folder: (folder / "verdicts.csv").write_text(""),
    "with bad JSON": lambda folder: (folder / "meta.json").write_text("{"),
    "with foreign JSON": lambda folder: (folder / "meta.json").write_text("{}"),
    "with damaged arrays": lambda folder: (folder / "arrays.npz").write_bytes(b"x"),
    "without a level": change_meta(lambda meta: meta.pop("level")),
    "of no models": change_meta(lambda meta: meta.update(models={})),
    "of other models": change_meta(lambda meta: meta.update(models={"other": {}})),
    "with a number for models": change_meta(lambda meta: meta.update(models=3)),
    "of other classes": change_meta(lambda meta: meta["data"].update(classes=["x", "y"])),
    "without classes": change_meta(lambda meta: meta["data"].pop("classes")),
    "with words for eps": change_meta(lambda meta: meta.update(eps="large")),
    "of an unknown kind": change_meta(lambda meta: meta.update(kind="guess")),
    "without alignment": empty_table("alignment"),
    "without robustness": empty_table("robustness"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_figures_of_a_damaged_result_are_refused_in_one_line(
    case: str, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(compared, tmp_path / "out")
    SPOILT[case](folder)
    before = contents(tmp_path)
    assert main("figures -q", folder) == 2
    output = capsys.readouterr()
    assert "damaged" in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits_the_terminal_and_breaks_no_name(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = make_parser()
    (menu,) = (action for action in parser._actions if action.dest == "==SUPPRESS==")
    for command in (parser, *menu.choices.values()):  # type: ignore[union-attr]
        lines = command.format_help().splitlines()
        usage = lines.index("")  # argparse does not break a long option of the usage
        assert max(map(len, lines[usage:])) <= columns
    text = menu.choices["train"].format_help()  # type: ignore[index]
    assert "cifs-published" in text.split("methods:")[1]


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    assert "start here" in capsys.readouterr().out
