"""Evaluate networks that others trained and published, beside the accuracy that they state.

    python -m benchmarks.published --list                # what to fetch, and where to put it
    python -m benchmarks.published --weights DIR [--data NAME] [--digits NAME] [--images N]
                                   [--json docs/published/networks.json] [NETWORK ...]

The weights lie in public repositories, and none of them in this one: fetch each repository into
DIR/OWNER/NAME, as ``--list`` says, for example

    git clone https://github.com/akamaster/pytorch_resnet_cifar10 \\
        DIR/akamaster/pytorch_resnet_cifar10

CIFAR-10's and MNIST's test images are named as for ``channelscope evaluate --data``; networks of a
data set that is not there are left out, which is said. Each network is read as ``channelscope
evaluate`` reads it, with the options in the table, and attacked by PGD-20 on all images that are
evaluated. What is advised where no normalisation is named is recorded too, and whether the file is
recognised by itself. Code of the authors is run only for the networks whose ``--arch`` names it.
Where CIFAR-10's images are at hand as JPEG alone, accuracies are lower than on the originals: of
these 200 lie in a repository of the list, and the natural accuracy on them is measured besides.

``python -m benchmarks.pages`` puts what lies in docs/published into docs/RESULTS.md.
"""

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import describe_machine, write_report
from channelscope.api import evaluate
from channelscope.attacks import find_correct
from channelscope.data import Dataset, MemorySplit, Split, load
from channelscope.errors import UserError
from channelscope.networks import NORMALISATIONS
from channelscope.statistics.intervals import wilson
from channelscope.study.normalisation import IMAGES, advise_normalisation
from channelscope.weights.loading import describe_network, read_network
from figures.markdown import Markdown, format_table

CIFAR10, MNIST = "cifar10", "mnist"
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# 200 of CIFAR-10's images as they were published, in a repository that is fetched anyway.
ORIGINALS = "complete_verifier/datasets/sdp/cifar"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A public repository with weights in it.

    Args:
        name: owner and name on github.com.
        commit: at which the weights were read.
    """

    name: str
    commit: str

    @property
    def address(self) -> str:
        """Where it is fetched from."""
        return f"https://github.com/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network in a repository, and what its authors say of it.

    Args:
        name: of the row.
        repository, path: where the file of weights is.
        accuracy: natural accuracy on the test images that is stated, in percent.
        stated: where it is stated.
        robust: robust accuracy that is stated, in percent, with the attack; empty for none.
        data: the data set.
        training: "standard", or what the training was to make the network robust to.
        normalise: the option, as the authors normalise images; None where they do not.
        arch: the option, FILE.py:FUNCTION in the repository; None where the file is recognised.
        eps: radius of the attack.
        side: height and width of the images, where they are scaled.
    """

    name: str
    repository: Repository
    path: str
    accuracy: float
    stated: str
    robust: str = ""
    data: str = CIFAR10
    training: str = "standard"
    normalise: str | None = None
    arch: str | None = None
    eps: tuple[int, int] | float = (8, 255)
    side: int | None = None

    @property
    def address(self) -> str:
        """Where the file alone is fetched from."""
        return f"{self.repository.address}/raw/{self.repository.commit}/{self.path}"

    @property
    def radius(self) -> float:
        """The attack's radius as a number."""
        return self.eps if isinstance(self.eps, float) else self.eps[0] / self.eps[1]

    @property
    def radius_text(self) -> str:
        """The attack's radius as it is written."""
        return str(self.eps) if isinstance(self.eps, float) else f"{self.eps[0]}/{self.eps[1]}"

    def locate(self, weights: Path, path: str) -> Path:
        """Return where a file of the repository lies below the folder of weights."""
        return weights / self.repository.name / path

    def write_options(self) -> str:
        """Write the options that a user types beside the file."""
        normalise = self.normalise
        if normalise is not None and normalise not in NORMALISATIONS:
            normalise = f"'{normalise}'"  # for the shell, which ends commands at semicolons
        options = {"--arch": self.arch, "--normalise": normalise, "--image-size": self.side}
        return " ".join(f"{name} {value}" for name, value in options.items() if value)


AKAMASTER = Repository(
    name="akamaster/pytorch_resnet_cifar10", commit="d5489e8995e81e91ce6b1d69dcc98ad579b0b153"
)
DANS = Repository(name="robtad/DANS", commit="e0f876e613add351e409cf6aae9bb4061ec9c5a2")
PRUNING = Repository(
    name="zlatasm/resnet_cifar_pruning", commit="62b93b572568e55aa52a076127f5aa91a2fc41e9"
)
RN20 = Repository(name="kejeon/in_dev_RN20", commit="8833077d55a8c4ea33e526542ae8ead833407db6")
LMFRNET = Repository(
    name="santosantonio1/lmfrnet-utils", commit="4e0241cd82cc67ebabbe5d31060768553c366034"
)
SCIO = Repository(name="ThalesGroup/scio", commit="873cb19d76e93d6fbf0804e11ed8d328104b257a")
CROWN = Repository(
    name="Verified-Intelligence/alpha-beta-CROWN",
    commit="8250d5fbd530c76e5e3243db28b3cad5fbaef740",
)
CONVEX = Repository(
    name="locuslab/convex_adversarial", commit="2cd8149249b9e90383af10fc7e9b9fe90166813e"
)
GAN_VAE = Repository(
    name="csinva/gan-vae-pretrained-pytorch", commit="9b6401e122fa186a3a57f97c5df57e3603121fba"
)
_VERIFIER = "complete_verifier"
_DEFINITIONS = f"{_VERIFIER}/model_defs.py"

NETWORKS = (
    *(
        Published(
            name=f"ResNet-{depth}",
            repository=AKAMASTER,
            path=f"pretrained_models/resnet{depth}-{digest}.th",
            accuracy=round(100 - error, 2),
            stated="README",
            normalise="imagenet",
        )
        for depth, digest, error in (
            (20, "12fca82f", 8.27),
            (32, "d509ac18", 7.37),
            (44, "014dd654", 6.90),
            (56, "4bfd9763", 6.61),
        )
    ),
    *(
        Published(
            name=f"ResNet-{depth}, shortcuts with weights",
            repository=DANS,
            path=f"models/cifar10_resnet{depth}.pth",
            accuracy=accuracy,
            stated="results/evaluation_results.csv",
            normalise="pytorch-cifar",
        )
        for depth, accuracy in ((20, 92.6), (32, 93.53), (44, 94.01), (56, 94.37))
    ),
    Published(
        name="ResNet-20, distilled",
        repository=DANS,
        path="models_distilled/cifar10_resnet20_distilled.pth",
        accuracy=83.0,
        stated="results/defensive_distillation_results.csv",
        training="defensive distillation",
        normalise="pytorch-cifar",
    ),
    Published(
        name="ResNet-20, to be pruned",
        repository=PRUNING,
        path="checkpoint/ckpt.pth",
        accuracy=92.92,
        stated="acc in the file",
        normalise="pytorch-cifar",
    ),
    Published(
        name="ResNet-20, to be quantised",
        repository=RN20,
        path="checkpoint/ckpt.pth",
        accuracy=92.12,
        stated="acc in the file",
        normalise="pytorch-cifar",
    ),
    Published(
        name="LMFRNet",
        repository=LMFRNET,
        path="checkpoint/ckpt.pth",
        accuracy=94.54,
        stated="acc in the file",
        normalise="pytorch-cifar",
        arch="OurLMFRNet.py:LMFRNet",
    ),
    Published(
        name="Tiniest",
        repository=SCIO,
        path="tiniest.pt",
        accuracy=94.6,
        stated="README, branch hub",
        normalise="0.5;1",
        arch="tiniest.py:Tiniest",
    ),
    Published(
        name="ResNet-2B",
        repository=CROWN,
        path=f"{_VERIFIER}/models/cifar10_resnet/resnet2b.pth",
        accuracy=69.25,
        stated="README beside it",
        robust="54.82 (PGD)",
        training="AT, eps 2/255",
        normalise="cifar10",
        arch=f"{_DEFINITIONS}:resnet2b",
        eps=(2, 255),
    ),
    Published(
        name="ResNet-4B",
        repository=CROWN,
        path=f"{_VERIFIER}/models/cifar10_resnet/resnet4b.pth",
        accuracy=77.2,
        stated="README beside it",
        robust="61.41 (PGD)",
        training="AT, eps 2/255",
        normalise="cifar10",
        arch=f"{_DEFINITIONS}:resnet4b",
        eps=(2, 255),
    ),
    Published(
        name="CNN with sigmoids",
        repository=CROWN,
        path=f"{_VERIFIER}/models/non_relu/cifar_conv_small_sigmoid.pth",
        accuracy=63.17,
        stated="exp_configs/beta_crown/cifar_conv_small_sigmoid.yaml",
        training="AT, by best_ra in the file",
        normalise="pytorch-cifar",
        arch=f"{_DEFINITIONS}:cifar_conv_small_sigmoid",
        eps=(2, 255),
    ),
    Published(
        name="CNN of Marabou, small",
        repository=CROWN,
        path=f"{_VERIFIER}/models/marabou_cifar10/cifar_marabou_small.pth",
        accuracy=63.14,
        stated="exp_configs/bab_attack/cifar_marabou_small.yaml",
        training="not stated",
        eps=(2, 255),
    ),
    Published(
        name="CNN, provably robust",
        repository=CONVEX,
        path="models/mnist.pth",
        accuracy=98.2,
        stated="README",
        robust="95.9 (PGD)",
        data=MNIST,
        training="convex bounds, eps 0.1",
        eps=0.1,
    ),
    Published(
        name="LeNet-5",
        repository=GAN_VAE,
        path="mnist_classifier/weights/lenet_epoch=12_test_acc=0.991.pth",
        accuracy=99.1,
        stated="the file's name",
        data=MNIST,
        eps=0.1,
        side=32,
    ),
)


def check_files(networks: Sequence[Published], weights: Path) -> None:
    """Refuse to start without a file; raises UserError that says where it comes from."""
    for network in networks:
        code = (network.arch or "").partition(":")[0]
        for path in filter(None, (network.path, code)):
            file = network.locate(weights, path)
            if not file.is_file():
                folder = weights / network.repository.name
                raise UserError(
                    f"{file} is not there: git clone {network.repository.address} {folder}, and "
                    f"check out {network.repository.commit} in it."
                )


def find_advice(network: Published, file: Path, data: Dataset) -> str:
    """Return what is said where a user names the file and its code alone: an option, or none."""
    built = read_network(file, _locate_code(network, file)).build()
    split = _get_test(data)
    x, y = next(split.sample(min(IMAGES, len(split))).batches(IMAGES))
    advice = advise_normalisation(built, x, y, ours=False) or ""
    option = re.search(r"--normalise ('[^']*'|[\w-]+)", advice)
    return option[1] if option else "none"


def _get_test(data: Dataset) -> Split:
    if data.test is None:
        raise UserError(f"{data.name} has no test images: name others.")
    return data.test


def describe_alone(network: Published, file: Path, data: Dataset) -> str:
    """Say as what a file is recognised by itself, and whether that computes what it should."""
    try:
        alone = read_network(file)
    except UserError:
        return "no"
    kind = describe_network(alone).partition(" (")[0].partition(",")[0]
    x, _ = next(_get_test(data).batches(2))
    expected = read_network(file, _locate_code(network, file)).build()
    with torch.no_grad():
        same = torch.allclose(expected(x), alone.build()(x), 1e-3, 1e-4)
    return kind if same else f"{kind}, which it is not"


def _locate_code(network: Published, file: Path) -> str | None:
    """Return --arch with the path of the code, which the row has relative to the repository."""
    if network.arch is None:
        return None
    root = file.parents[len(Path(network.path).parts) - 1]
    return str(root / network.arch)


def read_originals(weights: Path) -> Dataset | None:
    """Read some of CIFAR-10's images as they were published; None where they are not there."""
    files = [weights / CROWN.name / ORIGINALS / f"{kind}_sdp.npy" for kind in "Xy"]
    if not all(file.is_file() for file in files):
        return None
    images, labels = (torch.from_numpy(np.load(file, allow_pickle=False)) for file in files)
    split = MemorySplit(images.permute(0, 3, 1, 2).contiguous(), labels)
    return Dataset("cifar10, some", CIFAR10_CLASSES, test=split)


def measure(
    network: Published,
    weights: Path,
    data: Dataset,
    originals: Dataset | None,
    images: int | None,
) -> dict[str, Any]:
    """Evaluate a network; return its row."""
    file = network.locate(weights, network.path)
    start = time.perf_counter()
    checkpoint = read_network(
        file, _locate_code(network, file), normalise=network.normalise or "none"
    )
    result = evaluate(
        {network.name: checkpoint.build()},
        data,
        attacks=["pgd-20"],
        eps=network.radius,
        checks=0,
        images=images,
    )
    seconds = time.perf_counter() - start
    original = None
    if originals is not None and network.data == CIFAR10:
        x, y = next(_get_test(originals).batches(len(_get_test(originals))))
        correct = int(find_correct(checkpoint.build(), x, y).sum())
        estimate = wilson(correct, len(y))
        original = {"images": len(y), "accuracy": correct / len(y)}
        original |= {"low": estimate.low, "high": estimate.high}
    accuracies = {
        row["attack"]: {name: row[name] for name in ("accuracy", "low", "high")}
        for row in result.select("robustness", **{"class": "all"}).to_dict("records")
    }
    return {
        "name": network.name,
        "repository": network.repository.name,
        "address": network.address,
        "data": network.data,
        "training": network.training,
        "recognised": describe_alone(network, file, data),
        "advised": find_advice(network, file, data),
        "options": network.write_options(),
        "images": int(result.meta["data"]["images"]),
        "stated": network.accuracy,
        "stated_in": network.stated,
        "stated_robust": network.robust,
        "natural": accuracies["natural"],
        "natural_on_originals": original,
        "robust": accuracies["pgd-20"],
        "eps": network.radius_text,
        "seconds": seconds,
    }


def load_data(
    networks: Sequence[Published], names: Mapping[str, str], root: Path
) -> dict[tuple[str, int | None], Dataset]:
    """Load the test images, by data set and size; say which are not there."""
    loaded: dict[tuple[str, int | None], Dataset] = {}
    for kind, side in {(network.data, network.side): None for network in networks}:
        try:
            loaded[kind, side] = load(names[kind], root=root, image_size=side)
        except UserError as error:
            print(f"The networks of {kind} are left out: {error}", file=sys.stderr)
    return loaded


def format_networks(report: dict[str, Any]) -> str:
    """Return what was measured as a table, and on what."""
    rows = []
    for row in report["networks"]:
        original = row["natural_on_originals"]
        stated = f"; stated {row['stated_robust']}" if row["stated_robust"] else ""
        options = f"`{row['options']}`" if row["options"] else "none"
        rows.append(
            {
                "network": Markdown(f"[{row['name']}]({row['address']})"),
                "repository": row["repository"],
                "data; training": f"{_TITLES[row['data']]}; {row['training']}",
                "recognised by itself as": row["recognised"],
                "advised": row["advised"],
                "options typed": Markdown(options),
                "n": f"{row['images']:,}",
                "natural": _format_accuracy(row["natural"]),
                "natural, originals": _format_accuracy(original) if original else "",
                "stated": f"{row['stated']:.2f} ({row['stated_in']})",
                "PGD-20": f"{_format_accuracy(row['robust'])} (eps {row['eps']}{stated})",
                "s": f"{row['seconds']:.0f}",
            }
        )
    machine = report["machine"]
    return (
        f"{format_table(rows)}\n\n{report['date']}; {machine['cpu']}, {machine['threads']} thread "
        f"of {machine['cores']} cores, {machine['system'].partition('-')[0]}; Python "
        f"{machine['python']}, torch {machine['torch']}."
    )


_TITLES = {CIFAR10: "CIFAR-10", MNIST: "MNIST"}


def _format_accuracy(row: Mapping[str, float]) -> str:
    percent = {name: 100 * row[name] for name in ("accuracy", "low", "high")}
    return "{accuracy:.1f} [{low:.1f}, {high:.1f}]".format_map(percent)


def list_networks(networks: Sequence[Published]) -> str:
    """Say where each repository and file comes from, and what is typed beside it."""
    lines = []
    for repository in dict.fromkeys(network.repository for network in networks):
        lines.append(
            f"git clone {repository.address} DIR/{repository.name}  # commit {repository.commit}"
        )
        for network in networks:
            if network.repository == repository:
                options = network.write_options() or "(no options)"
                lines.append(f"    {network.name}: {network.path}\n        {options}")
    return "\n".join(lines)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published",
        description=__doc__,
        epilog="repositories:\n"
        + "\n".join(
            f"  {repository.address}"
            for repository in dict.fromkeys(network.repository for network in NETWORKS)
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NETWORK", help="those whose names contain it (default: all)"
    )
    parser.add_argument(
        "--list", action="store_true", help="print where the weights come from, and stop"
    )
    parser.add_argument("--weights", type=Path, help="folder of the repositories, OWNER/NAME in it")
    parser.add_argument(
        "--data",
        default=CIFAR10,
        metavar="NAME",
        help="CIFAR-10: cifar10, imagefolder:DIR or npz:FILE (default: %(default)s)",
    )
    parser.add_argument(
        "--digits", default=MNIST, metavar="NAME", help="MNIST, likewise (default: %(default)s)"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder of cifar10 and mnist (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="number of test images (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    return parser


def main() -> None:
    """Evaluate the networks, and print the table."""
    parser = _make_parser()
    args = parser.parse_args()
    networks = [
        network
        for network in NETWORKS
        if not args.names or any(name in network.name for name in args.names)
    ]
    if args.list:
        print(list_networks(networks))
        return
    if args.weights is None:
        parser.error("--weights: name the folder of the repositories; --list says what is in it.")
    try:
        check_files(networks, args.weights)
        data = load_data(networks, {CIFAR10: args.data, MNIST: args.digits}, args.data_root)
        originals = read_originals(args.weights)
        machine = describe_machine()
        rows = []
        for network in networks:
            images = data.get((network.data, network.side))
            if images is None:
                continue
            rows.append(measure(network, args.weights, images, originals, args.images))
            print(f"{network.name}: {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    if not rows:
        parser.exit(2, "No network is left to evaluate: name images with --data and --digits.\n")
    # Without the places where a user has weights and images, which say nothing to others.
    count = f" --images {args.images}" if args.images else ""
    report = {
        "command": f"python -m benchmarks.published --weights DIR --data NAME{count}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "networks": rows,
    }
    print(format_networks(report | {"machine": machine}))
    write_report(report, machine, args.json)


if __name__ == "__main__":
    main()
