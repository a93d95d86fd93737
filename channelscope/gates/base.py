"""What gates return."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from channelscope.errors import UserError


class Selection(NamedTuple):
    """What a gate returns: the selected features, and what it has besides them.

    Args:
        features: what the rest of the network sees, z * m for the gates of CIFS.
        probe_logits: of the gate's probe, trained to tell the labels.
        mask: multipliers of the channels, or of single elements.
        extra: further logits (n, k) that are trained to tell the labels.
        rivals: logits (n, k) that are trained to tell each image's rival: the wrong class that the network's own
            answer is most confident of.
    """

    features: Float[Tensor, "n c *space"]
    probe_logits: Float[Tensor, "n k"] | None = None
    mask: Float[Tensor, "n c"] | Float[Tensor, "n c h w"] | None = None
    extra: tuple[Tensor, ...] = ()
    rivals: tuple[Tensor, ...] = ()

    def heads(
        self, y: Int[Tensor, " n"], answer: Float[Tensor, "n k"]
    ) -> list[tuple[Tensor, Tensor]]:
        """List the logits that are trained, each with its targets (n,); ``answer`` holds the network's logits."""
        own = () if self.probe_logits is None else (self.probe_logits,)
        heads = [(logits, y) for logits in (*own, *self.extra)]
        if self.rivals:
            rival = strongest_rival(answer, y)
            heads += [(logits, rival) for logits in self.rivals]
        return heads


def strongest_rival(answer: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Find, per image, the class of the largest logit that is not the label's."""
    first, second = answer.topk(2, dim=1).indices.unbind(1)
    return torch.where(first == y, second, first)


def mask_share(mask: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    r"""Give, per image, the share of a mask's multipliers that is in effect: their participation ratio.

    .. math:: (\sum_i |m_i|)^2 \,/\, (C \sum_i m_i^2)

    of C multipliers lies between 1 / C, where one alone is not 0, and 1, where all are alike; 0 for a mask of zeros.
    """
    m = mask.double().abs()
    return (m.sum(1) ** 2 / (m.shape[1] * (m**2).sum(1)).clamp_min(torch.finfo(m.dtype).tiny)).to(
        mask.dtype
    )


def require_maps(z: Float[Tensor, "n c *space"], kind: str) -> None:
    """Refuse features that are not feature maps (n, c, h, w)."""
    if z.ndim != 4:
        raise UserError(
            f"A gate of kind {kind} selects feature maps (n, c, h, w), not features of shape {tuple(z.shape)}: "
            "gate a convolutional layer."
        )
