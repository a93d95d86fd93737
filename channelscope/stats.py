"""Streaming, mergeable channel statistics per class, weighted for the bootstrap."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SUMS = ("count", "sum", "square_sum", "active")


@dataclass(kw_only=True)
class ChannelStats:
    """Sums over images of each channel's activation a, per replicate of the bootstrap, class and channel.

    Every image i carries a weight w[i, r] in each replicate r: with all weights 1 the statistics are the plain
    ones, with Poisson(1) weights they are a bootstrap replicate. Memory does not grow with the number of images,
    and sums are kept in float64, so any order and split of the images gives the same statistics to rounding:

        count[r, k]   = sum_i w[i, r] [y_i = k]
        sum[r, k, c]  = sum_i w[i, r] [y_i = k] a[i, c]

    Squares and activity are summed for the first replicate alone, the estimate itself:

        square_sum[k, c] = sum_i w[i, 0] [y_i = k] a[i, c]^2
        active[k, c]     = sum_i w[i, 0] [y_i = k] [a[i, c] > threshold * max_c' a[i, c']]

    Args:
        classes, channels, replicates: the sizes of the three dimensions.
        threshold: share of the image's largest channel above which a channel counts as active
            (1 % in Bai et al., ICLR 2021).
    """

    classes: int
    channels: int
    replicates: int = 1
    threshold: float = 0.01
    count: Float[Tensor, "r k"] = field(init=False, repr=False)
    sum: Float[Tensor, "r k c"] = field(init=False, repr=False)
    square_sum: Float[Tensor, "k c"] = field(init=False, repr=False)
    active: Float[Tensor, "k c"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = (self.replicates, self.classes, self.channels)
        self.count = torch.zeros(shape[:2], dtype=torch.float64)
        self.sum = torch.zeros(shape, dtype=torch.float64)
        self.square_sum, self.active = (torch.zeros(shape[1:], dtype=torch.float64) for _ in range(2))

    def update(
        self, activations: Float[Tensor, "n c"], labels: Int[Tensor, " n"], weights: Float[Tensor, "n r"] | None = None
    ) -> None:
        """Add a batch: activations (n, channels), labels in [0, classes), weights (n, replicates), all 1 if None."""
        a = activations.detach().to("cpu", torch.float64)
        if weights is None:
            weights = torch.ones(len(a), self.replicates, dtype=torch.float64)
        weights, labels = weights.cpu().double(), labels.cpu()
        of_class = torch.nn.functional.one_hot(labels, self.classes).double()
        own = (weights[:, :1] * of_class).T
        self.count += weights.T @ of_class
        self.square_sum += own @ a.square()
        self.active += own @ (a > self.threshold * a.amax(1, keepdim=True)).double()
        # One product for all classes would multiply mostly zeros: a class has its own images side by side.
        order, sizes = labels.argsort(), labels.bincount(minlength=self.classes).tolist()
        for k, (w, its) in enumerate(zip(weights[order].split(sizes), a[order].split(sizes), strict=True)):
            self.sum[:, k] += w.T @ its

    def __add__(self, other: Self) -> Self:
        """Merge the statistics of two disjoint sets of images."""
        settings = (self.classes, self.channels, self.replicates, self.threshold)
        if settings != (other.classes, other.channels, other.replicates, other.threshold):
            raise ValueError("Only statistics of the same classes, channels, replicates and threshold can be merged.")
        return self._with({name: getattr(self, name) + getattr(other, name) for name in _SUMS})

    def merged(self, total: Callable[[Tensor], Tensor]) -> Self:
        """Merge the statistics that several processes took of disjoint sets of images.

        Args:
            total: gives the sum of the processes' tensors, as ``distributed.total`` does.
        """
        return self._with({name: total(getattr(self, name)) for name in _SUMS})

    def _with(self, sums: Mapping[str, Tensor]) -> Self:
        """Give statistics of the same settings with these sums."""
        other = type(self)(
            classes=self.classes, channels=self.channels, replicates=self.replicates, threshold=self.threshold
        )
        for name, value in sums.items():
            setattr(other, name, value)
        return other

    @property
    def magnitude(self) -> Float[Tensor, "r k c"]:
        """Mean activation of each channel over the images of a class; NaN for a class without images."""
        return self.sum / self.count.unsqueeze(2)

    @property
    def variance(self) -> Float[Tensor, "k c"]:
        """Population variance of the activation over the images of a class; NaN for a class without images."""
        return (self.square_sum / self.count[0].unsqueeze(1) - self.magnitude[0].square()).clamp_min(0)

    @property
    def frequency(self) -> Float[Tensor, "k c"]:
        """Share of a class's images on which the channel is active; NaN for a class without images."""
        return self.active / self.count[0].unsqueeze(1)


def bootstrap_weights(images: int, replicates: int, seed: int) -> Float[Tensor, "n r"]:
    """Draw how often each image counts in each bootstrap replicate: column 0 is all 1 (the estimate itself).

    The other columns are independent Poisson(1) draws, the streaming form of resampling with replacement
    (Chamandy et al., 2012). Image i has the same weights whatever the batch size.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.poisson(torch.ones(images, replicates), generator=generator)
    return torch.cat([torch.ones(images, 1), draws], 1)


def accuracy(
    hits: Bool[Tensor, " n"], labels: Int[Tensor, " n"], weights: Float[Tensor, "n r"], classes: int
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r k"]]:
    """Compute the share of hits over all images (r,) and by class (r, k), by replicate; NaN for an empty class.

    Args:
        hits: the images that are classified correctly.
        labels: of the images, below ``classes``.
        weights: see ``bootstrap_weights``.
        classes: number of classes.
    """
    of_class = torch.nn.functional.one_hot(labels, classes).double()
    weights = weights.double()
    right = weights * hits.unsqueeze(1)
    return right.sum(0) / weights.sum(0), (right.T @ of_class) / (weights.T @ of_class)
