"""Datasets by name: scikit-learn's digits, torchvision's, .npz files and image folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from channelscope.data.datasets import Dataset, number_classes
from channelscope.data.folders import read_folder
from channelscope.data.images import MAX_SIDE, from_arrays, resize
from channelscope.data.sampling import hold_out
from channelscope.data.splits import MemorySplit
from channelscope.errors import UserError, suggest
from channelscope.reading import (
    SCALED_RATIO,
    Arrays,
    check_regular,
    check_unpacked,
    open_arrays,
)

DIGITS = tuple("0123456789")
# Of a file of torchvision's; SVHN's training part has 182 million bytes.
MAX_BYTES = 256 * 2**20

# The class in torchvision.datasets, and what of it lies in the root folder.
TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "svhn": ("SVHN", "{part}_32x32.mat"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "mnist": ("MNIST", "MNIST/raw"),
}


NAMES = ("digits", "cifar10", "svhn", "fashion-mnist", "mnist", "imagefolder:DIR", "npz:FILE")
"""What `load` accepts, in the words of the command line."""


def load(
    name: str,
    *,
    root: Path = Path("data"),
    download: bool = False,
    seed: int = 0,
    validation: float = 0.1,
    image_size: int | None = None,
    stream: bool | None = None,
) -> Dataset:
    """Load a dataset by name.

    - `digits`: 1,797 grey 8 x 8 digits that come with scikit-learn; its 60/20/20 % split is always
      the same.
    - `cifar10`, `svhn`, `fashion-mnist`, `mnist`: read, and on `download` fetched, by torchvision
      in `root`.
    - `imagefolder:DIR`: DIR/{train,test}/<class>/*, also with val (valid, validation), which is the
      test part where there is no other, or DIR/<class>/*, which is then the test part; images may
      lie in <class>/images/*. They are decoded when they are needed (`LazySplit`).
    - `npz:FILE`: {train,val,test}_{images,labels}, of which only test is needed, and perhaps
      `classes`; images (n, h, w) or (n, h, w, c), c being 1 or 3, uint8 or float in [0, 1]; nothing
      is ever unpickled.

    Args:
        name: one of the above.
        root: the folder of the torchvision datasets.
        download: fetch what is missing there.
        seed: decides which training images are held out, at least 0.
        validation: the share of the training images, in [0, 1), that is held out where there is no
            val part.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.
        stream: whether `Split.load` leaves the images of an image folder on disk, so that every
            pass decodes them, with the same values; None: where those of a part would take more
            than half of the machine's memory. Each process of a run that loads them has its own
            copy in memory.

    Raises:
        UserError: an unknown name, missing or damaged files, wrong contents, options out of range.
    """
    _check_options(validation, image_size)
    kind, _, place = name.partition(":")
    if kind == "imagefolder" and place:
        dataset = read_folder(name, Path(place).expanduser(), image_size, stream)
    elif kind == "npz" and place:
        dataset = read_npz(name, Path(place).expanduser())
    elif name == "digits":
        dataset = read_digits()
    elif name in TORCHVISION:
        dataset = read_torchvision(name, root.expanduser(), download)
    else:
        raise _unknown_name(name)
    if stream and kind != "imagefolder":
        raise UserError(
            f"Only image folders are streamed, and {name!r} is none: leave --stream out."
        )
    if dataset.train is not None and dataset.val is None and validation > 0:
        train, val = hold_out(dataset.train.labels, validation, seed)
        dataset = replace(dataset, train=dataset.train.subset(train), val=dataset.train.subset(val))
    if image_size is None:
        return dataset
    if kind == "npz":
        _check_scaled(dataset, image_size, Path(place).expanduser())
    return _scale(dataset, image_size)


def _check_options(validation: float, image_size: int | None) -> None:
    if not 0 <= validation < 1:
        raise UserError(
            f"The share held out for validation must be at least 0 and below 1, not {validation}."
        )
    if image_size is not None and not 1 <= image_size <= MAX_SIDE:
        raise UserError(
            f"The image size must be from 1 to {MAX_SIDE} pixels, not {image_size}: choose another."
        )


def _scale(dataset: Dataset, image_size: int) -> Dataset:
    resized: dict[str, Any] = {
        part: MemorySplit(resize(split.images, image_size), split.labels)
        for part, split in dataset.parts.items()
        if isinstance(split, MemorySplit)  # files are scaled as they are read
    }
    return replace(dataset, **resized)


def _check_scaled(dataset: Dataset, image_size: int, file: Path) -> None:
    """Refuse to scale a small file's many images to far more bytes, with UserError."""
    images = sum(map(len, dataset.parts.values()))
    splits = dataset.parts.values()
    itemsize = max(split.images.itemsize for split in splits)  # type: ignore[attr-defined]
    unpacked = images * dataset.channels * image_size**2 * itemsize
    try:
        check_unpacked(unpacked, file.stat().st_size, SCALED_RATIO)
    except ValueError as error:
        raise UserError(
            f"The images of {file} cannot be scaled to {image_size} pixels a side ({error}): write "
            "it with numpy.savez, not packed, or choose a smaller --image-size."
        ) from error


def _unknown_name(name: str) -> UserError:
    if name and Path(name).is_dir():
        return UserError(
            f"{name!r} is a folder: write imagefolder:{name} to read the images in it."
        )
    if name.endswith(".npz"):
        return UserError(f"{name!r} is a file: write npz:{name} to read the images in it.")
    return UserError(
        f"There is no dataset {name!r}: give one of {', '.join(NAMES)}.{suggest(name, NAMES)}"
    )


# ---------------------------------------------------------------- digits


def read_digits() -> Dataset:
    """Return scikit-learn's 1,797 digits, 8 x 8 in 17 greys, always split 60/20/20 %."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = np.rint(stored.images * (255 / 16)).astype(np.uint8)
    digits = from_arrays(images, stored.target)
    rest, test = hold_out(digits.labels, 0.2, seed=0)
    train, val = hold_out(digits.labels[rest], 0.25, seed=0)
    return Dataset(
        "digits",
        DIGITS,
        train=digits.subset(rest[train]),
        val=digits.subset(rest[val]),
        test=digits.subset(test),
    )


# ---------------------------------------------------------------- torchvision


def read_torchvision(name: str, root: Path, download: bool) -> Dataset:
    """Read one of `TORCHVISION` in `root`, with `download` after fetching what is missing.

    Raises:
        UserError: files are missing, or differ from what was published.
    """
    stored = {part: _open_torchvision(name, part, root, download) for part in ("train", "test")}
    classes = DIGITS if name in ("mnist", "svhn") else tuple(stored["test"].classes)
    splits = {
        # SVHN's labels have a name of their own.
        part: from_arrays(np.asarray(data.data), data.labels if name == "svhn" else data.targets)
        for part, data in stored.items()
    }
    return Dataset(name, classes, **splits)


def _open_torchvision(name: str, part: str, root: Path, download: bool) -> Any:
    """Let torchvision open one part.

    Of CIFAR-10 and SVHN it checks the MD5 sums before it unpickles or parses any, of the others
    nothing. What is no file, or larger than any that was published, is refused before.
    """
    from torchvision import datasets

    kind, place = TORCHVISION[name]
    path = root.absolute() / place.format(part=part)
    if not download and not path.exists():
        raise UserError(
            f"{path} is not there: pass --download to fetch {name}, "
            "or give the folder that holds it."
        )
    _check_files(path)
    which: dict[str, Any] = {"split": part} if name == "svhn" else {"train": part == "train"}
    try:
        return getattr(datasets, kind)(root.absolute(), download=download, **which)
    except Exception as error:  # a network's, a disk's or a parser's: torchvision lets all through
        problem = "cannot be fetched" if download else "is incomplete or damaged"
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} {problem} ({reason}): remove it and pass --download, with a network at hand."
        ) from error


def _check_files(path: Path) -> None:
    """Refuse files that torchvision would wait for, take whole into memory, or read unasked."""
    if (old := path.parent / "processed").exists():
        raise UserError(
            f"{old} was written by an old torchvision, and would be read instead of {path}: "
            "remove it."
        )
    for file in sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []:
        try:
            if not file.is_dir() and check_regular(file).stat().st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES // 2**20} MB")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} is not as it was published ({error}): remove it and pass --download."
            ) from error


# ---------------------------------------------------------------- .npz


def read_npz(name: str, file: Path) -> Dataset:
    """Read {train,val,test}_{images,labels} and the class names `classes`; only test is needed.

    Images are (n, h, w) or (n, h, w, c), c being 1 or 3, uint8 or float in [0, 1]; labels (n,) or
    (n, 1), integers. Nothing is ever unpickled.

    Raises:
        UserError: the file or a key is missing, damaged, or not as above; or the file unpacks to
            far more than its size (``reading.check_archive``): what is written with numpy.savez,
            not packed, always passes.
    """
    if not file.is_file():
        raise UserError(f"There is no file {file.absolute()}: give an .npz file.")
    try:
        with open_arrays(file) as archive:
            keys = set(archive.files)
            splits = {
                part: _read_part(archive, part, file)
                for part in ("train", "val", "test")
                if part == "test" or keys & {f"{part}_images", f"{part}_labels"}
            }
            names = _read_array(archive, "classes", file) if "classes" in keys else None
    except UserError:
        raise
    except Exception as error:  # zipfile's, and what is said of an archive before it is read
        raise UserError(
            f"{file} cannot be read as an .npz file ({error}): "
            "write test_images and test_labels with numpy.savez."
        ) from error
    if names is None:
        return Dataset(name, number_classes(splits.values()), **splits)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"classes in {file} must be a list of names, as numpy.array(['cat', 'dog']) is."
        )
    return Dataset(name, tuple(names.tolist()), **splits)


def _read_part(archive: Arrays, part: str, file: Path) -> MemorySplit:
    images = _read_array(archive, f"{part}_images", file)
    labels = _read_array(archive, f"{part}_labels", file)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{part}_images in {file} must have the shape (n, h, w) or (n, h, w, c) "
            f"with 1 or 3 channels c, not {images.shape}."
        )
    try:
        return from_arrays(np.moveaxis(images, -1, 1), labels)
    except UserError as error:
        raise UserError(f"{file}, {part} part: {error}") from error


def _read_array(archive: Arrays, key: str, file: Path) -> NDArray[Any]:
    if key not in archive.files:
        raise UserError(
            f"{file} has no {key}, only {', '.join(archive.files) or 'nothing'}: "
            "add it with numpy.savez."
        )
    try:
        return archive[key]
    except Exception as error:  # object arrays, damaged members, absurd shapes
        raise UserError(
            f"{key} in {file} cannot be read ({error}): save it as a plain array of numbers."
        ) from error
