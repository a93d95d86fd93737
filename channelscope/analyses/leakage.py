"""Label leakage: whether a gated model reads the label in what its gates are told.

In training a gate of CIFS or CAS is told the label, and makes its mask of it. A network that
learned to read the label there, instead of in the features, is right in training and wrong as
deployed, where nobody tells its gates.

Of the whole network (layer ""), where gates take labels in training: the share of the images for
which it answers

- ``accuracy``: the true class, its gates being told nothing, as in use;
- ``accuracy_true``, ``accuracy_wrong``: the true class, its gates being told that one, or another,
  drawn at random;
- ``follows_wrong``: that other class, its gates being told it;
- ``follows_untold``: that other class, its gates being told nothing: what chance and likeness of
  classes amount to.

Of each gate (layer: the gated one) the share of the images whose class a linear classifier reads
from the mask alone (see ``read_class``): ``readable``, the gates being told nothing,
``readable_true``, being told the true class; and ``chance``, the share of the most frequent class.

Adversarial images are those made on the network as it is used. Intervals are Wilson's: they have a
width at 0 % and at 100 %, where such shares often lie.
"""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.figures.axes import (
    add_data_legend,
    add_title,
    label_percent,
    make_grid,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    describe_attack,
    describe_each,
    describe_level,
    error_bars,
    find_interval,
    format_percent,
    require_rows,
    select_rows,
    shorten,
    shorten_layer,
)
from channelscope.statistics.channels import choose_evenly
from channelscope.statistics.intervals import as_columns, wilson

if TYPE_CHECKING:
    from channelscope.result import Result

_FOLDS = 5
_CHANCE: dict[str, Any] = {"color": "0.35", "marker": "|", "linestyle": "none", "markersize": 6}
# The lines of a panel: words, measure, and the measure that says what is by chance. Without a
# measure, a heading.
_OF_NETWORK = (
    ("network answers the true class", "", ""),
    ("told nothing (as in use)", "accuracy", ""),
    ("told the true class", "accuracy_true", ""),
    ("told a wrong class", "accuracy_wrong", ""),
    ("network answers what it is told", "", ""),
    ("told a wrong class", "follows_wrong", "follows_untold"),
)
_OF_GATE = (
    ("gate told nothing", "readable", "chance"),
    ("gate told the true class", "readable_true", "chance"),
)


def read_class(masks: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Read each image's class from its mask alone, by a classifier that has not seen the image.

    The classifier is linear, as the probes of Alain and Bengio (2016, arXiv 1610.01644), on
    standardised channels, and that of ridge regression, which has a closed form. It learns from
    four fifths of the images to read the last fifth. -1 for every image where fewer than two
    classes have two images.
    """
    from sklearn.linear_model import RidgeClassifier  # imports slowly
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    answers = np.full(len(labels), -1)
    if (np.bincount(labels, minlength=2) > 1).sum() < 2:
        return answers
    folds = _deal_folds(labels)
    for fold in np.unique(folds):
        classifier = make_pipeline(StandardScaler(), RidgeClassifier())
        classifier.fit(masks[folds != fold], labels[folds != fold])
        answers[folds == fold] = classifier.predict(masks[folds == fold])
    return answers


def _deal_folds(labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Deal each class's images out to the folds in turn."""
    folds = np.empty_like(labels)
    for k in np.unique(labels):
        of_class = np.flatnonzero(labels == k)
        folds[of_class] = np.arange(len(of_class)) % _FOLDS
    return folds


def compute_leakage(study: Study) -> dict[str, Any]:
    """Compute the shares that tell whether gates leak the label, of each model with gates."""
    rows = []
    for model, data in product(study.models, ("natural", "adversarial")):
        if study.gates(model):
            where = {"model": model, "data": data}
            measured = [*_measure_network(study, model, data), *_measure_gates(study, model, data)]
            rows += [where | row for row in measured]
    return {"leakage": rows}


def _measure_network(study: Study, model: str, data: str) -> Iterator[dict[str, Any]]:
    """Measure what the network answers by what its gates are told."""
    told = study.told(model)
    if not told:
        return
    answers = {label: study.answers(model, data, label) for label in ("none", "true", "wrong")}
    correct = {
        "accuracy": answers["none"] == told["true"],
        "accuracy_true": answers["true"] == told["true"],
        "accuracy_wrong": answers["wrong"] == told["true"],
        "follows_wrong": answers["wrong"] == told["wrong"],
        "follows_untold": answers["none"] == told["wrong"],
    }
    for measure, images in correct.items():
        yield {"layer": "", "measure": measure} | _estimate(study, images)


def _measure_gates(study: Study, model: str, data: str) -> Iterator[dict[str, Any]]:
    """Measure what each gate's mask tells of the class."""
    chosen = choose_evenly(len(study.labels))
    labels = study.labels[chosen]
    measures = {"none": "readable", "true": "readable_true"}
    for told in ("none", "true") if study.told(model) else ("none",):
        for gate in study.gates(model):
            masks = np.asarray(study.masks(model, gate, data, told)[chosen], float)
            correct = read_class(masks, labels) == labels
            yield {"layer": gate, "measure": measures[told]} | _estimate(study, correct)
    chance = {"value": np.bincount(labels).max() / len(labels), "low": np.nan, "high": np.nan}
    for gate in study.gates(model):
        yield {"layer": gate, "measure": "chance"} | chance


def _estimate(study: Study, images: Bool[ndarray, " n"]) -> dict[str, float]:
    return as_columns(wilson(int(images.sum()), len(images), study.settings["level"]))


def leakage_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_leakage`` draws.

    Columns: model, place on the axis, words, layer, data, measure -> value, low, high, chance. Rows
    without a measure are headings.

    Raises:
        UserError: where no model has gates.
    """
    lacking = "No model here has gates with masks: compare one of CIFS or CAS."
    rows = []
    for model, measured in require_rows(result.leakage, lacking).groupby("model", sort=False):
        lines = enumerate(_list_lines(measured))
        for (place, (words, layer, measure, chance)), data in product(lines, COLOURS):
            where = {"layer": layer, "data": data}
            value, low, high = find_interval(measured, **where, measure=measure)
            by_chance = find_interval(measured, **where, measure=chance)[0]
            row = {"model": model, "place": place, "words": words, **where, "measure": measure}
            rows.append(row | {"value": value, "low": low, "high": high, "chance": by_chance})
    return pd.DataFrame(rows)


def _list_lines(measured: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the lines of a model's panel: words, layer, measure, measure by chance."""
    lines = []
    for layer, rows in measured.groupby("layer", sort=False):
        name = str(layer)
        if not name:
            lines += [(words, "", measure, chance) for words, measure, chance in _OF_NETWORK]
            continue
        lines.append((f"true class from mask, {shorten_layer(name, 12)}", name, "", ""))
        present = set(rows["measure"])
        of_gate = [line for line in _OF_GATE if line[1] in present]
        lines += [(words, name, measure, chance) for words, measure, chance in of_gate]
    return lines


@styled
def draw_leakage(result: "Result") -> Figure:
    """Draw whether gated models read the label in what their gates are told, a panel for each.

    Above: what the network answers when its gates are told nothing, the true class or a wrong one.
    Below: of how many images a linear classifier reads the class from a gate's mask alone. Bars are
    intervals; a grey stroke marks what comes about by chance.
    """
    panels = list(leakage_data(result).groupby("model", sort=False))
    heights = [0.2 + 0.12 * (1 + rows["place"].max()) for _, rows in panels]
    height = float(np.mean(heights))
    options: dict[str, Any] = {"sharex": True, "height_ratios": heights}
    figure, axes = make_grid(len(panels), 1, height, least=height * 0.92, **options)
    for ax, (model, rows) in zip(axes[:, 0], panels, strict=True):
        _draw_lines(ax, rows)
        ax.set_title(shorten(str(model), 24), loc="left", weight="bold")
    label_percent(axes[-1, 0], "share of the images", "x")
    axes[-1, 0].set_xlim(-0.03, 1.03)
    add_title(figure, "Do gates leak the label? What is answered when gates are told a class")
    note = (
        "adversarial images: made with gates told nothing; from mask: by a linear classifier that "
        "knows it alone, cross-validated; by chance: how often the network answers that wrong "
        "class when told nothing, for masks the share of the most frequent class; bars: "
        f"{describe_level(result)}"
    )
    chance = Line2D([], [], **_CHANCE, label="by chance")
    add_data_legend(figure, describe_attack(result), "none", chance, note=note)
    return figure


def _draw_lines(ax: Axes, drawn: pd.DataFrame) -> None:
    lines = drawn.drop_duplicates("place")
    look: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.8}
    for data, beside in (("natural", -0.17), ("adversarial", 0.17)):
        rows = select_rows(drawn[drawn["measure"] != ""], data=data)
        value, reach = error_bars(rows)
        places = rows["place"] + beside
        ax.plot(rows["chance"], places, **_CHANCE)
        ax.errorbar(value, places, xerr=reach, color=COLOURS[data], **look)
    ax.set_yticks(lines["place"], lines["words"])
    for tick, measure in zip(ax.yaxis.get_major_ticks(), lines["measure"], strict=True):
        tick.label1.set_fontstyle("normal" if measure else "italic")
        tick.tick1line.set_visible(bool(measure))
    for place in lines.loc[lines["measure"] == "", "place"][1:]:
        ax.axhline(place - 0.5, color="0.85", linewidth=0.6)
    ax.set_ylim(lines["place"].max() + 0.5, -0.5)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)


def describe_leakage(drawn: pd.DataFrame) -> str:
    """Say, of natural images, what is answered by what gates are told, and what masks tell."""
    words = {
        "accuracy": "right with nothing told",
        "accuracy_true": "right with the true class told",
        "follows_wrong": "a wrong class that is told is answered",
        "readable": "class read from the mask",
        "readable_true": "class read from the mask with the true class told",
    }

    def describe(rows: pd.DataFrame) -> str:
        parts = []
        for row in rows[rows["measure"].isin(words)].to_dict("records"):
            where = f" at {row['layer']}" if row["layer"] else ""
            parts.append(f"{words[row['measure']]}{where} {format_percent(row['value'])}")
        return ", ".join(parts)

    return describe_each(drawn[drawn["data"] == "natural"], ["model"], describe)


register(
    Analysis(
        name="leakage",
        help="whether gated models read the label in what their gates are told",
        tables={
            "leakage": Table(
                words=("model", "layer", "data", "measure"),
                numbers=("value", "low", "high"),
                help='layer: the gated one, "" for the whole network; measures: see '
                "channelscope.analyses.leakage; value: share of the images",
            )
        },
        compute=compute_leakage,
        plots=(
            Plot(
                name="leakage",
                draw=draw_leakage,
                data=leakage_data,
                alt_text=describe_leakage,
                caption="Whether gates leak the label. In training a gate is told the class of the "
                "image, and makes of it its mask: the factors by which the channels are "
                "multiplied. In use it is told nothing and guesses. Above, in each panel: the "
                "share of the images for which the network answers the true class, with its gates "
                "told nothing, the true class, or a wrong one drawn at random; then for which it "
                "answers that wrong class. A network that answers whatever its gates are told has "
                "learned to read the label there, and its accuracy in training says little about "
                "its accuracy in use. Below: the share of the images whose class a linear "
                "classifier (cross-validated) reads from one gate's mask alone. Strokes: what "
                "comes about by chance, which is the same wrong class answered with nothing told, "
                "or the share of the most frequent class. {adversarial} They were made with the "
                "gates told nothing. {wilson}",
                section="gates",
                main=False,
                table="leakage",
            ),
        ),
    )
)
