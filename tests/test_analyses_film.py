"""The film of a training: planted changes, copies, overfitting, cross-class features, figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from channelscope.analyses.film import draw_film, film_data, judge_film
from channelscope.files import write_digests
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import dashed_lines, join_texts, rows_of
from helpers.films import REPLICATES, Curve, flat, hump_at, jump_at, make_film, run_film
from helpers.studies import replace_tables

# ----------------------------------------------------------------------------------- changes


def test_a_planted_change_is_located_in_what_it_changes_and_nowhere_else() -> None:
    result = run_film(make_film({"at": 1}, change=jump_at(17)))
    changes = result.film_changes.set_index("measure")
    changed = changes[changes["verdict"] == "change"]
    assert {"natural", "robust", "nr_mass_adversarial"} <= set(changed.index)
    assert set(changed["epoch"]) == {17}
    assert set(changed["before"]) == {16}
    assert not set(changed.index) & {"cross_class", "nr_mass_natural", "training"}
    assert changed.loc["robust", "step"] == pytest.approx(-0.2, abs=0.05)
    assert (changed["p"] < 0.05).all()


def test_a_training_without_a_change_has_none() -> None:
    result = run_film(make_film({"at": 1}, epochs=range(1, 21)))
    assert set(result.film_changes["verdict"]) == {"no change"}


def test_too_few_epochs_are_not_judged() -> None:
    result = run_film(make_film({"at": 1}, change=jump_at(5), epochs=range(1, 10)))
    assert set(result.film_changes["verdict"]) == {"not judged"}
    assert result.film_changes["p"].isna().all()


def test_a_significant_trifle_is_no_change() -> None:
    trifle = run_film(make_film({"at": 1}, change=lambda e: 0.03 * (e >= 17), scatter=0))
    changes = trifle.film_changes.set_index("measure")
    assert changes.loc["nr_mass_adversarial", "p"] < 0.05
    assert changes.loc["nr_mass_adversarial", "verdict"] == "no change"


# ------------------------------------------------------------------------------- differences


def test_copies_of_a_run_do_not_differ_and_other_runs_do() -> None:
    result = run_film(make_film({"at": 1, "copy": 1}))
    assert len(result.film_differences) == len(result.film["measure"].unique()) - 3, "of the log"
    assert (result.film_differences["estimate"] == 0).all()
    assert (result.film_differences["p"] == 1).all()
    first, second = (rows_of(result.film, run=run).drop(columns="run") for run in ("at", "copy"))
    np.testing.assert_array_equal(first.to_numpy(str), second.to_numpy(str))
    both = make_film({"at": 1, "raised": 2}, change=lambda _: 0.0)
    for name, (run, _) in both.settings["frames"].items():
        if run == "raised":
            index = both.models.index(name)
            both.arrays[f"activations/{index}/adversarial/layer4"] *= np.linspace(0.5, 1.5, 12)  # type: ignore[index]
    different = run_film(both).film_differences.set_index("measure")
    assert different.loc["nr_mass_adversarial", "p"] < 0.05
    assert different.loc["nr_mass_natural", "p"] > 0.05
    assert set(different["other"]) == {"at"}


# ------------------------------------------------------------- overfitting and cross-class


def test_overfitting_is_the_fall_from_the_best_validated_epoch_to_the_last() -> None:
    study = make_film({"at": 3}, robust=hump_at(12))
    result = run_film(study)
    (row,) = result.film_overfitting.to_dict("records")
    history = pd.DataFrame(study.history(study.models[-1])).set_index("epoch")
    assert row["best"] == history["val_robust"].idxmax()
    assert (row["last"], row["verdict"]) == (24, "overfitting")
    assert row["fall"] == pytest.approx(row["robust_best"] - row["robust_last"])
    assert row["low"] < row["fall"] < row["high"]
    assert row["val_best"] == history["val_robust"].max()
    assert row["training_last"] == history["accuracy"].loc[24]
    robust = rows_of(result.film, measure="robust").set_index("epoch")["estimate"]
    assert row["robust_last"] == robust.loc[24]
    steady = run_film(make_film({"at": 3}, robust=lambda e: e / 30))
    assert steady.film_overfitting["verdict"].tolist() != ["overfitting"]
    unlogged = make_film({"at": 3})
    for known in unlogged.known.values():
        for logged in known["training"]:
            logged["val_robust"] = np.nan
    assert run_film(unlogged).film_overfitting.empty


@pytest.mark.parametrize(
    ("shared", "verdict"),
    [
        (hump_at(12), "supported"),
        (lambda e: e / 15, "not supported"),  # they still rise when robustness falls
        (flat, "inconclusive"),
    ],
)
def test_cross_class_features_are_judged_where_robustness_overfits(
    shared: Curve, verdict: str
) -> None:
    result = run_film(make_film({"at": 3}, robust=hump_at(12), shared=shared))
    (row,) = result.verdicts.to_dict("records")
    assert (row["claim"], row["models"], row["verdict"]) == ("Cross-class", "at", verdict)


def test_cross_class_features_are_not_judged_without_overfitting() -> None:
    result = run_film(make_film({"at": 3, "at2": 4}, shared=hump_at(12)))
    assert set(result.verdicts["verdict"]) == {"not judged"}
    assert result.verdicts["statement"].str.contains("no robust overfitting").all()


def test_epochs_that_scatter_alone_rarely_support_the_claim() -> None:
    """Cross-class features that know nothing of the best epoch: decided in at most 5 %."""
    decided = 0
    rng = np.random.default_rng(0)
    film = make_film({"at": 3}, robust=hump_at(9), epochs=range(1, 17))
    for _ in range(200):
        film.memory.clear()
        for label in film.models:
            images = rng.normal(0, 0.01, 1 + REPLICATES)
            images[0] = 0
            curve = 0.3 + rng.normal(0, 0.03) + images
            film.memory["film", label] = {"cross_class": curve}
        (verdict,) = judge_film(film)
        assert verdict.verdict != "not judged"
        decided += verdict.verdict != "inconclusive"
    assert decided <= 0.05 * 200 + 2 * np.sqrt(0.05 * 0.95 * 200)


def test_runs_that_differ_in_their_seed_are_judged_together() -> None:
    result = run_film(make_film({"a": 3, "b": 4, "c": 5}, robust=hump_at(12), shared=hump_at(12)))
    (row,) = result.verdicts.to_dict("records")
    assert (row["models"], row["seeds"], row["verdict"]) == ("a, b, c", 3, "supported")


# ----------------------------------------------------------------------------------- figures


def test_figures_show_every_run_its_changes_and_its_best_epoch() -> None:
    result = run_film(make_film({"at": 1, "b $x_1$": 2}, change=jump_at(17)))
    drawn = film_data(result)
    assert set(drawn["run"]) == {"at", "b $x_1$"}
    assert set(drawn.loc[drawn["changed"] == 1, "epoch"]) == {17}
    best = result.film_overfitting.set_index("run")["best"]
    assert set(drawn.loc[(drawn["best"] == 1) & (drawn["run"] == "at"), "epoch"]) == {best["at"]}
    figure = draw_film(result)
    panel = figure.axes[0]
    assert dashed_lines(panel).count(17) == 4  # natural and robust accuracy of two runs
    robust = rows_of(drawn, run="at", measure="robust")
    assert any(np.array_equal(line.get_ydata(), robust["estimate"]) for line in panel.lines)
    assert "PGD-10" in join_texts(figure)
    FigureCanvasAgg(figure).draw()


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": (1, 2)},
        {"epochs": (1, 2, 3), "gates": ("layer4.0", "layer4.1")},
        {"epochs": range(1, 16), "scatter": 0.0},
    ],
)
def test_films_of_any_kind_are_drawn_described_saved_and_read(
    options: dict[str, Any], tmp_path: Path
) -> None:
    result = run_film(make_film({"at": 1, "cifs": 2}, **options))
    names = ["film", "film-gates"] if "gates" in options else ["film"]
    assert sorted(result.figures) == names
    for name in names:
        FigureCanvasAgg(result.plot(name)).draw()
        assert "at: epochs 1 to " in result.caption(name) + describe(result, name)
    result.save(tmp_path / "film", progress=False, formats=["png"])
    loaded = Result.load(tmp_path / "film", "film")
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(table, loaded.tables[name], check_dtype=False)  # type: ignore[arg-type]
    assert "film of at, cifs" in repr(loaded)
    wrong = replace_tables(loaded, film=loaded.film.replace({"run": {"cifs": "other"}}))
    (tmp_path / "wrong").mkdir()
    wrong.write_tables(tmp_path / "wrong")
    write_digests(tmp_path / "wrong")
    with mistake("other runs"):
        Result.load(tmp_path / "wrong")


def describe(result: Result, name: str) -> str:
    """Return the alternative text of a figure."""
    from channelscope.gallery import find_picture

    return find_picture(result, name).alt_text()
