"""Every notebook runs from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import brief

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks run: they train in ../runs what is not there yet, and share it."""
    made = tmp_path_factory.mktemp("repository") / "notebooks"
    made.mkdir()
    return made


@pytest.mark.filterwarnings("default")  # of jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, folder: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if "CHANNELSCOPE_DATA" not in os.environ and any("CHANNELSCOPE_DATA" in cell.source for cell in notebook.cells):
        pytest.skip("CHANNELSCOPE_DATA names no image folder")
    if path.stem == "06_cifar10":  # four networks of ten classes: the whole takes minutes
        (measuring,) = (cell for cell in notebook.cells if "cs.compare(" in cell.source)
        assert "images=100, replicates=200" in measuring.source
        measuring.source = measuring.source.replace("images=100, replicates=200", "images=20, replicates=20")
    if path.stem == "01_compare":  # it draws all there are
        few = f"import sys; sys.path.append({str(Path(brief.__file__).parent)!r}); import brief; brief.few_figures()"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(few))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    errors = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    assert not errors
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
