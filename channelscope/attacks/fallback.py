"""What still attacks a network whose gradients mislead: random points, averages over chance, estimated gradients.

Averages: expectation over transformation, Athalye et al., ICML 2018 (arXiv 1802.00420). Estimates: SPSA,
Uesato et al., ICML 2018 (arXiv 1802.05666).
"""

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks import Norm, check_images, find_correct
from channelscope.attacks.ball import (
    check_ball,
    draw_uniform,
    l2_norms,
    make_projection,
    round_towards,
    to_normal,
    working_dtype,
)
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode
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
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); the points come from ``generator``.

        Raises:
            UserError: for images outside [0, 1] or with NaN.
        """
        check_images(x)
        exact = x.to(working_dtype(x.dtype))
        project, found = make_projection(exact, self.eps, self.norm), x.clone()
        going = torch.ones_like(y, dtype=torch.bool)
        with eval_mode(model):
            for _ in range(self.tries if self.eps and len(x) else 0):
                points = round_towards(x, project(exact + self._draw(exact, generator)))
                found[going] = points[going]
                going[going.clone()] = find_correct(model, points[going], y[going])
                if not going.any():
                    break
        return found

    def _draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw for all images, those that are done too: what an image gets does not depend on the others."""
        u = to_normal(draw_uniform(tuple(x.shape), x, generator))
        return self.eps * (u.sign() if self.norm == "inf" else u / l2_norms(u).clamp_min(1e-12))

    def __str__(self) -> str:
        return f"noise-{self.tries}{'-l2' if self.norm == '2' else ''}"


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """An objective L of a random network, averaged over its randomness: (1 / samples) * sum over j of L_j(model, x, y).

    Args:
        objective: L, with other random numbers at every call.
        samples: number of calls, >= 1.
    """

    objective: Objective
    samples: int = 10

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return torch.stack([self.objective(model, x, y) for _ in range(self.samples)]).mean(0)

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

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        with torch.no_grad():
            loss = self.objective(model, x, y)
        if not torch.is_grad_enabled():
            return loss
        return loss + ((x - x.detach()) * self._slope(model, x.detach(), y)).flatten(1).sum(1)

    @torch.no_grad()
    def _slope(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        slope, generator = torch.zeros_like(x), _generator_at(x)
        for _ in range(self.samples):
            s = (draw_uniform(tuple(x.shape), x, generator) - 0.5).sign()
            ahead, behind = (self.objective(model, x + way * self.spread * s, y) for way in (1, -1))
            slope += ((ahead - behind) / (2 * self.spread)).view(-1, *[1] * (x.ndim - 1)) * s
        return slope / self.samples

    def __str__(self) -> str:
        return f"estimated-{_name(self.objective)}"


def _name(objective: Objective) -> str:
    return str(getattr(objective, "__name__", objective))


def _generator_at(x: Tensor) -> torch.Generator:
    """Make a generator that draws the same at the same point, and other numbers at the next step of an attack."""
    return torch.Generator().manual_seed(zlib.crc32(x.float().cpu().contiguous().numpy().tobytes()))
