"""Relevance: the last layer's weights, exactly; gradients, by finite differences and by captum."""

from collections.abc import Callable

import captum.attr
import pytest
import torch
import torchvision
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates import FeatureSelector, Selective, TwoLayerProbe
from channelscope.layers.hooks import LayerError, hooked
from channelscope.layers.penultimate import LastLayer
from channelscope.scorers import gradient, weights
from helpers.networks import (
    CLASSES,
    FORMS,
    CallsAutograd,
    Returns,
    TrainsItself,
    Twice,
    gated,
    images,
    mixed,
    plain,
    resnet,
    unchanged,
)


def from_torchvision(name: str, classes: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=classes).eval()


# Network, its images' channels and size, number of classes, and the first penultimate layer.
PENULTIMATE: dict[str, tuple[Callable[[], nn.Module], int, int, int, str]] = {
    "torchvision resnet18": (lambda: from_torchvision("resnet18", 7), 3, 64, 7, "layer4"),
    "torchvision mobilenet_v3_small": (
        lambda: from_torchvision("mobilenet_v3_small", 3),
        3,
        32,
        3,
        "classifier.1",
    ),
    "resnet10": (resnet, 1, 8, CLASSES, "layer4"),
    "resnet18 of two channels": (lambda: resnet("resnet18", 3, 2, 4), 2, 16, 4, "layer4"),
    "resnet50": (lambda: resnet("resnet50", 1), 1, 8, CLASSES, "layer4"),
    "wrn-10-1": (lambda: resnet("wrn-10-1"), 1, 8, CLASSES, "features"),
    "cifs": (gated, 1, 8, CLASSES, "layer4"),
    "plain": (plain, 1, 8, CLASSES, "relu2"),
    "called twice": (Twice, 1, 8, CLASSES, "relu@1"),
    "dict": (lambda: Returns(FORMS["dict"]), 1, 8, CLASSES, "net.relu2"),
    "dataclass": (lambda: Returns(FORMS["dataclass"]), 1, 8, CLASSES, "net.relu2"),
}
networks = pytest.mark.parametrize("name", PENULTIMATE)


def made(name: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    make, channels, size, classes, layer = PENULTIMATE[name]
    net = make().double()
    x, _ = images(4, channels, size, torch.float64)
    return net, x, torch.arange(4) % classes, layer


def last_linear(name: str, net: nn.Module) -> nn.Module:
    places = {
        "torchvision resnet18": "fc",
        "torchvision mobilenet_v3_small": "classifier.3",
        "cifs": "cnn.linear",
    }
    places |= {"dict": "net.linear", "dataclass": "net.linear"}
    return net.get_submodule(places.get(name, "linear"))


# ---------------------------------------------------------------- the penultimate layer


@networks
def test_gradient_equals_the_last_layers_weights_at_the_penultimate_layer(name: str) -> None:
    net, x, y, layer = made(name)
    scores = weights(net, [layer], x, y)[layer]
    assert torch.equal(scores, last_linear(name, net).weight[y])
    torch.testing.assert_close(gradient(net, [layer], x, y)[layer], scores)


@networks
def test_last_layer_is_found_with_its_inputs_and_nothing_changes(name: str) -> None:
    net, x, _, layer = made(name)
    with unchanged(mixed(net)):
        last = LastLayer.find(net, x[:2])
    assert last.inputs[0] == layer
    assert last.linear is last_linear(name, net)


def test_penultimate_layers_are_named_from_the_feature_maps_down() -> None:
    net, (x, _) = from_torchvision("resnet18", 4), images(2, 3, 64)
    assert LastLayer.find(net, x).inputs == (
        "layer4",
        "layer4.1",
        "layer4.1.relu@1",
        "avgpool",
        "fc:input",
    )


def test_raw_features_of_the_last_gated_layer_are_not_penultimate_but_the_gated_ones_are() -> None:
    inputs = LastLayer.find(gated(), images()[0]).inputs
    assert {"layer4", "layer4.1.gated"} <= set(inputs)
    assert "layer4.1" not in inputs


def test_last_layer_is_found_in_a_network_in_train_mode_with_dropout() -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ).train()
    assert LastLayer.find(net, images(2)[0]).inputs == ("2", "3", "4:input")
    assert net[3].training


def test_weights_are_refused_for_other_layers_with_the_penultimate_ones_named() -> None:
    net, (x, y) = resnet(), images()
    with pytest.raises(
        UserError, match=r"'layer3' is not the penultimate one.* choose 'layer4' or 'layer4.0'"
    ):
        weights(net, ["layer3"], x, y)


def test_weights_are_refused_where_no_layer_returns_what_the_last_one_reads() -> None:
    class FirstPosition(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z[:, :, 0, 0] * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(FirstPosition()(self.conv(x)))

    net, x, y = Net().eval(), torch.rand(6, 3, 8, 8), torch.arange(6) % CLASSES
    with pytest.raises(
        UserError, match=r"layer weighs: choose 'head:input', or score by gradient\.$"
    ):
        weights(net, ["conv"], x, y)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (plain, "bn1"),
        (plain, "flatten"),
        (resnet, "layer2"),
        (Twice, "relu@0"),
        (gated, "layer3"),
        (gated, "layer4.0"),
        (gated, "layer4.0.gated"),
        (gated, "layer4.1"),
    ],
)
def test_gradient_is_how_the_logit_changes_with_the_activation(
    make: Callable[[], nn.Module], layer: str
) -> None:
    net, (x, y) = make().double(), images(3, dtype=torch.float64)
    scores = gradient(net, [layer], x, y)[layer]

    def own_logit(channel: int, by: float) -> Tensor:
        """Move one channel's activation in every position, and with it the mean."""
        nudge = torch.zeros(scores.shape[1], dtype=torch.float64)
        nudge[channel] = by
        with (
            torch.no_grad(),
            hooked(net, {layer: lambda z: z + nudge.view(-1, *[1] * (z.ndim - 2))}),
        ):
            return net(x).gather(1, y.unsqueeze(1)).squeeze(1)

    h = 1e-6
    slopes = [(own_logit(c, h) - own_logit(c, -h)) / (2 * h) for c in range(scores.shape[1])]
    torch.testing.assert_close(scores, torch.stack(slopes, 1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "layer"), [(plain, "bn1"), (plain, "conv2"), (resnet, "layer1.0.bn2")]
)
def test_gradient_agrees_with_captum(make: Callable[[], nn.Module], layer: str) -> None:
    net, (x, y) = make().double(), images(4, dtype=torch.float64)
    module = net.get_submodule(layer)
    if isinstance(
        net, nn.Sequential
    ):  # captum keeps no copy: what is in place would change what it saw
        for part in net:
            if isinstance(part, nn.ReLU):
                part.inplace = False
    product = captum.attr.LayerGradientXActivation(net, module).attribute(x, target=y)
    z = captum.attr.LayerActivation(net, module).attribute(x)
    assert (z != 0).all()
    torch.testing.assert_close(gradient(net, [layer], x, y)[layer], (product / z).sum((2, 3)))


def test_layers_scored_together_are_scored_as_alone() -> None:
    net, (x, y) = gated(), images()
    layers = ["layer4", "layer1", "conv1", "layer4.1.gated", "linear"]
    together = gradient(net, layers, x, y)
    assert list(together) == layers
    for layer in layers:
        torch.testing.assert_close(together[layer], gradient(net, [layer], x, y)[layer])


def test_relevance_of_the_logits_themselves_is_their_label() -> None:
    net, (x, y) = plain(), images()
    assert torch.equal(
        gradient(net, ["linear"], x, y)["linear"], nn.functional.one_hot(y, CLASSES).float()
    )


def test_layer_that_the_logits_do_not_depend_on_is_irrelevant() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.side = plain(), nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), self.side(x)

    x, y = images()
    assert torch.equal(gradient(Idle(), ["side"], x, y)["side"], torch.zeros(6, 3))


def test_relevance_includes_the_masks_own_gradient_though_the_gate_is_detached() -> None:
    net, (x, y) = gated(), images()
    detached = gradient(net, ["layer4.0"], x, y)["layer4.0"]
    for gate in net.gates.values():
        assert gate.detach
        gate.detach = False
    torch.testing.assert_close(detached, gradient(net, ["layer4.0"], x, y)["layer4.0"])


@pytest.mark.parametrize("make", [plain, gated, Twice, CallsAutograd])
def test_scoring_leaves_the_network_and_the_images_as_found(make: Callable[[], nn.Module]) -> None:
    net, (x, y) = mixed(make()), images()
    layer = "conv1" if not isinstance(net, CallsAutograd) else "conv"
    with unchanged(net):
        scores = gradient(net, [layer], x, y)[layer]
    assert not x.requires_grad
    assert scores.abs().max() > 0


def test_frozen_networks_are_scored_too() -> None:
    net, (x, y) = plain(), images()
    wanted = gradient(net, ["bn1"], x, y)["bn1"]
    net.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(gradient(net, ["bn1"], x, y)["bn1"], wanted)


def test_one_call_of_a_module_called_twice_is_scored() -> None:
    net, (x, y) = Twice(), images()
    with pytest.raises(LayerError, match="'relu@0' or 'relu@1'"):
        gradient(net, ["relu"], x, y)
    assert gradient(net, ["relu@1"], x, y)["relu@1"].shape == (6, 4)


def test_no_layers_have_no_scores() -> None:
    net, (x, y) = plain(), images()
    assert gradient(net, [], x, y) == weights(net, [], x, y) == {}


def test_network_that_cuts_its_gradient_is_refused() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.linear(self.conv(x).mean((2, 3)))

    with pytest.raises(UserError, match="gradient is cut"):
        gradient(Cut(), ["conv"], *images())


def test_network_that_switches_itself_to_train_mode_is_refused() -> None:
    net, (x, y) = TrainsItself(), images()
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        gradient(net, ["net.bn1"], x, y)


def test_scores_of_a_gate_on_a_torchvision_network_are_finite() -> None:
    net = Selective(
        from_torchvision("mobilenet_v3_small", 3),
        {"features.12": FeatureSelector(TwoLayerProbe(576, 3))},
    )
    x, y = images(2, 3, 32)
    scores = gradient(net, ["features.12", "features.12.gated"], x, y % 3)
    assert all(score.isfinite().all() and score.shape == (2, 576) for score in scores.values())
