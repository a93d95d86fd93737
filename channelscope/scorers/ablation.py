"""Relevance by intervention: what becomes of the logit when a channel is taken away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.gates import attached
from channelscope.layers.channels import channel_axis
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, get_logits, hooked

_TOLERANCE = 1e-4  # of the largest logit: as far apart as batches of two sizes may be


@dataclass(frozen=True)
class Ablation:
    """Score by causal ablation: how much the class's logit falls when the channel is set to a constant.

        r[i, c] = logit_{y_i}(z) - logit_{y_i}(z with z[:, c] = v_c at every position)

    High means that the channel speaks for the class. Every channel is taken away by itself, many of them in one
    forward pass: the features are repeated behind the layer, once for each channel, where the rest of the network
    takes them (no connection leads past the layer); elsewhere the images are.

    Args:
        to: the constant v_c. "zero"; "mean": the mean over the classes of the channel's mean activation; "class-mean":
            its mean over the images of the image's own class. The last answers another question: to first order it
            averages to 0 over the class, and what is left is what the channel's spread within the class does.
        rows: images per forward pass of the rest of the network, at least those that are given.
        means: layer -> mean activation by class (k, c); None to take the means of the images that are scored.
    """

    to: Literal["zero", "mean", "class-mean"] = "zero"
    rows: int = 512
    means: Mapping[str, Float[Tensor, "k c"]] | None = None

    @property
    def needs_means(self) -> bool:
        """Whether it would rather have the means of all images."""
        return self.to != "zero" and self.means is None

    def fitted(self, means: Mapping[str, Float[Tensor, "k c"]]) -> Self:
        """Give the scorer that has the means of more images than are scored at once; NaN for a class without."""
        return replace(self, means=means)

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
            return {
                layer: whole
                - self._without(model, layer, x, y, self._constants(layer, a[layer], y))
                for layer in layers
            }

    def _constants(
        self, layer: str, a: Float[Tensor, "n c"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c"]:
        """Give, for each image, what its channels are set to."""
        if self.to == "zero":
            return torch.zeros_like(a)
        means = (
            class_means(a, y, int(y.max()) + 1) if self.means is None else self.means[layer].to(a)
        )
        return means[y] if self.to == "class-mean" else means.nanmean(0).expand_as(a)

    def _without(
        self, model: nn.Module, layer: str, x: Tensor, y: Tensor, constants: Float[Tensor, "n c"]
    ) -> Float[Tensor, "n c"]:
        """Give the logit of each image's class without each channel."""
        behind = _can_repeat_behind(model, layer, x[:2])
        columns = []
        for channels in torch.arange(constants.shape[1]).split(max(1, self.rows // len(x))):
            k = len(channels)

            def silence(z: Tensor, channels: Tensor = channels, k: int = k) -> Tensor:
                z = torch.cat([z] * k) if behind else z.clone()
                parts = z.movedim(channel_axis(model, layer, z.shape), 1).unflatten(
                    0, (k, len(x))
                )  # a view: (k, n, c, ...)
                for part, c in zip(parts, channels.tolist(), strict=True):
                    part[:, c] = constants[:, c].view(-1, *[1] * (z.ndim - 2))
                return z

            with hooked(model, {layer: silence}):
                logits = get_logits(model(x if behind else torch.cat([x] * k)))
            columns.append(
                logits.unflatten(0, (k, len(x)))[:, torch.arange(len(x), device=y.device), y]
            )
        return torch.cat(columns).T


def class_means(
    a: Float[Tensor, "n c"], y: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "k c"]:
    """Average activations by class; NaN for a class without images."""
    of_class = torch.nn.functional.one_hot(y, classes).to(a)
    return (of_class.T @ a) / of_class.sum(0).unsqueeze(1)


def _can_repeat_behind(model: nn.Module, layer: str, x: Float[Tensor, "n *image"]) -> bool:
    """Tell whether the rest of the network takes a layer's features repeated, and answers as to repeated images."""
    wanted = get_logits(model(torch.cat([x] * 3)))
    try:
        with hooked(model, {layer: lambda z: torch.cat([z] * 3)}):
            logits = get_logits(model(x))
    except (
        Exception
    ):  # a connection leads past the layer, or the network minds how many images it answers to
        return False
    if logits.shape != wanted.shape:
        return False
    return bool((logits - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp_min(1e-12))
