"""Excitation: the images that excite each channel most."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared]) -> pd.DataFrame:
    """Lay out the frame ``excitation``."""
    return tidy("excitation", [])
