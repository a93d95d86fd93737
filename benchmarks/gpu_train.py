"""Train AT and AT with CIFS on a lent GPU, in pieces that a later call continues, and time it.

    python -m benchmarks.gpu_train DATA OUT --minutes 8 [--continue EARLIER] [--recipe SETTING]
        [--set NAME=VALUE ...]

DATA is an image folder (train/ and test/, a folder per class). Each method trains for its part of
the minutes. Printed and written to OUT/gpu_train.json are the seconds of an epoch (validation and
logging included), training images a second and the share of the device's peak, that of a large
matrix product in the same precision, measured here.

OUT gets each run's state in half precision, in parts below 16 MB (at.pt.partial.000, ...), and of a
run that is complete its checkpoint (cat at.pt.0* > at.pt). Name OUT as EARLIER, and the next call
goes on. Half precision rounds weights and momentum: a run that was continued so ends near, not at,
that of one piece.
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

PART_BYTES = 15_000_000


# ---------------------------------------------------------------- state in parts


def convert(value: Any, dtype: torch.dtype) -> Any:
    """Convert every float tensor within plain values, the largest magnitudes finite."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.clamp(-6e4, 6e4).to(dtype)
    if isinstance(value, dict):
        return {key: convert(item, dtype) for key, item in value.items()}
    return [convert(item, dtype) for item in value] if isinstance(value, list) else value


def write_parts(file: Path, out: Path) -> None:
    """Write a file of tensors, in half precision, as OUT/NAME.000, .001, ..."""
    temporary = out / f"{file.name}.half"
    save_tensors(convert(load_tensors(file), torch.float16), temporary)
    content = temporary.read_bytes()
    temporary.unlink()
    for old in out.glob(f"{file.name}.[0-9]*"):
        old.unlink()
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        (out / f"{file.name}.{number:03}").write_bytes(content[start : start + PART_BYTES])


def read_parts(earlier: Path, file: Path) -> None:
    """Put a file together again, in single precision."""
    parts = sorted(earlier.glob(f"{file.name}.[0-9]*"))
    if parts:
        content = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        save_tensors(convert(torch.load(content, weights_only=True), torch.float32), file)


# ---------------------------------------------------------------- measurements


def measure_peak(device: str, precision: str) -> float:
    """Measure the floating-point operations a second of a large matrix product."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = read_clock(device)
        for _ in range(10):
            a @ b
        best = max(best, 20 * n**3 / (read_clock(device) - start))
    return best


def read_clock(device: str) -> float:
    """Return the time when the device has done all that it was sent."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def count_operations(recipe: Recipe, data: Dataset, out: Path) -> float:
    """Count the floating-point operations of training on one image.

    With F those of a forward pass, counted by torch: 2 F for each step of the attack (forward, and
    backward to the image), and 3 F for the training step (forward, backward to the features, and to
    the weights).
    """
    job = Job(recipe, data, out / "counted.pt", 0)
    network = build(job.architecture, job.gates).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *data.test.image_shape))
    return counter.get_total_flops() * (2 * recipe.attack.steps + 3)


def train_method(
    method: str, recipe: Recipe, data: Dataset, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one method until its time is over; return what was measured."""
    out = args.out / f"{method}.pt"
    log = Path(f"{out}.csv")
    files = [out.with_name(f"{out.name}.partial"), out]
    if args.earlier:
        for file in files:
            read_parts(args.earlier, file)
        if (args.earlier / log.name).exists():
            shutil.copy(args.earlier / log.name, log)
    states = [load_tensors(file) for file in files if file.exists()]
    before = len(states[0]["meta"]["history"]) if states else 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes / 2)
    try:
        train(recipe, data, out=out, resume=True, device=args.device, progress=not args.quiet)
    except KeyboardInterrupt:
        pass  # the time is over
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    history = pd.read_csv(log).to_dict("records") if log.exists() else []
    for file in files:
        if file.exists():
            write_parts(file, args.out)
            file.unlink()
    new = history[before:]
    report = {"method": method, "epochs": len(history), "epochs_of_this_call": len(new)}
    if new:
        report |= summarise(new, recipe, data, args) | {"last": history[-1]}
    return report


def summarise(
    epochs: list[Any], recipe: Recipe, data: Dataset, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the speed of epochs; the first one, which warms up, counts only if it is alone."""
    assert data.train is not None
    timed = epochs[1:] or epochs
    seconds = sum(epoch["seconds"] for epoch in timed) / len(timed)
    operations = count_operations(recipe, data, args.out)
    rate = len(data.train) / seconds
    return {
        "seconds_per_epoch": seconds,
        "images_per_second": rate,
        "flop_per_image": operations,
        "share_of_peak": rate * operations / measure_peak(args.device, recipe.engine.precision),
    }


def main() -> None:
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
        "--recipe", default="cifar10-resnet18", help="setting (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the recipes"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load(f"imagefolder:{args.data}")
    pairs = [pair.partition("=") for pair in args.set]
    changes = {name: parse_value(value) for name, _, value in pairs}
    runs = []
    for method in ("at", "cifs"):
        recipe = Recipe.named(f"{args.recipe}-{method}-fast").override(**changes)
        runs.append(train_method(method, recipe, data, args))
        print(json.dumps(runs[-1], indent=1))
    on_gpu = args.device.startswith("cuda")
    assert data.train is not None
    report = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "images": len(data.train),
        "changes": changes,
        "runs": runs,
    }
    (args.out / "gpu_train.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
