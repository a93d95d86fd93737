"""Confusion: what networks answer for the images of each class, natural and adversarial."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``confusion``: how many images of each class get each answer; answers not given are no row."""
    return tidy("confusion", [row for subject in networks for row in _of_network(subject, classes)])


def _of_network(subject: Compared, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for data, answers in subject.measurement.answers.items():
        pairs, counts = torch.stack([subject.measurement.labels, answers], 1).unique(
            dim=0, return_counts=True
        )
        for (label, answer), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            names = {"class": classes[label], "answer": classes[answer]}
            yield {"model": subject.label, "data": data, **names, "count": count}
