"""What the gates of a network do to images, and whether they tell the label: label leakage.

In training a gate of CIFS or CAS is told the label, and makes its mask of it. A network that learned to read the label
there, instead of in the features, is right in training and wrong as deployed, where nobody tells its gates.
"""

from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from channelscope.gates import mask_share
from channelscope.statistics.streaming import ChannelStats

Given = Literal["none", "true", "wrong"]  # the label that the gates are told
FOLDS = 5
Key = TypeVar("Key", bound=Hashable)


def extend(rows: MutableMapping[Key, Tensor], key: Key, further: Tensor) -> None:
    """Put further rows below those that are there under a key."""
    rows[key] = torch.cat([rows[key], further]) if key in rows else further


@dataclass(eq=False)
class GateRecord:
    """What the gates of one network did to one kind of images, natural or adversarial.

    Args:
        classes, replicates: of the data and of the bootstrap.
        masks: mean mask by class, by gated layer; of masks of single elements, the mean over space.
        shares: the share of the mask in effect, as a single channel, by gated layer; see ``selection.mask_share``.
        answers: what the network answers (n,) when its gates are told nothing, the true label, a wrong one.
        singles: by what the gates are told and by gated layer, the masks (m, c) of the images that are kept singly.
    """

    classes: int
    replicates: int
    masks: dict[str, ChannelStats] = field(default_factory=dict)
    shares: dict[str, ChannelStats] = field(default_factory=dict)
    answers: dict[Given, Int[Tensor, " n"]] = field(default_factory=dict)
    singles: dict[tuple[Given, str], Float[Tensor, "m c"]] = field(default_factory=dict)

    def add(
        self,
        masks: Mapping[str, Float[Tensor, "n c"]],
        y: Int[Tensor, " n"],
        w: Float[Tensor, "n r"],
    ) -> None:
        """Add a batch's masks, of gates that are told nothing, to the statistics."""
        for layer, mask in masks.items():
            for into, values in ((self.masks, mask), (self.shares, mask_share(mask).unsqueeze(1))):
                size = {
                    "classes": self.classes,
                    "channels": values.shape[1],
                    "replicates": self.replicates,
                }
                into.setdefault(layer, ChannelStats(**size)).update(values, y, w)

    def keep(
        self,
        given: Given,
        answers: Int[Tensor, " n"],
        masks: Mapping[str, Float[Tensor, "n c"]],
        singly: Bool[Tensor, " n"],
    ) -> None:
        """Keep the answers to a batch, and the masks of those of its images that are kept singly."""
        extend(self.answers, given, answers)
        for layer, mask in masks.items():
            extend(self.singles, (given, layer), mask[singly])


def wrong_labels(labels: Int[Tensor, " n"], classes: int, seed: int) -> Int[Tensor, " n"]:
    """Draw for each image one of the other classes, each as likely."""
    steps = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return (labels + steps) % classes


def read(masks: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Read the class of each image from its mask alone, by a classifier that has not seen the image.

    The classifier is linear, as the probes of Alain and Bengio (2016, arXiv 1610.01644), on standardised channels, and
    that of ridge regression, which has a closed form. It learns from four fifths of the images to read the last fifth.
    -1 for every image where fewer than two classes have two images.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.full(len(labels), -1)
    if (np.bincount(labels, minlength=2) > 1).sum() < 2:
        return found
    folds = _folds(labels)
    for fold in np.unique(folds):
        classifier = make_pipeline(StandardScaler(), RidgeClassifier())
        classifier.fit(masks[folds != fold], labels[folds != fold])
        found[folds == fold] = classifier.predict(masks[folds == fold])
    return found


def _folds(labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Deal each class's images out to the folds in turn."""
    folds = np.empty_like(labels)
    for k in np.unique(labels):
        of_class = np.flatnonzero(labels == k)
        folds[of_class] = np.arange(len(of_class)) % FOLDS
    return folds
