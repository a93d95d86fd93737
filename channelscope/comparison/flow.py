"""Channel flow: which channels an attack silences and which ones it awakens."""

from collections.abc import Sequence

import pandas as pd

from channelscope.comparison.frames import COLUMNS
from channelscope.comparison.subjects import Compared
from channelscope.statistics.significance import correct_fdr, paired_t


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``flow``, a row for each layer, class and channel.

    A channel is silenced on an image where it is active as the image is and no longer under attack, and awakened where
    it is active under attack alone. The change of its activation is tested over the class's images by Student's paired
    t-test, ``p``; ``q`` is corrected over all channels, classes and layers of the network (``significance``).
    """
    return pd.concat([_of_network(subject, classes) for subject in networks], ignore_index=True)


def _of_network(subject: Compared, classes: Sequence[str]) -> pd.DataFrame:
    frames = []
    for layer, stats in subject.measurement.paired.items():
        rows = pd.MultiIndex.from_product(
            [classes, range(stats.channels)], names=["class", "channel"]
        )
        found = rows.to_frame(index=False)
        found["count"] = stats.count.repeat_interleave(stats.channels).long().numpy()
        for name in ("change", "silenced", "awakened"):
            found[name] = getattr(stats, name).flatten().numpy()
        p = paired_t(
            stats.change.numpy(), stats.change_variance.numpy(), stats.count.unsqueeze(1).numpy()
        )
        found["p"] = p.ravel()
        frames.append(found.assign(model=subject.label, layer=layer))
    found = pd.concat(frames, ignore_index=True)
    return found.assign(q=correct_fdr(found["p"].to_numpy()))[
        [*COLUMNS["flow"][0], *COLUMNS["flow"][1]]
    ]
