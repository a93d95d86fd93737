"""What channelscope's training costs beside the bare arithmetic of its networks.

    python -m benchmarks.training [--json FILE] [--rounds R] [--threads T] [--quick]

Each case runs ours and the bare version in turn, in one process, and takes the ratio of every such
pair: whatever else the machine does slows both down. Printed and written are the medians and
quartiles, of wall time and of the CPU time of all threads.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from benchmarks.timing import (
    CLASSES,
    add_gates,
    compare_times,
    describe_machine,
    make_parser,
    make_resnet18,
    measure_in_turn,
    summarise,
    write_report,
)
from channelscope.attacks import PGD
from channelscope.data import Dataset, MemorySplit
from channelscope.objectives import Joint, Objective, cross_entropy
from channelscope.training import Recipe
from channelscope.training.engine import train_epoch
from channelscope.training.job import Job
from channelscope.training.state import State


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work, and how much longer ours may take."""

    description: str
    bound: float
    ours: Callable[[], Any]
    bare: Callable[[], Any]


def make_attack_case(width: int, batch: int) -> Case:
    """The inner loop of AT against bare passes through the network, folded beforehand."""
    net, steps = make_resnet18(width), 10
    x, y = draw_images(batch)
    folded = fold_batchnorm(net)
    x_last = x.contiguous(memory_format=torch.channels_last)
    pgd = PGD(eps=8 / 255, step=2 / 255, steps=steps)

    def run_bare() -> None:
        for _ in range(steps):
            leaf = x_last.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(folded(leaf), y, reduction="sum"), leaf)

    description = (
        f"PGD-{steps} on ResNet-18 of width {width}, {batch} images / {steps} bare passes, folded "
        "beforehand"
    )
    return Case(description, 1.10, lambda: pgd(net, x, y), run_bare)


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a ResNet by torch's own tool, as one would for this architecture."""
    net = copy.deepcopy(net).eval()
    for block in list(net.modules()):
        layers = dict(block.named_children())
        for convolution, batchnorm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            conv, bn = layers.get(convolution), layers.get(batchnorm)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(block, convolution, fuse_conv_bn_eval(conv, bn))
                setattr(block, batchnorm, nn.Identity())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


def draw_images(n: int) -> tuple[Tensor, Tensor]:
    """Draw random images and labels."""
    return torch.rand(n, 3, 32, 32), torch.randint(CLASSES, (n,))


def make_step_case(width: int, batch: int) -> Case:
    """A step of SGD with and without gates."""
    net = make_resnet18(width)
    x, y = draw_images(batch)
    ours = make_step(add_gates(net, width), Joint(), lr=1e-4)
    bare = make_step(net, cross_entropy, lr=1e-4)
    description = f"training step of ResNet-18 of width {width}, {batch} images: CIFS / plain"
    return Case(description, 1.05, lambda: ours(x, y), lambda: bare(x, y))


def make_step(net: nn.Module, objective: Objective, lr: float) -> Callable[[Tensor, Tensor], None]:
    """Make a function that does one step of SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)

    def step(x: Tensor, y: Tensor) -> None:
        objective(net.train(), x, y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_evaluation_case(width: int, batch: int) -> Case:
    """A forward pass in eval mode with and without gates."""
    net = make_resnet18(width).eval()
    x, _ = draw_images(batch)
    gated = add_gates(net, width).eval()
    description = f"evaluation forward of ResNet-18 of width {width}, {batch} images: CIFS / plain"
    run = torch.no_grad()
    return Case(description, 1.05, run(lambda: gated(x)), run(lambda: net(x)))


def make_epoch_case(width: int, batch: int, folder: Path) -> Case:
    """An epoch of AT, with drawing, shuffling and augmenting images, against attacks and steps."""
    labels = torch.arange(2 * batch) % CLASSES
    split = MemorySplit(torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8), labels)
    data = Dataset("random", tuple(map(str, range(CLASSES))), test=split, train=split, val=split)
    recipe = Recipe.named("cifar10-resnet18-at").override(width=width, batch_size=batch)
    job = Job(recipe, data, folder / "net.pt", seed=0)
    state, bar = State.start(job, "cpu"), tqdm(disable=True)
    batches = list(split.batches(batch))
    net = copy.deepcopy(state.network)
    pgd = PGD(eps=8 / 255, step=2 / 255, steps=10)
    step = make_step(net, cross_entropy, lr=0.1)

    def run_bare() -> None:
        for x, y in batches:
            step(pgd(net, x, y), y)

    description = (
        f"epoch of AT (PGD-10) on ResNet-18 of width {width}, batches of {batch}: all of it / "
        "attacks and steps alone"
    )
    return Case(description, 1.03, lambda: train_epoch(state, 0, bar), run_bare)


def make_cases(quick: bool, folder: Path) -> Iterator[Case]:
    """Make the cases one after the other; the small ones of --quick only show that they run."""
    yield make_attack_case(4 if quick else 16, 16 if quick else 128)
    yield make_step_case(8 if quick else 64, 16 if quick else 128)
    yield make_evaluation_case(8 if quick else 64, 16 if quick else 128)
    yield make_epoch_case(4 if quick else 16, 16 if quick else 128, folder)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Run both ways in turn; what comes first in the process is not counted."""
    case.bare()
    case.ours()
    times = measure_in_turn({"bare": case.bare, "ours": case.ours}, rounds)
    report: dict[str, Any] = {"what": case.description, "bound": case.bound, "rounds": rounds}
    for clock in ("wall", "cpu"):
        report[clock] = {"ratio": compare_times(times["ours"], times["bare"], clock)}
        for way, of_way in times.items():
            report[clock][f"{way}_s"] = summarise([time[clock] for time in of_way])
    return report | {"holds": report["wall"]["ratio"]["median"] <= case.bound}


def format_case(report: dict[str, Any]) -> str:
    """Return two lines on a case."""
    ratios = ", ".join(
        "{} {median:.3f} [{quartile_1:.3f}, {quartile_3:.3f}]".format(
            clock, **report[clock]["ratio"]
        )
        for clock in ("wall", "cpu")
    )
    ours, bare = (report["wall"][f"{way}_s"]["median"] for way in ("ours", "bare"))
    verdict = f"{'at most' if report['holds'] else 'NOT at most'} {report['bound']:.2f}"
    return (
        f"{report['what']}\n    {ratios}; {verdict}; {ours:.3f} s / {bare:.3f} s, "
        f"{report['rounds']} rounds"
    )


def main() -> None:
    parser = make_parser(__doc__, rounds=15)
    parser.add_argument(
        "--quick", action="store_true", help="small networks and two rounds, to see that it runs"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(options.quick, Path(folder)):
            cases.append(measure(case, 2 if options.quick else options.rounds))
            print(format_case(cases[-1]), flush=True)
    write_report({"cases": cases}, machine, options.json)


if __name__ == "__main__":
    main()
