"""Measure one network: activation, relevance and correctness on natural and adversarial images, in one pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from channelscope.attacks import Attack, attack_name, make_generators
from channelscope.data import Split, block_size, iterate_blocks
from channelscope.distributed import all_gather, rank, world_size
from channelscope.errors import UserError
from channelscope.gates import Probed, Selective, attached, takes_labels, with_labels
from channelscope.layers.features import capture_activations, pool_features
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.scorers import ScoreFunction, choose_layers, gradient, weights
from channelscope.statistics.alignment import measures, uniformity
from channelscope.statistics.excitation import Album, Excitation, pictures_of
from channelscope.statistics.leakage import GateRecord, Given, extend, wrong_labels
from channelscope.statistics.streaming import ChannelStats, PairedStats, accuracy
from channelscope.study.models import check_finite

MOST_SINGLY = 2000


@dataclass(frozen=True, eq=False)
class Measurement:
    """One network's statistics by layer, and which images it got right under which attack.

    Args:
        labels: of the images (n,).
        weights: of the images in each bootstrap replicate (n, r); see ``stats.bootstrap_weights``.
        classes: number of classes.
        threshold: see ``stats.ChannelStats``.
        natural, adversarial: statistics of the activations, by layer.
        relevance: statistics of the relevance on natural images, by layer.
        paired: statistics of the activations' change from each natural image to its adversarial one, by layer.
        answers: "natural", "adversarial" -> the classes that the network answers (n,).
        hits: "natural", and the short name of each attack -> the images that are classified correctly (n,).
        penultimate: the layers whose relevance is the last linear layer's weight; that of the others is the gradient.
        excitation: "natural" and "adversarial" -> the images that excite each channel most, by layer.
        gates: "natural", "adversarial" -> what the gates did; nothing, in a network without any.
        given: "true", "wrong" -> the labels that the gates were told besides (n,); empty where no gate takes labels.
        singles: natural activations (m, c), by layer, of the images that are kept singly; see ``singly``.
    """

    labels: Tensor
    weights: Tensor
    classes: int
    threshold: float
    natural: dict[str, ChannelStats] = field(default_factory=dict)
    adversarial: dict[str, ChannelStats] = field(default_factory=dict)
    relevance: dict[str, ChannelStats] = field(default_factory=dict)
    paired: dict[str, PairedStats] = field(default_factory=dict)
    answers: dict[str, Int[Tensor, " n"]] = field(default_factory=dict)
    hits: dict[str, Bool[Tensor, " n"]] = field(default_factory=dict)
    penultimate: tuple[str, ...] = ()
    excitation: dict[str, Excitation] = field(default_factory=dict)
    gates: dict[str, GateRecord] = field(default_factory=dict, init=False)
    given: dict[Given, Int[Tensor, " n"]] = field(default_factory=dict)
    singles: dict[str, Float[Tensor, "m c"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for data in ("natural", "adversarial"):
            self.gates[data] = GateRecord(self.classes, self.weights.shape[1])

    @property
    def layers(self) -> tuple[str, ...]:
        """The measured layers, in the order given."""
        return tuple(self.natural)

    @property
    def singly(self) -> Bool[Tensor, " n"]:
        """The images of which activations and masks are kept one by one: ``MOST_SINGLY`` at even steps, or all."""
        n = len(self.labels)
        m = min(n, MOST_SINGLY)
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[torch.arange(m) * n // m] = True
        return chosen

    @property
    def worst(self) -> Bool[Tensor, " n"]:
        """The images that are classified correctly as they are and under every attack."""
        return torch.stack(list(self.hits.values())).all(0)

    @property
    def decided_by(self) -> str:
        """The attack that leaves the fewest images correct."""
        attacks = [name for name in self.hits if name != "natural"]
        return min(attacks, key=lambda name: int(self.hits[name].sum()))

    def add(
        self, into: dict[str, ChannelStats], values: Mapping[str, Tensor], y: Tensor, w: Tensor
    ) -> None:
        """Add a batch's values (n, c) of some layers to the statistics ``into``."""
        for layer, value in values.items():
            if layer not in into:
                into[layer] = ChannelStats(
                    classes=self.classes,
                    channels=value.shape[1],
                    replicates=self.weights.shape[1],
                    threshold=self.threshold,
                )
            into[layer].update(value, y, w)

    def pair(
        self, natural: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], y: Tensor
    ) -> None:
        """Add the change of a batch's activations (n, c), by layer, from natural to adversarial images."""
        for layer, value in natural.items():
            if layer not in self.paired:
                self.paired[layer] = PairedStats(
                    classes=self.classes, channels=value.shape[1], threshold=self.threshold
                )
            self.paired[layer].update(value, adversarial[layer], y)

    def keep(self, natural: Mapping[str, Float[Tensor, "n c"]], rows: Int[Tensor, " n"]) -> None:
        """Keep a batch's natural activations of the images that are kept singly."""
        for layer, values in natural.items():
            extend(self.singles, layer, values[self.singly[rows]])

    def take(self, rows: Int[Tensor, " n"], seen: "_Seen") -> None:
        """Add what was seen of a block of images."""
        y, w = self.labels[rows], self.weights[rows]
        self.add(self.natural, seen.natural.activations, y, w)
        self.add(self.adversarial, seen.adversarial.activations, y, w)
        self.add(self.relevance, seen.relevance, y, w)
        self.pair(seen.natural.activations, seen.adversarial.activations, y)
        self.keep(seen.natural.activations, rows)
        for data, observed in (("natural", seen.natural), ("adversarial", seen.adversarial)):
            extend(self.answers, data, observed.answers)
            self.excitation[data].update(observed.activations, seen.pictures.get(data), rows)
            if (told_so := seen.told.get(data)) is not None:
                self.gates[data].add(observed.masks, y, w)
                for given, answer in {"none": observed, **told_so}.items():
                    self.gates[data].keep(given, answer.answers, answer.masks, self.singly[rows])

    def measures(self, layer: str) -> dict[str, Float[ndarray, "r k"]]:
        """Compute the alignment measures of a layer, by replicate and class."""
        stats = (self.natural[layer], self.adversarial[layer], self.relevance[layer])
        return measures(*(part.magnitude.numpy() for part in stats)) | {
            "uniformity_natural": uniformity(self.natural[layer].frequency.numpy()),
            "uniformity_adversarial": uniformity(self.adversarial[layer].frequency.numpy()),
        }

    def accuracy(
        self, hits: Bool[Tensor, " n"]
    ) -> tuple[Float[ndarray, " r"], Float[ndarray, "r k"]]:
        """Compute the share of hits over all images (r,) and by class (r, k); NaN for a class without images."""
        overall, by_class = accuracy(hits, self.labels, self.weights, self.classes)
        return overall.numpy(), by_class.numpy()


class Observed(NamedTuple):
    """What a network made of a batch of images.

    Args:
        answers: the classes that it answers (n,).
        activations: by layer (n, c).
        masks: of its gates that have one, by gated layer (n, c); of masks of single elements, the mean over space.
    """

    answers: Int[Tensor, " n"]
    activations: dict[str, Float[Tensor, "n c"]]
    masks: dict[str, Float[Tensor, "n c"]]


class _Seen(NamedTuple):
    """What was seen of a block of images, all on the CPU and an image a row.

    Args:
        natural, adversarial: what the network made of them.
        told: "natural", "adversarial" -> what it makes of them when its gates are told labels; of a gated network.
        relevance: by layer (n, c).
        pictures: "natural", "adversarial" -> small pictures, if any are wanted.
    """

    natural: Observed
    adversarial: Observed
    told: dict[str, dict[Given, Observed]]
    relevance: dict[str, Float[Tensor, "n c"]]
    pictures: dict[str, Tensor]


@torch.no_grad()
def observe(network: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"]) -> Observed:
    """Run a network once: its answers, the layers' activations and its gates' masks."""
    with capture_activations(network, *layers) as found:
        probed = (
            network.probed(x)
            if isinstance(network, Selective)
            else Probed(get_logits(network(x)), {}, {})
        )
    return _observed(probed, {layer: found[layer] for layer in layers})


@torch.no_grad()
def observe_told(
    network: Selective, x: Float[Tensor, "n *image"], given: Mapping[Given, Int[Tensor, " n"]]
) -> dict[Given, Observed]:
    """Run a gated network once for each set of labels that its gates are told, as they are in training."""
    with with_labels(network):
        return {
            name: _observed(network.probed(x, labels.to(x.device)), {})
            for name, labels in given.items()
        }


def _observed(probed: Probed, found: Mapping[str, Tensor]) -> Observed:
    check_finite(probed.logits)
    masks = {layer: pool_features(mask) for layer, mask in probed.masks.items()}
    return Observed(probed.logits.argmax(1).cpu(), dict(found), masks)


def measure(
    network: nn.Module,
    images: Split,
    classes: int,
    *,
    layers: Sequence[str] | None,
    attack: Attack,
    made: Float[ndarray, "n c h w"] | None = None,
    weights: Float[Tensor, "n r"],
    threshold: float,
    pictures: bool,
    batch_size: int,
    seed: int,
    progress: Callable[[int], object],
) -> Measurement:
    """Measure a network on images; its mode, its parameters and their gradients are left as found.

    Gates are attached throughout: an attacker sees the gradient through their masks. The relevance of the
    penultimate layer is the last linear layer's weight; of other layers, the gradient.

    Images go through the network in blocks (see ``data.blocks``), which several processes that are joined (see
    ``distributed``) share; each takes the statistics of all images, block by block, as one does. So the result is the
    same to the bit for any batch size and number of processes, if each of these has as many threads.

    Args:
        network: any classifier of images in [0, 1].
        images: the images, whose order fixes the weights and the attack's random numbers.
        classes: number of classes.
        layers: layers to measure; None for the penultimate one.
        attack: makes the adversarial images.
        made: the adversarial images (n, c, h, w), where they have been made by this attack before.
        weights, threshold: see ``stats``.
        pictures: keep small pictures of the images that excite the channels most.
        batch_size: images that are read at a time.
        seed: of the attack's random numbers.
        progress: called after every block, of several processes after one of each, with the number of images.

    Raises:
        UserError: for a network that does not fit the data, or fewer images than processes; LayerError for a layer
            that does not fit the network.
    """
    if len(images) < world_size():
        raise UserError(
            f"There are more processes ({world_size()}) than images ({len(images)}): start fewer, or add images."
        )
    like = get_parameter(network)
    first = next(images.batches(2, like.device, torch.arange(min(2, len(images)))))[0].to(like)
    scorers = _choose(network, layers, first, classes)
    layers = list(scorers)
    result = Measurement(
        labels=images.labels.cpu(),
        weights=weights,
        classes=classes,
        threshold=threshold,
        penultimate=tuple(layer for layer, scorer in scorers.items() if scorer is not gradient),
    )
    result.excitation.update(
        {data: Excitation(Album() if pictures else None) for data in ("natural", "adversarial")}
    )
    result.given.update(_labels_given(network, result.labels, classes, seed))

    def see(rows: Tensor, x: Tensor, y: Tensor) -> _Seen:
        if made is None:
            x_adv = attack(network, x, y, make_generators(seed, attack_name(attack), rows.tolist()))
        else:
            x_adv = torch.from_numpy(made[rows.numpy()]).to(x)
        shown = {"natural": x, "adversarial": x_adv}
        given = {label: values[rows] for label, values in result.given.items()}
        told = (
            {data: observe_told(network, images, given) for data, images in shown.items()}
            if isinstance(network, Selective)
            else {}
        )
        return _Seen(
            **{data: observe(network, layers, images) for data, images in shown.items()},
            told=told,
            relevance=_score(scorers, network, x, y),
            pictures={data: pictures_of(images) for data, images in shown.items()}
            if pictures
            else {},
        )

    with eval_mode(network), attached(network):
        for rows, seen in _blockwise(images, batch_size, like, see):
            result.take(rows, seen)
            progress(len(rows))
    for kind, answered in zip(
        ("natural", attack_name(attack)), result.answers.values(), strict=True
    ):
        result.hits[kind] = answered == result.labels
    return result


def _labels_given(
    network: nn.Module, labels: Int[Tensor, " n"], classes: int, seed: int
) -> dict[Given, Int[Tensor, " n"]]:
    """Make the labels that gates are told, where a gate takes any: the true ones, and wrong ones."""
    if (
        classes < 2
        or not isinstance(network, Selective)
        or not any(map(takes_labels, network.gates.values()))
    ):
        return {}
    return {"true": labels, "wrong": wrong_labels(labels, classes, seed)}


def _blockwise(
    images: Split, batch_size: int, like: Tensor, see: Callable[[Tensor, Tensor, Tensor], _Seen]
) -> Iterator[tuple[Int[Tensor, " n"], _Seen]]:
    """See all blocks of images, each of several processes its own, and tell all of them in their order."""
    blocks = torch.arange(len(images)).split(block_size(images))
    turns = [blocks[first : first + world_size()] for first in range(0, len(blocks), world_size())]
    own = [turn[min(rank(), len(turn) - 1)] for turn in turns]
    for turn, (rows, x, y) in zip(
        turns, iterate_blocks(images, own, batch_size, like.device), strict=True
    ):
        # Idle in the last turn, a process sees what another sees as well, and has nothing to tell.
        own_rows = slice(0, 0) if rank() >= len(turn) else slice(None)
        seen = _each(partial(_shared, own_rows), see(rows, x.to(like), y))
        for block in turn:
            at = slice(int(block[0] - turn[0][0]), int(block[-1] - turn[0][0]) + 1)
            yield block, _each(itemgetter(at), seen)


def _shared(rows: slice, value: Tensor) -> Tensor:
    """Put these rows of this process's and the others' together, laid out in memory alike in any case."""
    return all_gather(value.cpu()[rows].contiguous())


def _each(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Change each tensor among named and nested values."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: _each(change, value) for name, value in values.items()}
    return type(values)(*(_each(change, value) for value in values))


def _score(
    scorers: Mapping[str, ScoreFunction], network: nn.Module, x: Tensor, y: Tensor
) -> dict[str, Float[Tensor, "n c"]]:
    """Score each layer by its scorer, all layers of one scorer together."""
    scores: dict[str, Tensor] = {}
    for scorer in dict.fromkeys(scorers.values()):
        scores |= scorer(network, [layer for layer, own in scorers.items() if own is scorer], x, y)
    return {layer: scores[layer] for layer in scorers}


def _choose(
    network: nn.Module, layers: Sequence[str] | None, x: Tensor, classes: int
) -> dict[str, ScoreFunction]:
    """Check on a few images that network, layers and data fit; tell the layers and the scorer of each."""
    named, last = choose_layers(network, layers, x, classes)
    return {
        layer: weights if last is not None and layer in last.inputs else gradient for layer in named
    }
