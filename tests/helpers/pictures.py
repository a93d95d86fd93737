"""Random images, folders of image files, and ways to spoil them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from channelscope.errors import UserError


@contextmanager
def mistake(words: str) -> Iterator[None]:
    """Expect a UserError with these words in it, that is one finished line."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert words in message
    assert message[0] in "'/~" or message[0].isalnum()
    assert message.endswith((".", "?"))
    assert "\n" not in message


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)


def write_image(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0
) -> np.ndarray[Any, Any]:
    """Write a lossless image of (width, height), and give its pixels as RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.array(image.convert("RGB"))


def write_folder(root: Path, per_class: int = 4, mode: str = "RGB") -> Path:
    for part in ("train", "test"):
        for label, name in enumerate(("ant", "bee", "cow")):
            for index in range(per_class):
                write_image(
                    root / part / name / f"{index}.png",
                    mode,
                    seed=label * 100 + index + 50 * (part == "test"),
                )
    return root


def another_size(root: Path) -> None:
    write_image(root / "test" / "bee" / "9.png", size=(7, 5))


def not_an_image(root: Path) -> None:
    (root / "train" / "cow" / "0.png").write_text("not an image")


def empty_file(root: Path) -> None:
    (root / "train" / "cow" / "0.png").write_bytes(b"")


def cut_off(root: Path) -> None:
    file = root / "train" / "cow" / "0.png"
    file.write_bytes(file.read_bytes()[:60])


def broken_link(root: Path) -> None:
    (root / "train" / "cow" / "9.png").symlink_to(root / "nowhere.png")


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(root / "train" / "cow" / "9.png")
