"""Auto-PGD: a projected gradient attack that finds its own step length (Croce & Hein, ICML 2020, arXiv 2003.01690)."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

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
from channelscope.attacks.pgd import suffix
from channelscope.attacks.runs import Points, View, direction, look, narrowed, restarted, seen
from channelscope.errors import UserError
from channelscope.objectives import Objective, cross_entropy, dlr, margin

MOMENTUM = 0.75  # alpha of the paper
_SHORT = [(cross_entropy, "-ce"), (dlr, "-dlr"), (margin, "-margin")]


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Auto-PGD: ascent of an objective f with momentum, whose step eta, 2 eps at first, is halved where it stalls.

        z       = project(x_k + eta * direction(grad f(x_k)))
        x_(k+1) = project(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_(k-1)))

    At checkpoints w_0 = 0 < w_1 < ... an image's eta is halved, and its best point so far taken up again, if fewer than
    rho of the steps since the last checkpoint have raised f, or if neither eta has been halved then nor the best f
    risen since. An image that the network takes for another class leaves at once: this is an attack for evaluation.
    An image that is never broken ends at its point of the largest f. (Algorithm 1; as in the authors' code, a
    checkpoint follows the evaluation of its point. Theirs differs in halving at exactly rho, too, and, for other steps
    than 100, in the rounding of the checkpoints.)

    Args:
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        steps: number of steps, >= 1.
        restarts: number of runs, >= 1, each from another random point: on the surface of the ball, before the range
            of images cuts it. Later ones are for the images that no earlier one has broken.
        norm: "inf" or "2".
        objective: (model, x, y) -> loss per image; see ``PGD.early_stop`` for one that knows its batch.
        rho: share of the steps that must raise f, in [0, 1].
        eot: number of forward passes, >= 1, over which gradient, f and logits are averaged (Athalye et al., ICML
            2018, arXiv 1802.00420): more than one for a network that draws random numbers.
    """

    eps: float = 8 / 255
    steps: int = 100
    restarts: int = 1
    norm: Norm = "inf"
    objective: Objective = cross_entropy
    rho: float = 0.75
    eot: int = 1

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)
        if self.steps < 1 or self.restarts < 1 or self.eot < 1:
            raise UserError("APGD needs at least one step, one restart and one forward pass (eot).")
        if not 0 <= self.rho <= 1:
            raise UserError(f"APGD's rho is a share of its steps, from 0 to 1, not {self.rho}.")

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

        def run(x: Tensor, y: Tensor, start: Tensor, objective: Objective) -> Points:
            return self._run(model, x, y, start, objective)

        return restarted(
            model,
            x,
            y,
            self._starts(x.to(working_dtype(x.dtype)), generator),
            run,
            self.objective,
            drops=True,
        )

    def _starts(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Give the restarts' points: x + eps t / |t|, t uniform in [-1, 1) for L-inf and normal for L2."""
        u = draw_uniform((len(x), self.restarts, x.shape[1:].numel()), x, generator).transpose(0, 1)
        t = 2 * u - 1 if self.norm == "inf" else to_normal(u)
        size = (
            t.abs().amax(-1, keepdim=True) if self.norm == "inf" else t.norm(dim=-1, keepdim=True)
        )
        return x + (self.eps * t / size.clamp_min(1e-12)).reshape(-1, *x.shape)

    def _run(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, objective: Objective
    ) -> Points:
        """Take the steps from one start; what is broken leaves, and its row of everything with it."""
        images, broken = torch.empty_like(x), torch.zeros_like(y, dtype=torch.bool)
        origin, of_rows, last = x.to(start.dtype), objective, 0
        project = make_projection(origin, self.eps, self.norm)
        state = _State.begin(y, project(start), 2 * self.eps)
        for k in range(self.steps + 1):
            if k:
                state.points, state.previous = (
                    self._next(state, project, momentum=k > 1),
                    state.points,
                )
            at = seen(x[state.rows], state.points)
            view = self._look(model, at, state.y, of_rows, gradient=k < self.steps)
            state.take(view)
            right = is_correct(view.logits, state.y)
            if not right.all():
                out = state.rows[~right]
                images[out], broken[out] = at[~right], True
                state = state.only(right)
                if not len(state.rows):
                    break
                project = make_projection(origin[state.rows], self.eps, self.norm)
                of_rows = narrowed(objective, state.rows)
            if k in self._checkpoints:
                state.check(self.rho * (k - last))
                last = k
        images[state.rows] = seen(x[state.rows], state.best)
        return Points(images, broken)

    def _next(
        self, state: "_State", project: Callable[[Tensor], Tensor], *, momentum: bool
    ) -> Tensor:
        """Give the points of the next step; the first one has no momentum."""
        at = state.points
        z = project(at + state.step * direction(state.gradient, self.norm))
        return (
            project(at + MOMENTUM * (z - at) + (1 - MOMENTUM) * (at - state.previous))
            if momentum
            else z
        )

    def _look(
        self, model: nn.Module, x: Tensor, y: Tensor, objective: Objective, *, gradient: bool
    ) -> View:
        """Look at points as often as the expectation over the network's own randomness asks for."""
        views = [look(model, x, y, objective, gradient=gradient) for _ in range(self.eot)]
        means = (
            torch.stack(values).to(working_dtype(x.dtype)).mean(0)
            for values in zip(*views, strict=True)
        )
        return View(*means)

    @property
    def _checkpoints(self) -> set[int]:
        """The steps w_j = ceil(p_j * steps): p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)."""
        percent, gap, found = 0, 22, set[int]()
        while percent <= 100:
            found.add(-(-percent * self.steps // 100))
            percent, gap = percent + gap, max(gap - 3, 6)
        return found

    def __str__(self) -> str:
        name = next((name for known, name in _SHORT if known is self.objective), None)
        steps = f"-{self.steps}" if self.steps != 100 or self.restarts > 1 else ""
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"apgd{name or ''}{steps}{restarts}{suffix(self.norm, cross_entropy if name else self.objective)}"


@dataclass
class _State:
    """What is known of the images that are under attack, a row each."""

    rows: Tensor  # where they are in the batch
    y: Tensor
    points: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor  # steps since the last checkpoint that have raised the loss
    halved: Tensor  # whether the step was halved there
    checked: Tensor  # the best loss there

    @classmethod
    def begin(cls, y: Tensor, points: Tensor, step: float) -> Self:
        """Start with a loss above which nothing rises, and a best one below which nothing falls."""
        infinite, none = torch.full_like(y, torch.inf, dtype=points.dtype), torch.zeros_like(y)
        zero = torch.zeros_like(points)
        return cls(
            rows=torch.arange(len(y), device=y.device), y=y,
            points=points, previous=points, gradient=zero, loss=infinite,
            best=points.clone(), best_gradient=zero.clone(), best_loss=-infinite,
            step=torch.full_like(infinite, step).view(-1, *[1] * (points.ndim - 1)),
            rises=none, halved=none.bool(), checked=-infinite,
        )  # fmt: skip

    def take(self, view: View) -> None:
        """Take in what the network shows of the points."""
        self.rises = self.rises + (view.loss > self.loss)
        self.gradient, self.loss = view.gradient, view.loss
        better = self.loss > self.best_loss
        self.best[better], self.best_gradient[better] = self.points[better], self.gradient[better]
        self.best_loss = torch.where(better, self.loss, self.best_loss)

    def check(self, wanted: float) -> None:
        """Halve the step of images that do not get on, of too few rises for one, and take them back to their best."""
        stalled = ~self.halved & (self.best_loss <= self.checked)
        self.halved = (self.rises < wanted) | stalled
        back = self.halved.view(self.step.shape)
        self.step = torch.where(back, self.step / 2, self.step)
        self.points = torch.where(back, self.best, self.points)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.checked, self.rises = self.best_loss, torch.zeros_like(self.rises)

    def only(self, which: Tensor) -> Self:
        """Keep some of the images."""
        return replace(self, **{own.name: getattr(self, own.name)[which] for own in fields(self)})
