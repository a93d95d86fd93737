"""What still attacks a network whose gradients mislead: random points, averages, estimates.

Averages over chance: expectation over transformation, Athalye et al., ICML 2018 (arXiv 1802.00420).
Estimated gradients: SPSA, Uesato et al., ICML 2018 (arXiv 1802.05666).
"""

import re
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from channelscope.attacks.ball import draw_uniform, l2_norms, to_normal
from channelscope.attacks.base import Attack, Search
from channelscope.attacks.registry import register
from channelscope.errors import UserError
from channelscope.objectives import (
    OBJECTIVES,
    Images,
    Labels,
    Objective,
    PerImage,
    name_objective,
    parse_objective,
)


@register("noise-TRIES[-l2]", "random search", cost=lambda noise: noise.tries / 3)
@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Random search: the first of ``tries`` points on the ball's surface that fools the network.

        x + eps * s, s = +-1 in each pixel (L-inf);    x + eps * u / ||u||, u ~ N(0, 1) (L2)

    both cut to [0, 1]. An image that is never fooled ends at the last of its points.

    Args:
        tries: number of points, >= 1.
    """

    tries: int = 100

    early_stop = 0  # a broken image leaves at once

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tries < 1:
            raise UserError(f"Random search needs at least one try, not {self.tries}.")

    @torch.no_grad()
    def run(self, model: nn.Module, search: Search) -> Tensor:
        points = search.exact
        for _ in search.steps(self.tries):
            u = to_normal(search.uniform())
            delta = u.sign() if self.norm == "inf" else u / l2_norms(u).clamp_min(1e-12)
            points = search.project(search.exact + self.eps * delta)
            x_in = search.as_input(points)
            with search.watch(model, x_in):
                model(x_in)
            (points,) = search.drop_broken(points)
        return points


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The objective L of a random network, averaged over its randomness.

        (1 / samples) * sum over j of L_j(model, x, y)

    Args:
        objective: L, with other random numbers at every call.
        samples: number of calls, >= 1.
    """

    objective: Objective
    samples: int = 10

    def __call__(self, model: nn.Module, x: Images, y: Labels) -> PerImage:
        return torch.stack([self.objective(model, x, y) for _ in range(self.samples)]).mean(0)

    def __str__(self) -> str:
        return f"averaged-{name_objective(self.objective)}"


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """An objective L with a gradient estimated from its values (SPSA), for any network.

        g = mean over j of (L(x + spread * s_j) - L(x - spread * s_j)) / (2 spread) * s_j

    with s_j = +-1 in each pixel, drawn anew at each x.

    Args:
        objective: L.
        spread: the distance, in image units, at which it is evaluated, > 0.
        samples: number of pairs, >= 1.
    """

    objective: Objective
    spread: float
    samples: int = 25

    def __call__(self, model: nn.Module, x: Images, y: Labels) -> PerImage:
        with torch.no_grad():
            loss = self.objective(model, x, y)
        if not torch.is_grad_enabled():
            return loss
        slope = self._estimate(model, x.detach(), y)
        return loss + ((x - x.detach()) * slope).flatten(1).sum(1)

    @torch.no_grad()
    def _estimate(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        # The same numbers at the same point, others at the next step of an attack.
        seed = zlib.crc32(x.float().cpu().contiguous().numpy().tobytes())
        slope, generator = torch.zeros_like(x), torch.Generator("cpu").manual_seed(seed)
        for _ in range(self.samples):
            s = (draw_uniform(tuple(x.shape), x, generator) - 0.5).sign()
            ahead = self.objective(model, x + self.spread * s, y)
            behind = self.objective(model, x - self.spread * s, y)
            slope += ((ahead - behind) / (2 * self.spread)).view(-1, *[1] * (x.ndim - 1)) * s
        return slope / self.samples

    def __str__(self) -> str:
        return f"estimated-{name_objective(self.objective)}"


def _parse(match: re.Match[str], eps: float) -> Objective | None:
    objective = parse_objective(match["objective"], eps)
    if objective is None or match["kind"] == "averaged":
        return objective and Averaged(objective=objective)
    # Values half a radius away, as the checks for gradient masking take them.
    return Estimated(objective=objective, spread=eps / 2)


OBJECTIVES["(?P<kind>averaged|estimated)-(?P<objective>.+)"] = _parse
