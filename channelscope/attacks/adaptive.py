"""Attacks made for gated networks: they go where the gates may hide something.

The sweep of the joint loss and the attack on it: Yan et al., ICML 2021 (arXiv 2102.05311), section
5. Why an evaluation has to be adaptive: Tramer et al., NeurIPS 2020 (arXiv 2002.08347).
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from channelscope.attacks.ball import Norm, select_generators
from channelscope.attacks.base import Attack, AttackLike, Search, find_correct
from channelscope.attacks.pgd import PGD
from channelscope.attacks.registry import attack_name, estimate_cost, register
from channelscope.errors import UserError, suggest
from channelscope.gates import Probed, Selective, detached, freeze_masks
from channelscope.objectives import (
    OBJECTIVES,
    Gated,
    Images,
    Joint,
    Labels,
    OfHeads,
    PerImage,
    get_loss,
    is_head_loss,
)

BETAS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0, inf)


@dataclass(frozen=True)
class ProbeLoss(OfHeads):
    """Loss of the logits that one gate is trained on (its probe's), per image.

    Summed over the gate's heads; that of the network's own logits for a network without probes.

    Args:
        gate: name of the gated layer, or the probe's number from 1 in the order of running.
        loss: see ``OfHeads``; the cross-entropy unless given.
    """

    gate: str | int

    def __call__(self, model: nn.Module, x: Images, y: Labels) -> PerImage:
        if not isinstance(model, Gated):
            return self.loss(model, x, y)
        answer: Probed = model.probed(x)
        heads = {
            layer: selection.heads(y, answer.logits)
            for layer, selection in answer.selections.items()
        }
        heads = {layer: of_gate for layer, of_gate in heads.items() if of_gate}
        if not heads:
            return self.compute_loss(answer.logits, y)
        chosen = heads[self._find_layer(list(heads))]
        return torch.stack([self.compute_loss(*head) for head in chosen]).sum(0)

    def _find_layer(self, layers: Sequence[str]) -> str:
        """Return the layer of the gate meant, among those of the gates with probes."""
        if isinstance(self.gate, int):
            if 1 <= self.gate <= len(layers):
                return layers[self.gate - 1]
            listed = ", ".join(f"{number} at {name}" for number, name in enumerate(layers, start=1))
            raise UserError(f"There is no probe number {self.gate}: the probes are {listed}.")
        if self.gate not in layers:
            raise UserError(
                f"There is no gate at layer {self.gate!r}: the gates are at {', '.join(layers)}."
                f"{suggest(self.gate, layers)}"
            )
        return self.gate

    def __str__(self) -> str:
        return f"probe{'' if isinstance(self.gate, int) else '-'}{self.gate}"


OBJECTIVES["probe-(?P<layer>.+)"] = lambda match, _eps: ProbeLoss(match["layer"])
OBJECTIVES["probe(?P<number>[1-9][0-9]?)"] = lambda match, _eps: ProbeLoss(int(match["number"]))


# ---------------------------------------------------------------- attacks made of others


class Cascade(Attack):
    """Attacks one after the other, each on the images that are still classified correctly.

    An image keeps what first breaks it, or stays as it is where all fail.
    """

    folds: ClassVar[bool] = False

    @property
    @abstractmethod
    def parts(self) -> tuple[AttackLike, ...]:
        """The attacks, in their order."""

    def run(self, model: nn.Module, search: Search) -> Tensor:
        return run_cascade(self.parts, model, search.x, search.y, search.generator)


def run_cascade(
    attacks: Sequence[AttackLike],
    model: nn.Module,
    x: Images,
    y: Labels,
    generator: torch.Generator | None = None,
) -> Images:
    """Run attacks in turn on a network in eval mode; see ``Cascade``."""
    x_adv, rows = x.clone(), find_correct(model, x, y).nonzero().squeeze(1)
    for attack in attacks:
        if not len(rows):  # many networks cannot answer on no images
            break
        points = attack(model, x[rows], y[rows], select_generators(generator, rows))
        correct = find_correct(model, points, y[rows])
        x_adv[rows[~correct]] = points[~correct]
        rows = rows[correct]
    return x_adv


@dataclass(frozen=True, kw_only=True)
class _Wrapper(Attack):
    """An attack that changes another, of the same ball."""

    attack: AttackLike
    eps: float = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False)
    folds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        vars(self).update(eps=self.attack.eps, norm=norm_of(self.attack))


def norm_of(attack: AttackLike, default: Norm = "inf") -> Norm:
    """Return the norm of an attack's ball; the default for your own without a ``norm``."""
    norm: Norm = getattr(attack, "norm", default)
    return norm


def _count_passes(wrapper: Any) -> float:
    return estimate_cost(wrapper.attack) or 0


@register(
    ":joint-sweep",
    "on the joint loss, for each of seven weights of the gates' probes",
    cost=lambda sweep: len(sweep.betas) * _count_passes(sweep),
)
@dataclass(frozen=True, kw_only=True)
class JointSweep(_Wrapper, Cascade):
    """An attack on the joint loss, once for each weight beta of the probes, in turn.

    beta = 0 attacks the logits alone, infinity the probes alone.

    Args:
        attack: what is repeated; its objective becomes the loss of each head.
        betas: the weights, each >= 0.

    Raises:
        UserError: for an attack without an objective, or with one that is no loss of logits.
    """

    attack: Attack
    betas: tuple[float, ...] = BETAS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not can_sweep(self.attack):
            raise UserError(
                f"{attack_name(self.attack)} has no objective to sweep: sweep pgd, cw, apgd or "
                "fgsm."
            )

    @property
    def parts(self) -> tuple[AttackLike, ...]:
        """The attack on each loss."""
        attack: PGD = self.attack  # type: ignore[assignment]  # or another with an objective
        losses = (Joint(beta, loss=get_loss(attack.objective)) for beta in self.betas)
        return tuple(dataclasses.replace(attack, objective=loss) for loss in losses)


def can_sweep(attack: object) -> bool:
    """Tell whether an attack has an objective that the joint loss can take of every head."""
    return "objective" in vars(attack) and is_head_loss(get_loss(vars(attack)["objective"]))


@register(":detached", "without the gradient through the gates' masks", cost=_count_passes)
@dataclass(frozen=True, kw_only=True)
class Detached(_Wrapper):
    """An attack that is not shown the gradient through the masks: how CIFS's authors attack."""

    @property
    def parts(self) -> tuple[AttackLike, ...]:
        """The attack's own parts, not shown the gradient either."""
        return tuple(Detached(attack=part) for part in getattr(self.attack, "parts", [self.attack]))

    def run(self, model: nn.Module, search: Search) -> Tensor:
        with detached(model):
            return self.attack(model, search.x, search.y, search.generator)


@register(":frozen-natural", "on the natural image's masks", cost=_count_passes, at="natural")
@register(":frozen-label", "on the masks that the label gives", cost=_count_passes, at="label")
@dataclass(frozen=True, kw_only=True)
class MaskFrozen(_Wrapper):
    """An attack that holds every gate's mask where it is for the natural image, or for the label.

    The gradient is then that of a network without gates, and the attack need not follow masks that
    jump from one choice of logits to the next. What it finds counts only if the network itself,
    masks free, is wrong there. On a network without gates it is the attack alone.

    Args:
        attack: without early stopping, as the masks are those of the whole batch.
        at: "natural", or "label" for gates that get the label in training.
    """

    attack: Attack
    at: Literal["natural", "label"] = "natural"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.early_stop is not None:
            raise UserError(
                f"An attack on frozen masks does not stop early, as {self.attack} does: "
                "use PGD, with early_stop at None."
            )

    def run(self, model: nn.Module, search: Search) -> Tensor:
        if not isinstance(model, Selective):
            return self.attack(model, search.x, search.y, search.generator)
        with freeze_masks(model, search.x, search.y if self.at == "label" else None):
            return self.attack(model, search.x, search.y, search.generator)


@dataclass(frozen=True, kw_only=True)
class Transfer(_Wrapper):
    """Images made against another network, such as a twin without gates.

    Args:
        attack: the attack on the other network.
        source: the other network, of the same classes.
        name: what to call it.
    """

    source: nn.Module
    name: str

    def run(self, _model: nn.Module, search: Search) -> Tensor:
        return self.attack(self.source, search.x, search.y, search.generator)

    def __str__(self) -> str:
        return f"{attack_name(self.attack)}:from-{self.name}"


def stop_early(attack: AttackLike) -> AttackLike:
    """Return the attack that drops each image once it is broken, where the attack can do so."""
    if isinstance(attack, PGD) and attack.early_stop is None:
        return dataclasses.replace(attack, early_stop=0)
    if isinstance(attack, Detached):
        return dataclasses.replace(attack, attack=stop_early(attack.attack))
    return attack
