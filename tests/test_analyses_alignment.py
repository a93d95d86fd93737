"""Alignment, depth and strength: rows are the measures' replicates; figures draw the table."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from channelscope.analyses.alignment import (
    alignment_robustness_data,
    classes_data,
    describe_alignment_robustness,
    describe_nr_mass,
    draw_alignment_robustness,
    draw_classes,
    draw_nr_mass,
    nr_mass_data,
)
from channelscope.analyses.base import measure_study, worst_case
from channelscope.analyses.depth import depth_data, describe_depth, draw_depth
from channelscope.analyses.strength import decay_data, describe_decay, draw_decay
from channelscope.analyses.subjects import check_layers
from channelscope.figures.paper import COLOURS
from channelscope.statistics.intervals import estimate
from channelscope.statistics.measures import BOUNDS, across_classes, mean_over_classes
from helpers.expect import mistake
from helpers.figures import MODEL_COLOURS, join_texts, lines_of_model, read_texts, rows_of
from helpers.studies import make_result, synthetic_study

ANALYSES = ("activations", "alignment", "depth", "strength", "robustness")
CLASSES = ("bird", "cat", "dog", "frog")
LAYERS = ("layer3", "layer4")
STUDY = synthetic_study(
    ("nat", "at"), CLASSES, LAYERS, channels=8, empty=("cat",), swept=True, replicates=60
)
RESULT = make_result(STUDY, *ANALYSES)
SHALLOW = make_result(synthetic_study(("nat", "at"), CLASSES, channels=8), *ANALYSES)


@pytest.mark.parametrize("model", STUDY.models)
def test_rows_are_the_measures_of_each_class_their_mean_and_the_correlation(model: str) -> None:
    table = rows_of(RESULT.alignment, model=model, layer="layer3")
    assert list(table["class"].unique()) == ["all", *CLASSES, "across"]
    measures = measure_study(STUDY, model, "layer3")
    assert set(table["measure"]) == {*measures, "signed_mass_robust_correlation"} == set(BOUNDS)
    for measure, by_class in measures.items():
        columns = {"all": mean_over_classes(by_class)}
        columns |= {name: by_class[:, k] for k, name in enumerate(CLASSES)}
        for name, replicates in columns.items():
            row = rows_of(table, class_=name, measure=measure).iloc[0]
            wanted = estimate(replicates, 0.95, BOUNDS[measure])
            found = row[["value", "low", "high"]].tolist()
            assert found == pytest.approx([*vars(wanted).values()], nan_ok=True)
    robust = [worst_case(STUDY, model)[STUDY.labels == k] for k in range(len(CLASSES))]
    means = np.array([[hits.mean() if len(hits) else np.nan for hits in robust]])
    wanted = across_classes(measures["signed_mass_adversarial"][:1], means)[0]
    assert rows_of(table, class_="across")["value"].item() == pytest.approx(wanted)


def test_a_wider_level_gives_wider_intervals() -> None:
    study = synthetic_study(("at",), CLASSES, channels=8)
    study.settings = {**study.settings, "level": 0.5}
    narrow = make_result(study, "alignment").alignment
    study.settings = {**study.settings, "level": 0.99}
    wide = make_result(study, "alignment").alignment
    assert (narrow["value"] == wide["value"]).all()
    assert (wide["low"] <= narrow["low"]).all()
    assert (narrow["high"] <= wide["high"]).all()


def test_tables_of_other_layers_are_refused() -> None:
    check_layers(RESULT, "alignment")
    table = RESULT.alignment
    tables = {**RESULT.tables, "alignment": table[table["layer"] == "layer3"]}
    with pytest.raises(ValueError, match="other layers"):
        check_layers(replace(RESULT, tables=tables), "alignment")


# ---------------------------------------------------------------- figures


def test_nr_mass_draws_values_and_intervals_of_every_class_and_the_mean() -> None:
    figure = draw_nr_mass(RESULT, "layer3")
    for ax, model in zip(figure.axes, STUDY.models, strict=True):
        for bars, data in zip(ax.containers, COLOURS, strict=True):
            rows = rows_of(RESULT.alignment, model=model, layer="layer3", measure=f"nr_mass_{data}")
            rows = rows.set_index("class").loc[[*CLASSES, "all"]]
            line, _, (reach,) = bars
            assert to_hex(line.get_color()) == COLOURS[data].lower()
            np.testing.assert_array_equal(line.get_ydata(), rows["value"])
            drawn = np.array([segment[:, 1] for segment in reach.get_segments() if len(segment)])
            np.testing.assert_allclose(drawn, rows[["low", "high"]].dropna())
    ticks = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert ticks == [*CLASSES, "mean"]


def test_alignment_against_robustness_draws_each_class_with_images_once_per_model() -> None:
    figure = draw_alignment_robustness(RESULT)
    points = {
        (to_hex(line.get_color()), *place)
        for ax in figure.axes
        for line in ax.lines
        if line.get_marker() != "None"
        for place in line.get_xydata()
        if np.isfinite(place).all()
    }
    measure, wanted = "signed_mass_adversarial", set()
    for colour, model in zip(MODEL_COLOURS, STUDY.models, strict=False):
        aligned = rows_of(RESULT.alignment, model=model, layer="layer4", measure=measure)
        robust = rows_of(RESULT.robustness, model=model, attack="worst").set_index("class")
        for name in {*CLASSES} - {"cat"}:
            x = rows_of(aligned, class_=name)["value"].item()
            wanted.add((colour.lower(), x, robust["accuracy"][name]))
    assert points == wanted
    assert len(figure.axes) == len(STUDY.models)
    for ax in figure.axes:
        written = [text.get_text() for text in ax.texts]
        assert [text for text in written if text.isdigit()] == [*"023"]
    for number, name in enumerate(CLASSES):
        assert f"{number}\u00a0{name}" in figure.legends[0].get_title().get_text()


def test_alignment_against_robustness_gives_the_correlation_across_classes() -> None:
    texts = read_texts(draw_alignment_robustness(RESULT))
    for model in STUDY.models:
        row = rows_of(RESULT.alignment, class_="across", model=model, layer="layer4").iloc[0]
        bounds = f"{row['value']:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]".replace("-", "−")
        assert {model, f"ρ {bounds}"} <= {*texts}
    table = RESULT.alignment
    tables = {**RESULT.tables, "alignment": table[table["class"] != "across"]}
    figure = draw_alignment_robustness(replace(RESULT, tables=tables))
    assert "ρ undefined" in read_texts(figure)


def test_layer_defaults_to_each_models_last_and_models_without_it_are_left_out() -> None:
    assert "against the class, layer4" in join_texts(draw_nr_mass(RESULT))
    models = {
        **RESULT.meta["models"],
        "nat": {**RESULT.meta["models"]["nat"], "layers": ["layer3"]},
    }
    result = replace(RESULT, meta=RESULT.meta | {"models": models})
    assert len(draw_nr_mass(result).axes) == 2
    assert len(draw_nr_mass(result, "layer4").axes) == 1


def test_depth_draws_each_measure_from_layer_to_layer() -> None:
    figure = draw_depth(RESULT)
    mean = rows_of(RESULT.alignment, class_="all")
    measures = (
        ["cosine_centred"],
        ["nr_mass_natural", "nr_mass_adversarial"],
        ["signed_mass_natural", "signed_mass_adversarial"],
    )
    for ax, names in zip(figure.axes, measures, strict=True):
        for index, model in enumerate(STUDY.models):
            lines = lines_of_model(ax, RESULT, index)
            for line, name in zip(lines, names, strict=True):
                wanted = rows_of(mean, model=model, measure=name)["value"]
                np.testing.assert_array_equal(line, np.c_[[1, 2], wanted])
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == [*LAYERS]
    for words in ("PGD-20, ε = 8/255", "dashed: natural images", "speak against"):
        assert words in join_texts(figure)


def test_depth_needs_several_layers() -> None:
    assert "depth" in RESULT.figures
    assert "depth" not in SHALLOW.figures
    with mistake("--layers"):
        draw_depth(SHALLOW)


def test_depth_numbers_layers_that_models_call_differently() -> None:
    names = dict(zip(LAYERS, ("a", "b"), strict=True))
    table = RESULT.alignment
    layers = table["layer"].where(table["model"] == "nat", table["layer"].replace(names))
    models = {**RESULT.meta["models"]}
    models["at"] = {**models["at"], "layers": ["a", "b"]}
    tables = {**RESULT.tables, "alignment": table.assign(layer=layers)}
    result = replace(RESULT, tables=tables, meta=RESULT.meta | {"models": models})
    ticks = draw_depth(result).axes[-1].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["1", "2"]


def test_classes_draws_a_dot_for_each_class_with_images_the_most_robust_first() -> None:
    figure = draw_classes(RESULT)
    worst = rows_of(RESULT.robustness, attack="worst").dropna()
    worst = worst[worst["class"] != "all"]
    mean = worst.groupby("class", sort=False)["accuracy"].mean()
    order = list(mean.sort_values(ascending=False, kind="stable").index)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == order
    for ax, measure in zip(
        figure.axes, ("robust_accuracy", "cosine_centred", "nr_mass_adversarial"), strict=True
    ):
        for index, model in enumerate(STUDY.models):
            rows = rows_of(worst, model=model).rename(columns={"accuracy": "value"})
            if measure != "robust_accuracy":
                rows = rows_of(RESULT.alignment, model=model, layer="layer4", measure=measure)
            dots = lines_of_model(ax, RESULT, index)[0]
            np.testing.assert_allclose(dots[:, 0], rows.set_index("class")["value"].loc[order])
            np.testing.assert_array_equal(np.round(dots[:, 1]), range(3))


# ---------------------------------------------------------------- strength


def test_decay_is_the_alignment_under_each_strength() -> None:
    table = rows_of(RESULT.decay, model="at", layer="layer4", varied="eps")
    assert table["at"].unique().tolist() == [0.01, 0.02]
    for at, data in ((0.01, "eps-0.01"), (0.02, "eps-0.02")):
        for measure, by_class in measure_study(STUDY, "at", "layer4", data).items():
            wanted = estimate(mean_over_classes(by_class), 0.95, BOUNDS[measure])
            row = rows_of(table, at=at, measure=measure).iloc[0]
            found = row[["value", "low", "high"]].tolist()
            assert found == pytest.approx([*vars(wanted).values()], nan_ok=True)
        row = rows_of(RESULT.decay, model="at", layer="", at=at).iloc[0]
        correct = STUDY.answers("at", data) == STUDY.labels
        assert row["value"] == pytest.approx(correct.mean())
        assert row["low"] <= row["value"] <= row["high"]


@pytest.mark.parametrize(("varied", "scale"), [("eps", 255), ("step", 1)])
def test_decay_draws_each_measure_against_the_strength(varied: str, scale: float) -> None:
    figure = draw_decay(RESULT, varied)
    names = ("robust_accuracy", "cosine_centred", "nr_mass_adversarial", "signed_mass_adversarial")
    swept = rows_of(RESULT.decay, varied=varied)
    for ax, name in zip(figure.axes, names, strict=True):
        layer = "" if name == "robust_accuracy" else "layer4"
        for index, model in enumerate(STUDY.models):
            rows = rows_of(swept, model=model, measure=name, layer=layer)
            wanted = np.c_[scale * rows["at"], rows["value"]]
            assert len(rows) == 2
            np.testing.assert_allclose(lines_of_model(ax, RESULT, index)[0], wanted)
    assert f"decay-{varied}-layer3" in RESULT.figures


def test_nothing_that_was_not_swept_is_drawn() -> None:
    assert not [name for name in SHALLOW.figures if name.startswith("decay")]
    with mistake("compare with --step-sweep"):
        draw_decay(SHALLOW, "step")
    tables = {**RESULT.tables, "decay": rows_of(RESULT.decay, varied="eps")}
    only = replace(RESULT, tables=tables).figures
    assert not [name for name in only if name.startswith("decay-step")]
    assert [name for name in only if name.startswith("decay-eps")]


# ---------------------------------------------------------------- words


def test_alternative_texts_are_of_every_model_and_say_the_ends() -> None:
    texts = (
        describe_nr_mass(nr_mass_data(RESULT)),
        describe_alignment_robustness(alignment_robustness_data(RESULT)),
        describe_depth(depth_data(RESULT)),
        describe_decay(decay_data(RESULT, "eps")),
    )
    for text in texts:
        assert text.startswith("nat: ")
        assert "; at: " in text
        assert "nan" not in text
    cosine = rows_of(RESULT.alignment, model="nat", class_="all", measure="cosine_centred")["value"]
    first, last = (f"{value:.2f}" for value in cosine)
    assert f"cosine centred from {first} to {last}" in texts[2]


def test_data_are_of_the_layer_that_was_asked_for() -> None:
    for make in (nr_mass_data, alignment_robustness_data, classes_data):
        assert set(make(RESULT, "layer3")["layer"]) == {"layer3"}
        with mistake("No layer 'layer5'"):
            make(RESULT, "layer5")
