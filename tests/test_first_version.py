"""Every table agrees with that of the package's first version, from the arrays of its own run."""

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

from channelscope.analyses.base import analyses_of
from channelscope.result import Result
from helpers.first_version import FOLDER, KINDS, read_first_study, read_first_table
from helpers.studies import make_result

RUNS = (
    ("digits", "comparison"),
    ("digits", "evaluation"),
    ("digits", "intervention"),
    ("digits", "rankings"),
    ("zoo", "comparison"),
    ("zoo", "evaluation"),
)
# Tables of another name in the first version; None: they were not there.
NAMES = {
    ("comparison", "faults"): None,
    ("comparison", "damage_concentration"): None,
    ("comparison", "joint"): None,
    ("evaluation", "joint"): None,
    ("evaluation", "attacks"): "table",
    ("evaluation", "worst_case"): "worst",
    ("evaluation", "robustness"): "classes",
    ("intervention", "suppression"): None,
}
NUMBERED = ("channel", "rank", "epoch", "at", "eps", "channels", "fraction")  # they tell rows apart
# Bounds that were another interval's, and sentences, which have been reworded.
CHANGED = {
    ("comparison", "robustness"): ("low", "high"),
    ("comparison", "differences"): ("q",),  # corrected over all p, of which some have changed
    ("intervention", "curves"): ("low", "high"),
}
# Tables that have further measures now, and those of the first version that they no longer have:
# in their place are measures that weigh channels by their relevance, or are centred.
FURTHER = {
    "alignment": {"relevance_robust_correlation"},
    "differences": {"cosine", "nr_ratio", "relevance_spearman_adversarial"},
    "decay": set(),
}
# Tables of many measures, of which this one has another interval and test than it had.
CHANGED_MEASURE = {
    ("comparison", "differences"): ("low", "high", "p"),
    ("comparison", "decay"): ("low", "high"),
}
CASES = [
    (case, kind, table)
    for case, kind in RUNS
    for analysis in analyses_of(KINDS[kind])
    for table in analysis.tables
    if NAMES.get((kind, table), table)
]


@cache
def compute(case: str, kind: str) -> Result:
    return make_result(read_first_study(case, kind))


def sort_rows(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table.sort_values(columns, kind="stable", ignore_index=True)


@pytest.mark.parametrize(("case", "kind", "name"), CASES)
def test_tables_agree(case: str, kind: str, name: str) -> None:
    now = getattr(compute(case, kind), name)
    first = read_first_table(case, kind, NAMES.get((kind, name), name))
    if name == "decay":  # of the strengths, those whose arrays are kept
        now = now[now["at"].isin(first["at"])]
    if (kind, name) == ("evaluation", "robustness"):
        now = now[now["class"] != "all"]
    if name in FURTHER:
        both = {*now["measure"]} & {*first["measure"]}
        assert {*first["measure"]} - both <= FURTHER[name]
        now, first = (table[table["measure"].isin(both)] for table in (now, first))
    words = [column for column in list_words(kind, name) if column in first]
    keys = [*words, *(column for column in NUMBERED if column in first)]
    assert len(now) == len(first)
    if first.empty:
        return
    now, first = sort_rows(now, keys), sort_rows(first, keys)
    for column in words:
        assert now[column].tolist() == first[column].tolist()
    skipped = {*words, *CHANGED.get((kind, name), ())}
    for column in set(first) - skipped:
        same = np.full(len(first), True)
        if column in CHANGED_MEASURE.get((kind, name), ()):
            same = (first["measure"] != "robust_accuracy").to_numpy()
        np.testing.assert_allclose(
            now.loc[same, column].to_numpy(float),
            first.loc[same, column].to_numpy(float),
            rtol=0,
            atol=1e-12,
            err_msg=column,
        )


def list_words(kind: str, name: str) -> list[str]:
    """Return a table's columns of words."""
    (table,) = (
        analysis.tables[name] for analysis in analyses_of(KINDS[kind]) if name in analysis.tables
    )
    return [*table.words, *(["class"] if table.by_channel else [])]


# The verdicts of comparisons are not compared: every claim is judged by another quantity and rule
# now, as the first version's rules decided where there was nothing to find.


def test_verdicts_by_intervention_agree() -> None:
    """All but the intervals, which were of the bootstrap."""
    result = compute("digits", "intervention")
    first = read_first_table("digits", "intervention", "verdicts")
    for table, columns in (
        (result.verdicts, ["estimate"]),
        (result.suppression, ["estimate", "over_random", "natural"]),
    ):
        values = table[columns].to_numpy(float)
        np.testing.assert_allclose(values, first[columns].to_numpy(float), rtol=0, atol=1e-12)
    columns = ["claim", "layer", "verdict"]
    assert result.verdicts[columns].to_numpy().tolist() == first[columns].to_numpy().tolist()
    now = [re.sub(r"\[.*?\]", "[]", statement) for statement in result.verdicts["statement"]]
    assert now == [re.sub(r"\[.*?\]", "[]", statement) for statement in first["statement"]]


def test_pictures_of_the_images_that_excite_channels_agree() -> None:
    arrays = compute("digits", "comparison").arrays
    with np.load(FOLDER / "digits" / "comparison" / "thumbnails.npz") as first:
        assert {name for name in arrays if name.startswith("thumbnails")} == set(first.files)
        for name in first.files:  # of further images there are pictures now
            if not name.endswith("/images"):
                places = {image: place for place, image in enumerate(arrays[f"{name}/images"])}
                rows = [places[image] for image in first[f"{name}/images"]]
                np.testing.assert_array_equal(arrays[name][rows], first[name])
