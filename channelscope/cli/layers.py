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
_LARGEST = 256  # pixels a side, of what a file says of its network's images
_TRACED = 64  # pixels a side that do to see which layers run, where all but their shapes is kept


def list_layers(args: argparse.Namespace) -> None:
    """Print a network's layers."""
    import torch

    from channelscope.layers.hooks import INPUT, match_layers, measure_shapes, trace
    from channelscope.study.outputs import explain_refusal

    network, shape, is_ours = _build_network(args)
    whole = torch.rand(2, *shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    images = whole[..., :_TRACED, :_TRACED] if is_ours else whole
    with explain_refusal(whole, "choose another --image-size", network):
        calls, _ = trace(network, images)
        if images.shape != whole.shape:
            calls = measure_shapes(network, calls, whole)
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


def _build_network(args: argparse.Namespace) -> "tuple[nn.Module, tuple[int, int, int], bool]":
    """Build a file's network, or one of a library by its name.

    Returns:
        the network, its images' shape, and whether it takes any other size as well.
    """
    from channelscope.weights.architectures import LIBRARIES, External
    from channelscope.weights.loading import describe_network
    from channelscope.weights.recognise import get_image_side

    name, size = parse_name(args.model), args.image_size
    if name.path.partition(":")[0] in LIBRARIES:
        external = External(arch=name.path, classes=1000, args=read_arch_args(args))
        side = size or get_image_side(name.path)
        return external.build(), (3, side, side), False
    checkpoint = read_model(args, name, args.normalise)
    if kind := describe_network(checkpoint):
        print(escape(f"{name.path}: {kind}"), file=sys.stderr)
    channels, height, width = checkpoint.image
    if size is None and max(height, width) > _LARGEST:
        raise UserError(
            f"{name.path} says that its images are {height} x {width}: choose an --image-size, as "
            f"layers are listed unasked for {_LARGEST} x {_LARGEST} at most."
        )
    is_ours = not isinstance(checkpoint.architecture, External)
    return checkpoint.build(), (channels, size or height, size or width), is_ours


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
