"""What reaches the terminal: controls in names from files are spelt, and what its encoding lacks too."""

from typing import Any

from channelscope.errors import escape_lines


class Shown:
    """A stream, of whatever kind, on which no text steers the terminal, and none fails for want of a character."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._encoding = stream, getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text; as JSON spells controls alike, what reads JSON from here reads the names as they are."""
        self._stream.write(
            escape_lines(text).encode(self._encoding, "backslashreplace").decode(self._encoding)
        )
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
