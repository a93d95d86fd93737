"""How far attacks can drive channels: linear ones exactly, others at least as far as any attack."""

import pytest
import torch
from torch import nn

import channelscope as cs
from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.study.account import capture_pairs, pair_images
from helpers.networks import images, plain, unchanged
from helpers.planted import Chain, Shift, colours


def test_reach_of_a_linear_channel_is_eps_times_the_l1_norm_of_its_gradient() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = 0.3 + 0.4 * torch.rand(3, 2, 6, 6)
    reach = cs.measure_reach(network, "0", x, attack=PGD(eps=0.05, steps=10, random_start=False))
    leaf = x.clone().requires_grad_()
    for c in range(5):
        (gradient,) = torch.autograd.grad(network(leaf)[:, c].sum(), leaf)
        expected = 0.05 * gradient.flatten(1).abs().sum(1)
        torch.testing.assert_close(reach.up[:, c], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(reach.down[:, c], expected, rtol=1e-4, atol=1e-6)


def test_reach_ends_where_a_relu_does() -> None:
    network = Chain([1.0, 1.0], [0.0, 0.45])
    x, _ = colours(0.3, 0.5, n=4)
    reach = cs.measure_reach(network, "relu", x, attack=PGD(eps=0.2, steps=10, random_start=False))
    torch.testing.assert_close(reach.up, torch.full((4, 2), 0.2), rtol=0, atol=1e-5)
    torch.testing.assert_close(reach.down[:, 0], torch.full((4,), 0.2), rtol=0, atol=1e-5)
    silenced = x[:, 1].mean((1, 2)) - 0.45
    torch.testing.assert_close(reach.down[:, 1], silenced, rtol=0, atol=1e-5)


def test_class_attack_uses_a_share_of_the_reach() -> None:
    network = Chain([2.0, -1.0], [0.0, 0.0]).eval()
    x, y = colours(0.5, 0.5, n=4)
    ball = PGD(eps=0.2, steps=10, random_start=False)
    reach = cs.measure_reach(network, "relu", x, channels=[1, 0], attack=ball)
    pairs = pair_images(network, x, Shift(-0.1, 0.2)(network, x, y), y)
    natural, attacked = capture_pairs(network, ["relu"], pairs)["relu"].pool()
    use = reach.use((attacked - natural)[:, [1, 0]])
    torch.testing.assert_close(use, torch.tensor([[1.0, 0.5]]).expand(4, 2), rtol=0, atol=1e-4)
    dead = cs.measure_reach(Chain([1.0], [2.0]), "relu", colours(0.5, n=4)[0], attack=ball)
    assert dead.use(torch.zeros(4, 1)).isnan().all()


def test_no_attack_drives_a_channel_further_and_the_network_is_left_as_found() -> None:
    network = plain()
    x, y = images(6)
    ball = PGD(eps=0.1, steps=20, random_start=False)
    with unchanged(network):
        reach = cs.measure_reach(network, "relu2", x, attack=ball)
    pairs = pair_images(network, x, PGD(eps=0.1, steps=5)(network, x, y), y)
    natural, attacked = capture_pairs(network, ["relu2"], pairs)["relu2"].pool()
    change = attacked - natural
    assert (change <= reach.up + 1e-3).all()
    assert (-change <= reach.down + 1e-3).all()


def test_unknown_channel_is_refused() -> None:
    with pytest.raises(UserError, match="there is no channel 9"):
        cs.measure_reach(plain(), "relu2", images(2)[0], channels=[9])
