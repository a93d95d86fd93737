"""Scorers by captum (arXiv 2009.07896), from a black image.

captum sees a network that returns plain logits, and a layer as a module of its own, however the
layer is named, whatever it returns, and whether what follows works in place. It is imported when a
scorer runs, which takes seconds.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.channels import channel_axis, summed
from channelscope.layers.hooks import eval_mode, get_logits, hooked
from channelscope.scorers.base import Cost, register_scorer

_ROWS = 64  # images per pass, unless more are given: the points of a few images' paths
_INCOMPLETE = 0.01  # of the change of the logits: what DeepLift's scores may miss of it
_STEPS = 50


@dataclass(frozen=True)
class _PathMethod:
    """A scorer that integrates along a path of images or features.

    Args:
        steps: points, or intervals, of the path.
    """

    steps: int = _STEPS
    method: ClassVar[str]  # its name in captum

    def __call__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score layers for each image's own class; the network is left as found."""
        # Of so few images at a time that the points of their paths are about a batch.
        images = max(1, max(_ROWS, len(x)) // (self.steps + 1))

        def attribute(tapped: _Tapped) -> Tensor:
            captum = getattr(import_module("captum.attr"), self.method)(tapped, tapped.tap)
            parts = []
            for image, label in zip(x.split(images), y.split(images), strict=True):
                black = torch.zeros_like(image)
                scores = captum.attribute(image, black, target=label, n_steps=self.steps)
                # Conductance keeps the graph of its pass, and those of two passes, or of all
                # images, would not fit in memory.
                scores = scores.detach()
                parts.append(scores)
            return torch.cat(parts)

        return _score_each(model, layers, attribute)


@dataclass(frozen=True)
class IntegratedGradients(_PathMethod):
    """Score by integrated gradients of the layer, from the black image's features z' straight to z.

        r[i, c] = sum over positions of (z - z') *
                  integral from 0 to 1 of d logit_{y_i} / dz at z' + t (z - z') dt

    Where nothing leads past the layer, the channels' scores add up to the difference of the logits
    of the two images. Sundararajan et al., ICML 2017 (arXiv 1703.01365).

    Args:
        steps: points of the Gauss-Legendre quadrature.
    """

    method = "LayerIntegratedGradients"


@dataclass(frozen=True)
class Conductance(_PathMethod):
    """Score by conductance: the logit's change through the channel, from the black image to x.

        r[i, c] = sum over positions of the integral from 0 to 1 of d logit_{y_i} / dz * dz / dt dt,
        z being the layer's features of the image t x

    Where nothing leads past the layer, the channels' scores add up to the difference of the logits
    of the two images. Dhamdhere et al., ICLR 2019 (arXiv 1805.12233); by differences of z,
    Shrikumar et al., 2018 (arXiv 1807.09946).

    Args:
        steps: intervals of the line.
    """

    method = "LayerConductance"


register_scorer(
    "integrated-gradients",
    cost=Cost(per_layer=2 * _STEPS + 2),  # there and back a step, and there at both ends
    help="the gradient, integrated from the features of a black image",
)(IntegratedGradients())
register_scorer(
    "conductance",
    cost=Cost(per_layer=2 * _STEPS + 2),  # there and back at every end of an interval
    help="the logit's change through the channel, from a black image",
)(Conductance())


@register_scorer(
    "deeplift",
    cost=Cost(per_layer=6),  # there and back, there to check completeness, each with a black image
    help="differences from a black image in place of gradients; refused where incomplete",
)
def deeplift(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by DeepLift's rescale rule: r[i, c] = sum over positions of (z - z') * multiplier.

    z' are the features of the black image. The multipliers are those of differences between the two
    images instead of gradients, so that the channels' scores add up to the difference of the
    logits: completeness. captum sees only non-linearities that are modules called once (ReLU, ELU,
    LeakyReLU, Sigmoid, Tanh, Softplus, MaxPool, Softmax); of others it silently takes the gradient,
    so completeness is checked. Shrikumar et al., ICML 2017 (arXiv 1704.02685).

    Raises:
        UserError: where the scores miss more than a hundredth of the difference of the logits, on
            the mean.
    """

    def attribute(tapped: _Tapped) -> Tensor:
        from captum.attr import LayerDeepLift

        # captum's hooks lie ahead of the layer too, where nothing else needs a gradient.
        image = x.detach().requires_grad_()
        try:
            scores, missed = LayerDeepLift(tapped, tapped.tap).attribute(
                image, torch.zeros_like(x), target=y, return_convergence_delta=True
            )
        except (RuntimeError, AssertionError, AttributeError) as error:
            raise UserError(
                f"DeepLift cannot score layer {tapped.layer!r} of this network: {_ADVICE}"
            ) from error
        change = scores.flatten(1).sum(1) - missed  # of the logits, from the black image to x
        share = float(missed.abs().mean() / change.abs().mean().clamp_min(1e-12))
        if share > _INCOMPLETE:
            raise UserError(
                f"DeepLift's scores of layer {tapped.layer!r} miss {share:.0%} of what they should "
                f"add up to: {_ADVICE}"
            )
        return scores.detach()

    return _score_each(model, layers, attribute)


_ADVICE = (
    "behind the layer every ReLU must be a module (nn.ReLU) of its own, and no connection lead "
    "past it; choose another layer, or the scorer integrated-gradients."
)


class _Tapped(nn.Module):
    """A network that returns plain logits, and one layer's features as a module's output."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # What follows works on a clone: were it in place, captum would see the features changed.
        with hooked(self.model, {self.layer: lambda z: self.tap(z).clone()}):
            return get_logits(self.model(x))


def _score_each(
    model: nn.Module, layers: Sequence[str], attribute: Callable[[_Tapped], Any]
) -> dict[str, Float[Tensor, "n c"]]:
    """Attribute the logits to each layer's features, layer by layer, and sum over positions."""
    scores = {}
    with (
        eval_mode(model),
        attached(model),
        _out_of_place(model),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # captum tells how it works
        for layer in layers:
            z = attribute(_Tapped(model, layer).eval())
            scores[layer] = summed(z, channel_axis(model, layer, z.shape))
    return scores


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """Let the modules that work in place make new tensors: captum keeps no copies."""
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    try:
        for module in changed:
            module.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]
