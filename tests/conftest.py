"""Settings of every test: shapes are checked, randomness is seeded, hypothesis repeats itself."""

import os
from collections.abc import Callable, Iterator
from typing import Any

# The tests' tensors are small: more threads, here or in a process of a test, would cost more than
# they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from hypothesis import settings
from jaxtyping import install_import_hook, jaxtyped


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's annotations at every call, shapes included.

    Left unchecked are the few functions whose annotations cannot be resolved at run time: those
    with ``Self`` (each method is decorated alone, outside its class) and those with a protocol
    that is for type checkers only.
    """
    try:
        return beartype(
            function, conf=BeartypeConf(is_pep484_tower=True)
        )  # an int will do for a float
    except BeartypeDecorHintException:
        return function


def outermost(typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Prepare the checks, except of nested functions, which would be prepared at every call."""
    prepared = jaxtyped(typechecker=typechecker)
    return lambda made: made if "<locals>" in getattr(made, "__qualname__", "") else prepared(made)


jaxtyping.jaxtyped = outermost  # what the import hook calls
install_import_hook("channelscope", f"{__name__}.checked")

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed the weights of each test's networks, and restore torch's global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few images be several blocks, of five, as many images are."""
    monkeypatch.setattr("channelscope.data.blocks.MOST", 5)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is printed be as wide as it is in a file, whatever pytest's workers have set."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out a result's figures, which take long."""
    monkeypatch.setattr("channelscope.result.Result.draw", lambda *_, **__: None)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leave annotations unchecked, to test the error for a mistake that a type checker would find.

    Tests of long runs go without the checks too, which take as long as the runs; each part has
    tests that are checked.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
