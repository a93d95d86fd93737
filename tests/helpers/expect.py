"""What tests expect of errors, folders, states and random numbers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from channelscope.errors import UserError


@contextmanager
def mistake(*words: str) -> Iterator[None]:
    """Expect a UserError with these words in it, that is one finished line."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.endswith((".", "?"))
    assert "\n" not in message


@contextmanager
def refusal_allowed(*words: str) -> Iterator[None]:
    """Let a UserError pass that has these words and is one line; any other error is a fault."""
    try:
        yield
    except UserError as error:
        if "\n" in str(error) or any(word not in str(error) for word in words):
            raise AssertionError("not a sentence on that") from error


class Hostile:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Read everything in a folder, hidden files too; None stands for a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def same_state(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two networks' states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def randomness_untouched() -> Iterator[None]:
    """Assert that no global source of random numbers is used, but for Python's own.

    The shape checks of the tests use that one.
    """
    torch_state, numpy_state = torch.get_rng_state(), _numpy_state()
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert _numpy_state() == numpy_state


def _numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002
