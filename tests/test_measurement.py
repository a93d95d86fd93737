"""Measurement: one pass gives what the definitions give, whatever the batches, and leaves the network alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from channelscope.statistics.alignment import measures
from channelscope.statistics.streaming import bootstrap_weights
from channelscope.study.measurement import Measurement, measure
from PIL import Image
from torch import Tensor, nn

import reference
from channelscope.attacks import FGSM, PGD, make_generators
from channelscope.data import ImageFiles, LazySplit, MemorySplit
from channelscope.errors import UserError
from channelscope.layers.features import capture, pool_features
from channelscope.layers.hooks import LayerError
from channelscope.scorers import gradient
from helpers.networks import (
    CLASSES,
    FORMS,
    Brittle,
    CallsAutograd,
    Returns,
    TrainsItself,
    Twice,
    gated,
    mixed,
    plain,
    resnet,
    unchanged,
)

N = 11
ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd-3": PGD(eps=0.2, steps=3, random_start=False)}


def split(channels: int = 1, absent: int | None = None) -> MemorySplit:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (N, channels, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(N) % CLASSES
    return MemorySplit(
        images, labels if absent is None else torch.where(labels == absent, 0, labels)
    )


def write_images(folder: Path) -> None:
    folder.mkdir()
    for index, image in enumerate(split().images):
        Image.fromarray(image[0].numpy()).save(folder / f"{index}.png")


def streamed(folder: Path, workers: int) -> LazySplit:
    """Return the same images, to be read from a folder as they are needed."""
    files = ImageFiles(folder, tuple(f"{k}.png" for k in range(N)), (1, 8, 8))
    return LazySplit(files, split().labels, torch.arange(N), workers=workers)


def measured(net: nn.Module, block: int = 4, **options: Any) -> Measurement:
    """Measure a network, in blocks of so many images, with what is usual here, but for the options."""
    usual = {
        "images": split(),
        "classes": CLASSES,
        "layers": None,
        "attack": ATTACKS["fgsm"],
        "weights": bootstrap_weights(N, 3, seed=0),
        "threshold": 0.01,
        "pictures": True,
        "batch_size": 4,
        "seed": 0,
        "progress": lambda _: None,
    }
    with patch("channelscope.data.blocks.MOST", block):
        return measure(net, **usual | options)


class InDouble(nn.Module):
    """Computes in double precision, so that rounding does not decide about a gradient's sign."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def features_of(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    with torch.no_grad(), capture(net, layer) as features:
        net(x)
    return pool_features(features[layer])


def assert_same(a: Measurement, b: Measurement) -> None:
    for part in ("natural", "adversarial", "relevance"):
        for layer, stats in getattr(a, part).items():
            torch.testing.assert_close(
                stats.magnitude, getattr(b, part)[layer].magnitude, equal_nan=True
            )
            torch.testing.assert_close(
                stats.frequency, getattr(b, part)[layer].frequency, equal_nan=True
            )
    assert all(torch.equal(hits, b.hits[name]) for name, hits in a.hits.items())


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("layers", [("net.relu1",), ("net.conv2", "net.relu2"), None], ids=str)
def test_measurement_is_what_the_definitions_give(layers: tuple[str, ...] | None) -> None:
    net, data = InDouble(plain()), split()
    found = measured(net, layers=layers)
    x, y = next(data.batches(N))
    x_adv = ATTACKS["fgsm"](net, x, y)
    assert found.layers == (layers or ("net.relu2",))
    for layer in found.layers:
        wanted = {
            "natural": features_of(net, x, layer),
            "adversarial": features_of(net, x_adv, layer),
            "relevance": gradient(net, [layer], x, y)[layer],
        }
        for part, value in wanted.items():
            stats = getattr(found, part)[layer]
            for r in range(4):
                naive = reference.channel_statistics(
                    value.tolist(), y.tolist(), found.weights[:, r].tolist(), CLASSES
                )
                wanted_magnitude = torch.tensor(naive["magnitude"], dtype=torch.float64)
                torch.testing.assert_close(stats.magnitude[r], wanted_magnitude, equal_nan=True)
                wanted_frequency = torch.tensor(naive["frequency"], dtype=torch.float64)
                torch.testing.assert_close(stats.frequency[r], wanted_frequency, equal_nan=True)


@pytest.mark.parametrize("name", ATTACKS)
def test_hits_tell_which_images_are_correct(name: str) -> None:
    net, attack = InDouble(plain()), ATTACKS[name]
    found = measured(net, attack=attack)
    x, y = next(split().batches(N))
    assert list(found.hits) == ["natural", name]
    assert torch.equal(found.hits["natural"], net(x).argmax(1) == y)
    assert torch.equal(found.hits[name], net(attack(net, x, y)).argmax(1) == y)


def test_images_that_were_made_before_take_the_attacks_place() -> None:
    net, attack = InDouble(plain()), PGD(eps=0.2, steps=2)
    own = measured(net, attack=attack)
    x, y = next(split().batches(N))
    x = x.double()
    made = attack(net, x, y, make_generators(0, str(attack), range(N)))
    assert_same(measured(net, attack=attack, made=made.numpy()), own)
    still = measured(net, attack=attack, made=x.numpy())
    assert torch.equal(still.hits["pgd-2"], still.hits["natural"])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 11, 100])
def test_measurement_is_the_same_whatever_the_blocks(size: int) -> None:
    net = InDouble(plain())
    attack = PGD(eps=0.1, steps=2, restarts=2)
    layers = ("net.relu1", "net.relu2")
    whole = measured(net, attack=attack, layers=layers)
    assert_same(measured(net, attack=attack, layers=layers, block=size), whole)


def test_images_that_stay_on_disk_are_measured_as_those_in_memory(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    net = InDouble(plain())
    assert_same(measured(net, images=streamed(tmp_path / "images", workers=0)), measured(net))


def test_random_starts_follow_from_the_seed() -> None:
    net, attack = InDouble(plain()), PGD(eps=0.3, steps=1, step=0.01)
    same, again, other = (measured(net, attack=attack, seed=seed) for seed in (1, 1, 2))
    assert_same(same, again)
    layer = same.layers[0]
    assert not torch.equal(same.adversarial[layer].magnitude, other.adversarial[layer].magnitude)


def test_penultimate_relevance_is_the_last_layers_weight() -> None:
    net = resnet()
    found = measured(net)
    assert found.layers == ("layer4",)
    torch.testing.assert_close(
        found.relevance["layer4"].magnitude[0], net.linear.weight.detach().double()
    )


def test_layers_keep_their_order() -> None:
    layers = ("layer2", "layer4", "conv1", "layer3")
    found = measured(resnet(), layers=layers)
    assert found.layers == tuple(found.adversarial) == tuple(found.relevance) == layers


def test_gates_are_attached_while_attacked_and_scored() -> None:
    net = gated()
    seen: list[bool] = []

    class Watching:
        eps = 0.0

        def __call__(
            self, model: nn.Module, x: Tensor, y: Tensor, _: torch.Generator | None = None
        ) -> Tensor:
            seen.extend(gate.detach for gate in model.gates.values())
            return x

    measured(net, attack=Watching())
    assert seen == [False] * 2 * 3
    assert all(gate.detach for gate in net.gates.values())


def test_progress_counts_every_image() -> None:
    done: list[int] = []
    measured(plain(), progress=done.append)
    assert done == [4, 4, 3]


@pytest.mark.parametrize(
    "make",
    [
        plain,
        resnet,
        gated,
        Twice,
        CallsAutograd,
        lambda: Returns(FORMS["tuple"]),
        lambda: Returns(FORMS["dict"]),
    ],
    ids=["plain", "resnet", "cifs", "called twice", "calls autograd", "tuple", "dict"],
)
def test_network_is_left_as_found(make: Callable[[], nn.Module]) -> None:
    net = mixed(make())
    layers = ("conv",) if isinstance(net, CallsAutograd) else None
    with unchanged(net):
        measured(net, layers=layers)


# ---------------------------------------------------------------- what follows from it


def by_hand(labels: list[int], hits: dict[str, list[bool]], weights: Tensor) -> Measurement:
    found = Measurement(labels=torch.tensor(labels), weights=weights, classes=3, threshold=0.01)
    found.hits.update({name: torch.tensor(of) for name, of in hits.items()})
    return found


HITS = {
    "natural": [True, True, True, False, True],
    "fgsm": [True, False, True, False, True],
    "pgd-20": [True, True, False, False, False],
}


def test_worst_case_is_per_image_over_all_attacks() -> None:
    found = by_hand([0, 0, 1, 1, 1], HITS, torch.ones(5, 1))
    assert found.worst.tolist() == [True, False, False, False, False]
    assert found.decided_by == "pgd-20"


def test_accuracy_is_the_weighted_share_of_hits_by_class() -> None:
    found = by_hand(
        [0, 0, 1, 1, 1],
        HITS,
        torch.tensor([[1, 2, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 2]]).float(),
    )
    overall, by_class = found.accuracy(found.hits["fgsm"])
    np.testing.assert_allclose(overall, [3 / 5, 3 / 4, 3 / 4])
    np.testing.assert_allclose(
        by_class, [[1 / 2, 2 / 3, np.nan], [1, 1 / 2, np.nan], [np.nan, 3 / 4, np.nan]]
    )


def test_class_without_images_is_nan_throughout() -> None:
    found = measured(plain(), images=split(absent=3))
    layer = found.layers[0]
    assert (found.natural[layer].count[0] == 0).tolist() == [False, False, False, True, False]
    for name, value in found.measures(layer).items():
        assert np.isnan(value[0]).tolist() == [False, False, False, True, False], name
    assert np.isnan(found.accuracy(found.worst)[1][0]).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_measures_are_those_of_the_magnitudes() -> None:
    found = measured(plain(), layers=("bn1",))
    parts = [
        getattr(found, part)["bn1"].magnitude.numpy()
        for part in ("natural", "adversarial", "relevance")
    ]
    for name, value in measures(*parts).items():
        np.testing.assert_array_equal(found.measures("bn1")[name], value)


# ---------------------------------------------------------------- mistakes


class Convolutional(nn.Sequential):
    """Makes its logits without a linear layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def damaged(part: str) -> nn.Module:
    """Make a network with one number that is none among a part's parameters or statistics."""
    net = plain()
    net.state_dict()[part].view(-1)[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (
            plain,
            {"images": split(3)},
            r"does not take images of shape \(3, 8, 8\) .*: choose data of the kind",
        ),
        (plain, {"classes": 7}, "has 5 classes, the data has 7: choose data of the same classes"),
        (plain, {"layers": ("conv3",)}, "no layer 'conv3' in this network. Did you mean 'conv"),
        (plain, {"layers": ("",)}, None),
        (Twice, {"layers": ("relu",)}, "'relu' runs more than once .* 'relu@0' or 'relu@1'"),
        (Twice, {"layers": ("unused",)}, "'unused' did not run"),
        (lambda: damaged("linear.weight"), {}, "not finite numbers"),
        (lambda: damaged("bn1.running_mean"), {}, "not finite numbers"),
        (TrainsItself, {}, "switches itself to train mode"),
        (Convolutional, {}, "do not come from a linear layer: name the layers to analyse"),
        (Brittle, {}, r"does not take images of shape \(1, 8, 8\) \(broken behind"),
        (lambda: nn.Conv2d(1, 4, 3), {}, r"returns a tensor of shape \(2, 4, 6, 6\), not logits"),
    ],
    ids=[
        "channels",
        "classes",
        "unknown layer",
        "the network itself",
        "called twice",
        "never ran",
        "damaged weights",
        "damaged statistics",
        "trains itself",
        "no linear layer",
        "broken",
        "no logits",
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(
    make: Callable[[], nn.Module], options: dict[str, Any], words: str | None
) -> None:
    net = make()
    if words is None:
        assert measured(net, **options).layers == ("",)
        return
    with unchanged(net), pytest.raises(UserError, match=words):
        measured(net, **options)


def test_layer_that_takes_images_apart_is_refused() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.norm(x.reshape(2 * len(x), -1, 4))
            return self.linear(windows.mean(1).view(len(x), 2, 4).mean(1))

    with pytest.raises(
        UserError, match=r"'norm' returns features of 4 parts of 2 images: name the layer around it"
    ):
        measured(Windows(), layers=("norm",))


def test_layer_without_channels_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.flat = nn.Linear(64, CLASSES), nn.Flatten(0)

        def forward(self, x: Tensor) -> Tensor:
            self.flat(x)
            return self.linear(x.flatten(1))

    with pytest.raises(UserError, match=r"shape \(128,\) have no channels"):
        measured(Mean(), layers=("flat",))


def test_patterns_stand_for_the_layers_that_they_match() -> None:
    assert measured(resnet("resnet18"), layers=("layer4.?",)).layers == ("layer4.0", "layer4.1")


def test_layers_of_a_network_without_a_linear_layer_can_be_named() -> None:
    assert measured(Convolutional(), layers=("0",)).layers == ("0",)


def test_layer_error_is_a_user_error() -> None:
    assert issubclass(LayerError, UserError)
