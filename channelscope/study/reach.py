"""Reach: how far can any attack drive a channel, and how much of that does an attack use?

    reach up    = max over the ball of  a_c(x + d) - a_c(x),    down: of  a_c(x) - a_c(x + d)

for the activation a_c of a channel. It is searched by PGD on the channel alone, so what is found is
a lower bound; of a channel that is linear in the image it is exact, as far as [0, 1] lets it:
eps times the L1 norm of the gradient for an L-inf ball.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.gates import attached
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode, get_logits


@dataclass(frozen=True, eq=False)
class Reach:
    """How far channels can be driven, image by image; lower bounds, at least 0.

    Args:
        channels: their numbers (m,).
        up, down: by how much their activations can be raised and lowered (n, m).
    """

    channels: Sequence[int]
    up: Float[Tensor, "n m"]
    down: Float[Tensor, "n m"]

    def use(self, change: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the share of the reach that an attack's changes of the channels use.

        Args:
            change: of the activations, attacked less natural; a channel that rises is compared with
                its reach up, one that falls with that down. NaN where there is no reach.
        """
        reach = torch.where(change > 0, self.up, self.down)
        return change.abs() / torch.where(reach > 0, reach, torch.nan)


@dataclass(frozen=True)
class ChannelObjective:
    """The objective that drives a channel: its activation, up (sign 1) or down (sign -1).

    ``channel`` is one for all images, or (n,) a channel for each.
    """

    layer: str
    channel: int | Int[Tensor, " n"]
    sign: int = 1

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *image"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the signed activation of each image."""
        with capture_activations(model, self.layer) as activations:
            get_logits(model(x))
        rows = torch.arange(len(x), device=x.device)
        return self.sign * activations[self.layer][rows, self.channel]


def measure_reach(
    network: nn.Module,
    layer: str,
    x: Float[Tensor, "n *image"],
    *,
    channels: Sequence[int] | None = None,
    attack: PGD | None = None,
) -> Reach:
    """Measure how far an attack in the ball can drive each channel of a layer; see ``Reach``.

    Args:
        network: any network; gates are attached.
        layer: its name.
        x: images in [0, 1].
        channels: which ones; None for all. Each costs two runs of the attack.
        attack: the ball, the steps and their size; None for PGD-20 with its defaults. Its objective
            is replaced, and no image leaves.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> reach = measure_reach(net, "1", torch.full((1, 1, 2, 2), 0.5), attack=PGD(eps=0.1))
    >>> bool(torch.allclose(reach.up[0], 0.1 * net[1].weight.abs().sum(1), rtol=1e-4))
    True

    Raises:
        UserError: for a channel that the layer does not have.
    """
    attack = attack or PGD(steps=20, random_start=False)
    y = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def read(images: Tensor) -> Float[Tensor, "n c"]:
        with torch.no_grad(), capture_activations(network, layer) as activations:
            network(images)
        return activations[layer]

    with eval_mode(network), attached(network):
        start = read(x)
        width = start.shape[1]
        numbers = list(range(width) if channels is None else channels)
        for channel in numbers:
            if channel not in range(width):
                raise UserError(
                    f"channels: layer {layer!r} has {width} channels, from 0 up: there is no "
                    f"channel {channel}."
                )
        reach = {sign: torch.zeros_like(start) for sign in (1, -1)}
        for channel in numbers:
            for sign in (1, -1):
                objective = ChannelObjective(layer, channel, sign)
                search = replace(attack, objective=objective, early_stop=None)
                moved = read(search(network, x, y))[:, channel]
                reach[sign][:, channel] = (sign * (moved - start[:, channel])).clamp_min(0)
    return Reach(numbers, reach[1][:, numbers], reach[-1][:, numbers])
