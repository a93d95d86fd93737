"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # letters


class UserError(ValueError):
    """A mistake of the user's; the message is one clear sentence that says what to do.

    Names in it may come from files: what cannot be printed is escaped, and a text that no one would read is cut short.

    >>> str(UserError("There is no file a\\nb: check the path."))
    'There is no file a\\\\nb: check the path.'
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_printable(sentence))


def _printable(text: str) -> str:
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def suggest(name: str, known: Iterable[str]) -> str:
    """Name the closest known names, as the end of an error message.

    >>> suggest("layer5", ["layer4", "conv1"])
    " Did you mean 'layer4'?"
    >>> suggest("zzz", ["layer4"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
