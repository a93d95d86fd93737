"""Training: tables are the logs; figures draw them and mark the epoch that was kept."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from channelscope.analyses.training import (
    GATE_COLUMNS,
    describe_gates,
    describe_training,
    draw_gates,
    draw_training,
    gates_data,
    training_data,
)
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import (
    ADVERSARIAL,
    NATURAL,
    dashed_lines,
    join_texts,
    lines_of_colour,
    read_texts,
    rows_of,
)
from helpers.studies import make_result, synthetic_study

TRAINED = "training images, as trained on"
LONG = "backbone.encoder.stages.3.blocks.17.activation"
GATES = ("layer4.0", "layer4.1")
STUDY = synthetic_study(("nat", "at"), ("a", "b"), channels=2, gates=GATES)
RESULT = make_result(STUDY, "training")
BARE = make_result(synthetic_study(("nat",), ("a", "b"), channels=2, epochs=0), "training")


def with_tables(result: Result, **tables: Any) -> Result:
    return replace(result, tables={**result.tables, **tables})


def test_the_tables_are_the_logs() -> None:
    assert len(RESULT.training) == 2 * 12
    for model in STUDY.models:
        log = STUDY.history(model)
        rows = rows_of(RESULT.training, model=model)
        for column in ("epoch", "loss", "val_robust", "best"):
            assert rows[column].tolist() == [row[column] for row in log]
        for layer in GATES:
            rows = rows_of(RESULT.gates, model=model, layer=layer)
            for column in GATE_COLUMNS:
                assert rows[column].tolist() == [row[f"{layer}.{column}"] for row in log]
    assert BARE.training.empty
    assert BARE.gates.empty


def test_the_log_has_these_columns_of_each_gate() -> None:
    from channelscope.weights import GATE_LOG

    assert GATE_COLUMNS == GATE_LOG


def test_training_draws_the_log_and_marks_the_best_epoch() -> None:
    figure = draw_training(RESULT)
    for row, model in zip(np.reshape(figure.axes, (2, 2)), STUDY.models, strict=True):
        loss, accuracy = row
        log = rows_of(RESULT.training, model=model)
        np.testing.assert_array_equal(loss.lines[0].get_xydata(), log[["epoch", "loss"]])
        for colour, column in ((NATURAL, "val_natural"), (ADVERSARIAL, "val_robust")):
            (points,) = lines_of_colour(accuracy, colour)
            np.testing.assert_array_equal(points, log[["epoch", column]])
        (trained,) = [line for line in accuracy.lines if line.get_linestyle() == ":"]
        np.testing.assert_array_equal(trained.get_xydata(), log[["epoch", "accuracy"]])
        assert dashed_lines(loss) == dashed_lines(accuracy) == [10]
    assert describe_training(training_data(RESULT)).endswith("epoch 10 was kept.")


def test_training_says_how_images_were_attacked_and_whether_gates_were_told() -> None:
    settings: dict[str, Any] = {"recipe": {"attack": {"steps": 3, "eps": 8 / 255}}}

    def change(kind: str, **settings_of_nat: Any) -> Result:
        gates = [{"layer": "layer4.1", "kind": kind}]
        models = {
            name: {**known, "settings": settings, "gates": gates}
            for name, known in RESULT.meta["models"].items()
        }
        models["nat"] |= settings_of_nat
        return replace(RESULT, meta=RESULT.meta | {"models": models})

    texts = read_texts(draw_training(change("cifs")))
    assert "adversarial (PGD-3, ε = 8/255, as in training)" in texts
    assert f"{TRAINED} (gates told the label)" in texts
    assert TRAINED in read_texts(draw_training(change("fsr")))
    other = {"recipe": {"attack": {"steps": 7, "eps": 8 / 255}}}
    assert "adversarial (as in training)" in read_texts(
        draw_training(change("fsr", settings=other))
    )


def test_epochs_without_validation_and_models_without_a_log_are_left_out() -> None:
    log = rows_of(RESULT.training, model="at").copy()
    log.loc[log["epoch"] % 2 == 1, "val_robust"] = np.nan
    _, accuracy = draw_training(with_tables(RESULT, training=log)).axes
    assert list(lines_of_colour(accuracy, ADVERSARIAL)[0][:, 0]) == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("table", ["training", "gates"])
def test_a_training_without_validation_is_drawn(table: str) -> None:
    rows = getattr(RESULT, table).copy()
    measured = [name for name in rows if name.split("_")[0] in ("val", "probe", "mask")]
    rows[measured] = np.nan
    draw = {"training": draw_training, "gates": draw_gates}[table]
    for ax in draw(with_tables(RESULT, **{table: rows})).axes:
        assert not [*lines_of_colour(ax, NATURAL), *lines_of_colour(ax, ADVERSARIAL)]


def test_gates_draws_each_probe_and_mask_and_marks_the_kept_epoch() -> None:
    figure = draw_gates(RESULT)
    panels = [(model, layer) for model in STUDY.models for layer in GATES]
    for row, (model, layer) in zip(np.reshape(figure.axes, (4, 2)), panels, strict=True):
        probe, mask = row
        rows = rows_of(RESULT.gates, model=model, layer=layer)
        for ax, natural, adversarial in (
            (probe, "probe_natural", "probe_robust"),
            (mask, "mask_natural", "mask_adversarial"),
        ):
            for colour, column in ((NATURAL, natural), (ADVERSARIAL, adversarial)):
                (points,) = lines_of_colour(ax, colour)
                np.testing.assert_array_equal(points, rows[["epoch", column]])
            # The natural one, beneath, is to be seen where both coincide.
            below, above = ax.lines[:2]
            assert below.get_linewidth() > 2 * above.get_linewidth()
            assert ax.get_ylim() == (0, 1)
            assert dashed_lines(ax) == [10]
        assert probe.get_ylabel() == f"{model}\n{layer}"
    assert "nat, layer4.0: in the end the probe is right on" in describe_gates(gates_data(RESULT))


def test_gates_leaves_out_epochs_that_are_unknown() -> None:
    rows = rows_of(RESULT.gates, model="at", layer="layer4.1").copy()
    rows.loc[rows["epoch"] > 3, "probe_robust"] = np.nan
    without = with_tables(RESULT, gates=rows, training=RESULT.training[:0])
    probe, mask = draw_gates(without).axes
    assert list(lines_of_colour(probe, ADVERSARIAL)[0][:, 0]) == [1, 2, 3]
    assert dashed_lines(probe) == dashed_lines(mask) == []


def test_layers_of_long_names_are_told_apart() -> None:
    gates = (f"{LONG}.0", f"{LONG}.1")
    study = synthetic_study(("cifs",), ("a", "b"), channels=2, epochs=1, gates=gates)
    labels = [ax.get_ylabel() for ax in draw_gates(make_result(study, "training")).axes]
    assert [label[:5] + label[-2:] for label in labels[::2]] == ["cifs\n.0", "cifs\n.1"]


@pytest.mark.parametrize(
    ("draw", "words"), [(draw_training, "training log"), (draw_gates, "log of CIFS gates")]
)
def test_without_a_log_there_is_no_figure(draw: Any, words: str) -> None:
    assert BARE.figures == []
    with mistake(words):
        draw(BARE)


def test_the_dotted_line_is_explained() -> None:
    assert TRAINED in join_texts(draw_training(RESULT))
