"""Networks whose images would have to be normalised: measured on some images, said, not changed."""

from collections.abc import Iterator

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
# What is tried: the names, and what has none, as it is typed. The last makes bytes of images.
CANDIDATES: dict[int, dict[str, Statistics]] = {
    3: {
        name: NORMALISATIONS[name] or ((0.0,), (1.0,))
        for name in ("cifar10", "pytorch-cifar", "imagenet", "half")
    },
    1: {"half": ((0.5,), (0.5,)), "0.1307;0.3081": ((0.1307,), (0.3081,))},
}
_BYTES = {"0;0.0039216": ((0.0,), (1 / 255,))}


def advise_normalisation(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], *, ours: bool
) -> str | None:
    """Return a sentence if a network is much more often right on normalised images; else None.

    Nothing is said of networks that normalise images themselves, as far as that can be seen.

    Args:
        network: a classifier of plain logits.
        x, y: some images in [0, 1], and their labels.
        ours: the package trained it, and so its normalisation is known.
    """
    if ours or not _may_lack_normalisation(network):
        return None
    plain = _find_correct(network, x, y)
    best: tuple[int, str, Statistics] | None = None
    for name, statistics in _list_candidates(x.shape[1]):
        correct = _find_correct(Normalised(network, *statistics).to(x), x, y)
        won, lost = int((correct & ~plain).sum()), int((plain & ~correct).sum())
        is_clear = won - lost > _SIGMAS * (won + lost) ** 0.5
        if (
            is_clear
            and won - lost >= _LEAST_GAIN * len(x)
            and (best is None or won - lost > best[0])
        ):
            best = won - lost, name, statistics
    if best is None:
        return None
    gain, name, (mean, std) = best
    before = int(plain.sum())
    option = name if name in NORMALISATIONS else f"'{name}'"
    return (
        f"The network answers {before} of {len(x)} images right, and {before + gain} if they are "
        f"normalised by {_print_statistics(mean, std)}: if it was trained so, type --normalise "
        f"{option}, or pass cs.normalised(network, {mean}, {std})."
    )


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
