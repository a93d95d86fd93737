"""Networks with channels silenced, run on a few images: what the tables can only estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.data import Dataset, as_dataset, sample_stratified
from channelscope.errors import UserError
from channelscope.explorer.tables import choose_name
from channelscope.layers.features import ablated
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.result import Result
from channelscope.study.models import Network, load_models

_IMAGES = 256  # natural ones, at most: an answer then comes before the next change


@dataclass(frozen=True, eq=False)
class LiveNetwork:
    """One network and the images that it is run on.

    Args:
        network: in any mode, which is restored.
        images: kind of data -> images and labels. Adversarial ones only where the comparison keeps
            them in full size; they were made with nothing silenced.
    """

    network: nn.Module
    images: Mapping[str, tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]]

    @cached_property
    def untouched(self) -> dict[str, float]:
        """Accuracy with nothing silenced, by kind of data."""
        return self.measure_accuracy({})

    def measure_accuracy(self, silenced: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the accuracy with channels of layers set to zero, by kind of data."""
        accuracy = {}
        with eval_mode(self.network), torch.no_grad(), ablated(self.network, silenced):
            for data, (x, y) in self.images.items():
                correct = get_logits(self.network(x)).argmax(1) == y
                accuracy[data] = float(correct.float().mean())
        return accuracy


def load_networks(
    result: Result, models: Mapping[str, Network], data: Any
) -> dict[str, LiveNetwork]:
    """Load networks of a comparison, by their labels, and the images to run them on.

    Raises:
        UserError: for labels that the comparison does not have, for networks of other weights, and
            for data of other classes.
    """
    labels = list(result.meta["models"])
    for label in models:
        choose_name("model", label, labels)
    dataset = as_dataset(data)
    if list(dataset.classes) != result.meta["data"]["classes"]:
        raise UserError(
            f"{dataset.name} has other classes than the comparison: pass the data compared on."
        )
    count = min(_IMAGES, len(dataset.test))
    indices = sample_stratified(dataset.test.labels, count, result.meta["seed"])
    natural = next(dataset.test.batches(count, indices=indices))
    networks = {}
    for model in load_models(models, {}, "cpu"):
        model.check_classes(dataset)
        if model.digest != result.meta["models"][model.label].get("digest", model.digest):
            raise UserError(f"{model.label} has other weights than the network that was compared.")
        images = {"natural": natural}
        images |= _find_adversarial(result, dataset, labels.index(model.label))
        like = get_parameter(model.network)
        placed = {kind: (x.to(like), y.to(like.device)) for kind, (x, y) in images.items()}
        networks[model.label] = LiveNetwork(model.network, placed)
    return networks


def _find_adversarial(
    result: Result, dataset: Dataset, index: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a model's adversarial images, if the comparison keeps pictures of their full size."""
    pictures = result.arrays.get(f"thumbnails/adversarial/{index}")
    if pictures is None or pictures.shape[1:] != dataset.test.image_shape:
        return {}
    labels = result.arrays["labels"][result.arrays[f"thumbnails/adversarial/{index}/images"]]
    return {"adversarial": (torch.from_numpy(pictures) / 255, torch.from_numpy(labels))}
