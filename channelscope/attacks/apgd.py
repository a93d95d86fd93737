"""Auto-PGD: gradient ascent that finds its own step length.

Croce & Hein, ICML 2020 (arXiv 2003.01690).
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks.ball import draw_uniform, to_normal
from channelscope.attacks.base import Attack, Search, mean_over
from channelscope.attacks.registry import register
from channelscope.errors import UserError
from channelscope.objectives import Images, Objective, PerImage, cross_entropy, dlr, margin

MOMENTUM = 0.75  # alpha of the paper
_STEPS = "[-STEPS[xRESTARTS]][-l2]"


def _count_passes(apgd: "APGD") -> float:
    return apgd.steps * apgd.restarts * apgd.eot


@register(
    f"apgd-ce{_STEPS}", "Auto-PGD on cross-entropy", cost=_count_passes, objective=cross_entropy
)
@register(f"apgd-dlr{_STEPS}", "Auto-PGD on DLR", cost=_count_passes, objective=dlr)
@register(f"apgd-margin{_STEPS}", "Auto-PGD on the margin", cost=_count_passes, objective=margin)
@register(
    f"apgd{_STEPS}", "Auto-PGD on another objective, as in apgd:averaged-margin", cost=_count_passes
)
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD: ascent of an objective f with momentum and a step eta, 2 eps at first.

        z       = project(x_k + eta * direction(grad f(x_k)))
        x_(k+1) = project(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_(k-1)))

    At checkpoints w_0 = 0 < w_1 < ... an image's eta is halved, and its best point so far taken up
    again, if fewer than rho of the steps since the last checkpoint have raised f, or if neither eta
    was halved then nor the best f has risen since. An image that the network takes for another
    class leaves at once: this is an attack for evaluation. An image that is never broken ends at
    its point of the largest f. (Algorithm 1; as in the authors' code, a checkpoint follows the
    evaluation of its point. Theirs also halves at exactly rho, and rounds the checkpoints otherwise
    for other steps than 100.)

    Args:
        steps: number of steps, >= 1.
        restarts: number of runs, >= 1, each from another random point on the surface of the ball,
            before it is cut to [0, 1]. Later ones are for images that no earlier one has broken.
        objective: (model, x, y) -> loss per image; see ``PGD.early_stop`` for one that knows its
            batch.
        rho: share of the steps that must raise f, in [0, 1].
        eot: number of forward passes, >= 1, over which gradient, f and logits are averaged (Athalye
            et al., ICML 2018, arXiv 1802.00420): for networks that draw random numbers.
    """

    steps: int = 100
    restarts: int = 1
    objective: Objective = cross_entropy
    rho: float = 0.75
    eot: int = 1

    early_stop = 0  # a broken image leaves at once

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1 or self.eot < 1:
            raise UserError(
                "APGD needs at least one step, one restart and one forward pass, "
                f"not steps {self.steps}, restarts {self.restarts} and eot {self.eot}."
            )
        if not 0 <= self.rho <= 1:
            raise UserError(f"APGD's rho is a share of its steps, from 0 to 1, not {self.rho}.")

    def get_random_starts(
        self, x: Images, generator: torch.Generator | None
    ) -> Float[Tensor, "restarts n *image"]:
        """Return x + eps t / |t|, with t uniform in [-1, 1) for L-inf and normal for L2."""
        u = draw_uniform((len(x), self.restarts, x.shape[1:].numel()), x, generator)
        if self.norm == "inf":
            t = 2 * u.transpose(0, 1) - 1
            size = t.abs().amax(-1, keepdim=True)
        else:
            t = to_normal(u.transpose(0, 1))
            size = t.norm(dim=-1, keepdim=True)
        return x + (self.eps * t / size.clamp_min(1e-12)).reshape(-1, *x.shape)

    def run(self, model: nn.Module, search: Search) -> Tensor:
        state, last = _State.begin(search.project(search.start), 2 * self.eps), 0
        for k in search.steps(self.steps + 1):
            if k:
                state = self._move(search, state, momentum=k > 1)
            state = state.update(*self._look(model, search, state.points, is_last=k == self.steps))
            state = _State(*search.drop_broken(*state))
            if k in self.checkpoints:
                state, last = state.check(self.rho * (k - last)), k
        return state.best

    def _move(self, search: Search, state: "_State", *, momentum: bool) -> "_State":
        """Take a step; the first one has no momentum."""
        x = state.points
        z = search.project(x + state.step * search.direction(state.gradient))
        if momentum:
            z = search.project(x + MOMENTUM * (z - x) + (1 - MOMENTUM) * (x - state.previous))
        return state._replace(points=z, previous=x)

    def _look(
        self, model: nn.Module, search: Search, points: Tensor, *, is_last: bool
    ) -> tuple[PerImage, Images]:
        """Return the objective and its gradient at some points, averaged over ``eot`` passes."""
        losses, gradients = [], []
        for _ in range(self.eot):
            x_in = search.as_input(points)
            with search.watch(model, x_in), torch.set_grad_enabled(not is_last):
                losses.append(search.objective(model, x_in, search.y))
            gradients.append(points if is_last else search.gradient(losses[-1], x_in))
        return mean_over(losses).detach().to(points.dtype), mean_over(gradients)

    @property
    def checkpoints(self) -> set[int]:
        """The steps w_j = ceil(p_j * steps), whose shares p_j lie closer and closer.

        p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
        """
        percent, gap, steps = 0, 22, set[int]()
        while percent <= 100:
            steps.add(-(-percent * self.steps // 100))
            percent, gap = percent + gap, max(gap - 3, 6)
        return steps


class _State(NamedTuple):
    """What is known of the images under attack, a row each."""

    points: Images
    previous: Images
    gradient: Images
    loss: PerImage
    best: Images
    best_gradient: Images
    best_loss: PerImage
    step: Tensor  # (n, 1, ...)
    rises: Int[Tensor, " n"]  # steps since the last checkpoint that have raised the loss
    is_halved: Bool[Tensor, " n"]  # the step, at the last checkpoint
    checked_loss: PerImage  # the best loss then

    @classmethod
    def begin(cls, points: Images, step: float) -> Self:
        """Return a state whose loss no other exceeds, and whose best loss every other exceeds."""
        least = points.new_full((len(points),), -torch.inf)
        steps = points.new_full((len(points), *[1] * (points.ndim - 1)), step)
        rises, gradient = torch.zeros_like(least, dtype=torch.int64), torch.zeros_like(points)
        best = (points, gradient, least)
        return cls(points, points, gradient, -least, *best, steps, rises, rises.bool(), least)

    def update(self, loss: PerImage, gradient: Images) -> Self:
        is_better = loss > self.best_loss
        of_image = is_better.view(self.step.shape)
        return self._replace(
            gradient=gradient,
            loss=loss,
            best=torch.where(of_image, self.points, self.best),
            best_gradient=torch.where(of_image, gradient, self.best_gradient),
            best_loss=torch.where(is_better, loss, self.best_loss),
            rises=self.rises + (loss > self.loss),
        )

    def check(self, wanted: float) -> Self:
        """Return the state after a checkpoint, at which ``wanted`` steps should have raised f.

        Images that stall get half the step and go back to their best point.
        """
        has_stalled = ~self.is_halved & (self.best_loss <= self.checked_loss)
        is_halved = (self.rises < wanted) | has_stalled
        of_image = is_halved.view(self.step.shape)
        return self._replace(
            points=torch.where(of_image, self.best, self.points),
            gradient=torch.where(of_image, self.best_gradient, self.gradient),
            step=torch.where(of_image, self.step / 2, self.step),
            rises=torch.zeros_like(self.rises),
            is_halved=is_halved,
            checked_loss=self.best_loss,
        )
