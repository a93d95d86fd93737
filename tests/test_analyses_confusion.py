"""Confusion: answers are counted; the figure sets them beside the overlap of PR channels."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

import reference
from channelscope.analyses.confusion import confusion_data, describe_confusion, draw_confusion
from channelscope.figures.paper import COLOURS
from helpers.expect import mistake
from helpers.figures import join_texts, rows_of
from helpers.studies import make_result, synthetic_study

CLASSES = ("bird", "cat", "dog", "frog")
STUDY = synthetic_study(("nat", "at"), CLASSES, channels=8, empty=("cat",))
RESULT = make_result(STUDY, "activations", "confusion", "robustness")


def test_the_answers_of_each_class_are_counted() -> None:
    for model in STUDY.models:
        for data in COLOURS:
            counts = rows_of(RESULT.confusion, model=model, data=data)
            assert counts["count"].sum() == len(STUDY.labels)
            assert (counts["count"] > 0).all()
            counts = counts.set_index(["class", "answer"])["count"]
            for k, answer in np.ndindex(4, 4):
                images = (STUDY.labels == k) & (STUDY.answers(model, data) == answer)
                assert counts.get((CLASSES[k], CLASSES[answer]), 0) == images.sum()


def test_right_answers_are_the_accuracy() -> None:
    right = RESULT.confusion.query("`class` == answer").groupby(["model", "data"])["count"].sum()
    accuracy = rows_of(RESULT.robustness, class_="all").set_index(["model", "attack"])["accuracy"]
    for model in STUDY.models:
        share = right[model] / len(STUDY.labels)
        assert share["natural"] == pytest.approx(accuracy[model, "natural"])
        assert share["adversarial"] == pytest.approx(accuracy[model, "pgd-20"])


def test_confusion_is_drawn_and_correlated_with_the_overlap_of_pr_channels() -> None:
    figure = draw_confusion(RESULT)
    names = ["bird", "dog", "frog"]
    off = ~np.eye(3, dtype=bool)
    data = confusion_data(RESULT)
    for ax, model in zip(figure.axes, STUDY.models, strict=False):  # a colour bar is last
        rows = rows_of(RESULT.confusion, model=model, data="adversarial")
        table = rows.pivot(index="class", columns="answer", values="count").fillna(0)
        shares = table.div(table.sum(axis=1), axis=0).loc[names, names].to_numpy()
        rows = RESULT.select("activations", model=model, data="natural")
        by_class = rows.pivot(index="class", columns="channel", values="relevance").loc[names]
        relevance = by_class.to_numpy().tolist()
        shared = [[reference.overlap(one, other) for other in relevance] for one in relevance]
        (mesh,) = (part for part in ax.collections if isinstance(part, QuadMesh))
        drawn = np.reshape(mesh.get_array(), (3, 3))
        np.testing.assert_allclose(drawn[off], shares[off])
        assert (np.ma.getmaskarray(drawn) == ~off).all()
        overlap = data.loc[data["model"] == model, "overlap"].to_numpy()
        np.testing.assert_allclose(overlap, np.ravel(shared))
        rho = reference.spearman(shares[off].tolist(), np.array(shared)[off].tolist())
        assert f"ρ {rho:.2f}".replace("-", "−") in ax.get_title(loc="right")
    assert "Mantel's test" in join_texts(figure)


def test_of_many_classes_the_most_and_the_least_robust_are_drawn() -> None:
    names = tuple(f"class {k}" for k in range(30))
    result = make_result(synthetic_study(("at",), names, channels=4, count=5))
    drawn = confusion_data(result)
    assert drawn["class"].nunique() == 24
    worst = rows_of(result.robustness, attack="worst").set_index("class")["accuracy"].drop("all")
    left_out = set(names) - set(drawn["class"])
    ranked = worst.sort_values(ascending=False)
    assert ranked.iloc[11] >= worst[list(left_out)].max()
    assert ranked.iloc[-12] <= worst[list(left_out)].min()


def test_the_alternative_text_names_the_class_that_is_confused_most() -> None:
    drawn = confusion_data(RESULT)
    apart = rows_of(drawn, model="nat")
    apart = apart[apart["class"] != apart["answer"]]
    most = apart.loc[apart["share"].idxmax()]
    said = describe_confusion(drawn).split(";")[0]
    assert f"({100 * most['share']:.1f} %)" in said
    assert said.startswith("nat: ρ ")


def test_an_unknown_layer_is_refused() -> None:
    with mistake("No layer 'layer5'"):
        draw_confusion(RESULT, "layer5")
