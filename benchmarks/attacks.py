"""What our attacks cost beside other libraries', measured side by side on an adversarially trained network.

    python -m benchmarks.attacks [--json FILE] [--images N] [--rounds R] [--model FILE --data NAME]

Each contender gets its own copy of the network as it comes (its parameters not frozen, not channels last) and the same
images. All run in turn, in one process on one thread, and what is compared is CPU time: ratios of medians. A contender
that is not installed is left out, with a sentence.
"""

import argparse
import copy
import importlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

import channelscope as cs
from benchmarks.training import machine, spread
from channelscope.attacks import PGD, find_correct
from channelscope.data import Dataset, load
from channelscope.training import train

EPS, STEPS = 8 / 255, 20
RUNS = Path("runs")
LIBRARIES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack")
Contender = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Ours and another way to do the same, and how much of the other's time ours may take."""

    name: str
    what: str
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

# ---------------------------------------------------------------- the contenders: network, eps -> attack on (x, y)


def pgd(eps: float, **options: Any) -> PGD:
    return PGD(eps=eps, step=eps / 10, steps=STEPS, **options)


def ours(net: nn.Module, eps: float) -> Contender:
    return lambda x, y: pgd(eps)(net, x, y, torch.Generator().manual_seed(0))


def ours_dropping(net: nn.Module, eps: float) -> Contender:
    return lambda x, y: pgd(eps, early_stop=0)(net, x, y, torch.Generator().manual_seed(0))


def loop(net: nn.Module, eps: float) -> Contender:
    """PGD as one writes it by hand, by somebody who knows that weights need no gradients here."""
    net = net.requires_grad_(False).to(memory_format=torch.channels_last)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        at = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(STEPS):
            at.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(at), y), at)
            at = at.detach() + eps / 10 * gradient.sign()
            at = (x + (at - x).clamp(-eps, eps)).clamp(0, 1)
        return at

    return attack


def torchattacks(net: nn.Module, eps: float) -> Contender:
    return importlib.import_module("torchattacks").PGD(net, eps=eps, alpha=eps / 10, steps=STEPS)


def foolbox(net: nn.Module, eps: float) -> Contender:
    library = importlib.import_module("foolbox")
    attack = library.attacks.LinfPGD(abs_stepsize=eps / 10, steps=STEPS)
    model = library.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return lambda x, y: attack(model, x, y, epsilons=eps)[1]


def art(net: nn.Module, eps: float) -> Contender:
    evasion, estimators = (
        importlib.import_module(f"art.{name}")
        for name in ("attacks.evasion", "estimators.classification")
    )

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


def autoattack(net: nn.Module, eps: float) -> Contender:
    attack = importlib.import_module("channelscope.attacks.library").AutoAttack(eps=eps)
    return lambda x, y: attack(net, x, y, torch.Generator().manual_seed(0))


def pyautoattack(net: nn.Module, eps: float) -> Contender:
    library = importlib.import_module("pyautoattack")
    attack = library.AutoAttack(net, norm="Linf", eps=eps, seed=0, device="cpu")
    return lambda x, y: attack.run_standard_evaluation(x, y, batch_size=len(x))[0]


CONTENDERS = {
    "pgd-20": ours,
    "pgd-20 drop": ours_dropping,
    "loop": loop,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "art": art,
    "autoattack": autoattack,
    "pyautoattack": pyautoattack,
}
SLOW = ("autoattack", "pyautoattack")

# ---------------------------------------------------------------- the network


def prepared(options: argparse.Namespace) -> tuple[nn.Module, Dataset]:
    """Give an adversarially trained network and its data; the network is trained here unless one is named."""
    if options.model:
        return cs.load(options.model), load(options.data)
    folder = os.environ.get("CHANNELSCOPE_DATA")
    if folder and (Path(folder) / "train").is_dir() and (Path(folder) / "test").is_dir():
        name, data = "folder", load(f"imagefolder:{folder}", image_size=32)
        recipe, settings = "cifar10-resnet18-at", {"epochs": 8, "images": 3000, "attack.eps": EPS}
    else:
        name, data = "digits", load("digits", image_size=32)
        recipe, settings = "digits-resnet18-at", {"epochs": 3, "attack.eps": 0.1}
    out = RUNS / f"benchmark-{name}.pt"
    if not out.exists():
        RUNS.mkdir(exist_ok=True)
        steps = {"attack.steps": 2, "attack.step": settings["attack.eps"] * 0.75}
        train(recipe, data, out=out, width=16, batch_size=64, **settings, **steps)
    return cs.load(out), data


def telling(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Give a radius in which about a quarter of the images stays right, as of CIFAR-10 networks in that of 8/255."""
    sizes = [EPS * 1.25**k for k in range(16)]
    shares = [
        float(find_correct(net, pgd(eps, early_stop=0)(net, x, y), y).float().mean())
        for eps in sizes
    ]
    return min(zip(sizes, shares, strict=True), key=lambda pair: abs(pair[1] - 0.25))[0]


# ---------------------------------------------------------------- measuring


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def made(name: str, net: nn.Module, eps: float, x: Tensor, y: Tensor) -> Contender | None:
    """Make a contender on its own copy of the network, or say why not; its first steps are not counted."""
    try:
        attack = CONTENDERS[name](copy.deepcopy(net), eps)
        if name not in SLOW:
            attack(x[:8], y[:8])
    except (ImportError, cs.UserError) as error:
        print(f"{name} is left out: {error}", flush=True)
        return None
    return attack


def measured(
    names: list[str], net: nn.Module, eps: float, x: Tensor, y: Tensor, rounds: int
) -> dict[str, tuple[list[float], Tensor]]:
    """Run the contenders in turn, in another order each round: CPU seconds, and who is still right at the end."""
    attacks = {name: attack for name in names if (attack := made(name, net, eps, x, y))}
    taken: dict[str, list[float]] = {name: [] for name in attacks}
    right: dict[str, Tensor] = {}
    for number in tqdm(range(rounds), desc="rounds", leave=False):
        order = list(attacks)[number % len(attacks) :] + list(attacks)[: number % len(attacks)]
        for name in order:
            found: list[Tensor] = []
            taken[name].append(
                seconds(lambda name=name, found=found: found.append(attacks[name](x, y)))
            )
            right[name] = find_correct(net, found[0], y)
    return {name: (taken[name], right[name]) for name in attacks}


def compared(found: dict[str, tuple[list[float], Tensor]]) -> dict[str, Any]:
    """Give the ratios of the medians, with what each contender leaves right."""
    report: dict[str, Any] = {}
    for case in COMPARISONS:
        if not {case.ours, case.other} <= found.keys():
            continue
        (mine, right), (theirs, other_right) = found[case.ours], found[case.other]
        ratio = statistics.median(mine) / statistics.median(theirs)
        report[case.name] = {
            "what": f"{case.ours} / {case.what}", "bound": case.bound, "ratio": ratio, "holds": ratio <= case.bound,
            "ours_cpu_s": spread(mine), "other_cpu_s": spread(theirs),
            "ours_robust": float(right.float().mean()), "other_robust": float(other_right.float().mean()),
            "images_that_differ": int((right != other_right).sum()),
        }  # fmt: skip
    return report


def line(name: str, one: dict[str, Any]) -> str:
    verdict = f"{'at most' if one['holds'] else 'NOT at most'} {one['bound']:.2f}"
    spent = f"{one['ours_cpu_s']['median']:.2f} s / {one['other_cpu_s']['median']:.2f} s"
    robust = f"robust {one['ours_robust']:.1%} / {one['other_robust']:.1%}, {one['images_that_differ']} differ"
    return f"{name:>12}: {one['ratio']:.3f} ({verdict}); {spent}; {robust}; {one['what']}"


def spaced(n: int, wanted: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, wanted)).long()


def version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--images", type=int, default=128, help="images that each contender attacks, in one batch"
    )
    parser.add_argument(
        "--auto-images", type=int, default=16, help="images for AutoAttack, once; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender, 2 at least")
    parser.add_argument(
        "--model", type=Path, help="a checkpoint; without it one is trained, and kept in runs/"
    )
    parser.add_argument("--data", default="digits", help="the data of --model")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)  # other libraries' own
    net, data = prepared(options)
    net = net.eval()
    # Spread over the whole test part: an image folder has class after class.
    x, y = next(data.test.batches(options.images, indices=spaced(len(data.test), options.images)))
    eps = EPS if options.model else telling(net, x[:64], y[:64])
    groups = [([name for name in CONTENDERS if name not in SLOW], x, y, options.rounds)]
    if options.auto_images:
        few = spaced(len(x), options.auto_images)
        groups.append((list(SLOW), x[few], y[few], 2))
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.attacks", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {name: version_of(name) for name in LIBRARIES},
        "settings": {
            "network": str(options.model or "trained here"), "data": data.name, "eps": eps, "steps": STEPS,
            "images": len(x), "auto_images": options.auto_images, "rounds": options.rounds, "auto_rounds": 2,
            "natural": float(find_correct(net, x, y).float().mean()),
        },
    }  # fmt: skip
    for names, images, labels, rounds in groups:
        found = compared(measured(names, net, eps, images, labels, rounds))
        report |= found
        for name, one in found.items():
            print(line(name, one), flush=True)
    print(
        f"natural accuracy {report['settings']['natural']:.1%}, robust {report['loop']['ours_robust']:.1%}"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
