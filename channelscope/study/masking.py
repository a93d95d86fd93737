"""Signs that a network masks its gradients, so that gradient attacks find it more robust than it is.

After Athalye et al., ICML 2018 (arXiv 1802.00420), Carlini et al. 2019 (arXiv 1902.06705) and the flags of AutoAttack
(Croce et al. 2022, arXiv 2202.13711).

Two kinds of limits decide, neither of them fitted to networks:

- How many images may a rival of PGD-20 break among those that PGD-20 leaves? What is *weaker* by its construction (one
  step, random points, no gradients) finds nothing of its own on an honest network: ``STRAY``, 2 %, is left for chance.
  What is *stronger* (more steps, more restarts, another loss) may find some: ``MATERIAL``, 5 % of the images, is what
  the strongest attacks gain over PGD-20 on most honestly trained networks (Croce & Hein, ICML 2020, arXiv 2003.01690,
  table 2), and by less than that a robust accuracy is not worth an accusation.
- A share counts as larger than its limit if a binomial count as high has a probability under ``LEVEL`` at the limit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from scipy.special import bdtrc
from torch import Tensor, nn

from channelscope.attacks import FGSM, PGD, Attack, Norm, check_images
from channelscope.attacks.ball import check_ball
from channelscope.attacks.fallback import Averaged, Estimated, Noise
from channelscope.attacks.library import Square, collect_warnings
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode
from channelscope.objectives import Objective, cross_entropy, margin
from channelscope.study.examined import Examined, seeded

# Ten checks, each wrong in at most one of 1000 cases, together accuse at most one honest network of 100.
LEVEL = 0.001
STRAY = 0.02
MATERIAL = 0.05

# Where the gradient promises a rise of the loss, a quarter of it is what a useful gradient delivers at the very least.
# It must fail in most images: that a network is curved here and there is no sign of masking.
DELIVERED = 0.25
MOST = 0.5

# Rounding moves logits by 1e-6 of their range, on GPUs too; whatever is to mislead an attack moves them by far more.
ROUNDING = 1e-3

QUERIES = 1000


@dataclass(frozen=True)
class Finding:
    """A sign of gradient masking: what was seen, in a sentence and in numbers, and the attack that shows it."""

    check: str
    sentence: str
    evidence: dict[str, float | int]
    breaks: Attack | None = None


@dataclass(frozen=True)
class Checks:
    """What the checks found, and by name of the check why one of them could not be made."""

    findings: list[Finding] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def exceeds(count: int, n: int, limit: float) -> bool:
    """Tell whether ``count`` of n is beyond chance at a share ``limit``: P(Binomial(n, limit) >= count) < LEVEL."""
    return count > 0 and float(bdtrc(count - 1, n, limit)) < LEVEL


def findings(
    network: nn.Module,
    x: Float[Tensor, "n *image"],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    norm: Norm = "inf",
    seed: int = 0,
    batch_size: int = 128,
    progress: Callable[[str], None] | None = None,
) -> Checks:
    """Look for signs that gradient attacks overestimate a network's robustness.

    Args:
        network: any network; it, its gradients and the global random state are left as found.
        x, y: some 64 to 128 images in [0, 1] and their labels; those that are classified correctly are used.
        eps: radius of the ball in image units, above 0.
        norm: "inf" or "2".
        seed: of all that is drawn by chance, by the network too.
        batch_size: images at a time.
        progress: is told the name of each check as it begins.

    Returns:
        The findings, each with the attack that should now be run on all images, where there is one; and what was
        skipped.

    Raises:
        UserError: for what is no ball, or images outside [0, 1] or with NaN.
    """
    check_ball(eps, norm)
    check_images(x)
    if not eps:
        raise UserError("Gradient masking is looked for inside a ball: give an eps above 0.")
    with seeded(x, seed), eval_mode(network):
        examined = Examined(network, x.detach(), y, eps, norm, seed, batch_size).of_correct()
        if not len(examined.x):
            return Checks([], {"all": "The network classifies none of the images correctly."})
        return _checked(examined, progress or (lambda _check: None))


def _checked(examined: Examined, progress: Callable[[str], None]) -> Checks:
    """Make all checks: first of the network alone, then of attacks against each other."""
    found, skipped = list[Finding | None](), dict[str, str]()
    for check, look in {"randomness": _random, "zero-gradient": _zero_gradient}.items():
        progress(check)
        found.append(look(examined))
    if found[0]:
        skipped["rugged-loss, unbounded-eps, attacks compared"] = (
            "The network is random: what one forward pass says against another is a matter of chance."
        )
    elif bool(examined.slopes(cross_entropy, examined.x).isnan().all()):
        skipped["gradient attacks"] = "The network has no gradient in its input: see zero-gradient."
        found.append(_found_blindly(examined, examined.rows, progress, skipped))
    else:
        for check, look in {"rugged-loss": _rugged, "unbounded-eps": _unbounded}.items():
            progress(check)
            found.append(look(examined))
        found.extend(_compared(examined, progress, skipped))
    return Checks([finding for finding in found if finding], skipped)


def _compared(
    examined: Examined, progress: Callable[[str], None], skipped: dict[str, str]
) -> list[Finding | None]:
    """Try the rivals on what PGD-20 leaves standing, and an attack without gradients on what they all leave."""
    found = list[Finding | None]()
    standing = left = examined.left_by(examined.pgd(), examined.rows)
    for rival in _rivals(examined):
        progress(rival.check)
        after = examined.left_by(rival.attack, left)
        found.append(_beaten(rival, len(examined.x), len(left), len(left) - len(after)))
        standing = standing[torch.isin(standing, after)]
    return [*found, _found_blindly(examined, standing, progress, skipped)]


# ---------------------------------------------------------------- the network alone


def _random(examined: Examined) -> Finding | None:
    """Compare two forward passes on the same images, on the scale of each image's logits."""
    one, other = examined.logits(), examined.logits()
    spread = (one.amax(1) - one.amin(1)).clamp_min(torch.finfo(one.dtype).tiny)
    moved = (one - other).abs().amax(1) / spread
    n, count = len(one), int((moved > ROUNDING).sum())
    if not exceeds(count, n, MATERIAL):
        return None
    return Finding(
        "randomness",
        f"Two forward passes on the same images differ, in {count} of {n} by more than rounding (at the median by "
        f"{moved.median():.1%} of the logits' range): the network is random, and an attack must average over it.",
        {"images": n, "differing": count, "median_difference": float(moved.median())},
        # Not done with an image at its first error, which may be due to chance.
        replace(examined.pgd(objective=Averaged(objective=margin)), early_stop=None),
    )


def _zero_gradient(examined: Examined) -> Finding | None:
    """Count the images on which the cross-entropy has no gradient, or one below the smallest normal number."""
    n = len(examined.x)
    count, of_margin = (_dead(examined, objective) for objective in (cross_entropy, margin))
    if not exceeds(count, n, MATERIAL):
        return None
    saturated = not exceeds(of_margin, n, MATERIAL)
    advice = (
        "attack the margin between the logits, which has one"
        if saturated
        else "the margin between the logits has none either: attack without gradients"
    )
    return Finding(
        "zero-gradient",
        f"The cross-entropy's gradient in the image is zero or not a number on {count} of {n} images, so an attack on "
        f"it stays where it starts; {advice}.",
        {"images": n, "without_gradient": count, "without_gradient_of_margin": of_margin},
        examined.pgd(objective=margin) if saturated else _black_box(examined)[0],
    )


def _dead(examined: Examined, objective: Objective) -> int:
    slopes = examined.slopes(objective, examined.x)
    # The sign of a number that has lost its digits is no direction.
    return int(
        (~slopes.isfinite().all(1) | (slopes.abs().amax(1) < torch.finfo(slopes.dtype).tiny)).sum()
    )


def _rugged(examined: Examined) -> Finding | None:
    """Compare the margin's rise along its gradient with the rise that the gradient predicts, at two lengths of step."""
    slopes, before = examined.slopes(margin, examined.x), examined.values(margin, examined.x)
    rounding = ROUNDING * examined.logits().abs().amax(1)
    judged = torch.zeros_like(before, dtype=torch.bool)
    rugged = judged.clone()
    for step in (examined.eps / 100, examined.eps / 10):
        move, promised = examined.along(slopes, step)
        rise = examined.values(margin, examined.x + move) - before
        here = promised > rounding  # less would drown; NaN is not more either
        judged |= here
        rugged |= here & ~(rise >= DELIVERED * promised)
    n, count = int(judged.sum()), int(rugged.sum())
    if not exceeds(count, n, MOST):
        return None
    return Finding(
        "rugged-loss",
        f"On {count} of {n} images a short step along the gradient raises the margin by less than a quarter of what "
        "the gradient promises: the loss is rugged, so take its slope from values further apart.",
        {"images": n, "rugged": count},
        examined.pgd(50, _estimated(examined)),
    )


def _unbounded(examined: Examined) -> Finding | None:
    """Attack within a ball that holds every image."""
    whole = 1.0 if examined.norm == "inf" else float(examined.x[0].numel()) ** 0.5
    left = len(examined.left_by(replace(examined.pgd(), eps=whole), examined.rows))
    n = len(examined.x)
    if not exceeds(left, n, MATERIAL):
        return None
    return Finding(
        "unbounded-eps",
        f"PGD-20 leaves {left} of {n} images standing where it may change them into any other: its failure says "
        "nothing about robustness, so do not trust PGD on the cross-entropy on this network.",
        {"images": n, "left": left, "eps": whole},
    )


# ---------------------------------------------------------------- attacks against each other


@dataclass(frozen=True)
class _Rival:
    """An attack that should not break what PGD-20 leaves standing."""

    check: str
    attack: Attack
    limit: float
    name: str
    meaning: str


def _rivals(examined: Examined) -> list[_Rival]:
    eps, norm = examined.eps, examined.norm
    astray = "the gradient leads an attack of many steps astray"
    jump = PGD(eps=eps, norm=norm, steps=1, step=1.25 * eps)
    return [
        _Rival("one-step", FGSM(eps=eps, norm=norm), STRAY, "FGSM, of one step,", astray),
        _Rival("one-step-random", jump, STRAY, "One step from a random start", astray),
        _Rival(
            "random-noise",
            Noise(eps=eps, norm=norm),
            STRAY,
            "Random noise",
            "the gradient is worse than chance",
        ),
        _Rival(
            "more-steps", examined.pgd(100), MATERIAL, "PGD of 100 steps", "20 steps are too few"
        ),
        _Rival(
            "more-restarts",
            examined.pgd(restarts=5),
            MATERIAL,
            "PGD-20 with 5 restarts",
            "one restart is too few",
        ),
        _Rival(
            "other-loss",
            examined.pgd(objective=margin),
            MATERIAL,
            "PGD-20 on the margin between logits",
            "the cross-entropy, saturated or not, guides the attack badly",
        ),
    ]


def _beaten(rival: _Rival, n: int, left: int, broken: int) -> Finding | None:
    """Judge an attack on the images that PGD-20 leaves standing."""
    if not exceeds(broken, n, rival.limit):
        return None
    return Finding(
        rival.check,
        f"{rival.name} breaks {broken} of the {left} images that PGD-20 leaves standing (of {n}): {rival.meaning}.",
        {"images": n, "left_by_pgd": left, "broken": broken, "limit": rival.limit},
        rival.attack,
    )


def _black_box(examined: Examined) -> tuple[Attack, str]:
    """Give an attack of some 1000 queries that asks for no gradient, and why it is not Square, if it is not."""
    try:
        return Square(eps=examined.eps, norm=examined.norm, queries=QUERIES), ""
    except UserError as error:
        return examined.pgd(objective=_estimated(examined)), str(error)


def _estimated(examined: Examined) -> Objective:
    """Give the margin with a slope from 50 values half the radius away, so that 20 steps are 1000 queries."""
    return Estimated(objective=margin, spread=examined.eps / 2)


def _found_blindly(
    examined: Examined, standing: Tensor, progress: Callable[[str], None], skipped: dict[str, str]
) -> Finding | None:
    """Judge an attack without gradients on the images that every attack with gradients leaves standing."""
    progress("black-box")
    attack, missing = _black_box(examined)
    if missing:
        skipped["square"] = missing
    n, left = len(examined.x), len(standing)
    with collect_warnings():  # of Square's own, which these checks are to settle
        broken = left - len(examined.left_by(attack, standing))
    if not exceeds(broken, n, STRAY):
        return None
    return Finding(
        "black-box",
        f"{attack}, which asks for no gradient, breaks {broken} of the {left} images that all attacks with gradients "
        f"leave standing (of {n}): the gradients mislead.",
        {"images": n, "left_by_gradients": left, "broken": broken, "limit": STRAY},
        attack,
    )
