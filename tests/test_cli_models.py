"""How commands name networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.cli import main
from channelscope.cli.models import Name, parse_name, read_models, read_normalisations
from channelscope.cli.parser import make_parser
from channelscope.errors import UserError
from helpers import networks
from helpers.expect import mistake

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's code, its weights, and a network with a normalisation of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    torch.save(namespace["Net"]().state_dict(), "mine.pth")
    torch.save(networks.resnet("resnet10", channels=3).state_dict(), "theirs.pth")
    return tmp_path


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.strange = nn.Linear(3, 5)

    def forward(self, x):
        return self.strange(self.pool(x).flatten(1))
"""


def read(words: str) -> dict[str, Any]:
    """Read the models of a command."""
    args = make_parser().parse_args(["evaluate", *words.split()])
    return {label: one.architecture for label, one in read_models(args).items()}


def test_each_network_has_a_normalisation_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = "--models mine.pth@nets.py:Net again=mine.pth@nets.py:Net theirs.pth"
    read_as = read(f"{models} --normalise mine=half --normalise again=0.1;0.2")
    assert (read_as["mine"].mean, read_as["again"].mean) == ((0.5,), (0.1,))
    assert read_as["theirs"].mean == pytest.approx((0.4,) * 3)
    mine, again, theirs = capsys.readouterr().err.splitlines()
    assert mine.startswith("mine: named: nets.py:Net, 5 classes, normalised as named: mean 0.5 ")
    assert "normalised as named: mean 0.1 and standard deviation 0.2" in again
    assert theirs.startswith("theirs: recognised: ")
    assert "normalised by the file's own mean 0.4, 0.4, 0.4 and" in theirs
    assert read(f"{models} --normalise mine=half again=half")["again"].mean == (0.5,)
    with mistake("theirs.pth has a normalisation of its own", "--normalise LABEL=VALUE"):
        read(f"{models} --normalise half")


def test_normalisations_of_labels_with_equals_signs() -> None:
    assert read_normalisations(["a=b=half"], ["a=b", "c"]) == {"a=b": "half", "c": None}
    assert read_normalisations([], ["a", "b"]) == {"a": None, "b": None}


WRONG_NORMALISATIONS = {
    "mine=half theris=half": "no model 'theris' among mine, theirs. Did you mean 'theirs'?",
    "=half": "there is no model '' among mine, theirs",
    "half imagenet": "'half' stands beside others: name one value for all networks, or LABEL",
    "mine=half imagenet": "'imagenet' stands beside others",
    "mine=half mine=half": "mine has two normalisations",
    "mine=hlaf": "'hlaf' is no normalisation",
    "mine=": "'' is no normalisation",
}


@pytest.mark.parametrize("values", WRONG_NORMALISATIONS)
def test_wrong_normalisations_are_answered(
    values: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--models mine.pth@nets.py:Net theirs.pth --data digits -q --normalise {values}"
    assert main(["evaluate", *words.split(), "--out", "out"]) == 2
    assert WRONG_NORMALISATIONS[values] in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("arch", ["nets.py:Net", "torchvision:resnet18", "resnet18"])
def test_an_architecture_that_fits_one_of_several_files(arch: str, folder: Path) -> None:
    """Where it does not fit another, what is typed for one alone is said."""
    with mistake("theirs.pth", f"for one of the files alone, write FILE@{arch} there"):
        read(f"--models theirs.pth mine.pth@nets.py:Net --arch {arch}")
    with pytest.raises(UserError) as caught:
        read(f"--models theirs.pth --arch {arch}")
    assert "FILE@" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        read(f"--models mine.pth@nets.py:Net theirs.pth@{arch}")
    assert "FILE@" not in str(caught.value)
