"""Concentration: through how many channels of the penultimate layer an attack does its damage.

Damage is the fall of the margin of the label y over the wrong answer j. At the penultimate layer
the account of ``study.account`` needs no further pass: with the last linear layer's weight W and
the kept natural and adversarial activations a, a' (of gated networks behind the mask)

    A_c = (W_y - W_j)_c (a_c - a'_c),    sum_c A_c = damage

W_y is the relevance that is kept of an image of class y, so W_j that of any image of class j. Of
other layers ``channelscope.damage`` has the account.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from channelscope.analyses.base import Analysis, Study, Table, register
from channelscope.analyses.damage import count_channels
from channelscope.figures.words import measured_layers
from channelscope.statistics.channels import rows_by_class, weighted_means
from channelscope.statistics.intervals import as_columns, estimate

if TYPE_CHECKING:
    from channelscope.result import Result

_SHARES = (0.5, 0.9)  # of the damage, for which channels are counted
_BLOCK = 1024  # images whose contributions are in memory together


def compute_concentration(study: Study) -> dict[str, Any]:
    """Count the channels that cover half, and 90 %, of what lowers the margin of broken images."""
    rows: list[dict[str, Any]] = []
    for model in study.models:
        for layer in study.penultimate(model)[:1]:
            rows += _list_counts(study, model, layer)
    return {"damage_concentration": rows}


def _list_counts(study: Study, model: str, layer: str) -> Iterator[dict[str, Any]]:
    counts, accounted, broken = count_per_image(study, model, layer)
    if not accounted.any():
        return
    width = study.activations(model, layer).shape[1]
    means = weighted_means(counts[accounted], study.weights[accounted])
    for share, of_share in zip(_SHARES, means.T, strict=True):
        mean = estimate(of_share, study.settings["level"], (1.0, float(width)))
        where = {"model": model, "layer": layer, "covered": share, "of": width}
        numbers = {"images": accounted.sum(), "broken": broken.sum()}
        yield where | as_columns(mean, "channels") | numbers


def count_per_image(
    study: Study, model: str, layer: str
) -> tuple[Float[ndarray, "n s"], Bool[ndarray, " n"], Bool[ndarray, " n"]]:
    """Count the channels that cover each share of what lowers an image's margin.

    Returns:
        counts; which images have an account: those of the broken ones whose wrong answer is a class
        with images, and whose contributions add up to a fall, as the damage is one; and which
        images are broken, right as they are and wrong under attack.
    """
    labels, rivals = study.labels, study.answers(model, "adversarial")
    broken = study.correct(model) & (rivals != labels)
    by_class = rows_by_class(labels, len(study.classes))
    first = np.array([rows[0] if len(rows) else -1 for rows in by_class])
    accounted = broken & (first[rivals] >= 0)
    relevance = study.relevance(model, layer)
    natural, adversarial = (study.activations(model, layer, d) for d in ("natural", "adversarial"))
    counts = np.zeros((len(labels), len(_SHARES)))
    chosen = np.flatnonzero(accounted)
    for start in range(0, len(chosen), _BLOCK):
        rows = chosen[start : start + _BLOCK]
        weight = relevance[rows].astype(np.float64) - relevance[first[rivals[rows]]]
        contributions = weight * (natural[rows].astype(np.float64) - adversarial[rows])
        accounted[rows] = contributions.sum(1) > 0
        counts[rows] = np.stack([count_channels(contributions, share) for share in _SHARES], 1)
    return counts, accounted, broken


def check_concentration(result: "Result") -> None:
    """Raise ValueError where the table is of layers that were not measured."""
    table = result.damage_concentration
    measured = {(model, name) for model, names in measured_layers(result).items() for name in names}
    if not set(zip(table["model"], table["layer"], strict=True)) <= measured:
        raise ValueError("damage_concentration is of layers that were not measured")
    if not ((table["channels"] >= 1) & (table["channels"] <= table["of"])).all():
        raise ValueError("damage_concentration counts more channels than there are")


register(
    Analysis(
        name="concentration",
        help="through how many channels of the penultimate layer the attack does its damage",
        tables={
            "damage_concentration": Table(
                words=("model", "layer"),
                numbers=("covered", "of", "channels", "low", "high", "images", "broken"),
                help="channels: how many of an image's channels cover this share of what lowers "
                "the margin of the label over the wrong answer, the worst first, mean over the "
                "broken images that have an account (images) of all broken ones; of: channels of "
                "the penultimate layer",
            )
        },
        compute=compute_concentration,
        check=check_concentration,
    )
)
