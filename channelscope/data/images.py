"""Image files and PIL images to arrays: one by one, or by threads into one block of memory."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor

from channelscope.errors import UserError
from channelscope.reading import regular

READERS = 4  # threads: decoding large images goes on side by side, small ones only get into each other's way
CHUNK = 64  # files to a task: enough to make the threads' bookkeeping small
MOST_PIXELS = 2**25  # of an image: decoded, it takes 7 bytes a pixel, in each of the threads
FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)  # PIL knows others, some of which run programs


def read_images(files: Sequence[str], image_size: int | None) -> UInt8[Tensor, "n c h w"]:
    """Decode image files in parallel, with a progress bar when it takes long.

    Args:
        files: at least one.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.

    Returns:
        (n, 1, h, w) if every file is 8-bit grey, else RGB (n, 3, h, w).

    Raises:
        UserError: a file cannot be decoded, or its size differs from the first one's; more images than memory.
    """
    from tqdm.auto import tqdm

    images = _allocated(len(files), decoded(files[0], image_size).shape[1:])

    def fill(start: int) -> bool:
        chunk = range(start, min(start + CHUNK, len(files)))
        grey = [
            _fill(images, index, files, image_size) for index in chunk
        ]  # every one, also after a coloured one
        return all(grey)

    starts = range(0, len(files), CHUNK)
    with ThreadPoolExecutor(READERS) as pool:
        chunks = pool.map(fill, starts)
        bar = tqdm(
            chunks,
            "reading images",
            len(starts),
            leave=False,
            delay=2,
            unit="image",
            unit_scale=CHUNK,
        )
        grey = list(bar)
    return torch.from_numpy(images[:, :1].copy() if all(grey) else images)


def decoded(file: str, image_size: int | None) -> UInt8[ndarray, "c h w"]:
    """Decode an image file as `pixels` does and scale it as `resized` does; UserError where it cannot be read."""
    with _opened(file) as image:
        values = pixels(image)
    return values if image_size is None else resized(torch.from_numpy(values), image_size).numpy()


def fitted(file: str, size: tuple[int, int], image_size: int | None) -> UInt8[ndarray, "c h w"]:
    """Decode an image file that must have the height and width of the others; else UserError."""
    image = decoded(file, image_size)
    if image.shape[1:] != size:
        sizes = [" x ".join(map(str, shape)) for shape in (image.shape[1:], size)]
        raise UserError(
            f"Images differ in size ({file}: {sizes[0]}, others: {sizes[1]}): "
            "pass --image-size N to scale and crop them to N x N."
        )
    return image


def is_grey(file: str) -> bool:
    """Tell from the beginning of a file whether `pixels` would make one channel of it; UserError as `decoded`."""
    with _opened(file) as image:
        return bool(image.mode == "L")


def pixels(image: Any) -> NDArray[np.uint8]:
    """Turn a PIL image into (1, h, w) if its mode is 8-bit grey, else RGB (3, h, w); UserError beyond 8 bits."""
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"Images of more than 8 bits (mode {image.mode}) are not read: convert them to 8 bits."
        )
    if image.mode == "L":
        return np.array(image)[None]
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


def channels_first(images: NDArray[Any]) -> Tensor:
    """Turn stored images (n, h, w) or (n, h, w, c), bytes or floats, into (n, c, h, w), uint8 or float32."""
    if images.ndim == 3:
        images = images[..., None]
    with np.errstate(over="ignore"):  # what overflows is infinite, which Split reports
        stored = images.astype(np.uint8 if images.dtype == np.uint8 else np.float32, copy=False)
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 3, 1, 2)))


def resized(images: Tensor, size: int) -> Tensor:
    """Scale the shorter side to `size` pixels, bilinear with antialiasing, and crop the centre: (..., size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms import functional

    scaled: Tensor = functional.center_crop(
        functional.resize(images, [size], antialias=True), [size]
    )
    return (
        scaled.clamp(0, 1) if scaled.is_floating_point() else scaled
    )  # the interpolation's sums may round above 1


def _allocated(n: int, size: tuple[int, ...]) -> NDArray[np.uint8]:
    shape = (n, 3, *size)
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        need = np.prod(shape, dtype=float) / 2**30
        raise UserError(
            f"{n} images of this size need {need:.0f} GiB: pass --stream or a smaller --image-size."
        ) from error


def _fill(
    images: NDArray[np.uint8], index: int, files: Sequence[str], image_size: int | None
) -> bool:
    """Write one image into its place, grey ones three times over; tell whether it is grey."""
    _, _, height, width = images.shape
    image = fitted(files[index], (height, width), image_size)
    images[index] = image
    return len(image) == 1


class _Held(io.BufferedReader):
    """A file of which no more is asked for than it holds: room is made for all that is asked for before any is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """Open an image file with PIL, and name the file in whatever goes wrong with it."""
    from PIL import Image

    try:
        with _Held(regular(Path(file))) as held, Image.open(held, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(
                    f"An image of {image.width} x {image.height} is too large: scale it down first."
                )
            yield image
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        reason = str(error) or type(error).__name__
        raise UserError(
            f"The image {file} cannot be read ({reason}): replace or remove it."
        ) from error
