"""How commands name networks: ``LABEL=FILE@ARCH``, of which all but the file may be left out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from channelscope.errors import UserError, escape, suggest

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
    from channelscope.weights.architectures import MisfitError
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
    normalisations = read_normalisations(args.normalise, labels)
    models = {}
    for label, name in zip(labels, names, strict=True):
        try:
            models[label] = read_model(args, name, normalisations[label])
        except MisfitError as error:
            if len(names) == 1 or name.arch:
                raise
            raise UserError(
                f"{error} If {args.arch} is meant for one of the files alone, write "
                f"FILE@{args.arch} there, and no --arch."
            ) from error
        # A checkpoint that was converted records another file, and was described then.
        is_foreign = models[label].meta.get("file") in (name.path, Path(name.path).name)
        if is_foreign and is_first():
            kind = describe_network(models[label])
            found = "named" if ":" in (name.arch or args.arch or "") else "recognised"
            print(escape(f"{label}: {found}: {kind}"), file=sys.stderr)
    return models


def read_normalisations(values: Sequence[str], labels: Sequence[str]) -> dict[str, str | None]:
    """Read the normalisation of each network: one value for all, or LABEL=VALUE for some.

    >>> read_normalisations(["a=imagenet"], ["a", "b"])
    {'a': 'imagenet', 'b': None}
    >>> read_normalisations(["half"], ["a", "b"])
    {'a': 'half', 'b': 'half'}
    """
    if len(values) == 1 and "=" not in values[0]:
        return dict.fromkeys(labels, values[0])
    found: dict[str, str | None] = dict.fromkeys(labels)
    for text in values:
        label, equals, value = text.rpartition("=")  # no value has an equals sign, a label may
        if not equals:
            raise UserError(
                f"--normalise: {text!r} stands beside others: name one value for all networks, or "
                "LABEL=VALUE for each that needs one."
            )
        if label not in found:
            raise UserError(
                f"--normalise: there is no model {label!r} among {', '.join(labels)}."
                f"{suggest(label, labels)}"
            )
        if found[label] is not None:
            raise UserError(f"--normalise: {label} has two normalisations: name one.")
        found[label] = value
    return found


def read_model(args: argparse.Namespace, name: Name, normalise: str | None) -> "Checkpoint":
    """Read one network, by the options that say how."""
    from channelscope.weights.loading import read_network

    return read_network(
        name.path,
        name.arch or args.arch,
        arch_args=read_arch_args(args),
        normalise=normalise,
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
