"""The damage account: through which channels of a layer does an attack lower the margin?

With an image x, its adversarial image x', the label y, the wrong answer j and the margin
m = z_y - z_j, the damage is D = m(x) - m(x'). Z and Z' are a layer's features of x and x':

    A_c = sum over positions of  integral_0^1  d m(Z' + t (Z - Z')) / d Z_c  (Z - Z')_c  dt

The network runs on x', with the layer's features in place of its own: A_c is what putting channel c
back repairs, averaged along the straight path on which all come back together. It is integrated
gradients (Sundararajan, Taly & Yan, ICML 2017, arXiv 1703.01365) from features to features, so A_c
adds up: over the channels it is m(Z) - m(Z'), which is D where nothing goes around the layer. At
the penultimate layer the gradient is the last linear layer's weight W, and no integral is needed:

    A_c = (W_y - W_j)_c (a_c - a'_c),    a, a' the activations (spatial means)
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from channelscope.attacks import is_correct
from channelscope.devices import widen
from channelscope.gates import Selective, hold_masks
from channelscope.layers.channels import channel_axis, summed
from channelscope.layers.features import capture, pool_features
from channelscope.layers.hooks import Edit, get_logits, hooked
from channelscope.layers.penultimate import LastLayer

BOUND = 0.02  # of the completeness error
MOST = 129  # points of a path, at most
_STEPS = 8  # pieces of a path to begin with
# A margin that jumps, as where a gate chooses other logits, is cut no finer than this share of the
# bound: the pieces of a continuous margin are within the bound before.
_SMALLEST = 1 / 64
_STRAIGHT = 1e-6  # of the damage: a piece with a smaller error has no kink
_SAME = 1e-4  # of the largest logit: by how much kernels may differ with the batch


@dataclass(frozen=True, eq=False)
class Pairs:
    """Natural images, and what an attack made of them.

    Args:
        x, x_adv: the images (n, ...).
        y: their labels (n,).
        rivals: the classes (n,) that margins are taken against.
        natural, adversarial: the logits (n, k) of both.
    """

    x: Float[Tensor, "n *image"]
    x_adv: Float[Tensor, "n *image"]
    y: Int[Tensor, " n"]
    rivals: Int[Tensor, " n"]
    natural: Float[Tensor, "n k"]
    adversarial: Float[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def damage(self) -> Float[Tensor, " n"]:
        """The fall of each margin, D = m(x) - m(x')."""
        return self.margin - compute_margins(self.adversarial, self.y, self.rivals)

    @property
    def margin(self) -> Float[Tensor, " n"]:
        """The margin m(x) of each natural image."""
        return compute_margins(self.natural, self.y, self.rivals)

    @property
    def broken(self) -> Bool[Tensor, " n"]:
        """Which images are right as they are and wrong under attack."""
        return is_correct(self.natural, self.y) & ~is_correct(self.adversarial, self.y)

    def select(self, rows: Tensor) -> Self:
        """Return some of the images."""
        columns = (getattr(self, column.name)[rows] for column in dataclasses.fields(self))
        return type(self)(*columns)


@torch.no_grad()
def pair_images(
    network: nn.Module,
    x: Float[Tensor, "n *image"],
    x_adv: Float[Tensor, "n *image"],
    y: Int[Tensor, " n"],
) -> Pairs:
    """Pair images with adversarial ones; the rival is the largest wrong logit under attack."""
    natural, adversarial = (get_logits(network(images)) for images in (x, x_adv))
    rivals = adversarial.scatter(1, y[:, None], -torch.inf).argmax(1)
    return Pairs(x, x_adv, y, rivals, natural, adversarial)


def compute_margins(
    logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], rivals: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return z_y - z_j, an image a row, in 64 bits."""
    chosen = widen(logits).gather(1, torch.stack([y, rivals], 1))
    return chosen[:, 0] - chosen[:, 1]


@dataclass(frozen=True, eq=False)
class Features:
    """A layer's features of natural images and of their adversarial ones; the channels' axis."""

    natural: Float[Tensor, "n *features"]
    adversarial: Float[Tensor, "n *features"]
    axis: int

    @property
    def change(self) -> Float[Tensor, "n *features"]:
        """What comes back along the path, Z - Z'."""
        return self.natural - self.adversarial

    def select(self, rows: Tensor) -> Self:
        """Return those of some of the images."""
        return type(self)(self.natural[rows], self.adversarial[rows], self.axis)

    def pool(self) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Return the activations, natural and adversarial."""
        return pool_features(self.natural, self.axis), pool_features(self.adversarial, self.axis)

    def mix(self, restored: Tensor) -> Float[Tensor, "n *features"]:
        """Return the adversarial features with some channels (n, c) of the natural ones."""
        shape = [1] * self.natural.ndim
        shape[0], shape[self.axis] = restored.shape
        return torch.where(restored.view(shape), self.natural, self.adversarial)


@torch.no_grad()
def capture_pairs(network: nn.Module, layers: Sequence[str], pairs: Pairs) -> dict[str, Features]:
    """Capture the features of layers, of natural images and of adversarial ones."""
    captured = []
    for images in (pairs.x, pairs.x_adv):
        with capture(network, *layers) as features:
            network(images)
        captured.append(dict(features))
    natural, adversarial = captured
    return {
        layer: Features(
            natural[layer],
            adversarial[layer],
            channel_axis(network, layer, natural[layer].shape),
        )
        for layer in layers
    }


@torch.no_grad()
def capture_masks(
    network: nn.Module, layer: str, pairs: Pairs
) -> dict[str, tuple[Float[Tensor, "n _"], Float[Tensor, "n _"]]]:
    """Return the masks, of natural and of adversarial images, of the gates behind a layer."""
    if not isinstance(network, Selective):
        return {}
    order: list[str] = []

    def note(name: str) -> Edit:
        return lambda _: order.append(name)

    names = [layer, *(f"{gate}.gated" for gate in network.gates)]
    with hooked(network, {name: note(name) for name in names}):
        network(pairs.x[:1])
    natural, adversarial = (network.probed(images).masks for images in (pairs.x, pairs.x_adv))
    behind = [name.removesuffix(".gated") for name in order[order.index(layer) + 1 :]]
    return {gate: (natural[gate], adversarial[gate]) for gate in behind if gate in natural}


@dataclass(frozen=True, eq=False)
class Account:
    """What each channel of a layer contributes to the damage, image by image.

    Args:
        channels: the contributions A (n, c).
        masks: where masks are held, gate -> what its mask contributes, by channel (n, _).
        passing: m(Z) - m(Z') (n,): the part of the damage that passes through the layer, all of it
            unless something goes around, as a skip connection does.
        error: the completeness error (n,), a share of the damage, see ``integrate``.
    """

    channels: Float[Tensor, "n c"]
    masks: Mapping[str, Float[Tensor, "n _"]]
    passing: Float[Tensor, " n"]
    error: Float[Tensor, " n"]


def weigh_channels(last: LastLayer, pairs: Pairs, features: Features) -> Account:
    """Return the account of a penultimate layer, which is exact: A = (W_y - W_j) (a - a')."""
    if last.weight is None:
        raise ValueError("the logits are no linear map of this layer")
    weight = widen(last.weight)
    natural, adversarial = (widen(a) for a in features.pool())
    channels = (weight[pairs.y] - weight[pairs.rivals]) * (natural - adversarial)
    error = (channels.sum(1) - pairs.damage).abs() / pairs.damage.abs()
    return Account(channels, {}, pairs.damage, error)


class Tail:
    """A network from a layer on: logits as a function of the layer's features.

    What comes before the layer runs on a single image where it makes no difference to the logits,
    which spares its time; else, as beside a skip connection, on all of them.

    Args:
        network: in eval mode, its parameters frozen.
        layer: its name.
        images: that the network runs on (n, ...).
        features, logits: that it has of these images, to find out whether one image is enough.
    """

    def __init__(
        self, network: nn.Module, layer: str, images: Tensor, features: Tensor, logits: Tensor
    ) -> None:
        self.network, self.layer, self.images = network, layer, images
        self._one_is_enough = True
        rows = torch.arange(len(images), device=images.device)
        try:
            with torch.no_grad():
                alone = self(features, rows)
        except Exception:  # of whatever kind the network's own code raises
            self._one_is_enough = False
        else:
            close = (alone - logits).abs().max() <= _SAME * logits.abs().max()
            self._one_is_enough = alone.shape == logits.shape and bool(close)

    def __call__(self, z: Tensor, rows: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return the logits for features z of some of the images."""
        chosen = rows[:1] if self._one_is_enough else rows
        # A clone, as an in-place ReLU that follows would change what gradients are taken of.
        with hooked(self.network, {self.layer: lambda _: z.clone()}):
            return get_logits(self.network(self.images[chosen]))


class Path:
    """The margin along the straight path from adversarial features to natural ones.

    Args:
        tail: the network from the layer on, on adversarial images.
        pairs, features: the images, and the layer's features of them.
        masks: gated layer -> its mask of natural and of adversarial images, to hold masks: they
            come back along the path as features do, for themselves. Else gates make their masks of
            what features they get.
    """

    def __init__(
        self,
        tail: Tail,
        pairs: Pairs,
        features: Features,
        masks: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.tail, self.pairs, self.features = tail, pairs, features
        self.masks = dict(masks or {})
        self._change = features.change

    @property
    def widths(self) -> list[int]:
        """The number of the layer's channels, then of each mask's."""
        masks = (natural.shape[1] for natural, _ in self.masks.values())
        return [self.features.natural.shape[self.features.axis], *masks]

    def evaluate(
        self, t: Float[Tensor, " b"], rows: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c"]]:
        """Return the margins at t of some images, and what each channel adds to the slope there.

        The channels are those of the layer, then those of the masks that are held.
        """
        points, changes = self.move(t, rows)
        margins = self.compute_margins(points, rows)
        gradients = torch.autograd.grad(
            margins.sum(), points, allow_unused=True, materialize_grads=True
        )
        axes = self.features.axis, *[1] * len(self.masks)
        slopes = [
            summed(gradient * step, axis)
            for gradient, step, axis in zip(gradients, changes, axes, strict=True)
        ]
        return margins.detach(), widen(torch.cat(slopes, 1))

    def move(
        self, t: Float[Tensor, " b"], rows: Int[Tensor, " b"]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return where some images are at t, as leaves of a graph, and what comes back of them.

        Both are of the layer's features, then of the masks that are held.
        """
        starts, changes = [self.features.adversarial[rows]], [self._change[rows]]
        for natural, adversarial in self.masks.values():
            starts.append(adversarial[rows])
            changes.append(natural[rows] - adversarial[rows])
        points = []
        for start, change in zip(starts, changes, strict=True):
            share = t.to(start.dtype).view(-1, *[1] * (start.ndim - 1))
            points.append((start + share * change).requires_grad_())
        return points, changes

    def compute_margins(
        self, points: Sequence[Tensor], rows: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Return the margins of some images at points that ``move`` returned, with their graph."""
        with torch.enable_grad(), self._hold(points[1:]):
            logits = self.tail(points[0], rows)
            return compute_margins(logits, self.pairs.y[rows], self.pairs.rivals[rows])

    @contextmanager
    def _hold(self, masks: Sequence[Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            network = self.tail.network
            if self.masks and isinstance(network, Selective):
                held = dict(zip(self.masks, masks, strict=True))
                stack.enter_context(hold_masks(network, held))
            yield


def integrate(path: Path, bound: float = BOUND, most: int = MOST) -> Account:
    """Integrate along a path, in pieces that are halved where the account does not add up.

    Of a piece of width h between points with slopes s, s' and contributions g, g' of the channels,
    margins m, m':

        error of the piece  =  |m' - m - h (s + s') / 2|
        A of the piece      =  h (w g + (1 - w) g'),    w s + (1 - w) s' = (m' - m) / h

    with w in [0, 1], as near as it gets, and 1/2 where s = s'. This is exact where the margin is
    linear but for one kink, as ReLU makes them. The completeness error of an image is the sum of
    its pieces' errors, none of which cancel, as a share of its damage: the account is short of
    less. Where half of an image's pieces are straight, it has few kinks, which are all found.

    Args:
        path: what is integrated along.
        bound: of the completeness error.
        most: points of an image's path, at most.
    """
    damage = path.pairs.damage.abs()
    rows = torch.arange(len(damage), device=damage.device)
    points = [
        path.evaluate(damage.new_full(damage.shape, k / _STEPS), rows) for k in range(_STEPS + 1)
    ]
    passing = points[-1][0] - points[0][0]
    width = damage.new_full(damage.shape, 1 / _STEPS)
    pieces = _Pieces.join(
        [
            _Pieces(rows, k * width, width, *start, *end)
            for k, (start, end) in enumerate(pairwise(points))
        ]
    )
    sums = damage.new_zeros(len(damage), points[0][1].shape[1])
    error = torch.zeros_like(damage)
    used = torch.full_like(rows, len(points))
    straight = (pieces.measure_errors() <= _STRAIGHT * damage[pieces.rows]).to(damage.dtype)
    has_few_kinks = torch.zeros_like(damage).index_add_(0, pieces.rows, straight) >= _STEPS / 2
    bounds = torch.where(has_few_kinks, min(_STRAIGHT, bound), bound)
    while len(pieces.rows):
        errors = pieces.measure_errors()
        of_image = torch.zeros_like(damage).index_add_(0, pieces.rows, errors)
        worst = torch.zeros_like(damage).scatter_reduce_(0, pieces.rows, errors, "amax")
        finest = worst.new_zeros(len(worst)).scatter_reduce_(
            0, pieces.rows, torch.where(errors >= worst[pieces.rows], pieces.width, 0), "amax"
        )
        is_done = (of_image <= bounds * damage) | (finest < _SMALLEST * bounds) | (used >= most)
        settled = pieces.select(is_done[pieces.rows])
        sums.index_add_(0, settled.rows, settled.integrate())
        error.index_add_(0, settled.rows, errors[is_done[pieces.rows]])
        pieces, errors = pieces.select(~is_done[pieces.rows]), errors[~is_done[pieces.rows]]
        split = errors >= worst[pieces.rows] / 2
        used.index_add_(0, pieces.rows[split], torch.ones_like(pieces.rows[split]))
        halves = pieces.select(split).halve(path) if split.any() else []
        pieces = _Pieces.join([pieces.select(~split), *halves])
    channels, *masks = sums.split(path.widths, 1)
    return Account(channels, dict(zip(path.masks, masks, strict=True)), passing, error / damage)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Pieces of paths, a row a piece: whose, where, and margins and slopes at both ends."""

    rows: Int[Tensor, " p"]
    start: Float[Tensor, " p"]
    width: Float[Tensor, " p"]
    margin: Float[Tensor, " p"]
    slopes: Float[Tensor, "p c"]
    next_margin: Float[Tensor, " p"]
    next_slopes: Float[Tensor, "p c"]

    @cached_property
    def rises(self) -> Float[Tensor, "2 p"]:
        """The rise of the margin, were the slope all along that of the start, of the end."""
        return torch.stack([self.slopes.sum(1), self.next_slopes.sum(1)]) * self.width

    @classmethod
    def join(cls, pieces: Iterable[Self]) -> Self:
        listed = [one._columns() for one in pieces]
        return cls(*(torch.cat(column) for column in zip(*listed, strict=True)))

    def select(self, chosen: Tensor) -> Self:
        return type(self)(*(column[chosen] for column in self._columns()))

    def _columns(self) -> list[Tensor]:
        return [getattr(self, column.name) for column in dataclasses.fields(self)]

    def measure_errors(self) -> Float[Tensor, " p"]:
        """Return by how much the trapezoidal rule misses each piece's rise of the margin."""
        return (self.next_margin - self.margin - self.rises.mean(0)).abs()

    def integrate(self) -> Float[Tensor, "p c"]:
        """Return each channel's contribution to each piece; see ``integrate``."""
        first, second = self.rises
        weight = (self.next_margin - self.margin - second) / (first - second)
        weight = weight.nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)[:, None]
        mean = weight * self.slopes + (1 - weight) * self.next_slopes
        return mean * self.width[:, None]

    def halve(self, path: Path) -> list[Self]:
        """Return the first halves and the second halves."""
        half = self.width / 2
        middle = self.start + half
        size = len(path.pairs)
        parts = [
            path.evaluate(t, rows)
            for t, rows in zip(middle.split(size), self.rows.split(size), strict=True)
        ]
        margin, slopes = (torch.cat(column) for column in zip(*parts, strict=True))
        return [
            dataclasses.replace(self, width=half, next_margin=margin, next_slopes=slopes),
            dataclasses.replace(self, start=middle, width=half, margin=margin, slopes=slopes),
        ]
