"""Profiles: channels sorted by relevance, by magnitude, and as CAS's release sorts them."""

from dataclasses import replace

import numpy as np
import pytest

import reference
from channelscope.analyses.profiles import by_place, choose_places, draw_profile, profile_data
from channelscope.figures.paper import COLOURS
from helpers.expect import mistake
from helpers.figures import ADVERSARIAL, join_texts, lines_of_colour, rows_of
from helpers.studies import make_result, synthetic_study

CLASSES = ("bird", "cat", "dog", "frog")
NAMES = ("activations", "alignment", "robustness", "profiles")
STUDY = synthetic_study(
    ("at", "cifs"), CLASSES, ("layer3", "layer4", "layer4.gated"), channels=8, empty=("dog",)
)
# A network without gates has no layer behind one.
STUDY.known["at"]["layers"] = ["layer3", "layer4"]  # type: ignore[index]
RESULT = make_result(STUDY, *NAMES)
EXTREMES = list(profile_data(RESULT, "magnitude")["class"].unique())


def values(column: str, model: str, layer: str, class_name: str, data: str) -> np.ndarray:
    where = {"model": model, "data": data, "layer": layer, "class": class_name}
    return RESULT.select("activations", **where)[column].to_numpy()


def test_a_gated_layer_is_shown_on_both_sides_of_its_mask() -> None:
    places = [("at", "layer4"), ("cifs", "layer4"), ("cifs", "layer4.gated")]
    assert choose_places(RESULT) == choose_places(RESULT, "layer4") == places
    assert choose_places(RESULT, "layer3") == [("at", "layer3"), ("cifs", "layer3")]
    subjects = {subject.arguments["layer"]: subject.main for subject in by_place(RESULT)}
    assert subjects == {"layer3": False, "layer4": True}
    text = join_texts(draw_profile(RESULT, "relevance"))
    assert "cifs before the mask" in text
    assert "cifs after the mask" in text
    assert "at before" not in text
    with mistake("No layer 'layer5' here"):
        profile_data(RESULT, "relevance", "layer5")


@pytest.mark.parametrize("order", ["relevance", "magnitude"])
def test_channels_are_in_the_order_of_the_class_in_that_place(order: str) -> None:
    figure = draw_profile(RESULT, order, "layer4")  # type: ignore[arg-type]
    assert len(figure.axes) == 6
    for place, (model, layer) in enumerate(choose_places(RESULT)):
        for column, class_name in enumerate(EXTREMES):
            where = model, layer, class_name
            natural, adversarial = (values("magnitude", *where, data) for data in COLOURS)
            relevance = values("relevance", *where, "natural")
            channels = np.argsort(-(relevance if order == "relevance" else natural))
            ax = figure.axes[2 * place + column]
            (points,) = lines_of_colour(ax, ADVERSARIAL)
            np.testing.assert_array_equal(points, np.c_[np.arange(1, 9), adversarial[channels]])
            for patch in ax.patches:
                np.testing.assert_array_equal(patch.get_data().values, natural[channels])
            dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
            assert dashed == ([(relevance > 0).sum() + 0.5] if order == "relevance" else [])
        # Two classes can be compared by eye: their axes are common.
        left, right = figure.axes[2 * place : 2 * place + 2]
        assert left.get_ylim() == right.get_ylim()
        assert left.get_xlim() == right.get_xlim()


def test_active_means_are_those_of_the_release_of_cas() -> None:
    data = profile_data(RESULT, "each", "layer4")
    for model, class_name, kind in (
        (model, class_name, kind)
        for model in STUDY.models
        for class_name in EXTREMES
        for kind in COLOURS
    ):
        images = STUDY.labels == CLASSES.index(class_name)
        activations = STUDY.activations(model, "layer4", kind)[images].astype(float)
        naive = [reference.active_mean(activations, channel) for channel in range(8)]
        where = {"model": model, "layer": "layer4", "class_": class_name, "data": kind}
        rows = rows_of(data, **where)
        np.testing.assert_allclose(rows["value"], sorted(naive, reverse=True), rtol=1e-6)
        np.testing.assert_allclose(rows["value"], np.array(naive)[rows["channel"]], rtol=1e-6)


def test_a_channel_that_no_image_activates_and_a_class_without_images_have_no_mean() -> None:
    arrays = dict(STUDY.arrays)
    arrays["activations/0/natural/layer4"] = arrays["activations/0/natural/layer4"].copy()
    arrays["activations/0/natural/layer4"][:, 3] = 0
    result = make_result(replace(STUDY, arrays=arrays, memory={}), *NAMES)
    rows = rows_of(profile_data(result, "each", "layer4"), model="at", data="natural", channel=3)
    assert set(rows["value"]) == {0.0}
    lonely = synthetic_study(("at",), ("a", "b"), channels=3, empty=("b",))
    assert not profile_data(make_result(lonely, *NAMES), "each")["value"].isna().any()
