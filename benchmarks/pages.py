"""Write what was measured into the pages that show it.

    python -m benchmarks.pages

A block of text stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. Blocks are made from
the results in docs/results-small and figures/cifar10/tables, from the logs in the zoo's files, and
from what ``benchmarks.published`` kept in docs/published; neither images nor attacks are needed.
"""

import json
from collections.abc import Collection
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.published import format_networks as format_published_networks
from channelscope import Result
from channelscope.layers import get_layer
from channelscope.weights import Checkpoint, Gate, zoo
from channelscope.weights import load as load_network
from figures.markdown import Markdown, format_table

RESULTS = Path("docs/results-small")
GALLERY = Path("figures/cifar10/tables")
RELIABILITY = Path("docs/reliability")
PUBLISHED = Path("docs/published/networks.json")
PAGES = (
    Path("README.md"),
    Path("docs/RESULTS.md"),
    Path("docs/RELIABILITY.md"),
    Path("docs/quickstart.md"),
    Path("docs/howto/channels.md"),
)
LAST = "layer4"  # the penultimate layer, of which the paper speaks
FIRST = "conv1"
EDGES_CUT, FEWEST_BROKEN = 0.05, 20
METHODS = {"standard": "standard", "at": "AT", "cas": "CAS", "cifs": "CIFS"}
WITH_AUTO = "worst-with-autoattack"
HEADINGS = {
    "natural": "natural",
    "fgsm": "FGSM",
    "pgd-20": "PGD-20",
    "cw-30": "C&W-30",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "autoattack": "AutoAttack",
    "worst": "adaptive worst case",
    WITH_AUTO: "worst case with AutoAttack",
}

load = cache(Result.load)


def name_of(method: str) -> str:
    """Return the name in the zoo."""
    return f"cifar10-{method}"


def collect_accuracies() -> pd.DataFrame:
    """Return a row for each network and attack: "natural" for none, "worst" for the worst case."""
    parts = []
    for name in map(name_of, METHODS):
        auto = _read_accuracies(f"autoattack-{name}", name)
        auto = auto[auto["attack"].isin(["autoattack", "worst"])].replace({"worst": WITH_AUTO})
        parts += [_read_accuracies("evaluation", name), auto]
    return pd.concat(parts, ignore_index=True).astype({"count": int})


def _read_accuracies(folder: str, name: str) -> pd.DataFrame:
    result = load(RESULTS / folder)
    return result.select("robustness", model=name, **{"class": "all"}).drop(columns="class")


def update_pages() -> None:
    """Make every block anew."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for name, make in BLOCKS.items():
            before, after = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
            if before in text:
                head, _, rest = text.partition(before)
                text = f"{head}{before}{make()}{after}{rest.partition(after)[2]}"
        page.write_text(text, "utf-8")


# ---------------------------------------------------------------- networks and their robustness


def format_headline() -> str:
    """Say how CIFS and CAS compare with AT in the worst case."""
    verdicts = load(GALLERY).verdicts.set_index(["claim", "models"])
    cifs, cas = (
        verdicts.loc[claim, f"{METHODS[method]} - {METHODS['at']}"]
        for claim, method in (("C4", "cifs"), ("CAS", "cas"))
    )
    words = {
        "supported": "These networks: CIFS is more robust than AT",
        "not supported": "These networks: CIFS is less robust than AT",
        "inconclusive": "Whether CIFS makes AT more robust is not decided by these networks",
        "not judged": "Whether CIFS makes AT more robust was not judged",
    }
    return (
        f"**{words[cifs['verdict']]} (width 16, 8 epochs, one seed).** {cifs['statement']} "
        f"CAS: {cas['verdict']}. {cas['statement']}"
    )


def format_networks() -> str:
    """Return a table of how the networks were trained."""
    rows = []
    for name in map(name_of, METHODS):
        checkpoint = Checkpoint.read(f"zoo:{name}")
        history, best = checkpoint.meta["history"], checkpoint.meta["metrics"]
        rows.append(
            {
                "network": Markdown(f"`zoo:{name}`"),
                "gates (probe)": ", ".join(map(_format_gate, checkpoint.gates)) or "none",
                "epochs, best": f"{len(history)}, {best['epoch']}",
                "minutes": f"{sum(row['seconds'] for row in history) / 60:.0f}",
                "training images, as trained on": _format_percent(best["accuracy"]),
                "validation, natural": _format_percent(best["val_natural"]),
                "validation, PGD-3": _format_percent(best["val_robust"]),
                "MB": f"{(zoo.HERE / f'{name}.pt').stat().st_size / 1e6:.2f}",
            }
        )
    return format_table(rows)


def _format_gate(gate: Gate) -> str:
    return f"{gate.layer} ({gate.options['probe']})"


def format_front() -> str:
    """Return README's table of accuracies."""
    return _format_accuracies("natural", "pgd-20", "autoattack", "worst")


def format_robustness() -> str:
    """Return a table of accuracy by network and attack."""
    return _format_accuracies("natural", "fgsm", "pgd-20", "cw-30", "apgd-ce", "apgd-dlr", "worst")


def format_autoattack() -> str:
    """Return a table of accuracy under AutoAttack, on fewer images."""
    return _format_accuracies("autoattack", WITH_AUTO)


def _format_accuracies(*attacks: str) -> str:
    table = zoo.read_results().set_index(["model", "attack"]).astype(float)
    rows = []
    for method in METHODS:
        cells = {"network": method}
        for attack in attacks:
            row = table.loc[(name_of(method), attack)]
            cells[f"{HEADINGS[attack]} (n = {row['count']:.0f})"] = _format_share(row, "accuracy")
        rows.append(cells)
    return format_table(rows)


def format_strongest() -> str:
    """Say which attack is the strongest, by how much PGD-20 errs, and what signs of masking are."""
    result = load(RESULTS / "evaluation")
    lines = []
    for row in result.worst_case.to_dict("records"):
        pgd = result.select("attacks", model=row["model"], attack="pgd-20")["robust"].item()
        signs = " ".join(result.select("warnings", model=row["model"])["sentence"])
        signs = signs or "The checks for gradient masking found no attack that breaks more."
        lines.append(
            f"- {row['model']}: PGD-20 overrates it by {100 * (pgd - row['robust']):.1f} points. "
            f"The attack that breaks the most images is `{row['decided_by']}`. {signs}"
        )
    return "\n".join(lines)


def format_conditions() -> str:
    """Say on what robustness was measured."""
    meta = load(RESULTS / "evaluation").meta
    auto = f"autoattack-{name_of('at')}"
    return (
        f"n = {meta['data']['images']} test images of {zoo.TRAINED_ON}, class shares kept; L-inf, "
        f"eps 8/255; seed {meta['seed']}; {meta['level']:.0%} intervals (Wilson's, over images). "
        f"{_format_place('evaluation')}. AutoAttack: {_format_place(auto)}."
    )


def _format_place(name: str) -> str:
    """Say when, on what hardware and with what versions a result was measured."""
    meta = load(RESULTS / name).meta
    hardware = (RESULTS / name / "hardware.txt").read_text("utf-8").strip()
    versions = ", ".join(f"{package} {version}" for package, version in meta["versions"].items())
    return f"{meta['created'][:10]}, {hardware}; {versions}"


# ---------------------------------------------------------------- what is inside


def format_verdicts() -> str:
    """List the claims' verdicts."""
    verdicts = load(GALLERY).verdicts.to_dict("records")
    words = [f"{row['claim']} {row['verdict']} ({row['models']})" for row in verdicts]
    return f"On the CIFAR-10 networks of the package: {', '.join(words)}."


def format_claims() -> str:
    """Return a table of the verdicts."""
    columns = ["claim", "models", "layer", "verdict", "statement", "change"]
    return format_table(load(GALLERY).verdicts[columns].to_dict("records"))


def format_shares() -> str:
    """Say how much of the relevant activation lies on NR channels, mean over the classes."""
    table = load(GALLERY).select("alignment", layer=LAST, **{"class": "all"})
    shares = table.set_index(["model", "measure"])["value"]
    words = []
    for label in METHODS.values():
        natural, adversarial = (
            _format_percent(shares[label, f"nr_mass_{data}"]) for data in ("natural", "adversarial")
        )
        words.append(f"{label} {natural} → {adversarial}")
    return (
        "Share of the relevant activation on NR channels (NR mass), natural → adversarial images: "
        f"{', '.join(words)}."
    )


def format_gates() -> str:
    """Return a table of what networks and their gates do at the best epoch."""
    columns = {
        "accuracy": "training images, as trained on",
        "val_natural": "validation",
        "val_robust": "validation, attacked",
        "probe_natural": "probe alone, validation",
        "probe_robust": "probe alone, attacked",
        "mask_natural": "effective channels, validation",
        "mask_adversarial": "effective channels, attacked",
    }
    result = load(GALLERY)
    best = result.select("training", best=1)
    rows = []
    for row in best.merge(result.gates, on=["model", "epoch"], how="left").to_dict("records"):
        gate = "" if pd.isna(row["layer"]) else f", {row['layer']}"
        cells = {"network, gated layer": f"{row['model']}{gate}"}
        for name, heading in columns.items():
            cells[heading] = "" if pd.isna(row[name]) else _format_percent(row[name])
        rows.append(cells)
    return format_table(rows)


def format_leakage() -> str:
    """Return a table of what gates that are told a class do, and how well masks tell the class."""
    columns = {
        "accuracy": "right, gates told nothing",
        "accuracy_true": "right, told the true class",
        "follows_wrong": "answers the wrong class told",
        "follows_untold": "answers that class, told nothing",
        "readable": "class read from the mask",
        "readable_true": "class read from the mask, gate told the true class",
    }
    rows = []
    by_gate = load(GALLERY).leakage.groupby(["model", "data", "layer"], sort=False)
    for (model, data, layer), table in by_gate:
        cells = {"network, gate": f"{model}, {layer}" if layer else model, "images": data}
        measured = {row["measure"]: _format_share(row) for row in table.to_dict("records")}
        rows.append(cells | {words: measured.get(name, "") for name, words in columns.items()})
    return format_table(rows)


# ---------------------------------------------------------------- interventions


def format_intervention_conditions() -> str:
    """Say on what the interventions were measured."""
    meta = load(RESULTS / "interventions").meta
    ranked_on = meta["ranked_on"]
    return (
        f"n = {meta['data']['images']} test images; channels ranked on {ranked_on['images']} "
        f"images of the {ranked_on['part']} part; {meta['attack'].upper()}, eps 8/255; "
        f"{meta['random']} random orders; seed {meta['seed']}; {meta['level']:.0%} intervals "
        "(bootstrap over images)."
    )


def format_causal() -> str:
    """Say how robust the networks are without the channels most NR by the gradient."""
    table = _read_suppression("interventions")
    words = []
    for row in table[table["scorer"] == "gradient"].to_dict("records"):
        value, low, high = (f"{100 * row[name]:+.1f}" for name in ("estimate", "low", "high"))
        words.append(f"{row['model']} {value} [{low}, {high}] ({row['verdict']})")
    return (
        "Change of robust accuracy without the most negatively relevant channels, in points: "
        f"{', '.join(words)}."
    )


def format_intervention() -> str:
    """Return a table of the verdicts on interventions, by layer and scorer."""
    table = pd.concat(map(_read_suppression, ("interventions", "league")))
    columns = ["model", "layer", "scorer", "verdict", "statement"]
    return format_table(table[columns].to_dict("records"))


def _read_suppression(name: str) -> pd.DataFrame:
    result = load(RESULTS / name)
    # A verdict for each row, in the same order.
    return result.suppression.join(result.verdicts[["verdict", "statement"]], validate="1:1")


def format_league() -> str:
    """Return a table of how true each scorer's ranking is: its curves' lead over random ones."""
    table = pd.concat([load(RESULTS / name).league for name in ("interventions", "league")])
    rows = []
    for (model, layer, scorer), places in table.groupby(["model", "layer", "scorer"], sort=False):
        cells = {"network": model, "layer": layer, "scorer": scorer}
        by_order = places.set_index(["order", "data"])
        for order, data in product(("nr", "pr"), ("natural", "adversarial")):
            cells[f"{order.upper()} first, {data}"] = _format_share(by_order.loc[(order, data)])
        rows.append(cells)
    return format_table(rows)


# ---------------------------------------------------------------- damage


def format_damage_conditions() -> str:
    """Say on what the damage was measured."""
    meta = load(RESULTS / "damage").meta
    return (
        f"n = {meta['data']['images']} test images, of which those that are right as they are and "
        f"wrong under attack count; {meta['attack'].upper()}, eps {round(255 * meta['eps'])}/255; "
        f"accounts that miss more than {meta['bound']:.0%} of the damage are refused; seed "
        f"{meta['seed']}; {meta['level']:.0%} intervals (bootstrap over images)."
    )


def format_damage() -> str:
    """Return a table of the damage by network and layer: what it is made of, who has it."""
    result = load(RESULTS / "damage")
    rows = []
    table = _drop_unbroken(result, result.completeness)
    for (model, layer), accounts in table.groupby(["model", "layer"], sort=False):
        for account in accounts.itertuples():
            where = {"model": model, "layer": layer, "masks": account.masks}
            kinds = result.select("kinds", **where, **{"class": "all"}).set_index("kind")
            half = result.select("concentration", **where, covered=0.5)
            shares = {
                kind: _format_share(kinds.loc[kind], "share") if len(kinds) else ""
                for kind in ("NR rises", "PR falls", "masks")
            }
            rows.append(
                {
                    "network": model,
                    "layer": layer,
                    "gates": account.masks if account.masks == "held" else "",
                    "refused": f"{account.refused:.0f} of {account.images:.0f}",
                    "error, median": f"{account.error:.2g}",
                    **shares,
                    "channels with half of it": _format_count(half),
                }
            )
    return format_table(rows)


def _drop_unbroken(result: Result, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of networks of which the attack breaks enough images."""
    total = result.select("damage", **{"class": "all"}).set_index("model")["broken"]
    return table[table["model"].map(total) >= FEWEST_BROKEN]


def _format_count(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    return f"{row['channels']:.1f} [{row['low']:.1f}, {row['high']:.1f}] of {row['of']:.0f}"


def format_damage_verdicts() -> str:
    """Return a table of the verdicts on the premise of CIFS."""
    table = load(RESULTS / "damage").verdicts
    return format_table(table[["models", "layer", "verdict", "statement"]].to_dict("records"))


def format_repairs() -> str:
    """Return a table of the images that are right again with an eighth of a layer's channels."""
    result = load(RESULTS / "damage")
    rows = []
    table = _drop_unbroken(result, result.repairs)
    for (model, layer), of_layer in table.groupby(["model", "layer"], sort=False):
        at = of_layer[of_layer["fraction"] == 0.125]
        cells = {"network": model, "layer": layer}
        for curve in ("repair", "harm"):
            for ranking in ("account", "gradient", "random"):
                row = at[(at["curve"] == curve) & (at["ranking"] == ranking)].iloc[0]
                cells[f"{curve}, {ranking}"] = _format_share(row, "right")
        rows.append(cells)
    return format_table(rows)


def format_damage_league() -> str:
    """Return a table of the areas under the repair curves of AT, by what ranks the channels."""
    result = load(RESULTS / "damage-league")
    rows = []
    table = result.select("repair_areas", curve="repair")
    for ranking in table.sort_values("area", ascending=False)["ranking"].unique():
        cells = {"channels ranked by": ranking}
        for layer in result.meta["models"]["AT"]["layers"]:
            at = table[(table["ranking"] == ranking) & (table["layer"] == layer)]
            cells[layer] = _format_share(at.iloc[0], "area") if len(at) else "-"
        rows.append(cells)
    return format_table(rows)


def format_adaptive_repairs() -> str:
    """Return a table of what is left of a repair when the attack is made anew against it."""
    result = load(RESULTS / "damage-league")
    table = result.select("repairs", ranking="account")
    rows = []
    for (layer, channels), points in table.groupby(["layer", "channels"], sort=False):
        by_curve = points.set_index("curve")
        if channels:
            rows.append(
                {
                    "layer": layer,
                    "channels put back": f"{channels:.0f}",
                    "right again": _format_share(by_curve.loc["repair"], "right"),
                    "attacked anew": _format_share(by_curve.loc["adaptive"], "right"),
                }
            )
    return format_table(rows)


def format_edge_cuts() -> str:
    """Return a table of what cutting a twentieth of the edges between layers gives back."""
    result = load(RESULTS / "damage")
    rows = [
        {
            "network": row.model,
            "from, to": f"{row.first}, {row.second}",
            "images": f"{row.images:.0f}",
            "edges with half of it": f"{row.half:.0f} of {row.of:.0f}",
            "rows, columns off by": f"{row.row_error:.1%}, {row.column_error:.1%}",
            "through masks": _format_percent(row.masks),
            "they have": _format_percent(row.predicted),
            "regained": _format_share(row._asdict(), "regained"),
            "regained, random": _format_percent(row.random),
        }
        for row in result.edge_cuts.itertuples()
        if row.cut == EDGES_CUT
    ]
    return format_table(rows)


def format_first_layer() -> str:
    """Return a table of the damage at the first convolution, beside the norms of its kernels."""
    result = load(RESULTS / "damage")
    rows = []
    for model in _drop_unbroken(result, result.completeness)["model"].unique():
        masks = result.select("completeness", model=model, layer=FIRST)["masks"].iloc[-1]
        group = (model, FIRST, masks, "features", "all")
        counts = result.array("ledger", "count", *group)
        damage = np.nansum(result.array("ledger", "damage", *group) * counts, 0) / counts.sum(0)
        method = next(name for name, label in METHODS.items() if label == model)
        network = load_network(f"zoo:{name_of(method)}")
        weight = get_layer(network, FIRST).weight.detach().flatten(1)
        ranked = spearmanr(weight.norm(dim=1).numpy(), damage)
        half = result.select("concentration", model=model, layer=FIRST, masks=masks, covered=0.5)
        rows.append(
            {
                "network": model,
                "channels with half of the damage": _format_count(half),
                "rank correlation of damage and kernel norm": f"{ranked.statistic:+.2f}",
                "p": f"{ranked.pvalue:.3f}",
            }
        )
    return format_table(rows)


# ---------------------------------------------------------------- networks of others


def format_published() -> str:
    """Return a table of networks that others published, beside the accuracy that they state."""
    return format_published_networks(json.loads(PUBLISHED.read_text("utf-8")))


# ---------------------------------------------------------------- reliability


def format_reliability() -> str:
    """Return a table of what was done to runs and to readers, and how often they survived."""
    faults, fuzz = (
        json.loads((RELIABILITY / f"{name}.json").read_text("utf-8")) for name in ("faults", "fuzz")
    )
    rows = [
        {"what was done": fault, "to": _name_targets(by), "survived": f"{sum(by.values()):,}"}
        for fault, by in faults["survived"].items()
    ]
    limits = "{seconds:g} s and {memory_mb} MB".format_map(fuzz["limits"])
    rows.append(
        {
            "what was done": f"a wrong file read, within {limits}",
            "to": _name_targets(fuzz["targets"]),
            "survived": f"{fuzz['survived']:,} of {fuzz['inputs']:,}",
        }
    )
    return (
        f"{format_table(rows)}\n\n`make faults` (seed {faults['seed']}, {faults['date']}) and "
        f"`make fuzz` (seed {fuzz['seed']}, {fuzz['date']}); {faults['hardware']}, torch "
        f"{faults['versions']['torch']}."
    )


def _name_targets(names: Collection[str]) -> str:
    return "; ".join(names) if len(names) < 10 else f"{len(names)} kinds of files"


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _format_share(row: Any, name: str = "value") -> str:
    return f"{100 * row[name]:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


BLOCKS = {
    make.__name__.removeprefix("format_"): make
    for make in (
        format_headline,
        format_networks,
        format_front,
        format_robustness,
        format_autoattack,
        format_strongest,
        format_conditions,
        format_verdicts,
        format_claims,
        format_shares,
        format_gates,
        format_leakage,
        format_intervention_conditions,
        format_causal,
        format_intervention,
        format_league,
        format_damage_conditions,
        format_damage,
        format_damage_verdicts,
        format_repairs,
        format_damage_league,
        format_adaptive_repairs,
        format_edge_cuts,
        format_first_layer,
        format_published,
        format_reliability,
    )
}

if __name__ == "__main__":
    update_pages()
