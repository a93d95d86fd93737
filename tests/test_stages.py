"""Runs that begin with trained weights: from a file, in two stages, and what such runs keep."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import channelscope as cs
from channelscope.cli import main
from channelscope.data import Dataset, MemorySplit, load
from channelscope.gates import Selective
from channelscope.training import Recipe, train
from channelscope.training.job import Job
from channelscope.training.state import State
from channelscope.weights import Checkpoint
from channelscope.weights.tensors import load_tensors
from helpers.expect import contents, mistake, same_state
from helpers.runs import (
    TINY,
    digits,
    interrupted,
    interrupted_at,
    run,
    same_run,
    tiny_job,
    trained,
    write_npz,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

STAGES = {"before.schedule.epochs": 2}  # of two epochs of three steps each, as the second stage


@cache
def published() -> Path:
    """Train the published two stages, once for all tests; return the checkpoint."""
    out = trained("cifs").with_name("published.pt")
    run("cifs-published", out, keep_epochs=2, **STAGES)
    return out


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's weights by their own names."""
    return {
        name.removeprefix("cnn."): value
        for name, value in state.items()
        if not name.startswith("selectors.")
    }


def start_of(method: str, out: Path, **changes: Any) -> State:
    """Begin a run, as ``train`` does."""
    return State.start(tiny_job(method, out, **changes).started_from_file(), "cpu")


# ---------------------------------------------------------------- weights of a file


def test_a_run_begins_with_the_backbone_of_a_file_and_with_gates_of_its_own(
    tmp_path: Path,
) -> None:
    file = str(trained("cifs"))
    state = start_of("cifs", tmp_path / "net.pt", init_file=file).network.state_dict()
    fresh = start_of("cifs", tmp_path / "net.pt").network.state_dict()
    saved = dict(Checkpoint.read(file).state)
    assert same_state(weights(state), weights(saved))
    assert not same_state(state, saved)
    gates = {name for name in state if name.startswith("selectors.")}
    assert all(torch.equal(state[name], fresh[name]) for name in gates)


def test_a_run_begins_with_the_gates_of_a_file_where_they_are_wanted(tmp_path: Path) -> None:
    changes = {"init_file": str(trained("cifs")), "init_with_gates": True}
    state = start_of("cifs", tmp_path / "net.pt", **changes).network.state_dict()
    assert same_state(state, dict(Checkpoint.read(trained("cifs")).state))


@pytest.mark.parametrize(("method", "file"), [("at", "cifs"), ("cifs", "at"), ("trades", "at")])
def test_gates_come_and_go(method: str, file: str, tmp_path: Path) -> None:
    network = start_of(method, tmp_path / "net.pt", init_file=str(trained(file))).network
    assert isinstance(network, Selective) == (method == "cifs")
    saved = dict(Checkpoint.read(trained(file)).state)
    assert same_state(weights(network.state_dict()), weights(saved))


def test_python_the_recipe_and_a_file_say_the_same(tmp_path: Path) -> None:
    file = trained("cifs")
    network = run("cifs", tmp_path / "a.pt", init=file, init_gates=True)
    run("cifs", tmp_path / "b.pt", init_file=str(file), init_with_gates=True)
    recipe = Recipe.from_values(Checkpoint.read(tmp_path / "a.pt").meta["settings"]["recipe"])
    assert recipe.init is not None
    assert (recipe.init.file, recipe.init.with_gates) == (str(file), True)
    (tmp_path / "mine.toml").write_text(recipe.toml())
    assert "[init]" in recipe.toml()
    train(str(tmp_path / "mine.toml"), digits(), out=tmp_path / "c.pt", progress=False)
    assert same_run(tmp_path / "a.pt", tmp_path / "b.pt")
    assert same_run(tmp_path / "a.pt", tmp_path / "c.pt")
    assert not same_run(tmp_path / "a.pt", trained("cifs"))
    assert same_state(network.state_dict(), dict(Checkpoint.read(tmp_path / "a.pt").state))


def test_a_checkpoint_says_what_its_training_began_with(tmp_path: Path) -> None:
    run("at", tmp_path / "net.pt", init=trained("standard"), epochs=1)
    start = Checkpoint.read(tmp_path / "net.pt").meta["start"]
    before = Checkpoint.read(trained("standard")).meta
    assert start["file"] == trained("standard").name
    assert (start["with_gates"], start["is_stage"]) == (False, False)
    assert start["settings"] == before["settings"]
    assert start["history"] == before["history"]
    assert len(start["digest"]) == 64
    assert "start" not in before


def test_a_run_normalises_as_the_network_that_it_begins_with(tmp_path: Path) -> None:
    data, file = digits(3), trained("standard")
    other = Checkpoint.read(file).architecture.mean
    run("at", tmp_path / "net.pt", init=file, epochs=1)
    assert Checkpoint.read(tmp_path / "net.pt").architecture.mean == other
    run("standard", tmp_path / "raw.pt", data=data, epochs=1, normalise="none")
    architecture = Checkpoint.read(tmp_path / "raw.pt").architecture
    assert (architecture.mean, architecture.std) == ((0.0,), (1.0,))
    run("at", tmp_path / "raw-at.pt", data=data, init=tmp_path / "raw.pt", epochs=1)
    assert Checkpoint.read(tmp_path / "raw-at.pt").architecture == architecture
    with mistake("standard-4.pt normalises its images", "model.normalise"):
        run("at", tmp_path / "no.pt", init=file, normalise="none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "gone.pt"}, ["gone.pt"]),
        ({"init_gates": True}, ["init_gates", "no file is named"]),
        ({"width": 3}, ["init: at-4.pt does not fit: its width is 2, and 3 is to be trained"]),
        ({"arch": "resnet18"}, ["its architecture is resnet10, and resnet18"]),
        ({"data": 3}, ["its number of classes is 4, and 3"]),
        ({"init_gates": True, "init": "at"}, ["the gates of at-4.pt (of layers: none)", "random"]),
        (
            {"init_gates": True, "init": "cifs", "gates_layers": ["layer2", "layer3"]},
            ["the gates of cifs-4.pt (of layers: layer3.0, layer4.0)", "--init-gates"],
        ),
        ({"keep_epochs": -1}, ["keep_epochs", "-1"]),
    ],
    ids=str,
)
def test_what_a_run_cannot_begin_with(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    changes = dict(changes)
    if changes.get("init", "at") in ("at", "cifs") and changes != {"init_gates": True}:
        changes["init"] = trained(changes.get("init", "at"))
    if "data" in changes:
        changes["data"] = digits(changes["data"])
    with mistake(*words):
        run("cifs", tmp_path / "net.pt", **changes)
    assert not contents(tmp_path)


def test_a_run_is_not_resumed_from_other_weights(tmp_path: Path) -> None:
    file = tmp_path / "start.pt"
    Checkpoint.read(trained("standard")).save(file)
    interrupted("at", tmp_path / "net.pt", init=file)
    Checkpoint.read(trained("at")).save(file)
    with mistake("net.pt.partial", "other settings (init)"):
        run("at", tmp_path / "net.pt", init=file, resume=True)


# ---------------------------------------------------------------- two stages


def test_the_published_recipe_trains_naturally_and_then_adversarially() -> None:
    recipe = Recipe.named("cifar10-resnet18-cifs-published")
    first = recipe.first_stage
    assert first is not None
    assert (first.loss.kind, recipe.loss.kind) == ("natural", "adversarial")
    assert (first.schedule.epochs, recipe.schedule.epochs) == (49, 120)
    assert {first.lr_at(epoch) for epoch in range(49)} == {0.1}
    assert first.gates == recipe.gates == Recipe.named("cifar10-resnet18-cifs").gates
    assert first.model.normalise == recipe.model.normalise == "none"
    assert first.method is None
    assert first.first_stage is None


def test_its_twin_without_gates_has_the_same_compute() -> None:
    cifs = Recipe.named("cifar10-resnet18-cifs-published").values()
    twin = Recipe.named("cifar10-resnet18-at-warm").values()
    assert {name for name in cifs if cifs[name] != twin[name]} == {"method", "gates"}


def test_the_second_stage_begins_with_the_best_of_the_first() -> None:
    out = published()
    first = Checkpoint.read(f"{out}.before")
    recipe = Recipe.suited_to("digits", "cifs-published").override(**TINY, **STAGES)
    assert recipe.first_stage is not None
    assert first.meta["settings"]["recipe"] == recipe.first_stage.values()
    assert first.meta["metrics"]["val_natural"] == max(
        row["val_natural"] for row in first.meta["history"]
    )
    job = Job(recipe, digits(), Path("new.pt"), 0).started_from(Path(f"{out}.before"))
    state = State(job, "cpu")
    assert same_state(state.network.state_dict(), dict(first.state))
    assert not state.optimizer.state_dict()["state"], "the optimiser is a fresh one"


def test_both_stages_are_on_record() -> None:
    checkpoint = Checkpoint.read(published())
    first = Checkpoint.read(f"{published()}.before")
    assert checkpoint.method == "cifs-published"
    assert first.method is None
    start = checkpoint.meta["start"]
    assert start["history"] == first.meta["history"]
    assert (start["with_gates"], start["is_stage"]) == (True, True)
    values = checkpoint.meta["settings"]["recipe"]
    assert values["before"]["loss"] == {"kind": "natural"}
    recipe = Recipe.suited_to("digits", "cifs-published").override(**TINY, **STAGES)
    assert Recipe.from_values(values) == recipe
    result = cs.compare(
        [published()], digits(), attack="pgd-1", attacks="fgsm", replicates=20, progress=False
    )
    assert result.training["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize("at", [2, 4, 7, 11])
def test_a_run_of_two_stages_goes_on_wherever_it_was_stopped(at: int, tmp_path: Path) -> None:
    """The first six steps are of the first stage."""
    out = tmp_path / "net.pt"
    interrupted("cifs-published", out, at, **STAGES)
    logs = ["net.pt.before.csv"] if at < 7 else ["net.pt.before", "net.pt.before.csv", "net.pt.csv"]
    state = "net.pt.before.partial" if at < 7 else "net.pt.partial"
    assert sorted(contents(tmp_path)) == [*logs, state]
    run("cifs-published", out, resume=True, **STAGES)
    assert same_run(out, published())
    assert same_run(Path(f"{out}.before"), Path(f"{published()}.before"))
    (tmp_path / "net.pt.before").unlink()
    before = contents(tmp_path)
    run("cifs-published", out, resume=True, **STAGES)
    assert contents(tmp_path) == before, "what is complete needs no first stage"


def test_a_run_of_two_stages_writes_over_nothing(tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    for name in ("net.pt", "net.pt.before", "net.pt.epoch-3"):
        (tmp_path / name).write_text("mine")
        with mistake(f"{name} exists"):
            run("cifs-published", out, **STAGES)
        assert contents(tmp_path) == {name: b"mine"}
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"before.schedule.epochs": 0}, ["The stage before: schedule.epochs"]),
        ({"before.schedule.epoch": 3}, ["The stage before", "Did you mean 'epochs'"]),
        ({"before.loss.kind": "nature"}, ["The stage before: loss.kind", "Did you mean 'natural'"]),
        ({"before.gates.layers": ["layer9"]}, ["No layer", "layer9"]),
        ({"before": 3}, ["no setting 'before'"]),
        ({"gates_layers": ["layer9"]}, ["No layer", "layer9"]),
    ],
    ids=str,
)
def test_a_stage_that_cannot_be_trained_is_refused_at_once(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with mistake(*words):
        run("cifs-published", tmp_path / "net.pt", **STAGES | changes)
    assert not contents(tmp_path)


def test_a_stage_before_may_have_no_gates(tmp_path: Path) -> None:
    changes = {"before.gates.kind": "none", "before.schedule.epochs": 1, "epochs": 1}
    network = run("cifs-published", tmp_path / "net.pt", **changes)
    assert isinstance(network, Selective)
    assert not Checkpoint.read(tmp_path / "net.pt.before").gates
    assert not Checkpoint.read(tmp_path / "net.pt").meta["start"]["with_gates"]


# ---------------------------------------------------------------- which epoch, and which are kept


def test_the_last_epoch_is_kept_on_demand(tmp_path: Path) -> None:
    for epochs in (1, 2, 3):
        run("at", tmp_path / f"{epochs}.pt", epochs=epochs, keep="last", schedule_shape="flat")
        history = Checkpoint.read(tmp_path / f"{epochs}.pt").meta["history"]
        assert [row["best"] for row in history] == [False] * (epochs - 1) + [True]
    run("at", tmp_path / "kept.pt", epochs=3, keep_epochs=1, schedule_shape="flat")
    for epochs in (1, 2, 3):
        last = Checkpoint.read(tmp_path / f"{epochs}.pt")
        kept = Checkpoint.read(tmp_path / f"kept.pt.epoch-{epochs}")
        assert same_state(dict(kept.state), dict(last.to_half().state))
        assert kept.meta["metrics"]["epoch"] == len(kept.meta["history"]) == epochs


def test_epochs_are_kept_in_half_precision_also_of_a_resumed_run(tmp_path: Path) -> None:
    names = {"published.pt.epoch-2", "published.pt.before.epoch-2"}
    folder = published().parent
    assert {path.name for path in folder.glob("published*epoch-*")} == names
    for name in names:
        matrices = [t for t in load_tensors(folder / name)["state"].values() if t.ndim > 1]
        assert {tensor.dtype for tensor in matrices} == {torch.float16}
    interrupted("at", tmp_path / "net.pt", 5, keep_epochs=1)
    run("at", tmp_path / "net.pt", resume=True, keep_epochs=1)
    run("at", tmp_path / "whole.pt", keep_epochs=1)
    for epoch in (1, 2):
        assert same_run(tmp_path / f"net.pt.epoch-{epoch}", tmp_path / f"whole.pt.epoch-{epoch}")
    assert same_run(tmp_path / "net.pt", trained("at"))


def test_without_a_validation_part_all_images_are_trained_on_and_the_last_epoch_is_kept(
    tmp_path: Path,
) -> None:
    data = digits()
    whole = data.merge_validation()
    assert (len(whole.train), whole.val) == (len(data.train) + len(data.val), None)
    assert torch.equal(whole.train.labels, torch.cat([data.train.labels, data.val.labels]))
    run("cifs", tmp_path / "net.pt", validation="none")
    checkpoint = Checkpoint.read(tmp_path / "net.pt")
    assert checkpoint.meta["settings"]["data"]["train"] == whole.train.fingerprint()
    assert checkpoint.meta["settings"]["data"]["val"] is None
    rows = checkpoint.meta["history"]
    assert [row["best"] for row in rows] == [False, True]
    assert all(row["val_natural"] != row["val_natural"] for row in rows), "NaN"
    without = Dataset(data.name, data.classes, train=whole.train, test=data.test)
    run("cifs", tmp_path / "same.pt", data=without, validation="none")
    assert same_state(dict(Checkpoint.read(tmp_path / "same.pt").state), dict(checkpoint.state))
    with mistake("no validation images", "data.validation"):
        run("cifs", tmp_path / "no.pt", data=without)
    with mistake("schedule.patience to 0"):
        run("cifs", tmp_path / "no.pt", validation="none", patience=2)
    options = {"attack": "pgd-1", "replicates": 20, "progress": False}
    result = cs.compare([tmp_path / "net.pt"], data, **options)
    assert result.training["val_natural"].isna().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--set keep=last", "last epoch 1, accuracy on validation images "),
        ("--set validation=none", "last epoch 1, trained on the validation images, too; log in"),
        ("--init {file} --keep-epochs 1", "best epoch 1, accuracy on validation"),
    ],
)
def test_the_command_says_which_epoch_was_kept(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = f"--arch resnet10 --width 2 --epochs 1 --data {write_npz(tmp_path, 4)} -q"
    out = tmp_path / "net.pt"
    options = options.format(file=trained("standard"))
    assert main(f"train --method at {tiny} {options} --out {out}".split()) == 0
    assert words in capsys.readouterr().out
    assert (tmp_path / "net.pt.epoch-1").exists() == ("keep-epochs" in options)


def test_splits_that_cannot_be_joined_are_refused() -> None:
    data = digits()
    floats = MemorySplit(data.val.images.float() / 255, data.val.labels)
    with mistake("cannot be joined", "load both into memory"):
        Dataset("mixed", data.classes, data.test, data.train, floats).merge_validation()


# ---------------------------------------------------------------- real images


def test_the_published_recipe_runs_on_real_images_killed_in_both_stages(tmp_path: Path) -> None:
    folder = Path(os.environ.get("CHANNELSCOPE_DATA", ""), "cifar10-jpeg")
    if "CHANNELSCOPE_DATA" not in os.environ or not (folder / "train").is_dir():
        pytest.skip("CHANNELSCOPE_DATA names no image folder with a training part")
    data = load(f"imagefolder:{folder}").limited(2000, 0)
    assert data.val is not None
    parts = {"train": data.train, "val": data.val.sample(200), "test": data.test.sample(200)}
    data = Dataset("cifar10", data.classes, **parts).load()
    changes = {"width": 8, "epochs": 1, "attack_steps": 1, "before.schedule.epochs": 1}

    def train_to(name: str, **options: Any) -> Path:
        recipe = "cifar10-resnet18-cifs-published"
        out = tmp_path / name
        train(recipe, data, out=out, device="cpu", progress=False, **changes, **options)
        return out

    whole = train_to("whole.pt")
    for step in (3, 16 + 3):  # 16 steps are a stage; an incomplete epoch is begun anew
        with interrupted_at(step):
            train_to("net.pt", resume=True)
    assert (tmp_path / "net.pt.before").exists()
    assert same_run(train_to("net.pt", resume=True), whole)
    metrics = Checkpoint.read(whole).meta["metrics"]
    assert 0 <= metrics["val_robust"] <= 1
