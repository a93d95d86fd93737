"""What each of several processes does for ``test_distributed``: ``several.py FOLDER``, run by torchrun.

The one process that they are compared with uses the same functions. Shapes are checked there, for to check them takes
as long as all the rest.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import networks
import test_measurement
from channelscope import distributed, files
from channelscope.attacks import PGD
from channelscope.comparison import Comparison, compare
from channelscope.errors import UserError
from channelscope.evaluation import evaluate
from channelscope.evaluation.progress import Progress
from channelscope.study.measurement import Measurement

SEED = 3
NORMS = list(
    product((torch.float32, torch.float64), (0.1, None), (6, 7, 1))
)  # type, momentum, images
ATTACK = PGD(eps=0.1, steps=2, restarts=3)


# ---------------------------------------------------------------- batch normalisation


def batch(n: int, channels: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images or features of a whole batch, and the slope of the loss in what is made of them."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + 2 * torch.randn(n, channels, 5, 4, generator=generator, dtype=torch.float64)
    slope = torch.randn(n, channels, 5, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), slope.to(dtype)


def normalised(dtype: torch.dtype, momentum: float | None, n: int) -> dict[str, Tensor]:
    """Train a BatchNorm on this process's share of two batches of n images, and use it."""
    layer = nn.BatchNorm2d(3, momentum=momentum, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    layer = distributed.synchronise_batchnorm(layer)
    found = {}
    for step in range(2):
        x, slope = (whole[distributed.get_slice(n)] for whole in batch(n, 3, dtype, seed=step))
        x.requires_grad_()
        y = layer(x)
        (y * slope).sum().backward()
        found |= {f"output {step}": y.detach(), f"input's gradient {step}": x.grad}
    layer.eval()
    found["output in use"] = layer(x).detach()
    found |= {name: value.detach() for name, value in layer.state_dict().items()}
    return found | {
        f"{name}'s gradient": distributed.all_reduce(p.grad) for name, p in layer.named_parameters()
    }


def trained() -> dict[str, Tensor]:
    """Give the gradients, and the statistics after a step, of a network trained on shares of seven images."""
    torch.manual_seed(SEED)
    net = distributed.synchronise_batchnorm(networks.resnet().double().train())
    x, y = networks.images(7, dtype=torch.float64)
    own = distributed.get_slice(7)
    nn.functional.cross_entropy(net(x[own]), y[own], reduction="sum").backward()
    gradients = {name: distributed.all_reduce(p.grad) for name, p in net.named_parameters()}
    return gradients | {name: value.double() for name, value in net.named_buffers()}


def in_half() -> Tensor:
    """Normalise features of half precision, in training."""
    x, _ = batch(600, 3, torch.bfloat16, seed=0)
    return distributed.synchronise_batchnorm(nn.BatchNorm2d(3))(
        x[distributed.get_slice(600)]
    ).detach()


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


def told() -> dict[str, Any]:
    """Try what processes tell each other."""
    own = distributed.rank()
    rows = torch.arange(10.0).view(5, 2)
    return {
        "who": (own, distributed.world_size(), distributed.is_first()),
        "shares": [distributed.get_slice(n) for n in (0, 1, 7, 8)],
        "total": distributed.all_reduce(torch.tensor([[1.5, -2.0]]) * (own + 1)),
        "total of whole numbers": distributed.all_reduce(torch.tensor(2**40 + own)),
        "everyone's": distributed.all_gather(rows[distributed.get_slice(5)]),
        "everyone's hits": distributed.all_gather(
            torch.tensor([True, False, True])[distributed.get_slice(3)]
        ),
        "everyone's, the first's none": distributed.all_gather(rows[distributed.get_slice(1)]),
        "everyone's none": distributed.all_gather(rows[:0]),
        "dealt": distributed.shard(range(5)),
        "words": distributed.all_gather_words([f"of {own}", "of both: é"]),
        "after the first": after_the_first(),
    }


def after_the_first() -> bool:
    """Tell whether what the first process makes, slowly, is there for this one."""
    made = Path(sys.argv[1]) / "made"
    with distributed.run_first():
        if distributed.is_first():
            sleep(0.3)
            made.touch()
        return made.exists()


def everything() -> dict[str, Any]:
    """Do all of the above in processes that have joined."""
    with distributed.join_processes("cpu"):
        found: dict[str, Any] = {f"batchnorm {case}": normalised(*case) for case in NORMS}
        found |= {
            "network": trained(),
            "half": in_half(),
            "measured": measured(),
            "streamed": streamed(),
            "compared": compared(),
            "evaluated": evaluated(Path(sys.argv[1]) / "evaluation"),
        }
        found |= {
            "watched": watched(),
            "progressed": progressed(),
            "too few": too_few(),
            "told": told(),
        }
    return found | {"left": (distributed.rank(), distributed.world_size())}


def main() -> None:
    """Write what this process found to FOLDER/NUMBER, pickled."""
    torch.set_num_threads(1)
    (Path(sys.argv[1]) / os.environ["RANK"]).write_bytes(pickle.dumps(everything()))


if __name__ == "__main__":
    main()
