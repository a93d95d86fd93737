"""The same seed gives the same bytes: run after run, for any batch size and number of processes."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import channelscope as cs
from channelscope import gallery
from channelscope.attacks import LibraryAttack, Square
from channelscope.cli import main
from helpers.brief import list_few_figures
from helpers.processes import assert_same_files, read_result, torchrun
from helpers.runs import digits, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

COMMANDS: dict[str, str] = {
    "evaluate": "--attacks fgsm pgd-2x2 apgd-ce-3 --eps 0.1 --checks 0 --save-adversarial",
    "compare": "--attack pgd-2 --attacks cw-2 --layers layer4 --replicates 20",
    "relevance": "--scorers gradient ablation-mean --layers layer4 --replicates 20",
    "intervene": "--attack pgd-2 --fractions 0.5 --random 1 --replicates 20",
    "damage": "--attack pgd-2 --eps 0.3 --layers layer3 layer4 --fractions 0.5 --replicates 20",
}


@dataclass(frozen=True)
class Commands:
    """Commands on two networks and 150 images of two digits under noise, and so two blocks."""

    folder: Path

    def words(self, name: str, kind: str, *more: str) -> list[str]:
        """Return a command's words; its result is in the folder ``kind/name``."""
        models = [str(trained(method, 2)) for method in ("cifs", "cas")]
        words = [name, "--models", *models, "--data", f"npz:{self.folder / 'digits.npz'}"]
        words += [*COMMANDS[name].split(), "--seed", "3", "--device", "cpu", "-q"]
        return [*words, "--out", str(self.folder / kind / name), *more]

    def read(self, name: str, kind: str) -> dict[str, bytes]:
        """Return the files of a result."""
        return read_result(self.folder / kind / name)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    few, labels = digits(2).test, np.arange(150) % 2
    noise = np.random.default_rng(0).integers(0, 9, (150, 8, 8), dtype=np.uint8)
    images = np.stack([few.images[few.labels == k, 0][0].numpy() // 2 for k in labels]) + noise
    folder = tmp_path_factory.mktemp("commands")
    np.savez(folder / "digits.npz", test_images=images, test_labels=labels)
    return Commands(folder)


@pytest.fixture(scope="module")
def alone(commands: Commands) -> Iterator[Callable[..., dict[str, bytes]]]:
    """Run a command once in this process; return its files."""

    def run(name: str, kind: str, *more: str) -> dict[str, bytes]:
        assert main(commands.words(name, kind, *more)) == 0
        return commands.read(name, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "list_figures", list_few_figures)
        yield cache(run)


@pytest.fixture(scope="module")
def together(commands: Commands) -> Commands:
    """Run all commands in two processes, with another batch size."""
    words = [commands.words(name, "together", "--batch-size", "7") for name in COMMANDS]
    file = commands.folder / "commands.json"
    file.write_text(json.dumps(words))
    started = torchrun("helpers.several", "commands", file)
    try:
        printed, errors = started.communicate(timeout=600)
    finally:
        started.terminate()
    assert started.returncode == 0, errors
    for name in COMMANDS:
        out = commands.folder / "together" / name
        assert re.search(rf"{re.escape(str(out))}[\n/, ]", printed)
        assert not out.with_name(f"{name}.partial").exists()
    return commands


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", COMMANDS)
def test_another_run_with_another_batch_size_writes_the_same_files(name: str, alone: Any) -> None:
    files = alone(name, "alone")
    assert {Path(file).suffix for file in files} >= {".csv", ".json", ".npz", ".pdf", ".png"}
    assert_same_files(alone(name, "again", "--batch-size", "7"), files)


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_with_another_batch_size_write_the_same_files_as_one(
    name: str, alone: Any, together: Commands
) -> None:
    assert_same_files(together.read(name, "together"), alone(name, "alone"))


# ---------------------------------------------------------------- what does it


@pytest.fixture(scope="module")
def evaluated() -> Callable[[int], cs.Result]:
    """Evaluate a network, its checks for gradient masking among it, with a batch size."""
    options: dict[str, Any] = {"attacks": ["pgd-2", "joint-sweep"], "eps": 0.1, "progress": False}
    options |= {"eps_sweep": [0.05], "checks": 8, "device": "cpu"}
    return cache(
        lambda size: cs.evaluate(trained("cifs", 2), digits(2), batch_size=size, **options)
    )


@pytest.mark.parametrize("size", [1])
def test_an_evaluation_with_checks_is_the_same_for_any_batch_size(
    size: int, evaluated: Callable[[int], cs.Result]
) -> None:
    one, other = evaluated(128), evaluated(size)
    assert len(one.warnings) + len(one.meta["models"]["cifs-2"]["skipped"]) > 0
    for name, table in one.tables.items():
        assert table.to_csv() == other.tables[name].to_csv(), name
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())


@pytest.mark.skipif(
    find_spec("pyautoattack") is None, reason="the extra autoattack is not installed"
)
@pytest.mark.usefixtures("small_blocks")
def test_attacks_that_draw_for_a_block_do_not_depend_on_the_batch_size() -> None:
    attacks = [Square(eps=0.15, queries=30), LibraryAttack(name="apgd-ce", eps=0.15, iterations=2)]
    options: dict[str, Any] = {"attacks": attacks, "checks": 0, "progress": False}
    one, other = (
        cs.evaluate(trained("at"), digits(), batch_size=size, **options) for size in (2, 128)
    )
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    robust, natural = one.worst_case[["robust", "natural"]].iloc[0]
    assert 0 < robust < natural
