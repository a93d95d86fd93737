"""Text from files and users is text wherever it is shown: pages, galleries, terminals."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import channelscope as cs
from channelscope.cli import main
from channelscope.cli.printing import SafeStream
from channelscope.data import Dataset, MemorySplit
from channelscope.errors import UserError, escape, has_controls
from channelscope.figures import save_figure, tex
from channelscope.report import write_report
from channelscope.result import Result
from figures import markdown
from figures.make import HEADS, format_page
from helpers.browser import PROGRAM, Tab, browsing
from helpers.hostile import EVIL, HARMLESS, list_captions, make_hostile
from helpers.pages import add_figures
from helpers.studies import make_result, replace_tables, synthetic_study

pytestmark = pytest.mark.slow

CONTROLS = "\x00\x07\x1b[2J\x9b31m\r\n\t\u202e\u2066\u2028\ud800\ufeff"


class Skeleton(HTMLParser):
    """Tags of a page with the names of their attributes, and the attributes' values apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str]] = []
        self.others: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)


def report(words: str, folder: Path) -> str:
    add_figures(folder, relevance=True, later=False)
    (folder / "figures" / "captions.json").write_text(json.dumps(list_captions(words)), "utf-8")
    return write_report(make_hostile(words), folder).read_text("utf-8")


def explored(words: str, folder: Path) -> str:
    """Return what a notebook shows, with and without a kernel: chart, table, silencing."""
    explorer = cs.explore(make_hostile(words), class_name=f"class1{words}")
    explorer.controls["first"].value = 2
    bundle = explorer._repr_mimebundle_()
    return "".join(
        [bundle["text/html"], explorer.style.value, explorer.chart.value, explorer.silencing.value]
    )


@pytest.mark.parametrize("make", [report, explored])
def test_no_element_and_no_attribute_is_born_of_data(
    make: Callable[[str, Path], str], tmp_path: Path
) -> None:
    hostile, harmless = (
        Skeleton(make(words, tmp_path / str(len(words)))) for words in (EVIL, HARMLESS)
    )
    assert sorted(hostile.tags) == sorted(harmless.tags)
    assert not hostile.others
    assert any(
        EVIL[:9] in value for _, value in hostile.values
    )  # it is there, as text; the explorer shortens names
    for name, value in hostile.values:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith(("#", "data:image/png;base64,", "figures/")) or (
                re.fullmatch(r"\w+\.csv", value)
            )
        if name in ("class", "style"):
            assert "taken" not in value


def make_small(model: str, class_name: str) -> Result:
    """Return a comparison of two models and classes."""
    study = synthetic_study((model, "at"), (class_name, "b"), channels=2, count=4, replicates=4)
    return make_result(study, "activations", "alignment", "robustness", "claims")


def test_controls_are_escaped_on_pages(tmp_path: Path) -> None:
    result = make_small("nat", "a")
    result.meta["data"]["name"] = f"images {CONTROLS}"
    text = write_report(result, tmp_path).read_text("utf-8")
    assert not has_controls(text.replace("\n", ""))
    assert "\\u001b[2J\\u009b31m" in text


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium here")
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def bare(words: str, folder: Path) -> str:
    """The explorer on a page without any policy, as in a notebook."""
    head = "<head><meta charset=utf-8><title>page</title></head>"
    return f"<!DOCTYPE html><html>{head}<body>{explored(words, folder)}"


@pytest.mark.parametrize("make", [report, bare])
def test_in_a_browser_no_script_of_the_datas_runs_and_nothing_is_asked_for(
    make: Callable[[str, Path], str], browser: Tab, tmp_path: Path
) -> None:
    place = tmp_path / "page.html"
    place.write_text(make(EVIL, tmp_path), "utf-8")
    browser.open(place)
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    # Links to files beside the page lead away from it.
    chosen = "a:not([href$=csv], [href$=pdf]), button, summary, [tabindex]"
    parts = f"document.querySelectorAll('{chosen}')"
    for action in ("focus", "click"):
        browser.run(f"for (const part of {parts}) part.{action}()")
    assert browser.run(
        "window.taken === undefined && !document.title.includes('taken') || document.title"
    )
    assert browser.run("location.pathname") == str(place)
    strange = "iframe, svg:not([viewBox]), base, link, object, embed, form"
    assert browser.run(f"document.querySelectorAll('{strange}').length") == 0
    assert browser.run(
        "document.body.innerText.includes('window.taken = 1')"
    )  # it is there, as text
    assert browser.complaints() == []
    asked = {address.partition("#")[0] for address in browser.requests()}
    assert {address for address in asked if not address.startswith("data:image/png;base64,")} == {
        place.as_uri()
    }


# ---------------------------------------------------------------- galleries, figures


def gallery(words: str) -> str:
    figures = [
        entry | {"name": f"figure-{place}"} for place, entry in enumerate(list_captions(words))
    ]
    return format_page(HEADS["digits"], figures)


def test_galleries_hold_captions_as_text() -> None:
    render = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render
    )
    hostile, harmless = (Skeleton(render(gallery(words))) for words in (EVIL, HARMLESS))
    assert hostile.tags == harmless.tags
    assert not hostile.others


@pytest.mark.parametrize(
    "words",
    [
        EVIL,
        "# a",
        "- a",
        "1. a",
        "---",
        "a\n\nb",
        "[a]: https://example.org",
        "www.example.org",
        "~~a~~",
        "| a |",
        "&copy;",
    ],
)
def test_words_are_words_in_markdown(words: str) -> None:
    parser = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
    )
    (_, inline, _) = parser.parse(markdown.escape(words))
    assert {part.type for part in inline.children} <= {"text", "text_special"}
    assert "".join(part.content for part in inline.children) == " ".join(words.split())
    assert "](" not in markdown.format_table([{"a": words, "b": words}]).replace("\\](", "")


def test_intervals_and_names_are_left_as_they_are() -> None:
    assert markdown.escape("-3.6 [-5.8, -1.4] points (pgd-20:joint-sweep)") == (
        "-3.6 [-5.8, -1.4] points (pgd-20:joint-sweep)"
    )
    assert (
        markdown.format_table([{"a": markdown.Markdown("`zoo:at`"), "b": "a|b"}])
        == "| a | b |\n| --- | --- |\n| `zoo:at` | a\\|b |"
    )


@pytest.mark.parametrize("ending", [".svg", ".pdf"])
def test_figures_show_signs_as_they_are(ending: str, tmp_path: Path) -> None:
    words = "</text><script>x</script> $x_1^2$ \\frac{a}{b} & %"
    figure = make_small("nat", words).plot("alignment-robustness")
    path = save_figure(figure, tmp_path / f"figure{ending}")
    if ending == ".svg":
        parts = list(ET.fromstring(path.read_text("utf-8")).iter())
        assert not [part for part in parts if part.tag.endswith("script")]
        texts = ["".join(part.itertext()) for part in parts if part.tag.endswith("}text")]
        assert any("</text><script>" in text for text in texts)
        links = [
            value for part in parts for name, value in part.attrib.items() if name.endswith("href")
        ]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_no_sign_is_a_command_to_latex() -> None:
    spoken = tex.escape_latex("".join(map(chr, range(32, 127))))
    for command in (
        "\\#",
        "\\$",
        "\\%",
        "\\&",
        "\\_",
        "\\{",
        "\\}",
        "\\textbackslash{}",
        "\\textasciitilde{}",
    ):
        assert command in spoken
    assert tex.escape_latex("\\write18{rm}\\input{x}") == (
        "\\textbackslash{}write18\\{rm\\}\\textbackslash{}input\\{x\\}"
    )


# ---------------------------------------------------------------- tables: kept as they are


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "@SUM(A1)", "-2", 'a "b", c; d'])
def test_tables_keep_names_to_the_letter(name: str, tmp_path: Path, undrawn: None) -> None:
    """They are data for programs: a sign put before a name would make another name of it."""
    again = Result.load(make_small(name, name).save(tmp_path / "out", progress=False))
    assert list(again.meta["models"]) == [name, "at"]
    assert list(again.activations["class"].unique()) == [name, "b"]


# ---------------------------------------------------------------- terminals


def test_no_text_steers_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = CONTROLS[1:].replace("\ud800", "")  # no program can be given a NUL or half of a pair
    for words in (["figures", f"{given}x"], ["zoo", f"--{given}"], ["layers", f"{given}.pt"]):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        told = capsys.readouterr()
        assert status == 2
        assert not has_controls((told.out + told.err).replace("\n", ""))
        assert r"\u001b[2J" in told.err


def test_json_on_the_terminal_reads_as_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = CONTROLS.replace("\ud800", "")
    print(json.dumps({words: words}, ensure_ascii=False), file=SafeStream(sys.stdout))
    out = capsys.readouterr().out
    assert not has_controls(out.replace("\n", ""))
    assert json.loads(out) == {words: words}


def test_a_terminal_that_lacks_letters_shows_all_that_it_has(tmp_path: Path) -> None:
    words = ["recipes", "cifar10-resnet18-at", "ü→"]
    code = f"from channelscope.cli import main; import sys; sys.exit(main({words}))"
    ascii_only = {
        "PYTHONIOENCODING": "ascii",
        "PATH": "",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "\\xfc\\u2192" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- at the door


def test_controls_are_found_wherever_they_are() -> None:
    assert escape(CONTROLS) == (
        "\\u0000\\u0007\\u001b[2J\\u009b31m\\u000d\\u000a\\u0009\\u202e\\u2066\\u2028\\ud800\\ufeff"
    )
    assert has_controls({"a": [1, {"b\x1b": 2}]})
    assert has_controls(("a", "\u202e"))
    assert not has_controls({"a": [1, None, "Ünicode – 鳥 −½ \u00a0"]})


@pytest.mark.parametrize("place", ["table", "meta"])
def test_a_comparison_whose_words_have_controls_is_refused(
    place: str, tmp_path: Path, undrawn: None
) -> None:
    result = make_small("nat", "a")
    if place == "meta":
        result.meta["created"] = "now\x1b[2J"
    else:
        verdicts = result.verdicts.assign(statement="It is so.\u202e")
        result = replace_tables(result, verdicts=verdicts)
    folder = result.save(tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="control characters"):
        Result.load(folder)


def test_data_whose_name_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    split = MemorySplit(*(part[:2] for part in _images()))
    with pytest.raises(UserError, match="rename the folder"):
        Dataset("imagefolder:\udcff", ("a", "b"), split)


def _images() -> tuple[object, object]:
    import torch

    return torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
