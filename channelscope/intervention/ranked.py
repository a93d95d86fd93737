"""What the channels are worth: their relevance to each class, on images other than those judged."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.data import Dataset, Part, stratified
from channelscope.relevance import LastLayer, scorer_named
from channelscope.stats import ChannelStats
from channelscope.subjects import parameter_of, try_out


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
        layers: names of layers; None for the penultimate one.
        scorers: names of scorers.
        batch_size: images per forward pass.

    Returns:
        layer -> scorer -> relevance (k, c).
    """
    like = parameter_of(network)
    first = next(images.batches(2, like.device, torch.arange(min(2, len(images)))))[0].to(like)
    try_out(network, first, classes, layers or ())
    layers = layers or LastLayer.find(network, first).inputs[:1]
    found: dict[str, dict[str, Float[Tensor, "k c"]]] = {layer: {} for layer in layers}
    for name in dict.fromkeys(scorers):
        stats: dict[str, ChannelStats] = {}
        for x, y in images.batches(batch_size, like.device):
            for layer, scores in scorer_named(name)(network, layers, x.to(like), y).items():
                own = stats.setdefault(layer, ChannelStats(classes=classes, channels=scores.shape[1]))
                own.update(scores, y)
        for layer, own in stats.items():
            relevance = own.magnitude[0]
            found[layer][name] = torch.where(relevance.isnan(), relevance.nanmean(0), relevance)
    return found
