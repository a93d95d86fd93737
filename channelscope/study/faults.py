"""Faults of a network for which its numbers cannot be trusted, found on a study's first block.

A comparison makes no checks for gradient masking, which cost more than it does itself. What two
more passes over one block of images show, it finds all the same: whether there is a gradient for
its attacks to follow, and whether the network makes of an image one thing only. The checks have the
names and limits of those in ``masking``.
"""

from dataclasses import replace

import torch

from channelscope.analyses.base import Finding
from channelscope.data import block_size
from channelscope.gates import attached
from channelscope.layers.hooks import eval_mode, get_parameter
from channelscope.objectives import cross_entropy, margin
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


def find_faults(model: Model, images: Images) -> tuple[Finding, ...]:
    """Return why a network's numbers cannot be trusted, by its first block of images.

    "zero-gradient": too many images in which neither the cross-entropy nor the margin has a
    gradient, or most that it gets right without that of the cross-entropy, which attacks follow. Of
    a network that is only very sure of some answers, the margin has one.
    "randomness": two forward passes differ. "batch-dependence": the logits change with the company.

    Args:
        model: the network; it and the global random state are left as they were.
        images: the study's images. Processes that share them find the same.
    """
    network = model.network
    first = torch.arange(min(block_size(images.split), len(images)))
    checks = Checks()
    with (
        eval_mode(network),
        attached(network),
        torch.inference_mode(False),  # tensors made in inference mode cannot be part of a graph
    ):
        x, y = images.read_some(first, get_parameter(network))
        with seed_globally(x, images.seed):
            block = AttackedImages(network, x, y, 0.0, "inf", images.seed, len(first))
            found = {"zero-gradient": _check_gradients(block)}
            found["randomness"] = check_randomness(block)
            if not found["randomness"]:  # else any two passes differ
                found["batch-dependence"] = _check_company(block)
    checks.signs.update({name: sign for name, sign in found.items() if sign})
    return checks.findings


def _check_gradients(block: AttackedImages) -> Sign | None:
    """Count the images without a gradient; see ``find_faults``."""
    n = len(block)
    try:
        without = find_without_gradient(block, cross_entropy)
        right = block.compute_logits().argmax(1) == block.y
        # A sure network has no gradient here and there; the margin then has one. Of most images
        # that it gets right it is missing where logits are scaled up: attacks stand still there.
        if without.any() and not without[right].float().mean() > _MOST:
            without &= find_without_gradient(block, margin)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's, for a forward pass that leaves the graph
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return _lack_of_gradient(n, n, f" ({reason})")
    count = int(without.sum())
    return _lack_of_gradient(count, n) if exceeds(count, n, STRAY) else None


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
    digits = [alone.dtype, torch.float16] if alone.is_cuda else [alone.dtype]
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
