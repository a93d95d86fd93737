"""Relevance by intervention: how the logit changes when a channel is taken away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.data import Split, block_size, iterate_blocks
from channelscope.gates import attached
from channelscope.layers.channels import channel_axis
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter, hooked
from channelscope.scorers.base import Cost, register_scorer

_TOLERANCE = 1e-4  # of the largest logit: as far apart as batches of two sizes may be


@dataclass(frozen=True)
class Ablation:
    """Score by causal ablation: how much the logit falls when the channel is set to a constant.

        r[i, c] = logit_{y_i}(z) - logit_{y_i}(z with z[:, c] = v_c at every position)

    High means that the channel speaks for the class. Every channel is taken away by itself, many of
    them in one forward pass: the features are repeated behind the layer, once for each channel,
    where the rest of the network takes them (no connection leads past the layer); elsewhere the
    images are.

    Args:
        to: the constant v_c. "zero"; "mean": the mean over the classes of the channel's mean
            activation; "class-mean": its mean over the images of the image's own class. The last
            answers another question: to first order it averages to 0 over the class, and what is
            left is what the channel's spread within the class does.
        rows: images per forward pass of the rest of the network, at least those that are given.
        means: layer -> mean activation by class (k, c), NaN for a class without images; None to
            take the means of the images that are scored.
    """

    to: Literal["zero", "mean", "class-mean"] = "zero"
    rows: int = 512
    means: Mapping[str, Float[Tensor, "k c"]] | None = None

    def fit(self, network: nn.Module, split: Split, classes: int, layers: Sequence[str]) -> Self:
        """Take the means over all images, where means are needed: one more forward pass."""
        if self.to == "zero" or self.means is not None:
            return self
        return replace(self, means=_average_classes(network, split, classes, layers))

    def __call__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score layers for each image's own class; the network is left as found."""
        if not layers:
            return {}
        with eval_mode(model), attached(model), torch.no_grad():
            with capture_activations(model, *layers) as a:
                whole = get_logits(model(x)).gather(1, y.unsqueeze(1))
            scores = {}
            for layer in layers:
                constants = self._choose_constants(layer, a[layer], y)
                scores[layer] = whole - self._ablate_each(model, layer, x, y, constants)
            return scores

    def _choose_constants(
        self, layer: str, a: Float[Tensor, "n c"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c"]:
        """Return, for each image, what its channels are set to."""
        if self.to == "zero":
            return torch.zeros_like(a)
        if self.means is None:
            of_class = torch.nn.functional.one_hot(y).to(a)
            means = (of_class.T @ a) / of_class.sum(0).unsqueeze(1)
        else:
            means = self.means[layer].to(a.dtype).to(a.device)  # which may lack 64-bit floats
        return means[y] if self.to == "class-mean" else means.nanmean(0).expand_as(a)

    def _ablate_each(
        self, model: nn.Module, layer: str, x: Tensor, y: Tensor, constants: Float[Tensor, "n c"]
    ) -> Float[Tensor, "n c"]:
        """Compute the logit of each image's class without each channel."""
        n = len(x)
        behind = _can_repeat_behind(model, layer, x[:2])
        columns = []
        for channels in torch.arange(constants.shape[1], device="cpu").split(
            max(1, self.rows // n)
        ):
            k = len(channels)

            def silence(z: Tensor, channels: Tensor = channels, k: int = k) -> Tensor:
                z = torch.cat([z] * k) if behind else z.clone()
                first = z.movedim(channel_axis(model, layer, z.shape), 1)
                copies = first.unflatten(0, (k, n))  # a view: (k, n, c, ...)
                for copy, c in zip(copies, channels.tolist(), strict=True):
                    copy[:, c] = constants[:, c].view(-1, *[1] * (z.ndim - 2))
                return z

            with hooked(model, {layer: silence}):
                logits = get_logits(model(x if behind else torch.cat([x] * k)))
            columns.append(logits.unflatten(0, (k, n))[:, torch.arange(n, device=y.device), y])
        return torch.cat(columns).T


_COST = Cost(once=1, per_channel=1)
register_scorer("ablation", cost=_COST, help="how the logit falls when the channel is set to zero")(
    Ablation()
)
register_scorer(
    "ablation-mean",
    cost=_COST,
    help="how it falls when the channel is set to its mean over the classes",
)(Ablation("mean"))
register_scorer(
    "ablation-class-mean",
    cost=_COST,
    help="how it falls when the channel is set to its mean over the image's class",
)(Ablation("class-mean"))


def _average_classes(
    network: nn.Module, split: Split, classes: int, layers: Sequence[str]
) -> dict[str, Float[Tensor, "k c"]]:
    """Average activations by class over all images, in double precision."""
    like, size = get_parameter(network), block_size(split)
    counts = torch.zeros(classes, dtype=torch.float64, device="cpu")
    sums: dict[str, Tensor] = {}
    with (
        eval_mode(network),
        attached(network),
        torch.no_grad(),
        capture_activations(network, *layers) as activations,
    ):
        blocks = torch.arange(len(split), device="cpu").split(size)
        for _, x, y in iterate_blocks(split, blocks, size, like.device):
            network(x.to(like))
            labels = y.cpu()
            order, sizes = labels.argsort(), labels.bincount(minlength=classes)
            counts += sizes
            for layer, a in activations.items():
                rows = a.cpu().double()[order].split(sizes.tolist())
                added = [
                    torch.ones(1, len(part), dtype=torch.float64, device="cpu") @ part
                    for part in rows
                ]
                sums[layer] = sums.get(layer, 0) + torch.cat(added)
    return {layer: total / counts.unsqueeze(1) for layer, total in sums.items()}


def _can_repeat_behind(model: nn.Module, layer: str, x: Float[Tensor, "n *image"]) -> bool:
    """Tell whether the rest of the network treats repeated features as those of repeated images."""
    expected = get_logits(model(torch.cat([x] * 3)))
    try:
        with hooked(model, {layer: lambda z: torch.cat([z] * 3)}):
            logits = get_logits(model(x))
    except (
        Exception
    ):  # a connection leads past the layer, or the network minds how many images it has
        return False
    if logits.shape != expected.shape:
        return False
    largest = expected.abs().max().clamp_min(1e-12)
    return bool((logits - expected).abs().max() <= _TOLERANCE * largest)
