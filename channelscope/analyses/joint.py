"""Joint: accuracy against the weight of the gates' probes in the loss that is attacked."""

import re
from math import inf, isinf
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.errors import UserError
from channelscope.figures.axes import (
    add_model_legend,
    add_title,
    choose_looks,
    label_percent,
    list_bottom,
    list_left,
    make_panels,
)
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    describe_each,
    describe_level,
    error_bars,
    format_attack,
    format_percent,
    format_radius,
    select_rows,
)
from channelscope.statistics.intervals import as_columns, wilson

if TYPE_CHECKING:
    from channelscope.result import Result

TABLE = Table(
    words=("model", "attack"),
    numbers=("beta_atk", "accuracy", "low", "high", "worst", "count"),
    help=(
        "accuracy under an attack on the joint loss of the network's and its probes' logits, at "
        "each weight beta_atk of the probes (0: the network's alone, inf: the probes alone), with "
        "Wilson's interval; worst: the worst case per image over these weights; images. 'attack' "
        "is the attack's name without the weight; attacks of a single weight are not here, nor "
        "those of a cascade"
    ),
)
_JOINT = re.compile(r":joint(inf|\d[\d.e+-]*)?(?=:|$)")
_PAPERS = 2.0  # beta_atk of a name that tells none


def compute_joint(study: Study) -> dict[str, Any]:
    """Compute the accuracy at each weight, over all images, and the worst case over the weights."""
    rows: list[dict[str, Any]] = []
    # In a cascade an attack is not given what others broke: accuracies are not its own.
    for model in () if study.settings["cascade"] else study.models:
        for attack, names in _group_by_weight(study.attacks(model)).items():
            correct = {beta: study.correct(model, names[beta]) for beta in sorted(names)}
            worst = np.all([*correct.values()], axis=0).mean()
            for beta, images in correct.items():
                interval = wilson(int(images.sum()), len(images), study.settings["level"])
                columns = as_columns(interval, "accuracy")
                words = {"model": model, "attack": attack, "beta_atk": beta}
                rows.append(words | columns | {"worst": worst, "count": len(images)})
    return {"joint": rows}


def _group_by_weight(names: tuple[str, ...]) -> dict[str, dict[float, str]]:
    """Group attacks that differ in their joint loss's weight alone: name without it -> names."""
    groups: dict[str, dict[float, str]] = {}
    for name in names:
        if match := _JOINT.search(name):
            beta = float(match[1] or _PAPERS)
            groups.setdefault(_JOINT.sub("", name), {})[beta] = name
    return {attack: group for attack, group in groups.items() if len(group) > 1}


def joint_data(result: "Result") -> pd.DataFrame:
    """Return model, attack, beta_atk -> accuracy, low, high, worst.

    Raises:
        UserError: where no attack was made at several weights.
    """
    if result.joint.empty:
        raise UserError(
            "No attack was made at several weights of the joint loss here, for all images: name "
            "some, such as pgd-20:joint0 pgd-20:joint2, or the suite paper, without --cascade."
        )
    return result.joint.drop(columns="count")


@styled
def draw_joint(result: "Result") -> Figure:
    """Draw the accuracy against beta_atk, a panel an attack and a line a model.

    The weights are evenly spaced, as they reach from 0 to infinity. A dashed line: the worst case.
    """
    data, models = joint_data(result), list(result.meta["models"])
    attacks, betas = list(data["attack"].unique()), sorted(data["beta_atk"].unique())
    drawn = [model for model in models if model in set(data["model"])]
    looks = choose_looks(result)
    offsets = dict(zip(drawn, np.linspace(-0.12, 0.12, len(drawn) + 2)[1:-1], strict=True))
    figure, axes = make_panels(len(attacks), 1, 1.15, sharex="all", sharey="all")
    for ax, attack in zip(axes[:, 0], attacks, strict=True):
        ax.set_title(format_attack(attack), loc="left", weight="bold")
        for model in drawn:
            rows = select_rows(data, model=model, attack=attack)
            if rows.empty:
                continue
            look: dict[str, Any] = looks[model] | {"markersize": 3, "elinewidth": 0.8}
            accuracy, bars = error_bars(rows, "accuracy")
            places = rows["beta_atk"].map(betas.index).to_numpy() + offsets[model]
            ax.errorbar(places, accuracy, yerr=bars, **look)
            worst = {"color": look["color"], "linewidth": 0.8, "linestyle": "--"}
            ax.axhline(rows["worst"].iloc[0], zorder=0, **worst)
        label_percent(ax, "")
    axes[0, 0].set_ylim(bottom=0)
    for ax in list_left(axes):
        ax.set_ylabel("accuracy (%)")
    axes[-1, 0].set_xticks(range(len(betas)), [_format_weight(beta) for beta in betas])
    for ax in list_bottom(axes):
        ax.set_xlabel("weight β of the probes")
    ball = f"ε = {format_radius(result.meta['eps'])}, {result.meta['data']['images']:,} images"
    add_title(figure, f"Accuracy under attacks on logits and probes together, {ball}")
    note = (
        "β: in the attacked loss; 0: the network's logits alone, ∞: its gates' probes alone; every "
        f"image is attacked at every weight; bars: {describe_level(result)}; "
        "dashed: the worst case per image over them"
    )
    if any("detached" in attack for attack in attacks):
        note += "; detached: without the gradient through the gates' masks"
    if any("fixed" in attack for attack in attacks):
        note += "; fixed: begun at the image itself"
    add_model_legend(figure, result, drawn, note)
    return figure


def _format_weight(beta: float) -> str:
    return "∞" if isinf(beta) else f"{beta:g}"


def describe_joint(data: pd.DataFrame) -> str:
    """Say at which weight the accuracy is lowest, and the worst case over all."""

    def describe(rows: pd.DataFrame) -> str:
        lowest = rows.sort_values("accuracy", kind="stable").iloc[0]
        weight = "infinity" if lowest["beta_atk"] == inf else f"{lowest['beta_atk']:g}"
        return (
            f"accuracy from {format_percent(rows['accuracy'].max())} down to "
            f"{format_percent(lowest['accuracy'])} at a weight of {weight}, "
            f"{format_percent(rows['worst'].iloc[0])} in the worst case over the weights"
        )

    return describe_each(data, ["model", "attack"], describe)


def check_joint(result: "Result") -> None:
    """Raise ValueError for weights that are no numbers from 0 up, and for unknown models."""
    if not (result.joint["beta_atk"] >= 0).all():
        raise ValueError("joint has weights below 0, or none")
    if unknown := set(result.joint["model"]) - set(result.meta["models"]):
        raise ValueError(f"joint is of the model {min(unknown)!r}, which meta.json has not")


register(
    Analysis(
        name="joint",
        help="accuracy against the weight of the gates' probes in the loss that is attacked",
        kinds=("comparison", "evaluation"),
        tables={"joint": TABLE},
        compute=compute_joint,
        check=check_joint,
        plots=(
            Plot(
                name="joint",
                draw=draw_joint,
                data=joint_data,
                alt_text=describe_joint,
                caption=(
                    "Accuracy under an attack that maximises the joint loss of CIFS, against the "
                    "weight β of the gates' probes in it: at 0 the attack is on the network's "
                    "logits alone, at ∞ on the probes' alone. Every image is attacked at every "
                    "weight. The dashed line is the worst case: an image counts there only if it "
                    "withstands the attack at each weight. A network without gates has no probes, "
                    "so that weights change its random starts alone. {wilson}"
                ),
                section="claims",
                order=42,
                claims=("c4",),
                table="joint",
            ),
        ),
    )
)
