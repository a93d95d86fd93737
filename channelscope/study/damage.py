"""An attack's damage through one network: the account of each layer, and what repairs it.

The account (``study.account``) says which channels do the damage. Whether that is true is tested by
putting channels back: *repair* puts natural values of some channels into the adversarial run,
*harm* adversarial ones into the natural run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from channelscope.analyses.base import ACCOUNT, RANDOM, ChannelAccount, Damage, DamagedLayer, Masks
from channelscope.attacks import (
    AttackLike,
    attack_name,
    find_correct,
    is_correct,
    make_generators,
)
from channelscope.attacks.folding import run_folded
from channelscope.distributed import barrier
from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter, hooked
from channelscope.layers.penultimate import LastLayer
from channelscope.scorers import Scorer
from channelscope.study.account import (
    BOUND,
    Account,
    Features,
    Pairs,
    Path,
    Tail,
    capture_masks,
    capture_pairs,
    integrate,
    pair_images,
    weigh_channels,
)
from channelscope.study.evaluation import Images, Progress, identify_attack
from channelscope.study.measuring import Layers, Scores, to_array
from channelscope.study.models import Model
from channelscope.study.seeding import seed_globally
from channelscope.study.store import Rows, RunFolder, Spec, digest_of, row_bytes

Curve = Literal["repair", "harm", "adaptive"]
_EXACT = 1e-3  # completeness error of the last layer's weights, which rounding alone makes


@dataclass(frozen=True, kw_only=True)
class Repair:
    """How damage is accounted for and repaired; see ``channelscope.damage``.

    Args:
        fractions: of a layer's channels, in (0, 1): the points of the curves beside all channels.
        adaptive: attack anew the network in which channels are put back.
        bound: of the completeness error of an image's account, in (0, 1).
        edges: number of images on which the edges between layers are traced; 0 for none.
    """

    fractions: Sequence[float] = (0.0625, 0.125, 0.25, 0.5)
    adaptive: bool = False
    bound: float = BOUND
    edges: int = 0

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise UserError(
                f"fractions: {list(self.fractions)} is no list of shares between 0 and 1, such as "
                "0.125."
            )
        if self.edges < 0:
            raise UserError(f"edges: {self.edges} is no number of images: use 0 for no edges.")
        if not 0 < self.bound < 1:
            raise UserError(
                f"bound: {self.bound} does not lie between 0 and 1: use 0.02 for accounts that add "
                "up to 2 % of the damage."
            )

    def count_channels(self, channels: int) -> tuple[int, ...]:
        """Return how many of a layer's channels are put back at each point, all of them last."""
        some = (max(1, round(fraction * channels)) for fraction in self.fractions)
        return tuple(sorted({channels, *some}))


class Restored(nn.Module):
    """A network some of whose channels have, image by image, their values of natural images.

    An attack may leave out images, or change their order: an image is that which it is nearest to.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        restored: Bool[Tensor, "n c"],
        pairs: Pairs,
        features: Features,
    ) -> None:
        super().__init__()
        self.network, self.layer = network, layer
        self.natural, self.features, self.restored = pairs.x.flatten(1), features, restored

    def forward(self, x: Float[Tensor, "n *image"]) -> Float[Tensor, "n k"]:
        """Return the logits."""
        rows = torch.cdist(x.detach().flatten(1), self.natural).argmin(1)
        features, restored = self.features.select(rows), self.restored[rows]

        def edit(z: Tensor) -> Tensor:
            return dataclasses.replace(features, adversarial=z).mix(restored)

        with hooked(self.network, {self.layer: edit}):
            return get_logits(self.network(x))


@dataclass(eq=False, kw_only=True)
class DamageMeasurer:
    """Attacks one network, accounts for the damage layer by layer, and repairs it.

    Only images that are right as they are and wrong under the attack have an account. Gates are
    attached throughout. Kept are, image by image, the answer and the activations under attack, the
    accounts, and which repairs make the image right.

    Args:
        model, images, layers: as in ``Measurer``.
        attack: does the damage.
        repair: how it is accounted for and repaired.
        scorers: relevance scorers by name, whose rankings are tried as the account's is.
    """

    model: Model
    images: Images
    layers: Layers
    attack: AttackLike
    repair: Repair
    scorers: Mapping[str, Scorer]
    digests: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def _last(self) -> LastLayer | None:
        if not self.layers.penultimate:
            return None
        return LastLayer.find(self.model.network, self.layers.few)

    @cached_property
    def widths(self) -> dict[str, int]:
        """The number of channels of each layer."""
        network = self.model.network
        with (
            eval_mode(network),
            torch.no_grad(),
            capture_activations(network, *self.layers.names) as few,
        ):
            network(self.layers.few)
        return {name: few[name].shape[1] for name in self.layers.names}

    @cached_property
    def _masks(self) -> dict[str, dict[str, int]]:
        """Layer -> the gates behind it, each with the number of its mask's channels."""
        network, few = self.model.network, self.layers.few
        y = torch.zeros(len(few), dtype=torch.long, device=few.device)
        with eval_mode(network):
            pairs = pair_images(network, few, few, y)
            return {
                layer: {
                    gate: natural.shape[1]
                    for gate, (natural, _) in capture_masks(network, layer, pairs).items()
                }
                for layer in self.layers.names
            }

    def _list_accounts(self, layer: str) -> tuple[Masks, ...]:
        return get_args(Masks) if self._masks[layer] else ("attached",)

    def _list_curves(self, ranking: str) -> list[Curve]:
        return [*get_args(Curve)][: 3 if ranking == ACCOUNT and self.repair.adaptive else 2]

    @property
    def spec(self) -> Spec:
        """What is kept of each image."""
        spec: dict[str, tuple[tuple[int, ...], str]] = {
            "answers": ((), "<i4"),
            "broken": ((), "|u1"),
            "rivals": ((), "<i4"),
            "damage": ((), "<f8"),
            "margin": ((), "<f8"),
        }
        for layer, width in self.widths.items():
            spec[f"activations/{layer}"] = ((width,), "<f4")
            for masks in self._list_accounts(layer):
                spec |= {f"{masks}/{name}/{layer}": ((), "<f4") for name in ("error", "passing")}
                spec[f"{masks}/channels/{layer}"] = ((width,), "<f4")
            for gate, channels in self._masks[layer].items():
                spec[f"held/mask {gate}/{layer}"] = ((channels,), "<f4")
            points = len(self.repair.count_channels(width))
            for ranking in (ACCOUNT, RANDOM, *self.scorers):
                for curve in self._list_curves(ranking):
                    spec[f"{curve}/{ranking}/{layer}"] = ((points,), "|u1")
        return spec

    @property
    def identity(self) -> str:
        """A text that is the same for the same adversarial images of the same layers."""
        attack = identify_attack(self.attack, self.digests)
        return digest_of(attack, self.images.seed, self.layers.penultimate)

    def make_adversarial(
        self, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"], rows: Int[ndarray, " b"]
    ) -> Float[Tensor, "b *image"]:
        """Attack a block of images."""
        generators = make_generators(self.images.seed, attack_name(self.attack), rows.tolist())
        return self.attack(self.model.network, x, y, generators)

    def count_bytes(self) -> int:
        """Return how much disk an image takes."""
        return row_bytes(self.spec) + 4

    def run(self, scores: Scores | None, folder: RunFolder, progress: Progress) -> Rows:
        """Measure this process's blocks of all images; wait for the other processes' rows.

        Args:
            scores: the relevance by the scorers; None without any.
            folder: where it is kept.
            progress: is told of images that are done.
        """
        name = attack_name(self.attack)
        progress.start(f"{self.model.label}: damage of {name}")
        spec = self.spec
        scorers = [identify_attack(scorer, {}) for scorer in self.scorers.values()]
        key = digest_of(self.identity, scorers, sorted(spec.items()), self.repair.bound)
        place = self.model.key(self.images.key), f"damage {name} {key}"
        rows = folder.rows(len(self.images), spec, *place)
        missing = self.images.shard_blocks(np.arange(len(self.images)), rows, progress)
        network = self.model.network
        blocks = self.images.read_blocks([block for block, _ in missing], get_parameter(network))
        for (block, x, y), (_, turn) in zip(blocks, missing, strict=True):
            with seed_globally(x, self.images.seed), eval_mode(network), attached(network):
                values = self._measure(x, y, block.numpy(), scores)
            rows.write(block.numpy(), values)
            progress.advance(turn)
        barrier()
        return rows

    def collect(self, rows: Rows, scores: Scores | None) -> Damage:
        """Return what is kept as analyses take it; scorers that refuse a layer have no curve."""
        refused = scores.refused if scores else {}
        layers = {}
        for layer, width in self.widths.items():
            accounts = {}
            for masks in self._list_accounts(layer):
                gates = self._masks[layer] if masks == "held" else ()
                accounts[masks] = ChannelAccount(
                    channels=rows.array(f"{masks}/channels/{layer}"),
                    masks={gate: rows.array(f"held/mask {gate}/{layer}") for gate in gates},
                    passing=rows.array(f"{masks}/passing/{layer}"),
                    error=rows.array(f"{masks}/error/{layer}"),
                )
            curves: dict[tuple[str, str], ndarray] = {
                (ranking, curve): rows.array(f"{curve}/{ranking}/{layer}") != 0
                for ranking in (ACCOUNT, RANDOM, *self.scorers)
                if (ranking, layer) not in refused
                for curve in self._list_curves(ranking)
            }
            layers[layer] = DamagedLayer(accounts, self.repair.count_channels(width), curves)
        return Damage(
            broken=rows.array("broken") != 0,
            rivals=rows.array("rivals").astype(np.int64),
            amount=rows.array("damage"),
            margin=rows.array("margin"),
            layers=layers,
        )

    def _measure(
        self, x: Tensor, y: Tensor, rows: Int[ndarray, " b"], scores: Scores | None
    ) -> dict[str, ndarray]:
        """Attack a block of images, account for the damage, repair it."""
        network = self.model.network
        x_adv = self.make_adversarial(x, y, rows)

        def work(layout: torch.memory_format) -> dict[str, ndarray]:
            natural, adversarial = (tensor.to(memory_format=layout) for tensor in (x, x_adv))
            return self._account(pair_images(network, natural, adversarial, y), rows, scores)

        return run_folded(network, x, work)

    def _account(
        self, pairs: Pairs, rows: Int[ndarray, " b"], scores: Scores | None
    ) -> dict[str, ndarray]:
        network, broken = self.model.network, pairs.broken
        values = {
            name: np.zeros((len(pairs), *shape), dtype)
            for name, (shape, dtype) in self.spec.items()
        }
        values["answers"] = to_array(pairs.adversarial.argmax(1))
        values["broken"] = to_array(broken)
        values["rivals"] = to_array(pairs.rivals)
        values["damage"] = pairs.damage.cpu().numpy()
        values["margin"] = pairs.margin.cpu().numpy()
        chosen = np.flatnonzero(values["broken"])
        part, part_rows = pairs.select(broken), rows[chosen]
        for layer, of_all in capture_pairs(network, self.layers.names, pairs).items():
            values[f"activations/{layer}"] = to_array(of_all.pool()[1])
            if not len(chosen):
                continue
            features = of_all.select(broken)
            tail = Tail(network, layer, part.x_adv, features.adversarial, part.adversarial)
            accounts = self.make_accounts(tail, part, features)
            orders = self._order_channels(layer, accounts, part_rows, scores)
            parts = _list_columns(accounts)
            parts |= self._restore(tail, part, features, orders, part_rows)
            for name, value in parts.items():
                values[f"{name}/{layer}"][chosen] = to_array(value)
        return values

    def _restore(
        self,
        tail: Tail,
        pairs: Pairs,
        features: Features,
        orders: Mapping[str, Int[Tensor, "b c"]],
        rows: Int[ndarray, " b"],
    ) -> dict[str, Bool[Tensor, "b p"]]:
        """Put channels back in several orders; return which images are right at each point."""
        network, layer, values = self.model.network, tail.layer, dict[str, Tensor]()
        natural = Tail(network, layer, pairs.x, features.natural, pairs.natural)
        all_repaired = _are_right(tail, features.natural, pairs)
        all_harmed = _are_right(natural, features.adversarial, pairs)
        for ranking, order in orders.items():
            tops = [
                torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
                for count in self.repair.count_channels(order.shape[1])
            ]
            repaired = [_are_right(tail, features.mix(top), pairs) for top in tops[:-1]]
            repaired.append(all_repaired)
            harmed = [_are_right(natural, features.mix(~top), pairs) for top in tops[:-1]]
            values[f"repair/{ranking}"] = torch.stack(repaired, 1)
            values[f"harm/{ranking}"] = torch.stack([*harmed, all_harmed], 1)
            if "adaptive" in self._list_curves(ranking):
                networks = [Restored(network, layer, top, pairs, features) for top in tops]
                withstood = [
                    right & self._withstand(restored, pairs, rows)
                    for restored, right in zip(networks, repaired, strict=True)
                ]
                values[f"adaptive/{ranking}"] = torch.stack(withstood, 1)
        return values

    def make_accounts(self, tail: Tail, pairs: Pairs, features: Features) -> dict[Masks, Account]:
        """Return the accounts of broken images, through gates and with their masks held."""
        bound = self.repair.bound
        if self._last is not None and tail.layer in self._last.inputs:
            exact = weigh_channels(self._last, pairs, features)
            # A ReLU behind the layer that natural images pass unchanged is not seen on them.
            if bool((exact.error <= _EXACT).all()):
                return {"attached": exact}
        accounts: dict[Masks, Account] = {"attached": integrate(Path(tail, pairs, features), bound)}
        if self._masks[tail.layer]:
            masks = capture_masks(tail.network, tail.layer, pairs)
            accounts["held"] = integrate(Path(tail, pairs, features, masks), bound)
        return accounts

    def _order_channels(
        self,
        layer: str,
        accounts: Mapping[Masks, Account],
        rows: Int[ndarray, " b"],
        scores: Scores | None,
    ) -> dict[str, Int[Tensor, "b c"]]:
        """Return the order in which each image's channels are put back, by each ranking.

        By the account, what does most damage comes first; by a scorer, what is most relevant to the
        class of the natural image, for it or against it.
        """
        main = accounts["held" if "held" in accounts else "attached"].channels
        generators = make_generators(self.images.seed, f"random order of {layer}", rows.tolist())
        draws = [
            torch.rand(main.shape[1], generator=generator, device="cpu")
            for generator in generators.each
        ]
        worths = {ACCOUNT: main, RANDOM: torch.stack(draws).to(main.device)}
        for scorer in self.scorers:
            if scores is not None and (scorer, layer) not in scores.refused:
                worth = np.abs(scores.scores(scorer, layer)[rows])
                worths[scorer] = torch.from_numpy(worth).to(main.device)
        return {
            ranking: worth.argsort(dim=1, descending=True, stable=True)
            for ranking, worth in worths.items()
        }

    def _withstand(
        self, network: nn.Module, pairs: Pairs, rows: Int[ndarray, " b"]
    ) -> Bool[Tensor, " b"]:
        """Attack a network in which channels are put back; return which images withstand."""
        generators = make_generators(self.images.seed, attack_name(self.attack), rows.tolist())
        x_adv = self.attack(network, pairs.x, pairs.y, generators)
        return find_correct(network, x_adv, pairs.y)


def _list_columns(accounts: Mapping[Masks, Account]) -> dict[str, Tensor]:
    """Return what is kept of accounts, by name."""
    columns: dict[str, Tensor] = {}
    for masks, account in accounts.items():
        for name in ("channels", "passing", "error"):
            columns[f"{masks}/{name}"] = getattr(account, name)
        columns |= {f"{masks}/mask {gate}": mask for gate, mask in account.masks.items()}
    return columns


@torch.no_grad()
def _are_right(tail: Tail, features: Tensor, pairs: Pairs) -> Bool[Tensor, " b"]:
    rows = torch.arange(len(pairs), device=pairs.y.device)
    return is_correct(tail(features, rows), pairs.y)
