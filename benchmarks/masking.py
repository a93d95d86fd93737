"""How often the checks for gradient masking are right: networks built to mask, and honest ones, of several seeds.

    python -m benchmarks.masking [--json FILE] [--seeds N] [--images N]

Counted are the masked networks that get a finding, by check and altogether, and the honest networks (standard and AT)
that are accused. Of every masked network the robust accuracy under PGD-20 is set beside the worst case with the attacks
that the findings name. Where a network is random, the majority of nine answers decides; where PGD-20 finds no gradient
at all, its figure is the natural accuracy.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import channelscope
from channelscope.attacks import PGD, Attack, find_correct
from channelscope.errors import UserError
from channelscope.study.binarisation import binarisation
from channelscope.study.masking import LEVEL, MATERIAL, STRAY, findings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.masked import EPS, MASKED, digits, honest, masked

ANSWERS = 9


def right(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell which images most answers get right."""
    return torch.stack([find_correct(network, x, y) for _ in range(ANSWERS)]).float().mean(0) > 0.5


def left_by(network: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Attack all images; tell which are still right."""
    try:
        return right(network, attack(network, x, y, torch.Generator().manual_seed(1)), y)
    except UserError:  # no gradient at all
        return right(network, x, y)


def examine(kind: str, name: str, seed: int, network: nn.Module, images: int) -> dict[str, Any]:
    """Check a network, and run on all images what the findings name."""
    x, y = digits(images)
    start = time.process_time()
    checks = findings(network, x, y, eps=EPS)
    seconds = time.process_time() - start
    natural = right(network, x, y)
    pgd = natural & left_by(network, PGD(eps=EPS), x, y)
    remedies = {found.check: found.breaks for found in checks.findings if found.breaks}
    left = {check: left_by(network, attack, x, y) for check, attack in remedies.items()}
    worst = pgd
    for standing in left.values():
        worst = worst & standing
    row = {
        "kind": kind,
        "name": name,
        "seed": seed,
        "findings": [found.check for found in checks.findings],
        "skipped": checks.skipped,
        "natural": natural.float().mean().item(),
        "pgd-20": pgd.float().mean().item(),
        "worst": worst.float().mean().item(),
        "left_by": {check: standing.float().mean().item() for check, standing in left.items()},
        "cpu_seconds": seconds,
    }
    figures = " ".join(f"{row[key]:6.1%}" for key in ("natural", "pgd-20", "worst"))
    print(f"{kind:8} {name:22} {seed} {figures}", *row["findings"], flush=True)
    return row


def binarised(kind: str, name: str, seed: int, network: nn.Module) -> dict[str, Any]:
    """Give PGD-20's outcome of the binarisation test."""
    try:
        found = binarisation(network, *digits(64), PGD(eps=EPS, early_stop=0), images=24)
    except UserError as error:
        return {"kind": kind, "name": name, "seed": seed, "skipped": str(error)}
    outcome = {
        "attack_success": found.attack_success,
        "random_success": found.random_success,
        "passed": found.passed,
    }
    return {"kind": kind, "name": name, "seed": seed, "images": found.images, **outcome}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count."""
    bad, good = ([row for row in rows if row["kind"] == kind] for kind in ("masked", "honest"))
    halved = {
        name: all(row["worst"] < row["pgd-20"] / 2 for row in bad if row["name"] == name)
        for name in dict.fromkeys(row["name"] for row in bad)
    }
    return {
        "masked": len(bad),
        "found_out": sum(bool(row["findings"]) for row in bad),
        "by_check": dict(Counter(check for row in bad for check in set(row["findings"]))),
        "honest": len(good),
        "accused": sum(bool(row["findings"]) for row in good),
        "accused_by_check": dict(Counter(check for row in good for check in set(row["findings"]))),
        "below_half_of_pgd_20": halved,
    }


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Say what was run on what."""
    return {
        "command": "python -m benchmarks.masking",
        "data": "digits, test part",
        "networks": "resnet10 of width 4, 8 epochs, recipe for digits",
        "eps": EPS,
        "images": given.images,
        "seeds": given.seeds,
        "limits": {"level": LEVEL, "stray": STRAY, "material": MATERIAL},
        "versions": {
            "channelscope": channelscope.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    rows, tests = [], []
    for seed in range(given.seeds):
        networks = [("honest", method, honest(method, seed)) for method in ("standard", "at")]
        networks += [("masked", name, masked(name, seed)) for name in MASKED]
        for kind, name, network in networks:
            rows.append(examine(kind, name, seed, network, given.images))
            tests.append(binarised(kind, name, seed, network))
    result = {
        "settings": settings(given),
        "summary": summary(rows),
        "networks": rows,
        "binarisation": tests,
    }
    print(json.dumps(result["summary"], indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
