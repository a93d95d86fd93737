"""Losses of a network on labelled images: maximised by attacks, minimised by training.

An *objective* has one kind of image: (model, x, y) -> loss per image. A *training loss* has natural images and
adversarial ones, and says which objective the adversarial ones are to maximise.

A network with gates answers with several *heads*: its own logits, and those of each gate's probe. Whatever a loss is
for the logits, it is for every head, summed as in the joint loss of CIFS.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.hooks import get_logits

# (model, images x (n, c, h, w), labels y (n,)) -> loss per image (n,)
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]

Head = tuple[
    Tensor, Tensor
]  # logits (n, k) and their targets (n,), which for most heads are the labels


class _Answer(Protocol):
    @property
    def logits(self) -> Tensor:
        """The network's own logits."""

    def heads(self, y: Tensor) -> list[list[Head]]:
        """Give the heads of each gate."""


@runtime_checkable
class Gated(Protocol):
    """A network with gates, as ``Selective`` is."""

    def probed(self, x: Tensor, labels: Tensor | None = None) -> _Answer:
        """Give the logits and the gates' answers."""


def cross_entropy(
    model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of the final logits, per image: -log softmax(model(x))[y]."""
    return F.cross_entropy(get_logits(model(x)), y, reduction="none")


def margin(
    model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Margin of the strongest wrong class, per image: max_{k != y} z_k - z_y for the final logits z.

    It is above 0 where the network is wrong (Carlini & Wagner, S&P 2017, arXiv 1608.04644: f_6 without its constant).
    """
    return _margin(get_logits(model(x)), y)


def dlr(
    model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Difference of logits ratio, per image (Croce & Hein, ICML 2020, arXiv 2003.01690, equation 6).

    With z the final logits and z_(1) >= z_(2) >= z_(3) the largest of them:

        loss = (max_{k != y} z_k - z_y) / (z_(1) - z_(3))

    It is -1 to 0 where the network is right, and changes with neither scale nor shift of the logits.

    Raises:
        UserError: for fewer than three classes.
    """
    logits = get_logits(model(x))
    if logits.shape[1] < 3:
        raise UserError(
            f"The DLR loss compares the three largest logits, and this network has {logits.shape[1]}: use the margin."
        )
    largest = logits.topk(3, dim=1).values
    return _margin(logits, y) / (
        largest[:, 0] - largest[:, 2] + 1e-12
    )  # as the authors keep it finite


def _margin(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    label = y.unsqueeze(1)
    return logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label).squeeze(1)


@dataclass(frozen=True)
class Joint:
    """The joint loss of CIFS, per image (Yan et al., ICML 2021, section 4.3; scale as in the authors' release).

    With CE the cross-entropy, p^l the probe logits of the L gates:

        loss = 3 / (beta + 1) * (CE(logits) + beta / L * sum_l CE(p^l))

    In training mode the labels reach the gates' masks. A network without gates has the first term only. An infinite
    beta is the limit: 3 / L * sum_l CE(p^l), the probes alone; the cross-entropy for a network without gates.

    Args:
        beta: weight of the probes, >= 0, or infinity; 2 in the paper.
    """

    beta: float = 2.0

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets, reduction="none")

        return _summed(loss, self.beta, _heads(model, x, y))

    def __str__(self) -> str:
        return "joint" if self.beta == 2 else f"joint{self.beta:g}"


class TrainingLoss(Protocol):
    """What is minimised; ``attacked`` gives what the adversarial images of a batch are to maximise."""

    def attacked(self, model: nn.Module, x: Tensor, /) -> Objective:
        """Give the objective of the attack on natural images x (n, c, h, w)."""

    def __call__(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, /) -> Tensor:
        """Give the loss (n,) of natural images x, adversarial images x_adv (n, c, h, w) and labels y (n,)."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Adversarial training: cross-entropy of the adversarial images (Madry et al., ICLR 2018, arXiv 1706.06083).

    Standard training is the same with natural images in their place. With smoothing s, the target is 1 - s + s / k for
    the label and s / k for every other of the k classes (Szegedy et al., CVPR 2016, arXiv 1512.00567).

    Args:
        beta: weight of the gates' probes in the joint loss.
        beta_atk: the same in the loss that is attacked.
        scaled: multiply the whole by 3 / (beta + 1), as CIFS does; it is 1 for beta = 2.
        smoothing: s, in [0, 1].
    """

    beta: float = 2.0
    beta_atk: float = 2.0
    scaled: bool = True
    smoothing: float = 0.0

    def attacked(self, _model: nn.Module, _x: Tensor) -> Objective:
        """Give the joint loss, which is the cross-entropy for a network without gates."""
        return Joint(self.beta_atk)

    def __call__(
        self, model: nn.Module, _x: Tensor, x_adv: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(
                logits, targets, reduction="none", label_smoothing=self.smoothing
            )

        return _summed(loss, self.beta, _heads(model, x_adv, y), self.scaled)


@dataclass(frozen=True)
class _Divergence:
    """The objective of TRADES: the divergence from the answers to natural images, by gate and head."""

    natural: list[list[Tensor]]
    beta: float

    def __call__(self, model: nn.Module, x_adv: Tensor, _y: Tensor) -> Tensor:
        pairs = zip(self.natural, _answers(model, x_adv), strict=True)
        return _summed(kl_divergence, self.beta, [list(zip(*gate, strict=True)) for gate in pairs])

    def rows(self, indices: Tensor) -> Objective:
        """Give the objective of some of the images, for an attack that stops early on others."""
        return _Divergence(
            [[logits[indices] for logits in gate] for gate in self.natural], self.beta
        )


@dataclass(frozen=True, kw_only=True)
class TRADES:
    """Trade-off between natural and robust accuracy (Zhang et al., ICML 2019, arXiv 1901.08573, equation 5).

    With p the softmax of a head's logits, KL the Kullback-Leibler divergence and x' the adversarial image:

        loss = CE(f(x), y) + trade_off * KL(p(x) || p(x'))

    The attack maximises the divergence, p(x) being constant.

    Args:
        trade_off: 1 / lambda of the paper, >= 0; 6 in its experiments on CIFAR-10.
        beta, beta_atk, scaled, smoothing: see ``CrossEntropy``.
    """

    trade_off: float = 6.0
    beta: float = 2.0
    beta_atk: float = 2.0
    scaled: bool = True
    smoothing: float = 0.0

    def attacked(self, model: nn.Module, x: Float[Tensor, "n *image"]) -> Objective:
        """Give the divergence of the answers from those to x, which are taken now, in the network's present mode."""
        with torch.no_grad():
            return _Divergence(_answers(model, x), self.beta_atk)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        x_adv: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        def loss(natural: Head, adversarial: Head) -> Tensor:
            fit = F.cross_entropy(*natural, reduction="none", label_smoothing=self.smoothing)
            return fit + self.trade_off * kl_divergence(natural[0], adversarial[0])

        return _summed(
            loss, self.beta, _paired(_heads(model, x, y), _heads(model, x_adv, y)), self.scaled
        )


@dataclass(frozen=True, kw_only=True)
class MART:
    """Misclassification-aware adversarial training (Wang et al., ICLR 2020, equation 11).

    With p the softmax of a head's logits and x' the adversarial image:

        loss = -log p(x')[y] - log(1 - max_{k != y} p(x')[k]) + trade_off * KL(p(x) || p(x')) * (1 - p(x)[y])

    The attack maximises the cross-entropy.

    Args:
        trade_off: lambda of the paper, >= 0; 5 in its experiments.
        beta, beta_atk, scaled, smoothing: see ``CrossEntropy``; the smoothing is of the first term.
    """

    trade_off: float = 5.0
    beta: float = 2.0
    beta_atk: float = 2.0
    scaled: bool = True
    smoothing: float = 0.0

    def attacked(self, _model: nn.Module, _x: Tensor) -> Objective:
        """Give the joint loss, which is the cross-entropy for a network without gates."""
        return Joint(self.beta_atk)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        x_adv: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        def loss(natural: Head, adversarial: Head) -> Tensor:
            logits, targets = adversarial
            fit = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
            wrong = 1 - natural[0].softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
            apart = self.trade_off * kl_divergence(natural[0], logits) * wrong
            return fit - _log_rest(logits, targets) + apart

        return _summed(
            loss, self.beta, _paired(_heads(model, x, y), _heads(model, x_adv, y)), self.scaled
        )


def kl_divergence(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Kullback-Leibler divergence KL(softmax(p) || softmax(q)) of logits p from logits q, per image, in nats."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none").sum(1)


def _log_rest(logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Give log(1 - max_{k != y} p[k]): the sum of all classes but the strongest wrong one, finite whatever p."""
    log_p = logits.log_softmax(1)
    strongest = log_p.scatter(1, targets.unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
    return log_p.scatter(1, strongest, -torch.inf).logsumexp(1)


def _heads(model: nn.Module, x: Tensor, y: Tensor) -> list[list[Head]]:
    """Give the network's own head, in a list of its own, and after it each gate's."""
    if not isinstance(model, Gated):
        return [[(get_logits(model(x)), y)]]
    answer = model.probed(x, y)
    return [[(answer.logits, y)], *answer.heads(y)]


def _answers(model: nn.Module, x: Tensor) -> list[list[Tensor]]:
    """Give the logits of each head, asked without labels."""
    if not isinstance(model, Gated):
        return [[get_logits(model(x))]]
    answer, nobody = model.probed(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return [[answer.logits], *([logits for logits, _ in gate] for gate in answer.heads(nobody))]


def _paired(
    natural: list[list[Head]], adversarial: list[list[Head]]
) -> list[list[tuple[Head, Head]]]:
    return [list(zip(*gates, strict=True)) for gates in zip(natural, adversarial, strict=True)]


def _summed(
    loss: Callable[..., Tensor],
    beta: float,
    heads: Sequence[Sequence[tuple[Any, Any]]],
    scaled: bool = True,
) -> Tensor:
    """Add up the heads' losses: first + beta / L * sum over L gates, if ``scaled`` the whole times 3 / (beta + 1).

    A gate's own heads are added with equal weight; a network whose gates have none has the first term only.
    """
    first, *gates = heads
    asked = [gate for gate in gates if gate]
    if math.isinf(beta):
        # Not 0 times the first: a loss may be infinite in half precision, and then all would be no number.
        of_first, of_gates = (0.0, 3.0) if asked else (1.0, 0.0)
    else:
        of_first, of_gates = (
            (3 / (beta + 1), 3 / (1 + 1 / beta) if beta else 0.0) if scaled else (1.0, beta)
        )
    terms = [of_gates / len(asked) * loss(*head) for gate in asked for head in gate]
    return sum(terms[1:], terms[0]) if not of_first else sum(terms, of_first * loss(*first[0]))
