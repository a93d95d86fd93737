"""Blocks: the images that go through a network together, whatever the batch size and processes.

A network gives an image the same values to the bit only in the same company: in a batch of another
size, kernels add in another order. So images go through networks in blocks, which depend on nothing
but the images; processes share whole blocks, and random numbers and sums are those of blocks. Then
results are the same to the byte, run after run, on one machine with the same packages and as many
threads a process (OMP_NUM_THREADS): another number of threads divides the sums of small batches
otherwise. On a GPU they repeat as far as its kernels do.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.data.splits import Split

MOST, FEWEST = 512, 16
_PIXELS = 128 * 32 * 32


def block_size(images: Split) -> int:
    """Return the number of images in a block.

    It is 512 of images up to 16 x 16, whose layers cost little beside the call, then half, a
    quarter, ...: as many pixels as 128 images of 32 x 32 have, so that memory does not grow with
    the images. At least 16.

    >>> from channelscope.data import load
    >>> block_size(load("digits").test)
    512
    """
    size = MOST
    _, height, width = images.image_shape
    while size > FEWEST and size * height * width > _PIXELS:
        size //= 2
    return size


def iterate_blocks(
    images: Split, blocks: Sequence[Int[Tensor, " _"]], batch_size: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b c h w"], Int[Tensor, " b"]]]:
    """Go through blocks of images.

    Args:
        images: what the blocks are of.
        blocks: the indices of each block's images, at least one each.
        batch_size: how many images are read, and brought to the device, at a time.
        device: where they are wanted.

    Yields:
        indices, images in [0, 1] and labels of a block, the latter two on the device.
    """
    if not blocks:
        return
    batches = images.batches(batch_size, device, torch.cat(list(blocks)))
    x, y = next(batches)
    for rows in blocks:
        while len(y) < len(rows):
            more_x, more_y = next(batches)
            x, y = torch.cat([x, more_x]), torch.cat([y, more_y])
        # In memory of its own: how numbers lie there may decide how they are added.
        yield rows, x[: len(rows)].clone(), y[: len(rows)]
        x, y = x[len(rows) :], y[len(rows) :]
