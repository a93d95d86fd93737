"""Methods: which networks of a study were trained alike, and which method each gate is added to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from channelscope.analyses.base import Study

# What a gated method is compared with, beside "trades-cifs" with "trades" and the like.
_BASES = {
    "cas": "at",
    "cifs": "at",
    "cifs-published": "at-warm",
    "eas": "at",
    "fsr": "at",
    "kap": "standard",
}


@dataclass(frozen=True)
class Method:
    """Networks that were trained alike, with different seeds.

    Args:
        label: how sentences and tables call it.
        name: "standard", "at", "cifs", ...; None where it is unknown.
        models: the networks' labels.
    """

    label: str
    name: str | None
    models: tuple[str, ...]


def get_base(name: str | None) -> str | None:
    """Return the method to which gates were added; None for one without gates.

    >>> get_base("cifs"), get_base("trades-cifs"), get_base("cifs-published"), get_base("at")
    ('at', 'trades', 'at-warm', None)
    """
    base, _, gate = (name or "").rpartition("-")
    return _BASES.get(name or "") or (base if gate in _BASES else None) or None


def list_methods(study: Study) -> list[Method]:
    """Return the methods of a study's networks, in the networks' order.

    Networks are of one method where the user says so (``groups``), or where their recipes are on
    record and differ in the seed alone. Networks of one seed, such as copies, count once.
    """
    groups: Mapping[str, list[str]] = study.settings.get("method_groups", {})
    named = {model: label for label, models in groups.items() for model in models}
    members: dict[str, list[str]] = {}
    counted: set[tuple[str, object]] = set()
    for model in study.models:
        key = named.get(model) or _describe_training(study, model)
        known = study.describe(model)
        # A network that was changed after its training has a seed that was counted already.
        seed = (known.get("settings") or {}).get("seed", known.get("digest") or model)
        if (key, seed) not in counted:
            members.setdefault(key, []).append(model)
        counted.add((key, seed))
    names = [study.describe(models[0]).get("method") for models in members.values()]
    return [
        Method(_label(key, name, models, key in groups, names.count(name)), name, tuple(models))
        for (key, models), name in zip(members.items(), names, strict=True)
    ]


def _label(key: str, name: str | None, models: list[str], is_named: bool, alike: int) -> str:
    if is_named:
        return key
    if len(models) == 1 or name is None:
        return models[0]
    return name if alike == 1 else f"{name} ({models[0]}, ...)"


def _describe_training(study: Study, model: str) -> str:
    """Return a text that is the same for networks whose recipes differ in the seed alone."""
    known = study.describe(model)
    settings = known.get("settings")
    if not settings:
        return f"network {model}"
    recipe = {name: value for name, value in settings.items() if name != "seed"}
    architecture = [known.get(name) for name in ("method", "arch", "width", "gates")]
    return json.dumps([recipe, architecture], sort_keys=True, default=str)
