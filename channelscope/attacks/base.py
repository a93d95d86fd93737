"""The contract of every attack, kept in one place: ``Attack``, and the ``Search`` that it runs.

An attack is called with a network, images and labels and returns images in the ball around them and
in [0, 1]. The network, its mode, its gradients and its hooks are left as they were.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks.ball import (
    Norm,
    check_ball,
    draw_uniform,
    l2_norms,
    make_projection,
    round_towards,
    select_generators,
    working_dtype,
)
from channelscope.attacks.folding import prepare
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode, get_logits, logits_for
from channelscope.objectives import Images, Labels, Objective, cross_entropy

if TYPE_CHECKING:
    from channelscope.attacks.registry import AttackName

Rows = Int[Tensor, " m"]
Correct = Bool[Tensor, " n"]


class NoGradient(UserError):
    """A loss without a gradient in the images: gradient attacks say nothing about the network."""


class AttackLike(Protocol):
    """Any attack, yours too: a callable with an eps, whose images lie in the ball and in [0, 1]."""

    @property
    def eps(self) -> float:
        """Radius of the ball, in image units."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Attack images x (n, c, h, w) in [0, 1] with labels y (n,)."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack: a frozen dataclass of its settings, which implements ``run``.

    A call checks the images, holds the network in eval mode with its parameters frozen, and runs on
    the network with its BatchNorms folded (see ``folding``); what only the folded network takes for
    broken is attacked once more on the network itself. Points are searched in 32 bits or more and
    returned in the precision of the images, inside the ball and [0, 1].

    Args:
        eps: radius of the ball in image units, >= 0, at most 1 for L-inf; 0 returns the images.
        norm: "inf" or "2".
    """

    eps: float = 8 / 255
    norm: Norm = "inf"

    folds: ClassVar[bool] = True  # False for attacks made of others, which fold by themselves
    names: ClassVar[tuple["AttackName", ...]] = ()  # set by ``register``

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)

    @abstractmethod
    def run(self, model: nn.Module, search: "Search") -> Tensor:
        """Return the points where the search ends, a row for each image that still takes part."""

    def get_random_starts(
        self, x: Images, _generator: torch.Generator | None
    ) -> Float[Tensor, "restarts n *image"]:
        """Return where each run begins: one run, from the images, unless a subclass has others."""
        return x.unsqueeze(0)

    @property
    def objective(self) -> Objective:
        """What is maximised, and what several runs are compared by."""
        return cross_entropy

    @property
    def early_stop(self) -> int | None:
        """How many further steps a broken image takes; None for all of them."""
        return None

    @property
    def parts(self) -> tuple[AttackLike, ...]:
        """The attacks that it is made of; each is for the images that those before it left."""
        return (self,)

    def __call__(
        self, model: nn.Module, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Images:
        """Attack images x (n, c, h, w) in [0, 1] with labels y (n,).

        Of several runs an image keeps a point that fools the network, or else the one of the
        largest objective. All random numbers come from ``generator``.

        Raises:
            UserError: for images outside [0, 1] or with NaN.
        """
        check_images(x)
        x = x.detach()
        if not self.eps or not len(x):
            return x.clone()
        with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot be part of a graph.
            x, y = (tensor.clone() if tensor.is_inference() else tensor for tensor in (x, y))
            best = _Best(x)
            for prepared, search in self._begin_searches(model, x, y, generator, best):
                with prepared:
                    search.end(self.run(model, search))
        return best.images

    def _begin_searches(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None,
        best: "_Best",
    ) -> Iterator[tuple[AbstractContextManager[Any], "Search"]]:
        """Yield the searches to run, each with the context that prepares the network for it."""
        starts = self.get_random_starts(x.to(working_dtype(x.dtype)), generator)
        settings = self.eps, self.norm, self.objective, self.early_stop, generator
        for number, start in enumerate(starts):
            task = Search(x, y, start, *settings)
            rows = best.get_rows_to_attack(keep_broken=self.early_stop is None)
            if not len(rows):
                return
            if number:
                task = task.select(rows)
            for prepared in prepare(model, task.x) if self.folds else (nullcontext(),):
                search = task.lay_out(getattr(prepared, "layout", torch.preserve_format))
                yield prepared, search
            images = torch.empty_like(task.x).copy_(search.images)
            broken = None if search.broken is None else search.broken.nonzero().squeeze(1)
            if broken is not None and len(broken):
                is_doubtful = find_correct(model, images[broken], task.y[broken])
                if is_doubtful.any():
                    again = task.select(broken[is_doubtful])
                    yield nullcontext(), again
                    images[broken[is_doubtful]] = again.images
            if len(starts) == 1:
                best.images = images
                return
            x_in = task.as_input(images)
            with torch.no_grad(), _collect_logits(model, x_in) as logits:
                losses = task.objective(model, x_in, task.y)
            best.update(rows, images, losses, is_correct(logits[0], task.y))

    def __str__(self) -> str:
        fitting = (name.format(self) for name in self.names if name.fits(self))
        return next(fitting, type(self).__name__)


@dataclass(eq=False)
class Search:
    """Images under attack, each inside its ball, and what has become of them.

    Tensors have a row for each image that still takes part. With a patience, an image that the
    network takes for another class leaves after so many further steps, where it then is.

    Args:
        x: images (n, c, h, w) in the precision and memory format of the network.
        y: labels (n,).
        start: where the search begins, in the precision of the search.
        eps, norm: the ball.
        objective: what is maximised.
        patience: None to let no image leave.
        generator: source of random numbers, for ``uniform`` and for further attacks alone: whoever
            draws from it directly gives an image other numbers in another batch.
        layout: the memory format.
    """

    x: Images
    y: Labels
    start: Images
    eps: float
    norm: Norm
    objective: Objective
    patience: int | None = None
    generator: torch.Generator | None = None
    layout: torch.memory_format = torch.preserve_format
    images: Tensor = field(init=False)  # where the images of the whole batch ended
    broken: Tensor | None = field(init=False, default=None)  # those of the batch that left

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.x), device=self.x.device)  # in the batch
        self._size_of_batch = len(self.x)
        self._objective_of_batch, self._logits = self.objective, list[Tensor]()
        if self.patience is not None:
            self._patience = torch.full_like(self.y, self.patience)  # what each image has left

    def select(self, rows: Rows) -> Self:
        """Return a new search of some of the images."""
        return dataclasses.replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            start=self.start[rows],
            objective=narrow(self.objective, rows),
            generator=select_generators(self.generator, rows),
        )

    def lay_out(self, layout: torch.memory_format) -> Self:
        """Return a new search whose images have this memory format."""
        x, start = self.x.to(memory_format=layout), self.start.to(memory_format=layout)
        return dataclasses.replace(self, x=x, start=start, layout=layout)

    # ------------------------------------------------------------ what a loop is made of

    @cached_property
    def exact(self) -> Tensor:
        """The images in the precision of the search."""
        return self.x.to(self.start.dtype)

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        """The projection of points on the ball and on [0, 1]."""
        return make_projection(self.exact, self.eps, self.norm)

    def steps(self, count: int) -> Iterator[int]:
        """Count steps for as long as an image takes part."""
        for number in range(count):
            if not len(self.y):
                return
            yield number

    def as_input(self, points: Tensor) -> Tensor:
        """Return points in the precision of the network, ready for a gradient."""
        return self._round(points).detach().requires_grad_()

    def gradient(self, losses: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of each image's loss in the input x, 0 where it is not a number."""
        loss = losses.sum()
        if not loss.requires_grad:
            raise NoGradient(
                "The network's loss has no gradient in its input (detach or no_grad within): "
                "gradient attacks say nothing about it."
            )
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
        return gradient.nan_to_num(0.0, 0.0, 0.0).to(self.start.dtype)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the direction of steepest ascent: the signs, or in L2 the unit gradients."""
        if self.norm == "inf":
            return gradient.sign()
        return gradient / l2_norms(gradient).clamp_min(1e-12)

    def uniform(self) -> Tensor:
        """Draw from [0, 1) a number for each pixel, an image's own whatever its batch."""
        # Also for images that left, so that no image's numbers depend on the others.
        shape = (self._size_of_batch, *self.start.shape[1:])
        return draw_uniform(shape, self.start, self.generator)[self.rows]

    @contextmanager
    def watch(self, model: nn.Module, x: Tensor) -> Iterator[None]:
        """Keep what the network answers to the input x in the context, for ``drop_broken``."""
        if self.patience is None:
            yield
            return
        with _collect_logits(model, x) as logits:
            yield
        self._input = x.detach()
        self._logits.append(logits[0])

    def drop_broken(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Let broken images leave; return the tensors' rows of those that stay.

        The network's answer is the mean over its passes under ``watch`` since the last time.
        """
        if self.patience is None:
            return tensors
        is_broken = ~is_correct(mean_over(self._logits), self.y)
        self._logits.clear()
        is_staying = ~is_broken | (self._patience > 0)
        self._patience = self._patience - is_broken.to(self._patience.dtype)
        count = len(is_staying) - int(is_staying.sum())  # the one wait for the device in a step
        if not count:
            return tensors
        order = is_staying.to(torch.uint8).argsort(stable=True)  # those that leave come first
        if self.broken is None:
            self.images, self.broken = torch.empty_like(self.x), torch.zeros_like(is_broken)
        leaving, staying = order[:count], order[count:]
        self.images[self.rows[leaving]] = self._input[leaving]
        self.broken[self.rows[leaving]] = True
        for name in ("x", "y", "start", "rows", "_patience"):
            setattr(self, name, getattr(self, name)[staying])
        self.objective = narrow(self._objective_of_batch, self.rows)
        for name in ("exact", "project"):
            vars(self).pop(name, None)  # computed anew for those that stay
        return tuple(tensor[staying] for tensor in tensors)

    def _round(self, points: Tensor) -> Tensor:
        return points if points.dtype == self.x.dtype else round_towards(self.x, points)

    # ------------------------------------------------------------ how it ends

    def end(self, points: Tensor) -> None:
        """Set where the remaining images end: inside the ball, in the precision of the network."""
        points = points.detach().to(self.start.dtype)
        points = torch.where(points.isnan(), self.exact, points)
        projected = self.project(points)
        if self.norm == "2":
            # Projecting once more would move what is on the surface by a rounding error.
            radius = self.eps * (1 + 16 * torch.finfo(points.dtype).eps)
            is_inside = l2_norms(points - self.exact) <= radius
            projected = torch.where(is_inside, points.clamp(0, 1), projected)
        if self.broken is None or len(self.broken) == len(self.rows):
            self.images = self._round(projected)
        else:
            self.images[self.rows] = self._round(projected)


class _Best:
    """Of several runs, each image's best point."""

    def __init__(self, x: Images) -> None:
        self.images = x
        self.losses: Tensor | None = None
        self.correct: Tensor | None = None

    def get_rows_to_attack(self, *, keep_broken: bool) -> Rows:
        if self.correct is None or keep_broken:
            return torch.arange(len(self.images), device=self.images.device)
        return self.correct.nonzero().squeeze(1)

    def update(self, rows: Rows, images: Tensor, losses: Tensor, correct: Tensor) -> None:
        """Take these images where they fool the network first, or have the larger objective."""
        if self.losses is None or self.correct is None:
            self.images, self.losses, self.correct = images, losses, correct
            return
        was_correct = self.correct[rows]
        is_better = torch.where(correct == was_correct, losses > self.losses[rows], was_correct)
        rows = rows[is_better]
        self.images[rows], self.losses[rows] = images[is_better], losses[is_better]
        self.correct[rows] = correct[is_better]


@contextmanager
def _collect_logits(model: nn.Module, x: Tensor) -> Iterator[list[Tensor]]:
    """Collect the logits of passes whose input is x; on leaving make one if there was none."""
    with logits_for(model, x) as logits:
        yield logits
    if not logits:  # the objective gave the network something else
        with torch.no_grad():
            logits.append(get_logits(model(x)))


def mean_over(passes: Sequence[Tensor]) -> Tensor:
    """Return the mean over forward passes, in 32 bits or more."""
    if len(passes) == 1:
        return passes[0]
    return torch.stack(tuple(passes)).to(working_dtype(passes[0].dtype)).mean(0)


def narrow(objective: Objective, rows: Rows) -> Objective:
    """Return the objective of these images of the batch; one that knows its batch has ``rows``."""
    select: Callable[[Tensor], Objective] | None = getattr(objective, "rows", None)
    return select(rows) if callable(select) else objective


# ---------------------------------------------------------------- images and answers


def check_images(x: Images) -> None:
    """Raise a UserError for images outside [0, 1] or with NaN."""
    if not x.numel():
        return
    low, high = x.aminmax()
    if not (low >= 0) & (high <= 1):  # false for NaN; one question to a GPU instead of two
        raise UserError(
            "Images must lie in [0, 1], without NaN: "
            "scale them so, and normalise inside the network."
        )


@torch.no_grad()
def find_correct(model: nn.Module, x: Images, y: Labels) -> Correct:
    """Return for which images the largest logit is the label's; never with NaN among the logits."""
    return is_correct(get_logits(model(x)), y)


def is_correct(logits: Float[Tensor, "n k"], y: Labels) -> Correct:
    """Return in which rows the largest logit is the label's."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)
