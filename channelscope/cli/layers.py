"""The command that lists a network's layers."""

import argparse
import sys
from typing import TYPE_CHECKING

from channelscope.cli.models import parse_name, read_arch_args, read_model
from channelscope.cli.printing import format_table
from channelscope.errors import UserError, escape, suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from channelscope.layers.hooks import Call

_MARK = "  <- penultimate: measured by default"


def list_layers(args: argparse.Namespace) -> None:
    """Print a network's layers."""
    import torch

    from channelscope.layers.hooks import INPUT, match_layers, trace
    from channelscope.study.outputs import explain_refusal

    network, shape = _build_network(args)
    images = torch.rand(2, *shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    with explain_refusal(images, "choose another --image-size", network):
        calls, _ = trace(network, images)
    # A call relu@1 is listed for the name relu too.
    names = {call.name: {call.name, call.name.partition("@")[0]} for call in calls}
    for call in calls:
        names[call.name] |= {name + INPUT for name in names[call.name]}
    wanted = set(match_layers(network, args.patterns, images)) if args.patterns else set(names)
    if missing := wanted - set().union(*names.values()):
        name = min(missing)
        raise UserError(
            f"No layer {name!r} runs in this network.{suggest(name, names)} Without names, all are "
            "listed."
        )
    penultimate = _find_penultimate(network, images)
    rows = [("layer", "kind", "channels", "shape")]
    for call in calls:
        if names[call.name] & wanted:
            rows += _describe_call(network, call, penultimate)
    print(format_table(rows, align="llrl"))


def _describe_call(
    network: "nn.Module", call: "Call", penultimate: str | None
) -> list[tuple[str, str, str, str]]:
    """Return the row of a call, and before it that of what it reads if this is measured."""
    from channelscope.layers.hooks import INPUT

    places = [(call.name, type(call.module).__name__, call.output)]
    if call.name + INPUT == penultimate and call.input is not None:
        places.insert(0, (penultimate, "(its input)", call.input))
    rows = []
    for name, kind, features in places:
        size = " x ".join(map(str, features.shape[1:]))
        mark = _MARK if name == penultimate else ""
        channels = _count_channels(network, name, tuple(features.shape))
        rows.append((name, kind, channels, size + mark))
    return rows


def _build_network(args: argparse.Namespace) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Build a file's network, or one of a library by its name; return its images' shape."""
    from channelscope.weights.architectures import LIBRARIES, External
    from channelscope.weights.loading import describe_network
    from channelscope.weights.recognise import get_image_side

    name, size = parse_name(args.model), args.image_size
    if name.path.partition(":")[0] in LIBRARIES:
        external = External(arch=name.path, classes=1000, args=read_arch_args(args))
        side = size or get_image_side(name.path)
        return external.build(), (3, side, side)
    checkpoint = read_model(args, name, args.normalise)
    if kind := describe_network(checkpoint):
        print(escape(f"{name.path}: {kind}"), file=sys.stderr)
    channels, height, width = checkpoint.image
    return checkpoint.build(), (channels, size or height, size or width)


def _find_penultimate(network: "nn.Module", images: "Tensor") -> str | None:
    """Return the layer that is measured by default; None where there is none."""
    from channelscope.layers.penultimate import LastLayer

    try:
        return next(iter(LastLayer.find(network, images).inputs), None)
    except UserError:  # the logits come from no linear layer
        return None


def _count_channels(network: "nn.Module", layer: str, shape: tuple[int, ...]) -> str:
    """Return the number of channels; a dash for a layer without, or that takes images apart."""
    from channelscope.layers.channels import channel_axis

    try:
        return str(shape[channel_axis(network, layer, shape)]) if shape[0] == 2 else "-"
    except UserError:
        return "-"
