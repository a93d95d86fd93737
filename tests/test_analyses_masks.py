"""Masks: tables are those of a loop over the images; figures draw what they say."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from numpy import ndarray

import reference
from channelscope.analyses.base import ChannelTable
from channelscope.analyses.masks import (
    by_gate,
    check_masks,
    describe_mask_share,
    describe_masks,
    draw_mask_share,
    draw_masks,
    mask_share_data,
    masks_data,
)
from channelscope.figures.paper import COLOURS
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import join_texts, rows_of
from helpers.studies import make_result, synthetic_study

ANALYSES = ("masks", "robustness")
CLASSES = ("bird", "cat", "dog")
GATES = ("layer4.0", "layer4.1")
STUDY = synthetic_study(("at", "cifs"), CLASSES, gates=GATES, channels=7)
RESULT = make_result(STUDY, *ANALYSES)


def change_masks(change: object) -> Result:
    """Return the result with other masks: a function of each array (classes, channels)."""
    table = RESULT.tables["masks"]
    assert isinstance(table, ChannelTable)
    groups = {
        group: {"mask": change(arrays["mask"].copy())}  # type: ignore[operator]
        for group, arrays in table.groups.items()
    }
    return replace(RESULT, tables={**RESULT.tables, "masks": replace(table, groups=groups)})


# ---------------------------------------------------------------- the tables


def test_mean_masks_and_shares_are_those_of_a_loop_over_the_images() -> None:
    for model, gate, data in product(STUDY.models, GATES, COLOURS):
        masks = STUDY.masks(model, gate, data)
        share = np.array([reference.mask_share(torch.from_numpy(mask)) for mask in masks])
        spread = RESULT.select("spread", model=model, layer=gate, data=data).set_index("class")
        assert list(spread.index) == ["all", *CLASSES]
        for k, name in enumerate(CLASSES):
            images = STUDY.labels == k
            where = {"model": model, "layer": gate, "data": data, "class": name}
            mean = RESULT.select("masks", **where)["mask"]
            np.testing.assert_allclose(mean, masks[images].astype(float).mean(0))
            assert spread.loc[name, "value"] == pytest.approx(share[images].mean(), rel=1e-6)
        assert spread.loc["all", "value"] == pytest.approx(share.mean(), rel=1e-6)
        assert (spread["low"] < spread["value"]).all()
        assert (spread["value"] < spread["high"]).all()


def test_models_without_gates_have_no_rows() -> None:
    result = make_result(synthetic_study(("at",)), *ANALYSES)
    assert len(result.masks) == len(result.spread) == 0
    assert not list(by_gate(result))


def blank_class(masks: ndarray) -> ndarray:
    masks[1] = np.nan
    return masks


def blank_channel(masks: ndarray) -> ndarray:
    masks[1, 0] = np.nan
    return masks


@pytest.mark.parametrize("change", [lambda masks: masks * np.nan, blank_channel])
def test_masks_that_are_not_whole_are_refused(change: object) -> None:
    check_masks(change_masks(blank_class))
    with pytest.raises(ValueError, match="lacks masks"):
        check_masks(change_masks(change))


def test_masks_of_one_kind_of_data_are_refused() -> None:
    table = RESULT.tables["masks"]
    assert isinstance(table, ChannelTable)
    groups = {group: arrays for group, arrays in table.groups.items() if "natural" in group}
    with pytest.raises(ValueError, match="lacks data"):
        check_masks(replace(RESULT, tables={"masks": replace(table, groups=groups)}))


# ---------------------------------------------------------------- the figures


def test_masks_are_drawn_by_class_and_by_the_channels_order() -> None:
    drawn = masks_data(RESULT, "cifs", "layer4.1")
    figure = draw_masks(RESULT, "cifs", "layer4.1")
    table = RESULT.select("masks", model="cifs", layer="layer4.1")
    limits = []
    for ax, data in zip(figure.axes, COLOURS, strict=False):
        (mesh,) = [part for part in ax.collections if isinstance(part, QuadMesh)]
        rows = rows_of(drawn, data=data)
        np.testing.assert_array_equal(np.ravel(mesh.get_array()), rows["mask"])
        wanted = rows_of(table, data=data).set_index(["class", "channel"])["mask"]
        keys = list(zip(rows["class"], rows["channel"], strict=True))
        np.testing.assert_array_equal(wanted.loc[keys], rows["mask"])
        assert list(rows["place"]) == [*range(1, 8)] * 3
        assert [label.get_text() for label in ax.get_yticklabels()] == list(CLASSES)
        assert data in ax.get_title(loc="left")
        limits.append(mesh.get_clim())
    assert limits[0] == limits[1]


def test_channels_that_a_mask_all_but_closes_are_in_the_table_alone() -> None:
    def close(masks: ndarray) -> ndarray:
        masks[:, [0, 3]] = 1e-4
        return masks

    result = change_masks(close)
    drawn = masks_data(result, "at", "layer4.1")
    assert set(drawn.loc[~drawn["shown"], "channel"]) == {0, 3}
    assert set(drawn.loc[~drawn["shown"], "place"]) == {6, 7}
    assert len(drawn) == 7 * 3 * 2
    figure = draw_masks(result, "at", "layer4.1")
    shown = drawn.loc[drawn["shown"] & (drawn["data"] == "natural"), "mask"]
    np.testing.assert_array_equal(np.ravel(figure.axes[0].collections[0].get_array()), shown)
    assert "the other 2 channels: below 1% of the largest factor" in join_texts(figure)


def test_channels_are_sorted_by_the_class_that_they_are_let_through_for_most() -> None:
    natural = rows_of(masks_data(RESULT, "at", "layer4.1"), data="natural")
    cells = natural["mask"].to_numpy().reshape(3, 7)
    most, height = cells.argmax(0), cells.max(0)
    assert (np.diff(most) >= 0).all()
    for k in range(3):
        assert (np.diff(height[most == k]) <= 0).all()


def test_masks_with_signs_have_colours_of_both() -> None:
    """White is 0: factors of one size have colours of one strength, whatever their sign."""
    signed, positive = (
        draw_masks(RESULT, "at", gate).axes[0].collections[0].get_clim() for gate in GATES
    )
    assert signed[0] == -signed[1] < 0
    assert positive[0] == 0


def test_classes_without_images_have_no_row() -> None:
    study = synthetic_study(("at",), CLASSES, gates=GATES, channels=7, empty=("cat",))
    result = make_result(study, *ANALYSES)
    assert set(masks_data(result, "at", "layer4.0")["class"]) == {"bird", "dog"}
    assert set(mask_share_data(result)["class"]) == {"bird", "dog", "all images"}


def test_the_share_in_effect_is_drawn_with_its_interval() -> None:
    figure = draw_mask_share(RESULT)
    assert len(figure.axes) == 4
    for ax, (model, layer) in zip(figure.axes, product(STUDY.models, GATES), strict=True):
        assert ax.get_title(loc="left") == f"{model}\n{layer}"
        for bars, data in zip(ax.containers, COLOURS, strict=True):
            rows = rows_of(RESULT.spread, model=model, layer=layer, data=data)
            rows = rows.set_index("class").loc[[*CLASSES, "all"]]
            line, _, (reach,) = bars
            assert to_hex(line.get_color()) == COLOURS[data].lower()
            np.testing.assert_array_equal(line.get_ydata(), rows["value"])
            ends = np.array([segment[:, 1] for segment in reach.get_segments()])
            np.testing.assert_allclose(ends, rows[["low", "high"]])


def test_each_gate_has_its_figure_and_the_last_ones_are_shown_at_once() -> None:
    subjects = [(*subject.arguments.values(), subject.main) for subject in by_gate(RESULT)]
    wanted = [(model, gate, gate == GATES[-1]) for model, gate in product(STUDY.models, GATES)]
    assert subjects == wanted


def test_what_is_not_there_is_said_with_what_to_do() -> None:
    with mistake("No gate 'layer1' of 'at' here. Choose from at, layer4.0; at, layer4.1;"):
        draw_masks(RESULT, "at", "layer1")
    with mistake("compare one of CIFS or CAS"):
        draw_mask_share(make_result(synthetic_study(("at",)), *ANALYSES))


def test_alternative_texts_say_range_and_share() -> None:
    drawn = masks_data(RESULT, "at", "layer4.1")
    natural = rows_of(drawn, data="natural")["mask"]
    words = (
        f"natural: factors from {natural.min():.3g} to {natural.max():.3g}, half of their sum on"
    )
    assert describe_masks(drawn).startswith(words)
    share = rows_of(RESULT.spread, model="at", layer="layer4.0", class_="all")["value"]
    natural_share, adversarial_share = share
    assert describe_mask_share(mask_share_data(RESULT)).startswith(
        f"at, layer4.0: {100 * natural_share:.1f} % on natural images, "
        f"{100 * adversarial_share:.1f} % on adversarial ones"
    )
