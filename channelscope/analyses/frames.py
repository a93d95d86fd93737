"""Frames: the networks of a training at its kept epochs, and every measure of one.

All see the same images, natural and under the same cheap attack; measures are at the penultimate
layer (or else the deepest measured). Measures, by name:

- ``natural``, ``robust``: accuracy on the images as they are, and under the attack (C4).
- ``cosine_centred`` (C1), ``nr_mass_natural``, ``nr_mass_adversarial``, ``nr_fall`` (C2, C5),
  ``relevance_spearman_adversarial`` (C3): see ``statistics.measures``; means over the classes.
- ``cross_class``: see ``measure_cross_class``.
- ``damage NR rises``, ...: share of each kind of damage (``analyses.damage``) in what lowers the
  margins, on the images that the attack breaks; of ``counter``, what it takes back, below 0.
- ``GATE.probe_natural``, ``GATE.probe_robust``, ``GATE.mask_natural``, ``GATE.mask_adversarial``:
  accuracy of a gate's probe, and the share of its mask that is in effect, see
  ``statistics.measures.mask_share``.
- ``training``, ``val_natural``, ``val_robust``: of the training log, at every epoch: accuracy on
  the training images as they were trained on (adversarial ones in AT), and on validation images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from channelscope.analyses.base import (
    ChannelAccount,
    Study,
    get_primary_layer,
    measure_study,
)
from channelscope.analyses.damage import KINDS, share_replicates, split_kinds
from channelscope.statistics.channels import rows_by_class, weighted_means
from channelscope.statistics.intervals import UNBOUNDED, Bounds
from channelscope.statistics.measures import mask_share, mean_over_classes

_BLOCK = 32  # replicates that are computed at a time
COUNTER = "counter"
DAMAGE = "damage "  # begins the name of a kind's share


@dataclass(frozen=True)
class Measure:
    """What is filmed.

    Args:
        words: its name.
        least: the least jump that counts as a change.
        bounds: its range.
    """

    words: str
    least: float
    bounds: Bounds = (0.0, 1.0)


MEASURES = {
    "natural": Measure("natural accuracy", 0.02),
    "robust": Measure("robust accuracy", 0.02),
    "cosine_centred": Measure("alignment", 0.10, (-1.0, 1.0)),
    "nr_mass_natural": Measure("NR mass, natural", 0.02),
    "nr_mass_adversarial": Measure("NR mass, adversarial", 0.02),
    "nr_fall": Measure("NR part of the fall", 0.05, UNBOUNDED),
    "relevance_spearman_adversarial": Measure("rank alignment", 0.10, (-1.0, 1.0)),
    "cross_class": Measure("cross-class features", 0.02),
    **{
        f"{DAMAGE}{kind}": Measure(f"damage, {KINDS[kind]}", 0.05)
        for kind in ("NR rises", "PR rises", "PR falls", "NR falls")
    },
    f"{DAMAGE}{COUNTER}": Measure(f"damage, {KINDS[COUNTER]}", 0.05, UNBOUNDED),
    "probe_natural": Measure("probe, natural", 0.02),
    "probe_robust": Measure("probe, adversarial", 0.02),
    "mask_natural": Measure("mask, natural", 0.02),
    "mask_adversarial": Measure("mask, adversarial", 0.02),
    "training": Measure("accuracy in training", 0.02),
    "val_natural": Measure("natural accuracy, validation", 0.02),
    "val_robust": Measure("robust accuracy, validation", 0.02),
}
_OF_CLASSES = (
    "cosine_centred",
    "nr_mass_natural",
    "nr_mass_adversarial",
    "nr_fall",
    "relevance_spearman_adversarial",
)


def get_measure(name: str) -> Measure:
    """Return a measure by its name in the table, GATE.probe_natural or the like too."""
    return MEASURES[name if name in MEASURES else name.rpartition(".")[2]]


@dataclass(frozen=True, eq=False)
class Frame:
    """A run's network at an epoch.

    Args:
        run, epoch: of the training.
        label: the network's, in the study.
    """

    run: str
    epoch: int
    label: str


def list_frames(study: Study) -> dict[str, list[Frame]]:
    """Return each run's frames, by epoch."""
    frames: dict[str, list[Frame]] = {}
    for label, (run, epoch) in study.settings["frames"].items():
        frames.setdefault(run, []).append(Frame(run, int(epoch), label))
    return {run: sorted(each, key=lambda frame: frame.epoch) for run, each in frames.items()}


def measure_frame(study: Study, label: str) -> dict[str, Float[ndarray, " r"]]:
    """Return every measure of a network in each replicate, remembered by the study."""
    measures: dict[str, ndarray] = study.memo(
        ("film", label), lambda: dict(_measure(study, label, study.weights.astype(np.float64)))
    )
    return measures


def _measure(study: Study, label: str, weights: ndarray) -> Iterator[tuple[str, ndarray]]:
    for name, images in list_shares(study, label).items():
        yield name, weighted_means(images[:, None].astype(np.float64), weights)[:, 0]
    layer = get_primary_layer(study, label)
    of_classes = measure_study(study, label, layer)
    for name in _OF_CLASSES:
        yield name, mean_over_classes(of_classes[name])
    if study.penultimate(label):
        yield "cross_class", measure_cross_class(study, label, weights)
        yield from _measure_damage(study, label, layer, weights)
    for gate in study.gates(label):
        for data in ("natural", "adversarial"):
            shares = mask_share(np.asarray(study.masks(label, gate, data), np.float64))
            yield f"{gate}.mask_{data}", weighted_means(shares[:, None], weights)[:, 0]


def list_shares(study: Study, label: str) -> dict[str, Bool[ndarray, " n"]]:
    """Return the measures that are shares of the images: which images count."""
    natural, attacked = (
        study.answers(label, data) == study.labels for data in ("natural", "adversarial")
    )
    shares = {"natural": natural, "robust": natural & attacked}
    for name, data in (("probe_natural", "natural"), ("probe_robust", "adversarial")):
        for gate, answers in study.probes(label, data).items():
            shares[f"{gate}.{name}"] = answers == study.labels
    return shares


def measure_cross_class(
    study: Study, label: str, weights: Float[ndarray, "n r"]
) -> Float[ndarray, " r"]:
    """Measure how far classes rest on the same channels of the penultimate layer, by replicate.

        v_k = W_k * a_k,    value = mean over the pairs j < k of max(cos(v_j, v_k), 0)

    W_k is the last linear layer's weight of class k, a_k the mean adversarial activation of its
    images, * goes channel by channel: v_k is what each channel contributes to the logit. In [0, 1]:
    0 where no channel serves two classes, 1 where all serve all alike. This is our reading of the
    abstract of Wei, Guo & Wang (ICML 2025, arXiv 2506.05032), not the authors' code. NaN for fewer
    than two classes with images.
    """
    layer = get_primary_layer(study, label)
    activations = study.activations(label, layer, "adversarial")
    rows = [rows for rows in rows_by_class(study.labels, len(study.classes)) if len(rows)]
    weight = study.relevance(label, layer)[[each[0] for each in rows]].astype(np.float64)
    means = [np.asarray(activations[each], np.float64) for each in rows]
    values = np.full(weights.shape[1], np.nan)
    pairs = np.triu_indices(len(rows), 1)
    for start in range(0, len(values) if len(rows) > 1 else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        of_class = [
            weighted_means(of_images, weights[each, block])
            for of_images, each in zip(means, rows, strict=True)
        ]
        vectors = np.stack(of_class, 1) * weight
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        cosines = (vectors @ vectors.swapaxes(1, 2))[:, *pairs]
        values[block] = np.maximum(cosines, 0).mean(1)
    return values


def _measure_damage(
    study: Study, label: str, layer: str, weights: ndarray
) -> Iterator[tuple[str, ndarray]]:
    """Split the damage of the broken images among its kinds, exactly (``study.account``).

        A_c = (W_y - W_j)_c (a_c - a'_c),    y the label, j the answer under attack

    Images count whose answer j is the label of some image: so W_j is known.
    """
    labels, answers = study.labels, study.answers(label, "adversarial")
    relevance = np.asarray(study.relevance(label, layer), np.float64)
    firsts = [rows[:1] for rows in rows_by_class(labels, len(study.classes))]
    known = np.array([len(rows) > 0 for rows in firsts])
    weight = np.full((len(firsts), relevance.shape[1]), np.nan)
    weight[known] = relevance[np.concatenate(firsts)]
    broken = (study.answers(label) == labels) & (answers != labels) & known[answers]
    natural, adversarial = (
        np.asarray(study.activations(label, layer, data), np.float64)
        for data in ("natural", "adversarial")
    )
    channels = (relevance - weight[answers]) * (natural - adversarial)
    nothing = np.zeros(len(labels))
    account = ChannelAccount(channels=channels, masks={}, passing=nothing, error=nothing)
    kinds = split_kinds(study, label, layer, account, broken)
    lowers = np.maximum(channels[broken], 0).sum(1)
    for kind, values in kinds.items():
        yield f"{DAMAGE}{kind}", share_replicates(values.sum(1), lowers, weights[broken])
