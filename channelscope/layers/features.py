"""Read, or suppress, the channels of any network, by layer name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.channels import channel_axis, positions
from channelscope.layers.hooks import Edit, hooked

Channels = Sequence[int] | Bool[Tensor, " c"] | Bool[Tensor, "n c"]


@contextmanager
def capture(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Capture the named layers' features: inside the context, each forward pass refills the dict.

    Features are as the layer returns them: (n, c, h, w) of a convolution, (n, tokens, c) or (n, c)
    of others; ``layers.channels.channel_axis`` tells which axis has the channels. The tensors stay
    in the graph, so gradients with respect to them can be taken; they are safe from in-place
    operations that follow. A layer that runs more than once is named call by call, as
    ``relu@1``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    >>> with capture(net, "0") as features:
    ...     _ = net(torch.zeros(2, 3, 5, 5))
    >>> features["0"].shape
    torch.Size([2, 8, 3, 3])

    Raises:
        LayerError: see ``layers.hooks.hooked``.
    """
    features: dict[str, Tensor] = {}
    has_graph = torch.is_grad_enabled()  # a network may switch gradients on for itself

    def keep(name: str) -> Edit:
        def edit(z: Tensor) -> Tensor:
            features[name] = z if has_graph else z.detach()
            return z.clone()  # an in-place ReLU that follows changes the clone

        return edit

    with hooked(model, {name: keep(name) for name in names}):
        yield features


@contextmanager
def capture_activations(model: nn.Module, *names: str) -> Iterator[dict[str, Float[Tensor, "n c"]]]:
    """Capture the named layers' activations: each forward pass inside the context refills them.

    The features are reduced as they are made and not kept, so the memory beyond that of the bare
    forward pass is n x c numbers a layer. Otherwise as ``capture``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with capture_activations(net, "0", "1") as activations, torch.no_grad():
    ...     _ = net(torch.zeros(2, 3, 5, 5))
    >>> activations["1"].shape
    torch.Size([2, 8])

    Raises:
        LayerError: see ``layers.hooks.hooked``; UserError: see ``layers.channels.channel_axis``.
    """
    activations: dict[str, Tensor] = {}
    has_graph = torch.is_grad_enabled()  # a network may switch gradients on for itself
    axes: dict[str, int] = {}  # looked up once, as that takes longer than to reduce a batch

    def reduce(name: str) -> Edit:
        def edit(z: Tensor) -> None:
            if name not in axes:
                axes[name] = channel_axis(model, name, z.shape)
            activations[name] = pool_features(z if has_graph else z.detach(), axes[name])

        return edit

    with hooked(model, {name: reduce(name) for name in names}):
        yield activations


def pool_features(z: Float[Tensor, "n *features"], axis: int = 1) -> Float[Tensor, "n c"]:
    """Reduce features to activations: the mean of each channel over its positions, space or tokens.

    Args:
        z: features (n, c), (n, c, h, w), (n, tokens, c), (n, h, w, c) or the like.
        axis: of the channels, see ``layers.channels.channel_axis``.
    """
    over = positions(z.ndim, axis)
    return z.mean(over) if over else z


@contextmanager
def ablated(
    model: nn.Module,
    channels: Mapping[str, Channels],
    to: float | Mapping[str, Float[Tensor, " c"]] = 0.0,
) -> Iterator[None]:
    """Suppress channels of the named layers: inside the context, all their positions are ``to``.

    The network goes on from there, and its gradients with it: an attack inside the context sees the
    suppression.

    Args:
        model: any network.
        channels: layer name -> the channels to suppress: their numbers or a mask (c,), for all
            images; or a mask (n, c), a row for each image: the network then takes batches of these
            images, or of the first of them.
        to: the value of a suppressed channel; or layer name -> a value for each channel (c,), such
            as its mean.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with ablated(net, {"1": [2, 5]}):
    ...     z = net(torch.ones(1, 3, 5, 5))
    >>> bool(z[:, [2, 5]].any())
    False

    Raises:
        LayerError: see ``layers.hooks.hooked``.
        UserError: for channels that the layer does not have, and for more images than the mask has
            rows.
    """

    def suppress(layer: str, chosen: Channels) -> Edit:
        def edit(z: Tensor) -> Tensor:
            axis = channel_axis(model, layer, z.shape)
            constant = to[layer].to(z) if isinstance(to, Mapping) else z.new_tensor(to)
            values = constant.expand(z.shape[axis])
            return _replace_channels(layer, z, axis, chosen, values.unsqueeze(0))

        return edit

    with hooked(model, {layer: suppress(layer, chosen) for layer, chosen in channels.items()}):
        yield


@contextmanager
def patched(
    model: nn.Module, patches: Mapping[str, tuple[Channels, Float[Tensor, "..."]]]
) -> Iterator[None]:
    """Put values into channels of the named layers, in place of what the network makes there.

    The values come from another run: of another image, of an image's natural twin, of another
    network, with its channels in the order that matches; or they are a class's means. The network
    goes on from there; ``measure_outside`` tells whether they are what it is used to.

    Args:
        model: any network.
        patches: layer name -> the channels, as in ``ablated``, and the values of all channels of
            the layer: features as ``capture`` has them, of as many images as the network takes, or
            of one for all; or activations (n, c) or (c,), the same at all positions.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> x, twin = torch.rand(2, 1, 3, 5, 5).unbind()
    >>> with capture(net, "1") as natural:
    ...     z = net(twin)
    >>> with patched(net, {"1": ([2, 5], natural["1"])}):
    ...     torch.equal(net(x)[:, [2, 5]], z[:, [2, 5]])
    True

    Raises:
        LayerError: see ``layers.hooks.hooked``.
        UserError: for channels that the layer does not have, and values that do not fit its
            features.
    """

    def patch(layer: str, chosen: Channels, values: Tensor) -> Edit:
        def edit(z: Tensor) -> Tensor:
            axis = channel_axis(model, layer, z.shape)
            fitting = _fit_values(layer, values, z, axis)
            return _replace_channels(layer, z, axis, chosen, fitting)

        return edit

    with hooked(model, {layer: patch(layer, *values) for layer, values in patches.items()}):
        yield


def _fit_values(layer: str, values: Tensor, z: Tensor, axis: int) -> Float[Tensor, "_ c *space"]:
    """Return values with the channels on axis 1, a row for each image or one for all."""
    channels = z.shape[axis]
    fitting = values.unsqueeze(0) if values.ndim < 2 else values
    fitting = fitting[: len(z)]
    shapes = (z.shape[1:], (channels,))
    if fitting.shape[1:] not in shapes or len(fitting) not in (1, len(z)):
        raise UserError(
            f"The values of layer {layer!r} have the shape {tuple(values.shape)}, and its features "
            f"are {tuple(z.shape)}: give features of that shape, of one image or of as many, or "
            f"{channels} numbers."
        )
    fitting = fitting.to(z)
    return fitting if fitting.ndim == 2 else fitting.movedim(axis, 1)


def _replace_channels(
    layer: str, z: Tensor, axis: int, chosen: Channels, values: Float[Tensor, "_ channels *space"]
) -> Tensor:
    """Return features with these values in the chosen channels; values have them on axis 1."""
    z = z.movedim(axis, 1)
    shape = (-1, z.shape[1], *[1] * (z.ndim - 2))
    mask = _as_mask(layer, chosen, z).reshape(shape)
    values = values.reshape(shape) if values.ndim == 2 else values
    return torch.where(mask, values, z).movedim(1, axis)


def measure_outside(
    values: Float[Tensor, "n *features"], natural: Float[Tensor, "m *features"], axis: int = 1
) -> Float[Tensor, "n c"]:
    """Return the share of each channel's positions that lie outside its range on natural images.

    The range is from the least to the largest value of the channel, over all images and positions.
    A patch that a network never meets is seen by that: behind it, layers leave their range too.

    Args:
        values: features of a patched run, of the layer that is patched or of one behind.
        natural: the layer's features of natural images; many, as the range grows with them.
        axis: of the channels, see ``layers.channels.channel_axis``.
    """
    others = tuple(other for other in range(natural.ndim) if other != axis)
    low, high = (pick(natural, others, keepdim=True) for pick in (torch.amin, torch.amax))
    return pool_features(((values < low) | (values > high)).to(natural.dtype), axis)


def _as_mask(layer: str, chosen: Channels, z: Tensor) -> Bool[Tensor, "... c"]:
    """Return the mask (c,) or (n, c) of the channels to suppress in features z."""
    n, c = z.shape[:2]
    if isinstance(chosen, Tensor):
        if chosen.shape[-1] != c or (chosen.ndim == 2 and len(chosen) < n):
            raise UserError(
                f"The mask of layer {layer!r} has the shape {tuple(chosen.shape)}, and there are "
                f"{n} images with {c} channels: give a row (channels,), or one for each image."
            )
        return (chosen if chosen.ndim == 1 else chosen[:n]).to(z.device)
    for channel in chosen:
        if channel not in range(c):
            raise UserError(
                f"Layer {layer!r} has {c} channels, from 0 up: there is no channel {channel}."
            )
    mask = torch.zeros(c, dtype=torch.bool, device=z.device)
    mask[list(chosen)] = True
    return mask
