"""Streaming, mergeable channel statistics per class, weighted for the bootstrap."""

from dataclasses import dataclass, field, fields
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(kw_only=True)
class _Sums:
    """Sums over images that can be merged: settings are fields that are given, sums those that are not."""

    def __add__(self, other: Self) -> Self:
        """Merge the statistics of two disjoint sets of images."""
        if self._settings != other._settings:
            *names, last = self._settings
            raise ValueError(
                f"Only statistics of the same {', '.join(names)} and {last} can be merged."
            )
        both = type(self)(**self._settings)
        for name in (item.name for item in fields(self) if not item.init):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def _settings(self) -> dict[str, float]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}


@dataclass(kw_only=True)
class ChannelStats(_Sums):
    """Sums over images of each channel's activation a, per replicate of the bootstrap, class and channel.

    Every image i carries a weight w[i, r] in each replicate r: with all weights 1 the statistics are the plain
    ones, with Poisson(1) weights they are a bootstrap replicate. Memory does not grow with the number of images,
    and sums are kept in float64, so any order and split of the images gives the same statistics to rounding:

        count[r, k]   = sum_i w[i, r] [y_i = k]
        sum[r, k, c]  = sum_i w[i, r] [y_i = k] a[i, c]

        active[r, k, c] = sum_i w[i, r] [y_i = k] [a[i, c] > threshold * max_c' a[i, c']]

    Squares are summed for the first replicate alone, the estimate itself:

        square_sum[k, c] = sum_i w[i, 0] [y_i = k] a[i, c]^2

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
    active: Float[Tensor, "r k c"] = field(init=False, repr=False)
    square_sum: Float[Tensor, "k c"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = (self.replicates, self.classes, self.channels)
        self.count = torch.zeros(shape[:2], dtype=torch.float64)
        self.sum, self.active = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.square_sum = torch.zeros(shape[1:], dtype=torch.float64)

    def update(
        self,
        activations: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, "n r"] | None = None,
    ) -> None:
        """Add a batch: activations (n, channels), labels in [0, classes), weights (n, replicates), all 1 if None."""
        a = activations.detach().to("cpu", torch.float64)
        if weights is None:
            weights = torch.ones(len(a), self.replicates, dtype=torch.float64)
        weights, labels = weights.cpu().double(), labels.cpu()
        of_class = torch.nn.functional.one_hot(labels, self.classes).double()
        self.count += weights.T @ of_class
        self.square_sum += (weights[:, :1] * of_class).T @ a.square()
        # One product for all classes would multiply mostly zeros: a class has its own images side by side.
        order, sizes = labels.argsort(), labels.bincount(minlength=self.classes).tolist()
        is_active = active(a, self.threshold).double()
        parts = (values[order].split(sizes) for values in (weights, a, is_active))
        for k, (w, its, on) in enumerate(zip(*parts, strict=True)):
            self.sum[:, k] += w.T @ its
            self.active[:, k] += w.T @ on

    @property
    def magnitude(self) -> Float[Tensor, "r k c"]:
        """Mean activation of each channel over the images of a class; NaN for a class without images."""
        return self.sum / self.count.unsqueeze(2)

    @property
    def variance(self) -> Float[Tensor, "k c"]:
        """Population variance of the activation over the images of a class; NaN for a class without images."""
        return (
            self.square_sum / self.count[0].unsqueeze(1) - self.magnitude[0].square()
        ).clamp_min(0)

    @property
    def frequency(self) -> Float[Tensor, "r k c"]:
        """Share of a class's images on which the channel is active; NaN for a class without images."""
        return self.active / self.count.unsqueeze(2)


@dataclass(kw_only=True)
class PairedStats(_Sums):
    """Sums over pairs (a natural image, its adversarial one) of each channel's activations a and b, per class.

        change_sum[k, c] = sum_i [y_i = k] (b[i, c] - a[i, c]), and change_square_sum that of its square
        silenced_sum[k, c] = sum_i [y_i = k] [channel c active in a_i and not in b_i], and awakened_sum the reverse

    Args:
        classes, channels: the sizes of the two dimensions.
        threshold: share of the image's largest channel above which a channel counts as active.
    """

    classes: int
    channels: int
    threshold: float = 0.01
    count: Float[Tensor, " k"] = field(init=False, repr=False)
    change_sum: Float[Tensor, "k c"] = field(init=False, repr=False)
    change_square_sum: Float[Tensor, "k c"] = field(init=False, repr=False)
    silenced_sum: Float[Tensor, "k c"] = field(init=False, repr=False)
    awakened_sum: Float[Tensor, "k c"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.classes, dtype=torch.float64)
        self.change_sum, self.change_square_sum, self.silenced_sum, self.awakened_sum = (
            torch.zeros(self.classes, self.channels, dtype=torch.float64) for _ in range(4)
        )

    def update(
        self,
        natural: Float[Tensor, "n c"],
        adversarial: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
    ) -> None:
        """Add a batch of pairs: activations (n, channels) of both, labels in [0, classes)."""
        a, b = (part.detach().to("cpu", torch.float64) for part in (natural, adversarial))
        labels, before, after = labels.cpu(), active(a, self.threshold), active(b, self.threshold)
        self.count += labels.bincount(minlength=self.classes)
        self.change_sum.index_add_(0, labels, b - a)
        self.change_square_sum.index_add_(0, labels, (b - a).square())
        self.silenced_sum.index_add_(0, labels, (before & ~after).double())
        self.awakened_sum.index_add_(0, labels, (after & ~before).double())

    @property
    def change(self) -> Float[Tensor, "k c"]:
        """Mean of the adversarial less the natural activation; NaN for a class without images."""
        return self.change_sum / self.count.unsqueeze(1)

    @property
    def change_variance(self) -> Float[Tensor, "k c"]:
        """Variance over the images of the change, with n - 1 in the denominator; NaN for fewer than two images."""
        n = self.count.unsqueeze(1)
        return (self.change_square_sum - n * self.change.square()).clamp_min(0) / (n - 1)

    @property
    def silenced(self) -> Float[Tensor, "k c"]:
        """Share of a class's images on which the channel is active as they are and no longer under attack."""
        return self.silenced_sum / self.count.unsqueeze(1)

    @property
    def awakened(self) -> Float[Tensor, "k c"]:
        """Share of a class's images on which the channel is active under attack alone."""
        return self.awakened_sum / self.count.unsqueeze(1)


def active(a: Float[Tensor, "n c"], threshold: float) -> Bool[Tensor, "n c"]:
    """Tell which channels exceed a share of the image's largest one."""
    return a > threshold * a.amax(1, keepdim=True)


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
