"""Matching: permuted copies are found again; figures draw what the tables say."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from numpy import ndarray

from channelscope.analyses.base import ChannelTable
from channelscope.analyses.matching import (
    by_matched_layers,
    by_pair,
    check_matching,
    describe_likeness,
    describe_matched_channels,
    draw_layer_likeness,
    draw_likeness,
    draw_matched_channels,
    layer_likeness_data,
    likeness_data,
    matched_channels_data,
)
from channelscope.result import Result
from channelscope.statistics.channels import choose_evenly
from channelscope.statistics.intervals import estimate
from channelscope.statistics.similarity import (
    compute_hsic,
    match_channels,
    normalise_hsic,
    standardise,
)
from helpers.expect import mistake
from helpers.figures import MODEL_COLOURS, rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

ANALYSES = ("activations", "matching", "robustness")
MODELS = ("nat", "at", "cifs")
RESULT = make_result(
    synthetic_study(MODELS, ("bird", "cat"), ("layer3", "layer4"), channels=12), *ANALYSES
)
ORDERS = {"early": [4, 0, 5, 2, 1, 3], "late": [7, 6, 0, 1, 3, 2, 5, 4]}


def make_permuted_study(n: int = 40) -> KeptStudy:
    """Return a study of a network, its copy with channels in another order, and another network."""
    rng = np.random.default_rng(0)
    early = np.maximum(rng.normal(size=(n, 6)), 0)
    late = np.maximum(early @ rng.normal(size=(6, 8)), 0)
    late[:, 3] = 0  # a channel that never varies
    weights = np.concatenate([np.ones((n, 1)), rng.poisson(1, (n, 30))], 1).astype(float)
    activations = {
        "0/natural/early": early,
        "0/natural/late": late,
        "1/natural/early": early[:, ORDERS["early"]],
        "1/natural/late": late[:, ORDERS["late"]],
        "2/natural/late": rng.random((n, 5)),
    }
    arrays = {"labels": np.arange(n) % 2, "weights": weights}
    arrays |= {f"activations/{key}": array for key, array in activations.items()}
    known: dict[str, dict[str, Any]] = {name: {"layers": [*ORDERS]} for name in ("net", "permuted")}
    return KeptStudy(arrays, known | {"other": {"layers": ["late"]}}, ("a", "b"), {"level": 0.95})


STUDY = make_permuted_study()
PERMUTED = make_result(STUDY, "matching")


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("layer", ORDERS)
def test_the_channels_of_a_permuted_copy_are_found(layer: str) -> None:
    rows = rows_of(PERMUTED.matched, other="permuted", layer=layer)
    assert set(rows["model"]) == {"net"}
    assert set(rows["other_layer"]) == {layer}
    moving = rows.dropna()
    assert len(rows) - len(moving) == (layer == "late")
    order = np.array(ORDERS[layer])
    np.testing.assert_array_equal(order[moving["other_channel"]], moving["channel"])
    np.testing.assert_allclose(moving["correlation"], 1)


def test_the_layers_of_a_permuted_copy_are_alike() -> None:
    rows = rows_of(PERMUTED.matching, other="permuted").set_index(["layer", "other_layer"])
    assert len(rows) == 4
    for layer in ORDERS:
        same = rows.loc[(layer, layer), ["cka", "low", "high"]].astype(float)
        np.testing.assert_allclose(same, 1)
    assert rows.loc[("early", "late"), "cka"] == pytest.approx(rows.loc[("late", "early"), "cka"])
    assert rows.loc[("early", "late"), "cka"] < 0.99


def test_layers_of_unequal_number_are_matched_from_the_deepest() -> None:
    rows = rows_of(PERMUTED.matched, model="net", other="other")
    assert set(zip(rows["layer"], rows["other_layer"], strict=True)) == {("late", "late")}
    assert len(rows) == 5
    pairs = PERMUTED.matching[["model", "other"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["net", "permuted"], ["net", "other"], ["permuted", "other"]]


def test_cka_has_the_interval_of_the_images_resampled() -> None:
    a, b = (
        standardise(STUDY.activations(*layer)) for layer in (("net", "early"), ("permuted", "late"))
    )
    pairs = ((a, b), (a, a), (b, b))
    wanted = estimate(normalise_hsic(*(compute_hsic(*pair, STUDY.weights) for pair in pairs)))
    row = rows_of(PERMUTED.matching, model="net", layer="early", other_layer="late").iloc[0]
    values = [row["cka"], row["low"], row["high"]]
    assert values == pytest.approx([wanted.value, wanted.low, wanted.high])


def test_of_many_images_some_at_even_steps_are_matched() -> None:
    assert choose_evenly(20, 8).tolist() == [0, 2, 5, 7, 10, 12, 15, 17]
    assert choose_evenly(3, 8).tolist() == [0, 1, 2]
    study = make_permuted_study(2500)
    wanted = match_channels(
        *(study.activations(model, "late")[choose_evenly(2500)] for model in ("net", "other"))
    )
    matched = rows_of(make_result(study, "matching").matched, model="net", other="other")
    np.testing.assert_array_equal(matched["correlation"], wanted.correlation)


def test_one_model_alone_is_matched_with_nothing() -> None:
    result = make_result(synthetic_study(("at",)), *ANALYSES)
    assert result.matching.empty
    assert result.matched.empty
    with mistake("one model alone"):
        draw_likeness(result)


@pytest.mark.parametrize(
    ("table", "changes", "words"),
    [
        ("matching", {"other_layer": "layer9"}, "not measured"),
        ("matched", {"layer": "layer9"}, "not measured"),
        ("matched", {"other_channel": 12}, "does not have"),
        ("matched", {"channel": 0.5}, "does not have"),
    ],
)
def test_layers_and_channels_that_were_not_measured_are_refused(
    table: str, changes: dict[str, Any], words: str
) -> None:
    check_matching(RESULT)
    changed = getattr(RESULT, table).assign(**changes)
    with pytest.raises(ValueError, match=words):
        check_matching(replace(RESULT, tables={**RESULT.tables, table: changed}))


# ---------------------------------------------------------------- the figures


def test_likeness_draws_the_last_layers_of_each_two_models() -> None:
    (ax,) = draw_likeness(RESULT).axes
    table = rows_of(RESULT.matching, layer="layer4", other_layer="layer4")
    line, _, (reach,) = ax.containers[0]
    np.testing.assert_array_equal(line.get_xdata(), table["cka"])
    ends = np.array([segment[:, 0] for segment in reach.get_segments()])
    np.testing.assert_allclose(ends, table[["low", "high"]])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["nat – at", "nat – cifs", "at – cifs"]


def test_layer_likeness_draws_each_pair_of_layers_as_shade_and_number() -> None:
    (ax,) = draw_layer_likeness(RESULT, "nat", "cifs").axes
    (mesh,) = [part for part in ax.collections if isinstance(part, QuadMesh)]
    wanted = rows_of(RESULT.matching, model="nat", other="cifs")["cka"]
    np.testing.assert_array_equal(np.ravel(mesh.get_array()), wanted)
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in wanted]
    assert mesh.get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer of cifs", "layer of\nnat")


def make_steadier(uneven: bool = False) -> Result:
    """Return two models, of which the second holds channel 2 still, which is channel 0 there.

    With ``uneven``, class bird has three times the images, and magnitudes that are larger by 1.
    """
    study = synthetic_study(("nat", "at"), ("bird", "cat"), channels=4)
    result = make_result(study, *ANALYSES)
    magnitude = {  # natural, adversarial
        "nat": np.array([[1.0, 1.0, 1.0, 1.0], [1.1, 0.5, 3.0, 1.0]]),
        "at": np.array([[2.0, 2.0, 2.0, 2.0], [2.2, 2.1, 0.2, 2.0]]),
    }
    table = result.tables["activations"]
    assert isinstance(table, ChannelTable)
    more = np.array([[1.0], [0.0]]) * uneven
    count = np.array([[30.0], [10.0]]) if uneven else np.full((2, 1), 10.0)
    groups: dict[tuple[str, ...], dict[str, ndarray]] = {}
    for (model, data, layer), arrays in table.groups.items():
        row = magnitude[model][int(data == "adversarial")]
        changed = {"magnitude": np.tile(row, (2, 1)) + more, "count": count}
        groups[model, data, layer] = {**arrays, **changed}
    pairs = result.matched.assign(
        channel=[2, 0, 1, 3], other_channel=[0, 1, 2, 3], correlation=[0.9, 0.8, 0.7, 0.1]
    )
    tables = {"activations": replace(table, groups=groups), "matched": pairs}
    return replace(result, tables={**result.tables, **tables})


def test_the_channel_that_the_other_model_holds_still_is_found() -> None:
    drawn = matched_channels_data(make_steadier(), "nat", "at", "layer4").set_index("channel")
    assert drawn["change"].to_dict() == pytest.approx({2: 2.0, 0: 0.1, 1: -0.5, 3: 0})
    assert drawn["other_change"].to_dict() == pytest.approx({2: 0.1, 0: 0.05, 1: -0.9, 3: 0})
    # The attack moves 1 further, and 3 has no counterpart.
    assert list(drawn.index[drawn["numbered"]]) == [2, 0]


def test_changes_are_those_over_all_images_whatever_their_classes() -> None:
    drawn = matched_channels_data(make_steadier(uneven=True), "nat", "at", "layer4")
    of_layer = 1.75  # the mean magnitude
    assert drawn.set_index("channel")["change"][2] == pytest.approx(2.0 / of_layer)


def test_matched_channels_draw_every_pair_and_number_those_held_still() -> None:
    result = make_steadier()
    drawn = matched_channels_data(result, "nat", "at", "layer4")
    above, below = draw_matched_channels(result, "nat", "at", "layer4").axes
    sizes = 100 * drawn[["change", "other_change"]].abs()
    weak, good = (line.get_xydata() for line in above.lines[:2])
    same = drawn["correlation"] >= 0.5
    np.testing.assert_array_equal(good, sizes[same])
    np.testing.assert_array_equal(weak, sizes[~same])
    names = [label.get_text() for label in below.get_yticklabels()]
    assert names == ["2 ↔ 0", "0 ↔ 1"]
    columns = zip(below.lines[1:], ("change", "other_change"), MODEL_COLOURS, strict=False)
    for line, column, colour in columns:
        np.testing.assert_array_equal(line.get_xdata(), drawn.loc[drawn["numbered"], column])
        assert to_hex(line.get_color()) == colour.lower()


def test_where_no_channel_is_held_still_the_figure_says_so() -> None:
    result = make_steadier()
    weak = {**result.tables, "matched": result.matched.assign(correlation=0.1)}
    figure = draw_matched_channels(replace(result, tables=weak), "nat", "at", "layer4")
    assert "no channel" in figure.axes[1].texts[0].get_text()


def test_pairs_and_layers_that_are_not_there_are_said_with_those_that_are() -> None:
    with mistake("No pair of 'nat' and 'cas' here. Choose from nat, at;"):
        draw_layer_likeness(RESULT, "nat", "cas")
    with mistake("at 'conv' here. Choose from nat, at, layer3;"):
        draw_matched_channels(RESULT, "nat", "at", "conv")


def test_each_pair_has_its_figures_and_the_first_models_are_shown_at_once() -> None:
    pairs = [("nat", "at"), ("nat", "cifs"), ("at", "cifs")]
    subjects = [(tuple(subject.arguments.values()), subject.main) for subject in by_pair(RESULT)]
    assert subjects == [(pair, pair[0] == "nat") for pair in pairs]
    assert not list(by_pair(make_steadier()))  # one layer each
    subjects = [
        (tuple(subject.arguments.values()), subject.main) for subject in by_matched_layers(RESULT)
    ]
    assert subjects == [
        ((*pair, layer), pair[0] == "nat" and layer == "layer4")
        for pair in pairs
        for layer in ("layer3", "layer4")
    ]


def test_alternative_texts_say_how_alike_models_are() -> None:
    first = likeness_data(RESULT).iloc[0]
    assert describe_likeness(likeness_data(RESULT)).startswith(f"nat, at: CKA {first['cka']:.2f} [")
    layers = layer_likeness_data(RESULT, "nat", "cifs")
    most = layers.loc[layers["cka"].idxmax()]
    assert describe_likeness(layers).endswith(f"for {most['layer']} and {most['other_layer']}.")
    drawn = matched_channels_data(make_steadier(), "nat", "at", "layer4")
    wanted = "nat, at: 3 of 4 pairs correspond, and the attack moves 2 of them less in the other."
    assert describe_matched_channels(drawn) == wanted
