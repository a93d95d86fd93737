"""Options that several commands have, and the kinds of their values."""

import argparse

from channelscope.recipes import METHODS

# What a scorer costs, as in relevance.COSTS, and what it says.
SCORERS = {
    "weights": ("0", "the last linear layer's weights; of the penultimate layer only"),
    "gradient": ("2", "how the class's logit changes with the activation"),
    "gradient-x-activation": ("2", "that times the activation"),
    "integrated-gradients": ("102 a layer", "that, integrated from the features of a black image"),
    "conductance": ("102 a layer", "the logit's change through the channel, from a black image"),
    "deeplift": (
        "6 a layer",
        "differences from a black image in place of gradients; refused where incomplete",
    ),
    "grad-cam": (
        "2",
        "Grad-CAM's weights: the gradient's spatial mean, which ranks as the gradient",
    ),
    "probe": ("1", "a gate's own relevance; of gated layers only"),
    "ablation": ("1 + 1 a channel", "how the logit falls when the channel is set to zero"),
    "ablation-mean": ("1 + 1 a channel", "... to its mean over the classes"),
    "ablation-class-mean": (
        "1 + 1 a channel",
        "... to its mean over the image's class: what its spread does",
    ),
}


def scorers() -> str:
    """List the scorers of relevance, as a part of the help."""
    lines = [f"  {name:<23}{cost:<17}{words}" for name, (cost, words) in SCORERS.items()]
    return "\n".join(
        [
            "scorers, and what they cost in forward passes of all images (one backward pass counts 1):",
            *lines,
        ]
    )


def methods() -> str:
    """List the training methods, as a part of the help."""
    return "\n".join(["methods:", *(f"  {name:<15}{text}" for name, text in METHODS.items())])


def add_training(parser: argparse.ArgumentParser, required: bool) -> None:
    """Say what is trained, on what and how; ``required``: the method or the recipe has to be named."""
    how = parser.add_mutually_exclusive_group(required=required)
    how.add_argument(
        "--method",
        metavar="METHOD",
        choices=METHODS,
        help="by the data's recipe: a method listed above",
    )
    how.add_argument(
        "--recipe",
        metavar="NAME",
        help="a recipe that 'channelscope recipes' lists, or a .toml file",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe's settings",
    )
    add_data(parser, "digits")
    parser.add_argument(
        "--images", type=positive, metavar="N", help="training images to use (default: all)"
    )
    parser.add_argument(
        "--arch", help="resnet10, resnet18, resnet34, resnet50 or wrn-28-10 (default: the recipe's)"
    )
    parser.add_argument(
        "--width",
        type=positive,
        metavar="W",
        help="planes of the first stage (default: the recipe's)",
    )
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="passes over the data (default: the recipe's)"
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="images per step (default: the recipe's)"
    )
    parser.add_argument("--lr", type=float, help="highest learning rate (default: the recipe's)")
    parser.add_argument(
        "--eps", type=eps, metavar="E", help="radius of the training attack, such as 8/255"
    )
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        metavar="NAME",
        help="beside the CSV: tensorboard, wandb (offline)",
    )


def add_data(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Say which images; None as the default: those that the models were trained on."""
    parser.add_argument(
        "--data",
        default=default,
        metavar="NAME",
        help="digits, cifar10, svhn, fashion-mnist, mnist, imagefolder:DIR (train/ and test/, a folder per class) or "
        f"npz:FILE (train_images, train_labels, ...) (default: {default or 'what the models were trained on'})",
    )
    add_data_root(parser)
    parser.add_argument("--download", action="store_true", help="fetch the set if it is not there")
    parser.add_argument(
        "--image-size", type=positive, metavar="S", help="scale and crop images to S x S"
    )
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="decode an image folder as it is needed, not at once (default: where it would fill half the memory)",
    )


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Say where data sets by name are looked for."""
    parser.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="where downloaded sets lie (default: data)",
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """Say which networks."""
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoints of networks, or zoo:NAME",
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="their names (default: the file names)"
    )


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Say which layers of them."""
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers, or patterns as 'layer4.*' (default: the penultimate)",
    )


def add_images(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Say on how many test images."""
    parser.add_argument(
        "--images",
        type=positive,
        default=default,
        metavar="N",
        help=f"test images to use, at most (default: {default or 'all'})",
    )


def add_attack(parser: argparse.ArgumentParser) -> None:
    """Say by which attack, and how far."""
    parser.add_argument(
        "--attack",
        default="pgd-20",
        help="fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, -l2 for L2 (default: pgd-20)",
    )
    parser.add_argument(
        "--eps",
        type=eps,
        metavar="E",
        help="radius of the attack (default: the recipe's, as 8/255)",
    )


def add_replicates(parser: argparse.ArgumentParser, default: int) -> None:
    """Say how often the images are drawn again, for the intervals."""
    parser.add_argument(
        "--replicates",
        type=positive,
        default=default,
        metavar="N",
        help="of the bootstrap (default: %(default)s)",
    )


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Say where the results go."""
    parser.add_argument(
        "--out", default=default, metavar="DIR", help="folder to write (default: %(default)s)"
    )


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Say how something is measured and told."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=128,
        metavar="N",
        help="images that are read at a time; results do not depend on it (default: 128)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Say what every command that computes is told."""
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of everything random (default: 0)"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Say where it is computed."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    add_quiet(parser)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Say whether there are progress bars."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    number = int(text) if text.isdecimal() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def count(text: str) -> int:
    """Read a whole number from 0 up."""
    return 0 if text == "0" else positive(text)


def seed(text: str) -> int:
    """Read a seed."""
    if not (text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999999999")
    return int(text)


def share(text: str) -> float:
    """Read a share between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1, such as 0.25")
    return number


def eps(text: str) -> float:
    """Read a radius, such as 0.031 or 8/255."""
    try:
        above, fraction, below = text.partition("/")  # the class Fraction would hang on 1e999999999
        eps = float(above) / (float(below) if fraction else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        eps = -1.0
    if not 0 <= eps <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no radius in [0, 1] image units, such as 0.031 or 8/255"
        )
    return eps
