"""Networks: every depth, width, size of image and number of channels, and the published sizes."""

import pytest
import torch
import torch.nn.functional as F

from channelscope.errors import UserError
from channelscope.layers.features import capture
from channelscope.networks import (
    NORMALISATIONS,
    RESNETS,
    Architecture,
    normalised,
    read_normalisation,
)
from helpers import networks
from helpers.expect import mistake

ARCHS = [*RESNETS, "vgg16", "wrn-10-1", "wrn-16-2", "wrn-22-1"]


def grey(**options: object) -> Architecture:
    return Architecture(**{"width": 2, "classes": 3, "mean": (0.5,), "std": (0.25,)} | options)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_networks_take_small_images_of_any_channels(arch: str, channels: int) -> None:
    architecture = grey(arch=arch, mean=(0.5,) * channels, std=(0.25,) * channels)
    assert architecture.build()(torch.rand(2, channels, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 32)], ids=str)
def test_networks_take_images_of_any_size(size: tuple[int, int]) -> None:
    assert grey(arch="resnet18").build().eval()(torch.rand(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_last_gate_stands_behind_all_channels_of_the_last_stage(arch: str, width: int) -> None:
    architecture = grey(arch=arch, width=width)
    net = architecture.build().eval()
    with capture(net, *architecture.gate_layers) as features:
        net(torch.rand(1, 1, 8, 8))
    assert list(features.values())[-1].shape[1] == architecture.channels
    assert net.linear.in_features == architecture.channels


@pytest.mark.parametrize(
    ("arch", "places"),
    [
        ("resnet10", ("layer3.0", "layer4.0")),
        ("resnet18", ("layer4.0", "layer4.1")),
        ("resnet34", ("layer4.1", "layer4.2")),
        ("wrn-10-1", ("layer3.0.conv1:input", "features")),
        ("wrn-28-10", ("layer3.3.conv1:input", "features")),
        ("vgg16", ("layer5.0", "layer5.1", "layer5.2")),
    ],
)
def test_gates_go_where_their_authors_have_them(arch: str, places: tuple[str, ...]) -> None:
    assert Architecture(arch=arch).gate_layers == places


# Counted in the papers' own networks for CIFAR-10.
@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
        ("anf-resnet18", 11_472_522),  # of the authors' code, built for ten classes
    ],
)
def test_published_networks_have_their_published_number_of_parameters(
    arch: str, parameters: int
) -> None:
    with torch.device("meta"):
        net = Architecture(arch=arch).build()
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_a_filter_is_15_pixels_wide_and_takes_the_maximum_of_5() -> None:
    """The stem of ANF, patch by patch."""
    net = networks.randomise_batchnorm(grey(arch="anf-resnet10").build()).eval()
    x = torch.rand(2, 1, 20, 18)
    with capture(net, "layer1:input") as features, torch.no_grad():
        net(x)
        patches = F.unfold(net.normalise(x), 15, padding=1)  # (n, 15 * 15, places)
        z = net.bn1((net.conv1.weight.flatten(1) @ patches).unflatten(2, (8, 6))).relu()
        windows = F.unfold(z, 5, padding=1).unflatten(1, (8, 25))
    torch.testing.assert_close(features["layer1:input"], windows.amax(2).unflatten(2, (6, 4)))


def test_images_that_are_smaller_than_a_filter_are_refused() -> None:
    net = grey(arch="anf-resnet10").build().eval()
    assert net(torch.rand(2, 1, 15, 15)).shape == (2, 3)
    with mistake("14x20", "too small"):
        net(torch.rand(2, 1, 14, 20))


def test_normalisation_is_inside() -> None:
    x = torch.rand(2, 2, 8, 8)
    inside = grey(arch="resnet10", mean=(0.4, 0.6), std=(0.2, 0.3)).build().eval()
    outside = grey(arch="resnet10", mean=(0.0, 0.0), std=(1.0, 1.0)).build().eval()
    weights = {
        name: tensor for name, tensor in inside.state_dict().items() if "normalise" not in name
    }
    outside.load_state_dict(weights, strict=False)
    normalised = torch.stack([(x[:, 0] - 0.4) / 0.2, (x[:, 1] - 0.6) / 0.3], 1)
    torch.testing.assert_close(inside(x), outside(normalised))


def test_same_seed_builds_the_same_network() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(5)
        nets.append(grey(arch="wrn-10-1").build().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values(), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"arch": "resnet19"},
            r"no architecture 'resnet19': choose from resnet10, .* Did you mean 'resnet1",
        ),
        ({"arch": ""}, "no architecture ''"),
        ({"arch": "wrn-28"}, "Did you mean 'wrn-28-10'"),
        ({"arch": "wrn-12-2"}, "depth of a WideResNet is 6 n"),
        ({"arch": "wrn-4-1"}, "depth of a WideResNet is 6 n"),
        ({"arch": "wrn-10-0"}, "'wrn-10-0'"),
        ({"width": 0}, "width is between 1 and 1024, not 0"),
        ({"width": 2000}, "width is between 1 and 1024, not 2000"),
        ({"classes": 1}, "between 2 and 100,000 classes, not 1"),
        ({"mean": (0.5, 0.5)}, "one number for each input channel"),
        ({"mean": (), "std": ()}, "one number for each input channel"),
        ({"std": (0.0,)}, "standard deviation"),
    ],
    ids=str,
)
def test_mistakes_are_answered_with_a_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        grey(**options)


# ---------------------------------------------------------------- normalisation around any network


def test_a_normalised_network_keeps_the_names_of_its_layers() -> None:
    inner = grey(arch="resnet10").build().eval()
    network = normalised(inner, (0.5,), (0.25,))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(network(x), inner((x - 0.5) / 0.25))
    assert not network.training
    with capture(network, "layer4.0") as features:
        network(x)
    assert features["layer4.0"].shape[:2] == (2, 16)


@pytest.mark.parametrize(
    ("text", "statistics"),
    [
        ("imagenet", NORMALISATIONS["imagenet"]),
        ("none", None),
        ("0.1;0.2", ((0.1,), (0.2,))),
        ("0.1, 0.2,0.3;0.5", ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))),
        (((0.1, 0.2), (0.3, 0.4)), ((0.1, 0.2), (0.3, 0.4))),
    ],
    ids=str,
)
def test_a_normalisation_has_a_name_or_numbers(text: object, statistics: object) -> None:
    assert read_normalisation(text) == statistics


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "'imagnet' is no normalisation: choose from cifar10, "),
        ("0.5", "write MEAN;STD"),
        ("0.5;0.5;0.5", "write MEAN;STD"),
        ("0.5,x;0.5", "write MEAN;STD"),
        ("0.5;0", "above 0"),
        ("0.5;nan", "for each input channel"),
        ("0.5,0.5;0.5,0.5,0.5", "for each input channel"),
        ("123.7,116.3,103.5;58.4,57.1,57.4", "divide them by 255"),
    ],
    ids=str,
)
def test_what_is_no_normalisation(text: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_normalisation(text)
