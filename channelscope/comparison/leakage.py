"""Label leakage: what the gates of a network tell about the labels."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``leakage``."""
    return tidy("leakage", [])
