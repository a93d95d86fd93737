"""Channel flow: the table is that of naive loops and Student's test; figures draw what it says."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from numpy import ndarray
from scipy.stats import ttest_rel

import reference
from channelscope.analyses.base import ChannelTable
from channelscope.analyses.flow import (
    check_flow,
    compute_flow,
    describe_flow,
    describe_flow_share,
    draw_flow,
    draw_flow_share,
    flow_data,
    flow_share_data,
)
from channelscope.figures.paper import COLOURS
from channelscope.result import Result
from channelscope.statistics.channels import Change, change_by_class
from helpers.expect import mistake
from helpers.figures import dashed_lines, join_texts, rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

ANALYSES = ("activations", "flow", "robustness")
CLASSES = ("bird", "cat", "dog", "frog")
STUDY = synthetic_study(("nat", "at"), CLASSES, ("layer3", "layer4"), channels=8, empty=("cat",))
RESULT = make_result(STUDY, *ANALYSES)


def make_untested() -> Result:
    """Return a result in which no change was tested."""
    table = RESULT.tables["flow"]
    assert isinstance(table, ChannelTable)
    groups = {
        group: {**arrays, "p": arrays["p"] * np.nan, "q": arrays["q"] * np.nan}
        for group, arrays in table.groups.items()
    }
    return replace(RESULT, tables={**RESULT.tables, "flow": replace(table, groups=groups)})


# ---------------------------------------------------------------- the table


@st.composite
def paired(draw: st.DrawFn) -> tuple[ndarray, ndarray, ndarray]:
    """Draw activations (n, c) before and after, some 0, and labels of two of three classes."""
    n, c = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    before, after = np.maximum(rng.normal(size=(2, n, c)), 0)
    return before, after, rng.integers(0, 2, n)


def change_of(before: ndarray, after: ndarray, labels: ndarray) -> Change:
    return change_by_class(before, after, labels, 3, 0.3)


@given(paired())
def test_flow_is_that_of_a_naive_loop(sample: tuple[ndarray, ndarray, ndarray]) -> None:
    before, after, labels = sample
    flow = change_of(*sample)
    for k in range(3):
        images = labels == k
        if not images.any():
            assert np.isnan([column[k] for column in flow]).all()
            continue
        wanted = reference.flow(before[images].tolist(), after[images].tolist(), 0.3)
        for name in ("change", "silenced", "awakened"):
            column = [row[name] for row in wanted]
            assert getattr(flow, name)[k].tolist() == pytest.approx(column, abs=1e-12)
        assert (flow.silenced[k] + flow.awakened[k] <= 1 + 1e-12).all()
        assert np.isnan(flow.variance[k]).all() == (images.sum() == 1)


@given(paired())
def test_the_two_directions_mirror_each_other(sample: tuple[ndarray, ndarray, ndarray]) -> None:
    before, after, labels = sample
    forth, back = change_of(before, after, labels), change_of(after, before, labels)
    np.testing.assert_allclose(forth.change, -back.change)
    np.testing.assert_allclose(forth.variance, back.variance)
    np.testing.assert_array_equal(forth.silenced, back.awakened)


def test_channels_that_the_attack_wakes_and_silences_are_found_and_no_others() -> None:
    """Of four channels the attack wakes 1 and silences 2, on the images of class 0 alone."""
    labels = np.arange(80) % 2
    natural = np.random.default_rng(0).uniform(0.3, 0.5, (80, 4)) * [1, 0, 1, 1]
    adversarial = natural.copy()
    adversarial[labels == 0] = natural[labels == 0][:, [0, 2, 1, 3]]
    arrays = {
        "labels": labels,
        "activations/0/natural/layer": natural.astype(np.float32),
        "activations/0/adversarial/layer": adversarial.astype(np.float32),
    }
    study = KeptStudy(arrays, {"net": {"layers": ["layer"]}}, ("a", "b"), {"threshold": 0.01})
    (flow,) = compute_flow(study)["flow"].values()
    assert flow["awakened"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert flow["silenced"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert (flow["q"] < 1e-6).tolist() == [[False, True, True, False], [False] * 4]
    assert flow["p"][1].tolist() == [1, 1, 1, 1]
    assert flow["count"].tolist() == [[40], [40]]


def test_changes_are_tested_by_students_test_and_corrected_over_the_model() -> None:
    for model in STUDY.models:
        rows = RESULT.select("flow", model=model)
        tested = rows.dropna(subset=["p"])
        assert len(tested) == 2 * 3 * 8
        wanted = reference.false_discovery(tested["p"].tolist())
        assert tested["q"].tolist() == pytest.approx(wanted)
        images = STUDY.labels == 2
        natural, adversarial = (
            STUDY.activations(model, "layer3", data)[images].astype(float) for data in COLOURS
        )
        of_class = rows_of(rows, layer="layer3", class_="dog")["p"]
        moving = (natural != adversarial).any(0)
        wanted = ttest_rel(natural[:, moving], adversarial[:, moving]).pvalue
        np.testing.assert_allclose(of_class[moving], wanted, rtol=1e-6)
        assert (of_class[~moving] == 1).all()


def test_few_images_of_a_class_are_not_tested_and_none_are_nan() -> None:
    few = make_result(synthetic_study(("at",), CLASSES, count=29, empty=("cat",)), *ANALYSES).flow
    assert few[["p", "q"]].isna().all(axis=None)
    numbers = ["change", "silenced", "awakened"]
    assert few[few["class"] == "cat"][numbers].isna().all(axis=None)
    assert not few[few["class"] != "cat"][numbers].isna().any(axis=None)


def test_flow_of_layers_that_were_not_measured_is_refused() -> None:
    check_flow(RESULT)
    table = RESULT.tables["flow"]
    assert isinstance(table, ChannelTable)
    other = replace(table, groups={("at", "layer9"): table.groups["at", "layer4"]})
    with pytest.raises(ValueError, match="not measured"):
        check_flow(replace(RESULT, tables={**RESULT.tables, "flow": other}))


# ---------------------------------------------------------------- the figures


def test_flow_draws_each_channel_up_where_it_wakes_and_down_where_it_falls_silent() -> None:
    figure = draw_flow(RESULT)
    panels = product(STUDY.models, flow_data(RESULT)["class"].unique())
    for ax, (model, name) in zip(figure.axes, panels, strict=True):
        where = {"model": model, "layer": "layer4", "class": name}
        relevance = RESULT.select("activations", data="natural", **where)["relevance"]
        order = np.argsort(relevance, kind="stable")
        rows = RESULT.select("flow", **where).loc[order]
        relevance = relevance[order]
        for way, data, sign in (("awakened", "adversarial", 1), ("silenced", "natural", -1)):
            dots = [
                line
                for line in ax.lines
                if line.get_marker() == "o" and to_hex(line.get_color()) == COLOURS[data].lower()
            ]
            points = np.concatenate([line.get_xydata() for line in dots])
            wanted = np.c_[np.arange(1, 9), sign * rows[way]]
            np.testing.assert_allclose(points[points[:, 0].argsort()], wanted)
            dark = [line.get_xdata() for line in dots if line.get_alpha() > 0.5]
            assert set(np.concatenate(dark)) == set(np.flatnonzero(rows["q"] <= 0.05) + 1)
            chosen = relevance < 0 if way == "awakened" else relevance > 0
            start, side = ("NR ↑", "left") if way == "awakened" else ("PR ↓", "right")
            mean = f"{start} {100 * rows[way][chosen].mean():.0f} %"
            assert ax.get_title(loc=side) == mean
        assert dashed_lines(ax) == [(relevance < 0).sum() + 0.5]


def test_flow_share_counts_the_channels_that_change_significantly() -> None:
    drawn = flow_share_data(RESULT)
    relevance = RESULT.select("activations", data="natural", layer="layer4")
    tested = RESULT.select("flow", layer="layer4")
    tested = tested.merge(relevance.drop(columns="count")).dropna()
    for (kind, sign), model in product((("PR", 1), ("NR", -1)), STUDY.models):
        rows = rows_of(drawn, model=model, channels=kind).set_index("class")
        assert list(rows.index) == ["bird", "dog", "frog", "mean"]
        for name, (way, direction) in product(rows.index[:-1], (("falls", -1), ("rises", 1))):
            channels = rows_of(tested, model=model, class_=name)
            channels = channels[np.sign(channels["relevance"]) == sign]
            counted = (channels["q"] <= 0.05) & (np.sign(channels["change"]) == direction)
            assert rows.loc[name, way] == pytest.approx(counted.mean())
        assert rows.loc["mean", "falls"] == pytest.approx(rows["falls"].iloc[:-1].mean())
    (ax,) = draw_flow_share(RESULT).axes
    widths = [abs(bar.get_width()) for bar in ax.patches]
    wanted = rows_of(drawn, class_="mean")[["falls", "rises"]].to_numpy().ravel()
    np.testing.assert_allclose(widths, wanted)


def test_channels_that_were_not_tested_are_faint_and_no_share() -> None:
    untested = make_untested()
    assert "too few images to test" in join_texts(draw_flow_share(untested))
    lines = [line for ax in draw_flow(untested).axes for line in ax.lines]
    assert all(line.get_alpha() < 0.5 for line in lines if len(line.get_xdata()) > 2)


def test_data_are_of_the_layer_that_was_asked_for() -> None:
    for make in (flow_data, flow_share_data):
        assert set(make(RESULT, "layer3")["layer"]) == {"layer3"}
        with mistake("No layer 'layer5'"):
            make(RESULT, "layer5")


def test_alternative_texts_say_the_means() -> None:
    drawn = flow_data(RESULT)
    first = drawn[(drawn["model"] == "nat") & (drawn["class"] == drawn["class"].iloc[0])]
    silenced = 100 * first[first["relevance"] > 0]["silenced"].mean()
    assert f"a PR channel is silenced on {silenced:.1f} % of the images" in describe_flow(drawn)
    shares = flow_share_data(RESULT)
    mean = rows_of(shares, class_="mean").iloc[0]
    wanted = f"nat, PR: {100 * mean['falls']:.1f} % fall and {100 * mean['rises']:.1f} % rise"
    assert describe_flow_share(shares).startswith(wanted)
