"""Markdown of plain words: what comes from tables shows in galleries and pages as text alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


class Markdown(str):
    """Markdown already: it is put into a table as it is."""


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*_~|$"}


def escape(text: str) -> str:
    """Escape what Markdown would take for a mark; line breaks become spaces.

    Brackets stay, as intervals have them, but where an address would follow.
    """
    text = "".join(_ESCAPES.get(sign, sign) for sign in " ".join(text.split()))
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"(?i)\b(www)\.", r"\1\\.", text.replace("://", "\\://").replace("@", "\\@"))
    # At the beginning, a number or a sign would make a list or a heading of a paragraph.
    text = re.sub(r"^(\d+)(?=[.)](?: |$))", r"\1\\", text)
    return re.sub(r"^(?=[-+](?: |$)|#|[-=]+$)", r"\\", text)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows, each by its columns' names, as a table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *(_format_row(row, columns) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _format_row(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [
        row[name] if isinstance(row[name], Markdown) else escape(str(row[name])) for name in columns
    ]
