"""Feed every reader with wrong files: ``make fuzz``, or ``python tests/fuzz --help``.

Each input is read in a process that is watched: the reader gives a value that can be used, or
refuses in one sentence; in five seconds, within a gigabyte; and nothing is run, written or
followed out of the folder.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import guided
from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import mutated
from structured import trees
from targets import Target, all_targets
from trees import Tree
from watch import MEMORY, SECONDS, Outcome, watched

ROOT = Path(__file__).parent.parent.parent
FAILING = ROOT / "runs" / "fuzz"
RECORD = ROOT / "docs" / "reliability" / "fuzz.json"
INPUTS = 21_000
CHUNK = 100  # inputs to a task
GENERATORS = ("structured", "mutated", "guided")
Feed = Callable[[Tree], None]


@dataclass
class Tally:
    """What came of the inputs of a target."""

    inputs: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: int = 0

    def add(self, generator: str, outcome: Outcome) -> None:
        self.inputs[generator] += 1
        self.kinds[outcome.kind] += 1
        self.slowest, self.peak = max(self.slowest, outcome.seconds), max(self.peak, outcome.peak)

    def row(self) -> dict[str, Any]:
        """Lay out as plain values."""
        return {
            "inputs": sum(self.inputs.values()),
            **{generator: self.inputs[generator] for generator in GENERATORS},
            "read": self.kinds["read"],
            "refused": self.kinds["refused"],
            "faults": sum(
                count for kind, count in self.kinds.items() if kind not in ("read", "refused")
            ),
            "slowest_s": round(self.slowest, 2),
            "peak_mb": round(self.peak / 2**20),
        }


def structured(target: Target, number: int, count: int, feed: Feed) -> None:
    """Feed a target what hypothesis draws."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(trees(target))
    def fed(tree: Tree) -> None:
        feed(tree)

    fed()


def damaged(target: Target, number: int, count: int, feed: Feed) -> None:
    """Feed a target valid files that are damaged."""
    rng = random.Random(number)
    for _ in range(count):
        feed(mutated(target, rng))


def number_of(seed: int, *words: Any) -> int:
    """Give each task a seed of its own."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *words)).encode(), digest_size=4).digest())


Task = tuple[str, str, int, int]  # target, generator, inputs, seed


def tasks(
    shares: dict[str, float], inputs: int, seed: int, generators: tuple[str, ...]
) -> list[Task]:
    """Share the inputs among targets and generators, in tasks that are soon over."""
    found: list[Task] = []
    for name, generator in product(shares, generators):
        each = math.ceil(inputs * shares[name] / (sum(shares.values()) * len(generators)))
        size = each if generator == "guided" else CHUNK
        starts = range(0, each, size)
        found += [
            (name, generator, min(size, each - at), number_of(seed, name, generator, at))
            for at in starts
        ]
    return sorted(found, key=lambda task: task[1] != "guided")  # the long ones first


def work(targets: dict[str, Target], todo: Any, done: Any) -> None:
    """Do tasks until there is none; report the outcomes of each, with the inputs that fail."""
    with watched(targets) as read:
        while (task := todo.get()) is not None:
            name, generator, count, number = task

            def feed(tree: Tree, name: str = name, generator: str = generator) -> None:
                outcome = read(name, tree)
                done.put((name, generator, outcome, None if outcome.well else tree.text()))

            if generator == "guided":
                for outcome, tree in guided.run(name, targets[name], count, number):
                    done.put((name, generator, outcome, tree and tree.text()))
            else:
                {"structured": structured, "mutated": damaged}[generator](
                    targets[name], number, count, feed
                )
    done.put(None)


def outcomes(
    targets: dict[str, Target], todo: list[Task], jobs: int
) -> Iterator[tuple[str, str, Outcome, str | None]]:
    """Do tasks in some processes; give the outcomes as they come."""
    context = multiprocessing.get_context("fork")
    queue, done = context.Queue(), context.Queue()
    workers = [context.Process(target=work, args=(targets, queue, done)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for task in [*todo, *[None] * jobs]:
        queue.put(task)
    left = jobs
    while left:
        try:
            found = done.get(timeout=60)
        except Exception:  # none came: a worker may have died
            if not any(worker.is_alive() for worker in workers):
                raise SystemExit(
                    "The processes that feed the readers have died: this run says nothing."
                ) from None
            continue
        if found is None:
            left -= 1
        else:
            yield found


def keep(name: str, outcome: Outcome, text: str) -> Path:
    """Save an input that a reader did not survive, by what went wrong."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    path = FAILING / f"{name.replace(' ', '-')}-{outcome.kind}-{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"target": name, "said": outcome.said, "tree": json.loads(text)}))
    return path


def replay(files: list[str], here: bool) -> int:
    """Read kept inputs again; ``here``: in this process, where a debugger sees it."""
    targets, bad = all_targets(), 0
    with watched(targets) as read:
        for file in files:
            kept = json.loads(Path(file).read_text())
            name, tree = kept["target"], Tree.of(json.dumps(kept["tree"]))
            if here:
                place = Path.cwd() / "runs" / "fuzz" / "work"
                tree.write(place)
                print(f"{place / 'in'}: as it is read")
                targets[name].read(place / "in")
            outcome = read(name, tree)
            bad += not outcome.well
            print(
                f"{name}: {outcome.kind} in {outcome.seconds:.2f} s, "
                f"{outcome.peak / 2**20:.0f} MB: {outcome.said}"
            )
    return bool(bad)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Lay out what was tried and survived."""
    heads = list(next(iter(rows.values())))
    lines = [["target", *heads], *([name, *map(str, row.values())] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def record(rows: dict[str, dict[str, Any]], seed: int, seconds: float, jobs: int) -> dict[str, Any]:
    """Say what was done, with what and on what."""
    packages = ("torch", "torchvision", "numpy", "pandas", "pillow", "scipy", "hypothesis")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    if guided.available():
        versions["atheris"] = version("atheris")
    return {
        "command": "make fuzz",
        "inputs": sum(row["inputs"] for row in rows.values()),
        "survived": sum(row["read"] + row["refused"] for row in rows.values()),
        "limits": {"seconds": SECONDS, "memory_mb": MEMORY // 2**20},
        "seed": seed,
        "targets": rows,
        "seconds": round(seconds),
        "processes": jobs,
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
        "date": datetime.now(UTC).date().isoformat(),
    }


def fuzz(args: argparse.Namespace) -> int:
    """Feed the readers; print what was tried; give the exit status."""
    generators = GENERATORS if guided.available() and not args.quick else GENERATORS[:2]
    if "guided" not in generators and not args.quick:
        print(
            "atheris is not installed, or not made for this Python: "
            "inputs by hypothesis and mutation alone."
        )
    targets = all_targets()
    names = [name for name in targets if not args.only or name in args.only]
    todo = tasks({name: targets[name].share for name in names}, args.inputs, args.seed, generators)
    print(
        f"seed {args.seed}: {args.inputs:,} inputs for {len(names)} targets, {args.jobs} processes",
        flush=True,
    )
    tallies: dict[str, Tally] = {name: Tally() for name in names}
    known: dict[tuple[str, str, str], int] = defaultdict(int)
    start = last = time.monotonic()
    for name, generator, outcome, text in outcomes(targets, todo, args.jobs):
        tallies[name].add(generator, outcome)
        if not outcome.well:
            signature = name, outcome.kind, outcome.said.partition(" (at ")[2] or outcome.said[:60]
            known[signature] += 1
            if text and known[signature] == 1:
                print(
                    f"{name}: {outcome.kind}: {outcome.said}\n  {keep(name, outcome, text)}",
                    flush=True,
                )
        if time.monotonic() - last > 60:
            last = time.monotonic()
            done = sum(tally.kinds.total() for tally in tallies.values())
            print(f"{done:,} inputs in {last - start:.0f} s", flush=True)
    rows = {name: tally.row() for name, tally in tallies.items()}
    made = record(rows, args.seed, time.monotonic() - start, args.jobs)
    print(table(rows))
    print(
        f"{made['survived']:,} of {made['inputs']:,} inputs survived, "
        f"in {made['seconds']} s, seed {args.seed}"
    )
    if made["survived"] < made["inputs"]:
        print(f"Read one again with: python tests/fuzz --replay {FAILING.relative_to(ROOT)}/FILE")
        return 1
    if args.record:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(made, indent=1) + "\n")
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser("python tests/fuzz", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, help="how many, over all targets (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of all that is drawn; one by the clock if left out"
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="some targets")
    parser.add_argument("--quick", action="store_true", help="without atheris")
    parser.add_argument(
        "--record", action="store_true", help="write docs/reliability/fuzz.json if all is well"
    )
    parser.add_argument("--replay", nargs="+", metavar="FILE", help="read kept inputs again")
    parser.add_argument(
        "--here",
        action="store_true",
        help="with --replay: in this process, so that a traceback shows",
    )
    args = parser.parse_args()
    if args.replay:
        return replay(args.replay, args.here)
    if args.seed is None:
        args.seed = int(time.time()) % 2**31
    return fuzz(args)


if __name__ == "__main__":
    sys.exit(main())
