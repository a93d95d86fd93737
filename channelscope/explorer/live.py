"""Networks with channels silenced or restored, run on a few images, not estimated by tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.data import Dataset, as_dataset, sample_stratified
from channelscope.errors import UserError
from channelscope.explorer.tables import choose_name
from channelscope.layers.features import ablated, capture, patched
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
        twins: the natural images of the adversarial ones.
    """

    network: nn.Module
    images: Mapping[str, tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]]
    twins: Float[Tensor, "m c h w"]

    @cached_property
    def untouched(self) -> dict[str, float]:
        """Accuracy with nothing silenced, by kind of data."""
        return self.measure_accuracy({})

    def measure_accuracy(
        self,
        silenced: Mapping[str, Sequence[int]],
        restored: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, float]:
        """Return the accuracy by kind of data, with channels of layers edited.

        Args:
            silenced: layer -> channels that are set to zero.
            restored: layer -> channels that have the natural image's features in the adversarial
                run.
        """
        accuracy = {}
        layers = {layer: channels for layer, channels in (restored or {}).items() if channels}
        with eval_mode(self.network), torch.no_grad():
            for data, (x, y) in self.images.items():
                patches = {}
                if data == "adversarial" and layers:
                    with capture(self.network, *layers) as features:
                        self.network(self.twins)
                    patches = {layer: (layers[layer], features[layer]) for layer in layers}
                with patched(self.network, patches), ablated(self.network, silenced):
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
    dataset = _read_data(result, data)
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
        twins, adversarial = _find_adversarial(result, dataset, labels.index(model.label))
        if len(twins):
            images["adversarial"] = adversarial
        like = get_parameter(model.network)
        placed = {kind: (x.to(like), y.to(like.device)) for kind, (x, y) in images.items()}
        networks[model.label] = LiveNetwork(model.network, placed, twins.to(like))
    return networks


def _read_data(result: Result, data: Any) -> Dataset:
    """Return a data set, for None the one that the comparison was made on, by its name."""
    if data is not None:
        return as_dataset(data)
    name = result.meta["data"]["name"]
    try:
        return as_dataset(name)
    except UserError as error:
        raise UserError(
            f"data: what was compared on, {name!r}, cannot be read by that name: pass data=..."
        ) from error


def _find_adversarial(
    result: Result, dataset: Dataset, index: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return a model's adversarial images, their natural twins before them, and their labels.

    None where the comparison keeps no pictures of their full size.
    """
    names = ("thumbnails/natural", f"thumbnails/adversarial/{index}")
    pictures = [result.arrays.get(name, np.zeros(0, np.uint8)) for name in names]
    if any(each.shape[1:] != dataset.test.image_shape for each in pictures):
        none = torch.zeros(0, *dataset.test.image_shape, device="cpu")
        return none, (none, torch.zeros(0, dtype=torch.long, device="cpu"))
    first, second = (result.arrays[f"{name}/images"] for name in names)
    images, natural_rows, rows = np.intersect1d(first, second, return_indices=True)
    twins = torch.from_numpy(pictures[0][natural_rows]) / 255
    attacked = torch.from_numpy(pictures[1][rows]) / 255
    return twins, (attacked, torch.from_numpy(result.arrays["labels"][images]))
