"""How commands name networks."""

from pathlib import Path

import pytest

from channelscope.cli.models import Name, parse_name

NAMES = {
    "at.pt": Name("at.pt", None, None),
    "mine=at.pt": Name("at.pt", "mine", None),
    "at.pt@torchvision:resnet18": Name("at.pt", None, "torchvision:resnet18"),
    "mine=nets/at.pt@my/nets.py:Net": Name("nets/at.pt", "mine", "my/nets.py:Net"),
    "zoo:cifar10-at": Name("zoo:cifar10-at", None, None),
    "a=zoo:cifar10-at": Name("zoo:cifar10-at", "a", None),
    "torchvision:resnet18": Name("torchvision:resnet18", None, None),
    "=at.pt": Name("=at.pt", None, None),
    "at.pt@": Name("at.pt", None, None),
    "@x": Name("@x", None, None),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_taken_apart(text: str) -> None:
    assert parse_name(text) == NAMES[text]


@pytest.mark.parametrize("name", ["lr=0.1", "a@b.pt", "x=y@z.pt"])
def test_files_that_exist_are_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert parse_name(name) == Name(name, None, None)
    assert parse_name(f"{tmp_path}/{name}") == Name(f"{tmp_path}/{name}", None, None)
    assert parse_name(f"l={name}") == Name(name, "l", None)
