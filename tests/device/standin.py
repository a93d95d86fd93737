"""The stand-in device in Python: its registration, its rules, and where a program waits for it.

It shows tensors on the wrong device, types that a device lacks and waits. It does not show speed,
NCCL, or what the kernels of a real device do.
"""

import ctypes
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import channelscope
from device.build import build

NAME = "standin"
_PACKAGE = str(Path(channelscope.__file__).parent)
_LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class Standin:
    """The device: two of it with the rules of CUDA, one without 64-bit floats with those of MPS."""

    def __init__(self) -> None:
        library = build()
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.standin_start()
        self._module = types.ModuleType(f"torch.{NAME}")
        self.seed = 0  # stands for the state of the device's random generator
        torch.utils.rename_privateuse1_backend(NAME)
        self.follow("cuda")
        torch._register_device_module(NAME, self._module)
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)

    def follow(self, rules: str) -> None:
        """Follow the rules of "cuda" or "mps"; torch.mps has fewer functions than torch.cuda."""
        self.rules, is_mps = rules, rules == "mps"
        self._library.standin_allow_float64(not is_mps)
        of_both = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1 if is_mps else 2,
            "manual_seed": self._set_seed,
            "manual_seed_all": self._set_seed,  # torch.manual_seed calls it
            "_is_in_bad_fork": lambda: False,
            "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        }
        of_mps = {
            "synchronize": lambda: None,
            "get_rng_state": self._get_state,
            "set_rng_state": self._set_state,
        }
        of_cuda = {
            "current_device": self._library.standin_current,
            "set_device": lambda device: self._library.standin_set_current(_index(device)),
            "synchronize": lambda device=None: None,
            "get_rng_state": lambda device=NAME: self._get_state(),
            "set_rng_state": lambda state, device=NAME: self._set_state(state),
            "mem_get_info": lambda device=None: (2**30, 2**31),
        }
        vars(self._module).update(dict.fromkeys(of_cuda))
        vars(self._module).update(of_both | (of_mps if is_mps else of_cuda))
        for name in [name for name, value in vars(self._module).items() if value is None]:
            delattr(self._module, name)

    def _set_seed(self, seed: int) -> None:
        self.seed = seed

    def _get_state(self) -> Tensor:
        return torch.tensor([self.seed], device="cpu")

    def _set_state(self, state: Tensor) -> None:
        self.seed = int(state)

    @contextmanager
    def count_waits(self) -> Iterator[Counter[str]]:
        """Count where the package waits for the device: "FILE:LINE (reason)"."""
        waits: Counter[str] = Counter()

        def listen(reason: bytes) -> None:
            waits[f"{_find_site()} ({reason.decode()})"] += 1

        listener = _LISTENER(listen)
        self._library.standin_listen(listener)
        try:
            yield waits
        finally:
            self._library.standin_listen(_LISTENER())


def _index(device: Any) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0


def _find_site() -> str:
    """Return the innermost line of the package; a backward pass runs in a thread without one."""
    frame = sys._getframe()
    main = sys._current_frames()[threading.main_thread().ident or 0]
    for start in (frame, main):
        at: types.FrameType | None = start
        while at is not None:
            if at.f_code.co_filename.startswith(_PACKAGE):
                return f"{at.f_code.co_filename[len(_PACKAGE) + 1 :]}:{at.f_lineno}"
            at = at.f_back
    return "outside"
