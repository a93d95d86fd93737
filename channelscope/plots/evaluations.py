"""The figures of an evaluation: accuracy against attack and against eps, drawn from its tables alone."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from channelscope.errors import UserError
from channelscope.evaluation import Evaluation
from channelscope.plots import frames
from channelscope.plots.paper import COLOURS, COLUMN, MODEL_COLOURS, MODEL_MARKERS, save, styled

_LINE = 0.14  # inches, of a row


@styled
def attacks(evaluation: Evaluation) -> Figure:
    """Draw the accuracy of each model under each attack: a panel a model, a dot and its interval an attack.

    The first row is the natural accuracy, the last the worst case per image over all attacks, which a dashed line
    carries through the panel.
    """
    models = list(evaluation.meta["models"])
    counts = [int((evaluation.table["model"] == model).sum()) + 2 for model in models]
    height = 0.9 + sum(_LINE * count + 0.3 for count in counts)
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    axes = figure.subplots(len(models), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for ax, model in zip(axes, models, strict=True):
        _panel(ax, evaluation, model)
    axes[-1].set_xlabel(f"accuracy (%), {evaluation.meta['level']:.0%} intervals")
    _title(figure, f"Accuracy under attack, {_ball(evaluation)}, {evaluation.meta['data']['images']} images")
    return figure


def _panel(ax: Axes, evaluation: Evaluation, model: str) -> None:
    rows = frames.rows(evaluation.table, model=model)
    worst = frames.rows(evaluation.worst, model=model).iloc[0]
    names = ["natural images", *map(frames.in_capitals, rows["attack"]), "worst case"]
    spread = [(worst["natural"],) * 3]
    spread += [(row.robust, row.low, row.high) for row in rows.itertuples()]
    spread.append((worst["robust"], worst["low"], worst["high"]))
    accuracy, reach = frames.reach(tuple(100 * value for value in row) for row in spread)
    places = np.arange(len(names))
    colours = [COLOURS["natural"], *[COLOURS["adversarial"]] * (len(names) - 1)]
    for place, value, bar, colour in zip(places, accuracy, reach.T, colours, strict=True):
        ax.errorbar(value, place, xerr=bar[:, None], fmt="o", color=colour, markersize=3, elinewidth=0.8)
    ax.axvline(100 * worst["robust"], color=COLOURS["adversarial"], linewidth=0.8, linestyle="--", zorder=0)
    ax.set_yticks(places, [frames.short(name, 30) for name in names])
    ax.get_yticklabels()[-1].set_fontweight("bold")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(-3, 103)
    ax.tick_params(labelsize=6.5, length=2.5, width=0.6)
    signs = frames.rows(evaluation.warnings, model=model)["check"]
    ax.set_title(frames.short(model, 24), loc="left", weight="bold")
    if len(signs):
        ax.set_title(f"signs of gradient masking: {len(signs)}", loc="right")


@styled
def eps_sweep(evaluation: Evaluation) -> Figure:
    """Draw the worst-case accuracy of each model against the radius of the ball, with its interval."""
    if evaluation.eps_sweep.empty:
        raise UserError("This evaluation has no sweep of eps: evaluate with --eps-sweep.")
    figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
    ax = figure.subplots()
    for index, model in enumerate(evaluation.meta["models"]):
        rows = frames.rows(evaluation.eps_sweep, model=model)
        natural = float(frames.rows(evaluation.worst, model=model)["natural"].iloc[0])
        eps = np.concatenate([[0], 255 * rows["eps"]]) if (rows["eps"] > 0).all() else 255 * rows["eps"].to_numpy()
        columns = rows[["robust", "low", "high"]].to_numpy(float)
        if len(eps) > len(columns):
            columns = np.concatenate([[[natural] * 3], columns])
        colour = MODEL_COLOURS[index % len(MODEL_COLOURS)]
        style: dict[str, Any] = {
            "color": colour,
            "marker": MODEL_MARKERS[index % len(MODEL_MARKERS)],
            "markersize": 3.5,
        }
        ax.plot(eps, 100 * columns[:, 0], label=frames.short(model), **style)
        ax.fill_between(eps, 100 * columns[:, 1], 100 * columns[:, 2], color=colour, alpha=0.15, linewidth=0)
    ax.set_ylim(0, 102)
    ax.set_xlim(left=0)
    ax.set_xlabel("eps (1/255)" if evaluation.meta["norm"] == "inf" else "eps (L2 norm)")
    if evaluation.meta["norm"] == "2":
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 255:g}"))
    ax.set_ylabel("worst-case accuracy (%)")
    ax.tick_params(labelsize=6.5, length=2.5, width=0.6)
    figure.legend(loc="outside lower center", ncols=3)
    _title(figure, f"Worst case against the radius of the attack, {evaluation.meta['data']['images']} images")
    return figure


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the figures into a folder as .pdf and .png; give the paths."""
    pictures = {"attacks": attacks} | ({} if evaluation.eps_sweep.empty else {"eps": eps_sweep})
    made = {name: picture(evaluation) for name, picture in pictures.items()}
    return [save(figure, folder / f"{name}.{ending}") for name, figure in made.items() for ending in ("pdf", "png")]


def _ball(evaluation: Evaluation) -> str:
    eps = evaluation.meta["eps"]
    levels = round(255 * eps, 4)
    radius = f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:.4g}"
    return f"{'L∞' if evaluation.meta['norm'] == 'inf' else 'L2'} ε = {radius}"


def _title(figure: Figure, text: str) -> None:
    figure.suptitle("\n".join(textwrap.wrap(text, 44)), x=0.02, ha="left")
