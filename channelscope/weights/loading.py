"""Networks from anywhere: files of ours and of other programs, libraries, code of the user's own.

``read_network`` answers for all of them with a ``Checkpoint``.
"""

import ast
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from channelscope.errors import UserError, escape, suggest
from channelscope.gates import FeatureSelector, Importance, LinearProbe, Selective, TwoLayerProbe
from channelscope.gates.fsr import FeatureRecalibrator
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.networks import Statistics, read_normalisation
from channelscope.recipes import METHODS
from channelscope.weights.architectures import External, MisfitError, Value, names_only_file
from channelscope.weights.checkpoints import Checkpoint, Gate, versions
from channelscope.weights.cifar import Match
from channelscope.weights.files import (
    Weights,
    find_state,
    list_twins,
    read_content,
    read_weights,
    unwrap,
)
from channelscope.weights.published import PUBLISHERS, read_published
from channelscope.weights.recognise import (
    add_normalisation,
    get_image_side,
    match_named,
    recognise,
)

Args = Mapping[str, Value]
_ROUNDING = 1e-3  # by which a normalisation may differ from that of the file
_NAMED = "as named:"  # how it is normalised: by the user's word, which no file confirms


def load(
    path: Path | str,
    arch: str | None = None,
    *,
    arch_args: Args | None = None,
    normalise: str | Statistics | None = None,
    download: bool = False,
) -> nn.Module:
    """Load a trained network in eval mode: ``net(x)`` returns logits for images x in [0, 1].

    A gated network also has ``net.probed(x)``, with its probes' logits and masks.

    Args:
        path, arch, arch_args, normalise, download: see ``read_network``.

    Raises:
        UserError: one sentence for a file that is missing, damaged, hostile or not recognised.
    """
    checkpoint = read_network(
        path, arch, arch_args=arch_args, normalise=normalise, download=download
    )
    return checkpoint.build()


def read_network(
    path: Path | str,
    arch: str | None = None,
    *,
    arch_args: Args | None = None,
    normalise: str | Statistics | None = None,
    download: bool = False,
) -> Checkpoint:
    """Read a network with all that is on record of it; nothing in its file is run.

    Args:
        path: a checkpoint of ours; ``zoo:NAME``; weights that any program saved, how network is
            recognised by its tensors; or ``torchvision:NAME``, ``timm:NAME``, ``robustbench:NAME``
            for published weights.
        arch: builds the network where it is not recognised: ``torchvision:NAME``, ``timm:NAME``, or
            ``FILE.py:NAME`` or ``package.module:NAME`` of a class or function of your own, which is
            run. Checkpoints of ours have theirs, but for code of your own.
        arch_args: arguments for ``arch``, by name.
        normalise: the normalisation that the network expects, where its file has none, see
            ``networks.read_normalisation``. One that contradicts another program's file is
            refused; checkpoints of ours, and a zoo beside other files, keep theirs.
        download: fetch published weights where they are missing.

    Raises:
        UserError: one sentence for a file that is missing, damaged, hostile or not recognised, and
            for an architecture that does not fit.
    """
    statistics = read_normalisation(normalise) if normalise is not None else None
    is_named = normalise is not None
    if str(path).startswith("zoo:"):
        return Checkpoint.read(path)
    if str(path).partition(":")[0] in PUBLISHERS and not Path(path).exists():
        match = read_published(str(path), dict(arch_args or {}), download)
        how = "by the published" if _is_normalised(match) else _NAMED
        match = _normalise(match, str(path), statistics, is_named)
        return _make_checkpoint(match, str(path), how)
    path, chosen = Path(path), ""
    if path.is_dir():
        weights = read_weights(path)
    else:
        content = read_content(path)
        if isinstance(content, Mapping) and "channelscope" in content:
            return Checkpoint.read(path, code=arch)
        state, entry = find_state(content, path)
        weights = Weights(path, unwrap(state, path), entry)
        if twins := list_twins(content, state, entry, path):
            others = f"{', '.join(twins)} {'hold others' if len(twins) > 1 else 'holds another'}"
            chosen = f"read from {entry} ({others}: to choose, save it in a file of its own)"
    match = _match(weights, arch, dict(arch_args or {}))
    how = "by the file's own" if _is_normalised(match) else _NAMED
    match = _normalise(match, str(path), statistics, is_named)
    return _make_checkpoint(match, path.name, how, chosen)


def _match(weights: Weights, arch: str | None, args: dict[str, Value]) -> Match:
    """Match a file's tensors with the architecture that is named, or recognise them."""
    if arch is not None and (":" in arch or names_only_file(arch)):
        return match_named(weights, arch, args)
    if args:
        raise UserError("arch_args: there is no architecture that they are for: name it with arch.")
    if arch is None and weights.arch is not None:
        return match_named(weights, weights.arch, args)
    match = recognise(weights)
    if arch is not None and arch != match.architecture.arch:
        raise MisfitError(
            f"arch: {weights.path} is recognised as {match.name}, not as {arch}: name "
            f"{match.architecture.arch}, or no architecture."
        )
    return match


def _normalise(match: Match, source: str, statistics: Statistics | None, is_named: bool) -> Match:
    """Put the normalisation that is named before a network; refuse one that contradicts its own.

    Networks with a normalisation of their own were trained with it: another one, or none, would
    give numbers of a network that nobody trained.
    """
    if not is_named:
        return match
    if not _is_normalised(match):
        return add_normalisation(match, *statistics) if statistics is not None else match
    architecture = match.architecture
    own = architecture.mean, architecture.std
    if statistics is None or not _agree(own, statistics):
        other = "none" if statistics is None else _print_statistics(*statistics)
        raise UserError(
            f"normalise: {source} has a normalisation of its own ({_print_statistics(*own)}), and "
            f"{other} is named: leave --normalise out, or name it for the networks beside it that "
            "need one, --normalise LABEL=VALUE."
        )
    return match


def _agree(own: Statistics, named: Statistics) -> bool:
    """Return whether two normalisations are the same, up to the digits that are usually named."""
    for values, others in zip(own, named, strict=True):
        if len(values) != len(others) and 1 not in (len(values), len(others)):
            return False
        # One number stands for all channels.
        if not torch.allclose(
            torch.tensor(values, device="cpu"), torch.tensor(others, device="cpu"), 0, _ROUNDING
        ):
            return False
    return True


def _print_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    numbers = (", ".join(map("{:.4g}".format, values)) for values in (mean, std))
    return "mean {} and standard deviation {}".format(*numbers)


def _make_checkpoint(match: Match, source: str, how: str = "by", chosen: str = "") -> Checkpoint:
    """Make the checkpoint of a match.

    Args:
        match: what was recognised.
        source: the file.
        how: it is normalised, if it is: words before the numbers.
        chosen: which of the file's networks it is, in words, if there are several.
    """
    stem = next((item for item in match.state.values() if item.ndim == 4), None)
    channels = 3 if stem is None else stem.shape[1]
    side = match.side or get_image_side(match.architecture.arch)
    return Checkpoint(
        architecture=match.architecture,
        gates=match.gates,
        state=match.state,
        image=(channels, side, side),
        method=match.method if match.method in METHODS else None,
        meta={
            "converted_from": match.name,
            "assumed": match.assumed,
            "normalised": how,
            "chosen": escape(chosen),
            "file": escape(source),
            "versions": versions(),
        },
    )


def _is_normalised(network: Match | Checkpoint) -> bool:
    architecture = network.architecture
    return any(architecture.mean) or any(value != 1 for value in architecture.std)


def describe_network(checkpoint: Checkpoint) -> str:
    """Say as what a network was recognised; empty for checkpoints that ``train`` wrote.

    >>> from channelscope.networks import Architecture
    >>> meta = {"converted_from": "resnet18, width 64", "assumed": ""}
    >>> network = Checkpoint(architecture=Architecture(), state={}, image=(3, 32, 32), meta=meta)
    >>> describe_network(network)
    'resnet18, width 64, 10 classes'
    """
    meta = checkpoint.meta
    if "converted_from" not in meta:
        return ""
    architecture = checkpoint.architecture
    parts = [str(meta["converted_from"]), f"{architecture.classes} classes"]
    if _is_normalised(checkpoint):
        statistics = _print_statistics(architecture.mean, architecture.std)
        parts.append(f"normalised {meta.get('normalised', 'by')} {statistics}")
    if meta.get("chosen"):
        parts.append(str(meta["chosen"]))
    if meta.get("assumed"):
        parts.append(f"assumed: {meta['assumed']}")
    return ", ".join(parts)


def parse_args(pairs: Mapping[str, str]) -> dict[str, Value]:
    """Read the arguments of an architecture from words: numbers, true, false, or text.

    >>> parse_args({"width": "2", "blocks": "(1, 1)", "deep": "true", "act": "relu"})
    {'width': 2, 'blocks': (1, 1), 'deep': True, 'act': 'relu'}
    """
    return {name: _parse_value(word) for name, word in pairs.items()}


def _parse_value(word: str) -> Value:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return word
    return value if isinstance(value, int | float | str | tuple) else word


# ---------------------------------------------------------------- to files of ours


def convert(
    path: Path | str,
    out: Path | str,
    arch: str | None = None,
    *,
    arch_args: Args | None = None,
    normalise: str | Statistics | None = None,
    method: str | None = None,
    imgf_scale: float | None = None,
    download: bool = False,
) -> Checkpoint:
    """Convert any program's network file to a checkpoint, which is written and returned.

    Args:
        path, arch, arch_args, normalise, download: see ``read_network``; nothing in the file is
            run.
        out: the file to write, which must not exist.
        method: how the network was trained, where the file cannot tell.
        imgf_scale: what the softmax masks of a network of CIFS sum to, which no tensor tells: 1 in
            the authors' released file, so by default, and 2 in files of the paper's time.

    Raises:
        UserError: where ``path`` cannot be read or recognised, for an unknown method, a scale of
            masks that are not there, and where ``out`` exists or cannot be written.
    """
    _check_method(method)
    if Path(out).exists():
        raise UserError(f"{out} exists: choose another file to write to, or delete it first.")
    checkpoint = read_network(
        path, arch, arch_args=arch_args, normalise=normalise, download=download
    )
    if "converted_from" not in checkpoint.meta:
        raise UserError(f"{path} is a checkpoint of channelscope already: use it as it is.")
    if imgf_scale is not None:
        checkpoint = _scale_masks(checkpoint, imgf_scale, str(path))
    if method is not None:
        checkpoint = replace(checkpoint, method=method)
    checkpoint.save(out)
    return checkpoint


def _scale_masks(checkpoint: Checkpoint, scale: float, source: str) -> Checkpoint:
    """Say what the softmax masks of a network of CIFS sum to, which no tensor tells."""
    gates = checkpoint.gates
    if not gates or any(gate.kind != "cifs" or "imgf" in gate.options for gate in gates):
        raise UserError(
            f"imgf_scale: {source} is recognised as {checkpoint.meta['converted_from']}, which has "
            "no softmax masks: leave --imgf-scale out."
        )
    try:
        Importance(budget=scale)
    except UserError as error:
        raise UserError(f"imgf_scale: {error}") from error
    scaled = tuple(replace(gate, options={**gate.options, "budget": scale}) for gate in gates)
    assumed = f"k = 2, masks of sum {scale:g} as named"
    return replace(checkpoint, gates=scaled, meta={**checkpoint.meta, "assumed": assumed})


def _check_method(method: str | None) -> None:
    if method not in (None, *METHODS):
        raise UserError(
            f"There is no method {method!r}: choose from {', '.join(METHODS)}."
            f"{suggest(str(method), METHODS)}"
        )


def save(
    network: nn.Module | Checkpoint,
    path: Path | str,
    *,
    arch: str | None = None,
    arch_args: Args | None = None,
    method: str | None = None,
) -> None:
    """Write a trained network as a checkpoint, from which every command reads it.

    Args:
        network: any how architecture is recognised by its tensors, gated or not; or with ``arch``
            any other. Its logits are compared with those of what is written.
        path: the file to write.
        arch, arch_args: what builds the network, see ``read_network``; for code of your own it must
            be named again when the file is read.
        method: how the network was trained, a key of ``recipes.METHODS``.

    Raises:
        UserError: for a network that is not recognised, or computes other logits than what its
            tensors say; and where ``path`` cannot be written.
    """
    _check_method(method)
    checkpoint = (
        network if isinstance(network, Checkpoint) else _describe(network, arch, arch_args or {})
    )
    if method is not None:
        checkpoint = replace(checkpoint, method=method)
    checkpoint.save(path)


def _describe(network: nn.Module, arch: str | None, args: Args) -> Checkpoint:
    """Make the checkpoint of a network, and check that it computes the same logits."""
    name = Path(type(network).__name__)
    backbone = network.cnn if isinstance(network, Selective) else network
    weights = Weights(name, unwrap(backbone.state_dict(), name))
    checkpoint = _make_checkpoint(_match(weights, arch, dict(args)), str(name))
    if isinstance(network, Selective):
        if isinstance(checkpoint.architecture, External):
            raise UserError(
                f"network: gates are saved with our own backbones, not with {arch or name}: save "
                "the backbone alone."
            )
        gates = tuple(_describe_gate(layer, gate) for layer, gate in network.gates.items())
        checkpoint = replace(checkpoint, gates=gates, state=dict(network.state_dict()))
    _check_logits(network, checkpoint)
    return checkpoint


def _describe_gate(layer: str, gate: nn.Module) -> Gate:
    """Say what it takes to build a gate of CIFS, CAS or FSR again."""
    if isinstance(gate, FeatureRecalibrator):
        hidden, channels = cast(nn.Conv2d, gate.separation[0]).weight.shape[:2]
        options: dict[str, bool | int | float | str] = {"hidden": hidden, "tau": gate.tau}
        return Gate(layer=layer, channels=channels, kind="fsr", options=options)
    if not isinstance(gate, FeatureSelector) or not isinstance(
        gate.probe, LinearProbe | TwoLayerProbe
    ):
        raise UserError(
            f"network: the gate of {layer}, a {type(gate).__name__}, cannot be written: save gates "
            "of CIFS, CAS or FSR."
        )
    options = {"k": gate.k, "imgf": gate.imgf, "detach": gate.detach}
    for setting in fields(gate.function):
        value = getattr(gate.function, setting.name)
        if value != setting.default:
            options[setting.name] = value
    if isinstance(gate.probe, TwoLayerProbe):
        hidden, channels = gate.probe.hidden.weight.shape
        options |= {"probe": "two-layer", "hidden": hidden, "beta": float(gate.probe.beta)}
    else:
        channels = gate.probe.output.weight.shape[1]
    return Gate(layer=layer, channels=channels, options=options)


def _check_logits(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse a network that computes other logits of a random image than its checkpoint."""
    like = get_parameter(network)
    images = torch.rand(
        2, *checkpoint.image, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    )
    rebuilt = checkpoint.build().to(like.device)
    try:
        with eval_mode(network), torch.no_grad():
            expected = get_logits(network(images.to(like)))
            logits = get_logits(rebuilt(images.to(like)))
        same = expected.shape == logits.shape and torch.allclose(expected, logits, 1e-3, 1e-4)
    except RuntimeError:  # of images of another size, on which nothing can be compared
        same = True
    if not same:
        raise UserError(
            f"network: a {type(network).__name__} computes other logits than "
            f"{checkpoint.meta['converted_from']}, which its tensors fit: name what builds it with "
            "arch."
        )
