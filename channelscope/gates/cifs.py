"""Channel-wise importance-based feature selection: relevance of probe logits, importance masks.

CIFS: Yan et al., ICML 2021 (arXiv 2102.05311), section 4. CAS: Bai et al., ICLR 2021
(arXiv 2103.08307), section 4.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates.base import Selection, register_gate
from channelscope.gates.importance import Budget, Imgf, Importance


class LinearProbe(nn.Module):
    """Auxiliary linear classifier on pooled features v: p = W v + b."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(channels, classes)

    def forward(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        return self.output(v)

    def relevance(
        self, _v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c"]:
        """Gradient of the chosen logits' sum with respect to v: the sum of the chosen rows of W."""
        return chosen @ self.output.weight


class TwoLayerProbe(nn.Module):
    """Auxiliary classifier with one hidden layer: h = W1 v + b1, p = W2 softplus_beta(h) + b2."""

    def __init__(self, channels: int, classes: int, hidden: int = 128, beta: float = 5.0) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(channels, hidden), nn.Linear(hidden, classes)
        self.beta = beta

    def forward(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        return self.output(F.softplus(self.hidden(v), beta=self.beta))

    def relevance(
        self, v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c"]:
        """Gradient of the chosen logits' sum with respect to v.

        g = W1^T (sigmoid(beta h) * W2^T chosen)
        """
        slope = torch.sigmoid(self.beta * self.hidden(v))
        return (slope * (chosen @ self.output.weight)) @ self.hidden.weight


class FeatureSelector(nn.Module):
    """The gate of CIFS and CAS: probe -> relevance of its top-k logits -> mask m -> z * m.

    With v the spatial mean of the features z, p = probe(v) and T the chosen logits:

        g = d(sum_{t in T} p_t) / dz, summed over space     (CIFS, relevance assessment) m = IMGF(g)
        (CIFS, importance mask generating function)

    T holds the k largest logits. In training mode with labels, the label's logit takes the place of
    the largest. The published gates are ``FeatureSelector(probe)`` for CIFS (k = 2, softmax) and
    ``FeatureSelector(LinearProbe(c, k), k=1, imgf="identity")`` for CAS.

    Args:
        probe: module from pooled features (n, c) to logits (n, k). Its relevance is taken in closed
            form where it has a method ``relevance(v, chosen)``, as the two probes of CIFS do; by
            autograd elsewhere.
        k: number of logits whose relevance is assessed.
        imgf: softmax over channels, softmax-abs, sigmoid, softplus, relu (all non-negative), or
            identity (CAS).
        detach: take the relevance of features cut from the graph, as the authors' release does:
            then no gradient passes through the mask to the input. Attacks switch it off with
            ``attached``.
        scale, sharpness, temperature, budget: of the mask function, see ``Importance``.

    Raises:
        UserError: for k below 1, and what ``Importance`` refuses.
    """

    labelled = True

    def __init__(
        self,
        probe: nn.Module,
        *,
        k: int = 2,
        imgf: Imgf = "softmax",
        detach: bool = True,
        scale: float = 1.0,
        sharpness: float = 1.0,
        temperature: float = 1.0,
        budget: Budget = 1.0,
    ) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"A gate needs the relevance of at least one logit, not k = {k}.")
        self.function = Importance(
            imgf=imgf,
            scale=scale,
            sharpness=sharpness,
            temperature=temperature,
            budget=budget,
        )
        self.probe, self.k = probe, k
        self.imgf, self.detach = imgf, detach

    def forward(
        self, z: Float[Tensor, "n c *space"], labels: Int[Tensor, " n"] | None = None
    ) -> Selection:
        """Select the features z; labels (n,) reach the mask in training mode only."""
        v = z.flatten(2).mean(2) if z.ndim > 2 else z
        logits = self.probe(v)
        chosen = self._choose(logits, labels if self.training else None)
        mask = self.importance(self._relevance(v.detach() if self.detach else v, chosen))
        return Selection(z * mask.view(*mask.shape, *[1] * (z.ndim - 2)), logits, mask)

    def _choose(
        self, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"] | None
    ) -> Float[Tensor, "n k"]:
        """Count how often each logit is chosen: twice where the label's is also a runner-up."""
        if self.k > logits.shape[1]:
            raise _too_few_logits(self.k, logits.shape[1])
        top = logits.topk(self.k, dim=1).indices
        if labels is not None:
            top = torch.cat([labels.unsqueeze(1), top[:, 1:]], 1)
        return torch.zeros_like(logits).scatter_add_(1, top, torch.ones_like(logits))

    def _relevance(
        self, v: Float[Tensor, "n c"], chosen: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c"]:
        closed_form = getattr(self.probe, "relevance", None)
        if callable(closed_form):
            return cast(Tensor, closed_form(v, chosen))
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(
                False
            ):  # within it, torch 2.6 silently gives another gradient
                return self._relevance(v.clone(), chosen.clone()).detach()
        # Differentiable itself, and at work under no_grad as well.
        pull_back = torch.func.vjp(self.probe, v)[1]
        return cast(Tensor, pull_back(chosen)[0])

    def importance(self, g: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Turn the relevance into the mask."""
        return self.function(g)


@register_gate(
    "cifs", help="CIFS and CAS: channels weighed by the relevance to a probe's top logits"
)
def cifs_gate(
    channels: int,
    classes: int,
    *,
    probe: Literal["linear", "two-layer"] = "linear",
    hidden: int = 128,
    beta: float = 5.0,
    k: int = 2,
    imgf: Imgf = "softmax",
    detach: bool = True,
    scale: float = 1.0,
    sharpness: float = 1.0,
    temperature: float = 1.0,
    budget: Budget = 1.0,
) -> FeatureSelector:
    """Make a gate of CIFS from plain values; CAS is ``k=1, imgf="identity"``.

    Args:
        channels, classes: of the features and the logits.
        probe: "linear" or "two-layer"; ``hidden`` units with softplus of sharpness ``beta`` in the
            latter.
        k, imgf, detach, scale, sharpness, temperature, budget: as in ``FeatureSelector``.

    Raises:
        UserError: for values out of range.
    """
    if k > classes:
        raise _too_few_logits(k, classes)
    if not 1 <= hidden <= 65536:
        raise UserError(f"A probe has between 1 and 65,536 hidden units, not {hidden}.")
    if not 0 < beta <= 1e6:
        raise UserError(
            f"A probe's softplus has a sharpness beta above 0 and below a million, not {beta}."
        )
    classifier: LinearProbe | TwoLayerProbe
    if probe == "linear":
        classifier = LinearProbe(channels, classes)
    else:
        classifier = TwoLayerProbe(channels, classes, hidden, beta)
    return FeatureSelector(
        classifier,
        k=k,
        imgf=imgf,
        detach=detach,
        scale=scale,
        sharpness=sharpness,
        temperature=temperature,
        budget=budget,
    )


def _too_few_logits(k: int, logits: int) -> UserError:
    return UserError(f"A gate cannot choose k = {k} of {logits} logits: lower k.")
