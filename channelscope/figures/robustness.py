"""The figure of a comparison's accuracies under its attacks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from channelscope.comparison import Comparison
from channelscope.figures import frames
from channelscope.figures.axes import grid, in_lines, in_percent, model_look, title
from channelscope.figures.paper import styled

_ENDS = {"natural": "natural images", "worst": "worst case of all"}
# Parts of the names of attacks: words for them, and whether such attacks are made for gates.
_PARTS = {
    "joint-sweep": ("on the answer and the gates' probes together", True),
    "detached": ("without the gradient through the gates' masks", True),
    "frozen-natural": ("masks held as for the natural image", True),
    "frozen-label": ("masks held as told the label", True),
    "probe": ("on one gate's probe alone", True),
    "from": ("images made on another model", False),
}


def robustness_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `robustness` draws: model, attack (natural images first, worst case last) -> accuracy, low, high."""
    overall = frames.rows(comparison.robustness, **{"class": "all"})
    names = list(overall["attack"].unique())
    order = sorted(names, key=lambda name: (name == "worst") - (name == "natural"))
    parts = []
    for model in frames.models(comparison):
        of_model = frames.rows(overall, model=model)
        parts.append(
            of_model.sort_values(
                "attack", key=lambda column: column.map(order.index), kind="stable"
            )
        )
    found = pd.concat(parts, ignore_index=True)[["model", "attack", "accuracy", "low", "high"]]
    return found.assign(
        attack=found["attack"].map(lambda name: _ENDS.get(name, frames.in_capitals(name)))
    )


@styled
def robustness(comparison: Comparison) -> Figure:
    """Draw the accuracy of every model under every attack, and in the worst case per image over them, with intervals.

    A row for each attack, in it a dot for each model that it was run on.
    """
    drawn, models = robustness_data(comparison), frames.models(comparison)
    attacks = sorted(drawn["attack"].unique(), key=lambda name: name == _ENDS["worst"])
    names, note = [frames.broken(name) for name in attacks], _note(comparison, drawn)
    row = max(0.05 + 0.055 * len(models), *(0.02 + 0.12 * (1 + name.count("\n")) for name in names))
    lines = 1 + note.count("\n") - -len(models) // 3
    figure, axes = grid(1, 1, row * len(attacks), 0.75 + 0.12 * lines)
    ax, places = axes[0, 0], {name: place for place, name in enumerate(attacks)}
    for index, (model, beside) in enumerate(
        zip(models, np.linspace(-0.3, 0.3, len(models) + 2)[1:-1], strict=True)
    ):
        rows, look = frames.rows(drawn, model=model), model_look(index)
        accuracy, reach = frames.bars(rows, "accuracy")
        height = rows["attack"].map(places).to_numpy() + beside
        label = frames.short(model)
        ax.errorbar(
            accuracy,
            height,
            xerr=reach,
            linestyle="none",
            markersize=3,
            elinewidth=0.8,
            label=label,
            **look,
        )
    for place in range(1, len(attacks)):
        ax.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    ax.set_yticks([*places.values()], names)
    for label, name in zip(ax.get_yticklabels(), attacks, strict=True):
        label.set_fontstyle("italic" if any(_PARTS[part][1] for part in _parts(name)) else "normal")
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    in_percent(ax, "accuracy", "x")
    images = comparison.meta["data"]["images"]
    radius = frames.radius(float(comparison.meta["eps"]))
    title(figure, f"Accuracy under each attack, ε = {radius}, {images:,} images")
    figure.legend(title=note, loc="outside lower center", ncols=3)
    return figure


def _parts(attack: str) -> list[str]:
    """The parts of an attack's name that say what is special about it."""
    found = attack.split(":")[1:]
    return [
        part for part in _PARTS if any(one == part or one.startswith(f"{part}-") for one in found)
    ]


def _note(comparison: Comparison, drawn: pd.DataFrame) -> str:
    """Say what bars, gaps and the names of attacks mean, of those that occur."""
    note = [f"bars: {frames.level(comparison)}"]
    if drawn.groupby("model").size().nunique() > 1:
        note[0] += "; no mark: not run on this model"
    occurring = {part: None for attack in drawn["attack"].unique() for part in _parts(attack)}
    if any(_PARTS[part][1] for part in occurring):
        note.append("in italics: an attack made for gates")
    return "\n".join(map(in_lines, [*note, *(f"{part}: {_PARTS[part][0]}" for part in occurring)]))
