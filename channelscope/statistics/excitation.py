"""The images that excite each channel most, streamed, and small pictures of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

TOP = 4  # images kept for each channel
SIDE = 64  # pixels of a picture's longer side, at most
LIMIT = 4 * 2**20  # bytes that the pictures of one set may take


@dataclass(kw_only=True)
class TopImages:
    """The ``keep`` images on which each channel of a layer has its largest activations, the largest first.

    Of equal activations the image with the lower number comes first, so any order and split of the images gives the
    same result. Memory does not grow with the number of images.

    >>> top = TopImages(channels=1, keep=2)
    >>> top.update(torch.tensor([[0.1], [0.9], [0.5]]), torch.tensor([7, 8, 9]))
    >>> top.image
    tensor([[8, 9]])
    """

    channels: int
    keep: int = TOP
    activation: Float[Tensor, "c k"] = field(init=False, repr=False)
    image: Int[Tensor, "c k"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.activation = torch.zeros(self.channels, 0)
        self.image = torch.zeros(self.channels, 0, dtype=torch.int64)

    def update(self, activations: Float[Tensor, "n c"], images: Int[Tensor, " n"]) -> None:
        """Add a batch: activations (n, channels) and the images' numbers."""
        values = activations.detach().to("cpu", torch.float32).T
        self._take(values, images.cpu().expand(self.channels, -1))

    def _take(self, activations: Float[Tensor, "c m"], images: Int[Tensor, "c m"]) -> None:
        values, numbers = (
            torch.cat([self.activation, activations], 1),
            torch.cat([self.image, images], 1),
        )
        by_number = numbers.argsort(1)
        by_value = values.gather(1, by_number).argsort(dim=1, descending=True, stable=True)
        best = by_number.gather(1, by_value)[:, : self.keep]
        self.activation, self.image = values.gather(1, best), numbers.gather(1, best)


def by_rank(tops: Iterable[TopImages]) -> list[int]:
    """List the images that are kept for any channel, each once: those that excite one most first, by number."""
    best: dict[int, int] = {}
    for top in tops:
        for rank, images in enumerate(top.image.T):
            for image in images.unique().tolist():
                best[image] = min(rank, best.get(image, rank))
    return sorted(best, key=lambda image: (best[image], image))


def pictures_of(x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c small_h small_w"]:
    """Make small pictures of images in [0, 1]: a byte a value, the longer side at most ``SIDE`` pixels."""
    height, width = x.shape[-2:]
    if (longer := max(height, width)) > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in (height, width)]
        x = interpolate(x.float(), size, mode="bilinear", antialias=True)
    return x.detach().float().mul(255).round().clamp(0, 255).byte().cpu()


@dataclass
class Album:
    """Pictures of the images that excite channels most, kept while images go by: at most ``LIMIT`` bytes of them."""

    kept: dict[int, UInt8[Tensor, "c h w"]] = field(default_factory=dict)

    def update(
        self, wanted: Sequence[int], pictures: UInt8[Tensor, "n c h w"], images: Sequence[int]
    ) -> None:
        """Take from a batch the pictures that are wanted, and drop those that are not any more.

        Args:
            wanted: the images to keep, those first that are to stay where not all can; see ``by_rank``.
            pictures, images: those of a batch (see ``pictures_of``), and the numbers of its images.
        """
        place = {image: index for index, image in enumerate(images)}
        # Copies, which do not hold on to the batch.
        taken = {image: pictures[place[image]].clone() for image in wanted if image in place}
        self.keep(wanted, self.kept | taken)

    def keep(self, wanted: Sequence[int], found: Mapping[int, UInt8[Tensor, "c h w"]]) -> None:
        """Keep of the pictures found those that are wanted, the first ones where not all have room."""
        there = [image for image in wanted if image in found]
        most = LIMIT // found[there[0]].numel() if there else 0
        self.kept = {image: found[image] for image in there[:most]}


@dataclass
class Excitation:
    """The images that excite the channels of some layers most, with pictures of them where there is an album.

    Args:
        album: the pictures; None for none.
        tops: the images, by layer.
    """

    album: Album | None = None
    tops: dict[str, TopImages] = field(default_factory=dict)

    def update(
        self,
        found: Mapping[str, Float[Tensor, "n _"]],
        pictures: UInt8[Tensor, "n c h w"] | None,
        images: Int[Tensor, " n"],
    ) -> None:
        """Add a batch: activations by layer, pictures if there is an album, and the images' numbers."""
        for layer, activations in found.items():
            top = self.tops.setdefault(layer, TopImages(channels=activations.shape[1]))
            top.update(activations, images)
        if self.album is not None and pictures is not None:
            self.album.update(by_rank(self.tops.values()), pictures, images.tolist())


def joined(excitations: Sequence[Excitation]) -> Album:
    """Put the pictures that several networks' passes over the same images kept into one album."""
    found: dict[int, Tensor] = {}
    for excitation in excitations:
        found |= excitation.album.kept if excitation.album else {}
    album = Album()
    album.keep(
        by_rank(top for excitation in excitations for top in excitation.tops.values()), found
    )
    return album
