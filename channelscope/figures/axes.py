"""What the figures have in common: panels, titles, legends, axes in percent."""

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from channelscope.figures.paper import (
    COLOURS,
    MODEL_COLOURS,
    MODEL_MARKERS,
    STYLES,
    current_style,
)
from channelscope.figures.words import LABELLED, shorten

_RADIUS = ", ε = "
_UNBROKEN = _RADIUS.replace(" ", "\u00a0")


def make_figure(height: float) -> Figure:
    """Make a figure without panels, as wide as the style says; ``height`` as in ``make_grid``."""
    style = current_style()
    size = (style.width, height * style.size / STYLES["default"].size)
    return Figure(figsize=size, layout="constrained")


def make_grid(
    rows: int, columns: int, height: float, beside: float = 0.75, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with panels (rows, columns), as wide as the style says.

    Args:
        rows, columns: of panels.
        height: of each row, in inches for text of the default size.
        beside: height of the title, the legend and the last row's labels, likewise.
        options: those of ``Figure.subplots``.
    """
    figure = make_figure(height * rows + beside)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        shrink_ticks(ax)
    return figure, axes


def shrink_ticks(ax: Axes) -> None:
    """Set small ticks. Not by the style: the user's would rule later drawings."""
    ax.tick_params(labelsize=current_style().small, length=2.5, width=0.6)


def add_title(figure: Figure, text: str) -> None:
    """Write above a figure what it shows, in lines as long as it is wide."""
    figure.suptitle("\n".join(wrap_text(text, 44)), x=0.02, ha="left")


def wrap_text(text: str, characters: int) -> list[str]:
    """Break a text into lines; ``characters`` fit into one in the default style."""
    default, style = STYLES["default"], current_style()
    fit = characters * style.width / default.column * default.size / style.size
    return textwrap.wrap(text, int(fit) if style != default else characters)


def wrap_note(note: str) -> str:
    """Break a note below a figure into lines, but not an attack's name from its radius."""
    return "\n".join(wrap_text(note.replace(_RADIUS, _UNBROKEN), 58)).replace(_UNBROKEN, _RADIUS)


def add_data_legend(
    figure: Figure,
    adversarial: str,
    linestyle: Literal["-", "none"] = "none",
    *further: Artist,
    note: str = "",
    natural: Artist | None = None,
) -> None:
    """Say below a figure which colour is natural and which adversarial, made by which attack.

    Args:
        figure: the figure.
        adversarial: the attack, in words.
        linestyle: of both handles.
        further: more handles.
        note: explains more.
        natural: the handle of natural images where they are drawn otherwise.
    """
    look: dict[str, Any] = {"linestyle": linestyle, "marker": "o", "markersize": 3.5}
    natural = natural or Line2D([], [], color=COLOURS["natural"], **look)
    natural.set_label("natural")
    label = f"adversarial ({adversarial})"
    handles = [natural, Line2D([], [], color=COLOURS["adversarial"], label=label, **look), *further]
    columns = 1 if further else 2
    title = wrap_note(note) or None
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)


def make_area_handle() -> Patch:
    """Make the legend's handle of natural images that are drawn as a pale area."""
    return Patch(facecolor=(COLOURS["natural"], 0.25), linewidth=0)


def add_model_legend(figure: Figure, models: Sequence[str], heading: str, *further: Artist) -> None:
    """Say below a figure which line or dot is which of the models, under a heading."""
    handles = [
        Line2D([], [], label=shorten(name), linestyle="none", markersize=3.5, **model_look(index))
        for index, name in enumerate(models)
    ]
    figure.legend(handles=[*handles, *further], title=heading, loc="outside lower center", ncols=3)


def model_look(index: int) -> dict[str, Any]:
    """Return colour and marker of the result's model number ``index``: the same in every figure."""
    return {
        "color": MODEL_COLOURS[index % len(MODEL_COLOURS)],
        "marker": MODEL_MARKERS[index % len(MODEL_MARKERS)],
    }


def label_percent(ax: Axes, label: str, which: Literal["x", "y"] = "y") -> None:
    """Name an axis of fractions, and print them in percent."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}"))
    axis.set_label_text(f"{label} (%)")


def write_in_panel(ax: Axes, reason: str) -> None:
    """Say in a panel why nothing is drawn there."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.4")


def start_at_zero(*sharing: Axes) -> None:
    """Start the axis that these axes share at 0, unless there are values below it.

    Layers without a ReLU have them. To be called once all is drawn, as it ends the adaptation of
    the axis to what is drawn.
    """
    if min(ax.dataLim.y0 for ax in sharing) >= 0:
        highest = max(ax.dataLim.y1 for ax in sharing)
        sharing[0].set_ylim(0, 1.05 * highest if 0 < highest < np.inf else 1)


def dot_look(channels: int) -> dict[str, Any]:
    """Return the look of dots for so many channels: the more, the smaller."""
    return {
        "marker": "o",
        "linestyle": "none",
        "markersize": float(np.clip(160 / channels, 1.2, 3.5)),
        "mew": 0,
    }


def number_classes(classes: Sequence[str]) -> list[str]:
    """Return lines that say which class a number is.

    None where there are too many, or their names are the numbers.
    """
    if len(classes) > LABELLED or list(classes) == [*map(str, range(len(classes)))]:
        return []
    names = [f"{number} {shorten(name)}" for number, name in enumerate(classes)]
    return wrap_text("   ".join(name.replace(" ", "\u00a0") for name in names), 52)
