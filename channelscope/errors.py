"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's; the message is one clear sentence that says what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Name the closest known names, as the end of an error message.

    >>> suggest("layer5", ["layer4", "conv1"])
    " Did you mean 'layer4'?"
    >>> suggest("zzz", ["layer4"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
