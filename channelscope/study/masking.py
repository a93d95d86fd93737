"""Checks for gradient masking, by which gradient attacks find a network more robust than it is.

After Athalye et al., ICML 2018 (arXiv 1802.00420), Carlini et al. 2019 (arXiv 1902.06705) and the
flags of AutoAttack (Croce et al. 2022, arXiv 2202.13711).

Two kinds of limits decide, neither of them fitted to networks:

- How many images may a rival of PGD-20 break among those that withstand PGD-20? What is *weaker* by
  its construction (one step, random points, no gradients) finds nothing of its own on an honest
  network: ``STRAY``, 2 %, is left for chance. What is *stronger* (more steps, more restarts,
  another loss) may find some: ``MATERIAL``, 5 % of the images, is what the strongest attacks gain
  over PGD-20 on most honestly trained networks (Croce & Hein, ICML 2020, arXiv 2003.01690, table
  2), and by less than that a robust accuracy is not worth an accusation.
- A share counts as larger than its limit if a binomial count as high has a probability under
  ``LEVEL`` at the limit.

A check is a function of ``AttackedImages`` that returns a ``Sign`` or None, entered in ``CHECKS``
by ``register_check``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import bdtrc
from torch import Tensor, nn

from channelscope.analyses.base import Finding
from channelscope.attacks import FGSM, PGD, Attack, Norm, check_images
from channelscope.attacks.ball import check_ball
from channelscope.attacks.fallback import Averaged, Estimated, Noise
from channelscope.attacks.library import Square, collect_warnings
from channelscope.errors import UserError
from channelscope.layers.hooks import eval_mode
from channelscope.objectives import Objective, cross_entropy, margin
from channelscope.study.attacked_images import AttackedImages
from channelscope.study.seeding import seed_globally

# Ten checks, each wrong in at most one of 1000 cases, together accuse at most one honest network
# of 100.
LEVEL = 0.001
STRAY = 0.02
MATERIAL = 0.05

# A useful gradient delivers at the very least a quarter of the rise of the loss that it promises.
# It must fail in most images: a network that is curved here and there is no sign of masking.
MIN_RISE = 0.25
MAX_RUGGED = 0.5

# Rounding moves logits by 1e-6 of their range, on GPUs too; what misleads an attack, by far more.
ROUNDING = 1e-3

QUERIES = 1000


@dataclass(frozen=True)
class Sign:
    """A sign of gradient masking: a sentence, its numbers, and the attack that shows it, if any."""

    sentence: str
    evidence: Mapping[str, float | int]
    breaks: Attack | None = None


@dataclass(frozen=True)
class Checks:
    """What the checks showed.

    Args:
        signs: check -> the sign of gradient masking that it found.
        skipped: check -> why it could not be made.
        made: the names of the checks that were made, in their order.
    """

    signs: dict[str, Sign] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The signs as results keep them."""
        return tuple(
            Finding(check, sign.sentence, sign.evidence) for check, sign in self.signs.items()
        )


CheckFunction = Callable[[AttackedImages], Sign | None]

# What a check needs of a network to mean anything; the stages in which checks are made.
Needs = Literal["nothing", "gradient", "determinism"]


@dataclass(frozen=True)
class Check:
    """A check: its name, what it needs, one line on what it looks for, and its function.

    A check that needs a gradient needs determinism too, and is made before those without gradients.
    """

    name: str
    needs: Needs
    help: str
    run: CheckFunction


CHECKS: list[Check] = []


def register_check(
    name: str, *, needs: Needs, help: str
) -> Callable[[CheckFunction], CheckFunction]:
    """Enter a function in ``CHECKS``; checks of one stage are made in the order of registration."""

    def register(run: CheckFunction) -> CheckFunction:
        CHECKS.append(Check(name, needs, help, run))
        return run

    return register


def exceeds(count: int, n: int, limit: float) -> bool:
    """Return whether a count is beyond chance: P(Binomial(n, limit) >= count) < LEVEL."""
    return count > 0 and float(bdtrc(count - 1, n, limit)) < LEVEL


def check_masking(
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
        network: any network; it, its gradients and the global random state are left as they were.
        x, y: some 64 to 128 images in [0, 1] and their labels; those that are classified correctly
            are used.
        eps: radius of the ball in image units, above 0.
        norm: "inf" or "2".
        seed: of all random numbers, the network's too.
        batch_size: images at a time.
        progress: called with the name of each check as it begins.

    Returns:
        The signs, each with the attack that should now be run on all images, where there is one;
        and what was skipped.

    Raises:
        UserError: for an eps or norm that makes no ball, and images outside [0, 1] or with NaN.
    """
    check_ball(eps, norm)
    check_images(x)
    if not eps:
        raise UserError(f"Gradient masking is checked in a ball: give an eps above 0, not {eps}.")
    with seed_globally(x, seed), eval_mode(network):
        images = AttackedImages(network, x.detach(), y, eps, norm, seed, batch_size).keep_correct()
        if not len(images):
            return Checks(skipped={"all": "The network classifies none of the images correctly."})
        return _make_checks(images, progress or (lambda _check: None))


def _make_checks(images: AttackedImages, progress: Callable[[str], None]) -> Checks:
    """Make all checks: first of the network alone, then of attacks against each other."""
    checks = Checks(skipped=images.skipped)

    def make(stage: Needs) -> None:
        for check in CHECKS:
            if check.needs == stage:
                progress(check.name)
                checks.made.append(check.name)
                if sign := check.run(images):
                    checks.signs[check.name] = sign

    make("nothing")
    if "randomness" in checks.signs:
        checks.skipped["rugged-loss, unbounded-eps, attacks compared"] = (
            "The network is random: what one forward pass says against another is a matter of "
            "chance."
        )
        return checks
    if images.compute_gradients(cross_entropy).isnan().all():
        checks.skipped["gradient attacks"] = (
            "The network has no gradient in its input: see zero-gradient."
        )
    else:
        make("gradient")
    make("determinism")
    return checks


# ---------------------------------------------------------------- the network alone


@register_check("randomness", needs="nothing", help="two forward passes differ")
def check_randomness(images: AttackedImages) -> Sign | None:
    """Compare two forward passes on the same images, on the scale of each image's logits."""
    moved = measure_change(images.compute_logits(), images.compute_logits())
    n, count = len(moved), int((moved > ROUNDING).sum())
    if not exceeds(count, n, MATERIAL):
        return None
    return Sign(
        f"Two forward passes on the same images differ, in {count} of {n} by more than rounding "
        f"(at the median by {moved.median():.1%} of the logits' range): the network is random, and "
        "an attack must average over it.",
        {"images": n, "differing": count, "median_difference": float(moved.median())},
        # An image stays after its first error, which may be due to chance.
        replace(images.make_pgd(objective=Averaged(objective=margin)), early_stop=None),
    )


def measure_change(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return how far each image's logits differ, as a share of their range."""
    spread = (one.amax(1) - one.amin(1)).clamp_min(torch.finfo(one.dtype).tiny)
    return (one - other).abs().amax(1) / spread


@register_check("zero-gradient", needs="nothing", help="the cross-entropy has no gradient")
def check_zero_gradient(images: AttackedImages) -> Sign | None:
    """Count the images whose cross-entropy has no gradient, or one below the normal numbers."""
    n = len(images)
    count = int(find_without_gradient(images, cross_entropy).sum())
    of_margin = int(find_without_gradient(images, margin).sum())
    if not exceeds(count, n, MATERIAL):
        return None
    is_saturated = not exceeds(of_margin, n, MATERIAL)
    advice = (
        "attack the margin between the logits, which has one"
        if is_saturated
        else "the margin between the logits has none either: attack without gradients"
    )
    return Sign(
        f"The cross-entropy's gradient in the image is zero or not a number on {count} of {n} "
        f"images, so an attack on it stays where it starts; {advice}.",
        {"images": n, "without_gradient": count, "without_gradient_of_margin": of_margin},
        images.make_pgd(objective=margin) if is_saturated else _make_black_box(images)[0],
    )


def find_without_gradient(images: AttackedImages, objective: Objective) -> Bool[Tensor, " n"]:
    """Return in which images an objective's gradient is zero, too small, or not a number."""
    gradients = images.compute_gradients(objective)
    # The sign of a number that has lost its digits is no direction.
    is_tiny = gradients.abs().amax(1) < torch.finfo(gradients.dtype).tiny
    return ~gradients.isfinite().all(1) | is_tiny


@register_check("rugged-loss", needs="gradient", help="the loss rises less than its slope promises")
def check_rugged_loss(images: AttackedImages) -> Sign | None:
    """Compare the margin's rise along its gradient with the rise promised, for two step lengths."""
    gradients, before = images.compute_gradients(margin), images.compute_values(margin, images.x)
    rounding = ROUNDING * images.compute_logits().abs().amax(1)
    is_judged = torch.zeros_like(before, dtype=torch.bool)
    is_rugged = is_judged.clone()
    for length in (images.eps / 100, images.eps / 10):
        move, promised = images.step_along(gradients, length)
        rise = images.compute_values(margin, images.x + move) - before
        is_above = promised > rounding  # less would drown; NaN is not more either
        is_judged |= is_above
        is_rugged |= is_above & ~(rise >= MIN_RISE * promised)
    n, count = int(is_judged.sum()), int(is_rugged.sum())
    if not exceeds(count, n, MAX_RUGGED):
        return None
    return Sign(
        f"On {count} of {n} images a short step along the gradient raises the margin by less than "
        "a quarter of what the gradient promises: the loss is rugged, so take its slope from "
        "values further apart.",
        {"images": n, "rugged": count},
        images.make_pgd(50, _estimate_margin(images)),
    )


@register_check("unbounded-eps", needs="gradient", help="PGD-20 fails where it may change all")
def check_unbounded_eps(images: AttackedImages) -> Sign | None:
    """Attack within a ball that holds every image."""
    whole = 1.0 if images.norm == "inf" else float(images.x[0].numel()) ** 0.5
    count = len(images.find_robust(replace(images.make_pgd(), eps=whole), images.rows))
    n = len(images)
    if not exceeds(count, n, MATERIAL):
        return None
    return Sign(
        f"PGD-20 leaves {count} of {n} images standing where it may change them into any other: "
        "its failure says nothing about robustness, so do not trust PGD on the cross-entropy on "
        "this network.",
        {"images": n, "left": count, "eps": whole},
    )


# ---------------------------------------------------------------- attacks against each other

_ASTRAY = "the gradient leads an attack of many steps astray"


@register_check("one-step", needs="gradient", help="FGSM breaks what PGD-20 does not")
def check_one_step(images: AttackedImages) -> Sign | None:
    """Compare FGSM with PGD-20."""
    attack = FGSM(eps=images.eps, norm=images.norm)
    return _compare_with_pgd(images, attack, STRAY, "FGSM, of one step,", _ASTRAY)


@register_check("one-step-random", needs="gradient", help="as one-step, from a random start")
def check_one_step_random(images: AttackedImages) -> Sign | None:
    """Compare one step from a random start with PGD-20."""
    attack = PGD(eps=images.eps, norm=images.norm, steps=1, step=1.25 * images.eps)
    return _compare_with_pgd(images, attack, STRAY, "One step from a random start", _ASTRAY)


@register_check("random-noise", needs="gradient", help="noise breaks what PGD-20 does not")
def check_random_noise(images: AttackedImages) -> Sign | None:
    """Compare random points with PGD-20."""
    attack = Noise(eps=images.eps, norm=images.norm)
    meaning = "the gradient is worse than chance"
    return _compare_with_pgd(images, attack, STRAY, "Random noise", meaning)


@register_check("more-steps", needs="gradient", help="100 steps break what 20 do not")
def check_more_steps(images: AttackedImages) -> Sign | None:
    """Compare PGD of 100 steps with PGD-20."""
    attack, meaning = images.make_pgd(100), "20 steps are too few"
    return _compare_with_pgd(images, attack, MATERIAL, "PGD of 100 steps", meaning)


@register_check("more-restarts", needs="gradient", help="five restarts break what one does not")
def check_more_restarts(images: AttackedImages) -> Sign | None:
    """Compare PGD-20 with 5 restarts with PGD-20."""
    attack, meaning = images.make_pgd(restarts=5), "one restart is too few"
    return _compare_with_pgd(images, attack, MATERIAL, "PGD-20 with 5 restarts", meaning)


@register_check("other-loss", needs="gradient", help="the margin breaks what the CE does not")
def check_other_loss(images: AttackedImages) -> Sign | None:
    """Compare PGD-20 on the margin with PGD-20 on the cross-entropy."""
    attack, name = images.make_pgd(objective=margin), "PGD-20 on the margin between logits"
    meaning = "the cross-entropy, saturated or not, guides the attack badly"
    return _compare_with_pgd(images, attack, MATERIAL, name, meaning)


def _compare_with_pgd(
    images: AttackedImages, attack: Attack, limit: float, name: str, meaning: str
) -> Sign | None:
    """Judge an attack on the images that withstand PGD-20."""
    robust = images.find_robust(attack, images.robust_to_pgd)
    images.robust = images.robust[torch.isin(images.robust, robust)]
    n, count = len(images), len(images.robust_to_pgd)
    broken = count - len(robust)
    if not exceeds(broken, n, limit):
        return None
    return Sign(
        f"{name} breaks {broken} of the {count} images that PGD-20 leaves standing (of {n}): "
        f"{meaning}.",
        {"images": n, "left_by_pgd": count, "broken": broken, "limit": limit},
        attack,
    )


@register_check("black-box", needs="determinism", help="queries break what gradients do not")
def check_black_box(images: AttackedImages) -> Sign | None:
    """Judge an attack without gradients on the images that withstand all attacks with gradients."""
    attack, reason = _make_black_box(images)
    if reason:
        images.skipped["square"] = reason
    n, count = len(images), len(images.robust)
    with collect_warnings():  # Square's own warnings are about what this check decides
        broken = count - len(images.find_robust(attack, images.robust))
    if not exceeds(broken, n, STRAY):
        return None
    return Sign(
        f"{attack}, which asks for no gradient, breaks {broken} of the {count} images that all "
        f"attacks with gradients leave standing (of {n}): the gradients mislead.",
        {"images": n, "left_by_gradients": count, "broken": broken, "limit": STRAY},
        attack,
    )


def _make_black_box(images: AttackedImages) -> tuple[Attack, str]:
    """Return an attack of about 1000 queries without gradients; if not Square, the reason why."""
    try:
        return Square(eps=images.eps, norm=images.norm, queries=QUERIES), ""
    except UserError as error:
        return images.make_pgd(objective=_estimate_margin(images)), str(error)


def _estimate_margin(images: AttackedImages) -> Objective:
    """Return the margin with its slope from 50 values half a radius away: 1000 in 20 steps."""
    return Estimated(objective=margin, spread=images.eps / 2)
