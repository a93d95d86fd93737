"""The same seed gives the same files, to the byte: run after run, for any batch size and number of processes."""

import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from channelscope.attacks import LibraryAttack, Square
from channelscope.cli import main
from channelscope.evaluation import Evaluation, evaluate
from channelscope.evaluation.results import COLUMNS
from channelscope.files import DIGESTS
from helpers import brief
from helpers.runs import digits, trained
from test_distributed import torchrun

pytestmark = pytest.mark.usefixtures("unchecked")

OF_THE_RUN = {"created", "command", "hardware", "batch_size"}
COMMANDS: dict[str, list[str]] = {
    "evaluate": [
        "--attacks",
        "fgsm",
        "pgd-2x2",
        "apgd-ce-3",
        "--eps",
        "0.1",
        "--checks",
        "0",
        "--save-adversarial",
    ],
    "compare": [
        "--attack",
        "pgd-2",
        "--attacks",
        "cw-2",
        "--layers",
        "layer4",
        "--replicates",
        "20",
    ],
    "relevance": [
        "--scorer",
        "gradient",
        "ablation-mean",
        "--layers",
        "layer4",
        "--replicates",
        "20",
    ],
    "intervene": ["--attack", "pgd-2", "--fractions", "0.5", "--random", "1", "--replicates", "20"],
}


@pytest.fixture(scope="module")
def models() -> list[str]:
    return [str(trained(method, 2)) for method in ("cifs", "cas")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write images of two digits under noise: 150, and so two blocks."""
    few, labels = digits(2).test, np.arange(150) % 2
    noise = np.random.default_rng(0).integers(0, 9, (150, 8, 8), dtype=np.uint8)
    images = np.stack([few.images[few.labels == k, 0][0].numpy() // 2 for k in labels]) + noise
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, test_images=images, test_labels=labels)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def ran(
    models: list[str], data: str, few_figures: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, bytes]]:
    """Run a command into a folder of its own; give the bytes of the files there, but for what is of the run."""

    def run(command: str, *more: str, several: bool = False) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp(command) / "out"
        words = [
            command,
            "--models",
            *models,
            "--data",
            data,
            "--out",
            str(out),
            "--device",
            "cpu",
            "-q",
        ]
        words += [*COMMANDS[command], "--seed", "3", *more]
        if several:
            started = torchrun(brief.__file__, *words)
            printed, errors = started.communicate(timeout=600)
            assert started.returncode == 0, errors
            assert printed.count(str(out)) == 1  # one of them talks
            assert not out.with_name("out.partial").exists()
        else:
            assert main(words) == 0
        return contents(out)

    return cache(run)


def contents(folder: Path) -> dict[str, bytes]:
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    meta = json.loads(files.pop("meta.json"))
    del files[DIGESTS]  # that of meta.json among them
    assert meta.keys() >= OF_THE_RUN
    return files | {
        "meta.json": json.dumps({key: meta[key] for key in meta if key not in OF_THE_RUN}).encode()
    }


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("command", ["relevance", "intervene"])
def test_another_run_with_another_batch_size_writes_the_same_files(command: str, ran: Any) -> None:
    wanted = ran(command)
    assert {Path(name).suffix for name in wanted} >= {".csv", ".json", ".pdf", ".png"}
    assert_same(ran(command, "--batch-size", "7"), wanted)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_two_processes_with_another_batch_size_write_the_same_files_as_one(
    command: str, ran: Any
) -> None:
    wanted = ran(command)
    assert {Path(name).suffix for name in wanted} >= {".csv", ".json", ".pdf", ".png"}
    assert_same(ran(command, "--batch-size", "7", several=True), wanted)


@pytest.fixture(scope="module")
def evaluated(models: list[str], data: str) -> Callable[[int], Evaluation]:
    options: dict[str, Any] = {
        "attacks": ["pgd-2", "joint-sweep"],
        "eps": 0.1,
        "eps_sweep": [0.05],
        "progress": False,
    }
    return cache(lambda size: evaluate(models[:1], data, checks=8, batch_size=size, **options))


@pytest.mark.parametrize("size", [1, 32, 1000])
def test_an_evaluation_is_the_same_for_any_batch_size(
    size: int, evaluated: Callable[[int], Evaluation]
) -> None:
    one, other = evaluated(128), evaluated(size)
    for name in COLUMNS:
        assert getattr(one, name).to_csv() == getattr(other, name).to_csv(), name
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())


# ---------------------------------------------------------------- what does it


@pytest.mark.skipif(
    find_spec("pyautoattack") is None, reason="the extra autoattack is not installed"
)
@pytest.mark.usefixtures("small_blocks")
def test_attacks_that_draw_for_a_block_do_not_depend_on_the_batch_size() -> None:
    attacks = [Square(eps=0.05, queries=30), LibraryAttack(name="apgd-ce", eps=0.05, iterations=2)]
    options: dict[str, Any] = {"attacks": attacks, "checks": 0, "progress": False}
    one, other = (
        evaluate([trained("at")], digits(), batch_size=size, **options) for size in (2, 128)
    )
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    assert 0 < one.worst["robust"].item() < one.worst["natural"].item()
