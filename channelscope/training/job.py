"""What a training run is to do; two runs of equal settings end with equal weights."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.attacks import PGD
from channelscope.data import Dataset, Split, sample_stratified
from channelscope.distributed import world_size
from channelscope.errors import UserError, suggest
from channelscope.files import check_writable
from channelscope.gates import KINDS
from channelscope.layers.features import capture
from channelscope.layers.hooks import named_layers
from channelscope.networks import Architecture
from channelscope.objectives import MART, TRADES, CrossEntropy, Joint, TrainingLoss
from channelscope.training.recipes import Recipe
from channelscope.weights import Checkpoint, Gate, build, versions, zoo

_PIXELS_OF = 50_000  # images are enough to know the pixels' mean and standard deviation


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Args:
        recipe: how to train.
        data: the images, with a training and a validation part.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random starts.
    """

    recipe: Recipe
    data: Dataset
    out: Path
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"A seed lies between 0 and {2**31 - 1}, not at {self.seed}.")
        zoo.check_target(self.out)
        check_writable(self.out)
        self.data.require_train()
        if self.data.val is None or not len(self.data.val):
            raise UserError(
                f"{self.data.name} has no validation images, by which the best epoch is chosen."
            )
        if self.recipe.data.crop >= min(self.data.image_size):
            raise UserError(
                f"A crop of {self.recipe.data.crop} pixels is too large for images of {self.data.image_size}."
            )
        if self.recipe.attack.tau and self.recipe.loss.kind == "trades":
            raise UserError(
                "TRADES compares every image with its natural answer to the end: leave attack.tau empty."
            )
        if self.recipe.optimizer.batch_size % world_size():
            raise UserError(
                f"{self.recipe.optimizer.batch_size} images of a step cannot be shared by {world_size()} processes: choose a "
                "batch size that is a multiple of their number."
            )
        if len(self.val) < world_size():
            raise UserError(
                f"{len(self.val)} validation images are too few for {world_size()} processes: start fewer."
            )

    @cached_property
    def train(self) -> Split:
        return self.data.require_train()

    @property
    def val(self) -> Split:
        assert self.data.val is not None  # checked on construction
        return self.data.val

    @property
    def adversarial(self) -> bool:
        """Tell whether the network is trained on adversarial images."""
        return self.recipe.loss.kind != "natural"

    @cached_property
    def architecture(self) -> Architecture:
        """The backbone, normalising by the training part's mean and standard deviation."""
        mean, std = _moments(self.train)
        return Architecture(
            arch=self.recipe.model.arch,
            width=self.recipe.model.width,
            classes=len(self.data.classes),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
        )

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """The gates: probes are counted from the last layer back, and the first stands for all before it."""
        wanted = self.recipe.gates
        if wanted.kind == "none":
            return ()
        if wanted.kind not in KINDS:
            known = ["none", *KINDS]
            raise UserError(
                f"There are no gates {wanted.kind!r}: choose from {', '.join(known)}.{suggest(wanted.kind, known)}"
            )
        shapes = self._shapes(wanted.layers)
        missing = max(0, len(shapes) - len(wanted.probes))
        probes = [*wanted.probes[:1] * missing, *wanted.probes][-len(shapes) :]
        gates = tuple(
            Gate(
                layer=layer,
                channels=shape[1],
                kind=wanted.kind,
                options=_of_layer(wanted.kind, shape, probe) | wanted.options,
            )
            for (layer, shape), probe in zip_longest(shapes.items(), probes)
        )
        with torch.device("meta"):  # a gate that does not suit its layer says so now
            build(self.architecture, gates).eval()(self._image)
        return gates

    def _shapes(self, patterns: Sequence[str]) -> dict[str, torch.Size]:
        """Look up the gated layers and the shapes of their features, without computing them."""
        architecture = self.architecture  # its mean and standard deviation are of real images
        with torch.device("meta"):
            network = architecture.build().eval()
            layers = _matching(patterns, network) if patterns else architecture.last_stage
            with capture(network, *layers) as features:
                network(self._image)
        return {layer: features[layer].shape for layer in layers}

    @property
    def _image(self) -> Tensor:
        return torch.empty(1, self.data.channels, *self.data.image_size, device="meta")

    @property
    def loss(self) -> TrainingLoss:
        """What is minimised."""
        loss, gates = self.recipe.loss, self.recipe.gates
        shared: dict[str, Any] = {"smoothing": loss.smoothing}
        if gates.kind != "none":
            shared |= {
                "beta": gates.beta,
                "scaled": gates.scaled,
                "beta_atk": self.recipe.attack.beta_atk,
            }
        match loss.kind:
            case "trades":
                return TRADES(trade_off=loss.trade_off, **shared)
            case "mart":
                return MART(trade_off=loss.trade_off, **shared)
            case _:
                return CrossEntropy(**shared)

    def attack_at(self, epoch: int) -> PGD:
        """The attack on training images in an epoch, counted from 0; its objective is the loss's affair."""
        attack = self.recipe.attack
        tau = attack.tau_at(epoch, self.recipe.schedule.epochs)
        return PGD(
            eps=attack.eps,
            step=attack.step,
            steps=attack.steps,
            random_start=attack.start,
            early_stop=tau,
        )

    @property
    def validation_attack(self) -> PGD:
        """The attack on validation images: to the end, from anywhere in the ball."""
        attack = self.recipe.attack
        objective = Joint(attack.beta_atk) if self.gates else Joint()
        return PGD(eps=attack.eps, step=attack.step, steps=attack.steps, objective=objective)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be the same for an interrupted run to go on."""
        data = {
            "name": self.data.name,
            "train": self.train.fingerprint(),
            "val": self.val.fingerprint(),
        }
        return {"recipe": self.recipe.values(), "data": data, "seed": self.seed}

    def checkpoint(self, state: dict[str, Tensor], history: list[dict[str, Any]]) -> Checkpoint:
        """Describe the network of some weights, those of the best epoch so far."""
        best = next((row for row in history if row["best"]), {})
        return Checkpoint(
            architecture=self.architecture,
            gates=self.gates,
            state=state,
            image=(self.data.channels, *self.data.image_size),
            class_names=self.data.classes,
            method=self.recipe.method,
            meta={
                "settings": self.settings,
                "metrics": best,
                "history": history,
                "versions": versions(),
            },
        )

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")

    @property
    def log(self) -> Path:
        return self.out.with_name(self.out.name + ".csv")

    def generator(self, epoch: int) -> torch.Generator:
        """Make the source of an epoch's random numbers: no epoch needs to know of those before it."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


def _of_layer(kind: str, shape: torch.Size, probe: str | None) -> dict[str, str | int]:
    """Give the options of a gate that follow from its layer."""
    if kind == "eas":
        return dict(zip(("height", "width"), shape[2:], strict=False))
    return {} if probe is None else {"probe": probe}


def _matching(patterns: Sequence[str], network: nn.Module) -> list[str]:
    """Find the layers that are meant, in the network's order: of a pattern's alternatives, the first that exists."""
    known, found = list(named_layers(network)), set()
    for pattern in patterns:
        for alternative in pattern.split("|"):
            if matches := fnmatch.filter(known, alternative):
                found |= set(matches)
                break
        else:
            raise UserError(
                f"No layer of the network is called {pattern!r}.{suggest(pattern, known)}"
            )
    return [name for name in known if name in found]


def _moments(images: Split) -> tuple[Tensor, Tensor]:
    """Compute the mean and the standard deviation of each input channel, of a sample if there are very many images."""
    chosen = sample_stratified(images.labels, _PIXELS_OF) if len(images) > _PIXELS_OF else None
    sums, pixels = [], 0
    for x, _ in images.batches(256, indices=chosen):
        sums.append(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
        pixels += x.numel() // x.shape[1]
    mean, square = torch.stack(sums).double().sum(0) / pixels
    return mean, (square - mean.square()).clamp_min(
        1e-4
    ).sqrt()  # a channel that never changes stays finite
