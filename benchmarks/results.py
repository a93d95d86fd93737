"""Train the zoo's networks on CIFAR-10 images, and measure them.

    python -m benchmarks.results train [--data DIR] [--methods METHOD ...]   # three hours of a core; goes on
    python -m benchmarks.results measure [--data DIR]                        # an hour of two cores; goes on

DIR holds train/<class>/ and test/<class>/. ``train`` packs the networks into channelscope/zoo. ``measure`` keeps the
attacks' tables and each image's outcome in docs/results-small, the comparison's tables in figures/cifar10/tables, and
has ``benchmarks.pages`` put them into the pages. To be started in the root of the repository.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import pages
from benchmarks.pages import GALLERY, KEPT, METHODS, name_of
from channelscope.weights import Checkpoint, zoo

RUNS = Path("runs/results-small")
IMAGES, AUTOATTACK_IMAGES, RANKED_IMAGES = 1000, 400, 300
LAYERS = ("layer?",)  # the stages, of gated networks the last with what its gates select
# Which networks, at which layers, and ranked by which scorers: "interventions" at the penultimate layer, where the
# relevance is the last layer's weight; "league" below it, where scorers differ.
INTERVENTIONS = {
    "interventions": (("at", "cas", "cifs"), (), ("gradient", "gradient-x-activation")),
    "league": (
        ("at",),
        ("--layers", "layer3.1"),
        ("gradient", "gradient-x-activation", "integrated-gradients", "conductance", "ablation"),
    ),
}
RANKINGS = (
    "layer2.1",
    "layer3.1",
    "layer4",
)  # the layers of AT at which the league's scorers are compared
CORES = len(os.sched_getaffinity(0))


def run(*command: str, processes: int = 1) -> None:
    """Run a channelscope command, by several processes or by one, on a thread each."""
    together = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    print("$ channelscope", *command, flush=True)
    line = [sys.executable, "-m", *(together if processes > 1 else ()), "channelscope", *command]
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(data: Path, methods: list[str]) -> None:
    for method in methods:
        out = Path(f"runs/cifar10/{method}.pt")
        recipe = f"cifar10-resnet18-small-{method}"
        run(
            "train",
            "--recipe",
            recipe,
            "--data",
            f"imagefolder:{data}",
            "--out",
            str(out),
            "--resume",
        )
        pack(out, zoo.HERE / f"{name_of(method)}.pt")


def pack(source: Path, target: Path) -> None:
    """Write a trained network as the zoo has it: in half precision, and without the name of a folder of ours."""
    checkpoint = Checkpoint.read(source).to_half()
    checkpoint.meta["settings"]["data"]["name"] = zoo.TRAINED_ON
    checkpoint.save(target)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def measure(data: Path) -> None:
    """Attack and compare the zoo's networks on test images."""
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(partial(autoattack_on, data), map(name_of, METHODS)))
    compare(data)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(partial(intervene, data), INTERVENTIONS))
    rank(data)
    keep(data)


def autoattack_on(data: Path, name: str) -> None:
    """Evaluate a network with AutoAttack: in one process, as it draws by the batch, so that batches are as ours."""
    options = ("--attacks", "adaptive", "auto", "--images", str(AUTOATTACK_IMAGES), "--checks", "0")
    run(
        "evaluate",
        "--models",
        f"zoo:{name}",
        *options,
        *_on(data),
        "--out",
        str(RUNS / f"autoattack-{name}"),
    )


def compare(data: Path) -> None:
    """Compare the zoo's networks, in the worst case over the adaptive attacks."""
    evaluation, comparison = RUNS / "evaluation", RUNS / "comparison"
    shared = (
        "--models",
        *(f"zoo:{name_of(method)}" for method in METHODS),
        "--images",
        str(IMAGES),
        "--attacks",
        "fgsm",
        "adaptive",
        "--run-folder",
        str(RUNS / "run"),
        *_on(data),
    )
    run("evaluate", *shared, "--out", str(evaluation), processes=CORES)
    labels = ("--labels", *METHODS.values())
    options = (
        "--attack",
        "pgd-20",
        "--layers",
        *LAYERS,
        "--no-thumbnails",
        "--out",
        str(comparison),
    )
    run("compare", *shared, *labels, *options, processes=CORES)


def intervene(data: Path, name: str) -> None:
    """Suppress channels of the zoo's networks."""
    methods, layers, scorers = INTERVENTIONS[name]
    options = ("--images", str(RANKED_IMAGES), *layers, "--scorers", *scorers, "--random", "2")
    run("intervene", *_labelled(methods), *options, *_on(data), "--out", str(RUNS / name))


def rank(data: Path) -> None:
    """Ask the scorers of the league how relevant the channels of the adversarially trained network are."""
    methods, _, scorers = INTERVENTIONS["league"]
    options = ("--images", str(RANKED_IMAGES), "--layers", *RANKINGS, "--scorers", *scorers)
    run("relevance", *_labelled(methods), *options, *_on(data), "--out", str(RUNS / "rankings"))


def _labelled(methods: Sequence[str]) -> tuple[str, ...]:
    names = (f"zoo:{name_of(method)}" for method in methods)
    return "--models", *names, "--labels", *(METHODS[method] for method in methods)


def _on(data: Path) -> tuple[str, ...]:
    return "--data", f"imagefolder:{data}", "-q"


def keep(data: Path) -> None:
    """Keep what was measured: the tables, each image's outcome, the settings."""
    shutil.rmtree(KEPT, ignore_errors=True)
    for name in (
        "evaluation",
        *(f"autoattack-{name_of(method)}" for method in METHODS),
        *INTERVENTIONS,
        "rankings",
    ):
        _copy(RUNS / name, KEPT / name, data)
    _copy(RUNS / "comparison", GALLERY, data)
    (KEPT / "hardware.txt").write_text(_hardware() + "\n", "utf-8")
    pages.accuracies().to_csv(zoo.RESULTS, index=False, lineterminator="\n")


def _copy(made: Path, kept: Path, data: Path) -> None:
    """Copy a result's tables and arrays, and its settings without the name of a folder of ours."""
    kept.mkdir(parents=True, exist_ok=True)
    for file in (*made.glob("*.csv"), *made.glob("*.npz")):
        shutil.copy(file, kept)
    settings = (
        (made / "meta.json").read_text("utf-8").replace(f"imagefolder:{data}", zoo.TRAINED_ON)
    )
    (kept / "meta.json").write_text(settings + "\n", "utf-8")


def _hardware() -> str:
    """Name the processor and the number of cores in use."""
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{models[0] if models else platform.processor()}, {CORES} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("step", choices=("train", "measure"))
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/cifar10-jpeg"),
        metavar="DIR",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        choices=METHODS,
        help="networks to train (default: all)",
    )
    args = parser.parse_args()
    if not all((args.data / part).is_dir() for part in ("train", "test")):
        sys.exit(
            f"{args.data} has no train/<class>/ and test/<class>/: name CIFAR-10's images (--data, make IMAGES=DIR)."
        )
    if args.step == "train":
        train(args.data, args.methods)
    else:
        measure(args.data)
        pages.write()


if __name__ == "__main__":
    main()
