"""Small networks for the tests, well-behaved and not, and checks that a network is unchanged."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe
from channelscope.networks import Architecture

CLASSES = 5


def images(
    n: int = 6, channels: int = 1, size: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Draw images in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, size, size, generator=generator, dtype=dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def randomise_batchnorm(model: nn.Module) -> nn.Module:
    """Set BatchNorm statistics that a fresh network does not have, and eval mode."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def plain(channels: int = 1) -> nn.Sequential:
    """Make the smallest CNN: convolution, BatchNorm, in-place ReLU, twice, mean, linear layer."""
    parts = OrderedDict(
        conv1=nn.Conv2d(channels, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(6, 8, 3, stride=2, padding=1),
        relu2=nn.ReLU(inplace=True),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(8, CLASSES),
    )
    return randomise_batchnorm(nn.Sequential(parts))


def resnet(
    arch: str = "resnet10", width: int = 2, channels: int = 1, classes: int = CLASSES
) -> nn.Module:
    """Make a small CIFAR-style network."""
    mean, std = (0.4,) * channels, (0.3,) * channels
    return randomise_batchnorm(
        Architecture(arch=arch, width=width, classes=classes, mean=mean, std=std).build()
    )


def gated(**options: Any) -> Selective:
    """Make a small ResNet-18 with the two gates of CIFS, a two-layer and a linear one."""
    gates = {
        "layer4.0": FeatureSelector(TwoLayerProbe(16, CLASSES, hidden=12), **options),
        "layer4.1": FeatureSelector(LinearProbe(16, CLASSES), **options),
    }
    return randomise_batchnorm(Selective(resnet("resnet18"), gates))


class Twice(nn.Module):
    """Calls one ReLU two times, and has a layer that it does not use."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3)
        self.relu, self.linear, self.unused = (
            nn.ReLU(),
            nn.Linear(width, CLASSES),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.linear(z.mean((2, 3)))


class Shared(nn.Module):
    """Has one ReLU under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.conv2 = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)
        self.relu2, self.linear = self.relu1, nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.linear(z.mean((2, 3)))


class CallsAutograd(nn.Module):
    """Weighs its features by a gradient that it takes itself, in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.probe, self.linear = (
            nn.Conv2d(1, 4, 3),
            nn.Linear(4, CLASSES),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).relu()
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.probe(at.mean((2, 3))).amax(1).sum(), at)
        return self.linear((z * g.sum((2, 3), keepdim=True)).mean((2, 3)))


class Answer(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Output:
    features: Tensor
    logits: Tensor


class Returns(nn.Module):
    """Passes a network's logits on in whatever form."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = plain(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x), x)


# What networks out there return: (logits, something else) -> output.
FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda logits, _: logits,
    "tuple": lambda logits, other: (logits, other),
    "list": lambda logits, other: [logits, other],
    "named tuple": Answer,
    "dict": lambda logits, other: {"features": other, "logits": logits},
    "dict with out": lambda logits, other: {"aux": other, "out": logits},
    "dict without names": lambda logits, other: {"a": logits, "b": other},
    "dataclass": lambda logits, other: Output(other, logits),
}


class TrainsItself(nn.Module):
    """Switches itself to train mode in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        return self.net(x)


class TrainsInPassing(TrainsItself):
    """Switches itself to train mode for as long as its forward pass lasts."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.eval()
        return logits


class Linear(nn.Module):
    """A linear classifier of pixels: its gradient is its weight."""

    def __init__(self, pixels: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Brittle(nn.Module):
    """Fails behind its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"broken behind {self.relu(self.conv(x)).shape}")


def hooks(model: nn.Module) -> int:
    """Count the hooks on a network and everything in it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything that an analysis must not change: of a network, and the random state."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [
            None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()
        ],
        "tensors": [(id(tensor), tensor.detach().clone()) for tensor in tensors],
        "hooks": hooks(model),
        "random": torch.get_rng_state(),
    }


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that the block leaves the network and the global random state as they were."""
    before = snapshot(model)
    yield
    after = snapshot(model)
    for name, was in before.items():
        assert _equal(was, after[name]), f"{name} changed"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def mixed(model: nn.Module) -> nn.Module:
    """Put a network in mixed modes, freeze some of its parameters and give others a gradient."""
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        if index % 4 == 0:
            parameter.grad = torch.full_like(parameter, 0.5)
    return model


def margin_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Give per image the largest other logit less the label's, as an objective."""
    logits = model(x)
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, float("-inf")).amax(1) - logits[own]


def deciding(classes: int = 6) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """Make a network in which only channel k speaks for class k, only k + 1 against it; and data.

    Of an image of class k these two channels are bright, the others dark. Also return the sign of
    each (class, channel).
    """
    one = torch.eye(classes)
    other = one.roll(1, 1)
    parts = OrderedDict(
        conv1=nn.Conv2d(classes, classes, 1, bias=False),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(classes, classes, 1, bias=False),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(classes, classes),
    )
    net = nn.Sequential(parts)
    with torch.no_grad():
        net.conv1.weight.copy_(one[:, :, None, None])
        net.conv2.weight.copy_(2 * one[:, :, None, None])
        net.linear.weight.copy_(3 * one - 2 * other)
    y = torch.arange(classes).repeat(3)
    bright = (one + other)[y][:, :, None, None]
    return net, 0.1 * torch.rand(len(y), classes, 4, 4) + 0.7 * bright, y, one - other
