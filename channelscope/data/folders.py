"""A folder of class folders: all of it read into memory or, where it would take too much of that, streamed."""

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from channelscope.data.datasets import Dataset
from channelscope.data.images import decoded, is_grey, read_images
from channelscope.data.sampling import hold_out
from channelscope.data.splits import MemorySplit
from channelscope.data.streams import StreamedSplit
from channelscope.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SHARE = 0.5  # of the machine's memory: what takes more, once decoded, is streamed
GLANCES = 1000  # files whose beginnings decide whether a streamed folder is grey

Listing = list[tuple[str, int]]  # file, label


def image_folder(
    name: str,
    folder: Path,
    validation: float,
    seed: int,
    image_size: int | None,
    stream: bool | None = None,
) -> Dataset:
    """Read `folder`/{train,val,test}/<class>/*, of which only test is needed, or `folder`/<class>/* as the test part.

    Classes are the class folders of train (of test where there is no train), in alphabetical order. Without a val
    folder the share `validation` of the training files is held out, stratified. Names with a leading dot are left out.
    Links to folders and to files are followed, as people link their data; what is no file in the end is refused.
    Streamed (`stream`; None: where the images would take more than half of the machine's memory), all parts are
    `Streamed`, and images that cannot be used are found when their turn comes.

    Raises:
        UserError: a folder is missing or has no images, a file is damaged, sizes differ without `image_size`.
    """
    try:
        classes, listings = _listings(folder)
    except OSError as error:
        raise UserError(
            f"Cannot read the folder {error.filename or folder}: {error.strerror or error}."
        ) from error
    if "train" in listings and "val" not in listings and validation > 0:
        _divide(listings, validation, seed)
    files = [file for listing in listings.values() for file, _ in listing]
    _, height, width = decoded(files[0], image_size).shape
    if stream is None:
        stream = len(files) * 3 * height * width > SHARE * _memory()
    if not stream:
        return Dataset(name, classes, **_in_memory(listings, read_images(files, image_size)))
    shape = (1 if _all_grey(files) else 3, height, width)
    parts = {
        part: _streamed(folder, listing, shape, image_size) for part, listing in listings.items()
    }
    return Dataset(name, classes, **parts)


def _in_memory(listings: dict[str, Listing], images: Tensor) -> dict[str, MemorySplit]:
    ends = accumulate(len(listing) for listing in listings.values())
    return {
        part: MemorySplit(images[end - len(listing) : end], _labels(listing))
        for (part, listing), end in zip(listings.items(), ends, strict=True)
    }


def _streamed(
    folder: Path, listing: Listing, shape: tuple[int, int, int], image_size: int | None
) -> StreamedSplit:
    files = tuple(file.removeprefix(f"{folder}{os.sep}") for file, _ in listing)
    return StreamedSplit(folder, files, _labels(listing), shape, image_size)


def _all_grey(files: Sequence[str]) -> bool:
    """Look at the beginnings of up to GLANCES files, evenly spread: grey is what has no other among them.

    So a coloured folder is never taken for a grey one because of a few grey images; in a grey one, `Streamed` refuses
    a coloured image that was not looked at. Either way no value differs from what reading everything gives.
    """
    return all(is_grey(file) for file in files[:: -(-len(files) // GLANCES)])


def _memory() -> int:
    """Give the bytes of the machine's memory.

    Not of what is free of it: that differs from run to run and from process to process, and with it would the
    decision, and with that the fingerprint of the data.
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _listings(folder: Path) -> tuple[tuple[str, ...], dict[str, Listing]]:
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder.absolute()}: give the folder that holds the images."
        )
    # A class may be called "train": a part is told from a class by the folders inside it.
    parts = {part: folder / part for part in ("train", "val", "test") if _subfolders(folder / part)}
    if parts and "test" not in parts:
        raise UserError(
            f"{folder} has {' and '.join(parts)} but no test: add {folder / 'test'}, or name one part."
        )
    parts = parts or {"test": folder}
    classes = _subfolders(parts.get("train", parts["test"]))
    if not classes:
        raise UserError(f"{folder} has no class folders: put the images into {folder}/<class>/.")
    listings = {part: _listing(path, classes) for part, path in parts.items()}
    for part, listing in listings.items():
        if not listing:
            raise UserError(
                f"{parts[part]} has no images: put {', '.join(SUFFIXES)} files into its class folders."
            )
    return tuple(classes), listings


def _listing(folder: Path, classes: Sequence[str]) -> Listing:
    present = _subfolders(folder)
    if unknown := sorted(set(present) - set(classes)):
        raise UserError(
            f"{folder / unknown[0]} is a class that the training images do not have: move or remove it."
        )
    return [
        (file, label)
        for label, name in enumerate(classes)
        if name in present
        for file in _files(folder / name)
    ]


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _files(folder: Path) -> Iterable[str]:
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    # Not is_file(): a broken link is to be reported when it is read, not passed over.
    return sorted(
        entry.path
        for entry in entries
        if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()
    )


def _divide(listings: dict[str, Listing], validation: float, seed: int) -> None:
    # Done on the names, before anything is read, so that every split is a view of one block of memory.
    train = listings["train"]
    kept, held = hold_out(_labels(train), validation, seed)
    listings["train"] = [train[index] for index in kept.tolist()]
    listings["val"] = [train[index] for index in held.tolist()]


def _labels(listing: Listing) -> Tensor:
    return torch.tensor([label for _, label in listing], dtype=torch.int64)
