"""How often the checks for gradient masking are right: networks built to mask, and honest ones.

    python -m benchmarks.masking [--json FILE] [--seeds N] [--images N]

Counted are the masked networks that get a finding, by check and altogether, and the honest networks
(standard and AT) that are accused. Of every masked network the robust accuracy under PGD-20 is set
beside the worst case with the attacks that the signs name. Where a network is random, the
majority of nine answers decides; where PGD-20 finds no gradient at all, its figure is the natural
accuracy.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import describe_machine, write_report
from channelscope.attacks import PGD, Attack, find_correct
from channelscope.errors import UserError
from channelscope.study.binarisation import run_binarisation_test
from channelscope.study.masking import LEVEL, MATERIAL, STRAY, check_masking

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.masked import EPS, MASKED, digits, honest, masked

ANSWERS = 9


def find_mostly_correct(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images most of the answers get right."""
    answers = torch.stack([find_correct(network, x, y) for _ in range(ANSWERS)])
    return answers.float().mean(0) > 0.5


def find_robust(network: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Attack all images; return which are still correct."""
    try:
        x_adv = attack(network, x, y, torch.Generator().manual_seed(1))
    except UserError:  # no gradient at all
        x_adv = x
    return find_mostly_correct(network, x_adv, y)


def examine(network: nn.Module, images: int) -> dict[str, Any]:
    """Check a network, and run on all images the attacks that the signs name."""
    x, y = digits(images)
    start = time.process_time()
    checks = check_masking(network, x, y, eps=EPS)
    seconds = time.process_time() - start
    natural = find_mostly_correct(network, x, y)
    pgd = natural & find_robust(network, PGD(eps=EPS), x, y)
    robust = {
        check: find_robust(network, sign.breaks, x, y)
        for check, sign in checks.signs.items()
        if sign.breaks
    }
    worst = torch.stack([pgd, *robust.values()]).all(0)
    return {
        "findings": list(checks.signs),
        "skipped": checks.skipped,
        "natural": _share(natural),
        "pgd-20": _share(pgd),
        "worst": _share(worst),
        "left_by": {check: _share(correct) for check, correct in robust.items()},
        "cpu_seconds": seconds,
    }


def _share(correct: Tensor) -> float:
    return correct.float().mean().item()


def binarise(network: nn.Module) -> dict[str, Any]:
    """Return PGD-20's outcome of the binarisation test."""
    try:
        outcome = run_binarisation_test(network, *digits(64), PGD(eps=EPS, early_stop=0), images=24)
    except UserError as error:
        return {"skipped": str(error)}
    return {
        "images": outcome.images,
        "attack_success": outcome.attack_success,
        "random_success": outcome.random_success,
        "passed": outcome.passed,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the networks with findings."""
    bad, good = ([row for row in rows if row["kind"] == kind] for kind in ("masked", "honest"))
    halved = {
        name: all(row["worst"] < row["pgd-20"] / 2 for row in bad if row["name"] == name)
        for name in MASKED
    }
    return {
        "masked": len(bad),
        "found_out": sum(bool(row["findings"]) for row in bad),
        "by_check": _count_checks(bad),
        "honest": len(good),
        "accused": sum(bool(row["findings"]) for row in good),
        "accused_by_check": _count_checks(good),
        "below_half_of_pgd_20": halved,
    }


def _count_checks(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return dict(Counter(check for row in rows for check in set(row["findings"])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    machine = describe_machine()
    rows, tests = [], []
    for seed in range(options.seeds):
        networks = [("honest", method, honest(method, seed)) for method in ("standard", "at")]
        networks += [("masked", name, masked(name, seed)) for name in MASKED]
        for kind, name, network in networks:
            head = {"kind": kind, "name": name, "seed": seed}
            row = head | examine(network, options.images)
            figures = " ".join(f"{row[key]:6.1%}" for key in ("natural", "pgd-20", "worst"))
            print(f"{kind:8} {name:22} {seed} {figures}", *row["findings"], flush=True)
            rows.append(row)
            tests.append(head | binarise(network))
    summary = summarise(rows)
    print(json.dumps(summary, indent=1))
    settings = {
        "data": "digits, test split",
        "networks": "resnet10 of width 4, 8 epochs, recipe for digits",
        "eps": EPS,
        "images": options.images,
        "seeds": options.seeds,
        "limits": {"level": LEVEL, "stray": STRAY, "material": MATERIAL},
    }
    report = {"settings": settings, "summary": summary, "networks": rows, "binarisation": tests}
    write_report(report, machine, options.json)


if __name__ == "__main__":
    main()
