"""Plain words in Markdown's writing: what comes from tables stands in galleries and pages as text alone."""

import re
from typing import Any


class Marked(str):
    """Markdown already: it stands in a table as it is."""


_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*_~|$"}


def escaped(words: str) -> str:
    """Write words so that no page takes a sign of theirs for a mark of its own; line breaks become spaces.

    Brackets are left alone but where an address would follow, as intervals have them.
    """
    words = " ".join(words.split())
    words = "".join(_SIGNS.get(sign, sign) for sign in words)
    words = re.sub(r"\](?=[(\[:])", r"\\]", words)
    words = re.sub(r"(?i)\b(www)\.", r"\1\\.", words.replace("://", "\\://").replace("@", "\\@"))
    return re.sub(r"^([-+](?= |$)|#|[-=]+$|\d+(?=[.)](?: |$)))", _not_a_mark, words)


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out rows, each by its columns' names, as a table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    return value if isinstance(value, Marked) else escaped(str(value))


def _not_a_mark(found: re.Match[str]) -> str:
    """Keep the beginning of a paragraph from being a list or a heading."""
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"
