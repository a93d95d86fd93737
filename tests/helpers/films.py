"""Films of trainings drawn from a seed, with planted changes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from channelscope.result import Result
from helpers.studies import KeptStudy, make_result

CLASSES = ("cat", "dog", "ship", "tram")
EACH, CHANNELS, REPLICATES = 50, 12, 24
Curve = Callable[[int], float]  # epoch -> value


def flat(_: int) -> float:
    return 0.0


def jump_at(epoch: int) -> Curve:
    return lambda e: float(e >= epoch)


def hump_at(epoch: int) -> Curve:
    return lambda e: 1 - abs(e - epoch) / 20


def make_film(
    runs: dict[str, int],
    *,
    change: Curve = flat,
    shared: Curve = flat,
    robust: Curve = flat,
    epochs: Sequence[int] = tuple(range(1, 25)),
    gates: Sequence[str] = (),
    scatter: float = 0.01,
) -> KeptStudy:
    """Return the film of some runs, each drawn from a seed.

    ``change`` raises the channels that speak against the class and lowers accuracy, ``shared``
    makes channels serve several classes, ``robust`` raises robust accuracy by a fifth.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(CLASSES)), EACH)
    n = len(labels)
    chance, wrong = rng.random(n), (labels + rng.integers(1, len(CLASSES), n)) % len(CLASSES)
    spread = rng.gamma(20, 0.05, (n, CHANNELS))
    own = np.kron(np.eye(len(CLASSES)), np.ones(CHANNELS // len(CLASSES)))  # channels of each class
    drawn = rng.integers(n, size=(REPLICATES, n))
    weights = [np.ones(n), *(np.bincount(row, minlength=n) for row in drawn)]
    arrays: dict[str, np.ndarray] = {"labels": labels, "weights": np.stack(weights, 1)}
    known: dict[str, dict[str, Any]] = {}
    frames: dict[str, list[Any]] = {}
    for run, seed in runs.items():
        noise = np.random.default_rng(seed)
        history = []
        for epoch in epochs:
            index, label = len(frames), f"{run} epoch {epoch}"
            jitter = scatter * noise.normal(size=5) * [1, 1, 1, 0.2, 1]
            changed = change(epoch) + jitter[0]
            natural = 0.9 - 0.2 * changed + jitter[1]
            attacked = 0.5 - 0.2 * changed + 0.2 * robust(epoch) + jitter[2]
            common = np.clip(0.1 + 0.4 * shared(epoch) + jitter[3], 0, 1)
            weight = own - 0.2 + common * (1 - own)
            speak = own[labels] + 0.3 * (1 - own[labels])
            moved = speak + (0.2 + 0.5 * changed) * (1 - own[labels])
            for data, values in {"natural": speak, "adversarial": moved}.items():
                arrays[f"activations/{index}/{data}/layer4"] = np.maximum(values * spread, 0)
                share = natural if data == "natural" else attacked
                right = chance < share
                arrays[f"answers/{index}/{data}"] = np.where(right, labels, wrong)
                for gate in gates:
                    arrays[f"probes/{index}/{data}/{gate}"] = np.where(right, labels, wrong)
                    arrays[f"masks/{index}/{data}/none/{gate}"] = 1 + 0.5 * moved
            arrays[f"relevance/{index}/layer4"] = weight[labels]
            arrays[f"correct/{index}/natural"] = arrays[f"answers/{index}/natural"] == labels
            row = {"epoch": epoch, "accuracy": 0.6 + epoch / 100, "val_natural": natural}
            history.append(row | {"val_robust": attacked + 0.1 * jitter[4], "best": False})
            known[label] = {
                "method": "at",
                "layers": ["layer4"],
                "penultimate": ["layer4"],
                "settings": {"seed": seed},
                "training": list(history),
            }
            frames[label] = [run, epoch]
    settings = {
        "attack": "pgd-10",
        "attacks": ["pgd-10"],
        "eps": 8 / 255,
        "norm": "inf",
        "seed": 0,
        "replicates": REPLICATES,
        "level": 0.95,
        "threshold": 0.01,
        "frames": frames,
    }
    return KeptStudy(arrays, known, CLASSES, settings, "film")


def run_film(study: KeptStudy) -> Result:
    """Return the film's result, whose models are its runs."""
    result = make_result(study)
    runs = dict.fromkeys(run for run, _ in study.settings["frames"].values())
    result.meta["models"] = {run: {"notes": []} for run in runs}
    return result
