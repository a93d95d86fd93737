"""Channel flow: which channels an attack silences and which ones it awakens."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``flow``."""
    return tidy("flow", [])
