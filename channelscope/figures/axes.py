"""What the figures have in common: panels, titles, the legend of the data, axes in percent."""

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

from channelscope.figures.frames import short
from channelscope.figures.paper import COLOURS, MODEL_COLOURS, MODEL_MARKERS, STYLES, current

_RADIUS = ", ε = "
_UNBROKEN = _RADIUS.replace(" ", "\u00a0")


def blank(height: float) -> Figure:
    """Make a figure without panels, as wide as the style says; `height` as in `grid`."""
    size = (current().width, height * current().size / STYLES["default"].size)
    return Figure(figsize=size, layout="constrained")


def grid(
    rows: int, columns: int, height: float, beside: float = 0.75, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with panels (rows, columns), as wide as the style says.

    `height` in inches is each row's, `beside` that of the title, the legend and the last row's labels, both for text
    of the default size; `options` are those of ``Figure.subplots``.
    """
    figure = blank(height * rows + beside)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        small_ticks(ax)
    return figure, axes


def small_ticks(ax: Axes) -> None:
    """Not by the style: the user's would rule later drawings."""
    ax.tick_params(labelsize=current().small, length=2.5, width=0.6)


def title(figure: Figure, text: str) -> None:
    """Say above a figure what it shows, in lines as long as it is wide."""
    figure.suptitle("\n".join(wrapped(text, 44)), x=0.02, ha="left")


def wrapped(text: str, characters: int) -> list[str]:
    """Break a text into lines; `characters` fit into one in the default style."""
    default, style = STYLES["default"], current()
    fit = characters * style.width / default.column * default.size / style.size
    return textwrap.wrap(text, int(fit) if style != default else characters)


def data_legend(
    figure: Figure,
    adversarial: str,
    linestyle: Literal["-", "none"] = "none",
    *further: Artist,
    note: str = "",
    natural: Artist | None = None,
) -> None:
    """Say below a figure which colour is natural and which adversarial, made by which attack.

    `note` explains more; `natural` is the handle of natural images where they are drawn otherwise.
    """
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[data],
            label=label,
            linestyle=linestyle,
            marker="o",
            markersize=3.5,
        )
        for data, label in (("natural", "natural"), ("adversarial", f"adversarial ({adversarial})"))
    ]
    if natural is not None:
        natural.set_label("natural")
    key = [natural or handles[0], handles[1], *further]
    columns = 1 if further else 2
    figure.legend(
        handles=key, title=in_lines(note) or None, loc="outside lower center", ncols=columns
    )


def area() -> Patch:
    """The handle of natural images that are drawn as a pale area."""
    return Patch(facecolor=(COLOURS["natural"], 0.25), linewidth=0)


def in_lines(note: str) -> str:
    """Break a note below a figure into lines, but not an attack's name from its radius."""
    return "\n".join(wrapped(note.replace(_RADIUS, _UNBROKEN), 58)).replace(_UNBROKEN, _RADIUS)


def model_legend(figure: Figure, models: Sequence[str], heading: str, *further: Artist) -> None:
    """Say below a figure which line or dot is which of the comparison's models, all of them, under a heading."""
    handles = [
        Line2D([], [], label=short(name), linestyle="none", markersize=3.5, **model_look(index))
        for index, name in enumerate(models)
    ]
    figure.legend(handles=[*handles, *further], title=heading, loc="outside lower center", ncols=3)


def model_look(index: int) -> dict[str, Any]:
    """Give colour and marker of the comparison's model number `index`: the same ones in every figure."""
    return {
        "color": MODEL_COLOURS[index % len(MODEL_COLOURS)],
        "marker": MODEL_MARKERS[index % len(MODEL_MARKERS)],
    }


def in_percent(ax: Axes, label: str, which: Literal["x", "y"] = "y") -> None:
    """Name an axis of fractions, and print them in percent."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}"))
    axis.set_label_text(f"{label} (%)")


def empty(ax: Axes, reason: str) -> None:
    """Say in a panel why nothing is drawn there."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.4")


def from_zero(*sharing: Axes) -> None:
    """Start the axis that these axes share at 0, unless there are values below: layers without a ReLU have them.

    To be called once all is drawn, as it ends the adaptation of the axis to what is drawn.
    """
    if min(ax.dataLim.y0 for ax in sharing) >= 0:
        highest = max(ax.dataLim.y1 for ax in sharing)
        sharing[0].set_ylim(0, 1.05 * highest if 0 < highest < np.inf else 1)


def markers(channels: int) -> dict[str, Any]:
    """Dots for so many channels: the more, the smaller."""
    return {
        "marker": "o",
        "linestyle": "none",
        "markersize": float(np.clip(160 / channels, 1.2, 3.5)),
        "mew": 0,
    }
