"""Channel flow: which channels an attack silences, and which ones it awakens.

A channel is silenced on an image where it is active on the natural image and not on the adversarial
one, and awakened where it is active on the adversarial one alone (see ``channels.active``).
"""

from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import Analysis, Plot, Study, Table, register
from channelscope.analyses.subjects import by_layer
from channelscope.figures.axes import (
    add_legend,
    add_title,
    dot_look,
    list_bottom,
    list_top,
    make_grid,
    make_panels,
    write_above,
    write_in_panel,
)
from channelscope.figures.paper import COLOURS, current_style, styled
from channelscope.figures.words import (
    choose_layers,
    describe_attack,
    describe_class,
    describe_each,
    describe_layers,
    extreme_classes,
    format_percent,
    list_groups,
    measured_layers,
    select_rows,
    shorten,
)
from channelscope.statistics.channels import change_by_class
from channelscope.statistics.significance import correct_fdr, paired_t

if TYPE_CHECKING:
    from channelscope.result import Result

SIGNIFICANT = 0.05  # a change with q up to this is significant
_SHADES = {"PR": "0.35", "NR": "0.75"}
_WHERE_ACTIVE = {"silenced": "natural", "awakened": "adversarial"}


def compute_flow(study: Study) -> dict[str, Any]:
    """Compute how the attack moves each channel, by model, layer and class.

    The change of the activation is tested over the class's images by Student's paired t-test
    (``p``); ``q`` is corrected over all channels, classes and layers of the model.
    """
    groups: dict[tuple[str, str], dict[str, ndarray]] = {}
    for model in study.models:
        layers = study.layers(model)
        of_model = [_measure_layer(study, model, layer) for layer in layers]
        q = correct_fdr(np.concatenate([columns["p"].ravel() for columns in of_model]))
        ends = np.cumsum([columns["p"].size for columns in of_model])
        for layer, columns, part in zip(layers, of_model, np.split(q, ends[:-1]), strict=True):
            groups[model, layer] = columns | {"q": part.reshape(columns["p"].shape)}
    return {"flow": groups}


def _measure_layer(study: Study, model: str, layer: str) -> dict[str, Float[ndarray, "k _"]]:
    natural = study.activations(model, layer)
    adversarial = study.activations(model, layer, "adversarial")
    classes = len(study.classes)
    flow = change_by_class(natural, adversarial, study.labels, classes, study.settings["threshold"])
    count = np.bincount(study.labels, minlength=classes).astype(float)[:, None]
    return {
        "count": count,
        "change": flow.change,
        "silenced": flow.silenced,
        "awakened": flow.awakened,
        "p": paired_t(flow.change, flow.variance, count),
    }


def flow_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return what ``draw_flow`` draws: a row for each channel of the classes shown.

    Columns: model, layer, class, place, channel -> relevance, silenced, awakened, change, q. Place
    1 on the axis has the channel of the lowest relevance to the class.
    """
    parts = []
    for model, name in choose_layers(result, layer).items():
        for class_name in extreme_classes(result):
            where = {"model": model, "layer": name, "class": class_name}
            activations = result.select("activations", data="natural", **where)
            channels = result.select("flow", **where)
            channels["relevance"] = activations["relevance"].to_numpy()
            channels = channels.sort_values("relevance", kind="stable")
            parts.append(channels.assign(place=range(1, 1 + len(channels))))
    columns = ["model", "layer", "class", "place", "channel"]
    columns += ["relevance", "silenced", "awakened", "change", "q"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_flow(result: "Result", layer: str | None = None) -> Figure:
    """Draw on how many images the attack silences and awakens each channel, by its relevance.

    A row per model: the most robust class, then the least robust. Up: the share of the images on
    which the channel is active under attack alone; down: on the natural image alone. Faint channels
    do not change significantly. ``layer`` defaults to each model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = flow_data(result, layer)
    layers = choose_layers(result, layer)
    classes = extreme_classes(result)
    figure, axes = make_panels(
        len(layers), len(classes), 1.2, 0.35, sharex="row", sharey="all", least=0.65
    )
    for row, model in zip(axes, layers, strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            _draw_mirrored(ax, select_rows(drawn, **{"model": model, "class": class_name}))
        row[0].set_ylabel(shorten(model, 14), weight="bold")
    figure.supylabel("images (%)", size=current_style().size)
    heads = cycle(zip(("most", "least"), classes, strict=False))
    for ax, (extreme, name) in zip(list_top(axes), heads, strict=False):
        words = f"{extreme} robust: {describe_class(name, 10)}"
        write_above(ax, words)
    for ax in list_bottom(axes):
        ax.set_xlabel("channels by relevance\n← NR    PR →")
    add_title(figure, f"Channels silenced and awakened by the attack, {describe_layers(layers)}")
    _add_flow_legend(figure, result)
    return figure


def _draw_mirrored(ax: Axes, drawn: pd.DataFrame) -> None:
    """Draw what is awakened upwards and what is silenced downwards."""
    ax.axvline(0.5 + (drawn["relevance"] < 0).sum(), color="0.6", linewidth=0.6, linestyle="--")
    ax.axhline(0, color="0.6", linewidth=0.6)
    significant = (drawn["q"] <= SIGNIFICANT).to_numpy()
    for way, sign in (("silenced", -1), ("awakened", 1)):
        colour = COLOURS[_WHERE_ACTIVE[way]]
        for chosen, alpha in ((significant, 0.8), (~significant, 0.2)):
            rows = drawn[chosen]
            look = dot_look(len(drawn)) | {"color": colour, "alpha": alpha}
            ax.plot(rows["place"], sign * rows[way], **look)
    against = drawn.loc[drawn["relevance"] < 0, "awakened"].mean()
    speaks_for = drawn.loc[drawn["relevance"] > 0, "silenced"].mean()
    texts = {"awakened": f"NR ↑ {format_percent(float(against), 0)}"}
    texts["silenced"] = f"PR ↓ {format_percent(float(speaks_for), 0)}"
    for way, text in texts.items():
        side: Literal["left", "right"] = "left" if way == "awakened" else "right"
        colour = COLOURS[_WHERE_ACTIVE[way]]
        ax.set_title(text, loc=side, color=colour, size=current_style().small)
    ax.yaxis.set_major_formatter(FuncFormatter(_format_share))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _format_share(share: float, _: int) -> str:
    """Print a share in percent, without the sign that says on which side it is drawn."""
    return f"{abs(round(100 * share, 6)):g}"


def _add_flow_legend(figure: Figure, result: "Result") -> None:
    words = {
        "adversarial": "↑ awakened: active under attack only",
        "natural": "↓ silenced: active without the attack only",
    }
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 3.5}
    handles = [
        Line2D([], [], color=COLOURS[data], label=label, **dot) for data, label in words.items()
    ]
    heading = (
        f"{describe_attack(result)}; faint: channels whose mean activation does not change "
        "significantly; NR, PR: negatively (against the class) and positively relevant (for it); "
        "dashed: the border between NR and PR; above each panel: means over all NR, all PR channels"
    )
    add_legend(figure, handles, heading)


def describe_flow(drawn: pd.DataFrame) -> str:
    """Say how often PR channels fall silent and NR ones awaken."""

    def describe(rows: pd.DataFrame) -> str:
        silenced = format_percent(float(rows[rows["relevance"] > 0]["silenced"].mean()))
        awakened = format_percent(float(rows[rows["relevance"] < 0]["awakened"].mean()))
        return (
            f"a PR channel is silenced on {silenced} of the images, an NR channel awakened on "
            f"{awakened}, on average"
        )

    return describe_each(drawn, ["model", "class"], describe)


def flow_share_data(result: "Result", layer: str | None = None) -> pd.DataFrame:
    """Return what ``draw_flow_share`` draws: which channels the attack turns down or up.

    Columns: model, layer, channels (PR or NR), class ("mean" last) -> falls, rises: the shares of
    the class's PR or NR channels whose mean activation falls or rises significantly under the
    attack (q <= 0.05). Classes that were not tested, of too few images, are left out.
    """
    parts = []
    for model, name in choose_layers(result, layer).items():
        relevance = result.array("activations", "relevance", model, "natural", name)
        change = result.array("flow", "change", model, name)
        q = result.array("flow", "q", model, name)
        for kind, of_kind in (("PR", relevance > 0), ("NR", relevance < 0)):
            tested = of_kind & ~np.isnan(q)
            significant = tested & (q <= SIGNIFICANT)
            present = tested.any(1)
            shares = pd.DataFrame(index=np.array(result.meta["data"]["classes"])[present])
            for way, moved in (("falls", change < 0), ("rises", change > 0)):
                shares[way] = (significant & moved)[present].sum(1) / tested[present].sum(1)
            shares.loc["mean"] = shares.mean()
            shares = shares.rename_axis("class").reset_index()
            parts.append(shares.assign(model=model, layer=name, channels=kind))
    columns = ["model", "layer", "channels", "class", "falls", "rises"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_flow_share(result: "Result", layer: str | None = None) -> Figure:
    """Draw which share of the PR and NR channels the attack turns down and up significantly.

    Bars are means over the classes, dots the classes. ``layer`` defaults to each model's last one.

    Raises:
        UserError: for an unknown layer.
    """
    drawn = flow_share_data(result, layer)
    layers = choose_layers(result, layer)
    figure, axes = make_grid(1, 1, 0.35 * len(layers) + 0.1, least=0.2 * len(layers))
    ax = axes[0, 0]
    for index, model in enumerate(layers):
        for kind, beside in (("PR", -0.2), ("NR", 0.2)):
            rows = select_rows(drawn, model=model, channels=kind)
            _draw_shares(ax, rows, index + beside, _SHADES[kind])
    if drawn["falls"].isna().all():
        write_in_panel(ax, "too few images to test")
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(range(len(layers)), [shorten(model, 14) for model in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xlim(-1, 1)
    ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlabel("← activation falls   % of the channels   rises →")
    ax.xaxis.set_major_formatter(FuncFormatter(_format_share))
    add_title(figure, f"Channels that the attack changes significantly, {describe_layers(layers)}")
    words = {
        "PR": "PR channels, which speak for the class",
        "NR": "NR channels, which speak against it",
    }
    handles = [Patch(color=shade, label=words[kind]) for kind, shade in _SHADES.items()]
    heading = (
        f"{describe_attack(result)}; significant: q ≤ {SIGNIFICANT}, however small the change; "
        "bar: mean over the classes; dots: the classes"
    )
    add_legend(figure, handles, heading)
    return figure


def _draw_shares(ax: Axes, rows: pd.DataFrame, place: float, shade: str) -> None:
    """Draw a bar for the mean, in the last row, and a dot for each class."""
    dots: dict[str, Any] = {"color": "black", "markersize": 1.5, "mew": 0, "alpha": 0.6}
    for way, sign in (("falls", -1), ("rises", 1)):
        ax.barh(place, sign * rows[way].iloc[-1], 0.36, color=shade)
        shares = rows[way].iloc[:-1]
        ax.plot(sign * shares, [place] * len(shares), "o", **dots)


def describe_flow_share(drawn: pd.DataFrame) -> str:
    """Say which share of the channels falls and rises, mean over the classes."""

    def describe(rows: pd.DataFrame) -> str:
        mean = rows.iloc[-1]
        return f"{format_percent(mean['falls'])} fall and {format_percent(mean['rises'])} rise"

    return describe_each(drawn, ["model", "channels"], describe)


def check_flow(result: "Result") -> None:
    """Raise ValueError where the flow is not that of the measured layers."""
    measured = {(model, name) for model, names in measured_layers(result).items() for name in names}
    if not set(list_groups(result, "flow")) <= measured:
        raise ValueError("flow is of layers that were not measured")


register(
    Analysis(
        name="flow",
        help="channels that the attack silences and awakens, and whether they change significantly",
        tables={
            "flow": Table(
                words=("model", "layer"),
                numbers=("count", "change", "silenced", "awakened", "p", "q"),
                help="count: images of the class; change: mean over them of adversarial minus "
                "natural activation; silenced, awakened: shares of the images on which the channel "
                "is active on natural, on adversarial data alone; p: of the change, by Student's "
                "paired t-test; q: corrected over all that is tested of the model",
                by_channel=True,
            )
        },
        compute=compute_flow,
        check=check_flow,
        plots=(
            Plot(
                name="flow",
                draw=draw_flow,
                data=flow_data,
                alt_text=describe_flow,
                caption="Channels that the attack awakens (up: share of the class's images on "
                "which the channel is active under attack only) and silences (down: on which it "
                "is active without the attack only), for {extremes}. Active is a channel above a "
                "share of the image's largest one (1 % if nothing else was asked for). Channels "
                "are sorted by relevance: left of the dashed line the negatively relevant (NR), "
                "right of it the positively relevant (PR) ones; the numbers above are the means "
                "over the NR channels of what is awakened, over the PR channels of what is "
                "silenced. Faint: the channel's mean activation does not change significantly "
                "(paired t-test, q > 0.05 by Benjamini and Hochberg over all that is tested of "
                "the model). {layers} {adversarial}",
                section="network",
                main=False,
                claims=("c1", "c2"),
                table="flow",
                needs=("activations", "robustness"),
                subjects=by_layer,
            ),
            Plot(
                name="flow-share",
                draw=draw_flow_share,
                data=flow_share_data,
                alt_text=describe_flow_share,
                caption="Share of the positively relevant (PR) and of the negatively relevant (NR) "
                "channels whose mean activation on a class falls or rises significantly under "
                "attack (paired t-test over the class's images, q ≤ 0.05 by Benjamini and Hochberg "
                "over all channels, classes and layers of the model). Bars: mean over the classes, "
                "dots: the classes. {layers} {adversarial}",
                section="network",
                main=False,
                claims=("c1", "c2"),
                table="flow",
                needs=("activations",),
                subjects=by_layer,
            ),
        ),
    )
)
