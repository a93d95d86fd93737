"""Projected gradient attacks.

FGSM: Goodfellow et al., ICLR 2015 (arXiv 1412.6572). PGD: Madry et al., ICLR 2018 (arXiv 1706.06083). Early-stopped
PGD: Zhang et al., ICML 2020 (arXiv 2002.11242). C&W-inf: PGD on the margin of Carlini & Wagner, S&P 2017 (arXiv
1608.04644).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks.ball import (
    Norm,
    Randomness,
    check_ball,
    check_images,
    correct,
    is_right,
    length,
    normal,
    projection,
    rounded_towards,
    uniform,
    wide,
)
from channelscope.errors import UserError
from channelscope.folding import run_folded
from channelscope.hooks import evaluating, logits_for, logits_of
from channelscope.objectives import Objective, cross_entropy


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient ascent of an objective L over the ball ||delta|| <= eps, restricted to images in [0, 1].

        x <- project(x + step * direction(grad_x L(model, x, y)))

    direction is the sign for the L-inf norm, the gradient over its L2 norm for L2. Each restart begins at a point
    of the ball drawn at random (uniformly, if ``random_start``); of the restarts an image keeps one that fools the
    network or else the one of the largest objective. The model is attacked in eval mode; its mode and the
    parameters' ``requires_grad`` and ``grad`` are left as found.

    Args:
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        step: step length; None for eps * max(2 / steps, 1 / 10): the paper's 0.8/255 at eps 8/255 for 20 steps or more.
        steps: number of steps, >= 1.
        random_start: begin at a random point of the ball instead of x; a number s for x + s * N(0, 1), projected (0.001
            in TRADES and MART).
        restarts: number of runs, >= 1.
        norm: "inf" or "2".
        objective: (model, x, y) -> loss per image.
        early_stop: tau of FAT's PGD-K-tau, >= 0, for friendly training images (Zhang et al., ICML 2020, Algorithm 1):
            an image that the network takes for another class takes tau more steps and then stops. The objective is
            asked about the images that are left: one that holds numbers of each image of the batch, as that of
            TRADES does, needs a method ``rows(indices)`` that gives the objective of some of them.
    """

    eps: float = 8 / 255
    step: float | None = None
    steps: int = 20
    random_start: bool | float = True
    restarts: int = 1
    norm: Norm = "inf"
    objective: Objective = cross_entropy
    early_stop: int | None = None

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)
        if self.steps < 1 or self.restarts < 1:
            raise UserError("PGD needs at least one step and one restart.")
        if self.step is not None and not 0 <= self.step < float("inf"):
            raise UserError(f"PGD's step is a number from 0 up, not {self.step}.")
        if not 0 <= self.random_start < float("inf"):
            raise UserError(f"PGD's random start is true, false or a spread from 0 up, not {self.random_start}.")
        if self.early_stop is not None and (self.early_stop < 0 or self.restarts > 1):
            raise UserError("PGD that stops early takes a number of steps from 0 up, and one restart only.")

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: Randomness = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); the random starts come from ``generator``.

        Raises:
            UserError: for images outside [0, 1] or with NaN.
        """
        check_images(x)
        x = x.detach()
        if self.eps == 0 or not len(x):
            return x.clone()
        # Half precision cannot hold the ball: steps and projections are taken in 32 bits at least.
        exact = x.to(wide(x.dtype))
        starts = self._starts(exact, generator)

        def run(layout: torch.memory_format) -> list[Tensor]:
            origin = exact.to(memory_format=layout)
            runs = [self._run(model, origin, y, start.to(memory_format=layout), x.dtype) for start in starts]
            return [rounded_towards(x, found) for found in runs]

        with evaluating(model):
            return self._worst(model, x, y, run_folded(model, x, run))

    def skip(self, x: Float[Tensor, "n *image"], n: int, generator: torch.Generator) -> None:
        """Advance ``generator`` as an attack on n images of the shape and precision of those in x would."""
        if self.eps and self.random_start is not False:
            self._draw(x[:0].to(wide(x.dtype)), n, generator)

    def _starts(self, x: Tensor, generator: Randomness) -> Tensor:
        """Give the restarts' points before their projection: in the ball uniformly, normal around x, or x itself."""
        if self.random_start is False:
            return x.expand(self.restarts, *x.shape)
        u = self._draw(x, len(x), generator).transpose(0, 1)
        if self.random_start is not True:
            return x + self.random_start * normal(u).reshape(-1, *x.shape)
        if self.norm == "inf":
            return x + self.eps * (2 * u.reshape(-1, *x.shape) - 1)
        # A uniform direction (that of a normal vector) at radius eps * u^(1/d).
        direction = normal(u[..., :-1])
        radius = self.eps * u[..., -1:].pow(1 / direction.shape[-1])
        return x + (radius * direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)).reshape(-1, *x.shape)

    def _draw(self, x: Tensor, n: int, generator: Randomness) -> Tensor:
        """Draw from [0, 1) what n images like those of x need, an image's numbers in a row, so whatever its batch."""
        numbers = x.shape[1:].numel() + (self.norm == "2" and self.random_start is True)
        return uniform((n, self.restarts, numbers), x, generator)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, dtype: torch.dtype) -> Tensor:
        """Take the steps from one start."""
        if self.early_stop is not None:
            return self._run_friendly(model, x, y, start, dtype, self.early_stop)
        project = projection(x, self.eps, self.norm)
        adversarial = project(start)
        for _ in range(self.steps):
            adversarial = project(adversarial + self._move(model, _leaf(adversarial, dtype), y, self.objective))
        return adversarial

    def _run_friendly(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, dtype: torch.dtype, tau: int
    ) -> Tensor:
        """Take the steps of PGD-K-tau from one start: fewer and fewer images take part in them."""
        adversarial = projection(x, self.eps, self.norm)(start)
        going, patience = torch.arange(len(x), device=x.device), torch.full_like(y, tau)
        for _ in range(self.steps):
            at = _leaf(adversarial[going], dtype)
            with logits_for(model, at) as logits:  # of the very pass that the gradient is taken of
                move = self._move(model, at, y[going], _narrowed(self.objective, going))
            fooled = ~is_right(logits[0] if logits else logits_of(model(at)).detach(), y[going])
            on = ~fooled | (patience[going] > 0)
            patience[going] -= fooled.to(patience.dtype)
            going, move = going[on], move[on]
            if not len(going):
                break
            project = projection(x[going], self.eps, self.norm)
            adversarial[going] = project(adversarial[going] + move)
        return adversarial

    def _move(self, model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
        """Give the step from x, before its projection."""
        step = self.eps * max(2 / self.steps, 1 / 10) if self.step is None else self.step
        return step * ascent(model, objective, x, y, self.norm)

    def _worst(self, model: nn.Module, x: Tensor, y: Tensor, runs: list[Tensor]) -> Tensor:
        """Take per image the run that fools the network, else the one of the largest objective."""
        best, *others = runs
        if not others:
            return best
        with torch.no_grad():
            loss, fooled = self.objective(model, best, y), ~correct(model, best, y)
            for other in others:
                other_loss, other_fooled = self.objective(model, other, y), ~correct(model, other, y)
                better = torch.where(fooled == other_fooled, other_loss > loss, other_fooled)
                best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), other, best)
                loss, fooled = torch.where(better, other_loss, loss), fooled | other_fooled
        return best

    def __str__(self) -> str:
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        tau = "" if self.early_stop is None else f"-{self.early_stop}"
        return f"pgd-{self.steps}{restarts}{tau}{suffix(self.norm, self.objective)}"


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """Fast gradient sign method: one step of length eps from x, x + eps * direction(grad_x L(model, x, y)).

    Args:
        eps: radius of the ball and length of the step, in image units, >= 0.
        norm: "inf" (direction: the sign) or "2" (the gradient over its norm).
        objective: (model, x, y) -> loss per image.
    """

    eps: float = 8 / 255
    norm: Norm = "inf"
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: Randomness = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); there is nothing random in it."""
        one_step = PGD(
            eps=self.eps, step=self.eps, steps=1, random_start=False, norm=self.norm, objective=self.objective
        )
        return one_step(model, x, y, generator)

    def skip(self, x: Float[Tensor, "n *image"], n: int, generator: torch.Generator) -> None:
        """Leave ``generator`` alone, as an attack on n images would."""

    def __str__(self) -> str:
        return f"fgsm{suffix(self.norm, self.objective)}"


def suffix(norm: Norm, objective: Objective) -> str:
    """Give the end of an attack's short name."""
    of = "" if objective is cross_entropy else f":{getattr(objective, '__name__', objective)}"
    return ("-l2" if norm == "2" else "") + of


def ascent(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Give the direction in which the objective grows fastest at a leaf x; 0 where its gradient is not a number."""
    with torch.enable_grad():
        loss = objective(model, x, y).sum()
        if not loss.requires_grad:
            raise UserError(
                "The network's loss has no gradient in its input (inference_mode around it, or detach or no_grad "
                "within): gradient attacks say nothing about it."
            )
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    return gradient.sign() if norm == "inf" else gradient / length(gradient).clamp_min(1e-12)


def _leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Give images of this precision that a gradient can be taken in."""
    return x.to(dtype).detach().requires_grad_()


def _narrowed(objective: Objective, rows: Tensor) -> Objective:
    """Give the objective of these images of the batch."""
    narrow: Callable[[Tensor], Objective] | None = getattr(objective, "rows", None)
    return narrow(rows) if callable(narrow) else objective
