"""The explorer in JupyterLab: its controls are used as a reader uses them, through a browser."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from helpers.browser import PATIENCE, PROGRAM, Tab, browsing

pytest.importorskip("jupyterlab", reason="there is no JupyterLab here")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here"),
]

CELL = """
import torch
import channelscope as cs
from channelscope.networks import Architecture

torch.manual_seed(0)
network = Architecture(arch="resnet18", classes=10, width=4, mean=(0.0,), std=(1.0,))
networks = {name: network.build() for name in ("one", "two")}
how = dict(layers=["layer3", "layer4"], attack="pgd-2", attacks="pgd-2", images=60, replicates=20)
result = cs.compare(networks, "digits", progress=False, **how)
cs.explore(result, models=networks, data="digits")
"""
SHOWN = ".jp-OutputArea .channelscope-explorer"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run JupyterLab in a folder, on this machine alone; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token="]
    command += ["--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            late = server.poll() is not None or time.monotonic() > until
            assert not late, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/status").close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser in which JupyterLab has run a notebook that ends with an explorer."""
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(CELL)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "a.ipynb")
    with serving(folder) as address, browsing(folder / "profile") as tab:
        tab.open(f"{address}/lab/tree/a.ipynb", 1440, 1800)
        notebook = "window.jupyterapp?.shell?.currentWidget"
        tab.wait(lambda: tab.run(f"!!{notebook}?.sessionContext?.session?.kernel"))
        tab.run("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        tab.wait(lambda: tab.run(f"document.querySelectorAll('{SHOWN} .column').length > 0"))
        yield tab


def choose(tab: Tab, label: str, *beginnings: str) -> None:
    """Choose the options that begin so of the control with this label."""
    tab.run(
        f"""(() => {{
            const labels = [...document.querySelectorAll('.jp-OutputArea label')];
            const label = labels.find(each => each.innerText === {json.dumps(label)});
            const control = label.parentElement.querySelector('select');
            const wanted = text => {json.dumps(beginnings)}.some(each => text.startsWith(each));
            const plain = text => text.replaceAll('\\u00a0', ' ');
            for (const option of control.options) option.selected = wanted(plain(option.text));
            control.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"""
    )


def see(tab: Tab, *parts: str) -> None:
    """Wait until the explorer shows these texts."""
    text = f"[...document.querySelectorAll('{SHOWN}')].map(each => each.innerText).join(' ')"
    tab.wait(lambda: all(part in tab.run(text) for part in parts))


def press(tab: Tab, selector: str) -> None:
    """Press the mouse on an element, after scrolling there."""
    box = f"document.querySelector('{selector}')"
    tab.run(f"{box}.scrollIntoView({{block: 'center'}})")
    where = (
        f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box}.getBoundingClientRect())"
    )
    x, y = tab.run(where)
    for kind in ("mousePressed", "mouseReleased"):
        tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def count_silenced(tab: Tab) -> int:
    return int(tab.run(f"document.querySelectorAll('{SHOWN} .column.silenced').length"))


def test_what_is_chosen_is_shown(lab: Tab) -> None:
    see(lab, "one, layer4: its 32 channels on images of class 0, sorted by relevance")
    choose(lab, "model", "two")
    see(lab, "two, layer4: its 32 channels on images of class 0")
    choose(lab, "layer", "layer3")
    see(lab, "two, layer3: its 16 channels on images of class 0")
    choose(lab, "class", "7")
    see(lab, "its 16 channels on images of class 7")
    choose(lab, "sorted by", "channel number")
    see(lab, "two, layer3: its 16 channels on images of class 7, sorted by channel number")
    choose(lab, "describe", "11:")
    see(lab, "Channel 11:", "images of any class that excite it most")


def test_channels_are_silenced_and_restored_and_all_is_undone(lab: Tab) -> None:
    choose(lab, "silence", "1:", "4:")
    see(lab, "2 of 16 channels of layer3 silenced", "accuracy")
    lab.wait(lambda: count_silenced(lab) == 2)
    choose(lab, "restore", "5:")
    see(lab, "1 restored under attack", "accuracy")
    press(lab, ".jp-OutputArea button.jupyter-button")
    see(lab, "Nothing is silenced or restored.")
    lab.wait(lambda: count_silenced(lab) == 0)


def test_the_slider_silences_from_the_left(lab: Tab) -> None:
    lab.run("document.querySelector('.jp-OutputArea .noUi-handle').focus()")
    for _ in range(3):
        lab.press("ArrowRight", 39)
    lab.wait(lambda: count_silenced(lab) == 3)
