"""Figures for papers: their widths, fonts and formats, what lies beside them, and LaTeX's words."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from channelscope import figures as plots
from channelscope.figures import paper, tex
from channelscope.figures.kinds import KINDS
from channelscope.figures.subjects import whole
from channelscope.report import SECTIONS
from comparisons import synthetic
from helpers.pictures import mistake

SMALL = synthetic(models=("nat", "at"), classes=("bird", "cat", "dog"), gates=("layer4.0",))
NAMES = list(plots.figures(SMALL))
WIDTHS = {"default": (3.25, 6.75), "icml": (3.25, 6.75), "neurips": (5.5, 5.5), "ieee": (3.5, 7.16)}
LATEX = pytest.mark.skipif(
    not all(map(shutil.which, tex.PROGRAMS)), reason="there is no LaTeX here"
)


def shown(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


# ------------------------------------------------------------------------------------------------------ styles


@pytest.mark.parametrize("name", WIDTHS)
def test_a_style_has_the_width_of_its_papers_column_and_text(name: str, tmp_path: Path) -> None:
    for wide, width in zip((False, True), WIDTHS[name], strict=True):
        with plots.style(name, wide=wide):
            figure = plots.nr_share(SMALL)
            saved = plots.save(figure, tmp_path / "figure.pdf").read_bytes()
        assert figure.get_figwidth() == width
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", saved)
        assert box is not None
        assert float(box[1]) == pytest.approx(72 * width, abs=0.01)


@pytest.mark.parametrize("name", WIDTHS)
def test_every_figure_is_readable_and_inside_in_every_style(name: str) -> None:
    with plots.style(name):
        for kind in ("relevance", "nr-share", "robustness", "magnitude-cat"):
            figure = plots.figures(SMALL)[kind]()
            assert min(text.get_fontsize() for text in shown(figure)) >= 6.5
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())
            for border in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
                assert (border == 255).all(), kind


def test_papers_set_in_times_get_a_font_like_it_and_the_others_stay() -> None:
    with plots.style("icml"):
        assert {text.get_fontfamily()[0] for text in shown(plots.gates(SMALL))} == {"STIXGeneral"}
    assert {text.get_fontfamily()[0] for text in shown(plots.gates(SMALL))} == {"DejaVu Sans"}


def test_a_style_holds_within_its_block_alone_and_none_leaves_the_one_in_force() -> None:
    before = str(matplotlib.rcParams)
    with plots.style("ieee", wide=True):
        assert SMALL.plot_relevance().get_figwidth() == 7.16
        assert SMALL.plot_relevance(style="icml").get_figwidth() == 3.25
        with pytest.raises(ZeroDivisionError), plots.style("neurips"):
            _ = 1 / 0
        assert paper.current().column == 3.5
    assert SMALL.plot_relevance().get_figwidth() == 3.25
    assert str(matplotlib.rcParams) == before


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.subjects is whole])
def test_every_figure_of_a_whole_comparison_has_a_method_that_takes_the_style(kind: str) -> None:
    method = getattr(SMALL, f"plot_{kind.replace('-', '_')}")
    if kind in NAMES:
        assert method(style="ieee").get_figwidth() == 3.5


def test_an_unknown_style_is_told_with_a_suggestion() -> None:
    with mistake(
        "No style 'nips'; choose from default, icml, neurips, ieee. Did you mean 'neurips'"
    ):
        SMALL.plot_gates(style="nips")


# ------------------------------------------------------------------------------------------------ the catalogue


def test_every_kind_has_a_section_a_caption_and_claims_that_exist() -> None:
    for kind in KINDS:
        assert kind.section in SECTIONS
        assert kind.caption
        assert set(kind.claims) <= {"c1", "c2", "c3", "c4"}
        draw, data = (getattr(function, "func", function) for function in (kind.draw, kind.data))
        assert data.__name__ == f"{draw.__name__}_data"
        assert kind.name.replace("-", "_").startswith(draw.__name__)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_caption_data_and_words_for_what_is_seen(name: str) -> None:
    assert plots.caption(name, SMALL).endswith(".")
    assert len(plots.data(name, SMALL)) > 0


# ------------------------------------------------------------------------------ the table is what the artists draw


def curves(ax: matplotlib.axes.Axes, colour: str) -> np.ndarray:
    """Points of the lines of a colour."""
    return np.concatenate(
        [line.get_xydata() for line in ax.lines if to_hex(line.get_color()) == colour.lower()]
    )


@pytest.mark.parametrize("quantity", ["magnitude", "frequency"])
def test_profiles_draw_their_table(quantity: str) -> None:
    table, figure = plots.data(f"{quantity}-cat", SMALL), plots.figures(SMALL)[f"{quantity}-cat"]()
    for ax, (model, rows) in zip(figure.axes, table.groupby("model", sort=False), strict=True):
        assert ax.get_title(loc="left") == model
        np.testing.assert_array_equal(
            curves(ax, paper.COLOURS["adversarial"]), rows[["place", "adversarial"]]
        )
        np.testing.assert_array_equal(ax.patches[0].get_data().values, rows["natural"])
        assert f"{100 * rows['robust_accuracy'].iloc[0]:.1f} %" in ax.get_title(loc="right")


def test_relevance_draws_its_table() -> None:
    table, figure = plots.data("relevance", SMALL), plots.relevance(SMALL)
    panels = table.groupby(["model", "class"], sort=False)
    for ax, (_, rows) in zip(figure.axes, panels, strict=True):
        for data, colour in paper.COLOURS.items():
            wanted = rows.loc[rows["data"] == data, ["relevance", "magnitude"]]
            np.testing.assert_array_equal(curves(ax, colour), wanted)


def test_robustness_draws_its_table_by_model_and_attack_the_worst_case_last() -> None:
    table, figure = plots.data("robustness", SMALL), plots.robustness(SMALL)
    (ax,) = figure.axes
    names = ["natural images", "PGD-20", "worst case of all"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    for bars, (_, rows) in zip(ax.containers, table.groupby("model", sort=False), strict=True):
        line, _, (reach,) = bars
        assert list(rows["attack"]) == names
        np.testing.assert_array_equal(line.get_xdata(), rows["accuracy"])
        assert list(np.round(line.get_ydata())) == [0, 1, 2]
        drawn = np.array([segment[:, 0] for segment in reach.get_segments()])
        np.testing.assert_allclose(drawn, rows[["low", "high"]])


def test_an_attack_that_a_model_was_spared_has_no_mark_and_the_legend_says_why() -> None:
    rows = SMALL.robustness
    gated = rows[(rows["attack"] == "pgd-20") & (rows["model"] == "at")].assign(
        attack="pgd-20:joint-sweep"
    )
    frame = pd.concat([rows, gated], ignore_index=True)
    figure = plots.robustness(SMALL.__class__(**{**vars(SMALL), "robustness": frame}))
    assert [len(bars[0].get_xdata()) for bars in figure.axes[0].containers] == [3, 4]
    assert "no mark: not run on this model" in figure.legends[0].get_title().get_text()
    relevance = plots.relevance(SMALL.__class__(**{**vars(SMALL), "robustness": frame}))
    assert "worst case over all attacks" in relevance.legends[0].get_title().get_text().replace(
        "\n", " "
    )


@pytest.mark.parametrize("style", WIDTHS)
def test_names_of_attacks_are_whole_and_explained_where_they_occur(style: str) -> None:
    rows = SMALL.robustness
    names = (
        "cw-20:from-cifar10-standard",
        "pgd-20:joint-sweep:detached",
        "pgd-20:frozen-natural",
        "x" * 40,
    )
    own = [rows[rows["attack"] == "pgd-20"].assign(attack=name) for name in names]
    with plots.style(style):
        figure = plots.robustness(
            SMALL.__class__(**{**vars(SMALL), "robustness": pd.concat([rows, *own])})
        )
    labels = figure.axes[0].get_yticklabels()
    shown_names = [label.get_text().replace("\n", "") for label in labels]
    for name in (
        "CW-20:from-cifar10-standard",
        "PGD-20:joint-sweep:detached",
        "PGD-20:frozen-natural",
        "x" * 40,
    ):
        assert name in shown_names
    italic = {
        name
        for name, label in zip(shown_names, labels, strict=True)
        if label.get_fontstyle() == "italic"
    }
    assert italic == {"PGD-20:joint-sweep:detached", "PGD-20:frozen-natural"}
    key = figure.legends[0].get_title().get_text()
    explained = [
        word
        for word in ("joint-sweep", "detached", "frozen-natural", "from")
        if f"\n{word}: " in key
    ]
    assert len(explained) == 4
    assert "in italics: an attack made for gates" in key
    assert "frozen-label" not in key
    assert "probe: " not in key.replace("probes", "")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [label.get_window_extent(renderer).padded(-1) for label in labels]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert min(box.x0 for box in boxes) >= 0


def test_the_data_beside_a_figure_is_its_table_to_the_last_digit(tmp_path: Path) -> None:
    SMALL.draw(tmp_path, only=["nr-share", "alignment-robustness"], formats=["svg"], progress=False)
    for name in ("nr-share", "alignment-robustness"):
        wanted = plots.data(
            name, SMALL
        )  # older versions of pandas drop a last digit where they read numbers
        written = pd.read_csv(tmp_path / "figures" / f"{name}.csv", dtype=str).astype(wanted.dtypes)
        pd.testing.assert_frame_equal(written, wanted, check_exact=True)


# ----------------------------------------------------------------------------------------------------- what is drawn


def drawn(folder: Path, **how: object) -> set[str]:
    SMALL.draw(folder, **how, progress=False)
    return {path.name for path in (folder / "figures").iterdir()}


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("c4", {"robustness"}),
        (["C4,training"], {"robustness", "training"}),
        (["c4", "magnitude-cat"], {"robustness", "magnitude-cat"}),
    ],
)
def test_only_takes_claims_kinds_and_names_with_commas_or_spaces(
    tmp_path: Path, only: object, names: set[str]
) -> None:
    files = drawn(tmp_path, only=only, formats="svg")
    assert files == {f"{name}.{ending}" for name in names for ending in ("csv", "svg")} | {
        "captions.txt",
        "captions.json",
    }


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"only": ["c5"]}, "No figure 'c5'; choose from c1, c2, c3, c4, relevance"),
        ({"only": ["magnitud"]}, "Did you mean 'magnitude'"),
        ({"only": ["magnitude-cta"]}, "Did you mean 'magnitude-cat'"),
        ({"formats": ["pdf", "jpeg"]}, "No format 'jpeg'; choose from pdf, png, svg"),
        ({"only": [""]}, "No figure is named"),
        ({"only": ","}, "No figure is named"),
        ({"formats": [","]}, "No format is named"),
        ({"formats": []}, "No format is named"),
        ({"style": "cvpr"}, "No style 'cvpr'"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    tmp_path: Path, how: dict[str, object], words: str
) -> None:
    with mistake(words):
        SMALL.draw(tmp_path, **how, progress=False)
    assert not list(tmp_path.iterdir())


def test_what_a_comparison_lacks_cannot_be_asked_for(tmp_path: Path) -> None:
    with mistake("This comparison has nothing to draw for 'gates'"):
        synthetic(("nat",), ("a", "b")).draw(tmp_path, only=["gates"])


def test_captions_list_what_lies_there_and_the_page_the_pictures(tmp_path: Path) -> None:
    drawn(tmp_path, only=["training"], formats=["png"])
    assert "training.png" in drawn(tmp_path, only=["nr-share", "gates"], formats=["svg"])
    text = (tmp_path / "figures" / "captions.txt").read_text("utf-8")
    lying = [name for name in NAMES if name in ("training", "nr-share", "gates")]
    assert text == "\n".join(f"{name}\n{plots.caption(name, SMALL)}\n" for name in lying)
    (listed,) = json.loads((tmp_path / "figures" / "captions.json").read_text("utf-8"))
    assert (listed["name"], listed["section"], listed["claims"]) == ("training", "training", [])
    assert "nat: ends at" in listed["seen"]
    assert "epoch 10 was kept" in listed["seen"]


@pytest.mark.parametrize("style", ["icml", "neurips"])
def test_every_format_has_the_same_bytes_again_whatever_the_users_settings_are(
    tmp_path: Path, style: str
) -> None:
    how = {"only": ["nr-share"], "formats": ["pdf", "svg", "png"], "style": style}
    drawn(tmp_path / "one", **how)
    with matplotlib.rc_context(
        {"font.family": "monospace", "svg.fonttype": "path", "savefig.dpi": 50}
    ):
        drawn(tmp_path / "two", **how)
    for file in (tmp_path / "one" / "figures").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "figures" / file.name).read_bytes()
    pdf = (tmp_path / "one" / "figures" / "nr-share.pdf").read_bytes()
    assert b"/Subtype /Type3" not in pdf
    assert b"STIX" in pdf


# ------------------------------------------------------------------------------------------------------------ LaTeX


def test_without_latex_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    with mistake("needs the program latex and dvipng: install TeX"):
        SMALL.draw(tmp_path, latex=True)
    assert not list(tmp_path.iterdir())
    assert not paper.current().latex


@given(st.text(alphabet=st.characters(max_codepoint=126, min_codepoint=32), max_size=30))
def test_what_latex_reads_as_a_command_never_stays_bare(words: str) -> None:
    safe = re.sub(
        r"\\text[a-z]+\{\}|\\quad |\\[#$%&_{}]", "", tex.escaped(words)
    )  # what remains is what LaTeX sets as it stands
    assert not set(safe) & set('#$%&_{}~^\\<>|"')


@LATEX
def test_latex_sets_odd_names_as_they_are(tmp_path: Path) -> None:
    comparison = synthetic(("50%_$x", "a\\b^{#&~"), ("b_c", "<é>"), gates=("x$_1",))
    how = {"only": ["nr-share"], "formats": ["pdf", "png", "svg"], "style": "icml"}
    for folder in ("one", "two"):
        comparison.draw(tmp_path / folder, latex=True, progress=False, **how)
    for file in (tmp_path / "one" / "figures").iterdir():
        if (
            file.suffix != ".pdf"
        ):  # in which matplotlib names the fonts of LaTeX by where they lie in memory
            assert file.read_bytes() == (tmp_path / "two" / "figures" / file.name).read_bytes()
    pdf = (tmp_path / "one" / "figures" / "nr-share.pdf").read_bytes()
    assert b"NimbusRom" in pdf or b"Times" in pdf
    assert b"/Subtype /Type3" not in pdf
    captions = (tmp_path / "one" / "figures" / "captions.tex").read_text("utf-8")
    assert captions.startswith("\\begin{figure}[t]")
    assert r"Bars: 95\% intervals" in captions
    assert r"\includegraphics[width=\columnwidth]{nr-share.pdf}" in captions


@LATEX
def test_a_name_that_latex_cannot_set_is_told_in_a_sentence(tmp_path: Path) -> None:
    with mistake("LaTeX cannot set the figure's text"):
        synthetic(("鳥",), ("a", "b")).draw(tmp_path, latex=True, only=["nr-share"], progress=False)
