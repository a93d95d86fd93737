"""Accuracy against the weight of the probes in the attacked loss: the table, and its figure."""

from dataclasses import replace

import numpy as np
import pytest

from channelscope.analyses.joint import check_joint, describe_joint, draw_joint, joint_data
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import join_texts, lines_of_model, rows_of
from helpers.studies import KeptStudy, make_result, replace_tables, synthetic_study

BETAS = {"joint0": 0, "joint0.1": 0.1, "joint": 2, "joint1e+03": 1000, "jointinf": np.inf}
CLASSES = ("bird", "cat", "dog")


def attacked(*names: str, models: tuple[str, ...] = ("at", "cifs")) -> KeptStudy:
    """Return a study of two models with further attacks, that break images by chance."""
    study, rng = synthetic_study(("at", "cifs"), CLASSES, channels=2), np.random.default_rng(0)
    further = {
        f"correct/{study.models.index(model)}/{name}": rng.random(len(study.labels)) < 0.6
        for model in models
        for name in names
    }
    study.arrays = {**study.arrays, **further}
    return study


STUDY = attacked(
    *(f"pgd-20:{name}:fixed" for name in BETAS),
    "pgd-20:joint1:detached",
    "pgd-20:joint2:detached",
    "cw-30:joint2",
    "pgd-20:joint-sweep",
)
RESULT = make_result(STUDY)


def test_the_table_has_every_weight_of_attacks_of_several() -> None:
    table = RESULT.joint
    assert set(table["attack"]) == {"pgd-20:fixed", "pgd-20:detached"}
    for model in STUDY.models:
        rows = rows_of(table, model=model, attack="pgd-20:fixed")
        assert rows["beta_atk"].tolist() == sorted(BETAS.values())
        correct = [STUDY.correct(model, f"pgd-20:{name}:fixed") for name in BETAS]
        assert rows["accuracy"].tolist() == [images.mean() for images in correct]
        assert set(rows["worst"]) == {np.all(correct, axis=0).mean()}
        assert set(rows["count"]) == {len(STUDY.labels)}
        assert (rows["low"] < rows["accuracy"]).all()
        assert (rows["accuracy"] < rows["high"]).all()


def test_without_several_weights_for_all_images_there_is_neither_row_nor_figure() -> None:
    single = attacked("pgd-20:joint2", "cw-30:joint1", "pgd-20:joint-sweep")
    cascade = replace(STUDY, settings={**STUDY.settings, "cascade": True}, memory={})
    for study in (single, cascade):
        result = make_result(study)
        assert result.joint.empty
        check_joint(result)
        with mistake("No attack was made at several weights"):
            joint_data(result)


def test_the_figure_draws_the_table_evenly_spaced() -> None:
    figure = draw_joint(RESULT)
    fixed, detached = figure.axes
    assert fixed.get_title(loc="left") == "PGD-20:fixed"
    ticks = [label.get_text() for label in detached.get_xticklabels()]
    assert ticks == ["0", "0.1", "1", "2", "1000", "∞"]
    for index, model in enumerate(STUDY.models):
        rows = rows_of(RESULT.joint, model=model, attack="pgd-20:fixed")
        points, *_, worst = lines_of_model(fixed, RESULT, index)
        np.testing.assert_array_equal(points[:, 1], rows["accuracy"])
        assert np.round(points[:, 0]).tolist() == [0, 1, 3, 4, 5]
        assert set(worst[:, 1]) == set(rows["worst"])
    text = join_texts(figure)
    assert "begun at the image itself" in text
    assert "without the gradient through the gates' masks" in text


def test_the_figure_says_the_weight_of_the_lowest_accuracy() -> None:
    rows = RESULT.joint.assign(accuracy=0.5, worst=0.3)
    rows.loc[rows["beta_atk"] == np.inf, "accuracy"] = 0.4
    said = describe_joint(rows_of(rows, model="at", attack="pgd-20:fixed"))
    assert said.startswith("at, pgd-20:fixed: accuracy from 50.0 % down to 40.0 %")
    assert "at a weight of infinity, 30.0 % in the worst case" in said


@pytest.mark.parametrize(("column", "value"), [("beta_atk", -1.0), ("model", "other")])
def test_tables_that_contradict_the_settings_are_refused(column: str, value: object) -> None:
    changed: Result = replace_tables(RESULT, joint=RESULT.joint.assign(**{column: value}))
    with pytest.raises(ValueError, match=r"weights below 0|'other'"):
        check_joint(changed)
    check_joint(RESULT)
