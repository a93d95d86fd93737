"""What an analysis may return, and what registering one refuses."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from channelscope.analyses.base import Analysis, Table, make_tables
from helpers.studies import KeptStudy

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


@pytest.mark.parametrize("rows", [ROWS, iter(ROWS), pd.DataFrame(ROWS), []], ids=str)
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
