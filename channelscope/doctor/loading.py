"""Compiled packages loaded by another process, which may crash or hang: what is amiss with them, and what torch finds.

``python -m channelscope.doctor.loading PACKAGE ...`` is that process.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from channelscope.doctor.lines import reason_of

# Packages with compiled parts, which may be there and yet not load; their modules' names where these differ.
COMPILED = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "torch", "torchvision")
MODULES = {"scikit-learn": "sklearn"}
PATIENCE = 120  # seconds for loading them all: a cold disk takes half of it


def load_apart() -> dict[str, dict[str, Any]]:
    """Load the compiled packages in another process, which may crash or hang: package -> what is known of it.

    Of every package `failure` is known, empty where it loads; of torch also what devices and threads it finds.
    """
    command = [sys.executable, "-P", "-m", "channelscope.doctor.loading", *COMPILED]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    }  # finds what we find
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        said, ending = done.stdout, _ending(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        said, ending = error.stdout or b"", f"no answer in {PATIENCE} seconds"
    except OSError as error:
        said, ending = b"", reason_of(error)
    known: dict[str, dict[str, Any]] = {}
    for line in said.decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition("\t")
        if name in COMPILED and rest.startswith("{"):  # packages may talk as well
            known[name] = json.loads(rest)
    if missing := [name for name in COMPILED if name not in known]:
        known[missing[0]] = {"failure": ending}  # those behind it were not tried
    return known


def _ending(code: int, words: bytes) -> str:
    status = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    last = (words.decode("utf-8", "replace").strip().splitlines() or [""])[-1].strip()[:300]
    return f"the process that loads it ended with {status}" + (f": {last}" if last else "")


def _load(package: str) -> dict[str, Any]:
    """Load a package, here; and ask torch what it finds."""
    try:
        importlib.import_module(MODULES.get(package, package))
        return {"failure": ""} | (_ask_torch() if package == "torch" else {})
    except Exception as error:
        return {"failure": reason_of(error)}


def _ask_torch() -> dict[str, Any]:
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "built for": _built_for(torch.version.cuda, torch.version.hip),
        "cuda": [_ask_device(torch, number) for number in range(torch.cuda.device_count())]
        if cuda
        else [],
        "mps": torch.backends.mps.is_available(),
        "warnings": [" ".join(str(warning.message).split())[:300] for warning in caught],
    }


def _built_for(cuda: str | None, rocm: str | None) -> str:
    return f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "the CPU alone"


def _ask_device(torch: Any, number: int) -> dict[str, Any]:
    """Tell a GPU's name and memory, and compute something on it."""
    device = f"cuda:{number}"
    try:
        known = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        answer = float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum())
        failure = "" if answer == 512 else f"it computes {answer} where 512 is right"
        return {"name": known.name, "free": free, "total": total, "failure": failure}
    except Exception as error:
        return {"name": device, "free": 0, "total": 0, "failure": reason_of(error)}


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        sys.stdout.write(f"{wanted}\t{json.dumps(_load(wanted))}\n")
        sys.stdout.flush()
