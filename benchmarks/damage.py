"""How true and how fast is the damage account? Single channels put back, and time beside PGD-20.

    python -m benchmarks.damage [--data DIR] [--images N] [--models NAME ...] [--json FILE]

DIR holds test/<class>/. On the images that PGD-20 breaks, every single channel of each layer is put
back by brute force; ``agreement`` is the rank correlation (Spearman) of what that gives back of the
margin with the account, mean over images, ``ends`` their sums as shares of the damage: an account
adds up, single channels need not. ``ratio`` is the CPU time of all layers' accounts by that of the
attack on all images, on one thread. ``whole`` is that ratio for all that ``cs.damage`` does beside
the attack: accounts, repairs, a scorer, tables. The peak of memory above the imports is given
beside that of ``cs.compare`` on the same images and layers; each runs in a process of its own.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import channelscope as cs
from benchmarks.scale import peak_mb
from benchmarks.timing import describe_machine, measure_time, write_report
from channelscope.attacks.folding import run_folded
from channelscope.data import load
from channelscope.layers.hooks import eval_mode
from channelscope.layers.penultimate import LastLayer
from channelscope.study.account import (
    Account,
    Features,
    Pairs,
    Tail,
    capture_masks,
    capture_pairs,
    compute_margins,
    integrate,
    pair_images,
    weigh_channels,
)
from channelscope.study.account import (
    Path as Line,
)

LAYERS = ("layer1", "layer2", "layer3", "layer4")
MODELS = ("cifar10-standard", "cifar10-at")
BATCH = 128
_MOST = 64  # images whose single channels are put back


def account_batch(network: nn.Module, pairs: Pairs) -> dict[str, tuple[Account, Features, Tail]]:
    """Account for the damage at every layer, masks of gates held."""
    last = LastLayer.find(network, pairs.x[:4])
    accounts = {}
    for layer, features in capture_pairs(network, LAYERS, pairs).items():
        tail = Tail(network, layer, pairs.x_adv, features.adversarial, pairs.adversarial)
        if layer in last.inputs:
            account = weigh_channels(last, pairs, features)
        else:
            masks = capture_masks(network, layer, pairs)
            account = integrate(Line(tail, pairs, features, masks))
        accounts[layer] = account, features, tail
    return accounts


@torch.no_grad()
def restore_single(pairs: Pairs, features: Features, tail: Tail) -> Tensor:
    """Return what each channel gives back of the margin when it alone is put back (n, c)."""
    rows = torch.arange(len(pairs))
    channels = features.natural.shape[features.axis]
    gains = []
    for channel in range(channels):
        only = torch.zeros(len(pairs), channels, dtype=torch.bool)
        only[:, channel] = True
        margins = compute_margins(tail(features.mix(only), rows), pairs.y, pairs.rivals)
        gains.append(margins - (pairs.margin - pairs.damage))
    return torch.stack(gains, 1)


def compare_channels(network: nn.Module, pairs: Pairs) -> list[dict[str, Any]]:
    """Compare the account with brute force, layer by layer."""
    few = pairs.select(torch.arange(min(_MOST, len(pairs))))
    rows = []
    for layer, (account, features, tail) in account_batch(network, few).items():
        gains = restore_single(few, features, tail)
        ranks = [
            spearmanr(ours, theirs).statistic
            for ours, theirs in zip(account.channels.numpy(), gains.numpy(), strict=True)
        ]
        ends = [(values.sum(1) / few.damage).mean() for values in (account.channels, gains)]
        rows.append(
            {
                "layer": layer,
                "images": len(few),
                "error": float(account.error.max()),
                "agreement": float(torch.tensor(ranks).mean()),
                "ends": [float(end) for end in ends],
            }
        )
    return rows


def measure(name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Attack the images, account for the damage, put single channels back."""
    network = cs.load(f"zoo:{name}")
    attack = cs.PGD(eps=8 / 255, steps=20)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    attacked: list[Tensor] = []

    def make() -> None:
        attacked[:] = [attack(network, *batch) for batch in batches]

    attack_time = measure_time(make)["cpu"]
    with eval_mode(network), cs.attached(network):
        listed = [
            pair_images(network, images, x_adv, labels)
            for (images, labels), x_adv in zip(batches, attacked, strict=True)
        ]
        broken = [pairs.select(pairs.broken) for pairs in listed]

        def account() -> None:
            for pairs in broken:
                run_folded(network, pairs.x, lambda _, pairs=pairs: account_batch(network, pairs))

        account_time = measure_time(account)["cpu"]
        layers = compare_channels(network, broken[0])
    count = sum(map(len, broken))
    return {
        "model": name,
        "images": len(x),
        "broken": count,
        "ratio": account_time / attack_time,
        "attack_s": attack_time,
        "layers": layers,
    }


def run_whole(name: str, kind: str, x: Tensor, y: Tensor) -> dict[str, float]:
    """Run ``cs.damage`` or ``cs.compare``; return its CPU time and its peak of memory."""
    torch.set_num_threads(1)
    before = peak_mb()
    answer = {"damage": cs.damage, "compare": cs.compare}[kind]
    network = cs.load(f"zoo:{name}")

    def run() -> None:
        answer({name: network}, (x, y), layers=LAYERS, images=len(x), device="cpu", progress=False)

    return {"cpu": measure_time(run)["cpu"], "memory_mb": peak_mb() - before}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    split = load(f"imagefolder:{args.data}").test.sample(args.images, 0)
    x, y = next(split.batches(args.images))
    rows = []
    for name in args.models:  # first, as a process begins with the peak of its parent
        row: dict[str, Any] = {}
        for kind in ("damage", "compare"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row[kind] = pool.apply(run_whole, (name, kind, x, y))
        rows.append(row)
    for name, row in zip(args.models, rows, strict=True):
        row |= measure(name, x, y)
        row["whole"] = row["damage"]["cpu"] / row["attack_s"] - 1
    report = {"models": rows}
    for row in report["models"]:
        print(
            f"{row['model']}: {row['broken']} of {row['images']} broken; accounts "
            f"{row['ratio']:.2f} x PGD-20, all that damage does {row['whole']:.2f} x; memory "
            f"{row['damage']['memory_mb']:.0f} MB (compare {row['compare']['memory_mb']:.0f} MB)"
        )
        for layer in row["layers"]:
            print(f"  {layer}")
    write_report(report, describe_machine(), args.json)


if __name__ == "__main__":
    main()
