"""Confusion: what networks answer for the images of each class, natural and adversarial."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``confusion``."""
    return tidy("confusion", [])
