"""Where torch's default device is the GPU, all is as it would be without."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from device.conftest import BRIEF, make_network
from device.standin import NAME, Standin
from helpers.runs import write_npz

pytestmark = pytest.mark.usefixtures("standin", "undrawn")


@pytest.fixture
def default(standin: Standin) -> Iterator[None]:
    torch.set_default_device(NAME)
    yield
    torch.set_default_device(None)


# Networks and images are made first, where nothing is the default.


def test_comparisons_and_evaluations(
    both: dict[str, nn.Module],
    images: tuple[Tensor, Tensor],
    compare: Callable[..., cs.Result],
    evaluate: Callable[..., cs.Result],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    expected = evaluate(both, images).attacks
    request.getfixturevalue("default")
    compare(both, images, layers={"plain": ["relu1"], "gated": ["layer4.1"]}, step_sweep=[1])
    torch.testing.assert_close(
        evaluate(both, images).attacks["robust"].tolist(), expected["robust"].tolist()
    )


def test_other_questions(
    both: dict[str, nn.Module], images: tuple[Tensor, Tensor], request: pytest.FixtureRequest
) -> None:
    plain = {"plain": both["plain"]}
    request.getfixturevalue("default")
    brief: dict[str, Any] = BRIEF | {"attack": "pgd-2"}
    cs.intervene(plain, images, fractions=[0.5], random=1, **brief)
    cs.damage(plain, images, layers=["relu1", "pool"], edges=2, fractions=[0.25], **brief)
    scorers = ["gradient", "ablation-class-mean", "integrated-gradients"]
    cs.relevance(plain, images, scorers=scorers, replicates=20, progress=False)


def test_files(
    images: tuple[Tensor, Tensor],
    compare: Callable[..., cs.Result],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    network = make_network("gated", "cpu")
    data = write_npz(tmp_path)
    request.getfixturevalue("default")
    cs.save(network, tmp_path / "net.pt")
    assert next(cs.load(tmp_path / "net.pt").parameters()).device.type == "cpu"
    result = compare([tmp_path / "net.pt"], images, attacks=["fgsm"], device=NAME)
    assert result.meta["hardware"]["device"].startswith(NAME)
    cs.as_dataset(data)


def test_training_begins_with_the_same_weights(
    small_digits: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options: dict[str, Any] = {"epochs": 1, "width": 2, "batch_size": 16, "progress": False}
    first, second = (tmp_path / name for name in ("first.pt", "second.pt"))
    cs.train("cifs", small_digits, out=first, device=NAME, **options)
    request.getfixturevalue("default")
    cs.train("cifs", small_digits, out=second, device=NAME, **options)
    one, other = (cs.load(path).state_dict() for path in (first, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
