"""The device, and what is run on it: networks, images and files."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope import devices
from device.build import NoCompiler
from device.standin import NAME, Standin
from helpers import networks, runs

BRIEF: dict[str, Any] = {"eps": 0.1, "replicates": 20, "progress": False}


@pytest.fixture(scope="session")
def registered() -> Standin:
    """Register the device, in this process for good."""
    try:
        return Standin()
    except NoCompiler as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=["cuda", "mps"])
def standin(registered: Standin, request: pytest.FixtureRequest) -> Iterator[Standin]:
    """Let the device follow the rules of CUDA, and those of MPS."""
    registered.follow(request.param)
    devices._has_float64.cache_clear()
    yield registered
    registered.follow("cuda")
    devices._has_float64.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def _unchecked() -> Iterator[None]:
    """Leave annotations unchecked, which takes as long as all the rest: the tests check them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def make_network(kind: str = "plain", device: str = NAME) -> nn.Module:
    """Make a small network on a device; "gated" has the gates of CIFS."""
    torch.manual_seed(0)
    return {"plain": networks.plain, "gated": networks.gated}[kind]().to(device)


@pytest.fixture
def both(standin: Standin) -> dict[str, nn.Module]:
    """Return a network without and one with gates, on the device."""
    return {kind: make_network(kind) for kind in ("plain", "gated")}


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Return images and labels on the CPU, as those of data sets are."""
    return networks.images(10)


@pytest.fixture
def small_digits() -> cs.Dataset:
    """Return a few images of digits to train on."""
    return runs.digits()


@pytest.fixture
def compare() -> Callable[..., cs.Result]:
    """Return ``cs.compare`` with little to do."""
    return partial(cs.compare, **(BRIEF | {"attack": "pgd-2", "attacks": ["pgd-2", "cw-2"]}))


@pytest.fixture
def evaluate() -> Callable[..., cs.Result]:
    """Return ``cs.evaluate`` with little to do."""
    return partial(cs.evaluate, **(BRIEF | {"attacks": ["pgd-2", "cw-2"], "checks": 0}))
