"""A network and the images that it classifies correctly, as the checks for gradient masking look at them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from channelscope.attacks import PGD, Attack, Norm, find_correct, make_generators
from channelscope.layers.hooks import get_logits
from channelscope.objectives import Objective, cross_entropy


@contextmanager
def seeded(x: Tensor, seed: int) -> Iterator[None]:
    """Seed the global random numbers, which a network may draw from, and put them back."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed)  # noqa: TID251
        yield


@dataclass(frozen=True)
class Examined:
    """A network in eval mode, its images, and the ball in which they are attacked."""

    network: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    norm: Norm
    seed: int
    batch_size: int

    @property
    def rows(self) -> Tensor:
        """Number the images."""
        return torch.arange(len(self.x), device=self.x.device)

    def of_correct(self) -> Self:
        """Keep the images that are classified correctly."""
        rows = self.right(self.x, self.rows)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def pgd(self, steps: int = 20, objective: Objective = cross_entropy, restarts: int = 1) -> PGD:
        """Make a PGD that is done with an image once it is broken."""
        return PGD(
            eps=self.eps,
            norm=self.norm,
            steps=steps,
            objective=objective,
            restarts=restarts,
            early_stop=0,
        )

    def along(self, slopes: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """Give the steepest step of this length along each image's gradient, and the rise that it promises."""
        size = slopes.norm(dim=1, keepdim=True)
        move = slopes.sign() if self.norm == "inf" else slopes / size.clamp_min(1e-12)
        return step * move.view_as(self.x), step * (slopes * move).sum(1)

    def right(self, images: Tensor, rows: Tensor) -> Tensor:
        """Give those of the rows that the network classifies correctly when it gets these images."""
        held = [
            find_correct(self.network, x, self.y[at])
            for x, at in zip(self._split(images), self._split(rows), strict=True)
        ]
        return rows[torch.cat(held)] if held else rows

    def left_by(self, attack: Attack, rows: Tensor) -> Tensor:
        """Attack these rows; give those that withstand."""
        left = [rows[:0]]
        for at in self._split(rows):
            generators = make_generators(self.seed, str(attack), at.tolist())
            left.append(self.right(attack(self.network, self.x[at], self.y[at], generators), at))
        return torch.cat(left)

    def slopes(self, objective: Objective, x: Tensor) -> Tensor:
        """Give the objective's gradient at x, an image a row: NaN for a network that has none."""
        rows = []
        for at, y in zip(self._split(x), self._split(self.y), strict=True):
            leaf = at.clone().requires_grad_()
            with torch.enable_grad():
                loss = objective(self.network, leaf, y).sum()
            known = (
                torch.autograd.grad(loss, leaf, allow_unused=True)
                if loss.requires_grad
                else (None,)
            )
            rows.append(torch.full_like(at, torch.nan) if known[0] is None else known[0])
        return torch.cat(rows).flatten(1)

    def values(self, objective: Objective, x: Tensor) -> Tensor:
        """Give the objective at x."""
        with torch.no_grad():
            pairs = zip(self._split(x), self._split(self.y), strict=True)
            return torch.cat([objective(self.network, at, y) for at, y in pairs])

    def logits(self) -> Tensor:
        """Give the logits of the images."""
        with torch.no_grad():
            return torch.cat([get_logits(self.network(at)) for at in self._split(self.x)])

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(self.batch_size) if len(rows) else ()
