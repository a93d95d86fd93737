"""Sources: where each value of a recipe comes from, and the page that tables them."""

from pathlib import Path

import pytest

from benchmarks import recipes as page
from channelscope.recipes import read_recipe_file
from channelscope.training import Recipe
from channelscope.training.recipes import catalogue
from channelscope.training.sources import flatten, list_sources

ROOT = Path(__file__).parent.parent
NAMES = sorted(catalogue())


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_every_recipe_has_a_source(name: str) -> None:
    values = dict(flatten(Recipe.named(name).values()))
    listed = list_sources(name)
    assert {each.name: each.value for each in listed} == {
        path: value for path, value in values.items() if path != "method"
    }
    for each in listed:
        assert len(each.source) > 2
        if each.file != "default":  # the file says so itself, for this method or for all
            said = dict(flatten(read_recipe_file(each.file)))
            of_methods = {
                path.split(".", 2)[2]: value for path, value in said.items() if "for." in path
            }
            assert each.name in said | of_methods


def test_no_source_is_of_a_file_or_a_setting_that_is_not_there() -> None:
    settings: dict[str, set[str]] = {}
    for name in NAMES:
        for each in list_sources(name):
            settings.setdefault(each.file, set()).add(each.name)
    sources = read_recipe_file("sources")
    assert set(sources) == set(settings)
    for file, of_file in sources.items():
        assert set(of_file) - {"*", "inherited"} <= settings[file], file


@pytest.mark.parametrize(
    ("recipe", "setting", "file", "source"),
    [
        ("svhn-resnet18-cifs", "optimizer.lr", "settings/svhn-resnet18", "paper of CIFS"),
        ("cifar10-resnet18-fat-cifs", "attack.start", "methods/fat", "release of CIFS: uniform"),
        ("cifar10-resnet18-at-fast", "schedule.epochs", "fast", "ours, for an afternoon"),
        ("cifar10-wrn-28-10-mart-cifs", "gates.options.hidden", "settings/cifar10-wrn-28-10", "r"),
        ("fashion-mnist-resnet10-at", "attack.eps", "settings/cifar10-resnet18", "ours: as for"),
        ("digits-resnet18-at", "averaging.kind", "default", "off"),
    ],
)  # fmt: skip
def test_a_source_is_that_of_the_last_file_that_sets_the_value(
    recipe: str, setting: str, file: str, source: str
) -> None:
    (found,) = (each for each in list_sources(recipe) if each.name == setting)
    assert found.file == file
    assert found.source.startswith(source)


def test_the_page_is_what_the_command_writes() -> None:
    assert (ROOT / page.FILE).read_text("utf-8") == page.write() + "\n", (
        "run python -m benchmarks.recipes"
    )
