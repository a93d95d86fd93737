"""Small networks of one layer after the other: rebuilt where one way is left, else asked for."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelscope as cs
from channelscope.errors import UserError
from channelscope.weights import Checkpoint, read_network
from channelscope.weights.chains import build_chain
from helpers.expect import mistake


class LeNet(nn.Module):
    """As in PyTorch's tutorials and pytorch-cifar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class OfMNIST(nn.Module):
    """As in PyTorch's example of MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 144, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class OfTRADES(nn.Module):
    """The network of TRADES for MNIST, by its names."""

    def __init__(self) -> None:
        super().__init__()
        layers = {
            f"conv{i + 1}": nn.Conv2d(*c, 3) for i, c in enumerate([(1, 4), (4, 4), (4, 8), (8, 8)])
        }
        self.feature_extractor = nn.ModuleDict(layers)
        shapes = {"fc1": (128, 20), "fc2": (20, 20), "fc3": (20, 10)}
        self.classifier = nn.ModuleDict({k: nn.Linear(*shape) for k, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        conv, fc = self.feature_extractor, self.classifier
        x = F.max_pool2d(conv["conv2"](conv["conv1"](x).relu()).relu(), 2)
        x = F.max_pool2d(conv["conv4"](conv["conv3"](x).relu()).relu(), 2).flatten(1)
        return fc["fc3"](fc["fc2"](fc["fc1"](x).relu()).relu())


def sequential() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(7, 5, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(5 * 64, 12), nn.ReLU(), nn.Linear(12, 4)),
    )


def two_parts() -> nn.Sequential:
    whole = sequential()
    return nn.Sequential(OrderedDict(features=whole[:7], flat=nn.Flatten(), classifier=whole[8:]))


NETWORKS = {
    "LeNet": (LeNet, (3, 32, 32)),
    "MNIST": (OfMNIST, (1, 28, 28)),
    "TRADES": (OfTRADES, (1, 28, 28)),
    "Sequential": (sequential, (3, 32, 32)),
    "two parts": (two_parts, (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_chains_give_their_own_logits(name: str, tmp_path: Path) -> None:
    make, image = NETWORKS[name]
    network = make().eval()
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    checkpoint = read_network(tmp_path / "theirs.pt")
    x = torch.rand(3, *image)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.build()(x), network(x))
    assert checkpoint.image == image
    assert checkpoint.meta["assumed"].startswith("ReLU and max pooling, images of")
    checkpoint.save(tmp_path / "ours.pt")
    with torch.no_grad():
        assert torch.equal(Checkpoint.read(tmp_path / "ours.pt").build()(x), checkpoint.build()(x))


def strided() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(4 * 256, 10),
    )


def averaged() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 3)
    )


def linear() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 784, 9), nn.Linear(9, 3)
    )


@pytest.mark.parametrize("make", [strided, averaged, linear])
def test_what_no_tensor_tells_is_asked_for(make: type[nn.Module], tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "theirs.pt")
    with mistake("theirs.pt is not recognised", "layers, one after the other", "--arch FILE.py"):
        cs.load(tmp_path / "theirs.pt")


def test_another_activation_is_found_out_by_saving(tmp_path: Path) -> None:
    network = sequential().eval()
    network[2] = nn.Tanh()
    with mistake("computes other logits than a chain of 4 layers"):
        cs.save(network, tmp_path / "net.pt")


@pytest.mark.parametrize(
    "layers", ["", "conv", "conv 1 2 3 4", "linear 3 4 1", "relu, linear 3 x 1", "os.system 3"]
)
def test_a_chain_of_other_words_is_refused(layers: str) -> None:
    with pytest.raises(UserError, match="layers: "):
        build_chain(3, layers=layers)
