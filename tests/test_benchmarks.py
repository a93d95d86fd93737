"""What the benchmarks measure is the same work: every contender gets the same numbers."""

import pytest

from benchmarks.capture import BLOCKS, compute_statistics, make_task, measure_difference
from benchmarks.scale import RandomStudy
from channelscope.analyses.base import analyses_of, make_tables

# nnsight and torchlens take long to import: the benchmark itself compares theirs, in every run.
OTHERS = ("captum", "store-everything")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_contenders_of_capture_compute_the_same_statistics(name: str) -> None:
    net, batches = make_task(12)
    ours, others = (compute_statistics(each, net, batches) for each in ("channelscope", name))
    assert list(ours) == list(others) == BLOCKS
    assert measure_difference(ours, others) < 1e-5


def test_a_study_of_random_arrays_has_all_that_analyses_ask_for() -> None:
    study = RandomStudy(layers=2, classes=3, channels=4, images=12)
    tables, _ = make_tables(study, analyses_of("comparison"))
    assert set(tables["alignment"]["layer"]) == {"layer0", "layer1"}
