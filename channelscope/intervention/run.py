"""What happens to the images when channels are suppressed: which of them stand, natural and attacked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks import Attack, attack_name, find_correct, make_generators, stop_early
from channelscope.attacks.folding import run_folded
from channelscope.data import Split, block_size, iterate_blocks
from channelscope.gates import attached
from channelscope.intervention.suppression import Plan, Point, suppressed
from channelscope.layers.hooks import eval_mode
from channelscope.study.models import get_parameter

RelevantTo = Literal["answer", "label"]


class Stood(NamedTuple):
    """Which images are classified correctly as they are, and when attacked as well."""

    natural: Bool[Tensor, " n"]
    adversarial: Bool[Tensor, " n"]


class _Batch(NamedTuple):
    """Images, their numbers and labels, and what an attack on the untouched network made of them."""

    rows: Int[Tensor, " n"]
    x: Float[Tensor, "n *image"]
    y: Int[Tensor, " n"]
    made: Float[Tensor, "n *image"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """One network whose channels are suppressed at test time, and an attack that sees it.

    The attack is on the network that goes without the channels, gates attached. Besides, every image as the attack made
    it on the untouched network is tried out: it changes the network's answer, and so the channels, of which the
    gradient of the suppressed network knows nothing. An image is robust if it stands as it is and both.

    Args:
        network: any network.
        attack: on the suppressed network, it drops an image once it is broken, where it knows how to.
        relevant_to: see ``intervene``.
        batch_size: images that are read at a time.
        seed: of the attack's random numbers, which are the same for every suppression.
    """

    network: nn.Module
    attack: Attack
    relevant_to: RelevantTo
    batch_size: int
    seed: int

    def outcomes(
        self, images: Split, plan: Plan, advance: Callable[[int], object]
    ) -> dict[Point, Stood]:
        """Tell for each of the plan's points which of the images stood, in their order.

        ``advance`` is called with the number of images that have been dealt with, point by point.
        """
        found: dict[Point, list[Stood]] = {point: [] for point in plan.points}
        order = []
        with eval_mode(self.network), attached(self.network):
            for batch in self._batches(images):
                order.append(batch.rows)
                for point, stood in found.items():
                    stood.append(self._stood(self._suppressed(point, batch), batch))
                    advance(len(batch.rows))
        back = torch.cat(order).argsort()
        joined = {point: zip(*batches, strict=True) for point, batches in found.items()}
        return {
            point: Stood(*(torch.cat(parts)[back] for parts in both))
            for point, both in joined.items()
        }

    def _batches(self, images: Split) -> Iterator[_Batch]:
        """Go through the images, those of one class together where their label chooses the channels."""
        like, rows, labels = (
            get_parameter(self.network),
            torch.arange(len(images)),
            images.labels.cpu(),
        )
        groups = (
            [rows] if self.relevant_to == "answer" else [rows[labels == k] for k in labels.unique()]
        )
        blocks = [block for group in groups for block in group.split(block_size(images))]
        for own, x, y in iterate_blocks(images, blocks, self.batch_size, like.device):
            x = x.to(like)
            yield _Batch(own, x, y, self._attacked(self.network, self.attack, x, y, own))

    def _suppressed(self, point: Point, batch: _Batch) -> nn.Module:
        """Give the network that goes without the point's channels."""
        ranking, count = point
        if ranking is None:
            return self.network
        masks = ranking.masks(count).to(batch.y.device)
        if self.relevant_to == "label":
            masks = masks[batch.y[0]]
        elif masks.all():
            masks = masks[0]
        return suppressed(self.network, ranking.layer, masks)

    def _stood(self, network: nn.Module, batch: _Batch) -> Stood:
        natural = find_correct(network, batch.x, batch.y)
        stood = natural & find_correct(network, batch.made, batch.y)
        if stood.any():
            x, y = batch.x[stood], batch.y[stood]
            found = self._attacked(network, stop_early(self.attack), x, y, batch.rows[stood.cpu()])
            stood[stood.clone()] = find_correct(network, found, y)
        return Stood(natural.cpu(), stood.cpu())

    def _attacked(
        self, network: nn.Module, attack: Attack, x: Tensor, y: Tensor, rows: Tensor
    ) -> Tensor:
        """Attack a network; one that runs ours twice in a pass is not folded by the attack, but ours is, here."""

        def work(layout: torch.memory_format) -> Tensor:
            numbers = make_generators(self.seed, attack_name(attack), rows.tolist())
            return attack(network, x.to(memory_format=layout), y, numbers)

        return (
            work(torch.preserve_format)
            if network is self.network
            else run_folded(self.network, x, work)
        )
