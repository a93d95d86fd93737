"""Training by several processes, for ``test_engine``: ``together.py FOLDER NUMBER PORT PORT``.

It is started once for each process; the one that they are compared with uses the same functions.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from channelscope import distributed
from helpers.expect import mistake
from helpers.runs import interrupted, run

# Rounding in 64 bits does not grow to 1e-9 in a few steps.
EXACT: dict[str, Any] = {"precision": "fp64", "crop": 1, "flip": True}
# Batches of 16 and a last one of 15 images, which two processes cannot share evenly.
UNEVEN = EXACT | {"images": 47}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "at": ("at", UNEVEN),
    "cifs": ("cifs", UNEVEN | {"averaging.kind": "swa", "averaging.start": 0}),
    "wat": (
        "wat",
        UNEVEN | {"averaging.kind": "ema", "averaging.decay": 0.7, "nesterov": True},
    ),
}
CHAIN: tuple[str, dict[str, Any]] = (
    "mart-cifs",
    UNEVEN | {"epochs": 3, "averaging.kind": "ema", "decay": 0.5},
)
# Of the last batch, of two images, the first of three processes gets nothing.
FEW: tuple[str, dict[str, Any]] = (
    "trades-cifs",
    EXACT | {"images": 38, "batch_size": 18, "epochs": 1},
)


def trained(folder: Path, case: str) -> Path:
    method, changes = CASES.get(case, FEW if case == "few" else CHAIN)
    run(method, folder / f"{case}.pt", **changes)
    return folder / f"{case}.pt"


def stopped(out: Path, at: int, **options: Any) -> None:
    """Begin or go on until a Ctrl-C, which every process gets, at some step."""
    method, changes = CHAIN
    interrupted(method, out, at, **changes, **options)


def main() -> None:
    """Train in FOLDER, two processes first, and then with a third."""
    folder, number, *ports = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=number)
    if int(number) < 2:
        os.environ.update(WORLD_SIZE="2", MASTER_PORT=ports[0])
        with distributed.join_processes("cpu"):
            for case in CASES:
                trained(Path(folder), case)
            stopped(Path(folder) / "chain.pt", 4, resume=True)
            with mistake("do not share one job", "the seed differ between processes 0 and 1"):
                run("at", Path(folder) / "different.pt", seed=int(number))
    os.environ.update(WORLD_SIZE="3", MASTER_PORT=ports[1])
    with distributed.join_processes("cpu"):
        trained(Path(folder), "few")


if __name__ == "__main__":
    main()
