"""What a newcomer should know of a training before it begins: stages, hours, memory."""

import argparse
import dataclasses
from collections.abc import Callable
from textwrap import fill
from typing import TYPE_CHECKING, Any

from channelscope.cli.printing import format_table

if TYPE_CHECKING:
    from channelscope.data import Dataset
    from channelscope.training.plan import Cost, Images

_WORDS = {"natural": "natural images", "adversarial": "adversarial images"}


def print_plan(
    args: argparse.Namespace, overrides: dict[str, Any], load: Callable[[], "Dataset"]
) -> None:
    """Measure and print what a training will take on this machine; train nothing."""
    from channelscope.training.plan import plan_training
    from channelscope.training.recipes import find_recipe

    images = _find_images(args, load)
    recipe = find_recipe(args.recipe or args.method, images.name).override(**overrides)
    print(
        format_plan(args.recipe or args.method, images, plan_training(recipe, images, args.device))
    )


def _find_images(args: argparse.Namespace, load: Callable[[], "Dataset"]) -> "Images":
    """Describe the images: those of --data, or of the data set in the recipe's name."""
    from channelscope.training.plan import KNOWN, describe_images

    of_recipe = [name for name in KNOWN if (args.recipe or "").startswith(f"{name}-")]
    name = of_recipe[0] if of_recipe and args.data == "digits" else args.data
    images = KNOWN[name] if name in KNOWN else describe_images(load())
    return images if args.images is None else dataclasses.replace(images, train=args.images)


def format_plan(recipe: str, images: "Images", costs: "list[Cost]") -> str:
    """Write a plan as a table and sentences."""
    rows = [("stage", "trained on", "epochs", "steps", "an epoch", "all", "memory")]
    for number, cost in enumerate(costs, 1):
        rows.append(
            (
                f"{number} of {len(costs)}",
                _WORDS.get(cost.loss, cost.loss),
                f"{cost.epochs}",
                f"{cost.steps:,}",
                _format_time(cost.seconds),
                _format_time(3600 * cost.hours),
                _format_bytes(cost.memory),
            )
        )
    hours = sum(cost.hours for cost in costs)
    size = " x ".join(map(str, images.shape))
    lines = [
        f"{recipe}: {images.train:,} training and {images.val:,} validation images of "
        f"{images.name}, {size}",
        "",
        format_table(rows, align="llrrrrr"),
        "",
        f"{_format_time(3600 * hours)} in all on this machine as busy as it is now, by single "
        "steps measured just now: a first guess. Memory is beside the 0.5 GB that Python and torch "
        f"take; a checkpoint takes {_format_bytes(costs[-1].disk)}, the state of a run three times "
        "as much.",
    ]
    if len(costs) > 1:
        lines.append(
            "The second stage begins with the weights of the first one's best epoch, which stays "
            "as OUT.before, and with a fresh optimiser."
        )
    lines.append(
        "A run that is stopped or killed goes on with --resume, after its last complete epoch. "
        "Shorter: a recipe that ends in -fast, fewer --epochs, --images, a smaller --width."
    )
    return "\n".join(line if "\n" in line else fill(line, 100) for line in lines)


def _format_time(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
