"""Comparisons of a network whose channels are colours: what excites them is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy import ndarray
from torch import nn

import channelscope as cs
from channelscope.files import DIGESTS


def sort_images(activations: ndarray) -> tuple[ndarray, ndarray]:
    """Return by channel the four largest activations, and the images that they are of."""
    order = np.argsort(-activations, axis=0, kind="stable")[:4]
    return np.take_along_axis(activations, order, 0).T, order.T


def colours(n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one colour each, and labels."""
    values = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    return values.expand(n, 3, 4, 4).mul(255).round().div(255), torch.arange(n) % 2


def mean_colour() -> nn.Sequential:
    """A network whose channel j is colour j; more red and less green speak for class 0."""
    layers = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        layers[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        layers[3].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
        layers[3].bias.zero_()
    return layers


@pytest.fixture(scope="module")
def result() -> cs.Result:
    return cs.compare(
        {"colour": mean_colour()}, colours(), attack="fgsm", eps=0.1, attacks="fgsm", progress=False
    )


def test_the_table_and_the_pictures_are_those_of_a_known_network(result: cs.Result) -> None:
    x, y = colours()
    towards = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])[y].view(
        -1, 3, 1, 1
    )  # what lowers the own logit
    for data, name, images in (
        ("natural", "natural", x),
        ("adversarial", "adversarial/0", x + 0.1 * towards),
    ):
        rows = result.excitation[result.excitation["data"] == data]
        values, order = sort_images(images.mean((2, 3)).numpy())
        np.testing.assert_array_equal(rows["image"].to_numpy().reshape(3, 4), order)
        np.testing.assert_allclose(rows["activation"].to_numpy().reshape(3, 4), values, atol=1e-6)
        assert rows["rank"].tolist() == [1, 2, 3, 4] * 3
        kept = result.arrays[f"thumbnails/{name}/images"]
        assert set(order.flat) <= set(kept)
        np.testing.assert_allclose(
            result.arrays[f"thumbnails/{name}"], images[kept] * 255, atol=0.51
        )


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_saved_and_read_again(result: cs.Result, tmp_path: Path) -> None:
    loaded = cs.Result.load(result.save(tmp_path / "out", progress=False))
    pd.testing.assert_frame_equal(loaded.excitation, result.excitation, check_dtype=False)
    for name in (name for name in result.arrays if name.startswith("thumbnails")):
        np.testing.assert_array_equal(loaded.arrays[name], result.arrays[name])


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_do_not_fit_are_damage(result: cs.Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out", progress=False)
    (folder / DIGESTS).unlink()  # by which any change shows
    with np.load(folder / "arrays.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["thumbnails/natural"] = np.zeros((1, 3, 4, 4), np.uint8)
    np.savez(folder / "arrays.npz", **arrays)
    with pytest.raises(cs.UserError, match="damaged"):
        cs.Result.load(folder)


def test_pictures_can_be_left_out() -> None:
    result = cs.compare(
        {"colour": mean_colour()},
        colours(),
        attack="fgsm",
        attacks="fgsm",
        thumbnails=False,
        progress=False,
    )
    assert len(result.excitation) == 2 * 3 * 4
    assert not [name for name in result.arrays if name.startswith("thumbnails")]
