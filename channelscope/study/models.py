"""The networks under study, by label, and what is known of each."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks.folding import same_randomness
from channelscope.data import Dataset
from channelscope.errors import UserError
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, get_logits
from channelscope.weights import METHOD_NAMES, Checkpoint, zoo

Network = nn.Module | Checkpoint | str | Path

_OF_GATES = (
    "attack.beta_atk",
)  # settings outside the recipe's section on gates that matter to gates alone


@dataclass(frozen=True)
class Model:
    """One network under study."""

    label: str
    network: nn.Module
    method: str | None
    checkpoint: Checkpoint | None

    def check(self, dataset: Dataset) -> None:
        """Refuse data of other classes than the network was trained on."""
        names = self.checkpoint.class_names if self.checkpoint else None
        if names and names != dataset.classes:
            raise UserError(
                f"{self.label} was trained on other classes ({_some(names)}) than {dataset.name} has "
                f"({_some(dataset.classes)}): choose the data that it was trained on."
            )

    @property
    def digest(self) -> str:
        """Identify the network by its weights: SHA-256, in hexadecimal, of its state's names, types, shapes, bytes."""
        found = hashlib.sha256(type(self.network).__name__.encode())
        for name, tensor in self.network.state_dict().items():
            if isinstance(tensor, Tensor):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(
                    tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
                )
        return found.hexdigest()

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the network's training."""
        return self.checkpoint.meta if self.checkpoint else {}

    @property
    def compute(self) -> dict[str, Any] | None:
        """What decides the cost and the strength of the training, as far as it is on record."""
        settings = self.training.get("settings")
        if settings is None:
            return None
        assert self.checkpoint is not None  # it has settings
        recipe = {
            name: value
            for name, value in _flat(settings["recipe"]).items()
            if name not in _OF_GATES
        }
        return recipe | {
            "model.width": self.checkpoint.architecture.base_width,
            "data": settings["data"],
        }

    @property
    def description(self) -> dict[str, Any]:
        """What the records of a result say of the network."""
        known: dict[str, Any] = {"method": self.method}
        if self.checkpoint is None:
            return known | {"arch": type(self.network).__name__}
        known |= dataclasses.asdict(self.checkpoint.architecture)
        known["gates"] = [dataclasses.asdict(gate) for gate in self.checkpoint.gates]
        return known | {
            name: self.training[name] for name in ("settings", "versions") if name in self.training
        }


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Name a recipe's settings in full, ``optimizer.lr``, but for those of its gates."""
    sections = {
        name: values
        for name, values in recipe.items()
        if isinstance(values, Mapping) and name != "gates"
    }
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        for name, value in values.items()
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def load_models(
    models: Mapping[str, Network] | Sequence[str | Path], methods: Mapping[str, str], device: str
) -> list[Model]:
    """Load what is named by path, and label what is not."""
    by_label = _labelled(models)
    if unknown := methods.keys() - by_label.keys():
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(by_label)}.")
    if unknown := set(methods.values()) - set(METHOD_NAMES):
        raise UserError(
            f"There is no method {min(unknown)!r}: choose from {', '.join(METHOD_NAMES)}."
        )
    return [_subject(label, model, methods.get(label), device) for label, model in by_label.items()]


def _labelled(models: Mapping[str, Network] | Sequence[str | Path]) -> dict[str, Network]:
    if isinstance(models, str | Path | nn.Module):
        raise UserError("Give the models as a list of paths, or as {label: network or path}.")
    if not isinstance(models, Mapping):
        if not all(isinstance(path, str | Path) for path in models):
            raise UserError(
                "Only paths can be listed without labels: give networks as {label: network}."
            )
        labels = [zoo.label_of(path) for path in models]
        if len(set(labels)) < len(labels):
            raise UserError("Two models have the same file name: give each its own label.")
        models = dict(zip(labels, models, strict=True))
    if not models:
        raise UserError("There is no network: name at least one model.")
    if strange := [label for label in models if not label.isprintable()]:
        raise UserError(
            f"The label {strange[0]!r} has characters that cannot be printed: choose another."
        )
    return dict(models)


def _subject(label: str, model: Network, method: str | None, device: str) -> Model:
    if isinstance(model, nn.Module):
        return Model(label, model, method, None)
    if not isinstance(model, Checkpoint | str | Path):
        raise UserError(
            f"{label} is a {type(model).__name__}: give a network (torch.nn.Module) or a path."
        )
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.read(model)
    return Model(label, checkpoint.build().to(device), method or checkpoint.method, checkpoint)


def layers_by_label(
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None, labels: Sequence[str]
) -> dict[str, Sequence[str] | None]:
    """Tell the layers to look at by label; None for the penultimate one."""
    by_label = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(labels, layers)
    if unknown := by_label.keys() - set(labels):
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(labels)}.")
    for names in by_label.values():
        if isinstance(names, str) or (names is not None and not names):
            raise UserError("Layers are given as a list of names, such as ['layer3', 'layer4'].")
        if names and not all(names):
            raise UserError("A layer's name is empty: 'channelscope layers' lists the names.")
    return {label: by_label.get(label) for label in labels}


def check_network(
    network: nn.Module, x: Float[Tensor, "n *image"], classes: int, layers: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Check on a few images that network and data fit; give the activations of some layers.

    Raises:
        UserError: for images that the network does not take, another number of classes, logits that are not finite, a
            layer without channels or that takes images apart.
    """
    with (
        explain_refusal(x, "choose data of the kind that it was trained on"),
        same_randomness(x),
        eval_mode(network),
        torch.no_grad(),
        capture_activations(network, *layers) as found,
    ):
        logits = get_logits(network(x))
    check_finite(logits)
    if logits.shape[1] != classes:
        raise UserError(
            f"The network has {logits.shape[1]} classes, the data has {classes}: choose data of the same classes."
        )
    for layer, a in found.items():
        if len(a) != len(x):
            raise UserError(
                f"Layer {layer!r} returns features of {len(a)} parts of {len(x)} images: name the layer around it, "
                "which works on whole images."
            )
    return found


@contextmanager
def explain_refusal(x: Float[Tensor, "n *image"], remedy: str) -> Iterator[None]:
    """Say in a sentence that a network does not take images such as x, and what to do."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The network does not take images of shape {tuple(x.shape[1:])} ({reason}): {remedy}."
        ) from error


def check_finite(logits: Float[Tensor, "n k"]) -> None:
    """Refuse logits that are NaN or infinite."""
    if not logits.isfinite().all():
        raise UserError(
            "The network's logits are not finite numbers on some images: its weights are damaged."
        )


def widen_classes(dataset: Dataset, networks: Sequence[nn.Module]) -> Dataset:
    """Give data whose classes have no names, but numbers from their labels, the classes of the first network.

    Some images of few classes are so evaluated on a network of many.
    """
    classes = dataset.classes
    if dataset.name != "tensors" or classes != tuple(map(str, range(len(classes)))):
        return dataset
    like = get_parameter(networks[0])
    x, _ = next(dataset.test.batches(1, like.device, torch.zeros(1, dtype=torch.int64)))
    try:
        with same_randomness(x), eval_mode(networks[0]), torch.no_grad():
            known = get_logits(networks[0](x.to(like))).shape[1]
    except Exception:  # that they do not fit is found, and told, in its place
        return dataset
    return dataclasses.replace(dataset, classes=tuple(map(str, range(max(known, len(classes))))))


def get_parameter(network: nn.Module) -> Tensor:
    """Give a tensor on the network's device and of its precision, which images have to have too."""
    return next(
        (parameter for parameter in network.parameters() if parameter.is_floating_point()),
        torch.zeros(1),
    )
