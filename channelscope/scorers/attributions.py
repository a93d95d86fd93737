"""Scorers by captum (arXiv 2009.07896): integrated gradients, conductance and DeepLift of a layer, from a black image.

captum sees a network that returns plain logits, and a layer as a module of its own, whatever the layer is called by,
returns, or is followed by in place. It is imported when a scorer runs, which takes seconds.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.channels import channel_axis, summed
from channelscope.layers.hooks import eval_mode, get_logits, hooked

_ROWS = 64  # images per pass, unless more are given: the points of a few images' paths
_INCOMPLETE = 0.01  # of the change of the logits: what DeepLift's scores may miss of it


@dataclass(frozen=True)
class IntegratedGradients:
    """Score by integrated gradients of the layer, along the straight line from the black image's features z' to z.

        r[i, c] = sum over positions of (z - z') * integral from 0 to 1 of d logit_{y_i} / dz at z' + t (z - z') dt

    Where nothing leads past the layer, the channels' scores add up to the difference of the logits of the two images.
    Sundararajan et al., ICML 2017 (arXiv 1703.01365).

    Args:
        steps: points of the Gauss-Legendre quadrature.
    """

    steps: int = 50

    def __call__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score layers for each image's own class; the network is left as found."""

        def attribute(tapped: "_Tapped") -> Tensor:
            from captum.attr import LayerIntegratedGradients

            return _few_at_once(LayerIntegratedGradients(tapped, tapped.tap), x, y, self.steps)

        return _attributed(model, layers, attribute)


@dataclass(frozen=True)
class Conductance:
    """Score by conductance: the change of the logit through the channel, along the line from the black image to x.

        r[i, c] = sum over positions of the integral from 0 to 1 of d logit_{y_i} / dz * dz / dt dt,
        z being the layer's features of the image t x

    Where nothing leads past the layer, the channels' scores add up to the difference of the logits of the two images.
    Dhamdhere et al., ICLR 2019 (arXiv 1805.12233); by differences of z, Shrikumar et al., 2018 (arXiv 1807.09946).

    Args:
        steps: intervals of the line.
    """

    steps: int = 50

    def __call__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        x: Float[Tensor, "n *image"],
        y: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Score layers for each image's own class; the network is left as found."""

        def attribute(tapped: "_Tapped") -> Tensor:
            from captum.attr import LayerConductance

            return _few_at_once(LayerConductance(tapped, tapped.tap), x, y, self.steps)

        return _attributed(model, layers, attribute)


def deeplift(
    model: nn.Module, layers: Sequence[str], x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n c"]]:
    """Score by DeepLift's rescale rule: r[i, c] = sum over positions of (z - z') * multiplier, z' of the black image.

    The multipliers are those of differences between the two images instead of gradients, so that the channels' scores
    add up to the difference of the logits: completeness. captum sees only non-linearities that are modules called
    once (ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, MaxPool, Softmax); of others it takes the gradient without a
    word, so completeness is checked. Shrikumar et al., ICML 2017 (arXiv 1704.02685).

    Raises:
        UserError: where the scores miss more than a hundredth of the difference of the logits, on the mean.
    """

    def attribute(tapped: _Tapped) -> Tensor:
        from captum.attr import LayerDeepLift

        watched = (
            x.detach().requires_grad_()
        )  # captum's hooks lie ahead of the layer too, where nothing else has one
        try:
            found, missed = LayerDeepLift(tapped, tapped.tap).attribute(
                watched, torch.zeros_like(x), target=y, return_convergence_delta=True
            )
        except (RuntimeError, AssertionError, AttributeError) as error:
            raise UserError(
                f"DeepLift cannot score layer {tapped.layer!r} of this network: {_ADVICE}"
            ) from error
        change = found.flatten(1).sum(1) - missed  # of the logits, from the black image to x
        if (
            share := float(missed.abs().mean() / change.abs().mean().clamp_min(1e-12))
        ) > _INCOMPLETE:
            raise UserError(
                f"DeepLift's scores of layer {tapped.layer!r} miss {share:.0%} of what they should add up to: {_ADVICE}"
            )
        return found.detach()

    return _attributed(model, layers, attribute)


_ADVICE = (
    "behind the layer every ReLU must be a module (nn.ReLU) of its own, and no connection lead past it; "
    "choose another layer, or the scorer integrated-gradients."
)


class _Tapped(nn.Module):
    """A network that gives plain logits, and one layer's features as the output of a module of its own."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer, self.tap = model, layer, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # What follows works on a clone: were it in place, captum would see the features changed.
        with hooked(self.model, {self.layer: lambda z: self.tap(z).clone()}):
            return get_logits(self.model(x))


def _attributed(
    model: nn.Module, layers: Sequence[str], attribute: Callable[[_Tapped], Any]
) -> dict[str, Float[Tensor, "n c"]]:
    """Attribute the logits to each layer's features, layer by layer, and sum over positions."""
    found = {}
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
            found[layer] = summed(z, channel_axis(model, layer, z.shape))
    return found


def _few_at_once(method: Any, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Attribute along the paths of so many images that their points are about as many as the images that are given."""
    images = max(1, max(_ROWS, len(x)) // (steps + 1))
    parts = zip(x.split(images), y.split(images), strict=True)
    # Detached one by one: conductance keeps the graph of its pass, and those of all images would not fit in memory.
    found = [
        method.attribute(at, torch.zeros_like(at), target=k, n_steps=steps).detach()
        for at, k in parts
    ]
    return torch.cat(found)


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
