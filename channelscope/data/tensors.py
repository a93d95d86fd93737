"""Images that the user has in memory already: a pair of tensors, or a torch dataset."""

import operator
from typing import Any

import torch
from torch import Tensor

from channelscope.data.datasets import Dataset, numbered
from channelscope.data.images import pixels
from channelscope.data.splits import MemorySplit
from channelscope.errors import UserError


def from_tensors(pair: tuple[Any, ...]) -> Dataset:
    """Make a test part of images (n, c, h, w), uint8 or float in [0, 1], and integer labels (n,); else UserError."""
    if len(pair) != 2 or not all(isinstance(value, Tensor) for value in pair):
        kinds = ", ".join(type(value).__name__ for value in pair)
        raise UserError(
            f"Pass a pair of tensors, images and labels, not ({kinds}): torch.as_tensor converts arrays."
        )
    images, labels = (value.detach() for value in pair)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    test = MemorySplit(images, labels.long() if whole else labels)
    return Dataset("tensors", numbered([test]), test)


def from_torch(source: torch.utils.data.Dataset[Any]) -> Dataset:
    """Make a test part of a torch dataset's items; `source.classes`, where it is a list of names, names the classes.

    Raises:
        UserError: no length, an item that is not (image, label), images of different size or type.
    """
    from tqdm.auto import tqdm

    try:
        n = len(source)  # type: ignore[arg-type]  # torch leaves the length to its subclasses
    except TypeError as error:
        raise UserError(
            f"{type(source).__name__} has no length: pass a torch dataset that can be indexed."
        ) from error
    items = [
        _item(source, index)
        for index in tqdm(range(n), "reading images", leave=False, delay=2, unit="image")
    ]
    if not items:
        raise UserError(
            f"{type(source).__name__} is empty: pass a torch dataset with at least one image."
        )
    test = MemorySplit(
        _stacked([image for image, _ in items]), torch.tensor([label for _, label in items])
    )
    return Dataset(type(source).__name__, _classes(source) or numbered([test]), test)


def _classes(source: object) -> tuple[str, ...]:
    names = getattr(source, "classes", ())
    return (
        tuple(names)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        else ()
    )


def _item(source: torch.utils.data.Dataset[Any], index: int) -> tuple[Tensor, int]:
    from PIL import Image

    item = source[index]
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise UserError(
            f"Item {index} of {type(source).__name__} is not a pair: give (image, label)."
        )
    image, label = item
    if isinstance(image, Image.Image):
        image = torch.from_numpy(pixels(image))
    if not isinstance(image, Tensor) or image.ndim != 3:
        kind = (
            f"a tensor of shape {tuple(image.shape)}"
            if isinstance(image, Tensor)
            else type(image).__name__
        )
        raise UserError(f"Image {index} is {kind}: give a tensor (c, h, w) or a PIL image.")
    try:
        return image.detach().cpu(), operator.index(label)
    except TypeError as error:
        raise UserError(
            f"Label {index} is not a whole number: give the number of the class."
        ) from error


def _stacked(images: list[Tensor]) -> Tensor:
    if {len(image) for image in images} == {1, 3}:  # PIL images, some of them grey
        images = [image.expand(3, -1, -1) for image in images]
    for index, image in enumerate(images):
        if (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise UserError(
                f"Image {index} is {image.dtype} {tuple(image.shape)} and image 0 {images[0].dtype} "
                f"{tuple(images[0].shape)}: bring them to one type and size in the dataset's transform."
            )
    return torch.stack(images)
