"""Attacks wait for the device as rarely as they can: a wait costs a small network's whole step."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from channelscope.attacks import Attack, parse_attack
from device.conftest import make_network
from device.standin import NAME, Standin

STEPS = 10, 30


def count(standin: Standin, attack: Attack, images: tuple[Tensor, Tensor]) -> Counter[str]:
    """Count the waits of an attack on a network whose answers are the labels of most images."""
    network, x = make_network(), images[0].to(NAME)
    y = network(x).argmax(1)
    attack(network, x, y, torch.Generator().manual_seed(0))  # traces the network, once for all
    with standin.count_waits() as waits:
        attack(network, x, y, torch.Generator().manual_seed(0))
    return waits


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("pgd-{}", 0),
        ("pgd-{}-l2", 0),
        ("cw-{}", 0),
        ("pgd-{}-0", 1),
        ("apgd-ce-{}", 1),
        ("apgd-dlr-{}", 1),
        ("apgd-ce-{}-l2", 1),
    ],
)
def test_a_step_waits_at_most_so_often(
    name: str, most: int, standin: Standin, images: tuple[Tensor, Tensor]
) -> None:
    few, many = (
        count(standin, parse_attack(name.format(steps), eps=0.02), images).total()
        for steps in STEPS
    )
    assert many - few <= most * (STEPS[1] - STEPS[0])
    # What is not of the steps: the images' range, and how the attack ends.
    assert few <= most * (STEPS[0] + 1) + 6
