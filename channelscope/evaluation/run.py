"""One network against its attacks: which images stand, block by block, going on where an earlier run was stopped."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from channelscope.attacks import (
    Attack,
    NoGradient,
    attack_name,
    collect_warnings,
    find_correct,
    make_generators,
    stop_early,
)
from channelscope.attacks.suites import norm_of
from channelscope.data import Split, block_size, iterate_blocks
from channelscope.distributed import all_gather_words, all_reduce, shard, world_size
from channelscope.errors import UserError
from channelscope.evaluation.progress import Gallery, Progress
from channelscope.gates import attached
from channelscope.layers.hooks import eval_mode, get_logits
from channelscope.study.examined import seeded
from channelscope.study.masking import ROUNDING
from channelscope.study.models import get_parameter

_ROUNDING = 1e-6  # by which an image may leave the ball: its pixels are numbers of 32 bits


@dataclass(eq=False)
class Run:
    """One network under evaluation. Several processes share the blocks of images, and each ends with all outcomes.

    An attack gets the images that it is given in blocks (see ``data.blocks``): outcomes are the same for any batch size
    and number of processes, if each of these has as many threads, and also where a run was killed and goes on.

    An image that the network misclassifies as it is, or that a part of an attack has broken, is not given to (the other
    parts of) the attack: it is broken already.

    Args:
        index: the network's place among those under evaluation.
        network: any classifier of images in [0, 1], whose gates show their gradients.
        images: the images.
        batch_size: images that are read at a time.
        seed: of the attacks' random numbers; every image has its own, whatever its batch.
        progress: what is known from an earlier run, and where to note what is new.
        gallery: where to keep adversarial images; None for nowhere. Then every image is attacked to the end, broken or
            not, as images for an analysis have to be.
        advance: called with the number of images whose outcome is new, of several processes with that of all of them
            if they keep pace.
    """

    index: int
    network: nn.Module
    images: Split
    batch_size: int
    seed: int
    progress: Progress
    gallery: Gallery | None
    advance: Callable[[int], object]
    notes: dict[str, None] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    attacked: dict[tuple[str, str], int] = field(default_factory=dict)
    broken: dict[tuple[str, str], int] = field(default_factory=dict)

    @cached_property
    def is_random(self) -> bool:
        """Tell whether two forward passes on the same images differ by more than rounding."""
        like = get_parameter(self.network)
        x = next(self.images.batches(block_size(self.images), like.device))[0].to(like)
        with seeded(x, self.seed), eval_mode(self.network), torch.no_grad():
            one, other = (get_logits(self.network(x)) for _ in range(2))
        return bool((one - other).abs().max() > ROUNDING * (one.amax() - one.amin()))

    def natural(self) -> Bool[Tensor, " n"]:
        """Tell which images are classified correctly as they are."""
        everything = torch.ones(len(self.images), dtype=torch.bool)
        return self._met("natural", "natural", everything, lambda x, _y, _rows: x)

    def under(
        self, attack: Attack, given: Bool[Tensor, " n"], name: str | None = None
    ) -> Bool[Tensor, " n"]:
        """Tell which of the given images stand an attack, which goes by its own name or this; others do not stand."""
        name, stood = name or attack_name(attack), given
        if self.gallery is not None:
            self._forget_damaged(name)
            everything = torch.ones_like(given)
            return given & self._met(
                name, name, everything, self._made_by(attack, name, self._kept(name))
            )
        for part in getattr(attack, "parts", (attack,)):
            # An image that a random network errs on once is not broken yet.
            made = self._made_by(part if self.is_random else stop_early(part), attack_name(part))
            stood = stood & self._met(name, attack_name(part), stood, made)
        return stood

    def _made_by(
        self, attack: Attack, name: str, keep: Callable[[list[int], Tensor], None] | None = None
    ) -> Callable[[Tensor, Tensor, list[int]], Tensor]:
        def make(x: Tensor, y: Tensor, rows: list[int]) -> Tensor:
            try:
                x_adv = attack(self.network, x, y, make_generators(self.seed, name, rows))
            except (
                NoGradient
            ) as error:  # the others go on: an attack that asks for no gradient may break it
                self.said.add(f"{name} could not be made: {error}")
                x_adv = x
            _check_ball(attack, name, x, x_adv)
            if keep is not None:
                keep(rows, x_adv)
            return x_adv

        return make

    def _forget_damaged(self, name: str) -> None:
        """Forget what an attack has done, where one of its images is not on disk as it was written.

        All is made again, in the same batches, so that it comes out the same.
        """
        assert self.gallery is not None
        known, whole = (
            self.progress.met[self.index, name, name],
            self.gallery.whole(self.index, name),
        )
        if not all(whole[row] for row in known):
            known.clear()

    def _kept(self, name: str) -> Callable[[list[int], Tensor], None]:
        def keep(rows: list[int], x: Tensor) -> None:
            assert self.gallery is not None
            self.gallery.keep(self.index, name, rows, x)

        return keep

    def _met(
        self,
        attack: str,
        part: str,
        given: Bool[Tensor, " n"],
        make: Callable[[Tensor, Tensor, list[int]], Tensor],
    ) -> Bool[Tensor, " n"]:
        """Let the given images meet a part of an attack, this process's blocks of them here; tell which stood."""
        key, n, like = (self.index, attack, part), len(given), get_parameter(self.network)
        known = self.progress.met[key]
        wanted = given.nonzero().flatten().split(block_size(self.images))
        turns = [
            sum(map(len, wanted[first : first + world_size()]))
            for first in range(0, len(wanted), world_size())
        ]
        own = [
            (rows, turn)
            for rows, turn in zip(shard(wanted), turns, strict=False)
            if not known.keys() >= set(rows.tolist())
        ]
        self.advance(n - sum(turn for _, turn in own))
        blocks = iterate_blocks(
            self.images, [rows for rows, _ in own], self.batch_size, like.device
        )
        for (rows, x, y), (_, turn) in zip(blocks, own, strict=True):
            x = x.to(like)
            with (
                seeded(x, self.seed),
                eval_mode(self.network),
                attached(self.network),
                collect_warnings() as found,
            ):
                stood = find_correct(self.network, make(x, y, rows.tolist()), y)
            self.said |= {f"{part}: {words}" for words in found}
            self.progress.record(key, rows.tolist(), stood.tolist())
            self.advance(turn)
        self.notes |= dict.fromkeys(sorted(all_gather_words(self.said)))
        self.said.clear()
        outcome = torch.zeros(n, dtype=torch.int64)
        for rows in shard(wanted):
            outcome[rows] = torch.tensor(
                [known[index] for index in rows.tolist()], dtype=torch.int64
            )
        stands = all_reduce(outcome).bool()
        self.attacked[attack, part] = int(given.sum())
        self.broken[attack, part] = int((given & ~stands).sum())
        return stands


def _check_ball(attack: Attack, name: str, x: Tensor, x_adv: Tensor) -> None:
    """Refuse images that are not the attack's to make."""
    if x_adv.shape != x.shape or not x_adv.isfinite().all() or x_adv.min() < 0 or x_adv.max() > 1:
        raise UserError(
            f"The attack {name} gives images outside [0, 1], or of another shape: its result says nothing."
        )
    delta = (x_adv.to(torch.float64) - x.to(torch.float64)).flatten(1)
    distance = float(delta.abs().max() if norm_of(attack) == "inf" else delta.norm(dim=1).max())
    if distance > attack.eps + _ROUNDING:
        raise UserError(
            f"The attack {name} leaves its ball ({distance:.6f} > eps {attack.eps:.6f}): mend the attack."
        )
