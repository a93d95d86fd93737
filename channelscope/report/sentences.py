"""A result's findings, in sentences."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from channelscope.analyses.claims import CLAIMS
from channelscope.analyses.evaluation import describe_unchecked
from channelscope.figures.words import format_attack, format_radius
from channelscope.report.tables import Cell, has_rows

if TYPE_CHECKING:
    from channelscope.result import Result

# Each claim as it reads where it is supported, and where it is not.
_FINDINGS = {
    "C1": (
        "adversarial training aligns the activations of adversarial images with those of natural "
        "ones",
        "adversarial training makes the activations of adversarial images less like those of "
        "natural ones",
    ),
    "C2": (
        "adversarial training leaves negatively relevant channels over-activated on adversarial "
        "images",
        "under attack, negatively relevant channels hold less, not more, of an adversarially "
        "trained network's relevant activation",
    ),
    "C3": (
        "an adversarially trained network is robust on those classes whose activations follow the "
        "relevance of the channels",
        "an adversarially trained network is robust on those classes whose activations do not "
        "follow the relevance of the channels",
    ),
    "C4": (
        "CIFS makes adversarial training more robust",
        "CIFS makes adversarial training less robust",
    ),
    "C5": (
        "CIFS suppresses negatively relevant channels under attack",
        "CIFS leaves negatively relevant channels more active under attack",
    ),
}


def describe_setting(result: "Result") -> str:
    """Say what was measured, on what."""
    meta = result.meta
    data, models = meta["data"], list(meta["models"])
    what = "1 model measured" if len(models) == 1 else f"{len(models)} models compared"
    attack = f"{format_attack(meta['attack'])}, ε = {format_radius(meta['eps'])}"
    return (
        f"{what} ({', '.join(models)}) on {data['images']:,} images of {data['name']} "
        f"({len(data['classes'])} classes), natural and adversarial (by {attack})."
    )


def list_networks(result: "Result") -> list[str]:
    """Say as what the networks of other programs were read, and whose gradients were not checked.

    What was assumed or named of a network, such as its normalisation, decides its numbers.
    """
    models = result.meta["models"]
    lines = [
        f"{name} was read as {known['recognised']}."
        for name, known in models.items()
        if known.get("recognised")
    ]
    return [*lines, *filter(None, [describe_unchecked(result)])]


def list_findings(result: "Result") -> list[dict[str, str]]:
    """Return the headlines: how robust the models are, which leak labels, what claims hold.

    ``claim`` and ``verdict`` are empty where there are none.
    """
    texts = [
        *_describe_faults(result),
        *_describe_robustness(result),
        *_describe_leaks(result),
    ]
    findings = [{"claim": "", "verdict": "", "text": text} for text in texts]
    if not has_rows(result, "verdicts"):
        return findings
    verdicts = result.verdicts
    layers = verdicts.groupby(["claim", "models"])["layer"].transform("nunique")
    at_layer = verdicts["models"] + " at " + verdicts["layer"]
    verdicts = verdicts.assign(who=verdicts["models"].where(layers < 2, at_layer))
    for (claim, verdict), rows in verdicts.groupby(["claim", "verdict"], sort=True):
        text = _describe_verdict(str(claim), str(verdict), rows["who"])
        findings.append({"claim": str(claim), "verdict": str(verdict), "text": text})
    return findings


def _describe_faults(result: "Result") -> Iterator[str]:
    """Say whose numbers cannot be trusted, and why."""
    if has_rows(result, "faults"):
        for row in result.select("faults").to_dict("records"):
            yield f"Do not trust {row['model']}. {row['sentence']}"


def _describe_robustness(result: "Result") -> Iterator[str]:
    if not has_rows(result, "robustness"):
        return
    worst = result.select("robustness", attack="worst", **{"class": "all"})
    worst = worst.dropna(subset=["accuracy"])
    worst = worst.sort_values("accuracy", ascending=False, kind="stable")
    shares = [
        f"{row['model']} {Cell.of(row, 'accuracy', share=True)}" for row in worst.to_dict("records")
    ]
    if shares:
        yield f"Worst-case accuracy over all attacks: {', '.join(shares)}."


def _describe_leaks(result: "Result") -> Iterator[str]:
    """Name each model that answers a wrong label of its gates more often than by chance."""
    if not has_rows(result, "leakage"):
        return
    natural = result.select("leakage", layer="", data="natural")
    for model, rows in natural.groupby("model", sort=False):
        cells = {row["measure"]: Cell.of(row, share=True) for row in rows.to_dict("records")}
        if not {"follows_wrong", "follows_untold", "accuracy"} <= cells.keys():
            continue
        if cells["follows_wrong"].low > cells["follows_untold"].high:
            yield (
                f"{model} relies on the labels that its gates are given in training: given a wrong "
                f"label, it answers that label on {cells['follows_wrong']} of the natural images. "
                f"In use, without a label, its accuracy is {cells['accuracy']}."
            )


def _describe_verdict(claim: str, verdict: str, names: "pd.Series[str]") -> str:
    who = "; ".join(dict.fromkeys(name.replace(" - ", " − ") for name in names if name))
    who = f" ({who})" if who else ""
    if claim not in _FINDINGS:
        return f"{_describe_claim(claim).rstrip('.')}: {verdict}{who}."
    holds, fails = _FINDINGS[claim]
    texts = {
        "supported": holds,
        "not supported": fails,
        "not judged": f"it was not judged whether {holds}",
    }
    text = texts.get(verdict, f"it remains open whether {holds}")
    return f"{text[0].upper()}{text[1:]}{who}."


def _describe_claim(claim: str) -> str:
    """Return a claim in words; gates of others than CIFS have one of their own name."""
    if claim in ("CAS", "FSR", "EAS", "KAP"):
        return f"The gates of {claim} make their base more robust."
    return CLAIMS.get(claim, claim)


def list_claims(result: "Result") -> list[dict[str, Any]]:
    """Return the claims in order, each with its words and its verdicts."""
    if not has_rows(result, "verdicts"):
        return []
    claims = []
    for claim, rows in result.verdicts.groupby("claim", sort=True):
        verdicts = [
            {
                "verdict": row["verdict"],
                "subject": ", ".join(row[key] for key in ("models", "layer") if row[key]),
                "estimate": Cell.of(row, "estimate"),
                "statement": f"{row['statement']} {row['change']}".strip(),
            }
            for row in rows.to_dict("records")
        ]
        words = _describe_claim(str(claim))
        claims.append({"name": claim, "words": words, "verdicts": verdicts})
    return claims


def describe_provenance(meta: dict[str, Any]) -> str:
    """Name versions, device and seed; not the date, which would make two pages differ."""
    versions = (meta.get("versions") or {}).items()
    parts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
        "Device": (meta.get("hardware") or {}).get("device"),
        "Seed": meta["seed"],
    }
    texts = [f"{name}: {value}" for name, value in parts.items() if value not in (None, "")]
    return f"{'. '.join(texts)}."
