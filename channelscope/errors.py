"""Errors that are the user's to mend, and texts from files made safe to show."""

import difflib
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

_LONGEST_MESSAGE = 2000  # characters

# ESC and C1's CSI steer a terminal, others turn the direction of reading or end a line; halves of
# surrogate pairs have no encoding. All lie below U+10000: four digits write each, as in JSON.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e"
    "\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class UserError(ValueError):
    r"""A mistake of the user; the message is one sentence that says what to do.

    Names in it may come from files: control characters are escaped, and an endless text is cut.

    >>> print(UserError("There is no file a\nb: check the path."))
    There is no file a\u000ab: check the path.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(escape(message))


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import all modules of a package, each of which enters what it has in a registry.

    Args:
        package: its name.
        path: its ``__path__``.

    Raises:
        UserError: for a module that cannot be imported, with the place of its mistake; its cause is
            the error as it was raised.
    """
    for module in iter_modules(path):
        name = f"{package}.{module.name}"
        try:
            import_module(name)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame.lineno for frame in frames if Path(frame.filename).stem == module.name]
            where = f", line {own[-1]}" if own else ""
            raise UserError(
                f"{Path(*name.split('.'))}.py cannot be imported{where} ({type(error).__name__}: "
                f"{error}): mend it, or remove it."
            ) from error


def suggest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message that suggests the names closest to an unknown one.

    >>> suggest("layer5", ["layer4", "layer4", "conv1"])
    " Did you mean 'layer4'?"
    >>> suggest("zzz", ["layer4"])
    ''
    """
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def join_first(names: Sequence[str], most: int, kind: str = "") -> str:
    """Name the first of some things, and tell how many more there are.

    >>> join_first(["conv1", "layer1", "layer2", "layer3"], 2, "layers")
    'conv1, layer1 and 2 more layers'
    >>> join_first(["conv1", "layer1"], 2)
    'conv1, layer1'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more {kind}".rstrip() if more > 0 else "")


def escape(text: str) -> str:
    r"""Escape the control characters of a text, line ends included, as JSON does.

    >>> print(escape("cat\x1b[2J"))
    cat\u001b[2J
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_lines(text: str) -> str:
    """Escape the control characters of a text, but for its line ends."""
    return "\n".join(map(escape, text.split("\n")))


def escape_value(value: object) -> object:
    """Escape the control characters of a template's value, if it is a plain text."""
    return escape_lines(value) if type(value) is str else value


def has_controls(value: Any) -> bool:
    """Return whether any text in plain values, as in JSON and keys included, has controls."""
    if isinstance(value, str):
        return _CONTROLS.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(has_controls, value)) or any(map(has_controls, value.values()))
    return isinstance(value, list | tuple) and any(map(has_controls, value))
