"""Where the channels are: told by what a layer is, and refused where it cannot be told."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from channelscope.errors import UserError
from channelscope.layers.channels import channel_axis, positions, summed
from helpers.networks import gated, plain, resnet


class LayerNorm2d(nn.LayerNorm):
    """Permutes in its own forward, as torchvision's and timm's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def inner() -> nn.Sequential:
    """Make the block of ConvNeXt: a convolution, and two linear layers between permutations."""
    last, first = Permute([0, 2, 3, 1]), Permute([0, 3, 1, 2])
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1), last, nn.LayerNorm(6), nn.Linear(6, 24), nn.GELU(), first
    )


def excited() -> nn.Sequential:
    """Make a block whose channels are weighed by linear layers."""
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)),
    )


def dense() -> nn.Sequential:
    """Make a block that grows by four channels, as wide as its maps may be."""
    return nn.Sequential(
        OrderedDict(
            block=nn.Sequential(nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1)), pool=nn.AvgPool2d(2)
        )
    )


def headed() -> nn.Sequential:
    """Make a network whose activation is made last, after its head, as many are written."""
    layers = {
        "conv": nn.Conv2d(3, 4, 1),
        "last": nn.Conv2d(4, 10, 1),
        "head": nn.Linear(10, 10),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


# Network, layer, shape of its features, axis of its channels.
CASES: list[tuple[Callable[[], nn.Module], str, tuple[int, ...], int]] = [
    (plain, "conv1", (2, 6, 8, 8), 1),
    (plain, "relu1", (2, 6, 6, 6), 1),  # sizes that tell nothing
    (plain, "linear", (2, 5), 1),
    (resnet, "layer1", (2, 2, 8, 8), 1),
    (gated, "layer4.0.gated", (2, 16, 1, 1), 1),
    (
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(1, 4, 1)),
        "0",
        (2, 4, 4, 4),
        1,
    ),  # nothing before it
    (lambda: nn.Sequential(nn.ReLU()), "0", (2, 4, 4, 4), 1),
    (lambda: nn.Sequential(nn.ReLU()), "0", (2, 7, 4), 2),
    (inner, "0", (2, 6, 5, 5), 1),
    (inner, "1", (2, 5, 5, 6), 3),
    (inner, "2", (2, 6, 6, 6), 3),
    (inner, "4", (2, 5, 5, 24), 3),
    (inner, "5", (2, 24, 5, 5), 1),
    (lambda: nn.Sequential(inner()), "0", (2, 24, 5, 5), 1),
    (dense, "block", (2, 14, 4, 4), 1),
    (dense, "pool", (2, 14, 4, 4), 1),
    (lambda: nn.Sequential(*inner(), nn.AdaptiveAvgPool2d(1)), "6", (2, 24, 1, 1), 1),
    (lambda: nn.Sequential(excited()), "0", (2, 6, 6, 6), 1),
    (lambda: nn.Sequential(LayerNorm2d(6)), "0", (2, 6, 5, 5), 1),
    (lambda: nn.Sequential(nn.LayerNorm([6, 5, 5])), "0", (2, 6, 5, 5), 1),
    (lambda: nn.Sequential(nn.Conv1d(3, 6, 1)), "0", (2, 6, 9), 1),
    (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 4))),
        "0",
        (2, 9, 6),
        2,
    ),  # flattened to tokens
    (lambda: nn.TransformerEncoderLayer(6, 2, 6), "linear1", (2, 6, 6), 2),
    (lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 6)), "0", (2, 6, 6), 2),
    (lambda: nn.Sequential(nn.GroupNorm(2, 6)), "0", (2, 6, 3, 3), 1),
    (lambda: nn.Sequential(nn.Conv3d(1, 6, 1)), "0", (2, 6, 3, 3, 3), 1),
    (headed, "relu", (2, 4, 8, 8), 1),  # runs before the linear layer, and is made after it
    (headed, "relu", (2, 4, 10, 10), 1),  # maps that happen to be as wide as that layer
    (headed, "relu", (2, 10, 10, 10), 1),
    (headed, "relu", (2, 10), 1),
    (
        lambda: nn.Sequential(headed(), nn.Sequential(nn.Linear(4, 24), nn.GELU())),
        "1.1",
        (2, 4, 4, 24),
        3,
    ),
    (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Sequential(inner())),
        "1.0.4",
        (2, 6, 6, 24),
        3,
    ),
]


@pytest.mark.parametrize(("make", "layer", "shape", "axis"), CASES)
def test_axis_is_that_of_what_the_layer_is(
    make: Callable[[], nn.Module], layer: str, shape: tuple[int, ...], axis: int
) -> None:
    assert channel_axis(make(), layer, shape) == axis


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(inner()), lambda: nn.Sequential(LayerNorm2d(24))]
)
def test_parts_of_two_layouts_are_refused_where_sizes_tell_nothing(
    make: Callable[[], nn.Module],
) -> None:
    with pytest.raises(UserError, match=r"layer '0' .* cannot be told"):
        channel_axis(make(), "0", (2, 24, 24, 24))


def test_two_layouts_of_one_shape_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"layer '5' .* cannot be told: .* 24 x 24 x 24. Name a layer within it"
    ):
        channel_axis(inner(), "5", (2, 24, 24, 24))


def test_features_without_channels_are_refused() -> None:
    with pytest.raises(UserError, match="have no channels: choose a layer that returns"):
        channel_axis(plain(), "conv1", (2,))


def test_sums_go_over_all_axes_but_images_and_channels() -> None:
    z = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert positions(4, 1) == (2, 3)
    assert positions(2, 1) == ()
    torch.testing.assert_close(summed(z, 3), z.flatten(1, 2).sum(1))
    assert torch.equal(summed(z[:, :, 0, 0], 1), z[:, :, 0, 0])
