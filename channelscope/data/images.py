"""Images of files, PIL and arrays to tensors; files within limits that no hostile one passes."""

import hashlib
import io
import mmap
import os
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from channelscope.data.splits import MemorySplit, Reader
from channelscope.errors import UserError
from channelscope.reading import check_regular

MAX_PIXELS = 2**25  # of an image: decoded, it takes 7 bytes a pixel, and 25 as WebP
MAX_BYTES = 2**28  # of an image file: more than MAX_PIXELS take without compression
MAX_SCALED = 2**23  # pixels of an image that is scaled, before it is cropped: 30 bytes a pixel
MAX_SIDE = 2896  # of scaled images: a square of as many pixels
_LARGE = 2**22  # pixels of an image that is decoded while no other large one is
# Bytes that an image may unpack to, or times its file: drawings pack to a hundredth
_UNPACKED, _RATIO = 2**24, 256
_MOST_READS = 200_000  # of a file's pieces, which PIL goes through in Python
_MOST_SCANNED = 2**30  # pixels of a JPEG, each as often as there are scans, of which ten are usual
_MOST_TILED = 2**22  # pixels of a TIFF's tile, for which libtiff makes room whatever there is in it
_MOST_SLOW = 2**20  # values of formats that PIL decodes in Python
_SLOW = {"bmp_rle", "ppm", "ppm_plain"}  # run lengths, values not of 8 bits, and of digits
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of JPEG: what follows a scan
# PIL knows other formats, some of which run programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class ImageFiles(Reader):
    """Reads the image files of a folder, each when it is asked for.

    Args:
        folder: what the files' names are relative to.
        files: their names.
        shape: channels, height and width of every image; 1 channel only if every image is 8-bit
            grey.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.
    """

    folder: Path
    files: tuple[str, ...]
    shape: tuple[int, int, int]
    image_size: int | None = None
    dtype = torch.uint8
    on_disk = True

    def __post_init__(self) -> None:
        if self.image_size is not None:
            # It takes a second: here once, else in each of the processes that are forked.
            import torchvision.transforms  # noqa: F401

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, index: int) -> UInt8[Tensor, "k h w"]:
        """Decode an image, k being 1 if it is grey, else 3.

        Raises:
            UserError: the file cannot be decoded, has another size, or colours where `shape` has 1
                channel.
        """
        path = self.folder / self.files[index]
        image = decode_image(path, self.image_size)
        channels, height, width = self.shape
        if image.shape[1:] != (height, width):
            size = " x ".join(map(str, image.shape[1:]))
            raise UserError(
                f"Images differ in size ({path}: {size}, others: {height} x {width}): "
                "pass --image-size N to scale and crop them to N x N."
            )
        if len(image) > channels:
            raise UserError(
                f"{path} has colours, and the images looked at before are grey: "
                "convert it to grey, or pass --no-stream to have all of them looked at."
            )
        return image

    def digest(self, index: int) -> bytes:
        """Hash a file's contents (SHA-256), decoding nothing; UserError if it cannot be read."""
        path = self.folder / self.files[index]
        try:
            with _check_file(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error


_decoding = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_decoding=threading.Lock()))


def decode_image(path: Path, image_size: int | None = None) -> UInt8[Tensor, "c h w"]:
    """Decode an image file as `from_pil` and scale it as `resize`; UserError if that fails."""
    with _open_image(path) as image, _take_turn(image):
        pixels = from_pil(image)
        return pixels if image_size is None else resize(pixels, image_size)


def _take_turn(image: Any) -> AbstractContextManager[Any]:
    """Return what a large image waits for: side by side with others, it would fill the memory."""
    return _decoding if image.width * image.height > _LARGE else nullcontext()


def read_header(path: Path) -> tuple[int, int, int]:
    """Return channels, height and width of what `decode_image` would return, decoding nothing."""
    with _open_image(path) as image:
        return (1 if image.mode == "L" else 3, image.height, image.width)


def from_pil(image: Any) -> UInt8[Tensor, "c h w"]:
    """Turn a PIL image into (1, h, w) if it is 8-bit grey, else RGB (3, h, w), or UserError."""
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"Images of more than 8 bits (mode {image.mode}) are not read: convert them to 8 bits."
        )
    if image.mode == "L":
        return torch.from_numpy(np.array(image)[None])
    return torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1))


def from_arrays(images: Tensor | NDArray[Any], labels: Any) -> MemorySplit:
    """Make a split of images (n, c, h, w), (n, h, w, c) or (n, h, w), and of labels (n,) or (n, 1).

    Raises:
        UserError: as `to_image` and `MemorySplit`.
    """
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(np.asarray(labels), device="cpu")
        except (TypeError, ValueError) as error:
            raise UserError("Labels must be int64, one per image: number the classes.") from error
    labels = labels.detach()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape == images.shape[:1] and is_integer(labels):
        labels = labels.long()
    return MemorySplit(to_image(images, 4), labels)


def to_image(image: Tensor | NDArray[Any], dimensions: int = 3) -> Tensor:
    """Turn an array or a tensor into (c, h, w), or several, of 4 dimensions, into (n, c, h, w).

    Without channels it is grey. Channels come last if that axis is 1 or 3 long and the one before
    height and width is not. Floats in arrays become float32.

    Raises:
        UserError: an array neither of uint8 nor of floats.
    """
    image = image.detach() if isinstance(image, Tensor) else _from_array(image)
    if image.ndim == dimensions - 1:
        image = image.unsqueeze(-3)
    if image.ndim == dimensions and image.shape[-1] in (1, 3) and image.shape[-3] not in (1, 3):
        image = image.movedim(-1, -3)
    return image.contiguous()


def _from_array(array: NDArray[Any]) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(
            f"Images must be uint8, or float in [0, 1], not {array.dtype}: convert them."
        )
    with np.errstate(over="ignore"):  # what overflows is infinite, which a split reports
        array = array.astype(np.uint8 if array.dtype == np.uint8 else np.float32, copy=False)
    # Torch warns of arrays that cannot be written to.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def is_integer(values: Tensor) -> bool:
    """Tell whether a tensor holds whole numbers."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def resize(images: Tensor, size: int) -> Tensor:
    """Scale the shorter side to `size` pixels (bilinear, antialiased) and crop the centre.

    Raises:
        UserError: images that are so much longer than wide that scaled ones would fill the memory.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scaled = size * size * max(height, width) // min(height, width)
    if scaled > MAX_SCALED:
        raise UserError(
            f"An image of {width} x {height} cannot be scaled to {size} pixels a side, as it would "
            f"have {scaled:,} in between: crop it first, or choose a smaller --image-size."
        )
    if images.ndim == 3:
        return _scale(images, size)
    # A few at a time: what is scaled and not yet cropped takes more than what is wanted.
    out = images.new_empty((*images.shape[:-2], size, size))
    step = max(1, MAX_SCALED // max(scaled, height * width))
    for some, part in zip(out.split(step), images.split(step), strict=True):
        some.copy_(_scale(part, size))
    return out


def _scale(images: Tensor, size: int) -> Tensor:
    from torchvision.transforms import functional

    scaled: Tensor = functional.resize(images, [size], antialias=True)
    scaled = functional.center_crop(scaled, [size])
    # The sums of the interpolation may round above 1.
    return scaled.clamp(0, 1) if scaled.is_floating_point() else scaled


class _BoundedReader(io.BufferedReader):
    """A file of which no more is asked for than it has: Python allocates that before it reads.

    Nor is it read in too many pieces, with ValueError.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size
        self._reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ValueError("it is of too many pieces")
        remaining = max(0, self.size - self.tell())
        return super().read(remaining if size is None or size < 0 else min(size, remaining))


@contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    """Open an image file with PIL, and name the file in whatever goes wrong with it."""
    from PIL import Image

    try:
        with (
            _BoundedReader(_check_file(path)) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            _check_cost(image, file)
            yield image
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise _unreadable(path, error) from error


def _check_cost(image: Any, file: _BoundedReader) -> None:
    """Refuse an image, opened and not yet decoded, whose decoding takes too much.

    Raises:
        UserError, ValueError: with what to do about it, and without.
    """
    pixels = image.width * image.height
    values = pixels * (1 if image.mode in ("1", "L") else 3)
    if pixels > MAX_PIXELS:
        raise UserError(
            f"An image of {image.width} x {image.height} is too large: scale it down first."
        )
    if values > max(_UNPACKED, _RATIO * file.size):
        raise ValueError(f"it would unpack to {values / 2**20:.0f} MB, far more than its size")
    if values > _MOST_SLOW and any(tile[0] in _SLOW for tile in image.tile):
        raise UserError(
            f"An image of {image.width} x {image.height} takes too long to read in this form of "
            f"{image.format}: convert it to PNG."
        )
    if image.format == "TIFF":
        sides = [image.tag_v2.get(tag, 1) for tag in (322, 323)]
        if sides[0] * sides[1] > _MOST_TILED:
            raise ValueError(f"its tiles are of {sides[0]} x {sides[1]} pixels")
    if image.format in ("JPEG", "MPO") and _count_scans(file) * pixels > _MOST_SCANNED:
        raise ValueError("it has too many scans")


def _count_scans(file: _BoundedReader) -> int:
    """Count the scans of a JPEG, each of which its decoder goes through all pixels for."""
    scans = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = 2
        while (marker := _MARKER.search(content, place)) is not None:
            kind, place = content[marker.start() + 1], marker.end()
            if kind == 0xD9:
                break
            scans += kind == 0xDA
            if kind not in (0x01, 0xD8):  # those without a length
                place += max(2, int.from_bytes(content[place : place + 2], "big"))
    return scans


def _check_file(path: Path) -> Path:
    if check_regular(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 2**20} MB")
    return path


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(
        f"The image {path} cannot be read ({reason or type(error).__name__}): replace or remove it."
    )
