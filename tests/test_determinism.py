"""The same seed gives the same files, to the byte: run after run, for any batch size and number of processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelscope.cli import main
from channelscope.data import Split, block_size, in_blocks
from runs import digits, trained
from test_distributed import torchrun

OF_THE_RUN = {"created", "command", "hardware", "batch_size"}
PER_BLOCK = 8
ATTACKS = ["fgsm", "pgd-3x2", "apgd-ce-4", "joint-sweep"]
COMMANDS: dict[str, list[str]] = {
    "evaluate": ["--attacks", *ATTACKS, "--eps", "0.1", "--eps-sweep", "0.05", "--checks", "6", "--save-adversarial"],
    "compare": ["--attack", "pgd-2", "--attacks", "cw-3", "--layers", "layer2", "layer4", "--replicates", "20"],
    "relevance": ["--scorer", "gradient", "ablation-mean", "--layers", "layer4", "--replicates", "20"],
    "intervene": ["--attack", "pgd-2", "--fractions", "0.5", "--random", "1", "--replicates", "20"],
}
SHARED = ("evaluate", "compare")


@pytest.fixture(scope="module")
def models() -> list[str]:
    return [str(trained(method, 2)) for method in ("at", "cifs", "cas")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write images of two classes: 180, and so two blocks, the second of 52."""
    few, chance = digits(2), np.random.default_rng(0)
    labels = np.arange(180) % 2
    pairs = [few.test.images[few.test.labels == k, 0].numpy() for k in range(2)]
    noise = chance.integers(0, 9, (180, 8, 8), dtype=np.uint8)
    images = np.stack([pairs[k][n // 2 % len(pairs[k])] // 2 for n, k in enumerate(labels)]) + noise
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, test_images=images, test_labels=labels)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def ran(models: list[str], data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Run a command into a folder of its own; give the bytes of the files there, but for what is of the run."""
    known: dict[Any, dict[str, bytes]] = {}

    def run(command: str, *more: str, several: bool = False) -> dict[str, bytes]:
        if (command, more, several) not in known:
            out = tmp_path_factory.mktemp(command) / "out"
            words = [command, "--models", *models, "--data", data, "--out", str(out), "--device", "cpu", "-q"]
            words += [*COMMANDS[command], "--seed", "3", *more]
            if several:
                started = torchrun("-m", "channelscope", *words)
                _, errors = started.communicate(timeout=600)
                assert started.returncode == 0, errors
            else:
                assert main(words) == 0
            known[command, more, several] = contents(out)
        return known[command, more, several]

    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    meta = json.loads(files.pop("meta.json"))
    assert OF_THE_RUN <= meta.keys()
    return files | {"meta.json": json.dumps({key: meta[key] for key in meta.keys() - OF_THE_RUN}).encode()}


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("size", [None, "1", "7", "1000"])
def test_any_batch_size_gives_the_same_files(command: str, size: str | None, ran: Any) -> None:
    """Also the very same command, given again, with its progress bar."""
    wanted = ran(command)
    assert any(name.endswith(".csv") for name in wanted)
    assert any(name.endswith(".png") for name in wanted)
    assert_same(ran(command, *(("--labels", "at", "cifs", "cas") if size is None else ("--batch-size", size))), wanted)


@pytest.mark.parametrize("command", SHARED)
def test_two_processes_give_the_same_files_as_one(command: str, ran: Any) -> None:
    assert_same(ran(command, "--batch-size", "50", several=True), ran(command))
