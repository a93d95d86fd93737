"""Masks of gated networks: their mean over the images of each class."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``masks``."""
    return tidy("masks", [])
