"""Capture: the features that the layer returned, of any network left as found; and ablation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.layers.features import ablated, capture, capture_activations, pool_features
from channelscope.layers.hooks import LayerError, hooked
from helpers.networks import (
    CLASSES,
    FORMS,
    Brittle,
    CallsAutograd,
    Returns,
    TrainsItself,
    Twice,
    gated,
    hooks,
    images,
    mixed,
    plain,
    resnet,
    unchanged,
)


def test_captured_features_are_what_the_layer_returned() -> None:
    net, (x, _) = resnet(), images()
    with capture(net, "layer1", "layer2.0.conv1") as features:
        net(x)
    z = net.layer1(net.bn1(net.conv1(net.normalise(x))).relu())
    assert torch.equal(features["layer1"], z)
    assert torch.equal(features["layer2.0.conv1"], net.layer2[0].conv1(z))


def test_each_forward_pass_refills_the_features() -> None:
    net, (x, _) = plain(), images()
    with capture(net, "conv1") as features:
        net(x)
        net(x[:2])
    assert torch.equal(features["conv1"], net.conv1(x[:2]))


@pytest.mark.parametrize("layer", ["bn1", "conv2", "linear"])
def test_pooled_activations_are_those_of_the_captured_features(layer: str) -> None:
    net, (x, _) = plain(), images()
    with capture(net, layer) as features, capture_activations(net, layer) as found:
        logits = net(x)
    assert torch.equal(found[layer], pool_features(features[layer]))
    assert torch.equal(logits, net(x))


def test_pooled_activations_do_not_keep_the_features() -> None:
    net, (x, _) = plain(), images()
    with torch.no_grad(), capture_activations(net, "conv1") as found:
        net(x)
    assert (
        found["conv1"].untyped_storage().nbytes()
        == found["conv1"].numel() * found["conv1"].element_size()
    )


def test_nothing_captured_is_nothing_done() -> None:
    net, (x, _) = plain(), images()
    with capture(net) as features:
        net(x)
    assert features == {}


@pytest.mark.parametrize("layer", ["bn1", "conv2"])
def test_relu_in_place_behind_the_layer_does_not_reach_the_captured_features(layer: str) -> None:
    net, (x, _) = plain(), images()
    with capture(net, layer) as features:
        logits = net(x)
    assert features[layer].min() < 0
    assert torch.equal(logits, net(x))


def test_captured_features_carry_gradients_both_ways() -> None:
    net, (x, y) = plain().double(), images(dtype=torch.float64)
    x.requires_grad_()
    with capture(net, "bn1") as features:
        logits = net(x)
    own = logits.gather(1, y.unsqueeze(1)).sum()
    z = features["bn1"]
    slope, through = torch.autograd.grad(own, [z, x], retain_graph=True)
    (wanted,) = torch.autograd.grad(net(x).gather(1, y.unsqueeze(1)).sum(), x)
    torch.testing.assert_close(through, wanted)
    torch.testing.assert_close(torch.autograd.grad(z, x, slope)[0], wanted)


@pytest.mark.parametrize("make", [plain, gated, Twice, CallsAutograd])
def test_network_is_left_as_found(make: Callable[[], nn.Module]) -> None:
    net, (x, _) = mixed(make()).eval(), images()
    name = next(
        name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)
    ).removeprefix("cnn.")
    with unchanged(net), capture(net, name):
        net(x)


@pytest.mark.parametrize(
    ("make", "layer", "quiet"),
    [
        (plain, "relu2", torch.no_grad),
        (plain, "relu2", torch.inference_mode),
        (gated, "layer4", torch.no_grad),
        (gated, "layer4", torch.inference_mode),
        (
            CallsAutograd,
            "conv",
            torch.no_grad,
        ),  # such a network has no gradient at all in inference mode
    ],
)
def test_capture_works_without_autograd(
    make: Callable[[], nn.Module], layer: str, quiet: Callable[[], torch.no_grad]
) -> None:
    net, (x, _) = make().eval(), images()
    with capture(net, layer) as features:
        net(x)
    wanted = features[layer]
    with quiet(), capture(net, layer) as features:
        net(x)
    torch.testing.assert_close(features[layer], wanted)
    assert not features[layer].requires_grad


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_networks_that_return_anything_can_be_captured(
    form: Callable[[Tensor, Tensor], object],
) -> None:
    net, (x, _) = Returns(form), images()
    with capture(net, "net.relu2", "net") as features:
        net(x)
    assert features["net.relu2"].shape == (6, 8, 4, 4)
    assert torch.equal(features["net"], net.net(x))


def test_call_of_a_module_called_twice_is_captured_by_its_index() -> None:
    net, (x, _) = Twice(), images()
    with capture(net, "relu@0", "relu@1") as features:
        net(x)
    first = net.conv1(x).relu()
    assert torch.equal(features["relu@0"], first)
    assert torch.equal(features["relu@1"], net.conv2(first).relu())


def test_module_called_twice_is_not_captured_without_an_index() -> None:
    net = Twice()
    with (
        capture(net, "relu"),
        pytest.raises(LayerError, match=r"more than once .* 'relu@0' or 'relu@1'"),
    ):
        net(images()[0])


def test_layer_that_never_ran_is_not_captured_in_silence() -> None:
    net = Twice()
    with capture(net, "unused"), pytest.raises(LayerError, match="did not run"):
        net(images()[0])


def test_no_hook_is_left_after_an_exception_in_the_middle_of_a_capture() -> None:
    net = Brittle()
    with pytest.raises(RuntimeError, match="broken"), capture(net, "conv", "relu") as features:
        net(images()[0])
    assert set(features) == {"conv", "relu"}
    assert hooks(net) == 0


def test_no_hook_is_left_where_one_of_the_layers_is_unknown() -> None:
    net = plain()
    with pytest.raises(LayerError, match="Did you mean 'conv"), capture(net, "conv1", "conv9"):
        pass
    assert hooks(net) == 0


def test_capture_leaves_a_network_that_trains_itself_to_others() -> None:
    net = TrainsItself()
    with capture(net, "net.conv1") as features:
        net(images()[0])
    assert features["net.conv1"].shape == (6, 6, 8, 8)


# ---------------------------------------------------------------- activations


def test_activations_are_spatial_means() -> None:
    z = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    naive = [[sum(z[i, c].flatten().tolist()) / 20 for c in range(3)] for i in range(2)]
    torch.testing.assert_close(pool_features(z), torch.tensor(naive, dtype=torch.float64))


def test_activations_of_a_vector_layer_are_its_values() -> None:
    z = torch.rand(2, CLASSES)
    assert torch.equal(pool_features(z), z)


def test_activations_of_channels_last_are_means_over_the_axes_between() -> None:
    z = torch.rand(2, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(pool_features(z, 3), pool_features(z.permute(0, 3, 1, 2)))
    torch.testing.assert_close(pool_features(z[:, 0], 2), z[:, 0].mean(1))


def tokens() -> nn.Module:
    """Make a network whose last features are tokens, channels last."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(36, 5), nn.Conv1d(4, CLASSES, 5), nn.Flatten()
    )


def test_layers_are_pooled_and_ablated_by_their_own_layout() -> None:
    net, (x, _) = tokens(), images()
    z = net[0](x)
    with torch.no_grad(), capture_activations(net, "0", "2") as found:
        net(x)
    torch.testing.assert_close(found["0"], z.mean((2, 3)))
    torch.testing.assert_close(found["2"], net[2](z.flatten(2)).mean(1))
    with torch.no_grad(), ablated(net, {"2": [3]}), capture(net, "2") as features:
        net(x)
    assert not features["2"][:, :, 3].any()
    assert features["2"][:, :, [0, 1, 2, 4]].all()


# ---------------------------------------------------------------- ablation


def by_hand(z: Tensor, rows: list[list[int]], values: list[float]) -> Tensor:
    """Write the values of the suppressed channels in, image by image and channel by channel."""
    z = z.clone()
    for i, channels in enumerate(rows):
        for c in channels:
            z[i, c] = values[c]
    return z


@pytest.mark.parametrize("layer", ["bn1", "flatten"], ids=["maps", "vector"])
@pytest.mark.parametrize("to", ["zero", "means"])
def test_ablated_channels_have_the_value_and_the_others_are_left(layer: str, to: str) -> None:
    net, (x, _) = plain(), images()
    with torch.no_grad(), capture(net, layer) as features:
        net(x)
    z = features[layer]
    means = pool_features(z).mean(0)
    suppressed = [2, 5]
    values = means.tolist() if to == "means" else [0.0] * z.shape[1]
    options = {"to": {layer: means}} if to == "means" else {}
    with (
        torch.no_grad(),
        ablated(net, {layer: suppressed}, **options),
        capture(net, layer) as features,
    ):
        logits = net(x)
    assert torch.equal(features[layer], by_hand(z, [suppressed] * len(x), values))
    with torch.no_grad(), hooked(net, {layer: lambda z: by_hand(z, [suppressed] * len(x), values)}):
        assert torch.equal(net(x), logits)


def test_every_image_can_have_channels_of_its_own() -> None:
    net, (x, _) = plain(), images(4)
    rows = [[0], [], [1, 2], [5]]
    mask = torch.tensor([[c in channels for c in range(6)] for channels in rows])
    with torch.no_grad(), capture(net, "conv1") as features:
        net(x)
    wanted = by_hand(features["conv1"], rows, [0.0] * 6)
    with torch.no_grad(), ablated(net, {"conv1": mask}), capture(net, "conv1") as features:
        net(x)
        assert torch.equal(features["conv1"], wanted)
        net(x[:2])
        assert torch.equal(features["conv1"], wanted[:2])


def test_numbers_and_a_mask_suppress_the_same_in_several_layers() -> None:
    net, (x, _) = resnet(), images()
    with ablated(net, {"layer1": [1], "layer3": [0, 7]}):
        by_number = net(x)
    masks = {
        "layer1": torch.arange(2) == 1,
        "layer3": torch.isin(torch.arange(8), torch.tensor([0, 7])),
    }
    with ablated(net, masks):
        assert torch.equal(net(x), by_number)
    plainly = net(x)
    with ablated(net, dict.fromkeys(masks, ())):
        assert torch.equal(net(x), plainly)


def features_of(net: nn.Module, x: Tensor) -> Tensor:
    return net.layer1(net.bn1(net.conv1(net.normalise(x))).relu())


def test_raw_features_are_ablated_ahead_of_the_gate_and_gated_ones_behind_it() -> None:
    net, (x, _) = gated(), images()
    with torch.no_grad():
        untouched = net.probed(x)
        alive = int(pool_features(untouched.features["layer4.0"]).mean(0).argmax())
        with ablated(net, {"layer4.0": [alive]}):
            ahead = net.probed(x)
        with ablated(net, {"layer4.0.gated": [alive]}):
            behind = net.probed(x)
    assert not ahead.features["layer4.0"][:, alive].any()
    assert not torch.allclose(ahead.masks["layer4.0"], untouched.masks["layer4.0"])
    assert torch.equal(behind.features["layer4.0"], untouched.features["layer4.0"])
    assert torch.equal(behind.masks["layer4.0"], untouched.masks["layer4.0"])
    assert not torch.equal(behind.logits, untouched.logits)


def test_attack_sees_the_ablation() -> None:
    net, (x, y) = plain(), images()

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return net[3:](
                torch.relu(net[:2](x) * torch.tensor([0.0, 1, 0, 1, 0, 1]).view(-1, 1, 1))
            )

    attack = PGD(eps=0.1, steps=3, random_start=False)
    with ablated(net, {"bn1": [0, 2, 4]}):
        found = attack(net, x, y)
    torch.testing.assert_close(found, attack(ByHand(), x, y))
    assert not torch.allclose(found, attack(net, x, y))


def test_ablation_leaves_the_network_as_found() -> None:
    net, (x, _) = mixed(gated()).eval(), images()
    with unchanged(net), ablated(net, {"layer4.0": [3]}):
        net(x)


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ([6], r"'conv1' has 6 channels, from 0 up: there is no channel 6"),
        ([-1], "there is no channel -1"),
        (
            torch.zeros(5, dtype=torch.bool),
            r"shape \(5,\), and there are 6 images with 6 channels: give a row",
        ),
        (
            torch.zeros(4, 6, dtype=torch.bool),
            r"shape \(4, 6\), and there are 6 images with 6 channels",
        ),
    ],
)
def test_channels_that_a_layer_does_not_have_are_refused(
    channels: list[int] | Tensor, words: str
) -> None:
    net = plain()
    with ablated(net, {"conv1": channels}), pytest.raises(UserError, match=words):
        net(images()[0])


@pytest.mark.usefixtures("unchecked")
def test_a_channel_between_two_is_refused_not_rounded() -> None:
    net = plain()
    with (
        ablated(net, {"conv1": [1.5]}),
        pytest.raises(UserError, match=r"there is no channel 1\.5"),
    ):  # type: ignore[list-item]
        net(images()[0])
