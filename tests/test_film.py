"""Films of real trainings: frames, what they agree with, the command, a raised learning rate."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import channelscope as cs
from channelscope.cli import main
from channelscope.study.film import read_frames
from channelscope.training import Recipe
from channelscope.weights import Checkpoint
from helpers.expect import mistake, same_state
from helpers.figures import rows_of
from helpers.processes import read_result
from helpers.runs import digits, interrupted, run, trained, write_npz

FAST: dict[str, Any] = {"attack": "pgd-2", "replicates": 20, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two trainings, of four and of two epochs, all kept."""
    folder = tmp_path_factory.mktemp("runs")
    run("at", folder / "at.pt", epochs=4, keep_epochs=1)
    run("cifs", folder / "cifs.pt", keep_epochs=1)
    return folder


@cache
def film_of(path: Path) -> cs.Result:
    return cs.film(path, digits(), **FAST)


def test_every_kept_epoch_is_filmed_beside_the_log(folder: Path) -> None:
    film = film_of(folder / "at.pt").film
    for measure in ("natural", "robust", "cross_class", "training", "val_robust"):
        assert rows_of(film, measure=measure)["epoch"].tolist() == [1, 2, 3, 4]
    log = pd.read_csv(folder / "at.pt.csv")
    for measure, column in (("training", "accuracy"), ("val_robust", "val_robust")):
        np.testing.assert_allclose(rows_of(film, measure=measure)["estimate"], log[column])
    assert (film.loc[film["measure"] == "robust", "low"] >= 0).all()
    overfitting = film_of(folder / "at.pt").film_overfitting
    assert overfitting["best"].tolist() == [log["val_robust"].idxmax() + 1]
    meta = film_of(folder / "at.pt").meta
    assert list(meta["models"]) == ["at"]
    assert list(meta["models"]["at"]["digests"]) == ["1", "2", "3", "4"]


def test_a_frame_is_measured_as_a_comparison_and_an_account_measure_its_network(
    folder: Path,
) -> None:
    film = film_of(folder / "at.pt").film
    rows = rows_of(film[film["epoch"] == 4]).set_index("measure")["estimate"]
    network = {"net": folder / "at.pt.epoch-4"}
    comparison = cs.compare(network, digits(), attacks=[], **FAST)
    alignment = rows_of(comparison.alignment, **{"class": "all"}).set_index("measure")["value"]
    for name in ("cosine_centred", "nr_mass_natural", "nr_mass_adversarial", "nr_fall"):
        assert rows[name] == pytest.approx(alignment[name], nan_ok=True)
    robust = rows_of(comparison.robustness, attack="pgd-2", **{"class": "all"})["accuracy"]
    assert rows["robust"] == robust.item()
    account = cs.damage(network, digits(), scorers=(), **FAST)
    kinds = rows_of(account.kinds, masks="attached", **{"class": "all"}).set_index("kind")
    shares = kinds.loc[["NR rises", "PR rises", "PR falls", "NR falls", "counter"], "share"]
    for kind, share in (shares / shares[:-1].sum()).items():  # of what lowers the margins
        assert rows[f"damage {kind}"] == pytest.approx(share, abs=1e-4)


def test_gates_are_filmed(folder: Path) -> None:
    result = film_of(folder / "cifs.pt")
    network = Checkpoint.read(folder / "cifs.pt.epoch-2").build().eval()
    x, y = digits().test.images.float() / 255, digits().test.labels
    with torch.no_grad():
        probed = network.probed(x)
    for gate, logits in probed.probes.items():
        share = (logits.argmax(1) == y).float().mean().item()
        rows = rows_of(result.film, measure=f"{gate}.probe_natural").set_index("epoch")
        assert rows.loc[2, "estimate"] == pytest.approx(share)
        assert 0 < rows_of(result.film, measure=f"{gate}.mask_natural")["estimate"].min() <= 1
    assert "film-gates" in result.figures


def test_two_copies_of_a_run_show_no_difference(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("at.pt*"):
        shutil.copy(path, tmp_path / path.name)
    runs = {"at": folder / "at.pt", "copy": tmp_path / "at.pt"}
    result = cs.film(runs, digits(), **FAST)
    values = result.film_differences["estimate"].dropna()
    assert len(values) > 5
    assert (values == 0).all()
    assert (result.film_differences["p"].dropna() == 1).all()


def test_a_film_goes_on_after_a_kill_and_is_the_same_to_the_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from channelscope.study.measuring import Measurer

    measure, calls = Measurer.measure_attacked, []

    def stop(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    options = FAST | {"formats": ["png"]}
    cs.film(folder / "at.pt", digits(), out=tmp_path / "whole", **options)
    monkeypatch.setattr(Measurer, "measure_attacked", stop)
    with pytest.raises(KeyboardInterrupt):
        cs.film(folder / "at.pt", digits(), out=tmp_path / "film", **options)
    assert (tmp_path / "film.partial").is_dir()
    cs.film(folder / "at.pt", digits(), out=tmp_path / "film", batch_size=7, **options)
    assert not (tmp_path / "film.partial").exists()
    whole, again = read_result(tmp_path / "whole"), read_result(tmp_path / "film")
    tables = [name for name in whole if name.endswith((".csv", ".npz"))]
    assert tables
    assert all(whole[name] == again[name] for name in tables)


def test_frames_are_the_kept_epochs_and_the_best_one(tmp_path: Path) -> None:
    out = tmp_path / "at.pt"
    run("at", out, epochs=4, keep_epochs=3)
    best = Checkpoint.read(out).meta["metrics"]["epoch"]
    networks, frames = read_frames(out)
    assert [epoch for _, epoch in frames.values()] == sorted({3, best})
    last = networks[f"at epoch {max(3, best)}"]
    assert len(last.meta["history"]) == 4
    half = Checkpoint.read(out).to_half()
    of_best = networks[f"at epoch {best}"]
    if best != 3:
        assert same_state(dict(of_best.to_half().state), dict(half.state))


def test_a_run_that_has_not_ended_is_filmed_as_far_as_it_is(tmp_path: Path) -> None:
    interrupted("at", tmp_path / "net.pt", 8, epochs=4, keep_epochs=1)
    _, frames = read_frames({"now": tmp_path / "net.pt"})
    assert list(frames) == ["now epoch 1", "now epoch 2"]


def test_runs_that_cannot_be_filmed_are_refused(folder: Path, tmp_path: Path) -> None:
    with mistake("runs", "no kept epochs", "--keep-epochs"):
        cs.film(trained("at"), digits())
    with mistake("runs", "no kept epochs"):
        cs.film(tmp_path / "none" / "at.pt", digits())
    with mistake("runs", "there is none"):
        cs.film([], digits())
    with mistake("runs", "same file name"):
        cs.film([folder / "at.pt", tmp_path / "at.pt"], digits())
    shutil.copy(folder / "at.pt", tmp_path / "at.pt")
    shutil.copy(folder / "cifs.pt.epoch-1", tmp_path / "at.pt.epoch-1")
    with mistake("runs", "at.pt.epoch-1", "other settings"):
        cs.film(tmp_path / "at.pt", digits())
    (tmp_path / "at.pt").unlink()
    with mistake("runs", "one kept epoch alone"):
        cs.film(tmp_path / "at.pt", digits())


@pytest.mark.slow
def test_the_command_films_runs_and_prints_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = f"--arch resnet10 --width 2 --epochs 2 --data {write_npz(tmp_path, 4)} -q"
    out = tmp_path / "at.pt"
    assert main(f"train --method at {tiny} --keep-epochs 1 --out {out}".split()) == 0
    capsys.readouterr()
    film = f"film {out} --labels AT --attack pgd-2 --replicates 20 --formats png -q"
    assert main(f"{film} --out {tmp_path / 'film'}".split()) == 0
    printed = capsys.readouterr().out
    assert "AT: Robust accuracy (pgd-2) is" in printed
    assert "AT: no change (0 of" in printed
    assert "Cross-class not judged" in printed
    assert (tmp_path / "film" / "figures" / "film.png").exists()
    assert main(f"figures {tmp_path / 'film'} --formats png -q".split()) == 0
    assert main(f"{film} --json --out {tmp_path / 'film'}".split()) == 0
    assert '"film_changes"' in capsys.readouterr().out
    assert main(f"film {out} --labels a b".split()) == 2
    assert main(["film", str(tmp_path / "none.pt")]) == 2
    assert "no kept epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_raised_learning_rate_is_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From epoch 21 on it is thirty times higher; a film that is not told locates the epoch."""
    monkeypatch.setattr(Recipe, "lr_at", lambda _, epoch: 1.0 if epoch >= 20 else 0.03)
    data = digits(10, times=6)  # of fewer, the noise after it makes jumps of its own
    options = {"width": 4, "epochs": 30, "batch_size": 96, "keep_epochs": 1}
    run("standard", tmp_path / "net.pt", data=data, schedule_shape="flat", **options)
    result = cs.film(tmp_path / "net.pt", data, **FAST)
    changes = rows_of(result.film_changes, verdict="change")
    assert changes["epoch"].mode().tolist() == [21]
    assert changes["epoch"].between(20, 24).mean() > 0.5
