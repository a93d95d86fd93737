"""What bfloat16 and the layout of the weights bring in training, on this processor.

    python -m benchmarks.precision [--widths W ...] [--rounds R] [--threads T] [--json FILE]

A step of AT is a PGD step on the images and a step on the weights; both are forward and backward
passes, as measured here: the loss of a batch and its gradient, of a ResNet-18. The three ways run
in turn, in one process, and each round gives their ratios: fp32 with contiguous weights is 1. Then
what ``engine.precision = "auto"`` would choose here.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import (
    compare_times,
    describe_machine,
    make_parser,
    make_resnet18,
    measure_in_turn,
    summarise,
    write_report,
)
from benchmarks.training import draw_images
from channelscope.data import Dataset, MemorySplit
from channelscope.objectives import cross_entropy
from channelscope.training import Recipe
from channelscope.training.job import Job
from channelscope.training.precision import autocast, choose_layout, measure_speeds, pick_precision

BASE = "fp32, contiguous"
WAYS = {
    BASE: ("fp32", torch.contiguous_format),
    "fp32, channels last": ("fp32", torch.channels_last),
    "bf16, channels last": ("bf16", torch.channels_last),
}


def make_pass(width: int, batch: int, way: str) -> Callable[[], None]:
    """Make a function that computes the loss of a batch and its gradient."""
    precision, layout = WAYS[way]
    net = make_resnet18(width).to(memory_format=layout).train()
    if layout == torch.channels_last and choose_layout(net, "cpu") != layout:
        raise ValueError(f"channels last is not safe at width {width}")
    x, y = draw_images(batch)
    x = x.to(memory_format=layout)

    def run() -> None:
        with autocast(precision, "cpu"):
            cross_entropy(net, x, y).mean().backward()
        net.zero_grad()

    return run


def measure(width: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure the three ways; what comes first in the process is not counted."""
    ways = {way: make_pass(width, batch, way) for way in WAYS}
    for run in ways.values():
        run()
    times = measure_in_turn(ways, rounds)
    report: dict[str, Any] = {"width": width, "batch": batch, "rounds": rounds, "ways": {}}
    for way, of_way in times.items():
        report["ways"][way] = {
            "wall": compare_times(of_way, times[BASE], "wall"),
            "cpu": compare_times(of_way, times[BASE], "cpu"),
            "images_per_cpu_second": summarise([batch / time["cpu"] for time in of_way]),
        }
    return report


def choose(width: int, folder: Path) -> dict[str, Any]:
    """Say what ``auto`` chooses for AT on images of CIFAR-10's size."""
    labels = torch.arange(64) % 10
    split = MemorySplit(torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), labels)
    data = Dataset("random", tuple(map(str, range(10))), test=split, train=split, val=split)
    recipe = Recipe.named("cifar10-resnet18-at").override(width=width, precision="auto")
    speeds = measure_speeds(Job(recipe, data, folder / "net.pt", seed=0), "cpu")
    return {"width": width, "images_per_second": speeds, "precision": pick_precision(speeds)}


def format_case(report: dict[str, Any]) -> str:
    """Return a line on a width."""
    parts = []
    for way, ratios in report["ways"].items():
        ratio = "{median:.2f} [{quartile_1:.2f}, {quartile_3:.2f}]".format(**ratios["cpu"])
        speed = ratios["images_per_cpu_second"]["median"]
        parts.append(f"{way}: {ratio}, {speed:.0f} images a CPU second")
    return "\n    ".join([f"width {report['width']}, batch {report['batch']}", *parts])


def main() -> None:
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], metavar="W")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    machine, cases = describe_machine(), []
    for width in options.widths:
        cases.append(measure(width, 1024 // width, options.rounds))  # about as long for each
        print(format_case(cases[-1]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        auto = choose(options.widths[0], Path(folder))
    print(f"auto, width {auto['width']}: {auto['precision']}, {auto['images_per_second']}")
    write_report({"cases": cases, "auto": auto}, machine, options.json)


if __name__ == "__main__":
    main()
