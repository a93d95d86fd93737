"""What the benchmarks share: networks to measure on, times and their spread, options, reports."""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import channelscope
from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe
from channelscope.networks import Architecture

CLASSES = 10


def make_resnet18(width: int) -> nn.Module:
    """Make a network whose BatchNorms have statistics, of random images."""
    net = Architecture(arch="resnet18", width=width, classes=CLASSES).build().train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 32, 32))
    return net


def add_gates(net: nn.Module, width: int) -> Selective:
    """Put the two gates of CIFS on a copy of a network, with gradients through their masks."""
    channels = 8 * width
    gates = {
        "layer4.0": FeatureSelector(TwoLayerProbe(channels, CLASSES), detach=False),
        "layer4.1": FeatureSelector(LinearProbe(channels, CLASSES), detach=False),
    }
    return Selective(copy.deepcopy(net), gates)


def measure_time(work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that a call takes: wall time, and CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure_in_turn(
    ways: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Time several ways to do the same, in another order each round: way -> a time a round."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(measure_time(ways[name]))
    return times


def compare_times(
    ours: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], clock: str
) -> dict[str, float]:
    """Return the median and the quartiles of the ratios ours / other, by clock: "cpu" or "wall"."""
    return summarise([our[clock] / other[clock] for our, other in zip(ours, others, strict=True)])


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "quartile_1": low, "quartile_3": high}


def describe_machine() -> dict[str, Any]:
    """Return what it is measured on, and how busy that is with other things."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "channelscope": channelscope.__version__,
    }


def find_version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def make_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Make a parser with the options of all benchmarks of time."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="runs of each, 2 at least (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the report here too")
    return parser


def write_report(report: Mapping[str, Any], machine: Mapping[str, Any], path: Path | None) -> None:
    """Write a report, with the command and the machine, where that is asked for."""
    if path:
        command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        content = {"command": command, "machine": machine, **report}
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
