"""Several processes: together they compute what one computes, and where one is lost all say so."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from channelscope import distributed
from helpers import joined

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
Results = dict[str, Any]


def start(work: str, folder: Path, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start processes that join."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "helpers.joined", work, str(folder)]
    return [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(number)},
            cwd=TESTS,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Let two processes do everything; return what each found."""
    folder = tmp_path_factory.mktemp("both")
    processes = start("everything", folder)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    first, second = (pickle.loads((folder / f"{number}").read_bytes()) for number in range(2))
    return first, second


# ---------------------------------------------------------------- ranks and shares


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_are_neighbours_of_nearly_one_size_and_hold_everything_once(
    n: int, count: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: count)
        shares = []
        for number in range(count):
            patch.setattr(distributed, "rank", lambda number=number: number)
            shares.append(range(n)[distributed.get_slice(n)])
    assert [index for share in shares for index in share] == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_alone_there_is_one_process_and_everything_is_its_own() -> None:
    value = torch.arange(3)
    with distributed.join_processes("cpu"), distributed.run_first():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.is_first()
        assert distributed.get_slice(7) == slice(0, 7)
        assert distributed.all_reduce(value) is distributed.all_gather(value) is value
        assert distributed.all_gather_words(["one", "other"]) == ["one", "other"]
        distributed.check_same({"the weights of at": "ab"})
        distributed.barrier()
        network = nn.BatchNorm2d(2)
        assert type(distributed.synchronise_batchnorm(network)) is nn.BatchNorm2d


def test_processes_know_their_ranks(both: tuple[Results, Results]) -> None:
    one, other = (results["exchange"] for results in both)
    assert [one["who"], other["who"]] == [(0, 2, True), (1, 2, False)]
    assert one["slices"] == [slice(0, 0), slice(0, 0), slice(0, 3), slice(0, 4)]
    assert other["slices"] == [slice(0, 0), slice(0, 1), slice(3, 7), slice(4, 8)]
    assert [list(one["shard"]), list(other["shard"])] == [[0, 2, 4], [1, 3]]
    assert [results["afterwards"] for results in both] == [(0, 1), (0, 1)]


# ---------------------------------------------------------------- exchanges


def test_sums_are_over_the_processes(both: tuple[Results, Results]) -> None:
    for results in both:
        assert results["exchange"]["sum"].tolist() == [[4.5, -6.0]]
        assert results["exchange"]["sum of whole numbers"].item() == 2**41 + 1


def test_rows_come_in_the_order_of_the_processes(both: tuple[Results, Results]) -> None:
    rows = torch.arange(10.0).view(5, 2)
    for results in both:
        gathered = results["exchange"]
        assert torch.equal(gathered["rows"], rows)
        assert gathered["flags"].tolist() == [True, False, True]
        assert torch.equal(gathered["rows of the second alone"], rows[:1])
        assert gathered["no rows"].shape == (0, 2)
        assert gathered["words"] == ["of 0", "of both: é", "of 1", "of both: é"]
        assert gathered["no words"] == []


def test_the_first_goes_ahead(both: tuple[Results, Results]) -> None:
    assert [results["after the first"] for results in both] == [True, True]


@pytest.mark.parametrize("case", joined.JOBS)
def test_processes_of_different_jobs_are_refused(case: str, both: tuple[Results, Results]) -> None:
    """In both processes, with the same sentence: none goes on to wait for the other."""
    expected = (
        ""
        if case == "nothing"
        else (
            f"The processes do not share one job: {case} differ between processes 0 and 1. "
            "Give all of them the same files and options."
        )
    )
    assert [results["jobs"][case] for results in both] == [expected, expected]


# ---------------------------------------------------------------- batch normalisation


def put_together(both: tuple[Results, Results], case: str) -> Iterator[tuple[str, Tensor]]:
    """Join the processes' shares of a batch; what is of the whole must be the same in both."""
    for name, first in both[0][case].items():
        second = both[1][case][name]
        if name.startswith(("output", "input")):
            yield name, torch.cat([first, second])
        else:
            assert torch.equal(first, second), name
            yield name, first


@pytest.mark.parametrize("case", joined.NORMS, ids=str)
def test_batchnorm_is_that_of_the_whole_batch(both: tuple[Results, Results], case: Any) -> None:
    whole = joined.normalise(*case)
    assert len(whole) > 10
    tolerance = 1e-6 if case[0] == torch.float32 else 1e-12
    for name, value in put_together(both, f"batchnorm {case}"):
        scale = max(1, whole[name].abs().max().item())
        torch.testing.assert_close(
            value, whole[name], rtol=0, atol=tolerance * scale, msg=lambda m, name=name: name + m
        )


def test_a_networks_gradients_are_those_of_the_whole_batch(both: tuple[Results, Results]) -> None:
    whole = joined.train_network()
    assert any(name.endswith("running_var") for name in whole)
    for name, value in put_together(both, "network"):
        torch.testing.assert_close(
            value, whole[name], rtol=1e-10, atol=1e-12, msg=lambda m, name=name: name + m
        )


def test_batchnorm_of_half_precision_sums_in_single(both: tuple[Results, Results]) -> None:
    x, _ = joined.batch(600, 3, torch.bfloat16, seed=0)
    exact = nn.BatchNorm2d(3)(x.float()).detach()
    computed = torch.cat([results["half"] for results in both])
    assert computed.dtype == torch.bfloat16
    torch.testing.assert_close(computed.float(), exact, rtol=2**-8, atol=1e-5)


# ---------------------------------------------------------------- a process is lost


@pytest.mark.parametrize("work", ["lost-backward", "lost-gather"])
def test_a_lost_process_is_told_in_a_sentence(work: str, tmp_path: Path) -> None:
    processes = start(work, tmp_path)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, -9], errors
    said = (tmp_path / "0").read_text()
    assert said.startswith("Another of the run's processes has stopped")


def test_a_stopped_process_ends_the_run_after_the_time_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNELSCOPE_TIMEOUT", "4")
    first, second = start("stopped", tmp_path)
    try:
        errors = first.communicate(timeout=120)[1]
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 2, errors
    assert "Process 1 has not answered for 4 s" in errors
