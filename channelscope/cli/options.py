"""The options of the commands, each written once: name, kind of value, default and help.

An option has the name and the default of the Python functions' argument. A test compares them:
reading them from the functions here would import torch, for which ``--help`` has no time.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from channelscope.recipes import METHODS


def _read_number(
    text: str, read: Callable[[str], float], low: float, high: float, what: str
) -> Any:
    try:
        number = read(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = float("nan")
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    return int(_read_number(text, int, 1, 10**9, "a whole number from 1 up"))


def count(text: str) -> int:
    """Read a whole number from 0 up."""
    return int(_read_number(text, int, 0, 10**9, "a whole number from 0 up"))


def entry(text: str) -> int | str:
    """Read the number or the name of an entry."""
    return int(text) if text.isdecimal() else text


def seed(text: str) -> int:
    """Read a seed."""
    return int(_read_number(text, int, 0, 2**31 - 1, "a whole number from 0 to 2147483647"))


def share(text: str) -> float:
    """Read a share."""
    return float(_read_number(text, float, 0, 1, "a share between 0 and 1, such as 0.25"))


def radius(text: str) -> float:
    """Read a radius, such as 0.031 or 8/255."""

    def read(text: str) -> float:
        above, fraction, below = text.partition("/")  # the class Fraction would hang on 1e999999999
        return float(above) / (float(below) if fraction else 1.0)

    what = "a radius in [0, 1] image units, such as 0.031 or 8/255"
    return float(_read_number(text, read, 0, 1, what))


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        help: what it is.
        metavar: what stands for its value in the help; None for a flag, or where there are choices.
        read: makes a value of a word.
        default: as the Python function has it.
        unset: how the help names a default of None.
        flags: how it is typed; none for its name after two hyphens.
        settings: further arguments of ``add_argument``.
    """

    help: str
    metavar: str | None = None
    read: Callable[[str], Any] = str
    default: Any = None
    unset: str = ""
    flags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


_MANY = {"nargs": "+"}
_PAIRS = {"nargs": "+", "action": "extend"}
_ON = {"action": "store_true"}
_OFF = {"action": "store_false"}
_NORMALISATION = (
    "normalisation that foreign networks expect and their files lack: cifar10, pytorch-cifar, "
    "cifar100, imagenet, half, none, or MEAN;STD such as '0.5,0.5,0.5;0.25,0.25,0.25'"
)

OPTIONS: dict[str, Option] = {
    # Networks and images.
    "models": Option(
        "networks: files of any program, LABEL=FILE@ARCH where need be; zoo:NAME; torchvision:NAME "
        "or timm:NAME for published weights",
        "FILE",
        settings={"nargs": "+", "required": True},
    ),
    "arch": Option(
        "architecture of files from which it cannot be recognised: torchvision:NAME, timm:NAME, or "
        "FILE.py:NAME or package.module:NAME of a class or function of your own, which is run",
        "ARCH",
        unset="recognised",
    ),
    "arch_args": Option(
        "arguments for --arch, such as width=2", "NAME=VALUE", default=[], settings=_PAIRS
    ),
    "normalise": Option(
        f"{_NORMALISATION}; one for all networks, or LABEL=VALUE for each that needs one",
        "VALUE",
        default=[],
        unset="that of the file, if any",
        settings=_PAIRS,
    ),
    "labels": Option("names of the models", "NAME", unset="the file names", settings=_MANY),
    "output": Option(
        "which of several tensors that a network returns are the logits: its number, from 0 up, or "
        "its name",
        "ENTRY",
        entry,
        unset="the one with a column for each class",
    ),
    "methods": Option(
        "how models were trained whose checkpoints do not say so, such as mine=at",
        "LABEL=METHOD",
        default=(),
        settings=_MANY,
    ),
    "groups": Option(
        "networks of one method that differ in their seed, by patterns of their labels, such as "
        "AT=at-*; those whose recipes differ in the seed alone are found",
        "NAME=PATTERN",
        default=[],
        flags=("--group",),
        settings=_PAIRS,
    ),
    "data": Option(
        "digits, cifar10, svhn, fashion-mnist, mnist, imagefolder:DIR (train/ and test/, or val/, "
        "with a folder per class) or npz:FILE (train_images, train_labels, ...)",
        "NAME",
        unset="what the models were trained on",
    ),
    "data_root": Option("folder of downloaded data sets", "DIR", default="data"),
    "download": Option(
        "download the data set, or published weights, if they are missing",
        default=False,
        settings=_ON,
    ),
    "image_size": Option("scale and crop images to S x S", "S", positive),
    "stream": Option(
        "decode the images of a folder anew in every pass, instead of keeping those used in memory "
        "(default: if they would fill half of it)",
        settings={"action": argparse.BooleanOptionalAction},
    ),
    "images": Option("number of test images", "N", positive, unset="all"),
    # Attacks.
    "attack": Option(
        "attack that makes the adversarial data, see 'channelscope attacks'",
        "NAME",
        unset="the first of --attacks, of a suite pgd-20",
    ),
    "attacks": Option(
        "suites and attacks, see 'channelscope attacks'; the worst case per image counts",
        "NAME",
        settings=_MANY,
    ),
    "eps": Option(
        "radius of the attacks, such as 8/255", "E", radius, unset="that of the data's recipe"
    ),
    "norm": Option("norm of the attacks' ball", default="inf", settings={"choices": ("inf", "2")}),
    "eps_sweep": Option("further radii to measure at", "E", radius, (), settings=_MANY),
    "step_sweep": Option(
        "numbers of steps of the attack to measure after", "N", positive, (), settings=_MANY
    ),
    # What is measured.
    "layers": Option(
        "layers, or patterns such as 'layer4.*'", "NAME", unset="the penultimate", settings=_MANY
    ),
    "scorers": Option(
        "relevance scorers, see 'channelscope scorers'",
        "NAME",
        default=("gradient",),
        settings=_MANY,
    ),
    "threshold": Option(
        "a channel is active above this share of the image's largest channel",
        "SHARE",
        share,
        default=0.01,
    ),
    "thumbnails": Option(
        "keep no small pictures of the images that excite channels most",
        default=True,
        flags=("--no-thumbnails",),
        settings=_OFF,
    ),
    "checks": Option(
        "number of images to check for gradient masking on; 0: no checks", "N", count, default=128
    ),
    "cascade": Option(
        "give each attack only the images that withstood those before it: faster",
        default=False,
        settings=_ON,
    ),
    "save_adversarial": Option("keep the adversarial images", default=False, settings=_ON),
    "fractions": Option(
        "shares of the channels to suppress, or to put back, beside none and all",
        "SHARE",
        share,
        default=(0.125, 0.25, 0.5, 0.75),
        settings=_MANY,
    ),
    "adaptive": Option(
        "attack anew the network in which channels are put back", default=False, settings=_ON
    ),
    "bound": Option(
        "completeness error, as a share of the damage, above which an account is refused",
        "SHARE",
        share,
        default=0.02,
    ),
    "edges": Option(
        "number of images on which edges between consecutive layers are traced; 0: none",
        "N",
        count,
        default=0,
    ),
    "random": Option("number of random orders to compare with", "N", positive, default=3),
    "relevant_to": Option(
        "relevance to the class that the network answers, or to the true label (an oracle)",
        default="answer",
        settings={"choices": ("answer", "label")},
    ),
    # How it is computed, and where it goes.
    "seed": Option("seed of everything random", "S", seed, default=0),
    "replicates": Option("number of bootstrap replicates", "N", positive, default=500),
    "level": Option("coverage of the intervals", "SHARE", share, default=0.95),
    "batch_size": Option(
        "number of images read at a time; results do not depend on it", "N", positive, default=128
    ),
    "block": Option(
        "number of images that go through a network together: larger blocks are faster on a GPU; "
        "results differ as rounding does",
        "N",
        positive,
        unset="as many pixels as 128 images of 32x32",
    ),
    "device": Option(
        "auto (a GPU if there is one), cpu, cuda, cuda:1, mps, ...", "DEVICE", default="auto"
    ),
    "folder": Option(
        "folder for what the networks make of the images; it stays, and other commands with the "
        "same folder use it again",
        "DIR",
        unset="OUT.partial, removed at the end",
        flags=("--run-folder",),
    ),
    "all_figures": Option("draw all figures, not the main ones alone", default=False, settings=_ON),
    "formats": Option(
        "of the figures: pdf, png, svg", "NAME", default=("pdf", "png", "svg"), settings=_MANY
    ),
    "out": Option("folder to write", "DIR"),
    "json": Option("print the results as JSON", default=False, settings=_ON),
    "progress": Option(
        "show no progress bars", default=True, flags=("-q", "--quiet"), settings=_OFF
    ),
}
MEASURING = (
    "seed replicates level batch_size block device folder out all_figures formats json progress"
)
DATA = "data data_root download image_size stream"
NETWORK = "arch arch_args normalise"

# Of commands for a single network.
SINGLE = OPTIONS | {
    "normalise": Option(_NORMALISATION, "VALUE", unset="that of the file, if any"),
}

TRAINING = OPTIONS | {
    "method": Option(
        "train by the data's recipe for a method, see above",
        "METHOD",
        settings={"choices": tuple(METHODS)},
    ),
    "recipe": Option("a recipe, see 'channelscope recipes', or a .toml file", "NAME"),
    "set": Option("settings of the recipe to change", "NAME=VALUE", default=[], settings=_PAIRS),
    "images": Option("number of training images", "N", positive, unset="all"),
    "arch": Option(
        "resnet10, resnet18, resnet34, resnet50, anf-resnet18, vgg16 or wrn-28-10",
        "NAME",
        unset="the recipe's",
    ),
    "width": Option("channels of the first stage", "W", positive, unset="the recipe's"),
    "epochs": Option("passes over the data", "N", positive, unset="the recipe's"),
    "batch_size": Option("images per step", "N", positive, unset="the recipe's"),
    "lr": Option("highest learning rate", "RATE", float, unset="the recipe's"),
    "eps": Option(
        "radius of the training attack, such as 8/255", "E", radius, unset="the recipe's"
    ),
    "logs": Option(
        "logs beside the CSV: tensorboard, wandb (offline)", "NAME", default=(), settings=_MANY
    ),
    "plan": Option(
        "train nothing, but say what stages, hours and memory to expect here",
        default=False,
        settings=_ON,
    ),
    "init": Option(
        "network to begin with, of the same architecture: a file or zoo:NAME",
        "FILE",
        unset="random weights",
    ),
    "init_gates": Option("begin with the gates of --init, too", default=False, settings=_ON),
    "keep_epochs": Option(
        "keep a checkpoint of every N epochs, in half precision; 0: none", "N", count, default=0
    ),
    "resume": Option(
        "continue an interrupted run, or begin if there is none", default=False, settings=_ON
    ),
    "vary": Option("settings, and the values to train", "NAME=A,B", default=[], settings=_PAIRS),
    "seeds": Option("networks of each variant, with the seeds 0, 1, ...", "N", positive, default=1),
    "attack": Option("attack of the test, see 'channelscope attacks'", "NAME", default="pgd-20"),
    "test_eps": Option("radius of the test's attack", "E", radius, unset="the recipe's"),
    "test_images": Option("number of test images", "N", positive, unset="all"),
}
RECIPE = "set arch width epochs batch_size lr eps logs"

DRAWING = OPTIONS | {
    "style": Option("width and fonts of a paper: icml, neurips or ieee", "NAME"),
    "wide": Option("as wide as the paper's text, not one column", default=False, settings=_ON),
    "latex": Option(
        "let LaTeX set the text; captions.tex has the captions", default=False, settings=_ON
    ),
    "title": Option("write a title above, in a paper's style too", default=False, settings=_ON),
    "notes": Option(
        "write explanations below, in a paper's style too", default=False, settings=_ON
    ),
    "height": Option(
        "largest height of a figure, a share of the text's", "SHARE", share, unset="0.45"
    ),
    "models": Option(
        "models to draw, by label, in this order", "NAME", default=(), unset="all", settings=_MANY
    ),
    "labels": Option(
        "other names for these models", "NAME", default=(), unset="as they are", settings=_MANY
    ),
    "layers": Option(
        "layers to draw, or patterns: 'layer4*'", "NAME", default=(), unset="all", settings=_MANY
    ),
    "classes": Option(
        "classes to draw, in this order", "NAME", default=(), unset="all", settings=_MANY
    ),
    "only": Option(
        "claims (c1 to c5), kinds of figures (magnitude) or figures (magnitude-cat)",
        "NAME",
        default=(),
        unset="the main figures",
        settings=_MANY,
    ),
}


def add_options(
    parser: argparse._ActionsContainer,
    names: str,
    options: Mapping[str, Option] = OPTIONS,
    **defaults: Any,
) -> None:
    """Add options to a command.

    Args:
        parser: of the command, or a group of its options.
        names: the options' names, with spaces between them.
        options: where they are described.
        defaults: of this command, where they differ.
    """
    for name in names.split():
        option = options[name]
        flags = option.flags or (f"--{name.replace('_', '-')}",)
        default = defaults.get(name, option.default)
        settings = dict(option.settings) | {"dest": name, "default": default, "help": option.help}
        if option.metavar is not None:
            settings |= {"type": option.read, "metavar": option.metavar}
        if option.metavar is not None or "choices" in settings:
            values = default if isinstance(default, tuple | list) else (default,)
            shown = " ".join(str(value) for value in values if value is not None) or option.unset
            settings["help"] += f" (default: {shown})" if shown else ""
        parser.add_argument(*flags, **settings)
