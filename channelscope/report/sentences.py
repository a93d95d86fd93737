"""What a page says of a result, in sentences."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from channelscope.analyses.claims import CLAIMS
from channelscope.analyses.evaluation import describe_unchecked
from channelscope.figures.words import format_attack, format_radius
from channelscope.report.tables import Cell, has_rows

if TYPE_CHECKING:
    from channelscope.result import Result

# Claims whose estimates are differences of shares.
_POINTS = {"C2", "C4", "C5", "CAS", "FSR", "EAS", "KAP", "C4 by intervention", "NR damage"}
# Claims of other results than comparisons.
_FURTHER = {
    "C4 by intervention": "Without its negatively relevant channels a network is more robust.",
    "Cross-class": "Networks rest on features of several classes most at the best robust epoch.",
    "NR damage": "The damage is done by negatively relevant channels that rise under attack.",
}
# Results whose activations are of adversarial images by one attack.
_ATTACKED = ("comparison", "intervention", "damage", "film")
_LISTED = 6  # attacks, or networks, that a sentence names


def shorten_data(name: str) -> str:
    """Return the name of data without the folders that it lies in.

    >>> shorten_data("imagefolder:/home/me/cifar10-jpeg"), shorten_data("digits")
    ('cifar10-jpeg', 'digits')
    """
    kind, _, path = name.partition(":")
    parts = [part for part in re.split(r"[/\\]", path or kind) if part]
    return parts[-1] if len(parts) > 1 else name


def name_page(result: "Result") -> str:
    """Return the page's title."""
    if "title" in result.meta:  # a sweep's
        return str(result.meta["title"])
    names = list(result.meta["models"])
    if len(names) > _LISTED:
        names = [*names[: _LISTED - 1], f"{len(names) - _LISTED + 1} others"]
    return f"{', '.join(names)} on {shorten_data(result.meta['data']['name'])}"


def describe_setting(result: "Result") -> str:
    """Say what was measured, on what, by which attacks."""
    meta = result.meta
    data, models = meta["data"], list(meta["models"])
    what = {"sweep": "variant", "film": "training"}.get(result.kind, "network")
    texts = [
        f"{len(models)} {what}{'s' if len(models) != 1 else ''} on {data['images']:,} images of "
        f"{shorten_data(data['name'])} ({len(data['classes'])} classes)"
    ]
    if result.kind in _ATTACKED:
        radius = f", ε = {format_radius(meta['eps'])}" if "eps" in meta else ""
        texts.append(f"adversarial images: {format_attack(meta['attack'])}{radius}")
    elif result.kind == "evaluation":
        texts.append(f"ε = {format_radius(meta['eps'])}")
    attacks = _list_worst(result)
    if len(attacks) > _LISTED:
        texts.append(f"worst case per image over {len(attacks)} attacks")
    elif attacks:
        texts.append(f"worst case per image over {', '.join(attacks)}")
    if "level" in meta:
        texts.append(f"in brackets: {meta['level']:.0%} intervals")
    return f"{'; '.join(texts)}."


def _list_worst(result: "Result") -> list[str]:
    """Return the attacks that worst cases are over."""
    for name in ("robustness", "attacks"):
        if has_rows(result, name):
            attacks = result.select(name)["attack"].unique()
            return [format_attack(each) for each in attacks if each not in ("natural", "worst")]
    return []


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


def describe_leaks(result: "Result") -> Iterator[str]:
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


def _describe_claim(claim: str) -> str:
    """Return a claim in words; gates of others than CIFS have one of their own name."""
    if claim in ("CAS", "FSR", "EAS", "KAP"):
        return f"The gates of {claim} make their base more robust."
    return CLAIMS.get(claim, _FURTHER.get(claim, ""))


WORDS = {
    "natural, adversarial": "images as they are, and images that an attack changed within ε so "
    "that the network errs.",
    "worst case": "an image counts as right only if it is right as it is and under every attack.",
    "plain attack": "one that is made without regard to gates, as any network can be attacked.",
    "magnitude": "a channel's mean activation over the images of a class.",
    "relevance": "how a class's logit changes with a channel's activation; PR: positively relevant "
    "channels, which speak for the class; NR: negatively relevant ones, which speak against it.",
    "NR mass": "the share of the relevant activation (activation times relevance, without its "
    "sign) that lies on NR channels.",
    "alignment": "the cosine of what a class's natural and adversarial magnitudes have beside the "
    "mean of all classes: 1 where the attack leaves a class's channels as they were.",
    "damage": "the fall of the margin of the label over the wrong answer under attack.",
    "supported": "a two-sided test, corrected for all verdicts, rejects 0 and the effect is at "
    "least the least that counts.",
    "not supported": "the opposite was found, which is a result too.",
    "not judged": "a condition fails.",
}


def describe_damage(result: "Result") -> str:
    """Say in a sentence through how many channels the damage goes; empty where it is unknown."""
    if not has_rows(result, "damage_concentration"):
        return ""
    parts = [
        f"{replace(Cell.of(row, 'channels'), digits=1)} of {row['of']:g} channels in {row['model']}"
        for row in result.select("damage_concentration", covered=0.5).to_dict("records")
    ]
    return (
        "An attack wins by lowering the margin of the right answer over the wrong one. Half of "
        f"what it lowers it by passes through {'; '.join(parts)} (mean over the images that it "
        "breaks)."
    )


def list_claims(result: "Result") -> list[dict[str, Any]]:
    """Return the claims in order, each with its words and its verdicts."""
    if not has_rows(result, "verdicts"):
        return []
    claims = []
    for claim, rows in result.verdicts.groupby("claim", sort=True):
        verdicts = [
            {
                "verdict": row["verdict"],
                "subject": ", ".join(
                    row[key].replace(" - ", " − ") for key in ("models", "layer") if row[key]
                ),
                "estimate": _write_estimate(row),
                "statement": f"{row['statement']} {row['change']}".strip(),
            }
            for row in rows.to_dict("records")
        ]
        words = _describe_claim(str(claim))
        claims.append({"name": claim, "words": words, "verdicts": verdicts})
    return claims


def _write_estimate(row: Mapping[Any, Any]) -> Cell:
    """Return the estimate of a verdict, that of a share in points."""
    if row["claim"] not in _POINTS:
        return Cell.of(row, "estimate")
    value, low, high = (100 * float(row[name]) for name in ("estimate", "low", "high"))
    return Cell(value, low, high, digits=1, aside="" if math.isnan(value) else "points")


def describe_provenance(meta: dict[str, Any]) -> str:
    """Name versions, device and seed; not the date, which would make two pages differ."""
    versions = (meta.get("versions") or {}).items()
    parts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
        "Device": (meta.get("hardware") or {}).get("device"),
        "Seed": meta.get("seed"),
    }
    texts = [f"{name}: {value}" for name, value in parts.items() if value not in (None, "")]
    return f"{'. '.join(texts)}."
