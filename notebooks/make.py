"""Execute the notebooks and keep what they print and draw: ``python -m notebooks.make [01 ...]``.

Their networks are trained once, into runs/notebooks, which they share. 06 needs CIFAR-10 and
CHANNELSCOPE_DATA.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder, from top to bottom; an error in a cell is raised."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
        record_timing=False,
        store_widget_state=False,
    )
    client.execute()


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook so that it is the same on every machine and for every reader."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            # Without their kernel widgets cannot be shown, and would hide the HTML beside them.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)


def main(numbers: list[str]) -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        if not numbers or path.stem[:2] in numbers:
            print(path.name, flush=True)
            notebook = nbformat.read(path, as_version=4)
            execute(notebook, HERE)
            save(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
