"""Faults of a network for which its numbers cannot be trusted, found on a study's first block.

A comparison makes no checks for gradient masking, which cost more than it does itself. What two
more passes over one block of images show, it finds all the same: whether there is a gradient for
its attacks to follow, and whether the network makes of an image one thing only. Images of whose
label the network is sure to the last digit it attacks twice, for what that hides. The checks have
the names and limits of those in ``masking``.
"""

from dataclasses import replace

import torch
from torch import Tensor

from channelscope.analyses.base import Finding
from channelscope.attacks import AttackLike
from channelscope.attacks.adaptive import norm_of
from channelscope.devices import is_accelerator
from channelscope.gates import attached
from channelscope.layers.hooks import eval_mode, get_parameter
from channelscope.objectives import cross_entropy, dlr, margin
from channelscope.study.attacked_images import AttackedImages
from channelscope.study.evaluation import Images
from channelscope.study.masking import (
    ROUNDING,
    STRAY,
    Checks,
    Sign,
    check_randomness,
    exceeds,
    find_without_gradient,
    measure_change,
)
from channelscope.study.models import Model
from channelscope.study.seeding import seed_globally

_FEW, _FEWEST = 8, 2  # images in a smaller company; the fewest that every network must take

_MOST = 0.5  # of the correct images may lack a gradient of the cross-entropy that the margin has

# Kernels for batches of another size add in another order. With few digits that moves logits by
# more than ROUNDING: in half precision, and on GPUs, whose TF32 has as many digits as float16. Here
# is what may be, in units of the last place.
_LAST_PLACES = 16


def find_faults(model: Model, images: Images, attack: AttackLike) -> tuple[Finding, ...]:
    """Return why a network's numbers cannot be trusted, by its first block of images.

    "zero-gradient": too many images in which neither the cross-entropy nor the margin has a
    gradient. Or logits are scaled up, and attacks follow the cross-entropy: it has no gradient in
    most images that the network gets right, or the softmax of the label is 1 to the last digit, so
    that the gradient does not lower the label's logit, and PGD on the margin breaks what PGD on the
    cross-entropy leaves of these images.
    "randomness": two forward passes differ. "batch-dependence": the logits change with the company.

    Args:
        model: the network; it and the global random state are left as they were.
        images: the study's images. Processes that share them find the same.
        attack: the study's own, of which eps, norm and objective count.
    """
    network = model.network
    first = torch.arange(min(images.block_size, len(images)), device="cpu")
    checks = Checks()
    with (
        eval_mode(network),
        attached(network),
        torch.inference_mode(False),  # tensors made in inference mode cannot be part of a graph
    ):
        x, y = images.read_some(first, get_parameter(network))
        with seed_globally(x, images.seed):
            block = AttackedImages(
                network, x, y, attack.eps, norm_of(attack), images.seed, len(first)
            )
            signs = {"zero-gradient": _check_gradients(block, attack)}
            signs["randomness"] = check_randomness(block)
            if not signs["randomness"]:  # else any two passes differ
                signs["batch-dependence"] = _check_company(block)
    checks.signs.update({name: sign for name, sign in signs.items() if sign})
    return checks.findings


def _check_gradients(block: AttackedImages, attack: AttackLike) -> Sign | None:
    """Count the images without a gradient; see ``find_faults``."""
    n = len(block)
    try:
        without = find_without_gradient(block, cross_entropy)
        neither = without
        if without.any():  # a sure network has no gradient here and there; the margin then has one
            neither = without & find_without_gradient(block, margin)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's, for a forward pass that leaves the graph
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return _lack_of_gradient(n, n, f" ({reason})")
    count = int(neither.sum())
    if exceeds(count, n, STRAY):
        return _lack_of_gradient(count, n)
    if getattr(attack, "objective", None) in (margin, dlr):
        return None
    return _check_cross_entropy(block, without)


def _check_cross_entropy(block: AttackedImages, without: Tensor) -> Sign | None:
    """Find out whether attacks on the cross-entropy fail where the network is sure."""
    logits = block.compute_logits()
    right = logits.argmax(1) == block.y
    n, count = int(right.sum()), int((without & right).sum())
    advice = "attack the margin between the logits, as with --attack cw-20"
    if count > _MOST * n:
        return Sign(
            f"The cross-entropy has no gradient in {count} of {n} images that are classified "
            f"correctly, as if logits were scaled up: attacks on it stand still there; {advice}.",
            {"images": n, "without_gradient": count},
        )
    of_label = logits.softmax(1).gather(1, block.y[:, None]).squeeze(1)
    sure = right & (of_label == 1)
    if not block.eps or not sure.any():
        return None
    images = replace(block, x=block.x[sure], y=block.y[sure])
    left = images.robust_to_pgd
    broken = len(left) - len(images.find_robust(images.make_pgd(objective=margin), left))
    if not exceeds(broken, n, STRAY):
        return None
    return Sign(
        f"The softmax of {len(images)} of {n} images that are classified correctly is 1 to the "
        "last digit, as if logits were scaled up. PGD-20 on the cross-entropy leaves "
        f"{len(left)} of these, of which PGD-20 on the margin breaks {broken}: {advice}.",
        {"images": n, "sure": len(images), "left_by_pgd": len(left), "broken": broken},
    )


def _lack_of_gradient(count: int, n: int, reason: str = "") -> Sign:
    return Sign(
        f"The gradient in the image is zero or not a number on {count} of {n} images{reason}: "
        "robust accuracy under attacks that follow it says nothing.",
        {"images": n, "without_gradient": count},
    )


def _check_company(block: AttackedImages) -> Sign | None:
    """Compare the logits of a few images between the whole block and these few alone."""
    n = min(_FEW, len(block) // 2)
    if n < _FEWEST:
        return None
    few = replace(block, x=block.x[:n], y=block.y[:n])
    among_all, alone = block.compute_logits()[:n], few.compute_logits()
    moved = measure_change(among_all, alone)
    digits = [alone.dtype, torch.float16] if is_accelerator(alone.device) else [alone.dtype]
    limit = max(ROUNDING, *(_LAST_PLACES * torch.finfo(dtype).eps for dtype in digits))
    count = int((moved > limit).sum())
    if not exceeds(count, n, STRAY):
        return None
    return Sign(
        f"The logits of {count} of {n} images change with the images that are passed along with "
        f"them (at the median by {moved.median():.1%} of the logits' range): the network judges "
        "batches, not images, so its numbers hold for these batches only.",
        {"images": n, "differing": count, "median_difference": float(moved.median())},
    )
