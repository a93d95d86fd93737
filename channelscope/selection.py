"""Channel-wise importance-based feature selection: relevance of probe logits, importance masks, gated networks.

CIFS: Yan et al., ICML 2021 (arXiv 2102.05311), section 4. CAS: Bai et al., ICLR 2021 (arXiv 2103.08307), section 4.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.hooks import Edit, hooked, logits_of, named_layers

Imgf = Literal["softmax", "sigmoid", "softplus", "relu", "identity"]


class LinearProbe(nn.Module):
    """Auxiliary linear classifier on pooled features v: p = W v + b."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(channels, classes)

    def forward(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        return self.output(v)

    def relevance(self, _v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        """Gradient of the chosen logits' sum with respect to v: g = sum of the chosen rows of W."""
        return chosen @ self.output.weight


class TwoLayerProbe(nn.Module):
    """Auxiliary classifier with one hidden layer: h = W1 v + b1, p = W2 softplus_beta(h) + b2."""

    def __init__(self, channels: int, classes: int, hidden: int = 128, beta: float = 5.0) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(channels, hidden), nn.Linear(hidden, classes)
        self.beta = beta

    def forward(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        return self.output(F.softplus(self.hidden(v), beta=self.beta))

    def relevance(self, v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        """Gradient of the chosen logits' sum with respect to v: g = W1^T (sigmoid(beta h) * W2^T chosen)."""
        slope = torch.sigmoid(self.beta * self.hidden(v))
        return (slope * (chosen @ self.output.weight)) @ self.hidden.weight


class Selection(NamedTuple):
    """What a gate returns: the selected features z * m, the probe logits p and the importance mask m."""

    features: Float[Tensor, "n c *space"]
    probe_logits: Float[Tensor, "n k"]
    mask: Float[Tensor, "n c"]


class FeatureSelector(nn.Module):
    """The gate of CIFS and CAS: probe -> relevance of its top-k logits -> importance mask m -> z * m.

    With v the spatial mean of the features z, p = probe(v) and T the chosen logits:

        g = d(sum_{t in T} p_t) / dz, summed over space     (CIFS, relevance assessment)
        m = IMGF(g)                                         (CIFS, importance mask generating function)

    T holds the k largest logits. In training mode with labels, the label's logit takes the place of the largest.
    The published gates are ``FeatureSelector(probe)`` for CIFS (k = 2, softmax) and
    ``FeatureSelector(LinearProbe(c, k), k=1, imgf="identity")`` for CAS.

    Args:
        probe: module from pooled features (n, c) to logits (n, k). Its relevance is taken in closed form where it
            has a method ``relevance(v, chosen)``, as the two probes of CIFS do; by autograd elsewhere.
        k: number of logits whose relevance is assessed.
        imgf: softmax over channels, sigmoid, softplus, relu (all non-negative), or identity (CAS).
        detach: take the relevance of features cut from the graph, as the authors' release does: then no gradient
            passes through the mask to the input. Attacks switch it off with ``attached``.
    """

    def __init__(self, probe: nn.Module, *, k: int = 2, imgf: Imgf = "softmax", detach: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"A gate needs the relevance of at least one logit, not k = {k}.")
        if imgf not in (known := get_args(Imgf)):
            raise UserError(f"There is no mask function {imgf!r}: choose from {', '.join(known)}.")
        self.probe, self.k, self.imgf, self.detach = probe, k, imgf, detach

    def forward(self, z: Float[Tensor, "n c *space"], labels: Int[Tensor, " n"] | None = None) -> Selection:
        """Select the features z (n, c) or (n, c, h, w); labels (n,) reach the mask in training mode only."""
        v = z.flatten(2).mean(2) if z.ndim > 2 else z
        logits = self.probe(v)
        chosen = self._choose(logits, labels if self.training else None)
        mask = self._mask(self._relevance(v.detach() if self.detach else v, chosen))
        return Selection(z * mask.view(*mask.shape, *[1] * (z.ndim - 2)), logits, mask)

    def _choose(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"] | None) -> Float[Tensor, "n k"]:
        """Count how often each logit is chosen: twice, where the label's is also among the runners-up."""
        if self.k > logits.shape[1]:
            raise UserError(f"A gate cannot choose k = {self.k} of {logits.shape[1]} logits: lower k.")
        top = logits.topk(self.k, dim=1).indices
        if labels is not None:
            top = torch.cat([labels.unsqueeze(1), top[:, 1:]], 1)
        return torch.zeros_like(logits).scatter_add_(1, top, torch.ones_like(logits))

    def _relevance(self, v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        closed_form = getattr(self.probe, "relevance", None)
        if callable(closed_form):
            return cast(Tensor, closed_form(v, chosen))
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # within it, torch 2.6 gives another gradient without a word
                return self._relevance(v.clone(), chosen.clone()).detach()
        pull_back = torch.func.vjp(self.probe, v)[1]  # differentiable itself, and at work under no_grad as well
        return cast(Tensor, pull_back(chosen)[0])

    def _mask(self, g: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        match self.imgf:
            case "softmax":
                return g.softmax(1)
            case "sigmoid":
                return g.sigmoid()
            case "softplus":
                return F.softplus(g)
            case "relu":
                return g.relu()
            case _:
                return g


@contextmanager
def attached(model: nn.Module) -> Iterator[None]:
    """Let gradients pass through every gate's mask for as long as the context lasts: what an attacker would do."""
    gates = [module for module in model.modules() if isinstance(module, FeatureSelector)]
    before = [gate.detach for gate in gates]
    try:
        for gate in gates:
            gate.detach = False
        yield
    finally:
        for gate, detach in zip(gates, before, strict=True):
            gate.detach = detach


@dataclass(frozen=True)
class Probed:
    """A gated network's full answer: logits (n, k), then by gated layer the raw features, probe logits and masks."""

    logits: Float[Tensor, "n k"]
    features: dict[str, Tensor]
    probes: dict[str, Tensor]
    masks: dict[str, Tensor]


class Selective(nn.Module):
    """Gate any CNN at named layers, without editing it: the gated features replace the layer's output.

    ``forward`` returns plain logits; ``probed`` also the gates' answers. For capture and ablation, a gated layer's
    own name gives its raw features and ``NAME.gated`` the selected ones. ``load_state_dict`` also takes the
    backbone's own state: the gates then stay as they are.

    Args:
        cnn: the backbone.
        selectors: layer name -> ``FeatureSelector``, as named in ``cnn.named_modules()``.

    Raises:
        LayerError: for a layer that the backbone does not have.
    """

    def __init__(self, cnn: nn.Module, selectors: Mapping[str, FeatureSelector]) -> None:
        super().__init__()
        with hooked(cnn, {layer: lambda _: None for layer in selectors}):
            pass  # only to learn at once that every layer exists
        self.cnn = cnn
        # A module's key may hold no dot.
        self.selectors = nn.ModuleDict({layer.replace(".", "/"): gate for layer, gate in selectors.items()})

    @property
    def gates(self) -> dict[str, FeatureSelector]:
        """The selectors by layer name."""
        return {key.replace("/", "."): cast(FeatureSelector, gate) for key, gate in self.selectors.items()}

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

        def edit(layer: str, gate: FeatureSelector) -> Edit:
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
            probes={layer: selection.probe_logits for layer, (_, selection) in answers.items()},
            masks={layer: selection.mask for layer, (_, selection) in answers.items()},
        )
