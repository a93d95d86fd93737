"""What the figures have in common: panels, titles, legends, axes in percent."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from channelscope.figures.paper import (
    COLOURS,
    MARKERS,
    METHOD_LOOKS,
    STYLES,
    current_style,
)
from channelscope.figures.words import LABELLED, shorten

if TYPE_CHECKING:
    from channelscope.result import Result

SPREAD_NOTE = "; axes of uneven steps: logarithmic, linear around 0"
_EMPTY = "empty"
_PERCENT_STEPS = (1, 2, 2.5, 5, 10)
_MANY = 8  # fewer channels are never pressed together
_RADIUS = ", ε = "
_UNBROKEN = _RADIUS.replace(" ", "\u00a0")


class SizedFigure(Figure):
    """A figure as wide as the style says, which grows by what is written around its panels.

    No higher than ``Style.highest``, as long as its panels are not made lower than ``least``.

    Args:
        panels: height of all panels, with what stands between them, in inches.
        around: height of what is around them, in inches.
        least: the least height of all panels, in inches.
    """

    def __init__(self, panels: float, around: float, least: float) -> None:
        self.panels, self.around, self.least = panels, around, least
        super().__init__(layout="constrained")
        self.grow(0)

    def grow(self, inches: float) -> None:
        """Make room for what is written around the panels."""
        style = current_style()
        self.around += inches
        panels = min(self.panels, max(self.least, style.highest - self.around))
        self.set_size_inches(style.width, panels + self.around)


def make_figure(height: float, beside: float = 0.25, least: float | None = None) -> SizedFigure:
    """Make a figure without panels, as wide as the style says.

    Args:
        height: of all panels, in inches for text of the default size.
        beside: height of the labels below them, likewise; title and legend make their own room.
        least: the height below which panels are not squeezed where a page is not high enough.
    """
    scale = _scale()
    least = min(height, 0.55) if least is None else min(height, least)
    return SizedFigure(height * scale, beside * scale, least * scale)


def _scale() -> float:
    return current_style().size / STYLES["default"].size


def make_grid(
    rows: int,
    columns: int,
    height: float,
    beside: float = 0.25,
    least: float = 0.55,
    **options: Any,
) -> tuple[SizedFigure, np.ndarray]:
    """Make a figure with panels (rows, columns), as wide as the style says.

    Args:
        rows, columns: of panels.
        height: of each row, in inches for text of the default size.
        beside: height of the last row's labels, likewise.
        least: the height below which a row is not squeezed where a page is not high enough.
        options: those of ``Figure.subplots``.
    """
    figure = make_figure(height * rows, beside, least * rows)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        shrink_ticks(ax)
    return figure, axes


def make_panels(
    rows: int,
    columns: int,
    height: float,
    beside: float = 0.25,
    *,
    across: float = 1.35,
    least: float = 0.55,
    sharex: Literal["all", "row"] | None = None,
    sharey: Literal["all", "row"] | None = None,
) -> tuple[SizedFigure, np.ndarray]:
    """Make a figure with panels (rows, columns), in a grid: rows stand side by side where they fit.

    A wider style so has more of them beside each other rather than wider ones.

    Args:
        rows: what is compared, such as models.
        columns: panels of each.
        height: of a panel, in inches for text of the default size.
        beside: height of the last row's labels, likewise.
        across: the least width of a panel, likewise.
        least: the least height of a panel, likewise.
        sharex, sharey: whether all panels, or those of a row, share the axis.
    """
    fitting = int(current_style().width / (across * columns * _scale()))
    lines = math.ceil(rows / min(rows, max(1, fitting)))
    beside_each_other = math.ceil(rows / lines)
    figure = make_figure(height * lines, beside, least * lines)
    grid = figure.add_gridspec(lines, beside_each_other * columns)
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(axes.shape):
        line, block = divmod(row, beside_each_other)
        first = {"all": axes[0, 0], "row": axes[row, 0], None: None}
        shared = {"sharex": first[sharex], "sharey": first[sharey]}
        ax = figure.add_subplot(grid[line, block * columns + column], **shared)
        axes[row, column] = ax
        inner = column > 0 or (sharey == "all" and block > 0)
        below = row + beside_each_other < rows
        shrink_ticks(ax)
        labelled = {"labelbottom": not (sharex == "all" and below)}
        ax.tick_params(**labelled, labelleft=not (sharey is not None and inner))
    return figure, axes


def list_bottom(axes: np.ndarray) -> list[Axes]:
    """Return those of ``make_panels`` below which there is no other."""
    lowest: dict[int, Axes] = {}
    for ax in axes.flat:
        lowest[ax.get_subplotspec().colspan.start] = ax
    return list(lowest.values())


def write_above(ax: Axes, text: str, **look: Any) -> None:
    """Write above a panel's titles; a title's distance would be that of all three of a panel."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    size = current_style().small
    ax.annotate(text, (0.5, 1), (0, 2.1 * size), ha="center", size=size, **place, **look)


def write_beside(
    ax: Axes, places: Float[np.ndarray, "n 2"], texts: Sequence[str], **look: Any
) -> None:
    """Write short texts beside their places in the data, over no place and no text where it can be.

    What is drawn before sets the axes' limits.
    """
    size = current_style().small
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = ax.transData.transform(places) * 72 / figure.dpi
    taken = list(points)
    sides = size * np.array([[0.7, 0], [-0.7, 0], [0, 0.9], [0, -0.9], [1.4, 0], [-1.4, 0]])
    for place, point, text in zip(places, points, texts, strict=True):
        # The side from which what is nearest is furthest, the first of equal ones.
        apart = np.abs((point + sides)[:, None] - taken) / (
            0.6,
            0.9,
        )  # a letter is higher than wide
        gaps = apart.max(2).min(1)
        side = sides[int(np.argmax(np.minimum(gaps, size)))]
        taken.append(point + side)
        how: dict[str, Any] = {"ha": "center", "va": "center_baseline", "size": size}
        ax.annotate(text, tuple(place), tuple(side), textcoords="offset points", **how, **look)


def list_top(axes: np.ndarray) -> list[Axes]:
    """Return those of ``make_panels`` above which there is no other."""
    return [ax for ax in axes.flat if ax.get_subplotspec().is_first_row()]


def list_left(axes: np.ndarray) -> list[Axes]:
    """Return those of ``make_panels`` to whose left there is no other."""
    return [ax for ax in axes.flat if ax.get_subplotspec().is_first_col()]


def shrink_ticks(ax: Axes) -> None:
    """Set small ticks. Not by the style: the user's would rule later drawings."""
    ax.tick_params(labelsize=current_style().small, length=2.5, width=0.6)


def add_title(figure: Figure, text: str) -> None:
    """Write above a figure what it shows, where the style has titles."""
    style = current_style()
    if style.title:
        lines = wrap_text(text, 44)
        figure.suptitle("\n".join(lines), x=0.02, ha="left")
        _grow(figure, len(lines) * (style.size + 1) + 3)


def _grow(figure: Figure, points: float) -> None:
    """Make room for lines of text, whose heights without leading are these points together."""
    if isinstance(figure, SizedFigure):
        figure.grow(points * 1.2 * current_style().leading / 72)


def wrap_text(text: str, characters: int) -> list[str]:
    """Break a text into lines; ``characters`` fit into one in the default style."""
    return textwrap.wrap(text, _count_fitting(characters))


def _count_fitting(characters: int) -> int:
    """Return how many characters fit where so many do in the default style."""
    default, style = STYLES["default"], current_style()
    return int(characters * style.width / default.column * default.size / style.size)


def wrap_note(note: str) -> str:
    """Break a note below a figure into lines, but not an attack's name from its radius."""
    lines = wrap_text(note.replace(_RADIUS, _UNBROKEN), 58)
    return "\n".join(lines).replace(_UNBROKEN, _RADIUS)


def add_legend(
    figure: Figure, handles: Sequence[Artist] = (), note: str = "", key: Sequence[str] = ()
) -> None:
    """Write below a figure what its marks mean: handles, in as many columns as fit.

    Args:
        figure: the figure.
        handles: they have labels.
        note: explains more, where the style has notes; lines of it begin anew.
        key: lines that stand above it in every style.
    """
    style = current_style()
    notes = note.split("\n") if note and style.notes else []
    lines = [*key, *(line for part in notes for line in wrap_note(part).splitlines())]
    if not handles and not lines:
        return
    columns = _count_columns([str(handle.get_label()) for handle in handles])
    title = "\n".join(lines) or None
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)
    rows = math.ceil(len(handles) / columns)
    _grow(figure, (len(lines) + 1.15 * rows + 0.5) * style.small)


def _count_columns(labels: Sequence[str]) -> int:
    """Return how many columns of a legend fit beside each other."""
    fitting = _count_fitting(62)
    for columns in range(len(labels), 1, -1):
        parts = np.array_split(np.array([len(label) + 7 for label in labels]), columns)
        if sum(max(part) for part in parts) <= fitting:
            return columns
    return 1


def add_data_legend(
    figure: Figure,
    adversarial: str,
    linestyle: Literal["-", "none"] = "none",
    *further: Artist,
    note: str = "",
    key: Sequence[str] = (),
    natural: Artist | None = None,
) -> None:
    """Say below a figure which colour is natural and which adversarial, made by which attack.

    Args:
        figure: the figure.
        adversarial: the attack, in words.
        linestyle: of both handles.
        further: more handles.
        note, key: see ``add_legend``.
        natural: the handle of natural images where they are drawn otherwise.
    """
    look: dict[str, Any] = {"linestyle": linestyle, "marker": "o", "markersize": 3.5}
    natural = natural or Line2D([], [], color=COLOURS["natural"], **look)
    natural.set_label("natural")
    label = f"adversarial ({adversarial})"
    handles = [natural, Line2D([], [], color=COLOURS["adversarial"], label=label, **look), *further]
    add_legend(figure, handles, note, key)


def make_area_handle() -> Patch:
    """Make the legend's handle of natural images that are drawn as a pale area."""
    return Patch(facecolor=(COLOURS["natural"], 0.25), linewidth=0)


def add_model_legend(
    figure: Figure, result: "Result", models: Iterable[str], note: str, *further: Artist
) -> None:
    """Say below a figure which line or dot is which of the models, under a note."""
    looks = choose_looks(result)
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 3.5}
    handles = [Line2D([], [], label=shorten(name), **dot, **looks[name]) for name in models]
    add_legend(figure, [*handles, *further], note)


def choose_looks(result: "Result") -> dict[str, dict[str, Any]]:
    """Return colour and marker of each model: a method has its own in every result.

    A base method has a colour, a gate a marker: trades-cifs has the colour of trades and the marker
    of cifs. Further networks of one method have its colour and other markers; those of unknown
    methods take looks that are free.
    """
    looks: dict[str, dict[str, Any]] = {}
    used: set[tuple[str, str]] = set()
    free = list(METHOD_LOOKS.values())
    named = {model: _look_of_method(known.get("method")) for model, known in _models(result)}
    taken = {look[0] for look in named.values() if look}
    for model, look in named.items():
        if look is None:
            look = next((each for each in free if each[0] not in taken), free[len(looks) % 10])
            taken.add(look[0])
        colour, marker = look
        markers = [marker, *(each for each in MARKERS if each != marker)]
        marker = next((each for each in markers if (colour, each) not in used), marker)
        used.add((colour, marker))
        looks[model] = {"color": colour, "marker": marker}
    return looks


def _models(result: "Result") -> Iterable[tuple[str, Any]]:
    return result.meta["models"].items()


def _look_of_method(method: str | None) -> tuple[str, str] | None:
    """Return colour and marker of a method; None for an unknown one."""
    if method in METHOD_LOOKS:
        return METHOD_LOOKS[method]
    base, _, gate = (method or "").partition("-")
    if base not in METHOD_LOOKS:
        return None
    return METHOD_LOOKS[base][0], METHOD_LOOKS.get(gate, METHOD_LOOKS[base])[1]


def label_percent(ax: Axes, label: str, which: Literal["x", "y"] = "y") -> None:
    """Name an axis of fractions, unless ``label`` is empty, and print them in percent."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}"))
    axis.set_major_locator(MaxNLocator("auto", steps=_PERCENT_STEPS, min_n_ticks=2))
    axis.set_label_text(f"{label} (%)" if label else "")


def write_in_panel(ax: Axes, reason: str) -> None:
    """Say in a panel why nothing is drawn there; ``is_empty`` knows it by this."""
    ax.set_gid(_EMPTY)
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.4")


def is_empty(figure: Figure) -> bool:
    """Tell whether every panel of a figure says that nothing is drawn there."""
    return bool(figure.axes) and all(ax.get_gid() == _EMPTY for ax in figure.axes)


def start_at_zero(*sharing: Axes) -> None:
    """Start the axis that these axes share at 0, unless there are values below it.

    Layers without a ReLU have them. To be called once all is drawn, as it ends the adaptation of
    the axis to what is drawn.
    """
    if min(ax.dataLim.y0 for ax in sharing) >= 0:
        highest = max(ax.dataLim.y1 for ax in sharing)
        sharing[0].set_ylim(0, 1.05 * highest if 0 < highest < np.inf else 1)


def spread_small(ax: Axes, which: Literal["x", "y"], *values: np.ndarray) -> bool:
    """Make an axis symmetric-logarithmic where few channels would press all others together.

    That is where three quarters of the values that are not 0 lie within 5 % of the largest one, as
    where a gate's mask leaves a few channels. Around 0 the axis is linear. Returns whether it is.
    """
    sizes = np.abs(np.concatenate([np.asarray(each, float).ravel() for each in values]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if len(sizes) < _MANY or np.quantile(sizes, 0.75) > 0.05 * sizes.max():
        return False
    decade = math.floor(math.log10(sizes.max()))
    lowest = max(math.floor(math.log10(np.median(sizes))), decade - 3)
    scale: dict[str, Any] = {"linthresh": 10.0**lowest, "linscale": 0.4}
    (ax.set_xscale if which == "x" else ax.set_yscale)("symlog", **scale)
    axis = ax.xaxis if which == "x" else ax.yaxis
    powers = [10.0**power for power in range(lowest, decade + 1, 1 + (decade - lowest) // 4)]
    powers = powers[1:] if len(powers) > 2 else powers  # the lowest is too near 0
    lower = [-power for power in reversed(powers)]
    if which == "x":  # on which numbers stand side by side
        lower, powers = lower[:1], powers[-2:]
    axis.set_major_locator(FixedLocator([*lower, 0, *powers]))
    # By steps that grow narrower an axis is known as logarithmic.
    steps = np.outer(10.0 ** np.arange(lowest, decade + 1), np.arange(2, 10)).ravel()
    axis.set_minor_locator(FixedLocator([*-steps[::-1], *steps]))
    axis.set_tick_params(which="minor", length=1.5, width=0.4)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    return True


def draw_heatmap(
    ax: Axes, table: pd.DataFrame, *, write: str | None = None, **look: Any
) -> QuadMesh:
    """Draw a table as cells in shades, its rows and columns named, and written in if they fit.

    Args:
        ax: where.
        table: the numbers; those that are NaN are left grey.
        write: how a cell's number is formatted, such as ".2f"; None writes none.
        look: cmap, vmin, vmax.
    """
    from seaborn import heatmap  # takes long to import, and few figures need it

    small = current_style().small
    ax.set_facecolor("0.88")
    size = {"size": small}
    written = {"annot": write is not None, "fmt": write or ".2g", "annot_kws": size}
    heatmap(table, ax=ax, cbar=False, xticklabels=True, yticklabels=True, **written, **look)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    shrink_ticks(ax)
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    return mesh


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
