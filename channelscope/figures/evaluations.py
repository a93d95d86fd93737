"""The figures of an evaluation: accuracy against attack and against eps, drawn from its tables alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from channelscope.errors import UserError
from channelscope.evaluation import Evaluation
from channelscope.figures import frames, paper
from channelscope.figures.axes import blank, in_percent, model_look, small_ticks, title
from channelscope.figures.paper import COLOURS, styled

_LINE = 0.14  # inches, of a row
_SPREAD = ("accuracy", "low", "high")


def attacks_data(evaluation: Evaluation) -> pd.DataFrame:
    """Give what `attacks` draws: model, attack ("natural images" first, "worst case" last) -> accuracy, low, high."""
    parts = []
    for model in evaluation.meta["models"]:
        attacked = frames.rows(evaluation.table, model=model).rename(columns={"robust": "accuracy"})
        worst = frames.rows(evaluation.worst, model=model).iloc[0]
        natural = {"model": model, "attack": "natural images"} | dict.fromkeys(
            _SPREAD, worst["natural"]
        )
        last = {
            "model": model,
            "attack": "worst case",
            **dict(zip(_SPREAD, worst[["robust", "low", "high"]], strict=True)),
        }
        named = attacked.assign(attack=attacked["attack"].map(frames.in_capitals))
        parts += [
            pd.DataFrame([natural]),
            named[["model", "attack", *_SPREAD]],
            pd.DataFrame([last]),
        ]
    return pd.concat(parts, ignore_index=True)


@styled
def attacks(evaluation: Evaluation) -> Figure:
    """Draw the accuracy of each model under each attack: a panel a model, a dot and its interval an attack.

    The first row is the natural accuracy, the last the worst case per image over all attacks, which a dashed line
    carries through the panel.
    """
    drawn = attacks_data(evaluation)
    counts = [len(rows) for _, rows in drawn.groupby("model", sort=False)]
    figure = blank(0.9 + sum(_LINE * count + 0.3 for count in counts))
    axes = figure.subplots(len(counts), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for ax, model in zip(axes, drawn["model"].unique(), strict=True):
        _panel(ax, frames.rows(drawn, model=model))
        if signs := len(frames.rows(evaluation.warnings, model=model)):
            ax.set_title(f"signs of gradient masking: {signs}", loc="right")
    axes[-1].set_xlabel(f"accuracy (%), {evaluation.meta['level']:.0%} intervals")
    title(
        figure,
        f"Accuracy under attack, {_ball(evaluation)}, {evaluation.meta['data']['images']} images",
    )
    return figure


def _panel(ax: Axes, drawn: pd.DataFrame) -> None:
    accuracy, reach = frames.bars(drawn, *_SPREAD)
    places = np.arange(len(drawn))
    colours = [COLOURS["natural"], *[COLOURS["adversarial"]] * (len(drawn) - 1)]
    for place, value, bar, colour in zip(places, accuracy, reach.T, colours, strict=True):
        ax.errorbar(
            value, place, xerr=bar[:, None], fmt="o", color=colour, markersize=3, elinewidth=0.8
        )
    ax.axvline(accuracy[-1], color=COLOURS["adversarial"], linewidth=0.8, linestyle="--", zorder=0)
    ax.set_yticks(places, [frames.short(name, 30) for name in drawn["attack"]])
    ax.get_yticklabels()[-1].set_fontweight("bold")
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    in_percent(ax, "accuracy", "x")
    ax.set_xlabel("")
    small_ticks(ax)
    ax.set_title(frames.short(drawn["model"].iloc[0], 24), loc="left", weight="bold")


def eps_sweep_data(evaluation: Evaluation) -> pd.DataFrame:
    """Give what `eps_sweep` draws: model, eps (0: natural images) -> accuracy, low, high."""
    if evaluation.eps_sweep.empty:
        raise UserError("This evaluation has no sweep of eps: evaluate with --eps-sweep.")
    parts = []
    for model in evaluation.meta["models"]:
        swept = frames.rows(evaluation.eps_sweep, model=model).rename(
            columns={"robust": "accuracy"}
        )
        if (swept["eps"] > 0).all():
            accuracy = frames.rows(evaluation.worst, model=model)["natural"].iloc[0]
            parts.append(
                pd.DataFrame([{"model": model, "eps": 0.0} | dict.fromkeys(_SPREAD, accuracy)])
            )
        parts.append(swept[["model", "eps", *_SPREAD]])
    return pd.concat(parts, ignore_index=True)


@styled
def eps_sweep(evaluation: Evaluation) -> Figure:
    """Draw the worst-case accuracy of each model against the radius of the ball, with its interval."""
    drawn, figure = eps_sweep_data(evaluation), blank(2.4)
    ax, in_levels = figure.subplots(), evaluation.meta["norm"] == "inf"
    for index, model in enumerate(evaluation.meta["models"]):
        rows, look = frames.rows(drawn, model=model), model_look(index)
        eps = rows["eps"] * (255 if in_levels else 1)
        ax.plot(eps, rows["accuracy"], label=frames.short(model), markersize=3.5, **look)
        ax.fill_between(
            eps, rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0
        )
    ax.set_ylim(0, 1.02)
    ax.set_xlim(left=0)
    ax.set_xlabel("eps (1/255)" if in_levels else "eps (L2 norm)")
    in_percent(ax, "worst-case accuracy")
    small_ticks(ax)
    figure.legend(loc="outside lower center", ncols=3)
    title(
        figure,
        f"Worst case against the radius of the attack, {evaluation.meta['data']['images']} images",
    )
    return figure


def draw(
    evaluation: Evaluation,
    folder: Path,
    *,
    style: str | None = None,
    formats: Sequence[str] = ("pdf", "png"),
) -> list[Path]:
    """Write the figures into a folder in a style (see ``paper.style``), each beside its data (.csv); give the paths."""
    paper.check_formats(formats)
    pictures = {"attacks": (attacks, attacks_data)}
    if len(evaluation.eps_sweep):
        pictures["eps"] = (eps_sweep, eps_sweep_data)
    paths = []
    with paper.style(style):
        for stem, (picture, data) in pictures.items():
            paths += paper.write(picture(evaluation), data(evaluation), folder / stem, formats)
    return paths


def _ball(evaluation: Evaluation) -> str:
    return f"{'L∞' if evaluation.meta['norm'] == 'inf' else 'L2'} ε = {frames.radius(evaluation.meta['eps'])}"
