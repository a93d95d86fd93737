"""How commands name networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.cli import main
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


def test_images_of_another_size_are_answered_with_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeNet-5 takes digits of 28 x 28 pixels scaled to 32 x 32, as the shapes of its layers say."""
    layers = {"c1": nn.Conv2d(1, 6, 5), "c3": nn.Conv2d(6, 16, 5), "c5": nn.Conv2d(16, 12, 5)}
    heads = {"f6": nn.Linear(12, 8), "f7": nn.Linear(8, 10)}
    torch.save(nn.ModuleDict(layers | heads).state_dict(), tmp_path / "lenet.pt")
    images = np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / "digits.npz", test_images=images, test_labels=np.arange(20) % 10)
    argv = ["evaluate", "--models", str(tmp_path / "lenet.pt"), "--attacks", "fgsm"]
    argv += ["--data", f"npz:{tmp_path / 'digits.npz'}", "--checks", "0", "-q"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "does not take images of shape (1, 28, 28)" in error
    assert error.endswith("it takes 32 x 32 pixels, so scale them with --image-size 32.")
    assert main([*argv, "--out", str(tmp_path / "out"), "--image-size", "32"]) == 0
