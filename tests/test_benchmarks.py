"""What the benchmarks measure is the same work: every contender gets the same numbers."""

import pytest

from benchmarks.capture import BLOCKS, compute_statistics, make_task, measure_difference

pytestmark = pytest.mark.slow

# nnsight and torchlens take long to import: the benchmark itself compares theirs, in every run.
OTHERS = ("captum", "store-everything")


@pytest.mark.parametrize("name", OTHERS)
def test_contenders_of_capture_compute_the_same_statistics(name: str) -> None:
    net, batches = make_task(12)
    ours, others = (compute_statistics(each, net, batches) for each in ("channelscope", name))
    assert list(ours) == list(others) == BLOCKS
    assert measure_difference(ours, others) < 1e-5
