"""Networks are trained on the device, by every method and in every precision that it has."""

from pathlib import Path
from typing import Any

import pytest

import channelscope as cs
from channelscope.errors import UserError
from device.standin import NAME, Standin

TINY: dict[str, Any] = {"epochs": 1, "width": 2, "batch_size": 16, "progress": False}


def train(method: str, data: Any, folder: Path, **options: Any) -> None:
    cs.train(method, data, out=folder / "net.pt", device=NAME, **(TINY | options))
    assert (folder / "net.pt").exists()


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize(
    "method",
    ["standard", "at", "trades", "mart", "fat", "cifs", "fsr", "eas", "kap", "wat", "hbar"],
)
def test_methods(method: str, small_digits: Any, tmp_path: Path) -> None:
    train(method, small_digits, tmp_path)


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_precisions(precision: str, small_digits: Any, tmp_path: Path) -> None:
    train("standard", small_digits, tmp_path, engine_precision=precision, arch="resnet10")


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages(kind: str, small_digits: Any, tmp_path: Path) -> None:
    train("standard", small_digits, tmp_path, averaging_kind=kind, arch="resnet10")


def test_64_bits_are_refused_where_there_are_none(
    standin: Standin, small_digits: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"engine_precision": "fp64", "arch": "resnet10"}
    if standin.rules == "mps":
        with pytest.raises(UserError, match="precision"):
            train("standard", small_digits, tmp_path, **options)
        assert not list(tmp_path.iterdir())
    else:
        train("standard", small_digits, tmp_path, **options)
