"""Several processes make what one makes, refuse what they do not share, and speak once."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from channelscope import cli
from channelscope.attacks import make_generators
from channelscope.cli import processes
from helpers import several
from helpers.processes import (
    ENVIRONMENT,
    assert_same_files,
    read_result,
    read_sentences,
    run_on_two_nodes,
    torchrun,
)
from helpers.runs import after_steps, trained, write_npz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

Findings = dict[str, Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Findings]:
    """Let two processes do everything; return what each found."""
    folder = tmp_path_factory.mktemp("both")
    started = torchrun("helpers.several", "studies", folder)
    try:
        _, errors = started.communicate(timeout=300)
    finally:
        started.terminate()
    assert started.returncode == 0, errors
    first, second = (pickle.loads((folder / f"{number}").read_bytes()) for number in range(2))
    return first, second


# ---------------------------------------------------------------- studies


@pytest.mark.parametrize("question", several.QUESTIONS)
@pytest.mark.usefixtures("small_blocks")
def test_two_processes_make_the_result_of_one(
    question: str, both: tuple[Findings, Findings]
) -> None:
    expected = several.describe(several.QUESTIONS[question]())
    for findings in both:
        assert_same_files(findings[question], expected)


@pytest.mark.usefixtures("small_blocks")
def test_images_that_stay_on_disk_are_read_by_all_processes(
    both: tuple[Findings, Findings], tmp_path: Path
) -> None:
    expected = several.read_streamed(tmp_path)
    for findings in both:
        assert_same_files(findings["streamed"], expected)


@pytest.mark.usefixtures("small_blocks")
def test_a_foreign_attack_draws_by_the_first_image_of_each_block(
    both: tuple[Findings, Findings],
) -> None:
    expected = [
        {make_generators(several.SEED, "Foreign", [first]).initial_seed() for first in firsts}
        for firsts in ([0, 11], [5])  # it is not given images that are misclassified
    ]
    seeds, tables = zip(*(findings["seeds"] for findings in both), strict=True)
    assert list(seeds) == expected
    _, alone = several.draw_seeds()
    assert list(tables) == [alone, alone]


def test_progress_is_that_of_all_processes(both: tuple[Findings, Findings]) -> None:
    """The first process, whose bar is shown, counts the second's blocks with its own."""
    assert both[0]["progress"] == [10, 3, 2, 10, 1]
    assert sum(both[1]["progress"]) == 26


def test_a_temporary_folder_goes_with_the_last_process(both: tuple[Findings, Findings]) -> None:
    for findings in both:
        assert findings["temporary"] == (True, False)


@pytest.mark.parametrize("what", ["the weights of plain", "the images", "the settings"])
def test_processes_that_do_not_share_a_job_are_refused(
    what: str, both: tuple[Findings, Findings]
) -> None:
    sentence = f"The processes do not share one job: {what} differ between processes 0 and 1."
    for findings in both:
        assert findings["refused"][what].startswith(sentence)
        assert findings["refused"]["nothing"] == ""


def test_fewer_images_than_processes_are_refused(both: tuple[Findings, Findings]) -> None:
    for findings in both:
        assert "more processes (2) than images (1)" in findings["refused"]["too few"]


# ---------------------------------------------------------------- the command line


@cache
def data_of(folder: Path) -> str:
    return write_npz(folder)


def evaluate(folder: Path, *more: str) -> list[str]:
    """Return the words of a command that takes some seconds."""
    words = ["evaluate", "--models", str(trained("cifs", 2)), "--data", data_of(folder)]
    words += ["--attacks", "fgsm", "pgd-60x3-60", "--eps", "0.05", "--checks", "0"]
    return [*words, "--device", "cpu", "--out", str(folder / "out"), *more]


def test_when_one_process_is_killed_the_other_says_so_and_the_run_can_go_on(
    tmp_path: Path, undrawn: None
) -> None:
    started = torchrun("helpers.processes", tmp_path, *evaluate(tmp_path))
    partial = tmp_path / "out.partial"
    try:
        while not list(partial.glob("*/pgd*/withstood.npy")):  # fgsm is done
            assert started.poll() is None, started.communicate()
            time.sleep(0.05)
        os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
        printed, errors = started.communicate(timeout=120)
    finally:
        started.terminate()
    assert started.returncode != 0
    assert printed == ""
    (sentence,) = read_sentences(errors)
    assert "Another process of this run has ended, or torchrun was stopped." in sentence
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.partial"]
    assert cli.main([*evaluate(tmp_path, "-q")]) == 0
    assert not partial.exists()
    undisturbed = tmp_path / "undisturbed"
    assert cli.main([*evaluate(tmp_path, "-q", "--out", str(undisturbed))]) == 0
    assert_same_files(read_result(tmp_path / "out"), read_result(undisturbed))


def test_processes_of_other_files_end_with_one_sentence(tmp_path: Path) -> None:
    for rank, method in enumerate(("cifs", "cas")):
        (tmp_path / f"net-{rank}.pt").write_bytes(trained(method, 2).read_bytes())
    words = [*evaluate(tmp_path), "--models", str(tmp_path / "net-RANK.pt"), "--labels", "net"]
    started = torchrun("helpers.processes", tmp_path, *words)
    printed, errors = started.communicate(timeout=120)
    assert printed == ""
    (sentence,) = read_sentences(errors)
    assert "the weights of net differ between processes 0 and 1." in sentence
    assert "exitcode  : 2" in errors
    assert not list(tmp_path.glob("*out*"))


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Wait for two nodes; return what each printed, and its errors."""
    try:
        return [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.terminate()


def test_two_nodes_with_folders_of_their_own_make_the_result_of_one_process(tmp_path: Path) -> None:
    """Each has a copy of the data and of the network; of the run they share the folder."""
    words = evaluate(tmp_path, "-q")
    network, data = Path(words[2]), Path(words[4].removeprefix("npz:"))
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        shutil.copy(network, tmp_path / node / "net.pt")
        shutil.copy(data, tmp_path / node / data.name)
    here = ["--models", str(tmp_path / "NODE" / "net.pt"), "--labels", network.stem]
    here += ["--data", f"npz:{tmp_path / 'NODE' / data.name}"]
    ended = run_on_two_nodes("helpers.processes", tmp_path / "NODE", *words, *here)
    printed = finish(ended)
    assert [process.returncode for process in ended] == [0, 0], printed
    assert "Worst-case" in printed[0][0]
    assert not printed[1][0]
    alone = [*words, "--labels", network.stem, "--out", str(tmp_path / "alone")]
    assert cli.main(alone) == 0
    one, other = read_result(tmp_path / "out"), read_result(tmp_path / "alone")
    numbers = [name for name in other if name.endswith((".csv", ".npz"))]
    assert len(numbers) > 3
    assert [name for name in numbers if one.get(name) != other[name]] == []


def test_nodes_without_a_run_folder_in_common_end_with_one_sentence(tmp_path: Path) -> None:
    """A folder of one path may be there on each of them, and hold a run of its own."""
    for node in ("0", "1"):
        (tmp_path / node / "run").mkdir(parents=True)
        (tmp_path / node / "run" / "channelscope-run").touch()
    words = [*evaluate(tmp_path), "--run-folder", str(tmp_path / "NODE" / "run")]
    ended = run_on_two_nodes("helpers.processes", tmp_path / "NODE", *words)
    printed = finish(ended)
    sentences = [sentence for _, errors in printed for sentence in read_sentences(errors)]
    assert len(sentences) == 1
    assert "do not share a disk" in sentences[0]
    assert not any(words for words, _ in printed)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("steps", [None, 1])
def test_nodes_that_do_not_share_a_training_so_far_do_not_go_on_with_it(
    steps: int | None, tmp_path: Path
) -> None:
    """One node has a run of one epoch, the other of none, or no run; an epoch is of two steps."""
    words = ["train", "--method", "standard", "--arch", "resnet10", "--width", "2"]
    words += ["--epochs", "3", "--batch-size", "16", "--data", data_of(tmp_path)]
    words += ["--device", "cpu", "-q", "--resume", "--out", str(tmp_path / "NODE" / "net.pt")]
    for node, after in (("0", 4), ("1", steps)):
        (tmp_path / node).mkdir()
        if after is not None:
            stops = count(1)

            def stop(_: object, stops: Any = stops, after: int = after) -> None:
                if next(stops) == after:
                    raise KeyboardInterrupt

            with after_steps(stop):
                assert cli.main([word.replace("NODE", node) for word in words]) == 130
            assert (tmp_path / node / "net.pt.partial").exists()
    ended = run_on_two_nodes("helpers.processes", tmp_path / "NODE", *words)
    printed = finish(ended)
    (sentence,) = (sentence for _, errors in printed for sentence in read_sentences(errors))
    assert "the files of the run so far differ between processes 0 and 1." in sentence
    assert not list(tmp_path.glob("*/net.pt"))


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
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("channelscope: process 1: 'channelscope layers'")
    assert "without torchrun" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_command_for_one_process_refuses_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["layers", "net.pt"]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("channelscope: 'channelscope layers' runs in one process")
