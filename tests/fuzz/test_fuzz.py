"""The fuzzing itself: a few inputs for every reader, and proof that forbidden acts are noticed."""

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def test_every_reader_survives_a_few_inputs() -> None:
    command = [
        sys.executable,
        str(HERE),
        "--inputs",
        "500",
        "--seed",
        "0",
        "--quick",
        "--jobs",
        "1",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=HERE.parent.parent
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "seed 0" in done.stdout


# ---------------------------------------------------------------- what a reader must not do


def _error(_: Path) -> None:
    raise KeyError("x")


def _sentence(_: Path) -> None:
    from channelscope.errors import UserError

    error = UserError("Fine.")
    error.args = ("Two\nlines.",)
    raise error


def _hang(_: Path) -> None:
    while True:
        time.sleep(1)


def _loop(_: Path) -> None:
    while True:
        pass


def _memory(_: Path) -> None:
    bytearray(3 * 2**30)


def _taken(_: Path) -> None:
    """Take more than a gigabyte, of shared memory, which no limit forbids."""
    with mmap.mmap(-1, 9 * 2**27) as held:
        for place in range(0, len(held), mmap.PAGESIZE):
            held[place] = 1


def _run(_: Path) -> None:
    os.system("true")


def _unpickled(_: Path) -> None:
    import pickle

    pickle.loads(b"cos\nsystem\n.")


def _outside(folder: Path) -> None:
    (folder.parent.parent / "outside").write_text("x")


def _crash(_: Path) -> None:
    os._exit(3)


def _let_in(_: Path) -> None:
    return


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "error": (_error, "error"),
    "sentence": (_sentence, "sentence"),
    "hang": (_hang, "hang"),
    "loop": (_loop, "hang"),
    "memory": (_memory, "memory"),
    "taken": (_taken, "memory"),
    "run": (_run, "breach"),
    "unpickled": (_unpickled, "breach"),
    "outside": (_outside, "breach"),
    "crash": (_crash, "crash"),
    "let in": (_let_in, "let in"),
}

NOTICED = """
import json, sys
sys.path[:0] = [{here!r}]
import test_fuzz
from targets import Target
from trees import Tree
from watch import watched

targets = {{name: Target((), reader) for name, (reader, _) in test_fuzz.FAULTS.items()}}
with watched(targets, seconds=2.0) as read:
    tree = Tree({{"in/x": b"x"}})
    kinds = {{name: read(name, Tree(tree.entries, name == "let in")).kind for name in targets}}
    print(json.dumps(kinds))
"""


def test_each_fault_of_a_reader_is_noticed() -> None:
    program = NOTICED.format(here=str(HERE))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {name: kind for name, (_, kind) in FAULTS.items()}


def test_an_input_can_be_kept_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    from trees import Link, Special, Tree

    tree = Tree(
        {"in/a\udcff\n": b"\0\xff", "in/link": Link("../outside/a"), "in/pipe": Special("fifo")},
        refuse=True,
    )
    assert Tree.of(tree.text()) == tree
    tree.write(tmp_path / "made")
    assert (tmp_path / "made" / "in" / "a\udcff\n").read_bytes() == b"\0\xff"
    assert (tmp_path / "made" / "in" / "link").is_symlink()
    assert (tmp_path / "made" / "in" / "pipe").is_fifo()
