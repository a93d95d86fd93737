"""The scorer of the penultimate layer: the last linear layer's weights."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.penultimate import LastLayer
from channelscope.scorers.base import Cost, register_scorer


@register_scorer(
    "weights", cost=Cost(), help="the last linear layer's weights; of the penultimate layer only"
)
def weights(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score penultimate layers by the last linear layer's weights: g[i, c] = W[y_i, c].

    This is exactly the gradient there; logits that are divided by a temperature divide it too. The
    last layer is searched on two of the images.

    Raises:
        UserError: for a layer that is not penultimate, or a network whose logits do not come from a
            linear layer, or come from one by way of a ReLU.
    """
    if not layers:
        return {}
    last = LastLayer.find(model, x[:2])
    for layer in layers:
        if layer not in last.inputs:
            inputs = " or ".join(map(repr, last.inputs[:3]))
            raise UserError(
                f"Layer {layer!r} is not the penultimate one, whose channels the last linear layer "
                f"weighs: choose {inputs}, or score by gradient."
            )
    if last.weight is None:
        raise UserError(
            "The logits are not the last linear layer's output, but made of it by way of a ReLU or "
            "from a map by a wide kernel, so its weight is not their gradient: score by gradient."
        )
    return dict.fromkeys(layers, last.weight[y])
