"""Image files and PIL images to tensors: a folder of class folders, read by threads into one block of memory."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from channelscope.data.sampling import hold_out
from channelscope.data.splits import Dataset, Split
from channelscope.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
READERS = 4  # threads: decoding large images goes on side by side, small ones only get into each other's way
CHUNK = 64  # files to a task: enough to make the threads' bookkeeping small

Listing = list[tuple[str, int]]  # file, label


def image_folder(name: str, folder: Path, validation: float, seed: int, image_size: int | None) -> Dataset:
    """Read `folder`/{train,val,test}/<class>/*, of which only test is needed, or `folder`/<class>/* as the test part.

    Classes are the class folders of train (of test where there is no train), in alphabetical order. Without a val
    folder the share `validation` of the training files is held out, stratified. Names with a leading dot are left out.

    Raises:
        UserError: a folder is missing or has no images, a file is damaged, sizes differ without `image_size`.
    """
    try:
        classes, listings = _listings(folder)
    except OSError as error:
        raise UserError(f"Cannot read the folder {error.filename or folder}: {error.strerror or error}.") from error
    if "train" in listings and "val" not in listings and validation > 0:
        _divide(listings, validation, seed)
    files = [file for listing in listings.values() for file, _ in listing]
    images = read_images(files, image_size)
    ends = accumulate(len(listing) for listing in listings.values())
    splits = {
        part: Split(images[end - len(listing) : end], _labels(listing))
        for (part, listing), end in zip(listings.items(), ends, strict=True)
    }
    return Dataset(name, classes, **splits)


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

    images = _allocated(len(files), _decoded(files[0], image_size).shape[1:])

    def fill(start: int) -> bool:
        chunk = range(start, min(start + CHUNK, len(files)))
        grey = [_fill(images, index, files, image_size) for index in chunk]  # every one, also after a coloured one
        return all(grey)

    starts = range(0, len(files), CHUNK)
    with ThreadPoolExecutor(READERS) as pool:
        chunks = pool.map(fill, starts)
        bar = tqdm(chunks, "reading images", len(starts), leave=False, delay=2, unit="image", unit_scale=CHUNK)
        grey = list(bar)
    return torch.from_numpy(images[:, :1].copy() if all(grey) else images)


def pixels(image: Any) -> NDArray[np.uint8]:
    """Turn a PIL image into (1, h, w) if its mode is 8-bit grey, else RGB (3, h, w); UserError beyond 8 bits."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"Images of more than 8 bits (mode {image.mode}) are not read: convert them to 8 bits.")
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

    scaled: Tensor = functional.center_crop(functional.resize(images, [size], antialias=True), [size])
    return scaled.clamp(0, 1) if scaled.is_floating_point() else scaled  # the interpolation's sums may round above 1


def _listings(folder: Path) -> tuple[tuple[str, ...], dict[str, Listing]]:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder.absolute()}: give the folder that holds the images.")
    # A class may be called "train": a part is told from a class by the folders inside it.
    parts = {part: folder / part for part in ("train", "val", "test") if _subfolders(folder / part)}
    if parts and "test" not in parts:
        raise UserError(f"{folder} has {' and '.join(parts)} but no test: add {folder / 'test'}, or name one part.")
    parts = parts or {"test": folder}
    classes = _subfolders(parts.get("train", parts["test"]))
    if not classes:
        raise UserError(f"{folder} has no class folders: put the images into {folder}/<class>/.")
    listings = {part: _listing(path, classes) for part, path in parts.items()}
    for part, listing in listings.items():
        if not listing:
            raise UserError(f"{parts[part]} has no images: put {', '.join(SUFFIXES)} files into its class folders.")
    return tuple(classes), listings


def _listing(folder: Path, classes: Sequence[str]) -> Listing:
    present = _subfolders(folder)
    if unknown := sorted(set(present) - set(classes)):
        raise UserError(f"{folder / unknown[0]} is a class that the training images do not have: move or remove it.")
    return [(file, label) for label, name in enumerate(classes) if name in present for file in _files(folder / name)]


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> Iterable[str]:
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    # Not is_file(): a broken link is to be reported when it is read, not passed over.
    return sorted(entry.path for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir())


def _divide(listings: dict[str, Listing], validation: float, seed: int) -> None:
    # Done on the names, before anything is read, so that every split is a view of one block of memory.
    train = listings["train"]
    kept, held = hold_out(_labels(train), validation, seed)
    listings["train"] = [train[index] for index in kept.tolist()]
    listings["val"] = [train[index] for index in held.tolist()]


def _labels(listing: Listing) -> Tensor:
    return torch.tensor([label for _, label in listing], dtype=torch.int64)


def _allocated(n: int, size: tuple[int, ...]) -> NDArray[np.uint8]:
    shape = (n, 3, *size)
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        need = np.prod(shape, dtype=float) / 2**30
        raise UserError(f"{n} images of this size need {need:.0f} GiB: pass a smaller --image-size.") from error


def _fill(images: NDArray[np.uint8], index: int, files: Sequence[str], image_size: int | None) -> bool:
    """Write one image into its place, grey ones three times over; tell whether it is grey."""
    image = _decoded(files[index], image_size)
    if image.shape[1:] != images.shape[2:]:
        sizes = [" x ".join(map(str, shape)) for shape in (image.shape[1:], images.shape[2:])]
        raise UserError(
            f"Images differ in size ({files[index]}: {sizes[0]}, {files[0]}: {sizes[1]}): "
            "pass --image-size N to scale and crop them to N x N."
        )
    images[index] = image
    return len(image) == 1


def _decoded(file: str, image_size: int | None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = pixels(opened)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise UserError(f"The image {file} cannot be read ({error}): replace or remove it.") from error
    return image if image_size is None else resized(torch.from_numpy(image), image_size).numpy()
