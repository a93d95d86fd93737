"""What the benchmarks measure is the same work: every contender finds the same numbers."""

import pytest
import torch

from benchmarks.capture import BLOCKS, CONTENDERS, statistics_of, task

# nnsight and torchlens take long to import: the benchmark itself compares theirs, in every run.
OTHERS = ("captum", "store-everything")


@pytest.mark.parametrize("name", OTHERS)
def test_contenders_of_capture_find_the_same_statistics(name: str) -> None:
    net, batches = task(12)
    ours, theirs = (
        statistics_of(CONTENDERS[contender], net, batches) for contender in ("channelscope", name)
    )
    assert list(ours) == list(theirs) == BLOCKS
    for block in BLOCKS:
        for one, other in zip(ours[block], theirs[block], strict=True):
            assert torch.allclose(one, other, rtol=1e-6, equal_nan=True)
