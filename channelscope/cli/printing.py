"""What commands print of their results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from channelscope.comparison import Comparison
    from channelscope.evaluation import Evaluation
    from channelscope.intervention import Interventions
    from channelscope.rankings import Rankings


def outcomes(trained: "pd.DataFrame") -> list[tuple[str, ...]]:
    """Lay out a row for each network of a sweep."""
    rows: list[tuple[str, ...]] = [
        (
            "variant",
            "seed",
            "natural",
            "attacked",
            "worst case",
            "95 % interval",
            "robust, validation",
        )
    ]
    for row in trained.to_dict("records"):
        measured = [f"{row[name]:.1%}" for name in ("natural", "attacked", "robust", "val_robust")]
        measured.insert(3, f"[{row['robust_low']:.1%}, {row['robust_high']:.1%}]")
        rows.append(
            (row["variant"], str(row["seed"]), *(["-"] * 5 if row["trouble"] else measured))
        )
    return rows


def tell_evaluation(found: "Evaluation", out: Path, as_json: bool) -> None:
    """Print a table of an evaluation, its worst cases and warnings, or all of it as JSON."""
    frames = {
        "table": found.table,
        "worst": found.worst,
        "warnings": found.warnings,
        "eps_sweep": found.eps_sweep,
    }
    if as_json:
        values = {
            name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()
        }
        print(json.dumps({"out": str(out), **values}, indent=1, ensure_ascii=False))
        return
    level = f"{found.meta['level']:.0%} interval"
    rows: list[tuple[str, ...]] = [
        ("model", "attack", "natural", "robust", level, "worst case so far")
    ]
    for attack in found.table.to_dict("records"):
        shares = [f"{attack[name]:.1%}" for name in ("natural", "robust", "low", "high", "worst")]
        interval = f"[{shares[2]}, {shares[3]}]"
        rows.append((str(attack["model"]), str(attack["attack"]), *shares[:2], interval, shares[4]))
    print(table(rows, align="llrrrr"))
    print(
        f"\neps {found.meta['eps']:.4g} (norm {found.meta['norm']}), {found.meta['data']['images']} test images\n"
    )
    for row in found.worst.itertuples():
        interval = f"[{row.low:.1%}, {row.high:.1%}]"
        print(f"{row.model}: worst case {row.robust:.1%} {interval}, decided by {row.decided_by}")
    for row in found.eps_sweep.itertuples():
        print(
            f"{row.model}: worst case at eps {row.eps:.4g}: {row.robust:.1%} [{row.low:.1%}, {row.high:.1%}]"
        )
    for row in found.warnings.itertuples():
        print(f"WARNING, {row.model}: {row.sentence}")
    for model, known in found.meta["models"].items():
        for note in known["notes"]:
            print(f"note, {model}: {note}")
        for what, reason in known["unchecked"].items():
            print(f"not checked, {model}: {what}: {reason}")
    print(f"\ntables and figures: {out}")


def tell_comparison(found: "Comparison", out: Path, as_json: bool) -> None:
    """Print what was found: a table and the verdicts, or all of it as JSON."""
    robustness = found.robustness[found.robustness["class"] == "all"]
    if as_json:
        frames = {"robustness": robustness, "verdicts": found.verdicts}
        values = {
            name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()
        }
        print(json.dumps({"out": str(out), **values}, indent=1, ensure_ascii=False))
        return
    print(table(_summary(found), align="l" + "r" * 6))
    print(
        f"\n{found.meta['attack']}, eps {found.meta['eps']:.4g}, {found.meta['data']['images']} test images\n"
    )
    several = found.verdicts["layer"].replace("", None).nunique() > 1
    for verdict in found.verdicts.itertuples():
        where = f" at {verdict.layer!s}" if several and verdict.layer else ""
        print(f"{verdict.claim} {verdict.verdict}{where}: {verdict.statement}")
    print(f"\nreport: {out / 'report.html'}")


def _summary(found: "Comparison") -> list[tuple[str, ...]]:
    """Lay out a row for each model: accuracy and, at its last layer, the alignment measures."""
    rows: list[tuple[str, ...]] = [
        (
            "model",
            "natural",
            found.meta["attack"],
            "worst case",
            "cosine",
            "NR ratio",
            "relevance alignment",
        )
    ]
    accuracy = found.robustness[found.robustness["class"] == "all"].set_index(["model", "attack"])[
        "accuracy"
    ]
    overall = found.alignment[found.alignment["class"] == "all"]
    for model, known in found.meta["models"].items():
        last = overall[(overall["model"] == model) & (overall["layer"] == known["layers"][-1])]
        value = last.set_index("measure")["value"]
        shares = (
            f"{accuracy[model, attack]:.1%}"
            for attack in ("natural", found.meta["attack"], "worst")
        )
        measures = (
            f"{value[name]:.2f}"
            for name in ("cosine", "nr_ratio", "relevance_spearman_adversarial")
        )
        rows.append((model, *shares, *measures))
    return rows


def tell_rankings(found: "Rankings", out: Path, as_json: bool) -> None:
    """Print how many channels each scorer finds relevant and how it agrees with the others, or all of it as JSON."""
    counts = found.counts.reset_index()
    if as_json:
        frames = {"counts": counts, "agreement": found.agreement, "refused": found.meta["refused"]}
        values = {
            name: frame if isinstance(frame, list) else json.loads(frame.to_json(orient="records"))
            for name, frame in frames.items()
        }
        print(json.dumps({"out": str(out), **values}, indent=1, ensure_ascii=False))
        return
    alike = {}
    for pair in found.agreement.to_dict("records"):
        for one, other in ((pair["scorer"], pair["other"]), (pair["other"], pair["scorer"])):
            alike[pair["model"], pair["layer"], one, other] = pair["value"]
    scorers = list(dict.fromkeys(counts["scorer"]))
    rows: list[tuple[str, ...]] = [("model", "layer", "scorer", "PR", "NR", *scorers)]
    for row in counts.to_dict("records"):
        at = (str(row["model"]), str(row["layer"]), str(row["scorer"]))
        cells = [f"{alike[(*at, other)]:.2f}" if (*at, other) in alike else "" for other in scorers]
        rows.append((*at, f"{row['positive']:.1f}", f"{row['negative']:.1f}", *cells))
    print(table(rows, align="lll" + "r" * (len(scorers) + 2)))
    print(
        f"\n{found.meta['data']['images']} test images. PR, NR: channels that speak for and against a class, mean over "
        "the classes;\nbeneath a scorer's name: Spearman's correlation with its ranking, mean over the classes."
    )
    for refusal in found.meta["refused"]:
        print(
            f"no scores, {refusal['model']}, {refusal['layer']}, {refusal['scorer']}: {refusal['reason']}"
        )
    print(f"\ntables and figure: {out}")


def tell_interventions(found: "Interventions", out: Path, as_json: bool) -> None:
    """Print the league of scorers and the verdicts, or all of it as JSON."""
    frames = {"areas": found.areas, "league": found.league, "verdicts": found.verdicts}
    if as_json:
        values = {
            name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()
        }
        print(json.dumps({"out": str(out), **values}, indent=1, ensure_ascii=False))
        return
    print(table(_league(found), align="lllr" + "r" * 4))
    meta = found.meta
    print(
        "\naccuracy (mean over all numbers of channels) kept when the negatively relevant go first, and lost when the "
        f"positively\nrelevant do, beyond random order; {meta['attack']}, eps {meta['eps']:.4g}, "
        f"{meta['data']['images']} test images, {meta['level']:.0%} intervals\n"
    )
    for verdict in found.verdicts.itertuples():
        print(f"{verdict.claim} {verdict.verdict}: {verdict.statement}")
    for model, notes in meta["notes"].items():
        for note in notes:
            print(f"note, {model}: {note}")
    print(f"\ntables and figures: {out}")


def _league(found: "Interventions") -> list[tuple[str, ...]]:
    """Lay out a row for each scorer of a model and layer, the best on adversarial images first."""
    keys, columns = (
        ["model", "layer", "scorer"],
        [("nr", "natural"), ("nr", "adversarial"), ("pr", "natural")],
    )
    rows: list[tuple[str, ...]] = [
        (
            "model",
            "layer",
            "scorer",
            "rank",
            "NR natural",
            "NR attacked",
            "PR natural",
            "PR attacked",
        )
    ]
    cells = {}
    for row in found.league.to_dict("records"):
        interval = f"{row['value']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]"
        cells[*(row[key] for key in keys), row["order"], row["data"]] = interval
    best = found.league[(found.league["order"] == "both") & (found.league["data"] == "adversarial")]
    for (_, _), of_layer in best.groupby(["model", "layer"], sort=False):
        for row in of_layer.sort_values("rank", kind="stable").to_dict("records"):
            named = tuple(str(row[key]) for key in keys)
            spread = (cells[*named, *column] for column in [*columns, ("pr", "adversarial")])
            rows.append((*named, str(int(row["rank"])), *spread))
    return rows


def tell_zoo(
    networks: Sequence[tuple[str, str, str]], measured: Sequence[Mapping[Any, Any]]
) -> None:
    """Print the zoo's networks (name, recipe, data that they were trained on) and what was measured of each."""
    attacks = {
        "natural": "natural",
        "pgd-20": "pgd-20",
        "cw-30": "cw-30",
        "worst": "worst case",
        "autoattack": "autoattack",
    }
    known = {(row["model"], row["attack"]): row for row in measured}
    rows: list[tuple[str, ...]] = [("network", *attacks.values(), "trained on", "recipe")]
    for name, recipe, data in networks:
        shares = (f"{float(known[name, attack]['accuracy']):.1%}" for attack in attacks)
        rows.append((name, *shares, data, recipe))
    print(table(rows, align="l" + "r" * len(attacks) + "ll"))
    n, fewer = (known[networks[0][0], attack]["count"] for attack in ("worst", "autoattack"))
    print(
        f"\nL-inf, eps 8/255, on {n} test images (autoattack: {fewer}), seed 0; more in docs/RESULTS.md. Use them "
        "as files:\n  channelscope compare --models zoo:cifar10-at zoo:cifar10-cifs --data cifar10 --download"
    )


def table(rows: Sequence[tuple[str, ...]], align: str) -> str:
    """Set rows in columns, flush left (l) or right (r)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, align, strict=True)
        lines.append(
            "  ".join(
                f"{cell:{'<' if side == 'l' else '>'}{width}}" for cell, width, side in cells
            ).rstrip()
        )
    return "\n".join(lines)
