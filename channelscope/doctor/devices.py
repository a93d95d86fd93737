"""Processors: GPUs, cores and threads."""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from channelscope.doctor.lines import Line, size_of

DRIVER = Path("/proc/driver/nvidia/version")
CGROUP = Path("/sys/fs/cgroup")


def processors(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    """Tell what there is to compute on."""
    yield Line("cpu", f"{_processor()}, {_usable()} of {os.cpu_count() or '?'} cores usable")
    torch = loaded.get("torch", {"failure": "not tried"})
    if torch["failure"]:
        yield Line("gpu", "not known, as torch does not load")
        return
    for number, device in enumerate(torch["cuda"]):
        memory = f"{device['name']}, {size_of(device['free'])} of {size_of(device['total'])} free"
        failure = device["failure"]
        trouble = (
            f"cuda:{number} cannot be used ({failure}): try another torch, or --device cpu."
            if failure
            else ""
        )
        yield Line(
            f"cuda:{number}",
            f"{memory}, {torch['built for']}" + (f", {failure}" if failure else ""),
            trouble,
        )
    if not torch["cuda"]:
        yield _no_cuda(torch)
    yield Line("mps", "available: --device mps" if torch["mps"] else "none")


def _no_cuda(torch: dict[str, Any]) -> Line:
    """Say why there is no GPU to compute on: none in the machine, or one that torch cannot use."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return Line("cuda", "hidden by CUDA_VISIBLE_DEVICES")
    if not DRIVER.exists() and not torch["warnings"]:
        return Line("cuda", f"no GPU (torch is built for {torch['built for']})")
    words = torch["warnings"][0] if torch["warnings"] else "there is a driver of NVIDIA's"
    return Line(
        "cuda",
        f"none that torch can use: {words}",
        f"torch, built for {torch['built for']}, finds no GPU that it can use ({words}): update the driver, or install "
        "the torch that suits it, as https://pytorch.org has it.",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _usable() -> int:
    """Count the processors that this process may use; a container may be given the time of fewer."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        given, period = map(int, (CGROUP / "cpu.max").read_text("ascii").split())
    except (OSError, ValueError):
        return count
    return min(count, max(1, math.ceil(given / period)))


def threads(loaded: dict[str, dict[str, Any]]) -> Iterator[Line]:
    """Tell how many threads torch uses, and who has said so."""
    used, cores = loaded.get("torch", {}).get("threads"), _usable()
    trouble = ""
    if used and used > cores:
        trouble = f"torch uses {used} threads on {cores} cores, which is slow: set OMP_NUM_THREADS={cores}."
    yield Line("torch", "not known" if used is None else f"{used}, for {cores} cores", trouble)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name)
        number = value is None or value.replace(",", "").isdecimal()
        yield Line(
            name,
            "not set" if value is None else value if number else "set, to what is no number",
            ""
            if number
            else f"{name} is set to what is no number: unset it, or set it to {cores}.",
        )
