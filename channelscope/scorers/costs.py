"""What a scorer costs, in forward passes of the same images: counted, not measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """A scorer's cost relative to one forward pass of the network over the same images.

        cost = once + per_layer * (number of layers) + per_channel * (number of channels of all layers)

    A forward pass counts 1, and so does a backward pass, which is made of the features alone: the weights get no
    gradient. What runs a part of the network only is counted whole, so the cost is an upper bound.

    Args:
        once: passes for all layers together.
        per_layer: passes for each layer.
        per_channel: passes for each channel.

    >>> Cost(once=1, per_channel=1).of([64, 128])
    193
    """

    once: int = 0
    per_layer: int = 0
    per_channel: int = 0

    def of(self, channels: Sequence[int]) -> int:
        """Count the passes for layers of so many channels."""
        return self.once + self.per_layer * len(channels) + self.per_channel * sum(channels)

    def __str__(self) -> str:
        parts = {"": self.once, " a layer": self.per_layer, " a channel": self.per_channel}
        return " + ".join(f"{passes}{each}" for each, passes in parts.items() if passes) or "0"


_STEPS = 50  # of integrated gradients and conductance

COSTS: dict[str, Cost] = {
    "weights": Cost(),
    "gradient": Cost(once=2),
    "gradient-x-activation": Cost(once=2),
    "integrated-gradients": Cost(
        per_layer=2 * _STEPS + 2
    ),  # there and back a step, and there at both ends
    "conductance": Cost(per_layer=2 * _STEPS + 2),  # there and back at every end of an interval
    "deeplift": Cost(
        per_layer=6
    ),  # there and back, and there to check completeness, each with the black image
    "grad-cam": Cost(once=2),
    "probe": Cost(once=1),  # and the way back through the probe alone
    "ablation": Cost(once=1, per_channel=1),
    "ablation-mean": Cost(once=1, per_channel=1),
    "ablation-class-mean": Cost(once=1, per_channel=1),
}
