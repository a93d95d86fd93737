"""Interventions and suppression: curves whose numbers are known; figures draw what tables say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray
from scipy.integrate import trapezoid

from channelscope.analyses.base import SuppressedLayer
from channelscope.analyses.interventions import (
    by_scorer,
    check_interventions,
    curves_data,
    describe_curves,
    describe_league,
    draw_curves,
    draw_league,
    league_data,
)
from channelscope.analyses.suppression import check_suppression, judge_suppression
from channelscope.figures.paper import COLOURS
from channelscope.result import Result
from channelscope.statistics.intervals import wilson
from helpers.expect import mistake
from helpers.figures import join_texts, rows_of
from helpers.studies import KeptStudy, make_result

LABELS = np.arange(24) % 3
SETTINGS: dict[str, Any] = {
    "attack": "pgd-20",
    "eps": 0.1,
    "level": 0.95,
    "replicates": 200,
    "relevant_to": "answer",
    "ranked_on": {"part": "val", "images": 15},
}


def make_weights(n: int, replicates: int = 200) -> ndarray:
    draws = np.random.default_rng(1).poisson(1, (n, replicates))
    return np.concatenate([np.ones((n, 1)), draws], 1).astype(float)


def make_study(
    suppression: dict[str, dict[str, SuppressedLayer]], n: int, **settings: Any
) -> KeptStudy:
    known = {name: {"layers": [*layers]} for name, layers in suppression.items()}
    arrays = {"labels": np.zeros(n, np.int64), "weights": make_weights(n)}
    arrays["masks/1/natural/none/layer4.0"] = np.ones((n, 16))  # the second model has a gate
    return KeptStudy(
        arrays,
        known,
        ("a", "b", "c"),
        SETTINGS | settings,
        "intervention",
        suppression=suppression,
    )


def draw_layer(seed: int, scorers: tuple[str, ...], counts: tuple[int, ...]) -> SuppressedLayer:
    """Draw what suppression does at random: no channels and all of them are alike in all orders."""
    rng = np.random.default_rng(seed)
    natural = rng.random((2, 24)) < 0.7

    def draw_ranking() -> dict[str, ndarray]:
        correct = rng.random((len(counts), 24)) < 0.6
        correct[[0, -1]] = natural
        return {"natural": correct, "adversarial": correct & (rng.random(24) < 0.7)}

    relevance = {scorer: rng.normal(size=(3, counts[-1])) for scorer in scorers}
    correct: dict[tuple[str, str], list[dict[str, ndarray]]] = {}
    for scorer in scorers:
        correct |= {(scorer, order): [draw_ranking()] for order in ("nr", "pr")}
    correct["random", "random"] = [draw_ranking(), draw_ranking()]
    return SuppressedLayer(counts, relevance, correct)


SCORERS = ("gradient", "ablation")
STUDY = make_study(
    {
        "plain": {
            "bn1": draw_layer(0, SCORERS, (0, 2, 4, 6)),
            "relu2": draw_layer(1, SCORERS, (0, 2, 5, 8)),
        },
        "gated": {"layer4.0": draw_layer(2, SCORERS, (0, 4, 9, 16))},
    },
    24,
)
RESULT = make_result(STUDY)


# ---------------------------------------------------------------- the tables


def test_curves_are_shares_of_the_images_with_wilsons_interval() -> None:
    random = STUDY.suppressed("plain")["relu2"].correct["random", "random"]
    correct = (random[0]["adversarial"] + random[1]["adversarial"].astype(float)) / 2
    rows = rows_of(RESULT.curves, model="plain", layer="relu2", scorer="random", curve="deletion")
    rows = rows_of(rows, data="adversarial")
    assert rows["channels"].tolist() == [0, 2, 5, 8]
    assert rows["fraction"].tolist() == [0, 0.25, 0.625, 1]
    for point, row in zip(correct, rows.to_dict("records"), strict=True):
        wanted = wilson(point.sum(), len(point))
        numbers = [row["accuracy"], row["low"], row["high"]]
        assert numbers == pytest.approx([wanted.value, wanted.low, wanted.high])


def test_insertion_is_deletion_from_the_other_end() -> None:
    opposite = {"nr": "pr", "pr": "nr", "random": "random"}
    deleted, inserted = (
        rows_of(RESULT.curves, curve=kind).copy() for kind in ("deletion", "insertion")
    )
    inserted["order"] = inserted["order"].map(opposite)
    inserted["fraction"] = 1 - inserted["fraction"]
    keys = ["model", "layer", "scorer", "order", "data", "fraction"]
    columns = [*keys, "accuracy", "low", "high"]
    pd.testing.assert_frame_equal(
        deleted.sort_values(keys)[columns].reset_index(drop=True),
        inserted.sort_values(keys)[columns].reset_index(drop=True),
    )


def test_areas_and_league_follow_from_the_curves() -> None:
    keys = ["model", "layer", "scorer", "order", "data"]
    deleted = rows_of(RESULT.curves, curve="deletion")
    areas = {
        key: trapezoid(rows["accuracy"], rows["fraction"]) for key, rows in deleted.groupby(keys)
    }
    for row in RESULT.areas.itertuples():
        key = row.model, row.layer, row.scorer, row.order, row.data
        assert row.area == pytest.approx(areas[key])
    for row in RESULT.league.itertuples():
        where = row.model, row.layer
        random = areas[*where, "random", "random", row.data]
        kept = areas[*where, row.scorer, "nr", row.data] - random
        lost = random - areas[*where, row.scorer, "pr", row.data]
        leads = {"nr": kept, "pr": lost, "both": (kept + lost) / 2}
        assert row.value == pytest.approx(leads[row.order])
    for _, rows in RESULT.league.groupby(["model", "layer", "order", "data"]):
        assert sorted(rows["value"], reverse=True) == rows.sort_values("rank")["value"].tolist()
        assert rows["rank"].min() == 1


def test_intervals_contain_the_estimates() -> None:
    for name, value in (("curves", "accuracy"), ("areas", "area"), ("league", "value")):
        table = RESULT.select(name)
        assert (table["low"] <= table[value]).all()
        assert (table[value] <= table["high"]).all()
    assert RESULT.curves[["accuracy", "low", "high"]].stack().between(0, 1).all()
    for name in ("over_random", "natural"):
        rows = RESULT.suppression.dropna(subset=[name])
        assert len(rows)
        assert (rows[f"{name}_low"] <= rows[name]).all()
        assert (rows[name] <= rows[f"{name}_high"]).all()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("league", lambda table: table[table["order"] != "nr"], "lacks rows of"),
        ("league", lambda table: table.assign(layer=table["layer"] + "x"), "of other layers"),
        ("league", lambda table: table[:0], "of other layers"),
        ("areas", lambda table: table[table["model"] != "plain"], "of other layers"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(
    name: str, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    check_interventions(RESULT)
    with pytest.raises(ValueError, match=words):
        check_interventions(change_table(name, change))


def test_suppression_of_other_scorers_is_refused() -> None:
    check_suppression(RESULT)
    with pytest.raises(ValueError, match="of other scorers"):
        check_suppression(change_table("suppression", lambda table: table[:1]))


def change_table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Result:
    return replace(RESULT, tables={**RESULT.tables, name: change(RESULT.select(name))})


# ---------------------------------------------------------------- the verdict


def make_known(
    nr: ndarray, n: int, relevance: ndarray | None = None, random: ndarray | None = None
) -> SuppressedLayer:
    """Return a layer of two channels: which of n images are robust without none, one and both."""
    natural = np.ones((3, n), bool)
    other = np.zeros((3, n), bool) if random is None else random
    rankings = {
        ("gradient", "nr"): [{"natural": natural, "adversarial": nr}],
        ("gradient", "pr"): [{"natural": natural, "adversarial": other}],
        ("random", "random"): [{"natural": natural, "adversarial": other}],
    }
    relevance = np.array([[-1.0, 1.0]]) if relevance is None else relevance
    return SuppressedLayer((0, 1, 2), {"gradient": relevance}, rankings)


def repair(images: int, n: int) -> ndarray:
    """Return robust images: none at first, so many without one channel, all without both."""
    robust = np.zeros((3, n), bool)
    robust[1, :images] = True
    robust[2] = True
    return robust


def judge(layer: SuppressedLayer, n: int, **settings: Any) -> tuple[Any, pd.Series]:
    study = make_study({"net": {"features": layer}}, n, **settings)
    (verdict,) = judge_suppression(study)
    return verdict, make_result(study).suppression.iloc[0]


def test_the_verdict_follows_the_interval_of_the_change() -> None:
    """Half of the images are robust once the harmful channel is gone."""
    verdict, row = judge(make_known(repair(30, 60), 60), 60)
    assert (verdict.claim, verdict.models, verdict.layer) == (
        "C4 by intervention",
        "net",
        "features",
    )
    assert verdict.verdict == "supported"
    assert verdict.estimate == row["estimate"] == row["over_random"] == 0.5
    assert row["natural"] == 0
    assert 0.2 < verdict.low < 0.5 < verdict.high < 0.8
    assert verdict.statement.startswith(
        "Suppressing 50.0% of the channels of features, the most negatively relevant by gradient, "
        "without retraining changes the robust accuracy of net by +50.0 [+"
    )


@pytest.mark.parametrize(("images", "outcome"), [(4, "inconclusive"), (24, "supported")])
def test_images_that_all_say_the_same_support_a_claim_if_they_are_many(
    images: int, outcome: str
) -> None:
    verdict, _ = judge(make_known(repair(images, images), images), images)
    assert verdict.estimate == 1
    assert verdict.low < 1
    assert verdict.verdict == outcome


@pytest.mark.parametrize("images", [4, 60])
def test_one_image_supports_nothing(images: int) -> None:
    """A single image is saved: an interval that is moved onto the estimate would lie above 0."""
    verdict, _ = judge(make_known(repair(1, images), images), images)
    assert verdict.estimate == pytest.approx(1 / images)
    assert verdict.low <= 0
    assert verdict.verdict == "inconclusive"


def test_robust_images_that_are_lost_refute_the_claim() -> None:
    verdict, _ = judge(make_known(repair(30, 60)[::-1], 60), 60)
    assert verdict.estimate == -0.5
    assert verdict.verdict == "not supported"


def test_points_that_suppress_more_than_the_nr_channels_have_no_say() -> None:
    relevance = np.array([[-1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    verdict, row = judge(make_known(repair(30, 60), 60, relevance), 60)
    assert verdict.verdict == "inconclusive"
    assert np.isnan([verdict.estimate, row["over_random"], row["natural"]]).all()
    assert "16.7% of the channels of features in net are negatively" in verdict.statement


def test_what_weakens_a_verdict_is_said() -> None:
    layer = make_known(repair(30, 60), 60)
    verdict, _ = judge(layer, 60, relevant_to="label")
    assert verdict.verdict == "inconclusive"
    assert verdict.statement.endswith("No verdict, as the labels of the images chose the channels.")
    verdict, _ = judge(layer, 60, ranked_on={"part": "test", "images": 60})
    assert verdict.verdict == "supported"
    assert "ranked on the very images that are judged" in verdict.statement
    warning = "No attack made for gates was run."
    by_model = RESULT.verdicts.groupby("models")["statement"].apply(list)
    assert all(statement.endswith(warning) for statement in by_model["gated"])
    assert not any(warning in statement for statement in by_model["plain"])
    study = replace(STUDY, settings=STUDY.settings | {"attack": "joint-sweep"})
    assert not any(warning in verdict.statement for verdict in judge_suppression(study))


# ---------------------------------------------------------------- the figures


def test_curves_draw_their_data_and_nothing_else() -> None:
    data = curves_data(RESULT, "bn1", "ablation")
    assert set(data["model"]) == {"plain"}  # the only model that has the layer
    axes = draw_curves(RESULT, "bn1", "ablation").axes
    assert len(axes) == 2
    for ax, kind in zip(axes, COLOURS, strict=True):
        of_kind = rows_of(data, data=kind)
        drawn = sorted(line.get_xydata().tolist() for line in ax.lines)
        expected = [rows[["fraction", "accuracy"]] for _, rows in of_kind.groupby("order")]
        assert drawn == sorted(rows.to_numpy().tolist() for rows in expected)
        assert {line.get_color() for line in ax.lines} == {COLOURS[kind]}
        bands = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in ax.collections])
        assert bands.max() == pytest.approx(of_kind["high"].max())
        assert bands.min() == pytest.approx(of_kind["low"].min())


def test_insertion_can_be_drawn_too() -> None:
    figure = draw_curves(RESULT, curve="insertion")
    assert len(figure.axes) == 4  # two models, each at its last layer
    assert figure.axes[-1].get_xlabel() == "channels kept, others 0 (%)"
    starts = {line.get_ydata()[0] for line in figure.axes[0].lines}
    rows = rows_of(RESULT.curves, layer="relu2", data="natural", curve="insertion", channels=0)
    assert starts == set(rows["accuracy"])
    assert len(starts) == 1  # from all suppressed, all orders begin alike


def test_league_draws_every_scorer_of_a_layer_the_best_on_top() -> None:
    data = league_data(RESULT, "relu2")
    assert set(data["order"]) == {"nr", "pr"}
    best = rows_of(RESULT.league, layer="relu2", order="both", data="adversarial")
    names = best.sort_values("rank", kind="stable")["scorer"].tolist()
    figure = draw_league(RESULT, "relu2")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    for ax, order in zip(figure.axes, ("nr", "pr"), strict=True):
        for dots, kind in zip(ax.containers, COLOURS, strict=True):
            rows = rows_of(data, order=order, data=kind)
            assert rows["scorer"].tolist() == names
            np.testing.assert_allclose(dots[0].get_xdata(), rows["value"])
            (bars,) = dots[2]
            reach = [[start[0], end[0]] for start, end in bars.get_segments()]
            np.testing.assert_allclose(reach, rows[["low", "high"]], atol=1e-12)


@pytest.mark.parametrize("draw", [draw_curves, draw_league])
def test_figures_say_what_they_show(draw: Callable[[Result], Figure]) -> None:
    figure = draw(RESULT)
    text = join_texts(figure)
    for words in (
        "24 images",
        "95% intervals",
        "PGD-20, ε = 0.1",
        "class that the network answers",
    ):
        assert words in text
    width = figure.get_size_inches()[0] * figure.dpi
    renderer = FigureCanvasAgg(figure).get_renderer()
    (key,) = figure.legends
    for text in (*figure.texts, figure._suptitle, key.get_title(), *key.get_texts()):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= width


def test_every_scorer_of_every_layer_has_its_curves() -> None:
    subjects = [tuple(subject.arguments.values()) for subject in by_scorer(RESULT)]
    layers = ("bn1", "relu2", "layer4.0")
    assert subjects == [(scorer, layer) for layer in layers for scorer in SCORERS]
    one = make_study({"net": {"features": make_known(repair(3, 6), 6)}}, 6)
    subjects = [tuple(subject.arguments.values()) for subject in by_scorer(make_result(one))]
    assert subjects == [("gradient", None)]


def test_no_scorers_name_leads_out_of_the_folder() -> None:
    league = RESULT.league.replace("gradient", "x/../../../outside")
    names = replace(RESULT, tables={**RESULT.tables, "league": league}).figures
    assert not [name for name in names if "/" in name]
    assert any("outside" in name for name in names)


def test_unknown_layers_and_scorers_are_refused() -> None:
    with mistake("No layer 'layer9' here; choose from bn1, relu2"):
        draw_curves(RESULT, "layer9")
    with mistake("curves of 'tea' here; choose from gradient, ablation"):
        draw_curves(RESULT, "bn1", "tea")


def test_alternative_texts_say_accuracies_and_leads() -> None:
    drawn = curves_data(RESULT)
    start = rows_of(drawn, model="plain", data="adversarial", fraction=0)["accuracy"].iloc[0]
    wanted = f"plain: robust accuracy {100 * start:.1f} % untouched, then by order on average "
    assert describe_curves(drawn).startswith(wanted)
    first = rows_of(league_data(RESULT), model="plain", order="nr", data="adversarial").iloc[0]
    wanted = f"plain, nr: under attack {first['scorer']} leads the random order by "
    assert describe_league(league_data(RESULT)).startswith(wanted)
