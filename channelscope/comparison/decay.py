"""Decay: how alignment falls as the attack gets stronger, by its radius and by its steps."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``decay``."""
    return tidy("decay", [])
