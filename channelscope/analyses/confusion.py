"""Confusion: what the models answer for the images of each class, natural and adversarial."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.analyses.subjects import by_layer
from channelscope.figures.axes import (
    add_legend,
    add_title,
    draw_heatmap,
    label_percent,
    list_bottom,
    list_left,
    make_panels,
    shrink_ticks,
)
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
SIGNIFICANT = 0.05
_BESIDE = 12  # class names that fit beside each other below a matrix; more stand at its left alone


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
    """Draw what the images of each class are taken for under attack, a panel a model.

    Above is the correlation, over pairs of different classes, with the PR channels that the two
    share, and the p of Mantel's permutation test, as the pairs are not independent. ``layer``
    defaults to each model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = confusion_data(result, layer)
    layers = choose_layers(result, layer)
    names = list(drawn["class"].unique())
    shown = {name: shorten(name, 12) for name in names}
    beside = len(names) <= _BESIDE
    below = 0.055 * max(map(len, shown.values())) if beside else 0.0
    height = max(1.2, 0.1 * len(names) + 0.15)
    figure, axes = make_panels(
        len(layers), 1, height, 0.55 + below, sharex="all", sharey="all", least=0.95 * height
    )
    largest = _find_largest(drawn)
    for ax, model in zip(axes[:, 0], layers, strict=True):
        rows = select_rows(drawn, model=model)
        apart = rows.assign(share=rows["share"].where(rows["class"] != rows["answer"]))
        cells = apart.pivot(index="class", columns="answer", values="share").loc[names, names]
        cells = cells.rename(index=shown, columns=shown if beside else dict.fromkeys(names, ""))
        mesh = draw_heatmap(ax, cells, cmap="viridis", vmin=0, vmax=largest)
        ax.set_title(shorten(model, 12), loc="left", weight="bold")
        first = rows.iloc[0]
        rho = f"ρ {format_number(first['spearman'])}{'*' if first['p'] <= SIGNIFICANT else ''}"
        ax.set_title(rho, loc="right", size=current_style().small)
    for ax in list_left(axes):
        ax.set_ylabel("true class")
    for ax in list_bottom(axes):
        ax.set_xlabel("answer under attack")
    place: dict[str, Any] = {"location": "bottom", "fraction": 0.04, "aspect": 40, "pad": 0.02}
    bar = figure.colorbar(mesh, ax=list(axes.flat), **place)
    label_percent(bar.ax, "images of the class that get this answer", "x")
    shrink_ticks(bar.ax)
    add_title(figure, f"What is each class taken for under attack? {describe_layers(layers)}")
    note = (
        f"{describe_attack(result)}; grey: the class itself; ρ: are classes taken for each other "
        "that share channels? Rank correlation, over pairs of classes, with the share of their PR "
        f"(positively relevant) channels that both have; *: p ≤ {SIGNIFICANT}, Mantel's test"
    )
    add_legend(figure, note=note)
    return figure


def _find_largest(drawn: pd.DataFrame) -> float:
    """Return the largest share of a wrong answer."""
    apart = drawn.loc[drawn["class"] != drawn["answer"], "share"]
    return float(apart.max()) if apart.max() > 0 else 1.0


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
                caption="What the images of each class are taken for under attack; the diagonals "
                "are left out. Above: Spearman's correlation ρ, over pairs of different classes, "
                "with how far the two share their positively relevant (PR) channels (Jaccard "
                "index: shared ones over all), with the p of Mantel's test (999 permutations of "
                "the classes), as the pairs are not independent: each class has part in many. "
                "{layers} {adversarial}",
                section="network",
                main=False,
                table="confusion",
                needs=("activations", "robustness"),
                subjects=by_layer,
            ),
        ),
    )
)
