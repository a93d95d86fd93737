"""White-box attacks on images in [0, 1]: frozen, configured callables (model, x, y) -> adversarial x.

FGSM: Goodfellow et al., ICLR 2015 (arXiv 1412.6572). PGD: Madry et al., ICLR 2018 (arXiv 1706.06083).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.hooks import evaluating, logits_of
from channelscope.objectives import Objective, cross_entropy

Norm = Literal["inf", "2"]


class Attack(Protocol):
    """Any attack: its ``str`` is its short name, its result lies in the ball around x and in [0, 1]."""

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Attack images x (n, c, h, w) in [0, 1] with labels y (n,)."""


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
        random_start: begin at a random point of the ball instead of x.
        restarts: number of runs, >= 1.
        norm: "inf" or "2".
        objective: (model, x, y) -> loss per image.
    """

    eps: float = 8 / 255
    step: float | None = None
    steps: int = 20
    random_start: bool = True
    restarts: int = 1
    norm: Norm = "inf"
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        _check_ball(self.eps, self.norm)
        if self.steps < 1 or self.restarts < 1:
            raise UserError("PGD needs at least one step and one restart.")
        if self.step is not None and not 0 <= self.step < float("inf"):
            raise UserError(f"PGD's step is a number from 0 up, not {self.step}.")

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
        if self.eps == 0 or not len(x):
            return x.clone()
        # Half precision cannot hold the ball: steps and projections are taken in 32 bits at least.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        starts = self._starts(wide, generator) if self.random_start else wide.expand(self.restarts, *wide.shape)
        with evaluating(model):
            best = _rounded_towards(x, self._run(model, wide, y, starts[0], x.dtype))
            if self.restarts > 1:
                best = self._worst(model, x, wide, y, starts[1:], best)
        return best

    def _starts(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the restarts' points: the ball's uniformly, an image's numbers in a row, so whatever its batch."""
        device = x.device if generator is None else generator.device
        shape = (len(x), self.restarts, x[0].numel() + (self.norm == "2"))
        u = torch.rand(shape, generator=generator, device=device, dtype=x.dtype).to(x.device).transpose(0, 1)
        if self.norm == "inf":
            return x + self.eps * (2 * u.reshape(-1, *x.shape) - 1)
        # A uniform direction (that of a normal vector) at radius eps * u^(1/d).
        tiny = torch.finfo(u.dtype).eps
        normal = torch.erfinv((2 * u[..., :-1] - 1).clamp(tiny - 1, 1 - tiny))
        radius = self.eps * u[..., -1:].pow(1 / normal.shape[-1])
        return x + (radius * normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)).reshape(-1, *x.shape)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, dtype: torch.dtype) -> Tensor:
        step = self.eps * max(2 / self.steps, 1 / 10) if self.step is None else self.step
        project = _projection(x, self.eps, self.norm)
        adversarial = project(start)
        for _ in range(self.steps):
            adversarial = project(
                adversarial + step * _ascent(model, self.objective, adversarial.to(dtype), y, self.norm)
            )
        return adversarial

    def _worst(self, model: nn.Module, x: Tensor, wide: Tensor, y: Tensor, starts: Tensor, best: Tensor) -> Tensor:
        """Take per image the run that fools the network, else the one of the largest objective."""
        with torch.no_grad():
            loss, fooled = self.objective(model, best, y), ~correct(model, best, y)
        for start in starts:
            other = _rounded_towards(x, self._run(model, wide, y, start, x.dtype))
            with torch.no_grad():
                other_loss, other_fooled = self.objective(model, other, y), ~correct(model, other, y)
            better = torch.where(fooled == other_fooled, other_loss > loss, other_fooled)
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), other, best)
            loss, fooled = torch.where(better, other_loss, loss), fooled | other_fooled
        return best

    def __str__(self) -> str:
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"pgd-{self.steps}{restarts}{_suffix(self.norm, self.objective)}"


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
        _check_ball(self.eps, self.norm)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); there is nothing random in it."""
        one_step = PGD(
            eps=self.eps, step=self.eps, steps=1, random_start=False, norm=self.norm, objective=self.objective
        )
        return one_step(model, x, y, generator)

    def __str__(self) -> str:
        return f"fgsm{_suffix(self.norm, self.objective)}"


_NAME = re.compile(r"(?:(?P<fgsm>fgsm)|pgd-(?P<steps>[0-9]{1,6})(?:x(?P<restarts>[0-9]{1,4}))?)(?P<l2>-l2)?")


def parse(name: str, *, eps: float = 8 / 255, objective: Objective = cross_entropy) -> PGD | FGSM:
    """Make an attack from its short name: ``fgsm``, ``pgd-STEPS`` or ``pgd-STEPSxRESTARTS``, ``-l2`` for the L2 norm.

    >>> str(parse("pgd-100x5-l2"))
    'pgd-100x5-l2'

    Raises:
        UserError: for any other name.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"There is no attack {name!r}: write fgsm, pgd-20 or pgd-100x5 (five restarts), with -l2 for the L2 norm."
        )
    norm: Norm = "2" if found["l2"] else "inf"
    if found["fgsm"]:
        return FGSM(eps=eps, norm=norm, objective=objective)
    return PGD(eps=eps, steps=int(found["steps"]), restarts=int(found["restarts"] or 1), norm=norm, objective=objective)


@torch.no_grad()
def correct(model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Tell for which images the largest logit is the label's; a NaN among the logits is never correct."""
    logits = logits_of(model(x))
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def check_images(x: Float[Tensor, "n *image"]) -> None:
    """Refuse images outside [0, 1] or with NaN."""
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise UserError("Images must lie in [0, 1], without NaN: scale them so, and normalise inside the network.")


def _check_ball(eps: float, norm: str) -> None:
    if not 0 <= eps < float("inf"):
        raise UserError(f"An attack's eps is a number from 0 up in image units, such as 0.031, not {eps}.")
    if norm not in ("inf", "2"):
        raise UserError(f"An attack's norm is 'inf' or '2', not {norm!r}.")


def _suffix(norm: Norm, objective: Objective) -> str:
    of = "" if objective is cross_entropy else f":{getattr(objective, '__name__', objective)}"
    return ("-l2" if norm == "2" else "") + of


def _ascent(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Give the direction in which the objective grows fastest; 0 where its gradient is not a number."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = objective(model, x, y).sum()
        if not loss.requires_grad:
            raise UserError(
                "The network's loss has no gradient in its input (inference_mode around it, or detach or no_grad "
                "within): gradient attacks say nothing about it."
            )
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    return gradient.sign() if norm == "inf" else gradient / _length(gradient).clamp_min(1e-12)


def _length(delta: Tensor) -> Tensor:
    """L2 norm of each image's perturbation, shaped to divide it by."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))


def _projection(x: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Make the projection on the ball around x and on [0, 1]."""
    if norm == "inf":
        lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
        return lambda adversarial: torch.minimum(torch.maximum(adversarial, lower), upper)

    def project(adversarial: Tensor) -> Tensor:
        delta = adversarial - x
        # Cutting to [0, 1] afterwards brings a point closer to x, so it stays inside the ball.
        return (x + delta * (eps / _length(delta).clamp_min(max(eps, 1e-12)))).clamp(0, 1)

    return project


def _rounded_towards(x: Tensor, adversarial: Tensor) -> Tensor:
    """Round to the precision of x without leaving the ball around x."""
    rounded = adversarial.to(x.dtype)
    wide = x.to(adversarial.dtype)
    further = (rounded.to(adversarial.dtype) - wide).abs() > (adversarial - wide).abs()
    return torch.where(further, torch.nextafter(rounded, x), rounded)
