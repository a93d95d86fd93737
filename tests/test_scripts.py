"""Class names of any script: drawn in a font that has them, or else in Latin letters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from channelscope.figures import paper, save_figure, scripts
from channelscope.figures.axes import make_figure
from channelscope.figures.words import is_slug, make_slug


@paper.styled
def draw(title: str, *classes: str) -> Figure:
    figure = make_figure(2)
    ax = figure.subplots()
    ax.set_xticks(range(len(classes)), classes)
    ax.set_title(title)
    ax.plot(range(len(classes)), label=title)
    ax.legend()
    return figure


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    scripts._find_fonts.cache_clear()
    scripts._said.clear()
    yield
    scripts._find_fonts.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no font but those that come with matplotlib."""
    fonts = font_manager.fontManager.ttflist
    own = [font for font in fonts if font.name.startswith(("DejaVu", "STIX", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


def labels_of(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_letters_that_no_font_has_are_transliterated_and_said_once(
    no_fonts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = draw("ねこ", "猫", "고양이", "cat")
    assert labels_of(figure) == ["U+732B", "goyangi", "cat"]
    assert figure.axes[0].get_title() == "neko"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "No font here has the letters of" in said[0]
    assert "install a font" in said[0]
    for ending in ("png", "pdf", "svg"):  # a missing letter would be a warning, so an error
        save_figure(figure, tmp_path / f"figure.{ending}")
    draw("ねこ", "猫", "고양이", "cat")
    assert capsys.readouterr().err == ""


def test_letters_of_the_styles_own_fonts_stay(capsys: pytest.CaptureFixture[str]) -> None:
    with paper.style("icml"):
        figure = draw("κόσμος", "кошка", "قطة", "café")
    assert labels_of(figure) == ["кошка", "قطة", "café"]
    assert figure.axes[0].get_title() == "κόσμος"
    assert capsys.readouterr().err == ""


def test_a_font_that_has_the_letters_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # STIX lacks Arabic letters, which DejaVu Sans has: it stands for a font that was installed.
    style = paper.Style(column=3.25, text=6.75, size=7, font="STIXGeneral")
    narrow = style.settings | {"font.family": ["STIXGeneral"]}
    monkeypatch.setattr(paper.Style, "settings", property(lambda _: narrow))
    figure = draw("cat", "قطة", "猫")
    assert labels_of(figure) == ["قطة", "U+732B"]
    families = figure.axes[0].get_xticklabels()[0].get_fontfamily()
    assert families[0] == "STIXGeneral"
    assert any(family.startswith("DejaVu") for family in families)
    save_figure(figure, tmp_path / "figure.pdf")
    assert "No font here has the letters of '猫'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("हिन्दी", "hainadaii"),
        ("ﬁsh", "fish"),
        ("カット", "katuto"),
        ("😀", "grinning-face"),
        ("cat", "cat"),
    ],
)
def test_what_is_missing_is_spelt(text: str, latin: str) -> None:
    spelt = scripts.transliterate(text, lambda sign: sign > "\x7f")
    assert spelt.isascii()
    assert spelt == latin


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("猫", "猫"),
        ("Кошка, 2", "кошка-2"),
        ("बिल्ली", "बिल्ली"),
        ("../../etc", "etc"),
        ("a\u202eb/c\x00d", "a-b-c-d"),
        ("é" * 60, "é" * 48),
        ("猫" * 60, "猫" * 48),
        ("𒀀" * 60, "𒀀" * 36),
        ("--", ""),
    ],
)
def test_names_of_any_script_survive_in_file_names(name: str, slug: str) -> None:
    assert make_slug(name) == slug
    assert is_slug(slug) == bool(slug)
    assert not is_slug(f"../{slug}")
    assert len(slug.encode()) <= 144
