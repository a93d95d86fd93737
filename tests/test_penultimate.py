"""The default layer: what the last linear map reads, however the network is written."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import channelscope as cs
from channelscope.errors import UserError
from channelscope.layers.channels import channel_axis
from channelscope.layers.features import ablated, capture, capture_activations
from channelscope.layers.hooks import LayerError, get_layer, hooked, match_layers, trace
from channelscope.layers.penultimate import LastLayer
from channelscope.scorers import gradient, weights
from helpers.networks import CLASSES, Twice, images, plain, randomise_batchnorm


class Small(nn.Module):
    """A small CNN whose last steps are a function of its features (n, 8, h, w)."""

    def __init__(self, end: Callable[["Small", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.end = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), end
        self.hidden, self.linear = nn.Linear(8, 6), nn.Linear(8, CLASSES)
        self.head, self.map = nn.Linear(6, CLASSES), nn.Conv2d(8, CLASSES, 1)
        self.wide = nn.Conv2d(8, CLASSES, 3, padding=1)
        self.one = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.bn(self.conv(x)))


def pool(z: Tensor) -> Tensor:
    return z.relu().mean((2, 3))


def two_layers(net: Small, z: Tensor) -> Tensor:
    """End as the residual networks of the verification competitions do."""
    return net.head(F.relu(net.hidden(F.avg_pool2d(F.relu(z), 6).flatten(1))))


# How a network may end, the layer that is then measured, and whether its relevance is a weight.
ENDS: dict[str, tuple[Callable[[Small, Tensor], Tensor], str, bool]] = {
    "functional ReLU": (lambda net, z: net.linear(pool(z)), "linear:input", True),
    "none": (lambda net, z: net.linear(z.mean((2, 3))), "bn", True),
    "log_softmax": (lambda net, z: net.linear(pool(z)).log_softmax(1), "linear:input", True),
    "temperature": (lambda net, z: net.linear(pool(z)) / 7, "linear:input", True),
    "both": (lambda net, z: (net.linear(pool(z)) / 3).log_softmax(1), "linear:input", True),
    "dropout": (lambda net, z: net.linear(F.dropout(pool(z), 0.5, False)), "linear:input", True),
    "two layers": (two_layers, "head:input", True),
    "class token": (
        lambda net, z: net.linear(z.flatten(2).transpose(1, 2)[:, 0]),
        "linear:input",
        True,
    ),
    "convolution": (lambda net, z: net.map(z).mean((2, 3)), "bn", True),
    "convolution, summed": (lambda net, z: net.map(z).sum((2, 3)), "bn", True),
    "convolution, ReLU": (lambda net, z: net.map(z).relu().mean((2, 3)), "bn", False),
    "convolution behind a ReLU": (lambda net, z: net.map(z.relu()).mean((2, 3)), "map:input", True),
    "wide convolution": (lambda net, z: net.wide(z).mean((2, 3)), "bn", False),
    "tokens": (
        lambda net, z: net.linear(z.relu().flatten(2).transpose(1, 2)).mean(1),
        "linear:input",
        True,
    ),
}
ends = pytest.mark.parametrize("name", ENDS)


def small(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = images(4, dtype=torch.float64)
    return randomise_batchnorm(Small(ENDS[name][0])).double(), x, y


@ends
def test_what_the_last_map_reads_is_found(name: str) -> None:
    net, x, _ = small(name)
    last = LastLayer.find(net, x[:2])
    assert last.inputs[0] == ENDS[name][1]
    assert last.inputs[-1].endswith(":input")
    assert (last.weight is not None) is ENDS[name][2]


@ends
def test_its_weight_is_the_gradient(name: str) -> None:
    net, x, y = small(name)
    inputs = LastLayer.find(net, x[:2]).inputs
    expected = gradient(net, inputs, x, y)
    if not ENDS[name][2]:
        with pytest.raises(UserError, match="score by gradient"):
            weights(net, inputs, x, y)
        return
    scores = weights(net, inputs, x, y)
    for layer in inputs:
        if "log_softmax" in name or name == "both":
            # Less the mean over the classes by their probability, which no decision depends on.
            every = [weights(net, [layer], x, torch.full_like(y, k))[layer] for k in range(CLASSES)]
            mean = (net(x).exp().unsqueeze(2) * torch.stack(every, 1)).sum(1)
            torch.testing.assert_close(expected[layer], scores[layer] - mean)
        else:
            torch.testing.assert_close(expected[layer], scores[layer])


def test_a_network_of_one_logit_for_two_classes_has_a_weight_for_each() -> None:
    net, x = Small(lambda net, z: two_logits(net.one(pool(z)))).eval(), images(4)[0]
    last = LastLayer.find(net, x)
    assert last.inputs == ("one:input",)
    assert last.weight is not None
    assert torch.equal(last.weight, torch.cat([0 * net.one.weight, net.one.weight]))
    y = torch.tensor([1, 0, 1, 1])
    scores = weights(net, last.inputs, x, y)["one:input"]
    torch.testing.assert_close(gradient(net, last.inputs, x, y)["one:input"], scores)


def two_logits(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z), z], 1)


def test_a_network_without_a_last_map_is_refused_with_layers_to_choose_from() -> None:
    net = Small(lambda net, z: net.linear(pool(z)) ** 2).eval()
    with pytest.raises(
        UserError, match=r"do not come from a linear layer: name .* such as conv, bn\."
    ):
        LastLayer.find(net, images(2)[0])


def test_probabilities_are_called_so() -> None:
    net = Small(lambda net, z: net.linear(pool(z)).softmax(1)).eval()
    with pytest.raises(UserError, match=r"returns probabilities .* return the logits"):
        LastLayer.find(net, images(2)[0])


def test_any_factor_between_two_logits_of_one_image_is_no_temperature() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 2), nn.Softplus())
    with pytest.raises(UserError, match="name the layers"):
        LastLayer.find(net, images(1)[0])


# ---------------------------------------------------------------- what a layer reads, as a layer


def test_an_input_is_captured_and_edited() -> None:
    net, x, _ = small("functional ReLU")
    with capture(net, "linear:input", "bn") as features, torch.no_grad():
        logits = net(x)
    torch.testing.assert_close(features["linear:input"], pool(features["bn"]))
    with hooked(net, {"linear:input": lambda z: 0 * z}), torch.no_grad():
        assert torch.equal(net(x), net.linear.bias.expand(len(x), -1))
    with ablated(net, {"linear:input": [1, 2]}), torch.no_grad():
        z = features["linear:input"].clone()
        z[:, [1, 2]] = 0
        torch.testing.assert_close(net(x), net.linear(z))
    assert torch.equal(net(x), logits)


def test_an_input_that_is_passed_by_name_is_edited_too() -> None:
    net = Small(lambda net, z: net.linear(input=pool(z))).eval()
    with hooked(net, {"linear:input": torch.zeros_like}), torch.no_grad():
        assert torch.equal(net(images()[0]), net.linear.bias.expand(6, -1))


def test_inputs_have_their_channels_where_the_layer_has_them() -> None:
    net, x, _ = small("convolution")
    assert channel_axis(net, "map:input", (4, 8, 6, 6)) == 1
    assert channel_axis(net, "linear:input", (4, 6, 6, 8)) == 3
    assert channel_axis(net, "linear:input", (4, 36, 8)) == 2
    with capture_activations(net, "map:input") as a, torch.no_grad():
        net(x)
    assert tuple(a["map:input"].shape) == (4, 8)


def test_the_input_of_a_layer_that_runs_twice_is_named_by_call() -> None:
    net, x = Twice().eval(), images()[0]
    with (
        pytest.raises(LayerError, match=r"more than once.*'relu@0:input' or 'relu@1:input'"),
        capture(net, "relu:input"),
    ):
        net(x)
    with capture(net, "relu@1:input", "conv2") as features:
        net(x)
    assert torch.equal(features["relu@1:input"], features["conv2"])


def test_the_input_of_an_unknown_layer_is_answered_with_suggestions() -> None:
    with pytest.raises(LayerError, match=r"no layer 'linea:input'.* Did you mean 'linear'"):
        get_layer(plain(), "linea:input")


def test_compare_measures_a_network_of_functional_steps_by_default() -> None:
    net = Small(two_layers).eval()
    result = cs.compare(
        {"net": net}, images(12), attack="fgsm", attacks=[], eps=0.1, replicates=20, progress=False
    )
    assert result.meta["models"]["net"]["layers"] == ["head:input"]
    assert result.meta["models"]["net"]["penultimate"] == ["head:input"]
    assert result.activations["channel"].nunique() == 6


# ---------------------------------------------------------------- wrapped networks


def test_names_of_wrapped_networks_are_taken_with_and_without_the_wrapper() -> None:
    net = plain()
    parallel = nn.DataParallel(net)
    for model in (net, parallel):
        for name in ("relu2", "module.relu2", "_orig_mod.module.relu2"):
            assert get_layer(model, name) is net.relu2
    inside = nn.Sequential(nn.Identity(), parallel)
    assert get_layer(inside, "1.relu2") is get_layer(inside, "1.module.relu2") is net.relu2
    with pytest.raises(LayerError, match=r"There is no layer 'module\.relu9'"):
        get_layer(net, "module.relu9")


def test_a_compiled_network_is_measured_as_the_network_within() -> None:
    net, data = plain(), images(12)
    options = {"attack": "fgsm", "attacks": [], "eps": 0.1, "replicates": 20, "progress": False}
    bare = cs.compare({"net": net}, data, **options)
    compiled = cs.compare({"net": torch.compile(net)}, data, **options)
    assert compiled.meta["models"] == bare.meta["models"]
    assert compiled.activations.equals(bare.activations)


def test_a_network_that_is_compiled_in_place_is_hooked() -> None:
    net, x = plain(), images()[0]
    net.compile(backend="eager")
    with capture(net, "relu2") as features, torch.no_grad():
        net(x)
    assert features["relu2"].shape == (6, 8, 4, 4)


# ---------------------------------------------------------------- activation checkpointing


class Checkpointed(nn.Module):
    """Runs its blocks under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.rest = plain()[:3], plain()[3:]

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(checkpoint(self.blocks, x, use_reentrant=False))


def test_what_checkpointing_runs_again_does_not_run_twice() -> None:
    torch.manual_seed(0)
    net, (x, y) = Checkpointed().eval(), images()
    plainly = nn.Sequential(net.blocks, net.rest)
    scores = gradient(net, ["blocks", "blocks.conv1", "rest.relu2"], x, y)
    expected = gradient(plainly, ["0", "0.conv1", "1.relu2"], x, y)
    for ours, theirs in zip(scores.values(), expected.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    with ablated(net, {"blocks.conv1": [1]}):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x)
    with ablated(plainly, {"0.conv1": [1]}):
        (wanted,) = torch.autograd.grad(plainly(x).sum(), x)
    torch.testing.assert_close(slope, wanted)


def test_calls_that_checkpointing_mixes_are_refused() -> None:
    class Mixed(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    net, (x, y) = Mixed().eval(), images()
    with pytest.raises(LayerError, match="switch checkpointing off"):
        gradient(net, ["relu@1"], x, y)


# ---------------------------------------------------------------- other people's networks

# Name, side of the images, and the layer that is measured by default.
QUICK = {
    "torchvision:squeezenet1_1": (64, "features"),
    "torchvision:densenet121": (32, "classifier:input"),
    "torchvision:shufflenet_v2_x0_5": (32, "conv5"),
    "torchvision:mnasnet0_5": (32, "layers"),
    "torchvision:regnet_y_400mf": (32, "trunk_output"),
    "timm:vit_tiny_patch16_224": (224, "fc_norm"),
    "timm:resnetv2_50": (64, "norm"),
    "timm:mobilenetv3_small_050": (64, "act2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_default_layer_of_networks_of_libraries(name: str) -> None:
    library, _, arch = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        net = torchvision.models.get_model(arch, weights=None, num_classes=CLASSES).eval()
    else:
        net = timm.create_model(arch, num_classes=CLASSES).eval()
    side, layer = QUICK[name]
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    last = LastLayer.find(net, x)
    with capture_activations(net, last.inputs[0], last.inputs[-1]) as a, torch.no_grad():
        net(x)
    torch.testing.assert_close(a[last.inputs[0]], a[last.inputs[-1]], rtol=1e-4, atol=1e-5)
    assert last.inputs[0] == layer
    assert match_layers(net, [layer], x) == [layer]
    assert layer.removesuffix(":input") in {call.name for call in trace(net, x)[0]}
