"""Evaluation: what each attack broke, the worst case, its growth with eps, masking warnings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from channelscope.analyses.base import (
    NORMALISATION,
    Analysis,
    Plot,
    Study,
    Subject,
    Table,
    register,
    worst_case,
)
from channelscope.analyses.robustness import describe_robustness
from channelscope.errors import UserError, suggest
from channelscope.figures.axes import (
    add_model_legend,
    add_title,
    choose_looks,
    label_percent,
    list_bottom,
    make_grid,
    make_panels,
)
from channelscope.figures.paper import COLOURS, styled
from channelscope.figures.words import (
    describe_each,
    error_bars,
    format_attack,
    format_percent,
    format_radius,
    select_rows,
    shorten,
)
from channelscope.statistics.intervals import Estimate, as_columns, wilson

if TYPE_CHECKING:
    from channelscope.result import Result

TABLES = {
    "attacks": Table(
        words=("model", "attack"),
        numbers=("natural", "robust", "low", "high", "worst", "worst_low", "worst_high", "count"),
        help=(
            "natural accuracy; robust, the accuracy under this attack alone; worst, the worst case "
            "per image over this attack and those above it; Wilson's intervals; images"
        ),
    ),
    "worst_case": Table(
        words=("model", "decided_by"),
        numbers=("natural", "robust", "low", "high", "count"),
        help=(
            "natural accuracy; robust, the worst case per image over all attacks, with Wilson's "
            "interval; decided_by, the attack that breaks the most images; images"
        ),
    ),
    "parts": Table(
        words=("model", "attack", "part"),
        numbers=("attacked", "broken"),
        help=(
            "how many images each part of an attack was given, and how many it broke; an attack "
            "without parts is its own"
        ),
    ),
    "warnings": Table(
        words=("model", "check", "sentence", "evidence"),
        numbers=(),
        help=(
            "signs of gradient masking, and of images that lack a normalisation: the check, what "
            "it saw, and its numbers (JSON)"
        ),
    ),
    "eps_sweep": Table(
        words=("model",),
        numbers=("eps", "robust", "low", "high"),
        help="the worst case over the attacks at each radius eps; empty without a sweep",
    ),
}
EXPORT = "robustbench"  # the folder
_LINE = 0.14  # inches, of a row
_ACCURACY = ("accuracy", "low", "high")


def compute_evaluation(study: Study) -> dict[str, Any]:
    """Compute what the attacks and checks found of each model."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for model in study.models:
        head, outcome = {"model": model}, study.outcome(model)
        rows["attacks"] += [head | row for row in _attack_rows(study, model)]
        rows["worst_case"].append(head | _worst_row(study, model))
        for (attack, part), attacked in outcome.attacked.items():
            counts = {"attacked": attacked, "broken": outcome.broken[attack, part]}
            rows["parts"].append(head | {"attack": attack, "part": part} | counts)
        for finding in outcome.findings:
            evidence = json.dumps(finding.evidence)
            warning = {"check": finding.check, "sentence": finding.sentence, "evidence": evidence}
            rows["warnings"].append(head | warning)
        for eps, correct in outcome.sweep.items():
            accuracy = as_columns(_estimate(study, correct), "robust")
            rows["eps_sweep"].append(head | {"eps": eps} | accuracy)
    return rows


def _estimate(study: Study, correct: Bool[ndarray, " n"]) -> Estimate:
    return wilson(int(correct.sum()), len(correct), study.settings["level"])


def _attack_rows(study: Study, model: str) -> Iterator[dict[str, Any]]:
    so_far = natural = study.correct(model)
    for attack in study.attacks(model):
        correct = study.correct(model, attack)
        so_far = so_far & correct
        worst = as_columns(_estimate(study, so_far), "worst")
        yield {
            "attack": attack,
            "natural": _estimate(study, natural).value,
            **as_columns(_estimate(study, correct), "robust"),
            "worst": worst["worst"],
            "worst_low": worst["low"],
            "worst_high": worst["high"],
            "count": len(correct),
        }


def _worst_row(study: Study, model: str) -> dict[str, Any]:
    natural = study.correct(model)
    return {
        "decided_by": _decisive_attack(study, model),
        "natural": _estimate(study, natural).value,
        **as_columns(_estimate(study, worst_case(study, model)), "robust"),
        "count": len(natural),
    }


def _decisive_attack(study: Study, model: str) -> str:
    """Return the attack that broke the most images; in a cascade, of those that it was given."""
    images, broken = study.correct(model), {}
    for attack in study.attacks(model):
        correct = study.correct(model, attack)
        broken[attack] = int((images & ~correct).sum())
        images = correct if study.settings["cascade"] else images
    most = max(broken, key=lambda attack: broken[attack], default="")
    return most if broken.get(most) else "no attack"


def describe_checks(result: "Result", model: str) -> str:
    """Say how many signs of gradient masking how many checks found.

    A result of a version that did not record its checks tells their signs only.
    """
    warnings = result.warnings
    signs = int(((warnings["model"] == model) & (warnings["check"] != NORMALISATION)).sum())
    found = f"{signs or 'no'} sign{'s' if signs > 1 else ''} of gradient masking"
    made = result.meta["models"][model].get("checked")
    if made:
        return f"{found} in {len(made)} check{'' if len(made) == 1 else 's'}"
    if signs:
        return found
    return "not checked for gradient masking" if made is not None else ""


def describe_unchecked(result: "Result") -> str:
    """Say which models were not checked for gradient masking, and what does it; empty for none."""
    models = result.meta["models"]
    unchecked = [name for name, known in models.items() if known.get("checked") == []]
    if not unchecked:
        return ""
    return (
        f"Not checked for gradient masking: {', '.join(unchecked)} (--checks 64 does it, or "
        "'channelscope evaluate')."
    )


def check_evaluation(result: "Result") -> None:
    """Check that tables, arrays and models belong together; raises ValueError where not."""
    models, n = list(result.meta["models"]), result.meta["data"]["images"]
    attacks = result.attacks
    if result.meta.get("versions") is None:
        raise ValueError("meta.json does not tell the versions")
    if any(described.get("digest") is None for described in result.meta["models"].values()):
        raise ValueError("meta.json does not tell the models' digests")
    checked = [described.get("checked", []) for described in result.meta["models"].values()]
    if not all(isinstance(names, list) for names in checked):
        raise ValueError("meta.json does not tell the checks")
    if (
        list(result.worst_case["model"]) != models
        or list(dict.fromkeys(attacks["model"])) != models
    ):
        raise ValueError("the tables are of other models than meta.json")
    if attacks["count"].isna().any() or result.worst_case["count"].isna().any():
        raise ValueError("a table is incomplete")
    if result.meta["norm"] not in _NORMS:
        raise ValueError("meta.json has an unknown norm")
    arrays = dict(result.arrays)
    for row in attacks.itertuples():
        correct = arrays.get(f"correct/{models.index(row.model)}/{row.attack}")
        if correct is None or correct.shape != (n,) or correct.dtype != bool:
            raise ValueError("arrays.npz is of other images or attacks")


# ----------------------------------------------------------------- the entry for RobustBench

_NORMS = {"inf": "Linf", "2": "L2"}
_AUTOATTACK = ("autoattack", "autoattack-l2")


def robustbench_entry(result: "Result", model: str) -> dict[str, Any]:
    """Return a model's result with the keys of RobustBench's ``model_info`` files.

    Accuracies are percentages, as text with two decimals; ``autoattack_acc`` is None unless
    AutoAttack was run, and not in a cascade; ``unreliable`` tells that there are signs of gradient
    masking.

    Raises:
        UserError: for a model that was not evaluated.
    """
    meta = result.meta
    if model not in meta["models"]:
        choices = suggest(model, meta["models"])
        raise UserError(f"There is no model {model!r} in this evaluation.{choices}")
    worst = select_rows(result.worst_case, model=model).iloc[0]
    attacks = select_rows(result.attacks, model=model)
    auto = attacks[attacks["attack"].isin(_AUTOATTACK)]
    alone = len(auto) and not meta["cascade"]  # in a cascade its accuracy is not its own
    settings = meta["models"][model].get("settings") or {}
    interval = f"[{_percentage(worst['low'])}, {_percentage(worst['high'])}]"
    footnote = (
        f"Worst case over {', '.join(attacks['attack'])}; n = {meta['data']['images']}, "
        f"{meta['level']:.0%} interval {interval}, seed {meta['seed']}."
    )
    return {
        "link": None,
        "name": model,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": meta["data"]["name"],
        "venue": None,
        "architecture": meta["models"][model]["arch"],
        "eps": format_radius(meta["eps"]),
        "norm": _NORMS[meta["norm"]],
        "clean_acc": _percentage(worst["natural"]),
        "reported": _percentage(worst["robust"]),
        "autoattack_acc": _percentage(auto.iloc[0]["robust"]) if alone else None,
        "unreliable": bool((result.warnings["model"] == model).any()),
        "footnote": footnote,
        "method": meta["models"][model].get("method"),
        "training_data": (settings.get("data") or {}).get("name"),
        "versions": meta["versions"],
    }


def _percentage(share: float) -> str:
    return f"{100 * share:.2f}"


def export_robustbench(result: "Result", folder: Path) -> None:
    """Write each model's entry for RobustBench into ``folder``/robustbench."""
    (folder / EXPORT).mkdir()
    for index, model in enumerate(result.meta["models"]):
        name = re.sub(r"[^\w.-]", "_", model)[:60]
        text = json.dumps(robustbench_entry(result, model), indent=1, ensure_ascii=False)
        (folder / EXPORT / f"{index}-{name}.json").write_text(text, "utf-8")


# ------------------------------------------------------------------------- accuracy by attack


def attacks_data(result: "Result") -> pd.DataFrame:
    """Return model, attack ("natural images" first, "worst case" last) -> accuracy, low, high."""
    parts = []
    for model in result.meta["models"]:
        attacks = select_rows(result.attacks, model=model).rename(columns={"robust": "accuracy"})
        worst = select_rows(result.worst_case, model=model).rename(columns={"robust": "accuracy"})
        natural = worst.assign(**dict.fromkeys(_ACCURACY, worst["natural"]))
        parts += [
            natural.assign(attack="natural images"),
            attacks.assign(attack=attacks["attack"].map(format_attack)),
            worst.assign(attack="worst case"),
        ]
    return pd.concat(parts, ignore_index=True)[["model", "attack", *_ACCURACY]]


@styled
def draw_attacks(result: "Result") -> Figure:
    """Draw the accuracy under each attack: a panel a model, a dot and its interval an attack.

    The first row is the natural accuracy, the last the worst case per image over all attacks, which
    a dashed line carries through the panel.
    """
    data = attacks_data(result)
    panels = list(data.groupby("model", sort=False))
    heights = [len(rows) for _, rows in panels]
    height = _LINE * float(np.mean(heights)) + 0.42
    least = 0.11 * float(np.mean(heights)) + 0.35
    figure, axes = make_panels(len(panels), 1, height, across=2.6, least=least, sharex="all")
    for ax, (model, rows) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(ax, rows)
        # Above the other title: long names of attacks leave too little room beside it.
        ax.set_title(f"{shorten(str(model), 24)}\n", loc="left", weight="bold")
        ax.set_title(describe_checks(result, str(model)), loc="right")
    meta = result.meta
    for ax in list_bottom(axes):
        ax.set_xlabel(f"accuracy (%), {meta['level']:.0%} intervals")
    ball = f"{'L∞' if meta['norm'] == 'inf' else 'L2'} ε = {format_radius(meta['eps'])}"
    add_title(figure, f"Accuracy under attack, {ball}, {meta['data']['images']} images")
    return figure


def _draw_panel(ax: Axes, data: pd.DataFrame) -> None:
    accuracy, bars = error_bars(data, *_ACCURACY)
    places = np.arange(len(data))
    for place, colour in enumerate([COLOURS["natural"], *[COLOURS["adversarial"]] * len(data[1:])]):
        look: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 3, "elinewidth": 0.8}
        ax.errorbar(accuracy[place], place, xerr=bars[:, place, None], **look)
    ax.axvline(accuracy[-1], color=COLOURS["adversarial"], linewidth=0.8, linestyle="--", zorder=0)
    ax.set_yticks(places, [shorten(name, 30) for name in data["attack"]])
    ax.get_yticklabels()[-1].set_fontweight("bold")
    ax.set_ylim(len(data) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    label_percent(ax, "accuracy", "x")
    ax.set_xlabel("")


# ------------------------------------------------------------------------- accuracy against eps


def eps_data(result: "Result") -> pd.DataFrame:
    """Return model, eps (0: natural images) -> accuracy, low, high of the worst case.

    Raises:
        UserError: where eps was not swept.
    """
    if result.eps_sweep.empty:
        raise UserError("This evaluation has no sweep of eps: evaluate with --eps-sweep.")
    parts = []
    for model in result.meta["models"]:
        swept = select_rows(result.eps_sweep, model=model).rename(columns={"robust": "accuracy"})
        if (swept["eps"] > 0).all():
            worst = select_rows(result.worst_case, model=model)
            natural = worst.assign(eps=0.0, **dict.fromkeys(_ACCURACY, worst["natural"]))
            parts.append(natural)
        parts.append(swept)
    return pd.concat(parts, ignore_index=True)[["model", "eps", *_ACCURACY]]


@styled
def draw_eps(result: "Result") -> Figure:
    """Draw each model's worst-case accuracy against the radius of the ball, with its interval."""
    data, looks = eps_data(result), choose_looks(result)
    figure, axes = make_grid(1, 1, 1.7)
    ax, in_levels = axes[0, 0], result.meta["norm"] == "inf"
    for model, look in looks.items():
        rows = select_rows(data, model=model)
        eps = rows["eps"] * (255 if in_levels else 1)
        ax.plot(eps, rows["accuracy"], markersize=3.5, **look)
        band: dict[str, Any] = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(eps, rows["low"], rows["high"], **band)
    ax.set_ylim(0, 1.02)
    ax.set_xlim(left=0)
    ax.set_xlabel("eps (1/255)" if in_levels else "eps (L2 norm)")
    label_percent(ax, "worst-case accuracy")
    add_model_legend(figure, result, looks, "")
    images = result.meta["data"]["images"]
    add_title(figure, f"Worst case against the radius of the attack, {images} images")
    return figure


def describe_eps(data: pd.DataFrame) -> str:
    """Say the accuracy at the smallest and the largest radius."""

    def describe(rows: pd.DataFrame) -> str:
        ends = rows.sort_values("eps", kind="stable").iloc[[0, -1]].to_dict("records")
        first, last = (
            f"{format_percent(end['accuracy'])} at ε = {format_radius(end['eps'])}" for end in ends
        )
        return f"worst-case accuracy from {first} to {last}"

    return describe_each(data, ["model"], describe)


def of_sweep(result: "Result") -> Iterator[Subject]:
    """Return one figure, where eps was swept."""
    if len(result.eps_sweep):
        yield Subject({})


register(
    Analysis(
        name="evaluation",
        help="what each attack broke, the worst case, and signs of gradient masking",
        kinds=("evaluation",),
        tables=TABLES,
        compute=compute_evaluation,
        check=check_evaluation,
        export=export_robustbench,
        exports=(EXPORT,),
        plots=(
            Plot(
                name="attacks",
                draw=draw_attacks,
                data=attacks_data,
                alt_text=describe_robustness,
                caption=(
                    "Accuracy of each model on natural images, under each attack, and in the worst "
                    "case: an image counts as correct there only if it withstands every attack, "
                    "which the dashed line shows. {wilson}"
                ),
                section="claims",
                order=40,
                claims=("c4",),
                table="attacks",
            ),
            Plot(
                name="eps",
                draw=draw_eps,
                data=eps_data,
                alt_text=describe_eps,
                caption=(
                    "Accuracy of each model in the worst case over the attacks, against the radius "
                    "of their ball; 0 stands for natural images. {wilson}"
                ),
                section="claims",
                order=41,
                claims=("c4",),
                table="eps_sweep",
                subjects=of_sweep,
            ),
        ),
    )
)
