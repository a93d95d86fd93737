"""All figures: names, captions, alternative texts, files; and how they look in every style."""

import json
import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from channelscope import compare, gallery
from channelscope.analyses.alignment import draw_nr_mass
from channelscope.analyses.base import ANALYSES
from channelscope.analyses.choice import choose_part
from channelscope.figures import paper, save_figure, style, tex
from channelscope.figures.axes import choose_looks, spread_small
from channelscope.gallery import SECTIONS, find_picture, list_figures
from channelscope.report import SECTIONS as PAGE_SECTIONS
from channelscope.result import Result
from helpers import brief
from helpers.expect import mistake
from helpers.figures import ADVERSARIAL, NATURAL, read_texts, rows_of
from helpers.studies import make_result, synthetic_study

pytestmark = pytest.mark.slow

TRAINED = "training images, as trained on"
SMALL = make_result(
    synthetic_study(("nat", "at"), ("bird", "cat", "dog"), channels=8, gates=("4.0", "4.1"))
)
LAYERED = make_result(
    synthetic_study(("nat", "at"), ("a", "b", "c"), ("layer3", "layer4.1"), channels=6, swept=True)
)
NAMES = list(list_figures(SMALL))
PLOTS = [plot for analysis in ANALYSES.values() for plot in analysis.plots]
WIDTHS = {"default": (3.25, 6.75), "icml": (3.25, 6.75), "neurips": (5.5, 5.5), "ieee": (3.5, 7.16)}
ODD_CLASSES = (
    "../x$_a",
    "<script>alert(1)</script>",
    "a class with a name that is much too long for any column $",
)
LONG = "backbone.encoder.stages.3.blocks.17.activation"
HARD: dict[str, dict[str, Any]] = {
    "two classes, one model, one channel, one epoch": {
        "models": ("only",),
        "classes": ("a", "b"),
        "channels": 1,
        "epochs": 1,
        "gates": ("1",),
    },
    "odd and long names": {
        "models": ("a model with a very long name $x_1$", "at"),
        "classes": ODD_CLASSES,
        "layers": (LONG,),
        "gates": (LONG, "x$_1$"),
    },
    "one class with images": {
        "models": ("nat", "at"),
        "classes": ("a", "b", "c"),
        "empty": ("a", "c"),
    },
    "a thousand channels": {
        "models": ("nat", "at"),
        "classes": ("a", "b"),
        "channels": 1000,
        "gates": ("layer4",),
    },
    "many layers": {
        "models": ("nat", "at"),
        "classes": ("a", "b"),
        "layers": tuple(f"layer{number}.conv" for number in range(9)),
        "swept": True,
    },
    "many classes and models": {
        "models": ("nat", "at", "cifs", "cas"),
        "classes": tuple(f"class number {number}" for number in range(60)),
        "gates": ("layer4",),
        "channels": 8,
    },
    "24 classes": {
        "models": ("nat", "at"),
        "classes": tuple(f"class number {number}" for number in range(24)),
    },
}
# Figures whose colours tell models, signs of relevance or sizes rather than the data.
COLOURED_OTHERWISE = {
    "alignment-robustness",
    "robustness",
    "classes",
    "confusion",
    "depth",
    "flow",
    "flow-share",
    "leakage",
    "likeness",
    "masks",
    "matched-channels",
}
LATEX = pytest.mark.skipif(
    not all(map(shutil.which, tex.PROGRAMS)), reason="there is no LaTeX here"
)


# ---------------------------------------------------------------- the registry


def test_every_plot_has_a_section_a_caption_and_claims_that_exist() -> None:
    for plot in PLOTS:
        assert plot.section in SECTIONS
        assert plot.caption.endswith((".", "}"))
        assert set(plot.claims) <= {"c1", "c2", "c3", "c4", "c5"}
    assert len({plot.name for plot in PLOTS}) == len(PLOTS)
    assert tuple(PAGE_SECTIONS) == SECTIONS


def test_every_figure_says_in_words_what_is_to_be_seen() -> None:
    for result in (SMALL, LAYERED):
        for name, picture in list_figures(result).items():
            described = picture.describe(name)
            assert len(picture.data()) > 0
            assert described["alt_text"].endswith(".")
            assert "nan" not in described["alt_text"]
            if "model" in picture.data():
                assert described["alt_text"].startswith(("nat", "at"))


@pytest.mark.parametrize("name", NAMES)
def test_captions_stand_alone(name: str) -> None:
    picture = find_picture(SMALL, name)
    caption = picture.caption()
    assert caption.endswith(".")
    assert "{" not in caption
    for key, words in (
        ("{adversarial}", "PGD-20, ε = 8/255"),
        ("{layers}", "Layer: layer4."),
        ("{class_name}", f"class {name.split('-')[-1]}"),
        ("{wilson}", "95% intervals (Wilson's"),
        ("{bars}", "95% intervals (bootstrap over images, 40 replicates)"),
        ("{robust}", "worst case over PGD-20"),
    ):
        assert (key in picture.plot.caption) <= (words in caption)


# ---------------------------------------------------------------- names


def test_figures_of_a_section_stand_together_the_extreme_classes_first() -> None:
    sections = [picture.plot.section for picture in list_figures(SMALL).values()]
    assert sections == sorted(sections, key=SECTIONS.index)
    assert NAMES[:4] == ["relevance", "nr-mass", "alignment-robustness", "robustness"]
    worst = rows_of(SMALL.robustness, attack="worst")
    mean = worst[worst["class"] != "all"].groupby("class")["accuracy"].mean()
    single = [name for name in NAMES if name.startswith("magnitude")]
    assert single[:2] == [f"magnitude-{mean.idxmax()}", f"magnitude-{mean.idxmin()}"]
    assert len(single) == 3


def test_large_data_have_figures_for_the_five_most_and_least_robust_classes() -> None:
    study = synthetic_study(("nat",), tuple(f"c{k:02}" for k in range(30)), channels=2)
    result = make_result(study, "activations", "robustness", "alignment")
    worst = rows_of(result.robustness, attack="worst")
    mean = worst[worst["class"] != "all"].set_index("class")["accuracy"]
    mean = mean.sort_values(ascending=False, kind="stable")
    prefix = "magnitude-"
    shown = [name.removeprefix(prefix) for name in result.figures if name.startswith(prefix)]
    assert set(shown) == {*mean.index[:5], *mean.index[-5:]}


def test_several_layers_are_told_apart_and_the_last_are_shown_at_once() -> None:
    pictures = list_figures(LAYERED)
    assert {"relevance-layer3", "relevance-layer4-1", "magnitude-a-layer4-1"} <= set(pictures)
    assert "magnitude-a-layer3" not in pictures
    for kind in ("classes", "decay-eps", "flow", "flow-share", "confusion", "embedding"):
        assert pictures[f"{kind}-layer4-1"].subject.main
        assert not pictures[f"{kind}-layer3"].subject.main


def test_names_are_safe_and_unique_whatever_the_classes_are_called() -> None:
    classes = ("../x", "..\\x", "X", "<script>", "鳥", "犬", "con", "a" * 300, "", "..")
    study = synthetic_study(("nat",), classes, channels=2)
    names = make_result(study, "activations", "robustness", "alignment").figures
    assert len([name for name in names if name.startswith("magnitude")]) == len(classes)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][a-z0-9鳥犬-]{0,60}", name) for name in names)
    assert {"magnitude-鳥", "magnitude-犬"} <= set(names)


def test_figures_without_their_tables_are_left_out_and_said_to_need_them() -> None:
    study = synthetic_study(("nat",), ("a", "b"), channels=2)
    result = make_result(study, "activations", "embedding")
    assert result.figures == ["embedding"]
    with mistake("The figure 'magnitude' needs the table 'robustness'"):
        result.plot("magnitude", class_name="a")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nr-masss", {}, "Did you mean 'nr-mass'"),
        ("magnitude", {}, "The figure 'magnitude' takes class_name"),
        ("depth", {"layer": "layer4"}, "The figure 'depth' takes no arguments"),
    ],
)
def test_unknown_figures_and_arguments_get_a_sentence(
    name: str, arguments: dict[str, str], words: str
) -> None:
    with mistake(words):
        SMALL.plot(name, **arguments)


def test_a_figure_is_drawn_by_its_kind_or_its_full_name() -> None:
    (by_kind, by_name) = (SMALL.plot("magnitude", class_name="cat"), SMALL.plot("magnitude-cat"))
    assert read_texts(by_kind) == read_texts(by_name)


# ---------------------------------------------------------------- files


def draw(result: Result, folder: Path, **how: Any) -> set[str]:
    gallery.draw(result, folder, progress=False, **how)
    return {path.name for path in folder.iterdir()}


def test_draw_writes_each_figure_beside_its_data_and_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "list_figures", brief.list_few_figures)
    study = synthetic_study(("nat",), ("../x", "<b>"), channels=4, empty=("<b>",))
    result = make_result(study)
    paths = gallery.draw(result, tmp_path / "one", all_figures=True, progress=False)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "pdf.fonttype": 3}):
        gallery.draw(result, tmp_path / "two", all_figures=True, progress=False)
    names = list(brief.list_few_figures(result))
    wanted = [f"{name}.{ending}" for name in names for ending in gallery.FORMATS]
    assert [path.name for path in paths] == wanted
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    captions = ["captions.json", "captions.txt"]
    assert written == sorted([*wanted, *captions, *(f"{name}.csv" for name in names)])
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    listed = json.loads((tmp_path / "one" / "captions.json").read_text("utf-8"))
    assert [entry["name"] for entry in listed] == names
    assert all(entry["caption"] == result.caption(entry["name"]) for entry in listed)


def test_the_data_beside_a_figure_is_its_table_to_the_last_digit(tmp_path: Path) -> None:
    draw(SMALL, tmp_path, only=["nr-mass", "alignment-robustness"], formats=["svg"])
    for name in ("nr-mass", "alignment-robustness"):
        wanted = SMALL.plot_data(name)
        # Older versions of pandas drop a last digit where they read numbers.
        written = pd.read_csv(tmp_path / f"{name}.csv", dtype=str).astype(wanted.dtypes)
        pd.testing.assert_frame_equal(written, wanted, check_exact=True)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("c4", {"robustness"}),
        (["C4,training"], {"robustness", "training"}),
        (["c4", "magnitude-cat"], {"robustness", "magnitude-cat"}),
    ],
)
def test_only_takes_claims_kinds_and_names_with_commas_or_spaces(
    tmp_path: Path, only: Any, names: set[str]
) -> None:
    wanted = {f"{name}.{ending}" for name in names for ending in ("csv", "svg")}
    files = draw(SMALL, tmp_path, only=only, formats="svg")
    assert files == wanted | {"captions.txt", "captions.json"}


def test_a_saved_result_has_its_figures_in_the_formats_that_are_named(tmp_path: Path) -> None:
    make_result(synthetic_study(("a",)), "training").save(
        tmp_path / "out", formats="svg", progress=False
    )
    endings = {file.suffix for file in (tmp_path / "out" / "figures").iterdir()}
    assert endings == {".svg", ".csv", ".txt", ".json"}


def test_a_question_refuses_an_unknown_format_before_anything_is_read(tmp_path: Path) -> None:
    with mistake("No format 'jpg'; choose from pdf, png, svg"):
        compare({"a": tmp_path / "none.pt"}, "none", out=tmp_path / "out", formats=["jpg"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"only": ["c6"]}, "No figure 'c6'; choose from c1, c2, c3, c4, c5, relevance"),
        ({"only": ["magnitud"]}, "Did you mean 'magnitude'"),
        ({"only": ["magnitude-cta"]}, "Did you mean 'magnitude-cat'"),
        ({"only": ["depth"]}, "This comparison has nothing to draw for 'depth'"),
        ({"formats": ["pdf", "jpeg"]}, "No format 'jpeg'; choose from pdf, png, svg"),
        ({"only": [""]}, "No figure is named"),
        ({"only": ","}, "No figure is named"),
        ({"formats": [","]}, "No format is named"),
        ({"formats": []}, "No format is named"),
        ({"style": "nips"}, "No style 'nips'; choose from default, icml, neurips, ieee. Did you"),
    ],
)
def test_mistakes_are_answered_before_anything_is_drawn(
    tmp_path: Path, how: dict[str, Any], words: str
) -> None:
    with mistake(words):
        gallery.draw(SMALL, tmp_path, progress=False, **how)
    assert not list(tmp_path.iterdir())


def test_captions_list_what_lies_there_and_the_page_the_pictures(tmp_path: Path) -> None:
    draw(SMALL, tmp_path, only=["training"], formats=["png"])
    assert "training.png" in draw(SMALL, tmp_path, only=["nr-mass", "gates"], formats=["svg"])
    captions = [
        f"{name}\n{SMALL.caption(name)}\n"
        for name in NAMES
        if name in ("training", "nr-mass", "gates")
    ]
    assert (tmp_path / "captions.txt").read_text("utf-8") == "\n".join(captions)
    listed = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    assert [entry["name"] for entry in listed] == [
        name for name in NAMES if name in ("training", "nr-mass", "gates")
    ]
    last = listed[-1]
    assert (last["name"], last["section"], last["claims"]) == ("training", "training", [])
    assert "nat: ends at" in last["alt_text"]


def test_a_run_draws_the_main_figures_and_the_others_by_name(tmp_path: Path) -> None:
    draw(SMALL, tmp_path, only=["magnitude", "frequency"], formats=["png"])
    entries = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    main = [entry["name"] for entry in entries if entry["main"]]
    # The most and the least robust class, and of the frequency none.
    assert len(main) == 2 < len(entries)
    assert all(name.startswith("magnitude") for name in main)


@pytest.mark.parametrize("everything", [False, True])
def test_all_figures_are_drawn_where_they_are_asked_for(tmp_path: Path, everything: bool) -> None:
    result = make_result(synthetic_study(("nat", "at")), "matching", "activations", "training")
    written = draw(result, tmp_path, all_figures=everything, formats=["png"])
    drawn = {name.removesuffix(".png") for name in written if name.endswith(".png")}
    assert ("likeness" in drawn) == everything
    assert ("matched-channels-nat-at-layer4" in drawn) == everything
    assert not everything or drawn == set(result.figures)


def test_files_carry_text_as_fonts_and_neither_date_nor_version(tmp_path: Path) -> None:
    figure = SMALL.plot("alignment-robustness")
    written = save_figure(figure, tmp_path / "figure.pdf").read_bytes()
    assert b"/Subtype /Type3" not in written
    assert b"/FontFile2" in written  # TrueType outlines, embedded
    assert not re.search(rb"CreationDate|Producer|Creator|atplotlib", written)
    with Image.open(save_figure(figure, tmp_path / "figure.png")) as image:
        assert set(image.info) == {"dpi"}
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    drawing = save_figure(figure, tmp_path / "figure.svg").read_text()
    assert "<text" in drawing
    assert not re.search(r"<dc:date>|atplotlib v", drawing)
    with mistake("end its name in .pdf, .png, .svg"):
        save_figure(figure, tmp_path / "figure.jpg")


@pytest.mark.parametrize("name", ["icml", "neurips"])
def test_every_format_has_the_same_bytes_again_whatever_the_users_settings_are(
    tmp_path: Path, name: str
) -> None:
    how = {"only": ["nr-mass"], "formats": ["pdf", "svg", "png"], "style": name}
    draw(SMALL, tmp_path / "one", **how)
    own = {"font.family": "monospace", "svg.fonttype": "path", "savefig.dpi": 50}
    with matplotlib.rc_context(own):
        draw(SMALL, tmp_path / "two", **how)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    pdf = (tmp_path / "one" / "nr-mass.pdf").read_bytes()
    assert b"/Subtype /Type3" not in pdf
    assert b"STIX" in pdf


# ---------------------------------------------------------------- how it looks


def assert_readable(figure: Figure, name: str) -> None:
    """Assert that texts are large enough, and that nothing is cut off at the border."""
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 6.5
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    for border in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (border == 255).all(), name


@pytest.mark.parametrize("name", WIDTHS)
def test_a_style_has_the_width_of_its_papers_column_and_text(name: str, tmp_path: Path) -> None:
    for wide, width in zip((False, True), WIDTHS[name], strict=True):
        with style(name, wide=wide):
            figure = draw_nr_mass(SMALL)
            saved = save_figure(figure, tmp_path / "figure.pdf").read_bytes()
        assert figure.get_figwidth() == width
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", saved)
        assert box is not None
        assert float(box[1]) == pytest.approx(72 * width, abs=0.01)


@pytest.mark.parametrize("name", WIDTHS)
def test_figures_are_readable_and_inside_in_every_style(name: str) -> None:
    with style(name):
        for kind in ("relevance", "nr-mass", "robustness", "magnitude-cat"):
            assert_readable(SMALL.plot(kind), kind)


def test_papers_set_in_times_get_a_font_like_it_and_the_others_stay() -> None:
    def fonts(figure: Figure) -> set[str]:
        return {text.get_fontfamily()[0] for text in figure.findobj(Text) if text.get_text()}

    assert fonts(SMALL.plot("gates", style="icml")) == {"STIXGeneral"}
    assert fonts(SMALL.plot("gates")) == {"DejaVu Sans"}


def test_a_style_holds_within_its_block_alone_and_none_leaves_the_one_in_force() -> None:
    before = str(matplotlib.rcParams)
    with style("ieee", wide=True):
        assert SMALL.plot("nr-mass").get_figwidth() == 7.16
        assert SMALL.plot("nr-mass", style="icml").get_figwidth() == 3.25
        with pytest.raises(ZeroDivisionError), style("neurips"):
            _ = 1 / 0
        assert paper.current_style().column == 3.5
    assert SMALL.plot("nr-mass").get_figwidth() == 3.25
    assert str(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_natural_and_adversarial_have_one_colour_each_in_every_figure() -> None:
    def colour(handle: Artist) -> str:
        return to_hex(handle.get_facecolor() if isinstance(handle, Patch) else handle.get_color())

    for name, picture in list_figures(SMALL).items():
        if picture.plot.name not in COLOURED_OTHERWISE:
            (legend,) = picture.draw().legends
            handles = [
                handle
                for handle in legend.legend_handles
                if not handle.get_label().startswith(TRAINED)
            ]
            assert [colour(handle) for handle in handles] == [NATURAL, ADVERSARIAL], name


@pytest.fixture(scope="module", params=HARD.values(), ids=HARD.keys())
def hard(request: pytest.FixtureRequest) -> dict[str, Figure]:
    """One figure of each kind, of a comparison that is hard to draw."""
    pictures = list_figures(make_result(synthetic_study(**request.param)))
    kinds = {picture.plot.name: name for name, picture in reversed(pictures.items())}
    return {name: pictures[name].draw() for name in kinds.values()}


def test_every_figure_is_one_column_wide_readable_and_unclipped(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        assert figure.get_figwidth() == 3.25
        assert_readable(figure, name)


def test_titles_and_legend_do_not_overlap(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        texts: list[Any] = [figure._suptitle]
        for ax in figure.axes:
            titles = (ax.title, ax._left_title, ax._right_title)
            texts += [*titles, ax.xaxis.label, ax.yaxis.label]
        parts = [*(text for text in texts if text.get_text()), *figure.legends]
        boxes = [part.get_window_extent().padded(-1) for part in parts]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])], name


def test_nothing_that_is_drawn_lies_outside_its_axes(hard: dict[str, Figure]) -> None:
    for name, figure in hard.items():
        for ax in figure.axes:
            (left, right), (bottom, top) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
            if np.isfinite(ax.dataLim.get_points()).all():
                assert left <= ax.dataLim.x0 <= ax.dataLim.x1 <= right, name
                assert bottom <= ax.dataLim.y0 <= ax.dataLim.y1 <= top, name


def test_dollars_and_underscores_are_letters(tmp_path: Path) -> None:
    study = synthetic_study(("$m_1$",), ("$x_{a$", "b_c"), channels=2)
    figure = make_result(study).plot("magnitude", class_name="$x_{a$")
    save_figure(figure, tmp_path / "figure.pdf")
    assert "$m_1$" in read_texts(figure)
    assert any(text.startswith("$x_{a$: each channel's") for text in read_texts(figure))


@pytest.mark.parametrize("name", ["icml", "neurips", "ieee"])
def test_figures_of_papers_have_neither_title_nor_notes_unless_asked(name: str) -> None:
    with style(name):
        bare = draw_nr_mass(SMALL)
    with style(name, title=True, notes=True):
        told = draw_nr_mass(SMALL)
    assert bare._suptitle is None
    assert told._suptitle.get_text().startswith("NR mass")
    assert [figure.legends[0].get_title().get_text() == "" for figure in (bare, told)] == [
        True,
        False,
    ]
    assert bare.get_figheight() < told.get_figheight()


@pytest.mark.parametrize(("name", "height"), [("default", None), ("icml", None), ("icml", 0.3)])
def test_no_figure_is_higher_than_its_share_of_the_page(name: str, height: float | None) -> None:
    with style(name, height=height) as look:
        figures = [SMALL.plot(kind) for kind in ("relevance", "nr-mass", "masks-nat-4-1")]
    assert max(figure.get_figheight() for figure in figures) <= look.height * look.page + 1e-9
    with mistake("height is 2"), style(height=2):
        pass


def test_a_wider_style_has_more_panels_beside_each_other_not_wider_ones() -> None:
    study = synthetic_study(("nat", "at", "cifs", "cas"), ("a", "b"))
    result = make_result(study, "activations", "robustness", "alignment")
    with style("icml"):
        narrow = result.plot("magnitude", class_name="a")
    with style("icml", wide=True):
        wide = result.plot("magnitude", class_name="a")
    columns = [figure.axes[0].get_subplotspec().get_gridspec().ncols for figure in (narrow, wide)]
    assert columns == [2, 4]
    widths = [figure.axes[0].get_window_extent().width for figure in (narrow, wide)]
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_a_method_has_its_colour_whichever_others_are_drawn() -> None:
    def colours(*models: str) -> dict[str, Any]:
        looks = choose_looks(make_result(synthetic_study(models), "training"))
        return {model: look["color"] for model, look in looks.items()}

    all_models = colours("nat", "at", "trades-cifs", "cifs")
    assert len(set(all_models.values())) == 4
    assert colours("cifs", "at") == {name: all_models[name] for name in ("cifs", "at")}
    assert colours("trades")["trades"] == all_models["trades-cifs"]


def test_an_axis_is_spread_where_few_channels_press_the_others_together() -> None:
    def scale(values: np.ndarray) -> str:
        ax = Figure().subplots()
        spread_small(ax, "y", values)
        return ax.get_yscale()

    even = np.linspace(0.1, 1, 20)
    assert scale(even) == "linear"
    assert scale(np.r_[1, 0.001 * even]) == "symlog"


def test_a_figure_with_nothing_in_its_panels_is_not_drawn(tmp_path: Path) -> None:
    study = synthetic_study(("nat",), ("a", "b"), empty=("b",))
    result = make_result(study, "activations", "robustness", "alignment")
    files = draw(result, tmp_path, only=["magnitude"], formats=["png"])
    assert {name for name in files if name.endswith("png")} == {"magnitude-a.png"}


# ---------------------------------------------------------------- a part of a result


def test_figures_of_some_models_by_other_names_leave_the_page_alone(tmp_path: Path) -> None:
    LAYERED.draw(tmp_path, only=["nr-mass"], formats=["png"], progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    part = {"models": ["at"], "labels": ["AT"], "layers": ["layer4*"], "classes": ["c", "a"]}
    LAYERED.draw(tmp_path, only=["nr-mass"], style="icml", formats=["svg"], progress=False, **part)
    assert all(path.read_bytes() == text for path, text in before.items())
    data = pd.read_csv(tmp_path / "figures" / "icml" / "nr-mass.csv")
    assert list(data["class"].unique()) == ["c", "a", "mean"]
    assert set(data["model"]) == {"AT"}
    assert set(data["layer"]) == {"layer4.1"}
    wanted = LAYERED.plot_data("nr-mass-layer4-1")
    wanted = wanted[(wanted["model"] == "at") & (wanted["class"] == "c")]["share"]
    assert data[data["class"] == "c"]["share"].tolist() == pytest.approx(wanted.tolist())


def test_every_figure_of_a_part_is_drawn() -> None:
    for part in (
        choose_part(SMALL, models=["at", "nat"], classes=["dog", "cat"]),
        choose_part(LAYERED, layers=["layer3"]),
    ):
        pictures = list_figures(part)
        assert len(pictures) > 5
        for picture in pictures.values():
            assert len(picture.data())
    models = [*dict.fromkeys(choose_part(SMALL, models=["at", "nat"]).robustness["model"])]
    assert models == ["at", "nat"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"models": ["cifs"]}, "No model 'cifs' in this result; choose from nat, at."),
        ({"labels": ["A"]}, "has 1 different names for 2 models"),
        ({"layers": ["layer9"]}, "No layer 'layer9' was measured; choose from layer3, layer4.1."),
        ({"classes": ["cat"]}, "No class 'cat' in this result; choose from a, b, c."),
    ],
)
def test_an_unknown_part_is_answered_in_a_sentence(part: dict[str, Any], words: str) -> None:
    with mistake(words):
        choose_part(LAYERED, **part)


def test_a_figure_is_named_without_its_layer_where_several_were_measured(tmp_path: Path) -> None:
    assert read_texts(LAYERED.plot("magnitude-a")) == read_texts(
        LAYERED.plot("magnitude-a-layer4-1")
    )
    files = draw(LAYERED, tmp_path, only=["magnitude-a"], formats=["svg"])
    assert {name for name in files if name.endswith("svg")} == {"magnitude-a-layer4-1.svg"}


# ---------------------------------------------------------------- LaTeX


def test_without_latex_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    with mistake("needs the program latex and dvipng: install TeX"):
        gallery.draw(SMALL, tmp_path, latex=True, progress=False)
    assert not list(tmp_path.iterdir())
    assert not paper.current_style().latex


@given(st.text(alphabet=st.characters(max_codepoint=126, min_codepoint=32), max_size=30))
def test_what_latex_reads_as_a_command_never_stays_bare(words: str) -> None:
    # What remains is what LaTeX sets as it stands.
    safe = re.sub(r"\\text[a-z]+\{\}|\\quad |\\[#$%&_{}]", "", tex.escape_latex(words))
    assert not set(safe) & set('#$%&_{}~^\\<>|"')


@LATEX
def test_latex_sets_odd_names_as_they_are(tmp_path: Path) -> None:
    study = synthetic_study(("50%_$x", "a\\b^{#&~"), ("b_c", "<é>"), channels=2)
    result = make_result(study, "activations", "alignment", "robustness")
    how = {"only": ["nr-mass"], "formats": ["pdf", "png", "svg"], "style": "icml", "latex": True}
    for folder in ("one", "two"):
        draw(result, tmp_path / folder, **how)
    for file in (tmp_path / "one").iterdir():
        # In a .pdf matplotlib names the fonts of LaTeX by where they lie in memory.
        if file.suffix != ".pdf":
            assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    pdf = (tmp_path / "one" / "nr-mass.pdf").read_bytes()
    assert b"NimbusRom" in pdf or b"Times" in pdf
    assert b"/Subtype /Type3" not in pdf
    captions = (tmp_path / "one" / "captions.tex").read_text("utf-8")
    assert captions.startswith("\\begin{figure}[t]")
    assert r"Bars: 95\% intervals" in captions
    assert r"\includegraphics[width=\columnwidth]{nr-mass.pdf}" in captions


@LATEX
def test_a_name_that_latex_cannot_set_is_answered_by_a_sentence(tmp_path: Path) -> None:
    study = synthetic_study(("鳥",), ("a", "b"), channels=2)
    result = make_result(study, "activations", "alignment", "robustness")
    with mistake("LaTeX cannot set the figure's text"):
        draw(result, tmp_path, latex=True, only=["nr-mass"])


def test_models_without_a_layer_are_left_out_of_its_figures() -> None:
    known = {**LAYERED.meta["models"]}
    known["nat"] = {**known["nat"], "layers": ["layer3"]}
    shallow = replace(LAYERED, meta=LAYERED.meta | {"models": known})
    assert len(shallow.plot("nr-mass", layer="layer4.1").axes) == 1
