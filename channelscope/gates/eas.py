"""Element-wise activation scaling (EAS, also EWAS): Zhang & Liu, 2022 (arXiv 2202.11898)."""

from math import prod

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates.base import Selection, register_gate, require_maps

_MOST = 2**24  # elements of one image's features


@register_gate(
    "eas", help="EAS: every element weighed by a class's weight in a linear probe of all"
)
class ElementScaler(nn.Module):
    """The gate of EAS: scale each element by a class's weight in a linear probe of all elements.

        p = W flatten(z) + b,    m = W[t] in the shape of z,    selected features z * m

    where t is the label in training mode and the largest of p elsewhere. It is CAS without the mean
    over space: the probe, and so the gate, is made for one size of feature map. The mask is the
    same for all images of one class, so no gradient passes through it to the input, and none is
    hidden. The training loss, which the training attack (PGD-10) maximises as well, is

        L = CE(logits, y) + lambda CE(p, y)

    with lambda = 0.01 in the authors' scripts. They place the gate before the last block of a CIFAR
    ResNet-18 (``layer4.0``, features of 512 x 4 x 4) and before the last three blocks of a
    WideResNet, and train for 120 epochs with SGD 0.1, momentum 0.9, weight decay 2e-4, lr / 10 at
    60 and 90, eps 0.031, step 0.007; with TRADES, the same loss taken of p is added, weighed by
    lambda too.

    This follows the authors' release (ieslab-ynu/EWAS) but for one thing: there the training attack
    knows the labels' masks; here, as in every gate, an attack (made in eval mode) meets the mask
    that the network would choose itself.

    Args:
        channels, classes: of the features and the logits.
        height, width: of the features.

    Raises:
        UserError: for values out of range; in the forward pass for features of another size.
    """

    labelled = True

    def __init__(self, channels: int, classes: int, *, height: int = 4, width: int = 4) -> None:
        super().__init__()
        self.shape = channels, height, width
        if min(height, width) < 1 or prod(self.shape) > _MOST:
            raise UserError(
                f"A gate of EAS is for features of 1 to {_MOST:,} elements, not "
                f"{channels} x {height} x {width}."
            )
        self.probe = nn.Linear(prod(self.shape), classes)

    def forward(
        self, z: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None = None
    ) -> Selection:
        """Scale the features z; labels (n,) choose the mask in training mode only."""
        require_maps(z, "eas")
        if z.shape[1:] != self.shape:
            ours, theirs = (" x ".join(map(str, size)) for size in (self.shape, z.shape[1:]))
            raise UserError(
                f"This gate of EAS is for features of {ours}, not {theirs}: make it for the size "
                "of the features, or give images of the size that it was made for."
            )
        logits = self.probe(z.flatten(1))
        chosen = labels if self.training and labels is not None else logits.argmax(1)
        mask = self.importance(chosen)
        return Selection(z * mask, logits, mask)

    def importance(self, chosen: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Return the mask of the chosen classes."""
        weight = self.probe.weight
        # A product, as indexing adds its gradients in any order.
        mask = F.one_hot(chosen, len(weight)).to(weight.dtype) @ weight
        return mask.view(-1, *self.shape)
