"""The network whose weights a training run begins with: a file, or the stage before."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.networks import Architecture, Statistics
from channelscope.weights import Checkpoint, read_network

_BACKBONE, _GATES = "cnn.", "selectors."  # where a gated network keeps them


@dataclass(frozen=True)
class Start:
    """The weights of a trained network, for a run to begin with.

    Args:
        checkpoint: the network.
        name: how errors and records call it: its file's name.
        with_gates: take the weights of its gates, too; else the run's gates begin anew.
        is_stage: whether it is the stage before of the run's own recipe.
    """

    checkpoint: Checkpoint
    name: str
    with_gates: bool
    is_stage: bool = False

    @classmethod
    def read(cls, file: str | Path, with_gates: bool) -> "Start":
        """Read a network's file.

        Raises:
            UserError: for a file that is missing, damaged or not recognised.
        """
        return cls(read_network(file), Path(file).name, with_gates)

    @property
    def normalisation(self) -> Statistics:
        """The mean and the standard deviation that the weights were trained with."""
        architecture = self._architecture
        return architecture.mean, architecture.std

    @property
    def _architecture(self) -> Architecture:
        architecture = self.checkpoint.architecture
        if not isinstance(architecture, Architecture):
            raise UserError(
                f"init: {self.name} is a {architecture.arch}, which no recipe trains: start from a "
                "network of the recipe's architecture."
            )
        return architecture

    def check_fit(self, architecture: Architecture, *, raw: bool) -> None:
        """Refuse a network of another architecture, or one that normalises raw images.

        Raises:
            UserError: naming the first thing that differs.
        """
        ours, theirs = architecture, self._architecture
        pairs = {
            "architecture": (ours.arch, theirs.arch),
            "width": (ours.base_width, theirs.base_width),
            "number of classes": (ours.classes, theirs.classes),
        }
        for what, (wanted, value) in pairs.items():
            if wanted != value:
                raise UserError(
                    f"init: {self.name} does not fit: its {what} is {value}, and {wanted} is to be "
                    "trained. Start from another network, or change the recipe."
                )
        if raw and (any(theirs.mean) or any(std != 1 for std in theirs.std)):
            raise UserError(
                f'init: {self.name} normalises its images, and model.normalise is "none" here: '
                "leave that out, or start from a network of raw images."
            )

    def load_into(self, network: nn.Module) -> None:
        """Give a network the weights, its gates too if they are wanted.

        Raises:
            UserError: where the gates are wanted and are not those of the network.
        """
        state = network.state_dict()
        prefix = _BACKBONE if any(name.startswith(_GATES) for name in state) else ""
        weights = {f"{prefix}{name}": value for name, value in self._backbone.items()}
        if self.with_gates:
            wanted = _shapes_of_gates(state)
            if not wanted or _shapes_of_gates(self.checkpoint.state) != wanted:
                layers = ", ".join(gate.layer for gate in self.checkpoint.gates) or "none"
                raise UserError(
                    f"init: the gates of {self.name} (of layers: {layers}) are not those to be "
                    "trained: leave --init-gates (init.with_gates) out, and they begin with random "
                    "weights."
                )
            weights |= {
                name: value
                for name, value in self.checkpoint.state.items()
                if name.startswith(_GATES)
            }
        network.load_state_dict(state | weights)

    @property
    def _backbone(self) -> dict[str, Tensor]:
        """The backbone's state, under its own names."""
        return {
            name.removeprefix(_BACKBONE): value
            for name, value in self.checkpoint.state.items()
            if not name.startswith(_GATES)
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the names and bytes of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.checkpoint.state.items()):
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says of how its training began, as plain values."""
        meta = self.checkpoint.meta
        known = {name: meta[name] for name in ("settings", "metrics", "history") if name in meta}
        return known | {
            "file": self.name,
            "digest": self.digest,
            "with_gates": self.with_gates,
            "is_stage": self.is_stage,
        }


def _shapes_of_gates(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if name.startswith(_GATES)}
