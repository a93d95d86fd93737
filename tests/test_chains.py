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
from helpers import networks
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


class LeNet5(nn.Module):
    """As LeCun et al. have it: the last convolution covers all that is left of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3, self.c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.f6, self.f7 = nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        return self.f7(F.relu(self.f6(F.relu(self.c5(x)).flatten(1))))


def strided(kernels: str, padding: int, channels: int, inputs: int) -> nn.Sequential:
    """Build a network as those that are verified: strides of 2 in place of pooling."""
    layers: list[nn.Module] = []
    for index, kernel in enumerate(map(int, kernels)):
        stride = 1 if kernel == 3 else 2
        padded = (kernel - 1) // 2 if padding else 0
        layers += [nn.Conv2d(4 if index else channels, 4, kernel, stride, padded), nn.ReLU()]
    head = (nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, 10))
    return nn.Sequential(*layers, nn.Flatten(), *head)


def vgg(stages: str) -> nn.Sequential:
    """Build a VGG as pytorch-cifar has it: so many convolutions in each stage, pooling after it."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, count in enumerate(map(int, stages)):
        planes = (2, 4, 8, 16, 16)[stage]
        for _ in range(count):
            layers += [nn.Conv2d(channels, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU()]
            channels = planes
        layers.append(nn.MaxPool2d(2))
    parts = {
        "features": nn.Sequential(*layers),
        "flat": nn.Flatten(),
        "classifier": nn.Linear(16, 10),
    }
    return networks.randomise_batchnorm(nn.Sequential(OrderedDict(parts)))


def two_parts() -> nn.Sequential:
    whole = sequential()
    return nn.Sequential(OrderedDict(features=whole[:7], flat=nn.Flatten(), classifier=whole[8:]))


NETWORKS = {
    "LeNet": (LeNet, (3, 32, 32)),
    "MNIST": (OfMNIST, (1, 28, 28)),
    "TRADES": (OfTRADES, (1, 28, 28)),
    "Sequential": (sequential, (3, 32, 32)),
    "two parts": (two_parts, (3, 32, 32)),
    "LeNet-5": (LeNet5, (1, 32, 32)),
    "VGG-11": (lambda: vgg("11222"), (3, 32, 32)),
    "VGG-13": (lambda: vgg("22222"), (3, 32, 32)),
    "VGG-16": (lambda: vgg("22333"), (3, 32, 32)),
    "VGG-19": (lambda: vgg("22444"), (3, 32, 32)),
}
STRIDED: dict[str, tuple[str, int, tuple[int, int, int], int]] = {
    "kernels of 4, padded": ("44", 1, (3, 32, 32), 4 * 64),
    "kernels of 4": ("44", 0, (3, 32, 32), 4 * 36),
    "kernels of 4, small images": ("44", 0, (1, 28, 28), 4 * 25),
    "kernels of 3 between": ("4334", 1, (3, 32, 32), 4 * 64),
    "kernels of 5": ("55", 1, (1, 28, 28), 4 * 49),
}


def check_chain(network: nn.Module, image: tuple[int, int, int], assumed: str, to: Path) -> None:
    """Save a network's tensors; expect what is read to compute the same, also once converted."""
    torch.save(network.eval().state_dict(), to / "theirs.pt")
    checkpoint = read_network(to / "theirs.pt")
    x = torch.rand(3, *image)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.build()(x), network(x))
    assert checkpoint.image == image
    told = f"{assumed}, images of {image[1]} x {image[2]}; else name its code with --arch"
    assert checkpoint.meta["assumed"] == told
    checkpoint.save(to / "ours.pt")
    with torch.no_grad():
        assert torch.equal(Checkpoint.read(to / "ours.pt").build()(x), checkpoint.build()(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_chains_give_their_own_logits(name: str, tmp_path: Path) -> None:
    make, image = NETWORKS[name]
    check_chain(make(), image, "ReLU and max pooling", tmp_path)


@pytest.mark.parametrize("name", STRIDED)
def test_chains_with_strides_give_their_own_logits(name: str, tmp_path: Path) -> None:
    kernels, padding, image, inputs = STRIDED[name]
    network = strided(kernels, padding, image[0], inputs)
    check_chain(network, image, "ReLU and strides of 2", tmp_path)


def strided_somewhere() -> nn.Module:
    """Build a network that the second or the third convolution may make smaller."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 10)),
    )


def averaged() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 3)
    )


def linear() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 784, 9), nn.Linear(9, 3)
    )


@pytest.mark.parametrize("make", [strided_somewhere, averaged, linear])
def test_what_no_tensor_tells_is_asked_for(make: type[nn.Module], tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "theirs.pt")
    with mistake("theirs.pt is not recognised", "layers, one after the other", "--arch FILE.py"):
        cs.load(tmp_path / "theirs.pt")


def test_chains_with_too_many_ways_to_pool_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"conv{index}.weight": torch.zeros(2, 2, 3, 3) for index in range(17)}
    torch.save(state | {"fc.weight": torch.zeros(3, 578)}, tmp_path / "theirs.pt")
    monkeypatch.setattr("channelscope.weights.chains._list_halvings", None)
    with mistake("theirs.pt holds a network that is not recognised"):
        cs.load(tmp_path / "theirs.pt")


def test_another_activation_is_found_out_by_saving(tmp_path: Path) -> None:
    network = sequential().eval()
    network[2] = nn.Tanh()
    with mistake("computes other logits than a chain of 4 layers"):
        cs.save(network, tmp_path / "net.pt")


@pytest.mark.parametrize(
    "layers",
    [
        "",
        "conv",
        "conv 1 2 3 4",
        "linear 3 4 1",
        "relu, linear 3 x 1",
        "os.system 3",
        "conv 1 2 3 1 1 2 2",
    ],
)
def test_a_chain_of_other_words_is_refused(layers: str) -> None:
    with pytest.raises(UserError, match="layers: "):
        build_chain(3, layers=layers)
