"""The networks of a study, by label, and what is known of each."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks.folding import same_randomness
from channelscope.data import NAMES, Dataset
from channelscope.errors import UserError
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import (
    eval_mode,
    get_logits,
    get_parameter,
    match_layers,
    named_layers,
    unwrap_compiled,
)
from channelscope.layers.outputs import Entry, PlainLogits
from channelscope.layers.penultimate import LastLayer
from channelscope.networks import Architecture
from channelscope.recipes import METHODS
from channelscope.study.normalisation import is_trained_here
from channelscope.study.outputs import (
    OTHER_DATA,
    adapt_network,
    count_classes,
    explain_refusal,
    is_frozen_program,
)
from channelscope.study.store import digest_of
from channelscope.weights import Checkpoint, read_network, zoo
from channelscope.weights.architectures import External
from channelscope.weights.loading import describe_network

Network = nn.Module | Checkpoint | str | Path
Models = Mapping[str, Network] | Sequence[str | Path] | Network

_OF_GATES = ("attack.beta_atk",)  # settings of gates that stand outside the recipe's section gates
_MOST_NAMED = 3  # classes that a refusal names


@dataclass(frozen=True)
class Model:
    """One network of a study.

    Args:
        label: what tables and figures call it.
        network: any classifier of images in [0, 1].
        method: how it was trained: standard, at, cifs, ...; None where unknown.
        checkpoint: what it was read from; None for a network that was passed as such.
    """

    label: str
    network: nn.Module
    method: str | None
    checkpoint: Checkpoint | None

    def check_classes(self, dataset: Dataset) -> None:
        """Refuse data of other classes than the network was trained on."""
        names = self.checkpoint.class_names if self.checkpoint else None
        if names and names != dataset.classes:
            raise UserError(
                f"{self.label} was trained on other classes ({_list_some(names)}) than "
                f"{dataset.name} has ({_list_some(dataset.classes)}): choose the data that it was "
                "trained on."
            )

    def adapt_output(
        self, x: Float[Tensor, "n *image"], classes: int, output: Entry | None
    ) -> Self:
        """Return the model with a network of plain logits; see ``outputs.adapt_network``."""
        try:
            network = adapt_network(self.network, x, classes, output, self._advise_size(x))
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error
        return dataclasses.replace(self, network=network)

    def _advise_size(self, x: Float[Tensor, "n *image"]) -> str:
        """Return what to do where the network does not take images of this size."""
        architecture = self.checkpoint.architecture if self.checkpoint else None
        is_code = isinstance(architecture, External) and architecture.is_code
        if self.checkpoint is None or is_code:  # whose images are not on record
            return OTHER_DATA
        channels, height, side = self.checkpoint.image
        if channels != x.shape[1] or height != side or x.shape[2:] == (height, side):
            return OTHER_DATA
        return f"it takes {side} x {side} pixels, so scale them with --image-size {side}"

    @property
    def is_ours(self) -> bool:
        """Whether the package trained the network, which then normalises images itself."""
        if self.checkpoint is not None:
            return "converted_from" not in self.training
        return is_trained_here(self.network)

    @property
    def _bare(self) -> nn.Module:
        """The network as it was passed."""
        return self.network.network if isinstance(self.network, PlainLogits) else self.network

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the names, types, shapes and bytes of the network's state."""
        digest = hashlib.sha256(type(self._bare).__name__.encode())
        if isinstance(self.network, PlainLogits) and self.network.entry is not None:
            digest.update(f"entry {self.network.entry}".encode())
        for name, tensor in self._bare.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def key(self, fingerprint: str) -> str:
        """Return the name of the folder of what this network makes of images."""
        return digest_of(self.digest, type(self._bare).__qualname__, fingerprint)

    @property
    def training(self) -> dict[str, Any]:
        """What is on record of the network's training."""
        return self.checkpoint.meta if self.checkpoint else {}

    @property
    def compute(self) -> dict[str, Any] | None:
        """What decides the cost and the strength of the training, as far as it is on record."""
        settings = self.training.get("settings")
        architecture = self.checkpoint.architecture if self.checkpoint else None
        if settings is None or not isinstance(architecture, Architecture):
            return None
        recipe = {
            name: value
            for name, value in _flatten(settings["recipe"]).items()
            if name not in _OF_GATES
        }
        return recipe | {"model.width": architecture.base_width, "data": settings["data"]}

    @property
    def description(self) -> dict[str, Any]:
        """What the settings of a result say of the network, as plain values."""
        described: dict[str, Any] = {"method": self.method, "digest": self.digest}
        if self.checkpoint is None:
            return described | {"arch": type(self._bare).__name__}
        described |= dataclasses.asdict(self.checkpoint.architecture)
        described["gates"] = [dataclasses.asdict(gate) for gate in self.checkpoint.gates]
        if recognised := describe_network(self.checkpoint):
            described["recognised"] = recognised
        recorded = {
            name: self.training[name] for name in ("settings", "versions") if name in self.training
        }
        return described | recorded


def _flatten(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Name a recipe's settings in full, ``optimizer.lr``, but for those of its gates."""
    return {
        f"{section}.{name}": value
        for section, values in recipe.items()
        if isinstance(values, Mapping) and section != "gates"
        for name, value in values.items()
    }


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


def load_models(models: Models, methods: Mapping[str, str], device: str) -> list[Model]:
    """Load the networks that are named by path, and label those that have no label.

    Args:
        models: label -> network or path of a checkpoint; a sequence of paths, whose stems become
            the labels; or one network or path.
        methods: label -> how the network was trained, where its checkpoint does not say so.
        device: where checkpoints are run; networks stay where they are.

    Raises:
        UserError: for labels, methods or files that do not fit.
    """
    labelled = _label(models)
    if unknown := methods.keys() - labelled.keys():
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(labelled)}.")
    if unknown := set(methods.values()) - set(METHODS):
        raise UserError(f"There is no method {min(unknown)!r}: choose from {', '.join(METHODS)}.")
    return [_load(label, model, methods.get(label), device) for label, model in labelled.items()]


def _label(models: Models) -> dict[str, Network]:
    if isinstance(models, nn.Module):
        return {type(models).__name__: models}
    if isinstance(models, Checkpoint):
        return {models.method or "model": models}
    if isinstance(models, str | Path):
        models = [models]
    if not isinstance(models, Mapping):
        if not all(isinstance(path, str | Path) for path in models):
            raise UserError(
                "models: only paths can be listed without labels: pass networks as "
                "{label: network}."
            )
        labels = [zoo.get_label(path) for path in models]
        if len(set(labels)) < len(labels):
            raise UserError("models: two have the same file name: give each its own label.")
        models = dict(zip(labels, models, strict=True))
    if not models:
        raise UserError("models: there is no network: name at least one model.")
    if unprintable := [label for label in models if not label.isprintable()]:
        raise UserError(
            f"models: the label {unprintable[0]!r} has characters that cannot be printed: choose "
            "another."
        )
    return dict(models)


def _load(label: str, model: Network, method: str | None, device: str) -> Model:
    if isinstance(model, nn.Module):
        if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
            raise UserError(
                f"models: {label} was made in torch.inference_mode, so it has no gradients: make "
                "it outside, or pass copy.deepcopy of it."
            )
        return Model(label, unwrap_compiled(model), method, None)
    if type(model).__name__ == "ExportedProgram":  # its import takes a second
        raise UserError(
            f"models: {label} is an ExportedProgram: pass the network in it, program.module()."
        )
    if not isinstance(model, Checkpoint | str | Path):
        raise UserError(
            f"models: {label} is a {type(model).__name__}: pass a network (torch.nn.Module) or a "
            "path."
        )
    checkpoint = model if isinstance(model, Checkpoint) else read_network(model)
    return Model(label, checkpoint.build().to(device), method or checkpoint.method, checkpoint)


def layers_by_label(
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None, labels: Sequence[str]
) -> dict[str, Sequence[str] | None]:
    """Return the layers to look at by label; None for the penultimate one."""
    by_label: dict[str, Any] = (
        dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(labels, layers)
    )
    if unknown := by_label.keys() - set(labels):
        raise UserError(f"layers: there is no model {min(unknown)!r} among {', '.join(labels)}.")
    for names in by_label.values():
        if isinstance(names, str) or (names is not None and not names):
            raise UserError("layers: give a list of names, such as ['layer3', 'layer4'].")
        if names and not all(names):
            raise UserError("layers: a name is empty: 'channelscope layers' lists the names.")
    return {label: by_label.get(label) for label in labels}


def without_gates(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the layers' names, NAME for NAME.gated where the network has no gates at all.

    So one list serves networks with and without gates: where nothing selects, what the rest of the
    network reads is the layer itself.
    """
    if any(name.endswith(".gated") for name in named_layers(network)):
        return [*layers]
    return list(dict.fromkeys(name.removesuffix(".gated") for name in layers))


def check_network(
    network: nn.Module, x: Float[Tensor, "n *image"], classes: int, layers: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Check on a few images that network and data fit; return the activations of some layers.

    Raises:
        UserError: for images that the network does not take, another number of classes, logits that
            are not finite, a layer without channels or that takes images apart.
    """
    with (
        explain_refusal(x, OTHER_DATA, network),
        same_randomness(x),
        eval_mode(network),
        torch.no_grad(),
        capture_activations(network, *layers) as activations,
    ):
        logits = get_logits(network(x))
    check_finite(logits)
    if logits.shape[1] != classes:
        raise UserError(
            f"The network has {logits.shape[1]} classes, the data has {classes}: choose data of "
            "the same classes."
        )
    for layer, a in activations.items():
        if len(a) != len(x):
            raise UserError(
                f"Layer {layer!r} returns features of {len(a)} parts of {len(x)} images: name the "
                "layer around it, which works on whole images."
            )
    return activations


def choose_layers(
    network: nn.Module, layers: Sequence[str] | None, x: Float[Tensor, "n *image"], classes: int
) -> tuple[list[str], LastLayer | None]:
    """Check on a few images that network, layers and data fit; return the layers' names.

    The last layer comes with them, where it is linear.

    Args:
        network: any classifier.
        layers: names and patterns; None for the penultimate layer.
        x: a few images.
        classes: number of classes of the data.

    Raises:
        UserError: for what does not fit, and where no layers are named and none is penultimate.
    """
    if is_frozen_program(network):
        raise UserError(
            "The layers of TorchScript and of exported programs cannot be read: pass the network "
            "that it was made from, or ask what needs no layers, as evaluate does."
        )
    names = None if layers is None else match_layers(network, layers, x)
    check_network(network, x, classes, names or ())
    try:
        last = LastLayer.find(network, x)
    except UserError:
        if names is None:
            raise
        return names, None
    return names or list(last.inputs[:1]), last


def check_finite(logits: Float[Tensor, "n k"]) -> None:
    """Refuse logits that are NaN or infinite."""
    if not logits.isfinite().all():
        raise UserError(
            "The network's logits are not finite numbers on some images: its weights are damaged."
        )


def with_class_names(
    dataset: Dataset, models: Sequence[Model], output: Entry | None = None
) -> Dataset:
    """Return data whose classes are mere numbers with the classes of the models.

    The names are those that a checkpoint has; else numbers up to the first network's classes, so
    that some images of few classes can be evaluated on a network of many. Other data stay as they
    are.
    """
    classes = dataset.classes
    if classes != tuple(map(str, range(len(classes)))):
        return dataset
    for model in models:
        names = model.checkpoint.class_names if model.checkpoint else None
        if names and len(names) >= len(classes):
            return dataclasses.replace(dataset, classes=tuple(names))
    network = models[0].network
    like = get_parameter(network)
    x, _ = next(
        dataset.test.batches(1, like.device, torch.zeros(1, dtype=torch.int64, device="cpu"))
    )
    count = count_classes(network, x.to(like), output) or 0
    return dataclasses.replace(dataset, classes=tuple(map(str, range(max(count, len(classes))))))


def group_models(
    groups: Mapping[str, Sequence[str]], models: Sequence[Model]
) -> dict[str, list[str]]:
    """Find the networks of each method, by patterns of their labels.

    Args:
        groups: name of a method -> patterns such as ``at-*``.
        models: all networks.

    Raises:
        UserError: for a name that cannot be printed, a pattern without a network, a network in two
            groups or twice in one, and for networks that were trained differently.
    """
    found: dict[str, list[str]] = {}
    for name, patterns in groups.items():
        if not name or not name.isprintable():
            raise UserError(f"group: the name {name!r} cannot be printed: choose another.")
        patterns = [patterns] if isinstance(patterns, str) else patterns
        chosen = [m for m in models if any(fnmatchcase(m.label, each) for each in patterns)]
        labels = [model.label for model in chosen]
        for pattern in patterns:
            if not any(fnmatchcase(label, pattern) for label in labels):
                known = ", ".join(model.label for model in models)
                raise UserError(f"group: no model is called {pattern!r}: the labels are {known}.")
        methods = sorted({str(model.method) for model in chosen})
        if len(methods) > 1:
            raise UserError(
                f"group: {name} has models that were trained differently ({', '.join(methods)})."
            )
        if name in {model.label for model in models} - set(labels):
            raise UserError(f"group: {name} is the label of another model: choose another name.")
        digests = [model.digest for model in chosen]
        if len(set(digests)) < len(digests):
            raise UserError(f"group: {name} has the same network twice: name each seed once.")
        for label in labels:
            if other := next((key for key in found if label in found[key]), None):
                raise UserError(f"group: {label} is in {other} and in {name}: name it once.")
        found[name] = labels
    return found


def trained_on(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the data set on which all models were trained, by their records.

    Raises:
        UserError: where the checkpoints do not name one, or not one that can be loaded by name.
    """
    settings = [training.get("settings") for training in trainings]
    names = {each["data"]["name"] if each else None for each in settings}
    name = names.pop()
    if names or name is None:
        raise UserError(
            "data: the models do not say that they were trained on one data set: name the data."
        )
    if name.partition(":")[0] not in {known.partition(":")[0] for known in NAMES}:
        raise UserError(
            f"data: the models were trained on {name}, which cannot be found by that name: name "
            "the data, as cifar10 or imagefolder:DIR."
        )
    return str(name)
