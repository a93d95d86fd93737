"""Networks with gates: any CNN, gated at named layers, and the way to let an attacker see through the gates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.hooks import Edit, hooked, logits_of, named_layers
from channelscope.selection.selections import Selection


@runtime_checkable
class _Hiding(Protocol):
    detach: bool


@contextmanager
def attached(model: nn.Module) -> Iterator[None]:
    """Let gradients pass through every gate's mask for as long as the context lasts: what an attacker would do.

    A gate that hides its mask's gradient has an attribute ``detach`` that is True.
    """
    hiding: list[_Hiding] = [part for part in model.modules() if isinstance(part, _Hiding) and part.detach is True]
    try:
        for gate in hiding:
            gate.detach = False
        yield
    finally:
        for gate in hiding:
            gate.detach = True


@dataclass(frozen=True)
class Probed:
    """A gated network's full answer: logits (n, k), then by gated layer the raw features and what the gate returned."""

    logits: Float[Tensor, "n k"]
    features: dict[str, Tensor]
    selections: dict[str, Selection]

    @property
    def probes(self) -> dict[str, Tensor]:
        """The probe logits (n, k), of the gates that have a probe."""
        found = {layer: selection.probe_logits for layer, selection in self.selections.items()}
        return {layer: logits for layer, logits in found.items() if logits is not None}

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks (n, c) or (n, c, h, w), of the gates that have one."""
        found = {layer: selection.mask for layer, selection in self.selections.items()}
        return {layer: mask for layer, mask in found.items() if mask is not None}

    def heads(self, y: Int[Tensor, " n"]) -> list[list[tuple[Tensor, Tensor]]]:
        """List, for each gate, the logits (n, k) that are trained besides the network's, each with its targets (n,)."""
        return [selection.heads(y, self.logits) for selection in self.selections.values()]


class Selective(nn.Module):
    """Gate any CNN at named layers, without editing it: the gated features replace the layer's output.

    ``forward`` returns plain logits; ``probed`` also the gates' answers. For capture and ablation, a gated layer's
    own name gives its raw features and ``NAME.gated`` the selected ones. ``load_state_dict`` also takes the
    backbone's own state: the gates then stay as they are.

    Args:
        cnn: the backbone.
        selectors: layer name, as in ``cnn.named_modules()`` -> gate: a module ``(z, labels=None) -> Selection``.

    Raises:
        LayerError: for a layer that the backbone does not have.
    """

    def __init__(self, cnn: nn.Module, selectors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        with hooked(cnn, {layer: lambda _: None for layer in selectors}):
            pass  # only to learn at once that every layer exists
        self.cnn = cnn
        # A module's key may hold no dot.
        self.selectors = nn.ModuleDict({layer.replace(".", "/"): gate for layer, gate in selectors.items()})

    @property
    def gates(self) -> dict[str, nn.Module]:
        """The gates by layer name."""
        return {key.replace("/", "."): gate for key, gate in self.selectors.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the network's state, or the bare backbone's: then the gates stay as they are."""
        own = self.state_dict()
        if not state_dict.keys() & own.keys():
            gates = {key: value for key, value in own.items() if key.startswith("selectors.")}
            state_dict = gates | {f"cnn.{key}": value for key, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def named_layers(self) -> dict[str, nn.Module]:
        """List the backbone's layers under their own names, and each gate as ``LAYER.gated``."""
        return named_layers(self.cnn) | {f"{layer}.gated": gate for layer, gate in self.gates.items()}

    def forward(
        self,
        x: Float[Tensor, "n *image"],
        labels: Int[Tensor, " n"] | None = None,
        answers: dict[str, tuple[Tensor, Selection]] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Give the plain logits; ``answers`` is filled by ``probed``, which is the way to ask for more."""

        def edit(layer: str, gate: nn.Module) -> Edit:
            def select(z: Tensor) -> Tensor:
                selection: Selection = gate(z, labels)
                if answers is not None:
                    answers[layer] = z, selection
                return selection.features

            return select

        with hooked(self.cnn, {layer: edit(layer, gate) for layer, gate in self.gates.items()}):
            return logits_of(self.cnn(x))

    def probed(self, x: Float[Tensor, "n *image"], labels: Int[Tensor, " n"] | None = None) -> Probed:
        """Run the network and keep what its gates say; labels (n,) reach the masks in training mode only."""
        answers: dict[str, tuple[Tensor, Selection]] = {}
        logits = self(x, labels, answers)  # a call as any other: hooks on the network see it
        return Probed(
            logits=logits,
            features={layer: z for layer, (z, _) in answers.items()},
            selections={layer: selection for layer, (_, selection) in answers.items()},
        )
