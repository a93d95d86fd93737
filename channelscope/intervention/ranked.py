"""What the channels are worth: their relevance to each class, on images other than those judged."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.data import Dataset, Split, sample_stratified
from channelscope.errors import UserError
from channelscope.scorers import choose_layers, get_scorer, score_layers, take_few


def ranked_on(dataset: Dataset, judged: Split, images: int | None, seed: int) -> tuple[str, Split]:
    """Choose the images to rank the channels on, and name their part of the data: "val", "train" or "test".

    Those that are judged serve where there are no others.
    """
    for name in ("val", "train"):
        if (part := dataset.parts.get(name)) is not None:
            return name, some(part, images, seed)
    return "test", judged


def some(part: Split, images: int | None, seed: int) -> Split:
    """Give at most so many images of a part, class shares kept; None for all."""
    return (
        part
        if images is None or images >= len(part)
        else part.subset(sample_stratified(part.labels, images, seed))
    )


Relevance = dict[str, dict[str, Float[Tensor, "k c"]]]


def relevance_of(
    network: nn.Module,
    images: Split,
    classes: int,
    layers: Sequence[str] | None,
    scorers: Sequence[str],
    batch_size: int,
) -> tuple[Relevance, list[str]]:
    """Score the channels of layers by several scorers: mean over the images of a class of the relevance to it.

    The network may answer with a class that has no image here: its channels are worth the mean over the others.

    Args:
        network: any network.
        images: the images to score on.
        classes: number of classes.
        layers: names and patterns of layers; None for the penultimate one.
        scorers: names of scorers.
        batch_size: images that are read at a time; results do not depend on it.

    Returns:
        layer -> scorer -> relevance (k, c), without the scorers that a layer is not for; and sentences about these.

    Raises:
        UserError: for what does not fit, and for a layer that no scorer is for.
    """
    named, _ = choose_layers(network, layers, take_few(network, images), classes)
    scored = score_layers(
        network,
        images,
        classes,
        layers=named,
        scorers={name: get_scorer(name) for name in scorers},
        weights=torch.ones(len(images), 1),
        batch_size=batch_size,
        progress=lambda _: None,
    )
    found: Relevance = {layer: {} for layer in named}
    for name, by_layer in scored.relevance.items():
        for layer, stats in by_layer.items():
            worth = stats.magnitude[0]
            found[layer][name] = torch.where(worth.isnan(), worth.nanmean(0), worth)
    refused = dict(scored.refused)
    if bare := [layer for layer, by_scorer in found.items() if not by_scorer]:
        raise UserError(
            next(sentence for (_, layer), sentence in refused.items() if layer == bare[0])
        )
    return found, list(dict.fromkeys(refused.values()))
