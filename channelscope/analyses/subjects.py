"""What single figures of a plot are about, and checks of tables, for several analyses."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from channelscope.analyses.base import Subject
from channelscope.figures.words import choose_layers, measured_layers

if TYPE_CHECKING:
    from channelscope.result import Result


def by_layer(result: "Result") -> Iterator[Subject]:
    """Return a figure for each measured layer, those of the models' last layers before all."""
    last = set(choose_layers(result).values())
    for layer in list_layers(result):
        yield Subject({"layer": layer}, main=layer is None or layer in last)


def list_layers(result: "Result", *, last: bool = False) -> list[str | None]:
    """Return the layers of figures: [None] where each model has but one, which needs no name.

    Args:
        result: what is drawn.
        last: only the models' last layers.
    """
    measured = measured_layers(result).values()
    if all(len(names) == 1 for names in measured):
        return [None]
    return list(dict.fromkeys(name for names in measured for name in names[-1 if last else 0 :]))


def check_layers(result: "Result", *tables: str) -> None:
    """Check that tables are of the measured layers; raises ValueError where one is not."""
    layers = {(model, name) for model, names in measured_layers(result).items() for name in names}
    for name in tables:
        table = result.select(name)
        if set(zip(table["model"], table["layer"], strict=True)) != layers:
            raise ValueError(f"{name} is of other layers than meta.json")
