"""What networks return, and why they fail: logits are found, refusals say the true cause."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.errors import UserError
from channelscope.layers.hooks import named_layers
from channelscope.layers.outputs import PlainLogits, choose_entry, pick_entry, widen_logit
from channelscope.study.outputs import adapt_network, count_classes, explain_refusal
from helpers.networks import CLASSES, CallsAutograd, Returns, gated, images, plain, unchanged

QUICK: dict[str, Any] = {"attack": "fgsm", "attacks": [], "eps": 0.1, "progress": False}


class Featured(nn.Module):
    """Returns features and logits, as many networks for metric learning do."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any] = lambda z, logits: (z, logits)):
        super().__init__()
        self.net, self.form = plain(), form

    def forward(self, x: Tensor) -> Any:
        z = self.net[:-1](x)
        return self.form(z, self.net.linear(z))


class Binary(nn.Module):
    """Returns one logit for two classes."""

    def __init__(self, squeeze: bool = False) -> None:
        super().__init__()
        self.net, self.head, self.squeeze = plain()[:-1], nn.Linear(8, 1), squeeze

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.net(x))
        return z.squeeze(1) if self.squeeze else z


class NeedsGraph(CallsAutograd):
    """Weighs its features by a gradient, for which it relies on grad mode, as releases do."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).relu()
        best = self.probe(z.mean((2, 3))).amax(1).sum()
        (g,) = torch.autograd.grad(best, z, retain_graph=True)
        return self.linear((z * g.sum((2, 3), keepdim=True)).mean((2, 3)))


class WithMask(nn.Module):
    """Takes a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x) * mask


@dataclass
class Fields:
    embedding: Tensor
    prediction: Tensor


# Forms of an output, and the entry that has the logits.
FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tuple": (lambda z, logits: (z, logits), 1),
    "list": (lambda z, logits: [z, logits], 1),
    "logits first": (lambda z, logits: (logits, z), 0),
    "dict": (lambda z, logits: {"z": z, "y": logits}, "y"),
    "dict of logits": (lambda z, logits: {"other": logits + 1, "logits": logits}, "logits"),
    "dataclass": (Fields, "prediction"),
    "object": (lambda z, logits: SimpleNamespace(hidden=z, logits=logits), "logits"),
    "ordered": (lambda z, logits: OrderedDict(last_hidden_state=z, logits=logits), "logits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_told_from_features_by_the_number_of_classes(form: str) -> None:
    make, entry = FORMS[form]
    net, (x, _) = Featured(make).eval(), images()
    assert choose_entry(net(x), len(x), CLASSES) == entry
    adapted = adapt_network(net, x, CLASSES)
    with unchanged(net):
        assert torch.equal(adapted(x), net.net(x))
    assert named_layers(adapted) == named_layers(net)
    assert count_classes(net, x) in (None, CLASSES)


def test_what_returns_plain_logits_stays_as_it_is() -> None:
    x, _ = images()
    for net in (plain(), gated(), CallsAutograd().eval()):
        assert adapt_network(net, x, CLASSES) is net
        assert adapt_network(net, x, CLASSES, output=1) is net
        assert count_classes(net, x) == CLASSES


def test_features_as_wide_as_the_logits_are_asked_about() -> None:
    net, (x, _) = Returns(lambda logits, _: (logits + 1, logits)).eval(), images()
    with pytest.raises(UserError, match=r"2 tensors of 5 columns.* --output 0 or --output 1"):
        adapt_network(net, x, CLASSES)
    assert torch.equal(adapt_network(net, x, CLASSES, output=1)(x), net.net(x))
    assert torch.equal(adapt_network(net, x, CLASSES, output=0)(x), net.net(x) + 1)


@pytest.mark.parametrize("entry", [2, "logit", -1])
def test_an_entry_that_is_not_there_is_refused(entry: Any) -> None:
    with pytest.raises(UserError, match=r"output: there is no tensor .* with the entries 0, 1"):
        choose_entry((torch.zeros(2, 3), torch.zeros(2, 5)), 2, 5, entry)


def test_entries_of_a_dict_are_named_or_counted() -> None:
    output = {"a": torch.zeros(2, 3), "b": torch.ones(2, 5)}
    assert torch.equal(pick_entry(output, "b"), output["b"])
    assert torch.equal(pick_entry(output, 1), output["b"])


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_for_two_classes_is_that_of_the_second(squeeze: bool) -> None:
    net, (x, _) = Binary(squeeze).eval(), images(12)
    logits = adapt_network(net, x, 2)(x)
    assert torch.equal(logits, torch.stack([torch.zeros(12), net(x).flatten()], 1))
    torch.testing.assert_close(logits.softmax(1)[:, 1], net(x).flatten().sigmoid())
    y = (net(x).flatten() > 0).long()
    y[0] = 1 - y[0]
    result = cs.compare({"net": net}, (x, y), replicates=20, **QUICK)
    natural = result.robustness.query("attack == 'natural' and `class` == 'all'")["accuracy"]
    assert natural.item() == pytest.approx(11 / 12)
    assert result.meta["models"]["net"]["layers"] == ["net.relu2"]


def test_logits_that_are_no_single_one_stay() -> None:
    z = torch.rand(4, 3)
    assert widen_logit(z) is z


def test_a_network_of_features_and_logits_is_compared() -> None:
    net, (x, y) = Featured().eval(), images(12)
    result = cs.compare({"net": net}, (x, y), replicates=20, **QUICK)
    plainly = cs.compare({"net": net.net}, (x, y), replicates=20, **QUICK)
    assert result.meta["models"]["net"]["arch"] == "Featured"
    assert result.meta["models"]["net"]["layers"] == ["net.relu2"]
    for name in ("magnitude", "relevance"):
        np.testing.assert_array_equal(result.activations[name], plainly.activations[name])
    assert result.robustness["accuracy"].equals(plainly.robustness["accuracy"])


def test_two_networks_of_one_output_each_take_what_output_says() -> None:
    ambiguous = Returns(lambda logits, _: (logits + 1, logits)).eval()
    with pytest.raises(UserError, match=r"^a: The network returns 2 tensors"):
        cs.evaluate({"a": ambiguous}, images(), attacks="fgsm", checks=0, progress=False)
    result = cs.evaluate(
        {"a": ambiguous, "b": plain()},
        images(),
        attacks="fgsm",
        eps=0.1,
        checks=0,
        output=1,
        progress=False,
    )
    assert list(result.worst_case["model"]) == ["a", "b"]


# ---------------------------------------------------------------- a graph in the forward pass


def test_a_network_whose_forward_takes_gradients_runs_without_grad_mode() -> None:
    torch.manual_seed(0)
    net, (x, y) = NeedsGraph().eval(), images()
    with pytest.raises(RuntimeError), torch.no_grad():
        net(x)
    adapted = adapt_network(net, x, CLASSES)
    assert isinstance(adapted, PlainLogits)
    wanted = net(x.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(adapted(x), wanted)
        assert not adapted(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(adapted(x), wanted)
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(adapted(moved).gather(1, y.unsqueeze(1)).sum(), moved)
    assert bool(slope.abs().amax() > 0)


def test_a_network_whose_forward_takes_gradients_is_compared() -> None:
    torch.manual_seed(0)
    net, data = NeedsGraph().eval(), (images(10)[0], torch.arange(10) % CLASSES)
    with unchanged(net):
        result = cs.compare({"net": net}, data, replicates=20, **QUICK)
    assert result.meta["models"]["net"]["layers"] == ["linear:input"]
    assert np.isfinite(result.activations[["magnitude", "relevance"]]).all(axis=None)


# ---------------------------------------------------------------- refusals


def exported(**options: Any) -> nn.Module:
    return torch.export.export(plain(), (images(2)[0],), **options).module()


def test_programs_without_layers_are_evaluated_and_said_to_have_none() -> None:
    x, y = images(12)
    dynamic = exported(dynamic_shapes=({0: torch.export.Dim("n", min=1, max=512)},))
    for net in (torch.jit.trace(plain(), x[:2]), torch.jit.script(plain()), dynamic):
        result = cs.evaluate(
            {"net": net}, (x, y), attacks=["fgsm"], eps=0.1, checks=0, progress=False
        )
        right = (net(x).argmax(1) == y).double().mean().item()
        assert result.worst_case["natural"].item() == pytest.approx(right)
        with pytest.raises(UserError, match=r"layers of TorchScript .* cannot be read: pass"):
            cs.compare({"net": net}, (x, y), replicates=20, **QUICK)


def test_a_program_of_one_batch_size_is_said_to_be_so() -> None:
    with pytest.raises(UserError, match=r"takes only what it was made for .* dynamic first"):
        cs.evaluate({"net": exported()}, images(12), attacks="fgsm", checks=0, progress=False)


def test_a_network_of_two_inputs_is_said_to_be_so() -> None:
    with pytest.raises(UserError, match=r"^net: .*more inputs than the images .*'mask'.* wrap it"):
        cs.compare({"net": WithMask()}, images(12), **QUICK)


def test_a_network_that_cuts_its_own_gradient_is_said_to_do_so() -> None:
    class Cuts(NeedsGraph):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    net, (x, _) = Cuts().eval(), images()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match=r"gradient in its forward .* remove detach"):
        adapt_network(net, x, CLASSES)


def test_images_that_do_not_fit_are_still_the_cause_where_they_are() -> None:
    with (
        pytest.raises(UserError, match=r"does not take images of shape \(1, 8, 8\).* other data"),
        explain_refusal(images()[0], "choose other data"),
    ):
        plain(channels=3)(images()[0])


def test_output_is_typed_on_the_command_line(tmp_path: Path) -> None:
    from channelscope.cli.parser import make_parser

    parser = make_parser()
    for word, value in (("1", 1), ("logits", "logits")):
        args = parser.parse_args(["evaluate", "--models", "a.pt", "--output", word])
        assert args.output == value
