"""AutoAttack and its components: attacks of the optional package pyautoattack, run on a prepared network and checked.

AutoAttack, APGD and the targeted DLR loss: Croce & Hein, ICML 2020 (arXiv 2003.01690). FAB: Croce & Hein, ICML 2020
(arXiv 1907.02044). Square: Andriushchenko et al., ECCV 2020 (arXiv 1912.00049).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from logging import CRITICAL, Logger
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from channelscope.attacks.adaptive import in_turn
from channelscope.attacks.ball import (
    Norm,
    check_ball,
    check_images,
    find_correct,
    is_correct,
    l2_norms,
    make_projection,
    round_towards,
    working_dtype,
)
from channelscope.attacks.folding import run_folded
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode, get_logits
from channelscope.objectives import margin

Component = Literal["apgd-ce", "apgd-t", "fab-t", "square"]

# The authors' standard version: how long a component runs, and how many classes the targeted ones aim at.
_ITERATIONS: dict[Component, int] = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
_TARGETS = 9

_NORMS = {"inf": "Linf", "2": "L2"}


class AttackWarning(UserWarning):
    """A reason to doubt what an attack says about a network."""


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The standard AutoAttack: APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB, and Square.

    They run one after the other, each on the images that the network still classifies correctly. Whatever the library
    may say, an image is broken only if the network itself is wrong on it; the others are returned as they are.

    Args:
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        norm: "inf" or "2".

    Raises:
        UserError: where the package pyautoattack is missing.
    """

    eps: float = 8 / 255
    norm: Norm = "inf"

    def __post_init__(self) -> None:
        _check_installed()
        check_ball(self.eps, self.norm)

    @property
    def parts(self) -> tuple["LibraryAttack", ...]:
        """The four attacks, in their order: each is for the images that are left by those before it."""
        return tuple(LibraryAttack(name=name, eps=self.eps, norm=self.norm) for name in _ITERATIONS)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,).

        The library's seed is the one that ``generator`` was given, of generators for each image that of the first
        (with each attack: of the first image that is left); without any it is 0. A generator's state plays no part.

        Raises:
            UserError: for images outside [0, 1] or with NaN, and for networks of fewer than four classes.
        """
        check_images(x)
        if len(x):
            with eval_mode(model), torch.no_grad():
                _check_classes(
                    "apgd-t", get_logits(model(x[:1])).shape[1]
                )  # before the others have run for long
        return in_turn(self.parts, model, x.detach(), y, generator)

    def __str__(self) -> str:
        return f"autoattack{_suffix(self.norm)}"


@dataclass(frozen=True, kw_only=True)
class LibraryAttack:
    """One of AutoAttack's attacks.

    Args:
        name: "apgd-ce", "apgd-t" (targeted, DLR loss), "fab-t" (targeted) or "square" (random search, no gradients).
            The targeted ones aim at the nine strongest wrong classes one after the other, or at all that there are.
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        norm: "inf" or "2".
        iterations: steps, per target class where there are any; Square's queries; None for AutoAttack's own number.

    Raises:
        UserError: where the package pyautoattack is missing.
    """

    name: Component
    eps: float = 8 / 255
    norm: Norm = "inf"
    iterations: int | None = None

    def __post_init__(self) -> None:
        _check_installed()
        check_ball(self.eps, self.norm)
        if self.name not in get_args(Component):
            raise UserError(
                f"AutoAttack consists of {', '.join(get_args(Component))}; it has no {self.name!r}."
            )
        if self.iterations is not None and self.iterations < 1:
            raise UserError(
                "AutoAttack's attacks need at least one iteration, Square at least one query."
            )

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,); those that are not broken are returned as they are.

        The library's seed is the one that ``generator`` was given, of generators for each image that of the first;
        without any it is 0. A generator's state plays no part.

        Raises:
            UserError: for images outside [0, 1] or with NaN; for networks of fewer than two classes, or four for
                "apgd-t"; for networks without a gradient, unless for "square".
        """
        check_images(x)
        if self.eps == 0 or not len(x):
            return x.detach().clone()
        # Tensors made in inference mode take part in no graph: the attack makes its own outside.
        with eval_mode(model), torch.inference_mode(False), torch.no_grad(), _randomness_kept():
            adversarial = x.clone()
            logits = get_logits(model(x))
            _check_classes(self.name, logits.shape[1])
            left = is_correct(logits, y).nonzero().flatten()
            if len(left):
                standing, labels = x[left], y[left].long()
                _examine(model, standing, labels, logits[left], gradients=self.name != "square")
                adversarial[left] = self._attack(
                    model, standing, labels, logits.shape[1], _seed(generator)
                )
        return adversarial

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, classes: int, seed: int) -> Tensor:
        """Attack images that are classified correctly, and keep what breaks the network as it is, not folded."""

        def work(layout: torch.memory_format) -> Tensor:
            # The library knows single precision and contiguous images only.
            logits = _door(model, x.dtype, layout)
            return self._make(logits, x.device, classes, seed).perturb(x.float().contiguous(), y)

        exact = x.to(working_dtype(x.dtype))
        found = run_folded(model, x, work).to(exact.dtype)
        found = torch.where(found.isnan(), exact, found)  # where a gradient was not a number
        found = self._rounded(x, make_projection(exact, self.eps, self.norm)(found))
        right = find_correct(model, found, y)
        return torch.where(right.view(-1, *[1] * (x.ndim - 1)), x, found)

    def _rounded(self, x: Tensor, found: Tensor) -> Tensor:
        """Round to the precision of x: to the nearest, which the network was shown, or else towards x."""
        nearest = found.to(x.dtype)
        delta = (nearest.to(found.dtype) - x.to(found.dtype)).abs()
        inside = (delta if self.norm == "inf" else l2_norms(delta)) <= self.eps
        return torch.where(inside, nearest, round_towards(x, found))

    def _make(
        self, logits: Callable[[Tensor], Tensor], device: torch.device, classes: int, seed: int
    ) -> Any:
        """Make the library's attack on these logits, with the settings of the standard version."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        iterations, targets = self.iterations or _ITERATIONS[self.name], min(_TARGETS, classes - 1)
        common = {
            "norm": _NORMS[self.norm],
            "eps": self.eps,
            "seed": seed,
            "device": device,
            "n_restarts": 1,
        }
        match self.name:
            case "apgd-ce":
                return APGDAttack(logits, n_iter=iterations, loss="ce", **common)
            case "apgd-t":
                # Gradients of zero are looked for beforehand, and for every attack that uses gradients.
                silent = Logger("pyautoattack", CRITICAL)
                return APGDAttack_targeted(
                    logits, n_iter=iterations, n_target_classes=targets, logger=silent, **common
                )
            case "fab-t":
                return FABAttack_PT(
                    logits, n_iter=iterations, targeted=True, n_target_classes=targets, **common
                )
            case "square":
                return SquareAttack(logits, n_queries=iterations, resc_schedule=False, **common)

    def __str__(self) -> str:
        iterations = "" if self.iterations is None else f"-{self.iterations}"
        return f"autoattack{_suffix(self.norm)}/{self.name}{iterations}"


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square alone: a random search that asks the network for its logits and for no gradient.

    Args:
        eps: radius of the ball in image units, >= 0; 0 returns the images.
        norm: "inf" or "2".
        queries: forward passes per image at most, >= 1.

    Raises:
        UserError: where the package pyautoattack is missing.
    """

    eps: float = 8 / 255
    norm: Norm = "inf"
    queries: int = _ITERATIONS["square"]

    def __post_init__(self) -> None:
        self._attack()

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *image"]:
        """Attack images x (n, c, h, w) with labels y (n,), as ``LibraryAttack`` does."""
        return self._attack()(model, x, y, generator)

    def _attack(self) -> LibraryAttack:
        return LibraryAttack(name="square", eps=self.eps, norm=self.norm, iterations=self.queries)

    def __str__(self) -> str:
        queries = "" if self.queries == _ITERATIONS["square"] else f"-{self.queries}"
        return f"square{queries}{_suffix(self.norm)}"


def _suffix(norm: Norm) -> str:
    return "-l2" if norm == "2" else ""


def _check_installed() -> None:
    """Refuse to make an attack that would fail when it runs; the package itself is imported then."""
    if find_spec("pyautoattack") is None:
        raise UserError(
            "AutoAttack needs the package pyautoattack: pip install 'channelscope[autoattack]'."
        )


def _check_classes(name: Component, classes: int) -> None:
    if name == "apgd-t" and classes < 4:
        raise UserError(
            f"AutoAttack's targeted DLR loss compares four logits, and this network has {classes}: "
            "attack it with square or pgd-100."
        )
    if classes < 2:
        raise UserError(
            "The network has a single class, so that no image can be taken for another: attack another."
        )


def _seed(generator: torch.Generator | None) -> int:
    """Give the seed that the library shall begin with, anew for each of its attacks and each batch."""
    return 0 if generator is None else generator.initial_seed()


def _door(
    model: nn.Module, dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[Tensor], Tensor]:
    """Let the library in: single precision outside, the network's own precision and memory format inside."""

    def logits(images: Tensor) -> Tensor:
        answer = get_logits(model(images.to(dtype, memory_format=layout)))
        return answer.to(torch.float32, copy=True)  # Square writes into it

    return logits


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Put back the states of torch's generators, all of which the library seeds; it uses no others."""
    started = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
            yield
    finally:
        if not started:
            # The library's seed now waits for the first use of a GPU: let it be the CPU's, as torch.manual_seed does.
            torch.cuda.manual_seed_all(torch.initial_seed())  # noqa: TID251


# ---------------------------------------------------------------- reasons to doubt the outcome

_DOUBTS: ContextVar[list[str] | None] = ContextVar("_DOUBTS", default=None)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect, for as long as the context lasts, what would be an ``AttackWarning``: one sentence each, none twice.

    >>> with doubts() as found:
    ...     pass
    >>> found
    []
    """
    found: list[str] = []
    token = _DOUBTS.set(found)
    try:
        yield found
    finally:
        _DOUBTS.reset(token)


def _doubt(sentence: str) -> None:
    found = _DOUBTS.get()
    if found is None:
        warnings.warn(sentence, AttackWarning, stacklevel=4)
    elif sentence not in found:
        found.append(sentence)


def _examine(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, *, gradients: bool) -> None:
    """Look for what makes AutoAttack unreliable, as its authors list it, on images that are classified correctly."""
    if any(_differ(logits, get_logits(model(x))) for _ in range(2)):
        _doubt(
            "The network answers the same images differently each time: AutoAttack takes it to be deterministic."
        )
    if ((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-5)).all():
        _doubt(
            "The network returns probabilities: return logits, as the gradients of probabilities vanish."
        )
    with _GraphWatch() as watch:
        model(x[:1])
    if watch.graph:
        _doubt(
            "The network takes gradients in its forward pass: such a defence needs an attack made for it."
        )
    if gradients and (_gradient(model, x, y).flatten(1) == 0).all(1).any():
        _doubt(
            "Some images have a gradient of zero: attacks by gradients say little about them, Square says more."
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    """Tell whether the directions of any image's logits differ by more than rounding may make of them."""
    one, other = (nn.functional.normalize(logits.float(), dim=1) for logits in (one, other))
    return not bool(((one - other).norm(dim=1) <= 1e-4).all())


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Give the gradient of the margin in the images."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = margin(model, leaf, y).sum()
    if not loss.requires_grad:
        raise UserError(
            "The network's logits have no gradient in its input (detach or no_grad within): attack it with square."
        )
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return gradient


class _GraphWatch(TorchFunctionMode):
    """Notices that something is computed for a gradient, be it of the network's own wish."""

    graph = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.graph |= isinstance(result, Tensor) and result.requires_grad
        return result
