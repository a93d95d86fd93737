"""The page's tables: what each says, as text and, for sorting, as numbers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from channelscope.result import Result


MEASURES = {
    "cosine": "cosine of natural and adversarial magnitude",
    "spearman": "Spearman correlation of natural and adversarial magnitude",
    "shift": "mean relative shift of magnitude under attack",
    "nr_share_natural": "share of magnitude on NR channels, natural",
    "nr_share_adversarial": "share of magnitude on NR channels, adversarial",
    "nr_ratio": "that share, adversarial / natural",
    "relevance_spearman_natural": "Spearman correlation of magnitude and relevance, natural",
    "relevance_spearman_adversarial": "Spearman correlation of magnitude and relevance, adversarial",
    "relevance_robust_correlation": "Spearman correlation, across classes, of the line above with robust accuracy",
    "uniformity_natural": "evenness of activation frequency over the channels, natural",
    "uniformity_adversarial": "evenness of activation frequency over the channels, adversarial",
}
# What tells most of an attack's strength.
BY_STRENGTH = (
    "robust_accuracy",
    "cosine",
    "nr_share_adversarial",
    "relevance_spearman_adversarial",
)
TOLD = {
    "accuracy": "answers the true class, gates told nothing",
    "accuracy_true": "answers the true class, gates told that class",
    "accuracy_wrong": "answers the true class, gates told a wrong class",
    "follows_wrong": "answers the wrong class that its gates are told",
    "follows_untold": "answers that wrong class, gates told nothing",
    "readable": "class read from the mask alone, gates told nothing",
    "readable_true": "class read from the mask alone, gates told the true class",
    "chance": "share of the most frequent class",
}
SIGNIFICANT = 0.05  # share of false discoveries


@dataclass(frozen=True)
class Cell:
    """What a cell shows, its interval, and its number for sorting; NaN for none."""

    text: str
    interval: str = ""
    value: float = math.nan

    @property
    def key(self) -> str:
        """The number as the page keeps it; nothing for none."""
        return "" if math.isnan(self.value) else repr(self.value)


@dataclass(frozen=True)
class Row:
    """A row: what it is of, and its cells; `strong` stands out."""

    head: str
    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table: what it shows, its columns' names (the first is that of the rows), and its rows; `note` explains it."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = field(default="", kw_only=True)
    folded: bool = field(default=False, kw_only=True)


def number(value: float) -> str:
    """Three decimals and a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:z.3f}".replace("-", "−")


def percent(value: float) -> str:
    """As in "51.0 %"; a dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:z.1f} %".replace("-", "−")


def radius(eps: float) -> str:
    """As papers have it: "8/255", or a decimal number where it is no such fraction."""
    levels = round(eps * 255, 4)
    return f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:.4g}"


def bounded(row: pd.Series, value: str, share: bool = False) -> tuple[str, str]:
    """The value and its interval, as text; dashes for NaN."""
    text = percent if share else number
    low, high = (text(float(row[bound])).removesuffix(" %") for bound in ("low", "high"))
    return text(float(row[value])), f"[{low}, {high}]" if low != "–" else ""


def _cell(row: pd.Series, value: str, share: bool = False) -> Cell:
    return Cell(*bounded(row, value, share), float(row[value]))


def _plain(value: float, share: bool = False) -> Cell:
    return Cell((percent if share else number)(value), value=value)


def _cells(
    rows: pd.DataFrame, models: Iterable[str], value: str, share: bool = False
) -> list[Cell]:
    """One cell per model; a dash where the model has no such row."""
    found = {str(row["model"]): _cell(row, value, share) for _, row in rows.iterrows()}
    return [found.get(model, Cell("–")) for model in models]


def robustness(result: "Result") -> Table:
    """A row per attack, natural first and worst last: a cell per model."""
    rows = result.robustness[result.robustness["class"] == "all"]
    attacks = sorted(
        rows["attack"].unique(), key=lambda name: (name == "worst") - (name == "natural")
    )
    models = list(result.meta["models"])
    words = {"natural": "none (natural images)", "worst": "worst case over all attacks"}
    laid = [
        Row(
            words.get(name, name),
            _cells(rows[rows["attack"] == name], models, "accuracy", True),
            name == "worst",
        )
        for name in attacks
    ]
    return Table("Accuracy by attack", ["attack", *models], laid)


def by_class(result: "Result") -> Table:
    """A row per class: worst-case accuracy of each model."""
    worst, models = (
        result.robustness[result.robustness["attack"] == "worst"],
        list(result.meta["models"]),
    )
    classes = result.meta["data"]["classes"]
    laid = [
        Row(name, _cells(worst[worst["class"] == name], models, "accuracy", True))
        for name in classes
    ]
    return Table("Worst case by class", ["class", *models], laid, folded=True)


def by_section(result: "Result") -> dict[str, list[Table]]:
    """The further tables of each section; those that have nothing to say are left out."""
    laid = {
        "claims": [*_alignment(result)],
        "network": [*_flow(result), *_confusion(result), *_decay(result)],
        "gates": [*_masks(result), *_leakage(result)],
        "models": [*_differences(result), *_matching(result)],
    }
    return {name: tables for name, tables in laid.items() if tables}


def _alignment(result: "Result") -> Iterator[Table]:
    """A table per depth, the deepest layers of all models in the last: a row per measure, a cell per model."""
    summed = result.alignment[result.alignment["class"].isin(["all", "across"])]
    layers = {
        model: list(summed[summed["model"] == model]["layer"].unique())
        for model in result.meta["models"]
    }
    note = "Means over the classes; the rows of single classes are in alignment.csv."
    for depth in range(max(map(len, layers.values())), 0, -1):
        shown = {model: names[-depth] for model, names in layers.items() if len(names) >= depth}
        rows = summed[summed["layer"] == summed["model"].map(shown)]
        laid = [
            Row(
                words,
                _cells(rows[rows["measure"] == measure], list(layers), "value", "share" in measure),
            )
            for measure, words in MEASURES.items()
        ]
        caption = f"Alignment at layer {', '.join(dict.fromkeys(shown.values()))}"
        yield Table(caption, ["measure", *layers], laid, note=note)


def _flow(result: "Result") -> Iterator[Table]:
    """What an attack does to channels that speak for the class, and to those that speak against it."""
    if result.flow.empty:
        return
    keys = ["model", "layer", "class", "channel"]
    natural = result.activations[result.activations["data"] == "natural"]
    flow = result.flow.merge(natural[[*keys, "relevance"]], on=keys)
    laid = []
    for (model, layer), rows in flow.groupby(["model", "layer"], sort=False):
        sure = rows[rows["q"] < SIGNIFICANT]
        shares = (
            rows.loc[rows["relevance"] > 0, "silenced"].mean(),
            rows.loc[rows["relevance"] < 0, "awakened"].mean(),
            float((sure["change"] < 0).sum()) / len(rows),
            float((sure["change"] > 0).sum()) / len(rows),
        )
        laid.append(
            Row(f"{model}, {layer}", [_plain(float(share), share=True) for share in shares])
        )
    columns = [
        "PR channels silenced",
        "NR channels awakened",
        "significantly weaker",
        "significantly stronger",
    ]
    note = (
        "Silenced: active on an image and no longer on its adversarial one; awakened: the other way round. Means over "
        "images, channels and classes. Significant: share of the channels and classes whose mean activation changes, "
        f"at a false discovery rate of {SIGNIFICANT:.0%}. PR: the channel speaks for the class, NR: against it. Single "
        "channels are in flow.csv."
    )
    yield Table("What the attack does to channels", ["model and layer", *columns], laid, note=note)


def _confusion(result: "Result") -> Iterator[Table]:
    """The wrong answer that is given most often under attack."""
    frame = result.confusion[result.confusion["data"] == "adversarial"]
    if frame.empty:
        return
    models, laid = list(result.meta["models"]), []
    for name in result.meta["data"]["classes"]:
        of_class = frame[frame["class"] == name]
        laid.append(
            Row(name, [_mistaken(of_class[of_class["model"] == model]) for model in models])
        )
    note = "Share of the class's adversarial images that get this answer. All answers are in confusion.csv."
    caption = "Wrong answer given most often under attack"
    yield Table(caption, ["class", *models], laid, note=note, folded=True)


def _mistaken(answers: pd.DataFrame) -> Cell:
    wrong = answers[answers["answer"] != answers["class"]].sort_values(
        "count", ascending=False, kind="stable"
    )
    if wrong.empty or not wrong["count"].iloc[0]:
        return Cell("–")
    share = float(wrong["count"].iloc[0] / answers["count"].sum())
    return Cell(f"{wrong['answer'].iloc[0]} {percent(share)}", value=share)


def _decay(result: "Result") -> Iterator[Table]:
    """How a measure changes with the attack's strength, at each model's last layer."""
    models = result.meta["models"]
    last = {model: known["layers"][-1] for model, known in models.items()}
    at_last = result.decay["layer"] == result.decay["model"].map(last)
    frame = result.decay[at_last | (result.decay["measure"] == "robust_accuracy")]
    frame = frame[frame["measure"].isin(BY_STRENGTH)]
    for (varied, measure), rows in frame.groupby(["varied", "measure"], sort=False):
        laid = []
        for at in sorted(rows["at"].unique()):
            is_share = "share" in str(measure) or measure == "robust_accuracy"
            cells = _cells(rows[rows["at"] == at], models, "value", is_share)
            laid.append(Row(radius(at) if varied == "eps" else f"{at:g}", cells))
        words = (
            "accuracy under this attack" if measure == "robust_accuracy" else MEASURES[str(measure)]
        )
        note = "Other measures, and other layers, are in decay.csv."
        of = "eps" if varied == "eps" else "attack's step"
        yield Table(
            f"{words[0].upper()}{words[1:]}, by {of}", [of, *models], laid, note=note, folded=True
        )


def _masks(result: "Result") -> Iterator[Table]:
    frame = result.spread[result.spread["class"] == "all"]
    yield from _of_gates(
        result,
        frame.assign(measure="effective channels"),
        "Share of the channels that a mask lets pass",
        "100 %: all channels pass alike; mean over the images. Classes are in spread.csv.",
    )


def _leakage(result: "Result") -> Iterator[Table]:
    yield from _of_gates(
        result,
        result.leakage,
        "What gates let know of the label",
        "In training gates are given the label. If the answer follows a wrong label that they are told, they pass the "
        "label on, and what the network learns with it is missing in use, when there is none.",
    )


def _of_gates(result: "Result", frame: pd.DataFrame, caption: str, note: str) -> Iterator[Table]:
    models, laid = (
        [model for model in result.meta["models"] if model in set(frame["model"])],
        [],
    )
    for (measure, layer, data), rows in frame.groupby(["measure", "layer", "data"], sort=False):
        head = [TOLD.get(str(measure), str(measure)), str(layer), f"{data} images"]
        laid.append(
            Row(", ".join(word for word in head if word), _cells(rows, models, "value", share=True))
        )
    if laid:
        yield Table(caption, ["measure", *models], laid, note=note)


def _differences(result: "Result") -> Iterator[Table]:
    frame = result.differences[result.differences["class"] == "all"]
    laid = []
    for _, row in frame.iterrows():
        layer = str(row["layer"])
        words = {
            "robust_accuracy": "robust accuracy, worst case",
            "nr_ratio": "share on NR channels, adversarial / natural",
        }
        measure = words.get(
            str(row["measure"]), MEASURES.get(str(row["measure"]), str(row["measure"]))
        )
        head = [f"{row['model']} − {row['other']}", measure, layer]
        share = row["measure"] == "robust_accuracy"
        cells = [_cell(row, "value", share), Cell(_small(row["q"]), value=float(row["q"]))]
        laid.append(
            Row(
                ", ".join(word for word in head if word), cells, strong=bool(row["q"] < SIGNIFICANT)
            )
        )
    if laid:
        note = (
            f"The same images in both. q: p corrected for all that is compared of a pair; bold: q below {SIGNIFICANT}. "
            "Single classes are in differences.csv."
        )
        yield Table(
            "Differences between models", ["models and measure", "difference", "q"], laid, note=note
        )
        yield _surviving(result.differences)


def _surviving(differences: pd.DataFrame) -> Table:
    """How many of the differences of each pair of models remain after the correction, by measure."""
    words = {
        "cosine": "cosine",
        "nr_ratio": "NR share, adversarial / natural",
        "relevance_spearman_adversarial": "Spearman with relevance",
        "robust_accuracy": "robust accuracy",
    }
    laid = []
    for (model, other), pair in differences.groupby(["model", "other"], sort=False):
        parts = [pair, *(pair[pair["measure"] == measure] for measure in words)]
        counts = [
            (int((part["q"] < SIGNIFICANT).sum()), int(part["q"].notna().sum())) for part in parts
        ]
        laid.append(
            Row(
                f"{model} − {other}",
                [Cell(f"{sure} of {n}", value=float(sure)) for sure, n in counts],
            )
        )
    note = (
        "Of all classes and layers, and of the means over the classes: how many differences are significant at a false "
        f"discovery rate of {SIGNIFICANT:.0%}, of how many that were tested. Alignment: paired bootstrap; accuracy: "
        "McNemar's exact test."
    )
    return Table(
        "Differences that remain significant", ["models", "all", *words.values()], laid, note=note
    )


def _small(q: float) -> str:
    return "–" if math.isnan(q) else f"{q:.2g}" if q >= 1e-3 else "< 0.001"


def _matching(result: "Result") -> Iterator[Table]:
    frame = result.matching
    laid = [
        Row(
            f"{row['model']} {row['layer']} – {row['other']} {row['other_layer']}",
            [_cell(row, "cka")],
        )
        for _, row in frame.iterrows()
    ]
    if laid:
        note = (
            "Linear CKA of natural activations: 1 where one layer's are the other's, turned and scaled; 0 where they "
            "have nothing in common. Channels that correspond are in matched.csv."
        )
        yield Table("How alike layers of two models are", ["layers", "CKA"], laid, note=note)


# The page is the same, to the byte, whenever and however the same result is found.
_OF_THE_RUN = {"command", "created", "hardware", "batch_size"}


def settings(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """All settings of the run that its numbers depend on, as (name, text)."""
    shown = {key: value for key, value in meta.items() if key not in _OF_THE_RUN}
    return [(key, radius(value) if key == "eps" else _text(value)) for key, value in shown.items()]


def _text(value: Any) -> str:
    """A value in words: a line for each entry of a dictionary, and within it all in one line."""
    if isinstance(value, dict):
        return "\n".join(
            f"{key}: {_text(entry)}".replace("\n", "; ") for key, entry in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_text, value)).replace("\n", "; ") or "none"
    return str(value)
