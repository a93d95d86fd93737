"""How a figure looks: a paper's width and fonts, fixed colours, the same bytes for the same input.

The style in force is that of the surrounding ``with style("icml"):``; figures take their width and
the size of their text from it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.text import Text
from PIL import Image, ImageChops, ImageStat

from channelscope.errors import UserError, suggest
from channelscope.figures import scripts, tex
from channelscope.files import atomic_write

# Okabe and Ito's palette, safe for the colour-blind: two colours for data, four for methods;
# the other methods have Tol's.
COLOURS = {"natural": "#0072B2", "adversarial": "#D55E00"}
MARKERS = "osDp^v<>PXhd"
# A method has its colour and marker for good: a base method the colour, a gate the marker.
METHOD_LOOKS = {
    "standard": ("#000000", "o"),
    "at": ("#009E73", "s"),
    "cifs": ("#CC79A7", "D"),
    "cas": ("#E69F00", "p"),
    "trades": ("#56B4E9", "^"),
    "mart": ("#999933", "v"),
    "fat": ("#332288", "<"),
    "wat": ("#882255", ">"),
    "hbar": ("#8C564B", "P"),
    "fsr": ("#44AA99", "X"),
    "eas": ("#AA4499", "h"),
    "kap": ("#777777", "d"),
}
LOOK: dict[str, Any] = {
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlepad": 3,
    "axes.titley": 1.0,  # no tick labels stand above panels: finding that out takes long
    "axes.labelpad": 2,
    "lines.linewidth": 1,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "text.parse_math": False,  # a class may be called "$5_note"
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "channelscope",
    "savefig.dpi": 200,
}
# Dates and version numbers would make two drawings of the same data differ.
METADATA: dict[str, dict[str, None]] = {
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {},
    ".svg": {"Date": None, "Creator": None},
}
FAITHFUL = 0.1  # of 255, mean over pixels: curves and dots stay well below, photographs do not
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Style:
    """The measures of a paper.

    Args:
        column, text: width of a column and of the whole text, in inches.
        size: of the figures' text, in points.
        font: family of the text; DejaVu Sans has what it lacks, and both come with matplotlib.
        leading: distance of lines, in units of the font's own.
        page: height of the whole text, in inches.
        height: the largest height of a figure, as a share of ``page``.
        title, notes: whether figures have a title above and explanations below, which in a paper
            are the caption's.
        wide: whether figures are as wide as the text rather than a column.
        latex: whether LaTeX sets the text.
    """

    column: float
    text: float
    size: float
    font: str = "STIXGeneral"
    leading: float = 1.0
    page: float = 9.0
    height: float = 0.45
    title: bool = False
    notes: bool = False
    wide: bool = False
    latex: bool = False

    @property
    def width(self) -> float:
        """Width of a figure, in inches."""
        return self.text if self.wide else self.column

    @property
    def highest(self) -> float:
        """The largest height of a figure, in inches."""
        return self.height * self.page

    @property
    def small(self) -> float:
        """Size of the least important text, in points."""
        return self.size - 0.5

    @property
    def settings(self) -> dict[str, Any]:
        """The rcParams of matplotlib."""
        sizes = {
            "font.size": self.size,
            "axes.titlesize": self.size,
            "axes.labelsize": self.size,
            "legend.fontsize": self.small,
            "legend.title_fontsize": self.small,
            "figure.titlesize": self.size + 1,
        }
        fonts = tex.FONTS if self.latex else {"font.family": [self.font, "DejaVu Sans"]}
        return LOOK | sizes | fonts


# The widths are those of the templates of ICML, NeurIPS (one column) and IEEE. STIX, which looks
# like Times, is narrower than DejaVu Sans and may be set larger in the same place.
STYLES = {
    "default": Style(
        column=3.25,
        text=6.75,
        page=10.0,
        size=7,
        font="DejaVu Sans",
        leading=1.2,
        title=True,
        notes=True,
    ),
    "icml": Style(column=3.25, text=6.75, size=8),
    "neurips": Style(column=5.5, text=5.5, size=9),
    "ieee": Style(column=3.5, text=7.16, size=8, page=9.25),
}
_current = ContextVar("style", default=STYLES["default"])


def current_style() -> Style:
    """Return the style in force."""
    return _current.get()


@contextmanager
def style(
    name: str | None = None,
    *,
    wide: bool = False,
    latex: bool = False,
    title: bool = False,
    notes: bool = False,
    height: float | None = None,
) -> Iterator[Style]:
    """Draw and save in the style of a paper: ``with style("icml"): result.plot("relevance")``.

    Args:
        name: default, icml, neurips or ieee; None for the style that is in force.
        wide: make figures as wide as the paper's text rather than one column.
        latex: let LaTeX set the text; the programs latex and dvipng are needed.
        title, notes: write a title above and explanations below, in the styles of papers too,
            where captions say both.
        height: the largest height of a figure, as a share of the text's, in (0, 1]; 0.45 unless
            given. Figures of very many panels or rows may become higher.

    Raises:
        UserError: for an unknown name, a height outside (0, 1], or where LaTeX is missing.
    """
    if name is not None and name not in STYLES:
        raise UserError(
            f"No style {name!r}; choose from {', '.join(STYLES)}.{suggest(name, STYLES)}"
        )
    if height is not None and not 0 < height <= 1:
        raise UserError(f"height is {height}: name a share of the text's height, in (0, 1].")
    chosen = current_style() if name is None else STYLES[name]
    token = _current.set(
        replace(
            chosen,
            wide=wide or chosen.wide,
            latex=latex or chosen.latex,
            title=title or chosen.title,
            notes=notes or chosen.notes,
            height=chosen.height if height is None else height,
        )
    )
    try:
        if latex:
            tex.check_latex()
        yield current_style()
    finally:
        _current.reset(token)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style in force whatever the user's settings are, and leave these alone.

    Letters that the style's fonts lack are drawn in other fonts, or else as Latin letters.
    """

    @wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with context(["default", current_style().settings]):
            with scripts.ignore_missing():  # some figures are laid out while they are drawn
                figure = draw(*args, **kwargs)
                fonts = () if current_style().latex else scripts.find_fonts(figure)
                if fonts:
                    with context({"font.family": [*rcParams["font.family"], *fonts]}):
                        figure = draw(*args, **kwargs)
            if not current_style().latex:
                scripts.transliterate_texts(figure)
            for text in figure.findobj(Text):
                text.set_linespacing(1.2 if current_style().latex else current_style().leading)
            if current_style().latex:
                tex.escape_texts(figure)
            # The layout stays: a figure with a layout engine, "none" included, is drawn twice at
            # every save. It also makes the texts, in the style that is in force now.
            with tex.readable_failures():
                if engine := figure.get_layout_engine():
                    engine.execute(figure)
            figure.set_layout_engine(None)
            for ax in figure.axes:
                for axis in (ax.xaxis, ax.yaxis):
                    axis.get_ticklabels()  # of those ticks that the layout's sizes leave
            _align_ylabels(figure)
        return figure

    return draw_in_style


def _align_ylabels(figure: Figure) -> None:
    """Put the y labels of panels in one column below each other, and fix their places.

    ``Figure.align_ylabels`` measures all panels of the column anew for every label that it lays out
    or draws, which took most of the time of figures with many panels.
    """
    columns: dict[int, list[Axes]] = {}
    for ax in figure.axes:
        if ax.get_ylabel() and (spec := ax.get_subplotspec()):
            columns.setdefault(spec.colspan.start, []).append(ax)
    for column in columns.values():
        for ax in column:
            ax.yaxis.get_tightbbox()  # puts the label beside the ticks
        right = min(ax.yaxis.label.get_window_extent().x1 for ax in column)
        for ax in column:
            place = ax.transAxes.inverted().transform((right, 0))[0]
            ax.yaxis.set_label_coords(place, 0.5)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as .pdf, .png or .svg, by the path's ending, in the style in force.

    The same figure gives the same bytes. In a .pdf that LaTeX sets, only the six letters by which
    matplotlib tells subsets of fonts apart differ.

    Raises:
        UserError: for another ending, or where LaTeX fails.
    """
    if path.suffix not in METADATA:
        raise UserError(
            f"Cannot write a figure as {path.name}; end its name in {', '.join(METADATA)}."
        )
    styles: list[str | dict[str, Any]] = ["default", current_style().settings]
    with context(styles), atomic_write(path) as part, tex.readable_failures():
        if path.suffix == ".png":
            _save_png(figure, part)
        else:
            figure.savefig(part, metadata=METADATA[path.suffix])
    return path


def _save_png(figure: Figure, path: Path) -> None:
    """Write a .png, with 256 colours where they suffice, in less than half the space."""
    dpi = rcParams["savefig.dpi"]
    canvas, figure_dpi = figure.canvas, figure.dpi
    try:
        figure.dpi = dpi
        drawing: Any = FigureCanvasAgg(figure)  # untyped
        drawing.draw()
        full = Image.fromarray(np.asarray(drawing.buffer_rgba())).convert("RGB")
    finally:
        figure.dpi = figure_dpi
        figure.set_canvas(canvas)
    few = full.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    change = ImageChops.difference(full, few.convert("RGB"))
    faithful = np.mean(ImageStat.Stat(change).mean) < FAITHFUL
    (few if faithful else full).save(path, format="PNG", dpi=(dpi, dpi))


def check_formats(formats: Sequence[str]) -> None:
    """Raise UserError for a format that figures are not written in."""
    known = [ending[1:] for ending in METADATA]
    for name in formats:
        if name not in known:
            raise UserError(
                f"No format {name!r}; choose from {', '.join(known)}.{suggest(name, known)}"
            )


def save_with_data(
    figure: Figure, data: pd.DataFrame, stem: Path, formats: Sequence[str]
) -> list[Path]:
    """Save a figure as ``stem``.FORMAT, and what it draws as ``stem``.csv; return the pictures."""
    with atomic_write(stem.with_name(f"{stem.name}.csv")) as part:
        data.to_csv(part, index=False, lineterminator="\n")
    return [save_figure(figure, stem.with_name(f"{stem.name}.{ending}")) for ending in formats]
