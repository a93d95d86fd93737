"""Masks of gated networks: their mean over the images of each class, and how much of them is in effect."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from channelscope.comparison.frames import COLUMNS, tidy
from channelscope.comparison.subjects import Compared
from channelscope.statistics.alignment import estimate
from channelscope.statistics.streaming import ChannelStats


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``masks``: the mean mask of gates that are told no label, natural before adversarial."""
    frames = []
    for subject in networks:
        for data, record in subject.measurement.gates.items():
            for layer, stats in record.masks.items():
                rows = pd.MultiIndex.from_product(
                    [classes, range(stats.channels)], names=["class", "channel"]
                )
                means = rows.to_frame(index=False).assign(mask=stats.magnitude[0].flatten().numpy())
                frames.append(means.assign(model=subject.label, layer=layer, data=data))
    if not frames:
        return tidy("masks", [])
    return pd.concat(frames, ignore_index=True)[[*COLUMNS["masks"][0], *COLUMNS["masks"][1]]]


def spread(networks: Sequence[Compared], classes: Sequence[str], level: float) -> pd.DataFrame:
    r"""Lay out the frame ``spread``: the share of a mask's C multipliers that is in effect, mean over the images.

    An image's share, ``selection.mask_share``, is an entropy of its mask: with p = |m| / sum |m|, it is exp(H) / C for
    Rényi's entropy of order 2, H = -log sum p^2, and so lies in (0, 1] whatever the number of channels. Signs do not
    matter to it, so it serves masks that have them (CAS) as well as those that sum to 1 (CIFS).
    """
    return tidy("spread", [row for subject in networks for row in _shares(subject, classes, level)])


def _shares(subject: Compared, classes: Sequence[str], level: float) -> Iterator[dict[str, Any]]:
    for data, record in subject.measurement.gates.items():
        for layer, stats in record.shares.items():
            for name, replicates in _by_class(stats, classes).items():
                found = estimate(replicates, level, (0.0, 1.0))
                yield {"model": subject.label, "layer": layer, "data": data, "class": name} | vars(
                    found
                )


def _by_class(stats: ChannelStats, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Give the mean over all images and over each class's, by replicate."""
    overall = stats.sum.sum(1).squeeze(1) / stats.count.sum(1)
    by_class = zip(classes, stats.magnitude.squeeze(2).T.numpy(), strict=True)
    return {"all": overall.numpy()} | dict(by_class)
