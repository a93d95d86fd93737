"""Scores block by block: fitted on all images first, and refused layer by layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope.scorers
import reference
from channelscope.data import as_dataset
from channelscope.errors import UserError
from channelscope.layers.features import capture
from channelscope.scorers import Scorer, fit_scorers, get_scorers, score_block
from channelscope.scorers.base import _REGISTRY
from channelscope.scorers.gradients import gradient, gradient_x_activation
from helpers.examples import run_example
from helpers.networks import CLASSES, gated, images, mixed, plain, resnet, unchanged


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    return images(n)[0], torch.arange(n) % CLASSES


def test_blocks_are_scored_by_every_scorer_at_every_layer() -> None:
    net, (x, y) = plain(), data()
    scorers = get_scorers(["gradient", "ablation"])
    scores = score_block(scorers, net, ["conv1", "bn1"], x, y)
    assert list(scores) == ["gradient", "ablation"]
    wanted = gradient(net, ["conv1", "bn1"], x, y)
    assert all(torch.equal(scores["gradient"][layer], wanted[layer]) for layer in wanted)
    assert score_block(scorers, net, [], x, y) == {"gradient": {}, "ablation": {}}


def test_scorer_that_refuses_a_layer_is_left_out_there_alone() -> None:
    net, (x, y) = resnet(), data()
    scorers = get_scorers(["gradient", "weights", "probe"])
    scores = score_block(scorers, net, ["layer2", "layer4"], x, y)
    refused = {
        (name, layer): str(score)
        for name, by_layer in scores.items()
        for layer, score in by_layer.items()
        if isinstance(score, UserError)
    }
    assert set(refused) == {("weights", "layer2"), ("probe", "layer2"), ("probe", "layer4")}
    assert "'layer2' is not the penultimate one" in refused["weights", "layer2"]
    assert "has no gates" in refused["probe", "layer4"]
    assert torch.equal(scores["weights"]["layer4"], net.linear.weight[y])


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "returns no tensor for layer 'bn1'"),
        (torch.zeros(20, 6), "returns an object of type Tensor: return {layer: scores"),
        (None, "returns an object of type NoneType: return {layer: scores"),
        ({"bn1": torch.zeros(20)}, r"returns shape \(20,\) for layer 'bn1'"),
        ({"bn1": torch.zeros(19, 6)}, r"returns shape \(19, 6\) .* here \(20, 6\)"),
        ({"bn1": torch.zeros(20, 3)}, r"returns shape \(20, 3\) .* here \(20, 6\)"),
        (
            {"bn1": torch.full((20, 6), torch.nan)},
            r"returns NaN for layer 'bn1' \(features of shape \(6, 8, 8\)\): return a number",
        ),
        ({"bn1": torch.full((20, 6), torch.inf)}, "returns infinity for layer 'bn1'"),
    ],
    ids=["nothing", "tensor", "none", "vector", "images", "channels", "nan", "infinity"],
)
@pytest.mark.usefixtures("unchecked")
def test_functions_that_return_something_else_are_refused(scores: Any, words: str) -> None:
    def own(model: nn.Module, layers: list[str], x: Tensor, y: Tensor) -> Any:
        return scores

    with pytest.raises(UserError, match=words):
        raise score_block(get_scorers([own]), plain(), ["bn1"], *data())["own"]["bn1"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["ablation-mean", "ablation-class-mean"])
def test_ablation_sets_channels_to_their_means_over_all_images_whatever_the_blocks(
    name: str,
) -> None:
    net, (x, y) = plain().double(), data()
    with torch.no_grad(), capture(net, "relu1") as features:
        net(x.double())
    z = features["relu1"]
    means = reference.means_by_class(z.mean((2, 3)).tolist(), y.tolist())
    overall = [sum(column) / CLASSES for column in zip(*means.values(), strict=True)]
    values = [overall if name == "ablation-mean" else means[int(label)] for label in y]
    wanted = torch.tensor(reference.ablation(net[3:], z, y.tolist(), values), dtype=torch.float64)
    split = as_dataset((x, y)).test
    scorers = fit_scorers(get_scorers([name]), net, split, CLASSES, ["relu1"])
    parts = [
        score_block(scorers, net, ["relu1"], x[rows].double(), y[rows])[name]["relu1"]
        for rows in torch.arange(20).split(7)
    ]
    torch.testing.assert_close(torch.cat(parts), wanted)


def test_fitting_leaves_classes_without_images_without_means() -> None:
    net, (x, _) = plain(), images(6)
    split = as_dataset((x, torch.tensor([0, 0, 2, 2, 2, 0]))).test
    scorers = fit_scorers(get_scorers(["ablation-mean"]), net, split, CLASSES, ["bn1"])
    means = scorers["ablation-mean"].score.means["bn1"]
    assert means[[0, 2]].isfinite().all()
    assert means[[1, 3, 4]].isnan().all()


def test_only_scorers_that_ask_for_it_are_fitted() -> None:
    class Counts:
        """Counts the images."""

        def fit(
            self, _network: nn.Module, split: object, classes: int, _layers: object
        ) -> "Counts":
            self.seen = len(split), classes
            return self

        def __call__(
            self, _model: nn.Module, layers: list[str], x: Tensor, y: Tensor
        ) -> dict[str, Tensor]:
            return dict.fromkeys(layers, torch.zeros(len(x), 6))

    counts = Scorer("counts", Counts())
    scorers = get_scorers(["gradient", "ablation", counts])
    fitted = fit_scorers(scorers, plain(), as_dataset(data()).test, CLASSES, ["bn1"])
    assert fitted == scorers
    assert counts.score.seen == (20, CLASSES)


class Careless:
    """The gradient times the activation, as one writes it at first: in the mode there is."""

    def fit(self, network: nn.Module, split: Any, _classes: int, _layers: object) -> "Careless":
        network(torch.zeros_like(images()[0]))
        return self

    def __call__(
        self, model: nn.Module, layers: list[str], x: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        with capture(model, *layers) as features:
            logit = model(x).gather(1, y.unsqueeze(1)).sum()
        slopes = torch.autograd.grad(logit, [features[layer] for layer in layers])
        pairs = zip(layers, slopes, strict=True)
        return {layer: (features[layer] * slope).sum((2, 3)) for layer, slope in pairs}


def test_the_docstrings_example_works() -> None:
    net, (x, y) = mixed(gated()), data()
    try:
        run_example(channelscope.scorers)
        scorers = get_scorers(["steepness", "grad-cam"])
        scores = score_block(scorers, net, ["layer3", "layer4"], x, y)
    finally:
        _REGISTRY.pop("steepness", None)
    for layer, wanted in scores["grad-cam"].items():
        torch.testing.assert_close(scores["steepness"][layer], wanted)


@torch.no_grad()
def test_a_careless_function_scores_the_network_of_evaluation_and_leaves_it_as_found() -> None:
    net, (x, y) = plain().train(), data()
    with unchanged(net):
        scorers = fit_scorers(
            get_scorers([Careless()]), net, as_dataset((x, y)).test, CLASSES, ["bn1", "conv2"]
        )
        scores = score_block(scorers, net, ["bn1", "conv2"], x, y)["Careless"]
    wanted = gradient_x_activation(net, ["bn1", "conv2"], x, y)
    assert all(torch.equal(scores[layer], wanted[layer]) for layer in wanted)
    assert not any(tensor.requires_grad for tensor in (x, *scores.values()))


def test_the_network_is_left_as_found() -> None:
    net, (x, y) = mixed(gated()), data()
    scorers = get_scorers(["probe", "ablation-mean", "weights"])
    with unchanged(net):
        split = as_dataset((x, y)).test
        scorers = fit_scorers(scorers, net, split, CLASSES, ["layer4.0"])
        score_block(scorers, net, ["layer4.0"], x, y)
