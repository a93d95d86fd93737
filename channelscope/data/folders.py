"""Image folders: which parts and classes there are, and which files are images of them."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from channelscope.data.datasets import Dataset
from channelscope.data.images import ImageFiles, read_header
from channelscope.data.splits import LazySplit
from channelscope.distributed import is_first
from channelscope.errors import UserError, escape
from channelscope.reading import RATIO, SCALED_RATIO, UNPACKED, check_unpacked, read_text

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GLANCES = 1000  # files whose beginnings decide whether a folder is grey
IMAGES = "images"  # the folder within a class, or within a part without classes, of Tiny-ImageNet
# Names of the parts, the first that is there being meant.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_NAMED = 3  # classes that a sentence names
# Endings of files that are no images and that nobody takes for such.
_NOTES = {".txt", ".csv", ".json", ".xml", ".md", ".db", ".ini", ".log", ".yaml", ".yml", ".html"}

_Listing = list[tuple[str, int]]  # files, relative to the folder, and their labels


def read_folder(
    name: str, folder: Path, image_size: int | None = None, stream: bool | None = None
) -> Dataset:
    """List `folder`/{train,val,test}/<class>/*, or `folder`/<class>/* as the test part.

    Only test is needed; where it is missing, or has images of no class, val is the test part. Parts
    may be called as in `PARTS`. A class without images of its own may have them in <class>/images/.
    A part of the form part/images/* is read if part/PART_annotations.txt has a file's name and its
    class in each line, as in Tiny-ImageNet.

    Classes are the class folders of train (of test if there is no train), in alphabetical order; a
    part may lack some, which is said. Names with a leading dot and files other than images are left
    out; of files that may be meant as images this is said. Links to folders and to files are
    followed, as people link their data. No image is decoded: the size is that of the first, and the
    folder is grey if all are, of which up to `GLANCES` are looked at (every one if `stream` is
    False). An image that differs is refused when it is read.

    Raises:
        UserError: a folder is missing or has no images, or the first image cannot be read.
    """
    try:
        classes, listings = _list_parts(folder)
    except OSError as error:
        raise UserError(
            f"Cannot read the folder {error.filename or folder}: {error.strerror or error}."
        ) from error
    files = [file for listing in listings.values() for file, _ in listing]
    step = 1 if stream is False else -(-len(files) // GLANCES)
    headers = (read_header(folder / file) for file in files[::step])
    channels, height, width = next(headers)
    # A coloured folder is never taken for a grey one because of a few grey images.
    channels = max(channels, 3 if any(header[0] == 3 for header in headers) else 1)
    if image_size is not None:
        height = width = image_size
    if image_size is None or not stream:
        ratio = RATIO if image_size is None else SCALED_RATIO
        _check_sizes(folder, files, len(files) * channels * height * width, ratio)
    reader = ImageFiles(folder, tuple(files), (channels, height, width), image_size)
    rows = torch.arange(len(files), device="cpu").split(
        [len(listing) for listing in listings.values()]
    )
    splits = {
        part: LazySplit(
            reader, torch.tensor([label for _, label in listing], device="cpu"), own, stream
        )
        for (part, listing), own in zip(listings.items(), rows, strict=True)
    }
    return Dataset(name, classes, **splits)


def _check_sizes(folder: Path, files: Sequence[str], unpacked: int, ratio: int) -> None:
    """Refuse small files that would take far more bytes of memory, with UserError."""
    if unpacked <= UNPACKED:
        return
    size = 0
    for file in files:  # as far as is needed
        with suppress(OSError):  # what cannot be read is told when it is read
            size += (folder / file).stat().st_size
        if unpacked <= ratio * size:
            return
    try:
        check_unpacked(unpacked, size, ratio)
    except ValueError as error:
        raise UserError(
            f"The images of {folder} cannot be read as they are ({error}): choose a smaller "
            "--image-size."
        ) from error


# ---------------------------------------------------------------- parts and classes


def _list_parts(folder: Path) -> tuple[tuple[str, ...], dict[str, _Listing]]:
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder.absolute()}: give the folder that holds the images."
        )
    parts = _choose_parts(folder)
    first = parts.get("train", parts["test"])
    classes = [] if _is_listed(folder / first) else _list_folders(folder / first)
    if not classes:
        raise UserError(f"{folder} has no class folders: put the images into {folder}/<class>/.")
    unread = Counter[str]()
    listings = {part: _list_part(folder, own, classes, unread) for part, own in parts.items()}
    _say_what_is_left_out(folder, unread)
    _say_what_parts_lack(folder, parts, classes, listings)
    return tuple(classes), listings


def _choose_parts(folder: Path) -> dict[str, str]:
    """Return part -> name of its folder; an empty name where the folder itself is the test part."""
    # A class may be called "train": a part is told from a class by the folders inside it.
    parts: dict[str, str] = {}
    for part, names in PARTS.items():
        own = [name for name in names if _is_part(folder / name)]
        if len(own) > 1:
            raise UserError(f"{folder} has both {own[0]} and {own[1]}: move or remove one of them.")
        if own:
            parts[part] = own[0]
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
        _say(f"{folder} has no test part with classes: {parts['test']} is the test part.")
    if parts and "test" not in parts:
        raise UserError(
            f"{folder} has {' and '.join(parts.values())} but no test: "
            f"add {folder / 'test'}, or name one part."
        )
    return parts or {"test": ""}


def _is_part(folder: Path) -> bool:
    """Tell whether a folder has classes, in folders or in a list, rather than images of one."""
    return _list_folders(folder) not in ([], [IMAGES]) or _is_listed(folder)


def _is_listed(folder: Path) -> bool:
    """Tell whether a list says which class each image of a part is of."""
    return _list_folders(folder) == [IMAGES] and _name_list(folder).is_file()


def _name_list(folder: Path) -> Path:
    return folder / f"{folder.name}_annotations.txt"


def _list_part(folder: Path, part: str, classes: Sequence[str], unread: Counter[str]) -> _Listing:
    if _is_listed(folder / part):
        return _read_list(folder, part, classes, unread)
    present = _list_folders(folder / part)
    if unknown := sorted(set(present) - set(classes)):
        raise UserError(
            f"{folder / part / unknown[0]} is a class that the training images do not have: "
            "move or remove it."
        )
    return [
        (os.path.join(part, name, file), classes.index(name))  # noqa: PTH118  # a Path takes longer
        for name in present
        for file in _list_images(folder / part / name, unread)
    ]


def _read_list(folder: Path, part: str, classes: Sequence[str], unread: Counter[str]) -> _Listing:
    """List a part of the form part/images/* by the list of its labels."""
    path = _name_list(folder / part)
    label_of: dict[str, str] = {}
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): write a line for each image.") from error
    for line in lines:
        file, _, rest = line.partition("\t")
        label_of[file] = rest.partition("\t")[0]
    numbers = {name: number for number, name in enumerate(classes)}
    listing = []
    for file in _list_images(folder / part / IMAGES, unread):
        label = label_of.get(file)
        if label not in numbers:
            raise UserError(
                f"{path} does not name a class of the training images for {file}: add the line, "
                "the file's name, a tab and its class, or remove the image."
            )
        listing.append((os.path.join(part, IMAGES, file), numbers[label]))  # noqa: PTH118
    return listing


def _list_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    entries = os.scandir(folder)
    return sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))


def _list_images(folder: Path, unread: Counter[str]) -> list[str]:
    """List a class's images; count the endings of other files in ``unread``."""
    # Not is_file(): a broken link is to be reported when it is read, not passed over.
    files = sorted(
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and not entry.is_dir()
    )
    images = [file for file in files if file.lower().endswith(SUFFIXES)]
    if not images and folder.name != IMAGES and (folder / IMAGES).is_dir():
        inner = _list_images(folder / IMAGES, unread)
        return [os.path.join(IMAGES, file) for file in inner]  # noqa: PTH118
    if not images:
        endings = sorted({Path(file).suffix or file for file in files})[:5]
        raise UserError(
            f"{folder} has no images, {'only ' + ', '.join(endings) if endings else 'no files'}: "
            f"put {', '.join(SUFFIXES)} files into it, or remove the folder."
        )
    others = (Path(file).suffix.lower() for file in set(files) - set(images))
    unread.update(ending for ending in others if ending not in _NOTES)
    return images


# ---------------------------------------------------------------- what is said


def _say(sentence: str) -> None:
    """Print a sentence to the standard error, once of several processes."""
    if is_first():
        sys.stderr.write(f"{escape(sentence)}\n")


def _say_what_is_left_out(folder: Path, unread: Counter[str]) -> None:
    if unread:
        kinds = ", ".join(
            f"{count} {ending or 'without an ending'}" for ending, count in unread.most_common(5)
        )
        _say(
            f"{folder}: {unread.total()} files are left out, as their endings are none of images "
            f"that are read ({kinds}): convert them to {SUFFIXES[5]} if they are to count."
        )


def _say_what_parts_lack(
    folder: Path, parts: Mapping[str, str], classes: Sequence[str], listings: dict[str, _Listing]
) -> None:
    for part, listing in listings.items():
        present = {label for _, label in listing}
        missing = [name for number, name in enumerate(classes) if number not in present]
        if missing and part != "train":
            names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            what = "class has" if len(missing) == 1 else "classes have"
            _say(
                f"{folder}: {len(missing)} {what} training images and none in {parts[part]} "
                f"({names}): add some, or do not expect results for them."
            )
