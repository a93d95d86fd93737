"""Label leakage: studies of gates whose leak is known, and what is read from masks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy import ndarray

from channelscope.analyses.leakage import (
    compute_leakage,
    describe_leakage,
    draw_leakage,
    leakage_data,
    read_class,
)
from channelscope.figures.paper import COLOURS
from channelscope.statistics.intervals import wilson
from helpers.expect import mistake
from helpers.figures import rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

K, N = 4, 40
LABELS = np.arange(N) % K
WRONG = (LABELS + 1 + np.arange(N) // K % (K - 1)) % K
ANALYSES = ("leakage", "robustness")
GATES = ("layer4.0", "layer4.1")
RESULT = make_result(
    synthetic_study(("at", "cifs"), ("bird", "cat", "dog"), gates=GATES, channels=7), *ANALYSES
)


def leakage_of(told: ndarray, masks: dict[str, ndarray]) -> dict[tuple[str, str], float]:
    """Return (layer, measure) -> value of a model that answers class 0 unless its gates are told.

    Args:
        told: the class that it answers when told class k (K,).
        masks: by what the gate is told.
    """
    arrays: dict[str, ndarray] = {"labels": LABELS}
    arrays |= {"told_labels/true": LABELS, "told_labels/wrong": WRONG}
    for data in COLOURS:
        arrays[f"answers/0/{data}"] = np.zeros(N, np.int64)
        for name, labels in (("true", LABELS), ("wrong", WRONG)):
            arrays[f"told_answers/0/{data}/{name}"] = told[labels]
        arrays |= {f"masks/0/{data}/{name}/gate": mask for name, mask in masks.items()}
    known = {"net": {"layers": ["gate"]}}
    study = KeptStudy(arrays, known, tuple("abcd"), {"level": 0.95})
    rows: list[dict[str, Any]] = compute_leakage(study)["leakage"]
    natural, adversarial = (
        {(row["layer"], row["measure"]): row["value"] for row in rows if row["data"] == data}
        for data in COLOURS
    )
    assert natural == adversarial
    return natural


def test_a_gate_that_spells_the_label_out_is_read_and_followed() -> None:
    same = np.tile(np.eye(K)[0], (N, 1))
    masks = {"none": same, "true": np.eye(K)[LABELS], "wrong": np.eye(K)[WRONG]}
    assert leakage_of(np.arange(K), masks) == {
        ("", "accuracy"): 1 / K,
        ("", "accuracy_true"): 1,
        ("", "accuracy_wrong"): 0,
        ("", "follows_wrong"): 1,
        ("", "follows_untold"): (WRONG == 0).mean(),
        ("gate", "readable"): 1 / K,
        ("gate", "readable_true"): 1,
        ("gate", "chance"): 1 / K,
    }


def test_a_gate_with_a_constant_mask_tells_nothing() -> None:
    constant = np.tile(np.linspace(1, 0, K), (N, 1))
    masks = {"none": constant, "true": constant, "wrong": constant}
    leakage = leakage_of(np.zeros(K, np.int64), masks)
    assert leakage["", "follows_wrong"] == leakage["", "follows_untold"]
    accuracies = [leakage["", f"accuracy{end}"] for end in ("", "_true", "_wrong")]
    assert accuracies == [1 / K] * 3
    assert leakage["gate", "readable"] == leakage["gate", "readable_true"] == 1 / K


def test_gates_that_take_no_labels_are_told_none() -> None:
    study = synthetic_study(("at", "fsr"), ("bird", "cat"), gates=("layer4",), channels=5)
    arrays = {
        name: array for name, array in study.arrays.items() if not name.startswith("told_answers/1")
    }
    rows = make_result(replace(study, arrays=arrays), "leakage").leakage
    assert set(rows_of(rows, model="fsr")["measure"]) == {"readable", "chance"}
    assert "follows_wrong" in set(rows_of(rows, model="at")["measure"])


def test_shares_have_wilsons_intervals_and_chance_none() -> None:
    rows = RESULT.leakage
    measured = rows[rows["measure"] != "chance"]
    for value, low, high in measured[["value", "low", "high"]].to_numpy():
        wanted = wilson(round(90 * value), 90)
        assert (low, high) == pytest.approx((wanted.low, wanted.high))
        assert low < high
    assert rows_of(rows, measure="chance")[["low", "high"]].isna().all(axis=None)


def test_models_without_gates_have_no_rows() -> None:
    assert make_result(synthetic_study(("at",)), *ANALYSES).leakage.empty


# ---------------------------------------------------------------- reading a class


def test_a_class_is_read_from_masks_that_hold_it_and_from_no_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    speaking = rng.normal(size=(300, 8)) + 5 * np.eye(8)[labels]
    noise = rng.normal(size=(300, 8))
    assert (read_class(speaking, labels) == labels).mean() > 0.97
    assert (read_class(noise, labels) == labels).mean() == pytest.approx(1 / 3, abs=0.1)
    assert (read_class(1e-9 * speaking, labels) == labels).mean() > 0.97  # scale does not matter


def test_no_image_is_read_by_what_has_seen_it() -> None:
    """With an image number in its mask, each could be told from all others: but by memory alone."""
    labels = np.random.default_rng(0).integers(0, 2, 60)
    assert (read_class(np.eye(60), labels) == labels).mean() < 0.7


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [1, 1, 1, 1]], ids=str)
def test_nothing_is_read_of_too_few_images(labels: list[int]) -> None:
    assert (read_class(np.ones((len(labels), 2)), np.array(labels)) == -1).all()


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize("model", ["at", "cifs"])
def test_every_measure_is_drawn_and_beside_it_what_chance_gives(model: str) -> None:
    figure = draw_leakage(RESULT)
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left") == model]
    words = [label.get_text() for label in ax.get_yticklabels()]
    lines = {
        ("", "accuracy"): (1, None),
        ("", "accuracy_true"): (2, None),
        ("", "accuracy_wrong"): (3, None),
        ("", "follows_wrong"): (5, "follows_untold"),
        ("layer4.0", "readable"): (7, "chance"),
        ("layer4.0", "readable_true"): (8, "chance"),
        ("layer4.1", "readable"): (10, "chance"),
        ("layer4.1", "readable_true"): (11, "chance"),
    }
    assert len(words) == 12
    assert words[1] == "told nothing (as in use)"
    assert words[6] == "true class from mask, layer4.0"
    ticks = [tick.tick1line.get_visible() for tick in ax.yaxis.get_major_ticks()]
    assert [place for place, visible in enumerate(ticks) if not visible] == [0, 4, 6, 9]
    for bars, data in zip(ax.containers, COLOURS, strict=True):
        rows = rows_of(RESULT.leakage, model=model, data=data)
        values = rows.set_index(["layer", "measure"])["value"]
        x, y = bars.lines[0].get_data()
        assert to_hex(bars.lines[0].get_color()) == COLOURS[data].lower()
        np.testing.assert_array_equal(x, values.loc[[*lines]])
        assert [round(place) for place in y] == [place for place, _ in lines.values()]
        (strokes,) = [
            line for line in ax.lines if line.get_marker() == "|" and line.get_ydata()[0] == y[0]
        ]
        chance = [
            np.nan if name is None else values[layer, name]
            for (layer, _), (_, name) in lines.items()
        ]
        np.testing.assert_array_equal(strokes.get_xdata(), chance)


def test_a_gate_that_takes_no_label_is_not_said_to_be_told_one() -> None:
    """Such as that of FSR: only its mask is read."""
    rows = RESULT.leakage
    untold = rows[(rows["layer"] == "layer4.0") & (rows["measure"] != "readable_true")]
    words = leakage_data(replace(RESULT, tables={"leakage": untold}))["words"]
    assert set(words) == {"true class from mask, layer4.0", "gate told nothing"}


def test_the_alternative_text_says_what_natural_images_tell() -> None:
    rows = rows_of(RESULT.leakage, model="at", data="natural").set_index(["layer", "measure"])
    accuracy, readable = (
        rows.loc[key, "value"] for key in (("", "accuracy"), ("layer4.1", "readable"))
    )
    said = describe_leakage(leakage_data(RESULT))
    assert said.startswith(f"at: right with nothing told {100 * accuracy:.1f} %")
    assert f"class read from the mask at layer4.1 {100 * readable:.1f} %" in said


def test_without_gates_a_sentence_says_what_to_do() -> None:
    with mistake("compare one of CIFS or CAS"):
        draw_leakage(make_result(synthetic_study(("at",)), *ANALYSES))
