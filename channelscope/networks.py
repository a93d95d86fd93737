"""CIFAR-style networks of any depth, width, input channels and (small) image size.

The networks take images in [0, 1]: normalisation is their first layer, so that attacks live in
image units. ResNet: He et al., CVPR 2016 (arXiv 1512.03385). WideResNet: Zagoruyko & Komodakis,
BMVC 2016 (arXiv 1605.07146). VGG: Simonyan & Zisserman, ICLR 2015 (arXiv 1409.1556).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.errors import UserError, suggest
from channelscope.layers.hooks import named_layers

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""The mean and the standard deviation of each input channel, or one number for all."""

NORMALISATIONS: dict[str, Statistics | None] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "pytorch-cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "none": None,
}
"""The usual normalisations by name; "half" makes images of [-1, 1].

Two are usual for CIFAR-10: the deviation of all pixels, and, after pytorch-cifar, the mean over
images of their own deviations.
"""


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of each input channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        dtype = torch.get_default_dtype()
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(-1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (x - self.mean) / self.std


class Normalised(nn.Module):
    """A network of normalised images that takes images in [0, 1]; its layers keep their names."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.network = network

    def named_layers(self) -> dict[str, nn.Module]:
        """List the network's layers under their own names."""
        return named_layers(self.network)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Any:
        return self.network(self.normalise(x))


def normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Normalised:
    """Return a network that normalises images in [0, 1] first: for networks that expect it done.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> normalised(net, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 8])

    Args:
        network: any network.
        mean, std: of each input channel, in [0, 1] image units; or one number for all.

    Raises:
        UserError: for numbers that do not fit.
    """
    check_statistics(tuple(mean), tuple(std), "normalised")
    return Normalised(network, mean, std).train(network.training)


def read_normalisation(normalise: str | Statistics) -> Statistics | None:
    """Read a normalisation: a name, ``MEAN;STD`` or two sequences; None for no normalisation.

    >>> read_normalisation("0.5,0.5,0.4;0.2")
    ((0.5, 0.5, 0.4), (0.2, 0.2, 0.2))

    Args:
        normalise: a key of ``NORMALISATIONS``; numbers with commas between them, and a semicolon
            between mean and standard deviation; or a pair (mean, std).

    Raises:
        UserError: for an unknown name, or numbers that do not fit.
    """
    if isinstance(normalise, str) and normalise in NORMALISATIONS:
        return NORMALISATIONS[normalise]
    try:
        pair = normalise.split(";") if isinstance(normalise, str) else normalise
        mean, std = (
            tuple(map(float, part.split(",") if isinstance(part, str) else part)) for part in pair
        )
    except (TypeError, ValueError) as error:
        names = ", ".join(NORMALISATIONS)
        raise UserError(
            f"normalise: {normalise!r} is no normalisation: choose from {names}, or write "
            "MEAN;STD, such as 0.49,0.48,0.45;0.25,0.24,0.26."
        ) from error
    check_statistics(mean, std, "normalise")
    count = max(len(mean), len(std))
    return mean * (count // len(mean)), std * (count // len(std))


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...], argument: str) -> None:
    """Refuse a mean and a standard deviation that are not those of images in [0, 1]."""
    fits = mean and std and (len(mean) == len(std) or 1 in (len(mean), len(std)))
    if not fits or not all(math.isfinite(number) for number in (*mean, *std)) or min(std) <= 0:
        raise UserError(
            f"{argument}: the mean {mean} and the standard deviation {std} need a number for each "
            "input channel, the latter above 0."
        )
    if max(map(abs, (*mean, *std))) > 2:
        raise UserError(
            f"{argument}: the mean {mean} and the standard deviation {std} are those of bytes: "
            "divide them by 255, as images are in [0, 1]."
        )


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels_in, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(channels_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(z)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; four times more channels out than inside."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        channels_out = planes * self.expansion
        self.conv1, self.bn1 = _conv(channels_in, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = _conv(planes, channels_out, 1), nn.BatchNorm2d(channels_out)
        self.shortcut = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        z = F.relu(self.bn2(self.conv2(z)))
        return F.relu(self.bn3(self.conv3(z)) + self.shortcut(x))


class WideBlock(nn.Module):
    """Pre-activation block of a WideResNet: BatchNorm and ReLU before each 3x3 convolution."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels_in), _conv(channels_in, planes, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), _conv(planes, planes, 3)
        same = stride == 1 and channels_in == planes
        self.shortcut = None if same else _conv(channels_in, planes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(z)
        return self.conv2(F.relu(self.bn2(self.conv1(z)))) + skip


Block = type[BasicBlock] | type[Bottleneck] | type[WideBlock]


def _stage(block: Block, channels_in: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    inputs = [channels_in] + [planes * block.expansion] * (blocks - 1)
    strides = [stride] + [1] * (blocks - 1)
    return nn.Sequential(*(block(c, planes, s) for c, s in zip(inputs, strides, strict=True)))


class ResNet(nn.Module):
    """CIFAR-style ResNet: a 3x3 stem, four stages of 1, 2, 4, 8 times ``width`` planes, linear.

    The global mean replaces the original's pooling of a fixed size, so images of any size pass.
    With mean 0 and standard deviation 1 the parameters correspond key by key with the networks of
    the CIFS authors' release.

    With ``filtered`` the stem is the adversarial noise filter (ANF) of Suresh et al., AAAI 2025
    (arXiv 2408.11680), as in their release: 15x15 convolutions to 4 ``width`` channels, and behind
    the ReLU the maximum of 5x5 pixels. It takes 14 pixels from both sides of an image.
    """

    def __init__(
        self,
        block: Block,
        blocks: Sequence[int],
        width: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        filtered: bool = False,
    ) -> None:
        super().__init__()
        e, stem = block.expansion, 4 * width if filtered else width
        self.filtered = filtered
        self.normalise = Normalise(mean, std)
        self.conv1, self.bn1 = _conv(len(mean), stem, 3), nn.BatchNorm2d(stem)
        if filtered:
            self.conv1 = nn.Conv2d(len(mean), stem, 15, padding=1, bias=False)
        self.layer1 = _stage(block, stem, width, blocks[0], stride=1)
        self.layer2 = _stage(block, width * e, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * width * e, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * width * e, 8 * width, blocks[3], stride=2)
        self.linear = nn.Linear(8 * width * e, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        if self.filtered and min(x.shape[2:]) < _FILTERED_SIDE:
            raise UserError(
                f"Images of {x.shape[2]}x{x.shape[3]} are too small for a filter of 15x15 pixels: "
                f"choose a network without it, or images of {_FILTERED_SIDE} and more."
            )
        z = F.relu(self.bn1(self.conv1(self.normalise(x))))
        if self.filtered:
            z = F.max_pool2d(z, 5, stride=1, padding=1)
        z = self.layer4(self.layer3(self.layer2(self.layer1(z))))
        return self.linear(z.mean((2, 3)))


class WideResNet(nn.Module):
    """WideResNet-depth-widen, depth = 6 n + 4: three stages of n pre-activation blocks.

    The last activations, after the final BatchNorm and ReLU, are the output of ``features``.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        width: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        blocks, planes = (depth - 4) // 6, width * widen
        self.normalise = Normalise(mean, std)
        self.conv1 = _conv(len(mean), width, 3)
        self.layer1 = _stage(WideBlock, width, planes, blocks, stride=1)
        self.layer2 = _stage(WideBlock, planes, 2 * planes, blocks, stride=2)
        self.layer3 = _stage(WideBlock, 2 * planes, 4 * planes, blocks, stride=2)
        self.features = nn.Sequential(nn.BatchNorm2d(4 * planes), nn.ReLU())
        self.linear = nn.Linear(4 * planes, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        z = self.layer3(self.layer2(self.layer1(self.conv1(self.normalise(x)))))
        return self.linear(self.features(z).mean((2, 3)))


class VGG(nn.Module):
    """VGG-16 for small images, with BatchNorm: as the authors of CAS have it (ICLR 2021).

    Five stages of 3x3 convolutions with BatchNorm and ReLU, each stage followed by a 2x2 maximum;
    two hidden linear layers, with BatchNorm and ReLU as well; linear. With mean 0 and standard
    deviation 1 the parameters of all but the last stage correspond key by key with the network of
    the authors' release. The global mean before the hidden layers is of one position for images of
    32 x 32, and lets images of any size pass.
    """

    def __init__(
        self, width: int, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        planes = [len(mean), width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.layer1 = _plain_stage(planes[0], planes[1], convolutions=2)
        self.layer2 = _plain_stage(planes[1], planes[2], convolutions=2)
        self.layer3 = _plain_stage(planes[2], planes[3], convolutions=3)
        self.layer4 = _plain_stage(planes[3], planes[4], convolutions=3)
        self.layer5 = _plain_stage(planes[4], planes[5], convolutions=3)
        self.layer6 = _hidden_layer(planes[5])
        self.layer7 = _hidden_layer(planes[5])
        self.linear = nn.Linear(planes[5], classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        z = self.normalise(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            # Rounded up, a map of a single position stays one.
            z = F.max_pool2d(stage(z), 2, ceil_mode=True)
        return self.linear(self.layer7(self.layer6(z.mean((2, 3)))))


def _plain_stage(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    inputs = [channels_in] + [channels_out] * (convolutions - 1)
    blocks = (
        (nn.Conv2d(c, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU())
        for c in inputs
    )
    return nn.Sequential(*(nn.Sequential(*block) for block in blocks))


def _hidden_layer(units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU())


RESNETS: dict[str, tuple[Block, tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_FILTERED, _FILTERED_SIDE = "anf-", 15  # ResNets with ANF; the smallest image that they take
_VGG = "vgg16"
_WIDE = re.compile(r"wrn-(\d{1,3})-(\d{1,2})")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What it takes to build a network again.

    Args:
        arch: ``resnet10``, ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``,
            these with the stem of ANF, ``anf-resnet18``; ``vgg16``; ``wrn-DEPTH-WIDEN`` (such as
            ``wrn-28-10``).
        width: planes of the first stage; None for the published 64 (ResNet, VGG) or 16
            (WideResNet).
        classes: number of logits.
        mean, std: of each input channel; their length is the number of input channels.
    """

    arch: str = "resnet18"
    width: int | None = None
    classes: int = 10
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self._stages not in RESNETS and self.arch != _VGG and self._wide is None:
            names = [*RESNETS, f"{_FILTERED}resnet18", _VGG, "wrn-28-10"]
            raise UserError(
                f"There is no architecture {self.arch!r}: choose from {', '.join(names)}."
                f"{suggest(self.arch, names)}"
            )
        if self._wide:
            depth, widen = self._wide
            if depth < 10 or (depth - 4) % 6 or widen < 1:
                raise UserError(
                    f"{self.arch!r} has no whole number of blocks: the depth of a WideResNet is "
                    "6 n + 4."
                )
        if self.width is not None and not 1 <= self.width <= 1024:
            raise UserError(f"A network's width is between 1 and 1024, not {self.width}.")
        if not 2 <= self.classes <= 100_000:
            raise UserError(f"A classifier has between 2 and 100,000 classes, not {self.classes}.")
        positive = all(0 < std < float("inf") for std in self.std)
        if not self.mean or len(self.mean) != len(self.std) or not positive:
            raise UserError(
                "The mean and the (positive) standard deviation need one number for each input "
                "channel."
            )

    @property
    def _wide(self) -> tuple[int, int] | None:
        """The depth and the factor of the width of a WideResNet."""
        match = _WIDE.fullmatch(self.arch)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def _stages(self) -> str:
        """The ResNet behind the stem."""
        return self.arch.removeprefix(_FILTERED)

    @property
    def base_width(self) -> int:
        """The width; the published one for None."""
        return self.width or (16 if self._wide else 64)

    @property
    def gate_layers(self) -> tuple[str, ...]:
        """Where the authors of CIFS and CAS have their gates, in the order of the network.

        ResNet: behind the last two blocks, which of a ResNet-10 are of two stages. WideResNet: in
        the last block, on relu(bn1(x)), which the first convolution reads and the shortcut does
        not; and behind the final BatchNorm and ReLU. VGG (CAS): behind each ReLU of the last stage.
        """
        if self._wide:
            last = (self._wide[0] - 4) // 6 - 1
            return f"layer3.{last}.conv1:input", "features"
        if self.arch == _VGG:
            return "layer5.0", "layer5.1", "layer5.2"
        *_, third, fourth = RESNETS[self._stages][1]
        blocks = [f"layer3.{index}" for index in range(third)]
        blocks += [f"layer4.{index}" for index in range(fourth)]
        return tuple(blocks[-2:])

    @property
    def channels(self) -> int:
        """The number of channels that the last stage ends with."""
        if self._wide:
            return 4 * self.base_width * self._wide[1]
        if self.arch == _VGG:
            return 8 * self.base_width
        return 8 * self.base_width * RESNETS[self._stages][0].expansion

    def build(self) -> ResNet | WideResNet | VGG:
        """Make the network; torch's global generator draws its weights."""
        width = self.base_width
        if self._wide:
            return WideResNet(*self._wide, width, self.classes, self.mean, self.std)
        if self.arch == _VGG:
            return VGG(width, self.classes, self.mean, self.std)
        filtered = self.arch.startswith(_FILTERED)
        return ResNet(
            *RESNETS[self._stages], width, self.classes, self.mean, self.std, filtered=filtered
        )
