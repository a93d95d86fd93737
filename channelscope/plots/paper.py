"""How a figure looks: one paper column, fixed colours, text kept as text, and the same bytes for the same input."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.figure import Figure

from channelscope.errors import UserError
from channelscope.files import replacing

# Okabe and Ito's palette, safe for the colour-blind: two colours for the data everywhere, the others for models.
COLOURS = {"natural": "#0072B2", "adversarial": "#D55E00"}
MODEL_COLOURS = ("#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MODEL_MARKERS = "osDp^v"  # 6 markers and 5 colours: 30 models look different
COLUMN = 3.25  # inches
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlepad": 3,
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
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}
P = ParamSpec("P")


def styled(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in our style whatever the user's settings are, and leave these alone."""

    @wraps(make)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", STYLE]):
            figure = make(*args, **kwargs)
            figure.align_ylabels()
            # Texts take their style, and the layout its room, when they are first drawn: now. The layout then stays,
            # which saves half of the time of every save.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return draw


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as .pdf, .png or .svg (by the path's ending): the same figure gives the same bytes."""
    if path.suffix not in METADATA:
        raise UserError(f"Cannot write a figure as {path.name}; end its name in {', '.join(METADATA)}.")
    with style.context(["default", STYLE]), replacing(path) as part:
        figure.savefig(part, metadata=METADATA[path.suffix])
    return path
