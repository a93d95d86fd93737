"""The global random numbers, which a network may draw from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seed_globally(x: Tensor, seed: int) -> Iterator[None]:
    """Seed the global random numbers of the CPU and of x's device; restore their state at exit."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed)  # noqa: TID251
        yield
