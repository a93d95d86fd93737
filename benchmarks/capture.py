"""What capturing costs beside bare forward passes, ours and other libraries': time and memory.

    python -m benchmarks.capture [--images N] [--rounds R] [--threads T] [--json FILE]

The task: the activations of all 8 blocks of a ResNet-18 of width 16 over N random images of 32 x
32, and of them, by class and channel, magnitude and frequency. Every contender has a process of its
own, in which it runs in turn with the bare forward passes, R times each. `ratio` is the median of
the R ratios of CPU time, `peak_mb` how far the first run's peak of memory exceeds that of the bare
passes before it. All contenders' statistics are compared with the first's.
"""

import copy
import importlib
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import (
    CLASSES,
    compare_times,
    describe_machine,
    find_version,
    make_parser,
    make_resnet18,
    measure_time,
    summarise,
    write_report,
)
from channelscope.layers.features import capture_activations, pool_features
from channelscope.layers.hooks import eval_mode
from channelscope.statistics.channels import frequency_by_class, mean_by_class

WIDTH, BATCH = 16, 128
BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
BOUNDS = {"ratio": 1.10, "peak_mb": 50.0}  # of ours
# glibc gives large blocks back to the system whenever they are free, and fetching them again takes
# a good part of the bare passes' time: without this, whoever happens to hold more memory would look
# faster than they are.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
MB = 1024 if sys.platform == "linux" else 1024**2  # what ru_maxrss counts, per MB

Batches = list[tuple[Tensor, Tensor]]
Captured = Iterator[tuple[dict[str, Tensor], Tensor]]  # by batch: block -> features, and labels
Statistics = dict[str, tuple[np.ndarray, np.ndarray]]  # block -> magnitude and frequency (k, c)

# ---------------------------------------------------------------- the contenders


def capture_ours(net: nn.Module, batches: Batches) -> Captured:
    with eval_mode(net), torch.no_grad(), capture_activations(net, *BLOCKS) as activations:
        for x, y in batches:
            net(x)
            yield activations, y


def capture_by_captum(net: nn.Module, batches: Batches) -> Captured:
    layers = [net.get_submodule(block) for block in BLOCKS]
    activation = importlib.import_module("captum.attr").LayerActivation(net, layers)
    with torch.no_grad():
        for x, y in batches:
            yield dict(zip(BLOCKS, activation.attribute(x), strict=True)), y


def capture_by_nnsight(net: nn.Module, batches: Batches) -> Captured:
    model = importlib.import_module("nnsight").NNsight(net)
    with torch.no_grad():
        for x, y in batches:
            features = {}
            with model.trace(x):
                for block in BLOCKS:
                    features[block] = model.get(block).output.save()
            yield features, y


def capture_by_torchlens(net: nn.Module, batches: Batches) -> Captured:
    library = importlib.import_module("torchlens")
    # By default it leaves torch's functions wrapped, which would slow the bare passes down.
    options = library.options.CaptureOptions(layers_to_save=BLOCKS, unwrap_when_done=True)
    with torch.no_grad():
        for x, y in batches:
            trace = library.trace(net, x, capture=options)
            yield {block: trace[block].out for block in BLOCKS}, y


def capture_everything(net: nn.Module, batches: Batches) -> Captured:
    """Hooks that append every feature map to a list, as one writes them by hand."""
    features: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
    hooks = [
        net.get_submodule(block).register_forward_hook(
            lambda _module, _inputs, z, block=block: features[block].append(z)
        )
        for block in BLOCKS
    ]
    with torch.no_grad():
        for x, _ in batches:
            net(x)
    for hook in hooks:
        hook.remove()
    for number, (_, y) in enumerate(batches):
        yield {block: features[block][number] for block in BLOCKS}, y


CONTENDERS: dict[str, Callable[[nn.Module, Batches], Captured]] = {
    "channelscope": capture_ours,
    "captum": capture_by_captum,
    "nnsight": capture_by_nnsight,
    "torchlens": capture_by_torchlens,
    "store-everything": capture_everything,
}
MODULES = {"captum": "captum.attr", "nnsight": "nnsight", "torchlens": "torchlens"}

# ---------------------------------------------------------------- measuring


def compute_statistics(name: str, net: nn.Module, batches: Batches) -> Statistics:
    """Compute magnitude and frequency of what a contender captures, of all in the same way."""
    activations: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
    labels = []
    for features, y in CONTENDERS[name](net, batches):
        labels.append(y)
        for block, z in features.items():
            activations[block].append(pool_features(z))
    y_all = torch.cat(labels).numpy()
    statistics = {}
    for block, parts in activations.items():
        a = torch.cat(parts).numpy()
        magnitude = mean_by_class(a, y_all, CLASSES)
        statistics[block] = magnitude, frequency_by_class(a, y_all, CLASSES, 0.01)
    return statistics


def make_task(images: int) -> tuple[nn.Module, Batches]:
    """Make the network and the images, the same in every process."""
    torch.manual_seed(0)
    net = make_resnet18(WIDTH).eval()
    x, y = torch.rand(images, 3, 32, 32), torch.randint(CLASSES, (images,))
    return net, list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def measure_peak() -> float:
    """Return the largest memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def measure(name: str, images: int, rounds: int, threads: int) -> tuple[dict[str, Any], Statistics]:
    """Measure one contender in this process; return times and memory, and its statistics."""
    torch.set_num_threads(threads)
    net, batches = make_task(images)

    def run_bare() -> None:
        with torch.no_grad():
            for x, _ in batches:
                net(x)

    if name in MODULES:  # its own size is not counted
        importlib.import_module(MODULES[name])
    run_bare()
    before = measure_peak()
    statistics = compute_statistics(name, copy.deepcopy(net), batches)
    above = measure_peak() - before
    times: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for number in range(rounds):
        # Some contenders leave hooks behind: each run has a network of its own.
        copied = copy.deepcopy(net)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda copied=copied: compute_statistics(name, copied, batches),
            "bare": run_bare,
        }
        for way in ways if number % 2 else reversed(ways):
            times[way].append(measure_time(ways[way]))
    cpu, wall = (compare_times(times["ours"], times["bare"], clock) for clock in ("cpu", "wall"))
    bare = summarise([time["wall"] for time in times["bare"]])
    report = {"ratio": cpu["median"], "peak_mb": above, "cpu": cpu, "wall": wall, "bare_s": bare}
    return report, statistics


def measure_alone(*task: Any) -> tuple[dict[str, Any], Statistics]:
    """Measure one contender in a new process; torchlens refuses those of multiprocessing."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measured")
        code = (
            "import pickle; from benchmarks.capture import measure; "
            f"pickle.dump(measure{task!r}, open({str(file)!r}, 'wb'))"
        )
        # Warnings are other libraries'.
        command = [sys.executable, "-W", "ignore", "-c", code]
        subprocess.run(command, check=True, env=os.environ | ALLOCATOR)
        return pickle.loads(file.read_bytes())


def measure_difference(ours: Statistics, others: Statistics) -> float:
    """Return the largest difference between two contenders' statistics."""
    differences = [np.nan_to_num(np.subtract(ours[block], others[block])) for block in BLOCKS]
    return max(float(np.abs(difference).max()) for difference in differences)


def format_line(name: str, report: dict[str, Any]) -> str:
    low, high = report["cpu"]["quartile_1"], report["cpu"]["quartile_3"]
    return (
        f"{name:17}  {report['ratio']:7.3f} x [{low:.3f}, {high:.3f}]  {report['peak_mb']:8.1f} MB "
        f" (wall {report['wall']['median']:.3f} x; differs by {report['difference']:.1g})"
    )


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--images", type=int, default=5000, help="images, 128 to a batch (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.images < 1 or options.rounds < 2:
        parser.error("at least one image and two rounds are needed")
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    print(
        f"{'':17}  time beside the bare passes  memory above them, {options.images} images, "
        f"{options.rounds} rounds"
    )
    report: dict[str, Any] = {}
    first: Statistics | None = None
    for name in CONTENDERS:
        installed = torch.__version__ if name == "store-everything" else find_version(name)
        if installed is None:
            print(f"{name} is not installed (pip install -e '.[test]'): left out.", file=sys.stderr)
            continue
        times, statistics = measure_alone(name, options.images, options.rounds, options.threads)
        first = statistics if first is None else first
        difference = measure_difference(first, statistics)
        report[name] = times | {"difference": difference, "version": installed}
        print(format_line(name, report[name]), flush=True)
    mine = report["channelscope"]
    holds = all(mine[key] <= bound for key, bound in BOUNDS.items())
    print(
        f"ours {'keeps' if holds else 'does NOT keep'} to {BOUNDS['ratio']:.2f} x and "
        f"{BOUNDS['peak_mb']:.0f} MB"
    )
    write_report(report, machine, options.json)


if __name__ == "__main__":
    main()
