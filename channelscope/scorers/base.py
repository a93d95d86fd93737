"""Scorers of channels: what one is, the registry, and how several score a block of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import getdoc
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from channelscope.data import Split
from channelscope.errors import UserError, suggest
from channelscope.layers.channels import channel_axis
from channelscope.layers.features import capture
from channelscope.layers.hooks import eval_mode

# (model, layers, x, y) -> {layer: (n, c)}: the relevance of each channel to the class y of each
# image x. Above 0, a channel speaks for the class.
ScoreFunction = Callable[[nn.Module, Sequence[str], Tensor, Tensor], Mapping[str, Tensor]]
Function = TypeVar("Function", bound=ScoreFunction)


@dataclass(frozen=True)
class Cost:
    """A scorer's cost relative to one forward pass over the same images: counted, not measured.

        cost = once + per_layer * (number of layers) + per_channel * (number of channels of all
        layers)

    A forward pass counts 1, and so does a backward pass, which is made of the features alone: the
    weights get no gradient. What runs a part of the network only is counted whole, so the cost is
    an upper bound.

    Args:
        once: passes for all layers together.
        per_layer: passes for each layer.
        per_channel: passes for each channel.

    >>> Cost(once=1, per_channel=1).of([64, 128])
    193
    """

    once: int = 0
    per_layer: int = 0
    per_channel: int = 0

    def of(self, channels: Sequence[int]) -> int:
        """Count the passes for layers of so many channels."""
        return self.once + self.per_layer * len(channels) + self.per_channel * sum(channels)

    def __str__(self) -> str:
        parts = {"": self.once, " a layer": self.per_layer, " a channel": self.per_channel}
        return " + ".join(f"{passes}{each}" for each, passes in parts.items() if passes) or "0"


class _Shape(NamedTuple):
    """What an image's features are like in one layer."""

    features: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class Scorer:
    """A scorer and what is said of it; called as its function is.

    Args:
        name: the name in tables and on the command line.
        score: the function ``(model, layers, x, y) -> {layer: (n, c)}``. One that has a method
            ``fit(network, split, classes, layers)``, which returns a function of the same kind,
            sees all images there before it scores them block by block.
        cost: None where it is unknown.
        help: one line on what the scores say.
    """

    name: str
    score: ScoreFunction
    cost: Cost | None = None
    help: str = ""

    def __call__(
        self, model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
    ) -> Mapping[str, Tensor]:
        """Return by layer the relevance (n, c) of each channel to the class y of each image x."""
        return self.score(model, layers, x, y)


_REGISTRY: dict[str, Scorer] = {}


def register_scorer(name: str, *, cost: Cost, help: str) -> Callable[[Function], Function]:
    """Register a scorer where it is written, so that it can be named everywhere."""
    if name in _REGISTRY:
        raise UserError(f"There is a scorer {name!r} already: choose another name.")

    def register(score: Function) -> Function:
        _REGISTRY[name] = Scorer(name, score, cost, help)
        return score

    return register


def list_scorers() -> list[Scorer]:
    """List the registered scorers, the cheapest first."""

    def expense(scorer: Scorer) -> tuple[int, int, int]:
        assert scorer.cost is not None  # a registered one states it
        return scorer.cost.per_channel, scorer.cost.per_layer, scorer.cost.once

    return sorted(_REGISTRY.values(), key=expense)


def get_scorer(scorer: str | ScoreFunction) -> Scorer:
    """Return the scorer of this name, or make one of a function.

    Raises:
        UserError: for a name that is not registered, with suggestions.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, str):
        if scorer not in _REGISTRY:
            names = [registered.name for registered in list_scorers()]
            raise UserError(
                f"There is no scorer {scorer!r}: choose from {', '.join(names)}."
                f"{suggest(scorer, names)}"
            )
        return _REGISTRY[scorer]
    if not callable(scorer):
        raise UserError(
            f"A scorer is a name or a function (model, layers, x, y) -> {{layer: scores}}, not "
            f"{scorer!r}."
        )
    for registered in _REGISTRY.values():
        if registered.score is scorer:
            return registered
    name = getattr(scorer, "__name__", type(scorer).__name__)
    return Scorer(name, scorer, help=(getdoc(scorer) or "").partition("\n")[0])


def get_scorers(scorers: Sequence[str | ScoreFunction]) -> dict[str, Scorer]:
    """Return several scorers by name.

    Raises:
        UserError: for what is not a list of names and functions, and for two of one name.
    """
    if isinstance(scorers, str) or callable(scorers):
        raise UserError(f"scorers: give a list of names or functions, such as [{scorers!r}].")
    by_name: dict[str, Scorer] = {}
    for scorer in map(get_scorer, scorers):
        if scorer.name in by_name:
            raise UserError(f"scorers: there are two of the name {scorer.name!r}: rename one.")
        by_name[scorer.name] = scorer
    return by_name


def fit_scorers(
    scorers: Mapping[str, Scorer],
    network: nn.Module,
    split: Split,
    classes: int,
    layers: Sequence[str],
) -> dict[str, Scorer]:
    """Let the scorers that have a method ``fit`` see all images first (see ``Scorer``).

    Args:
        scorers: by name.
        network: any classifier of images in [0, 1]; it is left as found.
        split: the images that will be scored.
        classes: number of classes.
        layers: names of the layers that will be scored.
    """

    def fit(scorer: Scorer) -> Scorer:
        method = getattr(scorer.score, "fit", None)
        return replace(scorer, score=method(network, split, classes, layers)) if method else scorer

    with eval_mode(network):  # as in ``score_block``, whatever the user's function does
        return {name: fit(scorer) for name, scorer in scorers.items()}


def score_block(
    scorers: Mapping[str, Scorer], network: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
) -> dict[str, dict[str, Tensor | UserError]]:
    """Score layers on a block of images by several scorers.

    Each scorer gets all layers together or, where it refuses one of them, each alone. It is called
    with the network in eval mode, its parameters frozen, and images to which a gradient leads.

    Args:
        scorers: by name, fitted where they need it (see ``fit_scorers``).
        network: any classifier; it is left as found.
        layers: names of layers.
        x, y: images and labels.

    Returns:
        scorer -> layer -> relevance (n, c) of each channel to each image's class, or the sentence
        that says why the scorer has none of that layer.
    """
    shapes = _find_shapes(network, layers, x)
    return {name: _score(scorer, network, shapes, x, y) for name, scorer in scorers.items()}


def _score(
    scorer: Scorer, network: nn.Module, shapes: Mapping[str, _Shape], x: Tensor, y: Tensor
) -> dict[str, Tensor | UserError]:
    try:
        with eval_mode(network), torch.enable_grad():
            # A graph is needed even where every parameter is frozen, so it starts at the input.
            by_layer = scorer(network, list(shapes), x.detach().requires_grad_(), y)
        return _check_scores(scorer.name, by_layer, shapes, len(x))
    except UserError as error:
        if len(shapes) == 1:
            return dict.fromkeys(shapes, error)
    alone = (_score(scorer, network, {layer: shapes[layer]}, x, y) for layer in shapes)
    return {layer: scores for by_layer in alone for layer, scores in by_layer.items()}


def _find_shapes(network: nn.Module, layers: Sequence[str], x: Tensor) -> dict[str, _Shape]:
    """Return the shape of each layer's features, for an image, and how many channels it has."""
    if not layers:
        return {}
    with eval_mode(network), torch.no_grad(), capture(network, *layers) as features:
        network(x[:2])  # one image alone is what some networks squeeze away
    shapes = {layer: tuple(features[layer].shape) for layer in layers}
    return {
        layer: _Shape(shape[1:], shape[channel_axis(network, layer, shape)])
        for layer, shape in shapes.items()
    }


def _check_scores(
    scorer: str, by_layer: object, shapes: Mapping[str, _Shape], images: int
) -> dict[str, Tensor | UserError]:
    """Return a scorer's scores (n, c) of each layer; raise a UserError for anything else."""
    if not isinstance(by_layer, Mapping):
        raise UserError(
            f"The scorer {scorer!r} returns an object of type {type(by_layer).__name__}: return "
            "{layer: scores (images, channels)}."
        )
    checked: dict[str, Tensor | UserError] = {}
    for layer, (shape, channels) in shapes.items():
        scores = by_layer.get(layer)
        start = f"The scorer {scorer!r} returns"
        if not isinstance(scores, Tensor):
            raise UserError(
                f"{start} no tensor for layer {layer!r}: return {{layer: scores (images, "
                "channels)}."
            )
        if tuple(scores.shape) != (images, channels):
            raise UserError(
                f"{start} shape {tuple(scores.shape)} for layer {layer!r}: return (images, "
                f"channels), here ({images}, {channels})."
            )
        if not scores.isfinite().all():
            what = "NaN" if scores.isnan().any() else "infinity"
            raise UserError(
                f"{start} {what} for layer {layer!r} (features of shape {shape}): return a number "
                "for every channel."
            )
        checked[layer] = scores.detach()
    return checked
