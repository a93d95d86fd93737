"""cs.relevance: scores averaged over each class's images, of any scorer, network, layer and data."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
import reference
from channelscope.data import as_dataset
from channelscope.errors import UserError
from channelscope.layers.features import capture
from channelscope.networks import Architecture
from channelscope.scorers import SCORERS, gradient, relevance, score_layers
from channelscope.statistics.streaming import bootstrap_weights
from channelscope.weights import Checkpoint
from networks import CLASSES, gated, images, mixed, plain, resnet, unchanged


def naive(scores: Tensor, y: Tensor) -> Tensor:
    return torch.stack([scores[y == k].double().mean(0) for k in range(CLASSES)])


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    return images(n)[0], torch.arange(n) % CLASSES


@pytest.mark.usefixtures("small_blocks")
def test_relevance_is_the_mean_of_the_scores_over_a_class() -> None:
    net, (x, y) = plain(), data()
    found = relevance(net, "bn1", (x, y), progress=False)
    assert found.shape == (CLASSES, 6)
    torch.testing.assert_close(
        found, naive(gradient(net, ["bn1"], x, y)["bn1"], y), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("scorer", ["gradient-x-activation", "ablation", "weights", "grad-cam"])
def test_blocks_do_not_matter(scorer: str, request: pytest.FixtureRequest) -> None:
    net, xy = plain(), data()
    one = relevance(net, "relu2", xy, scorer=scorer, progress=False)
    request.getfixturevalue("small_blocks")
    torch.testing.assert_close(
        relevance(net, "relu2", xy, scorer=scorer, progress=False), one, rtol=1e-4, atol=1e-7
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scorer", ["ablation-mean", "ablation-class-mean"])
def test_ablation_sets_channels_to_their_means_over_all_images_whatever_the_blocks(
    scorer: str,
) -> None:
    net, (x, y) = plain().double(), data()
    with torch.no_grad(), capture(net, "relu1") as features:
        net(x.double())
    z = features["relu1"]
    means = reference.means_by_class(z.mean((2, 3)).tolist(), y.tolist())
    overall = [sum(column) / CLASSES for column in zip(*means.values(), strict=True)]
    values = [overall if scorer == "ablation-mean" else means[int(label)] for label in y]
    wanted = torch.tensor(reference.ablation(net[3:], z, y.tolist(), values), dtype=torch.float64)
    found = relevance(net, "relu1", (x, y), scorer=scorer, progress=False)
    torch.testing.assert_close(found, naive(wanted, y))


def test_patterns_and_several_names_give_a_dict() -> None:
    net, xy = gated(), data()
    found = relevance(net, ["layer1", "layer4.*"], xy, progress=False)
    assert isinstance(found, dict)
    assert {layer: tuple(of_layer.shape) for layer, of_layer in found.items()} == {
        "layer1": (CLASSES, 2),
        "layer4.0": (CLASSES, 16),
        "layer4.1": (CLASSES, 16),
    }
    assert list(relevance(net, "layer4.?", xy, progress=False)) == ["layer4.0", "layer4.1"]
    assert torch.equal(relevance(net, "layer1", xy, progress=False), found["layer1"])


def test_some_of_the_images_keep_the_classes_shares() -> None:
    net, (x, y) = plain(), data(40)
    few = relevance(net, "bn1", (x, y), images=10, progress=False)
    assert few.isfinite().all()
    assert not torch.allclose(few, relevance(net, "bn1", (x, y), progress=False))
    assert torch.equal(few, relevance(net, "bn1", (x, y), images=10, progress=False))


def test_class_without_images_has_none() -> None:
    x, _ = images(6)
    found = relevance(plain(), "bn1", (x, torch.tensor([0, 0, 2, 2, 2, 0])), progress=False)
    assert found[[0, 2]].isfinite().all()
    assert found[[1, 3, 4]].isnan().all()


def test_any_scorer_is_taken() -> None:
    def constant(model: nn.Module, layers: list[str], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {layer: y.unsqueeze(1).expand(-1, 3).float() for layer in layers}

    found = relevance(plain(), "bn1", data(), scorer=constant, progress=False)
    assert torch.equal(found, torch.arange(CLASSES).double().unsqueeze(1).expand(-1, 3))


def test_checkpoints_are_taken_by_path(tmp_path: Path) -> None:
    architecture = Architecture(arch="resnet10", width=2, classes=10, mean=(0.4,), std=(0.3,))
    net = architecture.build()
    Checkpoint(architecture=architecture, state=net.state_dict(), image=(1, 8, 8)).save(
        tmp_path / "net.pt"
    )
    found = relevance(
        tmp_path / "net.pt", "layer4", "digits", scorer="weights", images=20, progress=False
    )
    torch.testing.assert_close(found.float(), net.linear.weight)


def test_the_network_is_left_as_found() -> None:
    net = mixed(gated())
    with unchanged(net):
        relevance(net, "layer4.0", data(), scorer="probe", progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "layer9"}, "There is no layer 'layer9' in this network"),
        ({"layer": "layer9.*"}, "No layer's name matches"),
        ({"layer": "layer1", "scorer": "weights"}, "'layer1' is not the penultimate one"),
        ({"layer": "layer1", "scorer": "probe"}, "has no gates"),
        ({"layer": "layer1", "scorer": "slope"}, "There is no scorer 'slope'"),
        ({"layer": "layer1", "images": 0}, "at least one image"),
        ({"layer": "layer1", "images": 21}, "Cannot choose 21 images"),
        ({"layer": "layer1", "batch_size": 0}, "images per batch"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        relevance(resnet(), data=data(), progress=False, **options)


@pytest.mark.usefixtures("small_blocks")
def test_scorer_that_refuses_a_layer_is_left_out_there_alone() -> None:
    net, (x, y) = resnet(), data()
    found = score_layers(
        net,
        as_dataset((x, y)).test,
        CLASSES,
        layers=["layer2", "layer4"],
        scorers={name: SCORERS[name] for name in ("gradient", "weights", "probe")},
        weights=bootstrap_weights(20, 0, 0),
        batch_size=8,
        progress=lambda _: None,
    )
    assert {name: list(layers) for name, layers in found.relevance.items()} == {
        "gradient": ["layer2", "layer4"],
        "weights": ["layer4"],
        "probe": [],
    }
    assert set(found.refused) == {("weights", "layer2"), ("probe", "layer2"), ("probe", "layer4")}
    assert found.relevance["weights"]["layer4"].count.sum() == 20


def test_the_function_hides_the_package_of_its_name() -> None:
    assert cs.relevance is relevance
