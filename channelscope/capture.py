"""Read the features and channel activations of any network, by layer name."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.hooks import Edit, hooked


@contextmanager
def capture(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Capture the named layers' features: inside the context, each forward pass refills the dict.

    The tensors stay in the graph, so gradients with respect to them can be taken; they are safe from in-place
    operations that follow. A layer that runs more than once is named call by call, as ``relu@1``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    >>> with capture(net, "0") as features:
    ...     _ = net(torch.zeros(2, 3, 5, 5))
    >>> features["0"].shape
    torch.Size([2, 8, 3, 3])

    Raises:
        LayerError: see ``hooks.hooked``.
    """
    captured: dict[str, Tensor] = {}

    def keep(name: str) -> Edit:
        def edit(z: Tensor) -> Tensor:
            captured[name] = z
            return z.clone()  # what follows works on the clone: an in-place ReLU leaves the captured one alone

        return edit

    with hooked(model, {name: keep(name) for name in names}):
        yield captured


@contextmanager
def pooled(model: nn.Module, *names: str) -> Iterator[dict[str, Float[Tensor, "n c"]]]:
    """Capture the named layers' activations only: inside the context, each forward pass refills the dict.

    The features are reduced as they are made and not kept, so the memory beyond that of the bare forward pass is n x c
    numbers a layer. Otherwise as ``capture``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with pooled(net, "0", "1") as found, torch.no_grad():
    ...     _ = net(torch.zeros(2, 3, 5, 5))
    >>> found["1"].shape
    torch.Size([2, 8])

    Raises:
        LayerError: see ``hooks.hooked``; UserError: see ``activations``.
    """
    found: dict[str, Tensor] = {}

    def reduce(name: str) -> Edit:
        def edit(z: Tensor) -> None:
            found[name] = activations(z)

        return edit

    with hooked(model, {name: reduce(name) for name in names}):
        yield found


def activations(z: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c"]:
    """Reduce features (n, c) or (n, c, h, w) to activations: the spatial mean of each channel.

    Raises:
        UserError: for features of any other shape.
    """
    if z.ndim not in (2, 4):
        raise UserError(
            f"Features of shape {tuple(z.shape)} have no channels: choose a layer that returns (images, channels) "
            "or (images, channels, height, width)."
        )
    return z if z.ndim == 2 else z.mean((2, 3))
