"""Small synthetic comparisons for the tests of the figures and of the page."""

from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from channelscope.comparison import Comparison
from channelscope.comparison.differences import MEASURES
from channelscope.comparison.frames import COLUMNS, tidy
from channelscope.weights import GATE_LOG

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MODELS = ("nat", "at", "cifs")
_EMPTY = ("excitation",)
# By model: how far an attack moves the magnitudes, how closely they follow the relevance, natural and worst accuracy.
CHARACTER = {
    "nat": (0.9, 0.5, 0.95, 0.02),
    "at": (0.35, 0.7, 0.84, 0.46),
    "cifs": (0.2, 0.9, 0.82, 0.51),
}


def _channels(
    rng: np.random.Generator, model: str, channels: int
) -> dict[str, dict[str, np.ndarray]]:
    shift, follow = CHARACTER.get(model, CHARACTER["at"])[:2]
    relevance = rng.normal(0, 0.1, channels)
    natural = np.exp(follow * 10 * relevance + (1 - follow) * rng.normal(0, 1, channels)) * 0.3
    moved = (1 - shift) * natural + shift * rng.permutation(natural) * rng.uniform(
        0.5, 1.5, channels
    )
    return {
        data: {
            "magnitude": magnitude,
            "frequency": 1 - np.exp(-4 * magnitude),
            "relevance": relevance,
        }
        for data, magnitude in (("natural", natural), ("adversarial", moved))
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return (
        float(spearmanr(x, y).statistic) if len(x) > 1 and np.ptp(x) and np.ptp(y) else float("nan")
    )


def _measures(by_data: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    natural, adversarial = by_data["natural"], by_data["adversarial"]
    n, a, relevance = natural["magnitude"], adversarial["magnitude"], natural["relevance"]
    shares = [float(m[relevance < 0].sum() / m.sum()) for m in (n, a)]
    return {
        "cosine": float(n @ a / np.sqrt((n @ n) * (a @ a))),
        "spearman": _correlation(n, a),
        "shift": float(np.abs(a - n).sum() / n.sum()),
        "nr_share_natural": shares[0],
        "nr_share_adversarial": shares[1],
        "nr_ratio": shares[1] / shares[0] if shares[0] else float("nan"),
        "relevance_spearman_natural": _correlation(n, relevance),
        "relevance_spearman_adversarial": _correlation(a, relevance),
        "uniformity_natural": _uniformity(natural["frequency"]),
        "uniformity_adversarial": _uniformity(adversarial["frequency"]),
    }


def _uniformity(frequency: np.ndarray) -> float:
    p = frequency / frequency.sum()
    return float(-(p * np.log(p)).sum() / np.log(len(p))) if len(p) > 1 else float("nan")


def _flow(activations: pd.DataFrame) -> pd.DataFrame:
    """Silence or awaken channels by how much an attack changes their frequency; the largest changes are certain."""
    keys = ["model", "layer", "class", "channel"]
    natural, adversarial = (
        activations[activations["data"] == data].set_index(keys)
        for data in ("natural", "adversarial")
    )
    more = adversarial["frequency"] - natural["frequency"]
    changes = {
        "count": natural["count"],
        "change": adversarial["magnitude"] - natural["magnitude"],
        "silenced": (-more).clip(lower=0) + 0.01,
        "awakened": more.clip(lower=0) + 0.01,
        "p": np.exp(-20 * more.abs()),
        "q": np.minimum(1, 2 * np.exp(-20 * more.abs())),
    }
    frame = pd.DataFrame(changes).reset_index()
    frame.loc[frame["count"] == 0, ["silenced", "awakened"]] = np.nan
    return frame[[*COLUMNS["flow"][0], *COLUMNS["flow"][1]]]


def _confusion(
    rng: np.random.Generator, robustness: list[dict[str, Any]], classes: tuple[str, ...]
) -> pd.DataFrame:
    """Spread each class's errors over the others by chance."""
    rows = []
    for row in robustness:
        data = {"natural": "natural", "pgd-20": "adversarial"}.get(row["attack"])
        if data is None or row["class"] == "all":
            continue
        right = 0 if np.isnan(row["accuracy"]) else round(row["accuracy"] * row["count"])
        others = [name for name in classes if name != row["class"]]
        wrong = (
            rng.multinomial(row["count"] - right, rng.dirichlet(np.ones(len(others))))
            if others
            else []
        )
        for answer, count in {row["class"]: right, **dict(zip(others, wrong, strict=True))}.items():
            rows.append(
                {
                    "model": row["model"],
                    "data": data,
                    "class": row["class"],
                    "answer": answer,
                    "count": count,
                }
            )
    frame = tidy("confusion", rows)
    place = {name: index for index, name in enumerate(classes)}
    return frame.sort_values(
        ["answer"], key=lambda names: names.map(place), kind="stable"
    ).reset_index(drop=True)


def _decay(alignment: list[dict[str, Any]], robustness: list[dict[str, Any]]) -> pd.DataFrame:
    """Let every measure go to half of its value, in a line, as the attack grows."""
    rows = []
    for varied, at in (("eps", (2 / 255, 4 / 255, 8 / 255)), ("step", (1, 5, 20))):
        for index, strength in enumerate(at):
            known, part = {"varied": varied, "at": strength}, 1 - index / 4
            for row in alignment:
                if row["class"] == "all":
                    values = {name: row[name] * part for name in ("value", "low", "high")}
                    rows.append(
                        {"model": row["model"], "layer": row["layer"], "measure": row["measure"]}
                        | known
                        | values
                    )
            for row in robustness:
                if row["class"] == "all" and row["attack"] == "pgd-20":
                    values = {
                        new: row[name] * part
                        for new, name in (("value", "accuracy"), ("low", "low"), ("high", "high"))
                    }
                    rows.append(
                        {"model": row["model"], "layer": "", "measure": "robust_accuracy"}
                        | known
                        | values
                    )
    return tidy("decay", rows)


def _differences(
    alignment: list[dict[str, Any]], robustness: list[dict[str, Any]], models: tuple[str, ...]
) -> pd.DataFrame:
    """Differences of two models, those above 0.1 certain."""
    values: dict[tuple[str, str, str, str], float] = {}
    for row in alignment:
        if row["measure"] in MEASURES:
            values[row["model"], row["layer"], row["class"], row["measure"]] = row["value"]
    for row in robustness:
        if row["attack"] == "worst":
            values[row["model"], "", row["class"], "robust_accuracy"] = row["accuracy"]
    rows = []
    for other, model in combinations(models, 2):
        for (owner, layer, name, measure), value in values.items():
            if owner == model:
                difference = value - values[other, layer, name, measure]
                known = {
                    "model": model,
                    "other": other,
                    "layer": layer,
                    "other_layer": layer,
                    "class": name,
                }
                p = np.nan if np.isnan(difference) else 0.001 if abs(difference) > 0.1 else 0.6
                bounds = {"value": difference, "low": difference - 0.05, "high": difference + 0.05}
                rows.append(
                    {**known, "measure": measure, **bounds, "p": p, "q": 2 * p if p < 0.1 else p}
                )
    return tidy("differences", rows)


def _training(models: tuple[str, ...], epochs: int) -> pd.DataFrame:
    rows = []
    for model in models:
        _, _, natural, robust = CHARACTER.get(model, CHARACTER["at"])
        for epoch in range(1, epochs + 1):
            done = 1 - np.exp(-3 * epoch / epochs)
            validation = {
                "val_natural": natural * done,
                "val_robust": robust * (done - 0.1 * (epoch / epochs) ** 6),
            }
            progress = {
                "loss": 2.3 * (1 - 0.7 * done),
                "accuracy": 0.9 * done,
                "lr": 0.1,
                "seconds": 12.0,
            }
            rows.append(
                {
                    "model": model,
                    "epoch": epoch,
                    **progress,
                    **validation,
                    "best": epoch == max(1, epochs - 2),
                }
            )
    columns = [
        "model",
        "epoch",
        "loss",
        "accuracy",
        "val_natural",
        "val_robust",
        "lr",
        "seconds",
        "best",
    ]
    return pd.DataFrame(rows, columns=columns)


def _gates(models: tuple[str, ...], layers: tuple[str, ...], epochs: int) -> pd.DataFrame:
    rows = []
    for model, layer, epoch in product(models, layers, range(1, epochs + 1)):
        done = 1 - np.exp(-3 * epoch / epochs)
        depth = (1 + layers.index(layer)) / len(layers)
        accuracies = {"probe_natural": 0.9 * done * depth, "probe_robust": 0.5 * done * depth}
        masks = {
            "mask_natural": 1 - 0.6 * done,
            "mask_adversarial": 1 - 0.4 * done,
            "mask_cosine": 1 - 0.1 * done,
        }
        rows.append({"model": model, "layer": layer, "epoch": epoch, **accuracies, **masks})
    return pd.DataFrame(rows, columns=["model", "layer", "epoch", *GATE_LOG])


def _in_use(
    rng: np.random.Generator,
    models: tuple[str, ...],
    layers: tuple[str, ...],
    classes: tuple[str, ...],
    channels: int,
) -> dict[str, pd.DataFrame]:
    """Masks, their spread and label leakage, of gates at these layers in every model."""
    frames: dict[str, list[dict[str, Any]]] = {"masks": [], "spread": [], "leakage": []}

    def add(name: str, value: float, **where: Any) -> None:
        frames[name].append(
            {**where, "value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
        )

    for model, data in product(models if layers else (), ("natural", "adversarial")):
        for name in (
            "accuracy",
            "accuracy_true",
            "accuracy_wrong",
            "follows_wrong",
            "follows_untold",
        ):
            add("leakage", float(rng.random()), model=model, layer="", data=data, measure=name)
        for layer in layers:
            where = {"model": model, "layer": layer, "data": data}
            for name in ("readable", "readable_true", "chance"):
                add("leakage", float(rng.random()), **where, measure=name)
            for name in ("all", *classes):
                add("spread", float(rng.random()), **where, **{"class": name})
            signed = rng.normal(0 if layer.endswith("0") else 1, 0.2, (len(classes), channels))
            for (k, channel), mask in np.ndenumerate(signed):
                frames["masks"].append(
                    {**where, "class": classes[k], "channel": channel, "mask": mask}
                )
    return {name: tidy(name, rows) for name, rows in frames.items()}


def _matches(
    rng: np.random.Generator, models: tuple[str, ...], layers: tuple[str, ...], channels: int
) -> dict[str, pd.DataFrame]:
    """CKA of each two models' layers, and their channels matched in some order."""
    frames: dict[str, list[dict[str, Any]]] = {"matching": [], "matched": []}
    for model, other in combinations(models, 2):
        for layer, other_layer in product(layers, layers):
            where = {"model": model, "layer": layer, "other": other, "other_layer": other_layer}
            cka = float(rng.random())
            frames["matching"].append(
                {**where, "cka": cka, "low": cka - 0.05, "high": min(1.0, cka + 0.05)}
            )
            if layer == other_layer:
                correlations = np.sort(rng.random(channels))[::-1]
                for pair in zip(
                    rng.permutation(channels), rng.permutation(channels), correlations, strict=True
                ):
                    columns = ("channel", "other_channel", "correlation")
                    frames["matched"].append({**where, **dict(zip(columns, pair, strict=True))})
    return {name: tidy(name, rows) for name, rows in frames.items()}


def _verdicts(models: tuple[str, ...]) -> pd.DataFrame:
    cases = (
        ("C1", "supported", 0.31),
        ("C2", "not supported", -0.04),
        ("C3", "inconclusive", 0.12),
    )
    rows = [
        {
            "claim": claim,
            "models": f"{model} - {models[0]}",
            "layer": "layer4",
            "verdict": verdict,
            "estimate": estimate,
        }
        for claim, verdict, estimate in (*cases, ("C4", "supported", 0.047))
        for model in models[1:] or models
    ]
    frame = pd.DataFrame(rows)
    frame["low"], frame["high"] = frame["estimate"] - 0.06, frame["estimate"] + 0.06
    frame["statement"] = (
        "The difference of " + frame["models"] + " was measured on the same images."
    )
    return frame


def _meta(
    models: tuple[str, ...], classes: tuple[str, ...], layers: tuple[str, ...], images: int
) -> dict[str, Any]:
    network = {
        "arch": "resnet18",
        "width": 16,
        "layers": list(layers),
        "gates": [],
        "versions": {"torch": "2.9.0"},
    }
    return {
        "models": {model: {"method": model, **network} for model in models},
        "data": {
            "name": "cifar10",
            "classes": list(classes),
            "images": images,
            "fingerprint": "ab" * 32,
        },
        "attack": "pgd-20",
        "eps": 8 / 255,
        "seed": 0,
        "replicates": 200,
        "level": 0.95,
        "versions": {"channelscope": "0.1.0", "torch": "2.9.0"},
        "created": "2030-01-01T00:00:00+00:00",
        "command": "channelscope compare --models nat.pt at.pt cifs.pt --data cifar10",
    }


def synthetic(
    models: tuple[str, ...] = MODELS,
    classes: tuple[str, ...] = CLASSES,
    layers: tuple[str, ...] = ("layer4",),
    *,
    channels: int = 24,
    empty: tuple[str, ...] = (),
    epochs: int = 12,
    count: int = 100,
    gates: tuple[str, ...] = (),
    whole: bool = False,
    swept: bool = False,
) -> Comparison:
    """Frames as a comparison has them, drawn from a fixed seed; the classes in `empty` have no images, and the
    layers in `gates` have gates of CIFS in every model. With `whole` these are seen in use, and the models matched;
    with `swept` the attack has other strengths too."""
    rng = np.random.default_rng(0)
    activations: list[pd.DataFrame] = []
    alignment: list[dict[str, Any]] = []
    robustness: list[dict[str, Any]] = []
    for model in models:
        natural_accuracy, worst = CHARACTER.get(model, CHARACTER["at"])[2:]
        level = {
            name: float(np.clip(worst + 0.25 * rng.normal() * worst, 0, 1)) for name in classes
        }
        accuracies = {"natural": dict.fromkeys(classes, natural_accuracy), "worst": level}
        accuracies["pgd-20"] = {name: min(1.0, value + 0.02) for name, value in level.items()}
        for attack in ("natural", "pgd-20", "worst"):
            by_class = {
                name: (np.nan if name in empty else accuracies[attack][name]) for name in classes
            }
            for name, value in {"all": float(pd.Series(by_class).mean()), **by_class}.items():
                row = {"model": model, "attack": attack, "class": name, "accuracy": value}
                bounds = {"low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
                if np.isnan(value):
                    bounds = {"low": np.nan, "high": np.nan}
                images = (
                    count * (len(classes) - len(empty))
                    if name == "all"
                    else count * (name not in empty)
                )
                robustness.append({**row, **bounds, "count": images})
        for layer in layers:
            measured: dict[str, dict[str, float]] = {}
            for name in classes:
                by_data = _channels(rng, model, channels)
                measured[name] = _measures(by_data)
                if name in empty:
                    by_data = {
                        data: {key: values * np.nan for key, values in q.items()}
                        for data, q in by_data.items()
                    }
                    measured[name] = dict.fromkeys(measured[name], np.nan)
                for data, quantities in by_data.items():
                    frame = pd.DataFrame({"channel": np.arange(channels), **quantities})
                    frame[["model", "data", "layer", "class"]] = [model, data, layer, name]
                    activations.append(frame.assign(count=0 if name in empty else count))
            across = _correlation(
                np.array(
                    [
                        measured[c]["relevance_spearman_adversarial"]
                        for c in classes
                        if c not in empty
                    ]
                ),
                np.array([level[c] for c in classes if c not in empty]),
            )
            mean = {
                key: float(pd.Series([m[key] for m in measured.values()]).mean())
                for key in measured[classes[0]]
            }
            rows = {"all": mean, **measured, "across": {"relevance_robust_correlation": across}}
            for name, measures in rows.items():
                for measure, value in measures.items():
                    row = {
                        "model": model,
                        "layer": layer,
                        "class": name,
                        "measure": measure,
                        "value": value,
                    }
                    alignment.append({**row, "low": value - 0.05, "high": value + 0.05})
    order = [
        "model",
        "data",
        "layer",
        "class",
        "channel",
        "magnitude",
        "frequency",
        "relevance",
        "count",
    ]
    return Comparison(
        activations=pd.concat(activations, ignore_index=True)[order],
        alignment=pd.DataFrame(alignment),
        robustness=pd.DataFrame(robustness),
        verdicts=_verdicts(models),
        training=_training(models, epochs),
        gates=_gates(models, gates, epochs),
        **_in_use(np.random.default_rng(1), models, gates if whole else (), classes, channels),
        **_matches(np.random.default_rng(2), models if whole else (), layers, channels),
        flow=_flow(pd.concat(activations)),
        confusion=_confusion(rng, robustness, classes),
        decay=_decay(alignment, robustness) if swept else tidy("decay", []),
        differences=_differences(alignment, robustness, models),
        **{name: tidy(name, []) for name in _EMPTY},
        arrays={"labels": np.repeat(np.arange(len(classes)), count)},
        meta=_meta(models, classes, layers, count * (len(classes) - len(empty))),
    )
