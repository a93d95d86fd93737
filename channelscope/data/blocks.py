"""Blocks: the images that go through a network together, whatever the batch size and the number of processes.

What a network makes of an image is the same to the bit only in the same company: in a batch of another size, kernels
add in another order. So the images of a part are cut into blocks that depend on nothing but their number and size;
processes share whole blocks, and random numbers and sums are those of a block.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.data.datasets import Part

MOST, FEWEST = 128, 16
_PIXELS = MOST * 64 * 64


def block_size(part: Part) -> int:
    """Give the number of images in a block: 128; of images larger than 64 x 64 the half, a quarter, ..., 16 at least.

    >>> from channelscope.data import load
    >>> block_size(load("digits").test)
    128
    """
    size, (_, height, width) = MOST, part.image_shape
    while size > FEWEST and size * height * width > _PIXELS:
        size //= 2
    return size


def in_blocks(
    part: Part, blocks: Sequence[Int[Tensor, " _"]], fetched: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b c h w"], Int[Tensor, " b"]]]:
    """Go through blocks of a part's images.

    Args:
        part: the images.
        blocks: the indices of each block's images, at least one each.
        fetched: how many images are read, and brought to the device, at a time.
        device: where they are wanted.

    Yields:
        indices, images in [0, 1] and labels of a block, the latter two on the device.
    """
    if not blocks:
        return
    batches = part.batches(fetched, device, torch.cat(list(blocks)))
    x, y = next(batches)
    for rows in blocks:
        while len(y) < len(rows):
            x, y = (torch.cat(both) for both in zip((x, y), next(batches), strict=True))
        yield rows, x[: len(rows)], y[: len(rows)]
        x, y = x[len(rows) :], y[len(rows) :]
