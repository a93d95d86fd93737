"""The damage account: through which channels an attack gets through, class by class.

The account of an image (``study.account``) adds up to its damage, the fall of the margin of the
label over the wrong answer. Only images that are right as they are and wrong under attack count,
and of these no image whose account does not add up (``bound``). A channel's contribution is

    falls    > 0, and its activation falls: what spoke for the label and is missing
    rises    > 0, and its activation rises: what speaks for the wrong answer
    counter  < 0: it holds against the attack
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    ChannelAccount,
    Masks,
    Plot,
    Study,
    Subject,
    Table,
    register,
)
from channelscope.analyses.subjects import check_layers, list_layers
from channelscope.figures.axes import (
    add_legend,
    add_title,
    label_percent,
    list_bottom,
    make_panels,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    LABELLED,
    choose_layers,
    describe_attack,
    describe_class,
    describe_each,
    describe_layers,
    format_number,
    format_percent,
    measured_layers,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import weighted_means
from channelscope.statistics.intervals import as_columns, estimate, estimate_columns

if TYPE_CHECKING:
    from channelscope.result import Result

ALL = "all"  # of the classes, or of the rivals
FEATURES = "features"  # the part of an account that is the layer's; others are gates' masks
_SHARES = (0.5, 0.9)  # of the damage, for which channels are counted
_BARS = 8  # channels that a waterfall names
_REST = 0.005  # of the damage: less that is not accounted for is not drawn
# The kinds of damage, from what the CIFS paper blames to what holds against the attack.
KINDS = {
    "NR rises": "NR channels that rise",
    "PR rises": "PR channels that rise",
    "PR falls": "PR channels that fall",
    "NR falls": "NR channels that fall",
    "masks": "gates' masks",
    "around": "around the layer",
    "counter": "counter: channels that hold against it",
}
_KIND_COLOURS = dict(
    zip(
        KINDS,
        ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7", "0.7", "#009E73"),
        strict=True,
    )
)


def find_accounted(study: Study, model: str, account: ChannelAccount) -> Bool[ndarray, " n"]:
    """Return the broken images whose account adds up."""
    broken: ndarray = study.damage(model).broken & (account.error <= study.settings["bound"])
    return broken


def split_kinds(
    study: Study, model: str, layer: str, account: ChannelAccount, rows: Bool[ndarray, " n"]
) -> dict[str, Float[ndarray, "m c"]]:
    """Split the contributions of some images' channels: kind -> (m, c), 0 where it is another."""
    contributions = np.asarray(account.channels[rows], np.float64)
    before, after = (
        study.activations(model, layer, data)[rows] for data in ("natural", "adversarial")
    )
    is_negative = study.relevance(model, layer)[rows] < 0
    rises, harms = after > before, contributions > 0
    return {
        "NR rises": np.where(harms & rises & is_negative, contributions, 0),
        "PR rises": np.where(harms & rises & ~is_negative, contributions, 0),
        "PR falls": np.where(harms & ~rises & ~is_negative, contributions, 0),
        "NR falls": np.where(harms & ~rises & is_negative, contributions, 0),
        "counter": np.where(harms, 0, contributions),
    }


def compute_damage(study: Study) -> dict[str, Any]:
    """Compute the ledger of channels, the kinds of damage, its concentration and completeness."""
    tables: dict[str, list[dict[str, Any]]] = {
        "damage": [],
        "completeness": [],
        "kinds": [],
        "concentration": [],
    }
    ledger: dict[tuple[str, ...], dict[str, ndarray]] = {}
    for model in study.models:
        tables["damage"] += _list_damage(study, model)
        for layer, damaged in study.damage(model).layers.items():
            for masks, account in damaged.accounts.items():
                where = {"model": model, "layer": layer, "masks": masks}
                tables["completeness"].append(where | _measure_completeness(study, model, account))
                rows = find_accounted(study, model, account)
                if not rows.any():
                    continue
                tables["kinds"] += [
                    where | row for row in _list_kinds(study, model, layer, account, rows)
                ]
                tables["concentration"] += [
                    where | row for row in _list_concentration(study, account, rows)
                ]
                for part, rival, columns in _make_ledger(study, model, layer, account, rows):
                    ledger[model, layer, masks, part, rival] = columns
    return {**tables, "ledger": ledger}


def _list_classes(study: Study, rows: Bool[ndarray, " n"]) -> Iterator[tuple[str, ndarray]]:
    """Go through all images of some rows, then those of each class that has any."""
    yield ALL, rows
    for k, name in enumerate(study.classes):
        of_class = rows & (study.labels == k)
        if of_class.any():
            yield name, of_class


def _list_damage(study: Study, model: str) -> Iterator[dict[str, Any]]:
    """List how many images are broken, and by how much their margins fall, by class."""
    damage, level = study.damage(model), study.settings["level"]
    natural = study.correct(model)
    for name, rows in _list_classes(study, damage.broken):
        of_class = natural if name == ALL else natural & (study.labels == study.classes.index(name))
        means = weighted_means(damage.amount[rows, None], study.weights[rows])[:, 0]
        margin = float(damage.margin[rows].mean()) if rows.any() else np.nan
        row = {"model": model, "class": name, "correct": of_class.sum(), "broken": rows.sum()}
        amount = estimate(means, level)
        yield row | {"margin": margin} | as_columns(amount, "damage")


def _measure_completeness(study: Study, model: str, account: ChannelAccount) -> dict[str, Any]:
    """Return how well the accounts of the broken images add up, and how many are refused."""
    damage = study.damage(model)
    broken = damage.broken
    error, passing = account.error[broken], account.passing[broken] / damage.amount[broken]
    numbers = {"images": broken.sum(), "refused": (error > study.settings["bound"]).sum()}
    if not broken.any():
        return numbers | dict.fromkeys(("error", "error_max", "passing"), np.nan)
    values = {"error": np.median(error), "error_max": error.max(), "passing": passing.mean()}
    return numbers | {name: float(value) for name, value in values.items()}


def _list_kinds(
    study: Study, model: str, layer: str, account: ChannelAccount, rows: Bool[ndarray, " n"]
) -> Iterator[dict[str, Any]]:
    """List the share of the damage that is of each kind, of all images and by class."""
    shares = measure_kinds(study, model, layer, account, rows)
    for name, of_class in _list_classes(study, rows):
        inside = of_class[rows]
        for kind, values in shares.items():
            replicates = share_replicates(
                values[inside], study.damage(model).amount[of_class], study.weights[of_class]
            )
            share = estimate(replicates, study.settings["level"])
            yield {"class": name, "kind": kind} | as_columns(share, "share")


def measure_kinds(
    study: Study, model: str, layer: str, account: ChannelAccount, rows: Bool[ndarray, " n"]
) -> dict[str, Float[ndarray, " m"]]:
    """Return the damage of each kind, image by image; what is around the layer is the rest of it.

    What an account is short of, which is less than its error, is in no kind.
    """
    kinds = split_kinds(study, model, layer, account, rows)
    sums = {kind: values.sum(1) for kind, values in kinds.items()}
    masks = [np.asarray(mask[rows], np.float64).sum(1) for mask in account.masks.values()]
    sums["masks"] = np.sum([np.zeros(rows.sum()), *masks], axis=0)
    sums["around"] = study.damage(model).amount[rows] - account.passing[rows]
    return {kind: sums[kind] for kind in KINDS}


def share_replicates(
    part: Float[ndarray, " m"], whole: Float[ndarray, " m"], weights: ndarray
) -> Float[ndarray, " r"]:
    """Return the share of a sum over images that another is, in each replicate."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: ndarray = (weights.T @ part) / (weights.T @ whole)
    return shares


def count_channels(contributions: Float[ndarray, "m c"], share: float) -> Float[ndarray, " m"]:
    """Return how many of an image's channels have this share of what harms, the worst first."""
    harms = np.sort(np.clip(contributions, 0, None), axis=1)[:, ::-1]
    reached = harms.cumsum(1) >= share * harms.sum(1, keepdims=True) * (1 - 1e-12)
    counts: ndarray = 1.0 + reached.argmax(1)
    return counts


def _list_concentration(
    study: Study, account: ChannelAccount, rows: Bool[ndarray, " n"]
) -> Iterator[dict[str, Any]]:
    contributions = np.asarray(account.channels[rows], np.float64)
    for share in _SHARES:
        counts = count_channels(contributions, share)
        means = weighted_means(counts[:, None], study.weights[rows])[:, 0]
        mean = estimate(means, study.settings["level"], (1.0, float(contributions.shape[1])))
        yield {"covered": share, "of": contributions.shape[1]} | as_columns(mean, "channels")


def _make_ledger(
    study: Study, model: str, layer: str, account: ChannelAccount, rows: Bool[ndarray, " n"]
) -> Iterator[tuple[str, str, dict[str, Float[ndarray, "k _"]]]]:
    """Yield part, rival and columns of the ledger: of the layer's channels and of gates' masks."""
    damage = study.damage(model)
    rivals = [ALL, *(study.classes if len(study.classes) <= LABELLED else ())]
    kinds = split_kinds(study, model, layer, account, rows)
    falls = kinds["PR falls"] + kinds["NR falls"]
    rises = kinds["PR rises"] + kinds["NR rises"]
    parts: dict[str, Mapping[str, ndarray]] = {
        FEATURES: {
            "damage": falls + rises + kinds["counter"],
            "falls": falls,
            "rises": rises,
            "counter": kinds["counter"],
            "nr": (study.relevance(model, layer)[rows] < 0).astype(float),
        }
    }
    for gate, mask in account.masks.items():
        contributions = np.asarray(mask[rows], np.float64)
        parts[f"mask of {gate}"] = {
            "damage": contributions,
            "counter": np.minimum(contributions, 0),
        }
    for (part, values), rival in product(parts.items(), rivals):
        chosen = np.ones(rows.sum(), bool)
        if rival != ALL:
            chosen = damage.rivals[rows] == study.classes.index(rival)
        if chosen.any():
            yield part, rival, _average(study, values, damage.amount[rows], rows, chosen)


def _average(
    study: Study,
    values: Mapping[str, Float[ndarray, "m c"]],
    amount: Float[ndarray, " m"],
    rows: Bool[ndarray, " n"],
    chosen: Bool[ndarray, " m"],
) -> dict[str, Float[ndarray, "k _"]]:
    """Average contributions over the chosen images of each class; NaN for a class without any."""
    shape = len(study.classes), values["damage"].shape[1]
    names = ("damage", "low", "high", "share", "falls", "rises", "counter", "nr")
    columns = {name: np.full(shape, np.nan) for name in names}
    columns["count"] = np.zeros((shape[0], 1))
    labels, weights = study.labels[rows], study.weights[rows]
    for k in range(shape[0]):
        images = chosen & (labels == k)
        if not images.any():
            continue
        means = weighted_means(values["damage"][images], weights[images])
        columns["damage"][k], columns["low"][k], columns["high"][k] = estimate_columns(
            means, study.settings["level"]
        )
        columns["share"][k] = columns["damage"][k] / amount[images].mean()
        columns["count"][k] = images.sum()
        for name in values.keys() - {"damage"}:
            columns[name][k] = values[name][images].mean(0)
    return columns


# ------------------------------------------------------------------------------------ figures


def choose_masks(result: "Result", model: str, layer: str) -> Masks:
    """Return which account figures show: that with masks held, where gates are behind the layer."""
    rows = result.select("completeness", model=model, layer=layer)
    return "held" if "held" in set(rows["masks"]) else "attached"


def by_class_and_layer(result: "Result") -> Iterator[Subject]:
    """A figure for each layer and class; unasked, of the last layers and the most broken class."""
    broken = result.damage.groupby("class", sort=False)["broken"].sum()
    classes = broken.drop(ALL).sort_values(ascending=False, kind="stable").index
    last = list_layers(result, last=True)
    for layer in list_layers(result):
        for name in classes:
            yield Subject(
                {"class_name": name, "layer": layer}, main=layer in last and name == classes[0]
            )
        yield Subject({"class_name": None, "layer": layer}, main=False)


def waterfall_data(
    result: "Result", class_name: str | None = None, layer: str | None = None
) -> pd.DataFrame:
    """Return what ``draw_waterfall`` draws: model, layer, class, bar -> start, damage.

    The first bar is the natural margin; then follow the channels that do most damage, all others
    together, gates' masks, and what goes around the layer or is not accounted for, unless that is a
    trifle; the last is the margin under attack.
    """
    rows = []
    for model, name in choose_layers(result, layer).items():
        total = result.select("damage", model=model, **{"class": class_name or ALL})
        steps = _list_steps(result, model, name, class_name)
        if total.empty or not steps:
            continue
        margin = float(total["margin"].iloc[0])
        rest = float(total["damage"].iloc[0]) - sum(amount for _, amount in steps)
        if abs(rest) > _REST * float(total["damage"].iloc[0]):
            steps.append(("rest", rest))
        place = {"model": model, "layer": name, "class": class_name or ALL}
        rows.append(place | {"bar": "natural", "start": 0.0, "damage": -margin})
        for bar, amount in steps:
            rows.append(place | {"bar": bar, "start": margin, "damage": amount})
            margin -= amount
        rows.append(place | {"bar": "attacked", "start": 0.0, "damage": -margin})
    columns = ["model", "layer", "class", "bar", "start", "damage"]
    return pd.DataFrame(rows, columns=columns)


def _list_steps(
    result: "Result", model: str, layer: str, class_name: str | None
) -> list[tuple[str, float]]:
    """List the worst channels, the others and the masks, each with its mean damage."""
    masks = choose_masks(result, model, layer)
    steps: list[tuple[str, float]] = []
    tables: Any = result.tables["ledger"]
    classes = result.meta["data"]["classes"]
    for group in tables.groups:
        if group[:3] != (model, layer, masks) or group[4] != ALL:
            continue
        damage = result.array("ledger", "damage", *group)
        count = result.array("ledger", "count", *group)[:, :1]
        if class_name is None:
            mean = np.nansum(damage * count, 0) / max(count.sum(), 1)
        else:
            mean = damage[classes.index(class_name)]
        if np.isnan(mean).all():
            continue
        if group[3] != FEATURES:
            steps.append((group[3], float(mean.sum())))
            continue
        order = np.argsort(-mean, kind="stable")
        named = order[: _BARS if len(order) > _BARS + 1 else len(order)]
        steps += [(f"channel {c}", float(mean[c])) for c in named]
        if len(named) < len(order):
            others = float(mean[order[len(named) :]].sum())
            steps.append((f"{len(order) - len(named)} others", others))
    return steps


@styled
def draw_waterfall(
    result: "Result", class_name: str | None = None, layer: str | None = None
) -> Figure:
    """Draw how an attack brings the margin down, channel by channel, a panel a model.

    Args:
        result: of damage.
        class_name: one of the classes; None for the mean over all broken images.
        layer: one of the layers; None for the last of each model.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = waterfall_data(result, class_name, layer)
    layers = dict(zip(drawn["model"], drawn["layer"], strict=True))
    figure, axes = make_panels(len(layers) or 1, 1, 1.3, 0.1, across=2.4)
    for ax, model in zip(axes[:, 0], layers, strict=False):
        _draw_bars(ax, select_rows(drawn, model=model))
        ax.set_title(shorten(model, 24), loc="left", weight="bold")
    whose = "all classes" if class_name is None else describe_class(class_name)
    add_title(figure, f"Damage by channel of {describe_layers(layers)}, {whose}")
    note = (
        f"{describe_attack(result)}; mean over the images that it breaks. Left: margin of the "
        "label over the wrong answer on natural images; then what each channel takes from it "
        "(orange) or gives (blue); right: the margin under attack"
    )
    handles = [
        Patch(color=COLOURS["adversarial"], label="lowers the margin"),
        Patch(color=COLOURS["natural"], label="raises it"),
    ]
    add_legend(figure, handles, note)
    return figure


def _draw_bars(ax: Axes, rows: pd.DataFrame) -> None:
    places = np.arange(len(rows))
    ends = rows["start"] - rows["damage"]
    colours = np.where(rows["damage"] > 0, COLOURS["adversarial"], COLOURS["natural"]).astype(
        object
    )
    colours[[0, -1]] = "0.4"
    ax.bar(places, ends - rows["start"], 0.8, rows["start"], color=list(colours))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.margins(y=0.08)
    names = [bar.removeprefix("channel ") for bar in rows["bar"]]
    ax.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel("margin")


def describe_waterfall(drawn: pd.DataFrame) -> str:
    """Say from where to where the margin falls, and through which channels most."""

    def describe(rows: pd.DataFrame) -> str:
        start, end = -rows["damage"].iloc[0], -rows["damage"].iloc[-1]
        steps = rows.iloc[1:-1].sort_values("damage", ascending=False)
        worst = ", ".join(
            f"{bar} {format_number(damage)}"
            for bar, damage in steps[["bar", "damage"]].head(3).to_numpy()
        )
        ends = f"{format_number(start)} to {format_number(end)}"
        return f"the margin falls from {ends}, most through {worst}"

    return describe_each(drawn, ["model"], describe) if len(drawn) else "No image is broken."


def kinds_data(result: "Result") -> pd.DataFrame:
    """Return what ``draw_kinds`` draws: model, layer, kind -> share, low, high, of all classes."""
    parts = [
        result.select(
            "kinds",
            **{
                "model": model,
                "layer": layer,
                "masks": choose_masks(result, model, layer),
                "class": ALL,
            },
        )
        for model, layers in measured_layers(result).items()
        for layer in layers
    ]
    columns = ["model", "layer", "kind", "share", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_kinds(result: "Result") -> Figure:
    """Draw through which kinds of channels the damage is done, layer by layer, a panel a model."""
    drawn = kinds_data(result)
    models = list(dict.fromkeys(drawn["model"]))
    layers = {
        model: list(dict.fromkeys(select_rows(drawn, model=model)["layer"])) for model in models
    }
    most = max(map(len, layers.values()), default=1)
    height = 0.2 * most + 0.25
    figure, axes = make_panels(len(models) or 1, 1, height, across=2.4, sharex="all", least=height)
    for ax, model in zip(axes[:, 0], models, strict=False):
        _draw_stacks(ax, select_rows(drawn, model=model), layers[model])
        ax.set_title(shorten(model, 24), loc="left", weight="bold")
    for ax in list_bottom(axes):
        label_percent(ax, "share of the damage", "x")
    add_title(figure, "What the damage is made of, layer by layer")
    shown = [kind for kind in KINDS if (select_rows(drawn, kind=kind)["share"].abs() > 1e-3).any()]
    handles = [Patch(color=_KIND_COLOURS[kind], label=KINDS[kind]) for kind in shown]
    note = (
        f"{describe_attack(result)}; NR, PR: negatively (against the class) and positively "
        "relevant (for it); left of 0 what holds against the attack; all adds up to 100 %"
    )
    add_legend(figure, handles, note)
    return figure


def _draw_stacks(ax: Axes, rows: pd.DataFrame, layers: list[str]) -> None:
    for place, layer in enumerate(layers):
        of_layer = select_rows(rows, layer=layer).set_index("kind")["share"]
        ends = {1: 0.0, -1: 0.0}
        for kind, share in of_layer.items():
            side = 1 if share >= 0 else -1
            colour = _KIND_COLOURS[str(kind)]
            ax.barh(place, share, 0.7, ends[side], color=colour)
            ends[side] += share
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(range(len(layers)), [shorten(layer, 14) for layer in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)


def describe_kinds(drawn: pd.DataFrame) -> str:
    """Say which kinds of channels do most of the damage."""

    def describe(rows: pd.DataFrame) -> str:
        harms = rows[rows["share"] > 0].sort_values("share", ascending=False)
        return ", ".join(
            f"{format_percent(share)} through {KINDS[kind]}"
            for share, kind in harms[["share", "kind"]].head(3).to_numpy()
        )

    return (
        describe_each(drawn, ["model", "layer"], describe) if len(drawn) else "No image is broken."
    )


register(
    Analysis(
        name="damage",
        help="through which channels the attack gets through, and of what kind they are",
        kinds=("damage",),
        tables={
            "damage": Table(
                words=("model", "class"),
                numbers=("correct", "broken", "margin", "damage", "low", "high"),
                help="images that are correct, and of these broken by the attack; margin: of the "
                "label over the wrong answer, mean over broken images as they are; damage: by how "
                "much the attack lowers it",
            ),
            "completeness": Table(
                words=("model", "layer", "masks"),
                numbers=("images", "refused", "error", "error_max", "passing"),
                help="images: broken ones; refused: whose account does not add up to their damage "
                "within the bound, and that count in no other table; error: median and largest "
                "completeness error, shares of the damage; passing: share of it that passes the "
                'layer; masks: of gates behind the layer, "attached" (they follow its '
                'features) or "held" (they come back for themselves)',
            ),
            "ledger": Table(
                words=("model", "layer", "masks", "part", "rival"),
                numbers=(
                    *("count", "damage", "low", "high", "share"),
                    *("falls", "rises", "counter", "nr"),
                ),
                help='part: "features", or the mask of a gate; rival: the wrong answer, or "all"; '
                "count: images; damage: of the channel, mean over the images of the class, and its "
                "interval; share: of the class's damage; falls, rises, counter: its parts of each "
                "kind; nr: share of the images on which the channel is negatively relevant",
                by_channel=True,
            ),
            "kinds": Table(
                words=("model", "layer", "masks", "class", "kind"),
                numbers=("share", "low", "high"),
                help="share of the damage that is done by channels that are negatively (NR) or "
                'positively (PR) relevant and fall or rise, "masks" of gates, or "around" the '
                'layer; "counter": what channels hold against it, below 0',
            ),
            "concentration": Table(
                words=("model", "layer", "masks"),
                numbers=("covered", "of", "channels", "low", "high"),
                help="channels: how many of an image's channels cover this share of what lowers "
                "the margin, the worst first, mean over images; of: channels of the layer",
            ),
        },
        compute=compute_damage,
        check=lambda result: check_layers(result, "completeness"),
        plots=(
            Plot(
                name="waterfall",
                draw=draw_waterfall,
                data=waterfall_data,
                alt_text=describe_waterfall,
                caption="How the attack brings the margin of the label over the wrong answer down, "
                "channel by channel: the contributions add up to the damage. Mean over the images "
                "that are right as they are and wrong under attack. {layers} {adversarial}",
                section="network",
                table="damage",
                needs=("ledger", "completeness"),
                subjects=by_class_and_layer,
            ),
            Plot(
                name="kinds",
                draw=draw_kinds,
                data=kinds_data,
                alt_text=describe_kinds,
                caption="What the damage is made of, layer by layer: channels that are negatively "
                "(NR) or positively (PR) relevant to the class and whose activation rises or falls "
                "under attack, gates' masks, and, left of 0, channels that hold against it. "
                "{adversarial}",
                section="network",
                table="kinds",
                needs=("completeness",),
            ),
        ),
    )
)
