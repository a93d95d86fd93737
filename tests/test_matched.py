"""Figures between models: what they draw is what their tables say, and these are what the comparison's frames say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from channelscope import figures as plots
from channelscope.comparison import Comparison
from channelscope.errors import UserError
from channelscope.figures import matching
from channelscope.figures.paper import MODEL_COLOURS
from comparisons import synthetic

THREE = synthetic(
    ("nat", "at", "cifs"), ("bird", "cat"), ("layer3", "layer4"), channels=12, whole=True
)


def test_likeness_draws_the_last_layers_of_each_two_models() -> None:
    (ax,) = plots.likeness(THREE).axes
    frame = THREE.matching.query("layer == 'layer4' and other_layer == 'layer4'")
    line, _, (reach,) = ax.containers[0]
    np.testing.assert_array_equal(line.get_xdata(), frame["cka"])
    ends = np.array([segment[:, 0] for segment in reach.get_segments()])
    np.testing.assert_allclose(ends, frame[["low", "high"]])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "nat – at",
        "nat – cifs",
        "at – cifs",
    ]


def test_layer_likeness_draws_each_pair_of_layers_as_shade_and_number() -> None:
    (ax,) = plots.layer_likeness(THREE, "nat", "cifs").axes
    (mesh,) = [part for part in ax.collections if isinstance(part, QuadMesh)]
    wanted = THREE.matching.query("model == 'nat' and other == 'cifs'")
    np.testing.assert_array_equal(np.ravel(mesh.get_array()), wanted["cka"])
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}"[1:] for value in wanted["cka"]]
    assert mesh.get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer of cifs", "layer of\nnat")


def test_numbers_are_black_or_white_by_the_luminance_of_their_shade() -> None:
    values = [0.0, 0.5, 0.6, 1.0]
    (ax,) = plots.layer_likeness(replace(THREE, matching=_cka(values)), "nat", "cifs").axes
    shades = ax.collections[0].to_rgba(np.array(values))[:, 0]
    assert [text.get_color() for text in ax.texts] == [
        "white" if shade < 0.46 else "black" for shade in shades
    ]
    assert {text.get_color() for text in ax.texts} == {"white", "black"}


def _cka(values: list[float]) -> pd.DataFrame:
    rows = THREE.matching.query("model == 'nat' and other == 'cifs'")
    return rows.assign(cka=values)


def fixing() -> Comparison:
    """Two models of which the second holds channel 2 still, its own channel 0, that the attack moves in the first."""
    comparison = synthetic(("nat", "at"), ("bird", "cat"), channels=4, whole=True)
    magnitude = {  # natural, adversarial
        "nat": [(1.0, 1.1), (1.0, 0.5), (1.0, 3.0), (1.0, 1.0)],
        "at": [(2.0, 2.2), (2.0, 2.1), (2.0, 0.2), (2.0, 2.0)],
    }
    rows = comparison.activations
    values = [
        magnitude[model][channel][data == "adversarial"]
        for model, channel, data in zip(rows["model"], rows["channel"], rows["data"], strict=True)
    ]
    pairs = comparison.matched.assign(
        channel=[2, 0, 1, 3], other_channel=[0, 1, 2, 3], correlation=[0.9, 0.8, 0.7, 0.1]
    )
    return replace(comparison, activations=rows.assign(magnitude=values), matched=pairs)


def test_the_channel_that_the_other_model_holds_still_is_found() -> None:
    drawn = matching.matched_channels_data(fixing(), "nat", "at", "layer4").set_index("channel")
    assert drawn["change"].to_dict() == pytest.approx({2: 2.0, 0: 0.1, 1: -0.5, 3: 0})
    assert drawn["other_change"].to_dict() == pytest.approx({2: 0.1, 0: 0.05, 1: -0.9, 3: 0})
    assert list(drawn.index[drawn["numbered"]]) == [
        2,
        0,
    ]  # 1 is moved further by the attack, 3 has no counterpart


def test_matched_channels_draw_every_pair_and_number_those_held_still() -> None:
    comparison = fixing()
    drawn = matching.matched_channels_data(comparison, "nat", "at", "layer4")
    above, below = plots.matched_channels(comparison, "nat", "at", "layer4").axes
    without, counterparts = (line.get_xydata() for line in above.lines[:2])
    same = drawn["correlation"] >= 0.5
    np.testing.assert_array_equal(counterparts, drawn.loc[same, ["change", "other_change"]])
    np.testing.assert_array_equal(without, drawn.loc[~same, ["change", "other_change"]])
    assert [label.get_text() for label in below.get_yticklabels()] == [
        "2 ↔ 0, r 0.90",
        "0 ↔ 1, r 0.80",
    ]
    for line, column, colour in zip(
        below.lines, ("change", "other_change"), MODEL_COLOURS, strict=False
    ):
        np.testing.assert_array_equal(line.get_xdata(), drawn.loc[drawn["numbered"], column])
        assert to_hex(line.get_color()) == colour.lower()


def test_changes_are_those_over_all_images_whatever_their_classes() -> None:
    comparison = fixing()
    rows = comparison.activations
    uneven = rows.assign(
        count=np.where(rows["class"] == "bird", 30, 10),
        magnitude=rows["magnitude"] + np.where(rows["class"] == "bird", 1.0, 0.0),
    )
    drawn = matching.matched_channels_data(
        replace(comparison, activations=uneven), "nat", "at", "layer4"
    )
    assert drawn.set_index("channel")["change"][2] == pytest.approx(
        2.0 / 1.75
    )  # of the layer's mean magnitude


def test_where_no_channel_is_held_still_the_figure_says_so() -> None:
    comparison = fixing()
    figure = plots.matched_channels(
        replace(comparison, matched=comparison.matched.assign(correlation=0.1)),
        "nat",
        "at",
        "layer4",
    )
    assert "no channel" in figure.axes[1].texts[0].get_text()


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.likeness(synthetic(("nat",))), "one model alone"),
        (
            lambda: plots.layer_likeness(THREE, "nat", "cas"),
            "No pair of 'nat' and 'cas' here. Choose from nat, at;",
        ),
        (
            lambda: plots.matched_channels(THREE, "nat", "at", "conv"),
            "at 'conv' here. Choose from nat, at, layer3;",
        ),
    ],
    ids=["alone", "pair", "layer"],
)
def test_mistakes_are_told_with_what_is_there(draw, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw()


def test_the_comparison_lists_its_figures_between_models_and_draws_them_by_method() -> None:
    pairs = ("nat-at", "nat-cifs", "at-cifs")
    names = [
        name for name in plots.figures(THREE) if name.startswith(("likeness", "layer-", "matched"))
    ]
    layers = [
        f"matched-channels-{pair}-{layer}" for pair in pairs for layer in ("layer3", "layer4")
    ]
    assert names == ["likeness", *(f"layer-likeness-{pair}" for pair in pairs), *layers]
    wanted = matching.matched_channels_data(THREE, "nat", "at", "layer4")
    pd.testing.assert_frame_equal(plots.data("matched-channels-nat-at-layer4", THREE), wanted)
    assert len(THREE.plot_matched_channels("nat", "at", "layer4").axes) == 2
    assert len(THREE.plot_likeness().axes) == len(THREE.plot_layer_likeness("nat", "at").axes) == 1
    one = synthetic(("nat", "at"), ("bird", "cat"), whole=True)
    assert "layer-likeness-nat-at" not in plots.figures(one)
