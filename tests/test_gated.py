"""Figures of gates in use: what they draw is what their tables say, and these are what the comparison's frames say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from channelscope import figures as plots
from channelscope.errors import UserError
from channelscope.figures import gated
from channelscope.figures.paper import COLOURS
from comparisons import synthetic

GATED = synthetic(
    ("at", "cifs"), ("bird", "cat", "dog"), gates=("layer4.0", "layer4.1"), channels=7, whole=True
)


def test_masks_are_drawn_by_class_and_by_the_channels_order() -> None:
    drawn = gated.masks_data(GATED, "cifs", "layer4.1")
    figure = plots.masks(GATED, "cifs", "layer4.1")
    frame = GATED.masks[(GATED.masks["model"] == "cifs") & (GATED.masks["layer"] == "layer4.1")]
    for ax, data in zip(figure.axes, COLOURS, strict=False):
        (mesh,) = [part for part in ax.collections if isinstance(part, QuadMesh)]
        rows = drawn[drawn["data"] == data]
        np.testing.assert_array_equal(np.ravel(mesh.get_array()), rows["mask"])
        wanted = frame[frame["data"] == data].set_index(["class", "channel"])["mask"]
        np.testing.assert_array_equal(
            wanted.loc[zip(rows["class"], rows["channel"], strict=True)], rows["mask"]
        )
        assert list(rows["place"]) == [*range(1, 8)] * 3
        assert [label.get_text() for label in ax.get_yticklabels()] == ["bird", "cat", "dog"]
        assert data in ax.get_title(loc="left")
    both = [part.get_clim() for ax in figure.axes[:2] for part in ax.collections]
    assert both[0] == both[1]


def test_channels_that_a_mask_all_but_closes_are_in_the_table_alone() -> None:
    masks = GATED.masks.assign(
        mask=GATED.masks["mask"].where(~GATED.masks["channel"].isin([0, 3]), 1e-4)
    )
    comparison = replace(GATED, masks=masks)
    drawn = gated.masks_data(comparison, "at", "layer4.1")
    assert set(drawn.loc[~drawn["shown"], "channel"]) == {0, 3}
    assert set(drawn.loc[~drawn["shown"], "place"]) == {6, 7}
    assert len(drawn) == 7 * 3 * 2
    figure = plots.masks(comparison, "at", "layer4.1")
    np.testing.assert_array_equal(
        np.ravel(figure.axes[0].collections[0].get_array()),
        drawn.loc[drawn["shown"] & (drawn["data"] == "natural"), "mask"],
    )
    said = " ".join(figure.legends[0].get_title().get_text().split())
    assert (
        said
        == "mean over the images of each class (true class); the other 2 channels: below 1% of the largest factor"
    )


def test_channels_are_sorted_by_the_class_that_they_are_let_through_for_most() -> None:
    natural = gated.masks_data(GATED, "at", "layer4.1").query("data == 'natural'")
    cells = natural.pivot(index="class", columns="place", values="mask").to_numpy()
    most, height = cells.argmax(0), cells.max(0)
    assert (np.diff(most) >= 0).all()
    for k in range(3):
        assert (np.diff(height[most == k]) <= 0).all()


def test_masks_with_signs_have_colours_of_both() -> None:
    """White is 0: a factor of the same size has a colour of the same strength, whatever its sign."""
    signed, positive = (
        plots.masks(GATED, "at", gate).axes[0].collections[0].get_clim()
        for gate in ("layer4.0", "layer4.1")
    )
    assert signed[0] == -signed[1] < 0
    assert positive[0] == 0


def test_classes_without_images_have_no_row() -> None:
    masks = GATED.masks.assign(mask=GATED.masks["mask"].where(GATED.masks["class"] != "cat"))
    assert set(gated.masks_data(replace(GATED, masks=masks), "at", "layer4.0")["class"]) == {
        "bird",
        "dog",
    }


def test_the_share_in_effect_is_drawn_with_its_interval() -> None:
    figure = plots.mask_share(GATED)
    panels = [(model, layer) for model in ("at", "cifs") for layer in ("layer4.0", "layer4.1")]
    assert len(figure.axes) == 4
    for ax, (model, layer) in zip(figure.axes, panels, strict=True):
        assert ax.get_title(loc="left") == f"{model}, gate at {layer}"
        for bars, data in zip(ax.containers, COLOURS, strict=True):
            rows = GATED.spread.query(
                "model == @model and layer == @layer and data == @data"
            ).set_index("class")
            rows = rows.loc[["bird", "cat", "dog", "all"]]
            line, _, (reach,) = bars
            assert to_hex(line.get_color()) == COLOURS[data].lower()
            np.testing.assert_array_equal(line.get_ydata(), rows["value"])
            ends = np.array([segment[:, 1] for segment in reach.get_segments()])
            np.testing.assert_allclose(ends, rows[["low", "high"]])


@pytest.mark.parametrize("model", ["at", "cifs"])
def test_leakage_draws_every_measure_and_beside_it_what_chance_gives(model: str) -> None:
    figure = plots.leakage(GATED)
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
    assert [place for place, seen in enumerate(ticks) if not seen] == [0, 4, 6, 9]
    for bars, data in zip(ax.containers, COLOURS, strict=True):
        rows = GATED.leakage.query("model == @model and data == @data").set_index(
            ["layer", "measure"]
        )["value"]
        x, y = bars.lines[0].get_data()
        assert to_hex(bars.lines[0].get_color()) == COLOURS[data].lower()
        np.testing.assert_array_equal(x, rows.loc[[*lines]])
        assert [round(place) for place in y] == [place for place, _ in lines.values()]
        strokes = next(
            line for line in ax.lines if line.get_marker() == "|" and line.get_ydata()[0] == y[0]
        )
        chance = [
            np.nan if name is None else rows.loc[(layer, name)]
            for (layer, _), (_, name) in lines.items()
        ]
        np.testing.assert_array_equal(strokes.get_xdata(), chance)


def test_a_gate_that_takes_no_label_is_not_said_to_be_told_one() -> None:
    """Such as that of FSR: only its mask is read."""
    frame = GATED.leakage
    untold = frame[(frame["layer"] == "layer4.0") & (frame["measure"] != "readable_true")]
    words = gated.leakage_data(replace(GATED, leakage=untold))["words"]
    assert set(words) == {"true class from mask, layer4.0", "gate told nothing"}


@pytest.mark.parametrize("make", [plots.leakage, plots.mask_share], ids=["leakage", "share"])
def test_without_gates_a_sentence_says_what_to_do(make) -> None:
    with pytest.raises(UserError, match="compare one of CIFS or CAS"):
        make(synthetic(("at",)))


def test_an_unknown_gate_is_told_with_those_that_are_there() -> None:
    with pytest.raises(
        UserError, match=r"No gate 'layer1' of 'at' here. Choose from at, layer4.0; at, layer4.1;"
    ):
        plots.masks(GATED, "at", "layer1")


def test_the_comparison_lists_its_figures_of_gates_and_draws_them_by_method() -> None:
    names = [name for name in plots.figures(GATED) if name.startswith(("mask", "leak"))]
    masks = [f"masks-{model}-layer4-{gate}" for model in ("at", "cifs") for gate in (0, 1)]
    assert names == ["leakage", *masks, "mask-share"]
    pd.testing.assert_frame_equal(
        plots.data(masks[3], GATED), gated.masks_data(GATED, "cifs", "layer4.1")
    )
    assert len(GATED.plot_masks("at", "layer4.0").axes) == len(GATED.plot_leakage().axes) + 1
    assert len(GATED.plot_mask_share().axes) == 4
