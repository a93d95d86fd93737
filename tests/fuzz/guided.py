"""Inputs guided by coverage: atheris (libFuzzer) changes a file to reach lines not yet run.

It is an extra (``fuzz``): where it cannot be installed, the other generators do alone. It works in
a process of its own, in which the readers run unwatched from outside: libFuzzer ends what hangs,
the rest is seen from within.
"""

import gc
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

from mutations import of_file
from targets import Target, all_targets
from trees import Tree
from watch import SECONDS, Outcome, confined, examine

# What reads: ours, and of what it rests on the parts that are Python.
INSTRUMENTED = (
    "channelscope.",
    "json.decoder",
    "json.scanner",
    "tomllib",
    "zipfile",
    "numpy.lib",
    "torch._weights_only_unpickler",
    "pickletools",
    "PIL",
)


@cache
def available() -> bool:
    """Tell whether atheris can be used."""
    if find_spec("atheris") is None:
        return False
    return (
        subprocess.run(
            [sys.executable, "-c", "import atheris"], capture_output=True, check=False
        ).returncode
        == 0
    )


def run(name: str, target: Target, count: int, seed: int) -> Iterator[tuple[Outcome, Tree | None]]:
    """Feed a target so many inputs; give the outcomes, and the inputs that it did not survive."""
    with tempfile.TemporaryDirectory(prefix="channelscope-fuzz-") as folder:
        command = [sys.executable, __file__, name, str(count), str(seed), folder]
        ended = subprocess.run(command, capture_output=True, check=False)
        told = [json.loads(line) for line in (Path(folder) / "outcomes").read_text().splitlines()]
        yield from (
            (Outcome(**one["outcome"]), one["tree"] and Tree.of(one["tree"])) for one in told
        )
        if len(told) < count:
            last = Path(folder) / "last"
            tree = Tree.of(last.read_text()) if last.exists() else None
            words = ended.stderr.decode(errors="replace").strip().splitlines()[-3:]
            kind = "hang" if any("timeout" in line for line in words) else "crash"
            yield (
                Outcome(
                    kind, f"atheris ended with status {ended.returncode}: {' '.join(words)}"[:600]
                ),
                tree,
            )


class Guided:
    """A target as libFuzzer sees it: a function of bytes, the first of which selects the file."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder, self.place = target, folder, folder / "work"
        self.files = [
            (tree, name)
            for tree in target.trees
            for name, entry in tree.entries.items()
            if isinstance(entry, bytes)
        ]
        self.told = (folder / "outcomes").open("a", buffering=1)

    def corpus(self) -> Path:
        """Write the valid files as libFuzzer wants them."""
        (place := self.folder / "corpus").mkdir()
        for index, (tree, name) in enumerate(self.files[:250]):
            content = tree.entries[name]
            assert isinstance(content, bytes)
            (place / str(index)).write_bytes(bytes([index]) + content)
        return place

    def tree(self, data: bytes) -> Tree:
        """Put the bytes into the place of the file that they say."""
        tree, name = self.files[(data[0] if data else 0) % len(self.files)]
        content = data[1:]
        return Tree(
            {**tree.entries, name: content},
            refuse=self.target.never and content != tree.entries[name],
        )

    def __call__(self, data: bytes) -> None:
        tree = self.tree(data)
        (self.folder / "last").write_text(
            tree.text()
        )  # for the case that this process does not live on
        outcome = examine(self.target, tree, self.place)
        self.told.write(
            json.dumps({"outcome": asdict(outcome), "tree": None if outcome.well else tree.text()})
            + "\n"
        )

    def mutate(self, data: bytes, size: int, seed: int) -> bytes:
        """Change the file by libFuzzer's ways, which no archive's checksums survive, or by ours."""
        import atheris

        rng = random.Random(seed)
        if data[1:3] == b"PK" or rng.random() < 0.2:
            try:
                changed = data[:1] + of_file(data[1:], rng)
            except Exception:  # no archive any more
                changed = atheris.Mutate(data, size)
            return changed[:size]
        return atheris.Mutate(data, size)


def main(name: str, count: int, seed: int, folder: Path) -> None:
    """Be the process in which atheris works; it does not return."""
    import atheris

    target = all_targets()[name]
    for function in [found for found in gc.get_objects() if isinstance(found, FunctionType)]:
        if (function.__module__ or "").startswith(
            INSTRUMENTED
        ) and not function.__name__.startswith("__"):
            atheris.instrument_func(function)
    guided = Guided(target, folder)
    longest = max(
        len(content)
        for tree in target.trees
        for content in tree.entries.values()
        if isinstance(content, bytes)
    )
    options = [
        f"-atheris_runs={count}",
        f"-seed={seed}",
        f"-timeout={2 * SECONDS:.0f}",
        "-rss_limit_mb=0",
        f"-max_len={2 * longest + 1000}",
        f"-artifact_prefix={folder}/",
        str(guided.corpus()),
    ]
    confined()
    atheris.Setup([sys.argv[0], *options], guided, custom_mutator=guided.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
