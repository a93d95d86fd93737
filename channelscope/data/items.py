"""Items of somebody's dataset, pairs (image, label) or dictionaries, to images and labels."""

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from channelscope.data.images import from_pil
from channelscope.data.splits import LazySplit, MemorySplit, Reader, Split, check_images
from channelscope.errors import UserError


class Items(Reader):
    """Reads the items of a dataset, and checks that they agree with each other and with known labels.

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

    def split(self, progress: bool) -> Split:
        """Make a split of the items: a lazy one if their labels are known, else one in memory."""
        try:
            n = len(self.source)
        except TypeError as error:
            raise UserError(
                f"{self.name} has no length: define __len__, or pass an iterable of its items."
            ) from error
        labels = _find_labels(self.source, self.label_key)
        if labels is None or not n:
            return self.collect((self.source[index] for index in range(n)), progress)
        self.labels = labels
        image, _ = self._parse(self.source[0], 0)
        check_images(image[None])
        channels, height, width = image.shape
        self.shape, self.dtype = (channels, height, width), image.dtype
        return LazySplit(self, labels, torch.arange(n))

    def collect(self, items: Iterable[Any], progress: bool) -> MemorySplit:
        """Read items into memory."""
        from tqdm.auto import tqdm

        images: list[Tensor] = []
        labels: list[int] = []
        for item in tqdm(
            items, "reading images", leave=False, delay=2, unit="image", disable=not progress
        ):
            image, label = self._parse(item, len(images))
            images.append(image)
            labels.append(label)
        if not images:
            raise UserError(f"{self.name} is empty: pass at least one image.")
        # A coloured image decides, because the first may be one of some grey ones.
        like = next((image for image in images if len(image) == 3), images[0])
        images = [
            _match(image, index, tuple(like.shape), like.dtype)
            for index, image in enumerate(images)
        ]
        return MemorySplit(torch.stack(images), torch.tensor(labels))

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

    def unpack(self, item: Any, description: str) -> tuple[Any, Any]:
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
        image, label = self.unpack(item, f"Item {index} of {self.name}")
        try:
            return _to_image(image, index), operator.index(label)
        except TypeError as error:
            raise UserError(
                f"Label {index} is not a whole number: give the number of the class."
            ) from error


def _find_labels(source: Any, label_key: str) -> Tensor | None:
    """Return the labels of all items of a dataset if they are known without reading items."""
    if isinstance(source, Subset):
        labels = _find_labels(source.dataset, label_key)
        return None if labels is None else labels[torch.as_tensor(source.indices)]
    if getattr(source, "target_transform", None) is not None:
        return None
    candidates = [getattr(source, name, None) for name in ("targets", "labels")]
    if label_key in (getattr(source, "column_names", None) or ()):  # Hugging Face's
        candidates.append(source[label_key])
    with suppress(TypeError, ValueError):
        candidates.append([label for _, label in getattr(source, "samples", ())])
    for values in candidates:
        with suppress(TypeError, ValueError, RuntimeError):
            labels = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
            if is_integer(labels) and labels.shape == (len(source),):
                return labels.detach().cpu().long()
    return None


def is_integer(values: Tensor) -> bool:
    """Tell whether a tensor holds whole numbers."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def to_tensor(images: Tensor | NDArray[Any]) -> Tensor:
    """Turn an array into a tensor; UserError for types that torch does not have."""
    if isinstance(images, Tensor):
        return images.detach()
    try:
        # Torch warns of arrays that cannot be written to.
        return torch.from_numpy(np.require(images, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Images must be uint8, or float in [0, 1], not {images.dtype}: convert them first."
        ) from error


def channels_first(images: Tensor, dimensions: int) -> Tensor:
    """Turn (..., h, w, c), c being 1 or 3, and (..., h, w) of one dimension less into (..., c, h, w)."""
    if images.ndim == dimensions - 1:
        images = images.unsqueeze(-3)
    if images.ndim == dimensions and images.shape[-1] in (1, 3) and images.shape[-3] not in (1, 3):
        images = images.movedim(-1, -3)
    return images.contiguous()


def _to_image(image: Any, index: int) -> Tensor:
    """Turn a PIL image, an array or a tensor into (c, h, w) on the CPU."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return from_pil(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(
            f"Image {index} is a {type(image).__name__}: give a PIL image, an array or a tensor."
        )
    tensor = channels_first(to_tensor(image), 3)
    if tensor.ndim != 3:
        raise UserError(
            f"Image {index} has the shape {tuple(image.shape)}: give (c, h, w), (h, w, c) or (h, w)."
        )
    return tensor.cpu()


def _match(image: Tensor, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Give a grey image among coloured ones their channels; UserError if it differs otherwise from them."""
    if len(image) == 1 and shape[0] == 3:
        image = image.expand(3, -1, -1)
    if (tuple(image.shape), image.dtype) != (shape, dtype):
        raise UserError(
            f"Image {index} is {image.dtype} {tuple(image.shape)}, others are {dtype} "
            f"{shape}: bring them to one type and size in the dataset's transform."
        )
    return image
