"""Published weights by name: ``torchvision:NAME``, ``timm:NAME``, ``robustbench:NAME``.

They are fetched from the library's own place, and only where that is asked for. What is fetched is
read as any other file: nothing in it is run.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from channelscope.errors import UserError
from channelscope.weights.architectures import External, Value, find_builder
from channelscope.weights.cifar import Match
from channelscope.weights.files import State, Weights, read_weights
from channelscope.weights.recognise import add_normalisation, match_named

PUBLISHERS = ("torchvision", "timm", "robustbench")


def read_published(name: str, args: Mapping[str, Value], download: bool) -> Match:
    """Read a library's network with its published weights and normalisation.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME`` or ``robustbench:NAME``.
        args: of the builder; for robustbench ``dataset`` (cifar10) and ``threat_model`` (Linf).
        download: fetch the weights where they are missing.

    Raises:
        UserError: for a network that does not exist or has no published weights, and where they
            cannot be fetched.
    """
    library, _, kind = name.partition(":")
    if library == "torchvision":
        return _read_torchvision(kind, args, download)
    if library == "timm":
        return _read_timm(kind, args, download)
    return _read_robustbench(kind, args, download)


def _require_download(name: str, download: bool) -> None:
    if not download:
        raise UserError(
            f"{name} without a file means its published weights, which are not on this machine: "
            f"add --download, or name the file of weights and --arch {name}."
        )


def _read_torchvision(kind: str, args: Mapping[str, Value], download: bool) -> Match:
    from torchvision import models

    name = f"torchvision:{kind}"
    find_builder(name)
    published = models.get_model_weights(kind).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if not file.exists():
        _require_download(name, download)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _explain_fetching(name):
            digest = file.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(published.url, str(file), hash_prefix=digest)
    weights = read_weights(file)
    settings = dict(args)
    if kind in ("googlenet", "inception_v3"):
        has_aux = any(key.startswith(("aux1.", "AuxLogits.")) for key in weights.states[-1].tensors)
        settings = {"transform_input": True, "aux_logits": has_aux} | settings
    if kind.startswith("densenet"):
        weights = _rename_densenet(weights)  # as torchvision does when it reads this old file
    transforms = published.transforms()
    match = match_named(weights, name, settings)
    return add_normalisation(match, tuple(transforms.mean), tuple(transforms.std))


def _rename_densenet(weights: Weights) -> Weights:
    state = weights.states[-1].tensors
    names = {key: re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key) for key in state}
    return replace(weights, states=(State({names[key]: state[key] for key in state}),))


def _read_timm(kind: str, args: Mapping[str, Value], download: bool) -> Match:
    name = f"timm:{kind}"
    find_builder(name)
    import timm
    from huggingface_hub import hf_hub_download

    settings = timm.get_pretrained_cfg(kind)
    if settings is None or not settings.hf_hub_id:
        raise UserError(f"{name} has no published weights: name the file of weights, and --arch.")
    with _explain_fetching(name):
        try:  # without asking the network first
            file = hf_hub_download(settings.hf_hub_id, "model.safetensors", local_files_only=True)
        except OSError:
            _require_download(name, download)
            file = hf_hub_download(settings.hf_hub_id, "model.safetensors")
    match = match_named(read_weights(file), name, args)
    return add_normalisation(match, tuple(settings.mean), tuple(settings.std))


def _read_robustbench(kind: str, args: Mapping[str, Value], download: bool) -> Match:
    """Read a network of RobustBench, whose own function fetches and builds it."""
    name = f"robustbench:{kind}"
    find_builder(name)
    _require_download(name, download)
    with _explain_fetching(name):
        external = External(arch=name, classes=0, args={"model_name": kind} | dict(args))
        state = external.build().state_dict()
    classes = next(reversed(state.values())).shape[0] if state else 0
    return Match(name, replace(external, classes=classes), state)


@contextmanager
def _explain_fetching(name: str) -> Iterator[None]:
    """Say in a sentence that weights could not be fetched, and why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever library fetches
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"The weights of {name} cannot be fetched ({reason}): check the connection, or name a "
            f"file of them and --arch {name}."
        ) from error
