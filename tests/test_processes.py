"""Several processes measure and evaluate what one does, and commands of several speak once."""

import os
import pickle
import signal
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
from runs import trained, write_npz

import several
from channelscope import cli
from channelscope.attacks import make_generators
from channelscope.cli import processes
from channelscope.comparison.frames import COLUMNS
from channelscope.statistics.streaming import ChannelStats
from channelscope.study.measurement import Measurement

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
    started = torchrun(TESTS / "lost.py", tmp_path, *long)
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
