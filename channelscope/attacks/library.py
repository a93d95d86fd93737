"""AutoAttack and its components, from the optional package pyautoattack.

AutoAttack, APGD and the targeted DLR loss: Croce & Hein, ICML 2020 (arXiv 2003.01690). FAB: Croce &
Hein, ICML 2020 (arXiv 1907.02044). Square: Andriushchenko et al., ECCV 2020 (arXiv 1912.00049).
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
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from channelscope.attacks.adaptive import Cascade
from channelscope.attacks.ball import l2_norms, round_towards
from channelscope.attacks.base import Attack, AttackLike, Search, find_correct, is_correct
from channelscope.attacks.registry import register
from channelscope.devices import fork_rng, list_seeded
from channelscope.errors import UserError
from channelscope.layers.hooks import get_logits
from channelscope.objectives import margin

Component = Literal["apgd-ce", "apgd-t", "fab-t", "square"]

# The authors' standard version: how long a component runs, and how many classes are aimed at.
_ITERATIONS: dict[Component, int] = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
_TARGETS = 9

_NORMS = {"inf": "Linf", "2": "L2"}


class AttackWarning(UserWarning):
    """A reason to doubt what an attack says about a network."""


def _count_passes(attack: Any) -> float:
    """Return the passes of a component: forward ones alone for Square, one a target for others."""
    iterations = attack.iterations or _ITERATIONS[attack.name]
    return {"apgd-ce": 1, "square": 1 / 3}.get(attack.name, _TARGETS) * iterations


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(Attack):
    """One of AutoAttack's attacks; images that it does not break are returned as they are.

    The library's seed is the one that the generator was set to, with a generator for each image
    that of the first; without any it is 0. A generator's state plays no part. Whatever the library
    says, an image is broken only if the network itself is wrong on it.

    Args:
        name: "apgd-ce", "apgd-t" (targeted, DLR loss), "fab-t" (targeted) or "square" (random
            search, no gradients). The targeted ones aim at the nine strongest wrong classes one
            after the other, or at all that there are.
        iterations: steps, per target class where there are any; Square's queries; None for
            AutoAttack's own number.

    Raises:
        UserError: where the package pyautoattack is missing; when called, for networks of fewer
            than two classes, or four for "apgd-t", and for networks without a gradient, unless
            for "square".
    """

    name: Component
    iterations: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_installed()
        if self.name not in get_args(Component):
            raise UserError(
                f"AutoAttack consists of {', '.join(get_args(Component))}; it has no {self.name!r}."
            )
        if self.iterations is not None and self.iterations < 1:
            raise UserError(
                "AutoAttack's attacks need at least one iteration, Square at least one query, "
                f"not {self.iterations}."
            )

    def run(self, model: nn.Module, search: Search) -> Tensor:
        x, y = search.x, search.y.long()
        with torch.no_grad(), _keep_randomness():
            logits = get_logits(model(x))
            _check_classes(self.name, logits.shape[1])
            is_broken = ~is_correct(logits, y)
            x_adv, rows = x.clone(), (~is_broken).nonzero().squeeze(1)
            if len(rows):
                _examine(model, x[rows], y[rows], logits[rows], gradients=self.name != "square")
                seed = 0 if search.generator is None else search.generator.initial_seed()
                attack = self._make(_adapt(model, search), x.device, logits.shape[1], seed)
                # The library knows single precision and contiguous images only.
                points = attack.perturb(x[rows].float().contiguous(), y[rows])
                points = self._round(search.select(rows), points)
                is_wrong = ~find_correct(model, points, y[rows])
                x_adv[rows[is_wrong]], is_broken[rows] = points[is_wrong], is_wrong
        search.broken = is_broken
        return x_adv

    def _round(self, search: Search, points: Tensor) -> Tensor:
        """Round to the precision of x: to the nearest, which the network got, or else towards x."""
        points = points.to(search.exact.dtype)
        points = search.project(torch.where(points.isnan(), search.exact, points))
        nearest = points.to(search.x.dtype)
        delta = (nearest.to(points.dtype) - search.exact).abs()
        is_inside = (delta if self.norm == "inf" else l2_norms(delta)) <= self.eps
        return torch.where(is_inside, nearest, round_towards(search.x, points))

    def _make(
        self, logits: Callable[[Tensor], Tensor], device: torch.device, classes: int, seed: int
    ) -> Any:
        """Return the library's attack on these logits, with the standard version's settings."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        iterations = self.iterations or _ITERATIONS[self.name]
        options = {"norm": _NORMS[self.norm], "eps": self.eps, "n_restarts": 1}
        options |= {"seed": seed, "device": device}
        targets = {"n_target_classes": min(_TARGETS, classes - 1)}
        match self.name:
            case "apgd-ce":
                return APGDAttack(logits, n_iter=iterations, loss="ce", **options)
            case "apgd-t":
                # Its warning of gradients of zero is ours to give, for every attack by gradients.
                options["logger"] = Logger("pyautoattack", CRITICAL)
                return APGDAttack_targeted(logits, n_iter=iterations, **targets, **options)
            case "fab-t":
                return FABAttack_PT(logits, n_iter=iterations, targeted=True, **targets, **options)
            case "square":
                return SquareAttack(logits, n_queries=iterations, resc_schedule=False, **options)


for _name in _ITERATIONS:
    _template = f"autoattack[-l2]/{_name}[-ITERATIONS]"
    register(_template, "a part of AutoAttack", cost=_count_passes, name=_name)(LibraryAttack)


@register("square[-QUERIES][-l2]", "Square, a random search", cost=lambda it: it.queries / 3)
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square alone: a random search that asks the network for its logits and for no gradient.

    Args:
        queries: forward passes per image at most, >= 1.

    Raises:
        UserError: where the package pyautoattack is missing.
    """

    queries: int = _ITERATIONS["square"]

    def __post_init__(self) -> None:
        self._make_attack()

    def run(self, model: nn.Module, search: Search) -> Tensor:
        return self._make_attack().run(model, search)

    def _make_attack(self) -> LibraryAttack:
        return LibraryAttack(name="square", eps=self.eps, norm=self.norm, iterations=self.queries)


@register("autoattack[-l2]", "the standard AutoAttack", cost=100 + 2 * _TARGETS * 100 + 5000 / 3)
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Cascade):
    """The standard AutoAttack: APGD on the cross-entropy, targeted APGD on DLR, FAB, and Square.

    They run one after the other, each on the images that the network still classifies correctly;
    see ``LibraryAttack``.

    Args:

    Raises:
        UserError: where the package pyautoattack is missing; when called, for networks of fewer
            than four classes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_installed()

    @property
    def parts(self) -> tuple[AttackLike, ...]:
        """The four attacks, in their order."""
        return tuple(LibraryAttack(name=name, eps=self.eps, norm=self.norm) for name in _ITERATIONS)

    def run(self, model: nn.Module, search: Search) -> Tensor:
        with torch.no_grad():  # before the others have run for long
            _check_classes("apgd-t", get_logits(model(search.x[:1])).shape[1])
        return super().run(model, search)


def _check_installed() -> None:
    """Raise a UserError where the package is missing; it is imported when an attack runs."""
    if find_spec("pyautoattack") is None:
        raise UserError(
            "AutoAttack needs the package pyautoattack: pip install 'channelscope[autoattack]'."
        )


def _check_classes(name: Component, classes: int) -> None:
    if name == "apgd-t" and classes < 4:
        raise UserError(
            "AutoAttack's targeted DLR loss compares four logits, "
            f"and this network has {classes}: attack it with square or pgd-100."
        )
    if classes < 2:
        raise UserError(
            "The network has a single class, so that no image can be taken for another: "
            "attack another network."
        )


def _adapt(model: nn.Module, search: Search) -> Callable[[Tensor], Tensor]:
    """Return the function that the library attacks: in single precision outside of the network."""

    def compute_logits(images: Tensor) -> Tensor:
        logits = get_logits(model(images.to(search.x.dtype, memory_format=search.layout)))
        return logits.to(torch.float32, copy=True)  # Square writes into it

    return compute_logits


@contextmanager
def _keep_randomness() -> Iterator[None]:
    """Restore the states of torch's generators, which the library seeds; it uses no others."""
    started = torch.cuda.is_initialized()
    try:
        with fork_rng(*list_seeded()):
            yield
    finally:
        if not started:
            # The library's seed waits for the first use of a GPU: set the CPU's, as torch would.
            torch.cuda.manual_seed_all(torch.initial_seed())  # noqa: TID251


# ---------------------------------------------------------------- reasons to doubt the outcome

_COLLECTED: ContextVar[list[str] | None] = ContextVar("_COLLECTED", default=None)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the sentences of what would be an ``AttackWarning`` in the context, each once.

    >>> with collect_warnings() as sentences:
    ...     pass
    >>> sentences
    []
    """
    sentences: list[str] = []
    token = _COLLECTED.set(sentences)
    try:
        yield sentences
    finally:
        _COLLECTED.reset(token)


def _warn(sentence: str) -> None:
    sentences = _COLLECTED.get()
    if sentences is None:
        warnings.warn(sentence, AttackWarning, stacklevel=5)
    elif sentence not in sentences:
        sentences.append(sentence)


def _examine(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, *, gradients: bool) -> None:
    """Warn of what makes AutoAttack unreliable, as its authors list it, on correct images."""
    random = "The network answers the same images differently each time"
    if any(_differ(logits, get_logits(model(x))) for _ in range(2)):
        _warn(f"{random}: AutoAttack takes it to be deterministic.")
    if ((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-5)).all():
        _warn("The network returns probabilities, whose gradients vanish: return logits.")
    with _GraphWatch() as watch:
        model(x[:1])
    if watch.has_graph:
        _warn("The network takes gradients in its forward pass: it needs an attack made for it.")
    if gradients and (_compute_gradient(model, x, y).flatten(1) == 0).all(1).any():
        _warn("Some images have a gradient of zero: Square says more about them.")


def _differ(a: Tensor, b: Tensor) -> bool:
    """Tell whether the directions of any image's logits differ by more than rounding."""
    a, b = (nn.functional.normalize(logits.float(), dim=1) for logits in (a, b))
    return not bool(((a - b).norm(dim=1) <= 1e-4).all())


def _compute_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the margin in the images."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = margin(model, leaf, y).sum()
    if not loss.requires_grad:
        raise UserError(
            "The network's logits have no gradient in its input (detach or no_grad within): "
            "attack it with square."
        )
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return gradient


class _GraphWatch(TorchFunctionMode):
    """Notices that something is computed for a gradient, in a network that needs none."""

    has_graph = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.has_graph |= isinstance(result, Tensor) and result.requires_grad
        return result
