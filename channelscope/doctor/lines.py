"""What is found, line by line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One thing that was looked at, what there is of it, and what is amiss with it and to be done, if anything."""

    name: str
    found: str
    trouble: str = ""


def reason_of(error: BaseException) -> str:
    """Say in a few words why something failed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": .")


def size_of(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 2**30:.1f} GiB"
