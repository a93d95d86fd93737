"""Networks through whose channels an attack does damage that is known, and the attack."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from channelscope.gates import FeatureSelector, LinearProbe, Selective
from channelscope.gates.base import Selection

CHANNELS = 6


class Shift:
    """An attack that adds known amounts to known colours, and nothing else."""

    def __init__(self, *amounts: float) -> None:
        self.amounts = torch.tensor(amounts)
        self.eps = float(self.amounts.abs().max())

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return x + self.amounts.to(x).view(-1, 1, 1)

    def __str__(self) -> str:
        return "shift"


def colours(*values: float, n: int = 40, size: int = 4) -> tuple[Tensor, Tensor]:
    """Draw images whose colours lie a little above these values; all are of class 0."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(n, len(values), size, size, generator=generator)
    return torch.tensor(values).view(-1, 1, 1) + 0.05 * noise, torch.zeros(n, dtype=torch.long)


def read(weights: Sequence[float]) -> nn.Linear:
    """Make a linear layer whose margin of class 0 over class 1 has these weights."""
    linear = nn.Linear(len(weights), 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([weights, [0.0] * len(weights)]) / 2)
        linear.weight[1] = -linear.weight[0]
        linear.bias.zero_()
    return linear


def pick(rows: Sequence[Sequence[float]], bias: Sequence[float]) -> nn.Conv2d:
    """Make a 1x1 convolution of these weights: a row an output channel."""
    conv = nn.Conv2d(len(rows[0]), len(rows), 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(rows).view(*conv.weight.shape))
        conv.bias.copy_(torch.tensor(bias))
    return conv


class Chain(nn.Sequential):
    """conv (a channel a colour, less a threshold), ReLU, tail, mean, linear."""

    def __init__(
        self, weights: Sequence[float], thresholds: Sequence[float], *, inplace: bool = False
    ) -> None:
        super().__init__()
        colours = torch.eye(len(weights)).tolist()
        self.add_module("conv", pick(colours, [-threshold for threshold in thresholds]))
        self.add_module("relu", nn.ReLU(inplace=inplace))
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("linear", read(weights))


class Skip(nn.Module):
    """Channels of a branch, and the colours that go around it: both reach the logits."""

    def __init__(self, branch: Sequence[float], around: Sequence[float]) -> None:
        super().__init__()
        n = len(branch)
        self.branch = pick(torch.diag(torch.tensor(branch)).tolist(), [0.0] * n)
        self.skip = pick(torch.diag(torch.tensor(around)).tolist(), [0.0] * n)
        self.sum, self.linear = nn.Identity(), read([1.0] * n)
        with torch.no_grad():
            self.linear.bias[0] = -2.5

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.sum(self.branch(x) + self.skip(x)).mean((2, 3)))


class Follows(nn.Module):
    """A gate whose mask of one channel is another channel's activation."""

    detach = False

    def __init__(self, mask_of: int, follows: int) -> None:
        super().__init__()
        self.mask_of, self.follows = mask_of, follows

    def importance(self, v: Tensor) -> Tensor:
        mask = torch.ones_like(v)
        mask[:, self.mask_of] = v[:, self.follows]
        return mask

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Selection:
        mask = self.importance(z.mean((2, 3)))
        return Selection(z * mask[:, :, None, None], None, mask)


def masked(weights: Sequence[float], mask_of: int, follows: int) -> Selective:
    """Make a network whose gate lets the mask of one channel follow another channel."""
    return Selective(Chain(weights, [0.0] * len(weights)), {"relu": Follows(mask_of, follows)})


class Chooses(Selective):
    """A chain whose gate chooses one of two masks: the mask jumps where the probe's answer does."""

    def __init__(self, weights: Sequence[float], probe: Sequence[Sequence[float]]) -> None:
        gate = FeatureSelector(LinearProbe(len(weights), len(probe)), k=1, imgf="sigmoid")
        with torch.no_grad():
            gate.probe.output.weight.copy_(torch.tensor(probe))
            gate.probe.output.bias.zero_()
        super().__init__(Chain(weights, [0.0] * len(weights)), {"relu": gate})


class Tokens(nn.Module):
    """Patches as tokens (n, tokens, channels), two linear layers, mean over the tokens."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        n = len(weights)
        self.embed, self.act, self.mix = nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n)
        self.head = read(weights)
        with torch.no_grad():
            for layer in (self.embed, self.mix):
                layer.weight.copy_(torch.eye(n))
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(self.mix(self.act(self.embed(tokens))).mean(1))
