"""What each of several processes does for ``test_distributed``: ``python -m helpers.joined``.

``everything FOLDER`` writes what a process finds to FOLDER/RANK, pickled. ``lost-backward FOLDER``
and ``lost-gather FOLDER`` lose a process, and write what the others are told. The single process
that they are compared with uses the same functions.
"""

import os
import pickle
import signal
import sys
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import Tensor, nn

from channelscope import distributed
from channelscope.errors import UserError
from helpers import networks

SEED = 3
# Type, momentum, images.
NORMS = list(product((torch.float32, torch.float64), (0.1, None), (6, 7, 1)))
# What both processes share, and by a name of the case what one process or both have of their own.
SHARED = {"the images": "ab", "the settings": "pgd-20 é\0", "the weights of at": "cd"}
JOBS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}),
    "the weights of at": ({}, {"the weights of at": "ce"}),
    "the images and the weights of at": ({"the images": "ac"}, {"the weights of at": ""}),
    "the weights of cifs": ({}, {"the weights of cifs": "ef"}),
}


# ---------------------------------------------------------------- batch normalisation


def batch(n: int, channels: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features of a whole batch, and the loss's slope in what is made of them."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + 2 * torch.randn(n, channels, 5, 4, generator=generator, dtype=torch.float64)
    slope = torch.randn(n, channels, 5, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), slope.to(dtype)


def normalise(dtype: torch.dtype, momentum: float | None, n: int) -> dict[str, Tensor]:
    """Train a BatchNorm on this process's share of two batches of n images, and use it."""
    layer = nn.BatchNorm2d(3, momentum=momentum, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    layer = distributed.synchronise_batchnorm(layer)
    results = {}
    for step in range(2):
        x, slope = (whole[distributed.get_slice(n)] for whole in batch(n, 3, dtype, seed=step))
        x.requires_grad_()
        y = layer(x)
        (y * slope).sum().backward()
        results |= {f"output {step}": y.detach(), f"input's gradient {step}": x.grad}
    layer.eval()
    results["output in use"] = layer(x).detach()
    results |= {name: value.detach() for name, value in layer.state_dict().items()}
    gradients = {name: distributed.all_reduce(p.grad) for name, p in layer.named_parameters()}
    return results | {f"{name}'s gradient": value for name, value in gradients.items()}


def train_network() -> dict[str, Tensor]:
    """Return a network's gradients and statistics after a step on shares of seven images."""
    torch.manual_seed(SEED)
    net = distributed.synchronise_batchnorm(networks.resnet().double().train())
    x, y = networks.images(7, dtype=torch.float64)
    share = distributed.get_slice(7)
    nn.functional.cross_entropy(net(x[share]), y[share], reduction="sum").backward()
    gradients = {name: distributed.all_reduce(p.grad) for name, p in net.named_parameters()}
    return gradients | {name: value.double() for name, value in net.named_buffers()}


def normalise_half() -> Tensor:
    """Normalise features of half precision, in training."""
    x, _ = batch(600, 3, torch.bfloat16, seed=0)
    layer = distributed.synchronise_batchnorm(nn.BatchNorm2d(3))
    return layer(x[distributed.get_slice(600)]).detach()


# ---------------------------------------------------------------- exchanges


def exchange() -> dict[str, Any]:
    """Try what processes exchange."""
    rank = distributed.rank()
    rows = torch.arange(10.0).view(5, 2)
    flags = torch.tensor([True, False, True])
    return {
        "who": (rank, distributed.world_size(), distributed.is_first()),
        "slices": [distributed.get_slice(n) for n in (0, 1, 7, 8)],
        "sum": distributed.all_reduce(torch.tensor([[1.5, -2.0]]) * (rank + 1)),
        "sum of whole numbers": distributed.all_reduce(torch.tensor(2**40 + rank)),
        "rows": distributed.all_gather(rows[distributed.get_slice(5)]),
        "flags": distributed.all_gather(flags[distributed.get_slice(3)]),
        "rows of the second alone": distributed.all_gather(rows[distributed.get_slice(1)]),
        "no rows": distributed.all_gather(rows[:0]),
        "shard": distributed.shard(range(5)),
        "words": distributed.all_gather_words([f"of {rank}", "of both: é"]),
        "no words": distributed.all_gather_words([]),
    }


def wait_for_first(folder: Path) -> bool:
    """Return whether what the first process makes, slowly, is there for this one."""
    file = folder / "made"
    with distributed.run_first():
        if distributed.is_first():
            sleep(0.3)
            file.touch()
        return file.exists()


def check_jobs() -> dict[str, str]:
    """Return what each pair of jobs is answered with."""
    answers = {}
    for case, jobs in JOBS.items():
        try:
            distributed.check_same(SHARED | jobs[distributed.rank()])
            answers[case] = ""
        except UserError as error:
            answers[case] = str(error)
    return answers


def do_everything(folder: Path) -> dict[str, Any]:
    """Do all of the above in processes that have joined."""
    with distributed.join_processes("cpu"):
        results: dict[str, Any] = {f"batchnorm {case}": normalise(*case) for case in NORMS}
        results |= {"network": train_network(), "half": normalise_half(), "exchange": exchange()}
        results |= {"after the first": wait_for_first(folder), "jobs": check_jobs()}
    return results | {"afterwards": (distributed.rank(), distributed.world_size())}


def lose_process(work: str) -> str:
    """Let the second process be killed, or stop, as the first works; return what that is told."""
    x = torch.arange(24.0).view(2, 3, 2, 2).requires_grad_()
    try:
        with distributed.join_processes("cpu"):
            y = distributed.synchronise_batchnorm(nn.BatchNorm2d(3))(x)
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP if work == "stopped" else signal.SIGKILL)
            if work == "lost-backward":
                y.sum().backward()
            else:
                distributed.all_gather(y)
    except distributed.ProcessLost as error:
        return str(error)
    return "nothing"


def main() -> None:
    work, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    file = folder / os.environ["RANK"]
    if work == "everything":
        file.write_bytes(pickle.dumps(do_everything(folder)))
    else:
        file.write_text(lose_process(work))


if __name__ == "__main__":
    main()
