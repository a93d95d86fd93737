"""The figures of what an attack does to channels and answers: channel flow, and confusion beside shared channels."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from channelscope.comparison import Comparison
from channelscope.figures import frames
from channelscope.figures.axes import empty, grid, in_lines, in_percent, markers, title
from channelscope.figures.drawing import LABELLED
from channelscope.figures.paper import COLOURS, current, styled
from channelscope.statistics.alignment import overlap
from channelscope.statistics.significance import mantel

LEVEL = 0.05  # a change with q up to this is significant
_PERMUTATIONS = 999
_BESIDE = 10  # names that have room beside each other under a matrix; more stand at its left alone
_SIGNS = {"PR": "0.35", "NR": "0.75"}
_WAYS = {
    "silenced": ("natural", -1),
    "awakened": ("adversarial", 1),
}  # when the channel is active, and where it is drawn


def flow_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `flow` draws: model, layer, class, place, channel -> relevance, silenced, awakened, change, q.

    Place 1 on the axis has the channel of the lowest relevance to the class.
    """
    parts = []
    for (model, name), class_name in product(
        frames.layers(comparison, layer).items(), frames.extremes(comparison)
    ):
        channels = _flow(comparison, **{"model": model, "layer": name, "class": class_name})
        channels = channels.sort_values("relevance", kind="stable")
        parts.append(channels.assign(place=range(1, 1 + len(channels))))
    columns = [
        "model",
        "layer",
        "class",
        "place",
        "channel",
        "relevance",
        "silenced",
        "awakened",
        "change",
        "q",
    ]
    return pd.concat(parts, ignore_index=True)[columns]


def _flow(comparison: Comparison, **where: str) -> pd.DataFrame:
    """Give the rows of the flow with the channels' relevance beside."""
    relevance = frames.rows(comparison.activations, data="natural", **where)
    keys = ["model", "layer", "class", "channel"]
    return frames.rows(comparison.flow, **where).merge(relevance[[*keys, "relevance"]], on=keys)


@styled
def flow(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw on how many images the attack silences and awakens each channel, the channels in order of their relevance.

    A row per model: the most robust class, then the least robust. Up: the share of the images on which the channel is
    active under attack alone; down: as the image is alone. Faint channels do not change significantly. `layer` defaults
    to each model's last one. Raises UserError for an unknown layer.
    """
    drawn, layers = flow_data(comparison, layer), frames.layers(comparison, layer)
    classes = frames.extremes(comparison)
    figure, axes = grid(len(layers), len(classes), 1.3, 1.2, sharex="row", sharey=True)
    for row, model in zip(axes, layers, strict=True):
        for ax, class_name in zip(row, classes, strict=True):
            _mirrored(ax, frames.rows(drawn, **{"model": model, "class": class_name}))
        row[0].set_ylabel(f"{frames.short(model, 16)}\n% of images")
    for ax, extreme, name in zip(axes[0], ("most", "least"), classes, strict=False):
        ax.set_title(
            f"{extreme} robust class:\n{frames.class_called(name, 14)}",
            pad=23,
            size=current().small,
        )
    for ax in axes[-1]:
        ax.set_xlabel("channels by relevance\n← NR    PR →")
    title(figure, f"Channels silenced and awakened by the attack, {frames.where(layers)}")
    _flow_legend(figure, comparison)
    return figure


def _mirrored(ax: Axes, drawn: pd.DataFrame) -> None:
    ax.axvline(0.5 + (drawn["relevance"] < 0).sum(), color="0.6", linewidth=0.6, linestyle="--")
    ax.axhline(0, color="0.6", linewidth=0.6)
    certain = (drawn["q"] <= LEVEL).to_numpy()
    for way, (data, sign) in _WAYS.items():
        for chosen, alpha in ((certain, 0.8), (~certain, 0.2)):
            rows = drawn[chosen]
            ax.plot(
                rows["place"],
                sign * rows[way],
                color=COLOURS[data],
                alpha=alpha,
                **markers(len(drawn)),
            )
    line = 1.3 * current().small
    for kind, way, sign, edge, side in (
        ("NR", "awakened", -1, 0, "left"),
        ("PR", "silenced", 1, 1, "right"),
    ):
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": side,
        }
        mean = float(drawn[np.sign(drawn["relevance"]) == sign][way].mean())
        said, colour = f"{kind} {way}: {frames.percent(mean, 0)}", COLOURS[_WAYS[way][0]]
        ax.annotate(
            said, (edge, 1), (0, 3 + line * (1 - edge)), color=colour, size=current().small, **place
        )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{abs(round(100 * share, 6)):g}"))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _flow_legend(figure: Figure, comparison: Comparison) -> None:
    words = {
        "adversarial": "↑ awakened: active under attack only",
        "natural": "↓ silenced: active without the attack only",
    }
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 3.5}
    handles = [
        Line2D([], [], color=COLOURS[data], label=label, **dot) for data, label in words.items()
    ]
    heading = (
        f"{frames.attack(comparison)}; faint: channels whose mean activation does not change significantly; NR, PR: "
        "negatively (against the class) and positively relevant (for it); dashed: the border between NR and PR; above "
        "each panel: means over all NR, all PR channels"
    )
    figure.legend(handles=handles, title=in_lines(heading), loc="outside lower center", ncols=1)


def flow_share_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `flow_share` draws: model, layer, channels (PR or NR), class ("mean" last) -> falls, rises (shares).

    Of the class's PR or NR channels, the share whose mean activation falls or rises significantly under the attack
    (q <= 0.05). Classes that were not tested, of too few images, are left out.
    """
    found = []
    for model, name in frames.layers(comparison, layer).items():
        tested = _flow(comparison, model=model, layer=name).dropna(subset=["q"])
        for kind, chosen in (("PR", tested["relevance"] > 0), ("NR", tested["relevance"] < 0)):
            channels, certain = tested[chosen], tested[chosen]["q"] <= LEVEL
            ways = {
                "falls": certain & (channels["change"] < 0),
                "rises": certain & (channels["change"] > 0),
            }
            by_class = pd.DataFrame(ways).groupby(channels["class"], sort=False).mean()
            shares = (
                pd.concat([by_class, by_class.mean().to_frame("mean").T])
                .rename_axis("class")
                .reset_index()
            )
            found.append(shares.assign(model=model, layer=name, channels=kind))
    return pd.concat(found, ignore_index=True)[
        ["model", "layer", "channels", "class", "falls", "rises"]
    ]


@styled
def flow_share(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw which share of the PR and of the NR channels the attack turns down and up significantly, by model.

    Bars are means over the classes, dots the classes. `layer` defaults to each model's last one. Raises UserError for
    an unknown layer.
    """
    drawn, layers = flow_share_data(comparison, layer), frames.layers(comparison, layer)
    figure, axes = grid(1, 1, 0.35 * len(layers) + 0.1, 1.27)
    ax, places = axes[0, 0], []
    for (index, model), (kind, beside) in product(enumerate(layers), (("PR", -0.2), ("NR", 0.2))):
        rows = frames.rows(drawn, model=model, channels=kind)
        places.append(index + beside)
        for way, sign in (("falls", -1), ("rises", 1)):
            ax.barh(places[-1], sign * rows[way].iloc[-1], 0.36, color=_SIGNS[kind])
            shares = rows[way].iloc[:-1]
            ax.plot(
                sign * shares,
                [places[-1]] * len(shares),
                "o",
                color="black",
                markersize=1.5,
                mew=0,
                alpha=0.6,
            )
    if drawn["falls"].isna().all():
        empty(ax, "too few images to test")
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(range(len(layers)), [frames.short(model, 14) for model in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xlim(-1, 1)
    ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlabel("← activation falls   % of the channels   rises →")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{abs(round(100 * share, 6)):g}"))
    title(figure, f"Channels that the attack changes significantly, {frames.where(layers)}")
    words = {
        "PR": "PR channels, which speak for the class",
        "NR": "NR channels, which speak against it",
    }
    handles = [Patch(color=colour, label=words[kind]) for kind, colour in _SIGNS.items()]
    heading = (
        f"{frames.attack(comparison)}; significant: q ≤ {LEVEL}, however small the change; bar: mean over the classes; "
        "dots: the classes"
    )
    figure.legend(handles=handles, title=in_lines(heading), loc="outside lower center", ncols=1)
    return figure


def confusion_data(comparison: Comparison, layer: str | None = None) -> pd.DataFrame:
    """Give what `confusion` draws: model, layer, class, answer -> share, overlap, and of the model spearman, p.

    share: of the class's images under attack that get this answer. overlap: of the two classes' PR channels
    (``alignment.overlap``). spearman and p: of the two over the pairs of different classes (``significance.mantel``).
    With more than 24 classes of the 12 most and the 12 least robust ones alone; classes without images are left out.
    """
    known = frames.ranked(comparison) or frames.classes(comparison)
    names = sorted(known, key=frames.classes(comparison).index)
    if len(names) > LABELLED:
        names = frames.extremes(comparison, LABELLED // 2)
    parts = []
    for model, layer_name in frames.layers(comparison, layer).items():
        counts = frames.rows(comparison.confusion, model=model, data="adversarial")
        table = (
            counts.pivot(index="class", columns="answer", values="count")
            .reindex(index=names)
            .fillna(0)
        )
        answers = (
            table.div(table.sum(axis=1), axis=0).reindex(columns=names, fill_value=0).to_numpy()
        )
        rows = frames.rows(comparison.activations, model=model, layer=layer_name, data="natural")
        relevance = (
            rows.pivot(index="class", columns="channel", values="relevance").loc[names].to_numpy()
        )
        shared = overlap(relevance)
        rho, p = mantel(answers.astype(float), shared, permutations=_PERMUTATIONS)
        part = pd.DataFrame(product(names, names), columns=["class", "answer"])
        part = part.assign(
            model=model, layer=layer_name, share=answers.ravel(), overlap=shared.ravel()
        )
        parts.append(part.assign(spearman=rho, p=p))
    return pd.concat(parts)[
        ["model", "layer", "class", "answer", "share", "overlap", "spearman", "p"]
    ]


@styled
def confusion(comparison: Comparison, layer: str | None = None) -> Figure:
    """Draw what each class is taken for under attack beside how far the classes share PR channels, a row per model.

    The correlation of the two over pairs of different classes is above, with the p of Mantel's permutation test, as
    the pairs are not independent. `layer` defaults to each model's last one. Raises UserError for an unknown layer.
    """
    drawn, layers = confusion_data(comparison, layer), frames.layers(comparison, layer)
    names = list(drawn["class"].unique())
    figure, axes = grid(len(layers), 2, max(1.4, 0.13 * len(names)), 1.85, sharex=True, sharey=True)
    most = {column: _largest(drawn, column) for column in ("share", "overlap")}
    for row, model in zip(axes, layers, strict=True):
        rows = frames.rows(drawn, model=model)
        for ax, column in zip(row, most, strict=True):
            image = _matrix(ax, rows[column].to_numpy().reshape(len(names), -1), most[column])
            if model == list(layers)[-1]:
                bar = figure.colorbar(
                    image, ax=axes[:, 0 if column == "share" else 1], location="bottom", aspect=15
                )
                in_percent(
                    bar.ax,
                    "images of\nthe class" if column == "share" else "shared PR\nchannels",
                    "x",
                )
                bar.ax.tick_params(labelsize=current().small, length=2.5, width=0.6)
        rho, p = rows["spearman"].iloc[0], rows["p"].iloc[0]
        row[0].set_title(frames.short(model, 14), loc="left", weight="bold")
        row[1].set_title(f"ρ {frames.number(rho)}, p {_p(p)}", loc="right", size=current().small)
        row[0].set_ylabel("true class")
    shown = [frames.short(name, 12) for name in names]
    for ax in axes[-1]:
        fit = len(names) <= _BESIDE
        ax.set_xticks(range(len(names)), shown if fit else [""] * len(names), rotation=90)
        ax.set_yticks(range(len(names)), shown)
    axes[-1, 0].set_xlabel("answer")
    axes[-1, 1].set_xlabel("other class")
    title(
        figure,
        f"Answers under attack (left), PR channels that classes share (right), {frames.where(layers)}",
    )
    words = (
        f"{frames.attack(comparison)}; PR: positively relevant, for the class; shared: of those that either of two "
        "classes has; ρ: rank correlation of the left map with the right one, over pairs of classes (p: Mantel's "
        "test); grey: the class itself, left out"
    )
    figure.legend(handles=[], title=in_lines(words), loc="outside lower center")
    return figure


def _largest(drawn: pd.DataFrame, column: str) -> float:
    """The largest value of a pair of different classes."""
    apart = drawn[drawn["class"] != drawn["answer"]][column]
    return float(apart.max()) if apart.notna().any() else 1.0


def _matrix(ax: Axes, values: np.ndarray, most: float) -> AxesImage:
    """Draw the pairs of different classes; the diagonal, which would outshine them, is left out."""
    apart = np.ma.masked_array(values, np.eye(len(values), dtype=bool) | np.isnan(values))
    ax.set_facecolor("0.85")
    return ax.imshow(apart, cmap="viridis", vmin=0, vmax=most, interpolation="none", aspect="auto")


def _p(p: float) -> str:
    """As in "= 0.02" or "< 0.01"; a dash for NaN."""
    return "–" if np.isnan(p) else "< 0.01" if p < 0.01 else f"= {p:.2f}"
