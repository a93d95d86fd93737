"""The device's random generator is left as it was, as the CPU's is."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.devices import fork_rng
from device.standin import NAME, Standin

SEED = 1234


def test_states_come_back_also_after_an_error(standin: Standin) -> None:
    before, standin.seed = torch.get_rng_state(), SEED
    context = fork_rng(torch.device(NAME), seed=5)
    with suppress(KeyError), context:
        assert standin.seed == 5
        assert torch.initial_seed() == 5
        raise KeyError
    assert standin.seed == SEED
    assert torch.equal(torch.get_rng_state(), before)


def test_questions_leave_it(
    standin: Standin,
    both: dict[str, nn.Module],
    images: tuple[Tensor, Tensor],
    evaluate: Callable[..., cs.Result],
) -> None:
    standin.seed = SEED
    evaluate({"plain": both["plain"]}, images, checks=4)
    assert standin.seed == SEED


def test_libraries_that_seed_it_leave_it(
    standin: Standin,
    both: dict[str, nn.Module],
    images: tuple[Tensor, Tensor],
    evaluate: Callable[..., cs.Result],
) -> None:
    pytest.importorskip("pyautoattack")
    standin.seed = SEED
    evaluate({"plain": both["plain"]}, images, attacks=["square-20"])
    assert standin.seed == SEED


def test_training_leaves_it(standin: Standin, small_digits: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "width": 2, "arch": "resnet10", "progress": False}
    standin.seed = SEED
    cs.train("standard", small_digits, out=tmp_path / "net.pt", device=NAME, **options)
    assert standin.seed == SEED
