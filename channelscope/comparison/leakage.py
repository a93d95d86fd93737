"""Label leakage: whether a gated network reads the label in what its gates were told, and the class in its masks.

Of the whole network (layer ""), where gates take labels in training: the share of the images for which it answers

- ``accuracy``: the true class, its gates being told nothing, as in use;
- ``accuracy_true``, ``accuracy_wrong``: the true class, its gates being told that one, or another, drawn at random;
- ``follows_wrong``: that other class, its gates being told it;
- ``follows_untold``: that other class, its gates being told nothing: what chance and likeness of classes amount to.

Of each gate (layer: the gated one) the share of the images whose class a linear classifier reads from the mask alone
(see ``leakage.read``): ``readable``, the gates being told nothing, ``readable_true``, being told the true class; and
``chance``, the share of the most frequent class, which is what a classifier gets right without looking.

Adversarial images are those made on the network as it is used. Intervals are Wilson's: they have a width at 0 % and at
100 %, where such shares often lie.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
from torch import Tensor

from channelscope.comparison.frames import tidy
from channelscope.comparison.subjects import Compared
from channelscope.statistics.alignment import Estimate, wilson
from channelscope.statistics.leakage import GateRecord, read


def frame(networks: Sequence[Compared], level: float) -> pd.DataFrame:
    """Lay out the frame ``leakage``."""
    rows = []
    for subject in networks:
        for data, record in subject.measurement.gates.items():
            for layer, measure, found in [
                *_told(subject, record, level),
                *_readable(subject, record, level),
            ]:
                rows.append(
                    {"model": subject.label, "layer": layer, "data": data, "measure": measure}
                    | vars(found)
                )
    return tidy("leakage", rows)


def _told(
    subject: Compared, record: GateRecord, level: float
) -> Iterator[tuple[str, str, Estimate]]:
    """Give the measures of the whole network."""
    measured, answers = subject.measurement, record.answers
    if not measured.given:
        return
    true, wrong = measured.labels, measured.given["wrong"]
    yield "", "accuracy", _share(answers["none"] == true, level)
    yield "", "accuracy_true", _share(answers["true"] == true, level)
    yield "", "accuracy_wrong", _share(answers["wrong"] == true, level)
    yield "", "follows_wrong", _share(answers["wrong"] == wrong, level)
    yield "", "follows_untold", _share(answers["none"] == wrong, level)


def _readable(
    subject: Compared, record: GateRecord, level: float
) -> Iterator[tuple[str, str, Estimate]]:
    """Give the measures of each gate: from the masks that are kept singly."""
    labels = subject.measurement.labels[subject.measurement.singly]
    measures = {"none": "readable", "true": "readable_true"}
    for (given, layer), masks in record.singles.items():
        if given in measures:
            found = read(masks.double().numpy(), labels.numpy())
            yield (
                layer,
                measures[given],
                wilson(int((found == labels.numpy()).sum()), len(labels), level),
            )
    for layer in record.masks:
        yield (
            layer,
            "chance",
            Estimate(labels.bincount().max().item() / len(labels), float("nan"), float("nan")),
        )


def _share(hits: Tensor, level: float) -> Estimate:
    return wilson(int(hits.sum()), len(hits), level)
