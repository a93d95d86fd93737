"""Confusion: what networks answer for the images of each class, natural and adversarial."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared


def frame(networks: Sequence[Compared], classes: Sequence[str]) -> pd.DataFrame:
    """Lay out the frame ``confusion``: how many images of each class get each answer."""
    return tidy("confusion", [row for subject in networks for row in _of_network(subject, classes)])


def _of_network(subject: Compared, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    labels, k = subject.measurement.labels, len(classes)
    for data, answers in subject.measurement.answers.items():
        counts = torch.bincount(labels * k + answers, minlength=k * k).view(k, k).tolist()
        for name, row in zip(classes, counts, strict=True):
            for answer, count in zip(classes, row, strict=True):
                yield {"model": subject.label, "data": data, "class": name, "answer": answer, "count": count}
