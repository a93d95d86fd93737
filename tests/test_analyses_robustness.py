"""Robustness and evaluation: accuracies and intervals are counted; figures draw the tables."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from channelscope.analyses.base import Finding, Outcome
from channelscope.analyses.evaluation import (
    attacks_data,
    check_evaluation,
    describe_eps,
    draw_attacks,
    draw_eps,
    eps_data,
    export_robustbench,
    robustbench_entry,
)
from channelscope.analyses.robustness import (
    check_robustness,
    describe_robustness,
    draw_robustness,
    robustness_data,
)
from channelscope.figures.paper import style
from channelscope.statistics.intervals import wilson
from helpers.expect import mistake
from helpers.figures import join_texts, lines_of_model, rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

CLASSES = ("bird", "cat", "dog")
STUDY = synthetic_study(("nat", "at"), CLASSES, channels=2, empty=("dog",))
RESULT = make_result(STUDY, "robustness", "activations", "alignment")
FINDING = Finding("black-box", "Square broke more.", {"share": 0.25})


def evaluate(
    correct: dict[str, list[int]], *, cascade: bool = False, outcome: Outcome | None = None
) -> Any:
    """Evaluate one model, of which these images (0 or 1) are correct under each attack."""
    images = {name: np.array(row, dtype=bool) for name, row in correct.items()}
    n = len(images["natural"])
    settings = {**STUDY.settings, "cascade": cascade, "checks": 8}
    arrays = {f"correct/0/{name}": row for name, row in images.items()}
    study = KeptStudy(
        {"labels": np.arange(n) % 2, "weights": np.ones((n, 1)), **arrays},
        {"net": {"method": "at", "arch": "resnet18", "settings": {"data": {"name": "digits"}}}},
        ("a", "b"),
        settings,
        "evaluation",
        {} if outcome is None else {"net": outcome},
    )
    return make_result(study)


PLAIN = {
    "natural": [1, 1, 1, 1, 1, 1, 1, 0],
    "fgsm": [1, 1, 1, 1, 0, 0, 1, 0],
    "pgd-20": [0, 1, 1, 1, 1, 0, 0, 0],
}
SWEPT = Outcome(
    attacked={("fgsm", "fgsm"): 7, ("pgd-20", "pgd-20"): 7},
    broken={("fgsm", "fgsm"): 2, ("pgd-20", "pgd-20"): 3},
    checked=True,
    findings=(FINDING,),
    sweep={
        4 / 255: np.array([1, 1, 1, 1, 1, 0, 1, 0], dtype=bool),
        16 / 255: np.array([0, 0, 0, 1, 0, 0, 0, 0], dtype=bool),
    },
)
EVALUATION = evaluate(PLAIN, outcome=SWEPT)


def test_accuracies_are_shares_of_the_images_with_wilsons_interval() -> None:
    for model in STUDY.models:
        correct = {name: STUDY.correct(model, name) for name in ("natural", "pgd-20")}
        correct["worst"] = correct["natural"] & correct["pgd-20"]
        rows = rows_of(RESULT.robustness, model=model)
        assert list(rows["attack"].unique()) == list(correct)
        for attack, images in correct.items():
            for name in ("all", *CLASSES):
                chosen = images[
                    STUDY.labels >= 0 if name == "all" else STUDY.labels == CLASSES.index(name)
                ]
                row = rows_of(rows, attack=attack, class_=name).iloc[0]
                wanted = wilson(int(chosen.sum()), len(chosen))
                assert row["count"] == len(chosen)
                assert row[["accuracy", "low", "high"]].tolist() == pytest.approx(
                    [*vars(wanted).values()], nan_ok=True
                )


def test_incomplete_tables_are_refused() -> None:
    check_robustness(RESULT)
    table = RESULT.robustness
    for rows, words in (
        (table[table["model"] == "nat"], "other models"),
        (table[table["class"] != "cat"], "incomplete"),
        (table.assign(count=np.nan), "incomplete"),
    ):
        with pytest.raises(ValueError, match=words):
            check_robustness(replace(RESULT, tables={**RESULT.tables, "robustness": rows}))


def test_robustness_draws_its_table_by_model_and_attack_the_worst_case_last() -> None:
    (ax,) = draw_robustness(RESULT).axes
    names = ["natural images", "PGD-20", "worst case of all"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    groups = robustness_data(RESULT).groupby("model", sort=False)
    for bars, (_, rows) in zip(ax.containers, groups, strict=True):
        line, _, (reach,) = bars
        assert list(rows["attack"]) == names
        np.testing.assert_array_equal(line.get_xdata(), rows["accuracy"])
        assert list(np.round(line.get_ydata())) == [0, 1, 2]
        drawn = np.array([segment[:, 0] for segment in reach.get_segments()])
        np.testing.assert_allclose(drawn, rows[["low", "high"]])


def add_attacks(*names: str, models: tuple[str, ...] = ("nat", "at")) -> Any:
    study = synthetic_study(("nat", "at"), CLASSES, channels=2)
    further = {
        f"correct/{study.models.index(model)}/{name}": study.correct(model)
        for model in models
        for name in names
    }
    study.arrays = {**study.arrays, **further}
    return make_result(study, "robustness", "activations", "alignment")


def test_an_attack_that_a_model_was_spared_has_no_mark_and_the_legend_says_why() -> None:
    result = add_attacks("pgd-20:joint-sweep", models=("at",))
    figure = draw_robustness(result)
    assert [len(bars[0].get_xdata()) for bars in figure.axes[0].containers] == [3, 4]
    assert "no mark: not run on this model" in join_texts(figure)
    assert "worst case over all attacks" in join_texts(result.plot("relevance"))


@pytest.mark.parametrize("name", ["default", "icml", "neurips", "ieee"])
def test_names_of_attacks_are_whole_and_explained_where_they_occur(name: str) -> None:
    result = add_attacks(
        "cw-20:from-cifar10-standard",
        "pgd-20:joint-sweep:detached",
        "pgd-20:frozen-natural",
        "x" * 40,
    )
    with style(name, notes=True):
        figure = draw_robustness(result)
    labels = figure.axes[0].get_yticklabels()
    shown = {label.get_text().replace("\n", ""): label.get_fontstyle() for label in labels}
    assert shown["CW-20:from-cifar10-standard"] == shown["x" * 40] == "normal"
    for_gates = {"PGD-20:joint-sweep:detached", "PGD-20:frozen-natural"}
    assert {name for name, font in shown.items() if font == "italic"} == for_gates
    key = figure.legends[0].get_title().get_text()
    for word in ("joint-sweep", "detached", "frozen-natural", "from"):
        assert f"{word}: " in " ".join(key.split())
    assert "in italics: an attack made for gates" in key
    assert "frozen-label" not in key
    assert " probe: " not in key
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [label.get_window_extent(renderer).padded(-1) for label in labels]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert min(box.x0 for box in boxes) >= 0


# ---------------------------------------------------------------- evaluation


def test_attacks_stand_alone_and_in_the_worst_case_so_far() -> None:
    table = EVALUATION.attacks
    assert table["attack"].tolist() == ["fgsm", "pgd-20"]
    assert table["natural"].tolist() == [7 / 8, 7 / 8]
    assert table["robust"].tolist() == [5 / 8, 4 / 8]
    assert table["worst"].tolist() == [5 / 8, 3 / 8]
    assert table["worst_low"].tolist() == pytest.approx([wilson(k, 8).low for k in (5, 3)])
    assert table["count"].tolist() == [8, 8]
    worst = EVALUATION.worst_case.iloc[0]
    assert (worst["decided_by"], worst["robust"], worst["count"]) == ("pgd-20", 3 / 8, 8)


def test_parts_warnings_and_the_sweep_are_those_of_the_outcome() -> None:
    assert EVALUATION.parts[["attacked", "broken"]].to_numpy().tolist() == [[7, 2], [7, 3]]
    warning = EVALUATION.warnings.iloc[0]
    assert (warning["check"], warning["sentence"]) == FINDING[:2]
    assert json.loads(warning["evidence"]) == {"share": 0.25}
    assert EVALUATION.eps_sweep["eps"].tolist() == [4 / 255, 16 / 255]
    assert EVALUATION.eps_sweep["robust"].tolist() == [6 / 8, 1 / 8]


def test_the_attack_that_breaks_the_most_decides_and_in_a_cascade_of_those_it_was_given() -> None:
    first = {"natural": [1, 1, 1, 1], "fgsm": [0, 0, 1, 1], "pgd-20": [0, 0, 0, 1]}
    assert evaluate(first).worst_case["decided_by"].item() == "pgd-20"
    assert evaluate(first, cascade=True).worst_case["decided_by"].item() == "fgsm"
    unharmed = evaluate({"natural": [1, 1], "fgsm": [1, 1]}).worst_case.iloc[0]
    assert unharmed["decided_by"] == "no attack"
    assert unharmed["low"] < unharmed["robust"] == unharmed["high"] == 1


def test_evaluations_that_contradict_themselves_are_refused() -> None:
    check_evaluation(EVALUATION)
    tables, meta = EVALUATION.tables, EVALUATION.meta
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"tables": {**tables, "worst_case": EVALUATION.worst_case[:0]}}, "other models"),
        ({"tables": {**tables, "attacks": EVALUATION.attacks.assign(count=np.nan)}}, "incomplete"),
        ({"meta": meta | {"norm": "1"}}, "norm"),
        ({"meta": meta | {"data": meta["data"] | {"images": 9}}}, "other images"),
        ({"arrays": {}}, "other images or attacks"),
    )
    for changed, words in cases:
        with pytest.raises(ValueError, match=words):
            check_evaluation(replace(EVALUATION, **changed))


def test_the_figure_shows_every_accuracy_with_its_interval() -> None:
    (ax,) = draw_attacks(EVALUATION).axes
    data = attacks_data(EVALUATION)
    names = ["natural images", "FGSM", "PGD-20", "worst case"]
    assert data["attack"].tolist() == names
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    dots = [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert dots == data["accuracy"].tolist()
    bars = [segment for part in ax.collections for segment in part.get_segments()]
    ends = [(segment[:, 0].min(), segment[:, 0].max()) for segment in bars]
    np.testing.assert_allclose(ends, data[["low", "high"]])
    assert ax.get_title(loc="left").strip() == "net"
    assert ax.get_title(loc="right") == "1 sign of gradient masking"
    assert describe_robustness(data) == "net: 87.5 % on natural images, 37.5 % in the worst case."


def test_the_figure_of_eps_shows_the_sweep() -> None:
    (ax,) = draw_eps(EVALUATION).axes
    (line,) = lines_of_model(ax, EVALUATION, 0)
    np.testing.assert_allclose(line, [[0, 7 / 8], [4, 6 / 8], [16, 1 / 8]])
    text = describe_eps(eps_data(EVALUATION))
    assert text == "net: worst-case accuracy from 87.5 % at ε = 0 to 12.5 % at ε = 16/255."
    assert EVALUATION.figures == ["attacks", "eps"]
    bare = evaluate(PLAIN)
    assert bare.figures == ["attacks"]
    with mistake("--eps-sweep"):
        draw_eps(bare)


# ---------------------------------------------------------------- RobustBench


def test_robustbench_entry(tmp_path: Path) -> None:
    entry = robustbench_entry(EVALUATION, "net")
    assert (entry["clean_acc"], entry["reported"]) == ("87.50", "37.50")
    assert (entry["eps"], entry["norm"], entry["architecture"]) == ("8/255", "Linf", "resnet18")
    assert (entry["training_data"], entry["method"]) == ("digits", "at")
    assert entry["unreliable"] is True
    assert "fgsm, pgd-20; n = 8, 95% interval" in entry["footnote"]
    with mistake("'cifs'"):
        robustbench_entry(EVALUATION, "cifs")
    export_robustbench(EVALUATION, tmp_path)
    (file,) = (tmp_path / "robustbench").iterdir()
    assert file.name == "0-net.json"
    assert json.loads(file.read_text("utf-8")) == entry


@pytest.mark.parametrize(
    ("attack", "cascade", "accuracy"),
    [("autoattack", False, "50.00"), ("autoattack", True, None), ("square", False, None)],
)
def test_robustbench_takes_autoattacks_accuracy_from_autoattack_alone(
    attack: str, cascade: bool, accuracy: str | None
) -> None:
    result = evaluate({"natural": [1, 1], attack: [1, 0]}, cascade=cascade)
    assert robustbench_entry(result, "net")["autoattack_acc"] == accuracy
