"""The relevance of channels to the classes of a data set: scores, averaged over each class's images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from channelscope.data import Split, as_dataset, block_size, iterate_blocks, sample_stratified
from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, match_layers
from channelscope.scorers.ablation import Ablation
from channelscope.scorers.base import RelevanceScorer
from channelscope.scorers.last_layer import LastLayer
from channelscope.scorers.names import get_scorer
from channelscope.statistics.streaming import ChannelStats, bootstrap_weights
from channelscope.study.models import (
    Network,
    check_network,
    get_parameter,
    load_models,
    widen_classes,
)


def relevance(
    net: Network,
    layer: str | Sequence[str],
    data: Any = "digits",
    *,
    scorer: str | RelevanceScorer = "gradient",
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Float[Tensor, "k c"] | dict[str, Float[Tensor, "k c"]]:
    """Score how relevant a layer's channels are to each class: above 0 they speak for it (PR), below against it (NR).

    r[k, c] = mean over the images i of class k of the scorer's relevance of channel c to class k on image i.

    >>> from torch import nn
    >>> x, y = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    >>> found = relevance(net, "0", (x, y), progress=False)
    >>> torch.allclose(found.float(), net[3].weight)
    True

    Args:
        net: a network, or the path of a checkpoint. It takes images in [0, 1], and is left as found.
        layer: a layer's name; or a pattern such as ``layer4.*`` (see ``hooks.layers_named``), or several of either.
        data: a data set, its name, or what else ``data.as_dataset`` takes; its test part is used.
        scorer: a name among ``SCORERS``, or any scorer. What each costs: ``COSTS``.
        images: how many images to use, class shares kept; None for all.
        seed: of their choice.
        batch_size: images that are read at a time.
        device: where a checkpoint is run.
        progress: show a progress bar.

    Returns:
        (classes, channels) of one layer, in float64, NaN for a class without images; of a pattern or several names,
        layer -> (classes, channels).

    Raises:
        UserError: for a network, data, layers or a scorer that do not fit together.
    """
    if batch_size < 1 or (images is not None and images < 1):
        raise UserError("Relevance needs at least one image, and images per batch.")
    (subject,) = load_models({"network": net}, {}, device)
    dataset = as_dataset(data)
    subject.check(dataset)
    classes = len(widen_classes(dataset, [subject.network]).classes)
    part = (
        dataset.test
        if images is None
        else dataset.test.subset(sample_stratified(dataset.test.labels, images, seed))
    )
    layers, _ = choose_layers(
        subject.network,
        [layer] if isinstance(layer, str) else layer,
        take_few(subject.network, part),
        classes,
    )
    name, scorers = (
        (scorer, get_scorer(scorer)) if isinstance(scorer, str) else ("relevance", scorer)
    )
    with tqdm(total=len(part), unit="img", desc=name, disable=not progress) as bar:
        found = score_layers(
            subject.network,
            part,
            classes,
            layers=layers,
            scorers={name: scorers},
            weights=bootstrap_weights(len(part), 0, seed),
            batch_size=batch_size,
            progress=bar.update,
        )
    if found.refused:
        raise UserError(next(iter(found.refused.values())))
    means = {at: stats.magnitude[0] for at, stats in found.relevance[name].items()}
    return means[layer] if isinstance(layer, str) and layer in means else means


@dataclass(frozen=True, eq=False)
class Scored:
    """The relevance that scorers give, and why they give none.

    Args:
        layers: the layers' names.
        relevance: scorer -> layer -> statistics of the scores; ``magnitude`` is the relevance by replicate and class.
        refused: (scorer, layer) -> the sentence that says why there is none.
    """

    layers: tuple[str, ...]
    relevance: dict[str, dict[str, ChannelStats]] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(
        self,
        scorer: str,
        layer: str,
        scores: Float[Tensor, "n c"] | UserError,
        y: Tensor,
        w: Tensor,
        classes: int,
    ) -> None:
        """Add a batch's scores, or drop the layer for this scorer."""
        of_scorer = self.relevance.setdefault(scorer, {})
        if isinstance(scores, UserError):
            self.refused[scorer, layer] = str(scores)
            of_scorer.pop(layer, None)
            return
        if layer not in of_scorer:
            of_scorer[layer] = ChannelStats(
                classes=classes, channels=scores.shape[1], replicates=w.shape[1]
            )
        of_scorer[layer].update(scores, y, w)


def score_layers(
    network: nn.Module,
    part: Split,
    classes: int,
    *,
    layers: Sequence[str],
    scorers: Mapping[str, RelevanceScorer],
    weights: Float[Tensor, "n r"],
    batch_size: int,
    progress: Callable[[int], object],
) -> Scored:
    """Score layers by several scorers in one pass over the images; one that refuses a layer is left out there.

    Images are scored in blocks (see ``data.blocks``), so the scores are the same to the bit for any batch size.

    Args:
        network: any classifier of images in [0, 1]; it is left as found.
        part: the images.
        classes: number of classes.
        layers: layers' names.
        scorers: by name.
        weights: of the images in each bootstrap replicate, see ``stats.bootstrap_weights``.
        batch_size: images that are read at a time.
        progress: called after every block of every scorer with its number of images.
    """
    found, like = Scored(tuple(layers)), get_parameter(network)
    scorers = _fitted(scorers, network, part, classes, layers, batch_size)
    for rows, x, y in iterate_blocks(part, _blocks(part), batch_size, like.device):
        for name, scorer in scorers.items():
            left = [layer for layer in layers if (name, layer) not in found.refused]
            for layer, scores in _given(scorer, network, left, x.to(like), y).items():
                found.add(name, layer, scores, y, weights[rows], classes)
            progress(len(y))
    return found


def choose_layers(
    network: nn.Module, layers: Sequence[str] | None, x: Float[Tensor, "n *image"], classes: int
) -> tuple[list[str], LastLayer | None]:
    """Check on a few images that network, layers and data fit; name the layers, and the last one where it is linear.

    Args:
        network: any classifier.
        layers: names and patterns; None for the penultimate layer.
        x: a few images.
        classes: number of classes of the data.

    Raises:
        UserError: for what does not fit, and where no layers are given and there is no penultimate one.
    """
    named = None if layers is None else match_layers(network, layers, x)
    check_network(network, x, classes, named or ())
    try:
        last = LastLayer.find(network, x)
    except UserError:
        if named is None:
            raise
        return named, None
    if named is None and not last.inputs:
        raise UserError(
            "No layer returns just what the last linear layer gets: name the layers to analyse."
        )
    return named or list(last.inputs[:1]), last


def take_few(network: nn.Module, part: Split) -> Float[Tensor, "n *image"]:
    """Take a few images, to try a network on them."""
    like = get_parameter(network)
    return next(part.batches(2, like.device, torch.arange(min(2, len(part)))))[0].to(like)


def _blocks(part: Split) -> tuple[Tensor, ...]:
    return torch.arange(len(part)).split(block_size(part))


def _given(
    scorer: RelevanceScorer, network: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
) -> dict[str, Tensor | UserError]:
    """Score all layers together; where one of them is refused, each alone."""
    try:
        return dict(scorer(network, layers, x, y))
    except UserError as error:
        if len(layers) == 1:
            return {layers[0]: error}
    return {
        layer: scores
        for one in layers
        for layer, scores in _given(scorer, network, [one], x, y).items()
    }


def _fitted(
    scorers: Mapping[str, RelevanceScorer],
    network: nn.Module,
    part: Split,
    classes: int,
    layers: Sequence[str],
    batch_size: int,
) -> dict[str, RelevanceScorer]:
    """Give the ablations that need them the channels' means over all images, for which there is one more pass."""
    waiting = {
        name for name, one in scorers.items() if isinstance(one, Ablation) and one.needs_means
    }
    if not waiting:
        return dict(scorers)
    means = dict(_means(network, part, classes, layers, batch_size))
    return {
        name: one.fitted(means) if isinstance(one, Ablation) and name in waiting else one
        for name, one in scorers.items()
    }


def _means(
    network: nn.Module, part: Split, classes: int, layers: Sequence[str], batch_size: int
) -> Iterator[tuple[str, Float[Tensor, "k c"]]]:
    like, stats = get_parameter(network), dict[str, ChannelStats]()
    with (
        eval_mode(network),
        attached(network),
        torch.no_grad(),
        capture_activations(network, *layers) as found,
    ):
        for _, x, y in iterate_blocks(part, _blocks(part), batch_size, like.device):
            network(x.to(like))
            for layer, a in found.items():
                of_layer = stats.setdefault(
                    layer, ChannelStats(classes=classes, channels=a.shape[1])
                )
                of_layer.update(a, y)
    for layer, of_layer in stats.items():
        yield layer, of_layer.magnitude[0]
