"""Networks with channels silenced, on a few images: what the tables can only estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.data import Dataset, as_dataset, sample_stratified
from channelscope.errors import UserError
from channelscope.layers.features import ablated
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.result import Result
from channelscope.study.models import Network, load_models

IMAGES = 256  # natural images, at most: a change is answered within the time that a hand needs for the next


@dataclass(frozen=True, eq=False)
class Live:
    """One network and the images it is run on.

    Args:
        network: in any mode, which is left as found.
        images: kind of data -> images and labels; adversarial ones only where the comparison keeps them in full size.
            They were made against the network as it is, nothing silenced.
    """

    network: nn.Module
    images: Mapping[str, tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]]

    @cached_property
    def untouched(self) -> dict[str, float]:
        """Share of correct answers with nothing silenced, by kind of data."""
        return self.accuracy({})

    def accuracy(self, silenced: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Run the network with channels of layers set to zero: share of correct answers by kind of data."""
        with eval_mode(self.network), torch.no_grad(), ablated(self.network, silenced):
            answers = {
                data: get_logits(self.network(x)).argmax(1) for data, (x, _) in self.images.items()
            }
        return {
            data: float((answer == self.images[data][1]).float().mean())
            for data, answer in answers.items()
        }


def live(comparison: Result, models: Mapping[str, Network], data: Any) -> dict[str, Live]:
    """Load networks of a comparison, by their labels there, and the images to run them on.

    Raises:
        UserError: for labels that the comparison does not have, other networks, and data of other classes.
    """
    known = list(comparison.meta["models"])
    if unknown := models.keys() - set(known):
        raise UserError(
            f"There is no model {min(unknown)!r} in the comparison: it has {', '.join(known)}."
        )
    dataset = as_dataset(data)
    if list(dataset.classes) != comparison.meta["data"]["classes"]:
        raise UserError(
            f"{dataset.name} has other classes than the comparison: give the data that was compared on."
        )
    chosen = sample_stratified(
        dataset.test.labels, min(IMAGES, len(dataset.test)), comparison.meta["seed"]
    )
    natural = next(dataset.test.batches(len(chosen), indices=chosen))
    found = {}
    for subject in load_models(models, {}, "cpu"):
        subject.check_classes(dataset)
        if subject.digest != (
            comparison.meta["models"][subject.label].get("digest") or subject.digest
        ):
            raise UserError(
                f"The network given as {subject.label} has other weights than the one that was compared."
            )
        images = {"natural": natural} | _adversarial(
            comparison, dataset, known.index(subject.label)
        )
        like = get_parameter(subject.network)
        there = {kind: (x.to(like), y.to(like.device)) for kind, (x, y) in images.items()}
        found[subject.label] = Live(subject.network, there)
    return found


def _adversarial(
    comparison: Result, dataset: Dataset, index: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Give a network's adversarial images, as the comparison keeps them; none where its pictures are smaller."""
    pictures = comparison.arrays.get(f"thumbnails/adversarial/{index}")
    if pictures is None or pictures.shape[1:] != dataset.test.image_shape:
        return {}
    labels = comparison.arrays["labels"][
        comparison.arrays[f"thumbnails/adversarial/{index}/images"]
    ]
    return {"adversarial": (torch.from_numpy(pictures) / 255, torch.from_numpy(labels))}
