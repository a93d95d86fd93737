"""The papers, naively: one image, one class, one channel at a time, in the order of the text.

CIFS: Yan et al., ICML 2021 (arXiv 2102.05311). CAS: Bai et al., ICLR 2021 (arXiv 2103.08307).
PGD: Madry et al., ICLR 2018 (arXiv 1706.06083). FGSM: Goodfellow et al., ICLR 2015
(arXiv 1412.6572). Nothing here is fast or shares code with channelscope: the fast code is compared
with it in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import permutations, product
from statistics import NormalDist

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

# ---------------------------------------------------------------- the gate


def importance(
    g: Tensor,
    imgf: str,
    scale: float = 1.0,
    sharpness: float = 1.0,
    temperature: float = 1.0,
    budget: float | str = 1.0,
) -> Tensor:
    """Turn one image's relevance g (c,) into importance, channel by channel."""
    if imgf in ("softmax", "softmax-abs"):
        s = len(g) if budget == "channels" else budget
        powers = []
        for value in g:
            size = -value if imgf == "softmax-abs" and value < 0 else value
            powers.append(torch.exp(size / temperature))
        return torch.stack([s * power / sum(powers) for power in powers])
    of_channel = {
        "sigmoid": lambda value: 1 / (1 + torch.exp(-scale * value)),
        "softplus": lambda value: torch.log(1 + torch.exp(sharpness * value)) / sharpness,
        "relu": lambda value: value if value > 0 else 0 * value,
        "identity": lambda value: value,
    }[imgf]
    return torch.stack([of_channel(value) for value in g])


def mask_share(mask: Tensor) -> float:
    """Return the participation ratio of a mask m (c,): (sum |m|)^2 / (c * sum m^2), or 0."""
    values = [abs(value) for value in mask.tolist()]
    squares = sum(value**2 for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def chosen_logits(p: Tensor, k: int, label: int | None) -> list[int]:
    """Choose the k largest logits; the label, if there is one, takes the place of the largest."""
    order = sorted(range(len(p)), key=lambda t: -p[t].item())
    first = order[0] if label is None else label
    return [first, *order[1:k]]


def gate(
    z: Tensor,
    probe: nn.Module,
    k: int,
    imgf: str,
    labels: Tensor | None = None,
    detach: bool = True,
    **options: float | str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give z * m, the probe logits and the masks m; labels only in training.

    Options are those of ``importance``.

    The relevance is the gradient of the chosen logits with respect to a copy of z that is cut from
    the graph, or to z itself without ``detach``; as it is kept in a graph of its own, a loss of the
    mask is differentiated twice.
    """
    features, logits, masks = [], [], []
    for i in range(len(z)):
        at = z[i].detach().requires_grad_() if detach else z[i]
        p = probe(at.mean((1, 2)).unsqueeze(0))[0]
        chosen = chosen_logits(p, k, None if labels is None else int(labels[i]))
        (slope,) = torch.autograd.grad(
            sum(p[t] for t in chosen), at, create_graph=True, materialize_grads=True
        )
        m = importance(torch.stack([channel.sum() for channel in slope]), imgf, **options)
        features.append(torch.stack([m[c] * z[i, c] for c in range(len(m))]))
        logits.append(probe(z[i].mean((1, 2)).unsqueeze(0))[0])
        masks.append(m)
    return torch.stack(features), torch.stack(logits), torch.stack(masks)


# ---------------------------------------------------------------- gated networks

State = Mapping[str, Tensor]  # a network's parameters and buffers by name
Select = Callable[[str, Tensor], Tensor]  # (place, features) -> what stands behind the gate, if any


def batchnorm(z: Tensor, state: State, name: str, train: bool) -> Tensor:
    """Normalise each channel over images and space, by the batch's moments in training."""
    channels = []
    for c in range(z.shape[1]):
        mean, variance = state[f"{name}.running_mean"][c], state[f"{name}.running_var"][c]
        if train:
            mean = z[:, c].mean()
            variance = (z[:, c] - mean).square().mean()
        scaled = (z[:, c] - mean) / torch.sqrt(variance + 1e-5)
        channels.append(state[f"{name}.weight"][c] * scaled + state[f"{name}.bias"][c])
    return torch.stack(channels, 1)


def convolve(z: Tensor, state: State, name: str, stride: int = 1) -> Tensor:
    """Convolve with zeros around the edge, so that only the stride changes the size."""
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return nn.functional.conv2d(z, weight, state.get(f"{name}.bias"), stride, padding)


def relu(z: Tensor) -> Tensor:
    """Give max(z, 0)."""
    return torch.where(z > 0, z, 0 * z)


def classify(z: Tensor, state: State, name: str = "linear") -> Tensor:
    """Give W v + b of the mean v over space."""
    v = z.mean((2, 3)) if z.ndim == 4 else z
    return v @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def blocks_of(state: State, stage: str) -> list[str]:
    """List the names of a stage's blocks, in order."""
    numbers = {int(name.split(".")[1]) for name in state if name.startswith(f"{stage}.")}
    return [f"{stage}.{number}" for number in sorted(numbers)]


def gated_resnet(state: State, x: Tensor, select: Select, train: bool) -> Tensor:
    """Give the logits of a ResNet of basic blocks, selected behind its blocks."""
    x = (x - state["normalise.mean"]) / state["normalise.std"]
    z = relu(batchnorm(convolve(x, state, "conv1"), state, "bn1", train))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(blocks_of(state, stage)):
            stride = 2 if index == 0 and stage != "layer1" else 1
            skip = z
            if f"{block}.shortcut.0.weight" in state:
                skip = convolve(z, state, f"{block}.shortcut.0", stride)
                skip = batchnorm(skip, state, f"{block}.shortcut.1", train)
            z = convolve(z, state, f"{block}.conv1", stride)
            z = convolve(relu(batchnorm(z, state, f"{block}.bn1", train)), state, f"{block}.conv2")
            z = relu(batchnorm(z, state, f"{block}.bn2", train) + skip)
            z = select(f"after {block}", z)
    return classify(z, state)


def gated_wide_resnet(state: State, x: Tensor, select: Select, train: bool) -> Tensor:
    """Give the logits of a WideResNet, selected in its last block and behind the final ReLU.

    In the block, what the first convolution reads is selected; what the shortcut reads is not.
    """
    z = convolve((x - state["normalise.mean"]) / state["normalise.std"], state, "conv1")
    for stage in ("layer1", "layer2", "layer3"):
        for index, block in enumerate(blocks_of(state, stage)):
            stride = 2 if index == 0 and stage != "layer1" else 1
            active = relu(batchnorm(z, state, f"{block}.bn1", train))
            skip = z
            if f"{block}.shortcut.weight" in state:
                skip = convolve(active, state, f"{block}.shortcut", stride)
            selected = select(f"within {block}", active)
            inner = convolve(selected, state, f"{block}.conv1", stride)
            inner = relu(batchnorm(inner, state, f"{block}.bn2", train))
            z = convolve(inner, state, f"{block}.conv2") + skip
    return classify(select("final", relu(batchnorm(z, state, "features.0", train))), state)


def gated_vgg(state: State, x: Tensor, select: Select, train: bool) -> Tensor:
    """Give the logits of VGG-16 with BatchNorm, selected behind ReLUs of its convolutions."""
    z = (x - state["normalise.mean"]) / state["normalise.std"]
    for stage in ("layer1", "layer2", "layer3", "layer4", "layer5"):
        for block in blocks_of(state, stage):
            z = convolve(z, state, f"{block}.0")
            z = select(f"after {block}", relu(batchnorm(z, state, f"{block}.1", train)))
        rows = [z[:, :, i : i + 2].amax(2) for i in range(0, z.shape[2], 2)]
        z = torch.stack(rows, 2)
        columns = [z[:, :, :, i : i + 2].amax(3) for i in range(0, z.shape[3], 2)]
        z = torch.stack(columns, 3)
    v = z.mean((2, 3))
    for layer in ("layer6", "layer7"):
        v = relu(batchnorm(classify(v, state, f"{layer}.0"), state, f"{layer}.1", train))
    return classify(v, state)


# ---------------------------------------------------------------- losses


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """Give -log softmax(logits)[label] of one image."""
    return torch.log(sum(torch.exp(value - logits[label]) for value in logits))


def margin(logits: Tensor, label: int) -> Tensor:
    """Give by how much the largest other logit of one image exceeds the label's."""
    others = [value for k, value in enumerate(logits) if k != label]
    return torch.stack(others).max() - logits[label]


def joint_loss(
    logits: Tensor,
    probes: Sequence[Tensor],
    label: int,
    beta: float,
    of_head: Callable[[Tensor, int], Tensor] = cross_entropy,
) -> Tensor:
    """Give one image's joint loss: 3 / (beta + 1) (CE(logits) + beta / L sum_l CE(p^l))."""
    if beta == float("inf"):
        return 3 / len(probes) * sum(of_head(p, label) for p in probes)
    loss = of_head(logits, label)
    for p in probes:
        loss = loss + beta / len(probes) * of_head(p, label)
    return 3 / (beta + 1) * loss


# ---------------------------------------------------------------- CAS's figure of magnitudes


def active_mean(activations: np.ndarray, channel: int, threshold: float = 0.01) -> float:
    """Give a channel's summed activation over the images that activate it, as CAS's release does.

    An image does where the channel exceeds the threshold times its largest channel.
    """
    active = sum(bool(image[channel] > threshold * image.max()) for image in activations)
    return float(sum(image[channel] for image in activations) / active) if active else 0.0


# ---------------------------------------------------------------- attacks

Loss = Callable[[Tensor, int], Tensor]  # of one image (1, c, h, w) and its label


def project(x: Tensor, origin: Tensor, eps: float, norm: str) -> Tensor:
    """Bring one image back into the ball around its origin, then into [0, 1]."""
    delta = x - origin
    if norm == "inf":
        delta = delta.clamp(-eps, eps)
    elif (length := delta.square().sum().sqrt()) > eps:
        delta = delta * (eps / length)
    return (origin + delta).clamp(0, 1)


def direction(loss: Loss, x: Tensor, label: int, norm: str) -> Tensor:
    """Return the steepest ascent of an image's loss: its gradient's sign or unit vector."""
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x.unsqueeze(0), label), x)
    return (
        gradient.sign()
        if norm == "inf"
        else gradient / gradient.square().sum().sqrt().clamp_min(1e-12)
    )


def fgsm(loss: Loss, images: Tensor, labels: Tensor, eps: float, norm: str = "inf") -> Tensor:
    """Take one step of length eps from each image."""
    steps = [eps * direction(loss, x, int(y), norm) for x, y in zip(images, labels, strict=True)]
    return torch.stack([(x + step).clamp(0, 1) for x, step in zip(images, steps, strict=True)])


def pgd(
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    norm: str,
    starts: Tensor,
) -> Tensor:
    """Take ``steps`` projected steps for each image, from image + start."""
    found = []
    for origin, start, label in zip(images, starts, labels, strict=True):
        x = project(origin + start, origin, eps, norm)
        for _ in range(steps):
            x = project(x + step * direction(loss, x, int(label), norm), origin, eps, norm)
        found.append(x)
    return torch.stack(found)


def random_starts(images: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """Draw a point of each image's ball: uniform pixels, or a direction at radius eps u^(1/d)."""
    draws = {"generator": generator, "dtype": images.dtype}
    if norm == "inf":
        return (2 * torch.rand(images.shape, **draws) - 1) * eps
    dimension = images[0].numel()
    found = []
    for image in images:
        *pixels, radius = torch.rand(dimension + 1, **draws)
        normal = torch.tensor([NormalDist().inv_cdf(float(u)) for u in pixels], dtype=images.dtype)
        found.append(
            (eps * radius ** (1 / dimension) * normal / normal.square().sum().sqrt()).view(
                image.shape
            )
        )
    return torch.stack(found)


# ---------------------------------------------------------------- statistics of channels


def channel_statistics(
    activations: Sequence[Sequence[float]],
    labels: Sequence[int],
    weights: Sequence[float],
    classes: int,
    threshold: float = 0.01,
) -> dict[str, list[list[float]]]:
    """Return count, magnitude, variance, frequency by class and channel; NaN without images."""
    found: dict[str, list[list[float]]] = {
        "count": [],
        "magnitude": [],
        "variance": [],
        "frequency": [],
    }
    for k in range(classes):
        of_class = [(a, w) for a, y, w in zip(activations, labels, weights, strict=True) if y == k]
        count = math.fsum(w for _, w in of_class)
        rows: dict[str, list[float]] = {name: [] for name in found}
        for c in range(len(activations[0])):
            mean = _share(math.fsum(w * a[c] for a, w in of_class), count)
            rows["count"].append(count)
            rows["magnitude"].append(mean)
            rows["variance"].append(
                _share(math.fsum(w * (a[c] - mean) ** 2 for a, w in of_class), count)
            )
            active = math.fsum(w for a, w in of_class if a[c] > threshold * max(a))
            rows["frequency"].append(_share(active, count))
        for name, row in rows.items():
            found[name].append(row)
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


# ---------------------------------------------------------------- alignment


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Give a . b / (|a| |b|)."""
    length_a, length_b = (math.sqrt(math.fsum(value * value for value in v)) for v in (a, b))
    return _share(math.fsum(p * q for p, q in zip(a, b, strict=True)), length_a * length_b)


def ranks(values: Sequence[float]) -> list[float]:
    """Rank from 1 up: one more than the number of smaller values; ties share their mean rank."""
    return [
        1
        + sum(other < value for other in values)
        + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Give the cosine of the centred ranks."""
    centred = [[rank - (len(v) + 1) / 2 for rank in ranks(v)] for v in (a, b)]
    return cosine(*centred)


def shift(natural: Sequence[float], adversarial: Sequence[float]) -> float:
    """Give sum_c |adversarial - natural| / sum_c |natural|."""
    moved = math.fsum(abs(q - p) for p, q in zip(natural, adversarial, strict=True))
    return _share(moved, math.fsum(abs(p) for p in natural))


def nr_share(magnitude: Sequence[float], relevance: Sequence[float]) -> float:
    """Give the activation mass on negatively relevant channels, of the whole."""
    negative = math.fsum(abs(a) for a, g in zip(magnitude, relevance, strict=True) if g < 0)
    return _share(negative, math.fsum(abs(a) for a in magnitude))


def nr_mass(magnitude: Sequence[float], relevance: Sequence[float]) -> float:
    """Return the sum of |g a| over channels of g < 0, of the sum over all."""
    pairs = list(zip(magnitude, relevance, strict=True))
    negative = math.fsum(abs(g * a) for a, g in pairs if g < 0)
    return _share(negative, math.fsum(abs(g * a) for a, g in pairs))


def signed_mass(magnitude: Sequence[float], relevance: Sequence[float]) -> float:
    """Return the sum of g a, of the sum of |g a|."""
    products = [g * a for a, g in zip(magnitude, relevance, strict=True)]
    return _share(math.fsum(products), math.fsum(map(abs, products)))


def nr_fall(
    natural: Sequence[float], adversarial: Sequence[float], relevance: Sequence[float]
) -> float:
    """Return what channels of g < 0 have of sum g (a - a'); NaN unless that sum is above 0."""
    falls = [(g, g * (a - b)) for a, b, g in zip(natural, adversarial, relevance, strict=True)]
    fall = math.fsum(part for _, part in falls)
    return math.fsum(part for g, part in falls if g < 0) / fall if fall > 0 else math.nan


def effective_channels(magnitude: Sequence[float]) -> float:
    """Return (sum |a|)^2 / sum a^2."""
    return _share(math.fsum(map(abs, magnitude)) ** 2, math.fsum(a * a for a in magnitude))


def dead_channels(natural: Sequence[float], adversarial: Sequence[float]) -> float:
    """Return the share of the channels that are 0 in both."""
    both = list(zip(natural, adversarial, strict=True))
    return sum(a == 0 and b == 0 for a, b in both) / len(both)


def place_classes(means: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the mean of the classes' means, and each one's mean distance to the others."""
    centre = [math.fsum(column) / len(means) for column in zip(*means, strict=True)]
    distances = [
        math.fsum(math.dist(own, other) for other in means) / (len(means) - 1)
        if len(means) > 1
        else math.nan
        for own in means
    ]
    return centre, distances


def cosine_centred(
    natural: Sequence[float], adversarial: Sequence[float], centre: Sequence[float]
) -> float:
    """Return the cosine of what both have beside the centre."""
    own, attacked = (
        [value - middle for value, middle in zip(values, centre, strict=True)]
        for values in (natural, adversarial)
    )
    return cosine(own, attacked)


def displacement(natural: Sequence[float], adversarial: Sequence[float], distance: float) -> float:
    """Return how far the attack moves a class, in mean distances to the other classes."""
    return _share(math.dist(natural, adversarial), distance)


def uniformity(frequency: Sequence[float]) -> float:
    """Return the entropy of the frequencies as shares of their sum, over its largest value."""
    whole = math.fsum(frequency)
    if not whole or len(frequency) == 1:
        return math.nan
    shares = [f / whole for f in frequency if f]
    return math.fsum(p * math.log(1 / p) for p in shares) / math.log(len(frequency))


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the Jaccard index of the channels that are relevant (> 0) to one and other class."""
    sets = [{c for c, g in enumerate(relevance) if g > 0} for relevance in (one, other)]
    return _share(len(sets[0] & sets[1]), len(sets[0] | sets[1]))


def flow(
    natural: Sequence[Sequence[float]], adversarial: Sequence[Sequence[float]], threshold: float
) -> list[dict[str, float]]:
    """Return by channel, of pairs of images, mean change and the shares silenced and awakened."""
    found = []
    for c in range(len(natural[0])):
        states = [
            (a[c] > threshold * max(a), b[c] > threshold * max(b))
            for a, b in zip(natural, adversarial, strict=True)
        ]
        found.append(
            {
                "change": math.fsum(b[c] - a[c] for a, b in zip(natural, adversarial, strict=True))
                / len(natural),
                "silenced": states.count((True, False)) / len(states),
                "awakened": states.count((False, True)) / len(states),
            }
        )
    return found


def false_discovery(p: Sequence[float]) -> list[float]:
    """Return the q of Benjamini and Hochberg: the least level at which step-up rejects a test.

    The rule rejects the k tests of the smallest p, k the largest number with p_(k) <= alpha k / m.
    """
    m, ordered = len(p), sorted(p)
    levels = [min(1.0, value * m / rank) for rank, value in enumerate(ordered, start=1)]
    return [
        min(level for value, level in zip(ordered, levels, strict=True) if value >= own)
        for own in p
    ]


# ---------------- gates of the literature: FSR (2303.13846), EAS (2202.11898), KAP (2210.00062)


def three_convolutions(z: Tensor, weights: Mapping[str, Tensor], train: bool) -> Tensor:
    """Apply three 3x3 convolutions, BatchNorm and ReLU between; weights are named by place."""
    for place in (0, 3):
        z = torch.conv2d(z, weights[f"{place}.weight"], padding=1)
        norm = {
            name: weights[f"{place + 1}.{name}"]
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        mean, variance = (
            (z.mean((0, 2, 3)), z.var((0, 2, 3), False)) if train else list(norm.values())[2:]
        )
        scale = norm["weight"] / (variance + 1e-5).sqrt()
        z = (z - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm["bias"].view(-1, 1, 1)
        z = torch.where(z > 0, z, 0)
    return torch.conv2d(z, weights["6.weight"], padding=1)


def gumbel_softmax(r: Tensor, g1: Tensor, g2: Tensor, tau: float) -> Tensor:
    """Give the first of the two parts of a Gumbel softmax over (p, 1 - p), p = sigmoid(r)."""
    p = 1 / (1 + torch.exp(-r))
    one, other = torch.exp((torch.log(p) + g1) / tau), torch.exp((torch.log(1 - p) + g2) / tau)
    return one / (one + other)


def separate_and_recalibrate(
    z: Tensor, weights: Mapping[str, Tensor], tau: float, noise: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """Return FSR's features, mask and its three parts' logits; Gumbel noise only in training."""
    inside = {
        part: {
            key.removeprefix(f"{part}."): value
            for key, value in weights.items()
            if key.startswith(f"{part}.")
        }
        for part in ("separation", "recalibration", "classifier")
    }
    zero = torch.zeros_like(z)
    r = three_convolutions(z, inside["separation"], noise is not None)
    m = gumbel_softmax(r, *(noise or (zero, zero)), tau)
    robust, other = m * z, (1 - m) * z
    recalibrated = other + (1 - m) * three_convolutions(
        other, inside["recalibration"], noise is not None
    )

    def logits(part: Tensor) -> Tensor:
        rows, bias = inside["classifier"]["weight"], inside["classifier"]["bias"]
        return torch.stack(
            [torch.stack([row @ v.mean((1, 2)) for row in rows]) + bias for v in part]
        )

    found = {"features": robust + recalibrated, "mask": m}
    return found | {
        "robust": logits(robust),
        "other": logits(other),
        "recalibrated": logits(recalibrated),
    }


def rival(logits: Tensor, label: int) -> int:
    """Find the wrong class of one image's largest logit among the wrong."""
    return max((k for k in range(len(logits)) if k != label), key=lambda k: logits[k].item())


def scale_elements(
    z: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give EAS' features, probe logits and masks; labels only in training."""
    features, logits, masks = [], [], []
    for i in range(len(z)):
        elements = list(z[i].flatten())
        p = [
            sum(w * element for w, element in zip(row, elements, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        chosen = max(range(len(p)), key=lambda k: p[k].item()) if labels is None else int(labels[i])
        m = weight[chosen].view(z[i].shape)
        features.append(m * z[i])
        logits.append(torch.stack(p))
        masks.append(m)
    return torch.stack(features), torch.stack(logits), torch.stack(masks)


def sheet(channels: int) -> tuple[int, int]:
    """Find the squarest arrangement of channels with no more rows than columns."""
    shapes = [(rows, channels // rows) for rows in range(1, channels + 1) if channels % rows == 0]
    return min(
        (shape for shape in shapes if shape[0] <= shape[1]), key=lambda shape: shape[1] - shape[0]
    )


def average_kernels(z: Tensor, pool: int) -> Tensor:
    """Return KAP of features (n, c, h, w): each channel is the mean of its sheet neighbours."""
    _, columns = sheet(z.shape[1])
    places, reach, pooled = [divmod(c, columns) for c in range(z.shape[1])], (pool - 1) // 2, []
    for row, column in places:
        near = [
            c
            for c, (i, j) in enumerate(places)
            if abs(i - row) <= reach and abs(j - column) <= reach
        ]
        pooled.append(sum(z[:, c] for c in near) / len(near))
    return torch.stack(pooled, 1)


# ---------------------------------------------------------- friendly attacks and folded networks


def friendly_pgd(
    loss: Loss,
    predict: Callable[[Tensor], int],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    tau: int,
    norm: str,
    starts: Tensor,
) -> Tensor:
    """Follow Algorithm 1 of FAT, PGD-K-tau (Zhang et al., ICML 2020, arXiv 2002.11242)."""
    found = []
    for origin, start, label in zip(images, starts, labels, strict=True):
        x, left, patience = project(origin + start, origin, eps, norm), steps, tau
        while left > 0:
            if predict(x) != int(label) and patience == 0:
                break
            if predict(x) != int(label):
                patience -= 1
            x = project(x + step * direction(loss, x, int(label), norm), origin, eps, norm)
            left -= 1
        found.append(x)
    return torch.stack(found)


def apgd_checkpoints(steps: int) -> list[int]:
    """Return w_j = ceil(p_j N), section 3.1 of Croce & Hein (ICML 2020, arXiv 2003.01690)."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [math.ceil(share * steps) for share in p if share <= 1]


def apgd(
    loss: Loss,
    predict: Callable[[Tensor], int],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    norm: str,
    starts: Tensor,
    rho: float = 0.75,
) -> Tensor:
    """Follow Algorithm 1 of Croce & Hein for each image, up to the first misclassified point.

    The k-th point is judged at a checkpoint once it is known, as in the authors' code.
    """
    found = []
    for origin, start, y in zip(images, starts, labels, strict=True):
        label, w = int(y), apgd_checkpoints(steps)
        x = previous = best = project(origin + start, origin, eps, norm)
        f = [float(loss(x.unsqueeze(0), label).detach())]
        eta, eta_at, f_max_at = 2 * eps, {0: 2 * eps}, {0: f[0]}
        for k in range(1, steps + 1):
            if predict(x) != label:
                break
            z = project(x + eta * direction(loss, x, label, norm), origin, eps, norm)
            alpha = 1 if k == 1 else 0.75
            x, previous = (
                project(x + alpha * (z - x) + (1 - alpha) * (x - previous), origin, eps, norm),
                x,
            )
            f.append(float(loss(x.unsqueeze(0), label).detach()))
            if f[-1] > max(f[:-1]):
                best = x
            if k in w and predict(x) == label:
                last = max(step for step in w if step < k)
                eta_at[k], f_max_at[k] = eta, max(f)
                rises = sum(f[i + 1] > f[i] for i in range(last, k))
                if rises < rho * (k - last) or (
                    eta_at[last] == eta_at[k] and f_max_at[last] == f_max_at[k]
                ):
                    eta, x = eta / 2, best
        found.append(x if predict(x) != label else best)
    return torch.stack(found)


def normal_starts(images: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Draw spread * N(0, 1) for each pixel: the normal quantile of a uniform number."""
    u = torch.rand(images.shape, generator=generator, dtype=images.dtype)
    quantiles = [NormalDist().inv_cdf(float(value)) for value in u.flatten()]
    return spread * torch.tensor(quantiles, dtype=images.dtype).view(images.shape)


@torch.no_grad()
def folded_convolution(convolution: nn.Conv2d, batchnorm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that equals both in eval mode, by channel."""
    weights, biases = [], []
    for c in range(convolution.out_channels):
        deviation = math.sqrt(float(batchnorm.running_var[c]) + batchnorm.eps)
        gamma = 1.0 if batchnorm.weight is None else float(batchnorm.weight[c])
        beta = 0.0 if batchnorm.bias is None else float(batchnorm.bias[c])
        bias = 0.0 if convolution.bias is None else float(convolution.bias[c])
        weights.append(convolution.weight[c] * (gamma / deviation))
        biases.append(beta + (bias - float(batchnorm.running_mean[c])) * gamma / deviation)
    return torch.stack(weights), torch.tensor(biases, dtype=convolution.weight.dtype)


# --------------------------------------------- training losses, one image and one head at a time


def log_probabilities(logits: Tensor) -> list[Tensor]:
    """Give log softmax(logits) of one image, class by class."""
    return [-cross_entropy(logits, label) for label in range(len(logits))]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Give KL(softmax(p) || softmax(q)) = sum_k p_k log(p_k / q_k) of one image's logits."""
    pairs = zip(log_probabilities(p), log_probabilities(q), strict=True)
    return sum(torch.exp(log_p) * (log_p - log_q) for log_p, log_q in pairs)


def smoothed_cross_entropy(logits: Tensor, label: int, smoothing: float) -> Tensor:
    """Return -sum_k t_k log p_k, t the label mixed with a uniform one (Szegedy et al., 2016)."""
    k = len(logits)
    targets = [(1 - smoothing) * (index == label) + smoothing / k for index in range(k)]
    return -sum(t * log_p for t, log_p in zip(targets, log_probabilities(logits), strict=True))


def trades(
    natural: Tensor, adversarial: Tensor, label: int, trade_off: float, smoothing: float = 0.0
) -> Tensor:
    """Return TRADES (Zhang et al., ICML 2019): CE(f(x), y) + KL(f(x) || f(x')) / lambda."""
    return smoothed_cross_entropy(natural, label, smoothing) + trade_off * divergence(
        natural, adversarial
    )


def mart(
    natural: Tensor,
    adversarial: Tensor,
    label: int,
    trade_off: float,
    smoothing: float = 0.0,
    right: Tensor | None = None,
) -> Tensor:
    """Return MART (Wang et al., 2020): BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x)).

    In the release of CAS p_y(x) is that of the network's own logits for the probes, too: ``right``.
    """
    if right is None:
        right = torch.exp(log_probabilities(natural)[label])
    of_adversarial = [torch.exp(value) for value in log_probabilities(adversarial)]
    strongest = max((p for k, p in enumerate(of_adversarial) if k != label), key=lambda p: p.item())
    margin = -torch.log(1 - strongest)
    boosted = smoothed_cross_entropy(adversarial, label, smoothing) + margin
    return boosted + trade_off * divergence(natural, adversarial) * (1 - right)


def normalised_hsic(a: Tensor, b: Tensor, sigma: float, linear: bool = False) -> float:
    """Return nHSIC as the release of HBaR has it: kernels centred on one side, times an inverse.

    Kernels are Gaussian, exp(-|u - v|^2 / (2 sigma^2 d)); ``linear``: that of b is u v.
    """
    n = len(a)
    centring = torch.eye(n, dtype=a.dtype) - 1 / n
    projected = []
    for values, is_linear in ((a, False), (b, linear)):
        kernel = torch.empty(n, n, dtype=a.dtype)
        for i, j in product(range(n), repeat=2):
            u, v = values[i], values[j]
            distance = float(((u - v) ** 2).sum())
            gaussian = math.exp(-distance / (2 * sigma**2 * values.shape[1]))
            kernel[i, j] = float(u @ v) if is_linear else gaussian
        centred = kernel @ centring
        inverse = torch.linalg.inv(centred + 1e-5 * n * torch.eye(n, dtype=a.dtype))
        projected.append(centred @ inverse)
    return float(torch.trace(projected[0] @ projected[1]))


def class_weights(costs: Sequence[Sequence[float]], eta: float) -> list[float]:
    """Return how much an image of each class weighs in WAT (Li & Liu, AAAI 2023).

    ``costs`` has a row an epoch: the cost of each of k classes, then that of all images. These are
    k + 1 experts, each of which weighs exp(eta * its costs so far), as shares of k. An image weighs
    as much as its class and the expert of all images together.
    """
    experts = len(costs[0])
    raw = [math.exp(eta * math.fsum(row[expert] for row in costs)) for expert in range(experts)]
    shares = [(experts - 1) * weight / math.fsum(raw) for weight in raw]
    return [share + shares[-1] for share in shares[:-1]]


def of_all_heads(
    first: Tensor, gates: Sequence[Sequence[Tensor]], beta: float, scaled: bool
) -> Tensor:
    """Add the losses of the network's own head and of each gate's: the joint loss of CIFS."""
    loss = first
    for gate in gates:
        for head in gate:
            loss = loss + beta / len(gates) * head
    return 3 / (beta + 1) * loss if scaled else loss


# ---------------------------------------------------------------- likeness of two networks' layers


def hsic(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Return the unbiased HSIC of linear kernels, a U-statistic (Song et al., 2012, theorem 3).

    The mean over all ways to choose four images i, j, q, r of K_ij (M_ij + M_qr - 2 M_iq).
    """
    k, m = (
        [[math.fsum(x * y for x, y in zip(u, v, strict=True)) for v in rows] for u in rows]
        for rows in (a, b)
    )
    chosen = list(permutations(range(len(a)), 4))
    return math.fsum(k[i][j] * (m[i][j] + m[q][r] - 2 * m[i][q]) for i, j, q, r in chosen) / len(
        chosen
    )


def cka(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Return CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al., ICML 2019)."""
    return hsic(a, b) / math.sqrt(hsic(a, a) * hsic(b, b))


def best_match(correlations: Sequence[Sequence[float]]) -> float:
    """Return the largest sum of correlations over all pairings of rows with columns."""
    rows, columns = len(correlations), len(correlations[0])
    if rows > columns:
        return best_match(list(zip(*correlations, strict=True)))
    return max(
        sum(correlations[i][j] for i, j in enumerate(chosen))
        for chosen in permutations(range(columns), rows)
    )


# ---------------------------------------------------------------- relevance by intervention


def damage_account(
    tail: nn.Module, z: Tensor, z_adv: Tensor, label: int, rival: int, steps: int
) -> Tensor:
    """Integrate one image's margin from adversarial to natural features, channel by channel."""
    sums = torch.zeros(len(z), dtype=torch.float64)
    for step in range(steps):
        t = (step + 0.5) / steps
        at = (z_adv + t * (z - z_adv)).detach().requires_grad_()
        logits = tail(1 * at.unsqueeze(0))[0]
        (slope,) = torch.autograd.grad(logits[label] - logits[rival], at)
        for c in range(len(z)):
            sums[c] += float((slope[c] * (z[c] - z_adv[c])).sum()) / steps
    return sums


@torch.no_grad()
def ablation(
    rest: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Sequence[int],
    values: Sequence[Sequence[float]],
) -> list[list[float]]:
    """Return by image and channel the fall of the class's logit if the channel has the value.

    ``rest`` is the network behind the features (n, c, ...), for one image at a time; ``values`` are
    by image, channel, and are put everywhere in the channel.
    """
    found = []
    for z, label, row in zip(features, labels, values, strict=True):
        whole, falls = float(rest(z.unsqueeze(0))[0, label]), []
        for c, value in enumerate(row):
            without = z.clone()
            without[c] = value
            falls.append(whole - float(rest(without.unsqueeze(0))[0, label]))
        found.append(falls)
    return found


def means_by_class(
    activations: Sequence[Sequence[float]], labels: Sequence[int]
) -> dict[int, list[float]]:
    """Give each class's mean activation, channel by channel."""
    found = {}
    for k in set(labels):
        of_class = [a for a, label in zip(activations, labels, strict=True) if label == k]
        found[k] = [math.fsum(column) / len(of_class) for column in zip(*of_class, strict=True)]
    return found


# ---------------------------------------------------------------- interventions on channels


def without(z: Tensor, channels: Sequence[int]) -> Tensor:
    """Set channels of one image's features z (1, c, ...) to 0."""
    return torch.stack([0 * z[:, c] if c in channels else z[:, c] for c in range(z.shape[1])], 1)


def intervened(
    hidden: Callable[[Tensor], Tensor],
    rest: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    ranking: Sequence[Sequence[int]],
    count: int,
    *,
    eps: float,
    step: float,
    steps: int,
    oracle: bool,
) -> tuple[list[bool], list[bool]]:
    """Return which images are right, and which robust, without a class's ``count`` top channels.

    The class is the answer of the network untouched to the very image, or the true label of an
    oracle. Robust are the images that are right as they are, as PGD on the network untouched leaves
    them, and all the way of PGD on the one that goes without the channels; both start at the image.
    """

    def untouched(x: Tensor) -> Tensor:
        return rest(hidden(x))[0]

    def suppressed(x: Tensor, label: int) -> Tensor:
        of_class = label if oracle else int(untouched(x).argmax())
        return rest(without(hidden(x), ranking[of_class][:count]))[0]

    options = {"eps": eps, "step": step, "steps": steps, "norm": "inf"}
    natural, robust = [], []
    for image, label in zip(images, labels.tolist(), strict=True):
        one, y, start = (
            image.unsqueeze(0),
            torch.tensor([label]),
            torch.zeros_like(image).unsqueeze(0),
        )
        moved = pgd(lambda x, k: cross_entropy(untouched(x), k), one, y, starts=start, **options)
        broken = friendly_pgd(
            lambda x, k: cross_entropy(suppressed(x, k), k),
            lambda x, k=label: int(suppressed(x.unsqueeze(0), k).argmax()),
            one,
            y,
            tau=0,
            starts=start,
            **options,
        )
        right = [int(suppressed(x, label).argmax()) == label for x in (one, moved, broken)]
        natural.append(right[0])
        robust.append(all(right))
    return natural, robust


# ---------------------------------------------------------------- effects of methods


def fit_line(values: Sequence[float], control: Sequence[float]) -> list[float]:
    """Return the values on the best line in control; on the mean where control is constant."""
    middle, level = (sum(v) / len(v) for v in (control, values))
    spread = sum((c - middle) ** 2 for c in control)
    both = sum((c - middle) * (v - level) for c, v in zip(control, values, strict=True))
    slope = both / spread if spread else 0.0
    return [level + slope * (c - middle) for c in control]


def partial_correlation(x: Sequence[float], y: Sequence[float], control: Sequence[float]) -> float:
    """Return the correlation of what lines in control leave of x and of y."""
    rests = [
        [value - line for value, line in zip(values, fit_line(values, control), strict=True)]
        for values in (x, y)
    ]
    return cosine(*rests)


def correlation_given(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    given: Sequence[Sequence[float]],
    level: float,
) -> tuple[float, float, float, float]:
    """Return the mean partial rank correlation of pairs, its interval, and p of all permutations.

    Freedman and Lane: y becomes its line in the control plus what this leaves, permuted.
    """
    k = len(given[0])
    ranked = [
        (ranks(x), ranks(y), ranks(control)) for (x, y), control in zip(pairs, given, strict=True)
    ]

    def correlate(order: Sequence[int]) -> float:
        values = []
        for x, y, control in ranked:
            line = fit_line(y, control)
            permuted = [line[i] + y[order[i]] - line[order[i]] for i in range(k)]
            values.append(partial_correlation(x, permuted, control))
        return sum(values) / len(values)

    value = correlate(range(k))
    others = [abs(correlate(order)) for order in permutations(range(k))]
    p = sum(other >= abs(value) - 1e-9 for other in others) / len(others)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((1 + value**2 / 2) / (k - 4))
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, value)))
    return value, math.tanh(middle - reach), math.tanh(middle + reach), p


def sample_variance(values: Sequence[float]) -> float:
    """Return the variance with n - 1 in the denominator."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def effect(
    groups: Sequence[Sequence[Sequence[float]]], signs: Sequence[float], level: float
) -> tuple[float, float, float, float]:
    """Estimate a signed sum of means over seeds: value, low, high, p.

    Each group has a row a network: the estimate, then its replicates over the same images.
    """
    columns = []
    for r in range(len(groups[0][0])):
        means = [sum(network[r] for network in group) / len(group) for group in groups]
        columns.append(sum(sign * mean for sign, mean in zip(signs, means, strict=True)))
    images = sample_variance(columns[1:])
    seeds = both = squares = 0.0
    for group, sign in zip(groups, signs, strict=True):
        s = len(group)
        if s == 1:
            continue
        between = sign**2 * sample_variance([network[0] for network in group]) / s
        seeds += between
        squares += between**2 / (s - 1)
        alone = sum(sample_variance(network[1:]) for network in group) / s
        mean = [sum(network[r] for network in group) / s for r in range(1, len(group[0]))]
        of_one = (alone - sample_variance(mean)) * s / (s - 1)
        both += sign**2 * max(0.0, of_one / s)
    df = seeds**2 / squares if squares else 1.0

    def reach(p: float) -> float:
        of_images = student.ppf(1 - p / 2, len(columns) - 2) ** 2 * images
        return math.sqrt(of_images + student.ppf(1 - p / 2, df) ** 2 * max(0.0, seeds - both))

    value = columns[0]
    low, high = 0.0, 1.0  # p, by bisection: the larger it is the shorter the interval
    for _ in range(45):
        p = (low + high) / 2
        low, high = (p, high) if reach(p) > abs(value) else (low, p)
    return value, value - reach(1 - level), value + reach(1 - level), p


# ---------------------------------------------------------------- differences of accuracies


def paired_difference(
    ours: Sequence[bool], theirs: Sequence[bool], level: float
) -> tuple[float, float, float]:
    """Newcombe's method 10 (Statistics in Medicine 17, 1998), in his letters: value, low, high.

    With 0 in it unless McNemar's mid-p is at most 1 - level.
    """
    pairs = list(zip(ours, theirs, strict=True))
    n = len(pairs)
    e = pairs.count((True, True))
    f = pairs.count((True, False))
    g = pairs.count((False, True))
    h = pairs.count((False, False))
    z = NormalDist().inv_cdf((1 + level) / 2)

    def score(r: int) -> tuple[float, float]:
        middle = 2 * r + z**2
        reach = z * math.sqrt(z**2 + 4 * r * (1 - r / n))
        return (middle - reach) / (2 * (n + z**2)), (middle + reach) / (2 * (n + z**2))

    l2, u2 = score(e + f)
    l3, u3 = score(e + g)
    p2, p3 = (e + f) / n, (e + g) / n
    product = (e + f) * (g + h) * (e + g) * (f + h)
    phi = 0.0
    if product:
        numerator = float(e * h - f * g)
        if numerator > n / 2:
            numerator -= n / 2
        elif numerator >= 0:
            numerator = 0.0
        phi = numerator / math.sqrt(product)
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u3 - p3) + (u3 - p3) ** 2
    above = (p3 - l3) ** 2 - 2 * phi * (p3 - l3) * (u2 - p2) + (u2 - p2) ** 2
    low, high = (f - g) / n - math.sqrt(below), (f - g) / n + math.sqrt(above)
    m = min(f, g)
    tail = sum(math.comb(f + g, k) for k in range(m)) + math.comb(f + g, m) / 2
    if min(1.0, 2 * tail / 2 ** (f + g)) > 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return (f - g) / n, max(-1.0, low), min(1.0, high)


def cross_class(activations: np.ndarray, weight: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the pairs of classes of the positive cosine of W_k * mean a_k."""
    vectors = [row * activations[labels == k].mean(0) for k, row in enumerate(weight)]
    cosines = []
    for j in range(len(vectors)):
        for k in range(j):
            size = np.sqrt((vectors[j] ** 2).sum() * (vectors[k] ** 2).sum())
            cosines.append(max(0.0, float((vectors[j] * vectors[k]).sum() / size)))
    return float(np.mean(cosines))


def balance(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the nearest table with given sums, the square of each change over the entry's size.

    Of all changes that make up for what is missing, least squares gives the smallest, in units of
    the square root of the entry's size.
    """
    c, d = table.shape
    units = np.sqrt(np.abs(table)).ravel()
    sums = np.zeros((c + d, c * d))
    for i in range(c):
        for j in range(d):
            sums[i, i * d + j] = sums[c + j, i * d + j] = 1
    missing = np.concatenate([rows - table.sum(1), columns - table.sum(0)])
    change = np.linalg.lstsq(sums * units, missing, rcond=None)[0]
    return np.asarray(table + (units * change).reshape(c, d))
