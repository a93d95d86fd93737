"""Losses of a network on labelled images: maximised by attacks, minimised by training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.hooks import logits_of

# (model, images x (n, c, h, w), labels y (n,)) -> loss per image (n,)
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


class _Answer(Protocol):
    logits: Tensor
    probes: dict[str, Tensor]


@runtime_checkable
class Gated(Protocol):
    """A network whose gates carry probes, as ``Selective`` does."""

    def probed(self, x: Tensor, labels: Tensor | None = None) -> _Answer:
        """Give the logits and, by gated layer, the probe logits."""


def cross_entropy(model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of the final logits, per image: -log softmax(model(x))[y]."""
    return F.cross_entropy(logits_of(model(x)), y, reduction="none")


@dataclass(frozen=True)
class Joint:
    """The joint loss of CIFS, per image (Yan et al., ICML 2021, section 4.3; scale as in the authors' release).

    With CE the cross-entropy, p^l the probe logits of the L gates:

        loss = 3 / (beta + 1) * (CE(logits) + beta / L * sum_l CE(p^l))

    In training mode the labels reach the gates' masks. A network without gates has the first term only.

    Args:
        beta: weight of the probes, >= 0; 2 in the paper.
    """

    beta: float = 2.0

    def __call__(self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        of_logits, of_probes = 3 / (self.beta + 1), 3 / (1 + 1 / self.beta) if self.beta else 0.0
        if not isinstance(model, Gated):
            return of_logits * cross_entropy(model, x, y)
        answer = model.probed(x, y)
        loss = of_logits * F.cross_entropy(answer.logits, y, reduction="none")
        for p in answer.probes.values():
            loss = loss + of_probes / len(answer.probes) * F.cross_entropy(p, y, reduction="none")
        return loss

    def __str__(self) -> str:
        return "joint" if self.beta == 2 else f"joint{self.beta:g}"
