"""Feature separation and recalibration: Kim et al., CVPR 2023 (arXiv 2303.13846), section 3."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates.base import Selection, register_gate, require_maps


@register_gate("fsr", help="FSR: non-robust elements separated by a learned mask, and recalibrated")
class FeatureRecalibrator(nn.Module):
    """The gate of FSR: separate non-robust elements of the features and recalibrate them.

    With r = S(z) the robustness map, p = sigmoid(r), m the mask of a Gumbel softmax of (p, 1 - p):

        m  = softmax((log p + g1) / tau, (log (1 - p) + g2) / tau)_1 = sigmoid((r + g1 - g2) / tau)
        z+ = m * z,    z- = (1 - m) * z                                 (separation)
        z~ = z- + (1 - m) * R(z-)                                       (recalibration)

    and the selected features are z+ + z~. The Gumbel variables g1, g2 are drawn in training mode
    only; their difference, which is all that counts, is logistic. S and R are three 3x3
    convolutions each, BatchNorm and ReLU between. One linear classifier A of mean features is
    trained at all three places (weights lambda_sep and lambda_rec are 1 in the paper):

        L = CE(logits, y) + lambda_sep (CE(A(z+), y) + CE(A(z-), y')) + lambda_rec CE(A(z~), y)

    where y' is the wrong class that the network's own answer is most confident of. The training
    attack, made without noise, maximises CE(logits, y) alone. In the paper tau = 0.1 and the gate
    follows the last stage: ``layer4`` of a CIFAR ResNet-18, the last activations (``features``) of
    a WideResNet. Adversarial training of 100 epochs, SGD 0.1, momentum 0.9, weight decay 5e-4,
    lr / 10 at 75 and 90, PGD-10 of step eps / 4.

    What the paper leaves open (width, kernels and bias of S and R, depth of A) is as in the
    authors' release (wkim97/FSR). The release adds 1e-8 inside its logarithms and to tau: here, as
    in the paper, nothing is added.

    Args:
        channels, classes: of the features and the logits.
        hidden: channels inside S and R.
        tau: temperature of the Gumbel softmax: the lower, the nearer is the mask to 0 or 1.

    Raises:
        UserError: for values out of range; in the forward pass for features that are no maps.
    """

    def __init__(self, channels: int, classes: int, *, hidden: int = 64, tau: float = 0.1) -> None:
        super().__init__()
        if not 1 <= hidden <= 65536:
            raise UserError(f"A gate of FSR has 1 to 65,536 hidden channels, not {hidden}.")
        if not 1e-6 <= tau <= 1e6:
            raise UserError(
                f"The temperature tau of FSR lies between 1e-6 and a million, not at {tau}."
            )
        self.tau = tau
        self.separation = _make_convolutions(channels, hidden)
        self.recalibration = _make_convolutions(channels, hidden)
        self.classifier = nn.Linear(channels, classes)

    def forward(
        self, z: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None = None
    ) -> Selection:
        """Recalibrate the features z; the labels are not looked at."""
        require_maps(z, "fsr")
        mask = self.importance(self.separation(z)).to(z.dtype)
        robust, other = z * mask, z * (1 - mask)
        recalibrated = other + (1 - mask) * self.recalibration(other)
        robust_logits = self.classifier(robust.mean((2, 3)))
        other_logits = self.classifier(other.mean((2, 3)))
        recalibrated_logits = self.classifier(recalibrated.mean((2, 3)))
        return Selection(
            features=robust + recalibrated,
            mask=mask,
            extra=(robust_logits, recalibrated_logits),
            rivals=(other_logits,),
        )

    def importance(self, r: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Turn the robustness map into the mask."""
        if self.training:
            exact = torch.promote_types(r.dtype, torch.float32)  # half precision would often draw 0
            r = r + torch.rand_like(r, dtype=exact).logit()
        return torch.sigmoid(r / self.tau)


def _make_convolutions(channels: int, hidden: int) -> nn.Sequential:
    def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
        return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)

    return nn.Sequential(
        *(conv(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU()),
        *(conv(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU()),
        conv(hidden, channels),
    )
