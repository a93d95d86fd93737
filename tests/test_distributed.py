"""Several processes: together they find what one finds, and where one is lost the others say so."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import several
from channelscope import cli, distributed
from channelscope.attacks import make_generators
from channelscope.cli import processes
from channelscope.comparison.frames import COLUMNS
from channelscope.statistics.streaming import ChannelStats
from channelscope.study.measurement import Measurement
from runs import trained, write_npz

pytestmark = pytest.mark.usefixtures("unchecked")

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
QUICK: dict[str, Any] = {"replicates": 20, "progress": False}
Found = dict[str, Any]


def torchrun(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start two processes of a module or a script."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, words),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{"env": ENVIRONMENT, **pipes} | options)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Let two processes do everything; give what each found."""
    folder = tmp_path_factory.mktemp("both")
    started = torchrun(TESTS / "several.py", folder)
    try:
        _, errors = started.communicate(timeout=300)
    finally:
        started.terminate()
    assert started.returncode == 0, errors
    first, second = (pickle.loads((folder / f"{number}").read_bytes()) for number in range(2))
    return first, second


# ---------------------------------------------------------------- who one is, and one's share


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_are_neighbours_of_nearly_one_size_and_hold_everything_once(
    n: int, processes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "size", lambda: processes)
        parts = []
        for number in range(processes):
            patch.setattr(distributed, "rank", lambda number=number: number)
            parts.append(range(n)[distributed.get_slice(n)])
    assert [index for part in parts for index in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_alone_there_is_one_process_and_everything_is_its_own() -> None:
    value = torch.arange(3)
    with distributed.join_processes("cpu"), distributed.run_first():
        assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (
            0,
            1,
            True,
        )
        assert distributed.get_slice(7) == slice(0, 7)
        assert distributed.all_reduce(value) is distributed.all_gather(value) is value
        distributed.barrier()
        network = nn.BatchNorm2d(2)
        assert type(distributed.synchronise_batchnorm(network)) is nn.BatchNorm2d
    assert distributed.own_device("cuda") == "cuda"


def test_of_several_processes_each_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    assert distributed.own_device("cuda") == "cuda:1"
    assert [distributed.own_device(device) for device in ("cpu", "cuda:3")] == ["cpu", "cuda:3"]


def test_processes_know_who_they_are(both: tuple[Found, Found]) -> None:
    assert [found["told"]["who"] for found in both] == [(0, 2, True), (1, 2, False)]
    assert both[0]["told"]["shares"] == [slice(0, 0), slice(0, 0), slice(0, 3), slice(0, 4)]
    assert both[1]["told"]["shares"] == [slice(0, 0), slice(0, 1), slice(3, 7), slice(4, 8)]
    assert [list(found["told"]["dealt"]) for found in both] == [[0, 2, 4], [1, 3]]
    assert [found["left"] for found in both] == [(0, 1), (0, 1)]


# ---------------------------------------------------------------- what they tell each other


def test_totals_are_sums_over_the_processes(both: tuple[Found, Found]) -> None:
    for found in both:
        assert found["told"]["total"].tolist() == [[4.5, -6.0]]
        assert found["told"]["total of whole numbers"].item() == 2**41 + 1


def test_everyones_rows_come_in_the_order_of_the_processes(both: tuple[Found, Found]) -> None:
    rows = torch.arange(10.0).view(5, 2)
    for found in both:
        assert torch.equal(found["told"]["everyone's"], rows)
        assert found["told"]["everyone's hits"].tolist() == [True, False, True]
        assert torch.equal(found["told"]["everyone's, the first's none"], rows[:1])
        assert found["told"]["everyone's none"].shape == (0, 2)
        assert found["told"]["words"] == {"of 0", "of 1", "of both: é"}


def test_the_first_goes_ahead(both: tuple[Found, Found]) -> None:
    assert [found["told"]["after the first"] for found in both] == [True, True]


# ---------------------------------------------------------------- batch normalisation


def put_together(both: tuple[Found, Found], case: str) -> Iterator[tuple[str, Tensor]]:
    """Put the processes' shares of a batch together; what is of the whole must be the same in both."""
    for name, first in both[0][case].items():
        second = both[1][case][name]
        if name.startswith(("output", "input")):
            yield name, torch.cat([first, second])
        else:
            assert torch.equal(first, second), name
            yield name, first


@pytest.mark.parametrize("case", several.NORMS, ids=str)
def test_batchnorm_is_that_of_the_whole_batch(both: tuple[Found, Found], case: Any) -> None:
    whole = several.normalised(*case)
    assert len(whole) > 10
    tolerance = 1e-6 if case[0] == torch.float32 else 1e-12
    for name, value in put_together(both, f"batchnorm {case}"):
        scale = max(1, whole[name].abs().max().item())
        torch.testing.assert_close(
            value, whole[name], rtol=0, atol=tolerance * scale, msg=lambda m, name=name: name + m
        )


def test_a_networks_gradients_are_those_of_the_whole_batch(both: tuple[Found, Found]) -> None:
    whole = several.trained()
    assert any(name.endswith("running_var") for name in whole)
    for name, value in put_together(both, "network"):
        torch.testing.assert_close(
            value, whole[name], rtol=1e-10, atol=1e-12, msg=lambda m, name=name: name + m
        )


def test_batchnorm_of_half_precision_counts_and_sums_in_single(both: tuple[Found, Found]) -> None:
    x, _ = several.batch(600, 3, torch.bfloat16, seed=0)
    exact = nn.BatchNorm2d(3)(x.float()).detach()
    found = torch.cat([found["half"] for found in both])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-5)


# ---------------------------------------------------------------- measuring


def statistics(found: Measurement) -> Iterator[tuple[str, ChannelStats]]:
    for part in ("natural", "adversarial", "relevance"):
        for layer, stats in getattr(found, part).items():
            yield f"{part} {layer}", stats


@pytest.mark.parametrize("images", ["measured", "streamed"])
@pytest.mark.parametrize("number", [0, 1])
def test_two_processes_measure_what_one_measures(
    both: tuple[Found, Found], number: int, images: str
) -> None:
    found, wanted = both[number][images], several.measured()
    assert found.layers == wanted.layers
    assert list(found.hits) == list(wanted.hits)
    for name, hits in wanted.hits.items():
        assert torch.equal(found.hits[name], hits), name
        for one, other in zip(found.accuracy(hits), wanted.accuracy(hits), strict=True):
            np.testing.assert_array_equal(one, other)
    parts = dict(statistics(found))
    assert len(parts) == 6
    for name, stats in statistics(wanted):
        assert torch.equal(parts[name].count, stats.count)
        assert torch.equal(parts[name].active, stats.active)
        assert torch.equal(parts[name].sum, stats.sum)
        assert torch.equal(parts[name].square_sum, stats.square_sum)


def test_random_starts_are_an_images_own() -> None:
    """What the tests above compare would be the same for any starts, if these did not matter."""
    one, other = several.measured(), several.measured(seed=several.SEED + 1)
    layer = one.layers[0]
    assert (one.adversarial[layer].sum - other.adversarial[layer].sum).abs().max() > 1e-3


def test_both_processes_end_with_the_same_comparison(both: tuple[Found, Found]) -> None:
    one, wanted = both[0]["compared"], several.compared()
    for other in (both[1]["compared"], wanted):
        for name in COLUMNS:
            pd.testing.assert_frame_equal(
                getattr(one, name), getattr(other, name), check_exact=True
            )
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])
    settings = [{**found["compared"].meta, "created": None} for found in both]
    assert settings[0] == settings[1]
    assert (settings[0]["hardware"]["processes"], wanted.meta["hardware"]["processes"]) == (2, 1)


def test_a_process_that_comes_late_to_an_evaluation_joins_it(both: tuple[Found, Found]) -> None:
    assert [found["evaluated"] for found in both] == [several.evaluated()] * 2


def test_a_foreign_attack_draws_by_the_first_image_of_each_block(both: tuple[Found, Found]) -> None:
    wanted = [
        {0, 8},
        {4, 8},
    ]  # of blocks of four, dealt out; the second process does the last one too, for nothing
    seeds = [
        {make_generators(several.SEED, "Watching", [n]).initial_seed() for n in own}
        for own in wanted
    ]
    assert [found["watched"] for found in both] == seeds


def test_progress_is_that_of_all_processes(both: tuple[Found, Found]) -> None:
    assert [found["progressed"] for found in both] == [[4, 4, 3]] * 2


def test_fewer_images_than_processes_are_refused(both: tuple[Found, Found]) -> None:
    for found in both:
        assert (
            found["too few"]
            == "There are more processes (2) than images (1): start fewer, or add images."
        )


# ---------------------------------------------------------------- a process is lost


@pytest.mark.parametrize("work", ["backward", "everyones"])
def test_a_lost_process_is_told_in_a_sentence(work: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(TESTS / "lost.py"), str(tmp_path), work]
    started = [
        subprocess.Popen(command, env=ENVIRONMENT | known | {"RANK": str(number)})
        for number in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, -9]
    assert (tmp_path / "0").read_text().startswith("Another of the run's processes has stopped")


# ---------------------------------------------------------------- the command line


def words(out: Path, *more: str | Path) -> list[str | Path]:
    settings = [
        "--attacks",
        "cw-2",
        "--batch-size",
        "5",
        "--replicates",
        "20",
        "--device",
        "cpu",
        "--quiet",
    ]
    return [
        "-m",
        "channelscope",
        "compare",
        *more,
        "--data",
        write_npz(out.parent),
        "--out",
        out,
        *settings,
    ]


def test_when_one_process_is_killed_the_other_says_so_and_ends(tmp_path: Path) -> None:
    long = words(tmp_path / "out", "--models", trained("standard", 2), "--attack", "pgd-999999")[
        2:-1
    ]
    started = torchrun(TESTS / "lost.py", tmp_path, "command", *long)
    assert started.stderr is not None
    while "img" not in started.stderr.readline(80):  # until the progress bar is there
        assert started.poll() is None
    os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
    printed, errors = started.communicate(timeout=120)
    assert started.returncode != 0
    assert printed == ""
    said = [line for line in errors.splitlines() if line.startswith("channelscope: ")]
    assert said == [
        "channelscope: Another process of this run has ended, or torchrun was stopped. Start the same command again."
    ]
    assert not list(tmp_path.glob("*out*"))


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    started = torchrun(*words(tmp_path / "out", "--models", "net.pt"))
    printed, errors = started.communicate(timeout=120)
    assert started.returncode != 0
    assert printed == ""
    assert [line for line in errors.splitlines() if "net.pt" in line] == [
        "channelscope: There is no file net.pt: check the path."
    ]


def test_a_process_keeps_to_itself_what_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **place}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_MOMENT", 0.2)
    assert not processes.is_said("one")  # by nobody
    monkeypatch.setenv("RANK", "0")
    assert not processes.is_said("one")
    monkeypatch.setenv("RANK", "1")
    assert processes.is_said("one")
    assert not processes.is_said("other")
    assert processes.is_said(f"{processes._LOST} Start again.")
    monkeypatch.setenv("MASTER_PORT", "9")
    assert not processes.is_said("one")


def test_a_process_names_itself_and_leaves_the_standard_output_to_the_first() -> None:
    command = [sys.executable, "-m", "channelscope", "layers", "net.pt"]
    second = ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, env=second, capture_output=True, text=True, check=False)
    told = "channelscope: process 1: 'channelscope layers' runs in one process: start it without torchrun.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_command_for_one_process_refuses_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["layers", "net.pt"]) == 2
    told = "channelscope: 'channelscope layers' runs in one process: start it without torchrun.\n"
    assert capsys.readouterr() == ("", told)
