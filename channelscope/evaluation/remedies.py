"""What still attacks a network whose gradients mislead: random points, averaged gradients and estimated ones.

Averaged gradients: expectation over transformation, Athalye et al., ICML 2018 (arXiv 1802.00420). Estimated ones: SPSA,
Uesato et al., ICML 2018 (arXiv 1802.05666).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks import Norm, Randomness, check_images, correct
from channelscope.attacks.ball import check_ball, length, normal, projection, rounded_towards, uniform, wide
from channelscope.errors import UserError
from channelscope.hooks import evaluating
from channelscope.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Random search: the first of ``tries`` points on the surface of the ball around x that fools the network.

        x + eps * s, s = +-1 in each pixel (L-inf);    x + eps * u / ||u||, u ~ N(0, 1) (L2);    both cut to [0, 1]

    An image that is never fooled is left at the last of its points.

    Args:
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        tries: number of points, >= 1.
        norm: "inf" or "2".
    """

    eps: float = 8 / 255
    tries: int = 100
    norm: Norm = "inf"

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)
        if self.tries < 1:
            raise UserError("Random search needs at least one try.")

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"], generator: Randomness = None
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); the points come from ``generator``.

        Raises:
            UserError: for images outside [0, 1] or with NaN.
        """
        check_images(x)
        exact = x.to(wide(x.dtype))
        project, found = projection(exact, self.eps, self.norm), x.clone()
        going = torch.ones_like(y, dtype=torch.bool)
        with evaluating(model):
            for _ in range(self.tries if self.eps and len(x) else 0):
                points = rounded_towards(x, project(exact + self._draw(exact, generator)))
                found[going] = points[going]
                going[going.clone()] = correct(model, points[going], y[going])
                if not going.any():
                    break
        return found

    def _draw(self, x: Tensor, generator: Randomness) -> Tensor:
        """Draw for all images, those that are done too: what an image gets does not depend on the others."""
        u = normal(uniform(tuple(x.shape), x, generator))
        return self.eps * (u.sign() if self.norm == "inf" else u / length(u).clamp_min(1e-12))

    def __str__(self) -> str:
        return f"noise-{self.tries}{'-l2' if self.norm == '2' else ''}"


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """An objective L with its gradient averaged over points near x and over the network's own randomness.

        mean over j of L(model, x + spread * u_j, y),  u_j uniform in [-1, 1]^d

    What is rugged at a scale below ``spread``, or random in the network, cancels.

    Args:
        objective: L.
        spread: half the width of the cube of the points, in image units; 0 for the network's own randomness only.
        samples: number of points, >= 1.
    """

    objective: Objective
    spread: float
    samples: int = 10

    def __call__(self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        loss, slope = torch.zeros(len(x), device=x.device), torch.zeros_like(x)
        for u in _draws(x, self.samples):
            at = (x + self.spread * u).detach().requires_grad_(torch.is_grad_enabled())
            here = self.objective(model, at, y)
            if here.requires_grad:  # a gradient at a time: a graph of all samples would not fit into memory
                slope += torch.autograd.grad(here.sum(), at, allow_unused=True, materialize_grads=True)[0]
            loss = loss + here.detach()
        return _sloping(loss / self.samples, slope / self.samples, x)

    def __str__(self) -> str:
        return f"averaged-{_name(self.objective)}"


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """An objective L whose gradient is estimated from its values: the network need not be differentiable (SPSA).

        g = mean over j of (L(model, x + spread * s_j, y) - L(model, x - spread * s_j, y)) / (2 spread) * s_j

    with s_j = +-1 in each pixel, drawn anew at each x.

    Args:
        objective: L.
        spread: the distance, in image units, at which it is evaluated, > 0.
        samples: number of pairs, >= 1.
    """

    objective: Objective
    spread: float
    samples: int = 25

    def __call__(self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        slope = torch.zeros_like(x)
        with torch.no_grad():
            loss = self.objective(model, x, y)
        if torch.is_grad_enabled():
            with torch.no_grad():
                for s in map(torch.sign, _draws(x, self.samples)):
                    ahead, behind = (self.objective(model, x + way * self.spread * s, y) for way in (1, -1))
                    slope += ((ahead - behind) / (2 * self.spread)).view(-1, *[1] * (x.ndim - 1)) * s
        return _sloping(loss, slope / self.samples, x)

    def __str__(self) -> str:
        return f"estimated-{_name(self.objective)}"


def _name(objective: Objective) -> str:
    return str(getattr(objective, "__name__", objective))


def _draws(x: Tensor, samples: int) -> Iterator[Tensor]:
    """Draw from [-1, 1] like x: the same at the same point, other numbers at the next step of an attack."""
    seed = zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield 2 * uniform(tuple(x.shape), x.detach(), generator) - 1


def _sloping(loss: Tensor, slope: Tensor, x: Tensor) -> Tensor:
    """Give a loss this gradient in x."""
    return loss + ((x - x.detach()) * slope).flatten(1).sum(1)
