"""Projected gradient attacks.

FGSM: Goodfellow et al., ICLR 2015 (arXiv 1412.6572). PGD: Madry et al., ICLR 2018 (arXiv 1706.06083). Early-stopped
PGD: Zhang et al., ICML 2020 (arXiv 2002.11242). C&W-inf: PGD on the margin of Carlini & Wagner, S&P 2017 (arXiv
1608.04644).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks.ball import (
    Norm,
    check_ball,
    check_images,
    draw_uniform,
    is_correct,
    make_projection,
    to_normal,
    working_dtype,
)
from channelscope.attacks.runs import (
    Points,
    direction,
    gradient_of,
    leaf,
    look,
    narrowed,
    restarted,
    seen,
)
from channelscope.errors import UserError
from channelscope.objectives import Objective, cross_entropy, margin


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
            an image that the network takes for another class takes tau more steps and then stops; with 0 it stops at
            once, which spares an evaluation most of its steps. Later restarts are for the images that no earlier
            one has broken. The objective is asked about the images that are left: one that holds numbers of each
            image of the batch, as that of TRADES does, needs a method ``rows(indices)`` that gives the objective
            of some of them.
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
            raise UserError(
                f"PGD's random start is true, false or a spread from 0 up, not {self.random_start}."
            )
        if self.early_stop is not None and self.early_stop < 0:
            raise UserError("PGD that stops early takes a number of further steps from 0 up.")

    @property
    def step_length(self) -> float:
        """Length of a step in image units, also where it follows from eps and the number of steps."""
        return self.eps * max(2 / self.steps, 1 / 10) if self.step is None else self.step

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
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
        starts = self._starts(x.to(working_dtype(x.dtype)), generator)

        def run(x: Tensor, y: Tensor, start: Tensor, objective: Objective) -> Points:
            if self.early_stop is None:
                return self._run(model, x, y, start, objective)
            return self._run_friendly(model, x, y, start, objective, self.early_stop)

        return restarted(
            model, x, y, starts, run, self.objective, drops=self.early_stop is not None
        )

    def skip(self, x: Float[Tensor, "n *image"], n: int, generator: torch.Generator) -> None:
        """Advance ``generator`` as an attack on n images of the shape and precision of those in x would."""
        if self.eps and self.random_start is not False:
            self._draw(x[:0].to(working_dtype(x.dtype)), n, generator)

    def _starts(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Give the restarts' points before their projection: in the ball uniformly, normal around x, or x itself."""
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
        return x + (
            radius * direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        ).reshape(-1, *x.shape)

    def _draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw from [0, 1) what n images like those of x need, an image's numbers in a row, so whatever its batch."""
        numbers = x.shape[1:].numel() + (self.norm == "2" and self.random_start is True)
        return draw_uniform((n, self.restarts, numbers), x, generator)

    def _run(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, objective: Objective
    ) -> Points:
        """Take the steps from one start."""
        project = make_projection(x.to(start.dtype), self.eps, self.norm)
        points = project(start)
        for _ in range(self.steps):
            gradient, _ = gradient_of(model, leaf(seen(x, points)), y, objective)
            points = project(points + self._move(gradient.to(points.dtype)))
        return Points(seen(x, points), torch.zeros_like(y, dtype=torch.bool))

    def _run_friendly(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, objective: Objective, tau: int
    ) -> Points:
        """Take the steps of PGD-K-tau from one start: fewer and fewer images take part in them."""
        project = make_projection(x.to(start.dtype), self.eps, self.norm)
        points = project(start)
        images, broken = seen(x, points).clone(), torch.zeros_like(y, dtype=torch.bool)
        going, patience, of_going = (
            torch.arange(len(x), device=x.device),
            torch.full_like(y, tau),
            objective,
        )
        for _ in range(self.steps):
            view = look(model, seen(x, points), y, of_going, gradient=True)
            fooled, gradient = ~is_correct(view.logits, y), view.gradient.to(points.dtype)
            on = ~fooled | (patience > 0)
            patience = patience - fooled.to(patience.dtype)
            if not on.all():
                images[going[~on]], broken[going[~on]] = seen(x, points)[~on], True
                going, x, y, points, patience, gradient = (
                    t[on] for t in (going, x, y, points, patience, gradient)
                )
                project, of_going = (
                    make_projection(x.to(start.dtype), self.eps, self.norm),
                    narrowed(objective, going),
                )
            if not len(going):
                break
            points = project(points + self._move(gradient))
        images[going] = seen(x, points)
        return Points(images, broken)

    def _move(self, gradient: Tensor) -> Tensor:
        """Give the step along a gradient, before its projection."""
        return self.step_length * direction(gradient, self.norm)

    def __str__(self) -> str:
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        tau = "" if self.early_stop is None else f"-{self.early_stop}"
        # By its own name in the literature, which says what the objective is.
        kind, objective = (
            ("cw", cross_entropy) if self.objective is margin else ("pgd", self.objective)
        )
        return f"{kind}-{self.steps}{restarts}{tau}{suffix(self.norm, objective)}"


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
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); there is nothing random in it."""
        one_step = PGD(
            eps=self.eps,
            step=self.eps,
            steps=1,
            random_start=False,
            norm=self.norm,
            objective=self.objective,
        )
        return one_step(model, x, y, generator)

    def __str__(self) -> str:
        return f"fgsm{suffix(self.norm, self.objective)}"


def suffix(norm: Norm, objective: Objective) -> str:
    """Give the end of an attack's short name."""
    of = "" if objective is cross_entropy else f":{getattr(objective, '__name__', objective)}"
    return ("-l2" if norm == "2" else "") + of
