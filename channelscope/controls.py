"""Characters that show nothing and do something: texts from files come without them, or with them spelt."""

import re
from collections.abc import Mapping
from typing import Any

# Controls (ESC steers a terminal, and so does C1's CSI), what turns the direction of reading, separators of lines,
# halves of pairs, which no encoding has. All lie below U+10000, so that four digits spell each, as in JSON.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def escape(text: str) -> str:
    r"""Spell the controls in a text, new lines included, as JSON does.

    >>> print(escape("cat\x1b[2J"))
    cat\u001b[2J
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_lines(text: str) -> str:
    """Spell the controls in each line of a text."""
    return "\n".join(map(escape, text.split("\n")))


def escape_value(value: object) -> object:
    """Spell the controls in a value of a template, if it is a plain text."""
    return escape_lines(value) if type(value) is str else value


def has_controls(value: Any) -> bool:
    """Tell whether any text in plain values (as in JSON: lists, and dictionaries with their keys) has controls."""
    if isinstance(value, str):
        return _CONTROLS.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(has_controls, value)) or any(map(has_controls, value.values()))
    return isinstance(value, list | tuple) and any(map(has_controls, value))
