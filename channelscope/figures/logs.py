"""The figures of training: what each shows as a table (``NAME_data``), and its drawing (``NAME``)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from channelscope.comparison import Comparison
from channelscope.errors import UserError
from channelscope.figures import frames
from channelscope.figures.axes import data_legend, grid, in_percent, title
from channelscope.figures.paper import COLOURS, styled

_LABELLED = ("cifs", "eas")  # the kinds of gates that are told the label in training
_BENEATH: dict[str, Any] = {
    "linewidth": 3,
    "alpha": 0.4,
    "markersize": 6,
}  # to be seen where another curve coincides
_TRAINED: dict[str, Any] = {
    "color": "black",
    "linestyle": ":",
    "linewidth": 0.8,
}  # on the training images


def training_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `training` draws: model, epoch -> loss, accuracy (in training), val_natural, val_robust, best."""
    logs = comparison.training
    if logs.empty:
        raise UserError(
            "No model of this comparison has a training log; train them with channelscope to draw one."
        )
    models = frames.models(comparison)
    logs = logs[logs["model"].isin(models)].sort_values(
        "model", key=lambda names: names.map(models.index), kind="stable"
    )
    return logs[
        ["model", "epoch", "loss", "accuracy", "val_natural", "val_robust", "best"]
    ].reset_index(drop=True)


@styled
def training(comparison: Comparison) -> Figure:
    """Draw each model's training loss and its accuracy on the validation images, natural and attacked, per epoch.

    A dotted line is the accuracy on the training images as they were trained on, where gates are given the labels; a
    dashed one marks the epoch whose network was kept. Raises UserError when no model has a training log.
    """
    drawn = training_data(comparison)
    models = list(drawn["model"].unique())
    figure, axes = grid(len(models), 2, 1.05, 1.0, sharex="row")
    for (left, right), model in zip(axes, models, strict=True):
        log = frames.rows(drawn, model=model)
        left.plot(log["epoch"], log["loss"], ".-", color="0.2", markersize=3)
        right.plot(log["epoch"], log["accuracy"], **_TRAINED)
        _by_epoch(right, log, natural="val_natural", adversarial="val_robust")
        _epochs(log, left, right)
        left.set_title(frames.short(model, 14), loc="left", weight="bold")
        left.set_ylabel("training loss")
        right.set_ylim(0, 1)
        in_percent(right, "accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    title(figure, "Training (dashed: the epoch that was kept)")
    gates = [
        gate
        for described in comparison.meta["models"].values()
        for gate in described.get("gates") or ()
    ]
    words = "training images, as trained on"
    if any(gate.get("kind") in _LABELLED for gate in gates):
        words += " (gates told the label)"
    note, trained = (
        "natural, adversarial: validation images",
        Line2D([], [], label=words, **_TRAINED),
    )
    data_legend(figure, frames.training_attack(comparison), "-", trained, note=note)
    return figure


def _by_epoch(
    ax: Axes, log: pd.DataFrame, look: Mapping[str, Any] = MappingProxyType({}), **columns: str
) -> None:
    """Draw a column of a log for each kind of data, natural as `look` says; epochs not measured are left out."""
    for data, column in columns.items():
        measured = log.dropna(subset=[column])
        drawn = {"markersize": 3, **(look if data == "natural" else {})}
        ax.plot(
            measured["epoch"], measured[column], ".-", color=COLOURS[data], clip_on=False, **drawn
        )


def _epochs(log: pd.DataFrame, *axes: Axes) -> None:
    """Number the epochs and mark the one that was kept."""
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        for epoch in log.loc[log["best"].astype(bool), "epoch"]:
            ax.axvline(epoch, color="0.4", linestyle="--", linewidth=0.7)


def gates_data(comparison: Comparison) -> pd.DataFrame:
    """Give what `gates` draws: model, layer, epoch -> accuracy of the probe, share of the mask, best.

    Both twice: probe_natural, probe_robust; mask_natural, mask_adversarial. `best` marks the epoch that was kept.
    """
    if comparison.gates.empty:
        raise UserError(
            "No model of this comparison has a log of CIFS gates; train one with channelscope to draw it."
        )
    trained = comparison.training
    kept = pd.MultiIndex.from_frame(trained.loc[trained["best"].astype(bool), ["model", "epoch"]])
    columns = [
        "model",
        "layer",
        "epoch",
        "probe_natural",
        "probe_robust",
        "mask_natural",
        "mask_adversarial",
    ]
    logs = comparison.gates[columns]
    return logs.assign(best=pd.MultiIndex.from_frame(logs[["model", "epoch"]]).isin(kept))


@styled
def gates(comparison: Comparison) -> Figure:
    """Draw, per epoch, each CIFS gate's probe accuracy and the share of the channels that its mask lets through.

    A row for each model and gated layer, measured on the natural and the attacked validation images; the share is that
    of ``selection.mask_share``. A dashed line marks the epoch whose network was kept. Raises UserError when no model
    has a log of such gates.
    """
    drawn = gates_data(comparison)
    panels = drawn[["model", "layer"]].drop_duplicates().to_numpy().tolist()
    figure, axes = grid(len(panels), 2, 1.15, 1.12, sharex="row")
    for (left, right), (model, layer) in zip(axes, panels, strict=True):
        log = frames.rows(drawn, model=model, layer=layer)
        _by_epoch(left, log, _BENEATH, natural="probe_natural", adversarial="probe_robust")
        _by_epoch(right, log, _BENEATH, natural="mask_natural", adversarial="mask_adversarial")
        _epochs(log, left, right)
        left.set_title(
            f"{frames.short(model, 16)}\n{frames.short_layer(layer)}", loc="left", weight="bold"
        )
        for ax, label in ((left, "probe's\naccuracy"), (right, "effective\nchannels")):
            ax.set_ylim(0, 1)
            in_percent(ax, label)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    title(
        figure,
        "Gates in training: is the probe right, how many channels pass? (dashed: the epoch kept)",
    )
    note = (
        "on validation images; a gate's probe is a small classifier, by whose guess the gate lets channels pass; "
        "effective channels: participation ratio of its mask's factors (all channels alike: 100 %, one of N alone: 1/N)"
    )
    natural = Line2D([], [], color=COLOURS["natural"], marker=".", **_BENEATH)
    data_legend(figure, frames.training_attack(comparison), "-", note=note, natural=natural)
    return figure
