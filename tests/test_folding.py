"""Folding: the same network, faster, whatever it does with its features; nothing of it stays."""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reference
from channelscope.attacks import PGD, folding
from channelscope.attacks.folding import run_folded
from channelscope.distributed import SynchronisedBatchNorm2d
from channelscope.errors import UserError
from channelscope.gates import Selective
from channelscope.layers.features import capture
from channelscope.layers.hooks import eval_mode, get_logits, hooked
from channelscope.objectives import Joint, cross_entropy
from helpers.networks import (
    CLASSES,
    FORMS,
    Brittle,
    CallsAutograd,
    Returns,
    TrainsItself,
    Twice,
    gated,
    images,
    mixed,
    plain,
    randomise_batchnorm,
    resnet,
    unchanged,
)

Body = Callable[[Any, Tensor], Tensor]


class Two(nn.Module):
    """Two convolutions and a BatchNorm, put together by the body, and a linear layer."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(4, CLASSES)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = body
        randomise_batchnorm(self)
        for numbers in self.norm.parameters():
            nn.init.uniform_(numbers, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(self, x).relu().mean((2, 3)))


class Activating(nn.BatchNorm2d):
    """Is more than a BatchNorm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Doubling(nn.Conv2d):
    """Is more than a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def folded_layers(net: nn.Module) -> list[str]:
    """List the layers whose forward is another for now."""
    forwards = {name: vars(layer).get("forward") for name, layer in net.named_modules()}
    return [
        name
        for name, own in forwards.items()
        if isinstance(getattr(own, "__self__", None), folding._Pair)
    ]


def answers(net: nn.Module, x: Tensor, objective: Any = None) -> tuple[Tensor, Tensor]:
    """Give the logits and the gradient of something made of them, in the images."""
    x = x.detach().requires_grad_()
    logits = get_logits(net(x))
    loss = (logits * logits.new_tensor(range(1, logits.shape[1] + 1))).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return logits.detach(), gradient


def compare(
    net: nn.Module, x: Tensor, pairs: int, layout: torch.memory_format = torch.channels_last
) -> None:
    """Assert that a network gives the same answers folded, that many of its BatchNorms being so."""
    close = (
        {"rtol": 1e-9, "atol": 1e-9} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    given: list[Any] = []

    def work(wanted: torch.memory_format) -> tuple[Tensor, Tensor]:
        given.extend([wanted, len(folded_layers(net))])
        return answers(net, x.to(memory_format=wanted))

    with eval_mode(net):
        logits, gradient = answers(net, x)
        with unchanged(net):
            found, slope = run_folded(net, x, work)
    assert given == [layout, 2 * pairs]
    torch.testing.assert_close(found, logits, **close)
    torch.testing.assert_close(slope, gradient, **close)


def double(n: int = 4, channels: int = 1, size: int = 8) -> Tensor:
    return images(n, channels, size, torch.float64)[0]


# ---------------------------------------------------------------- the same answers

FOLDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (plain, 1),
    "resnet10": (resnet, 12),
    "resnet50": (lambda: resnet("resnet50"), 53),
    "wrn-10-1": (lambda: resnet("wrn-10-1"), 3),
    "cifs": (gated, 20),
    "cas": (lambda: gated(k=1, imgf="identity"), 20),
    "tuple": (lambda: Returns(FORMS["tuple"]), 1),
    "dataclass": (lambda: Returns(FORMS["dataclass"]), 1),
    "no BatchNorm": (Twice, 0),
    "calls autograd": (CallsAutograd, 0),
}


@pytest.mark.parametrize(("make", "pairs"), FOLDED.values(), ids=FOLDED.keys())
def test_folded_network_answers_as_it_does_unfolded(
    make: Callable[[], nn.Module], pairs: int
) -> None:
    compare(make().double(), double(), pairs)


STRANGERS = {
    "resnet18": 20,
    "mobilenet_v3_small": 34,
    "densenet121": 59,
    "shufflenet_v2_x0_5": 56,
}


@pytest.mark.parametrize(("name", "pairs"), STRANGERS.items(), ids=STRANGERS.keys())
def test_torchvisions_networks_answer_as_they_do_unfolded(name: str, pairs: int) -> None:
    net = randomise_batchnorm(getattr(torchvision.models, name)(weights=None, num_classes=CLASSES))
    compare(net.double(), double(2, 3, 32), pairs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_folded_weights_are_those_of_the_equation(bias: bool, affine: bool) -> None:
    convolution, batchnorm = (
        nn.Conv2d(2, 5, 3, bias=bias).double(),
        nn.BatchNorm2d(5, affine=affine).double(),
    )
    randomise_batchnorm(batchnorm)
    for numbers in batchnorm.parameters():
        nn.init.normal_(numbers)
    pair = folding._Pair(convolution, batchnorm, torch.channels_last)
    weight, shift = reference.folded_convolution(convolution, batchnorm)
    torch.testing.assert_close(pair.weight, weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair.bias, shift, rtol=1e-12, atol=1e-12)
    assert pair.weight.is_contiguous(memory_format=torch.channels_last)


def test_folded_weights_follow_the_network() -> None:
    net, x = resnet().double(), double()
    compare(net, x, 12)
    with torch.no_grad():
        for numbers in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            numbers.mul_(1.1)
    compare(net, x, 12)


def test_batchnorm_of_several_processes_is_folded_too() -> None:
    net = plain().double()
    net.bn1.__class__ = SynchronisedBatchNorm2d
    compare(net, double(), 1)


# ---------------------------------------------------------------- other uses of the features


def ordinary(net: Two, x: Tensor) -> Tensor:
    return net.norm(net.second(net.first(x)))


def alone(net: Two, x: Tensor) -> Tensor:
    return net.norm(net.first(x))


def skips(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    return net.norm(z) + z


def asks_for_the_shape(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    assert z.shape[1:] == (4, 8, 8)
    return net.norm(z)


def adds_by_name(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    return torch.add(net.norm(z), other=z)


def puts_together(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    return torch.cat([net.norm(z), z], dim=2)


def changes_in_place(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    z.mul_(2)
    return net.norm(z)


def convolves_twice(net: Two, x: Tensor) -> Tensor:
    return net.norm(net.second(net.second(net.first(x))))


def normalises_twice(net: Two, x: Tensor) -> Tensor:
    return net.norm(net.second(net.norm(net.first(x))))


def goes_around(net: Two, x: Tensor) -> Tensor:
    z = net.first(x)
    return net.norm(z) + F.conv2d(z, net.second.weight, padding=1)


def takes_no_gradient(net: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        z = net.first(x)
    return net.norm(z) + net.norm(net.second(net.first(x)))


def total(z: Tensor) -> Tensor:
    return z.sum()


def by_name(net: Two, x: Tensor) -> Tensor:
    return net.norm(input=net.second(input=net.first(input=x)))


def calls_forward(net: Two, x: Tensor) -> Tensor:
    return net.norm.forward(net.second.forward(net.first(x)))


def is_stored(net: Two, x: Tensor) -> Tensor:
    vars(net)["stored"] = net.first(x)
    return net.norm(net.stored)


def normalises_another(net: Two, x: Tensor) -> Tensor:
    return net.norm(net.second(net.first(x)) * 2)


# How many BatchNorms are folded: none whose convolution's own output is needed as well.
BODIES: dict[Body, int] = {
    ordinary: 1,
    skips: 0,
    asks_for_the_shape: 0,
    adds_by_name: 0,
    puts_together: 0,
    changes_in_place: 0,
    convolves_twice: 0,
    normalises_twice: 0,
    normalises_another: 0,
    goes_around: 0,
    takes_no_gradient: 0,
    by_name: 0,
    calls_forward: 0,
    is_stored: 1,
}


@pytest.mark.parametrize(("body", "pairs"), BODIES.items(), ids=[body.__name__ for body in BODIES])
def test_features_used_in_any_way_have_their_own_values(body: Body, pairs: int) -> None:
    compare(Two(body).double(), double(), pairs)


@pytest.mark.parametrize("body", BODIES, ids=[body.__name__ for body in BODIES])
@pytest.mark.parametrize("before", [ordinary, alone], ids=["second", "first"])
def test_way_that_a_network_takes_later_has_its_own_values(before: Body, body: Body) -> None:
    net, x = Two(before).double(), double()
    compare(net, x, 1)
    net.body = body
    compare(net, x, 1)


def test_each_batchnorm_takes_the_features_of_its_own_convolution_only() -> None:
    net = Two(
        lambda net, x: net.norm(net.second(net.other(net.first(x)))), other=nn.BatchNorm2d(4)
    ).double()
    compare(net, double(), 2)
    net.body = lambda net, x: net.other(net.second(net.norm(net.first(x))))
    compare(net, double(), 2)


def test_network_that_trains_itself_later_is_refused() -> None:
    def trains_in_passing(net: Two, x: Tensor) -> Tensor:
        net.norm.train()
        z = alone(net, x)
        net.norm.eval()
        return z

    net, (x, y) = Two(alone), images()
    compare(net, x, 1)
    net.body = trains_in_passing
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        PGD(steps=1)(net, x, y, seed())


LAYERS: dict[str, tuple[Callable[[], dict[str, nn.Module]], int]] = {
    "convolution of its own kind": (lambda: {"second": Doubling(4, 4, 3)}, 0),
    "BatchNorm of its own kind": (lambda: {"norm": Activating(4)}, 0),
    "no running statistics": (lambda: {"norm": nn.BatchNorm2d(4, track_running_stats=False)}, 0),
    "InstanceNorm": (
        lambda: {"norm": nn.InstanceNorm2d(4, affine=True, track_running_stats=True)},
        0,
    ),
    "GroupNorm": (lambda: {"norm": nn.GroupNorm(2, 4)}, 0),
    "parametrised": (lambda: {"second": parametrizations.weight_norm(nn.Conv2d(4, 4, 3))}, 0),
    "spectral norm": (lambda: {"second": nn.utils.spectral_norm(nn.Conv2d(4, 4, 3))}, 0),
    "grouped": (lambda: {"second": nn.Conv2d(4, 4, 3, groups=2, bias=False)}, 1),
    "padded by reflection": (
        lambda: {"second": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")},
        1,
    ),
    "strided and dilated": (
        lambda: {"second": nn.Conv2d(4, 4, 3, stride=2, dilation=2, padding="valid")},
        1,
    ),
}


@pytest.mark.parametrize(("layers", "pairs"), LAYERS.values(), ids=LAYERS.keys())
def test_only_plain_layers_are_folded(
    layers: Callable[[], dict[str, nn.Module]], pairs: int
) -> None:
    compare(Two(ordinary, **layers()).double().eval(), double(), pairs)


def test_network_that_views_its_features_is_folded_in_its_own_format() -> None:
    class Views(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(self.second(self.first(x))).view(len(x), -1)[:, :4])

    net = Views(ordinary)
    compare(net, images(size=1)[0], 1)  # a single pixel is in every format
    compare(net, images(size=2)[0], 1, torch.preserve_format)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_network_that_would_answer_otherwise_is_left_alone() -> None:
    scripted = torch.jit.script(
        total
    )  # it takes a tensor for what it holds, whatever stands in for it

    def adds_the_total(net: Two, x: Tensor) -> Tensor:
        z = net.first(x)
        return net.norm(z) + scripted(z)

    compare(Two(adds_the_total).double(), double(), 0, torch.preserve_format)


def test_forward_that_is_somebodys_own_stays() -> None:
    net = Two(alone).double()
    own = net.first.forward = lambda z: 2 * nn.Conv2d.forward(net.first, z)
    compare(net, double(), 0)
    assert net.first.forward is own


def test_layer_under_two_names_is_folded_once() -> None:
    net = plain().double()
    net.add_module("again", nn.Identity())
    net.again.other = net.conv1
    compare(net, double(), 1)


def test_weights_shared_by_two_convolutions_stay_apart() -> None:
    net = Two(
        lambda net, x: net.norm(net.second(net.other(net.third(net.first(x))))),
        third=nn.Conv2d(4, 4, 3),
    )
    net.other = nn.BatchNorm2d(4)
    net.second.weight = net.third.weight
    compare(randomise_batchnorm(net).double(), double(), 2)


# ---------------------------------------------------------------- hooks


def test_hooks_see_what_they_see_without_folding() -> None:
    net, x = resnet().double(), double()
    layers = [
        name for name, layer in net.named_modules() if name and next(layer.children(), None) is None
    ]
    layers = [name for name in layers if not name.endswith("shortcut")]
    with eval_mode(net), capture(net, *layers) as features:
        net(x)
        wanted = dict(features)
        run_folded(net, x, lambda layout: net(x.to(memory_format=layout)))
        for name in layers:
            torch.testing.assert_close(features[name], wanted[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "pairs"), [("conv1", 11), ("bn1", 11), ("layer1", 12), ("layer1.0.conv2", 11)]
)
def test_watched_layer_is_not_folded(layer: str, pairs: int) -> None:
    net = resnet().double()
    compare(net, double(), 12)
    with hooked(net, {layer: lambda _: None}):
        compare(net, double(), pairs)
    compare(net, double(), 12)


def test_edit_of_a_layer_has_its_effect() -> None:
    net, x = resnet().double(), double()
    with hooked(
        net, {"conv1": lambda z: z * 2, "layer1.0.bn1": lambda z: z + 1, "layer2": lambda z: z * 3}
    ):
        compare(net, x, 10)


def test_watcher_of_a_container_sees_the_convolutions_own_output() -> None:
    net, x = (
        Two(lambda net, x: net.norm(net.stem(x)), stem=nn.Sequential(nn.Conv2d(1, 4, 3))).double(),
        double(),
    )
    seen: list[Tensor] = []
    handle = net.stem.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with eval_mode(net):
        run_folded(net, x, lambda layout: net(x.to(memory_format=layout)))
    handle.remove()
    for output in seen:
        torch.testing.assert_close(output + 0, net.stem(x))


def test_gate_on_a_convolution_gets_its_own_output() -> None:
    net = gated().double()
    compare(Selective(net.cnn, {"layer4.0.conv2": net.gates["layer4.0"]}), double(), 19)


# ---------------------------------------------------------------- plans


def test_structure_is_found_out_once() -> None:
    net, passes = resnet().double(), []
    x = double()
    compare(net, x, 12)
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    with eval_mode(net):
        run_folded(net, x, lambda layout: net(x.to(memory_format=layout)))
        asked = len(passes)
        run_folded(net, x, lambda layout: net(x.to(memory_format=layout)))
    assert (asked, len(passes)) == (3, 4)  # once as it is, once folded, then the work itself


def test_changed_structure_is_noticed() -> None:
    net, x = plain().double(), double()
    compare(net, x, 1)
    net.bn1 = nn.Identity()
    compare(net, x, 0)
    net.relu2 = nn.BatchNorm2d(8).double()
    compare(net, x, 1)


def test_plan_made_while_the_network_is_folded_already_does_not_last() -> None:
    net, x = plain().double(), double()
    around = nn.Sequential(net)
    with folded(net, x):
        run_folded(around, x, lambda layout: around(x.to(memory_format=layout)))
    compare(around, x, 1)


def test_plan_dies_with_its_network() -> None:
    net = plain().double()
    compare(net, double(), 1)
    before = len(folding._PLANS)
    del net
    gc.collect()
    assert len(folding._PLANS) < before


def test_network_that_draws_random_numbers_draws_the_same_ones_as_without_folding() -> None:
    class Noisy(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    net, x = Noisy(ordinary).double(), double()
    with eval_mode(net):
        with torch.random.fork_rng():
            wanted = [answers(net, x) for _ in range(2)]
        found = [run_folded(net, x, lambda _: answers(net, x)) for _ in range(2)]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- objectives that look inside


def in_parts(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.linear(net.first(x).relu().mean((2, 3))), y, reduction="none")


def with_weights_changed_in_place(net: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        for numbers in net.parameters():
            numbers.mul_(1.1)
    return cross_entropy(net, x, y)


def with_other_weights(net: Any, x: Tensor, y: Tensor) -> Tensor:
    numbers = [
        *net.named_parameters(),
        *((name, b) for name, b in net.named_buffers() if b.is_floating_point()),
    ]
    state = {name: own.detach() + 0.1 for name, own in numbers}
    for name, own in numbers:
        while state[name]._version < own._version:  # as often changed as its own ones
            state[name].add_(0)
    return F.cross_entropy(torch.func.functional_call(net, state, x), y, reduction="none")


def viewing(net: Any, x: Tensor, _: Tensor) -> Tensor:
    with capture(net, "norm") as features:
        net(x)
    return features["norm"].view(len(x), -1).square().sum(1)


OBJECTIVES = [cross_entropy, in_parts, with_weights_changed_in_place, with_other_weights, viewing]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.__name__)
def test_objective_that_looks_inside_attacks_as_without_folding(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, y) = Two(alone).double(), images(dtype=torch.float64)
    attack = PGD(eps=0.1, steps=4, objective=objective)
    copies = [copy.deepcopy(net) for _ in range(2)]
    PGD(steps=1)(copies[1], x, y)  # so that it is known how to fold it
    found = [attack(one, x, y, seed()) for one in copies]
    monkeypatch.setattr("channelscope.attacks.base.prepare", lambda *_: [nullcontext()])
    wanted = attack(net, x, y, seed())
    assert not torch.equal(wanted, x)
    for adversarial in found:
        torch.testing.assert_close(adversarial, wanted, rtol=0, atol=1e-9)


def test_objective_that_fails_on_a_folded_network_is_not_tried_on_it_again() -> None:
    net, (x, y) = Two(ordinary), images()
    asked = []

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        asked.append(1)
        return viewing(net, x, y)

    for _ in range(2):
        PGD(steps=3, objective=objective)(net, x, y)
    assert len(asked) == 1 + 3 + 3


# ---------------------------------------------------------------- left as found


@contextmanager
def folded(net: nn.Module, x: Tensor) -> Iterator[None]:
    with eval_mode(net), folding.Prepared(net, folding._get_plan(net, x)):
        yield


def test_network_is_its_own_while_it_is_folded() -> None:
    net, x = resnet(), images()[0]
    before, state = (
        list(net.parameters()),
        {name: numbers.clone() for name, numbers in net.state_dict().items()},
    )
    with folded(net, x):
        assert len(folded_layers(net)) == 24
        assert all(a is b for a, b in zip(net.parameters(), before, strict=True))
        torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_network_is_left_as_found_after_an_exception(error: type[BaseException]) -> None:
    net, (x, y) = mixed(resnet()), images()

    def stop(*_: Any) -> Tensor:
        raise error("stopped")

    with unchanged(net), pytest.raises(error, match="stopped"):
        PGD(objective=stop)(net, x, y, seed())
    assert not folded_layers(net)


def test_network_that_fails_fails_with_its_own_error() -> None:
    net, (x, y) = Brittle(), images()
    with unchanged(net), pytest.raises(RuntimeError, match="broken behind"):
        PGD()(net, x, y, seed())
    with pytest.raises(RuntimeError, match="channels"):
        PGD()(plain(), x.expand(-1, 7, -1, -1), y)


def test_network_that_switches_itself_to_train_mode_is_refused_and_restored() -> None:
    net, (x, y) = TrainsItself(), images()
    with unchanged(net), pytest.raises(UserError, match="switches itself to train mode"):
        PGD(steps=2)(net, x, y, seed())
    assert not folded_layers(net)


def test_attack_works_the_same_within_an_attack() -> None:
    net, (x, y) = resnet().double(), images(dtype=torch.float64)
    inner = PGD(steps=1, random_start=False)

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(net, x, y) + 0 * inner(net, x, y).sum()

    found = PGD(steps=2, random_start=False, objective=objective)(net, x, y)
    torch.testing.assert_close(
        found, PGD(steps=2, random_start=False)(net, x, y), rtol=0, atol=1e-9
    )


# ---------------------------------------------------------------- precisions and formats


def untouched(net: nn.Module, x: Tensor) -> bool:
    """Tell whether a network is left alone."""
    with eval_mode(net):
        return run_folded(
            net, x, lambda layout: layout == torch.preserve_format and not folded_layers(net)
        )


class Casts(nn.Module):
    """Has a network of bfloat16 and takes images of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trivial().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16())


def trivial() -> nn.Module:
    """Make a network that answers the same to the bit when folded, in any precision."""
    net = Two(alone, norm=nn.BatchNorm2d(4, eps=0, affine=False))
    net.norm.reset_running_stats()
    return net


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_networks_of_half_precision_are_left_alone(dtype: torch.dtype) -> None:
    assert not untouched(trivial(), images()[0])
    assert untouched(trivial().to(dtype), images(dtype=dtype)[0])
    assert untouched(Casts(), images()[0])


def test_images_of_another_precision_or_shape_leave_the_network_alone() -> None:
    net, x = plain(), images()[0]
    assert untouched(net.double(), x)
    assert not untouched(net, x.double())
    assert untouched(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(3, 4))


def compiled(net: nn.Module, graphs: list[Any]) -> nn.Module:
    return torch.compile(net, backend=lambda graph, _: graphs.append(graph))


def compiled_in_place(net: nn.Module, graphs: list[Any]) -> nn.Module:
    net.compile(backend=lambda graph, _: graphs.append(graph))
    return net


def replicated(net: nn.Module, _: list[Any]) -> nn.Module:
    return nn.DataParallel(net)


@pytest.mark.parametrize(
    "wrap", [compiled, compiled_in_place, replicated], ids=lambda wrap: wrap.__name__
)
def test_compiled_and_replicated_networks_are_left_alone(
    wrap: Callable[[nn.Module, list[Any]], nn.Module],
) -> None:
    graphs: list[Any] = []
    assert untouched(nn.Sequential(wrap(plain(), graphs)), images()[0])
    assert not graphs
    assert not untouched(nn.Sequential(plain()), images()[0])


def test_autocast_attacks_fold_too() -> None:
    net, (x, y) = resnet("resnet18", 4), images()
    counts: list[int] = []

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        counts.append(len(folded_layers(net)))
        logits = net(x)
        assert logits.dtype == torch.bfloat16
        return F.cross_entropy(logits.float(), y, reduction="none")

    with torch.autocast("cpu", torch.bfloat16):
        adversarial = PGD(objective=objective, steps=2)(net, x, y, seed())
    assert counts == [40, 40]
    assert (cross_entropy(net, adversarial, y) > cross_entropy(net, x, y)).float().mean() > 0.5


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("objective", [cross_entropy, Joint()], ids=["cross-entropy", "joint"])
def test_adversarial_images_have_the_format_of_the_images(
    layout: torch.memory_format, objective: Any
) -> None:
    net, (x, y) = resnet(channels=3), images(channels=3)
    x = x.contiguous(memory_format=layout)
    for attack in (
        PGD(steps=1, objective=objective),
        PGD(steps=1, restarts=2),
        PGD(steps=3, early_stop=0),
    ):
        assert attack(net, x, y, seed()).stride() == x.stride()
