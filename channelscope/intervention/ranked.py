"""What the channels are worth: their relevance to each class, on images other than those judged."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.data import Dataset, Part, stratified
from channelscope.errors import UserError
from channelscope.relevance import choose, few, score, scorer_named


def ranked_on(dataset: Dataset, judged: Part, images: int | None, seed: int) -> tuple[str, Part]:
    """Choose the images to rank the channels on, and name their part of the data: "val", "train" or "test".

    Those that are judged serve where there are no others.
    """
    for name in ("val", "train"):
        if (part := dataset.parts.get(name)) is not None:
            return name, some(part, images, seed)
    return "test", judged


def some(part: Part, images: int | None, seed: int) -> Part:
    """Give at most so many images of a part, class shares kept; None for all."""
    return part if images is None or images >= len(part) else part.subset(stratified(part.labels, images, seed))


def relevance_of(
    network: nn.Module,
    images: Part,
    classes: int,
    layers: Sequence[str] | None,
    scorers: Sequence[str],
    batch_size: int,
) -> dict[str, dict[str, Float[Tensor, "k c"]]]:
    """Score the channels of layers by several scorers: mean over the images of a class of the relevance to it.

    The network may answer with a class that has no image here: its channels are worth the mean over the others.

    Args:
        network: any network.
        images: the images to score on.
        classes: number of classes.
        layers: names of layers and patterns; None for the penultimate one.
        scorers: names of scorers.
        batch_size: images per forward pass.

    Returns:
        layer -> scorer -> relevance (k, c).

    Raises:
        UserError: for a scorer that does not apply to a layer.
    """
    chosen, _ = choose(network, layers, few(network, images), classes)
    found = score(
        network,
        images,
        classes,
        layers=chosen,
        scorers={name: scorer_named(name) for name in scorers},
        weights=torch.ones(len(images), 1),
        batch_size=batch_size,
        progress=lambda _: None,
    )
    if found.refused:
        raise UserError(next(iter(found.refused.values())))
    means = {layer: {name: found.relevance[name][layer].magnitude[0] for name in found.relevance} for layer in chosen}
    return {
        layer: {name: torch.where(mean.isnan(), mean.nanmean(0), mean) for name, mean in by_scorer.items()}
        for layer, by_scorer in means.items()
    }
