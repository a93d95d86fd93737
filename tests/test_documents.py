"""The documents: every block of code in README and the site runs, and every name is explained."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import channelscope
from channelscope import gallery
from channelscope.analyses.base import ANALYSES
from channelscope.attacks import ATTACKS
from channelscope.data import Dataset, MemorySplit, readers
from channelscope.gallery import Picture, list_figures
from channelscope.result import Result
from channelscope.weights import Checkpoint
from helpers.blocks import ROOT, list_blocks, make_small, run_shell
from helpers.runs import digits, run

SITE = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "RESULTS.md",
    *sorted(SITE.rglob("*.md")),
]
GUIDES = [ROOT / "README.md", SITE / "quickstart.md", *sorted((SITE / "howto").glob("*.md"))]
RUN = [
    page for page in PAGES if any(block.language in ("python", "sh") for block in list_blocks(page))
]
KINDS = ("relevance", "classes", "nr-mass", "robustness", "silence")
MYNETS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, classes: int = 4) -> None:
        parts = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*parts, nn.Linear(8, classes))
"""


def make_noise(name: str, *_: Any) -> Dataset:
    """Make images of noise, of CIFAR-10's size and classes, in place of a download."""
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> MemorySplit:
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return MemorySplit(images, torch.arange(n) % 10)

    return Dataset(name, tuple(names.split()), part(20), part(40), part(10))


def write_photos(folder: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for index in range(10):
                pixels = np.full((32, 32, 3), 20 * index, np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")


def list_few(result: Result) -> dict[str, Picture]:
    """List few kinds of figures: those of claims C1 and C3 take a minute."""
    pictures = list_figures(result)
    few = {name: picture for name, picture in pictures.items() if picture.plot.name in KINDS}
    return few or pictures


def draw_few(result: Result, folder: Path, **options: Any) -> None:
    """Draw one figure where none is named."""
    draw(result, folder, **{**options, "only": options.get("only") or result.figures[:1]})


draw = Result.draw


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train what the documents call nat.pt, at.pt and cifs.pt, in a moment."""
    folder = tmp_path_factory.mktemp("networks")
    for name, method in {"nat": "standard", "at": "at", "cifs": "cifs"}.items():
        run(method, folder / f"{name}.pt", arch="resnet18", epochs=1)
    return folder


@pytest.fixture
def workplace(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> Iterator[dict[str, Any]]:
    """Make a folder with the files that the documents speak of; yield a page's names."""
    for path in networks.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = Checkpoint.read(tmp_path / "nat.pt").build().state_dict()
    torch.save(state, tmp_path / "nat.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ckpt.pth.tar")
    from safetensors.torch import save_file

    save_file(state, tmp_path / "r18.safetensors")
    (tmp_path / "mynets.py").write_text(MYNETS)
    names: dict[str, Any] = {}
    exec(MYNETS, names)
    torch.save(names["Net"]().state_dict(), tmp_path / "net.ckpt")
    write_photos(tmp_path / "photos")
    few = digits()
    monkeypatch.setattr(readers, "read_digits", lambda: few)
    monkeypatch.setattr(readers, "read_torchvision", make_noise)
    monkeypatch.setattr(gallery, "list_figures", list_few)
    monkeypatch.setattr(Result, "draw", draw_few)
    make_small(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with patch.dict(ANALYSES), patch.dict(ATTACKS):  # what an example enters leaves again
        yield {"__name__": "page"}
    plt.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page: Path, workplace: dict[str, Any]) -> None:
    for language, text in list_blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), workplace)
        elif language == "sh":
            run_shell(text)


def test_blocks_are_in_languages_that_are_run_or_are_no_code() -> None:
    languages = {block.language for page in PAGES for block in list_blocks(page)}
    assert languages <= {"python", "sh", "text", ""}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_code_fit_a_narrow_page(page: Path) -> None:
    code = "".join(text for language, text in list_blocks(page) if language in ("python", "sh"))
    assert [line for line in code.splitlines() if len(line) > 90] == []


def test_readme_is_short_and_begins_with_commands_that_set_everything_up() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 900
    assert re.findall(r"^make (\S+)", text, re.MULTILINE) == ["demo", "test"]


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text("utf-8") for page in (SITE / "reference").glob("*.md"))
    explained = re.findall(r"^::: channelscope\.(\w+)$", text, re.MULTILINE)
    assert sorted(explained) == sorted(channelscope.__all__)
