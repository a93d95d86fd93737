"""Where images come from: `load` takes a dataset's name, `as_dataset` whatever else holds labelled images."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, default_collate

from channelscope.data.datasets import Dataset, number_classes
from channelscope.data.images import resize
from channelscope.data.items import Items, channels_first, is_integer, to_tensor
from channelscope.data.readers import (
    TORCHVISION,
    read_digits,
    read_folder,
    read_npz,
    read_torchvision,
)
from channelscope.data.sampling import hold_out
from channelscope.data.splits import MemorySplit, Split
from channelscope.errors import UserError, suggest

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

    - `digits`: 1,797 grey 8 x 8 digits that come with scikit-learn; its 60/20/20 % split is always the same.
    - `cifar10`, `svhn`, `fashion-mnist`, `mnist`: read, and on `download` fetched, by torchvision in `root`.
    - `imagefolder:DIR`: DIR/{train,test}/<class>/*, also with val, or DIR/<class>/*, which is then the test part. Its
      images are decoded when they are needed (`LazySplit`).
    - `npz:FILE`: {train,val,test}_{images,labels}, of which only test is needed, and perhaps `classes`;
      images (n, h, w) or (n, h, w, c), c being 1 or 3, uint8 or float in [0, 1]; nothing is ever unpickled.

    Args:
        name: one of the above.
        root: the folder of the torchvision datasets.
        download: fetch what is missing there.
        seed: decides which training images are held out, at least 0.
        validation: the share of the training images, in [0, 1), that is held out where there is no val part.
        image_size: scale the shorter side to this many pixels and crop the centre; None: as stored.
        stream: whether `Split.load` leaves the images of an image folder on disk, so that every pass decodes them, with
            the same values; None: where those of a part would take more than half of the machine's memory. Each process
            of a run that loads them has its own copy in memory.

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
    resized: dict[str, Any] = {
        part: MemorySplit(resize(split.images, image_size), split.labels)
        for part, split in dataset.parts.items()
        if isinstance(split, MemorySplit)  # files are scaled as they are read
    }
    return replace(dataset, **resized)


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


def as_dataset(
    data: Any, *, image_key: str = "image", label_key: str = "label", progress: bool = False
) -> Dataset:
    """Make a dataset of whatever holds labelled images.

    Every function of the package that takes `data` calls this, and a `Dataset` passes unchanged. So whoever needs the
    keyword arguments calls it first, as whoever needs those of `load` calls that:
    ``cs.compare(models, as_dataset(data, image_key="img", label_key="fine_label"))``.

    - a name: as `load` takes it, with its defaults. All else gives a test part only.
    - a pair of arrays or tensors (images, labels): images (n, c, h, w), (n, h, w, c) or (n, h, w), labels (n,).
    - a torch dataset or anything else with a length and items, as Hugging Face's, or a list: an item is a pair (image,
      label) or a dictionary. Where labels are known without the items (from `targets`, `labels`, `samples`, or a
      column), items are read when they are needed (`LazySplit`), else all of them at once.
    - an iterable of such items: read up to its end.
    - a DataLoader: its dataset, if it goes through that in order, else the images of one pass over it, in its order.
    - a function without arguments that returns one of these: called when the images are needed.

    An image is a PIL image, an array or a tensor: (c, h, w), (h, w, c) or (h, w), uint8 or float in [0, 1]. Channels
    come last where the last axis is 1 or 3 long and the one before height and width is not. Class names are those of a
    dataset's `classes`, also of the one that is within `Subset` and DataLoader.

    Args:
        data: one of the above.
        image_key, label_key: the keys of image and label, where items are dictionaries.
        progress: show a progress bar while items are read.

    Raises:
        UserError: none of these, or as `load` and `MemorySplit` say.

    Warns:
        UserWarning: a DataLoader that shuffles: another run may choose other images.
    """
    if isinstance(data, FunctionType):
        return as_dataset(data(), image_key=image_key, label_key=label_key, progress=progress)
    if isinstance(data, str):
        return load(data)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple):
        pair = _pair(data)
        return Dataset("tensors", number_classes([pair]), pair)
    if isinstance(data, DataLoader) and _is_in_order(data):
        data = data.dataset
    source = data
    while isinstance(source, Subset | DataLoader):
        source = source.dataset
    items = Items(data, type(source).__name__, image_key, label_key)
    if isinstance(data, DataLoader):
        # A pass draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            split: Split = items.collect(_iterate(data, items), progress)
    elif isinstance(data, bytes | Mapping | Tensor | np.ndarray):
        raise _unknown_source(data)
    elif hasattr(data, "__getitem__") and not isinstance(data, IterableDataset):
        split = items.split(progress)
    elif hasattr(data, "__iter__"):
        split = items.collect(data, progress)
    else:
        raise _unknown_source(data)
    return Dataset(items.name, _find_classes(source, label_key) or number_classes([split]), split)


def _unknown_source(data: object) -> UserError:
    return UserError(
        f"Images cannot be taken from {type(data).__name__}: pass a dataset's name, a pair "
        "(images, labels) of arrays or tensors, a torch dataset, a DataLoader or a list of pairs."
    )


def _pair(pair: tuple[Any, ...]) -> MemorySplit:
    if len(pair) != 2 or not isinstance(pair[0], Tensor | np.ndarray):
        kinds = ", ".join(type(value).__name__ for value in pair)
        raise UserError(
            f"Pass a pair of arrays or tensors, images and labels, not ({kinds}); "
            "of single images and labels, pass a list of pairs."
        )
    images, labels = pair
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(np.asarray(labels))
        except (TypeError, ValueError) as error:
            raise UserError("Labels must be int64, one per image: number the classes.") from error
    labels = labels.detach()
    images = channels_first(to_tensor(images), 4)
    return MemorySplit(images, labels.long() if is_integer(labels) else labels)


def _find_classes(source: Any, label_key: str) -> tuple[str, ...]:
    names = getattr(source, "classes", None)
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):  # Hugging Face's
        names = getattr(features.get(label_key), "names", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _is_in_order(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader yields the items of its dataset in order, all of them, as they are."""
    return (
        isinstance(loader.sampler, SequentialSampler)
        and loader.batch_size is not None
        and not loader.drop_last
        and loader.collate_fn is default_collate
    )


def _iterate(loader: DataLoader[Any], items: Items) -> Iterator[Any]:
    """Go through the items of one pass, and warn if their order is by chance."""
    indexed = not isinstance(loader.dataset, IterableDataset)
    if indexed and not isinstance(loader.sampler, SequentialSampler):
        warnings.warn(
            f"The DataLoader draws images by its {type(loader.sampler).__name__}: they are taken in "
            "the order of one pass, and another run may choose others. "
            "Pass its dataset to choose the same ones every time.",
            stacklevel=4,
        )
    for index, batch in enumerate(loader):
        if loader.batch_sampler is None:
            yield batch
        else:
            images, labels = items.unpack(batch, f"Batch {index} of the DataLoader")
            yield from zip(images, labels, strict=True)
