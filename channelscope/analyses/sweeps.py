"""Sweeps: the accuracy of every variant of a recipe. Their tables are made as they train."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from channelscope.analyses.base import Analysis, Plot, Table, register
from channelscope.figures.axes import (
    add_legend,
    add_title,
    make_grid,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    describe_each,
    error_bars,
    format_attack,
    format_percent,
    format_radius,
    select_rows,
)
from channelscope.reading import check_kinds

if TYPE_CHECKING:
    from channelscope.result import Result

ACCURACIES = ("natural", "attacked", "robust")
TABLE = Table(
    words=("variant", "trouble", "file"),
    numbers=(
        "seed",
        *(f"{name}{end}" for name in ACCURACIES for end in ("", "_low", "_high")),
        *("val_natural", "val_robust", "best_epoch", "trained_epochs", "seconds"),
    ),
    help="a trained network: accuracies on the test images, as fractions; then its training",
    open=True,
)
VARIANTS = Table(
    words=("variant",),
    numbers=("seeds", *(f"{name}{end}" for name in ACCURACIES for end in ("", "_low", "_high"))),
    help="a variant: the mean accuracies of its networks, as fractions, with intervals over seeds "
    "and test images",
)
# A column of the table -> the colour of its data, and the title of its panel.
_PANELS = {
    "natural": (COLOURS["natural"], "natural images"),
    "robust": (COLOURS["adversarial"], "worst case"),
}
_LINE = 0.12  # inches, of a line of text or a dot
_LEAST = 0.6  # inches, of a panel
_HIGHEST = 60  # inches: a picture has so many pixels at most


def sweep_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_sweep`` draws, by variant and seed.

    Natural and robust accuracy, each low and high, and the same of the variant's mean.
    """
    columns = [f"{name}{end}" for name in _PANELS for end in ("", "_low", "_high")]
    means = result.select("variants")[["variant", *columns]]
    networks = result.select("sweep")[["variant", "seed", *columns]]
    return networks.merge(means, on="variant", how="left", suffixes=("", "_mean"))


@styled
def draw_sweep(result: "Result") -> Figure:
    """Draw natural and worst-case accuracy of every variant.

    A dot and its interval for each seed, a line for their mean in a band, which is its interval.
    """
    drawn = sweep_data(result)
    variants = list(drawn["variant"].unique())
    names = [_wrap_variant(name) for name in variants]
    seeds = int(drawn["variant"].value_counts().max())
    lines = 1 + max(seeds, *(name.count("\n") + 1 for name in names))
    height = min(max(_LINE * lines * len(variants), _LEAST), _HIGHEST)
    figure, axes = make_grid(1, 2, height, least=height, sharey=True)
    for ax, (column, (colour, heading)) in zip(axes[0], _PANELS.items(), strict=True):
        for place, variant in enumerate(variants):
            _draw_variant(ax, select_rows(drawn, variant=variant), column, place, colour)
        ax.set_title(heading)
        ax.set_xlabel("accuracy (%)")
        ax.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.set_yticks(range(len(variants)), names)
    add_title(figure, result.meta["title"])
    _add_legend(figure, result.meta, seeds)
    return figure


def _wrap_variant(name: str) -> str:
    """Break a variant's name after each setting, and long lists between their members."""
    lines = []
    for setting in name.split(", "):
        broken = textwrap.wrap(setting.replace("+", "+ "), 20, break_on_hyphens=False)
        lines += [line.replace("+ ", "+") for line in broken]
    return "\n".join(lines[:6])


def _draw_variant(ax: Axes, rows: pd.DataFrame, column: str, place: int, colour: str) -> None:
    measured = rows[column].notna().to_numpy()
    if not measured.any():
        look: dict[str, Any] = {"ha": "center", "va": "center", "color": "0.4"}
        ax.text(0.5, place, "no result", transform=ax.get_yaxis_transform(), **look)
        return
    beside = np.linspace(-0.3, 0.3, len(rows)) if len(rows) > 1 else np.zeros(1)
    percent = 100 * rows.loc[measured, [column, f"{column}_low", f"{column}_high"]].astype(float)
    accuracy, reach = error_bars(percent, *percent.columns)
    dots: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.8}
    ax.errorbar(accuracy, place + beside[measured], xerr=reach, color=colour, **dots)
    if len(rows) > 1:
        ends = [place - 0.42, place + 0.42]
        names = [f"{column}{end}_mean" for end in ("", "_low", "_high")]
        mean, low, high = 100 * rows.iloc[0][names].astype(float)
        ax.fill_betweenx(ends, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot([mean] * 2, ends, color=colour, linewidth=1.5, alpha=0.5)


def _add_legend(figure: Figure, meta: dict[str, Any], seeds: int) -> None:
    settings = meta["settings"]
    dot = f"a network with its {settings['level']:.0%} interval"
    handles: list[Artist] = [
        Line2D([], [], color="0.3", marker="o", markersize=3.5, linewidth=0.8, label=dot)
    ]
    if seeds > 1:
        line: dict[str, Any] = {"color": "0.3", "linestyle": "none", "markersize": 8}
        handles.append(Line2D([], [], marker="|", label="mean of the seeds", **line))
        handles.append(Patch(color="0.3", alpha=0.15, label="interval of the mean"))
    attack = f"{format_attack(settings['attack'])}, ε = {format_radius(settings['eps'])}"
    note = (
        f"{meta['images']['test']} test images; worst case over natural images and {attack}, "
        "the same on the joint loss with seven weights"
    )
    add_legend(figure, handles, note)


def describe_sweep(drawn: pd.DataFrame) -> str:
    """Say the accuracies of each variant, mean over the seeds."""

    def describe(rows: pd.DataFrame) -> str:
        natural, robust = (float(rows[name].mean()) for name in _PANELS)
        return f"{format_percent(natural)} natural, {format_percent(robust)} in the worst case"

    return describe_each(drawn, ["variant"], describe)


def check_sweep(result: "Result") -> None:
    """Check that a sweep that was read says what its figure shows."""
    number = int | float
    settings = {"level": number, "attack": str, "eps": number}
    kinds = {"title": str, "images": {"test": int}, "settings": settings}
    check_kinds(result.meta, kinds, "meta.json")


register(
    Analysis(
        name="sweeps",
        help="the accuracy of every variant of a recipe",
        kinds=("sweep",),
        tables={"sweep": TABLE, "variants": VARIANTS},
        check=check_sweep,
        plots=(
            Plot(
                name="sweep",
                draw=draw_sweep,
                data=sweep_data,
                alt_text=describe_sweep,
                caption="Natural and worst-case accuracy of every variant: a dot and its interval "
                "for each seed, a line for their mean, a band for its interval over seeds and "
                "images.",
                section="training",
                table="sweep",
                needs=("variants",),
            ),
        ),
    )
)
