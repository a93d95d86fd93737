"""Projected gradient attacks.

FGSM: Goodfellow et al., ICLR 2015 (arXiv 1412.6572). PGD: Madry et al., ICLR 2018 (arXiv
1706.06083). Early-stopped PGD: Zhang et al., ICML 2020 (arXiv 2002.11242). C&W-inf: PGD on the
margin of Carlini & Wagner, S&P 2017 (arXiv 1608.04644).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks.ball import draw_uniform, to_normal, working_dtype
from channelscope.attacks.base import Attack, Search
from channelscope.attacks.registry import register
from channelscope.errors import UserError
from channelscope.objectives import Images, Objective, cross_entropy, margin

_STEPS = "STEPS[xRESTARTS][-EARLY_STOP][-l2]"


def _count_passes(pgd: "PGD") -> float:
    return pgd.steps * pgd.restarts


@register(f"cw-{_STEPS}", "PGD on the margin (C&W-inf)", cost=_count_passes, objective=margin)
@register(f"pgd-{_STEPS}", "projected gradient descent", cost=_count_passes)
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent of an objective L in the ball ||delta|| <= eps and in [0, 1].

        x <- project(x + step * direction(grad_x L(model, x, y)))

    The direction is the gradient's signs for the L-inf norm, the gradient over its L2 norm for L2.

    Args:
        step: step length; None for eps * max(2 / steps, 1 / 10): the paper's 0.8/255 at eps 8/255
            for 20 steps or more.
        steps: number of steps, >= 1.
        random_start: begin at a point drawn uniformly from the ball instead of x; a number s for
            x + s * N(0, 1), projected (0.001 in TRADES and MART).
        restarts: number of runs, >= 1.
        objective: (model, x, y) -> loss per image.
        early_stop: tau of FAT's PGD-K-tau, >= 0 (Zhang et al., Algorithm 1): an image that the
            network takes for another class takes tau more steps and stops. 0 spares an evaluation
            most of its steps. Later restarts are for the images that no earlier one has broken. The
            objective is asked about the images that are left: one that holds numbers of each image
            of the batch, as that of TRADES does, needs a method ``rows(indices)`` that returns the
            objective of some of them.
    """

    step: float | None = None
    steps: int = 20
    random_start: bool | float = True
    restarts: int = 1
    objective: Objective = cross_entropy
    early_stop: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise UserError(
                "PGD needs at least one step and one restart, "
                f"not steps {self.steps} and restarts {self.restarts}."
            )
        if self.step is not None and not 0 <= self.step < float("inf"):
            raise UserError(f"PGD's step is a number from 0 up, not {self.step}.")
        if not 0 <= self.random_start < float("inf"):
            raise UserError(
                f"PGD's random_start is true, false or a spread from 0 up, not {self.random_start}."
            )
        if self.early_stop is not None and self.early_stop < 0:
            raise UserError(
                f"PGD's early_stop is a number of further steps from 0 up, not {self.early_stop}."
            )

    @property
    def step_length(self) -> float:
        """Length of a step in image units, also where it follows from eps and steps."""
        return self.eps * max(2 / self.steps, 1 / 10) if self.step is None else self.step

    def run(self, model: nn.Module, search: Search) -> Tensor:
        x_adv = search.project(search.start)
        for _ in search.steps(self.steps):
            x_in = search.as_input(x_adv)
            with search.watch(model, x_in):
                losses = search.objective(model, x_in, search.y)
            x_adv, gradient = search.drop_broken(x_adv, search.gradient(losses, x_in))
            x_adv = search.project(x_adv + self.step_length * search.direction(gradient))
        return x_adv

    def get_random_starts(
        self, x: Images, generator: torch.Generator | None
    ) -> Float[Tensor, "restarts n *image"]:
        """Return points uniform in the ball, normal around x, or x itself; not yet projected."""
        if self.random_start is False:
            return x.expand(self.restarts, *x.shape)
        u = self._draw(x, len(x), generator).transpose(0, 1)
        if self.random_start is not True:
            return x + self.random_start * to_normal(u).reshape(-1, *x.shape)
        if self.norm == "inf":
            return x + self.eps * (2 * u.reshape(-1, *x.shape) - 1)
        # A uniform direction (that of a normal vector) at radius eps * u^(1/d).
        direction = to_normal(u[..., :-1])
        radius = self.eps * u[..., -1:].pow(1 / direction.shape[-1])
        delta = radius * direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return x + delta.reshape(-1, *x.shape)

    def skip(self, x: Images, n: int, generator: torch.Generator) -> None:
        """Advance ``generator`` as an attack on n images of the shape and type of x would."""
        if self.eps and self.random_start is not False:
            self._draw(x[:0].to(working_dtype(x.dtype)), n, generator)

    def _draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw from [0, 1) what n images need: an image's numbers in a row, whatever its batch."""
        numbers = x.shape[1:].numel() + (self.norm == "2" and self.random_start is True)
        return draw_uniform((n, self.restarts, numbers), x, generator)


@register("fgsm[-l2]", "fast gradient sign method, one step", cost=1)
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """Fast gradient sign method, one step: x + eps * direction(grad_x L(model, x, y)).

    Args:
        objective: (model, x, y) -> loss per image.
    """

    objective: Objective = cross_entropy

    random_start: ClassVar[bool] = False

    def run(self, model: nn.Module, search: Search) -> Tensor:
        x_in = search.as_input(search.start)
        gradient = search.gradient(search.objective(model, x_in, search.y), x_in)
        return search.project(search.start + self.eps * search.direction(gradient))
