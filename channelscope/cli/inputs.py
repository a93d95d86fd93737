"""What a command works on, as its options say: networks, data, the device."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from channelscope.errors import UserError

if TYPE_CHECKING:
    from channelscope.data import Dataset
    from channelscope.weights import Checkpoint


def models_of(args: argparse.Namespace) -> dict[str, "Checkpoint"]:
    """Read the checkpoints, by label."""
    from channelscope.weights import Checkpoint, zoo

    labels = args.labels or [zoo.get_label(path) for path in args.models]
    if len(labels) != len(args.models):
        raise UserError(
            f"There are {len(args.models)} models and {len(labels)} labels: give one label for each model."
        )
    if len(set(labels)) < len(labels):
        raise UserError("Two models have the same label: give each its own with --labels.")
    return {label: Checkpoint.read(path) for label, path in zip(labels, args.models, strict=True)}


def trained_on(checkpoints: Any) -> str:
    """Name the data set on which all of the checkpoints were trained."""
    from channelscope.data.sources import NAMES

    settings = [checkpoint.meta.get("settings") for checkpoint in checkpoints]
    names = {known["data"]["name"] if known else None for known in settings}
    name = names.pop()
    if names or name is None:
        raise UserError(
            "The models do not say that they were trained on one data set: name the data with --data."
        )
    if name.partition(":")[0] not in {known.partition(":")[0] for known in NAMES}:
        raise UserError(
            f"The models were trained on {name}, which cannot be found by that name: name the data with --data, as in "
            "--data cifar10 --download or --data imagefolder:DIR."
        )
    return str(name)


def data_of(args: argparse.Namespace, name: str) -> "Dataset":
    """Load the data of this name, as the options say."""
    from channelscope.data import load
    from channelscope.distributed import run_first

    with run_first() if args.download else nullcontext():  # one process fetches
        return load(
            name,
            root=Path(args.data_root),
            download=args.download,
            seed=args.seed,
            image_size=args.image_size,
            stream=args.stream,
        )


def device_of(args: argparse.Namespace) -> str:
    """Return the device to compute on."""
    from channelscope.distributed import resolve_device

    return resolve_device(args.device)
