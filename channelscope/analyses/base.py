"""What an analysis is, and the registry of all of them.

An analysis is a pure function of a study's kept arrays to tidy tables, with the figures that show
these tables. Each stands in one module of this package, which registers it and is found by itself:

    from collections.abc import Mapping
    from typing import Any

    import pandas as pd
    from matplotlib.figure import Figure

    from channelscope.analyses.base import Analysis, Plot, Study, Table, register
    from channelscope.analyses.subjects import by_layer
    from channelscope.figures.axes import add_title, label_percent, make_grid
    from channelscope.figures.paper import styled
    from channelscope.figures.words import choose_layers, describe_each, error_bars, format_percent
    from channelscope.statistics.channels import weighted_means
    from channelscope.statistics.intervals import as_columns, estimate

    SILENCE = Table(
        words=("model", "layer"),
        numbers=("share", "low", "high"),
        help="share of channels whose mean is at most 1 % of the largest channel's",
    )


    def compute_silence(study: Study) -> Mapping[str, Any]:
        rows = []
        for model in study.models:
            for layer in study.layers(model):
                activations = study.activations(model, layer, "adversarial")
                means = weighted_means(activations, study.weights)  # of replicates x channels
                silent = means <= 0.01 * means.max(axis=1, keepdims=True)
                quantity = estimate(silent.mean(1), study.settings["level"], bounds=(0, 1))
                rows.append({"model": model, "layer": layer} | as_columns(quantity, "share"))
        return {"silence": rows}


    def silence_data(result: Any, layer: str | None = None) -> pd.DataFrame:
        layers = choose_layers(result, layer)  # model -> this layer, or else its last
        rows = result.silence
        return rows[rows["layer"] == rows["model"].map(layers)]


    @styled
    def draw_silence(result: Any, layer: str | None = None) -> Figure:
        data = silence_data(result, layer)
        figure, axes = make_grid(1, 1, 1.6)
        shares, errors = error_bars(data, "share")
        axes[0, 0].bar(data["model"], shares, yerr=errors)
        label_percent(axes[0, 0], "silent channels")
        add_title(figure, "Channels that adversarial images hardly activate")
        return figure


    def describe_silence(drawn: pd.DataFrame) -> str:
        return describe_each(drawn, ["model"], lambda row: format_percent(row["share"].iloc[0]))


    PLOT = Plot(
        name="silence",
        draw=draw_silence,
        data=silence_data,
        alt_text=describe_silence,
        caption="Share of channels that are silent. {layers} {adversarial}",
        section="network",
        table="silence",
        subjects=by_layer,
    )
    register(
        Analysis(
            name="silence",
            help="channels that are silent under attack",
            tables={"silence": SILENCE},
            compute=compute_silence,
            plots=(PLOT,),
        )
    )

``study.weights`` has a column a bootstrap replicate, the first one the sample itself; ``estimate``
makes an interval of replicates. ``@styled`` draws in the style in force, such as a paper's;
``make_grid`` makes panels as wide as it says; ``by_layer`` makes a figure for each layer,
``choose_layers`` picks what each shows. Nothing here needs torch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, UInt8
from matplotlib.figure import Figure
from numpy import ndarray

from channelscope.errors import suggest
from channelscope.figures.words import describe_ranges
from channelscope.statistics.channels import accuracy_replicates, measure_replicates
from channelscope.statistics.intervals import Estimate

if TYPE_CHECKING:
    from channelscope.result import Result

Kind = Literal["comparison", "evaluation", "intervention", "relevance", "damage", "film", "sweep"]
Labels = Literal["none", "true", "wrong"]  # what the gates are told
Masks = Literal["attached", "held"]  # of gates behind a layer: made of its features, or their own
Section = Literal["claims", "network", "gates", "models", "training"]  # of a page, in its order
# What a caption may name besides the arguments of its figure, see ``Plot``.
SENTENCES = ("extremes", "layers", "adversarial", "robust", "bars", "wilson", "mixed_bars")


class Study(Protocol):
    """What an analysis may ask of a study: arrays of n images, one row an image, in their order.

    ``data`` is "natural", "adversarial" (under the study's attack), or a strength of that attack
    (see ``strengths``). Arrays are memory-mapped and read-only: copy what is to be changed.
    """

    kind: Kind
    classes: tuple[str, ...]

    @property
    def labels(self) -> Int[ndarray, " n"]:
        """The images' classes."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings, by name: level, replicates, threshold, attack, eps, seed, ..."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models' labels."""

    @property
    def weights(self) -> Num[ndarray, "n r"]:
        """How often each image counts in each bootstrap replicate; column 0 is all 1."""

    def describe(self, model: str) -> Mapping[str, Any]:
        """Return what is known of a model: method, arch, gates, settings, digest, compute."""

    def history(self, model: str) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a model's training log; none where it is unknown."""

    def layers(self, model: str) -> tuple[str, ...]:
        """Return the measured layers, the deepest last."""

    def penultimate(self, model: str) -> tuple[str, ...]:
        """Return the measured layers whose relevance is the last linear layer's weight."""

    def head(self, model: str) -> tuple[Float[ndarray, "k c"], Float[ndarray, " k"]] | None:
        """Return weight and bias by which penultimate activations give the logits, or None."""

    def activations(self, model: str, layer: str, data: str = "natural") -> Float[ndarray, "n c"]:
        """Return the spatial means of a layer's feature maps."""

    def relevance(self, model: str, layer: str, scorer: str | None = None) -> Float[ndarray, "n c"]:
        """Return each channel's relevance to the image's class, on natural images.

        By the named scorer; None for the study's own: the last layer's weights, else the gradient.
        """

    def answers(
        self, model: str, data: str = "natural", told: Labels = "none"
    ) -> Int[ndarray, " n"]:
        """Return the class that the model answers, its gates being told a label or none."""

    def attacks(self, model: str) -> tuple[str, ...]:
        """Return the attacks on the model, in their order, by name, without "natural"."""

    def correct(self, model: str, attack: str = "natural") -> Bool[ndarray, " n"]:
        """Return which images are classified correctly: as they are, or under an attack."""

    def gates(self, model: str) -> tuple[str, ...]:
        """Return the gated layers that have a mask."""

    def masks(
        self, model: str, gate: str, data: str = "natural", told: Labels = "none"
    ) -> Float[ndarray, "n c"]:
        """Return a gate's mask; of masks of single elements, the mean over space."""

    def probes(self, model: str, data: str = "natural") -> Mapping[str, Int[ndarray, " n"]]:
        """Return the class that each gate's probe answers, by gated layer."""

    def told(self, model: str) -> Mapping[Labels, Int[ndarray, " n"]]:
        """Return the labels that gates are told: "true", "wrong"; empty where none takes any."""

    def strengths(self) -> Sequence[tuple[str, float, str]]:
        """Return the swept strengths of the attack: ("eps" or "step", value, name of the data)."""

    def thumbnails(
        self, model: str, data: str, images: Sequence[int]
    ) -> UInt8[ndarray, "m _ h w"] | None:
        """Return small pictures (uint8) of some images; None where none were kept."""

    def outcome(self, model: str) -> "Outcome":
        """Return what the attacks and checks on a model did, beside ``correct``."""

    def faults(self, model: str) -> "tuple[Finding, ...]":
        """Return why a model's numbers cannot be trusted.

        Images that lack the normalisation it expects, gradients that are zero, a forward pass that
        is random or depends on the batch.
        """

    def suppressed(self, model: str) -> Mapping[str, "SuppressedLayer"]:
        """Return what suppressing channels did, by layer; empty without interventions."""

    def damage(self, model: str) -> "Damage":
        """Return what the attack does through the channels of each layer; of kind "damage" only."""

    def edges(self, model: str) -> "Edges | None":
        """Return how the damage passes from layer to layer; None where that was not traced."""

    def memo(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return ``compute()``, remembered under ``key`` for the other analyses."""


NORMALISATION = "normalisation"
"""The check that finds a network whose images lack the normalisation that it expects."""


class Finding(NamedTuple):
    """Why numbers cannot be trusted: the check, what it saw in a sentence, and its numbers."""

    check: str
    sentence: str
    evidence: Mapping[str, float | int]


@dataclass(frozen=True)
class Outcome:
    """What the attacks and checks on one model did.

    Args:
        attacked, broken: (attack, part) -> how many images it was given, and how many it broke.
        fallbacks: the attacks that a check called for, by name: they ran on all images too.
        checked: whether it was checked for gradient masking.
        findings: what the checks found, and in an evaluation what is said on normalisation.
        skipped: check -> why it could not be made.
        notes: sentences that attacks had to say.
        sweep: eps -> the images that withstand the worst case at this radius (n,).
    """

    attacked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    broken: Mapping[tuple[str, str], int] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    checked: bool = False
    findings: tuple[Finding, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sweep: Mapping[float, Bool[ndarray, " n"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SuppressedLayer:
    """What suppressing the channels of one layer did to each image.

    Args:
        counts: how many channels are suppressed at each of p points, from none to all.
        relevance: scorer -> relevance of each channel to each class (k, c).
        correct: (scorer, order) -> of each ranking of that name ("random" may have several), data
            ("natural", "adversarial") -> which images are classified correctly (p, n). The order is
            "nr" (most negatively relevant first), "pr" (most positively first) or "random".
    """

    counts: tuple[int, ...]
    relevance: Mapping[str, Float[ndarray, "k c"]]
    correct: Mapping[tuple[str, str], Sequence[Mapping[str, Bool[ndarray, "p n"]]]]


ACCOUNT, RANDOM = "account", "random"  # rankings of channels beside those of scorers


@dataclass(frozen=True, eq=False)
class ChannelAccount:
    """What each channel of a layer contributes to the damage of an attack; see ``study.account``.

    Args:
        channels: the contributions, image by image (n, c).
        masks: gate -> what its mask contributes (n, _), where masks are held.
        passing: the part of the damage that passes through the layer (n,).
        error: the completeness error, a share of the damage (n,).
    """

    channels: Float[ndarray, "n c"]
    masks: Mapping[str, Float[ndarray, "n _"]]
    passing: Float[ndarray, " n"]
    error: Float[ndarray, " n"]


@dataclass(frozen=True, eq=False)
class DamagedLayer:
    """Through which channels of a layer the damage is done, and what putting them back does.

    Args:
        accounts: "attached" -> with gates that make their masks of the features they get; "held",
            where gates are behind the layer -> with masks that come back for themselves.
        counts: how many channels are put back at each of p points, all of them last.
        curves: (ranking, curve) -> which images are right (n, p). The ranking is "account",
            "random" or a scorer's; the curve is "repair" (natural channels in the adversarial
            run), "harm" (adversarial ones in the natural run) or "adaptive" (as "repair", and under
            an attack on the very network that has them back).
    """

    accounts: Mapping[Masks, ChannelAccount]
    counts: tuple[int, ...]
    curves: Mapping[tuple[str, str], Bool[ndarray, "n p"]]

    @property
    def main(self) -> ChannelAccount:
        """The account that ranks channels: that with masks held where gates are behind."""
        return self.accounts["held" if "held" in self.accounts else "attached"]


@dataclass(frozen=True, eq=False)
class Damage:
    """What an attack does to one network; accounts and curves are of broken images, others' are 0.

    Args:
        broken: the images that are right as they are and wrong under attack (n,).
        rivals: the class of the largest wrong logit under attack (n,).
        amount: the fall of the margin of the label over the rival (n,).
        margin: that margin on natural images (n,).
        layers: by name.
    """

    broken: Bool[ndarray, " n"]
    rivals: Int[ndarray, " n"]
    amount: Float[ndarray, " n"]
    margin: Float[ndarray, " n"]
    layers: Mapping[str, DamagedLayer]


@dataclass(frozen=True, eq=False)
class LayerEdges:
    """The edges between the channels of two layers, image by image; see ``study.edges``.

    Args:
        edges: what each contributes to the damage (n, c, d).
        row_error, column_error: how far the sums over edges are from the accounts of the first and
            the second layer, shares of what the accounts have (n,).
        masks: the share of the damage that comes to the second layer from masks of gates in between
            (n,), and is on no edge.
        gains: "account" and "random" -> the share of the damage that is regained when so many
            edges are cut (n, p), those of most damage or random ones.
    """

    edges: Float[ndarray, "n c d"]
    row_error: Float[ndarray, " n"]
    column_error: Float[ndarray, " n"]
    masks: Float[ndarray, " n"]
    gains: Mapping[str, Float[ndarray, "n p"]]


@dataclass(frozen=True, eq=False)
class Edges:
    """How the damage passes from layer to layer in one network.

    Args:
        broken: of the first images of the study, those that are broken: only they have edges (n,).
        cuts: the shares of the edges that are cut.
        layers: (first, second) -> edges.
    """

    broken: Bool[ndarray, " n"]
    cuts: tuple[float, ...]
    layers: Mapping[tuple[str, str], LayerEdges]


@dataclass(frozen=True)
class Table:
    """A tidy table: columns of words, which tell its rows apart, and columns of numbers.

    Args:
        words: names of the columns of words.
        numbers: names of the columns of numbers.
        help: what a row says; units and ranges.
        by_channel: a table of (class, channel) for each group of ``words``: kept as arrays, see
            ``ChannelTable``. Its ``words`` and ``numbers`` are those beside class and channel.
        open: there may be further columns, of words.
    """

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    help: str
    by_channel: bool = False
    open: bool = False

    @property
    def columns(self) -> list[str]:
        """All columns, in order."""
        return [*self.words, *self.numbers]

    def frame(self, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Return rows as a frame, with its columns even where there is no row.

        Raises:
            ValueError: for a row that lacks a column or has another, unless the table is open.
        """
        rows = rows if isinstance(rows, pd.DataFrame) else list(rows)
        for row in [rows.columns] if isinstance(rows, pd.DataFrame) else rows:
            if not isinstance(row, Mapping | pd.Index):
                raise ValueError(f"a row is a mapping of columns to values, not {row!r:.80}")
            self.check_columns(row)
        return pd.DataFrame(rows, columns=self.columns)

    def check_columns(self, names: Iterable[str]) -> None:
        """Raise a ValueError for names of a row's columns that are not those of the table."""
        if self.open:
            return
        columns = self.numbers if self.by_channel else self.columns
        names = list(names)
        unknown = [name for name in names if name not in columns]
        missing = [name for name in columns if name not in names]
        if unknown or missing:
            faults = {"lacks": missing, "has an unknown": unknown}
            told = [f"{what} {', '.join(map(repr, each))}" for what, each in faults.items() if each]
            raise ValueError(f"a row {' and '.join(told)}: the columns are {', '.join(columns)}")


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """A table of class x channel for each group of words, kept as arrays.

    1,000 classes of 2,048 channels are two million rows a group: as arrays they stay small, and
    ``select`` makes frames of the part that is wanted.

    Args:
        words: names of the columns that tell the groups apart, such as model, data, layer.
        numbers: names of the columns of numbers.
        classes: the classes' names.
        groups: the groups' words -> column -> array (classes, channels), or (classes, 1) where all
            channels share the number.
    """

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    classes: tuple[str, ...]
    groups: Mapping[tuple[str, ...], Mapping[str, Num[ndarray, "k _"]]] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of rows of the whole frame."""
        return sum(len(self.classes) * self._channels(group) for group in self.groups.values())

    def array(self, column: str, *group: str) -> Num[ndarray, "k c"]:
        """Return one column of one group, by class and channel."""
        arrays = self.groups[group]
        shape = (len(self.classes), self._channels(arrays))
        return np.broadcast_to(arrays[column], shape)

    def select(self, **wanted: str) -> pd.DataFrame:
        """Return the rows whose columns of words have the wanted values, as a tidy frame."""
        of_class = wanted.pop("class", None)
        chosen = [k for k, name in enumerate(self.classes) if of_class is None or name == of_class]
        frames = [
            self._frame(group, arrays, chosen)
            for group, arrays in self.groups.items()
            if all(group[self.words.index(name)] == value for name, value in wanted.items())
        ]
        columns = [*self.words, "class", "channel", *self.numbers]
        if not frames:
            return pd.DataFrame(columns=columns)
        return pd.concat(frames, ignore_index=True)[columns]

    def frame(self) -> pd.DataFrame:
        """Return all rows."""
        return self.select()

    def summary(self) -> pd.DataFrame:
        """Return a row for each group and class: each number's mean over the channels."""
        rows = []
        for group, arrays in self.groups.items():
            head = dict(zip(self.words, group, strict=True))
            means = {name: arrays[name].mean(1) for name in self.numbers}
            for k, class_name in enumerate(self.classes):
                row = {"class": class_name, "channels": self._channels(arrays)}
                rows.append(head | row | {name: mean[k] for name, mean in means.items()})
        return pd.DataFrame(rows, columns=[*self.words, "class", "channels", *self.numbers])

    def _frame(
        self, group: tuple[str, ...], arrays: Mapping[str, ndarray], chosen: list[int]
    ) -> pd.DataFrame:
        channels = self._channels(arrays)
        columns: dict[str, Any] = dict(zip(self.words, group, strict=True))
        columns["class"] = np.repeat([self.classes[k] for k in chosen], channels)
        columns["channel"] = np.tile(np.arange(channels), len(chosen))
        for name in self.numbers:
            shape = (len(chosen), channels)
            columns[name] = np.broadcast_to(arrays[name][chosen], shape).ravel()
        return pd.DataFrame(columns)

    @staticmethod
    def _channels(arrays: Mapping[str, ndarray]) -> int:
        return max(array.shape[1] for array in arrays.values())


@dataclass(frozen=True)
class Subject:
    """What one figure of a plot is about.

    Args:
        arguments: further arguments of the plot's functions, by name; None for their defaults. The
            others end the figure's name.
        main: whether the page shows the figure at once, or on demand.
    """

    arguments: Mapping[str, str | None]
    main: bool = True


def whole(_: "Result") -> Iterator[Subject]:
    """One figure, of all there is."""
    yield Subject({})


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A kind of figure of a result.

    Args:
        name: its name, and the beginning of its files' names.
        draw, data: functions of (result, ...): the figure, and the table of what it draws.
        caption: plain words. May have {class_name}, {model} and the other arguments of its
            subjects, {extremes} (the most and the least robust class), and the sentences {layers}
            (the figure's layer, else each model's last), {adversarial} (the attack on the
            activations), {robust} (the attacks behind robust accuracy), {bars}, {wilson} and
            {mixed_bars} (the intervals: of the bootstrap, Wilson's, or Wilson's for accuracies
            alone). A brace itself is doubled.
        section: where the page has it.
        order: its place there, the lower the earlier.
        claims: those on which it bears, such as "c1".
        table: the table without whose rows there is no such figure.
        needs: tables of other analyses that it reads too: there is no such figure without them.
        main: whether a run draws it unasked; others are drawn by name, or with all.
        subjects: what single figures of the plot are about.
        alt_text: from the table of what is drawn, what is to be seen, in words.
    """

    name: str
    draw: Callable[..., Figure]
    data: Callable[..., pd.DataFrame]
    caption: str
    section: Section
    order: int = 100
    table: str
    needs: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    main: bool = True
    subjects: "Callable[[Result], Iterable[Subject]]" = whole
    alt_text: Callable[[pd.DataFrame], str] = describe_ranges


Judgement = Literal["supported", "not supported", "inconclusive", "not judged"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, judged.

    Args:
        claim: its name.
        models: the networks that it is judged on.
        layer: where; empty for what is not about a layer.
        verdict: the outcome; "not supported" says that the opposite was found.
        statement: what was measured, in a plain sentence.
        change: what would change the verdict.
        estimate, low, high: the quantity and its interval.
        p: of a two-sided test against 0, corrected for all verdicts of the run.
        n: number of images (of C3: of classes).
        seeds: number of networks of the method that has the fewest.
        least: the least effect that counts.
    """

    claim: str
    models: str
    layer: str
    verdict: Judgement
    statement: str
    change: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: float = math.nan
    seeds: float = math.nan
    least: float = math.nan


VERDICTS = Table(
    words=("claim", "models", "layer", "verdict", "statement", "change"),
    numbers=("estimate", "low", "high", "p", "n", "seeds", "least"),
    help=(
        "a claim on a model or a pair of models, judged: supported, not supported (the opposite "
        "was found), inconclusive, not judged; the estimate with its interval, p corrected for all "
        "verdicts of the run, images (or classes), seeds, the least effect that counts"
    ),
)


def judge_estimate(quantity: Estimate, null: float = 0.0) -> Judgement:
    """Judge a claim that says ``quantity > null``: by where the interval lies.

    Supported if it lies above ``null`` as a whole, not supported if at or below it as a whole, else
    inconclusive: so also without an interval, or with one of no width, as of a single image or of
    networks that are always wrong.
    """
    if np.isclose(quantity.low, quantity.high, rtol=1e-9, atol=1e-12):
        return "inconclusive"
    if quantity.low > null:
        return "supported"
    return "not supported" if quantity.high <= null else "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An analysis of a study: tables, the figures that show them, verdicts that rest on them.

    Args:
        name: what it is asked for by.
        help: one line: what it tells.
        kinds: of the results that it is part of.
        tables: name -> columns.
        compute: study -> name of each table -> its rows, or arrays by group of a channel table.
        plots: the kinds of figures.
        judge: study -> verdicts on claims.
        check: of a result that was read: raises ValueError for tables that contradict each other.
        export: (result, folder): writes further files beside the tables.
        exports: the names of these files or folders.
    """

    name: str
    help: str
    kinds: tuple[Kind, ...] = ("comparison",)
    tables: Mapping[str, Table] = field(default_factory=dict)
    compute: Callable[[Study], Mapping[str, Any]] = lambda _: {}
    plots: tuple[Plot, ...] = ()
    judge: Callable[[Study], Iterable[Verdict]] | None = None
    check: "Callable[[Result], None]" = lambda _: None
    export: "Callable[[Result, Path], None]" = lambda _result, _folder: None
    exports: tuple[str, ...] = ()


ANALYSES: dict[str, Analysis] = {}
# Attributes of a result, and its files: tables are attributes too.
RESERVED = frozenset(
    {
        *("array", "arrays", "caption", "draw", "figures", "kind", "load", "meta"),
        *("open_adversarial", "plot", "plot_data", "report", "save", "select", "tables"),
        *("verdicts", "write_tables"),
    }
)


def register(analysis: Analysis) -> Analysis:
    """Enter an analysis in the registry.

    Raises:
        ValueError: for a name, of the analysis, a table or a figure, that is already there, and for
            a figure that could not be drawn.
    """
    if analysis.name in ANALYSES:
        raise ValueError(f"There are two analyses called {analysis.name!r}: rename one.")
    makers = {name: other.name for other in ANALYSES.values() for name in other.tables}
    for name in analysis.tables:
        start = f"The analysis {analysis.name!r} makes a table {name!r}"
        if name in makers:
            raise ValueError(f"{start}, as {makers[name]!r} does: rename it.")
        if name in RESERVED or not name.isidentifier():
            raise ValueError(f"{start}, which no table of a result can be called: rename it.")
    if strange := set(analysis.kinds) - {*get_args(Kind)}:
        raise ValueError(
            f"The analysis {analysis.name!r} is of the kind {min(strange)!r}: choose from "
            f"{', '.join(get_args(Kind))}."
        )
    drawn = [plot.name for other in ANALYSES.values() for plot in other.plots]
    for plot in analysis.plots:
        if plot.name in drawn:
            raise ValueError(f"There are two figures called {plot.name!r}: rename one.")
        drawn.append(plot.name)
        _check_plot(plot)
    ANALYSES[analysis.name] = analysis
    return analysis


def _check_plot(plot: Plot) -> None:
    """Raise a ValueError for a section that no page has, and a caption that cannot be filled in."""
    start = f"The figure {plot.name!r}"
    if plot.section not in get_args(Section):
        raise ValueError(
            f"{start} is in the section {plot.section!r}: choose from "
            f"{', '.join(get_args(Section))}."
        )
    parameters = signature(plot.draw).parameters.values()
    allowed = [*SENTENCES, *(parameter.name for parameter in list(parameters)[1:])]
    try:
        named = [name for _, name, _, _ in Formatter().parse(plot.caption) if name is not None]
    except ValueError as error:
        raise ValueError(f"{start} has a caption with a single brace: double it.") from error
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if (unknown := [name for name in named if name not in allowed]) and not takes_any:
        raise ValueError(
            f"{start} has a caption that names {{{unknown[0]}}}: it may name "
            f"{', '.join(allowed)}; a brace itself is doubled."
        )


def check_needs() -> None:
    """Raise a ValueError for a figure of a table that no analysis of its kind of result makes."""
    for analysis in ANALYSES.values():
        others = [item for item in ANALYSES.values() if {*item.kinds} & {*analysis.kinds}]
        tables = ["verdicts", *(name for other in others for name in other.tables)]
        for plot in analysis.plots:
            if unknown := [name for name in (plot.table, *plot.needs) if name not in tables]:
                raise ValueError(
                    f"The figure {plot.name!r} of the analysis {analysis.name!r} needs the table "
                    f"{unknown[0]!r}, which no analysis makes.{suggest(unknown[0], tables)}"
                )


def analyses_of(kind: Kind) -> list[Analysis]:
    """Return the analyses that are part of results of a kind, in the order of registration."""
    return [analysis for analysis in ANALYSES.values() if kind in analysis.kinds]


def make_tables(
    study: Study, analyses: Iterable[Analysis]
) -> tuple[dict[str, pd.DataFrame | ChannelTable], dict[str, ndarray]]:
    """Run analyses of a study; return their tables, and the arrays that they make besides."""
    check_needs()  # of analyses that were registered later
    tables: dict[str, pd.DataFrame | ChannelTable] = {}
    arrays: dict[str, ndarray] = {}
    verdicts: list[Verdict] = []
    judged = False
    for analysis in analyses:
        for name, value in _compute(analysis, study).items():
            if name in analysis.tables:
                tables[name] = _make_table(analysis, name, value, study.classes)
            elif name in arrays:
                raise ValueError(f"Two analyses make an array {name!r}: rename one.")
            else:
                arrays[name] = value
        if analysis.judge is not None:
            judged = True
            verdicts += analysis.judge(study)
    if judged:
        verdicts.sort(key=lambda verdict: verdict.claim)
        tables["verdicts"] = VERDICTS.frame(map(asdict, verdicts))
    return tables, arrays


def _compute(analysis: Analysis, study: Study) -> Mapping[str, Any]:
    """Return what an analysis makes of a study: all its tables, and else nothing but arrays."""
    made = analysis.compute(study)
    start = f"The analysis {analysis.name!r} returns"
    if not isinstance(made, Mapping):
        raise ValueError(f"{start} {made!r:.80}: return {{table: rows}}.")
    names = ", ".join(map(repr, made)) or "nothing"
    for name in analysis.tables:
        if name not in made:
            raise ValueError(f"{start} no table {name!r} but {names}: return all its tables.")
    for name, value in made.items():
        is_array = isinstance(value, ndarray) and not value.dtype.hasobject
        if name not in analysis.tables and not is_array:
            raise ValueError(
                f"{start} {name!r}, which is neither one of its tables nor an array of numbers or "
                f"texts, but {value!r:.80}."
            )
    return made


def _make_table(
    analysis: Analysis, name: str, value: Any, classes: tuple[str, ...]
) -> pd.DataFrame | ChannelTable:
    """Make a table of an analysis of its rows, or of its arrays by group; ValueError for others."""
    table = analysis.tables[name]
    try:
        if not table.by_channel:
            return table.frame(value)
        for group, columns in value.items():
            if len(group) != len(table.words):
                raise ValueError(f"its groups are {', '.join(table.words)}, not {group}")
            table.check_columns(columns)
            if {array.shape[:-1] for array in columns.values()} != {(len(classes),)}:
                raise ValueError(f"the arrays of {group} are not of (classes, channels)")
        return ChannelTable(table.words, table.numbers, classes, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The table {name!r} of the analysis {analysis.name!r}: {error}."
        ) from error


def measure_study(study: Study, model: str, layer: str, data: str = "adversarial") -> Any:
    """Return the alignment measures of a layer, measure -> (r, k), remembered by the study.

    See ``statistics.channels.measure_replicates``.
    """
    return study.memo(
        ("measures", model, layer, data),
        lambda: measure_replicates(
            study.activations(model, layer),
            study.activations(model, layer, data),
            study.relevance(model, layer),
            study.labels,
            study.weights,
            len(study.classes),
            study.settings["threshold"],
        ),
    )


def get_primary_layer(study: Study, model: str) -> str:
    """Return the layer on which claims are judged: the penultimate one, else the deepest measured.

    Other layers are exploratory: their measures are in the tables, without verdicts.
    """
    return (study.penultimate(model) or study.layers(model))[-1]


def worst_case(study: Study, model: str) -> Bool[ndarray, " n"]:
    """Return which images are classified correctly as they are and under every attack."""
    names = ("natural", *study.attacks(model))
    worst: ndarray = np.all([study.correct(model, name) for name in names], axis=0)
    return worst


def measure_robustness(
    study: Study, model: str
) -> tuple[Float[ndarray, " r"], Float[ndarray, "r k"]]:
    """Return the worst-case accuracy, of all images and by class, remembered by the study."""
    replicates: tuple[ndarray, ndarray] = study.memo(
        ("robustness", model),
        lambda: accuracy_replicates(
            worst_case(study, model), study.labels, study.weights, len(study.classes)
        ),
    )
    return replicates
