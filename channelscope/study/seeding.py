"""The global random numbers, which a network may draw from."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from channelscope.devices import fork_rng


@contextmanager
def seed_globally(x: Tensor, seed: int) -> Iterator[None]:
    """Seed the global random numbers of the CPU and of x's device; restore their state at exit."""
    with fork_rng(x.device, seed=seed):
        yield
