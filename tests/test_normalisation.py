"""Networks that expect normalised images are told of, and nothing is changed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import channelscope as cs
from channelscope.cli.printing import print_result
from channelscope.networks import NORMALISATIONS, Normalise, Normalised, Statistics
from channelscope.report.summary import summarise
from channelscope.result import Result
from channelscope.study.normalisation import CANDIDATES, advise_normalisation
from helpers.networks import resnet

CLASSES = 4


def colours(n: int = 128, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Draw images whose brightness is their class."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(n) % CLASSES
    level = 0.35 + 0.1 * y.view(-1, 1, 1, 1)
    noise = 0.02 * torch.randn(n, channels, 6, 6, generator=generator)
    return (level + noise).clamp(0, 1), y


def trained(statistics: Statistics, channels: int = 3) -> nn.Module:
    """Train a network on images that are normalised outside it."""
    torch.manual_seed(0)
    x, y = colours(channels=channels)
    x = Normalise(*statistics)(x)
    net = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).double().mean() > 0.9
    return net.eval()


@pytest.mark.parametrize("name", ["cifar10", "pytorch-cifar", "imagenet", "half"])
def test_a_network_that_gains_much_is_said_with_the_option(name: str) -> None:
    net, (x, y) = trained(CANDIDATES[3][name]), colours()
    before = copy.deepcopy(net.state_dict())
    sentence = advise_normalisation(net, x, y, ours=False)
    assert sentence is not None
    assert "of 128 images right" in sentence
    option = sentence.partition("--normalise ")[2].partition(",")[0]
    statistics = NORMALISATIONS[option]
    assert statistics is not None
    wrapped = cs.normalised(net, *statistics)
    right = int((wrapped(x).argmax(1) == y).sum())
    assert f"and {right} if they are normalised" in sentence
    assert right > 115
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_networks_of_grey_images_and_of_bytes_are_said_too() -> None:
    x, y = colours(channels=1)
    sentence = advise_normalisation(trained(((0.1307,), (0.3081,)), 1), x, y, ours=False)
    assert sentence is not None
    assert "--normalise" in sentence
    x, y = colours()
    sentence = advise_normalisation(_divide(trained(((0.0,), (1.0,)))), x, y, ours=False)
    assert sentence is not None
    assert "--normalise '0;0.0039216'" in sentence


def test_a_network_that_is_right_as_it_is_is_not_spoken_of() -> None:
    x, y = colours()
    assert advise_normalisation(trained(((0.0,), (1.0,))), x, y, ours=False) is None


def test_nor_are_networks_that_normalise_or_are_ours_or_know_nothing() -> None:
    x, y = colours()
    net = trained(CANDIDATES[3]["half"])
    wrong = Normalised(net, (0.4,), (0.9,))
    assert advise_normalisation(wrong, x, y, ours=False) is None
    assert advise_normalisation(net, x, y, ours=True) is None
    torch.manual_seed(1)
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES)).eval()
    assert advise_normalisation(untrained, x, y, ours=False) is None


def test_the_normalisations_that_do_as_well_are_named_and_no_others() -> None:
    """Statistics that hardly differ do as well; those by which the network fails are not named."""
    net, (x, y) = trained(CANDIDATES[3]["cifar10"]), colours()
    sentence = advise_normalisation(net, x, y, ours=False, label="my net")
    assert sentence is not None
    told = sentence.partition("(")[2].partition(": which of them")[0]
    rivals = dict(reversed(rival.split(" by ")) for rival in told.split(", "))  # type: ignore[misc]
    option = sentence.partition("--normalise 'my net=")[2].partition("'")[0]
    assert {option, *rivals} >= {"cifar10", "pytorch-cifar"}
    assert option not in rivals
    best = int(sentence.partition("right, and ")[2].split()[0])
    for name, count in rivals.items():
        statistics = CANDIDATES[3][name]
        right = int((cs.normalised(net, *statistics)(x).argmax(1) == y).sum())
        assert best >= int(count) == right
    bytes_of_images = advise_normalisation(_divide(trained(((0.0,), (1.0,)))), x, y, ours=False)
    assert bytes_of_images is not None
    assert "which of them" not in bytes_of_images


def _divide(net: nn.Module) -> nn.Module:
    """Let a network of images in [0, 1] take bytes."""
    with torch.no_grad():
        net.get_submodule("2").weight /= 255
    return net


def test_evaluating_says_it_once_and_judges_the_network_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    net, data = trained(CANDIDATES[3]["half"]), colours()
    options = {"attacks": ["fgsm"], "eps": 0.01, "checks": 0, "progress": False}
    result = cs.evaluate({"net": net, "ours": resnet(channels=3, classes=4)}, data, **options)
    lines = [line for line in capsys.readouterr().err.splitlines() if "--normalise" in line]
    assert len(lines) == 1
    assert lines[0].startswith("net: The network answers ")
    assert result.worst_case["natural"].iloc[0] < 0.6
    assert [(row.model, row.check) for row in result.warnings.itertuples()] == [
        ("net", "normalisation")
    ]
    assert result.warnings["sentence"].iloc[0] in lines[0]
    better = cs.evaluate({"net": cs.normalised(net, (0.5,), (0.5,))}, data, **options)
    assert "--normalise" not in capsys.readouterr().err
    assert better.worst_case["natural"].iloc[0] > 0.9
    assert better.warnings.empty


@pytest.mark.parametrize("question", [cs.compare, cs.evaluate, cs.intervene, cs.relevance])
def test_what_is_said_stands_in_every_result_and_is_printed_last(
    question: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    net, data = trained(CANDIDATES[3]["half"]), colours()
    options: dict[str, Any] = {"progress": False}
    if question is not cs.relevance:
        options["eps"] = 0.01
    if question in (cs.compare, cs.evaluate):
        options |= {"attacks": ["pgd-2"], "checks": 8}
    if question is cs.intervene:
        options |= {"attack": "pgd-2", "fractions": [0.5], "random": 1}
    result = question({"net": net}, data, **options)
    sentence = capsys.readouterr().err.partition("net: ")[2].splitlines()[0]
    assert "--normalise half" in sentence
    print_result(result, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    warned = lines.index(f"WARNING, net: {sentence}")
    assert not [line for line in lines[warned:] if "no sign of" in line or " supported" in line]
    assert not [line for line in lines if "sign of gradient masking" in line and "1 sign" in line]
    print_result(result, Path("out"), as_json=True)
    assert sentence in str(json.loads(capsys.readouterr().out))
    if question is cs.compare:
        (reason,) = (text for text in summarise(result).reasons if "Do not trust net" in text)
        assert sentence in reason
        assert set(result.verdicts["verdict"]) == {"not judged"}
    if question is cs.evaluate:
        assert lines[-1] == "report: out/report.html"
