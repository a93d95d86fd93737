"""The figures, judged by what is drawn (the artists' data) and by the files written, not by pixels."""

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, StepPatch
from matplotlib.text import Text
from PIL import Image

from channelscope import figures as plots
from channelscope.comparison import Comparison
from channelscope.errors import UserError
from channelscope.figures import catalogue
from channelscope.figures.catalogue import _pictures
from channelscope.figures.paper import COLOURS, MODEL_COLOURS
from comparisons import CLASSES, MODELS, synthetic
from helpers import brief

TRAINED = "training images, as trained on"
NATURAL, ADVERSARIAL = COLOURS["natural"].lower(), COLOURS["adversarial"].lower()
SMALL = synthetic(
    models=("nat", "at"), classes=("bird", "cat", "dog"), gates=("layer4.0", "layer4.1")
)
ODD_CLASSES = (
    "../x$_a",
    "<script>alert(1)</script>",
    "a class with a name that is much too long for any column $",
)
LONG = "backbone.encoder.stages.3.blocks.17.activation"
HARD = {
    "two classes, one model, one channel, one epoch": synthetic(
        ("only",), ("a", "b"), channels=1, epochs=1, gates=("1",)
    ),
    "odd and long names": synthetic(
        ("a model with a very long name $x_1$", "at"),
        ODD_CLASSES,
        (LONG,),
        gates=(LONG, "x$_1$"),
        whole=True,
    ),
    "one class with images": synthetic(("nat", "at"), ("a", "b", "c"), empty=("a", "c")),
    "a thousand channels": synthetic(
        ("nat", "at"), ("a", "b"), channels=1000, gates=("layer4",), whole=True
    ),
    "many layers": synthetic(
        ("nat", "at"), ("a", "b"), tuple(f"layer{i}.conv" for i in range(9)), whole=True
    ),
    "many classes and models": synthetic(
        ("nat", "at", "cifs", "cas"),
        tuple(f"class number {i}" for i in range(60)),
        gates=("layer4",),
    ),
    "24 classes": synthetic(("nat", "at"), tuple(f"class number {i}" for i in range(24))),
}
NETWORK = ("classes", "flow", "flow-share", "confusion", "embedding", "uniformity")
KINDS = (
    "relevance",
    "nr-share",
    "alignment-robustness",
    "robustness",
    *NETWORK,
    "training",
    "gates",
)
# Figures whose colours tell the models, signs of relevance or sizes rather than the data.
COLOURED_OTHERWISE = (
    "alignment-robustness",
    "robustness",
    "classes",
    "flow",
    "flow-share",
    "confusion",
)


def measured(comparison: Comparison, **where: str) -> pd.DataFrame:
    rows = comparison.alignment
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def channels(
    comparison: Comparison, quantity: str, model: str, class_name: str, data: str
) -> np.ndarray:
    rows = comparison.activations
    rows = rows[(rows["model"] == model) & (rows["class"] == class_name) & (rows["data"] == data)]
    return rows.sort_values("channel")[quantity].to_numpy()


def words(figure: Figure) -> list[str]:
    return [
        text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()
    ]


def by_colour(ax: plt.Axes) -> dict[str, np.ndarray]:
    """Points of the lines in an axes, by colour."""
    return {to_hex(line.get_color()): line.get_xydata() for line in ax.lines}


@pytest.mark.parametrize("quantity", ["magnitude", "frequency"])
def test_channels_are_drawn_in_the_order_of_the_models_own_natural_values(quantity: str) -> None:
    figure = getattr(plots, quantity)(SMALL, "cat")
    assert len(figure.axes) == 2
    for ax, model in zip(figure.axes, ("nat", "at"), strict=True):
        natural, adversarial = (channels(SMALL, quantity, model, "cat", data) for data in COLOURS)
        order = np.argsort(-natural, kind="stable")
        steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
        assert {to_hex(patch.get_facecolor()) for patch in steps if patch.get_fill()} == {NATURAL}
        for patch in steps:
            np.testing.assert_array_equal(patch.get_data().values, natural[order])
        points = by_colour(ax)[ADVERSARIAL]
        np.testing.assert_array_equal(points, np.c_[np.arange(1, 25), adversarial[order]])


def test_profile_says_class_model_robust_accuracy_attack_and_layer() -> None:
    text = "\n".join(words(plots.magnitude(SMALL, "cat")))
    robustness = SMALL.robustness
    worst = robustness[
        (robustness["attack"] == "worst") & (robustness["class"] == "cat")
    ].set_index("model")
    for model in ("nat", "at"):
        assert f"robust accuracy {100 * worst['accuracy'][model]:.1f} %" in text
        assert re.search(rf"^{model}$", text, re.MULTILINE)
    for word in (
        "cat: each channel's mean activation",
        "(magnitude), layer4",
        "adversarial (PGD-20, ε = 8/255)",
        "sorted by",
        "robust accuracy: under PGD-20",
    ):
        assert word in text


def test_relevance_draws_every_channel_and_spearman_of_the_extreme_classes() -> None:
    comparison = synthetic()
    worst = comparison.robustness[comparison.robustness["attack"] == "worst"]
    mean = worst[worst["class"] != "all"].groupby("class")["accuracy"].mean()
    most, least = mean.idxmax(), mean.idxmin()
    figure = plots.relevance(comparison)
    assert len(figure.axes) == 2 * len(MODELS)
    panels = [(model, class_name) for model in MODELS for class_name in (most, least)]
    for ax, (model, class_name) in zip(figure.axes, panels, strict=True):
        points = by_colour(ax)
        assert class_name in ax.get_title()
        for data, colour in (("natural", NATURAL), ("adversarial", ADVERSARIAL)):
            x, y = (
                channels(comparison, name, model, class_name, data)
                for name in ("relevance", "magnitude")
            )
            np.testing.assert_array_equal(points[colour], np.c_[x, y])
            where = {"model": model, "class": class_name, "measure": f"relevance_spearman_{data}"}
            rho = f"ρ {measured(comparison, **where)['value'].item():.2f}".replace("-", "−")
            assert (rho, colour) in [
                (text.get_text(), to_hex(text.get_color())) for text in ax.texts
            ]
    assert f"most robust class:\n{most}" in figure.axes[0].get_title()
    assert f"least robust class:\n{least}" in figure.axes[1].get_title()


def test_nr_share_draws_values_and_intervals_of_every_class_and_the_mean() -> None:
    comparison = synthetic(("nat", "at"), ("bird", "cat", "dog"), empty=("cat",))
    figure = plots.nr_share(comparison)
    for ax, model in zip(figure.axes, ("nat", "at"), strict=True):
        for bars, data in zip(ax.containers, ("natural", "adversarial"), strict=True):
            rows = measured(comparison, model=model, measure=f"nr_share_{data}").set_index("class")
            rows = rows.loc[["bird", "cat", "dog", "all"]]
            line, _, (reach,) = bars
            assert to_hex(line.get_color()) == COLOURS[data].lower()
            np.testing.assert_array_equal(line.get_ydata(), rows["value"])
            drawn = np.array([segment[:, 1] for segment in reach.get_segments() if len(segment)])
            np.testing.assert_allclose(drawn, rows[["low", "high"]].dropna())
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == [
        "bird",
        "cat",
        "dog",
        "mean",
    ]


def test_alignment_against_robustness_draws_each_class_with_images_once_per_model() -> None:
    comparison = synthetic(empty=("bird",))
    (ax,) = plots.alignment_robustness(comparison).axes
    drawn = {
        (to_hex(line.get_color()), *line.get_xydata()[0])
        for line in ax.lines
        if len(line.get_xydata())
    }
    worst = comparison.robustness[comparison.robustness["attack"] == "worst"]
    expected = set()
    for colour, model in zip(MODEL_COLOURS, MODELS, strict=False):
        aligned = measured(
            comparison, model=model, measure="relevance_spearman_adversarial"
        ).set_index("class")
        robust = worst[worst["model"] == model].set_index("class")["accuracy"]
        expected |= {
            (colour.lower(), aligned["value"][c], robust[c]) for c in CLASSES if c != "bird"
        }
    assert drawn == expected
    assert sorted(text.get_text() for text in ax.texts) == sorted([*"013456789"] * 3)
    for number, name in enumerate(CLASSES):
        assert f"{number}\u00a0{name}" in ax.figure.legends[0].get_title().get_text()


def test_alignment_against_robustness_gives_the_correlation_across_classes() -> None:
    text = words(plots.alignment_robustness(SMALL))
    for model in ("nat", "at"):
        row = measured(SMALL, **{"class": "across", "model": model}).iloc[0]
        bounds = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")
        assert f"{model}: ρ over classes {bounds}" in text
    (legend,) = plots.alignment_robustness(SMALL).legends
    said = " ".join(legend.get_title().get_text().split())
    for word in (
        "robust: under PGD-20",
        "brackets: 95% intervals",
        "over classes: rank correlation",
    ):
        assert word in said


def test_training_draws_the_log_and_marks_the_best_epoch() -> None:
    figure = plots.training(SMALL)
    assert len(figure.axes) == 4
    for (loss, accuracy), model in zip(np.reshape(figure.axes, (2, 2)), ("nat", "at"), strict=True):
        log = SMALL.training[SMALL.training["model"] == model]
        np.testing.assert_array_equal(loss.lines[0].get_xydata(), log[["epoch", "loss"]])
        points = by_colour(accuracy)
        np.testing.assert_array_equal(points[NATURAL], log[["epoch", "val_natural"]])
        np.testing.assert_array_equal(points[ADVERSARIAL], log[["epoch", "val_robust"]])
        (trained,) = [line for line in accuracy.lines if line.get_linestyle() == ":"]
        np.testing.assert_array_equal(trained.get_xydata(), log[["epoch", "accuracy"]])
        assert to_hex(trained.get_color()) == "#000000"
        assert loss.lines[1].get_xdata()[0] == log.loc[log["best"], "epoch"].item()


def test_training_says_how_images_were_attacked_and_whether_gates_were_told() -> None:
    attack = {"steps": 3, "eps": 8 / 255}
    described = {
        "settings": {"recipe": {"attack": attack}},
        "gates": [{"layer": "layer4.1", "kind": "cifs"}],
    }
    models = {name: known | described for name, known in SMALL.meta["models"].items()}
    comparison = replace(SMALL, meta=SMALL.meta | {"models": models})
    said = words(plots.training(comparison))
    assert "adversarial (PGD-3, ε = 8/255, as in training)" in said
    assert f"{TRAINED} (gates told the label)" in said
    models["at"]["gates"] = models["nat"]["gates"] = [{"layer": "layer4.1", "kind": "fsr"}]
    assert TRAINED in words(plots.training(comparison))
    models["nat"]["settings"] = {"recipe": {"attack": attack | {"steps": 7}}}
    assert "adversarial (as in training)" in words(plots.training(comparison))


def test_training_leaves_out_epochs_without_validation_and_models_without_a_log() -> None:
    comparison = synthetic(("nat", "at"), ("a", "b"))
    log = comparison.training[comparison.training["model"] == "at"].copy()
    log.loc[log["epoch"] % 2 == 1, "val_robust"] = np.nan
    _, accuracy = plots.training(replace(comparison, training=log)).axes
    assert list(by_colour(accuracy)[ADVERSARIAL][:, 0]) == [2, 4, 6, 8, 10, 12]


def test_no_training_log_is_the_users_to_know() -> None:
    comparison = synthetic(("nat",), ("a", "b"), epochs=0)
    assert "training" not in plots.figures(comparison)
    with pytest.raises(UserError, match="training log"):
        plots.training(comparison)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.magnitude(SMALL, "brid"), "No class 'brid'.*Did you mean 'bird'"),
        (lambda: plots.frequency(SMALL, "cat", "layer5"), "No layer 'layer5'.*choose from layer4"),
        (lambda: plots.relevance(SMALL, "layer5"), "Did you mean 'layer4'"),
        (lambda: plots.caption("nr-shares", SMALL), "No figure 'nr-shares'.*'nr-share'"),
        (lambda: plots.save(Figure(), Path("figure.jpg")), "end its name in .pdf, .png, .svg"),
    ],
)
def test_mistakes_are_told_with_a_suggestion(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_layer_defaults_to_each_models_last_and_models_without_it_are_left_out() -> None:
    comparison = synthetic(("nat", "at"), ("a", "b"), ("layer3", "layer4"))
    assert "(NR) channels, layer4" in "\n".join(words(plots.nr_share(comparison)))
    shallow = comparison.alignment.query("not (model == 'nat' and layer == 'layer4')")
    comparison = replace(comparison, alignment=shallow)
    assert len(plots.nr_share(comparison).axes) == 2
    assert len(plots.nr_share(comparison, "layer4").axes) == 1


def test_an_empty_class_is_said_to_be_empty() -> None:
    comparison = synthetic(("nat",), ("a", "b"), empty=("b",))
    assert "no images of this class" in words(plots.magnitude(comparison, "b"))
    assert "magnitude-b" not in plots.figures(comparison)


def dashed(ax: plt.Axes) -> list[float]:
    """Where the vertical dashed lines of an axes are."""
    return [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]


def test_training_says_what_its_dotted_line_is() -> None:
    (legend,) = plots.training(SMALL).legends
    assert [
        handle.get_label() for handle in legend.legend_handles if handle.get_linestyle() == ":"
    ] == [TRAINED]
    assert TRAINED in [text.get_text() for text in legend.texts]
    assert "the gates are given the labels there" in plots.caption("training", SMALL)


def test_gates_draws_each_probe_and_mask_and_marks_the_kept_epoch() -> None:
    figure = plots.gates(SMALL)
    panels = [(model, layer) for model in ("nat", "at") for layer in ("layer4.0", "layer4.1")]
    for (probe, mask), (model, layer) in zip(np.reshape(figure.axes, (4, 2)), panels, strict=True):
        rows = SMALL.gates[(SMALL.gates["model"] == model) & (SMALL.gates["layer"] == layer)]
        drawn = {"probe_natural": (probe, NATURAL), "probe_robust": (probe, ADVERSARIAL)}
        drawn |= {"mask_natural": (mask, NATURAL), "mask_adversarial": (mask, ADVERSARIAL)}
        for column, (ax, colour) in drawn.items():
            np.testing.assert_array_equal(by_colour(ax)[colour], rows[["epoch", column]])
        assert probe.get_title(loc="left") == f"{model}\n{layer}"
        assert dashed(probe) == dashed(mask) == [10]
        for ax in (probe, mask):
            natural, adversarial = ax.lines[
                :2
            ]  # the natural one, beneath, is to be seen where both coincide
            assert natural.get_linewidth() > 2 * adversarial.get_linewidth()
            assert ax.get_ylim() == (0, 1)
            assert [tick.get_text() for tick in ax.get_yticklabels()][-1] == "100"


def test_gates_leaves_out_models_without_them_and_epochs_that_are_unknown() -> None:
    rows = SMALL.gates[(SMALL.gates["model"] == "at") & (SMALL.gates["layer"] == "layer4.1")].copy()
    rows.loc[rows["epoch"] > 3, "probe_robust"] = np.nan
    probe, mask = plots.gates(replace(SMALL, gates=rows, training=SMALL.training[:0])).axes
    assert list(by_colour(probe)[ADVERSARIAL][:, 0]) == [1, 2, 3]
    assert dashed(probe) == dashed(mask) == []


def test_layers_of_long_names_are_told_apart_in_gates() -> None:
    comparison = synthetic(("cifs",), ("a", "b"), epochs=1, gates=(f"{LONG}.0", f"{LONG}.1"))
    titles = [ax.get_title(loc="left") for ax in plots.gates(comparison).axes[::2]]
    assert titles == ["cifs\n…17.activation.0", "cifs\n…17.activation.1"]


def test_without_gates_there_is_no_figure_of_them() -> None:
    comparison = synthetic(("nat",), ("a", "b"))
    assert "gates" not in plots.figures(comparison)
    with pytest.raises(UserError, match="log of CIFS gates"):
        plots.gates(comparison)


def test_the_caption_of_gates_explains_probe_and_mask() -> None:
    caption = plots.caption("gates", SMALL)
    for words in (
        "probe is a small classifier",
        "mask: a factor for each channel",
        "100 % means",
        "1/C",
        "was kept",
    ):
        assert words in caption


# ---------------------------------------------------------------------------------------------- the catalogue


def test_small_data_have_figures_for_every_class_and_the_extreme_ones_come_first() -> None:
    names = list(plots.figures(SMALL))
    whole, single = names[: len(KINDS)], names[len(KINDS) :]
    assert whole == list(KINDS)
    assert sorted(single) == sorted(
        f"{kind}-{c}" for kind in ("magnitude", "frequency") for c in ("bird", "cat", "dog")
    )


def test_large_data_have_figures_for_the_five_most_and_least_robust_classes() -> None:
    comparison = HARD["many classes and models"]
    worst = comparison.robustness[comparison.robustness["attack"] == "worst"]
    mean = worst[worst["class"] != "all"].groupby("class")["accuracy"].mean().sort_values()
    shown = {
        name.removeprefix("magnitude-")
        for name in plots.figures(comparison)
        if name.startswith("magnitude")
    }
    assert shown == {name.replace(" ", "-") for name in [*mean.index[:5], *mean.index[-5:]]}


def test_several_layers_are_told_apart_in_the_names() -> None:
    names = plots.figures(
        synthetic(("nat",), ("a", "b"), ("layer3", "layer4.1"), gates=("layer3", "layer4.1"))
    )
    assert {
        "relevance-layer3",
        "relevance-layer4-1",
        "magnitude-a-layer4-1",
        "frequency-b-layer4-1",
    } <= set(names)
    assert (
        "magnitude-a-layer3" not in names
    )  # the channels of single classes are those of the last layers
    assert [name for name in names if name.startswith(("training", "gates"))] == [
        "training",
        "gates",
    ]


def test_names_are_safe_and_unique_whatever_the_classes_are_called() -> None:
    classes = ("../x", "..\\x", "X", "<script>", "鳥", "犬", "con", "a" * 300, "", "..")
    names = list(plots.figures(synthetic(("nat",), classes)))
    assert len(names) == len(KINDS) - 1 + 2 * len(classes)
    assert all(re.fullmatch("[a-z][a-z0-9-]{0,60}", name) for name in names)


def test_draw_writes_each_figure_twice_with_captions_and_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "KINDS", catalogue.KINDS)
    brief.few_figures()
    comparison = synthetic(("nat",), ("../x", "<b>"), empty=("<b>",))
    paths = plots.draw(comparison, tmp_path / "one" / "figures")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "pdf.fonttype": 3}):
        again = plots.draw(comparison, tmp_path / "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    names = list(plots.figures(comparison))
    assert [path.name for path in paths] == [
        f"{name}.{ending}" for name in names for ending in ("pdf", "png")
    ]
    listing = tmp_path / "one" / "figures" / "captions.json"
    others = [
        listing,
        listing.with_name("captions.txt"),
        *(listing.with_name(f"{name}.csv") for name in names),
    ]
    assert sorted([*paths, *others]) == sorted((tmp_path / "one" / "figures").iterdir())
    assert sorted(path.read_bytes() for path in others) == sorted(
        (tmp_path / "two" / path.name).read_bytes() for path in others
    )
    listed = json.loads(listing.read_text())
    assert [entry["name"] for entry in listed] == names
    assert all(entry["caption"] == plots.caption(entry["name"], comparison) for entry in listed)


def test_only_single_classes_between_the_extremes_are_left_for_later(tmp_path: Path) -> None:
    comparison = synthetic(("nat",), ("a", "b", "c"), channels=2, epochs=0)
    plots.draw(comparison, tmp_path, only=["magnitude", "frequency"], formats=["png"])
    later = [
        entry["name"]
        for entry in json.loads((tmp_path / "captions.json").read_text())
        if not entry["main"]
    ]
    between = list(plots.figures(comparison))[-1].removeprefix("frequency-")
    assert later == [f"magnitude-{between}", f"frequency-{between}"]


def test_files_carry_text_as_fonts_and_neither_date_nor_version(tmp_path: Path) -> None:
    figure = plots.alignment_robustness(SMALL)
    written = plots.save(figure, tmp_path / "figure.pdf").read_bytes()
    assert b"/Subtype /Type3" not in written
    assert b"/FontFile2" in written  # TrueType outlines, embedded
    assert not re.search(rb"CreationDate|Producer|Creator|atplotlib", written)
    with Image.open(plots.save(figure, tmp_path / "figure.png")) as image:
        assert set(image.info) == {"dpi"}
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    drawing = plots.save(figure, tmp_path / "figure.svg").read_text()
    assert "<text" in drawing
    assert not re.search(r"<dc:date>|atplotlib v", drawing)


@pytest.mark.parametrize("name", [*KINDS, "magnitude-cat", "frequency-cat"])
def test_captions_stand_alone(name: str) -> None:
    caption = plots.caption(name, SMALL)
    assert caption.endswith(".")
    assert "{" not in caption
    if name not in ("training", "gates", "robustness"):
        assert "PGD-20, ε = 8/255" in caption
        assert "layer4" in caption
    if name.endswith("cat"):
        assert "class cat" in caption
    if name in ("nr-share", "alignment-robustness", "robustness"):
        assert "95% intervals" in caption


# ---------------------------------------------------------------------------------------------- how it looks


def test_nothing_global_is_changed() -> None:
    before = str(matplotlib.rcParams)
    plots.relevance(SMALL)
    assert str(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_natural_and_adversarial_have_one_colour_each_in_every_figure() -> None:
    for name, make in plots.figures(SMALL).items():
        if name not in COLOURED_OTHERWISE:
            (legend,) = make().legends
            handles = [handle for handle in legend.legend_handles if handle.get_label() != TRAINED]
            assert [_colour(handle) for handle in handles] == [NATURAL, ADVERSARIAL]


def _colour(handle: Artist) -> str:
    return to_hex(handle.get_facecolor() if isinstance(handle, Patch) else handle.get_color())


@pytest.fixture(scope="module", params=HARD.values(), ids=HARD.keys())
def hard(request: pytest.FixtureRequest) -> dict[str, Figure]:
    """One figure of each kind, of a comparison that is hard to draw."""
    makers = plots.figures(request.param)
    names = {
        picture.kind.name: name for name, picture in reversed(_pictures(request.param).items())
    }
    return {name: makers[name]() for name in names.values()}


def test_every_figure_is_one_column_wide_readable_and_unclipped(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        assert figure.get_figwidth() == 3.25
        shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in shown) >= 6.5
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())
        for border in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
            assert (border == 255).all(), name


def test_titles_and_legend_do_not_overlap(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        titles = [
            text for ax in figure.axes for text in (ax.title, ax._left_title, ax._right_title)
        ]
        texts = [
            *titles,
            figure._suptitle,
            *(axis.label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)),
        ]
        parts = [*(text for text in texts if text.get_text()), *figure.legends]
        boxes = [part.get_window_extent().padded(-1) for part in parts]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])], name


def test_nothing_that_is_drawn_lies_outside_its_axes(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        for ax in figure.axes:
            (left, right), (bottom, top), drawn = ax.get_xlim(), sorted(ax.get_ylim()), ax.dataLim
            if np.isfinite(drawn.get_points()).all():
                assert left <= drawn.x0 <= drawn.x1 <= right, name
                assert bottom <= drawn.y0 <= drawn.y1 <= top, name


def test_comparison_without_images_is_drawn_too() -> None:
    for make in plots.figures(
        synthetic(("nat",), ("a", "b"), empty=("a", "b"), channels=3)
    ).values():
        assert make().axes


def test_negative_magnitudes_are_shown() -> None:
    activations = SMALL.activations.assign(magnitude=SMALL.activations["magnitude"] - 1)
    for figure in (
        plots.magnitude(replace(SMALL, activations=activations), "cat"),
        plots.magnitude(SMALL, "cat"),
    ):
        drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
        assert figure.axes[0].get_ylim()[0] <= min(0, drawn.min())


def test_classes_that_are_numbers_are_said_to_be_classes() -> None:
    comparison = synthetic(("nat",), ("0", "1"), ("features.3",))
    assert "class 1: each channel's mean activation (magnitude), layer features.3" in " ".join(
        words(plots.magnitude(comparison, "1"))
    ).replace("\n", " ")
    (ax,) = plots.alignment_robustness(comparison).axes
    assert ax.get_xlabel().endswith("under attack and relevance")


def test_dollars_and_underscores_are_letters(tmp_path: Path) -> None:
    comparison = synthetic(("$m_1$",), ("$x_{a$", "b_c"))
    figure = plots.magnitude(comparison, "$x_{a$")
    plots.save(figure, tmp_path / "figure.pdf")
    assert "$m_1$" in words(figure)
    assert any(word.startswith("$x_{a$: each channel's") for word in words(figure))


def test_a_measure_that_is_missing_is_undefined() -> None:
    comparison = replace(SMALL, alignment=SMALL.alignment.query("`class` != 'across'"))
    assert "nat: ρ over classes undefined" in words(plots.alignment_robustness(comparison))
