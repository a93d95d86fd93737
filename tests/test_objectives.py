"""Losses: per image, the papers' own, of gated and of plain networks."""

import pytest
import torch
from torch import Tensor, nn

import reference
from channelscope.objectives import Joint, cross_entropy
from channelscope.selection import Selective
from networks import FORMS, Returns, gated, images, plain, resnet

BETAS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0)


def naive_joint(net: nn.Module, x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Give the paper's loss of every image, from the network's logits and its probes' one."""
    answer = net.probed(x, y)
    probes = list(answer.probes.values())
    losses = [
        reference.joint_loss(logits, [p[i] for p in probes], int(y[i]), beta) for i, logits in enumerate(answer.logits)
    ]
    return torch.stack(losses)


def test_cross_entropy_is_per_image() -> None:
    net, (x, y) = plain().double(), images(dtype=torch.float64)
    naive = [reference.cross_entropy(logits, int(label)) for logits, label in zip(net(x), y, strict=True)]
    torch.testing.assert_close(cross_entropy(net, x, y), torch.stack(naive))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_losses_take_networks_that_return_anything(form: object) -> None:
    net, (x, y) = Returns(form), images()
    torch.testing.assert_close(cross_entropy(net, x, y), cross_entropy(net.net, x, y))
    torch.testing.assert_close(Joint()(net, x, y), cross_entropy(net.net, x, y))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("beta", BETAS)
def test_joint_loss_is_that_of_the_paper_with_its_gradients(beta: float, training: bool) -> None:
    net, (x, y) = gated().double().train(training), images(dtype=torch.float64)
    x.requires_grad_()
    wanted = [x, *net.parameters()]
    ours, papers = Joint(beta)(net, x, y), naive_joint(net, x, y, beta)
    torch.testing.assert_close(ours, papers)
    slopes = [torch.autograd.grad(loss.sum(), wanted, allow_unused=True) for loss in (ours, papers)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("beta", BETAS)
def test_joint_loss_of_a_plain_network_is_its_scaled_cross_entropy(beta: float) -> None:
    net, (x, y) = resnet(), images()
    torch.testing.assert_close(Joint(beta)(net, x, y), 3 / (beta + 1) * cross_entropy(net, x, y))


def test_joint_loss_of_the_paper_counts_every_probe_as_much_as_the_logits() -> None:
    net, (x, y) = gated(), images()
    probes = net.probed(x, y).probes.values()
    wanted = cross_entropy(net, x, y) + sum(nn.functional.cross_entropy(p, y, reduction="none") for p in probes)
    torch.testing.assert_close(Joint()(net, x, y), wanted)


def test_joint_loss_of_a_gated_network_without_gates_has_the_first_term_only() -> None:
    cnn, (x, y) = resnet(), images()
    torch.testing.assert_close(Joint()(Selective(cnn, {}).eval(), x, y), cross_entropy(cnn, x, y))


def test_joint_loss_of_infinite_beta_is_that_of_the_probes_alone() -> None:
    net, (x, y) = gated(), images()
    probes = net.probed(x, y).probes.values()
    wanted = 1.5 * sum(nn.functional.cross_entropy(p, y, reduction="none") for p in probes)
    torch.testing.assert_close(Joint(float("inf"))(net, x, y), wanted)


@pytest.mark.parametrize(("beta", "name"), [(2.0, "joint"), (0.5, "joint0.5"), (10, "joint10"), (0.0, "joint0")])
def test_objectives_have_short_names(beta: float, name: str) -> None:
    assert str(Joint(beta)) == name
