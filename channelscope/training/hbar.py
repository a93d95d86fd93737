"""HBaR: a training loss with a penalty on what a network's features share with the images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.layers.features import capture
from channelscope.objectives import Gated, Images, Labels, Objective, PerImage, TrainingLoss

_RIDGE = 1e-5  # times the number of images, as in the release: kernels have inverses then


@dataclass(frozen=True)
class HBaR:
    """A training loss, and on top of it the penalty of HBaR on a batch's natural images.

    Wang et al., NeurIPS 2021 (arXiv 2106.02734), as in their release. With x the images, y the
    labels and z^l the features of layer l of these n images:

        loss = own loss + of_images sum_l nHSIC(x, z^l) - of_labels sum_l nHSIC(y, z^l),

    see ``project``. The kernel of images and of features, of d numbers, is Gaussian,
    exp(-|a - b|^2 / (2 sigma^2 d)); that of the labels is 1 for two images of one class, else 0.

    Args:
        loss: the own loss, of natural and adversarial images.
        layers: whose features are penalised.
        of_images, of_labels: weights, >= 0.
        sigma: width of the Gaussian kernel, > 0.
    """

    loss: TrainingLoss
    layers: tuple[str, ...]
    of_images: float
    of_labels: float
    sigma: float

    def attacked(self, model: nn.Module, x: Images) -> Objective:
        """Return what adversarial images maximise: that of the own loss."""
        return self.loss.attacked(model, x)

    def __call__(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> PerImage:
        """Return the own loss of each image, and of the penalty the same for all."""
        with capture(model, *self.layers) as features:
            # Of a gated network the labels reach the masks, as they do in its own loss.
            _ = model.probed(x, y) if isinstance(model, Gated) else model(x)
        penalty = self._measure_penalty(x, [features[layer] for layer in self.layers], y)
        return self.loss(model, x, x_adv, y) + penalty

    def _measure_penalty(self, x: Images, features: list[Tensor], y: Labels) -> Float[Tensor, ""]:
        # Half precision has no inverses.
        with torch.autocast(x.device.type, enabled=False):
            of_x = project(make_gaussian_kernel(x, self.sigma))
            of_y = project((y.unsqueeze(0) == y.unsqueeze(1)).to(of_x))
            weighed = self.of_images * of_x - self.of_labels * of_y
            kernels = (make_gaussian_kernel(z, self.sigma) for z in features)
            return torch.stack([(project(kernel) * weighed).sum() for kernel in kernels]).sum()


def make_gaussian_kernel(values: Float[Tensor, "n *d"], sigma: float) -> Float[Tensor, "n n"]:
    """Return exp(-|a - b|^2 / (2 sigma^2 d)) of the values (d numbers) of any two images."""
    flat = values.flatten(1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    squares = flat.square().sum(1)
    distances = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * flat @ flat.T).abs()
    return (-distances / (2 * sigma**2 * flat.shape[1])).exp()


def project(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return K' (K' + 1e-5 n I)^-1 for K' = H K H, H = I - 1/n: the kernel centred, its scale gone.

    The sum over the products of two such matrices' elements is nHSIC (Fukumizu et al., NeurIPS
    2007), how much two variables depend on each other whatever their scale, from 0 to n - 1. The
    release centres kernels on one side alone, which gives the same sum.
    """
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    ridge = _RIDGE * len(kernel) * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    solved: Tensor = torch.linalg.solve(centred + ridge, centred)
    return solved
