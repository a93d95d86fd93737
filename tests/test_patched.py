"""cs.patched: values of other runs in a network's channels; cs.measure_outside."""

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.errors import UserError
from helpers.networks import images, plain, unchanged
from helpers.planted import Tokens, colours


def read(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    with cs.capture(network, layer) as features, torch.no_grad():
        network(x)
    return features[layer].clone()


@pytest.mark.parametrize("layer", ["conv1", "relu1", "conv2"])
def test_other_images_channels_go_where_they_are_put_and_the_rest_stays(layer: str) -> None:
    network = plain()
    x, _ = images(6)
    own, other = read(network, layer, x), read(network, layer, x.flip(0))
    at = list(dict(network.named_children())).index(layer) + 1
    with unchanged(network), torch.no_grad(), cs.patched(network, {layer: ([1, 4], other)}):
        logits = network(x)
    expected = own.clone()
    expected[:, [1, 4]] = other[:, [1, 4]]
    with torch.no_grad():
        torch.testing.assert_close(logits, network[at:](expected))


def test_all_channels_of_a_twin_make_the_twins_logits() -> None:
    network = plain()
    x, _ = images(6)
    every = torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        with cs.patched(network, {"relu1": (every, read(network, "relu1", x.flip(0)))}):
            logits = network(x)
        assert torch.equal(logits, network(x.flip(0)))


def test_one_image_a_mean_and_a_mask_by_image() -> None:
    network = plain()
    x, _ = images(6)
    z = read(network, "relu1", x)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    means = z.mean((0, 2, 3))
    for values, expected in (
        (z[:1], z[:1].expand_as(z)),
        (means, means[None, :, None, None].expand_as(z)),
        (z.mean((2, 3)), z.mean((2, 3), keepdim=True).expand_as(z)),
    ):
        with torch.no_grad(), cs.patched(network, {"relu1": (mask, values)}):
            logits = network(x)
        with torch.no_grad():
            mixed = torch.where(mask[:, :, None, None], expected, z)
            torch.testing.assert_close(logits, network[3:](mixed))


def test_channels_of_tokens_are_the_last_axis() -> None:
    network = Tokens([5.0, 1.0, -2.0])
    x, _ = colours(0.4, 0.1, 0.3, n=4)
    z = read(network, "act", x)
    with torch.no_grad(), cs.patched(network, {"act": ([2], 0 * z)}):
        logits = network(x)
    with torch.no_grad(), cs.ablated(network, {"act": [2]}):
        assert torch.equal(logits, network(x))


def test_gradients_pass_through_the_channels_that_are_not_patched() -> None:
    network = plain().requires_grad_(False)
    x = images(3)[0].requires_grad_()
    every = torch.ones(6, dtype=torch.bool)
    for channels, reaches in ((every, False), ([0], True)):
        with cs.patched(network, {"relu1": (channels, torch.zeros(6))}):
            logits = network(x)
        assert logits.requires_grad == reaches or not torch.autograd.grad(logits.sum(), x)[0].any()


@pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 6, 8, 8), (6, 6, 4, 4), ()])
def test_values_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    network = plain()
    with (
        pytest.raises(UserError, match="values of layer 'relu1'"),
        cs.patched(network, {"relu1": ([0], torch.zeros(shape))}),
    ):
        network(images(6)[0])


def test_values_outside_the_natural_range_are_counted_by_channel() -> None:
    natural = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[-1.0, 0.0], [2.0, 2.0]]])
    values = torch.tensor([[[-2.0, 0.5], [2.5, 3.5]], [[2.0, -1.5], [3.0, 2.0]]])
    outside = cs.measure_outside(values, natural)
    assert outside.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert not cs.measure_outside(natural, natural).any()
    swapped = cs.measure_outside(values.movedim(1, 2), natural.movedim(1, 2), axis=2)
    assert torch.equal(swapped, outside)
