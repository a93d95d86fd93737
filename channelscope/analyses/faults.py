"""Faults: why the numbers of a network cannot be trusted, found on the images that are measured."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from channelscope.analyses.base import (
    Analysis,
    Finding,
    Study,
    Table,
    get_primary_layer,
    register,
)
from channelscope.figures.words import format_attack
from channelscope.statistics.intervals import wilson

# Standard deviations of a single guess. An untrained network's answers depend on the image too, so
# by chance some classes are right more often than a guess; none comes near this
# (``benchmarks/calibration.py``, of 200 untrained ones none is judged).
_ABOVE_CHANCE = 0.4
_LEVEL = 0.99  # of the interval that has to lie above
_MOST = 0.5  # of the images may be exactly as before, or without relevance

TABLE = Table(
    words=("model", "check", "sentence"),
    numbers=(),
    help="why a network's numbers cannot be trusted: the check, and what it saw",
)


def find_faults(study: Study, model: str) -> tuple[Finding, ...]:
    """Return why a network's numbers cannot be trusted: what the study saw, and what tables show.

    They are found on the images that are measured anyway: these lack a normalisation, gradients
    that are zero or not finite, a forward pass that is random or depends on the batch
    (``study.faults``); an accuracy near chance;
    an attack that raises accuracy, or leaves activations as they are; relevance that is zero.
    """
    faults: tuple[Finding, ...] = study.memo(
        ("all faults", model),
        lambda: (*study.faults(model), *_find_in_arrays(study, model)),
    )
    return faults


def _find_in_arrays(study: Study, model: str) -> Iterator[Finding]:
    if np.unique(study.labels).size < 2:
        yield Finding(
            "one-class",
            "All images are of one class: whether the network tells classes apart cannot be seen.",
            {"images": len(study.labels)},
        )
        return
    natural = study.correct(model)
    count = int(natural.sum())
    n = len(natural)
    chance = float(np.bincount(study.labels).max(initial=0) / max(n, 1))
    chance = max(chance, 1 / len(study.classes))
    # The level's interval has two sides, of which one counts here.
    low = wilson(count, n, 2 * _LEVEL - 1).low
    needed = chance + _ABOVE_CHANCE * np.sqrt(chance * (1 - chance))
    if not low > needed:
        yield Finding(
            "near-chance",
            f"It is right on {count} of {n} images: not clearly above chance ({chance:.1%}; the "
            f"accuracy would have to be above {needed:.1%} for sure).",
            {"correct": count, "images": n, "chance": chance, "needed": float(needed)},
        )
    attacked = study.answers(model, "adversarial") == study.labels
    if attacked.mean() > natural.mean():
        attack = format_attack(study.settings["attack"])
        yield Finding(
            "robust-above-natural",
            f"It is right more often under {attack} ({attacked.mean():.1%}) than without it "
            f"({natural.mean():.1%}): this attack fails, and nothing measured under it counts.",
            {"natural": float(natural.mean()), "adversarial": float(attacked.mean())},
        )
    layer = get_primary_layer(study, model)
    before, after = study.activations(model, layer), study.activations(model, layer, "adversarial")
    same = float((before == after).all(1).mean())
    if same > _MOST:
        yield Finding(
            "unchanged",
            f"The attack leaves the activations of {layer} exactly as they are on {same:.0%} of "
            "the images: it does not reach the network.",
            {"share": same},
        )
    silent = float((study.relevance(model, layer) == 0).all(1).mean())
    if silent > _MOST:
        yield Finding(
            "no-relevance",
            f"All channels of {layer} have the relevance 0 on {silent:.0%} of the images: no "
            "gradient reaches the layer.",
            {"share": silent},
        )


def compute_faults(study: Study) -> dict[str, Any]:
    """Return a row for each fault of each network, and for each sign of gradient masking."""
    return {
        "faults": [
            {"model": model, "check": fault.check, "sentence": fault.sentence}
            for model in study.models
            for fault in (*find_faults(study, model), *study.outcome(model).findings)
        ]
    }


register(
    Analysis(
        name="faults",
        help="why the numbers of a network cannot be trusted",
        kinds=("comparison", "damage"),
        tables={"faults": TABLE},
        compute=compute_faults,
    )
)
