"""Attacks made for gated networks: they go where the gates may hide something.

The sweep of the joint loss and the attack on it: Yan et al., ICML 2021 (arXiv 2102.05311), section 5. Why an evaluation
has to be adaptive: Tramer et al., NeurIPS 2020 (arXiv 2002.08347).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks.apgd import APGD
from channelscope.attacks.ball import Attack, ImageGenerators, find_correct
from channelscope.attacks.pgd import FGSM, PGD
from channelscope.errors import UserError
from channelscope.gates import Selective, detached, freeze_masks
from channelscope.layers.hooks import eval_mode
from channelscope.objectives import Gated, Joint, cross_entropy

BETAS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0, inf)


def in_turn(
    attacks: Sequence[Attack],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n *image"]:
    """Run attacks one after the other, each on the images that are still classified correctly; x where all fail."""
    adversarial, left = x.clone(), torch.arange(len(x), device=x.device)
    with eval_mode(model):
        left = left[find_correct(model, x, y)]
        for attack in attacks:
            own = generator.only(left) if isinstance(generator, ImageGenerators) else generator
            found = attack(model, x[left], y[left], own)
            standing = find_correct(model, found, y[left])
            adversarial[left[~standing]] = found[~standing]
            left = left[standing]
    return adversarial


@dataclass(frozen=True)
class ProbeLoss:
    """Cross-entropy of what one gate is trained to tell (its probe's logits), per image, summed over its heads.

    Args:
        gate: number of the gate, in the order of the network.
        layer: name of the gated layer, for the objective's own name.
    """

    gate: int
    layer: str

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        if not isinstance(model, Gated):
            return cross_entropy(model, x, y)
        heads = model.probed(x).heads(y)[self.gate]
        return torch.stack(
            [F.cross_entropy(logits, targets, reduction="none") for logits, targets in heads]
        ).sum(0)

    def __str__(self) -> str:
        return f"probe-{self.layer}"


@dataclass(frozen=True, kw_only=True)
class JointSweep:
    """An attack on the joint loss, once for each weight beta of the probes; an image keeps the first that breaks it.

    beta = 0 attacks the logits alone, infinity the probes alone.

    Args:
        attack: what is repeated, with its objective replaced.
        betas: the weights, each >= 0.
    """

    attack: PGD | FGSM | APGD
    betas: tuple[float, ...] = BETAS

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""
        return self.attack.eps

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attack on each loss: each is for the images that are left by those before it."""
        return tuple(dataclasses.replace(self.attack, objective=Joint(beta)) for beta in self.betas)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,)."""
        return in_turn(self.parts, model, x, y, generator)

    def __str__(self) -> str:
        return f"{self.attack}:joint-sweep"


@dataclass(frozen=True, kw_only=True)
class Detached:
    """An attack that is not shown the gradient through the masks: how the authors of CIFS attack their networks."""

    attack: Attack

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""
        return self.attack.eps

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attack's own parts, not shown the gradient either."""
        return tuple(Detached(attack=part) for part in getattr(self.attack, "parts", ())) or (self,)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,)."""
        with detached(model):
            return self.attack(model, x, y, generator)

    def __str__(self) -> str:
        return f"{self.attack}:detached"


@dataclass(frozen=True, kw_only=True)
class MaskFrozen:
    """An attack that holds every gate's mask where it is for the natural image, or where the label would put it.

    The gradient is then that of a network without gates, and the attack need not follow masks that jump from one
    choice of logits to the next. What it finds counts only if the network itself, masks free, is wrong there.

    Args:
        attack: PGD without early stopping, as the masks are those of the whole batch.
        at: "natural", or "label" for gates that are told the label in training.
    """

    attack: PGD
    at: Literal["natural", "label"] = "natural"

    def __post_init__(self) -> None:
        if self.attack.early_stop is not None:
            raise UserError(
                "An attack on frozen masks does not stop early: leave its early_stop at None."
            )

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""
        return self.attack.eps

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); of a network without gates, as the attack alone would."""
        if not isinstance(model, Selective) or not len(x):
            return self.attack(model, x, y, generator)
        with eval_mode(model), freeze_masks(model, x, y if self.at == "label" else None):
            return self.attack(model, x, y, generator)

    def __str__(self) -> str:
        return f"{self.attack}:frozen-{self.at}"


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Images made against another network, such as a twin without gates.

    Args:
        attack: the attack on the other network.
        source: the other network, of the same classes.
        name: what to call it.
    """

    attack: Attack
    source: nn.Module
    name: str

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""
        return self.attack.eps

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,), without a look at the model."""
        return self.attack(self.source, x, y, generator)

    def __str__(self) -> str:
        return f"{self.attack}:from-{self.name}"


def stop_early(attack: Attack) -> Attack:
    """Let an attack drop each image once it is broken, where the attack knows how to."""
    if isinstance(attack, PGD) and attack.early_stop is None:
        return dataclasses.replace(attack, early_stop=0)
    if isinstance(attack, Detached):
        return dataclasses.replace(attack, attack=stop_early(attack.attack))
    return attack
