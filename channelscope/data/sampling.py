"""Random choices: samples that keep the shares of the classes, and augmentation."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from channelscope.errors import UserError


def sample_stratified(
    labels: Int[Tensor, "images"], n: int, seed: int | Generator = 0
) -> Int[Tensor, "chosen"]:
    """Choose `n` images at random so that each class keeps its share.

    The images of class k, in random order, are ranked r = 0, 1, ... and those with the n smallest
    (r + 1/2) / n_k are taken, n_k being the size of the class: the apportionment of Webster and
    Sainte-Laguë. Under one seed a smaller sample is part of every larger one, and a class's only
    image is never among the first half.

    Args:
        labels: (images,), the class of each image.
        n: how many to choose, from 0 to all.
        seed: a seed, at least 0, or a generator.

    Returns:
        (n,) indices in ascending order, on the CPU.

    Raises:
        UserError: `n` is negative or more than there are images; `seed` out of range.
    """
    if not 0 <= n <= len(labels):
        raise UserError(
            f"Cannot choose {n} images: ask for a number from 0 to {len(labels)}, all there are."
        )
    order = torch.randperm(len(labels), generator=_generator(seed), device="cpu")
    labels = labels.cpu()
    counts = labels.bincount()
    by_class = order[labels[order].argsort(stable=True)]
    sizes = counts.repeat_interleave(counts)
    firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turns = (torch.arange(len(labels), device="cpu") - firsts + 0.5).double() / sizes
    return by_class[turns.argsort(stable=True)[:n]].sort().values


def hold_out(
    labels: Int[Tensor, "images"], share: float, seed: int | Generator
) -> tuple[Int[Tensor, "rest"], Int[Tensor, "held_out"]]:
    """Split images in two, stratified; round(share * images), but at least 1, are held out.

    Raises:
        UserError: nothing would be left to train on.
    """
    n = max(1, round(share * len(labels)))
    if n >= len(labels):
        raise UserError(
            f"{len(labels)} training images are too few to hold out {share:g} of them: add images."
        )
    held_out = sample_stratified(labels, n, seed)
    rest = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    rest[held_out] = False
    return rest.nonzero().flatten(), held_out


def augment(
    images: Float[Tensor, "n c h w"],
    generator: Generator,
    crop: int = 4,
    flip: bool = True,
    *,
    whole: int | None = None,
    first: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Shift each image by up to `crop` pixels each way, zeros coming in, and mirror half of them.

    The random crop with padding and horizontal flip of CIFAR training (He et al., CVPR 2016,
    section 4.2), with one offset and one toss per image, for the whole batch at once. Where the
    images are on another device than the generator, these draws alone travel there, together; all
    else is computed where the images are.

    Args:
        images: (n, c, h, w), on any device.
        generator: the source of chance; on the CPU it gives the same result on every device.
        crop: the largest shift, in pixels; 0 for none.
        flip: whether to mirror.
        whole: the size of the batch that `images` are a part of, from number `first` on; they are
            treated as they would be among all of it. None: they are all of it.
        first: see `whole`.

    Returns:
        (n, c, h, w), new values from the range of `images` and 0.

    Raises:
        UserError: `crop` is negative.
    """
    if crop < 0:
        raise UserError(f"The crop must be 0 pixels or more, not {crop}.")
    n, channels, height, width = images.shape
    choices = [2 * crop + 1, 2 * crop + 1] + [2] * flip
    shape = (n if whole is None else whole, 1)
    draws = [
        torch.randint(each, shape, generator=generator, device=generator.device) for each in choices
    ]
    offsets = torch.cat(draws, 1)[first : first + n].to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:2] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(offsets[:, 2:].bool(), columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (crop,) * 4)
    # Each pixel's place in its padded image: one gather is quicker than an index of two dimensions.
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.view(n, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view_as(images)


def _generator(seed: int | Generator) -> Generator:
    if isinstance(seed, Generator):
        return seed
    if not 0 <= seed < 2**63:
        raise UserError(f"The seed must be a whole number from 0 to 2**63 - 1, not {seed}.")
    return Generator().manual_seed(seed)
