"""Scorers: captum's numbers, the naive ablation's, and the answer that is known, sign included."""

import weakref
from collections.abc import Callable

import captum.attr
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from channelscope.errors import UserError
from channelscope.gates import FeatureSelector, LinearProbe, Selective
from channelscope.layers.features import capture
from channelscope.layers.hooks import hooked
from channelscope.scorers import (
    Ablation,
    Conductance,
    Cost,
    IntegratedGradients,
    ScoreFunction,
    get_scorer,
    get_scorers,
    gradient,
    list_scorers,
    register_scorer,
)
from helpers.networks import (
    CLASSES,
    FORMS,
    Returns,
    TrainsItself,
    Twice,
    deciding,
    gated,
    images,
    mixed,
    plain,
    resnet,
    unchanged,
)

SCORERS = {scorer.name: scorer for scorer in list_scorers()}
FREE = [name for name in SCORERS if name not in ("weights", "probe")]  # scorers of any layer


def calm(net: nn.Module) -> nn.Module:
    """Let nothing work in place: captum, called by hand, keeps no copies."""
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


def summed(z: Tensor) -> Tensor:
    return z.flatten(2).sum(2) if z.ndim > 2 else z


# ---------------------------------------------------------------- captum, called by hand


def by_hand(name: str, net: nn.Module, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    black = torch.zeros_like(x)
    if name == "gradient-x-activation":
        return summed(captum.attr.LayerGradientXActivation(net, layer).attribute(x, target=y))
    if name == "integrated-gradients":
        return summed(
            captum.attr.LayerIntegratedGradients(net, layer).attribute(x, black, target=y)
        )
    if name == "conductance":
        return summed(captum.attr.LayerConductance(net, layer).attribute(x, black, target=y))
    if name == "deeplift":
        return summed(
            captum.attr.LayerDeepLift(net, layer).attribute(x.requires_grad_(), black, target=y)
        )
    z = captum.attr.LayerActivation(net, layer).attribute(x)
    if name == "grad-cam":
        cam = captum.attr.LayerGradCam(net, layer).attribute(x, target=y, attr_dim_summation=False)
        return (cam / z).flatten(2).mean(2)
    channels = torch.arange(z.shape[1]).view(1, -1, 1, 1).expand(1, *z.shape[1:])
    falls = captum.attr.LayerFeatureAblation(net, layer).attribute(x, target=y, layer_mask=channels)
    return falls.flatten(2)[:, :, 0]  # every position has its channel's


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("layer", ["conv1", "bn1"])
@pytest.mark.parametrize(
    "name",
    [
        "gradient-x-activation",
        "integrated-gradients",
        "conductance",
        "deeplift",
        "grad-cam",
        "ablation",
    ],
)
def test_scores_are_captums(name: str, layer: str) -> None:
    net, (x, y) = plain().double(), images(4, dtype=torch.float64)
    found = SCORERS[name](net, [layer], x, y)[layer]
    wanted = by_hand(name, calm(net), net.get_submodule(layer), x, y)
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["integrated-gradients", "conductance"])
def test_paths_of_more_images_than_a_pass_takes_are_captums(name: str) -> None:
    net, (x, y) = plain(), images(40)
    alone = torch.cat(
        [SCORERS[name](net, ["bn1"], x[i : i + 8], y[i : i + 8])["bn1"] for i in range(0, 40, 8)]
    )
    torch.testing.assert_close(
        SCORERS[name](net, ["bn1"], x, y)["bn1"], alone, rtol=1e-4, atol=1e-6
    )


def test_the_graph_of_one_pass_is_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, kept = captum.attr.LayerConductance.attribute, []

    def watched(*args: object, **options: object) -> Tensor:
        assert [found() for found in kept] == [None] * len(kept)
        found = attribute(*args, **options)
        kept.append(weakref.ref(found))
        return found

    monkeypatch.setattr(captum.attr.LayerConductance, "attribute", watched)
    SCORERS["conductance"](plain(), ["bn1"], *images(8))
    assert len(kept) > 2


@pytest.mark.parametrize(
    ("scorer", "name"),
    [(IntegratedGradients, "integrated-gradients"), (Conductance, "conductance")],
)
def test_scores_along_the_path_add_up_to_the_change_of_the_logit(
    scorer: Callable[..., ScoreFunction], name: str
) -> None:
    net, (x, y) = plain().double(), images(dtype=torch.float64)
    change = (net(x) - net(torch.zeros_like(x))).gather(1, y.unsqueeze(1)).squeeze(1).detach()
    found = scorer(steps=400)(net, ["conv2"], x, y)["conv2"].sum(1)
    torch.testing.assert_close(found, change, rtol=2e-2, atol=1e-4)
    assert SCORERS[name].score.steps == 50


def test_deeplift_is_refused_where_captum_sees_no_non_linearity() -> None:
    net, (x, y) = resnet("resnet18", 4), images()  # its ReLUs are functions
    with pytest.raises(
        UserError, match=r"miss \d+% of what they should .* must be a module \(nn.ReLU\) of its own"
    ):
        SCORERS["deeplift"](net, ["layer1"], x, y)
    assert SCORERS["deeplift"](net, ["layer4"], x, y)["layer4"].shape == (
        6,
        32,
    )  # a linear layer is all that follows


def test_deeplift_is_refused_where_a_module_runs_twice() -> None:
    net, (x, y) = Twice(), images()
    with pytest.raises(
        UserError, match=r"DeepLift cannot score layer 'conv1'.*choose another layer, or the scorer"
    ):
        SCORERS["deeplift"](net, ["conv1"], x, y)


# ---------------------------------------------------------------- ablation


def behind(net: nn.Sequential, layer: str) -> Callable[[Tensor], Tensor]:
    names = [name for name, _ in net.named_children()]
    return net[names.index(layer) + 1 :]


@pytest.mark.parametrize("layer", ["conv1", "relu2", "flatten"])
@pytest.mark.parametrize("to", ["zero", "mean", "class-mean"])
def test_ablation_is_the_naive_one(to: str, layer: str) -> None:
    net, (x, y) = calm(plain().double()), images(5, dtype=torch.float64)
    with torch.no_grad(), capture(net, layer) as features:
        net(x)
    z = features[layer]
    rows = [[float(channel.mean()) for channel in image] for image in z]
    means = reference.means_by_class(rows, y.tolist())
    overall = [sum(column) / len(means) for column in zip(*means.values(), strict=True)]
    values = {
        "zero": [[0.0] * z.shape[1]] * len(x),
        "mean": [overall] * len(x),
        "class-mean": [means[int(label)] for label in y],
    }
    wanted = torch.tensor(
        reference.ablation(behind(net, layer), z, y.tolist(), values[to]), dtype=torch.float64
    )
    found = Ablation(to, rows=15)(net, [layer], x, y)[layer]
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted)
    by_class = [means.get(k, [torch.nan] * len(overall)) for k in range(CLASSES)]
    fitted = Ablation(to, means={layer: torch.tensor(by_class)})
    torch.testing.assert_close(fitted(net, [layer], x, y)[layer], wanted)


@pytest.mark.parametrize("layer", ["layer2.0.conv1", "layer2.0", "layer4"])
def test_ablation_repeats_the_images_where_a_connection_leads_past_the_layer(layer: str) -> None:
    net, (x, y) = resnet().double(), images(3, dtype=torch.float64)
    found = SCORERS["ablation"](net, [layer], x, y)[layer]

    def without(channel: int) -> Tensor:
        with (
            torch.no_grad(),
            hooked(net, {layer: lambda z: z.index_fill(1, torch.tensor([channel]), 0)}),
        ):
            return net(x).gather(1, y.unsqueeze(1)).squeeze(1)

    whole = net(x).gather(1, y.unsqueeze(1)).detach()
    wanted = whole - torch.stack([without(c) for c in range(found.shape[1])], 1)
    torch.testing.assert_close(found, wanted)


def test_only_the_rest_of_the_network_runs_for_every_channel() -> None:
    net, (x, y) = plain(), images(4)
    seen = {"conv1": 0, "linear": 0}
    with hooked(
        net, {name: lambda z, name=name: seen.update({name: seen[name] + len(z)}) for name in seen}
    ):
        Ablation(rows=1000)(net, ["relu2"], x, y)
    trial = 3 * 2 + 2  # repeated images, and images whose features are repeated
    assert seen["conv1"] == 4 + trial + 4
    assert seen["linear"] == 4 + (3 * 2 + 3 * 2) + 8 * 4


def test_class_means_leave_nothing_on_the_mean_of_a_class_to_a_linear_rest() -> None:
    net, (x, y) = plain().double(), images(8, dtype=torch.float64)
    found = SCORERS["ablation-class-mean"](net, ["relu2"], x, y)["relu2"]
    assert found.abs().max() > 1e-3
    for k in y.unique():
        torch.testing.assert_close(
            found[y == k].mean(0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12
        )


# ---------------------------------------------------------------- the answer is known


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (name, layer)
        for name in SCORERS
        for layer in ("relu1", "relu2")
        if name != "ablation-class-mean" and (name, layer) != ("weights", "relu1")
    ],
)
def test_every_scorer_knows_which_channel_decides_and_its_sign(name: str, layer: str) -> None:
    net, x, y, sign = deciding()
    if name == "probe":
        net = Selective(net, {layer: FeatureSelector(LinearProbe(6, 6))})
        net.gates[layer].probe.output.load_state_dict(net.cnn.linear.state_dict())
    scores = SCORERS[name](net, [layer], x, y)[layer]
    found = torch.stack([scores[y == k].mean(0) for k in range(6)])
    assert torch.equal(found.sign() * (found.abs() > 1e-6), sign)
    assert torch.equal(found.argmax(1), torch.arange(6))


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), channels=st.integers(1, 5), size=st.integers(1, 4))
def test_scorers_agree_on_a_linear_network(seed: int, channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, channels, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.rand(4, 2, size, size, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (4,), generator=generator)
    found = {name: SCORERS[name](net, ["0"], x, y)["0"] for name in SCORERS if name != "probe"}
    weight = net[3].weight.detach()[y]
    products = weight * net[0](x).detach().mean((2, 3))
    for name in ("weights", "gradient"):
        torch.testing.assert_close(found[name], weight)
    torch.testing.assert_close(found["grad-cam"] * size**2, weight)
    for name in ("gradient-x-activation", "integrated-gradients", "deeplift", "ablation"):
        torch.testing.assert_close(found[name], products)
    torch.testing.assert_close(
        found["conductance"], products, rtol=1e-2, atol=1e-6
    )  # its ends are not quite the path's


# ---------------------------------------------------------------- probes


def test_probes_are_scored_by_their_own_gradient_whatever_the_gate() -> None:
    net, (x, y) = gated().double(), images(dtype=torch.float64)
    found = SCORERS["probe"](net, ["layer4.0", "layer4.1"], x, y)
    linear = net.gates["layer4.1"].probe.output
    torch.testing.assert_close(found["layer4.1"], linear.weight.detach()[y])
    features = net.probed(x).features["layer4.0"].detach().requires_grad_()
    own = net.gates["layer4.0"].probe(features.mean((2, 3))).gather(1, y.unsqueeze(1)).sum()
    torch.testing.assert_close(found["layer4.0"], torch.autograd.grad(own, features)[0].sum((2, 3)))


def test_layers_without_a_probe_are_refused() -> None:
    x, y = images()
    with pytest.raises(
        UserError, match=r"'layer3' has no gate with a probe: choose 'layer4.0' or 'layer4.1'"
    ):
        SCORERS["probe"](gated(), ["layer3"], x, y)
    with pytest.raises(UserError, match="has no gates, and so no probes: choose another scorer"):
        SCORERS["probe"](plain(), ["conv1"], x, y)


# ---------------------------------------------------------------- any network


@pytest.mark.parametrize("name", FREE)
def test_scorers_leave_the_network_and_the_images_as_found(name: str) -> None:
    net, (x, y) = mixed(plain()), images()
    before = x.clone()
    with unchanged(net):
        SCORERS[name](net, ["bn1"], x, y)
    assert torch.equal(x, before)
    assert not x.requires_grad


@pytest.mark.parametrize("name", FREE)
def test_scorers_take_networks_and_layers_that_return_anything(name: str) -> None:
    x, y = images()
    net = Returns(FORMS["tuple"])
    torch.testing.assert_close(
        SCORERS[name](net, ["net.bn1"], x, y)["net.bn1"],
        SCORERS[name](net.net, ["bn1"], x, y)["bn1"],
    )


@pytest.mark.parametrize("name", [name for name in FREE if name != "deeplift"])
def test_scorers_take_one_call_of_a_module_called_twice(name: str) -> None:
    net, (x, y) = Twice(), images()
    both = SCORERS[name](net, ["relu@0", "relu@1"], x, y)
    assert not torch.allclose(both["relu@0"], both["relu@1"])


@pytest.mark.parametrize("name", FREE)
def test_scorers_find_channels_that_come_last(name: str) -> None:
    class Last(nn.Module):
        """The known network, with its channels last."""

        def __init__(self, net: nn.Sequential) -> None:
            super().__init__()
            self.first, self.relu1, self.second, self.linear = (
                nn.Linear(6, 6),
                nn.ReLU(),
                nn.Linear(6, 6),
                net.linear,
            )
            self.first.weight.data, self.first.bias.data = (
                net.conv1.weight.data[:, :, 0, 0],
                torch.zeros(6),
            )
            self.second.weight.data, self.second.bias.data = (
                net.conv2.weight.data[:, :, 0, 0],
                torch.zeros(6),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(
                self.second(self.relu1(self.first(x.permute(0, 2, 3, 1)))).relu().mean((1, 2))
            )

    net, x, y, _ = deciding()
    x[:, :, 0] = 0  # not all positions alike
    last = Last(net)
    torch.testing.assert_close(last(x), net(x))
    torch.testing.assert_close(
        SCORERS[name](last, ["relu1"], x, y)["relu1"], SCORERS[name](net, ["relu1"], x, y)["relu1"]
    )


@pytest.mark.parametrize("name", FREE)
def test_no_layers_have_no_scores(name: str) -> None:
    assert SCORERS[name](plain(), [], *images()) == {}


@pytest.mark.parametrize("name", [name for name in FREE if name != "deeplift"])
def test_network_that_switches_itself_to_train_mode_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="switches itself to train mode"):
        SCORERS[name](TrainsItself(), ["net.bn1"], *images())


# ---------------------------------------------------------------- the registry


def constant(model: nn.Module, layers: list[str], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Score every channel alike.

    A scorer of a user's own.
    """
    return {layer: torch.ones(len(x), 3) for layer in layers}


def test_unknown_scorer_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        UserError, match=r"no scorer 'gradients': choose from .* Did you mean 'gradient'"
    ):
        get_scorer("gradients")


def test_scorers_are_listed_the_cheapest_first_with_their_help() -> None:
    assert next(iter(SCORERS)) == "weights"
    assert list(SCORERS)[-1].startswith("ablation")
    assert all(scorer.help and scorer.cost is not None for scorer in SCORERS.values())


def test_names_functions_and_scorers_are_taken_alike() -> None:
    scorers = get_scorers(["gradient", constant, Ablation("mean", rows=3)])
    assert list(scorers) == ["gradient", "constant", "Ablation"]
    own = scorers["constant"]
    assert (own.cost, own.help) == (None, "Score every channel alike.")
    assert own(plain(), ["bn1"], *images())["bn1"].shape == (6, 3)
    assert get_scorer(own) is own
    assert get_scorer(gradient) is scorers["gradient"] is SCORERS["gradient"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("scorers", "words"),
    [
        ("gradient", r"scorers: give a list of names or functions, such as \['gradient'\]"),
        (constant, "scorers: give a list"),
        ([3], "a name or a function .*, not 3"),
        (["gradient", "gradient"], "there are two of the name 'gradient': rename one"),
        ([constant, constant], "two of the name 'constant'"),
    ],
    ids=["a text", "a function", "a number", "a name twice", "a function twice"],
)
def test_what_is_no_list_of_scorers_is_refused(scorers: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        get_scorers(scorers)


def test_names_are_registered_once() -> None:
    with pytest.raises(UserError, match="There is a scorer 'gradient' already"):
        register_scorer("gradient", cost=Cost(), help="again")


# ---------------------------------------------------------------- costs


def test_costs_count_passes() -> None:
    assert str(Cost()) == "0"
    assert str(Cost(once=1, per_channel=1)) == "1 + 1 a channel"
    assert str(SCORERS["integrated-gradients"].cost) == "102 a layer"
    assert SCORERS["ablation"].cost.of([6, 8]) == 15
    assert SCORERS["deeplift"].cost.of([6, 8]) == 12


@pytest.mark.parametrize(
    ("name", "backward"),
    [
        ("gradient", 1),
        ("gradient-x-activation", 1),
        ("grad-cam", 1),
        ("integrated-gradients", 50),
        ("conductance", 51),
        ("deeplift", 2),
    ],
)
def test_cost_is_the_number_of_forward_passes_and_of_backward_ones(
    name: str, backward: int
) -> None:
    net, (x, y) = plain(), images(4)
    passed: list[int] = []
    handle = net.linear.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    SCORERS[name](net, ["bn1"], x, y)
    handle.remove()
    assert sum(passed) / len(x) + backward == SCORERS[name].cost.of([6])
