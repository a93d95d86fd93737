"""Masks of gated models: their mean over each class's images, and how much of them is in effect."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Subject, Table, register
from channelscope.errors import UserError
from channelscope.figures.axes import (
    add_data_legend,
    add_legend,
    add_title,
    label_percent,
    list_bottom,
    list_left,
    make_panels,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    classes_with_images,
    describe_attack,
    describe_each,
    describe_level,
    error_bars,
    format_percent,
    list_groups,
    require_rows,
    select_rows,
    shorten,
    shorten_layer,
)
from channelscope.statistics.channels import mean_by_class, rows_by_class, weighted_means
from channelscope.statistics.intervals import estimate_columns
from channelscope.statistics.measures import mask_share

if TYPE_CHECKING:
    from channelscope.result import Result

_ALL_IMAGES = "all images"
_NEGLIGIBLE = 0.01  # of a mask's largest factor: channels below it for every class are not drawn


def compute_masks(study: Study) -> dict[str, Any]:
    """Compute the mean mask by class, and the share of it in effect, of gates told no label.

    An image's share, ``measures.mask_share``, is an entropy of its mask, in (0, 1] whatever the
    number of channels; its mean has a bootstrap interval over the images.
    """
    groups = {}
    spread: list[dict[str, Any]] = []
    for model, data in product(study.models, ("natural", "adversarial")):
        for gate in study.gates(model):
            masks = study.masks(model, gate, data)
            mean = mean_by_class(masks, study.labels, len(study.classes))
            groups[model, gate, data] = {"mask": mean}
            where = {"model": model, "layer": gate, "data": data}
            spread += [where | row for row in _estimate_share(study, masks)]
    return {"masks": groups, "spread": spread}


def _estimate_share(study: Study, masks: Float[ndarray, "n c"]) -> Iterator[dict[str, Any]]:
    """Estimate the mean share of the mask in effect, over all images and by class."""
    share = mask_share(masks)[:, None].astype(float)
    by_class = rows_by_class(study.labels, len(study.classes))
    means = [weighted_means(share, study.weights)]
    means += [weighted_means(share[rows], study.weights[rows]) for rows in by_class]
    estimates = estimate_columns(np.hstack(means), study.settings["level"], (0.0, 1.0))
    for name, value, low, high in zip(("all", *study.classes), *estimates, strict=True):
        yield {"class": name, "value": value, "low": low, "high": high}


def by_gate(result: "Result") -> Iterator[Subject]:
    """A figure for each gate; each model's last one before all."""
    gates = _list_gates(result)
    last = dict(gates)
    for model, gate in gates:
        yield Subject({"model": model, "gate": gate}, main=last[model] == gate)


def _list_gates(result: "Result") -> list[tuple[str, str]]:
    """Return the model and layer of each gate, in order."""
    return list(dict.fromkeys((model, gate) for model, gate, _ in list_groups(result, "masks")))


def masks_data(result: "Result", model: str, gate: str) -> pd.DataFrame:
    """Return what ``draw_masks`` draws, of a gate (the layer where it is).

    Columns: model, layer, data, class, place on the axis, channel, shown -> mask. Channels are
    sorted by the class whose natural images they are let through most for, then by that mask. Those
    whose factors are negligible for every class, below 1 % of the largest one, come last and are
    not ``shown``. Classes without images are left out, and above 24 classes all but the 12 most and
    the 12 least robust ones.

    Raises:
        UserError: for an unknown gate.
    """
    gates = _list_gates(result)
    if (model, gate) not in gates:
        there = "; ".join(", ".join(known) for known in gates)
        choice = f" Choose from {there}." if there else ""
        raise UserError(f"No gate {gate!r} of {model!r} here.{choice}")
    names = classes_with_images(result)
    places = [result.meta["data"]["classes"].index(name) for name in names]
    masks = {data: result.array("masks", "mask", model, gate, data)[places] for data in COLOURS}
    natural = masks["natural"]
    largest = np.abs(list(masks.values())).max((0, 1))
    shown = largest >= _NEGLIGIBLE * largest.max()
    order = np.lexsort((-natural.max(0), natural.argmax(0), ~shown))
    parts = []
    for data, (k, name) in product(COLOURS, enumerate(names)):
        columns = {"channel": order, "shown": shown[order], "mask": masks[data][k][order]}
        part = pd.DataFrame({"place": range(1, 1 + len(order)), **columns})
        parts.append(part.assign(**{"data": data, "class": name}))
    drawn = pd.concat(parts, ignore_index=True).assign(model=model, layer=gate)
    return drawn[["model", "layer", "data", "class", "place", "channel", "shown", "mask"]]


@styled
def draw_masks(result: "Result", model: str, gate: str) -> Figure:
    """Draw a gate's mean mask by class (rows) and channel (columns), natural and adversarial.

    The channels have the same order in both panels, that of ``masks_data``; so do the colours.
    Channels whose factors are negligible are left out, which the figure says. Of a gate of CAS a
    mask is its classifier's weights for the class that it answers: its class-wise weights.
    """
    drawn = masks_data(result, model, gate)
    hidden = int(drawn.loc[~drawn["shown"], "channel"].nunique())
    drawn = drawn[drawn["shown"]]
    names = list(drawn["class"].unique())
    rows = len(names)
    figure, axes = make_panels(
        2, 1, 0.25 + 0.105 * rows, across=2.6, least=0.2 + 0.1 * rows, sharex="all", sharey="all"
    )
    low = min(0.0, drawn["mask"].min())
    high = max(0.0, drawn["mask"].max())
    if low < 0:
        high = max(-low, high)
        low = -high
    look: dict[str, Any] = {"cmap": "RdBu_r" if low < 0 else "Greys", "vmin": low, "vmax": high}
    for ax, data in zip(axes[:, 0], COLOURS, strict=True):
        cells = select_rows(drawn, data=data)["mask"].to_numpy().reshape(len(names), -1)
        edges = np.arange(cells.shape[1] + 1) + 0.5
        mesh = ax.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, cells, **look)
        ax.set_yticks(range(len(names)), [shorten(name, 12) for name in names])
        described = data if data == "natural" else f"{data} ({describe_attack(result)})"
        ax.set_title(f"{described} images", loc="left", color=COLOURS[data])
    axes[0, 0].invert_yaxis()
    for ax in list_bottom(axes):
        ax.set_xlabel("channels, by the class they pass for most")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    note = "mean over the images of each class (true class)"
    if hidden:
        others = f"the other {hidden} channels" if hidden > 1 else "one more channel"
        note += f"; {others}: below {_NEGLIGIBLE:.0%} of the largest factor"
    add_legend(figure, note=note)
    bar = figure.colorbar(mesh, ax=axes[:, 0], aspect=30, pad=0.01)
    bar.set_label("the channel is multiplied by")
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    where = f"{shorten(model, 16)}, gate at {shorten_layer(gate)}"
    add_title(figure, f"What the gate's mask lets through, by class: {where}")
    return figure


def describe_masks(drawn: pd.DataFrame) -> str:
    """Say between which values the factors of a mask lie, and on how many channels they are."""

    def describe(rows: pd.DataFrame) -> str:
        means = rows.groupby("channel", sort=False)["mask"].mean().abs()
        half = int((means.sort_values(ascending=False).cumsum() < 0.5 * means.sum()).sum()) + 1
        span = f"factors from {rows['mask'].min():.3g} to {rows['mask'].max():.3g}"
        return f"{span}, half of their sum on {half} of {len(means)} channels"

    return describe_each(drawn, ["data"], describe)


def mask_share_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_mask_share`` draws.

    Columns: model, layer, class (all images last), data -> value, low, high.

    Raises:
        UserError: where no model has gates.
    """
    require_rows(result.spread, "No model here has gates with masks: compare one of CIFS or CAS.")
    names = [*classes_with_images(result), "all"]
    spread = result.spread[result.spread["class"].isin(names)].copy()
    spread["order"] = spread["class"].map(names.index)
    spread["class"] = spread["class"].replace("all", _ALL_IMAGES)
    gates = spread[["model", "layer"]].drop_duplicates()
    parts = []
    for model, layer in gates.itertuples(index=False, name=None):
        for data in COLOURS:
            rows = select_rows(spread, model=model, layer=layer, data=data)
            parts.append(rows.sort_values("order"))
    columns = ["model", "layer", "class", "data", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_mask_share(result: "Result") -> Figure:
    """Draw how much of each gate's mask is in effect, by class, a panel for each gate."""
    drawn = mask_share_data(result)
    panels = list(drawn.groupby(["model", "layer"], sort=False))
    names = list(drawn["class"].unique())
    below = 0.1 + 0.055 * max(len(shorten(name)) for name in names)
    across = max(1.35, 0.12 * len(names))
    figure, axes = make_panels(
        len(panels), 1, 1.0, below, across=across, sharex="all", sharey="all"
    )
    places = np.arange(len(names))
    for ax, ((model, layer), rows) in zip(axes[:, 0], panels, strict=True):
        for data, beside in (("natural", -0.15), ("adversarial", 0.15)):
            value, reach = error_bars(select_rows(rows, data=data))
            look: dict[str, Any] = {"fmt": "o", "markersize": 3, "elinewidth": 0.8}
            ax.errorbar(places + beside, value, reach, color=COLOURS[data], **look)
        ax.axvline(len(names) - 1.5, color="0.8", linewidth=0.6)
        heading = f"{shorten(str(model), 16)}\n{shorten_layer(str(layer), 14)}"
        ax.set_title(heading, loc="left", weight="bold")
        over_all = select_rows(rows, **{"class": _ALL_IMAGES, "data": "natural"})["value"]
        ax.set_title(format_percent(over_all.iloc[0], 0), loc="right")
        label_percent(ax, "")
    axes[0, 0].set_ylim(0, 1.05)
    axes[0, 0].yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    for ax in list_left(axes):
        ax.set_ylabel("channels (%)")
    for ax in list_bottom(axes):
        ax.set_xticks(places, [*map(shorten, names)], rotation=90)
    add_title(figure, "How many of its layer's channels does each gate let pass?")
    note = (
        "a panel: a gate, at a layer of a model, and its share over all natural images; effective "
        "channels: participation ratio of the mask's factors (all alike: 100 %, one of N alone: "
        f"1/N), by true class; bars: {describe_level(result)}"
    )
    add_data_legend(figure, describe_attack(result), note=note)
    return figure


def describe_mask_share(drawn: pd.DataFrame) -> str:
    """Say which share of each mask is in effect, over all images."""

    def describe(rows: pd.DataFrame) -> str:
        share = rows.groupby("data").tail(1).set_index("data")["value"]
        return (
            f"{format_percent(share['natural'])} on natural images, "
            f"{format_percent(share['adversarial'])} on adversarial ones"
        )

    return describe_each(drawn, ["model", "layer"], describe)


def check_masks(result: "Result") -> None:
    """Raise ValueError where masks are missing: of one kind of data, or of a class with images."""
    groups = list_groups(result, "masks")
    for model, gate in _list_gates(result):
        if {data for *key, data in groups if key == [model, gate]} != set(COLOURS):
            raise ValueError(f"masks lacks data of {gate} of {model}")
        masks = [result.array("masks", "mask", model, gate, data) for data in COLOURS]
        blank = np.isnan(masks)
        of_class = blank.all((0, 2))
        if of_class.all() or (blank.any((0, 2)) != of_class).any():
            raise ValueError(f"masks lacks masks of {gate} of {model}")


register(
    Analysis(
        name="masks",
        help="what the masks of gates let through, by class, and how much of them is in effect",
        tables={
            "masks": Table(
                words=("model", "layer", "data"),
                numbers=("mask",),
                help="layer: the gated one; mask: mean over the class's images, the gate being "
                "told no label",
                by_channel=True,
            ),
            "spread": Table(
                words=("model", "layer", "data", "class"),
                numbers=("value", "low", "high"),
                help='layer: the gated one; class: "all" and each; value: share of the mask that '
                "is in effect (participation ratio of its factors, in (0, 1]), mean over images",
            ),
        },
        compute=compute_masks,
        check=check_masks,
        plots=(
            Plot(
                name="masks",
                draw=draw_masks,
                data=masks_data,
                alt_text=describe_masks,
                caption="Mean mask of {model}'s gate at {gate} over the images of each class, the "
                "gate being told nothing: the factor by which each channel is multiplied before "
                "the rest of the network sees it. Channels have the same order above and below: by "
                "the class for whose natural images they are let through most, then by how much. "
                "Channels whose factors are below 1 % of the largest one, for every class and "
                "above as below, are left out here, not in the table. {adversarial}",
                section="gates",
                table="masks",
                needs=("robustness",),
                subjects=by_gate,
            ),
            Plot(
                name="mask-share",
                draw=draw_mask_share,
                data=mask_share_data,
                alt_text=describe_mask_share,
                caption="Share of a layer's C channels that each gate's mask lets through, mean "
                "over the images of each class: 100 % means that all channels pass alike, 1/C that "
                "a single one does (participation ratio of the mask's factors, which is the "
                "exponential of their Rényi entropy of order 2, divided by C). {adversarial} "
                "{bars}",
                section="gates",
                main=False,
                table="spread",
                needs=("robustness",),
            ),
        ),
    )
)
