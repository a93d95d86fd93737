"""What all attacks share: the ball of images around x, random points of it, and who is right there."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.hooks import get_logits

Norm = Literal["inf", "2"]


class Attack(Protocol):
    """Any attack: its ``str`` is its short name, its result lies in the ball around x and in [0, 1]."""

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Attack images x (n, c, h, w) in [0, 1] with labels y (n,)."""


@torch.no_grad()
def find_correct(
    model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Tell for which images the largest logit is the label's; a NaN among the logits is never correct."""
    return is_correct(get_logits(model(x)), y)


def is_correct(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Tell in which rows the largest logit is the label's."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def check_images(x: Float[Tensor, "n *image"]) -> None:
    """Refuse images outside [0, 1] or with NaN."""
    if not x.numel():
        return
    low, high = x.aminmax()
    if not (low >= 0) & (high <= 1):  # NaN is neither; one question to a GPU and not two
        raise UserError(
            "Images must lie in [0, 1], without NaN: scale them so, and normalise inside the network."
        )


def check_ball(eps: float, norm: str) -> None:
    """Refuse what is no ball."""
    if not 0 <= eps < float("inf"):
        raise UserError(
            f"An attack's eps is a number from 0 up in image units, such as 0.031, not {eps}."
        )
    if norm not in ("inf", "2"):
        raise UserError(f"An attack's norm is 'inf' or '2', not {norm!r}.")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the precision in which a ball around images of this type is measured: 32 bits at least."""
    return torch.promote_types(dtype, torch.float32)


def attack_name(attack: Attack | str) -> str:
    """Give an attack's short name; of one that has none, its class's or function's, which is the same every time."""
    if isinstance(attack, str):
        return attack
    kind = type(attack)
    if hasattr(attack, "__name__") or (
        kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    ):
        return str(getattr(attack, "__name__", kind.__name__))
    return str(attack)


class ImageGenerators(torch.Generator):
    """A generator for each image of a batch: what is drawn for an image depends neither on the batch nor on the others.

    To whom it is a generator like any other, it is the first image's.
    """

    own: tuple[torch.Generator, ...]

    def __new__(cls, own: Iterable[torch.Generator]) -> Self:
        made: Self = super().__new__(cls)
        made.own = tuple(own)
        if made.own:
            made.manual_seed(made.own[0].initial_seed())
        return made

    def __init__(self, own: Iterable[torch.Generator]) -> None:
        """Take what ``__new__`` has taken."""

    def only(self, images: Int[Tensor, " m"]) -> Self:
        """Keep the generators of some images of the batch."""
        return type(self)(self.own[index] for index in images.tolist())


def make_generators(seed: int, attack: str, images: Iterable[int]) -> ImageGenerators:
    """Make the generators of an attack on images that have these numbers."""
    return ImageGenerators(
        torch.Generator().manual_seed(_hashed(f"{seed} {attack} {image}")) for image in images
    )


def draw_uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from [0, 1), of the type and on the device of ``like``; ``shape`` begins with the number of images."""
    if isinstance(generator, ImageGenerators):
        rows = [torch.rand(shape[1:], generator=own, dtype=like.dtype) for own in generator.own]
        return torch.stack(rows).to(like.device)
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _hashed(words: str) -> int:
    """Give 32 bits, which is what torch's generator on the CPU makes use of."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest())


def to_normal(u: Tensor) -> Tensor:
    """Turn numbers of the uniform distribution on [0, 1) into numbers of the normal one."""
    tiny = torch.finfo(u.dtype).eps
    return 2**0.5 * torch.erfinv((2 * u - 1).clamp(tiny - 1, 1 - tiny))


def l2_norms(delta: Tensor) -> Tensor:
    """L2 norm of each image's perturbation, shaped to divide it by."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))


def make_projection(x: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Make the projection on the ball around x and on [0, 1]."""
    if norm == "inf":
        lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
        return lambda adversarial: torch.minimum(torch.maximum(adversarial, lower), upper)

    def project(adversarial: Tensor) -> Tensor:
        delta = adversarial - x
        # Cutting to [0, 1] afterwards brings a point closer to x, so it stays inside the ball.
        return (x + delta * (eps / l2_norms(delta).clamp_min(max(eps, 1e-12)))).clamp(0, 1)

    return project


def round_towards(x: Tensor, adversarial: Tensor) -> Tensor:
    """Round to the precision of x without leaving the ball around x, and take on its memory format."""
    adversarial = torch.empty_like(x, dtype=adversarial.dtype).copy_(adversarial)
    if adversarial.dtype == x.dtype:
        return adversarial
    rounded = adversarial.to(x.dtype)
    working_dtype = x.to(adversarial.dtype)
    further = (rounded.to(adversarial.dtype) - working_dtype).abs() > (
        adversarial - working_dtype
    ).abs()
    return torch.where(further, torch.nextafter(rounded, x), rounded)
