"""What is drawn in a figure, for tests that compare it with tables."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from channelscope.figures.axes import choose_looks
from channelscope.figures.paper import COLOURS, METHOD_LOOKS
from channelscope.result import Result

MODEL_COLOURS = [colour for colour, _ in METHOD_LOOKS.values()]  # standard, at, cifs, cas, ...
NATURAL, ADVERSARIAL = (colour.lower() for colour in COLOURS.values())


def read_texts(figure: Figure) -> list[str]:
    """Return all visible texts of a figure."""
    texts = figure.findobj(Text)
    return [text.get_text() for text in texts if text.get_text() and text.get_visible()]


def join_texts(figure: Figure) -> str:
    """Return all visible texts of a figure in one line."""
    return " ".join(" ".join(read_texts(figure)).split())


def lines_of_colour(ax: Axes, colour: str) -> list[np.ndarray]:
    """Return the points of each line of a colour."""
    return [line.get_xydata() for line in ax.lines if to_hex(line.get_color()) == colour.lower()]


def lines_of_model(ax: Axes, result: Result, index: int) -> list[np.ndarray]:
    """Return the points of each line of the colour of a result's model of this number."""
    look = list(choose_looks(result).values())[index]
    return lines_of_colour(ax, look["color"])


def dashed_lines(ax: Axes) -> list[float]:
    """Return where the vertical dashed lines of an axes are."""
    return [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]


def rows_of(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows whose columns have the wanted values; ``class_`` stands for class."""
    for column, value in wanted.items():
        table = table[table[column.rstrip("_")] == value]
    return table
