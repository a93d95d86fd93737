"""Excitation: the images that excite each channel most, and pictures of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from channelscope.comparison.frames import COLUMNS
from channelscope.comparison.subjects import Compared
from channelscope.statistics.excitation import TopImages, joined


def frame(networks: Sequence[Compared]) -> pd.DataFrame:
    """Lay out the frame ``excitation``: of each channel the images with its largest activations, the largest first."""
    frames = [
        _rows(top).assign(model=subject.label, layer=layer, data=data)
        for subject in networks
        for data, excitation in subject.measurement.excitation.items()
        for layer, top in excitation.tops.items()
    ]
    return pd.concat(frames, ignore_index=True)[
        [*COLUMNS["excitation"][0], *COLUMNS["excitation"][1]]
    ]


def _rows(top: TopImages) -> pd.DataFrame:
    """Lay out one layer's images; rank 1 is the first."""
    channels, keep = top.image.shape
    index = pd.MultiIndex.from_product(
        [range(channels), range(1, keep + 1)], names=["channel", "rank"]
    )
    columns = {
        "image": top.image.flatten().numpy(),
        "activation": top.activation.flatten().double().numpy(),
    }
    return index.to_frame(index=False).assign(**columns)


def thumbnails(networks: Sequence[Compared]) -> dict[str, np.ndarray]:
    """Give the pictures as arrays: the natural ones of all networks together, and each network's adversarial ones.

    ``thumbnails/natural`` and ``thumbnails/adversarial/0``, the first network's, and so on: (n, c, h, w), uint8, at
    most ``excitation.SIDE`` pixels a side and ``excitation.LIMIT`` bytes each, the images of the first ranks ahead;
    under the same names ended in ``/images`` the images' numbers (n,). Nothing where no pictures were kept.
    """
    found = [subject.measurement.excitation for subject in networks]
    albums = {"natural": joined([excitation["natural"] for excitation in found])}
    albums |= {
        f"adversarial/{index}": joined([excitation["adversarial"]])
        for index, excitation in enumerate(found)
    }
    arrays = {}
    for name, album in albums.items():
        if album.kept:
            arrays[f"thumbnails/{name}"] = torch.stack([*album.kept.values()]).numpy()
            arrays[f"thumbnails/{name}/images"] = np.array([*album.kept])
    return arrays
