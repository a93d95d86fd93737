"""What a training run is to do: runs of equal settings end with equal weights."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
from channelscope.layers.hooks import INPUT, named_layers
from channelscope.networks import Architecture, Statistics
from channelscope.objectives import MART, TRADES, CrossEntropy, Joint, TrainingLoss
from channelscope.training.hbar import HBaR
from channelscope.training.precision import pick_precision
from channelscope.training.recipes import Recipe
from channelscope.training.start import Start
from channelscope.weights import Checkpoint, Gate, build, log_columns, versions, zoo

_MOMENTS_OF = 50_000  # so many images are enough for the pixels' mean and standard deviation


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Args:
        recipe: how to train.
        data: the images, with a training and a validation part.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random
            starts.
        start: the network whose weights it begins with; None for random weights.
        speeds: images a second in fp32 and bf16, which decide between them for the precision
            "auto"; see ``precision.choose_precision``.

    Raises:
        UserError: where these do not fit together, or ``out`` cannot be written.
    """

    recipe: Recipe
    data: Dataset
    out: Path
    seed: int
    start: Start | None = None
    speeds: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"The seed must be from 0 to {2**31 - 1}, not {self.seed}.")
        zoo.check_target(self.out)
        check_writable(self.out)
        self.data.require_train()
        if self.recipe.data.validation != "none" and not self.data.val:
            raise UserError(
                f"{self.data.name} has no validation images, which choose the best epoch: add "
                'some, or set data.validation to "none" to keep the last epoch.'
            )
        if self.keeps_last and self.recipe.schedule.patience:
            raise UserError(
                "schedule.patience waits for a better epoch on the validation images, and the last "
                "epoch is kept here whatever it is: set schedule.patience to 0."
            )
        if self.weighed_classes:
            self._check_weighing()
        crop, batch_size = self.recipe.data.crop, self.recipe.optimizer.batch_size
        if crop >= min(self.data.image_size):
            raise UserError(
                f"A crop of {crop} pixels is too large for images of {self.data.image_size}: "
                "lower data.crop."
            )
        if self.recipe.attack.tau and self.recipe.loss.kind == "trades":
            raise UserError(
                "TRADES attacks every image to the end, so it cannot stop early: leave attack.tau "
                "empty."
            )
        if batch_size % world_size():
            raise UserError(
                f"{batch_size} images of a step cannot be shared by {world_size()} processes: "
                "choose a batch size that is a multiple of their number."
            )
        if self.val is not None and len(self.val) < world_size():
            raise UserError(
                f"{len(self.val)} validation images are too few for {world_size()} processes: "
                "start fewer."
            )

    def _check_weighing(self) -> None:
        """Raise UserError where the validation images cannot weigh the classes."""
        if self.val is None:
            raise UserError(
                "loss.eta weighs the classes by their losses on the validation images, and these "
                'are trained on here: set data.validation to "hold-out", or leave loss.eta out.'
            )
        counts = torch.bincount(self.val.labels, minlength=len(self.data.classes))
        if not counts.all():
            raise UserError(
                "loss.eta weighs the classes by their losses on the validation images, of which "
                f"{self.data.classes[int(counts.argmin())]} has none: add some, or leave loss.eta "
                "out."
            )

    @cached_property
    def _parts(self) -> Dataset:
        is_held_out = self.recipe.data.validation != "none"
        return self.data if is_held_out else self.data.merge_validation()

    @property
    def train(self) -> Split:
        """The images to train on."""
        return self._parts.require_train()

    @property
    def val(self) -> Split | None:
        """The images that choose the epoch; None where they are trained on."""
        return self._parts.val

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch's weights are saved, whichever are best."""
        return self.recipe.schedule.keep == "last" or self.recipe.data.validation == "none"

    @property
    def partial(self) -> Path:
        """The file of the run's state, until it is complete."""
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def log(self) -> Path:
        """The table of the epochs."""
        return self.out.with_name(f"{self.out.name}.csv")

    @property
    def before(self) -> Path:
        """The checkpoint of the stage before, if there is one."""
        return self.out.with_name(f"{self.out.name}.before")

    @property
    def is_complete(self) -> bool:
        """Whether the run has come to its end."""
        return self.out.exists() and not self.partial.exists()

    def make_first_stage(self) -> "Job | None":
        """Return the training that comes before, if the recipe has two stages."""
        recipe = self.recipe.first_stage
        return None if recipe is None else dataclasses.replace(self, recipe=recipe, out=self.before)

    def started_from_file(self) -> "Job":
        """Return the run with the weights that its recipe names, if it names any."""
        init = self.recipe.init
        if init is None:
            return self
        return dataclasses.replace(self, start=Start.read(init.file, init.with_gates))

    def started_from(self, file: Path) -> "Job":
        """Return the run with the weights of the stage before, and of its gates if there are."""
        checkpoint = Checkpoint.read(file)
        with_gates = bool(self.gates) and checkpoint.gates == self.gates
        start = Start(checkpoint, file.name, with_gates, is_stage=True)
        return dataclasses.replace(self, start=start)

    def epoch_file(self, epoch: int) -> Path:
        """Return the checkpoint of an epoch that is kept besides."""
        return self.out.with_name(f"{self.out.name}.epoch-{epoch}")

    @property
    def adversarial(self) -> bool:
        """Whether the network is trained on adversarial images."""
        return self.recipe.loss.kind != "natural"

    @property
    def weighed_classes(self) -> tuple[str, ...]:
        """The classes whose weights in the loss change with the epochs, if they do."""
        return self.data.classes if self.recipe.loss.eta is not None else ()

    @property
    def log_columns(self) -> list[str]:
        """The columns of the training log."""
        return log_columns(self.gates, self.weighed_classes)

    @property
    def precision(self) -> str:
        """The precision of the computation, with "auto" decided."""
        precision = self.recipe.engine.precision
        return precision if self.speeds is None else pick_precision(self.speeds)

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and images."""
        return torch.float64 if self.recipe.engine.precision == "fp64" else torch.float32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.data.channels, *self.data.image_size)

    @cached_property
    def architecture(self) -> Architecture:
        """The backbone; it normalises as the network does whose weights it begins with."""
        model = self.recipe.model
        if self.start is not None:
            mean, std = self.start.normalisation
        elif model.normalise == "none":
            mean, std = (0.0,) * self.data.channels, (1.0,) * self.data.channels
        else:
            mean, std = _compute_moments(self.train)
        architecture = Architecture(
            arch=model.arch, width=model.width, classes=len(self.data.classes), mean=mean, std=std
        )
        if self.start is not None:
            self.start.check_fit(architecture, raw=model.normalise == "none")
        return architecture

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """The gates.

        Of probes, and of an option that is a list, the last layer has the last value, and the first
        value fills up.
        """
        settings = self.recipe.gates
        if settings.kind == "none":
            return ()
        if settings.kind not in KINDS:
            kinds = ["none", *KINDS]
            raise UserError(
                f"There are no gates {settings.kind!r}: choose from {', '.join(kinds)}."
                f"{suggest(settings.kind, kinds)}"
            )
        shapes = self._gated_shapes(settings.layers)
        shared: dict[str, Any] = dict(settings.options)
        if settings.probes:  # whatever the kind: one that takes none refuses them
            shared = {"probe": list(settings.probes)} | shared
        gates = []
        for index, (layer, shape) in enumerate(shapes.items()):
            options = {
                name: _pick_value(f"gates.{name}", value, index, list(shapes))
                for name, value in shared.items()
            }
            if {"height", "width"} <= KINDS[settings.kind].options.keys():
                options = dict(zip(("height", "width"), shape[2:], strict=False)) | options
            gates.append(Gate(layer=layer, channels=shape[1], kind=settings.kind, options=options))
        # Building and running it without memory refuses now what does not fit its layer.
        with torch.device("meta"):
            build(self.architecture, tuple(gates)).eval()(
                torch.empty(1, *self.image_shape, device="meta")
            )
        return tuple(gates)

    def _gated_shapes(self, patterns: Sequence[str]) -> dict[str, torch.Size]:
        """Find the gated layers and the shapes of their features, without computing them."""
        architecture = self.architecture  # outside the context: it computes with real images
        with torch.device("meta"):
            network = architecture.build().eval()
            layers = _match_layers(patterns, network) if patterns else architecture.gate_layers
            with capture(network, *layers) as features:
                network(torch.empty(1, *self.image_shape, device="meta"))
        return {layer: features[layer].shape for layer in layers}

    @property
    def loss(self) -> TrainingLoss | HBaR:
        """The loss that is minimised."""
        penalty = self.recipe.hbar
        if penalty is None:
            return self._own_loss
        return HBaR(
            self._own_loss,
            self._penalised_layers,
            of_images=penalty.of_images,
            of_labels=penalty.of_labels,
            sigma=penalty.sigma,
        )

    @cached_property
    def _penalised_layers(self) -> tuple[str, ...]:
        """The layers of ``hbar.features``."""
        assert self.recipe.hbar is not None
        architecture = self.architecture  # outside the context: it computes with real images
        with torch.device("meta"):
            return tuple(_match_layers(self.recipe.hbar.features, architecture.build()))

    @property
    def _own_loss(self) -> TrainingLoss:
        loss, gates = self.recipe.loss, self.recipe.gates
        options: dict[str, Any] = {"smoothing": loss.smoothing}
        if gates.kind != "none":
            beta_atk = self.recipe.attack.beta_atk
            options |= {"beta": gates.beta, "scaled": gates.scaled, "beta_atk": beta_atk}
        match loss.kind:
            case "trades":
                return TRADES(trade_off=loss.trade_off, **options)
            case "mart":
                return MART(trade_off=loss.trade_off, **options)
            case _:
                return CrossEntropy(**options)

    def attack_at(self, epoch: int) -> PGD:
        """Return the attack on training images in an epoch, counted from 0.

        Its objective is not set: it is the loss's, see ``TrainingLoss.attacked``.
        """
        attack = self.recipe.attack
        return PGD(
            eps=attack.eps,
            step=attack.step,
            steps=attack.steps,
            random_start=attack.start,
            early_stop=attack.tau_at(epoch, self.recipe.schedule.epochs),
        )

    @property
    def validation_attack(self) -> PGD:
        """The attack on validation images: all steps, from a uniform start."""
        attack = self.recipe.attack
        objective = Joint(attack.beta_atk) if self.gates else Joint()
        return PGD(eps=attack.eps, step=attack.step, steps=attack.steps, objective=objective)

    def make_generator(self, epoch: int) -> torch.Generator:
        """Make the generator of an epoch, so that no epoch depends on those before it."""
        return torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + epoch)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be equal for an interrupted run to be resumed."""
        data = {
            "name": self.data.name,
            "train": self.train.fingerprint(),
            "val": self.val and self.val.fingerprint(),
        }
        settings = {"recipe": self.recipe.values(), "data": data, "seed": self.seed}
        # A file may change; the stage before is told by the recipe.
        if self.recipe.init is not None and self.start is not None and not self.start.is_stage:
            settings["init"] = self.start.digest
        return settings

    def make_checkpoint(
        self, weights: dict[str, Tensor], history: list[dict[str, Any]]
    ) -> Checkpoint:
        """Make a checkpoint; its metrics are the row of the epoch that is marked as the best."""
        more: dict[str, Any] = {} if self.start is None else {"start": self.start.describe()}
        if self.speeds is not None:
            more["engine"] = {"precision": self.precision, "images_per_second": self.speeds}
        return Checkpoint(
            architecture=self.architecture,
            gates=self.gates,
            state=weights,
            image=self.image_shape,
            class_names=self.data.classes,
            method=self.recipe.method,
            meta={
                "settings": self.settings,
                "metrics": next((row for row in history if row["best"]), {}),
                "history": history,
                "versions": versions(),
            }
            | more,
        )


def _pick_value(name: str, values: Any, index: int, layers: Sequence[str]) -> Any:
    """Return the value of a gate's option for one of the gated layers.

    Raises:
        UserError: for no values, or more than layers: one of them would be of no gate.
    """
    if not isinstance(values, list):
        return values
    if not values:
        raise UserError(f"{name} is an empty list: name a value, or leave {name} out.")
    if len(values) > len(layers):
        raise UserError(
            f"{name} has {len(values)} values, {', '.join(map(str, values))}, and only "
            f"{len(layers)} gated: {', '.join(layers)}. Name at most one for each layer."
        )
    return values[max(0, index - (len(layers) - len(values)))]


def _match_layers(patterns: Sequence[str], network: nn.Module) -> list[str]:
    """List the layers that match, in the network's order; of alternatives the first that exists.

    A pattern may end in ``@call`` and in ``:input``, as a layer's name may.
    """
    names = list(named_layers(network))
    matched: dict[str, int] = {}  # place -> number of its layer
    for pattern in patterns:
        matches = (_match_places(alternative, names) for alternative in pattern.split("|"))
        first = next(filter(None, matches), None)
        if first is None:
            raise UserError(
                f"No layer of the network is called {pattern!r}.{suggest(pattern, names)}"
            )
        matched |= first
    # What a layer reads comes before what it returns.
    return sorted(matched, key=lambda place: (matched[place], not place.endswith(INPUT), place))


def _match_places(pattern: str, names: Sequence[str]) -> dict[str, int]:
    """Return the places that match a pattern, each with the number of its layer."""
    layer = pattern.removesuffix(INPUT)
    if (parts := layer.rpartition("@"))[2].isdecimal():
        layer = parts[0] or layer
    ending = pattern.removeprefix(layer)
    matching = set(fnmatch.filter(names, layer))
    return {f"{name}{ending}": number for number, name in enumerate(names) if name in matching}


def _compute_moments(images: Split) -> Statistics:
    """Compute each input channel's mean and standard deviation; a sample of many images will do."""
    sample = sample_stratified(images.labels, _MOMENTS_OF) if len(images) > _MOMENTS_OF else None
    sums, pixels = [], 0
    for x, _ in images.batches(256, indices=sample):
        sums.append(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
        pixels += x.numel() // x.shape[1]
    mean, mean_square = torch.stack(sums).cpu().double().sum(0) / pixels
    # At least 1e-4: a channel that never changes would be divided by 0.
    std = (mean_square - mean.square()).clamp_min(1e-4).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
