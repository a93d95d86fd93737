"""The ball of images that an attack searches: projections, random points, directions of ascent."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.errors import UserError

Norm = Literal["inf", "2"]


def check_ball(eps: float, norm: str) -> None:
    """Raise a UserError for a radius or a norm that makes no ball of images in [0, 1]."""
    if norm not in ("inf", "2"):
        raise UserError(f"An attack's norm is 'inf' or '2', not {norm!r}.")
    if not 0 <= eps < float("inf"):
        raise UserError(
            f"An attack's eps is a number from 0 up in image units, such as 0.031, not {eps}."
        )
    if norm == "inf" and eps > 1:
        raise UserError(
            f"An attack's eps is in [0, 1] image units for the L-inf norm, not {eps:g}: "
            "write 8/255 for 8 grey levels of 255."
        )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of a search, 32 bits or more: half precision would lose its steps."""
    return torch.promote_types(dtype, torch.float32)


def l2_norms(delta: Float[Tensor, "n *image"]) -> Tensor:
    """Return the L2 norm of each image's perturbation, shaped (n, 1, ...) to divide it by."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))


def make_projection(x: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Return the projection on the ball around x and on [0, 1]."""
    if norm == "inf":
        lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
        return lambda points: torch.minimum(torch.maximum(points, lower), upper)

    def project(points: Tensor) -> Tensor:
        delta = points - x
        # Clamping to [0, 1] afterwards brings a point closer to x, so it stays inside the ball.
        return (x + delta * (eps / l2_norms(delta).clamp_min(max(eps, 1e-12)))).clamp(0, 1)

    return project


def round_towards(x: Tensor, points: Tensor) -> Tensor:
    """Round points to the precision of x without leaving the ball, in the memory format of x."""
    points = torch.empty_like(x, dtype=points.dtype).copy_(points)
    if points.dtype == x.dtype:
        return points
    rounded, exact = points.to(x.dtype), x.to(points.dtype)
    is_further = (rounded.to(points.dtype) - exact).abs() > (points - exact).abs()
    return torch.where(is_further, torch.nextafter(rounded, x), rounded)


# ---------------------------------------------------------------- random numbers


class ImageGenerators(torch.Generator):
    """A generator for each image of a batch: an image's draws depend on nothing but its number.

    Code that takes it for an ordinary generator draws from the first image's seed.
    """

    each: tuple[torch.Generator, ...]

    def __new__(cls, each: Iterable[torch.Generator]) -> Self:
        generators: Self = super().__new__(cls)
        generators.each = tuple(each)
        if generators.each:
            generators.manual_seed(generators.each[0].initial_seed())
        return generators

    def __init__(self, each: Iterable[torch.Generator]) -> None:
        """Accept the argument of ``__new__``."""

    def only(self, images: Int[Tensor, " m"]) -> Self:
        """Return the generators of some images of the batch."""
        return type(self)(self.each[index] for index in images.tolist())


def make_generators(seed: int, attack: str, images: Iterable[int]) -> ImageGenerators:
    """Return an attack's generators for images with these numbers."""
    return ImageGenerators(
        torch.Generator("cpu").manual_seed(_hash(f"{seed} {attack} {image}")) for image in images
    )


def select_generators(
    generator: torch.Generator | None, images: Int[Tensor, " m"]
) -> torch.Generator | None:
    """Return the generators of some images of the batch; a generator for all is returned as is."""
    return generator.only(images) if isinstance(generator, ImageGenerators) else generator


def _hash(text: str) -> int:
    """Return 32 bits, all that torch's generator on the CPU makes use of."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def draw_uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from [0, 1) with the type and device of ``like``; ``shape`` begins with the images."""
    if isinstance(generator, ImageGenerators):
        rows = [
            torch.rand(shape[1:], generator=each, dtype=like.dtype, device="cpu")
            for each in generator.each
        ]
        return torch.stack(rows).to(like.device)
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def to_normal(u: Tensor) -> Tensor:
    """Turn numbers uniform on [0, 1) into numbers of the standard normal distribution."""
    tiny = torch.finfo(u.dtype).eps
    return 2**0.5 * torch.erfinv((2 * u - 1).clamp(tiny - 1, 1 - tiny))
