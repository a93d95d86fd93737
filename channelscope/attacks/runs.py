"""What gradient attacks share: gradients, restarts, and images that leave a run as soon as they are broken."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks.ball import Norm, is_correct, l2_norms, round_towards
from channelscope.attacks.folding import run_folded
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode, get_logits, logits_for
from channelscope.objectives import Objective

# From the points where a run begins, in the precision of the ball, to its outcome: (images x, labels y, starts,
# objective) -> points. The images have the network's precision and the memory format that suits it.
Run = Callable[[Tensor, Tensor, Tensor, Objective], "Points"]


class NoGradient(UserError):
    """A network whose loss has no gradient in its input, so that gradient attacks say nothing about it."""


class Points(NamedTuple):
    """Where a run left its images, and which of them left early because the network took them for another class."""

    images: Float[Tensor, "n *image"]
    broken: Bool[Tensor, " n"]


class View(NamedTuple):
    """What a network shows of images: the logits, each one's objective, and its gradient."""

    logits: Float[Tensor, "n k"]
    loss: Float[Tensor, " n"]
    gradient: Float[Tensor, "n *image"]


def restarted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    starts: Tensor,
    run: Run,
    objective: Objective,
    *,
    drops: bool,
) -> Tensor:
    """Run from each of the starts (restarts, n, ...); keep what fools the network, else what has the largest objective.

    If it ``drops`` broken images, a later run gets those only that no earlier one has broken.
    """
    with eval_mode(model):
        best = _checked(model, x, y, starts[0], run, objective)
        if len(starts) == 1:
            return best
        loss, right = _judged(model, best, y, objective)
        for start in starts[1:]:
            rows = (right | (not drops)).nonzero().squeeze(1)
            if not len(rows):
                break
            of_rows = narrowed(objective, rows)
            found = _checked(model, x[rows], y[rows], start[rows], run, of_rows)
            found_loss, found_right = _judged(model, found, y[rows], of_rows)
            better = torch.where(found_right == right[rows], found_loss > loss[rows], right[rows])
            rows, kept = rows[better], found[better]
            best[rows], loss[rows], right[rows] = kept, found_loss[better], found_right[better]
    return best


def _checked(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, run: Run, objective: Objective
) -> Tensor:
    """Run on the folded network, and once more on the real one for what only the folded one takes for broken."""

    def work(layout: torch.memory_format) -> Points:
        return run(x.to(memory_format=layout), y, start.to(memory_format=layout), objective)

    found, broken = run_folded(model, x, work)
    found = torch.empty_like(x).copy_(found)  # in the memory format of the images
    rows = broken.nonzero().squeeze(1)
    if len(rows):
        with torch.no_grad():
            rows = rows[is_correct(get_logits(model(found[rows])), y[rows])]
    if len(rows):
        found[rows] = run(x[rows], y[rows], start[rows], narrowed(objective, rows)).images
    return found


def _judged(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Give each image's objective, and whether the network is right."""
    view = look(model, x, y, objective, gradient=False)
    return view.loss, is_correct(view.logits, y)


def look(model: nn.Module, x: Tensor, y: Tensor, objective: Objective, *, gradient: bool) -> View:
    """Look at images; the logits are those of the very pass that gave the objective, where that had any.

    The gradient is 0 if it is not asked for.
    """
    at = leaf(x)
    with logits_for(model, at) as logits:
        if gradient:
            slope, loss = gradient_of(model, at, y, objective)
        else:
            with torch.no_grad():
                slope, loss = torch.zeros_like(x), objective(model, at, y)
    if logits:
        return View(logits[0], loss, slope)
    with torch.no_grad():
        return View(get_logits(model(at)), loss, slope)


def gradient_of(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Give the objective's gradient at a leaf x, 0 where it is not a number, and the objective of each image."""
    with torch.enable_grad():
        losses = objective(model, x, y)
        loss = losses.sum()
        if not loss.requires_grad:
            raise NoGradient(
                "The network's loss has no gradient in its input (inference_mode around it, or detach or no_grad "
                "within): gradient attacks say nothing about it."
            )
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
    return gradient.nan_to_num(0.0, 0.0, 0.0), losses.detach()


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Give the direction of the steepest ascent: the gradient's signs or, in L2, the gradient over its length."""
    return gradient.sign() if norm == "inf" else gradient / l2_norms(gradient).clamp_min(1e-12)


def leaf(x: Tensor) -> Tensor:
    """Give images that a gradient can be taken in."""
    return x.detach().requires_grad_()


def seen(
    x: Float[Tensor, "n *image"], points: Float[Tensor, "n *image"]
) -> Float[Tensor, "n *image"]:
    """Give the points as the network sees them and as they are returned: in the precision of x, inside the ball."""
    return points if points.dtype == x.dtype else round_towards(x, points)


def narrowed(objective: Objective, rows: Int[Tensor, " m"]) -> Objective:
    """Give the objective of these images of the batch."""
    narrow: Callable[[Tensor], Objective] | None = getattr(objective, "rows", None)
    return narrow(rows) if callable(narrow) else objective
