"""What the single figures of a kind are about: a layer, a class, a gate, a pair of models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from channelscope.comparison import Comparison
from channelscope.figures import frames

EVERY_CLASS = 10  # up to so many classes each has its own figures; beyond, the five most and the five least robust


@dataclass(frozen=True)
class Subject:
    """What one figure of a kind is about.

    Args:
        arguments: further arguments of the kind's two functions, by name; None for those at their default. The
            others end the figure's name.
        main: whether the page shows the figure at once, or on demand.
    """

    arguments: Mapping[str, str | None]
    main: bool = True


def whole(_: Comparison) -> Iterator[Subject]:
    """One figure, of all there is."""
    yield Subject({})


def by_layer(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each layer that was measured, those of the models' last layers before all."""
    last = _last_layers(comparison)
    for layer in _layers(comparison):
        yield Subject({"layer": layer}, main=layer in last)


def by_depth(comparison: Comparison) -> Iterator[Subject]:
    """One figure, where several layers of a model were measured."""
    if len(_layers(comparison)) > 1:
        yield Subject({})


def by_class(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each class, at the models' last layers: the most and the least robust one first, then the others."""
    extremes, others = frames.extremes(comparison), frames.extremes(comparison, EVERY_CLASS // 2)
    for name, layer in product(dict.fromkeys([*extremes, *others]), _last_layers(comparison)):
        yield Subject({"class_name": name, "layer": layer}, main=name in extremes)


def _layers(comparison: Comparison) -> list[str | None]:
    by_model = list(frames.layers_by_model(comparison).values())
    several = any(len(names) > 1 for names in by_model)
    return list(dict.fromkeys(name for names in by_model for name in names)) if several else [None]


def by_swept(varied: str, comparison: Comparison) -> Iterator[Subject]:
    """A figure for each layer, where the attack's strength was swept in this way."""
    if len(frames.rows(comparison.decay, varied=varied)):
        yield from by_layer(comparison)


def _last_layers(comparison: Comparison) -> list[str | None]:
    last = set(frames.layers(comparison).values())
    return [layer for layer in _layers(comparison) if layer is None or layer in last]


def by_gate(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each gate; each model's last one first of all."""
    gates = comparison.masks[["model", "layer"]].drop_duplicates()
    last = set(gates.groupby("model")["layer"].last().items())
    for model, layer in gates.itertuples(index=False, name=None):
        yield Subject({"model": model, "gate": layer}, main=(model, layer) in last)


def by_pair(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each pair of models of which one has several layers; those with the first model before all."""
    pairs = comparison.matching.groupby(["model", "other"], sort=False).size()
    for model, other in pairs[pairs > 1].index:
        yield Subject({"model": model, "other": other}, main=model == frames.models(comparison)[0])


def by_matched_layers(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each pair of models and of layers in the same place; the first model's last layer before all."""
    first, last = frames.models(comparison)[0], frames.layers(comparison)
    names = ["model", "other", "layer"]
    for model, other, layer in (
        comparison.matched[names].drop_duplicates().itertuples(index=False, name=None)
    ):
        yield Subject(
            {"model": model, "other": other, "layer": layer},
            main=(model, layer) == (first, last[first]),
        )
