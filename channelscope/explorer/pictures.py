"""The pictures of a comparison on one sheet, of which a page shows one tile at a time."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from channelscope.result import Result

ACROSS = 16  # tiles in a row of the sheet
TILE = 48  # pixels that the longer side of a tile takes on the page


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side in one image, so that a page holds each only once however often it shows it.

    Args:
        picture: the sheet as a PNG in base64; empty without pictures.
        places: kind of data and image -> number of its tile.
        tile: width and height of a tile on the page, in pixels.
    """

    picture: str
    places: Mapping[tuple[str, int], int]
    tile: tuple[int, int]

    @classmethod
    def of(cls, comparison: Result, model: str, wanted: set[tuple[str, int]]) -> Self:
        """Lay out the pictures that a comparison keeps of the wanted images: kind of data and number."""
        index = list(comparison.meta["models"]).index(model)
        tiles: dict[tuple[str, int], np.ndarray] = {}
        for data, name in (
            ("natural", "thumbnails/natural"),
            ("adversarial", f"thumbnails/adversarial/{index}"),
        ):
            numbers = comparison.arrays.get(f"{name}/images", np.array([], int)).tolist()
            kept = zip(numbers, comparison.arrays.get(name, ()), strict=True)
            tiles |= {(data, image): picture for image, picture in kept if (data, image) in wanted}
        if not tiles:
            return cls("", {}, (TILE, TILE))
        _, height, width = next(iter(tiles.values())).shape
        scale = TILE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cls(
            _png(np.stack([*tiles.values()])), {key: place for place, key in enumerate(tiles)}, size
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole sheet on the page, in pixels."""
        width, height = self.tile
        return width * ACROSS, height * -(-len(self.places) // ACROSS)

    def place(self, data: str, image: int) -> tuple[int, int] | None:
        """Tell where an image's tile begins, in pixels from the left and the top; None for one that is not there."""
        number = self.places.get((data, image))
        width, height = self.tile
        return None if number is None else (number % ACROSS * width, number // ACROSS * height)


def _png(pictures: UInt8[ndarray, "n c h w"]) -> str:
    """Put pictures into rows of ``ACROSS`` and code them; of other than three colour channels the first, in grey."""
    n, colours, height, width = pictures.shape
    shown = pictures if colours == 3 else pictures[:, :1]
    rows = -(-n // ACROSS)
    sheet = np.zeros((rows * ACROSS, *shown.shape[1:]), np.uint8)
    sheet[:n] = shown
    sheet = sheet.reshape(rows, ACROSS, -1, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, ACROSS * width, -1)
    coded = io.BytesIO()
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(coded, "PNG")
    return base64.b64encode(coded.getvalue()).decode()
