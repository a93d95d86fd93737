"""Train the zoo's networks on CIFAR-10 images, and measure them.

    python -m benchmarks.results train [--data DIR] [--methods METHOD ...]  # three hours of a core
    python -m benchmarks.results measure [--data DIR] [--parts PART ...]    # two hours of two cores

DIR holds train/<class>/ and test/<class>/. ``train`` packs the networks into
channelscope/weights/zoo. ``measure`` keeps results in docs/results-small, those of the comparison
in figures/cifar10/tables, and has ``benchmarks.pages`` put them into the pages. Either goes on
where it was stopped. To be started in the root of the repository.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import pages
from benchmarks.pages import GALLERY, METHODS, RESULTS, name_of
from benchmarks.timing import describe_machine
from channelscope.scorers import list_scorers
from channelscope.weights import Checkpoint, zoo

RUNS = Path("runs/results-small")
IMAGES, AUTOATTACK_IMAGES, RANKED_IMAGES = 1000, 400, 300
CORES = len(os.sched_getaffinity(0))
AUTOATTACK = "autoattack"
LARGEST = 2_000_000  # bytes of a file of the repository
PARTS = (
    *("evaluation", "comparison", "interventions", "league", "rankings"),
    *("damage", "damage-league", AUTOATTACK),
)
DAMAGED_IMAGES, EDGE_IMAGES = 200, 24
# The league is at a layer below the penultimate one, where scorers differ.
SCORERS = (
    "gradient",
    "gradient-x-activation",
    "integrated-gradients",
    "conductance",
    "ablation",
)


def run(*command: str, processes: int = 1) -> None:
    """Run a channelscope command, by several processes or by one, on a thread each."""
    together = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    print("$ channelscope", *command, flush=True)
    line = [sys.executable, "-m", *(together if processes > 1 else ()), "channelscope", *command]
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(data: Path, methods: Sequence[str]) -> None:
    """Train networks and pack them into the package."""
    for method in methods:
        out = f"runs/cifar10/{method}.pt"
        recipe = f"cifar10-resnet18-small-{method}"
        source = f"imagefolder:{data}"
        run("train", "--recipe", recipe, "--data", source, "--out", out, "--resume")
        pack(Path(out), zoo.HERE / f"{name_of(method)}.pt")


def pack(source: Path, target: Path) -> None:
    """Write a trained network as the zoo has it: in half precision, without a folder's name."""
    checkpoint = Checkpoint.read(source).to_half()
    checkpoint.meta["settings"]["data"]["name"] = zoo.TRAINED_ON
    checkpoint.save(target)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def measure(data: Path, parts: Collection[str]) -> None:
    """Attack, compare and rank the zoo's networks on test images: the parts that are named."""
    source = ("--data", f"imagefolder:{data}", "-q")
    shared = (
        *("--images", str(IMAGES), "--attacks", "fgsm", "adaptive"),
        *("--run-folder", str(RUNS / "run"), *source),
    )
    few = ("--images", str(RANKED_IMAGES), *source)
    fewer = ("--images", str(DAMAGED_IMAGES), *source)
    commands = {
        "evaluation": ("evaluate", "--models", *map(_find, METHODS), *shared),
        "comparison": (
            *("compare", *_name(*METHODS), *shared),
            *("--attack", "pgd-20", "--layers", "layer?", "--no-thumbnails"),
        ),
        # At the penultimate layer the gradient is the last layer's weight.
        "interventions": (
            *("intervene", *_name("at", "cas", "cifs"), "--random", "2"),
            *("--scorers", "gradient", "gradient-x-activation", *few),
        ),
        "league": (
            *("intervene", *_name("at"), "--random", "2"),
            *("--layers", "layer3.1", "--scorers", *SCORERS, *few),
        ),
        "rankings": (
            *("relevance", *_name("at")),
            *("--layers", "layer2.1", "layer3.1", "layer4", "--scorers", *SCORERS, *few),
        ),
        "damage": (
            *("damage", *_name("standard", "at", "cas", "cifs")),
            *("--layers", "conv1", "layer?", "--edges", str(EDGE_IMAGES), *fewer),
        ),
        # All scorers, and the attack made anew.
        "damage-league": (
            *("damage", *_name("at"), "--layers", "layer3", "layer4"),
            *("--scorers", *_list_scorers(), "--adaptive", *fewer),
        ),
    }
    for name, command in commands.items():
        if name in parts:
            run(*command, "--out", str(RUNS / name), processes=CORES)
            keep(name, data)

    def attack_by_autoattack(method: str) -> None:
        # In one process: AutoAttack draws by the batch.
        name = f"autoattack-{name_of(method)}"
        options = ("--attacks", "adaptive", "auto", "--checks", "0")
        options += ("--images", str(AUTOATTACK_IMAGES), "--out", str(RUNS / name))
        run("evaluate", "--models", _find(method), *options, *source)
        keep(name, data)

    if AUTOATTACK in parts:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(attack_by_autoattack, METHODS))
    pages.collect_accuracies().to_csv(zoo.RESULTS, index=False, lineterminator="\n")


def _list_scorers() -> list[str]:
    """Return the names of all relevance scorers that need no gates."""
    return [scorer.name for scorer in list_scorers() if scorer.name != "probe"]


def _find(method: str) -> str:
    return f"zoo:{name_of(method)}"


def _name(*methods: str) -> tuple[str, ...]:
    labels = (METHODS[method] for method in methods)
    return "--models", *map(_find, methods), "--labels", *labels


def keep(name: str, data: Path) -> None:
    """Keep a result's tables, arrays and hardware, and its settings without a folder of ours."""
    target = GALLERY if name == "comparison" else RESULTS / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in (RUNS / name).glob("*.csv"):
        if file.name != "ledger.csv":  # megabytes, of what arrays.npz has
            shutil.copy(file, target)
    for file in (RUNS / name).glob("*.npz"):
        keep_arrays(file, target / file.name)
    settings = (RUNS / name / "meta.json").read_text("utf-8")
    settings = settings.replace(f"imagefolder:{data}", zoo.TRAINED_ON)
    (target / "meta.json").write_text(f"{settings}\n", "utf-8")
    hardware = f"{describe_machine()['cpu']}, {CORES} cores, {platform.system()}"
    (target / "hardware.txt").write_text(f"{hardware}\n", "utf-8")


def keep_arrays(source: Path, target: Path) -> None:
    """Copy arrays; in 32 bits where they would take more than the repository's files may."""
    if source.stat().st_size <= LARGEST:
        shutil.copy(source, target)
        return
    with np.load(source) as arrays:
        short = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array
            for name, array in arrays.items()
        }
    np.savez_compressed(target, allow_pickle=False, **short)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("step", choices=("train", "measure"))
    parser.add_argument(
        "--data", type=Path, default=Path("data/cifar10-jpeg"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        choices=METHODS,
        help="networks to train (default: all)",
    )
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, help="to measure (default: all)"
    )
    args = parser.parse_args()
    if not all((args.data / split).is_dir() for split in ("train", "test")):
        sys.exit(
            f"{args.data} has no train/<class>/ and test/<class>/: name CIFAR-10's images (--data, "
            "make IMAGES=DIR)."
        )
    if args.step == "train":
        train(args.data, args.methods)
    else:
        measure(args.data, args.parts)
        pages.update_pages()


if __name__ == "__main__":
    main()
