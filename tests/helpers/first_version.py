"""Studies and tables of the package's first version: what its results must still be.

``tests/data/first_version/CASE/KIND`` holds a run's arrays (npz, see ``studies``), what is known of
its models (study.json) and its tables (csv.gz).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from channelscope.analyses.base import Finding, Kind, Outcome, SuppressedLayer
from helpers.studies import KeptStudy

FOLDER = Path(__file__).parent.parent / "data" / "first_version"
KINDS: dict[str, Kind] = {
    "comparison": "comparison",
    "evaluation": "evaluation",
    "intervention": "intervention",
    "rankings": "relevance",
}
_NUMBERS = {"": "nan", "True": "1", "False": "0"}
_WORDS = {
    "answer",
    "attack",
    "check",
    "claim",
    "class",
    "curve",
    "data",
    "decided_by",
    "evidence",
    "layer",
    "measure",
    "model",
    "models",
    "order",
    "other",
    "other_layer",
    "part",
    "scorer",
    "sentence",
    "statement",
    "varied",
    "verdict",
}


def read_first_table(case: str, kind: str, name: str) -> pd.DataFrame:
    """Read a table of the first version; an empty layer is the empty text."""
    path = FOLDER / case / kind / f"{name}.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in set(table) - _WORDS:
        # Not by pandas, older versions of which drop the last digit.
        table[column] = table[column].replace(_NUMBERS).astype(float)
    return table


def read_first_study(case: str, kind: str) -> KeptStudy:
    """Read a study of the first version, such as ("digits", "comparison")."""
    folder = FOLDER / case / kind
    described = json.loads((folder / "study.json").read_text("utf-8"))
    arrays = _read_arrays(folder)
    models = list(described["models"])
    if kind == "comparison" and 0.15 in described["settings"].get("eps_sweep", ()):
        # This strength is the attack's own.
        for index, model in enumerate(models):
            for layer in described["models"][model]["layers"]:
                own = arrays[f"activations/{index}/adversarial/{layer}"]
                arrays[f"activations/{index}/eps-0.15/{layer}"] = own
            arrays[f"answers/{index}/eps-0.15"] = arrays[f"answers/{index}/adversarial"]
    return KeptStudy(
        arrays,
        described["models"],
        tuple(described["classes"]),
        {"cascade": False} | described["settings"],
        KINDS[kind],
        {
            model: _read_outcome(arrays, index, outcome, described["settings"])
            for index, (model, outcome) in enumerate(
                zip(models, described.get("outcomes", ()), strict=False)
            )
        },
        suppression={
            plan["label"]: {
                layer: _read_suppressed(arrays, index, plan, layer) for layer in plan["layers"]
            }
            for index, plan in enumerate(described.get("plans", ()))
        },
    )


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as archive:
            arrays |= {name: archive[name] for name in archive.files}
    # Whole numbers are kept small in the files.
    return {
        name: array.astype(np.int64) if array.dtype == np.int16 else array
        for name, array in arrays.items()
    }


def _read_outcome(
    arrays: dict[str, np.ndarray], index: int, outcome: dict[str, Any], settings: dict[str, Any]
) -> Outcome:
    counts = {
        name: {(attack, part): count for attack, part, count in outcome[name]}
        for name in ("attacked", "broken")
    }
    findings = tuple(
        Finding(finding["check"], finding["sentence"], finding["evidence"])
        for finding in outcome["findings"]
    )
    prefix = f"sweep/{index}/"
    sweep = {
        float(name.removeprefix(prefix)): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return Outcome(
        attacked=counts["attacked"],
        broken=counts["broken"],
        fallbacks=tuple(outcome["escalated"]),
        checked=settings["checks"] > 0,
        findings=findings,
        skipped=outcome["skipped"],
        notes=tuple(outcome["notes"]),
        sweep=sweep,
    )


def _read_suppressed(
    arrays: dict[str, np.ndarray], index: int, plan: dict[str, Any], layer: str
) -> SuppressedLayer:
    points = {curve["ranking"]: curve["points"] for curve in plan["curve_points"]}
    correct: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    for ranking in plan["rankings"]:
        if ranking["layer"] == layer:
            by_data = {
                data: np.stack(
                    [arrays[f"stood/{index}/{p}/{data}"] for p in points[ranking["ranking"]]]
                )
                for data in ("natural", "adversarial")
            }
            correct.setdefault((ranking["scorer"], ranking["order"]), []).append(by_data)
    prefix = f"relevance/{index}/{layer}/"
    relevance = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    counts = tuple(int(count) for count in arrays[f"counts/{index}/{layer}"])
    return SuppressedLayer(counts, relevance, correct)
