"""Gates: the paper's, to the last gradient; networks gated by layer name, and read by name."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from channelscope.errors import UserError
from channelscope.gates import (
    KINDS,
    FeatureSelector,
    Importance,
    LinearProbe,
    Selection,
    Selective,
    TwoLayerProbe,
    attached,
    mask_share,
    register_gate,
)
from channelscope.layers.features import capture
from channelscope.layers.hooks import LayerError
from channelscope.weights import Gate
from helpers.networks import (
    CLASSES,
    CallsAutograd,
    Twice,
    gated,
    hooks,
    images,
    plain,
    randomise_batchnorm,
    resnet,
    unchanged,
)

CHANNELS, LOGITS = 5, 4
PROBES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: LinearProbe(CHANNELS, LOGITS),
    "two-layer": lambda: TwoLayerProbe(CHANNELS, LOGITS, hidden=6),
    "custom": lambda: nn.Sequential(nn.Linear(CHANNELS, 6), nn.Tanh(), nn.Linear(6, LOGITS)),
}
IMGFS = ("softmax", "softmax-abs", "sigmoid", "softplus", "relu", "identity")
# The functions of the paper's ablation that have settings of their own.
SHAPED: dict[str, dict[str, Any]] = {
    "sigmoid(0.1 g)": {"imgf": "sigmoid", "scale": 0.1},
    "sigmoid(10 g)": {"imgf": "sigmoid", "scale": 10.0},
    "softplus, 5": {"imgf": "softplus", "sharpness": 5.0},
    "softplus, 20": {"imgf": "softplus", "sharpness": 20.0},
    "softmax, T = 0.5": {"imgf": "softmax", "temperature": 0.5},
    "softmax, T = 24, s = 2": {"imgf": "softmax", "temperature": 24.0, "budget": 2.0},
    "softmax, s = C": {"imgf": "softmax", "budget": "channels"},
    "softmax of sizes, T = 3, s = C": {
        "imgf": "softmax-abs",
        "temperature": 3.0,
        "budget": "channels",
    },
}
MODES = ("training with labels", "training", "evaluation with labels")


def features(n: int = 3) -> tuple[Tensor, Tensor]:
    """Draw features (n, c, 3, 2) in double precision, and labels."""
    return torch.randn(n, CHANNELS, 3, 2, dtype=torch.float64), torch.arange(n) % LOGITS


def selector(probe: str = "two-layer", **options: object) -> FeatureSelector:
    return FeatureSelector(PROBES[probe](), **options).double()


def gradients(answer: tuple[Tensor, ...], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a loss in which every number of the answer has a weight of its own."""
    loss = sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in answer)
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("imgf", IMGFS)
@pytest.mark.parametrize(("probe", "k"), list(product(PROBES, (1, 2, 3))), ids=str)
def test_gate_is_that_of_the_paper_with_all_its_gradients(
    probe: str, k: int, imgf: str, mode: str, detach: bool
) -> None:
    gate = selector(probe, k=k, imgf=imgf, detach=detach).train("training" in mode)
    z, y = features()
    z.requires_grad_()
    labels = y if "labels" in mode else None
    ours = tuple(gate(z, labels))[:3]
    papers = reference.gate(z, gate.probe, k, imgf, labels if "training" in mode else None, detach)
    torch.testing.assert_close(ours, papers, rtol=1e-10, atol=1e-12)
    wanted = [z, *gate.probe.parameters()]
    torch.testing.assert_close(
        gradients(ours, wanted), gradients(papers, wanted), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("shape", SHAPED)
def test_mask_functions_of_the_ablation_are_the_papers_with_all_their_gradients(
    shape: str, probe: str, mode: str, detach: bool
) -> None:
    options = SHAPED[shape]
    gate = selector(probe, detach=detach, **options).train("training" in mode)
    z, y = features()
    z.requires_grad_()
    labels = y if "labels" in mode else None
    ours = tuple(gate(z, labels))[:3]
    given = labels if "training" in mode else None
    papers = reference.gate(z, gate.probe, 2, labels=given, detach=detach, **options)
    torch.testing.assert_close(ours, papers, rtol=1e-10, atol=1e-12)
    wanted = [z, *gate.probe.parameters()]
    torch.testing.assert_close(
        gradients(ours, wanted), gradients(papers, wanted), rtol=1e-10, atol=1e-11
    )


@pytest.mark.parametrize(("budget", "total"), [(1.0, 1.0), (2.0, 2.0), ("channels", CHANNELS)])
@pytest.mark.parametrize("imgf", ["softmax", "softmax-abs"])
def test_a_softmax_shares_its_budget_among_the_channels(
    imgf: str, budget: float | str, total: float
) -> None:
    mask = selector(imgf=imgf, budget=budget, temperature=0.7)(features()[0]).mask
    torch.testing.assert_close(mask.sum(1), torch.full((3,), float(total), dtype=torch.float64))


@pytest.mark.parametrize("probe", PROBES)
def test_gate_takes_pooled_features_too(probe: str) -> None:
    gate = selector(probe)
    z, _ = features()
    flat = gate(z.mean((2, 3)))
    torch.testing.assert_close(flat.mask, gate(z).mask)
    torch.testing.assert_close(flat.features, gate(z).features.mean((2, 3)))


def test_label_among_the_runners_up_counts_twice() -> None:
    gate = selector("linear", imgf="identity").train()
    z, _ = features(1)
    runner_up = gate.probe(z.mean((2, 3))).topk(2).indices[:, 1]
    assert torch.equal(gate(z, runner_up).mask, 2 * gate.probe.output.weight[runner_up])


def test_softmax_masks_sum_to_one() -> None:
    z, _ = features()
    torch.testing.assert_close(selector()(z).mask.sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("imgf", [imgf for imgf in IMGFS if imgf != "identity"])
def test_masks_are_never_negative(imgf: str) -> None:
    assert (selector(imgf=imgf)(10 * features()[0]).mask >= 0).all()


@pytest.mark.parametrize("imgf", IMGFS)
def test_masks_of_large_relevance_stay_numbers(imgf: str) -> None:
    gate = selector("linear", imgf=imgf)
    with torch.no_grad():
        gate.probe.output.weight.mul_(1e4)
    assert gate(features()[0]).mask.isfinite().all()


def test_gate_of_cas_weighs_channels_by_the_largest_logits_weights() -> None:
    gate = selector("linear", k=1, imgf="identity")
    z, y = features()
    weight = gate.probe.output.weight
    assert torch.equal(gate.eval()(z, y).mask, weight[gate(z).probe_logits.argmax(1)])
    assert torch.equal(gate.train()(z, y).mask, weight[y])


def test_labels_reach_the_mask_only_in_training_mode() -> None:
    z, y = features()
    for gate in (selector("linear"), selector("two-layer"), selector("custom")):
        other = (y + 1) % LOGITS
        assert torch.equal(gate.eval()(z, y).mask, gate(z).mask)
        assert torch.equal(gate(z, y).mask, gate(z, other).mask)
        assert not torch.equal(gate.train()(z, y).mask, gate(z, other).mask)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("probe", PROBES)
def test_gates_run_without_autograd(probe: str, quiet: Callable[[], torch.no_grad]) -> None:
    gate = selector(probe)
    z, _ = features()
    wanted = gate(z)
    with quiet():
        torch.testing.assert_close(gate(z), wanted)
        assert not gate(z).features.requires_grad


MULTIPLIERS = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6) | st.just(0.0)


@given(
    st.lists(st.lists(MULTIPLIERS, min_size=7, max_size=7), min_size=1, max_size=4),
    st.floats(1e-6, 1e6),
)
def test_the_share_of_a_mask_is_a_participation_ratio(
    masks: list[list[float]], scale: float
) -> None:
    mask = torch.tensor(masks, dtype=torch.float64)
    share = mask_share(mask)
    expected = torch.tensor([reference.mask_share(row) for row in mask], dtype=torch.float64)
    torch.testing.assert_close(share, expected)
    torch.testing.assert_close(mask_share(-scale * mask), share)
    some = mask.any(1)
    assert (share[some] >= (1 - 1e-9) / 7).all()
    assert (share <= 1 + 1e-9).all()
    assert (share[~some] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [1e-30, 0.125, 1.0, 1e30])
def test_the_share_of_equal_multipliers_is_1_of_a_single_one_1_in_c_and_of_none_0(
    value: float, dtype: torch.dtype
) -> None:
    masks = torch.stack([torch.full((8,), value), value * torch.eye(8)[3], torch.zeros(8)]).to(
        dtype
    )
    share = mask_share(masks)
    assert share.dtype == dtype
    assert share.tolist() == pytest.approx([1, 1 / 8, 0], rel=1e-6)


def test_choosing_more_logits_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="cannot choose k = 5 of 4 logits: lower k"):
        selector(k=5)(features()[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "at least one logit, not k = 0"),
        ({"imgf": "tanh"}, "no mask function 'tanh': choose from softmax"),
        ({"scale": 10.0}, "softmax takes no scale, which is of sigmoid: leave scale = 10.0 out"),
        ({"imgf": "sigmoid", "temperature": 2.0}, "no temperature, which is of softmax and softm"),
        ({"imgf": "relu", "budget": "channels"}, "relu takes no budget"),
        ({"imgf": "softplus", "sharpness": 0.0}, "sharpness .* between 1e-6 and 1e6, not at 0.0"),
        ({"temperature": float("nan")}, "temperature .* not at nan"),
        ({"temperature": "channels"}, "temperature .* not at channels"),
        ({"budget": "c"}, "budget .* not at c"),
    ],
    ids=str,
)
def test_impossible_gates_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        selector(**options)


# ---------------------------------------------------------------- what an attacker sees


def input_gradient(gate: FeatureSelector, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    mask = gate(z).mask
    if not mask.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(mask.square().sum(), z, allow_unused=True, materialize_grads=True)[0]


@pytest.mark.parametrize(
    ("probe", "hidden"), [("linear", False), ("two-layer", True), ("custom", True)]
)
def test_detached_gate_hides_its_masks_gradient_unless_the_probe_is_linear(
    probe: str, hidden: bool
) -> None:
    gate, (z, _) = selector(probe), features()
    assert input_gradient(gate, z).abs().max() == 0
    with attached(gate):
        assert (input_gradient(gate, z).abs().max() > 0) == hidden


def test_attached_restores_every_gate_also_after_an_exception() -> None:
    net = gated()
    net.gates["layer4.1"].detach = False
    with pytest.raises(RuntimeError, match="inside"), attached(net):
        raise RuntimeError(
            "inside" if not any(gate.detach for gate in net.gates.values()) else "still detached"
        )
    assert [gate.detach for gate in net.gates.values()] == [True, False]


class Hiding(nn.Module):
    """A gate of somebody else's that hides gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.detach = True

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Selection:
        mask = (z.detach() if self.detach else z).flatten(2).mean(2).sigmoid()
        return Selection(z * mask[:, :, None, None], None, mask)


def test_attached_reaches_gates_of_every_kind_that_hide_gradients() -> None:
    net, (x, _) = Selective(resnet(), {"layer4.0": Hiding()}).eval(), images()
    x.requires_grad_()
    hidden = torch.autograd.grad(net(x).square().sum(), x)[0]
    with attached(net):
        seen = torch.autograd.grad(net(x).square().sum(), x)[0]
    assert not torch.allclose(hidden, seen)
    assert net.gates["layer4.0"].detach


# ---------------------------------------------------------------- every kind of gate


WHERE = {"cifs": "layer4", "fsr": "layer4", "eas": "layer4.0", "kap": "layer4.1.conv2"}
OPTIONS: dict[str, dict[str, Any]] = {"eas": {"height": 1, "width": 1}, "kap": {"noise": 0.1}}


def of_kind(kind: str, channels: int = 16, classes: int = CLASSES, **options: Any) -> nn.Module:
    return KINDS[kind].build(channels, classes, **OPTIONS.get(kind, {}) | options)


def gated_by(kind: str) -> Selective:
    return randomise_batchnorm(Selective(resnet("resnet18"), {WHERE[kind]: of_kind(kind)}))


def values(selection: Selection) -> list[Tensor]:
    """List everything that a gate returned."""
    found = [
        selection.features,
        selection.probe_logits,
        selection.mask,
        *selection.extra,
        *selection.rivals,
    ]
    return [tensor for tensor in found if tensor is not None]


def test_there_is_a_test_for_every_kind() -> None:
    assert WHERE.keys() == KINDS.keys()


class Half(nn.Module):
    """A kind of gate of somebody else's."""

    def __init__(self, channels: int, classes: int, *, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Selection:
        return Selection(self.factor * z)


def test_a_new_kind_is_registered_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "kap")
    assert register_gate("kap", help="halves features")(Half) is Half
    kind = KINDS["kap"]
    assert (kind.name, kind.help, kind.options) == ("kap", "halves features", {"factor": float})
    gate = Gate(layer="layer4", channels=16, kind="kap", options={"factor": 0.25}).build(CLASSES)
    assert gate(torch.ones(1, 16)).features.mean() == 0.25
    with pytest.raises(UserError, match="no option 'tau': choose from factor"):
        Gate(layer="layer4", channels=16, kind="kap", options={"tau": 1.0})
    with pytest.raises(UserError, match="There is a gate 'kap' already"):
        register_gate("kap", help="again")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_give_numbers_for_features_that_are_zero(kind: str, training: bool) -> None:
    z = torch.zeros(3, 16, 1, 1, requires_grad=True)
    answer = of_kind(kind).train(training)(z, torch.tensor([0, 1, 2]))
    assert all(tensor.isfinite().all() for tensor in values(answer))
    sum(tensor.sum() for tensor in values(answer)).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_without_autograd(kind: str, quiet: Callable[[], torch.no_grad]) -> None:
    net, (x, y) = gated_by(kind), images()
    wanted = net(x)
    with quiet():
        torch.testing.assert_close(net(x), wanted)
        answer = net.train().probed(x, y)
    assert not any(tensor.requires_grad for heads in answer.heads(y) for tensor, _ in heads)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_leaves_the_network_and_global_randomness_as_they_were(kind: str) -> None:
    net, (x, y) = gated_by(kind), images()
    with unchanged(net):
        net.probed(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_replaces_its_layers_features(kind: str) -> None:
    net, (x, _), layer = gated_by(kind), images(), WHERE[kind]
    with capture(net, layer, f"{layer}.gated") as seen:
        answer = net.probed(x)
    gate = net.gates[layer]
    torch.testing.assert_close(seen[f"{layer}.gated"], gate(seen[layer]).features)
    assert torch.equal(answer.features[layer], seen[layer])
    assert not torch.allclose(answer.logits, net.cnn(x))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_what_it_has(kind: str) -> None:
    net, (x, y) = gated_by(kind).train(), images()
    answer = net.probed(x, y)
    heads = [(answer.logits, y), *answer.heads(y)[0]]
    sum(nn.functional.cross_entropy(logits, targets) for logits, targets in heads).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad.any() for p in net.selectors.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cifs"])
def test_kinds_for_feature_maps_refuse_other_features(kind: str) -> None:
    with pytest.raises(
        UserError, match=rf"of kind {kind} selects feature maps .* of shape \(2, 16\): gate a conv"
    ):
        of_kind(kind)(torch.zeros(2, 16))


def test_plain_values_make_the_gate_of_cifs_and_that_of_cas() -> None:
    two_layer = of_kind(
        "cifs", probe="two-layer", hidden=7, beta=3.0, k=3, imgf="relu", detach=False
    )
    assert (two_layer.probe.hidden.out_features, two_layer.probe.beta) == (7, 3.0)
    assert (two_layer.k, two_layer.imgf, two_layer.detach) == (3, "relu", False)
    published, cas = of_kind("cifs"), of_kind("cifs", k=1, imgf="identity")
    assert isinstance(published.probe, LinearProbe)
    assert (published.k, published.imgf, published.detach) == (2, "softmax", True)
    assert (cas.k, cas.imgf) == (1, "identity")


def test_plain_values_make_every_mask_function() -> None:
    for options in SHAPED.values():
        assert of_kind("cifs", **options).function == Importance(**options)
        assert Gate(layer="x", channels=16, options=options).build(CLASSES).function.imgf


def test_a_budget_is_a_number_or_a_word() -> None:
    with pytest.raises(UserError, match=r"""budget .* is a number or "channels", not 'all'"""):
        Gate(layer="x", channels=16, options={"budget": "all"})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": CLASSES + 1}, f"cannot choose k = {CLASSES + 1} of {CLASSES} logits"),
        ({"hidden": 0}, "between 1 and 65,536 hidden units, not 0"),
        ({"hidden": 10**9}, "hidden units, not 1000000000"),
        ({"beta": 0.0}, "sharpness beta above 0"),
        ({"beta": float("nan")}, "not nan"),
    ],
    ids=str,
)
def test_values_that_make_no_gate_of_cifs_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        of_kind("cifs", **options)


# ---------------------------------------------------------------- gated networks


@pytest.mark.parametrize(
    ("make", "layer", "channels"),
    [
        (torchvision.models.resnet18, "layer4.1", 512),
        (torchvision.models.mobilenet_v3_small, "features.12", 576),
        (torchvision.models.squeezenet1_1, "features.12", 512),
    ],
    ids=["resnet18", "mobilenet_v3_small", "squeezenet1_1"],
)
def test_selective_wraps_torchvision_networks_by_layer_names(
    make: Callable[..., nn.Module], layer: str, channels: int
) -> None:
    cnn = make(weights=None, num_classes=7).eval()
    net = Selective(cnn, {layer: FeatureSelector(LinearProbe(channels, 7))}).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, answer = net(x), net.probed(x)
        assert logits.shape == answer.probes[layer].shape == (2, 7)
        assert answer.masks[layer].shape == (2, channels)
        assert not torch.equal(logits, cnn(x))
    assert torch.equal(logits, answer.logits)
    assert hooks(net) == 0


def test_gated_network_is_its_backbone_with_the_features_selected() -> None:
    net, (x, _) = gated(), images()
    cnn, gates = net.cnn, net.gates
    z = cnn.layer4[0](
        cnn.layer3(cnn.layer2(cnn.layer1(cnn.bn1(cnn.conv1(cnn.normalise(x))).relu())))
    )
    z = cnn.layer4[1](gates["layer4.0"](z).features)
    torch.testing.assert_close(net(x), cnn.linear(gates["layer4.1"](z).features.mean((2, 3))))


def test_backbone_itself_stays_as_it_was() -> None:
    cnn, (x, _) = resnet(), images()
    logits = cnn(x)
    Selective(cnn, {"layer4.0": FeatureSelector(LinearProbe(16, CLASSES))}).eval()(x)
    assert torch.equal(cnn(x), logits)
    assert hooks(cnn) == 0


def test_gated_layers_own_name_gives_raw_features_and_gated_the_selected_ones() -> None:
    net, (x, _) = gated(), images()
    with capture(net, "layer4.0", "layer4.0.gated", "layer4.1", "layer4") as seen:
        net(x)
    answer = net.probed(x)
    assert torch.equal(seen["layer4.0"], answer.features["layer4.0"])
    assert torch.equal(
        seen["layer4.0.gated"], seen["layer4.0"] * answer.masks["layer4.0"][:, :, None, None]
    )
    assert torch.equal(
        seen["layer4"], seen["layer4.1"] * answer.masks["layer4.1"][:, :, None, None]
    )


def test_probed_answers_pass_through_capture_as_plain_calls_do() -> None:
    net, (x, y) = gated(), images()
    with capture(net, "layer4.1.gated") as seen:
        net.probed(x, y)
    assert seen["layer4.1.gated"].shape == (6, 16, 1, 1)


def test_labels_reach_the_networks_masks_only_in_training_mode() -> None:
    net, (x, y) = gated(), images()
    other = (y + 1) % CLASSES

    def masks(labels: Tensor) -> Tensor:
        return torch.cat(list(net.probed(x, labels).masks.values()), 1)

    assert torch.equal(masks(y), masks(other))
    for gate in net.gates.values():  # the backbone stays in eval mode
        gate.train()
    assert not torch.equal(masks(y), masks(other))


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_gated_networks_run_without_autograd(quiet: Callable[[], torch.no_grad]) -> None:
    net, (x, _) = gated(), images()
    wanted = net(x)
    with quiet(), capture(net, "layer4.0.gated") as seen:
        torch.testing.assert_close(net(x), wanted)
    assert not seen["layer4.0.gated"].requires_grad


@pytest.mark.parametrize("quiet", [nullcontext, torch.no_grad])
def test_networks_that_call_autograd_themselves_can_be_gated(
    quiet: Callable[[], torch.no_grad],
) -> None:
    net, (x, _) = (
        Selective(CallsAutograd(), {"conv": FeatureSelector(TwoLayerProbe(4, CLASSES))}).eval(),
        images(),
    )
    with quiet(), capture(net, "conv", "conv.gated") as seen:
        assert net(x).shape == (6, CLASSES)
    assert set(seen) == {"conv", "conv.gated"}


def test_one_call_of_a_layer_can_be_gated() -> None:
    net = Selective(Twice(), {"relu@1": FeatureSelector(LinearProbe(4, CLASSES))})
    with capture(net, "relu@1", "relu@1.gated") as seen:
        net(images()[0])
    assert seen["relu@1.gated"].shape == seen["relu@1"].shape == (6, 4, 4, 4)


def test_unknown_layer_cannot_be_gated() -> None:
    with pytest.raises(LayerError, match=r"There is no layer 'layer5'.* Did you mean 'layer"):
        Selective(resnet(), {"layer5": FeatureSelector(LinearProbe(16, CLASSES))})


def test_no_hook_is_left_after_an_exception_in_a_gate() -> None:
    net = gated(k=CLASSES + 1)
    with unchanged(net), pytest.raises(UserError, match="lower k"):
        net(images()[0])
    assert hooks(net) == 0


# ---------------------------------------------------------------- state


def test_backbone_checkpoints_load_and_leave_the_gates_alone() -> None:
    net, trained = gated(), gated().cnn
    gates = {name: tensor.clone() for name, tensor in net.selectors.state_dict().items()}
    net.load_state_dict(trained.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(net.cnn.parameters(), trained.parameters(), strict=True)
    )
    assert all(
        torch.equal(gates[name], tensor) for name, tensor in net.selectors.state_dict().items()
    )


def test_own_checkpoints_load() -> None:
    net, trained, (x, _) = gated(), gated(), images()
    assert not torch.equal(net(x), trained(x))
    net.load_state_dict(trained.state_dict())
    assert torch.equal(net(x), trained(x))


@pytest.mark.parametrize("damage", ["a key less", "a key more", "another network's"])
def test_state_that_does_not_fit_is_refused(damage: str) -> None:
    net = gated()
    state = net.cnn.state_dict()
    if damage == "a key less":
        del state["linear.bias"]
    elif damage == "a key more":
        state["linear.extra"] = torch.zeros(1)
    else:
        state = plain().state_dict()
    with pytest.raises(RuntimeError, match=r"Error.* in loading state_dict"):
        net.load_state_dict(state)


def test_backbone_checkpoints_load_without_copying_where_asked() -> None:
    net, trained = gated(), gated().cnn.state_dict()
    net.load_state_dict(trained, assign=True)
    assert net.cnn.linear.weight.data_ptr() == trained["linear.weight"].data_ptr()
