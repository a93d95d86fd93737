"""The commands that look into networks: their layers, and the relevance of their channels."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from channelscope.cli.inputs import data_of, device_of, models_of, trained_on
from channelscope.cli.printing import table, tell_rankings
from channelscope.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

_ELSEWHERE = ("torchvision", "timm")


def layers(args: argparse.Namespace) -> None:
    """Print a network's layers."""
    import torch

    from channelscope.layers.hooks import match_layers, trace
    from channelscope.study.models import explain_refusal

    network, shape = _network(args.model, args.image_size)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with explain_refusal(images, "choose another --image-size"):
        calls, _ = trace(network, images)
    named = {
        call.name: {call.name, call.name.partition("@")[0]} for call in calls
    }  # relu@1 is listed for relu too
    wanted = set(match_layers(network, args.patterns, images)) if args.patterns else set(named)
    if missing := wanted - set().union(*named.values()):
        name = min(missing)
        raise UserError(
            f"No layer {name!r} runs in this network.{suggest(name, named)} Without names, all are listed."
        )
    penultimate = _penultimate(network, images)
    rows = [("layer", "kind", "channels", "shape")]
    for call in calls:
        if named[call.name] & wanted:
            size = " x ".join(map(str, call.output.shape[1:]))
            mark = (
                "  <- penultimate: what 'compare' looks at by default"
                if call.name == penultimate
                else ""
            )
            channels = _channels(network, call.name, tuple(call.output.shape))
            rows.append((call.name, type(call.module).__name__, channels, size + mark))
    print(table(rows, align="llrl"))


def _network(name: str, image_size: int | None) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Build a network to look at, and tell the shape of its images: a checkpoint's, or one of a library by its name."""
    from channelscope.weights import Checkpoint

    library, _, kind = name.partition(":")
    if library not in _ELSEWHERE or not kind:
        checkpoint = Checkpoint.read(name)
        channels, height, width = checkpoint.image
        return checkpoint.build(), (channels, image_size or height, image_size or width)
    network, size = _from_torchvision(kind) if library == "torchvision" else _from_timm(kind)
    return network.eval(), (3, image_size or size, image_size or size)


def _from_torchvision(name: str) -> "tuple[nn.Module, int]":
    from torchvision import models

    if name not in (known := models.list_models(models)):
        raise UserError(f"torchvision has no classifier {name!r}.{suggest(name, known)}")
    return models.get_model(name, weights=None), 224


def _from_timm(name: str) -> "tuple[nn.Module, int]":
    try:
        import timm
    except ImportError as error:
        raise UserError("timm is not installed: pip install timm.") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no network {name!r}.{suggest(name, timm.list_models())}")
    known = timm.get_pretrained_cfg(name)
    return timm.create_model(name), known.input_size[1] if known else 224


def _penultimate(network: "nn.Module", images: "Tensor") -> str | None:
    """Name the layer that is looked at by default; None where there is none."""
    from channelscope.scorers import LastLayer

    try:
        return next(iter(LastLayer.find(network, images).inputs), None)
    except UserError:  # the logits come from no linear layer
        return None


def _channels(network: "nn.Module", layer: str, shape: tuple[int, ...]) -> str:
    """Tell the number of channels; a dash for a layer without, or that takes images apart."""
    from channelscope.layers.channels import channel_axis

    try:
        return str(shape[channel_axis(network, layer, shape)]) if shape[0] == 2 else "-"
    except UserError:
        return "-"


def relevance(args: argparse.Namespace) -> None:
    """Score channels by several scorers, write the folder and print what was found."""
    from channelscope.locks import lock_path
    from channelscope.rankings import check_folder, rank

    device, out = device_of(args), Path(args.out)
    check_folder(out)
    models = models_of(args)
    with lock_path(out.resolve()):
        found = rank(
            models,
            data_of(args, args.data or trained_on(models.values())),
            layers=args.layers,
            scorers=args.scorer,
            images=args.images,
            seed=args.seed,
            replicates=args.replicates,
            batch_size=args.batch_size,
            device=device,
            progress=not args.quiet,
        )
        found.meta["command"] = args.command
        found.save(out)
    tell_rankings(found, out, args.json)
