"""The pages on the zoo's networks: they say what was measured, and it comes out again."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import pages
from channelscope import Result, attached, load
from channelscope.attacks import find_correct, make_generators, parse_attack, stop_early
from channelscope.data import MemorySplit
from channelscope.data import load as load_data
from channelscope.weights import zoo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

ROOT = Path(__file__).parent.parent
NAMES = ["cifar10-standard", "cifar10-at", "cifar10-cas", "cifar10-cifs"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_zoo_has_the_accuracies_of_the_results(tmp_path: Path) -> None:
    pages.collect_accuracies().to_csv(tmp_path / "again.csv", index=False)
    again, kept = pd.read_csv(tmp_path / "again.csv"), pd.read_csv(zoo.RESULTS)
    pd.testing.assert_frame_equal(again, kept)
    assert set(kept["model"]) == set(NAMES)


@pytest.mark.parametrize("name", ["evaluation", *(f"autoattack-{name}" for name in NAMES)])
def test_accuracies_are_those_of_the_images(name: str) -> None:
    result = Result.load(pages.RESULTS / name)
    for index, model in enumerate(result.meta["models"]):
        prefix = f"correct/{index}/"
        correct = {
            key.removeprefix(prefix): array
            for key, array in result.arrays.items()
            if key.startswith(prefix)
        }
        correct["worst"] = np.logical_and.reduce(list(correct.values()))
        table = result.select("robustness", model=model, **{"class": "all"}).set_index("attack")
        assert table["accuracy"].to_dict() == pytest.approx(
            {attack: array.mean() for attack, array in correct.items()}
        )


@pytest.mark.parametrize("page", pages.PAGES, ids=str)
def test_no_block_of_the_pages_was_edited_by_hand(page: Path) -> None:
    text = page.read_text("utf-8")
    marks = re.findall(r"<!-- (?!end of )(\w+) -->", text)
    assert marks
    assert set(marks) <= set(pages.BLOCKS)
    for name in marks:
        assert f"<!-- {name} -->\n{pages.BLOCKS[name]()}\n<!-- end of {name} -->" in text


def test_every_block_is_in_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in pages.PAGES)
    assert all(f"<!-- {name} -->" in text for name in pages.BLOCKS)


def test_results_name_no_folder_of_ours() -> None:
    folders = (pages.RESULTS, pages.GALLERY)
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix != ".npz"]
    texts = [file.read_text("utf-8") for file in files if file.is_file()]
    assert texts
    for text in texts:
        assert "imagefolder:" not in text
        assert not re.search(r"(^|[\s\"'=:])/\w", text)


def test_the_first_line_of_the_results_says_what_came_of_cifs() -> None:
    lines = Path("docs/RESULTS.md").read_text("utf-8").splitlines()
    assert lines[:2] == ["<!-- headline -->", pages.format_headline()]


@pytest.fixture(scope="module")
def measured() -> tuple[Result, MemorySplit]:
    """The saved evaluation, and its images."""
    folder = os.environ.get("CHANNELSCOPE_DATA")
    if not folder:
        pytest.skip("CHANNELSCOPE_DATA names no image folder")
    result = Result.load(ROOT / pages.RESULTS / "evaluation")
    split = load_data(f"imagefolder:{folder}/cifar10-jpeg", stream=True).test
    split = split.sample(result.meta["data"]["images"], result.meta["seed"])
    x, y = next(split.batches(len(split)))
    return result, MemorySplit(x, y)


def _outcome(result: Result, name: str, attack: str) -> np.ndarray:
    return result.arrays[f"correct/{NAMES.index(name)}/{attack}"]


@pytest.mark.parametrize("name", NAMES)
def test_natural_accuracy_comes_out_again(measured: tuple[Result, MemorySplit], name: str) -> None:
    result, split = measured
    network = load(f"zoo:{name}")
    with torch.no_grad():
        correct = torch.cat([find_correct(network, x, y) for x, y in split.batches(250)])
    assert abs(correct.float().mean() - _outcome(result, name, "natural").mean()) <= 0.003


@pytest.mark.parametrize("attack", ["pgd-20", "cw-30"])
@pytest.mark.parametrize("name", NAMES)
def test_robust_accuracy_comes_out_again(
    measured: tuple[Result, MemorySplit], name: str, attack: str
) -> None:
    result, split = measured
    network = load(f"zoo:{name}")
    # The evaluation's first batch: rounding is the same.
    rows = np.flatnonzero(_outcome(result, name, "natural"))[:128]
    generators = make_generators(result.meta["seed"], attack, rows.tolist())
    x, y = next(split.batches(128, indices=torch.from_numpy(rows)))
    with attached(network):
        x_adv = stop_early(parse_attack(attack, eps=8 / 255))(network, x, y, generators)
        correct = find_correct(network, x_adv, y).numpy()
    assert (correct != _outcome(result, name, attack)[rows]).sum() <= 1
