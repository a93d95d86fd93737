"""Training: every method, the best epoch, interruption at any moment, and mistakes.

The recipes are tested in ``test_recipes``, and what happens within an epoch in ``test_engine``.
"""

import os
import shutil
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from tqdm.auto import tqdm

import channelscope as cs
from channelscope.data import Dataset, MemorySplit
from channelscope.gates import Selective
from channelscope.recipes import METHODS as ALL_METHODS
from channelscope.training import Diverged, Recipe, train
from channelscope.training.engine import train_epoch, validate
from channelscope.training.state import State
from channelscope.weights import Checkpoint, load, log_columns
from channelscope.weights.tensors import load_tensors
from helpers.expect import contents, mistake, randomness_untouched, same_state
from helpers.runs import (
    METHODS,
    TINY,
    after_steps,
    digits,
    interrupted,
    run,
    same_run,
    tiny_job,
    trained,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

COLUMNS = ["epoch", "loss", "accuracy", "lr", "val_natural", "val_robust", "seconds", "best"]
OF_A_GATE = ["probe_natural", "probe_robust", "mask_natural", "mask_adversarial", "mask_cosine"]
MOST = (*METHODS, "fsr", "fat", "wat-cifs")  # everything there is in training, each thing once
UNGATED = ("standard", "at", "at-warm", "trades", "mart", "fat", "wat", "hbar")


# ---------------------------------------------------------------- what a run leaves behind


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_trains_to_a_checkpoint(method: str) -> None:
    checkpoint = Checkpoint.read(trained(method))
    assert checkpoint.method == method
    assert checkpoint.image == (1, 8, 8)
    assert checkpoint.class_names == digits().classes
    assert (checkpoint.architecture.arch, checkpoint.architecture.width) == ("resnet10", 2)
    assert checkpoint.meta["settings"]["seed"] == 0
    assert checkpoint.meta["settings"]["recipe"]["attack"]["steps"] == TINY["attack_steps"]
    assert isinstance(checkpoint.build(), Selective) == (method not in UNGATED)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_methods_checkpoint_can_be_compared(method: str) -> None:
    options = {"attack": "pgd-1", "attacks": "fgsm", "replicates": 20, "progress": False}
    result = cs.compare([trained(method)], digits(), **options)
    assert result.robustness["accuracy"].between(0, 1).all()
    assert result.training["epoch"].tolist() == [1, 2]


def test_no_two_methods_train_the_same_network() -> None:
    states = {method: Checkpoint.read(trained(method)).state for method in ALL_METHODS}
    pairs = combinations(ALL_METHODS, 2)
    assert [pair for pair in pairs if same_state(*(states[method] for method in pair))] == []


@pytest.mark.parametrize(
    ("arch", "layers"),
    [
        ("resnet10", ["layer3.0", "layer4.0"]),
        ("resnet18", ["layer4.0", "layer4.1"]),
        ("wrn-16-1", ["layer3.1.conv1:input", "features"]),
    ],
)
def test_a_networks_last_stage_is_gated(arch: str, layers: list[str], tmp_path: Path) -> None:
    run("cifs", tmp_path / "net.pt", data=digits(2), arch=arch, width=1, epochs=1)
    checkpoint = Checkpoint.read(tmp_path / "net.pt")
    assert [(gate.layer, gate.kind, gate.options) for gate in checkpoint.gates] == [
        (layer, "cifs", {"probe": probe, "k": 2, "imgf": "softmax"})
        for layer, probe in zip(layers, ("two-layer", "linear"), strict=True)
    ]
    assert list(checkpoint.build().gates) == layers


def test_the_resolved_recipe_is_kept_and_trains_the_same_again(tmp_path: Path) -> None:
    values = Checkpoint.read(trained("mart-cas")).meta["settings"]["recipe"]
    train(Recipe.from_values(values), digits(), out=tmp_path / "net.pt", progress=False)
    assert same_run(tmp_path / "net.pt", trained("mart-cas"))
    (tmp_path / "mine.toml").write_text(Recipe.from_values(values).toml())
    train(str(tmp_path / "mine.toml"), digits(), out=tmp_path / "again.pt", progress=False)
    assert same_run(tmp_path / "again.pt", trained("mart-cas"))


def test_a_recipe_by_name_trains(tmp_path: Path) -> None:
    train("digits-resnet18-at", digits(), out=tmp_path / "net.pt", progress=False, **TINY)
    assert same_run(tmp_path / "net.pt", trained("at"))


def test_fewer_images_are_those_of_every_class(tmp_path: Path) -> None:
    run("standard", tmp_path / "net.pt", images=20, epochs=1)
    few = digits().limited(20, 0)
    assert few.train.labels.bincount().tolist() == [5] * 4
    used = Checkpoint.read(tmp_path / "net.pt").meta["settings"]["data"]
    assert used["train"] == few.train.fingerprint()
    assert used["val"] == digits().val.fingerprint()


@pytest.mark.parametrize(
    ("method", "gated"),
    [
        ("standard", []),
        ("at", []),
        ("fsr", []),
        ("trades-cifs", ["layer3.0", "layer4.0"]),
        ("cas", ["layer3.0", "layer4.0"]),
    ],
)
def test_the_log_has_a_row_for_each_epoch(method: str, gated: list[str]) -> None:
    path = trained(method)
    log = pd.read_csv(f"{path}.csv")
    assert list(log.columns) == [
        *COLUMNS,
        *(f"{layer}.{name}" for layer in gated for name in OF_A_GATE),
    ]
    assert log[log.columns[len(COLUMNS) :]].stack().between(-1, 1 + 1e-6).all()
    assert list(log["epoch"]) == [1, 2]
    assert log["best"].sum() == 1
    assert log[["accuracy", "val_natural", "val_robust"]].stack().between(0, 1).all()
    history = pd.DataFrame(Checkpoint.read(path).meta["history"])
    pd.testing.assert_frame_equal(log, history[list(log.columns)])
    best = Checkpoint.read(path).meta["metrics"]
    assert best == history[history["best"]].iloc[0].to_dict()


def test_nothing_else_is_left_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = run("at", tmp_path / "deep" / "er" / "net.pt")
    assert sorted(contents(tmp_path / "deep" / "er")) == ["net.pt", "net.pt.csv"]
    assert not network.training
    assert same_state(network.state_dict(), load(tmp_path / "deep" / "er" / "net.pt").state_dict())
    assert capsys.readouterr() == ("", "")


def test_the_network_normalises_by_the_training_part() -> None:
    architecture = Checkpoint.read(trained("standard")).architecture
    pixels = digits().train.images.double() / 255
    assert architecture.mean == pytest.approx([pixels.mean().item()])
    assert architecture.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-4)


def test_a_progress_bar_is_shown_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train("standard", digits(), out=tmp_path / "net.pt", **TINY | {"epochs": 1})
    assert "standard: 100%" in capsys.readouterr().err


# ---------------------------------------------------------------- the recipe


def test_the_learning_rate_falls_at_its_milestones(tmp_path: Path) -> None:
    used: list[float] = []
    with after_steps(lambda optimizer: used.append(optimizer.param_groups[0]["lr"])):
        changes = {"schedule_shape": "steps", "milestones": (0.25, 0.75)}
        run("standard", tmp_path / "net.pt", epochs=4, lr=0.02, **changes)
    assert used == pytest.approx([0.02] * 3 + [0.002] * 6 + [0.0002] * 3)
    assert list(pd.read_csv(tmp_path / "net.pt.csv")["lr"]) == pytest.approx(used[2::3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"attack_steps": 0}, "attack.steps"),
        ({"lr": 0.0}, "optimizer.lr"),
        ({"lr": float("nan")}, "optimizer.lr"),
        ({"lr": float("inf")}, "optimizer.lr"),
        ({"lr": 1e300}, "optimizer.lr"),
        ({"eps": -0.1}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"arch": "resnet19"}, "resnet18"),
        ({"arch": "wrn-27-1"}, "6 n + 4"),
        ({"width": 2000}, "1,024"),
        ({"width": 0}, "width"),
        ({"images": 3}, "3 images"),
        ({"images": 49}, "48"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"gates_kind": "cif"}, "Did you mean 'cifs'"),
        ({"gates_kind": "cifs", "gates_layers": ["layer5"]}, "layer5"),
        ({"gates_kind": "cifs", "gates.options.k": 5}, "k = 5 of 4"),
        ({"gates_kind": "fsr", "gates_probes": ["linear"]}, "probe"),
        ({"tau": [0, 1]}, "attack.tau needs one number more"),
        ({"loss.kind": "trades", "tau": [0]}, "TRADES"),
        ({"crop": 8}, "crop"),
        ({"crop": -1}, "crop"),
        ({"momentum": -1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
    ids=lambda value: (
        ", ".join(f"{name}={new}" for name, new in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with mistake(words):
        run("at", tmp_path / "net.pt", **changes)
    assert not contents(tmp_path)


@pytest.mark.parametrize("kind", ["eas", "fsr", "kap"])
def test_gates_of_feature_maps_are_not_for_logits(
    kind: str, tmp_path: Path, unchecked: None
) -> None:
    with mistake(f"kind {kind}", "feature maps", "gate a convolutional layer"):
        run("at", tmp_path / "net.pt", gates_kind=kind, gates_layers=["linear"])
    assert not contents(tmp_path)


def test_a_recipe_of_another_data_set_has_to_fit(tmp_path: Path) -> None:
    with mistake("crop of 8"):
        train("cifar10-resnet18-at", digits(), out=tmp_path / "net.pt", crop=8)
    with mistake("'fashion-mnist-resnet10-eas'"):
        train("fashion-mnist-resnet10-eas", digits(), out=tmp_path / "net.pt")
    assert not contents(tmp_path)


# ---------------------------------------------------------------- the best epoch

SCORES = {  # natural and robust accuracy, epoch by epoch, and the best epoch by either
    "natural falls as robust rises": ([0.9, 0.8, 0.7], [0.1, 0.2, 0.3], 3, 1),
    "the first of equals": ([0.5, 0.5, 0.5], [0.2, 0.2, 0.2], 1, 1),
    "ties in robust are settled by natural": ([0.5, 0.7, 0.6], [0.2, 0.2, 0.2], 2, 2),
    "robust before natural": ([0.5, 0.9, 0.9], [0.3, 0.2, 0.1], 1, 2),
    "the middle": ([0.1, 0.3, 0.2], [0.1, 0.3, 0.2], 2, 2),
}


def epoch_row(state: State, epoch: int, **changes: float) -> dict[str, Any]:
    """Return a row of the log with made-up measurements."""
    row = dict.fromkeys(log_columns(state.job.gates), 0.5)
    del row["best"]
    return row | {"epoch": epoch} | changes


@pytest.mark.parametrize("method", ["standard", "cifs"])
@pytest.mark.parametrize("case", SCORES)
def test_the_best_epoch_is_kept(case: str, method: str, tmp_path: Path) -> None:
    natural, robust, best_robust, best_natural = SCORES[case]
    best = best_natural if method == "standard" else best_robust
    state = State.start(tiny_job(method, tmp_path / "net.pt"), "cpu")
    states: list[dict[str, Tensor]] = []
    for epoch in range(3):
        for value in state.network.parameters():
            value.data += 1
        weights = state.network.state_dict()
        states.append({name: value.clone() for name, value in weights.items()})
        row = epoch_row(state, epoch + 1, val_natural=natural[epoch], val_robust=robust[epoch])
        state.record(row)
        state.save()
    saved = Checkpoint.read(tmp_path / "net.pt.partial")
    assert [row["best"] for row in saved.meta["history"]] == [epoch == best for epoch in (1, 2, 3)]
    assert saved.meta["metrics"]["epoch"] == best
    assert same_state(saved.state, states[best - 1])


def test_validation_measures_what_it_says() -> None:
    """The natural accuracy in the log is that of the saved network on the validation part."""
    checkpoint = Checkpoint.read(trained("at"))
    metrics = checkpoint.meta["metrics"]
    x, y = next(digits().val.batches(len(digits().val)))
    natural = (checkpoint.build()(x).argmax(1) == y).float().mean().item()
    assert metrics["val_natural"] == pytest.approx(natural)
    assert metrics["val_robust"] <= metrics["val_natural"]


# ---------------------------------------------------------------- interruption


@pytest.mark.parametrize(
    ("method", "at"),
    [*((method, 5) for method in MOST), *(("cifs", at) for at in (1, 3, 4, 6))],
    ids=str,
)
def test_a_run_goes_on_after_ctrl_c_as_if_nothing_had_been(
    method: str, at: int, tmp_path: Path
) -> None:
    out = tmp_path / "net.pt"
    interrupted(method, out, at)
    assert sorted(contents(tmp_path)) == ["net.pt.csv", "net.pt.partial"]
    network = run(method, out, resume=True)
    assert same_run(out, trained(method))
    assert same_state(network.state_dict(), load(trained(method)).state_dict())
    assert sorted(contents(tmp_path)) == ["net.pt", "net.pt.csv"]


@pytest.mark.parametrize(("at", "epochs"), [(1, 0), (5, 1)])
def test_what_an_interrupted_run_leaves_is_a_checkpoint_too(
    at: int, epochs: int, tmp_path: Path
) -> None:
    """Of the best network so far, or of the one at the start."""
    flat = {"schedule_shape": "flat"}  # of a schedule's rates the first epoch's depend on all
    partial = interrupted("cifs", tmp_path / "net.pt", at, **flat)
    checkpoint = Checkpoint.read(partial)
    assert [row["epoch"] for row in checkpoint.meta["history"]] == list(range(1, epochs + 1))
    run("cifs", tmp_path / "one.pt", epochs=1, **flat)
    start = State.start(tiny_job("cifs", tmp_path / "new.pt"), "cpu").network.state_dict()
    expected = Checkpoint.read(tmp_path / "one.pt").state if epochs else start
    assert same_state(checkpoint.state, expected)
    assert same_state(load(partial).state_dict(), expected)
    options = {"attack": "pgd-1", "attacks": "fgsm", "replicates": 20, "progress": False}
    assert len(cs.compare([partial], digits(), **options).training) == epochs


def test_resume_begins_where_there_is_nothing_and_rests_where_all_is_done(tmp_path: Path) -> None:
    run("at", tmp_path / "net.pt", resume=True)
    assert same_run(tmp_path / "net.pt", trained("at"))
    before = contents(tmp_path)
    network = run("at", tmp_path / "net.pt", resume=True)
    assert contents(tmp_path) == before
    assert same_state(network.state_dict(), load(tmp_path / "net.pt").state_dict())


def test_a_run_stopped_between_its_last_two_writes_goes_on(tmp_path: Path) -> None:
    state = State.start(tiny_job("cifs", tmp_path / "net.pt"), "cpu")
    for epoch in range(2):
        row = {"epoch": epoch + 1} | train_epoch(state, epoch, tqdm(disable=True))
        state.record(row | validate(state) | {"seconds": 0.0})
    state.save()
    run("cifs", tmp_path / "net.pt", resume=True)
    assert same_run(tmp_path / "net.pt", trained("cifs"))
    assert not (tmp_path / "net.pt.partial").exists()


def history(partial: Path) -> list[dict[str, Any]]:
    return Checkpoint.read(partial).meta["history"]


@pytest.mark.parametrize(
    ("out", "foreign"),
    [
        ("b", ".bashrc"),
        ("b", ".b"),
        ("at.pt", ".at.pt.swp"),
        ("at.pt", ".at.pt2-draft.txt"),
        ("net", ".net-notes.txt"),
    ],
)
def test_resuming_leaves_other_hidden_files_alone(out: str, foreign: str, tmp_path: Path) -> None:
    (tmp_path / foreign).write_text("mine")
    run("standard", tmp_path / out, data=digits(2), epochs=1, resume=True)
    assert (tmp_path / foreign).read_text() == "mine"


def test_resuming_beside_a_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    run("standard", tmp_path / "g", data=digits(2), epochs=1, resume=True)
    assert sorted(contents(tmp_path)) == [".git", "g", "g.csv"]


# ---------------------------------------------------------------- randomness


@pytest.mark.parametrize("method", MOST)
def test_global_randomness_is_neither_used_nor_touched(method: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    with randomness_untouched():
        run(method, tmp_path / "net.pt", crop=1, flip=True)
    torch.manual_seed(8)
    run(method, tmp_path / "again.pt", crop=1, flip=True)
    assert same_run(tmp_path / "net.pt", tmp_path / "again.pt")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    run("at", tmp_path / "net.pt", seed=1)
    assert not same_run(tmp_path / "net.pt", trained("at"))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("method", ["AT", "cif", ""])
def test_a_method_that_is_none(method: str, tmp_path: Path) -> None:
    words = "at, fat, mart, standard, trades, at-warm, cas, cifs"
    with mistake(f"no recipe {method!r}", words):
        run(method, tmp_path / "net.pt")
    with mistake("digits-resnet18-AT"):
        run("digits-resnet18-AT", tmp_path / "net.pt")


@pytest.mark.parametrize("there", ["net.pt", "net.pt.partial"])
def test_what_is_there_is_not_overwritten(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with mistake(there, "--resume"):
        run("at", tmp_path / "net.pt")
    assert contents(tmp_path) == {there: b"mine"}


OTHER: dict[str, tuple[str, dict[str, Any], str]] = {
    "method": ("cifs", {}, "recipe"),
    "images": ("at", {"images": 40}, "data"),
    "precision": ("at", {"precision": "bf16"}, "recipe"),
    "start": ("at", {"attack_start": 0.1}, "recipe"),
    "seed": ("at", {"seed": 1}, "seed"),
    "width": ("at", {"width": 1}, "recipe"),
    "epochs": ("at", {"epochs": 3}, "recipe"),
    "lr": ("at", {"lr": 0.01}, "recipe"),
    "data": ("at", {"data": digits(3)}, "data"),
}


@cache
def stopped() -> Path:
    """Return the state of an interrupted run, which no test may change."""
    return interrupted("at", trained("at").with_name("stopped") / "at-4.pt")


AVERAGED = {"averaging.kind": "ema", "averaging.start": 0, "precision": "fp16"}
PROGRESS = [f"progress/{part}" for part in ("network", "optimizer", "scaler", "average")]


@cache
def averaged() -> Path:
    """Return the same of a run with everything that a run can have."""
    return interrupted("cifs", trained("at").with_name("averaged") / "cifs.pt", **AVERAGED)


def spoil(part: str, folder: Path, *value: Any) -> dict[str, bytes | None]:
    """Replace a part of an interrupted run's state, or leave it out; return the folder's files."""
    whole = load_tensors(averaged())
    inner, keys = whole, part.split("/")
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    if value:
        inner[keys[-1]] = value[0]
    torch.save(whole, folder / "net.pt.partial")
    return contents(folder)


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("complete", [False, True], ids=["interrupted", "complete"])
def test_a_run_does_not_go_on_with_other_settings(
    other: str, complete: bool, tmp_path: Path
) -> None:
    method, changes, words = OTHER[other]
    file = trained("at") if complete else stopped()
    for path in (file, file.with_name("at-4.pt.csv")):
        shutil.copy(path, tmp_path / path.name.replace("at-4", "net"))
    before = contents(tmp_path)
    with mistake("other settings", words):
        run(method, tmp_path / "net.pt", resume=True, **changes)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("part", ["meta", "state", "progress", "meta/history", *PROGRESS])
@pytest.mark.parametrize("value", [None, {}, [{}]], ids=str)
def test_a_damaged_state_is_refused(part: str, value: Any, tmp_path: Path) -> None:
    before = spoil(part, tmp_path, value)
    with mistake("net.pt.partial", "other settings" if part == "meta" else "damaged"):
        run("cifs", tmp_path / "net.pt", resume=True, **AVERAGED)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "part", ["meta", "state", "progress", "meta/history", "meta/settings", *PROGRESS]
)
def test_an_incomplete_state_is_refused(part: str, tmp_path: Path) -> None:
    before = spoil(part, tmp_path)
    with mistake("net.pt.partial"):
        run("cifs", tmp_path / "net.pt", resume=True, **AVERAGED)
    assert contents(tmp_path) == before


def test_a_state_cut_short_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / "net.pt.partial"
    partial.write_bytes(stopped().read_bytes()[:-100])
    with mistake("damaged"):
        run("at", tmp_path / "net.pt", resume=True)


def test_a_class_without_training_images(tmp_path: Path) -> None:
    data = digits(3)
    assert data.train is not None
    few = data.train.subset((data.train.labels != 1).nonzero().flatten())
    with mistake("'1'", "no training images"):
        run(
            "at",
            tmp_path / "net.pt",
            data=Dataset("digits", data.classes, data.test, few, data.val),
        )
    assert not contents(tmp_path)


def test_data_without_a_training_part(tmp_path: Path) -> None:
    test = digits().test
    with mistake("training"):
        run("at", tmp_path / "net.pt", data=(test.images, test.labels))


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    data = digits(2)
    assert data.train is not None
    odd = Dataset("digits", data.classes, data.test, data.train.subset(torch.arange(17)), data.val)
    run("standard", tmp_path / "net.pt", data=odd, epochs=1)


def test_colour_images_of_uneven_sides(tmp_path: Path) -> None:
    x = torch.randint(256, (12, 3, 9, 6), dtype=torch.uint8)
    part = MemorySplit(x, torch.arange(12) % 2)
    network = run(
        "cas",
        tmp_path / "net.pt",
        data=Dataset("colour", ("a", "b"), part, part, part),
        epochs=1,
        crop=2,
    )
    assert Checkpoint.read(tmp_path / "net.pt").image == (3, 9, 6)
    assert network(x / 255).shape == (12, 2)


@pytest.mark.parametrize(
    ("batch_size", "epoch"), [(2, 1), (24, 2)], ids=["first epoch", "second epoch"]
)
def test_a_loss_that_is_no_number(batch_size: int, epoch: int, tmp_path: Path) -> None:
    with mistake(
        f"no longer a number in epoch {epoch}",
        "learning rate",
        f"state of epoch {epoch - 1}",
        ".partial",
    ):
        run("at", tmp_path / "net.pt", lr=1e6, weight_decay=1, batch_size=batch_size)
    assert sorted(contents(tmp_path)) == ["net.pt.csv", "net.pt.partial"]
    assert len(history(tmp_path / "net.pt.partial")) == epoch - 1


def test_weights_that_are_no_numbers_do_not_become_a_checkpoint(tmp_path: Path) -> None:
    state = State.start(tiny_job("at", tmp_path / "net.pt"), "cpu")
    state.network.linear.weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="no longer numbers after epoch 1: lower the learning rate"):
        state.record(epoch_row(state, 1))
    assert state.history == []
    assert state.best == {}


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with mistake("file"):
        run("at", tmp_path / "file" / "net.pt", epochs=10**6)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_failed_write_keeps_the_epochs_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []

    def full(handle: int) -> None:
        writes.append(handle)
        if len(writes) == 5:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, mistake("No space left"):
        patched.setattr(os, "fsync", full)
        run("at", tmp_path / "net.pt")
    assert len(history(tmp_path / "net.pt.partial")) == 1
    run("at", tmp_path / "net.pt", resume=True)
    assert same_run(tmp_path / "net.pt", trained("at"))
    assert sorted(contents(tmp_path)) == ["net.pt", "net.pt.csv"]


def test_the_backbone_starts_with_the_same_weights_whatever_the_gates(tmp_path: Path) -> None:
    """Methods of one seed are compared on one initial backbone: gates are drawn after it."""
    seen: dict[str, dict[str, Tensor]] = {}
    for method in ("at", "cifs"):
        state = State.start(tiny_job(method, tmp_path / "net.pt"), "cpu").network.state_dict()
        seen[method] = {
            name.removeprefix("cnn."): value
            for name, value in state.items()
            if "selectors" not in name
        }
    assert same_state(seen["at"], seen["cifs"])


@pytest.mark.parametrize("resume", [False, True])
def test_a_table_beside_out_is_not_overwritten(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "net.pt.csv").write_text("mine")
    with mistake("net.pt.csv exists"):
        run("standard", tmp_path / "net.pt", resume=resume)
    assert contents(tmp_path) == {"net.pt.csv": b"mine"}
