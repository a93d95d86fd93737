"""Training: learning curves of the models that have a log, and of their CIFS gates."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.errors import UserError
from channelscope.figures.axes import (
    add_data_legend,
    add_title,
    label_percent,
    list_bottom,
    make_panels,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    describe_each,
    describe_training_attack,
    format_percent,
    select_rows,
    shorten,
    shorten_layer,
)

if TYPE_CHECKING:
    from channelscope.result import Result

# What a log has of the network.
LOGGED = ("epoch", "loss", "accuracy", "lr", "val_natural", "val_robust", "seconds")
# What a log has of each CIFS gate, as columns LAYER.NAME.
GATE_COLUMNS = (
    "probe_natural",
    "probe_robust",
    "mask_natural",
    "mask_adversarial",
    "mask_cosine",
)
TABLES = {
    "training": Table(
        words=("model",),
        numbers=("best", *LOGGED),
        help=(
            "the training log by epoch: loss and accuracy on the training images as trained on, "
            "accuracy on natural and attacked validation images; best is 1 for the epoch whose "
            "network was kept, else 0; empty where no log is known"
        ),
    ),
    "gates": Table(
        words=("model", "layer"),
        numbers=("epoch", *GATE_COLUMNS),
        help=(
            "of each gate of CIFS by epoch, on natural and attacked validation images: accuracy of "
            "the probe, share of the mask in effect (0 to 1, see ``measures.mask_share``) and "
            "cosine of an image's natural and adversarial mask; empty where no log is known"
        ),
    ),
}
_TELL_LABEL = ("cifs", "eas")  # the kinds of gates that are told the label in training
# To be seen where another curve coincides.
_BENEATH: dict[str, Any] = {"linewidth": 3, "alpha": 0.4, "markersize": 6}
# On the training images.
_TRAINED: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 0.8}


def compute_training(study: Study) -> dict[str, Any]:
    """Return the rows of the models' training logs, and those of each gate."""
    rows: dict[str, list[dict[str, Any]]] = {"training": [], "gates": []}
    for model in study.models:
        log = study.history(model)
        rows["training"] += [
            {"model": model, "best": int(row["best"])}
            | {name: row.get(name, float("nan")) for name in LOGGED}
            for row in log
        ]
        rows["gates"] += _gate_rows(model, log)
    return rows


def _gate_rows(model: str, log: Any) -> Iterator[dict[str, Any]]:
    names = [name.rpartition(".") for name in (log[0] if log else ())]
    for layer in dict.fromkeys(layer for layer, _, name in names if name in GATE_COLUMNS):
        for row in log:
            columns = {name: row[f"{layer}.{name}"] for name in GATE_COLUMNS}
            yield {"model": model, "layer": layer, "epoch": row["epoch"]} | columns


def training_data(result: "Result") -> pd.DataFrame:
    """Return model, epoch -> loss, accuracy (in training), val_natural, val_robust, best.

    Raises:
        UserError: where no model has a training log.
    """
    if result.training.empty:
        raise UserError(
            "No model of this comparison has a training log; train them with channelscope to draw "
            "one."
        )
    columns = ["model", "epoch", "loss", "accuracy", "val_natural", "val_robust", "best"]
    table: pd.DataFrame = result.training[columns]
    return table


@styled
def draw_training(result: "Result") -> Figure:
    """Draw each model's training loss, and its accuracy on the validation images, per epoch.

    A dotted line is the accuracy on the training images as they were trained on, where gates are
    told the labels; a dashed one marks the epoch whose network was kept.
    """
    data = training_data(result)
    models = list(data["model"].unique())
    figure, axes = make_panels(len(models), 2, 0.9, sharex="row")
    for (left, right), model in zip(axes, models, strict=True):
        log = select_rows(data, model=model)
        left.plot(log["epoch"], log["loss"], ".-", color="0.2", markersize=3)
        right.plot(log["epoch"], log["accuracy"], **_TRAINED)
        _draw_curves(right, log, {"natural": "val_natural", "adversarial": "val_robust"})
        _mark_epochs(log, left, right)
        left.set_title(shorten(model, 14), loc="left", weight="bold")
        left.set_title("loss", loc="right")
        right.set_ylim(0, 1)
        label_percent(right, "")
        right.set_title("accuracy (%)", loc="right")
    for ax in list_bottom(axes):
        ax.set_xlabel("epoch")
    add_title(figure, "Training (dashed: the epoch that was kept)")
    words = "training images, as trained on"
    gates = [known.get("gates") or () for known in result.meta["models"].values()]
    if any(gate.get("kind") in _TELL_LABEL for of_model in gates for gate in of_model):
        words += " (gates told the label)"
    dotted = Line2D([], [], label=words, **_TRAINED)
    note = "loss: in training; natural, adversarial: accuracy on validation images"
    add_data_legend(figure, describe_training_attack(result), "-", dotted, note=note)
    return figure


def _draw_curves(
    ax: Axes,
    log: pd.DataFrame,
    columns: Mapping[str, str],
    natural_look: Mapping[str, Any] | None = None,
) -> None:
    """Draw a column of a log for each kind of data; epochs not measured are left out."""
    for data, column in columns.items():
        measured = log.dropna(subset=[column])
        if measured.empty:  # as of a training without validation
            continue
        look: dict[str, Any] = {"color": COLOURS[data], "markersize": 3, "clip_on": False}
        if data == "natural":
            look |= natural_look or {}
        ax.plot(measured["epoch"], measured[column], ".-", **look)


def _mark_epochs(log: pd.DataFrame, *axes: Axes) -> None:
    """Number the epochs, and mark the one that was kept."""
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        for epoch in log.loc[log["best"] == 1, "epoch"]:
            ax.axvline(epoch, color="0.4", linestyle="--", linewidth=0.7)


def describe_training(data: pd.DataFrame) -> str:
    """Say where learning curves end, and which epoch was kept."""

    def describe(rows: pd.DataFrame) -> str:
        natural, robust = (_format_last(rows[name]) for name in ("val_natural", "val_robust"))
        best = ", ".join(f"{epoch:g}" for epoch in rows.loc[rows["best"] == 1, "epoch"])
        ends = f"ends at {natural} natural and {robust} attacked accuracy"
        return f"{ends}, epoch {best or '–'} was kept"

    return describe_each(data, ["model"], describe)


def _format_last(column: pd.Series) -> str:
    measured = column.dropna()
    return format_percent(measured.iloc[-1]) if len(measured) else "–"


# ------------------------------------------------------------------------------ gates by epoch


def gates_data(result: "Result") -> pd.DataFrame:
    """Return model, layer, epoch -> accuracy of the probe, share of the mask, best.

    The first two twice: probe_natural, probe_robust; mask_natural, mask_adversarial.

    Raises:
        UserError: where no model has a log of CIFS gates.
    """
    if result.gates.empty:
        raise UserError(
            "No model of this comparison has a log of CIFS gates; train one with channelscope to "
            "draw it."
        )
    log = result.gates[["model", "layer", "epoch", *GATE_COLUMNS[:-1]]]
    best = result.training[["model", "epoch", "best"]]
    return log.merge(best, how="left", on=["model", "epoch"])


@styled
def draw_gates(result: "Result") -> Figure:
    """Draw, per epoch, each CIFS gate's probe accuracy and the share of channels it lets through.

    A row for each model and gated layer; a dashed line marks the epoch whose network was kept.
    """
    data = gates_data(result)
    panels = list(data.groupby(["model", "layer"], sort=False))
    figure, axes = make_panels(len(panels), 2, 0.95, sharex="row")
    for row, ((model, layer), log) in zip(axes, panels, strict=True):
        probe = {"natural": "probe_natural", "adversarial": "probe_robust"}
        mask = {"natural": "mask_natural", "adversarial": "mask_adversarial"}
        labels = {"probe's accuracy (%)": probe, "effective channels (%)": mask}
        for ax, (label, columns) in zip(row, labels.items(), strict=True):
            _draw_curves(ax, log, columns, _BENEATH)
            _mark_epochs(log, ax)
            ax.set_ylim(0, 1)
            label_percent(ax, "")
            ax.set_title(label, loc="right", size=current_style().small)
        name = f"{shorten(str(model), 10)}\n{shorten_layer(str(layer), 10)}"
        row[0].set_ylabel(name, weight="bold")
    for ax in list_bottom(axes):
        ax.set_xlabel("epoch")
    question = "is the probe right, how many channels pass?"
    add_title(figure, f"Gates in training: {question} (dashed: the epoch kept)")
    note = (
        "on validation images; a gate's probe is a small classifier, by whose guess the gate lets "
        "channels pass; effective channels: participation ratio of its mask's factors (all "
        "channels alike: 100 %, one of N alone: 1/N)"
    )
    natural = Line2D([], [], color=COLOURS["natural"], marker=".", **_BENEATH)
    attack = describe_training_attack(result)
    add_data_legend(figure, attack, "-", note=note, natural=natural)
    return figure


def describe_gates(data: pd.DataFrame) -> str:
    """Say where the probe and the mask of each gate end."""

    def describe(rows: pd.DataFrame) -> str:
        last = {name: _format_last(rows[name]) for name in GATE_COLUMNS[:-1]}
        return (
            f"in the end the probe is right on {last['probe_natural']} of the natural and "
            f"{last['probe_robust']} of the attacked images, and {last['mask_natural']} and "
            f"{last['mask_adversarial']} of the channels pass"
        )

    return describe_each(data, ["model", "layer"], describe)


register(
    Analysis(
        name="training",
        help="learning curves of the models and of their gates",
        tables=TABLES,
        compute=compute_training,
        plots=(
            Plot(
                name="training",
                draw=draw_training,
                data=training_data,
                alt_text=describe_training,
                caption=(
                    "Training loss, and accuracy on the natural and the attacked validation "
                    "images, per epoch. Dotted: accuracy on the training images, as the network "
                    "was trained on them. In gated networks the gates are given the labels there, "
                    "so a gap to the validation images shows how much of the answer came with the "
                    "label. The dashed line marks the epoch whose network was kept."
                ),
                section="training",
                order=10,
                table="training",
            ),
            Plot(
                name="gates",
                draw=draw_gates,
                data=gates_data,
                alt_text=describe_gates,
                caption=(
                    "The gates of each model per epoch, on the natural and the attacked validation "
                    "images; a row for each gated layer; the natural curve is the wide one, to "
                    "show where both coincide. A gate's probe is a small classifier that guesses "
                    "the class from the features of that layer alone. From the guess comes the "
                    "gate's mask: a factor for each channel, large where the channel speaks for "
                    "the classes that the probe finds likely, by which the channel is multiplied "
                    "before the rest of the network sees it. Left: accuracy of the probe; where it "
                    "is wrong, the mask favours channels of wrong classes. Right: the share of the "
                    "layer's C channels that the mask lets through, mean over the images "
                    "(participation ratio of its factors: 100 % means that all channels pass "
                    "alike, 1/C that a single one does). The dashed line marks the epoch whose "
                    "network was kept."
                ),
                section="gates",
                order=10,
                main=False,
                table="gates",
            ),
        ),
    )
)
