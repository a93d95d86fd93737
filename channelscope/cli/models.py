"""How commands name networks: ``LABEL=FILE@ARCH``, of which all but the file may be left out."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from channelscope.errors import UserError, escape

if TYPE_CHECKING:
    from channelscope.weights import Checkpoint


class Name(NamedTuple):
    """What names a network: its file or library's name, and label and architecture, or None."""

    path: str
    label: str | None
    arch: str | None


def parse_name(text: str) -> Name:
    """Take a network's name apart; a file that exists is meant as such, whatever is in its name.

    >>> parse_name("at=nets/r50.pth@torchvision:resnet50")
    Name(path='nets/r50.pth', label='at', arch='torchvision:resnet50')
    >>> parse_name("nets/r50.pth")
    Name(path='nets/r50.pth', label=None, arch=None)
    """
    if Path(text).exists():
        return Name(text, None, None)
    label, equals, rest = text.partition("=")
    if not equals or not label or "@" in label:
        label, rest = "", text
    path, at, arch = rest.rpartition("@")
    if not at or not path or Path(rest).exists():
        path, arch = rest, ""
    return Name(path, label or None, arch or None)


def read_models(args: argparse.Namespace) -> dict[str, "Checkpoint"]:
    """Read the networks of a command, by label, and say as what foreign ones were recognised."""
    from channelscope.distributed import is_first
    from channelscope.weights import zoo
    from channelscope.weights.loading import describe_network

    names = [parse_name(text) for text in args.models]
    labels = args.labels or [name.label or zoo.get_label(name.path) for name in names]
    if len(labels) != len(names):
        raise UserError(
            f"There are {len(names)} models and {len(labels)} labels: name one label for each "
            "model."
        )
    if len(set(labels)) < len(labels):
        raise UserError("Two models have the same label: name different ones with --labels.")
    models = {}
    for label, name in zip(labels, names, strict=True):
        models[label] = read_model(args, name)
        # A checkpoint that was converted records another file, and was described then.
        is_foreign = models[label].meta.get("file") in (name.path, Path(name.path).name)
        if is_foreign and is_first():
            kind = describe_network(models[label])
            print(escape(f"{label}: recognised: {kind}"), file=sys.stderr)
    return models


def read_model(args: argparse.Namespace, name: Name) -> "Checkpoint":
    """Read one network, by the options that say how."""
    from channelscope.weights.loading import read_network

    return read_network(
        name.path,
        name.arch or args.arch,
        arch_args=read_arch_args(args),
        normalise=args.normalise,
        download=args.download,
    )


def read_arch_args(
    args: argparse.Namespace,
) -> dict[str, "bool | int | float | str | tuple[int, ...]"]:
    """Read the arguments of the architecture, each NAME=VALUE."""
    from channelscope.weights.loading import parse_args

    for pair in args.arch_args:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UserError(
                f"--arch-args: {pair!r} sets nothing: write NAME=VALUE, such as width=2."
            )
    return parse_args(
        {name: value for name, _, value in (p.partition("=") for p in args.arch_args)}
    )
