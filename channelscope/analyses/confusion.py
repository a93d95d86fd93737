"""Confusion: what the models answer for the images of each class, natural and adversarial."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.analyses.subjects import by_layer
from channelscope.figures.axes import add_title, label_percent, make_grid, wrap_note
from channelscope.figures.paper import current_style, styled
from channelscope.figures.words import (
    choose_layers,
    classes_with_images,
    describe_attack,
    describe_each,
    describe_layers,
    format_number,
    format_percent,
    select_rows,
    shorten,
)
from channelscope.statistics.measures import overlap
from channelscope.statistics.significance import mantel

if TYPE_CHECKING:
    from channelscope.result import Result

_PERMUTATIONS = 999
_BESIDE = 10  # class names that fit beside each other below a matrix; more stand at its left alone


def compute_confusion(study: Study) -> dict[str, Any]:
    """Count how many images of each class get each answer; answers not given have no row."""
    return {"confusion": _count_answers(study)}


def _count_answers(study: Study) -> Iterator[dict[str, Any]]:
    for model, data in product(study.models, ("natural", "adversarial")):
        answers = study.answers(model, data)
        pairs, counts = np.unique([study.labels, answers], axis=1, return_counts=True)
        for label, answer, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            names = {"class": study.classes[label], "answer": study.classes[answer]}
            yield {"model": model, "data": data, **names, "count": count}


def confusion_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return what ``draw_confusion`` draws: a row for each model and pair of classes.

    Columns: model, layer, class, answer -> share (of the class's images under attack that get this
    answer), overlap (of the two classes' PR channels, see ``measures.overlap``), and of the model
    spearman and p of the two over the pairs of different classes (``significance.mantel``). Above
    24 classes of the 12 most and the 12 least robust ones alone, without classes without images.
    """
    names = classes_with_images(result)
    places = [result.meta["data"]["classes"].index(name) for name in names]
    parts = []
    for model, layer_name in choose_layers(result, layer).items():
        counts = select_rows(result.confusion, model=model, data="adversarial")
        table = counts.pivot(index="class", columns="answer", values="count").reindex(index=names)
        shares = table.div(table.sum(axis=1), axis=0).reindex(columns=names).fillna(0).to_numpy()
        relevance = result.array("activations", "relevance", model, "natural", layer_name)
        shared = overlap(relevance[places])
        rho, p = mantel(shares.astype(float), shared, permutations=_PERMUTATIONS)
        part = pd.DataFrame(product(names, names), columns=["class", "answer"])
        part["share"] = shares.ravel()
        part["overlap"] = shared.ravel()
        parts.append(part.assign(model=model, layer=layer_name, spearman=rho, p=p))
    columns = ["model", "layer", "class", "answer", "share", "overlap", "spearman", "p"]
    return pd.concat(parts)[columns]


@styled
def draw_confusion(result: "Result", layer: str | None = None) -> Figure:
    """Draw what each class is taken for under attack beside how far classes share PR channels.

    A row per model. The correlation of the two over pairs of different classes is above, with the p
    of Mantel's permutation test, as the pairs are not independent. ``layer`` defaults to each
    model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = confusion_data(result, layer)
    layers = choose_layers(result, layer)
    names = list(drawn["class"].unique())
    figure, axes = make_grid(
        len(layers), 2, max(1.4, 0.13 * len(names)), 1.85, sharex=True, sharey=True
    )
    sides = {"share": "images of\nthe class", "overlap": "shared PR\nchannels"}
    for column, (name, words) in enumerate(sides.items()):
        largest = _find_largest(drawn, name)
        for ax, model in zip(axes[:, column], layers, strict=True):
            values = select_rows(drawn, model=model)[name].to_numpy().reshape(len(names), -1)
            image = _draw_matrix(ax, values, largest)
        bar = figure.colorbar(image, ax=axes[:, column], location="bottom", aspect=15)
        label_percent(bar.ax, words, "x")
        bar.ax.tick_params(labelsize=current_style().small, length=2.5, width=0.6)
    for row, model in zip(axes, layers, strict=True):
        first = select_rows(drawn, model=model).iloc[0]
        correlation = f"ρ {format_number(first['spearman'])}, p {_format_p(first['p'])}"
        row[0].set_title(shorten(model, 14), loc="left", weight="bold")
        row[1].set_title(correlation, loc="right", size=current_style().small)
        row[0].set_ylabel("true class")
    shown = [shorten(name, 12) for name in names]
    for ax in axes[-1]:
        below = shown if len(names) <= _BESIDE else [""] * len(names)
        ax.set_xticks(range(len(names)), below, rotation=90)
        ax.set_yticks(range(len(names)), shown)
    axes[-1, 0].set_xlabel("answer")
    axes[-1, 1].set_xlabel("other class")
    heading = "Answers under attack (left), PR channels that classes share (right)"
    add_title(figure, f"{heading}, {describe_layers(layers)}")
    words = (
        f"{describe_attack(result)}; PR: positively relevant, for the class; shared: of those that "
        "either of two classes has; ρ: rank correlation of the left map with the right one, over "
        "pairs of classes (p: Mantel's test); grey: the class itself, left out"
    )
    figure.legend(handles=[], title=wrap_note(words), loc="outside lower center")
    return figure


def _find_largest(drawn: pd.DataFrame, column: str) -> float:
    """Return the largest value of a pair of different classes."""
    apart = drawn[drawn["class"] != drawn["answer"]][column]
    return float(apart.max()) if apart.notna().any() else 1.0


def _draw_matrix(ax: Axes, values: Float[ndarray, "k k"], largest: float) -> AxesImage:
    """Draw the pairs of different classes; the diagonal, which would outshine them, is left out."""
    apart = np.ma.masked_array(values, np.eye(len(values), dtype=bool) | np.isnan(values))
    ax.set_facecolor("0.85")
    look: dict[str, Any] = {"cmap": "viridis", "interpolation": "none", "aspect": "auto"}
    return ax.imshow(apart, vmin=0, vmax=largest, **look)


def _format_p(p: float) -> str:
    """Print p as in "= 0.02" or "< 0.01"; a dash for NaN."""
    return "–" if np.isnan(p) else "< 0.01" if p < 0.01 else f"= {p:.2f}"


def describe_confusion(drawn: pd.DataFrame) -> str:
    """Say how answers and shared channels correlate, and which class is confused most."""

    def describe(rows: pd.DataFrame) -> str:
        apart = rows[rows["class"] != rows["answer"]].dropna(subset=["share"])
        correlation = f"ρ {format_number(rows['spearman'].iloc[0])}"
        if apart.empty:
            return correlation
        most = apart.sort_values("share", kind="stable").iloc[-1]
        share = format_percent(most["share"])
        return f"{correlation}, most often {most['class']} is taken for {most['answer']} ({share})"

    return describe_each(drawn, ["model"], describe)


register(
    Analysis(
        name="confusion",
        help="what each class is taken for, beside the channels that classes share",
        tables={
            "confusion": Table(
                words=("model", "data", "class", "answer"),
                numbers=("count",),
                help="count: images of the (true) class that get the answer, where there are any",
            )
        },
        compute=compute_confusion,
        plots=(
            Plot(
                name="confusion",
                draw=draw_confusion,
                data=confusion_data,
                alt_text=describe_confusion,
                caption="Left: what the images of each class are taken for under attack. Right: "
                "how far two classes share their positively relevant (PR) channels (Jaccard index: "
                "shared ones over all). The diagonals are left out. Above: Spearman's correlation "
                "ρ of the two over pairs of different classes, with the p of Mantel's test (999 "
                "permutations of the classes), as the pairs are not independent: each class has "
                "part in many. {layers} {adversarial}",
                section="network",
                main=False,
                table="confusion",
                needs=("activations", "robustness"),
                subjects=by_layer,
            ),
        ),
    )
)
