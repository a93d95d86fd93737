"""The page's tables: what each says, as text and, for sorting, as numbers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from channelscope.analyses.base import analyses_of
from channelscope.figures.words import (
    DEAD_MARK,
    DEAD_NOTE,
    format_number,
    format_percent,
    format_radius,
    list_groups,
    mark_dead,
    measured_layers,
)

if TYPE_CHECKING:
    from channelscope.result import Result

MEASURES = {
    "cosine_centred": "cosine of natural and adversarial magnitude, less their means over classes",
    "displacement": "how far the attack moves a class, in distances between classes",
    "nr_mass_natural": "share of relevant magnitude on NR channels (NR mass), natural",
    "nr_mass_adversarial": "NR mass, adversarial",
    "signed_mass_natural": "signed mass: 1 if all active channels are PR, -1 if NR, natural",
    "signed_mass_adversarial": "signed mass, adversarial",
    "nr_fall": "part of the fall of the class's logit that comes from NR channels",
    "effective_channels_natural": "number of channels that carry the magnitude, natural",
    "effective_channels_adversarial": "number of channels that carry the magnitude, adversarial",
    "dead_channels": "share of channels that never fire",
    "signed_mass_robust_correlation": (
        "Spearman correlation, across classes, of adversarial signed mass with robust accuracy"
    ),
    "cosine": "cosine of natural and adversarial magnitude",
    "spearman": "Spearman correlation of natural and adversarial magnitude",
    "shift": "mean relative shift of magnitude under attack",
    "nr_share_natural": "share of magnitude on NR channels, natural",
    "nr_share_adversarial": "share of magnitude on NR channels, adversarial",
    "nr_ratio": "that share, adversarial / natural",
    "relevance_spearman_natural": "Spearman correlation of magnitude and relevance, natural",
    "relevance_spearman_adversarial": (
        "Spearman correlation of magnitude and relevance, adversarial"
    ),
    "uniformity_natural": "evenness of activation frequency over the channels, natural",
    "uniformity_adversarial": "evenness of activation frequency over the channels, adversarial",
}
# Those that depend most on an attack's strength.
_BY_STRENGTH = {
    "robust_accuracy": "accuracy under this attack",
    **{
        name: MEASURES[name]
        for name in ("cosine_centred", "nr_mass_adversarial", "signed_mass_adversarial")
    },
}
_LEAKAGE = {
    "accuracy": "accuracy, gates without a label",
    "accuracy_true": "accuracy, gates given the true label",
    "accuracy_wrong": "accuracy, gates given a wrong label",
    "follows_wrong": "answers the wrong label that its gates are given",
    "follows_untold": "answers that wrong label, gates without a label",
    "readable": "class decoded from the mask alone, gates without a label",
    "readable_true": "class decoded from the mask alone, gates given the true label",
    "chance": "share of the most frequent class",
}
_DIFFERENCES = MEASURES | {
    "robust_accuracy": "robust accuracy, worst case",
}
# Measures whose significant differences are counted.
_COUNTED = {
    "cosine_centred": "alignment (centred cosine)",
    "nr_mass_adversarial": "NR mass, adversarial",
    "signed_mass_adversarial": "signed mass, adversarial",
    "robust_accuracy": "robust accuracy",
}
_SIGNIFICANT = 0.05  # false discovery rate
_LONGEST = 100  # rows of a tidy table that the page shows
# These do not change the numbers: the page is the same bytes without them.
_OF_THE_RUN = {"command", "created", "hardware", "batch_size"}


@dataclass(frozen=True)
class Cell:
    """A number and its interval, as text.

    Args:
        value, low, high: NaN for none.
        share: whether it is shown in percent.
        words: shown instead of the number.
        digits: behind the point, of a number that is no share.
        bars: (colour, length in [0, 1]) of bars below it; the colour is "natural" or "adversarial".
        aside: shown small, behind it.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    share: bool = False
    words: str = ""
    digits: int = 3
    bars: Sequence[tuple[str, float]] = ()
    aside: str = ""

    @classmethod
    def of(cls, row: Mapping[Any, Any], column: str = "value", share: bool = False) -> Self:
        """Make the cell of a row's column, with the row's interval."""
        return cls(float(row[column]), float(row["low"]), float(row["high"]), share)

    def with_bar(self, colour: str) -> Self:
        """Return the cell with a bar as long as its value."""
        return replace(self, bars=[make_bar(colour, self.value)])

    @property
    def text(self) -> str:
        """The number, or its words."""
        return self.words or self._format(self.value)

    @property
    def interval(self) -> str:
        """As in "[0.300, 0.900]"; empty for none."""
        if math.isnan(self.low):
            return ""
        low, high = (self._format(bound).removesuffix(" %") for bound in (self.low, self.high))
        return f"[{low}, {high}]"

    @property
    def key(self) -> str:
        """The number as the page sorts it; empty for none."""
        return "" if math.isnan(self.value) else repr(self.value)

    def __str__(self) -> str:
        """Write number and interval."""
        return f"{self.text} {self.interval}".rstrip()

    def _format(self, value: float) -> str:
        return format_percent(value) if self.share else format_number(value, self.digits)


def make_bar(colour: str, length: float) -> tuple[str, float]:
    """Return a bar of a length in [0, 1]; of none for NaN."""
    return colour, 0.0 if math.isnan(length) else min(max(length, 0.0), 1.0)


@dataclass(frozen=True)
class Row:
    """A row: what it is of, and its cells; ``strong`` stands out."""

    head: str
    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: what it shows.
        columns: their names, first that of the rows' heads.
        rows: from top to bottom.
        note: explains it.
        folded: whether it is shown on demand.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = field(default="", kw_only=True)
    folded: bool = field(default=False, kw_only=True)


def has_rows(result: "Result", *names: str) -> bool:
    """Return whether a result has all these tables, none empty."""
    return all(len(result.tables.get(name, ())) > 0 for name in names)


def list_robustness(result: "Result") -> list[Table]:
    """Return accuracy by attack, natural first and worst last, and the worst case by class."""
    if not has_rows(result, "robustness"):
        return []
    models = list(result.meta["models"])
    overall = result.select("robustness", **{"class": "all"})
    names = {"natural": "none (natural images)", "worst": "worst case over all attacks"}
    cells = _group_cells(overall, "attack", models, "accuracy")
    rows = [
        Row(names.get(attack, attack), of_attack, attack == "worst")
        for attack, of_attack in sorted(
            cells.items(), key=lambda item: (item[0] == "worst") - (item[0] == "natural")
        )
    ]
    worst = result.select("robustness", attack="worst")
    cells = _group_cells(worst, "class", models, "accuracy")
    by_class = [Row(name, cells[name]) for name in result.meta["data"]["classes"] if name in cells]
    return [
        Table("Accuracy by attack", ["attack", *models], rows),
        Table("Worst case by class", ["class", *models], by_class, folded=True),
    ]


def list_tables(result: "Result") -> dict[str, list[Table]]:
    """Return the further tables of each section of the page."""
    # The tables of the result that each is made of.
    makers: dict[str, dict[Callable[[Result], Iterable[Table]], tuple[str, ...]]] = {
        "claims": {_make_alignment: ("alignment",)},
        "network": {
            _make_flow: ("flow", "activations"),
            _make_confusion: ("confusion",),
            _make_strength: ("decay",),
        },
        "gates": {_make_spread: ("spread",), _make_leakage: ("leakage",)},
        "models": {_make_differences: ("differences",), _make_matching: ("matching",)},
    }
    tables: dict[str, list[Table]] = {}
    for section, of_section in makers.items():
        for make, names in of_section.items():
            if has_rows(result, *names):
                tables.setdefault(section, []).extend(make(result))
    return tables


def _group_cells(
    rows: pd.DataFrame,
    by: str | list[str],
    models: Iterable[str],
    column: str = "value",
    share: bool = True,
) -> dict[Any, list[Cell]]:
    """Return a cell for each model, by the value of a column; a dash where there is no row."""
    groups: dict[Any, dict[str, Cell]] = {}
    for row in rows.to_dict("records"):
        key = row[by] if isinstance(by, str) else tuple(row[name] for name in by)
        groups.setdefault(key, {})[row["model"]] = Cell.of(row, column, share)
    return {
        key: [of_model.get(model, Cell()) for model in models] for key, of_model in groups.items()
    }


def _make_alignment(result: "Result") -> Iterator[Table]:
    """Make a table for each depth, the deepest layers of all models last: a row a measure."""
    mean = result.alignment[result.alignment["class"].isin(["all", "across"])]
    layers = {
        model: list(mean.loc[mean["model"] == model, "layer"].unique())
        for model in result.meta["models"]
    }
    note = "Means over the classes; the rows of single classes are in alignment.csv."
    for depth in range(max(map(len, layers.values())), 0, -1):
        shown = {model: names[-depth] for model, names in layers.items() if len(names) >= depth}
        rows = mean[mean["layer"] == mean["model"].map(shown)]
        is_share = rows["measure"].str.contains("share")
        cells = {
            **_group_cells(rows[is_share], "measure", layers),
            **_group_cells(rows[~is_share], "measure", layers, share=False),
        }
        cells = _mark_dead(cells)
        none = [Cell()] * len(layers)
        caption = f"Alignment at layer {', '.join(dict.fromkeys(shown.values()))}"
        table = [Row(words, cells.get(measure, none)) for measure, words in MEASURES.items()]
        is_marked = any(DEAD_MARK in cell.text for row in table for cell in row.cells)
        notes = f"{note} {DEAD_MARK}: {DEAD_NOTE}." if is_marked else note
        yield Table(caption, ["measure", *layers], table, note=notes)


def _mark_dead(cells: Mapping[str, list[Cell]]) -> dict[str, list[Cell]]:
    """Mark rank correlations over channels, by measure, of models whose channels often are dead."""
    marked = dict(cells)
    dead = [cell.value for cell in cells.get("dead_channels", ())]
    for measure in (name for name in cells if dead and "spearman" in name):
        marked[measure] = [
            replace(cell, words=f"{cell.text}{mark_dead(share)}")
            for cell, share in zip(cells[measure], dead, strict=True)
        ]
    return marked


def _make_flow(result: "Result") -> Iterator[Table]:
    """Show what an attack does to positively and to negatively relevant channels."""
    rows = []
    for model, layer in list_groups(result, "flow"):
        relevance = result.array("activations", "relevance", model, "natural", layer)
        flow = {
            column: result.array("flow", column, model, layer)
            for column in ("silenced", "awakened", "change", "q")
        }
        certain = flow["q"] < _SIGNIFICANT
        shares = (
            _mean_of(flow["silenced"][relevance > 0]),
            _mean_of(flow["awakened"][relevance < 0]),
            float((certain & (flow["change"] < 0)).mean()),
            float((certain & (flow["change"] > 0)).mean()),
        )
        rows.append(Row(f"{model}, {layer}", [Cell(share, share=True) for share in shares]))
    columns = [
        "model and layer",
        "PR channels silenced",
        "NR channels awakened",
        "significantly weaker",
        "significantly stronger",
    ]
    note = (
        "Silenced: active on an image and no longer on its adversarial one; awakened: the other "
        "way round. Means over images, channels and classes. Significant: share of the channels "
        "and classes whose mean activation changes, at a false discovery rate of "
        f"{_SIGNIFICANT:.0%}. PR, NR: positively, negatively relevant to the class. Single "
        "channels are in flow.csv."
    )
    yield Table("What the attack does to channels", columns, rows, note=note)


def _mean_of(values: np.ndarray) -> float:
    """Return the mean, NaN left out; NaN of none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _make_confusion(result: "Result") -> Iterator[Table]:
    """Show the most frequent wrong answer under attack."""
    rows = result.select("confusion", data="adversarial")
    if rows.empty:
        return
    totals = rows.groupby(["class", "model"])["count"].sum()
    wrong = rows[(rows["answer"] != rows["class"]) & (rows["count"] > 0)]
    wrong = wrong.sort_values("count", ascending=False, kind="stable")
    wrong = wrong.drop_duplicates(["class", "model"])
    most = {(row["class"], row["model"]): row for row in wrong.to_dict("records")}
    models = list(result.meta["models"])
    table = []
    for name in result.meta["data"]["classes"]:
        cells = []
        for model in models:
            row = most.get((name, model))
            share = float(row["count"] / totals[name, model]) if row else math.nan
            words = f"{row['answer']} {format_percent(share)}" if row else ""
            cells.append(Cell(share, words=words))
        table.append(Row(name, cells))
    note = "With its share of the class's images. All answers are in confusion.csv."
    caption = "Most frequent wrong answer under attack"
    yield Table(caption, ["class", *models], table, note=note, folded=True)


def _make_strength(result: "Result") -> Iterator[Table]:
    """Show measures by the attack's strength, at each model's last layer."""
    models = list(result.meta["models"])
    last = {model: layers[-1] for model, layers in measured_layers(result).items()}
    at_last = result.decay["layer"] == result.decay["model"].map(last)
    rows = result.decay[at_last | (result.decay["measure"] == "robust_accuracy")]
    rows = rows[rows["measure"].isin(_BY_STRENGTH)]
    for (varied, measure), of_measure in rows.groupby(["varied", "measure"], sort=False):
        is_share = "share" in str(measure) or measure == "robust_accuracy"
        cells = _group_cells(of_measure, "at", models, share=is_share)
        write = format_radius if varied == "eps" else "{:g}".format
        table = [Row(write(at), cells[at]) for at in sorted(cells)]
        strength = "eps" if varied == "eps" else "attack's step"
        words = _BY_STRENGTH[str(measure)]
        caption = f"{words[0].upper()}{words[1:]}, by {strength}"
        note = "Other measures, and other layers, are in decay.csv."
        yield Table(caption, [strength, *models], table, note=note, folded=True)


def _make_spread(result: "Result") -> Iterator[Table]:
    rows = result.select("spread", **{"class": "all"}).assign(measure="effective channels")
    caption = "Share of the channels that a mask passes"
    note = "100 %: all channels alike; mean over the images. Classes are in spread.csv."
    yield from _make_gate_table(result, rows, caption, note)


def _make_leakage(result: "Result") -> Iterator[Table]:
    caption = "What gates reveal of the label"
    note = (
        "In training, gates are given the label. If the answer follows a wrong label, they pass "
        "the label on, and what the network learns with it is missing in use, when there is none."
    )
    yield from _make_gate_table(result, result.leakage, caption, note)


def _make_gate_table(
    result: "Result", rows: pd.DataFrame, caption: str, note: str
) -> Iterator[Table]:
    gated = set(rows["model"])
    models = [model for model in result.meta["models"] if model in gated]
    cells = _group_cells(rows, ["measure", "layer", "data"], models)
    table = []
    for (measure, layer, data), of_measure in cells.items():
        words = (_LEAKAGE.get(measure, measure), layer, f"{data} images")
        table.append(Row(", ".join(filter(None, words)), of_measure))
    if table:
        yield Table(caption, ["measure", *models], table, note=note)


def _make_differences(result: "Result") -> Iterator[Table]:
    """Show the differences of the means over classes, and how many of all are significant."""
    table = []
    for row in result.select("differences", **{"class": "all"}).to_dict("records"):
        measure, q = row["measure"], float(row["q"])
        pair = f"{row['model']} − {row['other']}"
        words = (pair, _DIFFERENCES.get(measure, measure), row["layer"])
        text = "–" if math.isnan(q) else f"{q:.2g}" if q >= 1e-3 else "< 0.001"
        cells = [Cell.of(row, share=measure == "robust_accuracy"), Cell(q, words=text)]
        table.append(Row(", ".join(filter(None, words)), cells, strong=q < _SIGNIFICANT))
    if not table:
        return
    note = (
        "The same images in both. q: p corrected for all comparisons of a pair; bold: q below "
        f"{_SIGNIFICANT}. Single classes are in differences.csv."
    )
    columns = ["models and measure", "difference", "q"]
    yield Table("Differences between models", columns, table, note=note)
    yield _count_differences(result.differences)


def _count_differences(differences: pd.DataFrame) -> Table:
    """Count each pair's differences that remain significant after the correction."""
    table = []
    for (model, other), pair in differences.groupby(["model", "other"], sort=False):
        cells = []
        for rows in (pair, *(pair[pair["measure"] == measure] for measure in _COUNTED)):
            certain, tested = int((rows["q"] < _SIGNIFICANT).sum()), int(rows["q"].count())
            cells.append(Cell(float(certain), words=f"{certain} of {tested}"))
        table.append(Row(f"{model} − {other}", cells))
    note = (
        "Over all classes and layers, and the means over the classes: how many differences are "
        f"significant at a false discovery rate of {_SIGNIFICANT:.0%}, of how many tested. "
        "Alignment: paired bootstrap; accuracy: McNemar's exact test."
    )
    columns = ["models", "all", *_COUNTED.values()]
    return Table("Differences that remain significant", columns, table, note=note)


def _make_matching(result: "Result") -> Iterator[Table]:
    table = []
    for row in result.matching.to_dict("records"):
        head = f"{row['model']} {row['layer']} – {row['other']} {row['other_layer']}"
        table.append(Row(head, [Cell.of(row, "cka")]))
    note = (
        "Linear CKA of natural activations: 1 where one layer's are the other's, rotated and "
        "scaled; 0 where they have nothing in common. Channels that correspond are in matched.csv."
    )
    yield Table("How similar layers of two models are", ["layers", "CKA"], table, note=note)


def list_plain_tables(result: "Result") -> list[Table]:
    """Return the tidy tables of a result as they are, but for the longest and those by channel."""
    tables = []
    for analysis in analyses_of(result.kind):
        for name, described in analysis.tables.items():
            if described.by_channel or not has_rows(result, name):
                continue
            frame = result.select(name)
            note = f"{described.help}."
            if len(frame) > _LONGEST:
                note = f"{note} Its first {_LONGEST} of {len(frame):,} rows; all are in {name}.csv."
            numbers = [column for column in frame if column in described.numbers]
            words = [column for column in frame if column not in numbers]
            rows = [
                Row(
                    ", ".join(str(row[word]) for word in words if row[word] not in ("", None)),
                    [Cell(math.nan if row[number] is None else row[number]) for number in numbers],
                )
                for row in frame.head(_LONGEST).to_dict("records")
            ]
            heads = [", ".join(map(str, words)), *map(str, numbers)]
            tables.append(Table(f"{name}.csv", heads, rows, note=note, folded=True))
    return tables


def list_settings(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return all settings that the numbers depend on, as (name, text)."""
    return [
        (key, format_radius(value) if key == "eps" else _format_value(value))
        for key, value in meta.items()
        if key not in _OF_THE_RUN
    ]


def _format_value(value: Any) -> str:
    """Write a value: a line for each entry of a dictionary, and within it all in one line."""
    if isinstance(value, Mapping):
        entries = [f"{key}: {_format_value(entry)}" for key, entry in value.items()]
        return "\n".join(entry.replace("\n", "; ") for entry in entries)
    if isinstance(value, list):
        return ", ".join(map(_format_value, value)).replace("\n", "; ") or "none"
    return str(value)
