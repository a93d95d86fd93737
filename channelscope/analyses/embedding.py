"""Embedding: where the attack moves each class, in the plane of the class means' PCA."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, BboxBase
from numpy import ndarray
from scipy.linalg import eigh

from channelscope.analyses.base import Analysis, Plot, register
from channelscope.analyses.subjects import by_layer
from channelscope.figures.axes import (
    add_data_legend,
    add_title,
    make_panels,
    number_classes,
    write_in_panel,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    LABELLED,
    choose_layers,
    describe_attack,
    describe_each,
    describe_layers,
    format_percent,
    select_rows,
    shorten,
)

if TYPE_CHECKING:
    from channelscope.result import Result


def embedding_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return model, layer, class, data -> x, y, and the variance that each axis explains.

    x and y are the first two principal components of the magnitudes (classes, natural and
    adversarial, by channels). Classes without images are left out.
    """
    classes = np.array(result.meta["data"]["classes"], dtype=object)
    parts = []
    for model, name in choose_layers(result, layer).items():
        means = np.stack(
            [result.array("activations", "magnitude", model, data, name) for data in COLOURS],
            1,
        )
        present = ~np.isnan(means).any((1, 2))
        places, explained = _project(means[present].reshape(-1, means.shape[-1]))
        columns: dict[str, Any] = {
            "model": model,
            "layer": name,
            "class": np.repeat(classes[present], len(COLOURS)),
            "data": [*COLOURS] * int(present.sum()),
            "x": places[:, 0],
            "y": places[:, 1],
            "explained_x": explained[0],
            "explained_y": explained[1],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _project(means: Float[ndarray, "n c"]) -> tuple[Float[ndarray, "n 2"], Float[ndarray, " 2"]]:
    """Project rows on their first two principal components; also the variance's shares.

    By the inner products of the rows, which are fewer than the channels of most layers.
    """
    places, explained, count = np.zeros((len(means), 2)), np.zeros(2), min(2, *means.shape)
    if not count or not np.ptp(means, axis=0).any():
        return places, explained
    centred = means - means.mean(0)
    products = centred @ centred.T
    last = len(means) - 1
    values, vectors = eigh(products, subset_by_index=[last - count + 1, last])
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    # A component's largest weight is positive: its sign is arbitrary.
    weights = centred.T @ vectors
    largest = weights[np.abs(weights).argmax(0), range(count)]
    places[:, :count] = np.where(largest < 0, -1, 1) * vectors * np.sqrt(values)
    explained[:count] = values / np.trace(products)
    places[:, explained < 1e-9] = 0  # rounding is no direction
    return places, explained


@styled
def draw_embedding(result: "Result", layer: str | None = None) -> Figure:
    """Draw where an attack moves the classes: a line from the natural mean to the adversarial one.

    A panel for each model, in the plane of the first two principal components of its class means.
    """
    data, layers = embedding_data(result, layer), choose_layers(result, layer)
    classes = result.meta["data"]["classes"]
    key = number_classes(classes)
    figure, axes = make_panels(len(layers), 1, 1.6, 0.35)
    for ax, model in zip(axes.flat, layers, strict=False):
        of_model = select_rows(data, model=model)
        ax.set_title(shorten(model), loc="left", weight="bold")
        if of_model.empty:
            write_in_panel(ax, "no images")
            continue
        _draw_moves(ax, of_model)
        for axis, number, side in ((ax.xaxis, 1, "x"), (ax.yaxis, 2, "y")):
            share = format_percent(of_model[f"explained_{side}"].iloc[0], 0)
            axis.set_major_locator(MaxNLocator(4))
            axis.set_label_text(f"component {number}:\n{share} of variance")
    add_title(figure, f"Mean activation of each class under attack, {describe_layers(layers)}")
    note = (
        "a line joins a class to itself under attack; each model has principal components (PCA) of "
        "its own"
    )
    add_data_legend(figure, describe_attack(result), note=note, key=key)
    if len(classes) <= LABELLED:
        # This gives panels their places: numbers are set where there is room.
        figure.draw_without_rendering()
        numbers = {name: str(number) for number, name in enumerate(classes)}
        for ax, model in zip(axes.flat, layers, strict=False):
            _number_classes(ax, select_rows(data, model=model), numbers, 72 / figure.dpi)
    return figure


def _draw_moves(ax: Axes, data: pd.DataFrame) -> None:
    ends = [select_rows(data, data=name)[["x", "y"]].to_numpy() for name in COLOURS]
    look: dict[str, Any] = {"colors": "0.7", "linewidths": 0.7, "zorder": 1}
    ax.add_collection(LineCollection(list(np.stack(ends, 1)), **look))
    for places, colour in zip(ends, COLOURS.values(), strict=True):
        ax.plot(*places.T, marker="o", markersize=3, color=colour, linestyle="none")


def _number_classes(
    ax: Axes, data: pd.DataFrame, numbers: dict[str, str], points_per_pixel: float
) -> None:
    """Write each class's number beside its natural dot, or where crowded at a line's end.

    The nearest place is taken that hides neither a dot nor another number.
    """
    small = current_style().small
    dots = ax.transData.transform(data[["x", "y"]]) * points_per_pixel
    frame = ax.get_window_extent().transformed(Affine2D().scale(points_per_pixel))
    occupied = [(x, y, 2.0, 2.0) for x, y in dots]
    line = {
        "arrowstyle": "-",
        "color": COLOURS["natural"],
        "linewidth": 0.4,
        "shrinkA": 0,
        "shrinkB": 1,
        "relpos": (0.5, 0.5),
    }
    for (x, y), row in zip(dots, data.to_dict("records"), strict=True):
        if row["data"] != "natural":
            continue
        number = numbers[row["class"]]
        half = 0.36 * small * len(number), 0.42 * small
        dx, dy = _find_room((x, y), half, occupied, frame)
        occupied.append((x + dx, y + dy, *half))
        ax.annotate(
            number,
            (row["x"], row["y"]),
            (dx, dy),
            textcoords="offset points",
            arrowprops=line if np.hypot(dx, dy) > 1.5 * small else None,
            size=small,
            color=COLOURS["natural"],
            ha="center",
            va="center",
        ).set_in_layout(False)


def _find_room(
    at: tuple[float, float],
    half: tuple[float, float],
    occupied: list[tuple[float, float, float, float]],
    frame: BboxBase,
) -> tuple[float, float]:
    """Return the shortest way, in points, to where a text of this half size hides nothing."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 4
    ways = [(r * np.cos(turn), r * np.sin(turn)) for r in np.arange(6, 60, 1.5) for turn in turns]
    for dx, dy in ways:
        x, y = at[0] + dx, at[1] + dy
        inside = (
            frame.x0 + half[0] <= x <= frame.x1 - half[0]
            and frame.y0 + half[1] <= y <= frame.y1 - half[1]
        )
        if inside and all(
            abs(x - a) > half[0] + w or abs(y - b) > half[1] + h for a, b, w, h in occupied
        ):
            return dx, dy
    return ways[0]


def describe_embedding(data: pd.DataFrame) -> str:
    """Say how far the attack moves class means, next to how far they lie apart."""

    def describe(rows: pd.DataFrame) -> str:
        natural, adversarial = (
            rows[rows["data"] == name].set_index("class")[["x", "y"]] for name in COLOURS
        )
        moved = np.linalg.norm(adversarial - natural, axis=1).mean()
        apart = np.linalg.norm(natural - natural.mean(), axis=1).mean()
        move = f"the attack moves the classes by {moved:.2g} on average"
        return f"{move}, and they lie {apart:.2g} from their centre"

    return describe_each(data, ["model"], describe)


register(
    Analysis(
        name="embedding",
        help="where an attack moves each class's mean activation",
        plots=(
            Plot(
                name="embedding",
                draw=draw_embedding,
                data=embedding_data,
                alt_text=describe_embedding,
                caption=(
                    "Where the attack moves the classes: from each class's mean activation on "
                    "natural images to that on adversarial ones, in the plane of the first two "
                    "principal components of all these means, for each model by itself. {layers} "
                    "{adversarial}"
                ),
                section="network",
                order=70,
                main=False,
                claims=("c1",),
                table="activations",
                subjects=by_layer,
            ),
        ),
    )
)
