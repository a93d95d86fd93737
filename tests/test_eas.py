"""EAS: the paper's element-wise scaling, to the last gradient."""

import pytest
import torch
from torch import Tensor

import reference
from channelscope.errors import UserError
from channelscope.gates import ElementScaler, FeatureSelector, LinearProbe, Selective
from helpers.networks import CLASSES, images, resnet

CHANNELS, LOGITS, HEIGHT, WIDTH = 3, 4, 2, 5


def gate() -> ElementScaler:
    return ElementScaler(CHANNELS, LOGITS, height=HEIGHT, width=WIDTH).double()


def features() -> tuple[Tensor, Tensor]:
    return torch.randn(5, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64), torch.arange(5) % LOGITS


def gradients(answer: tuple[Tensor, ...], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a loss in which every number of the answer has a weight of its own."""
    loss = sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in answer)
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("labelled", [True, False], ids=["with labels", "without"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gate_is_that_of_the_paper_with_all_its_gradients(training: bool, labelled: bool) -> None:
    made, (z, y) = gate().train(training), features()
    z.requires_grad_()
    ours = made(z, y if labelled else None)[:3]
    papers = reference.scale_elements(
        z, made.probe.weight, made.probe.bias, y if training and labelled else None
    )
    torch.testing.assert_close(ours, papers, rtol=1e-10, atol=1e-12)
    wanted = [z, *made.parameters()]
    torch.testing.assert_close(
        gradients(ours, wanted), gradients(papers, wanted), rtol=1e-9, atol=1e-11
    )


def test_labels_reach_the_mask_only_in_training_mode() -> None:
    made, (z, y) = gate(), features()
    other = (y + 1) % LOGITS
    assert torch.equal(made.eval()(z, y).mask, made(z).mask)
    assert torch.equal(made(z, y).mask, made(z, other).mask)
    assert not torch.equal(made.train()(z, y).mask, made(z, other).mask)


def test_mask_is_made_of_the_largest_logits_weights() -> None:
    made, (z, _) = gate().eval(), features()
    answer = made(z)
    assert torch.equal(answer.mask.flatten(1), made.probe.weight[answer.probe_logits.argmax(1)])


def test_on_features_of_one_place_it_is_the_gate_of_cas() -> None:
    made, cas = (
        ElementScaler(6, LOGITS, height=1, width=1),
        FeatureSelector(LinearProbe(6, LOGITS), k=1, imgf="identity"),
    )
    cas.probe.output.load_state_dict(made.probe.state_dict())
    z, y = torch.randn(5, 6, 1, 1), torch.arange(5) % LOGITS
    for mode in (True, False):
        ours, theirs = made.train(mode)(z, y), cas.train(mode)(z, y)
        torch.testing.assert_close(ours.features, theirs.features)
        torch.testing.assert_close(ours.probe_logits, theirs.probe_logits)


def test_probe_is_trained_on_the_labels() -> None:
    net, (x, y) = (
        Selective(resnet("resnet18"), {"layer4.0": ElementScaler(16, CLASSES, height=1, width=1)}),
        images(),
    )
    answer = net.eval().probed(x, y)
    ((logits, targets),) = answer.heads(y)[0]
    assert logits is answer.probes["layer4.0"]
    assert targets is y


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"for features of 3 x 2 x 5, not 3 x 5 x 2: make it for the size"
    ):
        gate()(torch.zeros(1, 3, 5, 2, dtype=torch.float64))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-2, -2), (4096, 4096), (1, 2**40)], ids=str)
def test_impossible_gates_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"1 to 16,777,216 elements, not 3 x {size[0]} x {size[1]}"):
        ElementScaler(CHANNELS, LOGITS, height=size[0], width=size[1])
