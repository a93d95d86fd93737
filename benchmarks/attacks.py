"""What our attacks cost beside other libraries', measured on an adversarially trained network.

    python -m benchmarks.attacks [--json FILE] [--images N] [--rounds R] [--model FILE --data NAME]

Each contender gets its own copy of the network as it comes (its parameters not frozen, not channels
last) and the same images. All run in turn, in one process on one thread, and what is compared is
CPU time: ratios of medians. A contender that is not installed is left out, with a sentence.
"""

import argparse
import copy
import importlib
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelscope as cs
from benchmarks.timing import (
    describe_machine,
    find_version,
    make_parser,
    measure_in_turn,
    summarise,
    write_report,
)
from channelscope.attacks import PGD, AutoAttack, find_correct
from channelscope.data import Dataset, load

EPS, STEPS = 8 / 255, 20
RUNS = Path("runs")
LIBRARIES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack")
Contender = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> adversarial x


@dataclass(frozen=True)
class Comparison:
    """Ours and another way to do the same, and how much of the other's time ours may take."""

    name: str
    description: str
    bound: float
    ours: str
    other: str


COMPARISONS = [
    Comparison("loop", "plain loop on a frozen, channels-last network", 0.85, "pgd-20", "loop"),
    Comparison("torchattacks", "torchattacks PGD", 0.75, "pgd-20", "torchattacks"),
    Comparison("foolbox", "foolbox LinfPGD", 0.55, "pgd-20", "foolbox"),
    Comparison("art", "ART ProjectedGradientDescentPyTorch", 0.55, "pgd-20", "art"),
    Comparison("drop", "ours that keeps broken images", 0.40, "pgd-20 drop", "pgd-20"),
    Comparison("autoattack", "pyautoattack, standard", 0.85, "autoattack", "pyautoattack"),
]

# ---------------------------------------------------------------- the contenders, by (network, eps)


def make_pgd(eps: float, early_stop: int | None = None) -> PGD:
    """Make PGD-20; with early_stop 0 it drops broken images."""
    return PGD(eps=eps, step=eps / 10, steps=STEPS, early_stop=early_stop)


def make_ours(net: nn.Module, eps: float) -> Contender:
    return lambda x, y: make_pgd(eps)(net, x, y, torch.Generator().manual_seed(0))


def make_ours_dropping(net: nn.Module, eps: float) -> Contender:
    return lambda x, y: make_pgd(eps, 0)(net, x, y, torch.Generator().manual_seed(0))


def make_loop(net: nn.Module, eps: float) -> Contender:
    """PGD as somebody writes it by hand who knows that weights need no gradients here."""
    net = net.requires_grad_(False).to(memory_format=torch.channels_last)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
            x_adv = x_adv.detach() + eps / 10 * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
        return x_adv

    return attack


def make_torchattacks(net: nn.Module, eps: float) -> Contender:
    return importlib.import_module("torchattacks").PGD(net, eps=eps, alpha=eps / 10, steps=STEPS)


def make_foolbox(net: nn.Module, eps: float) -> Contender:
    library = importlib.import_module("foolbox")
    attack = library.attacks.LinfPGD(abs_stepsize=eps / 10, steps=STEPS)
    model = library.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return lambda x, y: attack(model, x, y, epsilons=eps)[1]


def make_art(net: nn.Module, eps: float) -> Contender:
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")

    def attack(x: Tensor, y: Tensor) -> Tensor:
        shape, classes = tuple(x.shape[1:]), net(x[:1]).shape[1]
        classifier = estimators.PyTorchClassifier(
            net, nn.CrossEntropyLoss(), shape, classes, clip_values=(0, 1), device_type="cpu"
        )
        method = evasion.ProjectedGradientDescentPyTorch(
            classifier,
            eps=eps,
            eps_step=eps / 10,
            max_iter=STEPS,
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
        return torch.from_numpy(method.generate(x.numpy(), F.one_hot(y, classes).numpy()))

    return attack


def make_autoattack(net: nn.Module, eps: float) -> Contender:
    attack = AutoAttack(eps=eps)
    return lambda x, y: attack(net, x, y, torch.Generator().manual_seed(0))


def make_pyautoattack(net: nn.Module, eps: float) -> Contender:
    library = importlib.import_module("pyautoattack")
    attack = library.AutoAttack(net, norm="Linf", eps=eps, seed=0, device="cpu")
    return lambda x, y: attack.run_standard_evaluation(x, y, batch_size=len(x))[0]


QUICK = {
    "pgd-20": make_ours,
    "pgd-20 drop": make_ours_dropping,
    "loop": make_loop,
    "torchattacks": make_torchattacks,
    "foolbox": make_foolbox,
    "art": make_art,
}
SLOW = {"autoattack": make_autoattack, "pyautoattack": make_pyautoattack}

# ---------------------------------------------------------------- the network


def load_network(options: argparse.Namespace) -> tuple[nn.Module, Dataset]:
    """Return an adversarially trained network and its data; train it unless one is named."""
    if options.model:
        return cs.load(options.model), load(options.data)
    folder = Path(os.environ.get("CHANNELSCOPE_DATA", ""), "cifar10-jpeg")
    if folder.is_dir():
        name, data = "cifar10", load(f"imagefolder:{folder}")
        recipe, eps, settings = "cifar10-resnet18-at", EPS, {"epochs": 8, "images": 3000}
    else:
        name, data = "digits", load("digits", image_size=32)
        recipe, eps, settings = "digits-resnet18-at", 0.1, {"epochs": 3}
    out = RUNS / f"benchmark-{name}.pt"
    if not out.exists():
        RUNS.mkdir(exist_ok=True)
        attack = {"attack.eps": eps, "attack.steps": 2, "attack.step": eps * 0.75}
        cs.train(recipe, data, out=out, width=16, batch_size=64, **settings, **attack)
    return cs.load(out), data


def choose_eps(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return a radius at which a quarter of the images withstands, as at 8/255 on CIFAR-10."""
    attacked = {eps: make_pgd(eps, 0)(net, x, y) for eps in (EPS * 1.25**k for k in range(16))}
    robust = {eps: find_correct(net, x_adv, y).float().mean() for eps, x_adv in attacked.items()}
    return min(robust, key=lambda eps: abs(robust[eps] - 0.25))


# ---------------------------------------------------------------- measuring


def make_contender(name: str, net: nn.Module, eps: float, x: Tensor, y: Tensor) -> Contender | None:
    """Make a contender on its own copy of the network, or say why not."""
    try:
        attack = (QUICK | SLOW)[name](copy.deepcopy(net), eps)
        if name in QUICK:  # its first steps are not counted
            attack(x[:8], y[:8])
    except (ImportError, cs.UserError) as error:
        print(f"{name} is left out: {error}", flush=True)
        return None
    return attack


def measure(
    names: Sequence[str], net: nn.Module, eps: float, x: Tensor, y: Tensor, rounds: int
) -> dict[str, tuple[list[float], Tensor]]:
    """Run contenders in turn: CPU seconds, and which images withstand."""
    adversarial: dict[str, Tensor] = {}

    def run(name: str, attack: Contender) -> None:
        adversarial[name] = attack(x, y)

    attacks = {name: attack for name in names if (attack := make_contender(name, net, eps, x, y))}
    ways = {name: lambda name=name: run(name, attacks[name]) for name in attacks}
    times = measure_in_turn(ways, rounds)
    return {
        name: ([time["cpu"] for time in times[name]], find_correct(net, adversarial[name], y))
        for name in attacks
    }


def compare(measured: dict[str, tuple[list[float], Tensor]]) -> dict[str, Any]:
    """Return the ratios of the medians, and how many images withstand each contender."""
    report: dict[str, Any] = {}
    for case in COMPARISONS:
        if not {case.ours, case.other} <= measured.keys():
            continue
        (our_times, our_correct), (other_times, other_correct) = (
            measured[case.ours],
            measured[case.other],
        )
        ratio = statistics.median(our_times) / statistics.median(other_times)
        report[case.name] = {
            "what": f"{case.ours} / {case.description}",
            "bound": case.bound,
            "ratio": ratio,
            "holds": ratio <= case.bound,
            "ours_cpu_s": summarise(our_times),
            "other_cpu_s": summarise(other_times),
            "ours_robust": float(our_correct.float().mean()),
            "other_robust": float(other_correct.float().mean()),
            "images_that_differ": int((our_correct != other_correct).sum()),
        }
    return report


def format_line(name: str, case: dict[str, Any]) -> str:
    verdict = f"{'at most' if case['holds'] else 'NOT at most'} {case['bound']:.2f}"
    ours, other = (case[f"{whose}_cpu_s"]["median"] for whose in ("ours", "other"))
    robust = f"robust {case['ours_robust']:.1%} / {case['other_robust']:.1%}"
    return (
        f"{name:>12}: {case['ratio']:.3f} ({verdict}); {ours:.2f} s / {other:.2f} s; {robust}, "
        f"{case['images_that_differ']} differ; {case['what']}"
    )


def choose_evenly(n: int, most: int) -> Tensor:
    """Choose rows spread over all: an image folder has class after class."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--images", type=int, default=128, help="images that each contender attacks, in one batch"
    )
    parser.add_argument(
        "--auto-images", type=int, default=16, help="images for AutoAttack; 0 leaves it out"
    )
    parser.add_argument(
        "--model", help="a checkpoint; without it one is trained, and kept in runs/"
    )
    parser.add_argument("--data", default="digits", help="the data of --model")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=UserWarning)  # other libraries'
    machine = describe_machine()
    net, data = load_network(options)
    net = net.eval()
    rows = choose_evenly(len(data.test), options.images)
    x, y = next(data.test.batches(options.images, indices=rows))
    eps = EPS if options.model else choose_eps(net, x[:64], y[:64])
    natural = float(find_correct(net, x, y).float().mean())
    report: dict[str, Any] = {
        "versions": {name: find_version(name) for name in LIBRARIES},
        "settings": {
            "network": options.model or "trained here",
            "data": data.name,
            "eps": eps,
            "steps": STEPS,
            "images": len(x),
            "auto_images": options.auto_images,
            "rounds": options.rounds,
            "auto_rounds": 2,
            "natural": natural,
        },
    }
    report |= compare(measure(list(QUICK), net, eps, x, y, options.rounds))
    if options.auto_images:
        few = choose_evenly(len(x), options.auto_images)
        report |= compare(measure(list(SLOW), net, eps, x[few], y[few], 2))
    for case in COMPARISONS:
        if case.name in report:
            print(format_line(case.name, report[case.name]), flush=True)
    print(f"natural accuracy {natural:.1%}, robust {report['loop']['ours_robust']:.1%}")
    write_report(report, machine, options.json)


if __name__ == "__main__":
    main()
