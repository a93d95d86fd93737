"""Differences between networks, paired over the images and corrected for many comparisons."""

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Study,
    Table,
    measure_study,
    register,
    worst_case,
)
from channelscope.figures.words import measured_layers
from channelscope.statistics.channels import rows_by_class
from channelscope.statistics.intervals import estimate_columns, paired_difference
from channelscope.statistics.measures import mean_over_classes
from channelscope.statistics.significance import bootstrap_p, correct_fdr, mcnemar

if TYPE_CHECKING:
    from channelscope.result import Result

MEASURES = ("cosine_centred", "nr_mass_adversarial", "signed_mass_adversarial")
TABLE = Table(
    words=("model", "other", "layer", "other_layer", "class", "measure"),
    numbers=("value", "low", "high", "p", "q"),
    help=(
        "model less other, of layers in the same place, by class and over all, with interval; p "
        "and, corrected over all that is compared of the pair (Benjamini-Hochberg), q. "
        "'robust_accuracy', in the worst case, belongs to no layer"
    ),
)


def compute_differences(study: Study) -> dict[str, Any]:
    """Compare each pair of networks: the later one less the earlier.

    Measures of alignment are compared layer by layer, in order, where both networks have as many:
    interval and p from the bootstrap, in which both see the same images. Robust accuracy has
    Newcombe's interval for paired proportions and the p of McNemar's test (mid-p).
    """
    rows = []
    for other, model in combinations(study.models, 2):
        names = {"model": model, "other": other}
        of_pair = [*_compare_layers(study, model, other), *_compare_accuracy(study, model, other)]
        q = correct_fdr(np.array([row["p"] for row in of_pair]))
        rows += [names | row | {"q": value} for row, value in zip(of_pair, q, strict=True)]
    return {"differences": rows}


def _compare_layers(study: Study, model: str, other: str) -> Iterator[dict[str, Any]]:
    layers, other_layers = study.layers(model), study.layers(other)
    if len(layers) != len(other_layers):
        return
    for layer, other_layer in zip(layers, other_layers, strict=True):
        ours = measure_study(study, model, layer)
        theirs = measure_study(study, other, other_layer)
        for measure in MEASURES:
            means = mean_over_classes(ours[measure]) - mean_over_classes(theirs[measure])
            replicates = np.column_stack([means, ours[measure] - theirs[measure]])
            intervals = estimate_columns(replicates, study.settings["level"])
            words = {"layer": layer, "other_layer": other_layer, "measure": measure}
            yield from _rows(study, words, *intervals, bootstrap_p(replicates))


def _compare_accuracy(study: Study, model: str, other: str) -> Iterator[dict[str, Any]]:
    ours, theirs = worst_case(study, model), worst_case(study, other)
    images = [np.arange(len(ours)), *rows_by_class(study.labels, len(study.classes))]
    level = study.settings["level"]
    gains = [paired_difference(ours[chosen], theirs[chosen], level) for chosen in images]
    p = [mcnemar(ours[chosen], theirs[chosen]) for chosen in images]
    columns = np.array([(gain.value, gain.low, gain.high) for gain in gains]).T
    words = {"layer": "", "other_layer": "", "measure": "robust_accuracy"}
    yield from _rows(study, words, *columns, np.array(p))


def _rows(
    study: Study, words: dict[str, str], *columns: Float[ndarray, " k"]
) -> Iterator[dict[str, Any]]:
    for name, *numbers in zip(("all", *study.classes), *columns, strict=True):
        row = dict(zip(("value", "low", "high", "p"), numbers, strict=True))
        yield words | {"class": name} | row


def check_differences(result: "Result") -> None:
    """Check that the table is of measured layers; raises ValueError where it is not."""
    table = result.differences[result.differences["layer"] != ""]
    measured = {(model, name) for model, names in measured_layers(result).items() for name in names}
    for model, layer in (("model", "layer"), ("other", "other_layer")):
        if not set(zip(table[model], table[layer], strict=True)) <= measured:
            raise ValueError("differences is of layers that were not measured")


register(
    Analysis(
        name="differences",
        help="differences of alignment and robust accuracy between each two models",
        tables={"differences": TABLE},
        compute=compute_differences,
        check=check_differences,
    )
)
