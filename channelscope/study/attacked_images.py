"""A network with images that it classifies correctly, in the ball in which they are attacked."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from channelscope.attacks import PGD, Attack, Norm, find_correct, make_generators
from channelscope.layers.hooks import get_logits
from channelscope.objectives import Objective, cross_entropy


@dataclass(eq=False)
class AttackedImages:
    """A network in eval mode, its images, and the ball in which they are attacked.

    Args:
        network, x, y: the network, images (n, ...) in [0, 1] and labels (n,).
        eps, norm: the ball.
        seed: of the attacks' random numbers.
        batch_size: images at a time.

    ``robust`` has the rows that have withstood the attacks so far, ``skipped`` the reason for each
    attack that could not be made; the checks update both.
    """

    network: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    norm: Norm
    seed: int
    batch_size: int
    robust: Tensor = field(init=False)
    skipped: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.robust = self.rows

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> Tensor:
        """The numbers of the images."""
        return torch.arange(len(self.x), device=self.x.device)

    @cached_property
    def robust_to_pgd(self) -> Tensor:
        """The rows that withstand PGD-20 on the cross-entropy."""
        return self.find_robust(self.make_pgd(), self.rows)

    def keep_correct(self) -> Self:
        """Return the images that are classified correctly."""
        rows = self.select_correct(self.x, self.rows)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def make_pgd(
        self, steps: int = 20, objective: Objective = cross_entropy, restarts: int = 1
    ) -> PGD:
        """Return a PGD in the ball that leaves an image once it is broken."""
        return PGD(
            eps=self.eps,
            norm=self.norm,
            steps=steps,
            objective=objective,
            restarts=restarts,
            early_stop=0,
        )

    def step_along(self, gradients: Tensor, length: float) -> tuple[Tensor, Tensor]:
        """Return each image's steepest step of this length, and the rise that it promises."""
        size = gradients.norm(dim=1, keepdim=True)
        move = gradients.sign() if self.norm == "inf" else gradients / size.clamp_min(1e-12)
        return length * move.view_as(self.x), length * (gradients * move).sum(1)

    def select_correct(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the rows whose images, given in their order, are classified correctly."""
        correct = [
            find_correct(self.network, x, self.y[batch])
            for x, batch in zip(self._split(images), self._split(rows), strict=True)
        ]
        return rows[torch.cat(correct)] if correct else rows

    def find_robust(self, attack: Attack, rows: Tensor) -> Tensor:
        """Attack the images of these rows; return the rows that withstand."""
        robust = [rows[:0]]
        for batch in self._split(rows):
            generators = make_generators(self.seed, str(attack), batch.tolist())
            x_adv = attack(self.network, self.x[batch], self.y[batch], generators)
            robust.append(self.select_correct(x_adv, batch))
        return torch.cat(robust)

    def compute_gradients(self, objective: Objective) -> Tensor:
        """Return the objective's gradient in each image (n, pixels): NaN where there is none."""
        gradients = []
        for x, y in zip(self._split(self.x), self._split(self.y), strict=True):
            leaf = x.clone().requires_grad_()
            with torch.enable_grad():
                loss = objective(self.network, leaf, y).sum()
            gradient: Tensor | None = None
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
            gradients.append(torch.full_like(x, torch.nan) if gradient is None else gradient)
        return torch.cat(gradients).flatten(1)

    @torch.no_grad()
    def compute_values(self, objective: Objective, images: Tensor) -> Tensor:
        """Return the objective (n,) at images in place of x."""
        pairs = zip(self._split(images), self._split(self.y), strict=True)
        return torch.cat([objective(self.network, x, y) for x, y in pairs])

    @torch.no_grad()
    def compute_logits(self) -> Tensor:
        """Return the logits (n, k) of the images."""
        return torch.cat([get_logits(self.network(x)) for x in self._split(self.x)])

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.split(self.batch_size) if len(tensor) else ()
