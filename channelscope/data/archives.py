"""Images from a numpy .npz file, of which nothing is ever unpickled."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from channelscope.data.datasets import Dataset, numbered
from channelscope.data.images import channels_first
from channelscope.data.splits import MemorySplit
from channelscope.errors import UserError
from channelscope.reading import Arrays, arrays


def from_npz(name: str, file: Path) -> Dataset:
    """Read {train,val,test}_{images,labels}, of which only test is needed, and the class names `classes` if present.

    Images are (n, h, w) or (n, h, w, c), c being 1 or 3, uint8 or float in [0, 1]; labels (n,) or (n, 1), integers.

    Raises:
        UserError: the file or a key is missing, damaged, or not as above; or the file unpacks to far more than its size
            (``reading.check_archive``): what is written with numpy.savez, not packed, always passes.
    """
    if not file.is_file():
        raise UserError(f"There is no file {file.absolute()}: give an .npz file.")
    with _opened(file) as archive:
        present = [
            part
            for part in ("train", "val")
            if {f"{part}_images", f"{part}_labels"} & set(archive.files)
        ]
        splits = {part: _split(archive, part, file) for part in [*present, "test"]}
        classes = (
            _classes(archive, file) if "classes" in archive.files else numbered(splits.values())
        )
    return Dataset(name, classes, **splits)


@contextmanager
def _opened(file: Path) -> Iterator[Arrays]:
    try:
        with arrays(file) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # zipfile's, and what is said of an archive before it is read
        raise UserError(
            f"{file} cannot be read as an .npz file ({error}): write test_images and test_labels with numpy.savez."
        ) from error


def _split(archive: Arrays, part: str, file: Path) -> MemorySplit:
    images, labels = (
        _array(archive, f"{part}_images", file),
        _array(archive, f"{part}_labels", file),
    )
    if images.ndim != 3 and (images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise UserError(
            f"{part}_images in {file} must have the shape (n, h, w) or (n, h, w, c) "
            f"with 1 or 3 channels c, not {images.shape}."
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(
            f"{part}_images in {file} must be uint8, or float in [0, 1], not {images.dtype}: convert them."
        )
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{part}_labels in {file} must be whole numbers, not {labels.dtype}: convert them."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    try:
        if labels.shape != images.shape[:1]:  # before either is copied
            raise UserError(
                f"Labels must have the shape ({len(images)},), one per image, not {labels.shape}."
            )
        return MemorySplit(channels_first(images), torch.from_numpy(labels.astype(np.int64)))
    except UserError as error:
        raise UserError(f"{file}, {part} part: {error}") from error


def _classes(archive: Arrays, file: Path) -> tuple[str, ...]:
    names = _array(archive, "classes", file)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"classes in {file} must be a list of names, as numpy.array(['cat', 'dog']) is."
        )
    return tuple(names.tolist())


def _array(archive: Arrays, key: str, file: Path) -> NDArray[Any]:
    if key not in archive.files:
        raise UserError(
            f"{file} has no {key}, only {', '.join(archive.files) or 'nothing'}: add it with numpy.savez."
        )
    try:
        return archive[key]
    except Exception as error:  # object arrays, damaged members, absurd shapes
        raise UserError(
            f"{key} in {file} cannot be read ({error}): save it as a plain array of numbers."
        ) from error
