"""Networks with gates: any CNN, gated at named layers; and how attackers see through the gates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.gates.base import Selection
from channelscope.layers.hooks import Edit, get_layer, get_logits, hooked, named_layers


@dataclass(frozen=True)
class Probed:
    """A gated network's logits (n, k); by gated layer, raw features and the gate's selection."""

    logits: Float[Tensor, "n k"]
    features: dict[str, Tensor]
    selections: dict[str, Selection]

    @property
    def probes(self) -> dict[str, Tensor]:
        """The probe logits (n, k), of the gates that have a probe."""
        logits = {layer: selection.probe_logits for layer, selection in self.selections.items()}
        return {layer: p for layer, p in logits.items() if p is not None}

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks (n, c) or (n, c, h, w), of the gates that have one."""
        masks = {layer: selection.mask for layer, selection in self.selections.items()}
        return {layer: mask for layer, mask in masks.items() if mask is not None}

    def heads(self, y: Int[Tensor, " n"]) -> list[list[tuple[Tensor, Tensor]]]:
        """List, for each gate, the logits (n, k) that it trains, each with its targets (n,)."""
        return [selection.heads(y, self.logits) for selection in self.selections.values()]


class Selective(nn.Module):
    """Gate any CNN at named layers, without editing it: gated features replace the layer's output.

    ``forward`` returns plain logits; ``probed`` also what the gates return. For capture and
    ablation, a gated layer's own name means its raw features and ``NAME.gated`` the selected ones.
    ``load_state_dict`` also takes the backbone's own state: the gates then stay as they are.

    Args:
        cnn: the backbone.
        selectors: layer name, as in ``cnn.named_modules()`` -> gate: a module
            ``(z, labels=None) -> Selection``.

    Raises:
        LayerError: for a layer that the backbone does not have.
    """

    def __init__(self, cnn: nn.Module, selectors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for layer in selectors:
            get_layer(cnn, layer)
        self.cnn = cnn
        # A module's key may hold no dot.
        gates = {layer.replace(".", "/"): gate for layer, gate in selectors.items()}
        self.selectors = nn.ModuleDict(gates)

    @property
    def gates(self) -> dict[str, nn.Module]:
        """The gates by layer name."""
        return {key.replace("/", "."): gate for key, gate in self.selectors.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the network's state, or the bare backbone's: then the gates stay as they are."""
        current = self.state_dict()
        if not state_dict.keys() & current.keys():
            gates = {key: value for key, value in current.items() if key.startswith("selectors.")}
            state_dict = gates | {f"cnn.{key}": value for key, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def named_layers(self) -> dict[str, nn.Module]:
        """List the backbone's layers under their own names, and each gate as ``LAYER.gated``."""
        gates = {f"{layer}.gated": gate for layer, gate in self.gates.items()}
        return named_layers(self.cnn) | gates

    def forward(
        self,
        x: Float[Tensor, "n *image"],
        labels: Int[Tensor, " n"] | None = None,
        answers: dict[str, tuple[Tensor, Selection]] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Return the plain logits; ``probed`` fills ``answers`` and is the way to ask for more."""

        def edit(layer: str, gate: nn.Module) -> Edit:
            def select(z: Tensor) -> Tensor:
                selection: Selection = gate(z, labels)
                if answers is not None:
                    answers[layer] = z, selection
                return selection.features

            return select

        with hooked(self.cnn, {layer: edit(layer, gate) for layer, gate in self.gates.items()}):
            return get_logits(self.cnn(x))

    def probed(
        self, x: Float[Tensor, "n *image"], labels: Int[Tensor, " n"] | None = None
    ) -> Probed:
        """Run the network and keep what its gates return; labels (n,) count in training mode."""
        answers: dict[str, tuple[Tensor, Selection]] = {}
        logits = self(x, labels, answers)  # a call as any other: hooks on the network see it
        return Probed(
            logits=logits,
            features={layer: z for layer, (z, _) in answers.items()},
            selections={layer: selection for layer, (_, selection) in answers.items()},
        )


# ---------------------------------------------------------------- what an attacker does to gates


@runtime_checkable
class _Hiding(Protocol):
    detach: bool


@contextmanager
def attached(model: nn.Module) -> Iterator[None]:
    """Let gradients pass through every gate's mask inside the context: what an attacker would do.

    A gate that can hide its mask's gradient has an attribute ``detach``.
    """
    with _detaching(model, False):
        yield


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Let every gate that can hide its mask's gradient do so, as in the CIFS authors' attacks."""
    with _detaching(model, True):
        yield


@contextmanager
def _detaching(model: nn.Module, hide: bool) -> Iterator[None]:
    gates = [gate for gate in model.modules() if isinstance(gate, _Hiding)]
    switched = [gate for gate in gates if gate.detach is (not hide)]
    try:
        for gate in switched:
            gate.detach = hide
        yield
    finally:
        for gate in switched:
            gate.detach = not hide


def hides_gradient(model: nn.Module) -> bool:
    """Tell whether a gate of the network hides the gradient of its mask."""
    return any(gate.detach is True for gate in model.modules() if isinstance(gate, _Hiding))


def takes_labels(gate: nn.Module) -> bool:
    """Tell whether labels reach the gate's mask in training mode."""
    return bool(getattr(gate, "labelled", False))


@contextmanager
def with_labels(network: Selective) -> Iterator[None]:
    """Let labels reach the masks inside the context as in training, the network in eval mode."""
    gates = [gate for gate in network.gates.values() if takes_labels(gate)]
    modes = [gate.training for gate in gates]
    try:
        for gate in gates:
            gate.training = True  # of the gate alone, not of the layers in it
        yield
    finally:
        for gate, mode in zip(gates, modes, strict=True):
            gate.training = mode


@runtime_checkable
class _Masking(Protocol):
    def importance(self, *inputs: Any) -> Tensor:
        """Return the mask."""


@contextmanager
def hold_masks(network: Selective, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Let gates use these masks inside the context, whatever their features are.

    Args:
        network: a gated network.
        masks: gated layer -> mask, a row an image. Inside, the network takes batches of these
            images, or of the first of them. Gates that have no mask are left alone.
    """
    gates = {layer: gate for layer, gate in network.gates.items() if isinstance(gate, _Masking)}
    try:
        for layer, mask in masks.items():
            if layer in gates:
                vars(gates[layer])["importance"] = partial(_first_rows, mask)
        yield
    finally:
        for gate in gates.values():
            vars(gate).pop("importance", None)


@contextmanager
def freeze_masks(
    network: Selective, x: Float[Tensor, "n *image"], labels: Int[Tensor, " n"] | None = None
) -> Iterator[None]:
    """Hold the masks of all gates inside the context at their values for images x, as constants.

    Inside, the network takes batches of the same images, or of the first of them, changed as an
    attack changes them.

    Args:
        network: a gated network.
        x: the images.
        labels: (n,), to hold the masks at what they are in training, where labels reach them.
    """
    with nullcontext() if labels is None else with_labels(network), torch.no_grad():
        masks = network.probed(x, labels).masks
    with hold_masks(network, masks):
        yield


def _first_rows(mask: Tensor, like: Tensor, *_: Any) -> Tensor:
    return mask[: len(like)]
