"""Images in memory, of the machine or of a device; they cannot be made of bad images."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.errors import UserError


@dataclass(frozen=True, eq=False, repr=False)
class MemorySplit:
    """Images and their labels, kept as they were stored: a byte a pixel wherever possible.

    Args:
        images: (n, c, h, w), uint8 or float in [0, 1]; n may be 0.
        labels: (n,), int64, each at least 0.

    Raises:
        UserError: wrong dimensions or type, pixels that are NaN or outside [0, 1], negative labels, unequal lengths or
            devices.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _check_images(self.images)
        check_labels(self.labels, len(self.images))
        if self.images.device != self.labels.device:
            raise UserError(
                f"Images are on {self.images.device}, labels on {self.labels.device}: move them to one."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.image_shape))
        return (
            f"Split({len(self)} images of {size}, {str(self.images.dtype).removeprefix('torch.')})"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: str | torch.device) -> "MemorySplit":
        """Put images and labels on a device, as they are stored, so that `batches` works there; no copy if they are."""
        images = self.images.to(device)
        return self if images is self.images else MemorySplit(images, self.labels.to(device))

    def batches(
        self, size: int, device: str | torch.device = "cpu", indices: Int[Tensor, "m"] | None = None
    ) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]]:
        """Go through the images in order, or in that of `indices`, `size` at a time; the last batch may be smaller.

        The images are picked out on the device where they lie, which is told the indices once, at the beginning.

        Yields:
            images (b, c, h, w), float32 in [0, 1], and labels (b,), both on `device`.

        Raises:
            UserError: `size` below 1, or an index that is not there.
        """
        order = checked_order(indices, size, len(self)).to(self.images.device)
        return (
            self._batch(order[start : start + size], device) for start in range(0, len(order), size)
        )

    def subset(self, indices: Int[Tensor, "m"]) -> "MemorySplit":
        """Keep the images at `indices`, in that order; UserError for an index that is not there."""
        indices = checked_indices(indices, len(self)).to(self.images.device)
        return MemorySplit(
            self.images.index_select(0, indices), self.labels.index_select(0, indices)
        )

    def fingerprint(self) -> str:
        """Identify the contents: SHA-256, in hexadecimal, of the images' type, shape and bytes and of the labels."""
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _batch(self, indices: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor]:
        # Bytes travel to the device, and only there become four times as many.
        images = self.images.index_select(0, indices).to(device)
        return in_unit_range(images), self.labels.index_select(0, indices).to(device)


def in_unit_range(images: Tensor) -> Tensor:
    """Turn bytes into float32 in [0, 1], and other images, which are in [0, 1], into float32."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


def checked_order(indices: Tensor | None, size: int, n: int) -> Tensor:
    """Give the order of a pass over n images, `size` at a time: that of `indices`, or 0 to n - 1; else UserError."""
    if size < 1:
        raise UserError(f"A batch needs at least 1 image, not {size}.")
    return torch.arange(n) if indices is None else checked_indices(indices, n)


def checked_indices(indices: Tensor, n: int) -> Tensor:
    """Give `indices` back, which are of some of n images; else UserError."""
    if indices.ndim != 1 or indices.dtype != torch.int64:
        raise UserError(
            "Indices must be a one-dimensional int64 tensor: of a mask, pass mask.nonzero().flatten()."
        )
    if len(indices):
        low, high = torch.stack(
            indices.aminmax()
        ).tolist()  # both at once: a GPU is waited for once
        if low < 0 or high >= n:
            raise UserError(f"Indices must lie between 0 and {n - 1}, for there are {n} images.")
    return indices


def check_labels(labels: Tensor, n: int) -> None:
    """Refuse labels that are not one class for each of n images, with a UserError."""
    if labels.dtype != torch.int64:
        raise UserError(
            f"Labels must be int64, not {labels.dtype}: convert the numbers of the classes with .long()."
        )
    if labels.shape != (n,):
        raise UserError(
            f"Labels must have the shape ({n},), one per image, not {tuple(labels.shape)}."
        )
    if n and (smallest := int(labels.min())) < 0:
        raise UserError(
            f"Labels must be 0 or more, and the smallest is {smallest}: number the classes from 0."
        )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            f"Images must have the shape (n, c, h, w), with no empty side, not {tuple(images.shape)}."
        )
    if images.is_floating_point():
        _check_range(images)
    elif images.dtype != torch.uint8:
        raise UserError(
            f"Images must be uint8, or float in [0, 1], not {images.dtype}: convert them first."
        )


def _check_range(images: Tensor) -> None:
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low != low:  # aminmax passes NaN on, so one pass finds all three faults
        raise UserError("The images contain NaN: replace or remove the damaged ones.")
    if low < 0 or high > 1:
        raise UserError(
            f"Pixels must lie in [0, 1], and these span [{low:.3g}, {high:.3g}]: "
            "divide by 255, or take the normalisation out of the transform (it belongs inside the model)."
        )
