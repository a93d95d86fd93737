"""A comparison as one page of HTML that needs nothing else: pictures inside, no script, no network."""

import base64
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from channelscope.claims import CLAIMS
from channelscope.comparison import Comparison
from channelscope.errors import UserError
from channelscope.files import replacing

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
}


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write `folder`/report.html: verdicts, robustness, figures, alignment, and how all was made; return its path.

    The figures are those that lie in `folder`/figures, with the captions in its `captions.json`; the page says so if
    there are none. Raises UserError when that list or a picture in it is damaged or missing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=f"{', '.join(comparison.meta['models'])} on {comparison.meta['data']['name']}",
        models=list(comparison.meta["models"]),
        summary=_summary(comparison),
        claims=_claims(comparison.verdicts),
        robustness=_robustness(comparison),
        by_class=_by_class(comparison),
        figures=_figures(folder / "figures"),
        alignment=_alignment(comparison),
        settings=_settings(comparison.meta),
        level=f"{comparison.meta['level']:.0%}",
        command=comparison.meta.get("command"),
    )
    with replacing(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return folder / "report.html"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:z.3f}".replace("-", "−")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _bounded(row: pd.Series, value: str, share: bool = False) -> tuple[str, str]:
    """The value and its interval, as text; dashes for NaN."""
    text = _percent if share else _number
    low, high = (text(float(row[bound])).removesuffix(" %") for bound in ("low", "high"))
    return text(float(row[value])), f"[{low}, {high}]" if low != "–" else ""


def _cells(rows: pd.DataFrame, models: Iterable[str], value: str, share: bool = False) -> list[tuple[str, str]]:
    """One cell per model: value and interval; a dash where the model has no such row."""
    found = {str(row["model"]): _bounded(row, value, share) for _, row in rows.iterrows()}
    return [found.get(model, ("–", "")) for model in models]


def _summary(comparison: Comparison) -> str:
    meta = comparison.meta
    data, models = meta["data"], list(meta["models"])
    noun = "1 model was measured" if len(models) == 1 else f"{len(models)} models were compared"
    text = (
        f"{noun} ({', '.join(models)}) on {data['images']:,} images of {data['name']}, {len(data['classes'])} classes, "
        f"natural ones and adversarial ones made by {_attack(meta)}."
    )
    frame = comparison.robustness
    worst = frame[(frame["attack"] == "worst") & (frame["class"] == "all")].dropna(subset=["accuracy"])
    if len(worst):
        best = worst.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
        value, interval = _bounded(best, "accuracy", share=True)
        most = "keeps" if len(models) == 1 else "keeps the most accuracy:"
        text += f" In the worst case over all attacks {best['model']} {most} {value} {interval}."
    counts = comparison.verdicts["verdict"].value_counts()
    if len(counts):
        text += f" Verdicts: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}."
    return text


def _claims(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    """The claims in order, each with its words and its verdicts."""
    return [
        {"name": claim, "words": CLAIMS.get(str(claim), ""), "verdicts": [_verdict(row) for _, row in rows.iterrows()]}
        for claim, rows in verdicts.groupby("claim", sort=True)
    ]


def _verdict(row: pd.Series) -> dict[str, str]:
    estimate, interval = _bounded(row, "estimate")
    subject = ", ".join(str(row[key]) for key in ("models", "layer") if row[key])
    return {
        "verdict": str(row["verdict"]),
        "subject": subject,
        "estimate": estimate,
        "interval": interval,
        "statement": str(row["statement"]),
    }


def _robustness(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per attack, natural first and worst last: a cell per model."""
    rows = comparison.robustness[comparison.robustness["class"] == "all"]
    attacks = sorted(rows["attack"].unique(), key=lambda name: (name == "worst") - (name == "natural"))
    models = comparison.meta["models"]
    words = {"natural": "none (natural images)", "worst": "worst case over all attacks"}
    return [
        {
            "attack": words.get(attack, attack),
            "worst": attack == "worst",
            "cells": _cells(rows[rows["attack"] == attack], models, "accuracy", share=True),
        }
        for attack in attacks
    ]


def _by_class(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per class: worst-case accuracy of each model."""
    worst = comparison.robustness[comparison.robustness["attack"] == "worst"]
    return [
        {"class": name, "cells": _cells(worst[worst["class"] == name], comparison.meta["models"], "accuracy", True)}
        for name in comparison.meta["data"]["classes"]
    ]


def _alignment(comparison: Comparison) -> list[dict[str, Any]]:
    """A table per depth, the deepest layers of all models in the last: a row per measure, a cell per model."""
    summed = comparison.alignment[comparison.alignment["class"].isin(["all", "across"])]
    layers = {model: list(summed[summed["model"] == model]["layer"].unique()) for model in comparison.meta["models"]}
    tables = []
    for depth in range(max(map(len, layers.values())), 0, -1):
        shown = {model: names[-depth] for model, names in layers.items() if len(names) >= depth}
        rows = summed[summed["layer"] == summed["model"].map(shown)]
        tables.append({"layer": ", ".join(dict.fromkeys(shown.values())), "rows": _measures(rows, list(layers))})
    return tables


def _measures(rows: pd.DataFrame, models: list[str]) -> list[dict[str, Any]]:
    return [
        {"measure": words, "cells": _cells(rows[rows["measure"] == measure], models, "value", "share" in measure)}
        for measure, words in MEASURES.items()
    ]


def _figures(folder: Path) -> list[dict[str, Any]]:
    """The pictures that `captions.json` lists, ready to be put into the page."""
    listing = folder / "captions.json"
    if not listing.exists():
        return []
    try:
        return [_figure(folder, **entry) for entry in json.loads(listing.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"The figures in {folder} are incomplete or damaged; draw them again. ({error})") from error


def _figure(
    folder: Path, name: str, caption: str, seen: str, section: str, claims: list[str], main: bool
) -> dict[str, Any]:
    if not re.fullmatch(r"[a-z0-9-]+", name):  # a name from a file must not lead out of the folder
        raise ValueError(f"{name!r} is no name of a figure")
    picture = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
    return {"name": name, "caption": caption, "alt": seen, "main": main, "picture": picture}


def _attack(meta: dict[str, Any]) -> str:
    return f"{meta['attack']} with ε = {_eps(meta['eps'])}"


def _eps(eps: float) -> str:
    levels = round(eps * 255, 4)
    return f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:.4g}"


def _settings(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """All settings of the run as (name, text); the command is shown apart."""
    shown = {key: value for key, value in meta.items() if key != "command"}
    return [(key, _eps(value) if key == "eps" else _text(value)) for key, value in shown.items()]


def _text(value: Any) -> str:
    """A value in words: a line for each entry of a dictionary, and within it all in one line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(entry)}".replace("\n", "; ") for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)).replace("\n", "; ") or "none"
    return str(value)
