"""Figures whose text LaTeX sets: settings of matplotlib, and plain words escaped for LaTeX."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from channelscope.errors import UserError

PROGRAMS = ("latex", "dvipng")
FONTS: dict[str, Any] = {
    "text.usetex": True,
    "font.family": "serif",
    "font.serif": ["Times"],
    "text.latex.preamble": r"\usepackage{textcomp}",
}
# What LaTeX reads as a command, and the signs of our own labels that its text fonts lack.
_SIGNS = {
    **{sign: f"\\{sign}" for sign in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u00a0": "~",
    "…": r"\ldots{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "←": r"$\leftarrow$",
    "→": r"$\rightarrow$",
    "↔": r"$\leftrightarrow$",
    "±": r"$\pm$",
    "²": r"$^2$",
    "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "†": r"$\dagger$",
}


def check_latex() -> None:
    """Raise UserError where LaTeX is missing."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise UserError(
            f"Drawing with LaTeX needs the program {' and '.join(missing)}: install TeX (on "
            "Debian: apt install texlive-latex-extra cm-super dvipng) or draw without --latex."
        )


def escape_latex(words: str) -> str:
    """Return plain words as LaTeX writes them.

    >>> print(escape_latex("50 % of $x_1, ρ = −0.5"))
    50 \\% of \\$x\\_1, $\\rho$ = $-$0.5
    """
    return re.sub(" {2,}", r"\\quad ", "".join(_SIGNS.get(sign, sign) for sign in words))


def escape_texts(figure: Figure) -> None:
    """Escape a drawn figure's texts; mark bold ones, as LaTeX ignores a font's weight."""
    for text in figure.findobj(Text):
        text.set_text("\n".join(_escape_line(text, line) for line in text.get_text().splitlines()))
    formatters = {
        id(axis.major.formatter): axis.major.formatter
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
    }
    for formatter in formatters.values():
        if isinstance(formatter, FixedFormatter):
            formatter.seq = [escape_latex(words) for words in formatter.seq]


def _escape_line(text: Any, line: str) -> str:
    bold = text.get_fontweight() in ("bold", "heavy") and line
    return rf"\textbf{{{escape_latex(line)}}}" if bold else escape_latex(line)


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn matplotlib's many lines about LaTeX into one sentence; raises UserError."""
    try:
        yield
    except RuntimeError as error:
        if "latex" not in str(error).lower() and "dvipng" not in str(error).lower():
            raise
        reason = next(
            (line[2:] for line in str(error).splitlines() if line.startswith("! ")), "see its log"
        )
        raise UserError(
            f"LaTeX cannot set the figure's text ({reason.rstrip('.')}): draw without --latex."
        ) from error
