"""In which precision and layout a training is computed, and which precision is faster here."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from channelscope import distributed
from channelscope.devices import fork_rng, is_accelerator, synchronise, wide_dtype
from channelscope.errors import UserError
from channelscope.weights import build

if TYPE_CHECKING:
    from channelscope.training.job import Job

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SECONDS = 1.0  # to measure for
_TRIAL = 8  # images of a measured step on a CPU; a GPU needs a whole batch to be itself
# So much faster must half precision be to be taken: its rounding costs something, too.
_GAIN = 1.1
_FEWEST_CHANNELS = 8


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Compute in a precision of the recipe's; ``nullcontext`` for whole ones."""
    dtype = _HALF.get(precision)
    if dtype is None:
        return nullcontext()
    # The cache would keep the weights as they were before the first step.
    return torch.autocast(torch.device(device).type, dtype, cache_enabled=False)


def choose_layout(network: nn.Module, device: str) -> torch.memory_format:
    """Return in which order convolutions keep their numbers: channels last, which is faster.

    But on a CPU not where a strided 1x1 convolution has fewer than 8 input channels: for the
    gradient of its weights oneDNN then writes past the end of its memory (torch 2.14.1).
    """
    unsafe = torch.device(device).type == "cpu" and any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels < _FEWEST_CHANNELS
        for layer in network.modules()
    )
    return torch.contiguous_format if unsafe else torch.channels_last


def pick_precision(speeds: dict[str, float]) -> str:
    """Return "bf16" where it is faster than "fp32" by a tenth, else "fp32".

    >>> pick_precision({"fp32": 100.0, "bf16": 190.0})
    'bf16'
    >>> pick_precision({"fp32": 100.0, "bf16": 11.0})
    'fp32'
    """
    return "bf16" if speeds["bf16"] > _GAIN * speeds["fp32"] else "fp32"


def choose_precision(job: "Job", device: str) -> "Job":
    """Return a run whose precision is decided: of "auto", the faster one of fp32 and bf16 here.

    Where several processes are joined, they decide together.
    """
    if job.dtype == torch.float64 and wide_dtype(device) != torch.float64:
        raise UserError(
            f"precision: {device} has no 64-bit floats for 'fp64': use fp32, or device cpu."
        )
    if job.recipe.engine.precision != "auto":
        return job
    return replace(job, speeds=measure_speeds(job, device))


def measure_speeds(job: "Job", device: str) -> dict[str, float]:
    """Measure steps of the training in fp32 and in bf16, in turn, for about a second.

    A step is the loss of a few random images and its gradient: what the attack takes, too. Of each
    precision the fastest step counts, as others use the machine as well.

    Returns:
        The images a second of one process, by precision.
    """
    batch_size = job.recipe.optimizer.batch_size // distributed.world_size()
    images = batch_size if is_accelerator(device) else min(_TRIAL, batch_size)
    with fork_rng(device):
        with torch.device("cpu"):
            network = build(job.architecture, job.gates)
        x = torch.rand(images, *job.image_shape, device=device)
        layout = choose_layout(network, device)
        network = network.to(device).to(memory_format=layout).train()
        y = torch.arange(images, device=device) % job.architecture.classes
        seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
        start = perf_counter()
        # The first round pays for what is done once.
        while len(seconds["bf16"]) < 2 or perf_counter() - start < _SECONDS:
            for precision, times in seconds.items():
                before = perf_counter()
                with autocast(precision, device):
                    job.loss(network, x, x, y).mean().backward()
                synchronise(device)
                times.append(perf_counter() - before)
    fastest = torch.tensor(
        [min(times[1:]) for times in seconds.values()], dtype=torch.float64, device="cpu"
    )
    means = distributed.all_reduce(fastest) / distributed.world_size()
    return dict(zip(seconds, (images / means).tolist(), strict=True))
