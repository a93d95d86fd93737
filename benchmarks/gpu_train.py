"""Train AT and AT with CIFS on a lent GPU, in pieces: how fast it goes, and networks that a later call continues.

    python -m benchmarks.gpu_train DATA OUT --minutes 8 [--continue EARLIER] [--recipe SETTING] [--set NAME=VALUE ...]

DATA is an image folder (train/ and test/, a folder per class). Each method trains for its part of the minutes. Printed
and written to OUT/gpu_train.json are the seconds of an epoch (validation and logging included), training images a
second and the share of the device's peak, that of a large matrix product in the same precision, measured here.

OUT gets each run's state in half precision, in parts below 16 MB (at.pt.partial.000, ...), and of a run that is
complete its checkpoint (cat at.pt.0* > at.pt). Name OUT as EARLIER, and the next call goes on. Half precision rounds
weights and momentum: a run that was continued so ends near, not at, that of one piece.
"""

import argparse
import io
import json
import platform
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from channelscope.data import Dataset, load
from channelscope.training import Recipe, train
from channelscope.training.job import Job
from channelscope.training.recipes import parse_value
from channelscope.weights import build, versions
from channelscope.weights.tensors import load_tensors, save_tensors

PART = 15_000_000  # bytes


# ---------------------------------------------------------------- state in parts


def halved(value: Any, dtype: torch.dtype = torch.float16) -> Any:
    """Turn every float tensor within some plain values to a type, largest magnitudes kept finite."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.clamp(-6e4, 6e4).to(dtype)
    if isinstance(value, dict):
        return {key: halved(item, dtype) for key, item in value.items()}
    return [halved(item, dtype) for item in value] if isinstance(value, list) else value


def write_parts(file: Path, out: Path) -> None:
    """Write a file of tensors, in half precision, as OUT/NAME.000, .001, ..."""
    scratch = out / f"{file.name}.half"
    save_tensors(halved(load_tensors(file)), scratch)
    content = scratch.read_bytes()
    scratch.unlink()
    for old in out.glob(f"{file.name}.[0-9]*"):
        old.unlink()
    for number, start in enumerate(range(0, len(content), PART)):
        (out / f"{file.name}.{number:03}").write_bytes(content[start : start + PART])


def read_parts(earlier: Path, file: Path) -> None:
    """Put a file together again, in single precision."""
    parts = sorted(earlier.glob(f"{file.name}.[0-9]*"))
    if parts:
        whole = torch.load(
            io.BytesIO(b"".join(part.read_bytes() for part in parts)), weights_only=True
        )
        save_tensors(halved(whole, torch.float32), file)


# ---------------------------------------------------------------- measurements


def peak(device: str, precision: str) -> float:
    """Measure the floating-point operations a second of a large matrix product."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = now(device)
        for _ in range(10):
            a @ b
        best = max(best, 20 * n**3 / (now(device) - start))
    return best


def now(device: str) -> float:
    """Give the time when the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def operations(recipe: Recipe, data: Dataset, out: Path) -> float:
    """Count the floating-point operations of training on one image.

    With F those of a forward pass, counted by torch: 2 F for each step of the attack (forward, and backward to the
    image), and 3 F for the training step (forward, backward to the features, and to the weights).
    """
    job = Job(recipe, data, out / "counted.pt", 0)
    network = build(job.architecture, job.gates).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *data.test.image_shape))
    return counter.get_total_flops() * (2 * recipe.attack.steps + 3)


def trained(method: str, recipe: Recipe, data: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """Train one method until its time is over; give what was measured."""
    out = args.out / f"{method}.pt"
    partial = out.with_name(out.name + ".partial")
    if args.earlier:
        for file in (out, partial):
            read_parts(args.earlier, file)
        log = f"{out.name}.csv"
        if (args.earlier / log).exists():
            shutil.copy(args.earlier / log, args.out / log)
    before = next(
        (len(load_tensors(file)["meta"]["history"]) for file in (partial, out) if file.exists()), 0
    )
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes / 2)
    try:
        train(recipe, data, out=out, resume=True, device=args.device, progress=not args.quiet)
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    history = pd.read_csv(f"{out}.csv").to_dict("records") if Path(f"{out}.csv").exists() else []
    for file in (out, partial):
        if file.exists():
            write_parts(file, args.out)
            file.unlink()
    return summary(method, history[before:], history, recipe, data, args)


def summary(
    method: str,
    new: list[Any],
    history: list[Any],
    recipe: Recipe,
    data: Dataset,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Put a run's measurements together; the first epoch of a call, which warms up, counts only if it is alone."""
    assert data.train is not None
    timed = new[1:] or new
    row: dict[str, Any] = {
        "method": method,
        "epochs": len(history),
        "epochs_of_this_call": len(new),
    }
    if timed:
        seconds = sum(epoch["seconds"] for epoch in timed) / len(timed)
        per_image = operations(recipe, data, args.out)
        rate = len(data.train) / seconds
        row |= {
            "seconds_per_epoch": seconds,
            "images_per_second": rate,
            "flop_per_image": per_image,
            "share_of_peak": rate * per_image / peak(args.device, recipe.engine.precision),
            "last": history[-1],
        }
    return row


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="image folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="of training, shared by the methods (default: 8)"
    )
    parser.add_argument(
        "--continue", dest="earlier", type=Path, help="folder that an earlier call wrote"
    )
    parser.add_argument(
        "--recipe", default="cifar10-resnet18", help="setting (default: cifar10-resnet18)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the recipes"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load(f"imagefolder:{args.data}")
    changes = {
        name: parse_value(value) for name, _, value in (pair.partition("=") for pair in args.set)
    }
    rows = []
    for method in ("at", "cifs"):
        rows.append(
            trained(
                method, Recipe.named(f"{args.recipe}-{method}-fast").override(**changes), data, args
            )
        )
        print(json.dumps(rows[-1], indent=1))
    card = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else platform.processor() or "CPU"
    )
    assert data.train is not None
    made = {
        "device": card,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "images": len(data.train),
    }
    (args.out / "gpu_train.json").write_text(
        json.dumps(made | {"changes": changes, "runs": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
