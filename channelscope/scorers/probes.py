"""The relevance that a gate itself uses: that of its probe's logits."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates import Selective
from channelscope.layers.channels import summed
from channelscope.layers.hooks import eval_mode
from channelscope.scorers.base import Cost, register_scorer


# Its cost leaves out the way back through the probe alone.
@register_scorer("probe", cost=Cost(once=1), help="a gate's own relevance; of gated layers only")
def probe(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score gated layers by their own probe p: g[i, c] = sum over space of d p_{y_i} / dz (CIFS).

    The gate makes its mask of this relevance of the logits that it chooses; here it is that of each
    image's class.

    Args:
        model: a gated network; it is left as found.
        layers: names of gated layers.
        x, y: images and labels.

    Raises:
        UserError: for a layer that has no probe.
    """
    if not isinstance(model, Selective):
        raise UserError("The network has no gates, and so no probes: choose another scorer.")
    with eval_mode(model), torch.enable_grad():
        answer = model.probed(x.detach().requires_grad_())
        probes = answer.probes
        if missing := [layer for layer in layers if layer not in probes]:
            choices = " or ".join(map(repr, probes)) or "another scorer"
            raise UserError(f"Layer {missing[0]!r} has no gate with a probe: choose {choices}.")
        relevance = {}
        for layer in layers:
            logit = probes[layer].gather(1, y.unsqueeze(1)).sum()
            (slope,) = torch.autograd.grad(logit, answer.features[layer])
            relevance[layer] = summed(slope, 1)
    return relevance
