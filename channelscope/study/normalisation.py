"""Networks whose images would have to be normalised: measured on some images, said, not changed."""

import shlex
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks.folding import same_randomness
from channelscope.gates import Selective
from channelscope.layers.hooks import eval_mode, get_logits
from channelscope.networks import (
    NORMALISATIONS,
    Normalise,
    Normalised,
    ResNet,
    Statistics,
    WideResNet,
)

IMAGES = 128  # on which candidates are tried
_LEAST_GAIN = 0.1  # of accuracy
_SIGMAS = 3.0  # by which the images won must outweigh those lost
_SIGMAS_APART = 2.0  # by which one candidate must be right more often than another to be told apart
# What is tried: the names, and what has none, as it is typed. The last makes bytes of images.
CANDIDATES: dict[int, dict[str, Statistics]] = {
    3: {
        name: NORMALISATIONS[name] or ((0.0,), (1.0,))
        for name in ("cifar10", "pytorch-cifar", "imagenet", "half")
    },
    1: {"half": ((0.5,), (0.5,)), "0.1307;0.3081": ((0.1307,), (0.3081,))},
}
_BYTES = {"0;0.0039216": ((0.0,), (1 / 255,))}


class _Candidate(NamedTuple):
    """A normalisation that was tried: its name, and which images are then classified correctly."""

    name: str
    statistics: Statistics
    correct: Bool[Tensor, " n"]

    @property
    def right(self) -> int:
        """How many images are classified correctly."""
        return int(self.correct.sum())


def advise_normalisation(
    network: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    ours: bool,
    label: str | None = None,
) -> str | None:
    """Return a sentence if a network is much more often right on normalised images; else None.

    The best normalisation is named first, then those that do not clearly differ from it. Nothing is
    said of networks that normalise images themselves, as far as that can be seen.

    Args:
        network: a classifier of plain logits.
        x, y: some images in [0, 1], and their labels.
        ours: the package trained it, and so its normalisation is known.
        label: of the network among others, for the option to type; None for a single one.
    """
    if ours or not _may_lack_normalisation(network):
        return None
    plain = _find_correct(network, x, y)
    tried = [
        _Candidate(name, statistics, _find_correct(Normalised(network, *statistics).to(x), x, y))
        for name, statistics in _list_candidates(x.shape[1])
    ]
    better = [
        one
        for one in tried
        if _is_clearly_better(one.correct, plain, _SIGMAS)
        and one.right - int(plain.sum()) >= _LEAST_GAIN * len(x)
    ]
    if not better:
        return None
    best = max(better, key=lambda one: one.right)
    rivals = [
        one
        for one in sorted(better, key=lambda one: -one.right)
        if one is not best and not _is_clearly_better(best.correct, one.correct, _SIGMAS_APART)
    ]
    told = ", ".join(f"{one.right} by {one.name}" for one in rivals)
    mean, std = best.statistics
    option = best.name if label is None else f"{label}={best.name}"
    return (
        f"The network answers {int(plain.sum())} of {len(x)} images right, and {best.right} if "
        f"they are normalised by {_print_statistics(mean, std)}"
        f"{f' ({told}: which of them makes little difference)' if told else ''}: if it was "
        f"trained so, type --normalise {shlex.quote(option)}, or pass cs.normalised(network, "
        f"{mean}, {std})."
    )


def _is_clearly_better(one: Tensor, other: Tensor, sigmas: float) -> bool:
    """Tell whether more images are right by one than by another, beyond chance."""
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return won - lost > sigmas * (won + lost) ** 0.5


def _list_candidates(channels: int) -> Iterator[tuple[str, Statistics]]:
    yield from (CANDIDATES.get(channels, {}) | _BYTES).items()


def _print_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    numbers = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return "mean {} and standard deviation {}".format(*numbers)


def _may_lack_normalisation(network: nn.Module) -> bool:
    """Tell whether nothing in a network is seen to normalise."""
    for module in network.modules():
        if isinstance(module, Normalise) and bool(module.mean.any() or (module.std != 1).any()):
            return False
    return True


@torch.no_grad()
def _find_correct(network: nn.Module, x: Tensor, y: Tensor) -> Bool[Tensor, " n"]:
    with same_randomness(x), eval_mode(network):
        return get_logits(network(x)).argmax(1) == y


def is_trained_here(network: nn.Module) -> bool:
    """Tell whether a network is of the package's own classes, whose normalisation is inside."""
    return isinstance(network, Selective | ResNet | WideResNet)
