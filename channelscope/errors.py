"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable

from channelscope.controls import escape

_LONGEST = 2000  # letters


class UserError(ValueError):
    r"""A mistake of the user's; the message is one clear sentence that says what to do.

    Names in it may come from files: controls are spelt, and a text that no one would read is cut short.

    >>> print(UserError("There is no file a\nb: check the path."))
    There is no file a\u000ab: check the path.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > _LONGEST:
            sentence = f"{sentence[: _LONGEST // 2]} ... {sentence[-_LONGEST // 2 :]}"
        super().__init__(escape(sentence))


def suggest(name: str, known: Iterable[str]) -> str:
    """Name the closest known names, as the end of an error message.

    >>> suggest("layer5", ["layer4", "conv1"])
    " Did you mean 'layer4'?"
    >>> suggest("zzz", ["layer4"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
