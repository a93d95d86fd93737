"""What is here and what is amiss: versions, devices, threads, data, disks, memory and the package's own files.

It must tell when things are broken, so these modules need nothing but Python. What may fail to load is loaded by
another process, which may fail too.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from channelscope.doctor import contents, devices, loading, packages, storage
from channelscope.doctor.lines import Line, reason_of

__all__ = ["Examination", "Line", "examine", "without_home"]


@dataclass(frozen=True)
class Examination:
    """What was found: title of a section -> its lines, in a fixed order."""

    sections: dict[str, list[Line]]

    @property
    def troubles(self) -> list[str]:
        """What is amiss, a sentence each, and what to do."""
        return [line.trouble for lines in self.sections.values() for line in lines if line.trouble]

    def text(self) -> str:
        """Lay it out for people; the home folder, and so the user's name, is written ~."""
        parts = []
        for title, lines in self.sections.items():
            parts.append(
                f"{title}\n"
                + "\n".join(f"  {line.name:<18} {line.found}".rstrip() for line in lines)
            )
        count = len(self.troubles)
        head = {0: "nothing is amiss", 1: "1 thing is amiss"}.get(
            count, f"{count} things are amiss"
        )
        parts.append("\n".join([head, *(f"  - {trouble}" for trouble in self.troubles)]))
        return without_home("\n\n".join(parts))


def examine(data_root: Path) -> Examination:
    """Look at everything; what cannot be looked at is a trouble too, and never an error.

    Args:
        data_root: the folder of the downloaded data sets.
    """
    loaded = loading.load_apart()
    looks: dict[str, Callable[[], Iterator[Line]]] = {
        "versions": lambda: packages.versions(loaded),
        "extras": packages.extras,
        "devices": lambda: devices.processors(loaded),
        "threads": lambda: devices.threads(loaded),
        "data": lambda: storage.data(data_root),
        "disks": lambda: storage.disks(data_root),
        "memory": storage.memory,
        "package": contents.package,
    }
    return Examination({title: _looked(look) for title, look in looks.items()})


def _looked(look: Callable[[], Iterator[Line]]) -> list[Line]:
    lines: list[Line] = []
    try:
        lines.extend(look())
    except Exception as error:
        reason = reason_of(error)
        lines.append(
            Line(
                "?",
                f"cannot be looked at: {reason}",
                f"Doctor met what it does not know: {reason}.",
            )
        )
    return lines


def without_home(text: str) -> str:
    """Write the home folder as ~, wherever it stands in a text."""
    home = os.path.expanduser("~").rstrip("/\\")  # noqa: PTH111  # Path.home() raises where there is none
    return text.replace(home, "~") if len(home) > 1 else text
