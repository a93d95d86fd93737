"""The images that excite each channel most, and their pictures."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn

import channelscope as cs
from channelscope.files import DIGESTS
from channelscope.statistics import excitation
from channelscope.statistics.excitation import Album, TopImages, by_rank, pictures_of

# Few values, so that there are ties.
ACTIVATIONS = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.sampled_from([-1, 0, 2]),
)


def sorted_by_numpy(activations: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """By channel the largest activations and the images that they are of, of equal ones the first image."""
    order = np.argsort(-activations, axis=0, kind="stable")[:keep]
    return np.take_along_axis(activations, order, 0).T, order.T


def streamed(activations: np.ndarray, images: list[int], keep: int, batch: int) -> TopImages:
    top = TopImages(channels=activations.shape[1], keep=keep)
    for part in torch.tensor(images, dtype=torch.int64).split(batch):
        top.update(torch.from_numpy(activations)[part], part)
    return top


@given(ACTIVATIONS, st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_order_and_split_gives_what_sorting_gives(activations, keep, batch, chance):
    images = list(range(len(activations)))
    chance.shuffle(images)
    top = streamed(activations, images, keep, batch)
    values, order = sorted_by_numpy(activations, keep)
    np.testing.assert_array_equal(top.activation, values)
    np.testing.assert_array_equal(top.image, order)


def test_images_are_listed_by_their_best_rank():
    first = streamed(np.float32([[0, 9], [5, 1], [6, 2]]), [0, 1, 2], 2, 3)
    other = streamed(np.float32([[3], [9], [0]]), [0, 1, 2], 2, 3)
    assert first.image.tolist() == [[2, 1], [0, 2]]
    assert by_rank([first, other]) == [0, 1, 2]
    assert by_rank([first]) == [0, 2, 1]
    assert by_rank([]) == []


def test_pictures_of_small_images_are_the_images():
    stored = torch.randint(
        0, 256, (3, 3, 8, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(pictures_of(stored.float() / 255), stored)


@pytest.mark.parametrize(
    ("size", "small"), [((128, 96), (64, 48)), ((65, 65), (64, 64)), ((1, 1000), (1, 64))]
)
def test_pictures_of_large_images_are_scaled(size, small):
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    made = pictures_of(x)
    assert made.shape == (2, 1, *small)
    by_pil = Image.fromarray(x[1, 0].numpy()).resize(small[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(made[1, 0], np.asarray(by_pil) * 255, atol=1)


def test_an_album_follows_what_is_wanted():
    x = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    album = Album()
    album.update([2, 0], x[:3], [0, 1, 2])
    album.update([5, 2], x[3:], [3, 4, 5])
    assert {image: int(picture[0, 0, 0]) for image, picture in album.kept.items()} == {5: 5, 2: 2}


def test_an_album_keeps_the_first_wanted_where_not_all_have_room(monkeypatch):
    monkeypatch.setattr(excitation, "LIMIT", 9)  # bytes: two pictures of four
    album = Album()
    album.update([3, 1, 2], torch.zeros(4, 1, 2, 2, dtype=torch.uint8), [0, 1, 2, 3])
    assert list(album.kept) == [3, 1]


def colours(n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one colour each, and labels."""
    values = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    return values.expand(n, 3, 4, 4).mul(255).round().div(255), torch.arange(n) % 2


def mean_colour() -> nn.Sequential:
    """A network whose channel j is colour j; more red and less green speak for class 0, blue for nothing."""
    layers = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        layers[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        layers[3].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
        layers[3].bias.zero_()
    return layers


@pytest.fixture(scope="module")
def found() -> cs.Comparison:
    return cs.compare(
        {"colour": mean_colour()}, colours(), attack="fgsm", eps=0.1, attacks="fgsm", progress=False
    )


def test_the_table_and_the_pictures_are_those_of_a_known_network(found):
    x, y = colours()
    towards = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])[y].view(
        -1, 3, 1, 1
    )  # what lowers the own logit
    for data, name, images in (
        ("natural", "natural", x),
        ("adversarial", "adversarial/0", x + 0.1 * towards),
    ):
        rows = found.excitation[found.excitation["data"] == data]
        values, order = sorted_by_numpy(images.mean((2, 3)).numpy(), 4)
        np.testing.assert_array_equal(rows["image"].to_numpy().reshape(3, 4), order)
        np.testing.assert_allclose(rows["activation"].to_numpy().reshape(3, 4), values, atol=1e-6)
        assert rows["rank"].tolist() == [1, 2, 3, 4] * 3
        kept = found.arrays[f"thumbnails/{name}/images"]
        assert set(kept) == set(order.flat)
        np.testing.assert_allclose(
            found.arrays[f"thumbnails/{name}"], images[kept] * 255, atol=0.51
        )


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_saved_and_read_again(found, tmp_path):
    loaded = cs.Comparison.load(found.save(tmp_path / "found", progress=False))
    pd.testing.assert_frame_equal(loaded.excitation, found.excitation)
    for name in (name for name in found.arrays if name.startswith("thumbnails")):
        np.testing.assert_array_equal(loaded.arrays[name], found.arrays[name])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("labels", np.zeros(3, np.int64)),
        ("thumbnails/natural", np.zeros((1, 3, 4, 4), np.uint8)),
        ("thumbnails/natural", np.zeros((7, 3, 4, 4))),
        ("thumbnails/adversarial/0/images", np.array(3)),
    ],
)
def test_pictures_that_do_not_fit_are_damage(found, tmp_path, name, array):
    folder = found.save(tmp_path / "found", progress=False)
    (folder / DIGESTS).unlink()  # by which any change shows
    np.savez(folder / "arrays.npz", **found.arrays | {name: array})
    with pytest.raises(cs.UserError, match="damaged"):
        cs.Comparison.load(folder)


def test_pictures_can_be_left_out():
    found = cs.compare(
        {"colour": mean_colour()},
        colours(),
        attack="fgsm",
        attacks="fgsm",
        thumbnails=False,
        progress=False,
    )
    assert len(found.excitation) == 2 * 3 * 4
    assert not [name for name in found.arrays if name.startswith("thumbnails")]
