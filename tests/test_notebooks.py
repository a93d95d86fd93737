"""Every notebook runs from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest

from helpers import brief
from notebooks.make import HERE, execute

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(HERE.glob("*.ipynb"))

# What would take minutes, and what is done in its place: every cell runs all the same.
LESS = {
    "01_compare": (
        '    attacks="joint-sweep",\n',
        '    attacks="joint-sweep", images=60, replicates=20,\n',
    ),
    "03_your_own_network_and_data": ("epochs: int = 25", "epochs: int = 5"),
    "04_is_the_ranking_causal": ('"images": 150', '"images": 40'),
    "05_figures_for_a_paper": ('attacks="pgd-20"', 'attacks="pgd-20", images=60, replicates=20'),
    "06_cifar10": (
        "images=100, replicates=200",
        'images=20, replicates=20, attack="pgd-5", attacks="pgd-5"',
    ),
}
# 01 draws all figures that there are.
FEW_FIGURES = f"""
import sys
sys.path.append({str(Path(brief.__file__).parent)!r})
import brief
brief.few_figures()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks run: they train in ../runs what is not there yet, and share it."""
    folder = tmp_path_factory.mktemp("repository") / "notebooks"
    folder.mkdir()
    return folder


@pytest.mark.filterwarnings("default")  # of jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, folder: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    sources = [cell.source for cell in notebook.cells]
    if "CHANNELSCOPE_DATA" not in os.environ and any("CHANNELSCOPE_DATA" in s for s in sources):
        pytest.skip("CHANNELSCOPE_DATA names no image folder")
    if path.stem in LESS:
        whole, less = LESS[path.stem]
        (cell,) = (cell for cell in notebook.cells if whole in cell.source)
        cell.source = cell.source.replace(whole, less)
    if path.stem == "01_compare":
        notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW_FIGURES))
    execute(notebook, folder)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
