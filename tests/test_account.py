"""The damage account: planted networks, a naive integral, and what must always hold."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
import reference
from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe
from channelscope.layers.penultimate import LastLayer
from channelscope.study.account import (
    BOUND,
    Account,
    Features,
    Pairs,
    Path,
    Tail,
    capture_masks,
    capture_pairs,
    integrate,
    pair_images,
    weigh_channels,
)
from helpers.networks import CLASSES, images, plain, resnet, unchanged
from helpers.planted import Chain, Chooses, Shift, Skip, Tokens, colours, masked


def pair(network: nn.Module, x: Tensor, y: Tensor, *amounts: float) -> Pairs:
    """Attack images by known amounts; all of them break."""
    pairs = pair_images(network, x, Shift(*amounts)(network, x, y), y)
    assert pairs.broken.all()
    return pairs


def account(
    network: nn.Module, layer: str, pairs: Pairs, *, hold: bool = False, bound: float = BOUND
) -> Account:
    features = capture_pairs(network, [layer], pairs)[layer]
    masks = capture_masks(network, layer, pairs) if hold else None
    return integrate(
        Path(make_tail(network, layer, pairs, features), pairs, features, masks), bound
    )


def make_tail(network: nn.Module, layer: str, pairs: Pairs, features: Features) -> Tail:
    return Tail(network, layer, pairs.x_adv, features.adversarial, pairs.adversarial)


def repair(network: nn.Module, layer: str, pairs: Pairs, channels: Sequence[int]) -> float:
    """Put channels back; return the share of the images that are right again."""
    features = capture_pairs(network, [layer], pairs)[layer]
    shape = len(pairs), features.natural.shape[features.axis]
    restored = torch.zeros(shape, dtype=torch.bool)
    restored[:, list(channels)] = True
    tail = make_tail(network, layer, pairs, features)
    with torch.no_grad():
        logits = tail(features.mix(restored), torch.arange(len(pairs)))
    return float((logits.argmax(1) == pairs.y).double().mean())


def expect_only(result: Account, pairs: Pairs, channels: Sequence[int]) -> None:
    """Check that the damage is these channels' and no other's, to a millionth of it."""
    damage = pairs.damage
    rest = torch.ones(result.channels.shape[1], dtype=torch.bool)
    rest[list(channels)] = False
    torch.testing.assert_close(result.channels[:, list(channels)].sum(1), damage, rtol=1e-6, atol=0)
    assert (result.channels[:, rest].abs() <= 1e-6 * damage[:, None]).all()


# ---------------------------------------------------------------- networks whose account is known


@pytest.mark.parametrize("layer", ["conv", "relu"])
@pytest.mark.parametrize("inplace", [False, True])
def test_fragile_channel_has_all_the_damage(layer: str, inplace: bool) -> None:
    """Colour 2 alone is attacked; its channel falls to 0 on the way, behind an in-place ReLU."""
    network = Chain([1.0, -1.0, 5.0], [0.0, 0.0, 0.45], inplace=inplace).eval()
    pairs = pair(network, *colours(0.3, 0.5, 0.6), 0.0, 0.0, -0.3)
    with unchanged(network):
        result = account(network, layer, pairs)
    expect_only(result, pairs, [2])
    assert (result.error <= BOUND).all()
    assert repair(network, layer, pairs, [2]) == 1
    assert repair(network, layer, pairs, [0, 1]) == 0


def test_channels_that_cancel_have_damages_of_opposite_sign() -> None:
    """Colour 0 falls and costs 3 x 0.2; colour 1 falls too, and gives back 1 x 0.1."""
    network = Chain([3.0, -1.0, 0.5], [0.0, 0.0, 0.0]).eval()
    pairs = pair(network, *colours(0.25, 0.5, 0.1), -0.2, -0.1, 0.0)
    for layer in ("conv", "relu"):
        result = account(network, layer, pairs)
        expected = torch.tensor([0.6, -0.1, 0.0]).expand_as(result.channels)
        torch.testing.assert_close(result.channels, expected.double(), rtol=0, atol=1e-6)
        assert repair(network, layer, pairs, [0]) == 1
        assert repair(network, layer, pairs, [1, 2]) == 0


def test_damage_that_goes_around_a_layer_is_not_its_channels() -> None:
    network = Skip([2.0, 1.0], [1.0, 3.0]).eval()
    x, y = colours(0.5, 0.5)
    pairs = pair(network, x, y, -0.3, -0.3)
    for layer, weights in {"branch": (2.0, 1.0), "skip": (1.0, 3.0), "sum": (3.0, 4.0)}.items():
        result = account(network, layer, pairs)
        expected = 0.3 * torch.tensor(weights).double().expand_as(result.channels)
        torch.testing.assert_close(result.channels, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(result.passing, expected.sum(1), rtol=0, atol=1e-6)
        assert (result.error <= 1e-4).all()
    torch.testing.assert_close(pairs.damage, result.passing, rtol=0, atol=1e-6)
    assert repair(network, "sum", pairs, [0, 1]) == 1


def test_damage_through_a_mask_is_the_features_that_it_follows_or_the_masks_own() -> None:
    """The attack lowers channel 1, which counts for nothing but makes the mask of channel 0."""
    network = masked([4.0, 0.0, -1.0], mask_of=0, follows=1).eval()
    pairs = pair(network, *colours(0.5, 0.6, 0.5), 0.0, -0.5, 0.0)
    attached = account(network, "relu", pairs)
    expect_only(attached, pairs, [1])
    held = account(network, "relu", pairs, hold=True)
    assert (held.channels.abs() <= 1e-6).all()
    torch.testing.assert_close(held.masks["relu"][:, 0], pairs.damage, rtol=1e-6, atol=0)
    assert (held.masks["relu"][:, 1:].abs() <= 1e-6).all()
    behind = account(network, "relu.gated", pairs, hold=True)
    assert behind.masks == {}
    expect_only(behind, pairs, [0])
    assert repair(network, "relu", pairs, [1]) == 1
    assert repair(network, "relu", pairs, [0, 2]) == 0


def test_mask_that_jumps_is_refused_when_attached_and_adds_up_when_held() -> None:
    """The probe's answer decides which channel is let through, and the attack changes it."""
    network = Chooses([6.0, -4.0, 0.0], [[4.0, -4.0, 0.0], [-4.0, 4.0, 4.0]]).eval()
    pairs = pair(network, *colours(0.5, 0.4, 0.0), 0.0, 0.0, 0.5)
    with cs.attached(network):
        attached = account(network, "relu", pairs)
        held = account(network, "relu", pairs, hold=True)
    assert (attached.error > 0.9).all()
    assert (held.error <= BOUND).all()
    total = held.channels.sum(1) + held.masks["relu"].sum(1)
    torch.testing.assert_close(total, pairs.damage, rtol=1e-5, atol=0)
    assert (held.channels[:, 2].abs() <= 1e-6).all()


def test_token_features() -> None:
    network = Tokens([5.0, 1.0, -2.0]).eval()
    pairs = pair(network, *colours(0.4, 0.1, 0.3), -0.4, 0.0, 0.0)
    for layer in ("embed", "act", "mix"):
        expect_only(account(network, layer, pairs), pairs, [0])
        assert repair(network, layer, pairs, [0]) == 1
        assert repair(network, layer, pairs, [1, 2]) == 0


# ---------------------------------------------------------------- a naive integral


def attacked(network: nn.Module, n: int = 24) -> Pairs:
    """Return images that an attack breaks; the labels are what the network answers."""
    x, _ = images(n, dtype=next(network.parameters()).dtype)
    with torch.no_grad():
        y = network(x).argmax(1)
    pairs = pair_images(network, x, cs.PGD(eps=0.2, steps=5)(network, x, y), y)
    assert pairs.broken.sum() >= 4
    return pairs.select(pairs.broken)


def lively(network: nn.Module) -> nn.Module:
    """Return an untrained network that answers with several classes."""
    network = network.double().eval().requires_grad_(False)
    x, _ = images(60, dtype=torch.float64)
    LastLayer.find(network, x).linear.bias -= network(x).mean(0)
    return network


@pytest.mark.parametrize("layer", ["conv1", "relu1", "conv2"])
def test_account_is_that_of_a_naive_integral(layer: str) -> None:
    network = lively(plain())
    pairs = attacked(network)
    exact = account(network, layer, pairs, bound=1e-6)
    quick = account(network, layer, pairs)
    features = capture_pairs(network, [layer], pairs)[layer]
    at = list(dict(network.named_children())).index(layer) + 1
    for i in range(2):
        naive = reference.damage_account(
            network[at:],
            features.natural[i],
            features.adversarial[i],
            int(pairs.y[i]),
            int(pairs.rivals[i]),
            steps=400,
        )
        gross = naive.abs().sum()
        assert (exact.channels[i] - naive).abs().sum() <= 4e-3 * gross
        assert (quick.channels[i] - naive).abs().sum() <= 2 * BOUND * gross


@pytest.mark.parametrize("make", [plain, resnet])
def test_account_adds_up_to_the_damage_and_is_exact_at_the_penultimate_layer(make) -> None:
    network = lively(make())
    pairs = attacked(network)
    last = LastLayer.find(network, pairs.x)
    for layer in (*last.inputs, "conv1"):
        result = account(network, layer, pairs)
        assert (result.error <= BOUND).all()
        short = (result.channels.sum(1) - pairs.damage).abs()
        assert (short <= (result.error + 1e-9) * pairs.damage).all()
    penultimate = last.inputs[0]
    features = capture_pairs(network, [penultimate], pairs)[penultimate]
    exact = weigh_channels(last, pairs, features)
    assert (exact.error <= 1e-4).all()
    integrated = account(network, penultimate, pairs)
    torch.testing.assert_close(integrated.channels, exact.channels)


def test_held_masks_and_features_add_up_at_every_layer_of_a_network_with_gates() -> None:
    gates = {
        "relu1": FeatureSelector(TwoLayerProbe(6, CLASSES), imgf="sigmoid", detach=False),
        "relu2": FeatureSelector(LinearProbe(8, CLASSES), imgf="sigmoid"),
    }
    network = lively(Selective(plain(), gates))
    pairs = attacked(network)
    for layer, behind in {
        "conv1": ["relu1", "relu2"],
        "relu1": ["relu1", "relu2"],
        "relu1.gated": ["relu2"],
        "relu2": ["relu2"],
        "pool": [],
    }.items():
        with unchanged(network):
            held = account(network, layer, pairs, hold=True, bound=0.01)
        assert list(held.masks) == behind
        total = held.channels.sum(1) + sum(mask.sum(1) for mask in held.masks.values())
        assert ((total - pairs.damage).abs() <= 0.01 * pairs.damage).all()
