"""What an analysis may return, what registering one refuses, and what is said of a bad figure."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from channelscope.analyses import base
from channelscope.analyses.base import (
    ANALYSES,
    RESERVED,
    Analysis,
    Plot,
    Subject,
    Table,
    check_needs,
    make_tables,
    register,
)
from channelscope.errors import UserError, import_modules
from channelscope.result import Result
from helpers.examples import run_example
from helpers.studies import KeptStudy, make_result, synthetic_study

TABLES = {
    "silence": Table(words=("model",), numbers=("share",), help="how many channels are silent"),
    "silences": Table(("model",), ("share",), "the same by channel", by_channel=True),
}
ROWS = [{"model": "at", "share": 0.5}]
ARRAYS = {("at",): {"share": np.zeros((2, 4))}}
GOOD = {"silence": ROWS, "silences": ARRAYS}
STUDY = KeptStudy({}, {"at": {}}, ("a", "b"))


def make(answer: Any) -> Any:
    """Make the tables of an analysis that returns this answer."""
    analysis = Analysis(name="quiet", help="", tables=TABLES, compute=lambda _: answer)
    return make_tables(STUDY, [analysis])


@pytest.mark.parametrize(
    "rows", [ROWS, iter(ROWS), pd.DataFrame(ROWS), []], ids=["list", "iterator", "frame", "none"]
)
def test_tables_are_made_of_rows_and_of_arrays(rows: Any) -> None:
    tables, arrays = make(GOOD | {"silence": rows, "numbers": np.ones(3)})
    assert list(tables["silence"].columns) == ["model", "share"]
    assert len(tables["silences"]) == 8
    assert list(arrays) == ["numbers"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "The analysis 'quiet' returns None: return {table: rows}"),
        (
            {"silense": ROWS, "silences": ARRAYS},
            "The analysis 'quiet' returns no table 'silence' but 'silense', 'silences'",
        ),
        ({}, "returns no table 'silence' but nothing"),
        (GOOD | {"more": ROWS}, "'more', which is neither one of its tables nor an array"),
        (GOOD | {"more": np.array([{}])}, "'more', which is neither one of its tables nor an"),
        (
            GOOD | {"silence": [*ROWS, {"model": "at", "shares": 1}]},
            "table 'silence' of the analysis 'quiet': a row lacks 'share' and has an "
            "unknown 'shares': the columns are model, share",
        ),
        (GOOD | {"silence": [{"model": "at"}]}, "a row lacks 'share': the"),
        (GOOD | {"silence": pd.DataFrame({"model": ["at"]})}, "a row lacks 'share': the"),
        (GOOD | {"silence": [("at", 0.5)]}, r"a row is a mapping .* not \('at', 0.5\)"),
        (GOOD | {"silence": 3}, "The table 'silence' of the analysis 'quiet'"),
        (GOOD | {"silences": ROWS}, "The table 'silences' of the analysis 'quiet'"),
        (GOOD | {"silences": {("at", "x"): ARRAYS["at",]}}, r"its groups are model, not \('at'"),
        (
            GOOD | {"silences": {("at",): {"shares": np.zeros((2, 4))}}},
            "a row lacks 'share' and has an",
        ),
        (GOOD | {"silences": {("at",): {"share": np.zeros((3, 4))}}}, r"not of \(classes, chan"),
    ],
)
def test_answers_that_do_not_fit_the_tables_are_refused(answer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(answer)


def test_two_analyses_make_no_array_of_one_name() -> None:
    analyses = [
        Analysis(name=name, help="", compute=lambda _: {"numbers": np.ones(3)}) for name in "ab"
    ]
    with pytest.raises(ValueError, match="Two analyses make an array 'numbers'"):
        make_tables(STUDY, analyses)


def test_an_open_table_takes_any_columns() -> None:
    table = Table(("model",), ("share",), "", open=True)
    assert len(table.frame([{"model": "at", "width": "8"}])) == 1


# ---------------------------------------------------------------- the registry


def draw_silence(result: Result, layer: str | None = None) -> Figure:
    return Figure()


PLOT = Plot(
    name="silence",
    draw=draw_silence,
    data=lambda result, layer=None: result.silence,
    caption="Silent channels of {layer}, {{sic}}. {layers}",
    section="network",
    table="silence",
    subjects=lambda _: [Subject({"layer": "layer4"})],
)
QUIET = Analysis(name="quiet", help="silent channels", tables=TABLES, plots=(PLOT,))


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(ANALYSES)
    yield
    ANALYSES.clear()
    ANALYSES.update(before)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"section": "mine"}, "'silence' is in the section 'mine': choose from claims, network"),
        ({"name": "depth"}, "There are two figures called 'depth'"),
        ({"caption": "{percent} of {layers}"}, "names {percent}: it may name extremes, .*, layer;"),
        ({"caption": "{}."}, "names {}: it may name"),
        ({"caption": "{layers.x}"}, "names {layers.x}: it may name"),
        ({"caption": "a set {1, 2"}, "has a caption with a single brace: double it"),
    ],
    ids=str,
)
def test_figures_that_could_not_be_shown_are_not_registered(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        register(replace(QUIET, plots=(replace(PLOT, **change),)))
    assert "quiet" not in ANALYSES


@pytest.mark.usefixtures("unchecked")
def test_an_analysis_is_of_known_kinds() -> None:
    with pytest.raises(ValueError, match="'quiet' is of the kind 'comparisons': choose from comp"):
        register(replace(QUIET, kinds=("comparisons",)))


@pytest.mark.parametrize("name", ["meta", "plot", "verdicts", "two words"])
def test_a_table_is_not_called_what_a_result_has_already(name: str) -> None:
    with pytest.raises(ValueError, match=f"'quiet' makes a table '{name}', which no table of a"):
        register(replace(QUIET, tables={name: TABLES["silence"]}, plots=()))


def test_no_attribute_of_a_result_is_left_to_tables() -> None:
    attributes = {*dir(Result("comparison", {}, {}, META)), "verdicts"}
    assert {name for name in attributes if not name.startswith("_")} == RESERVED


@pytest.mark.usefixtures("unchecked")
def test_two_tables_of_one_name_are_refused_with_both_analyses() -> None:
    register(replace(QUIET, plots=()))
    with pytest.raises(ValueError, match="'still' makes a table 'silence', as 'quiet' does"):
        register(replace(QUIET, name="still", plots=()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nregister(x)\n", r"broken\.py cannot be imported, line 2 \(NameError: "),
        ("def\n", r"broken\.py cannot be imported \(SyntaxError: "),
        ("import no_such_package\n", r"line 1 \(ModuleNotFoundError: No module named 'no_such"),
    ],
)
def test_a_module_with_a_mistake_is_named(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"package_of_{len(text)}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=words):
        import_modules(package.name, [str(package)])


@pytest.mark.parametrize("change", [{"table": "silense"}, {"needs": ("silense",)}], ids=str)
def test_a_figure_of_a_table_that_nobody_makes_is_refused(change: dict[str, Any]) -> None:
    register(replace(QUIET, plots=(replace(PLOT, **change),)))
    words = "'silence' of the analysis 'quiet' needs the table 'silense', .* Did you mean 'silenc"
    for check in (check_needs, lambda: make_tables(STUDY, [])):
        with pytest.raises(ValueError, match=words):
            check()


def test_the_docstrings_example_works(tmp_path: Path) -> None:
    run_example(base)
    check_needs()
    layers = ("layer3", "layer4")
    result = make_result(synthetic_study(("nat", "at"), ("a", "b"), layers), "silence")
    assert len(result.silence) == 4
    assert result.figures == ["silence-layer3", "silence-layer4"]
    result.draw(tmp_path, formats=["png"], progress=False)
    assert "Layer: layer4. Adversarial images: " in (tmp_path / "figures/captions.txt").read_text()


# ---------------------------------------------------------------- results of other registries


META = {
    "models": {"at": {"layers": ["layer4"]}},
    "data": {"name": "digits", "classes": ["a", "b"], "images": 2},
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_an_analysis_that_is_not_here_is_no_damage(name: str, tmp_path: Path) -> None:
    analysis = register(replace(QUIET, tables={name: TABLES[name]}, plots=()))
    tables, _ = make_tables(STUDY, [replace(analysis, compute=lambda _: {name: GOOD[name]})])
    folder = Result("comparison", tables, {}, META).save(tmp_path / "out", progress=False)
    assert list(Result.load(folder).tables) == [name]
    del ANALYSES["quiet"]
    words = f"has a table '{name}' of an analysis that is not installed here: add its file to"
    with pytest.raises(UserError, match=words) as caught:
        Result.load(folder)
    assert "damaged" not in str(caught.value)


def test_a_result_that_is_older_than_an_analysis_says_so() -> None:
    result = Result("comparison", {"alignment": pd.DataFrame()}, {}, META)
    with pytest.raises(AttributeError, match=r"has no table 'alignmnt'\. Did you mean 'alignment'"):
        _ = result.alignmnt
    register(QUIET)
    words = (
        "no table 'silence': it was made before the analysis 'quiet', or without it. Run compare"
    )
    with pytest.raises(AttributeError, match=words):
        _ = result.silence
    with pytest.raises(UserError, match=words):
        result.select("silence")


# ---------------------------------------------------------------- a figure that fails


def fail(*_: Any, **__: Any) -> Any:
    raise KeyError("share")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draw": fail}, "cannot be drawn: KeyError: 'share'"),
        ({"draw": lambda _, layer: None}, "cannot be drawn: TypeError: return a Figure, not an"),
        ({"data": fail}, "cannot be put into a table: KeyError: 'share'"),
        (
            {"data": lambda _, layer: []},
            "put into a table: TypeError: return a DataFrame",
        ),
        ({"alt_text": fail}, "cannot be described: KeyError"),
        ({"alt_text": lambda _: None}, "cannot be described: TypeError: return a str"),
        ({"subjects": lambda _: ["layer4"]}, "cannot be drawn: TypeError: return a Subject"),
        ({"subjects": fail}, "cannot be drawn: KeyError"),
        (
            {"subjects": lambda _: [Subject({"layer": None})]},
            "captioned: ValueError: {layer} is unknown",
        ),
    ],
)
def test_a_figure_that_fails_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    register(replace(QUIET, plots=(replace(PLOT, **change),)))
    result = Result("comparison", {"silence": pd.DataFrame(ROWS)}, {}, META)
    with pytest.raises(ValueError, match=f"The figure 'silence' .*{words}"):
        result.draw(tmp_path, progress=False)


def test_a_figure_is_drawn_and_captioned(tmp_path: Path) -> None:
    register(QUIET)
    result = Result("comparison", {"silence": pd.DataFrame(ROWS)}, {}, META)
    assert result.figures == ["silence-layer4"]
    wanted = "Silent channels of layer4, {sic}. Layer: layer4."
    assert result.caption("silence-layer4") == wanted
    assert isinstance(result.plot("silence", layer="layer4"), Figure)


def test_a_mistake_of_the_user_stays_one() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError("Only one layer was measured.")

    register(replace(QUIET, plots=(replace(PLOT, draw=refuse),)))
    result = Result("comparison", {"silence": pd.DataFrame(ROWS)}, {}, META)
    with pytest.raises(UserError, match="Only one layer"):
        result.plot("silence", layer="layer4")
