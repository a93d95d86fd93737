"""Matching: which layers and which channels of two networks correspond."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def of_layers(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``matching``."""
    return tidy("matching", [])


def of_channels(networks: Sequence[Compared]) -> pd.DataFrame:
    """Lay out the frame ``matched``."""
    return tidy("matched", [])
