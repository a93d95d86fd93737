"""Losses of a network on labelled images: maximised by attacks, minimised by training.

An *objective* has one kind of image: (model, x, y) -> loss per image. A *training loss* has natural
and adversarial images, and says which objective the adversarial ones maximise.

A network with gates has several *heads*: its own logits, and those of each gate's probe. What a
loss is for the logits it is for every head, summed as in the joint loss of CIFS.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.hooks import get_logits

Images = Float[Tensor, "n *image"]
Labels = Int[Tensor, " n"]
PerImage = Float[Tensor, " n"]
Logits = Float[Tensor, "n k"]

# (model, images x (n, c, h, w), labels y (n,)) -> loss per image (n,)
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Logits (n, k) and their targets (n,), which for most heads are the labels.
Head = tuple[Tensor, Tensor]


@runtime_checkable
class Gated(Protocol):
    """A network with gates, as ``Selective`` is."""

    def probed(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return an answer with ``logits``, and ``heads(y)``: a list of heads for each gate."""


# ---------------------------------------------------------------- objectives


def cross_entropy(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Cross-entropy of the final logits, per image: -log softmax(model(x))[y]."""
    return _cross_entropy(get_logits(model(x)), y)


def margin(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Margin of the strongest wrong class, per image: max_{k != y} z_k - z_y for final logits z.

    It is above 0 where the network is wrong (Carlini & Wagner, S&P 2017, arXiv 1608.04644: f_6
    without its constant).
    """
    return _margin(get_logits(model(x)), y)


def dlr(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Difference of logits ratio, per image (Croce & Hein, ICML 2020, arXiv 2003.01690, eq. 6).

    With z the final logits and z_(1) >= z_(2) >= z_(3) the largest of them:

        loss = (max_{k != y} z_k - z_y) / (z_(1) - z_(3))

    It is -1 to 0 where the network is right, and changes with neither scale nor shift of z.

    Raises:
        UserError: for fewer than three classes.
    """
    return _dlr(get_logits(model(x)), y)


def _cross_entropy(logits: Logits, y: Labels) -> PerImage:
    return F.cross_entropy(logits, y, reduction="none")


def _margin(logits: Logits, y: Labels) -> PerImage:
    label = y.unsqueeze(1)
    return logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label).squeeze(1)


def _dlr(logits: Logits, y: Labels) -> PerImage:
    if logits.shape[1] < 3:
        raise UserError(
            "The DLR loss compares the three largest logits, "
            f"and this network has {logits.shape[1]}: use the margin."
        )
    largest = logits.topk(3, dim=1).values
    # The constant is the authors', for logits that are all equal.
    return _margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


# What these objectives are for the logits of any head.
_HEAD_LOSSES: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
    cross_entropy: _cross_entropy,
    margin: _margin,
    dlr: _dlr,
}


@dataclass(frozen=True)
class OfHeads:
    """An objective that takes one loss of other heads than the network's own, or of several.

    Args:
        loss: what it is for the network's own logits: cross_entropy, margin or dlr.

    Raises:
        UserError: for another loss.
    """

    loss: Objective = field(default=cross_entropy, kw_only=True)

    def __post_init__(self) -> None:
        if not is_head_loss(self.loss):
            names = ", ".join(map(name_objective, _HEAD_LOSSES))
            raise UserError(
                f"The loss of gates' probes is one of logits, {names}, "
                f"not {name_objective(self.loss)}."
            )

    def compute_loss(self, logits: Logits, targets: Labels) -> PerImage:
        """Return the loss of one head, per image."""
        return _HEAD_LOSSES[self.loss](logits, targets)


def is_head_loss(objective: Objective) -> bool:
    """Tell whether an objective can be taken of the logits of any head."""
    return objective in _HEAD_LOSSES


def get_loss(objective: Objective) -> Objective:
    """Return the loss that an objective takes of its heads; one of no heads is its own."""
    return objective.loss if isinstance(objective, OfHeads) else objective


@dataclass(frozen=True)
class Joint(OfHeads):
    """The joint loss of CIFS, per image (Yan et al., ICML 2021, section 4.3; the release's scale).

    With L the loss of one head, by default the cross-entropy, p^l the probe logits of n gates:

        loss = 3 / (beta + 1) * (L(logits) + beta / n * sum_l L(p^l))

    In training mode the labels reach the gates' masks. A network without gates has the first term
    only. An infinite beta is the limit: 3 / n * sum_l L(p^l), the probes alone; L(logits) for a
    network without gates. With the margin for L it is the release's joint C&W loss, less its bound
    at a confidence of 50.

    Args:
        beta: weight of the probes, >= 0, or infinity; 2 in the paper.
        loss: see ``OfHeads``.
    """

    beta: float = 2.0

    def __call__(self, model: nn.Module, x: Images, y: Labels) -> PerImage:
        return _sum_heads(self.compute_loss, self.beta, _get_heads(model, x, y))

    def __str__(self) -> str:
        return "joint" if self.beta == 2 else f"joint{self.beta:g}"


# What a name after the colon of an attack's stands for: pattern -> objective for a match and eps.
OBJECTIVES: dict[str, Callable[[re.Match[str], float], Objective | None]] = {
    "margin": lambda _match, _eps: margin,
    "dlr": lambda _match, _eps: dlr,
    r"joint(?P<beta>inf|\d+(\.\d+)?(e[+-]?\d+)?)?": lambda match, _eps: Joint(
        float(match["beta"] or 2)
    ),
}


def parse_objective(name: str, eps: float) -> Objective | None:
    """Return the objective of a short name, for a ball of radius eps; None for an unknown name."""
    for pattern, make in OBJECTIVES.items():
        if match := re.fullmatch(pattern, name):
            return make(match, eps)
    return None


def name_objective(objective: Objective) -> str:
    """Return an objective's short name: a function's own."""
    return str(getattr(objective, "__name__", objective))


# ---------------------------------------------------------------- training losses


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(ABC):
    """What is minimised: a loss of natural images, adversarial ones and labels, by heads.

    Args:
        beta: weight of the gates' probes in the joint loss.
        beta_atk: the same in the loss that is attacked.
        scaled: multiply the whole by 3 / (beta + 1), as CIFS does; it is 1 for beta = 2.
        smoothing: s, in [0, 1]: the target is 1 - s + s / k for the label and s / k for every other
            of the k classes (Szegedy et al., CVPR 2016, arXiv 1512.00567).
    """

    beta: float = 2.0
    beta_atk: float = 2.0
    scaled: bool = True
    smoothing: float = 0.0

    needs_natural: ClassVar[bool] = True

    def attacked(self, _model: nn.Module, _x: Images) -> Objective:
        """Return what adversarial images maximise: the joint loss."""
        return Joint(self.beta_atk)

    def __call__(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> PerImage:
        """Return the loss of natural images x, adversarial images x_adv (n, c, h, w) and labels."""
        natural = _get_heads(model, x, y) if self.needs_natural else None
        adversarial = _get_heads(model, x_adv, y)
        pairs = _pair(natural or adversarial, adversarial)
        final = (natural or adversarial)[0][0]
        return _sum_heads(partial(self.compare, final=final), self.beta, pairs, self.scaled)

    @abstractmethod
    def compare(self, natural: Head, adversarial: Head, final: Head) -> PerImage:
        """Return one head's loss; ``final`` is the network's own head, on natural images."""

    def fit(self, logits: Tensor, targets: Tensor) -> PerImage:
        """Return the smoothed cross-entropy."""
        smoothing = self.smoothing
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(TrainingLoss):
    """Adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083): cross-entropy of x_adv.

    Standard training is the same with natural images in their place.
    """

    needs_natural: ClassVar[bool] = False

    def compare(self, _natural: Head, adversarial: Head, final: Head) -> PerImage:
        return self.fit(*adversarial)


@dataclass(frozen=True)
class _Divergence:
    """The objective of TRADES: the divergence from the natural answers, by gate and head."""

    natural: list[list[Tensor]]
    beta: float

    def __call__(self, model: nn.Module, x_adv: Tensor, _y: Tensor) -> Tensor:
        pairs = _pair(self.natural, _get_answers(model, x_adv))
        return _sum_heads(kl_divergence, self.beta, pairs)

    def rows(self, indices: Tensor) -> Objective:
        """Return the objective of some of the images, for an attack that stops early on others."""
        natural = [[logits[indices] for logits in gate] for gate in self.natural]
        return _Divergence(natural, self.beta)


@dataclass(frozen=True, kw_only=True)
class TRADES(TrainingLoss):
    """Trade-off between natural and robust accuracy.

    Zhang et al., ICML 2019 (arXiv 1901.08573), equation 5. With p the softmax of a head's logits,
    KL the Kullback-Leibler divergence and x' the adversarial image:

        loss = CE(f(x), y) + trade_off * KL(p(x) || p(x'))

    The attack maximises the divergence, p(x) being constant.

    Args:
        trade_off: 1 / lambda of the paper, >= 0; 6 in its experiments on CIFAR-10.
        beta, beta_atk, scaled, smoothing: see ``TrainingLoss``.
    """

    trade_off: float = 6.0

    def attacked(self, model: nn.Module, x: Images) -> Objective:
        """Return the divergence from the answers to x, computed now, in the network's mode."""
        with torch.no_grad():
            return _Divergence(_get_answers(model, x), self.beta_atk)

    def compare(self, natural: Head, adversarial: Head, final: Head) -> PerImage:
        return self.fit(*natural) + self.trade_off * kl_divergence(natural[0], adversarial[0])


@dataclass(frozen=True, kw_only=True)
class MART(TrainingLoss):
    """Misclassification-aware adversarial training (Wang et al., ICLR 2020, eq. 11).

    With p the softmax of a head's logits and x' the adversarial image:

        loss = -log p(x')[y] - log(1 - max_{k != y} p(x')[k])
               + trade_off * KL(p(x) || p(x')) * (1 - q(x)[y])

    q is the softmax of the network's own logits, for every head: how wrong the network is on an
    image weighs its probes' divergence, too, as in the release of CAS (Bai et al., ICLR 2021). The
    attack maximises the cross-entropy.

    Args:
        trade_off: lambda of the paper, >= 0; 5 in its experiments.
        beta, beta_atk, scaled, smoothing: see ``TrainingLoss``; the first term is smoothed.
    """

    trade_off: float = 5.0

    def compare(self, natural: Head, adversarial: Head, final: Head) -> PerImage:
        logits, targets = adversarial
        fit = self.fit(logits, targets)  # first: gradients are added in this order
        own_logits, labels = final
        wrong = 1 - own_logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        divergence = self.trade_off * kl_divergence(natural[0], logits) * wrong
        return fit - _log_rest(logits, targets) + divergence


def kl_divergence(p: Logits, q: Logits) -> PerImage:
    """Kullback-Leibler divergence KL(softmax(p) || softmax(q)) of logits, per image, in nats."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none").sum(1)


def _log_rest(logits: Logits, targets: Labels) -> PerImage:
    """Return log(1 - max_{k != y} p[k]), finite whatever p.

    It is the log of the sum over all classes but the strongest wrong one.
    """
    log_p = logits.log_softmax(1)
    strongest = log_p.scatter(1, targets.unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
    return log_p.scatter(1, strongest, -torch.inf).logsumexp(1)


# ---------------------------------------------------------------- heads


def _get_heads(model: nn.Module, x: Tensor, y: Tensor) -> list[list[Head]]:
    """Return the network's own head, in a list of its own, and after it each gate's."""
    if not isinstance(model, Gated):
        return [[(get_logits(model(x)), y)]]
    answer = model.probed(x, y)
    return [[(answer.logits, y)], *answer.heads(y)]


def _get_answers(model: nn.Module, x: Tensor) -> list[list[Tensor]]:
    """Return the logits of each head; no labels reach the network."""
    if not isinstance(model, Gated):
        return [[get_logits(model(x))]]
    answer = model.probed(x)
    unused = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return [[answer.logits], *([logits for logits, _ in gate] for gate in answer.heads(unused))]


def _pair(a: list[list[Any]], b: list[list[Any]]) -> list[list[tuple[Any, Any]]]:
    return [list(zip(*gates, strict=True)) for gates in zip(a, b, strict=True)]


def _sum_heads(
    loss: Callable[..., Tensor],
    beta: float,
    heads: Sequence[Sequence[tuple[Any, Any]]],
    scaled: bool = True,
) -> Tensor:
    """Add up the heads' losses: first + beta / L * sum over L gates.

    The whole is multiplied by 3 / (beta + 1) if ``scaled``. A gate's heads are added with equal
    weight; a network whose gates have none has the first term only.
    """
    first, *gates = heads
    gates = [gate for gate in gates if gate]
    if math.isinf(beta):
        # Not 0 times the first term, which may be infinite in half precision.
        of_first, of_gates = (0.0, 3.0) if gates else (1.0, 0.0)
    elif scaled:
        of_first, of_gates = 3 / (beta + 1), 3 / (1 + 1 / beta) if beta else 0.0
    else:
        of_first, of_gates = 1.0, beta
    terms = [of_gates / len(gates) * loss(*head) for gate in gates for head in gate]
    return sum(terms[1:], terms[0]) if not of_first else sum(terms, of_first * loss(*first[0]))
