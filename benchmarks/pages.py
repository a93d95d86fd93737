"""Put what ``benchmarks.results`` measured into docs/RESULTS.md and README.md: ``python -m benchmarks.pages``.

The tables stand between marks, ``<!-- NAME -->`` and ``<!-- end of NAME -->``, and are made of docs/results-small,
figures/cifar10/tables and the logs in the zoo's files; neither images nor attacks are needed.
"""

import json
import re
from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from channelscope.evaluation import Evaluation
from channelscope.statistics.alignment import wilson
from channelscope.weights import Checkpoint, Gate, zoo
from figures import markdown

KEPT, GALLERY = Path("docs/results-small"), Path("figures/cifar10/tables")
RELIABILITY = Path("docs/reliability")
PAGES = (Path("docs/RESULTS.md"), Path("README.md"))
LAST = "layer4"  # the penultimate layer, of which the paper speaks
METHODS = {"standard": "standard", "at": "AT", "cas": "CAS", "cifs": "CIFS"}


def name_of(method: str) -> str:
    return f"cifar10-{method}"


def accuracies() -> pd.DataFrame:
    """Lay out a row for each network and attack: "natural" for none, "worst" for the worst case per image."""
    main, rows = Evaluation.load(KEPT / "evaluation"), []
    for index, method in enumerate(METHODS):
        name = name_of(method)
        auto = Evaluation.load(KEPT / f"autoattack-{name}")
        rows += _rows(name, main, index)
        with_auto = {row["attack"]: row for row in _rows(name, auto, 0)}
        rows += [with_auto["autoattack"], with_auto["worst"] | {"attack": "worst-with-autoattack"}]
    return pd.DataFrame(rows)


def _rows(name: str, found: Evaluation, index: int) -> list[dict[str, Any]]:
    prefix = f"correct/{index}/"
    hits = {
        key.removeprefix(prefix): stood
        for key, stood in found.arrays.items()
        if key.startswith(prefix)
    }
    hits["worst"] = np.logical_and.reduce(list(hits.values()))
    estimates = {
        attack: wilson(int(stood.sum()), len(stood), 0.95) for attack, stood in hits.items()
    }
    return [
        {
            "model": name,
            "attack": attack,
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
            "count": count,
        }
        for attack, found in estimates.items()
        for count in [len(hits[attack])]
    ]


def write() -> None:
    """Put the tables between their marks, ``<!-- NAME -->`` and ``<!-- end of NAME -->``, in the pages."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for name, make in TABLES.items():
            marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
            text = marks.sub(lambda found, made=make: f"{found[1]}{made()}\n{found[2]}", text)
        page.write_text(text, "utf-8")


def headline() -> str:
    """Say what came of CIFS and of CAS against AT in the worst case."""
    found = _verdicts().query("claim == 'C4'").set_index("models")
    cifs, cas = (found.loc[f"{METHODS[method]} - {METHODS['at']}"] for method in ("cifs", "cas"))
    words = {
        "supported": "CIFS makes adversarial training more robust here",
        "not supported": "CIFS makes adversarial training less robust here",
        "inconclusive": "Whether CIFS makes adversarial training more robust is not decided here",
    }
    what = "width 16, 8 epochs, one seed"
    return f"**{words[cifs['verdict']]} ({what}).** {cifs['statement']} CAS: {cas['verdict']}. {cas['statement']}"


def verdicts() -> str:
    """Say what came of each claim."""
    found = _verdicts().query("layer in ('', @LAST)")
    words = [
        f"{row['claim']} {row['verdict']} ({row['models']})" for row in found.to_dict("records")
    ]
    return f"On the CIFAR-10 networks of the first figures: {', '.join(words)}."


def networks() -> str:
    """Lay out how the networks were trained."""
    rows = []
    for name in map(name_of, METHODS):
        checkpoint = Checkpoint.read(f"zoo:{name}")
        history, kept = checkpoint.meta["history"], checkpoint.meta["metrics"]
        rows.append(
            {
                "network": markdown.Marked(f"`zoo:{name}`"),
                "gates (probe)": ", ".join(map(_gate, checkpoint.gates)) or "none",
                "epochs, kept": f"{len(history)}, {kept['epoch']}",
                "minutes": f"{sum(row['seconds'] for row in history) / 60:.0f}",
                "training images, as trained on": _percent(kept["accuracy"]),
                "validation, natural": _percent(kept["val_natural"]),
                "validation, PGD-3": _percent(kept["val_robust"]),
                "MB": f"{(zoo.HERE / f'{name}.pt').stat().st_size / 1e6:.2f}",
            }
        )
    return markdown.table(rows)


def _gate(gate: Gate) -> str:
    return f"{gate.layer} ({gate.options['probe']})"


def robustness() -> str:
    """Lay out accuracy by network and attack."""
    return _accuracies("natural", "fgsm", "pgd-20", "cw-30", "apgd-ce", "apgd-dlr", "worst")


def autoattack() -> str:
    """Lay out accuracy under AutoAttack, on fewer images."""
    return _accuracies("autoattack", "worst-with-autoattack")


def front() -> str:
    """Lay out what the README has."""
    return _accuracies("natural", "pgd-20", "cw-30", "worst", "autoattack")


def shares() -> str:
    """Say where the activation goes under attack: the share of it on NR channels, mean over the classes."""
    table = pd.read_csv(GALLERY / "alignment.csv", keep_default_na=False)
    table = table[(table["class"] == "all") & (table["layer"] == LAST)]
    table = table.set_index(["model", "measure"])["value"].astype(float)
    words = []
    for label in METHODS.values():
        natural, adversarial = (
            table[label, f"nr_share_{data}"] for data in ("natural", "adversarial")
        )
        words.append(f"{label} {_percent(natural)} → {_percent(adversarial)}")
    return (
        f"Share of the activation on NR channels, natural → adversarial images: {', '.join(words)}."
    )


NAMES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "pgd-20": "PGD-20",
    "cw-30": "C&W-30",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "autoattack": "AutoAttack",
    "worst": "adaptive worst case",
    "worst-with-autoattack": "worst case with AutoAttack",
}


def _accuracies(*attacks: str) -> str:
    table = zoo.read_results().set_index(["model", "attack"]).astype(float)
    rows = []
    for name in map(name_of, METHODS):
        cells = {"network": name.removeprefix("cifar10-")}
        for attack in attacks:
            found = table.loc[(name, attack)]
            heading = f"{NAMES[attack]} (n = {found['count']:.0f})"
            cells[heading] = _share(found["accuracy"], found["low"], found["high"])
        rows.append(cells)
    return markdown.table(rows)


def decided() -> str:
    """Say which attack breaks the most images, by how much PGD-20 errs, and what the checks for masking found."""
    found = Evaluation.load(KEPT / "evaluation")
    pgd = found.table[found.table["attack"] == "pgd-20"].set_index("model")["robust"]
    lines = []
    for row in found.worst.to_dict("records"):
        signs = found.warnings[found.warnings["model"] == row["model"]]["sentence"].tolist()
        checked = (
            " ".join(signs) or "The checks for gradient masking found no attack that breaks more."
        )
        lines.append(
            f"- {row['model']}: PGD-20 overrates it by {100 * (pgd[row['model']] - row['robust']):.1f} points. The "
            f"attack that breaks the most images is `{row['decided_by']}`. {checked}"
        )
    return "\n".join(lines)


def claims() -> str:
    """Lay out the verdicts, layer by layer."""
    return markdown.table(
        _verdicts()[["claim", "models", "layer", "verdict", "statement"]].to_dict("records")
    )


def _verdicts() -> pd.DataFrame:
    return pd.read_csv(GALLERY / "verdicts.csv", keep_default_na=False)


def gates() -> str:
    """Lay out what networks and their gates do at the epoch that was kept."""
    columns = {
        "accuracy": "training images, as trained on",
        "val_natural": "validation",
        "val_robust": "validation, attacked",
        "probe_natural": "probe alone, validation",
        "probe_robust": "probe alone, attacked",
        "mask_natural": "effective channels, validation",
        "mask_adversarial": "effective channels, attacked",
    }
    rows = []
    for row in _kept_epochs().to_dict("records"):
        gate = "" if pd.isna(row["layer"]) else f", {row['layer']}"
        cells = {"network, gated layer": f"{row['model']}{gate}"}
        cells |= {
            words: "" if pd.isna(row[name]) else _percent(row[name])
            for name, words in columns.items()
        }
        rows.append(cells)
    return markdown.table(rows)


def leakage() -> str:
    """Lay out what gated networks answer when their gates are told a class, and how well masks tell the class."""
    table = pd.read_csv(GALLERY / "leakage.csv", keep_default_na=False)
    columns = {
        "accuracy": "right, gates told nothing",
        "accuracy_true": "right, told the true class",
        "follows_wrong": "answers the wrong class told",
        "follows_untold": "answers that class, told nothing",
        "readable": "class read from the mask",
        "readable_true": "class read from the mask, gate told the true class",
    }
    rows = []
    for (model, data, layer), measured in table.groupby(["model", "data", "layer"], sort=False):
        cells = {"network, gate": ", ".join(filter(None, (model, layer))), "images": data}
        for measure, words in columns.items():
            found = measured[measured["measure"] == measure].to_dict("records")
            cells[words] = "".join(
                _share(*(float(row[name]) for name in ("value", "low", "high"))) for row in found
            )
        rows.append(cells)
    return markdown.table(rows)


def intervention() -> str:
    """Lay out what becomes of the networks without their NR channels, by the layer and its scorer."""
    kept = (pd.read_csv(KEPT / name / "verdicts.csv") for name in ("interventions", "league"))
    return markdown.table(
        pd.concat(kept)[["model", "layer", "scorer", "verdict", "statement"]].to_dict("records")
    )


def causal() -> str:
    """Say what becomes of the networks without the channels that are most negatively relevant by the gradient."""
    table = pd.read_csv(KEPT / "interventions" / "verdicts.csv").query("scorer == 'gradient'")
    words = []
    for row in table.to_dict("records"):
        change = " ".join(f"{100 * row[name]:+.1f}" for name in ("estimate", "low", "high")).split()
        words.append(f"{row['model']} {change[0]} [{change[1]}, {change[2]}] ({row['verdict']})")
    return f"Robust accuracy without its most negatively relevant channels, in points: {', '.join(words)}."


def league() -> str:
    """Lay out how true each scorer's ranking is: areas between its curves and the random ones."""
    table = pd.concat(
        [pd.read_csv(KEPT / name / "league.csv") for name in ("interventions", "league")]
    )
    rows = []
    for (model, layer, scorer), found in table.groupby(["model", "layer", "scorer"], sort=False):
        cells = {"network": model, "layer": layer, "scorer": scorer}
        for order, data in product(("nr", "pr"), ("natural", "adversarial")):
            (row,) = found[(found["order"] == order) & (found["data"] == data)].to_dict("records")
            cells[f"{order.upper()} first, {data}"] = _share(row["value"], row["low"], row["high"])
        rows.append(cells)
    return markdown.table(rows)


def intervened() -> str:
    """Say on what the interventions were measured."""
    meta = json.loads((KEPT / "interventions" / "meta.json").read_text("utf-8"))
    return (
        f"n = {meta['data']['images']} test images; channels ranked on {meta['ranked_on']['images']} images of the "
        f"{meta['ranked_on']['part']} part; {meta['attack'].upper()}, eps 8/255; {meta['random']} random orders; seed "
        f"{meta['seed']}; {meta['level']:.0%} intervals (bootstrap over images)."
    )


def reliability() -> str:
    """Lay out what was done to runs and to readers, and how often they survived."""
    faults, fuzz = (
        json.loads((RELIABILITY / f"{name}.json").read_text("utf-8")) for name in ("faults", "fuzz")
    )
    limits = "{seconds:g} s and {memory_mb} MB".format_map(fuzz["limits"])
    rows = [
        {"what was done": fault, "to": _in_short(by), "survived": f"{sum(by.values()):,}"}
        for fault, by in faults["survived"].items()
    ]
    rows.append(
        {
            "what was done": f"a wrong file read, within {limits}",
            "to": _in_short(fuzz["targets"]),
            "survived": f"{fuzz['survived']:,} of {fuzz['inputs']:,}",
        }
    )
    seeds = f"`make faults` (seed {faults['seed']}, {faults['date']}) and `make fuzz` (seed {fuzz['seed']}, {fuzz['date']})"
    return f"{markdown.table(rows)}\n\n{seeds}; {faults['hardware']}, torch {faults['versions']['torch']}."


def _kept_epochs() -> pd.DataFrame:
    """Give the log of each network's kept epoch, a row for each gate."""
    training, log = (pd.read_csv(GALLERY / f"{name}.csv") for name in ("training", "gates"))
    return training[training["best"]].merge(log, on=["model", "epoch"], how="left")


def conditions() -> str:
    """Say on what the figures were measured."""
    meta = json.loads((KEPT / "evaluation" / "meta.json").read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return (
        f"n = {meta['data']['images']} test images of {zoo.TRAINED_ON}, class shares kept; L-inf, eps 8/255; seed "
        f"{meta['seed']}; {meta['level']:.0%} intervals (Wilson's, over images). {meta['created'][:10]}, "
        f"{(KEPT / 'hardware.txt').read_text('utf-8').strip()}; {versions}."
    )


TABLES = {
    make.__name__: make
    for make in (
        headline,
        verdicts,
        networks,
        robustness,
        autoattack,
        decided,
        claims,
        gates,
        leakage,
        intervened,
        causal,
        intervention,
        league,
        conditions,
        reliability,
        front,
        shares,
    )
}


def _in_short(names: Collection[str]) -> str:
    return "; ".join(names) if len(names) < 10 else f"{len(names)} kinds of files"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    write()
