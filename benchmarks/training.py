"""What channelscope's training costs beside the bare arithmetic of its networks, measured side by side.

    python -m benchmarks.training [--json FILE] [--rounds R] [--threads T] [--quick]

Each case runs ours and the bare version in turn, in one process, and takes the ratio of every such pair: whatever else
the machine does slows both. Printed and written are the medians and quartiles, of wall time and of the CPU time of all
threads.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

import channelscope
from channelscope.attacks import PGD
from channelscope.data import Dataset, MemorySplit
from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe
from channelscope.networks import Architecture
from channelscope.objectives import Joint, Objective, cross_entropy
from channelscope.training import Recipe
from channelscope.training.engine import train_epoch
from channelscope.training.job import Job
from channelscope.training.state import State

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work, and how much longer ours may take."""

    what: str
    bound: float
    ours: Callable[[], Any]
    bare: Callable[[], Any]


# ---------------------------------------------------------------- the networks


def resnet18(width: int) -> nn.Module:
    """Make a network whose BatchNorms have seen images."""
    net = Architecture(arch="resnet18", width=width, classes=CLASSES).build().train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 32, 32))
    return net


def with_gates(net: nn.Module, width: int) -> Selective:
    """Put the two gates of CIFS on a copy of a network, with gradients through their masks."""
    c = 8 * width
    gates = {
        "layer4.0": FeatureSelector(TwoLayerProbe(c, CLASSES), detach=False),
        "layer4.1": FeatureSelector(LinearProbe(c, CLASSES), detach=False),
    }
    return Selective(copy.deepcopy(net), gates)


def fused(net: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a ResNet by torch's own tool, as one would by hand for this one architecture."""
    net = copy.deepcopy(net).eval()
    for block in list(net.modules()):
        for convolution, batchnorm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            layers = dict(block.named_children())
            if isinstance(layers.get(convolution), nn.Conv2d) and isinstance(
                layers.get(batchnorm), nn.BatchNorm2d
            ):
                setattr(
                    block, convolution, fuse_conv_bn_eval(layers[convolution], layers[batchnorm])
                )
                setattr(block, batchnorm, nn.Identity())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


def images(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, 32, 32), torch.randint(CLASSES, (n,))


# ---------------------------------------------------------------- the cases


def attack(width: int, batch: int) -> Case:
    """The inner loop of AT against bare passes through the network, folded beforehand."""
    net, (x, y), steps = resnet18(width), images(batch), 10
    folded, x_last = fused(net), x.contiguous(memory_format=torch.channels_last)
    pgd = PGD(eps=8 / 255, step=2 / 255, steps=steps)

    def bare() -> None:
        for _ in range(steps):
            at = x_last.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(folded(at), y, reduction="sum"), at)

    what = f"PGD-{steps} on ResNet-18 of width {width}, {batch} images / {steps} bare passes, folded beforehand"
    return Case(what, 1.10, lambda: pgd(net, x, y), bare)


def training_step(width: int, batch: int) -> Case:
    """A step of SGD with and without gates."""
    net, (x, y) = resnet18(width), images(batch)
    ours, bare = stepped(with_gates(net, width), Joint(), x, y), stepped(net, cross_entropy, x, y)
    return Case(
        f"training step of ResNet-18 of width {width}, {batch} images: CIFS / plain",
        1.05,
        ours,
        bare,
    )


def stepped(net: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.train().parameters(), lr=1e-4, momentum=0.9, weight_decay=2e-4)

    def step() -> None:
        objective(net, x, y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation(width: int, batch: int) -> Case:
    """A forward pass in eval mode with and without gates."""
    net, (x, _) = resnet18(width).eval(), images(batch)
    gated = with_gates(net, width).eval()
    what = f"evaluation forward of ResNet-18 of width {width}, {batch} images: CIFS / plain"
    return Case(what, 1.05, torch.no_grad()(lambda: gated(x)), torch.no_grad()(lambda: net(x)))


def epoch(width: int, batch: int, folder: Path) -> Case:
    """An epoch of AT, images drawn, shuffled and augmented, against its attacks and steps of SGD alone."""
    labels = torch.arange(2 * batch) % CLASSES
    part = MemorySplit(torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8), labels)
    data = Dataset("random", tuple(map(str, range(CLASSES))), test=part, train=part, val=part)
    recipe = Recipe.named("cifar10-resnet18-at").override(width=width, batch_size=batch)
    job = Job(recipe, data, folder / "net.pt", seed=0)
    state, bar = State.start(job, "cpu"), tqdm(disable=True)
    batches = [(x, y, PGD(eps=8 / 255, step=2 / 255, steps=10)) for x, y in part.batches(batch)]
    net = copy.deepcopy(state.network)

    def bare() -> None:
        for x, y, pgd in batches:
            step(pgd(net, x, y), y)

    step = trained(net)
    what = f"epoch of AT (PGD-10) on ResNet-18 of width {width}, batches of {batch}: all of it / attacks and steps alone"
    return Case(what, 1.03, lambda: train_epoch(state, 0, bar), bare)


def trained(net: nn.Module) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)

    def step(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def cases(quick: bool, folder: Path) -> Iterable[Case]:
    """Make the cases one after the other; the small ones of --quick only show that they run."""
    yield attack(4 if quick else 16, 16 if quick else 128)
    yield training_step(8 if quick else 64, 16 if quick else 128)
    yield evaluation(8 if quick else 64, 16 if quick else 128)
    yield epoch(4 if quick else 16, 16 if quick else 128, folder)


# ---------------------------------------------------------------- measuring


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Run both ways in turn, each first every other time; what comes first in the process is not counted."""
    case.bare(), case.ours()
    taken: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    ways = [("ours", case.ours), ("bare", case.bare)]
    for number in tqdm(range(rounds), desc=case.what.split(",")[0], leave=False):
        for name, work in ways if number % 2 else reversed(ways):
            taken[name].append(seconds(work))
    found: dict[str, Any] = {"what": case.what, "bound": case.bound, "rounds": rounds}
    for clock in ("wall", "cpu"):
        ours, bare = ([one[clock] for one in taken[name]] for name in ("ours", "bare"))
        ratios = [a / b for a, b in zip(ours, bare, strict=True)]
        found[clock] = {"ratio": spread(ratios), "ours_s": spread(ours), "bare_s": spread(bare)}
    return found | {"holds": found["wall"]["ratio"]["median"] <= case.bound}


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "quartile_1": low, "quartile_3": high}


def machine() -> dict[str, Any]:
    """Say on what it was measured, and how busy that was with other things."""
    lines = (
        Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
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


def line(found: dict[str, Any]) -> str:
    wall, cpu = found["wall"], found["cpu"]
    spent = f"{wall['ours_s']['median']:.3f} s / {wall['bare_s']['median']:.3f} s"
    ratios = [
        f"{clock} {one['ratio']['median']:.3f} [{one['ratio']['quartile_1']:.3f}, {one['ratio']['quartile_3']:.3f}]"
        for clock, one in (("wall", wall), ("cpu", cpu))
    ]
    verdict = f"{'at most' if found['holds'] else 'NOT at most'} {found['bound']:.2f}"
    return f"{found['what']}\n    {', '.join(ratios)}; {verdict}; {spent}, {found['rounds']} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--rounds", type=int, default=15, help="pairs of measurements a case, 2 at least"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of torch; one alone is not disturbed by busy cores"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small networks and few rounds, to see that it runs"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    report: dict[str, Any] = {
        "command": "python -m benchmarks.training",
        "machine": machine(),
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.quick, Path(folder)):
            report["cases"].append(measure(case, 2 if options.quick else options.rounds))
            print(line(report["cases"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
