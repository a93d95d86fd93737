"""What each of several processes does for ``test_processes``: ``several.py FOLDER``, run by torchrun.

The one process that they are compared with uses the same functions. Shapes are checked there, for to check them takes
as long as all the rest.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any
from unittest.mock import patch

import torch
from channelscope.comparison import Comparison, compare
from channelscope.evaluation import evaluate
from channelscope.evaluation.progress import Progress
from channelscope.study.measurement import Measurement
from torch import Tensor, nn

import test_measurement
from channelscope import distributed, files
from channelscope.attacks import PGD
from channelscope.errors import UserError
from helpers import networks

SEED = 3
ATTACK = PGD(eps=0.1, steps=2, restarts=3)


# ---------------------------------------------------------------- measuring


def measured(**options: Any) -> Measurement:
    """Measure a network in three blocks, which two processes cannot share evenly."""
    torch.manual_seed(SEED)
    settings = {"attack": ATTACK, "layers": ("relu1", "relu2"), "seed": SEED}
    return test_measurement.measured(networks.plain(), **settings | options)


def compared() -> Comparison:
    """Compare networks in blocks of five."""
    torch.manual_seed(SEED)
    models, (x, _) = {"plain": networks.plain(), "gated": networks.gated()}, networks.images(20)
    data = (x, torch.arange(20) % networks.CLASSES)
    with patch("channelscope.data.blocks.MOST", 5):
        return compare(
            models,
            data,
            attack="pgd-2",
            attacks=["cw-2", "joint-sweep"],
            replicates=20,
            progress=False,
        )


@contextmanager
def slowly(path: Path) -> Iterator[Path]:
    """Replace a file, and take time for it."""
    with files.atomic_write(path) as temporary:
        sleep(1)
        yield temporary


class Late(Progress):
    """The record of an evaluation, at which all processes but the first look late: while it is being begun."""

    def __init__(self, *given: Any) -> None:
        if not distributed.is_first():
            sleep(0.5)
        super().__init__(*given)


def evaluated(out: Path | None = None) -> list[float]:
    """Evaluate a network; give the accuracies under the attacks."""
    torch.manual_seed(SEED)
    data = (networks.images(20)[0], torch.arange(20) % networks.CLASSES)
    given: dict[str, Any] = {
        "attacks": ["fgsm", "pgd-2"],
        "eps": 0.1,
        "checks": 0,
        "progress": False,
    }
    with (
        patch("channelscope.data.blocks.MOST", 5),
        patch("channelscope.evaluation.Progress", Late),
        patch("channelscope.evaluation.progress.replacing", slowly),
    ):
        return evaluate(networks.plain(), data, out=out, **given).table["robust"].tolist()


class Watching:
    """An attack of somebody else's, which knows nothing of other processes."""

    eps = 0.1

    def __init__(self) -> None:
        self.seeds: set[int] = set()

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        assert generator is not None
        self.seeds.add(generator.initial_seed())
        return x


def streamed() -> Measurement:
    """Measure images that stay on disk, which the first process writes there."""
    folder = Path(sys.argv[1]) / "images"
    with distributed.run_first():
        if distributed.is_first():
            test_measurement.write_images(folder)
    return measured(images=test_measurement.streamed(folder, workers=1))


def watched() -> set[int]:
    watching = Watching()
    measured(attack=watching)
    return watching.seeds


def progressed() -> list[int]:
    steps: list[int] = []
    measured(progress=steps.append)
    return steps


def too_few() -> str:
    try:
        measured(images=test_measurement.split().subset(torch.tensor([0])))
    except UserError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- the processes


def everything() -> dict[str, Any]:
    """Do all of the above in processes that have joined."""
    with distributed.join_processes("cpu"):
        found: dict[str, Any] = {
            "measured": measured(),
            "streamed": streamed(),
            "compared": compared(),
            "evaluated": evaluated(Path(sys.argv[1]) / "evaluation"),
        }
        found |= {
            "watched": watched(),
            "progressed": progressed(),
            "too few": too_few(),
        }
    return found


def main() -> None:
    """Write what this process found to FOLDER/NUMBER, pickled."""
    torch.set_num_threads(1)
    (Path(sys.argv[1]) / os.environ["RANK"]).write_bytes(pickle.dumps(everything()))


if __name__ == "__main__":
    main()
