"""Networks built to mask their gradients, around an honest one, and the honest ones.

Each answers natural images about as well as the network within, and is no more robust than it.
"""

import atexit
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.data import load
from channelscope.training import train

EPS = 0.15  # that of the recipe for digits
SEEDS = (0, 1)


class Masked(nn.Module):
    """Holds an honest network."""

    def __init__(self, within: nn.Module) -> None:
        super().__init__()
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x)


class Quantised(Masked):
    """Rounds the image: its gradient is zero (Buckman et al., ICLR 2018; Guo et al., ICLR 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within((8 * x).round() / 8)


class Saturated(Masked):
    """Scales the logits: the softmax is 0 or 1 to the last digit (defensive distillation)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.within(x)


class Purified(Masked):
    """Smooths the image a little, and hides from the graph that it did."""

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.avg_pool2d(x, 3, stride=1, padding=1)
        return self.within((0.8 * x + 0.2 * blurred).detach())


class Noisy(Masked):
    """Adds noise to the image, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x + 0.15 * torch.randn_like(x))


class Rippled(Masked):
    """Adds a sine of high frequency: little to the image, a lot to the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x + 0.02 * torch.sin(2000 * x))


class Gated(Masked):
    """Multiplies the channels of a layer by a gate."""

    def forward(self, x: Tensor) -> Tensor:
        handle = self.within.layer1.register_forward_hook(
            lambda _layer, _inputs, z: z * self.gate(z)
        )
        try:
            return self.within(x)
        finally:
            handle.remove()

    def gate(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class ShatteredGate(Gated):
    """A gate made of an activation's last digits: nearly constant, its gradient meaningless."""

    def gate(self, z: Tensor) -> Tensor:
        return 0.95 + 0.1 * (2000 * z.mean((2, 3), keepdim=True)).frac()


class RandomGate(Gated):
    """A gate that closes some of the channels by chance, in evaluation too."""

    def gate(self, z: Tensor) -> Tensor:
        return (torch.rand(*z.shape[:2], 1, 1, device=z.device) > 0.1) / 0.9


class Stepped(Gated):
    """A layer's features take a few values only, by a step function."""

    def forward(self, x: Tensor) -> Tensor:
        handle = self.within.layer1.register_forward_hook(
            lambda _layer, _inputs, z: (4 * z).floor() / 4 + 0.125
        )
        try:
            return self.within(x)
        finally:
            handle.remove()


MASKED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "quantised input": Quantised,
    "saturated logits": Saturated,
    "shattered gate": ShatteredGate,
    "random gate": RandomGate,
    "step function": Stepped,
    "detached purification": Purified,
    "noise injected": Noisy,
    "sine added": Rippled,
}


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="channelscope-masked-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def honest(method: str, seed: int = 0) -> nn.Module:
    """Return a small network trained on the digits, once for all tests."""
    return _trained(method, seed)


@cache
def _trained(method: str, seed: int) -> nn.Module:
    settings = {"arch": "resnet10", "width": 4, "epochs": 8, "progress": False}
    return train(
        method, "digits", out=_folder() / f"{method}-{seed}.pt", seed=seed, **settings
    ).eval()


def masked(name: str, seed: int = 0) -> nn.Module:
    """Return a network that masks its gradients."""
    return MASKED[name](honest("standard", seed)).eval()


@cache
def digits(n: int = 128) -> tuple[Tensor, Tensor]:
    """Return test images and their labels."""
    test = load("digits").test
    x = test.images[:n]
    return x.float() / (255 if x.dtype == torch.uint8 else 1), test.labels[:n]
