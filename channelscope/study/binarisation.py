"""The binarisation test: does an attack find an adversarial image where there surely is one?

Zimmermann et al., NeurIPS 2022 (arXiv 2206.13991). The network's features are kept and its readout
is replaced by one of two classes, made so that a known point of the ball belongs to the second. An
attack that cannot find such a point says nothing about the network's robustness either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks import Attack, Norm, check_images, find_correct, make_generators
from channelscope.attacks.ball import check_ball, draw_uniform, l2_norms, make_projection, to_normal
from channelscope.attacks.fallback import Noise
from channelscope.errors import UserError
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode
from channelscope.layers.penultimate import LastLayer
from channelscope.study.masking import MATERIAL, Sign, exceeds
from channelscope.study.seeding import seed_globally

# Fewer than the paper's 999 points, for a CPU's sake: more of them only make the test harder for a
# random search.
INNER_POINTS = 255
INNER_RADIUS = 0.95  # the inner points' ball, in radii of the whole

# Where the boundary between the classes lies, from the last inner point (0) to the known one (1).
CLOSENESS = 0.999

# In the channels' mean variance. Far less, and directions in which the points hardly differ make
# the readout, which is then so steep that PGD fails on honest networks too; more, and fewer images
# have points that are separated.
RIDGE = 1.0

# Random search gets as many queries as the attack, within these bounds.
TRIES = (20, 1000)


@dataclass(frozen=True)
class Binarisation:
    """How often an attack, and a random search of as many queries, found an adversarial image.

    The test is passed unless more images fail than the 5 % that the paper allows for, beyond
    chance, or a random search does better.

    Args:
        attack: its name.
        images: number of images that have a readout.
        attack_success, random_success: share of them in [0, 1].
    """

    attack: str
    images: int
    attack_success: float
    random_success: float

    @property
    def passed(self) -> bool:
        """Whether the attack is strong enough for this network."""
        missed = round(self.images * (1 - self.attack_success))
        ahead = round(self.images * (self.random_success - self.attack_success))
        return not any(exceeds(count, self.images, MATERIAL) for count in (missed, ahead))

    @property
    def sign(self) -> Sign | None:
        """What is wrong where the attack is too weak."""
        if self.passed:
            return None
        return Sign(
            f"{self.attack} finds {self.attack_success:.0%} of {self.images} adversarial images "
            f"that are known to exist, a random search {self.random_success:.0%}: this attack is "
            "too weak for this network, so do not trust the robust accuracy under it.",
            {
                "images": self.images,
                "attack_success": self.attack_success,
                "random_success": self.random_success,
            },
        )


class Readout(nn.Module):
    """A network's features with a readout of two classes: 0 around an image, 1 at a known point.

        s = (w . a - t) / u,  logits (-s / 2, s / 2, ...)

    with the layer's activations a (C,). Two more logits, always below those, are for attacks that
    compare three or four of them, as the DLR loss does; no class but 0 and 1 is ever the largest.
    """

    def __init__(
        self, network: nn.Module, layer: str, direction: Tensor, threshold: Tensor, unit: Tensor
    ) -> None:
        super().__init__()
        self.network, self.layer = network, layer
        self.direction, self.threshold, self.unit = direction, threshold, unit
        self.queries = 0

    def forward(self, x: Float[Tensor, "n *image"]) -> Float[Tensor, "n 4"]:
        """Return the logits; class 1 begins where s is 0."""
        self.queries += len(x)
        a = _read_activations(self.network, self.layer, x).to(self.direction.dtype)
        s = (a @ self.direction - self.threshold) / self.unit
        low = -s.detach().abs() / 2 - 1
        return torch.stack([-s / 2, s / 2, low, low - 1], dim=1)


def run_binarisation_test(
    network: nn.Module,
    x: Float[Tensor, "n *image"],
    y: Int[Tensor, " n"],
    attack: Attack,
    *,
    layer: str | None = None,
    images: int = 32,
    seed: int = 0,
) -> Binarisation:
    """Test an attack on readouts of a network that have an adversarial image in the attack's ball.

    For an image x: inner points x + xi * eps * s and one point x + eps * s on the surface of the
    ball, s random. In the space of the layer's activations, Fisher's discriminant
    w = (S + ridge)^-1 (a_surface - mean a_inner), S the inner points' covariance, separates them;
    the threshold t lies just before the surface point. The attack starts from x, of class 0.

    Args:
        network: any network; it, its gradients and the global random state are left as they were.
        x, y: images in [0, 1] and labels; of those classified correctly, the first that have a
            readout are used.
        attack: with its eps and norm.
        layer: the readout's input; None for the penultimate layer.
        images: how many at most, 24 to 48 say.
        seed: of the points and of the attack's random numbers.

    Raises:
        UserError: for an attack without a ball, images outside [0, 1], a network that classifies no
            image correctly or whose penultimate layer is not found.
    """
    check_images(x)
    norm: Norm = getattr(attack, "norm", "inf")
    check_ball(attack.eps, norm)
    if not attack.eps:
        raise UserError("The binarisation test needs an attack with an eps above 0, not 0.")
    with seed_globally(x, seed), eval_mode(network):
        x = x.detach()[find_correct(network, x, y)]
        if not len(x):
            raise UserError("The binarisation test needs images that the network gets right.")
        layer = layer or _find_penultimate(network, x)
        readouts = islice(_make_readouts(network, layer, x, attack.eps, norm, seed), images)
        fooled = [
            _attack_readout(number, image, readout, attack, norm, seed)
            for number, image, readout in readouts
        ]
    if not fooled:
        raise UserError(
            f"The activations of layer {layer!r} do not separate points of the ball: choose "
            "another layer."
        )
    success = torch.tensor(fooled, dtype=torch.float64, device="cpu").mean(0).tolist()
    return Binarisation(str(attack), len(fooled), *success)


def _find_penultimate(network: nn.Module, x: Tensor) -> str:
    """Return the name of the layer whose activations the last linear layer gets."""
    return LastLayer.find(network, x[:4]).inputs[0]


def _read_activations(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    with capture_activations(network, layer) as activations:
        network(x)
    return activations[layer]


def _make_readouts(
    network: nn.Module, layer: str, x: Tensor, eps: float, norm: Norm, seed: int
) -> Iterator[tuple[int, Tensor, Readout]]:
    """Yield each image's number, image and readout; skip images whose points are not separated."""
    for number, generator in enumerate(make_generators(seed, "binarisation", range(len(x))).each):
        image = x[number : number + 1]
        with torch.no_grad():
            points = _draw_points(image, eps, norm, generator)
            a = _read_activations(network, layer, points).cpu().double()
        readout = _fit_readout(network, layer, a, x.device)
        label = torch.zeros(1, dtype=torch.long, device=x.device)
        if readout is not None and bool(find_correct(readout, image, label)):
            yield number, image, readout


def _draw_points(image: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Return the image, inner points and, in the last row, one of the surface.

    All lie as far out as their ball lets them (in the cube's corners, for L-inf): were the inner
    points nearer, the readout would tell strong noise from weak, and any noise of full strength
    would be of class 1.
    """
    u = to_normal(draw_uniform((INNER_POINTS + 1, *image.shape[1:]), image, generator))
    outward = u.sign() if norm == "inf" else u / l2_norms(u).clamp_min(1e-12)
    outward[:-1] *= INNER_RADIUS
    return torch.cat([image, make_projection(image, eps, norm)(image + eps * outward)])


def _fit_readout(network: nn.Module, layer: str, a: Tensor, device: torch.device) -> Readout | None:
    """Fit the readout to the activations of the inner points and, in the last row, the surface's.

    None where it does not separate them.
    """
    inner, surface = a[:-1], a[-1]
    centred = inner - inner.mean(0)
    covariance = centred.T @ centred / len(inner)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-24)
    w = torch.linalg.solve(
        covariance + ridge * torch.eye(len(covariance), dtype=a.dtype, device=a.device),
        surface - inner.mean(0),
    )
    last, known = (inner @ w).amax(), surface @ w
    if not known > last:
        return None
    threshold, unit = last + CLOSENESS * (known - last), known - (inner @ w).mean()
    numbers = (number.float().to(device) for number in (w, threshold, unit))
    return Readout(network, layer, *numbers)


def _attack_readout(
    number: int, image: Tensor, readout: Readout, attack: Attack, norm: Norm, seed: int
) -> tuple[bool, bool]:
    """Return whether the attack, and a random search of as many queries, reach class 1."""
    y = torch.zeros(1, dtype=torch.int64, device=image.device)

    def succeeds(search: Attack) -> bool:
        generators = make_generators(seed, f"binarisation {search}", [number])
        return not bool(find_correct(readout, search(readout, image, y, generators), y))

    success = succeeds(attack)
    tries = min(max(readout.queries, TRIES[0]), TRIES[1])
    return success, succeeds(Noise(eps=attack.eps, norm=norm, tries=tries))
