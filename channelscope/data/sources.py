"""Where images come from: one function for names, one for whatever else holds labelled images."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from channelscope.data.archives import from_npz
from channelscope.data.datasets import Dataset
from channelscope.data.folders import image_folder
from channelscope.data.images import resized
from channelscope.data.sampling import hold_out
from channelscope.data.splits import MemorySplit
from channelscope.data.standard import TORCHVISION, digits, from_torchvision
from channelscope.data.tensors import from_tensors, from_torch
from channelscope.errors import UserError, suggest

NAMES = ("digits", "cifar10", "svhn", "fashion-mnist", "mnist", "imagefolder:DIR", "npz:FILE")
"""What `load` accepts, in the words of the command line."""


class LoadOptions(TypedDict, total=False):
    """The options of `load`."""

    root: Path
    download: bool
    seed: int
    validation: float
    image_size: int | None
    stream: bool | None


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

    - `digits`: 1,797 grey 8 x 8 digits that come with scikit-learn; its 60/20/20 % split is always the same.
    - `cifar10`, `svhn`, `fashion-mnist`, `mnist`: read, and on `download` fetched, by torchvision in `root`.
    - `imagefolder:DIR`: DIR/{train,test}/<class>/*, also with val, or DIR/<class>/*, which is then the test part.
    - `npz:FILE`: {train,val,test}_{images,labels}, of which only test is needed, and perhaps `classes`;
      images (n, h, w) or (n, h, w, c), c being 1 or 3, uint8 or float in [0, 1]; nothing is ever unpickled.

    Args:
        name: one of the above.
        root: the folder of the torchvision datasets.
        download: fetch what is missing there.
        seed: decides which training images are held out, at least 0.
        validation: the share of the training images, in [0, 1), that is held out where there is no val part.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.
        stream: leave the images of an image folder on disk and decode them in every pass (`Streamed`), which gives the
            same values; None: where they would take more than half of the machine's memory. Each process of a run
            that reads them into memory has its own copy there.

    Raises:
        UserError: an unknown name, missing or damaged files, wrong contents, options out of range.
    """
    if not 0 <= validation < 1:
        raise UserError(
            f"The share held out for validation must be at least 0 and below 1, not {validation}."
        )
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size must be at least 1 pixel, not {image_size}.")
    kind, _, place = name.partition(":")
    if kind == "imagefolder" and place:
        return image_folder(name, Path(place).expanduser(), validation, seed, image_size, stream)
    if kind == "npz" and place:
        dataset = from_npz(name, Path(place).expanduser())
    elif name == "digits":
        dataset = digits()
    elif name in TORCHVISION:
        dataset = from_torchvision(name, root.expanduser(), download)
    else:
        raise _unknown(name)
    if stream:
        raise UserError(
            f"Only image folders are streamed, and {name!r} is none: leave --stream out."
        )
    return _resized(_with_val(dataset, validation, seed), image_size)


def as_dataset(
    source: str | Dataset | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor],
    **options: Unpack[LoadOptions],
) -> Dataset:
    """Make a dataset of whatever holds labelled images.

    Args:
        source: a name, which `load` takes with the `options`; a Dataset, passed on; a torch dataset of (image, label),
            the image a tensor (c, h, w), uint8 or float in [0, 1], or a PIL image; or a pair of tensors, images
            (n, c, h, w) and labels (n,). The last two give a test part only, and the options do not concern them.

    Raises:
        UserError: none of these, or as `load` and `Split` say.
    """
    if isinstance(source, str):
        return load(source, **options)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple):
        return from_tensors(source)
    if isinstance(source, torch.utils.data.Dataset):
        return from_torch(source)
    raise UserError(
        f"Images cannot be taken from {type(source).__name__}: "
        "pass a dataset's name, a pair of tensors (images, labels) or a torch dataset."
    )


def _unknown(name: str) -> UserError:
    if name and Path(name).is_dir():
        return UserError(
            f"{name!r} is a folder: write imagefolder:{name} to read the images in it."
        )
    if name.endswith(".npz"):
        return UserError(f"{name!r} is a file: write npz:{name} to read the images in it.")
    return UserError(
        f"There is no dataset {name!r}: give one of {', '.join(NAMES)}.{suggest(name, NAMES)}"
    )


def _with_val(dataset: Dataset, validation: float, seed: int) -> Dataset:
    if dataset.train is None or dataset.val is not None or validation == 0:
        return dataset
    kept, held = hold_out(dataset.train.labels, validation, seed)
    return replace(dataset, train=dataset.train.subset(kept), val=dataset.train.subset(held))


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    if size is None or dataset.image_size == (size, size):
        return dataset
    scaled: dict[str, Any] = {}
    for part, split in dataset.parts.items():
        assert isinstance(split, MemorySplit)  # what is streamed is scaled as it is read
        scaled[part] = MemorySplit(resized(split.images, size), split.labels)
    return replace(dataset, **scaled)
