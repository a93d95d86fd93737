"""The device to compute on: its choice, its random state, and the types that it lacks."""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from channelscope.distributed import started_by_torchrun
from channelscope.errors import UserError

_JOINABLE = ("cpu", "cuda")  # on which several processes can add up their numbers


def resolve_device(device: str = "auto") -> str:
    """Return the device to compute on.

    "auto" is the machine's accelerator, such as a CUDA GPU or Apple's MPS, or else the CPU. Under
    ``torchrun``, "cuda" is this process's own GPU.

    Raises:
        UserError: for a device that is not there, and one that processes cannot share.
    """
    if device == "auto":
        device = _find_accelerator()
    if started_by_torchrun():
        device = get_local_device(device)
    try:
        # "meta" makes tensors that hold nothing.
        torch.zeros(1, device=device).item()  # type: ignore[call-overload, unused-ignore]
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"There is no device {device!r} here: use cpu.") from error
    return device


def _find_accelerator() -> str:
    """Return the kind of the machine's accelerator, or "cpu"."""
    if not torch.accelerator.is_available():
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    kind = "cpu" if accelerator is None else accelerator.type
    return "cpu" if started_by_torchrun() and kind not in _JOINABLE else kind


def get_local_device(device: str) -> str:
    """Return the device of one of several processes: of "cuda", the GPU of its number here.

    A GPU with a number is for a machine's only process. Several would wait for one GPU, which NCCL
    refuses after minutes.

    Raises:
        UserError: for a GPU that processes would share, and for an accelerator other than CUDA.
    """
    kind, _, number = device.partition(":")
    if kind not in _JOINABLE:
        raise UserError(
            f"device: several processes compute on 'cpu' or 'cuda', not on {device!r}: start one "
            "process, or name one of these."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if number and kind != "cpu" and here > 1:
        raise UserError(
            f"device: the {here} processes of this machine would share {device!r}: with {kind!r} "
            "each gets a GPU of its own."
        )
    if number or kind == "cpu":
        return device
    gpus = torch.get_device_module(kind).device_count()
    if 0 < gpus < here:
        raise UserError(
            f"device: there are {here} processes for the {gpus} GPUs of this machine: start no "
            "more processes than GPUs, or use cpu."
        )
    return f"{kind}:{os.environ.get('LOCAL_RANK', '0')}"


def is_accelerator(device: torch.device | str) -> bool:
    """Return whether a device is a GPU or the like: work on it runs beside the program's."""
    return torch.device(device).type not in ("cpu", "meta")


def synchronise(device: torch.device | str) -> None:
    """Wait until a device has done what it was asked for."""
    if is_accelerator(device):
        torch.accelerator.synchronize(torch.device(device))


# ---------------------------------------------------------------- types


@cache
def _has_float64(kind: str) -> bool:
    try:
        return bool(torch.zeros(1, dtype=torch.float64, device=kind).sum() == 0)
    except (RuntimeError, TypeError):
        return False


def wide_dtype(device: torch.device | str) -> torch.dtype:
    """Return the type to add up numbers in: float64, or float32 where a device has no more.

    Apple's MPS has no 64-bit floats.
    """
    kind = torch.device(device).type
    return torch.float64 if kind == "meta" or _has_float64(kind) else torch.float32


def widen(numbers: Tensor) -> Tensor:
    """Return numbers in the widest type of their device."""
    return numbers.to(wide_dtype(numbers.device))


# ---------------------------------------------------------------- random numbers


@contextmanager
def fork_rng(*devices: torch.device | str, seed: int | None = None) -> Iterator[None]:
    """Restore at exit the states of torch's global generators, the CPU's and those of devices.

    Args:
        devices: whose generators are restored beside the CPU's, which may be named too.
        seed: what all of these are seeded with at the start; None to leave them as they are.
    """
    places = [torch.device(device) for device in devices if is_accelerator(device)]
    modules = [torch.get_device_module(place) for place in places]
    with torch.random.fork_rng(devices=[]):
        states = [
            module.get_rng_state(*_name(place, module.get_rng_state))
            for place, module in zip(places, modules, strict=True)
        ]
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                for place, module in zip(places, modules, strict=True):
                    _seed(place, module, seed)
            yield
        finally:
            for place, module, state in zip(places, modules, states, strict=True):
                module.set_rng_state(state, *_name(place, module.set_rng_state))


def list_seeded() -> Sequence[torch.device]:
    """Return the devices beside the CPU whose generators ``torch.manual_seed`` seeds at once.

    CUDA's are seeded at the first use of a GPU, until which there is nothing to restore.
    """
    if not torch.accelerator.is_available():
        return ()
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not _is_initialised(torch.get_device_module(accelerator)):
        return ()
    count = torch.get_device_module(accelerator).device_count()
    return [torch.device(accelerator.type, number) for number in range(count)]


def _is_initialised(module: ModuleType) -> bool:
    return not hasattr(module, "is_initialized") or module.is_initialized()


def _name(place: torch.device, function: object) -> tuple[torch.device, ...]:
    """Return the device as an argument, where a function of its module takes it: MPS's do not."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    return (place,) if "device" in parameters else ()


def _seed(place: torch.device, module: ModuleType, seed: int) -> None:
    """Seed a device's global generator, and no other's."""
    generators = getattr(module, "default_generators", None)
    if generators:
        generators[place.index or 0].manual_seed(seed)
    else:
        module.manual_seed(seed)
