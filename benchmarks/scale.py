"""Measure how a comparison grows to 1,000 classes: memory, time of statistics, saved size.

    python -m benchmarks.scale [--case imagenet cifar100 doubling] [--images N] [--json FILE]

imagenet: torchvision's ResNet-50 twice, with random weights, 1,000 classes, 2,000 random images of
64 x 64, layers layer3 and layer4 (1,024 and 2,048 channels), PGD-2, 500 replicates.
cifar100: three ResNet-18 of width 64, 100 classes, all 8 blocks, 2,000 random images of 32 x 32.
doubling: the time of the statistics and of ``Result.load`` as layers, classes, channels and images
double three times each, from random arrays, without a network.

Each case has a process of its own. ``memory`` is the peak above that after importing everything;
``statistics`` is the time of all analyses over that of the forward and backward passes. Bounds are
asserted after all is printed.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.timing import describe_machine
from channelscope.analyses.base import Outcome, analyses_of, make_tables
from channelscope.networks import Architecture
from channelscope.result import Result
from channelscope.study.study import Study

MB = 1024 if sys.platform == "linux" else 1024**2  # what ru_maxrss counts, per MB
BOUNDS = {
    "imagenet": {"memory_mb": 3 * 1024, "statistics": 0.10, "saved_mb": 150},
    "cifar100": {"memory_mb": 2 * 1024},
}
# Doubling a size may cost no more than this factor of time, above a start that does not grow.
MOST_PER_DOUBLING = 2.5


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def run_imagenet(images: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 64, 64), generator=generator, dtype=torch.uint8)
    y = torch.arange(images) % 1000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {name: torchvision.models.resnet50(num_classes=1000) for name in ("a", "b")}
    return _measure(models, (x, y), ["layer3", "layer4"], "pgd-2")


def run_cifar100(images: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.arange(images) % 100
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = Architecture(arch="resnet18", classes=100, width=64)
        models = {name: architecture.build() for name in "abc"}
    return _measure(models, (x, y), ["layer?.?"], "pgd-2")


def _measure(
    models: Mapping[str, torch.nn.Module], data: Any, layers: Sequence[str], attack: str
) -> dict[str, float]:
    before = peak_mb()
    start = time.perf_counter()
    study = Study(
        models, data, layers=layers, attack=attack, attacks=attack, replicates=500, device="cpu"
    )
    study.run_networks()
    networks = time.perf_counter() - start
    start = time.perf_counter()
    result = study.run()
    with tempfile.TemporaryDirectory() as folder:
        result.write_tables(Path(folder))
        statistics = time.perf_counter() - start
        peak = peak_mb() - before
        saved = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 1e6
    return {
        "memory_mb": peak,
        "networks_s": networks,
        "statistics_s": statistics,
        "statistics": statistics / networks,
        "saved_mb": saved,
    }


class RandomStudy:
    """Random arrays in place of what networks make; see ``analyses.base.Study``."""

    kind = "comparison"
    models = ("a", "b")

    def __init__(self, layers: int, classes: int, channels: int, images: int) -> None:
        self.classes = tuple(f"class {k}" for k in range(classes))
        self.labels = np.arange(images) % classes
        self._names = tuple(f"layer{index}" for index in range(layers))
        self._shape = (images, channels)
        self.settings = {
            "attack": "pgd-20",
            "attacks": ["pgd-20"],
            "cascade": False,
            "eps": 0.03,
            "norm": "inf",
            "level": 0.95,
            "replicates": 100,
            "seed": 0,
            "threshold": 0.01,
        }
        generator = np.random.default_rng(0)
        self.weights = generator.poisson(1, (images, 101)).astype(np.uint8)
        self.weights[:, 0] = 1
        self._memo: dict[Any, Any] = {}

    def describe(self, model: str) -> dict[str, Any]:
        return {"method": None, "arch": "random", "digest": model, "compute": None}

    def head(self, model: str) -> None:
        return None

    def history(self, model: str) -> tuple[()]:
        return ()

    def layers(self, model: str) -> tuple[str, ...]:
        return self._names

    def penultimate(self, model: str) -> tuple[str, ...]:
        return self._names[-1:]

    def _random(self, *key: str) -> np.ndarray:
        seed = abs(hash(key)) % 2**32
        return np.random.default_rng(seed).random(self._shape, dtype=np.float32)

    def activations(self, model: str, layer: str, data: str = "natural") -> np.ndarray:
        return self.memo(("a", model, layer, data), lambda: self._random(model, layer, data))

    def relevance(self, model: str, layer: str, scorer: str | None = None) -> np.ndarray:
        return self.memo(("r", model, layer), lambda: self._random(model, layer) - 0.5)

    def answers(self, model: str, data: str = "natural", told: str = "none") -> np.ndarray:
        return self.labels if data == "natural" else (self.labels + 1) % len(self.classes)

    def attacks(self, model: str) -> tuple[str, ...]:
        return ("pgd-20",)

    def correct(self, model: str, attack: str = "natural") -> np.ndarray:
        return np.random.default_rng(len(attack)).random(self._shape[0]) < 0.5

    def gates(self, model: str) -> tuple[str, ...]:
        return ()

    def told(self, model: str) -> dict[str, np.ndarray]:
        return {}

    def strengths(self) -> tuple[()]:
        return ()

    def thumbnails(self, model: str, data: str, images: Sequence[int]) -> None:
        return None

    def outcome(self, model: str) -> Outcome:
        return Outcome()

    def faults(self, model: str) -> tuple[()]:
        return ()

    def suppressed(self, model: str) -> dict[str, Any]:
        return {}

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


BASE = {"layers": 2, "classes": 25, "channels": 64, "images": 1000}


def run_doubling(_: int) -> dict[str, float]:
    """Time statistics and loading as each size doubles three times, the least of three times."""
    times: dict[str, float] = {}
    for size, value in BASE.items():
        for doubling in range(4):
            sizes = BASE | {size: value * 2**doubling}
            statistics, loading = zip(*(_time_study(sizes) for _ in range(3)), strict=True)
            times[f"statistics, {size} {sizes[size]}"] = min(statistics)
            times[f"load, {size} {sizes[size]}"] = min(loading)
    return times


def _time_study(sizes: Mapping[str, int]) -> tuple[float, float]:
    study = RandomStudy(**sizes)
    for model in study.models:  # the arrays are made before the clock starts
        for layer in study.layers(model):
            study.activations(model, layer)
            study.activations(model, layer, "adversarial")
            study.relevance(model, layer)
    start = time.process_time()
    tables, arrays = make_tables(study, analyses_of("comparison"))
    return time.process_time() - start, _time_loading(study, tables, arrays)


def _time_loading(study: RandomStudy, tables: Any, arrays: Any) -> float:
    arrays["labels"] = study.labels
    data = {"name": "random", "images": len(study.labels), "classes": list(study.classes)}
    models = {
        model: study.describe(model)
        | {"layers": list(study.layers(model)), "penultimate": list(study.penultimate(model))}
        for model in study.models
    }
    meta = {"models": models, "data": data, **study.settings}
    with tempfile.TemporaryDirectory() as folder:
        Result("comparison", tables, arrays, meta).write_tables(Path(folder))
        start = time.process_time()
        Result.load(folder)
        return time.process_time() - start


CASES = {"imagenet": run_imagenet, "cifar100": run_cifar100, "doubling": run_doubling}


def check(case: str, measured: Mapping[str, float]) -> list[str]:
    """List the bounds that are broken."""
    broken = [
        f"{case}: {name} is {measured[name]:.3g}, the bound {bound:.3g}"
        for name, bound in BOUNDS.get(case, {}).items()
        if measured[name] > bound
    ]
    if case == "doubling":
        names = list(measured)
        for before, after in zip(names[:-2], names[2:], strict=True):
            same = before.rpartition(" ")[0] == after.rpartition(" ")[0]
            if same and measured[after] > MOST_PER_DOUBLING * max(measured[before], 0.05):
                broken.append(
                    f"{before} -> {after}: {measured[before]:.2f} -> {measured[after]:.2f} s"
                )
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    broken: list[str] = []
    for case in args.case:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[case] = pool.apply(CASES[case], (args.images,))
        for name, value in found[case].items():
            print(f"{case:10} {name:32} {value:12.3f}", flush=True)
        broken += check(case, found[case])
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), **found}, indent=1) + "\n")
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
