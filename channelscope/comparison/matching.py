"""Matching: which layers and which channels of two networks correspond, by their natural activations.

It is done on the images of which activations are kept one by one (``measurement.MOST_SINGLY`` at most).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from channelscope.comparison.frames import COLUMNS, tidy
from channelscope.comparison.subjects import Compared
from channelscope.statistics import similarity as matching
from channelscope.statistics.alignment import estimate


def of_layers(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``matching``: each pair of networks once, every layer with every one of the other."""
    if len(networks) < 2:
        return tidy("matching", [])
    weights = _weights(networks[0])
    own = [
        {layer: matching.compute_hsic(a, a, weights) for layer, a in _activations(s).items()}
        for s in networks
    ]
    rows = []
    for one, other in combinations(range(len(networks)), 2):
        pairs = product(_activations(networks[one]).items(), _activations(networks[other]).items())
        for (layer, a), (other_layer, b) in pairs:
            between = matching.compute_hsic(a, b, weights)
            replicates = matching.normalise_hsic(between, own[one][layer], own[other][other_layer])
            found = estimate(replicates, level, (-1.0, 1.0))
            row = _pair(networks[one], layer, networks[other], other_layer)
            rows.append(row | {"cka": found.value, "low": found.low, "high": found.high})
    return tidy("matching", rows)


def of_channels(networks: Sequence[Compared]) -> pd.DataFrame:
    """Lay out the frame ``matched``: each pair of networks once, their layers in order, from the deepest."""
    frames = []
    for one, other in combinations(networks, 2):
        for (layer, a), (other_layer, b) in _in_order(one, other):
            found = matching.match_channels(a, b)._asdict()
            pairs = pd.DataFrame({"channel": found["channel"], "other_channel": found["other"]})
            pairs = pairs.assign(
                correlation=found["correlation"], **_pair(one, layer, other, other_layer)
            )
            frames.append(pairs)
    if not frames:
        return tidy("matched", [])
    return pd.concat(frames, ignore_index=True)[[*COLUMNS["matched"][0], *COLUMNS["matched"][1]]]


def _in_order(
    one: Compared, other: Compared
) -> Iterator[tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]]:
    """Pair the layers of two networks by their place, counted from the deepest; the first pair first."""
    a, b = (list(_activations(subject).items()) for subject in (one, other))
    depth = min(len(a), len(b))
    return zip(a[-depth:], b[-depth:], strict=True)


def _activations(subject: Compared) -> dict[str, np.ndarray]:
    return {layer: values.double().numpy() for layer, values in subject.measurement.singles.items()}


def _weights(subject: Compared) -> np.ndarray:
    return subject.measurement.weights[subject.measurement.singly].double().numpy()


def _pair(one: Compared, layer: str, other: Compared, other_layer: str) -> dict[str, Any]:
    return {"model": one.label, "layer": layer, "other": other.label, "other_layer": other_layer}
