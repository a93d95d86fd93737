"""Edges: through which channel of a layer does the damage reach which channel of a later one?

Along the path on which a layer's features Z come back (see ``study.account``), with U the features
of a later layer:

    E(v)_ij = sum over positions of  integral_0^1  v_j  (dU_j / dZ_i) (Z - Z')_i  dt

With v = dm / dU the sum over j is the account A_i of the first layer, where nothing goes around the
second. With v = s, the mean of dm / dU along the straight path on which U comes back, the sum over
i is the account A_j of the second, less what masks of gates in between contribute: these are held,
and come back for themselves. Where the margin is linear in U, as at the penultimate layer, both are
the same. Elsewhere U does not come back on a straight path while Z does. The edges are then the
mean of both, moved as little as it takes to have both sums:

    minimise  sum_ij (E_ij - M_ij)^2 / |M_ij|,  M = (E(dm / dU) + E(s)) / 2,
    subject to  sum_j E_ij = sum_j E(dm / dU)_ij  and  sum_i E_ij = sum_i E(s)_ij

where masks have a row of the table (Deming & Stephan, Annals of Mathematical Statistics 11, 1940,
adjust tables of counts so). Where something goes around the second layer, no table has both sums,
and each is missed by as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from channelscope.analyses.base import ACCOUNT, RANDOM, Edges, LayerEdges
from channelscope.attacks import make_generators
from channelscope.distributed import barrier
from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.channels import summed
from channelscope.layers.features import capture
from channelscope.layers.hooks import eval_mode, get_parameter
from channelscope.study.account import (
    Account,
    Features,
    Pairs,
    Path,
    Tail,
    capture_masks,
    capture_pairs,
    compute_margins,
    integrate,
    pair_images,
)
from channelscope.study.damage import DamageMeasurer
from channelscope.study.evaluation import Progress
from channelscope.study.measuring import to_array
from channelscope.study.seeding import seed_globally
from channelscope.study.store import Rows, RunFolder, Spec, digest_of, row_bytes

_STEPS = 16  # midpoints of the path
_SLOPES = 64  # of the path of the second layer, which takes one backward pass a point
CUTS = (0.01, 0.05, 0.125)  # shares of the edges that are cut


def trace_edges(
    path: Path, later: Path, steps: int = _STEPS
) -> tuple[Float[Tensor, "n c d"], Float[Tensor, "n d"]]:
    """Return the edges E (n, c, d) from the channels of a path's layer to those of a later one.

    Also return what the masks that the first path holds contribute to each channel of the later
    layer (n, d), which is 0 where there is none between the layers.

    Args:
        path, later: of the first layer and of the second.
        steps: midpoints at which the integrand is taken, each with a backward pass from the second
            layer to the first for each of its channels.

    Raises:
        UserError: for a second layer that is not behind the first.
    """
    n, network, second = len(path.pairs), path.tail.network, later.tail.layer
    axis, channels = later.features.axis, later.widths[0]
    rows = torch.arange(n, device=path.pairs.y.device)
    # One row more than the first layer has channels: that of the masks.
    table = path.pairs.damage.new_zeros(n, path.widths[0] + 1, channels)
    first_sums, mean = table.new_zeros(table.shape[:2]), _average_slope(later)
    for t in _list_midpoints(path, steps):
        points, changes = path.move(t, rows)
        with torch.enable_grad(), capture(network, second) as features:
            margins = path.compute_margins(points, rows)
        u = features[second]
        if not u.requires_grad:
            raise UserError(
                f"edges: layer {second!r} is not behind {path.tail.layer!r}: name layers in the "
                "order in which they run."
            )
        (slope,) = torch.autograd.grad(
            margins.sum(), u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        bring_back = partial(_bring_back, u, points, changes, path.features.axis)
        first_sums += bring_back(slope).to(table.dtype) / steps
        slope = (slope + mean) / 2
        for j in range(channels):
            only = torch.zeros_like(slope)
            only.select(axis, j).copy_(slope.select(axis, j))
            table[:, :, j] += bring_back(only).to(table.dtype) / steps
    second_sums = summed(mean * later.features.change, axis).to(table.dtype)
    table = balance(table, first_sums, second_sums)
    return table[:, :-1], table[:, -1]


def _bring_back(
    u: Tensor, points: Sequence[Tensor], changes: Sequence[Tensor], axis: int, slope: Tensor
) -> Float[Tensor, "n c"]:
    """Return what a layer's channels add to a slope of later features u, then what masks add."""
    gradients = torch.autograd.grad(
        u, points, slope, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    of_points = [gradient * change for gradient, change in zip(gradients, changes, strict=True)]
    of_masks = [product.flatten(1).sum(1, keepdim=True) for product in of_points[1:]]
    nothing = slope.new_zeros(len(slope), 1)
    return torch.cat([summed(of_points[0], axis), sum(of_masks, nothing)], 1)


def balance(
    table: Float[Tensor, "n c d"], rows: Float[Tensor, "n c"], columns: Float[Tensor, "n d"]
) -> Float[Tensor, "n c d"]:
    """Return the tables nearest to some that have given sums of rows and of columns.

        E_ij = M_ij + |M_ij| (a_i + b_j),    a, b such that the sums are those given

    is least squares, each entry weighed by 1 / |M_ij|: what is 0 stays 0.
    """
    weight = table.abs()
    sums = torch.cat([weight.sum(2), weight.sum(1)], 1)
    system = torch.diag_embed(sums)
    split = table.shape[1]
    system[:, :split, split:], system[:, split:, :split] = weight, weight.mT
    missing = torch.cat([rows - table.sum(2), columns - table.sum(1)], 1)[:, :, None]
    # On the CPU, as not every device has it.
    inverse = torch.linalg.pinv(system.cpu(), hermitian=True).to(system.device)
    a, b = (inverse @ missing).split([split, table.shape[2]], 1)
    return table + weight * (a + b.mT)


def _average_slope(path: Path) -> Float[Tensor, "n *features"]:
    """Return the mean gradient of the margin along a path, with respect to the layer's features."""
    rows = torch.arange(len(path.pairs), device=path.pairs.y.device)
    mean = torch.zeros_like(path.features.natural)
    for t in _list_midpoints(path, _SLOPES):
        points, _ = path.move(t, rows)
        margins = path.compute_margins(points, rows)
        mean += torch.autograd.grad(margins.sum(), points[0])[0] / _SLOPES
    return mean


def _list_midpoints(path: Path, steps: int) -> list[Float[Tensor, " n"]]:
    """Return the middle of each of the path's equal pieces, the same for all images."""
    damage = path.pairs.damage
    return [damage.new_full(damage.shape, (step + 0.5) / steps) for step in range(steps)]


@torch.no_grad()
def cut_edges(
    first: Tail,
    second: Tail,
    start: Features,
    end: Features,
    cut: Bool[Tensor, "n c d"],
) -> Float[Tensor, "n k"]:
    """Return the logits under attack with some edges cut.

    A channel j of the second layer is what it would be, were the channels i of the first whose
    edges to it are cut those of the natural image; the other channels are as they are under attack.

    Args:
        first, second: the network from either layer on, on adversarial images.
        start, end: features of the first layer, and of the second.
        cut: which edges, image by image.
    """
    rows = torch.arange(len(cut), device=cut.device)
    u = end.adversarial.clone()
    for j in cut.any((0, 1)).nonzero().flatten().tolist():
        with capture(first.network, second.layer) as features:
            first(start.mix(cut[:, :, j]), rows)
        u.select(end.axis, j).copy_(features[second.layer].select(end.axis, j))
    return second(u, rows)


@dataclass(eq=False, kw_only=True)
class EdgeTracer:
    """Traces the edges between consecutive measured layers of one network, and cuts them.

    Args:
        damager: knows the network, the images, the layers and the attack.
        count: how many of the images are attacked; of these, the broken ones have edges.
    """

    damager: DamageMeasurer
    count: int

    @property
    def spec(self) -> Spec:
        """What is kept of each image."""
        widths = self.damager.widths
        spec: dict[str, tuple[tuple[int, ...], str]] = {"broken": ((), "|u1")}
        for first, second in pairwise(widths):
            spec[f"edges/{first}/{second}"] = ((widths[first], widths[second]), "<f4")
            for name in ("rows", "columns", "masks"):
                spec[f"{name}/{first}/{second}"] = ((), "<f4")
            for order in (ACCOUNT, RANDOM):
                spec[f"gain/{order}/{first}/{second}"] = ((len(CUTS),), "<f4")
        return spec

    def count_bytes(self) -> int:
        """Return how much disk the edges take."""
        return self.count * row_bytes(self.spec) + 4 * len(self.damager.images)

    def run(self, folder: RunFolder, progress: Progress) -> Rows:
        """Trace this process's blocks of the images; wait for the other processes' rows."""
        damager, spec = self.damager, self.spec
        network, images = damager.model.network, damager.images
        progress.start(f"{damager.model.label}: edges")
        key = digest_of(damager.identity, sorted(spec.items()), self.count)
        place = damager.model.key(images.key), f"edges {key}"
        rows = folder.rows(len(images), spec, *place)
        missing = images.shard_blocks(np.arange(self.count), rows, progress)
        blocks = images.read_blocks([block for block, _ in missing], get_parameter(network))
        for (block, x, y), (_, turn) in zip(blocks, missing, strict=True):
            with seed_globally(x, images.seed), eval_mode(network), attached(network):
                x_adv = damager.make_adversarial(x, y, block.numpy())
                values = self._trace(pair_images(network, x, x_adv, y), block.numpy())
            rows.write(block.numpy(), values)
            progress.advance(turn)
        barrier()
        return rows

    def collect(self, rows: Rows) -> Edges:
        """Return what is kept as analyses take it."""
        arrays = {name: rows.array(name)[: self.count] for name in self.spec}
        layers = {
            pair: LayerEdges(
                edges=arrays["/".join(("edges", *pair))],
                row_error=arrays["/".join(("rows", *pair))],
                column_error=arrays["/".join(("columns", *pair))],
                masks=arrays["/".join(("masks", *pair))],
                gains={
                    order: arrays["/".join(("gain", order, *pair))] for order in (ACCOUNT, RANDOM)
                },
            )
            for pair in pairwise(self.damager.widths)
        }
        return Edges(arrays["broken"] != 0, CUTS, layers)

    def _trace(self, pairs: Pairs, rows: Int[ndarray, " b"]) -> dict[str, ndarray]:
        """Trace and cut the edges of a block of images, those that are broken."""
        network = self.damager.model.network
        values = {
            name: np.zeros((len(pairs), *shape), dtype)
            for name, (shape, dtype) in self.spec.items()
        }
        values["broken"] = to_array(pairs.broken)
        chosen = np.flatnonzero(values["broken"])
        if not len(chosen):
            return values
        part = pairs.select(pairs.broken)
        layers = capture_pairs(network, list(self.damager.widths), part)
        tails = {
            layer: Tail(network, layer, part.x_adv, features.adversarial, part.adversarial)
            for layer, features in layers.items()
        }
        for pair in pairwise(layers):
            traced = self._trace_pair(
                [tails[layer] for layer in pair], [layers[layer] for layer in pair], part
            )
            traced |= self._cut(
                [tails[layer] for layer in pair],
                [layers[layer] for layer in pair],
                part,
                traced["edges"],
                rows[chosen],
            )
            for name, value in traced.items():
                values["/".join((name, *pair))][chosen] = to_array(value)
        return values

    def _trace_pair(
        self, tails: Sequence[Tail], features: Sequence[Features], pairs: Pairs
    ) -> dict[str, Tensor]:
        """Trace the edges between two layers; compare their margins with the layers' accounts."""
        path, later = (
            Path(tail, pairs, ends, capture_masks(tail.network, tail.layer, pairs))
            for tail, ends in zip(tails, features, strict=True)
        )
        edges, of_masks = trace_edges(path, later)
        account = self._account(tails[1], pairs, features[1])
        return {
            "edges": edges,
            "rows": _compare(edges.sum(2), integrate(path)),
            "columns": _compare(edges.sum(1) + of_masks, account),
            "masks": of_masks.sum(1) / pairs.damage,
        }

    def _account(self, tail: Tail, pairs: Pairs, features: Features) -> Account:
        accounts = self.damager.make_accounts(tail, pairs, features)
        return accounts["held" if "held" in accounts else "attached"]

    def _cut(
        self,
        tails: Sequence[Tail],
        features: Sequence[Features],
        pairs: Pairs,
        edges: Float[Tensor, "n c d"],
        rows: Int[ndarray, " b"],
    ) -> dict[str, Tensor]:
        """Cut the edges of most damage, and as many random ones; return what margin is regained."""
        seed = self.damager.images.seed
        generators = make_generators(seed, f"random edges of {tails[0].layer}", rows.tolist())
        draws = [
            torch.rand(edges.shape[1:], generator=one, device="cpu") for one in generators.each
        ]
        worths = {ACCOUNT: edges, RANDOM: torch.stack(draws).to(edges.device)}
        attacked = pairs.margin - pairs.damage
        gains = {}
        for order, worth in worths.items():
            ranked = worth.flatten(1).argsort(dim=1, descending=True, stable=True)
            points = []
            for share in CUTS:
                count = max(1, round(share * ranked.shape[1]))
                cut = torch.zeros_like(ranked, dtype=torch.bool)
                cut = cut.scatter_(1, ranked[:, :count], True).view(edges.shape)
                logits = cut_edges(tails[0], tails[1], features[0], features[1], cut)
                margins = compute_margins(logits, pairs.y, pairs.rivals)
                points.append((margins - attacked) / pairs.damage)
            gains[f"gain/{order}"] = torch.stack(points, 1)
        return gains


def _compare(sums: Float[Tensor, "n c"], account: Account) -> Float[Tensor, " n"]:
    """Return how far sums over edges are from an account, a share of what it has."""
    return (sums - account.channels).abs().sum(1) / account.channels.abs().sum(1)
