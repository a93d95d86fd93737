"""Image files that would take much time or memory are refused, and usual ones are not."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from channelscope.data import load
from channelscope.data.images import MAX_SCALED, decode_image, resize
from channelscope.errors import UserError
from helpers.hurtful import (
    enlarge_tile,
    list_hurtful,
    make_png,
    repeat_chunk,
    repeat_comment,
    repeat_scan,
    save_picture,
)


def write_folder(folder: Path, name: str, content: bytes, copies: int = 1) -> Path:
    (folder / "class").mkdir(parents=True)
    for copy in range(copies):
        (folder / "class" / f"{copy}{name}").write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", list_hurtful())
def test_small_files_that_take_much_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after they were decoded: what decodes them is not even called."""
    ending, content = list_hurtful()[kind]
    monkeypatch.setattr("channelscope.data.images.from_pil", None)
    monkeypatch.setattr("channelscope.data.images._MOST_READS", 10_000)  # of which each takes long
    folder = write_folder(tmp_path / "images", ending, content)
    with pytest.raises(UserError, match="class"):
        load(f"imagefolder:{folder}", image_size=8).test.load()


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".jpg", repeat_scan(64, 200)),
        (".png", repeat_chunk(1000)),
        (".gif", repeat_comment(1000)),
        (".tif", enlarge_tile(16)),
        (".png", make_png(2048, 2048)),
        (".pgm", b"P5 20 20 15\n" + bytes(400)),
        (".pgm", b"P2 20 20 255\n" + b"7 " * 400),
        (".jpg", save_picture(Image.new("RGB", (1500, 1500)), "JPEG", progressive=True)),
        (".jpg", save_picture(Image.effect_noise((300, 200), 90), "JPEG", exif=b"\xff\xda" * 99)),
    ],
)
def test_usual_files_are_read(ending: str, content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / f"x{ending}").write_bytes(content)
    assert decode_image(path, 8).shape[1:] == (8, 8)


def test_many_images_that_unpack_to_much_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", ".png", make_png(2048, 2048), copies=40)
    for stream in (None, True):
        with pytest.raises(UserError, match="far more than its size"):
            load(f"imagefolder:{folder}", stream=stream)
    with pytest.raises(UserError, match="far more than its size"):
        load(f"imagefolder:{folder}", image_size=2000)
    assert load(f"imagefolder:{folder}", image_size=8).test.image_shape == (1, 8, 8)
    assert load(f"imagefolder:{folder}", image_size=2000, stream=True).test.image_shape[0] == 1


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
def test_long_images_are_not_scaled_to_gigabytes(shape: tuple[int, int], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", ".png", make_png(*shape))
    np.savez_compressed(
        tmp_path / "x.npz", test_images=np.zeros((2, *shape), np.uint8), test_labels=np.arange(2)
    )
    with pytest.raises(UserError, match="crop it first"):
        load(f"imagefolder:{folder}", image_size=224).test.load()
    with pytest.raises(UserError, match="crop it first"):
        load(f"npz:{tmp_path / 'x.npz'}", image_size=224)
    assert load(f"imagefolder:{folder}", image_size=8).test.load().image_shape == (1, 8, 8)


def test_many_small_images_are_not_scaled_to_gigabytes(tmp_path: Path) -> None:
    images, labels = np.zeros((30_000, 1, 1), np.uint8), np.arange(30_000) % 2
    np.savez_compressed(tmp_path / "x.npz", test_images=images, test_labels=labels)
    with pytest.raises(UserError, match="smaller --image-size"):
        load(f"npz:{tmp_path / 'x.npz'}", image_size=224)
    assert load(f"npz:{tmp_path / 'x.npz'}", image_size=4).image_size == (4, 4)


@pytest.mark.parametrize("size", [0, 2897, 10**9])
def test_sizes_that_no_network_takes_are_refused(size: int) -> None:
    with pytest.raises(UserError, match="image size"):
        load("digits", image_size=size)


def test_images_scaled_a_few_at_a_time_are_those_scaled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand(7, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    at_once = resize(images, 6)
    monkeypatch.setattr("channelscope.data.images.MAX_SCALED", 250)
    assert torch.equal(resize(images, 6), at_once)
    assert MAX_SCALED > 250


def test_large_images_are_decoded_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channelscope.data.images._LARGE", 8)
    inside: set[int] = set()
    most = 0

    def count(image: Image.Image) -> torch.Tensor:
        nonlocal most
        inside.add(threading.get_ident())
        most = max(most, len(inside))
        threading.Event().wait(0.01)
        inside.discard(threading.get_ident())
        return torch.zeros(1, image.height, image.width, dtype=torch.uint8)

    monkeypatch.setattr("channelscope.data.images.from_pil", count)
    folder = write_folder(tmp_path / "images", ".png", make_png(4, 4), copies=200)
    load(f"imagefolder:{folder}").test.load()
    assert most == 1
