"""Suppress channels of a trained network, most NR, most PR or random ones first: what is left?

The attack sees the intervention: what is attacked is the network that goes without the channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from channelscope.analyses.base import SuppressedLayer
from channelscope.attacks import AttackLike, attack_name, find_correct, make_generators, stop_early
from channelscope.attacks.folding import run_folded
from channelscope.distributed import barrier, shard
from channelscope.gates import Probed, Selective, attached
from channelscope.layers.features import ablated
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.statistics.channels import mean_by_class
from channelscope.study.evaluation import Images, Progress, identify_attack
from channelscope.study.measuring import Scores
from channelscope.study.models import Model
from channelscope.study.store import Rows, RunFolder, digest_of

Order = Literal["nr", "pr", "random"]
RelevantTo = Literal["answer", "label"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The order in which a layer's channels are suppressed.

    Args:
        layer: its name.
        scorer: what scored the relevance; "random" for a random order.
        order: "nr" begins with the most negatively relevant channel, "pr" with the most positively
            relevant one.
        channels: of each class (k, c), the channel that is suppressed first, second, and so on.
    """

    layer: str
    scorer: str
    order: Order
    channels: Int[Tensor, "k c"]

    def masks(self, count: int) -> Bool[Tensor, "k c"]:
        """Return which channels are suppressed for each class when ``count`` are."""
        masks = torch.zeros_like(self.channels, dtype=torch.bool)
        return masks.scatter_(1, self.channels[:, :count], True)


class Point(NamedTuple):
    """One suppression: of no channels (no ranking), or of the first so many of a ranking."""

    ranking: Ranking | None
    size: int


@dataclass(frozen=True, eq=False)
class SuppressionPlan:
    """What is suppressed in one network.

    Args:
        relevance: layer -> scorer -> relevance of each channel to each class (k, c).
        counts: layer -> how many channels are suppressed at each point: from none to all.
        rankings: the orders of suppression.
    """

    relevance: Mapping[str, Mapping[str, Float[ndarray, "k c"]]]
    counts: Mapping[str, tuple[int, ...]]
    rankings: Sequence[Ranking]

    def point(self, ranking: Ranking, count: int) -> Point:
        """Return the suppression of the first channels: none, and all, are one in all rankings."""
        if count == 0:
            return Point(None, 0)
        if count == self.counts[ranking.layer][-1]:
            first = next(one for one in self.rankings if one.layer == ranking.layer)
            return Point(first, count)
        return Point(ranking, count)

    @property
    def points(self) -> list[Point]:
        """The suppressions, each once."""
        return list(
            dict.fromkeys(
                self.point(ranking, count)
                for ranking in self.rankings
                for count in self.counts[ranking.layer]
            )
        )


def plan_suppression(
    relevance: Mapping[str, Mapping[str, Float[ndarray, "k c"]]],
    fractions: Sequence[float],
    random: int,
    seed: int,
) -> SuppressionPlan:
    """Rank each layer's channels from both ends by each scorer's relevance, and at random.

    Args:
        relevance: layer -> scorer -> relevance (k, c).
        fractions: of a layer's channels; none and all of them are suppressed as well.
        random: how many random orders.
        seed: of the random orders, which do not depend on the scorers.
    """
    counts = {}
    rankings: list[Ranking] = []
    for layer, by_scorer in relevance.items():
        shape = next(iter(by_scorer.values())).shape
        some = (round(fraction * shape[1]) for fraction in fractions)
        counts[layer] = tuple(sorted({0, shape[1], *some}))
        for scorer, values in by_scorer.items():
            # Of equal channels the one with the lower number comes first.
            rising = torch.from_numpy(values).argsort(dim=1, stable=True)
            rankings.append(Ranking(layer, scorer, "nr", rising))
            rankings.append(Ranking(layer, scorer, "pr", rising.flip(1)))
        # They differ from class to class too: all that differs from a scorer's is what it knows.
        generators = make_generators(seed, f"random order of {layer}", range(random))
        for generator in generators.each:
            order = torch.rand(shape, generator=generator, device="cpu").argsort(1)
            rankings.append(Ranking(layer, "random", "random", order))
    return SuppressionPlan(relevance, counts, rankings)


def relevance_by_class(
    scores: Scores, layers: Sequence[str], scorers: Sequence[str], images: Images
) -> dict[str, dict[str, Float[ndarray, "k c"]]]:
    """Average scores over the images of each class: layer -> scorer -> (k, c).

    The network may answer with a class that has no image here: its channels are worth the mean over
    the others. Layers that a scorer refuses have no entry for it.
    """
    relevance: dict[str, dict[str, ndarray]] = {layer: {} for layer in layers}
    for layer in layers:
        for scorer in scorers:
            if (scorer, layer) in scores.refused:
                continue
            means = mean_by_class(scores.scores(scorer, layer), images.labels, images.classes)
            worth = np.where(np.isnan(means), np.nanmean(means, 0), means)
            relevance[layer][scorer] = worth
    return relevance


class Suppressed(nn.Module):
    """A network without some channels of a layer; for each image its own answer decides which.

        f_S(x) = f(x), with the channels S(argmax f(x)) of the layer set to 0

    The first pass, untouched, asks for the class; the second goes without that class's channels. So
    the network is a function of the image alone: whatever an attack does to the image may change
    the class, and with it the channels. In between, S is constant: the gradient is that of the
    second pass.

    Args:
        network: any network.
        layer: the layer's name.
        masks: the channels to suppress for each class (k, c); or (c,) for all images, which spares
            the first pass.
    """

    def __init__(self, network: nn.Module, layer: str, masks: Bool[Tensor, "*k c"]) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.masks = masks

    def forward(self, x: Float[Tensor, "n *image"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        with self._suppress(x):
            return get_logits(self.network(x))

    @contextmanager
    def _suppress(self, x: Float[Tensor, "n *image"]) -> Iterator[None]:
        masks = self.masks
        if masks.ndim == 2:
            with torch.no_grad():
                masks = masks[get_logits(self.network(x)).argmax(1)]
        with ablated(self.network, {self.layer: masks}):
            yield


class SuppressedSelective(Suppressed):
    """The same of a network with gates: attacks made for gates see these, without the channels."""

    network: Selective

    def probed(
        self, x: Float[Tensor, "n *image"], labels: Int[Tensor, " n"] | None = None
    ) -> Probed:
        """Return the full answer; see ``Selective.probed``."""
        with self._suppress(x):
            return self.network.probed(x, labels)


def suppress(network: nn.Module, layer: str, masks: Bool[Tensor, "*k c"]) -> Suppressed:
    """Return the network without the channels; see ``Suppressed``."""
    kind = SuppressedSelective if isinstance(network, Selective) else Suppressed
    return kind(network, layer, masks)


class _Batch(NamedTuple):
    """Images, their indices and labels, and what an attack on the whole network made of them."""

    rows: Int[Tensor, " n"]
    x: Float[Tensor, "n *image"]
    y: Int[Tensor, " n"]
    attacked: Float[Tensor, "n *image"]


@dataclass(eq=False, kw_only=True)
class Suppressor:
    """Suppresses channels of one network at test time, and attacks what is left.

    The attack is on the network that goes without the channels, gates attached. Besides, every
    image as the attack made it on the untouched network is tried: it changes the network's answer,
    and so the channels, of which the gradient of the suppressed network knows nothing. An image is
    robust if it withstands both and is correct as it is.

    Args:
        model: the network.
        images: the images that are judged.
        plan: what is suppressed.
        attack: on the suppressed network; it drops an image once it is broken, where it can.
        relevant_to: whose channels go: those of the network's own answer, or of the label.
        folder: where outcomes are kept.
        progress: is told of images that are done, point by point.
    """

    model: Model
    images: Images
    plan: SuppressionPlan
    attack: AttackLike
    relevant_to: RelevantTo
    folder: RunFolder
    progress: Progress
    digests: Mapping[int, str] = field(default_factory=dict)

    def run(self) -> dict[str, SuppressedLayer]:
        """Find which images are classified correctly at each point, by layer."""
        self.progress.start(self.model.label)
        rows = {point: self._open(point) for point in self.plan.points}
        network = self.model.network
        with eval_mode(network), attached(network):
            for batch_rows in shard(self._blocks()):
                missing = [
                    point for point, kept in rows.items() if not kept.done[batch_rows.numpy()].all()
                ]
                self.progress.advance(len(batch_rows) * (len(rows) - len(missing)))
                if not missing:
                    continue
                batch = self._read(batch_rows)
                for point in missing:
                    values = self._find_correct(self._suppress(point, batch), batch)
                    rows[point].write(batch_rows.numpy(), values)
                    self.progress.advance(len(batch_rows))
        barrier()
        return {layer: self._collect(layer, rows) for layer in self.plan.counts}

    def _collect(self, layer: str, rows: Mapping[Point, Rows]) -> SuppressedLayer:
        counts = self.plan.counts[layer]
        correct: dict[tuple[str, str], list[dict[str, ndarray]]] = {}
        for ranking in self.plan.rankings:
            if ranking.layer != layer:
                continue
            points = [rows[self.plan.point(ranking, count)] for count in counts]
            curves = {
                data: np.stack([kept.array(data) != 0 for kept in points])
                for data in ("natural", "adversarial")
            }
            correct.setdefault((ranking.scorer, ranking.order), []).append(curves)
        return SuppressedLayer(counts, self.plan.relevance[layer], correct)

    def _open(self, point: Point) -> Rows:
        ranking, size = point
        masks = b"" if ranking is None else ranking.masks(size).numpy().tobytes()
        key = digest_of(
            ranking.layer if ranking else "",
            masks,
            identify_attack(self.attack, self.digests),
            self.relevant_to,
            self.images.seed,
        )
        spec = {"natural": ((), "|u1"), "adversarial": ((), "|u1")}
        place = self.model.key(self.images.key)
        return self.folder.rows(len(self.images), spec, place, f"suppressed {key}")

    def _blocks(self) -> list[Tensor]:
        """Return blocks of images, of one class each where their label chooses the channels."""
        rows = torch.arange(len(self.images), device="cpu")
        labels = torch.from_numpy(self.images.labels)
        groups = [rows]
        if self.relevant_to == "label":
            groups = [rows[labels == k] for k in labels.unique()]
        return [block for group in groups for block in group.split(self.images.block_size)]

    def _read(self, rows: Tensor) -> _Batch:
        network = self.model.network
        [(_, x, y)] = self.images.read_blocks([rows], get_parameter(network))
        return _Batch(rows, x, y, self._attack(network, self.attack, x, y, rows))

    def _suppress(self, point: Point, batch: _Batch) -> nn.Module:
        """Return the network that goes without the point's channels."""
        ranking, size = point
        if ranking is None:
            return self.model.network
        masks = ranking.masks(size).to(batch.y.device)
        if self.relevant_to == "label":
            masks = masks[batch.y[0]]
        elif masks.all():
            masks = masks[0]
        return suppress(self.model.network, ranking.layer, masks)

    def _find_correct(self, network: nn.Module, batch: _Batch) -> dict[str, ndarray]:
        natural = find_correct(network, batch.x, batch.y)
        robust = natural & find_correct(network, batch.attacked, batch.y)
        if robust.any():
            x, y = batch.x[robust], batch.y[robust]
            rows = batch.rows[robust.cpu()]
            x_adv = self._attack(network, stop_early(self.attack), x, y, rows)
            robust[robust.clone()] = find_correct(network, x_adv, y)
        return {"natural": natural.cpu().numpy(), "adversarial": robust.cpu().numpy()}

    def _attack(
        self, network: nn.Module, attack: AttackLike, x: Tensor, y: Tensor, rows: Tensor
    ) -> Tensor:
        """Attack a network.

        One that runs ours twice in a pass is not folded by the attack, but ours is, here.
        """

        def work(layout: torch.memory_format) -> Tensor:
            numbers = make_generators(self.images.seed, attack_name(attack), rows.tolist())
            return attack(network, x.to(memory_format=layout), y, numbers)

        if network is self.model.network:
            return work(torch.preserve_format)
        return run_folded(self.model.network, x, work)
