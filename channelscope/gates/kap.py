"""Kernel average pooling: Bashivan, Ibrahim, Dehghani & Ren (arXiv 2210.00062)."""

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates.base import Selection, register_gate, require_maps


@register_gate("kap", help="KAP: channels averaged with their neighbours; no probe, no mask")
class KernelAveragePool(nn.Module):
    """The gate of KAP: average each channel with its neighbours in a sheet, at every position.

    The c channels are laid out, row by row, on the squarest sheet of rows x columns = c (rows <=
    columns):

        pooled[i, j] = mean of z[i', j'] over |i - i'|, |j - j'| <= (K - 1) / 2 within the sheet

    so that neighbouring channels become an ensemble of like kernels. There is nothing to train, no
    probe, no mask; a prime number of channels lies in one row. It stands behind every convolution
    and before its BatchNorm: of a CIFAR ResNet-18 these are ``conv1``, all ``conv1`` and ``conv2``
    of its blocks and each ``shortcut.0``, 20 in all, with K = 3. Such networks are trained on
    natural images with plain cross-entropy, made noisy in one of two ways: by Gaussian noise on the
    activations behind each pool (the paper's first version) or on the images (its second).

    The layer, its place and K follow the authors' code (kept in their later BashivanLab/LLCNN), as
    the paper's own equations were not at hand. Of the code's variants this is the default one:
    mean, one pool, a stride of 1 channel, and a mean of those neighbours that exist (zeros beyond
    the sheet's edge are not counted). One thing differs: the code adds its noise at test time too.
    Here it is of training mode only, as an attack on random answers would have to average over
    them.

    Args:
        channels, classes: of the features and the logits; the latter do not matter here.
        pool: K, an odd number.
        noise: standard deviation of the Gaussian noise that is added to the pooled features in
            training mode, 0 for none; the authors' CIFAR ResNets have 0.1 by default.

    Raises:
        UserError: for values out of range; in the forward pass for features that are no maps.
    """

    def __init__(self, channels: int, classes: int, *, pool: int = 3, noise: float = 0.0) -> None:
        super().__init__()
        if pool % 2 == 0 or not 1 <= pool <= 255:
            raise UserError(
                f"KAP averages over an odd number of rows and columns up to 255, not {pool}."
            )
        if not 0 <= noise <= 1e6:
            raise UserError(f"The noise of KAP lies between 0 and a million, not at {noise}.")
        rows = next(size for size in range(isqrt(channels), 0, -1) if channels % size == 0)
        self.sheet = rows, channels // rows
        self.pool, self.noise = pool, noise

    def forward(
        self, z: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None = None
    ) -> Selection:
        """Pool the features z; the labels are not looked at."""
        require_maps(z, "kap")
        sheets = z.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, self.sheet)
        pooled = F.avg_pool2d(sheets, self.pool, 1, self.pool // 2, count_include_pad=False)
        pooled = pooled.flatten(2).transpose(1, 2).reshape(z.shape)
        if self.training and self.noise:
            pooled = pooled + self.noise * torch.randn_like(pooled)
        return Selection(pooled)
