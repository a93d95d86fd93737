"""The first screen: which network is robust, how sure that is, and what goes with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from channelscope.analyses.film import describe_changes, describe_differences
from channelscope.analyses.relevance import count_signs
from channelscope.analyses.robustness import is_made_for_gates
from channelscope.figures.words import (
    choose_layers,
    format_attack,
    format_number,
    format_percent,
)
from channelscope.report.sentences import describe_leaks
from channelscope.report.tables import Cell, Row, Table, has_rows, make_bar
from channelscope.statistics.intervals import Estimate, paired_difference

if TYPE_CHECKING:
    from channelscope.result import Result

_NAMED = 4  # models that a sentence goes through
_SOME = 0.125  # of a layer's channels: the repair that is shown
_HALF = 0.5  # of the damage
_RANKS = 128  # steps of a profile, at most
_WIDTH, _HEIGHT = 256, 100  # of a profile, in its own units
# The tables without which there is no summary.
_NEEDS: dict[str, tuple[str, ...]] = {
    "comparison": (),
    "evaluation": ("worst_case",),
    "intervention": ("league",),
    "relevance": ("relevance", "agreement"),
    "damage": ("damage", "completeness", "kinds", "concentration", "repairs"),
    "film": ("film", "film_changes", "film_overfitting", "film_differences"),
    "sweep": ("variants",),
}
# The measures of a comparison's table.
_MASSES = ("nr_mass_natural", "nr_mass_adversarial")
_ALIGNMENT = "cosine_centred"


@dataclass(frozen=True)
class Profile:
    """Channel magnitudes of one model, as two paths over channels sorted by relevance.

    Args:
        model, layer: whose.
        natural: the area below the natural magnitudes, an SVG path.
        adversarial: the line of the adversarial ones.
        turn: where relevance turns from negative to positive, in percent of the width.
        most: the largest magnitude drawn.
    """

    model: str
    layer: str
    natural: str
    adversarial: str
    turn: str
    most: str


@dataclass(frozen=True)
class Summary:
    """The first screen.

    Args:
        headline: the answer, in a sentence.
        reasons: what goes with it.
        table: a row a network.
        profiles: the channel magnitudes, a model each.
        notes: the numbers that the answer rests on, and what is to be known besides.
    """

    headline: str
    reasons: Sequence[str] = ()
    table: Table | None = None
    profiles: Sequence[Profile] = ()
    notes: Sequence[str] = ()


def summarise(result: "Result") -> Summary:
    """Return the first screen of a result's page."""
    describe = {
        "comparison": _summarise_comparison,
        "evaluation": _summarise_evaluation,
        "intervention": _summarise_intervention,
        "relevance": _summarise_relevance,
        "damage": _summarise_damage,
        "film": _summarise_film,
        "sweep": _summarise_sweep,
    }[result.kind]
    if not set(_NEEDS[result.kind]) <= set(result.tables):
        return Summary("Some analyses, without those that answer at a glance.")
    return describe(result)


# ---------------------------------------------------------------- which network is robust


def find_worst_cases(result: "Result") -> dict[str, Bool[ndarray, " n"]]:
    """Return for each model which images are right as they are and under every attack on it.

    Models whose images a result does not tell are left out.
    """
    worst = {}
    for index, model in enumerate(result.meta["models"]):
        start = f"correct/{index}/"
        correct = [
            images
            for name, images in result.arrays.items()
            if name.startswith(start) and images.shape == result.arrays["labels"].shape
        ]
        if correct:
            worst[model] = reduce(np.logical_and, correct).astype(bool)
    return worst


def name_winner(result: "Result", faulty: set[str]) -> tuple[str, list[str]]:
    """Say which network is the most robust: one alone, only where paired differences tell it.

    A network is ahead of another where the interval of the difference of their worst cases, on the
    same images, lies above 0. One that cannot be trusted is not compared.

    Returns:
        The headline, and the differences that it rests on.
    """
    worst = {
        model: right for model, right in find_worst_cases(result).items() if model not in faulty
    }
    if not worst:
        text = "No network's robustness was measured in a way that can be trusted."
        return (text if faulty else "No robustness was measured."), []
    shares = {model: float(right.mean()) for model, right in worst.items()}
    ranked = sorted(worst, key=lambda model: -shares[model])
    best, others = ranked[0], ranked[1:]
    if not shares[best] > 0:
        return "No network withstands the attacks on any image.", []
    share = f"{best} withstands every attack tried on {format_percent(shares[best])} of the images"
    if not others:
        return f"{share}.", []
    level = result.meta.get("level", 0.95)
    ahead = {other: paired_difference(worst[best], worst[other], level) for other in others}
    equal = [other for other in others if not ahead[other].low > 0]
    behind = [other for other in others if other not in equal]
    reasons = [
        f"The worst case of {best} minus that of {other}, on the same images: "
        f"{_format_points(ahead[other], level)}."
        for other in [*equal[:1], *behind[:1]]
    ]
    if not equal:
        among = " of the networks that can be trusted" if faulty else ""
        return f"{best} is the most robust{among}: it{share.removeprefix(best)}.", reasons
    alike = [f"{name} ({format_percent(shares[name])})" for name in (best, *equal)]
    ends = f"; {best} is ahead of {_join(behind)}" if behind else ""
    text = "No network is shown to be the most robust: the worst-case accuracies of"
    return f"{text} {_join(alike)} do not differ beyond chance{ends}.", reasons


def _format_points(difference: Estimate, level: float) -> str:
    value, low, high = (
        format_number(100 * number, 1)
        for number in (difference.value, difference.low, difference.high)
    )
    return f"{value} points ({100 * level:g} % CI {low} to {high})"


def _join(names: list[str]) -> str:
    """Join names as in "a, b and c"; many are cut."""
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def list_faults(result: "Result") -> dict[str, list[str]]:
    """Return why numbers cannot be trusted, by model."""
    faults: dict[str, list[str]] = {}
    for name in ("faults", "warnings"):
        if has_rows(result, name):
            for row in result.select(name).to_dict("records"):
                faults.setdefault(row["model"], []).append(row["sentence"])
    return faults


def _warn(faults: Mapping[str, list[str]]) -> list[str]:
    return [f"Do not trust {model}. {' '.join(lines)}" for model, lines in faults.items()]


# ---------------------------------------------------------------- kinds of results


def _summarise_comparison(result: "Result") -> Summary:
    faults = list_faults(result)
    headline, differences = name_winner(result, set(faults))
    return Summary(
        headline,
        [*_warn(faults), *filter(None, [_say_mass(result, set(faults))])],
        _tabulate_comparison(result, set(faults)),
        list_profiles(result),
        [*filter(None, [" ".join(differences)]), *describe_leaks(result)],
    )


def _take_measure(result: "Result", measure: str) -> dict[str, Cell]:
    """Return a measure of each model's last layer, mean over the classes."""
    if not has_rows(result, "alignment"):
        return {}
    cells = {}
    for model, layer in choose_layers(result).items():
        rows = result.select("alignment", model=model, layer=layer, measure=measure)
        for row in rows[rows["class"] == "all"].to_dict("records"):
            cells[model] = Cell.of(row, share=measure in _MASSES)
    return cells


def _say_mass(result: "Result", faulty: set[str]) -> str:
    """Say how much activation is on NR channels, and whether that has the order of robustness.

    Networks that cannot be trusted are left out.
    """
    natural, adversarial = (_take_measure(result, measure) for measure in _MASSES)
    models = [
        model
        for model, cell in adversarial.items()
        if model not in faulty and not math.isnan(cell.value)
    ]
    if not models:
        return ""
    parts = [
        f"from {natural[model].text} to {adversarial[model].text} in {model}"
        for model in models[:_NAMED]
    ]
    said = (
        "NR mass, the share of activation times relevance on channels that speak against the "
        f"class, goes under {format_attack(result.meta['attack'])} {', '.join(parts)}"
    )
    worst = {model: right.mean() for model, right in find_worst_cases(result).items()}
    if len(models) < 2 or not worst.keys() >= set(models):
        return f"{said}."
    by_mass = sorted(models, key=lambda model: adversarial[model].value)
    shares = [worst[model] for model in by_mass]
    if all(one > other for one, other in pairwise(shares)):
        return f"{said}. The less of it under the attack, the more robust the network here."
    return f"{said}. It does not order the networks as their robustness does."


def _find_concentration(result: "Result") -> dict[str, Cell]:
    """Return how many channels cover half of each model's damage, and of how many."""
    if not has_rows(result, "damage_concentration"):
        return {}
    rows = result.select("damage_concentration", covered=_HALF).to_dict("records")
    return {row["model"]: _count_channels(row) for row in rows}


def _tabulate_comparison(result: "Result", faulty: set[str]) -> Table | None:
    """Make the table: a row a model, with bars."""
    accuracy = _find_accuracies(result)
    masses = [_take_measure(result, measure) for measure in _MASSES]
    alignment = _take_measure(result, _ALIGNMENT)
    plain, strongest = accuracy["plain"], {cell.aside for cell in accuracy["plain"].values()}
    head = "strongest plain attack"
    if len(strongest) == 1:  # said once
        head = f"{head} ({strongest.pop()})"
        plain = {model: replace(cell, aside="") for model, cell in plain.items()}
    columns: dict[str, dict[str, Cell]] = {
        "natural": accuracy["natural"],
        head: plain,
        "worst case": accuracy["worst"],
        "NR mass, natural → attacked": _pair_masses(*masses),
        "alignment": {model: cell.with_bar("natural") for model, cell in alignment.items()},
        "channels with half the damage": _find_concentration(result),
    }
    shown = {name: cells for name, cells in columns.items() if cells}
    if not shown:
        return None
    rows = [
        Row(
            f"{model} (not trusted)" if model in faulty else model,
            [cells.get(model, Cell()) for cells in shown.values()],
        )
        for model in result.meta["models"]
    ]
    note = (
        f"In brackets: {100 * result.meta.get('level', 0.95):g} % intervals. Worst case: right "
        "under every attack tried; plain: attacks that are not made for gates. Alignment: 1 where "
        "the attack leaves what tells a class's activations from others'."
    )
    return Table("The networks at a glance", ["network", *shown], rows, note=note)


def _pair_masses(natural: Mapping[str, Cell], attacked: Mapping[str, Cell]) -> dict[str, Cell]:
    return {
        model: Cell(
            attacked[model].value,
            words=f"{natural[model].text} → {attacked[model].text}",
            bars=[
                make_bar("natural", natural[model].value),
                make_bar("adversarial", attacked[model].value),
            ],
        )
        for model in attacked
    }


def _find_accuracies(result: "Result") -> dict[str, dict[str, Cell]]:
    """Return natural accuracy, that under the strongest plain attack, and the worst case."""
    cells: dict[str, dict[str, Cell]] = {"natural": {}, "plain": {}, "worst": {}}
    if not has_rows(result, "robustness"):
        return cells
    overall = result.select("robustness", **{"class": "all"}).dropna(subset=["accuracy"])
    for model, rows in overall.groupby("model", sort=False):
        of_model = {row["attack"]: row for row in rows.to_dict("records")}
        for name, kind in (("natural", "natural"), ("worst", "adversarial")):
            if name in of_model:
                cell = Cell.of(of_model[name], "accuracy", share=True)
                cells[name][str(model)] = cell.with_bar(kind)
        plain = [
            row
            for name, row in of_model.items()
            if name not in ("natural", "worst") and not is_made_for_gates(name)
        ]
        if plain:
            strongest = min(plain, key=lambda row: row["accuracy"])
            cell = Cell.of(strongest, "accuracy", share=True).with_bar("adversarial")
            cells["plain"][str(model)] = replace(cell, aside=format_attack(strongest["attack"]))
    return cells


def _summarise_evaluation(result: "Result") -> Summary:
    faults = list_faults(result)
    rows = []
    for row in result.worst_case.to_dict("records"):
        natural = Cell(float(row["natural"]), share=True).with_bar("natural")
        worst = Cell.of(row, "robust", share=True).with_bar("adversarial")
        decided = Cell(words=format_attack(row["decided_by"]))
        rows.append(Row(row["model"], [natural, worst, decided]))
    columns = ["network", "natural", "worst case", "decided by"]
    table = Table("The networks at a glance", columns, rows)
    headline, differences = name_winner(result, set(faults))
    return Summary(headline, [*_warn(faults), *differences], table)


def _summarise_damage(result: "Result") -> Summary:
    rows, parts = [], []
    for row in result.completeness.to_dict("records"):
        where = {name: row[name] for name in ("model", "layer", "masks")}
        half = result.select("concentration", **where, covered=_HALF).to_dict("records")
        channels = _count_channels(half[0]) if half else Cell()
        if half:
            parts.append(f"{channels.text} channels of {row['layer']} in {row['model']}")
        kinds = result.select("kinds", **where, kind="NR rises", **{"class": "all"})
        del where["masks"]
        repairs = result.select(
            "repairs", **where, ranking="account", curve="repair", fraction=_SOME
        )
        cells = [
            _count_broken(result, row["model"]),
            channels,
            _take_share(kinds, "share", "adversarial"),
            _take_share(repairs, "right", "natural"),
        ]
        head = f"{row['model']}, {row['layer']}"
        rows.append(Row(f"{head}, masks held" if row["masks"] == "held" else head, cells))
    columns = ["network and layer", "right images that it breaks", "channels with half the damage"]
    columns += ["done by NR channels that rise", "repaired by an eighth of the channels"]
    table = Table("The damage at a glance", columns, rows)
    headline = "The attack breaks no image."
    if parts:
        headline = f"Half of the attack's damage passes through {'; '.join(parts[:_NAMED])}."
    reason = (
        "Damage is the fall of the margin of the label over the wrong answer; channels that are "
        "put back to their natural values, the most damaging first, repair the broken images."
    )
    return Summary(headline, [*_warn(list_faults(result)), reason], table)


def _count_channels(row: Mapping[Any, Any]) -> Cell:
    """Return how many channels cover a share of the damage, and of how many."""
    cell, channels = replace(Cell.of(row, "channels"), digits=1), float(row["of"])
    bar = make_bar("adversarial", cell.value / channels)
    return replace(cell, words=f"{cell.text} of {channels:g}", bars=[bar])


def _count_broken(result: "Result", model: str) -> Cell:
    totals = result.select("damage", model=model, **{"class": "all"}).to_dict("records")
    if not totals:
        return Cell()
    broken, correct = float(totals[0]["broken"]), float(totals[0]["correct"])
    cell = Cell(broken / max(correct, 1), words=f"{broken:.0f} of {correct:.0f}")
    return cell.with_bar("adversarial")


def _take_share(table: pd.DataFrame, column: str, colour: str) -> Cell:
    """Return the share in the first row of a table; an empty cell for none."""
    rows = table.to_dict("records")
    return Cell.of(rows[0], column, share=True).with_bar(colour) if rows else Cell()


def _summarise_intervention(result: "Result") -> Summary:
    best = result.select("league", order="both", data="adversarial", rank=1.0)
    rows, parts = [], []
    for (model, layer), of_layer in best.groupby(["model", "layer"], sort=False):
        row = of_layer.iloc[0].to_dict()
        scorers = _join(of_layer["scorer"].tolist())
        cells = [Cell(words=scorers), Cell.of(row, share=True)]
        cells += _take_suppression(
            result, {name: row[name] for name in ("model", "layer", "scorer")}
        )
        rows.append(Row(f"{model}, {layer}", cells))
        parts.append(f"{scorers} in {model} at {layer}")
    columns = ["network and layer", "best ranking", "better than random order by"]
    columns += ["accuracy under attack without NR channels", "natural accuracy without them"]
    headline = "No ranking of channels was tried."
    if parts:
        headline = f"Channels are ranked best by {'; '.join(parts[:_NAMED])}."
    reasons = ["The ranking is tried by suppressing channels, and the attack made anew."]
    return Summary(headline, reasons, Table("The best rankings at a glance", columns, rows))


def _take_suppression(result: "Result", where: Mapping[str, str]) -> list[Cell]:
    if not has_rows(result, "suppression"):
        return [Cell(), Cell()]
    rows = result.select("suppression", **where).to_dict("records")
    if not rows:
        return [Cell(), Cell()]
    natural = {"value": rows[0]["natural"]}
    natural |= {end: rows[0][f"natural_{end}"] for end in ("low", "high")}
    return [Cell.of(rows[0], "estimate", share=True), Cell.of(natural, share=True)]


def _summarise_relevance(result: "Result") -> Summary:
    rows = []
    for row in count_signs(result).to_dict("records"):
        of_layer = result.select("agreement", model=row["model"], layer=row["layer"])
        others = of_layer[(of_layer[["scorer", "other"]] == row["scorer"]).any(axis=1)]["value"]
        cells = [Cell(float(row[name]), digits=1) for name in ("positive", "negative")]
        agreement = float(others.mean()) if len(others) else np.nan
        cells.append(Cell(agreement).with_bar("natural"))
        rows.append(Row(f"{row['model']}, {row['layer']}: {row['scorer']}", cells))
    headline = (
        "Which channels speak for a class and which against it, in "
        f"{_join(list(result.meta['models']))}."
    )
    columns = ["network, layer, scorer", "PR channels", "NR channels", "agreement with the others"]
    reason = (
        "Means over the classes; agreement: Spearman's correlation with the rankings of the other "
        "scorers. Single channels are in relevance.csv."
    )
    return Summary(headline, [reason], Table("The scorers at a glance", columns, rows))


def _summarise_film(result: "Result") -> Summary:
    rows = []
    for row in result.film_overfitting.to_dict("records"):
        epochs = [Cell(words=f"{row[name]:.0f}") for name in ("best", "last")]
        robust = [
            Cell(float(row[f"robust_{name}"]), share=True).with_bar("adversarial")
            for name in ("best", "last")
        ]
        fall = Cell.of(row, "fall", share=True)
        rows.append(Row(row["run"], [*epochs, *robust, fall, Cell(words=row["verdict"])]))
    columns = ["run", "best epoch", "last", "robust at the best", "at the last", "fall", "verdict"]
    overfitting = result.select("film_overfitting", verdict="overfitting")["run"].tolist()
    headline = "No training is shown to overfit in robust accuracy."
    if overfitting:
        headline = f"Robust accuracy falls from the best epoch to the last in {_join(overfitting)}."
    table = Table("The trainings at a glance", columns, rows) if rows else None
    return Summary(headline, describe_changes(result), table, (), describe_differences(result))


def _summarise_sweep(result: "Result") -> Summary:
    rows = []
    variants = result.variants.dropna(subset=["robust"])
    for row in variants.to_dict("records"):
        cells = [
            Cell(
                row[name], row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan), True
            ).with_bar(kind)
            for name, kind in (("natural", "natural"), ("robust", "adversarial"))
        ]
        rows.append(Row(row["variant"], [Cell(words=f"{row['seeds']:.0f}"), *cells]))
    columns = ["variant", "seeds", "natural", "worst case"]
    if not rows:
        return Summary("No network has been trained and measured.")
    best = variants.loc[variants["robust"].idxmax()]
    headline = (
        f"{best['variant']} has the highest worst-case accuracy, {format_percent(best['robust'])}; "
        "variants were not compared on the same images."
    )
    reasons = ["'channelscope compare' tells whether two of the networks differ."]
    return Summary(headline, reasons, Table("The variants at a glance", columns, rows))


# ---------------------------------------------------------------- magnitudes of all models


def list_profiles(result: "Result") -> list[Profile]:
    """Return each model's magnitudes at its last layer, over channels sorted by relevance."""
    profiles = []
    if has_rows(result, "activations"):
        for model, layer in choose_layers(result).items():
            profile = _make_profile(result, model, layer)
            profiles += [profile] if profile else []
    return profiles


def average_ranks(
    result: "Result", model: str, layer: str
) -> tuple[Float[ndarray, " c"], Float[ndarray, " c"], float]:
    """Return natural and adversarial magnitudes by rank of relevance, and the share of NR channels.

    Each class sorts the channels by their relevance to it; the means over the classes are of
    channels of the same rank, the most negatively relevant first.
    """

    def column(quantity: str, data: str) -> Float[ndarray, "k c"]:
        return result.array("activations", quantity, model, data, layer)

    relevance, *magnitudes = np.broadcast_arrays(
        column("relevance", "natural"),
        column("magnitude", "natural"),
        column("magnitude", "adversarial"),
    )
    known = np.isfinite([relevance, *magnitudes]).all((0, 2))
    order = relevance[known].argsort(axis=1, kind="stable")
    natural, adversarial = (
        np.take_along_axis(magnitude[known], order, axis=1).mean(0) for magnitude in magnitudes
    )
    return natural, adversarial, float((relevance[known] < 0).mean())


def _make_profile(result: "Result", model: str, layer: str) -> Profile | None:
    with np.errstate(invalid="ignore", divide="ignore"):
        if not np.isfinite(result.array("activations", "magnitude", model, "natural", layer)).any():
            return None
        natural, adversarial, negative = average_ranks(result, model, layer)
    if not np.isfinite([natural, adversarial]).all() or not len(natural):
        return None
    steps = [
        np.array([part.mean() for part in np.array_split(values, min(_RANKS, len(values)))])
        for values in (natural, adversarial)
    ]
    most = float(max(np.max(steps), 0)) or 1.0
    heights = [np.clip(values / most, 0, 1) * (_HEIGHT - 4) for values in steps]
    return Profile(
        model=model,
        layer=layer,
        natural=f"M0,{_HEIGHT} {_trace_steps(heights[0])} V{_HEIGHT} Z",
        adversarial=f"M0,{_HEIGHT - heights[1][0]:.1f} {_trace_steps(heights[1])}",
        turn=f"{_WIDTH * negative:.1f}",
        most=f"{most:.2g}",
    )


def _trace_steps(heights: Float[ndarray, " s"]) -> str:
    """Return a path of steps from left to right, 0 at the bottom."""
    ends = np.linspace(0, _WIDTH, len(heights) + 1)[1:]
    return " ".join(
        f"V{_HEIGHT - height:.1f} H{end:.1f}" for height, end in zip(heights, ends, strict=True)
    )
