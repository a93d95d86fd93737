"""KAP: the mean over neighbours in a sheet of channels."""

import math

import pytest
import torch
from torch import Tensor

import reference
from channelscope.errors import UserError
from channelscope.gates import KernelAveragePool, Selective
from helpers.expect import randomness_untouched
from helpers.networks import CLASSES, images, resnet


def features(channels: int, height: int = 3, width: int = 2) -> Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64)


def gate(channels: int, **options: float) -> KernelAveragePool:
    return KernelAveragePool(channels, CLASSES, **options)


@pytest.mark.parametrize(
    "memory", [torch.contiguous_format, torch.channels_last], ids=["channels first", "last"]
)
@pytest.mark.parametrize("pool", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 2, 7, 12, 16, 18, 30])
def test_gate_is_that_of_the_paper_with_its_gradient(
    channels: int, pool: int, memory: torch.memory_format
) -> None:
    z = features(channels).contiguous(memory_format=memory).requires_grad_()
    ours, papers = gate(channels, pool=pool)(z).features, reference.average_kernels(z, pool)
    torch.testing.assert_close(ours, papers)
    weights = torch.linspace(-1, 2, z.numel()).view_as(z)
    slopes = [torch.autograd.grad((answer * weights).sum(), z)[0] for answer in (ours, papers)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    ("channels", "sheet"),
    [(64, (8, 8)), (128, (8, 16)), (512, (16, 32)), (529, (23, 23)), (7, (1, 7))],
)
def test_sheet_is_the_squarest(channels: int, sheet: tuple[int, int]) -> None:
    assert gate(channels).sheet == reference.sheet(channels) == sheet


def test_channels_lie_row_by_row() -> None:
    z = torch.zeros(1, 12, 1, 1)  # 3 rows of 4 columns
    z[0, 5] = 1
    near = gate(12)(z).features.flatten().nonzero().flatten().tolist()
    assert near == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_a_sheets_edge_counts_only_the_channels_that_are_there() -> None:
    torch.testing.assert_close(
        gate(12, pool=5)(torch.ones(1, 12, 2, 2)).features, torch.ones(1, 12, 2, 2)
    )


def test_places_of_the_image_do_not_mix() -> None:
    z = features(9)
    pooled = gate(9)(z).features
    torch.testing.assert_close(pooled[:, :, 1:2, :1], gate(9)(z[:, :, 1:2, :1]).features)


def test_a_pool_of_one_changes_nothing() -> None:
    z = features(6)
    assert torch.equal(gate(6, pool=1)(z).features, z)


def test_noise_is_added_behind_the_pool_in_training_mode_only() -> None:
    z, made = features(6), gate(6, noise=0.2)
    pooled = gate(6)(z).features
    with randomness_untouched():
        assert torch.equal(made.eval()(z).features, pooled)
    torch.manual_seed(3)
    ours = made.train()(z).features
    torch.manual_seed(3)
    torch.testing.assert_close(ours, pooled + 0.2 * torch.randn(z.shape, dtype=z.dtype))


def test_without_noise_nothing_is_drawn() -> None:
    made, z = gate(6).train(), features(6)
    with randomness_untouched():
        made(z)


def test_nothing_is_trained_and_nothing_saved() -> None:
    assert list(gate(6).parameters()) == []
    assert gate(6).state_dict() == {}


def test_a_network_pooled_behind_its_convolutions() -> None:
    cnn, (x, y) = resnet("resnet10", width=4), images()
    net = Selective(cnn, {"conv1": gate(4), "layer2.0.shortcut.0": gate(8)}).eval()
    z = reference.average_kernels(cnn.conv1(cnn.normalise(x)), 3)
    z = cnn.layer1(cnn.bn1(z).relu())
    block = cnn.layer2[0]
    skip = block.shortcut[1](reference.average_kernels(block.shortcut[0](z), 3))
    z = (block.bn2(block.conv2(block.bn1(block.conv1(z)).relu())) + skip).relu()
    answer = net.probed(x, y)
    torch.testing.assert_close(answer.logits, cnn.linear(cnn.layer4(cnn.layer3(z)).mean((2, 3))))
    assert answer.heads(y) == [[], []]
    assert answer.probes == answer.masks == {}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": 2}, "odd number of rows and columns up to 255, not 2"),
        ({"pool": 0}, "not 0"),
        ({"pool": -3}, "not -3"),
        ({"pool": 10**9 + 1}, "not 1000000001"),
        ({"noise": -0.1}, "between 0 and a million, not at -0.1"),
        ({"noise": math.nan}, "not at nan"),
        ({"noise": math.inf}, "not at inf"),
    ],
    ids=str,
)
def test_impossible_gates_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        gate(6, **options)
