"""The pages on the zoo's networks: what they say is what was measured, and comes out again."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from channelscope.evaluation import Evaluation

from benchmarks import pages
from channelscope import attached, load
from channelscope.attacks import find_correct, make_generators, parse_attack, stop_early
from channelscope.data import MemorySplit, sample_stratified
from channelscope.data import load as load_data
from channelscope.weights import zoo

pytestmark = pytest.mark.usefixtures("unchecked")

ROOT = Path(__file__).parent.parent
NAMES = ["cifar10-standard", "cifar10-at", "cifar10-cas", "cifar10-cifs"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_what_was_measured_is_what_the_images_outcomes_say(tmp_path: Path) -> None:
    pages.accuracies().to_csv(tmp_path / "again.csv", index=False)
    again, kept = pd.read_csv(tmp_path / "again.csv"), pd.read_csv(zoo.RESULTS)
    pd.testing.assert_frame_equal(again, kept)
    assert set(kept["model"]) == set(NAMES)


@pytest.mark.parametrize("page", pages.PAGES, ids=str)
def test_no_table_of_the_pages_was_edited_by_hand(page: Path) -> None:
    text = page.read_text("utf-8")
    marks = re.findall(r"<!-- (?!end of )(\w+) -->", text)
    assert marks
    assert set(marks) <= set(pages.TABLES)
    for name in marks:
        assert f"<!-- {name} -->\n{pages.TABLES[name]()}\n<!-- end of {name} -->" in text


def test_every_table_is_in_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in pages.PAGES)
    assert all(f"<!-- {name} -->" in text for name in pages.TABLES)


def test_nothing_that_is_kept_names_a_folder_of_ours() -> None:
    kept = [*pages.KEPT.rglob("*.json"), *pages.GALLERY.rglob("*.json"), *pages.KEPT.rglob("*.csv")]
    assert kept
    for file in kept:
        assert "imagefolder:" not in (text := file.read_text("utf-8"))
        assert not re.search(r"(^|[\s\"'=:])/\w", text)


def test_the_first_line_of_the_results_says_what_came_of_cifs() -> None:
    lines = Path("docs/RESULTS.md").read_text("utf-8").splitlines()
    assert lines[:2] == ["<!-- headline -->", pages.headline()]


@pytest.fixture(scope="module")
def measured() -> tuple[Evaluation, MemorySplit]:
    """The evaluation that is kept, and its images."""
    folder = os.environ.get("CHANNELSCOPE_DATA")
    if not folder:
        pytest.skip("CHANNELSCOPE_DATA names no image folder")
    part = load_data(f"imagefolder:{folder}/cifar10-jpeg", stream=True).test
    found = Evaluation.load(ROOT / pages.KEPT / "evaluation")
    part = part.subset(
        sample_stratified(part.labels, found.meta["data"]["images"], found.meta["seed"])
    )
    x, y = next(part.batches(len(part)))
    return found, MemorySplit(x, y)


def _outcome(found: Evaluation, network: int, attack: str) -> np.ndarray:
    return found.arrays[f"correct/{network}/{attack}"]


@pytest.mark.parametrize("name", NAMES)
def test_natural_accuracy_comes_out_again(
    measured: tuple[Evaluation, MemorySplit], name: str
) -> None:
    found, part = measured
    network, index = load(f"zoo:{name}"), NAMES.index(name)
    with torch.no_grad():
        right = torch.cat([find_correct(network, x, y) for x, y in part.batches(250)])
    assert abs(right.float().mean() - _outcome(found, index, "natural").mean()) <= 0.003


@pytest.mark.parametrize("attack", ["pgd-20", "cw-30"])
@pytest.mark.parametrize("name", NAMES)
def test_robust_accuracy_comes_out_again(
    measured: tuple[Evaluation, MemorySplit], name: str, attack: str
) -> None:
    found, part = measured
    network, index = load(f"zoo:{name}"), NAMES.index(name)
    rows = np.flatnonzero(_outcome(found, index, "natural"))[
        :128
    ]  # the evaluation's first batch: rounding is the same
    generators = make_generators(found.meta["seed"], attack, rows.tolist())
    x, y = next(part.batches(128, indices=torch.from_numpy(rows)))
    with attached(network):
        stood = find_correct(
            network, stop_early(parse_attack(attack, eps=8 / 255))(network, x, y, generators), y
        )
    assert (stood.numpy() != _outcome(found, index, attack)[rows]).sum() <= 1
