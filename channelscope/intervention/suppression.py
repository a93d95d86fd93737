"""Which channels of a layer are suppressed, in what order, and the network that goes without them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks import make_generators
from channelscope.gates import Probed, Selective
from channelscope.layers.features import ablated
from channelscope.layers.hooks import get_logits

Order = Literal["nr", "pr", "random"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The order in which a layer's channels are suppressed.

    Args:
        layer: its name.
        scorer: the short name of what scored the relevance; "random" for a random order.
        order: "nr" begins with the most negatively relevant channel, "pr" with the most positively relevant one.
        channels: of each class (k, c), the channel that is suppressed first, second, and so on.
    """

    layer: str
    scorer: str
    order: Order
    channels: Int[Tensor, "k c"]

    def masks(self, count: int) -> Bool[Tensor, "k c"]:
        """Tell which channels are suppressed for each class when ``count`` are."""
        return torch.zeros_like(self.channels, dtype=torch.bool).scatter_(
            1, self.channels[:, :count], True
        )


# One suppression: of no channels, (None, 0); or of the first so many of a ranking.
Point = tuple[Ranking | None, int]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is suppressed in one network.

    Args:
        relevance: layer -> scorer -> relevance of each channel to each class (k, c).
        counts: layer -> how many channels are suppressed at each point of its curves: from none to all.
        rankings: the orders of suppression.
    """

    relevance: Mapping[str, Mapping[str, Float[Tensor, "k c"]]]
    counts: Mapping[str, Sequence[int]]
    rankings: Sequence[Ranking]

    @classmethod
    def of(
        cls,
        relevance: Mapping[str, Mapping[str, Float[Tensor, "k c"]]],
        fractions: Sequence[float],
        random: int,
        seed: int,
    ) -> Self:
        """Rank each layer's channels from both ends by each scorer's relevance, and at random.

        Args:
            relevance: as above.
            fractions: of a layer's channels; none and all of them are suppressed as well.
            random: how many random orders.
            seed: of the random orders, which do not depend on the scorers.
        """
        counts = {}
        for layer, scorers in relevance.items():
            channels = next(iter(scorers.values())).shape[1]
            counts[layer] = sorted(
                {0, channels, *(round(fraction * channels) for fraction in fractions)}
            )
        rankings = [
            one
            for layer, scorers in relevance.items()
            for one in _rankings(layer, scorers, random, seed)
        ]
        return cls(relevance, counts, rankings)

    def point(self, ranking: Ranking, count: int) -> Point:
        """Name the suppression of the first so many channels: none, and all of a layer's, are one in all rankings."""
        if count == 0:
            return None, 0
        if count == self.counts[ranking.layer][-1]:
            return next(other for other in self.rankings if other.layer == ranking.layer), count
        return ranking, count

    @property
    def points(self) -> list[Point]:
        """The suppressions, each once."""
        return list(
            dict.fromkeys(
                self.point(one, count) for one in self.rankings for count in self.counts[one.layer]
            )
        )


def _rankings(
    layer: str, relevance: Mapping[str, Float[Tensor, "k c"]], random: int, seed: int
) -> Iterator[Ranking]:
    for scorer, values in relevance.items():
        rising = values.argsort(dim=1, stable=True)  # of equal ones, the channel's number decides
        yield Ranking(layer, scorer, "nr", rising)
        yield Ranking(layer, scorer, "pr", rising.flip(1))
    # They differ from class to class too, and so from a scorer's in nothing but the scorer's knowledge.
    for generator in make_generators(seed, f"random order of {layer}", range(random)).own:
        yield Ranking(
            layer, "random", "random", torch.rand(values.shape, generator=generator).argsort(1)
        )


class Suppressed(nn.Module):
    """A network without some channels of a layer; which ones is decided, for each image, by its own answer.

        f_S(x) = f(x), with the channels S(argmax f(x)) of the layer set to 0

    The first pass, untouched, asks for the class; the second goes without that class's channels. So the network is a
    function of the image alone: whatever an attack does to the image may change the class, and with it the channels.
    In between, S is constant: the gradient is that of the second pass.

    Args:
        network: any network.
        layer: the layer's name.
        masks: the channels to suppress for each class (k, c); or (c,) for all images, which spares the first pass.
    """

    def __init__(self, network: nn.Module, layer: str, masks: Bool[Tensor, "*k c"]) -> None:
        super().__init__()
        self.network, self.layer, self.masks = network, layer, masks

    def forward(self, x: Float[Tensor, "n *image"]) -> Float[Tensor, "n classes"]:
        """Give the logits."""
        with self._without(x):
            return get_logits(self.network(x))

    @contextmanager
    def _without(self, x: Float[Tensor, "n *image"]) -> Iterator[None]:
        """Suppress the channels of images x."""
        masks = self.masks
        if masks.ndim == 2:
            with torch.no_grad():
                masks = masks[get_logits(self.network(x)).argmax(1)]
        with ablated(self.network, {self.layer: masks}):
            yield


class SuppressedSelective(Suppressed):
    """The same of a network with gates: attacks that are made for gates see these, without the channels too."""

    network: Selective

    def probed(
        self, x: Float[Tensor, "n *image"], labels: Int[Tensor, " n"] | None = None
    ) -> Probed:
        """Give the full answer; see ``Selective.probed``."""
        with self._without(x):
            return self.network.probed(x, labels)


def suppressed(network: nn.Module, layer: str, masks: Bool[Tensor, "*k c"]) -> Suppressed:
    """Give the network without the channels; see ``Suppressed``."""
    kind = SuppressedSelective if isinstance(network, Selective) else Suppressed
    return kind(network, layer, masks)
