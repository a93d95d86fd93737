"""What was found, in sentences."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from channelscope.analyses.claims import CLAIMS
from channelscope.report.tables import bounded, radius

if TYPE_CHECKING:
    from channelscope.result import Result

# Each claim as it reads where it is supported, and where it is not.
_FINDINGS = {
    "C1": (
        "adversarial training brings the activations of attacked images closer to those of natural ones",
        "adversarial training does not bring the activations of attacked images closer to those of natural ones",
    ),
    "C2": (
        "channels that speak against the class take a larger share of an adversarially trained network's activation on "
        "attacked images than on natural ones",
        "channels that speak against the class take no larger share of an adversarially trained network's activation "
        "on attacked images than on natural ones",
    ),
    "C3": (
        "the classes on which an adversarially trained network is robust are those whose activation follows the "
        "relevance of the channels",
        "the classes on which an adversarially trained network is robust are not those whose activation follows the "
        "relevance of the channels",
    ),
    "C4": (
        "gates make adversarial training more robust",
        "gates do not make adversarial training more robust",
    ),
}


def setting(result: "Result") -> str:
    """What was measured, on what."""
    meta = result.meta
    data, models = meta["data"], list(meta["models"])
    noun = "1 model was measured" if len(models) == 1 else f"{len(models)} models were compared"
    return (
        f"{noun} ({', '.join(models)}) on {data['images']:,} images of {data['name']}, {len(data['classes'])} classes, "
        f"natural ones and adversarial ones made by {meta['attack']} with ε = {radius(meta['eps'])}."
    )


def found(result: "Result") -> list[dict[str, str]]:
    """The headlines: how robust the models are, which leak labels, then each claim's verdict.

    `claim` and `verdict` are empty where there are none.
    """
    claims = [
        {
            "claim": str(claim),
            "verdict": str(verdict),
            "text": _finding(str(claim), str(verdict), rows),
        }
        for (claim, verdict), rows in _told_apart(result.verdicts).groupby(
            ["claim", "verdict"], sort=True
        )
    ]
    further = [_robust(result), *_leaks(result.leakage)]
    return [*({"claim": "", "verdict": "", "text": text} for text in further if text), *claims]


def _told_apart(verdicts: pd.DataFrame) -> pd.DataFrame:
    """With `who`: the models, and the layer where there are verdicts on several."""
    layers = verdicts.groupby(["claim", "models"])["layer"].transform("nunique")
    named = verdicts["models"].where(layers < 2, verdicts["models"] + " at " + verdicts["layer"])
    return verdicts.assign(who=named)


def _robust(result: "Result") -> str:
    frame, several = result.robustness, len(result.meta["models"]) > 1
    worst = frame[(frame["attack"] == "worst") & (frame["class"] == "all")].dropna(
        subset=["accuracy"]
    )
    if worst.empty:
        return ""
    first, *others = [
        (str(row["model"]), " ".join(bounded(row, "accuracy", share=True)))
        for _, row in worst.sort_values("accuracy", ascending=False, kind="stable").iterrows()
    ]
    most = "keeps the most accuracy:" if several else "keeps"
    rest = "".join(f", {model} {share}" for model, share in others)
    return f"In the worst case over all attacks {first[0]} {most} {first[1]}{rest}."


def _leaks(leakage: pd.DataFrame) -> Iterator[str]:
    """A sentence for each model that answers a wrong class that its gates are told, more often than by chance."""
    natural = leakage[(leakage["layer"] == "") & (leakage["data"] == "natural")]
    for model, rows in natural.groupby("model", sort=False):
        of = {str(row["measure"]): row for _, row in rows.iterrows()}
        known = {"follows_wrong", "follows_untold", "accuracy"} <= of.keys()
        if known and of["follows_wrong"]["low"] > of["follows_untold"]["high"]:
            told, untold = (
                " ".join(bounded(of[name], "value", share=True))
                for name in ("follows_wrong", "accuracy")
            )
            yield (
                f"{model} reads the label in its gates: when they are told a wrong class, as in training they are told "
                f"the true one, it answers that class for {told} of the natural images. In use, where they are told "
                f"nothing, it is right on {untold}."
            )


def _finding(claim: str, verdict: str, rows: pd.DataFrame) -> str:
    who = "; ".join(dict.fromkeys(str(who).replace(" - ", " − ") for who in rows["who"] if who))
    who = f" ({who})" if who else ""
    if claim not in _FINDINGS:
        return f"{CLAIMS.get(claim, claim).rstrip('.')}: {verdict}{who}."
    yes, no = _FINDINGS[claim]
    text = {"supported": yes, "not supported": no}.get(
        verdict, f"It cannot be told here whether {yes}"
    )
    return f"{text[0].upper()}{text[1:]}{who}."


def claims(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    """The claims in order, each with its words and its verdicts."""
    return [
        {
            "name": claim,
            "words": CLAIMS.get(str(claim), ""),
            "verdicts": [_verdict(row) for _, row in rows.iterrows()],
        }
        for claim, rows in verdicts.groupby("claim", sort=True)
    ]


def _verdict(row: pd.Series) -> dict[str, str]:
    estimate, interval = bounded(row, "estimate")
    return {
        "verdict": str(row["verdict"]),
        "subject": ", ".join(str(row[key]) for key in ("models", "layer") if row[key]),
        "estimate": estimate,
        "interval": interval,
        "statement": str(row["statement"]),
    }


def made(meta: dict[str, Any]) -> str:
    """With what and on what it was made, as far as that is known; not when, which would make two pages differ."""
    versions = ", ".join(
        f"{name} {version}" for name, version in dict(meta.get("versions") or {}).items()
    )
    device = dict(meta.get("hardware") or {}).get("device")
    parts = {"Versions": versions, "Device": device, "Seed": meta["seed"]}
    return (
        ". ".join(f"{name}: {value}" for name, value in parts.items() if value not in (None, ""))
        + "."
    )
