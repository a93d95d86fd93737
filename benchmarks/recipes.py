"""Tables of the recipes' resolved settings, each value with its source: docs/RECIPES.md.

    python -m benchmarks.recipes

It takes a second. A test compares the file with what this would write.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

from channelscope import recipes
from channelscope.data import Dataset, MemorySplit
from channelscope.training.job import Job
from channelscope.training.recipes import Recipe, catalogue, summary, walk_files
from channelscope.training.sources import list_sources

FILE = Path("docs", "RECIPES.md")
# Those of the papers, and of results here; a -fast variant differs in its schedule and precision.
NAMES = (
    "cifar10-resnet18-standard",
    "cifar10-resnet18-at",
    "cifar10-resnet18-cifs",
    "cifar10-resnet18-cifs-published",
    "cifar10-resnet18-at-warm",
    "cifar10-resnet18-cas",
    "cifar10-resnet18-trades-cifs",
    "cifar10-resnet18-mart-cifs",
    "cifar10-resnet18-fat-cifs",
    "cifar10-resnet18-wat",
    "cifar10-resnet18-wat-cifs",
    "cifar10-resnet18-hbar",
    "cifar10-resnet18-anf-standard",
    "cifar10-resnet18-w16-cifs",
    "cifar10-resnet18-w32-cifs",
    "cifar10-resnet18-overfit-at",
    "cifar10-wrn-28-10-cifs",
    "cifar10-vgg16-cas",
    "svhn-resnet18-cifs",
    "fashion-mnist-resnet10-cifs",
)
_GREY = ("fashion-mnist",)  # images of one channel
_HEAD = """\
# Recipes: every setting, and where its value comes from

Made by `python -m benchmarks.recipes`; a test compares it with the recipes. Values that switch
nothing on are left out. "Release" is the public code of a paper's authors.
"""


def write() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *(line for name in NAMES for line in _write_recipe(name))])


def _write_recipe(name: str) -> Iterator[str]:
    yield f"\n## {name}\n\n{summary(name)}.\n"
    for file in dict.fromkeys(file for file, _ in walk_files(catalogue()[name])):
        if note := _read_note(file):
            yield f"- `{file}.toml`: {note}"
    yield "\n| setting | value | source |\n|---|---|---|"
    for source, settings in groupby(_list_rows(name), key=lambda row: row[2]):
        for setting, value, _ in settings:
            yield f"| `{setting}` | {value} | {source} |"
    for gate in _describe_gates(name):
        yield f"| {gate} |"


def _list_rows(name: str) -> Iterator[tuple[str, str, str]]:
    gated = Recipe.named(name).gates.kind != "none"
    for each in list_sources(name):
        is_of_gates = each.name.startswith("gates.") or each.name == "attack.beta_atk"
        is_off = each.file == "default" and each.source.startswith("off")
        if not is_off and (gated or not is_of_gates) and each.value != []:
            yield each.name, _write_value(each.value), each.source


def _write_value(value: object) -> str:
    if isinstance(value, float) and 0 < value < 0.2 and (value * 255).is_integer():
        return f"{value * 255:g}/255"
    if isinstance(value, list):
        return ", ".join(map(_write_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _describe_gates(name: str) -> Iterator[str]:
    """Say where the gates stand in the network that is built."""
    channels = 1 if name.startswith(_GREY) else 3
    images = torch.zeros(10, channels, 32, 32, dtype=torch.uint8)
    part = MemorySplit(images, torch.arange(10))
    data = Dataset("none", tuple("0123456789"), part, part, part)
    for number, gate in enumerate(Job(Recipe.named(name), data, Path("net.pt"), 0).gates, 1):
        hidden = gate.options.get("hidden", 128)
        probe = "linear" if gate.options["probe"] == "linear" else f"two-layer, {hidden} hidden"
        place = f"gate {number} | `{gate.layer}`, {gate.channels} channels, {probe}"
        yield f"{place} | where its authors have it"


def _read_note(file: str) -> str:
    """Return the comment at the top of a recipe's file."""
    text = (Path(recipes.__file__).parent / f"{file}.toml").read_text("utf-8")
    comment = re.match(r"(#.*\n)*", text)
    assert comment is not None  # it may be empty
    return " ".join(line.removeprefix("#").strip() for line in comment[0].splitlines())


if __name__ == "__main__":
    FILE.write_text(write() + "\n", "utf-8")
