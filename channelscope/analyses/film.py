"""The film of a training: what claims C1 to C5 are about, measured at every kept epoch.

Measures are those of ``analyses.frames``.

A run's *best* epoch is that of the highest ``val_robust`` among its kept ones: chosen on other
images than those that are filmed. *Robust overfitting* (Rice, Wong & Kolter, ICML 2020, arXiv
2002.11569) is that robust accuracy falls from the best epoch to the last.

The claim "Cross-class" is that of Wei, Guo & Wang (ICML 2025, arXiv 2506.05032): networks learn
features that serve several classes until the best robust epoch, and turn to features of single
classes as they overfit. Judged is whether ``cross_class`` is larger at the best epoch than at both
the first kept one and the last: the smaller of the two differences decides, with the larger p; or,
where it is below 0, twice its own p. Epochs scatter, so each counts with the variance that its
curve has about a smooth course (``statistics.changes.measure_scatter``), beside that of the images.
Without robust overfitting the claim is not judged.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Subject,
    Table,
    Verdict,
    get_primary_layer,
    register,
)
from channelscope.analyses.claims import Question, judge_questions
from channelscope.analyses.faults import find_faults
from channelscope.analyses.frames import (
    DAMAGE,
    MEASURES,
    Frame,
    get_measure,
    list_frames,
    list_shares,
    measure_frame,
)
from channelscope.analyses.methods import list_methods
from channelscope.figures.axes import add_legend, add_title, choose_looks, label_percent, make_grid
from channelscope.figures.paper import METHOD_LOOKS, styled
from channelscope.figures.words import (
    describe_attack,
    describe_each,
    describe_level,
    format_number,
    format_percent,
    require_rows,
    select_rows,
    shorten,
)
from channelscope.statistics.changes import find_change, measure_scatter
from channelscope.statistics.effects import Effect, estimate_effect
from channelscope.statistics.intervals import (
    UNBOUNDED,
    Estimate,
    estimate,
    paired_difference,
    wilson,
)
from channelscope.statistics.measures import mean_over_classes
from channelscope.statistics.significance import bootstrap_p, mcnemar

if TYPE_CHECKING:
    from channelscope.result import Result

CLAIM = "Cross-class"
LEAST_OVERFITTING = 0.02  # of robust accuracy: less is no robust overfitting


_OF_LOG = {"accuracy": "training", "val_natural": "val_natural", "val_robust": "val_robust"}

TABLES = {
    "film": Table(
        words=("run", "measure"),
        numbers=("epoch", "estimate", "low", "high"),
        help="a measure of a run's network at an epoch, with its interval over the images; without "
        "one where it is from the log; measures: see channelscope.analyses.frames",
    ),
    "film_changes": Table(
        words=("run", "measure", "verdict"),
        numbers=("before", "epoch", "step", "p", "least", "epochs"),
        help="the largest jump of each measure, which lies between the epochs before and epoch; "
        "verdict: change, no change, not judged (too few epochs); measures without bounds have no "
        "row; p corrected for the run's "
        "measures; the least jump that counts; number of epochs",
    ),
    "film_overfitting": Table(
        words=("run", "verdict", "statement"),
        numbers=(
            *("best", "last", "robust_best", "robust_last", "fall", "low", "high", "p"),
            *("training_best", "training_last", "val_best", "val_last"),
        ),
        help="robust accuracy of a run's best epoch (on validation images) less that of its last, "
        "on the same images, with its paired interval and McNemar's p; accuracy in training and "
        "robust accuracy on validation images at both; verdict: overfitting, no overfitting, "
        "inconclusive",
    ),
    "film_differences": Table(
        words=("run", "other", "measure"),
        numbers=("epochs", "estimate", "low", "high", "p"),
        help="a run's measure less the other's on the same images, mean over the epochs that both "
        "have kept, which vary too; p corrected for all measures of the two",
    ),
}


# ------------------------------------------------------------------------------------ tables


def compute_film(study: Study) -> dict[str, Any]:
    """Compute the tables of a film."""
    runs = list_frames(study)
    rows = [row for frames in runs.values() for row in _list_rows(study, frames)]
    film = TABLES["film"].frame(rows)
    return {
        "film": film,
        "film_changes": [row for run in runs for row in _list_changes(study, film, run)],
        "film_overfitting": [
            row for frames in runs.values() for row in _list_overfitting(study, frames)
        ],
        "film_differences": [
            row for run in list(runs)[1:] for row in _list_differences(study, runs, run)
        ],
    }


def _list_rows(study: Study, frames: Sequence[Frame]) -> Iterator[dict[str, Any]]:
    level, n = study.settings["level"], len(study.labels)
    for frame in frames:
        shares = list_shares(study, frame.label)
        for name, replicates in measure_frame(study, frame.label).items():
            if name in shares:
                value = wilson(int(shares[name].sum()), n, level)
            else:
                value = estimate(replicates, level, get_measure(name).bounds)
            place = {"run": frame.run, "measure": name, "epoch": frame.epoch}
            yield place | _to_columns(value)
    for row in study.history(frames[-1].label):
        for column, name in _OF_LOG.items():
            if not math.isnan(row.get(column, math.nan)):
                place = {"run": frames[0].run, "measure": name, "epoch": row["epoch"]}
                yield place | {"estimate": row[column], "low": math.nan, "high": math.nan}


def _to_columns(value: Estimate) -> dict[str, float]:
    return {"estimate": value.value, "low": value.low, "high": value.high}


def _list_changes(study: Study, film: pd.DataFrame, run: str) -> Iterator[dict[str, Any]]:
    """Look for a jump in each measure of a run; p are corrected for their number (Bonferroni).

    Measures without bounds are left out: a single fall near 0 makes them as large as one likes.
    """
    curves = [
        (str(name), curve)
        for name, curve in select_rows(film, run=run).groupby("measure", sort=False)
        if get_measure(str(name)).bounds != UNBOUNDED
    ]
    changes = {
        name: find_change(curve["epoch"].to_numpy(float), curve["estimate"].to_numpy(float))
        for name, curve in curves
    }
    tests = sum(not math.isnan(change.p) for change in changes.values())
    for name, curve in curves:
        change, least = changes[name], get_measure(name).least
        p = min(1.0, tests * change.p) if not math.isnan(change.p) else math.nan
        verdict = "not judged" if math.isnan(p) else "no change"
        if p < 1 - study.settings["level"] and abs(change.step) >= least:
            verdict = "change"
        yield {"run": run, "measure": name, "verdict": verdict} | {
            "before": change.before,
            "epoch": change.epoch,
            "step": change.step,
            "p": p,
            "least": least,
            "epochs": curve["estimate"].notna().sum(),
        }


@dataclass(frozen=True, eq=False)
class Overfitting:
    """Robust accuracy of a run's best epoch beside its last, on the same images.

    Args:
        best, last: the frames.
        place: of the best among the frames.
        robust: accuracy of both.
        fall: accuracy of the best less that of the last.
        p: of McNemar's test.
    """

    best: Frame
    last: Frame
    place: int
    robust: tuple[float, float]
    fall: Estimate
    p: float

    def judge(self, level: float) -> str:
        """Return overfitting, no overfitting (all of the interval is below the least), or neither.

        What is neither is inconclusive.
        """
        if self.p < 1 - level and self.fall.value >= LEAST_OVERFITTING:
            return "overfitting"
        return "no overfitting" if self.fall.high < LEAST_OVERFITTING else "inconclusive"


def measure_overfitting(study: Study, frames: Sequence[Frame]) -> Overfitting | None:
    """Compare a run's best kept epoch with its last; None where the log tells no best one."""
    robust = {row["epoch"]: row["val_robust"] for row in study.history(frames[-1].label)}
    scores = np.array([robust.get(frame.epoch, math.nan) for frame in frames])
    if np.isnan(scores).all():
        return None
    place = int(np.nanargmax(scores))
    best, last = frames[place], frames[-1]
    before, after = (list_shares(study, frame.label)["robust"] for frame in (best, last))
    fall = paired_difference(before, after, study.settings["level"])
    shares = float(before.mean()), float(after.mean())
    return Overfitting(best, last, place, shares, fall, float(mcnemar(before, after)))


def _list_overfitting(study: Study, frames: Sequence[Frame]) -> Iterator[dict[str, Any]]:
    measured = measure_overfitting(study, frames)
    if measured is None:
        return
    best, last, fall = measured.best, measured.last, measured.fall
    level = study.settings["level"]
    verdict = measured.judge(level)
    log = {row["epoch"]: row for row in study.history(last.label)}
    ends = [log.get(frame.epoch, {}) for frame in (best, last)]
    training, validation = (
        [float(row.get(name, math.nan)) for row in ends] for name in ("accuracy", "val_robust")
    )
    shares = [format_percent(share) for share in measured.robust]
    statement = (
        f"Robust accuracy ({study.settings['attack']}) is {shares[0]} at the best epoch, "
        f"{best.epoch}, and {shares[1]} at the last, {last.epoch}: a fall of "
        f"{100 * fall.value:.1f} points ({100 * level:g} % CI {100 * fall.low:.1f} to "
        f"{100 * fall.high:.1f}, paired; {len(study.labels)} images): {verdict}."
    )
    yield {"run": best.run, "verdict": verdict, "statement": statement} | {
        "best": best.epoch,
        "last": last.epoch,
        "robust_best": measured.robust[0],
        "robust_last": measured.robust[1],
        "fall": fall.value,
        "low": fall.low,
        "high": fall.high,
        "p": measured.p,
        "training_best": training[0],
        "training_last": training[1],
        "val_best": validation[0],
        "val_last": validation[1],
    }


def _list_differences(
    study: Study, runs: Mapping[str, Sequence[Frame]], run: str
) -> Iterator[dict[str, Any]]:
    """Compare a run with the first one, on the epochs that both have kept."""
    other = next(iter(runs))
    ours, theirs = (
        {frame.epoch: measure_frame(study, frame.label) for frame in runs[name]}
        for name in (run, other)
    )
    epochs = sorted(ours.keys() & theirs.keys())
    if not epochs:
        return
    names = [name for name in ours[epochs[0]] if all(name in theirs[epoch] for epoch in epochs)]
    for number, name in enumerate(names):
        differences = np.stack([ours[epoch][name] - theirs[epoch][name] for epoch in epochs], 1)
        variance, _ = measure_scatter(differences[0])
        error = 0.0 if math.isnan(variance) else math.sqrt(variance / len(epochs))
        replicates = _add_scatter(study, mean_over_classes(differences), error, number)
        value = estimate(replicates, study.settings["level"])
        p = float(bootstrap_p(replicates))
        place = {"run": run, "other": other, "measure": name, "epochs": len(epochs)}
        yield place | _to_columns(value) | {"p": min(1.0, len(names) * p) if p == p else p}


# ----------------------------------------------------------------------------------- verdict


def judge_film(study: Study) -> Iterator[Verdict]:
    """Judge for every method, its runs being what varies, whether cross-class features peak."""
    runs = list_frames(study)
    run_of = {frame.label: run for run, frames in runs.items() for frame in frames}
    groups = dict.fromkeys(
        tuple(dict.fromkeys(run_of[model] for model in method.models))
        for method in list_methods(study)
    )
    asked: set[str] = set()
    questions = []
    for group in groups:
        if not asked & set(group):
            questions.append(_ask(study, {run: runs[run] for run in group}))
        asked |= set(group)
    yield from judge_questions(questions, study.settings["level"])


def _ask(study: Study, runs: Mapping[str, Sequence[Frame]]) -> Question:
    """Measure the rise of cross-class features to the best epoch, and their fall to the last."""
    names, first = ", ".join(runs), next(iter(runs.values()))[0]
    layer = get_primary_layer(study, first.label)
    lacks = (_find_lack(study, run, frames) for run, frames in runs.items())
    if blocked := next(filter(None, lacks), ""):
        return Question(CLAIM, names, layer, "", blocked=blocked)
    level = study.settings["level"]
    contrasts = [_contrast(study, frames) for frames in runs.values()]
    rise, fall = (
        estimate_effect([np.array([pair[side] for pair in contrasts])], (1,), level)
        for side in (0, 1)
    )
    shown = [
        f"{effect.value:+.3f} ({100 * level:g} % CI {effect.low:+.3f} to {effect.high:+.3f})"
        for effect in (rise, fall)
    ]
    statement = (
        f"Cross-class features of {names} at {layer} (mean positive cosine of two classes' "
        f"contributions to their logits), best robust epoch less the first kept one: {shown[0]}; "
        f"less the last: {shown[1]}. The smaller decides."
    )
    effect = _choose_smaller(rise, fall)
    return Question(CLAIM, names, layer, statement, effect, n=len(study.labels))


def _choose_smaller(rise: Effect, fall: Effect) -> Effect:
    """Return the smaller of two effects that both have to be above 0, with the p of that."""
    smaller = min(rise, fall, key=lambda effect: effect.value)
    p = max(rise.p, fall.p) if smaller.value > 0 else min(1.0, 2 * smaller.p)
    return Effect(smaller.value, smaller.low, smaller.high, p, smaller.seeds)


def _find_lack(study: Study, run: str, frames: Sequence[Frame]) -> str:
    """Say why cross-class features of a run are not judged; nothing where they are."""
    measured = measure_overfitting(study, frames)
    if measured is None:
        return f"The log of {run} has no robust accuracy on validation images."
    if measured.judge(study.settings["level"]) != "overfitting":
        return f"{run} shows no robust overfitting."
    if measured.place == 0:
        return f"The best robust epoch of {run} is the first kept one: nothing was filmed before."
    curve = _trace(study, frames)
    if np.isnan(curve).any() or math.isnan(measure_scatter(curve)[0]):
        return f"{run} has too few kept epochs to tell how far epochs scatter: keep five."
    for frame in (measured.best, measured.last):
        if faults := find_faults(study, frame.label):
            return f"{frame.label}: {faults[0].sentence}"
    return ""


def _trace(study: Study, frames: Sequence[Frame]) -> Float[ndarray, " t"]:
    missing = np.array([math.nan])
    curve = [measure_frame(study, frame.label).get("cross_class", missing)[0] for frame in frames]
    return np.array(curve)


def _contrast(
    study: Study, frames: Sequence[Frame]
) -> tuple[Float[ndarray, " r"], Float[ndarray, " r"]]:
    """Return what the best epoch has beside the first and beside the last, by replicate.

    To the replicates over images comes what epochs scatter: twice the variance of one, larger as
    few epochs tell it badly (the variance of Student's t is df / (df - 2)).
    """
    measured = measure_overfitting(study, frames)
    assert measured is not None  # see _find_lack
    variance, df = measure_scatter(_trace(study, frames))
    error = math.sqrt(2 * variance * df / (df - 2) if df > 2 else 6 * variance)
    best = measure_frame(study, measured.best.label)["cross_class"]
    pair = []
    for number, frame in enumerate((frames[0], measured.last)):
        contrast = best - measure_frame(study, frame.label)["cross_class"]
        pair.append(_add_scatter(study, contrast, error, number))
    return pair[0], pair[1]


def _add_scatter(
    study: Study, replicates: Float[ndarray, " r"], error: float, number: int
) -> Float[ndarray, " r"]:
    """Add to replicates over images what epochs scatter: noise of exactly this standard error."""
    generator = np.random.default_rng([study.settings["seed"], number])
    noise = generator.standard_normal(len(replicates) - 1)
    noise = (noise - noise.mean()) / noise.std()
    return replicates + np.concatenate([[0.0], error * noise])


# ----------------------------------------------------------------------------------- figures

_Line = Literal["-", ":"]
_SOLID: _Line = "-"
_DOTTED: _Line = ":"
# Panels: what they show, whether in percent, and their measures, each with its line.
_PANELS: dict[str, tuple[bool, dict[str, _Line]]] = {
    "accuracy": (True, {"natural": _DOTTED, "robust": _SOLID}),
    "accuracy (log)": (True, {"training": _DOTTED, "val_robust": _SOLID}),
    "C1: alignment": (False, {"cosine_centred": _SOLID}),
    "C2, C5: NR mass": (True, {"nr_mass_natural": _DOTTED, "nr_mass_adversarial": _SOLID}),
    "C2: NR part of fall": (True, {"nr_fall": _SOLID}),
    "C3: rank alignment": (False, {"relevance_spearman_adversarial": _SOLID}),
    "damage": (True, {f"{DAMAGE}PR falls": _DOTTED, f"{DAMAGE}NR rises": _SOLID}),
    "cross-class": (False, {"cross_class": _SOLID}),
}
_OF_GATES: dict[str, tuple[bool, dict[str, _Line]]] = {
    "probe": (True, {"probe_natural": _DOTTED, "probe_robust": _SOLID}),
    "mask": (True, {"mask_natural": _DOTTED, "mask_adversarial": _SOLID}),
}
_BEYOND = 0.25  # what panels of shares show below 0 and above 1
_BEST: dict[str, Any] = {"marker": "*", "markersize": 7, "markeredgecolor": "black", "mew": 0.4}
_JUMP: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "alpha": 0.8}


def film_data(result: "Result") -> pd.DataFrame:
    """Return run, panel, measure, epoch -> estimate, low, high, changed, best.

    ``changed`` and ``best`` are 1 at the first epoch after a change of the measure, and at the
    run's best robust epoch, else 0.
    """
    panels = {name: panel for panel, (_, lines) in _PANELS.items() for name in lines}
    return _mark(result, panels)


def film_gates_data(result: "Result") -> pd.DataFrame:
    """Return what ``film_data`` does, of gates: a panel is "GATE probe" or "GATE mask".

    Raises:
        UserError: where no run has gates.
    """
    kinds = {name: panel for panel, (_, lines) in _OF_GATES.items() for name in lines}
    panels = {}
    for name in result.film["measure"].unique():
        gate, _, kind = str(name).rpartition(".")
        if gate and kind in kinds:
            panels[str(name)] = f"{gate} {kinds[kind]}"
    data = _mark(result, panels)
    return require_rows(data, "No run of this film has gates with probes or masks.")


def by_gates(result: "Result") -> Iterator[Subject]:
    """One figure, where any run has gates with probes or masks."""
    if any(str(name).rpartition(".")[0] for name in result.film["measure"]):
        yield Subject({})


def _mark(result: "Result", panels: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of some measures, with their panels, their changes and the best epochs."""
    data = result.film[result.film["measure"].isin(panels)].copy()
    changes = select_rows(result.film_changes, verdict="change")
    changed = set(zip(changes["run"], changes["measure"], changes["epoch"], strict=True))
    best = dict(zip(result.film_overfitting["run"], result.film_overfitting["best"], strict=True))
    data["panel"] = data["measure"].map(panels)
    places = zip(data["run"], data["measure"], data["epoch"], strict=True)
    data["changed"] = [int(place in changed) for place in places]
    data["best"] = (data["epoch"] == data["run"].map(best)).astype(int)
    columns = ["run", "panel", "measure", "epoch", "estimate", "low", "high", "changed", "best"]
    return data[columns]


@styled
def draw_film(result: "Result") -> Figure:
    """Draw the measures of claims over the epochs of each run, with their changes."""
    return _draw_panels(result, film_data(result), _PANELS, "Trainings, epoch by epoch")


@styled
def draw_film_gates(result: "Result") -> Figure:
    """Draw accuracy of probes and effective share of masks over the epochs of each run."""
    data = film_gates_data(result)
    panels = {}
    for panel, rows in data.groupby("panel", sort=False):
        is_percent, lines = _OF_GATES[str(panel).rpartition(" ")[2]]
        gate = str(rows["measure"].iloc[0]).rpartition(".")[0]
        panels[str(panel)] = is_percent, {f"{gate}.{name}": line for name, line in lines.items()}
    # The probe of a gate beside its mask.
    panels = dict(sorted(panels.items(), key=lambda item: item[0].rpartition(" ")[0]))
    return _draw_panels(result, data, panels, "Gates, epoch by epoch")


def _draw_panels(
    result: "Result",
    data: pd.DataFrame,
    panels: Mapping[str, tuple[bool, Mapping[str, _Line]]],
    title: str,
) -> Figure:
    figure, axes = make_grid((len(panels) + 1) // 2, 2, 1.05, sharex=True)
    colours = _choose_colours(result)
    for ax, (panel, (is_percent, lines)) in zip(axes.flat, panels.items(), strict=False):
        for (run, measure), curve in data[data["panel"] == panel].groupby(["run", "measure"]):
            _draw_curve(ax, curve, lines[str(measure)], colours[str(run)])
        ax.set_title(panel, loc="left")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        if is_percent:
            label_percent(ax, "share")
            low, high = ax.get_ylim()  # of a part of a small fall, which may be anything
            ax.set_ylim(max(low, -_BEYOND), min(high, 1 + _BEYOND))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    add_title(figure, title)
    _add_legend(figure, result, colours)
    return figure


def _draw_curve(ax: Axes, curve: pd.DataFrame, line: _Line, colour: str) -> None:
    ax.plot(curve["epoch"], curve["estimate"], line, color=colour, linewidth=1)
    if curve["low"].notna().any():
        band: dict[str, Any] = {"color": colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(curve["epoch"], curve["low"], curve["high"], **band)
    for epoch in curve.loc[curve["changed"] == 1, "epoch"]:
        ax.axvline(epoch, color=colour, **_JUMP)
    best = curve[curve["best"] == 1]
    if line == _SOLID:
        ax.plot(best["epoch"], best["estimate"], color=colour, linestyle="none", **_BEST)


def _choose_colours(result: "Result") -> dict[str, str]:
    """Return each run's colour: its method's, or where runs share one another for each."""
    colours = {run: look["color"] for run, look in choose_looks(result).items()}
    if len(set(colours.values())) < len(colours):
        palette = [colour for colour, _ in METHOD_LOOKS.values()]
        return {run: palette[index % len(palette)] for index, run in enumerate(colours)}
    return colours


def _add_legend(figure: Figure, result: "Result", colours: Mapping[str, str]) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=colour, label=shorten(run)) for run, colour in colours.items()
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle=_SOLID, label="adversarial"),
        Line2D([], [], color="0.3", linestyle=_DOTTED, label="natural"),
        Line2D([], [], color="0.3", label="change", **_JUMP),
        Line2D([], [], color="0.6", linestyle="none", label="best robust epoch", **_BEST),
    ]
    note = (
        f"adversarial: {describe_attack(result)}; in the log: dotted in training, solid attacked "
        "validation images; damage: solid NR channels that rise, dotted PR channels that fall; "
        f"bands: {describe_level(result)} over the images"
    )
    add_legend(figure, handles, note)


def describe_film(drawn: pd.DataFrame) -> str:
    """Say where each curve begins and ends, and where it changes."""

    def describe(rows: pd.DataFrame) -> str:
        parts = []
        for name, curve in rows.groupby("measure", sort=False):
            curve = curve.dropna(subset=["estimate"])
            if curve.empty:
                continue
            ends = [format_number(value) for value in curve["estimate"].iloc[[0, -1]]]
            changes = ", ".join(f"{epoch:g}" for epoch in curve.loc[curve["changed"] == 1, "epoch"])
            gate = str(name).rpartition(".")[0]
            words = f"{gate} {get_measure(str(name)).words}".strip()
            mark = f", changes at epoch {changes}" if changes else ""
            parts.append(f"{words} {ends[0]} to {ends[1]}{mark}")
        epochs = rows["epoch"]
        return f"epochs {epochs.min():g} to {epochs.max():g}, " + "; ".join(parts)

    return describe_each(drawn, ["run"], describe)


def describe_changes(result: "Result") -> list[str]:
    """Say of each run which measures jump, and where; or that none does."""
    sentences = []
    for run, changes in result.film_changes.groupby("run", sort=False):
        jumps = select_rows(changes, verdict="change").to_dict("records")
        for row in jumps:
            gate = str(row["measure"]).rpartition(".")[0]
            words = f"{gate} {get_measure(row['measure']).words}".strip()
            sentences.append(
                f"{run}: {words} jumps by {format_number(row['step'], 3)} between epochs "
                f"{row['before']:.0f} and {row['epoch']:.0f} (p = {row['p']:.2g})."
            )
        judged = (changes["verdict"] != "not judged").sum()
        if not jumps:
            of = f"{judged} of {len(changes)} measures have enough epochs to judge"
            sentences.append(f"{run}: no change ({of}).")
    return sentences


def describe_differences(result: "Result") -> list[str]:
    """Say of each run in which measures it differs from the first one."""
    sentences = []
    pairs = result.film_differences.groupby(["run", "other"], sort=False)
    for (run, other), pair in pairs:
        different = pair[pair["p"] < 1 - result.meta["level"]]["measure"]
        words = ", ".join(different) or "no difference"
        epochs = pair["epochs"].iloc[0]
        sentences.append(f"{run} beside {other}, mean over {epochs:.0f} epochs: {words}.")
    return sentences


def check_film(result: "Result") -> None:
    """Check that the tables of a film that was read are of its runs and of known measures."""
    runs = set(result.meta["models"])
    for name in TABLES:
        table = result.select(name)
        columns = {"run", "other"} & set(TABLES[name].words)
        if any(not set(table[column]) <= runs for column in columns):
            raise ValueError(f"{name} is of other runs")
    for name in result.film["measure"]:
        if name not in MEASURES and str(name).rpartition(".")[2] not in MEASURES:
            raise ValueError(f"film has an unknown measure {name!r}")


_CAPTION = (
    "Lines are runs, by colour; bands are their intervals over the images; a dashed line is where "
    "a measure jumps by more than its course allows (corrected for the run's measures), a star the "
    "best robust epoch on validation images."
)
register(
    Analysis(
        name="film",
        help="what claims are about at every kept epoch of trainings: changes, robust overfitting",
        kinds=("film",),
        tables=TABLES,
        compute=compute_film,
        judge=judge_film,
        check=check_film,
        plots=(
            Plot(
                name="film",
                draw=draw_film,
                data=film_data,
                alt_text=describe_film,
                caption="Every kept epoch of the trainings, measured on the same images at the "
                "penultimate layer. Accuracy, natural and under attack; accuracy in training "
                "(dotted) and on attacked validation images from the log; alignment of a class's "
                "adversarial with its natural activations; share of the relevant activation on "
                "negatively relevant (NR) channels; the part of the logit's fall that comes from "
                "them; rank correlation of activation and relevance under attack; shares of the "
                "damage done by NR channels that rise (solid) and PR channels that fall (dotted); "
                f"cross-class features (mean positive cosine of two classes' contributions). "
                f"{_CAPTION}",
                section="training",
                order=20,
                table="film",
            ),
            Plot(
                name="film-gates",
                draw=draw_film_gates,
                data=film_gates_data,
                alt_text=describe_film,
                caption="The gates at every kept epoch of the trainings, natural (dotted) and "
                "under attack (solid): accuracy of a gate's probe, and the share of the channels "
                f"that its mask lets through (participation ratio). {_CAPTION}",
                section="gates",
                order=20,
                table="film",
                subjects=by_gates,
            ),
        ),
    )
)
