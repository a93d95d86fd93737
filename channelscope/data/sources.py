"""What holds labelled images, other than names: arrays, datasets, DataLoaders, lists."""

import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, default_collate

from channelscope.data.datasets import Dataset, number_classes
from channelscope.data.images import from_arrays, from_pil, is_integer, to_image
from channelscope.data.readers import load
from channelscope.data.splits import LazySplit, MemorySplit, Reader, Split, check_images
from channelscope.errors import UserError
from channelscope.progress import open_bar


def as_dataset(
    data: Any, *, image_key: str = "image", label_key: str = "label", progress: bool = False
) -> Dataset:
    """Make a dataset of whatever holds labelled images.

    Every function of the package that takes `data` calls this, and a `Dataset` passes unchanged. So
    whoever needs the keyword arguments calls it first, as whoever needs those of `load` calls that:
    ``cs.compare(models, as_dataset(data, image_key="img", label_key="fine_label"))``.

    - a name: as `load` takes it, with its defaults. All else gives a test part only.
    - a pair of arrays or tensors (images, labels): images (n, c, h, w), (n, h, w, c) or (n, h, w),
      labels (n,).
    - a torch dataset or anything else with a length and items, as Hugging Face's, or a list: an
      item is a pair (image, label) or a dictionary. Where labels are known without the items (from
      `targets`, `labels`, `samples`, or a column), items are read when they are needed
      (`LazySplit`), else all of them at once.
    - an iterable of such items: read up to its end.
    - a DataLoader: its dataset, if it goes through that in order, else the images of one pass over
      it, in its order.
    - a function without arguments that returns one of these: called when the images are needed.

    An image is a PIL image, an array or a tensor: (c, h, w), (h, w, c) or (h, w), uint8 or float in
    [0, 1]. Channels come last where the last axis is 1 or 3 long and the one before height and
    width is not. Class names are those of a dataset's `classes`, also of the one that is within
    `Subset` and DataLoader.

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
        arrays = _from_pair(data)
        return Dataset("tensors", number_classes([arrays]), arrays)
    if isinstance(data, DataLoader) and _is_in_order(data):
        data = data.dataset
    source = data
    while isinstance(source, Subset | DataLoader):
        source = source.dataset
    items = _Items(data, type(source).__name__, image_key, label_key)
    split = items.make_split(progress)
    return Dataset(items.name, _find_classes(source, label_key) or number_classes([split]), split)


def _from_pair(pair: tuple[Any, ...]) -> MemorySplit:
    if len(pair) != 2 or not isinstance(pair[0], Tensor | np.ndarray):
        kinds = ", ".join(type(value).__name__ for value in pair)
        raise UserError(
            f"Pass a pair of arrays or tensors, images and labels, not ({kinds}); "
            "of single images and labels, pass a list of pairs."
        )
    return from_arrays(*pair)


class _Items(Reader):
    """Reads the items of a dataset, which must agree with each other and with known labels.

    Args:
        source: what is indexed, or gone through.
        name: how errors call it.
        image_key, label_key: the keys of image and label, where an item is a dictionary.
    """

    labels: Tensor
    on_disk = False

    def __init__(self, source: Any, name: str, image_key: str, label_key: str) -> None:
        self.source, self.name = source, name
        self.image_key, self.label_key = image_key, label_key

    def __str__(self) -> str:
        return self.name

    def make_split(self, progress: bool) -> Split:
        """Make a split of the items: a lazy one if their labels are known, else one in memory."""
        source = self.source
        if isinstance(source, DataLoader):
            # A pass draws from the global generator.
            with torch.random.fork_rng(devices=[]):
                return self._collect(self._iterate_loader(source), progress)
        indexed = hasattr(source, "__getitem__") and not isinstance(source, IterableDataset)
        if isinstance(source, bytes | Mapping | Tensor | np.ndarray) or not (
            indexed or hasattr(source, "__iter__")
        ):
            raise UserError(
                f"Images cannot be taken from {self.name}: pass a dataset's name, a pair (images, "
                "labels) of arrays or tensors, a torch dataset, a DataLoader or a list of pairs."
            )
        if not indexed:
            return self._collect(source, progress)
        try:
            n = len(source)
        except TypeError as error:
            raise UserError(
                f"{self.name} has no length: define __len__, or pass an iterable of its items."
            ) from error
        labels = _find_labels(source, self.label_key)
        if labels is None or not n:
            return self._collect((source[index] for index in range(n)), progress)
        image, _ = self._parse(source[0], 0)
        check_images(image[None])
        channels, height, width = image.shape
        self.shape, self.dtype, self.labels = (channels, height, width), image.dtype, labels
        return LazySplit(self, labels, torch.arange(n, device="cpu"))

    def read(self, index: int) -> Tensor:
        image, label = self._parse(self.source[index], index)
        if label != self.labels[index]:
            raise UserError(
                f"Item {index} of {self.name} has the label {label}, and its list of labels says "
                f"{self.labels[index]}: correct that list, or pass an iterable of the items."
            )
        image = _match(image, index, self.shape, self.dtype)
        check_images(image[None])
        return image

    def digest(self, index: int) -> bytes:
        return self.read(index).contiguous().view(torch.uint8).numpy().tobytes()

    def _collect(self, items: Iterable[Any], progress: bool) -> MemorySplit:
        """Read items into memory."""
        bar = open_bar(items, "reading images", shown=progress, leave=False, delay=2, unit="image")
        parsed = [self._parse(item, index) for index, item in enumerate(bar)]
        if not parsed:
            raise UserError(f"{self.name} is empty: pass at least one image.")
        images = [image for image, _ in parsed]
        # A coloured image decides, because the first may be one of some grey ones.
        like = next((image for image in images if len(image) == 3), images[0])
        images = [
            _match(image, index, tuple(like.shape), like.dtype)
            for index, image in enumerate(images)
        ]
        return MemorySplit(
            torch.stack(images), torch.tensor([label for _, label in parsed], device="cpu")
        )

    def _iterate_loader(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Go through the items of one pass, and warn if their order is by chance."""
        indexed = not isinstance(loader.dataset, IterableDataset)
        if indexed and not isinstance(loader.sampler, SequentialSampler):
            warnings.warn(
                f"The DataLoader draws images by its {type(loader.sampler).__name__}: they are "
                "taken in the order of one pass, and another run may choose others. "
                "Pass its dataset to choose the same ones every time.",
                stacklevel=5,
            )
        for index, batch in enumerate(loader):
            if loader.batch_sampler is None:
                yield batch
            else:
                images, labels = self._unpack(batch, f"Batch {index} of the DataLoader")
                yield from zip(images, labels, strict=True)

    def _unpack(self, item: Any, description: str) -> tuple[Any, Any]:
        """Return the image and the label of an item, or those of a batch, as they are."""
        if isinstance(item, Mapping):
            for key in (self.image_key, self.label_key):
                if key not in item:
                    raise UserError(
                        f"{description} has no {key!r}, only {', '.join(map(str, item))}: name its "
                        "keys, as in as_dataset(data, image_key='img', label_key='fine_label')."
                    )
            return item[self.image_key], item[self.label_key]
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise UserError(
                f"{description} is not a pair: give (image, label), or a dictionary of them."
            )
        return item[0], item[1]

    def _parse(self, item: Any, index: int) -> tuple[Tensor, int]:
        """Return the image (c, h, w) and the label of an item."""
        from PIL import Image

        image, label = self._unpack(item, f"Item {index} of {self.name}")
        if isinstance(image, Image.Image):
            pixels = from_pil(image)
        elif isinstance(image, Tensor | np.ndarray):
            pixels = to_image(image).cpu()
        else:
            raise UserError(
                f"Image {index} is a {type(image).__name__}: "
                "give a PIL image, an array or a tensor."
            )
        if pixels.ndim != 3:
            raise UserError(
                f"Image {index} has the shape {tuple(image.shape)}: "
                "give (c, h, w), (h, w, c) or (h, w)."
            )
        try:
            return pixels, operator.index(label)
        except TypeError as error:
            raise UserError(
                f"Label {index} is not a whole number: give the number of the class."
            ) from error


def _find_labels(source: Any, label_key: str) -> Tensor | None:
    """Return the labels of all items of a dataset if they are known without reading items."""
    if isinstance(source, Subset):
        labels = _find_labels(source.dataset, label_key)
        return None if labels is None else labels[torch.as_tensor(source.indices, device="cpu")]
    if getattr(source, "target_transform", None) is not None:
        return None
    candidates = [getattr(source, name, None) for name in ("targets", "labels")]
    if label_key in (getattr(source, "column_names", None) or ()):  # Hugging Face's
        candidates.append(source[label_key])
    with suppress(TypeError, ValueError):
        candidates.append([label for _, label in getattr(source, "samples", ())])
    for values in candidates:
        with suppress(TypeError, ValueError, RuntimeError):
            labels = (
                values
                if isinstance(values, Tensor)
                else torch.as_tensor(np.asarray(values), device="cpu")
            )
            if is_integer(labels) and labels.shape == (len(source),):
                return labels.detach().cpu().long()
    return None


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


def _match(image: Tensor, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Expand a grey image among coloured ones; UserError if it differs otherwise from them."""
    if len(image) == 1 and shape[0] == 3:
        image = image.expand(3, -1, -1)
    if (tuple(image.shape), image.dtype) != (shape, dtype):
        raise UserError(
            f"Image {index} is {image.dtype} {tuple(image.shape)}, others are {dtype} "
            f"{shape}: bring them to one type and size in the dataset's transform."
        )
    return image
