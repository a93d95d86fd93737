"""Execute the notebooks and keep what they print and draw: ``python -m notebooks.make [01 02 ...]``.

Their networks are trained once, into runs/notebooks, which they share. 06 needs CIFAR-10 and CHANNELSCOPE_DATA.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder, from top to bottom; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": folder}}
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources=place,
        record_timing=False,
        store_widget_state=False,
    ).execute()
    return notebook


def keep(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook as every machine and every reader has it."""
    notebook.metadata.language_info = {"name": "python"}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        # Without their kernel widgets cannot be shown, and would hide the HTML beside them.
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)


def main(wanted: list[str]) -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        if not wanted or path.stem[:2] in wanted:
            print(path.name, flush=True)
            keep(execute(path, HERE), path)


if __name__ == "__main__":
    main(sys.argv[1:])
