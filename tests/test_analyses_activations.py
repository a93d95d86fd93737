"""Activations and embedding: the table is that of naive means; figures draw what it says."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from sklearn.decomposition import PCA

import reference
from channelscope.analyses.activations import (
    check_activations,
    describe_relevance,
    describe_uniformity,
    draw_frequency,
    draw_magnitude,
    draw_relevance,
    draw_uniformity,
    relevance_data,
    uniformity_data,
)
from channelscope.analyses.base import ChannelTable
from channelscope.analyses.embedding import draw_embedding, embedding_data
from channelscope.figures.paper import COLOURS
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import (
    ADVERSARIAL,
    NATURAL,
    join_texts,
    lines_of_colour,
    read_texts,
    rows_of,
)
from helpers.studies import make_result, synthetic_study

ANALYSES = ("activations", "alignment", "robustness")
CLASSES = ("bird", "cat", "dog", "frog")
STUDY = synthetic_study(("nat", "at"), CLASSES, ("layer3", "layer4"), channels=8, empty=("dog",))
RESULT = make_result(STUDY, *ANALYSES)


def values(quantity: str, model: str, class_name: str, data: str) -> np.ndarray:
    where = {"model": model, "data": data, "layer": "layer4", "class": class_name}
    return RESULT.select("activations", **where)[quantity].to_numpy()


def change_magnitude(result: Result, change: object) -> Result:
    """Return the result with other magnitudes: a function of each array."""
    table = result.tables["activations"]
    assert isinstance(table, ChannelTable)
    groups = {
        group: {**arrays, "magnitude": change(arrays["magnitude"])}  # type: ignore[operator]
        for group, arrays in table.groups.items()
    }
    changed = replace(table, groups=groups)
    return replace(result, tables={**result.tables, "activations": changed})


@pytest.mark.parametrize("data", COLOURS)
def test_the_table_is_of_naive_means(data: str) -> None:
    for k, name in enumerate(CLASSES):
        images = STUDY.labels == k
        for model in STUDY.models:
            rows = RESULT.select("activations", model=model, data=data, layer="layer3")
            rows = rows_of(rows, class_=name)
            assert set(rows["count"]) == {images.sum()}
            if not images.any():
                assert rows[["magnitude", "frequency", "relevance"]].isna().all().all()
                continue
            activations = STUDY.activations(model, "layer3", data)[images].astype(float)
            threshold = 0.01 * activations.max(1, keepdims=True)
            relevance = STUDY.relevance(model, "layer3")[images].astype(float)
            np.testing.assert_allclose(rows["magnitude"], activations.mean(0))
            np.testing.assert_allclose(rows["frequency"], (activations > threshold).mean(0))
            np.testing.assert_allclose(rows["relevance"], relevance.mean(0))


def test_tables_that_contradict_the_settings_are_refused() -> None:
    check_activations(RESULT)
    models = {
        name: {**known, "layers": ["layer4"]} for name, known in RESULT.meta["models"].items()
    }
    with pytest.raises(ValueError, match="other layers"):
        check_activations(replace(RESULT, meta=RESULT.meta | {"models": models}))
    with pytest.raises(ValueError, match="not finite"):
        check_activations(change_magnitude(RESULT, lambda values: values + np.inf))


@pytest.mark.parametrize("quantity", ["magnitude", "frequency"])
def test_channels_are_drawn_in_the_order_of_the_models_own_natural_values(quantity: str) -> None:
    figure = RESULT.plot(quantity, class_name="cat")
    assert len(figure.axes) == 2
    for ax, model in zip(figure.axes, ("nat", "at"), strict=True):
        natural, adversarial = (values(quantity, model, "cat", data) for data in COLOURS)
        order = np.argsort(-natural, kind="stable")
        steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
        assert {to_hex(patch.get_facecolor()) for patch in steps if patch.get_fill()} == {NATURAL}
        for patch in steps:
            np.testing.assert_array_equal(patch.get_data().values, natural[order])
        (points,) = lines_of_colour(ax, ADVERSARIAL)
        np.testing.assert_array_equal(points, np.c_[np.arange(1, 9), adversarial[order]])
        worst = rows_of(RESULT.robustness, model=model, attack="worst", class_="cat")["accuracy"]
        assert ax.get_title(loc="left") == model
        assert ax.get_title(loc="right") == f"robust {100 * worst.item():.0f} %"


def test_profiles_say_class_attack_and_layer() -> None:
    text = join_texts(draw_magnitude(RESULT, "cat"))
    for words in (
        "cat: each channel's mean activation (magnitude), layer4",
        "adversarial (PGD-20, ε = 8/255)",
        "robust: accuracy on the class, under PGD-20",
    ):
        assert words in text


def test_a_class_without_images_is_said_to_be_empty() -> None:
    assert "no images of this class" in join_texts(draw_magnitude(RESULT, "dog"))
    assert "magnitude-dog-layer4" not in RESULT.figures


def test_unknown_classes_and_layers_get_a_suggestion() -> None:
    with mistake("No class 'brid'", "Did you mean 'bird'"):
        draw_magnitude(RESULT, "brid")
    with mistake("No layer 'layer5'", "choose from layer3, layer4"):
        draw_frequency(RESULT, "cat", "layer5")


def test_negative_magnitudes_are_shown() -> None:
    for result in (change_magnitude(RESULT, lambda values: values - 1), RESULT):
        ax = draw_magnitude(result, "cat").axes[0]
        drawn = np.concatenate([line.get_ydata() for line in ax.lines])
        assert ax.get_ylim()[0] <= min(0, drawn.min())


def test_classes_that_are_numbers_are_said_to_be_classes() -> None:
    study = synthetic_study(("nat",), ("0", "1"), ("features.3",), channels=2)
    text = join_texts(draw_magnitude(make_result(study, *ANALYSES), "1"))
    assert "class 1: each channel's mean activation (magnitude), layer features.3" in text


def test_relevance_draws_every_channel_and_spearman_of_the_extreme_classes() -> None:
    worst = rows_of(RESULT.robustness, attack="worst").dropna()
    mean = worst[worst["class"] != "all"].groupby("class")["accuracy"].mean()
    panels = [(model, name) for model in STUDY.models for name in (mean.idxmax(), mean.idxmin())]
    figure = draw_relevance(RESULT)
    for ax, (model, name) in zip(figure.axes, panels, strict=True):
        for data, colour in COLOURS.items():
            x, y = (values(column, model, name, data) for column in ("relevance", "magnitude"))
            (points,) = lines_of_colour(ax, colour)
            np.testing.assert_array_equal(points, np.c_[x, y])
            rho = reference.spearman(x.tolist(), y.tolist())
            title = ax._left_title if data == "natural" else ax._right_title
            assert title.get_text() == f"ρ {rho:z.2f}".replace("-", "−")
            assert to_hex(title.get_color()) == colour.lower()
    heads = [ax.texts[-1].get_text() for ax in figure.axes[:2]]
    assert heads == [f"most robust: {mean.idxmax()}", f"least robust: {mean.idxmin()}"]


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_correlations_that_rest_on_dead_channels_are_marked(dead: int) -> None:
    """Of 24 channels one that never fires is 4 %, and two are 8 %."""
    study = synthetic_study(("nat", "at"), ("a", "b", "c"))
    for name, array in study.arrays.items():
        if name.startswith("activations/"):
            array += 0.1  # some fire on no image as they are drawn
        if name.startswith("activations/1/"):
            array[:, :dead] = 0
    result = make_result(study, *ANALYSES)
    figure, data = draw_relevance(result), relevance_data(result)
    for ax, model in zip(figure.axes, ("nat", "nat", "at", "at"), strict=True):
        marks = [ax.get_title(loc=side).endswith("†") for side in ("left", "right")]
        assert marks == [model == "at" and dead == 2] * 2
    assert set(data.loc[data["model"] == "at", "dead_channels"]) == {dead / 24}
    words = "†: rests on dead channels: more than 5% never fire, and share one rank"
    assert (words in join_texts(figure)) == (dead == 2)
    assert (words in describe_relevance(data)) == (dead == 2)


def test_embedding_is_the_plane_of_the_class_means() -> None:
    figure = draw_embedding(RESULT)
    for ax, model in zip(figure.axes, STUDY.models, strict=True):
        rows = RESULT.select("activations", model=model, layer="layer4").dropna()
        means = rows.pivot(index=["class", "data"], columns="channel", values="magnitude")
        pca = PCA(2).fit(means)
        wanted = pd.DataFrame(np.abs(pca.transform(means)), index=means.index)
        for data, colour in COLOURS.items():
            dots = np.concatenate(lines_of_colour(ax, colour))
            np.testing.assert_allclose(np.abs(dots), wanted.xs(data, level="data"), atol=1e-9)
        for label, share in zip(
            (ax.get_xlabel(), ax.get_ylabel()), pca.explained_variance_ratio_, strict=True
        ):
            assert f"{100 * share:.0f} %" in label
    assert "1\u00a0cat" in "".join(read_texts(figure))


def test_numbers_of_crowded_classes_hide_neither_dots_nor_each_other() -> None:
    """Twelve classes are nearly at one place, and one is far away."""
    names = tuple(f"class {k}" for k in range(13))
    study = synthetic_study(("nat",), names, channels=8)
    far = (np.arange(13) == 12)[:, None] * np.arange(8)
    result = change_magnitude(make_result(study, *ANALYSES), lambda means: 0.01 * means + far)
    figure = draw_embedding(result)
    (ax,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    numbers = [text for text in ax.texts if text.get_text()]
    assert sorted(text.get_text() for text in numbers) == sorted(map(str, range(13)))
    assert min(text.get_fontsize() for text in numbers) >= 6.5
    boxes = [Text.get_window_extent(text, renderer).padded(-1.5) for text in numbers]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    dots = [dot for line in ax.lines for dot in ax.transData.transform(line.get_xydata())]
    assert not [dot for dot in dots for box in boxes if box.contains(*dot)]


def test_uniformity_draws_sorted_frequencies_and_says_the_measure() -> None:
    figure = draw_uniformity(RESULT)
    mean = rows_of(RESULT.alignment, class_="all", layer="layer4")
    for ax, model in zip(figure.axes, STUDY.models, strict=True):
        steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
        said = []
        for patch, (data, colour) in zip(steps, COLOURS.items(), strict=True):
            rows = RESULT.select("activations", model=model, data=data, layer="layer4").dropna()
            by_class = [sorted(part["frequency"])[::-1] for _, part in rows.groupby("class")]
            np.testing.assert_allclose(patch.get_data().values, np.mean(by_class, axis=0))
            drawn = patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()
            assert to_hex(drawn) == colour.lower()
            said.append(rows_of(mean, model=model, measure=f"uniformity_{data}")["value"].item())
        wanted = f"{said[0]:.3f}→{said[1]:.3f}"
        assert ax.get_title(loc="right") == wanted


def test_data_are_of_the_layer_that_was_asked_for() -> None:
    for make in (relevance_data, embedding_data, uniformity_data):
        assert set(make(RESULT, "layer3")["layer"]) == {"layer3"}
        assert set(make(RESULT)["layer"]) == {"layer4"}


def test_alternative_texts_say_the_measure() -> None:
    assert describe_uniformity(uniformity_data(RESULT)).startswith("nat: uniformity 0.")
