"""Hooks: any network, any output, every error said at once, nothing left behind."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope
from channelscope.errors import UserError
from channelscope.layers.hooks import (
    LayerError,
    eval_mode,
    first_tensor,
    get_logits,
    handed_on,
    has_hooks,
    hooked,
    logits_for,
    match_layers,
    named_layers,
    trace,
)
from helpers.networks import (
    FORMS,
    Answer,
    Brittle,
    Returns,
    Shared,
    TrainsInPassing,
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


def look(_: Tensor) -> None:
    """Leave the output alone."""


def fail(_: Tensor) -> None:
    raise RuntimeError("the edit failed")


class Around(nn.Module):
    """A network of one layer that returns anything."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer = Returns(form)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("layer5.0", "layer4.0"), ("layer4.0.gate", "layer4.0.gated"), ("conv", "conv1")],
)
def test_unknown_layer_is_answered_with_suggestions(wrong: str, meant: str) -> None:
    net = gated()
    with pytest.raises(
        LayerError, match=f"There is no layer '{wrong}' in this network. Did you mean .*'{meant}'"
    ):
        hooked(net, {wrong: look}).__enter__()
    assert hooks(net) == 0


def test_a_name_like_none_is_answered_with_the_outermost_layers() -> None:
    with (
        pytest.raises(LayerError, match=r"It has .*conv1, .*layer4, .*'channelscope layers'"),
        hooked(gated(), {"zzzzzzz": look}),
    ):
        pass


@pytest.mark.parametrize("wrong", ["zzzzzzz", "relu1@", "relu1@x", "relu1@-1", "zzzzzzz@1"])
def test_name_that_is_no_layer_is_refused(wrong: str) -> None:
    with (
        pytest.raises(LayerError, match=f"There is no layer '{wrong}'"),
        hooked(plain(), {wrong: look}),
    ):
        pass


def test_gated_network_names_its_backbones_layers_and_its_gates() -> None:
    names = named_layers(gated())
    assert {"conv1", "layer4.1", "layer4.0.gated", "layer4.1.gated", "linear"} <= set(names)
    assert not any(name.startswith(("cnn", "selectors")) for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_layers_keep_their_names_within_wrappers_and_are_edited_there() -> None:
    (x, _), net = images(), plain()
    compiled = torch.compile(net, backend="eager")
    compiled(x)  # now compiled, without hooks
    for wrapped in (nn.DataParallel(net), compiled, nn.DataParallel(compiled)):
        assert named_layers(wrapped) == named_layers(net)
        with hooked(wrapped, {"relu2": torch.zeros_like}):
            torch.testing.assert_close(wrapped(x), net.linear.bias.expand(len(x), -1))
        assert [call.name for call in trace(wrapped, x)[0]] == list(named_layers(net))
        torch.testing.assert_close(wrapped(x), net(x))


def test_empty_name_is_the_network_itself() -> None:
    x, _ = images()
    net = plain()
    with hooked(net, {"": lambda z: 2 * z}):
        doubled = net(x)
    assert torch.equal(doubled, 2 * net(x))


# ---------------------------------------------------------------- edits


def test_edit_replaces_what_the_rest_of_the_network_sees() -> None:
    x, _ = images()
    net = plain()
    with hooked(net, {"relu2": torch.zeros_like}):
        logits = net(x)
    torch.testing.assert_close(logits, net.linear.bias.expand(len(x), -1))


def test_edit_that_returns_none_leaves_the_output_alone() -> None:
    x, _ = images()
    net, seen = plain(), []
    with hooked(net, {"conv1": lambda z: seen.append(z.shape)}):
        logits = net(x)
    assert seen == [(6, 6, 8, 8)]
    assert torch.equal(logits, net(x))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_edit_replaces_the_first_tensor_of_any_output(
    form: Callable[[Tensor, Tensor], Any],
) -> None:
    x, _ = images()
    net = Around(form)
    plain_output = net(x)
    with hooked(net, {"layer": lambda z: z + 1}):
        edited = net(x)
    assert type(edited) is type(plain_output)
    if isinstance(edited, Tensor):
        assert torch.equal(edited, plain_output + 1)
        return
    if dataclasses.is_dataclass(edited):  # its features come first
        edited, plain_output = (
            [edited.features, edited.logits],
            [plain_output.features, plain_output.logits],
        )
        x = plain_output[1]
    keys = list(plain_output) if isinstance(plain_output, dict) else [0, 1]
    assert torch.equal(edited[keys[0]], plain_output[keys[0]] + 1)
    assert edited[keys[1]] is x or torch.equal(edited[keys[1]], plain_output[keys[1]])


def test_named_tuple_keeps_its_fields() -> None:
    net = Around(Answer)
    with hooked(net, {"layer": lambda z: 0 * z}):
        assert net(images()[0]).logits.abs().max() == 0


@dataclass(frozen=True)
class Cached:
    """As networks of tokens return it: attention, and a cache; strict about its fields."""

    words: str
    attended: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        assert self.words == "made"
        object.__setattr__(self, "words", "kept")


NESTED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple in a tuple": lambda z, other: ((z, other), "cache"),
    "dict in a tuple": lambda z, other: ("cache", {"z": z, "other": other}),
    "tuple in a dict": lambda z, other: {"words": "none", "both": (z, other)},
    "named tuple in a list": lambda z, other: [None, Answer(z, other)],
    "tuple in a frozen dataclass": lambda z, other: Cached("made", (z, other)),
}


def _flat(output: Any) -> list[Any]:
    if dataclasses.is_dataclass(output):
        return [output.words, *output.attended]
    items = (
        output.values()
        if isinstance(output, dict)
        else output
        if isinstance(output, tuple | list)
        else None
    )
    return [output] if items is None else [inner for item in items for inner in _flat(item)]


@pytest.mark.parametrize("form", NESTED.values(), ids=NESTED.keys())
def test_edit_replaces_the_first_tensor_one_level_deeper(
    form: Callable[[Tensor, Tensor], Any],
) -> None:
    (x, _), net = images(), Around(form)
    found = net(x)
    with hooked(net, {"layer": lambda z: z + 1}):
        edited = net(x)
    assert type(edited) is type(found)
    tensors = [
        [item for item in _flat(output) if isinstance(item, Tensor)] for output in (edited, found)
    ]
    assert torch.equal(tensors[0][0], tensors[1][0] + 1)
    assert torch.equal(tensors[0][1], tensors[1][1])
    words = [
        [item for item in _flat(output) if not isinstance(item, Tensor)]
        for output in (edited, found)
    ]
    assert words[0] == words[1]


def test_layer_without_a_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="The layer 'layer' returns a str that holds no tensor"):
        first_tensor("words", "layer 'layer'")
    net = Around(lambda _, __: {"words": "none"})
    with (
        pytest.raises(UserError, match="returns a dict that holds no tensor"),
        hooked(net, {"layer": look}),
    ):
        net(images()[0])


def test_edits_stack_in_the_order_of_their_contexts() -> None:
    x, _ = images()
    net = plain()
    logits = net(x)
    with hooked(net, {"linear": lambda z: z + 1}), hooked(net, {"linear": lambda z: z * 10}):
        torch.testing.assert_close(net(x), 10 * (logits + 1))


# ---------------------------------------------------------------- calls


def test_module_called_twice_is_refused_and_told_to_index_by_call() -> None:
    net = Twice()
    with (
        hooked(net, {"relu": look}),
        pytest.raises(LayerError, match=r"'relu' runs more .* 'relu@0' or 'relu@1'"),
    ):
        net(images()[0])
    assert hooks(net) == 0


@pytest.mark.parametrize(("call", "space"), [(0, 6), (1, 4)])
def test_call_of_a_module_called_twice_is_addressed_by_its_index(call: int, space: int) -> None:
    net, seen = Twice(), []
    with hooked(net, {f"relu@{call}": lambda z: seen.append(z.shape[2])}):
        net(images()[0])
        net(images()[0])
    assert seen == [space, space]


def test_module_called_once_may_be_indexed_too() -> None:
    net, seen = plain(), []
    with hooked(net, {"relu1@0": lambda z: seen.append(len(z))}):
        net(images()[0])
    assert seen == [6]


def test_call_that_does_not_happen_is_an_error() -> None:
    net = Twice()
    with (
        pytest.raises(LayerError, match=r"'relu@2' ran only 2 time\(s\)"),
        hooked(net, {"relu@2": look}),
    ):
        net(images()[0])


def test_hooked_layer_that_never_ran_is_an_error() -> None:
    net = Twice()
    with (
        pytest.raises(LayerError, match="'unused' did not run in the forward pass"),
        hooked(net, {"unused": look}),
    ):
        net(images()[0])
    assert hooks(net) == 0


def test_shared_module_is_addressed_by_its_first_name_call_by_call() -> None:
    net, seen = Shared(), []
    with hooked(
        net,
        {
            "relu1@0": lambda z: seen.append(z.shape[2]),
            "relu1@1": lambda z: seen.append(z.shape[2]),
        },
    ):
        net(images()[0])
    assert seen == [6, 4]
    with (
        pytest.raises(LayerError, match="'relu1' runs more than once"),
        hooked(net, {"relu1": look}),
    ):
        net(images()[0])


def test_shared_modules_second_name_is_answered_with_the_first() -> None:
    with pytest.raises(LayerError, match="'relu1'"), hooked(Shared(), {"relu2": look}):
        pass


def test_calls_are_counted_afresh_after_a_failed_forward_pass() -> None:
    net, seen = Twice(), []
    with hooked(net, {"relu@1": lambda z: seen.append(z.shape[2])}):
        with pytest.raises(RuntimeError):
            net(
                torch.zeros(1, 1, 4, 4)
            )  # too small for the second convolution: the ReLU has run once
        net(images()[0])
    assert seen == [4]


# ---------------------------------------------------------------- nothing left behind


@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_no_hook_is_left_after_an_exception_in_the_network(layer: str) -> None:
    net = Brittle()
    with pytest.raises(RuntimeError, match="broken"), hooked(net, {layer: look}):
        net(images()[0])
    assert hooks(net) == 0


def test_no_hook_is_left_after_an_exception_in_an_edit() -> None:
    net = gated()
    with (
        pytest.raises(RuntimeError, match="the edit failed"),
        hooked(net, {"layer1": look, "layer4.0.gated": fail}),
    ):
        net(images()[0])
    assert hooks(net) == 0


def test_no_hook_is_left_after_an_exception_in_the_context() -> None:
    net = plain()
    with pytest.raises(KeyboardInterrupt), hooked(net, {"conv1": look}):
        raise KeyboardInterrupt
    assert hooks(net) == 0


def test_hooks_of_others_stay() -> None:
    net, seen = plain(), []
    net.conv1.register_forward_hook(lambda *_: seen.append(1))
    with hooked(net, {"conv1": look}):
        net(images()[0])
    net(images()[0])
    assert seen == [1, 1]


def test_no_other_module_registers_hooks() -> None:
    folder = Path(channelscope.__file__).parent
    users = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"\.register_\w*hook", path.read_text())
    }
    assert users == {"hooks.py"}


# ---------------------------------------------------------------- evaluating


@pytest.mark.parametrize("make", [plain, gated, Twice])
def test_evaluating_restores_mixed_modes_and_frozen_parameters(
    make: Callable[[], nn.Module],
) -> None:
    net = mixed(make())
    with unchanged(net), eval_mode(net):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        net(images()[0])


def test_evaluating_restores_after_an_exception() -> None:
    net = mixed(plain())
    with unchanged(net), pytest.raises(RuntimeError, match="inside"), eval_mode(net):
        raise RuntimeError("inside")


@pytest.mark.parametrize("make", [TrainsItself, TrainsInPassing])
def test_network_that_switches_itself_to_train_mode_is_refused_and_restored(
    make: Callable[[], nn.Module],
) -> None:
    net = mixed(make())
    with (
        unchanged(net),
        pytest.raises(UserError, match="switches itself to train mode"),
        eval_mode(net),
    ):
        net(images()[0])


def test_network_that_trains_itself_is_restored_after_another_exception() -> None:
    net, brittle = TrainsItself(), Brittle()
    with unchanged(net), pytest.raises(RuntimeError, match="broken behind"), eval_mode(net):
        brittle(net(images()[0]).view(1, 1, 6, 5))


class Counting(nn.Module):
    """Has buffers of every kind, and counts its passes in some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("missing", torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.flag.fill_(True)
        self.turned.mul_(2)
        return self.net(x)


def test_evaluating_puts_back_buffers_that_the_network_changes() -> None:
    net, (x, _) = Counting(), images()
    with unchanged(net), eval_mode(net):
        net(x)
        assert net.passes == 1
    assert net.turned.flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_drift_of_any_statistic_is_refused_and_put_back(name: str) -> None:
    net = plain()
    with (
        unchanged(net),
        pytest.raises(UserError, match="switches itself to train mode"),
        eval_mode(net),
    ):
        getattr(net.bn1, name).add_(1)


# ---------------------------------------------------------------- what goes from layer to layer


def pairs_of(net: nn.Module, *names: str) -> dict[str, str]:
    layers = dict(net.named_modules())
    with unchanged(net):
        return handed_on(
            net, images()[0], {name: layers[name] for name in names or layers if name}
        )[0]


def test_layers_that_hand_their_output_on_are_found() -> None:
    found = pairs_of(plain(), "conv1", "bn1", "conv2", "flatten", "linear")
    assert found == {
        "conv1": "bn1",
        "bn1": "conv2",
        "flatten": "linear",
    }  # a ReLU in place gives what it was given
    assert pairs_of(plain(), "conv1", "linear") == {}


def test_layers_called_twice_or_with_two_takers_hand_nothing_on() -> None:
    assert pairs_of(Twice()) == {}
    assert pairs_of(Shared()) == {}

    class Forks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn1, self.bn2 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            return (self.bn1(z) + self.bn2(z)).mean((2, 3))

    net = Forks().eval()
    assert pairs_of(net) == {}
    assert pairs_of(net, "conv", "bn1") == {"conv": "bn1"}


def test_logits_come_with_what_is_handed_on() -> None:
    net, (x, _) = Returns(FORMS["dict"]), images()
    assert torch.equal(handed_on(net, x, {})[1], net.net(x))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_logits_of_the_passes_that_are_given_these_very_images_are_kept(
    form: Callable[[Tensor, Tensor], Any],
) -> None:
    net, (x, _) = Returns(form), images()
    with unchanged(net), logits_for(net, x) as kept:
        net(x)
        net(x + 0)
        net(x=x)
    assert len(kept) == 2
    torch.testing.assert_close(kept[0], net.net(x).detach(), rtol=0, atol=0)
    assert not kept[0].requires_grad


def test_hooks_of_every_kind_are_noticed() -> None:
    layer = nn.ReLU()
    kinds = [
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
    ]
    assert not has_hooks(layer)
    for register in kinds:
        handle = register(lambda *_: None)
        assert has_hooks(layer)
        handle.remove()
    assert not has_hooks(layer)


# ---------------------------------------------------------------- logits and traces


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_logits_are_found_in_any_output(form: Callable[[Tensor, Tensor], Any]) -> None:
    logits, other = torch.rand(3, 4), torch.rand(3, 2)
    assert get_logits(form(logits, other)) is logits


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"returns a tensor of shape \(2, 3, 4, 4\), not logits"):
        get_logits(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("output", [None, "logits", {"logits": "none"}, (), 3.0])
def test_output_without_a_tensor_is_refused(output: Any) -> None:
    with pytest.raises(UserError, match="holds no tensor"):
        get_logits(output)


def test_trace_lists_the_calls_in_order_with_their_inputs_and_outputs() -> None:
    x, _ = images()
    net = Twice()
    with unchanged(net):
        calls, logits = trace(net, x)
    assert [call.name for call in calls] == ["conv1", "relu@0", "conv2", "relu@1", "linear"]
    assert calls[0].input is x
    assert torch.equal(calls[1].output, net.conv1(x).relu())
    assert torch.equal(calls[-1].output, logits)


def test_trace_keeps_outputs_safe_from_later_operations_in_place() -> None:
    calls, _ = trace(plain(), images()[0])
    by_name = {call.name: call.output for call in calls}
    assert by_name["bn1"].min() < 0 <= by_name["relu1"].min()


def test_trace_leaves_no_hook_after_an_exception() -> None:
    net = mixed(Brittle())
    with unchanged(net), pytest.raises(RuntimeError, match="broken"):
        trace(net, images()[0])


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("layer4.*", ["layer4.0", "layer4.1"]),
        ("layer[13]", ["layer1", "layer3"]),
        ("layer?.0.bn1", [f"layer{stage}.0.bn1" for stage in (1, 2, 3, 4)]),
        ("layer4.*.conv*", [f"layer4.{block}.conv{index}" for block in (0, 1) for index in (1, 2)]),
        ("conv1", ["conv1"]),
    ],
)
def test_pattern_stands_for_the_layers_that_it_matches_part_by_part(
    pattern: str, wanted: list[str]
) -> None:
    assert match_layers(resnet("resnet18"), [pattern], images()[0]) == wanted


def test_pattern_matches_calls_in_the_order_in_which_they_run_and_what_does_not_run_not() -> None:
    net, (x, _) = Twice(), images()
    assert (
        match_layers(net, ["relu*"], x) == match_layers(net, ["relu@?"], x) == ["relu@0", "relu@1"]
    )
    assert match_layers(net, ["*"], x) == ["conv1", "relu@0", "conv2", "relu@1", "linear"]


def test_names_stay_and_nothing_is_listed_twice() -> None:
    net, (x, _) = resnet("resnet18"), images()
    assert match_layers(net, ["layer4.1", "layer4.*", "nothing"], x) == [
        "layer4.1",
        "layer4.0",
        "nothing",
    ]


def test_pattern_matches_the_layers_of_gates() -> None:
    assert match_layers(gated(), ["layer4.*.gated"], images()[0]) == [
        "layer4.0.gated",
        "layer4.1.gated",
    ]


def test_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        LayerError, match=r"No layer's name matches 'layer9.\*'.*'channelscope layers' lists"
    ):
        match_layers(resnet(), ["layer9.*"], images()[0])
