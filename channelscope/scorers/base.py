"""What a scorer of channels is."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn


class RelevanceScorer(Protocol):
    """Score a layer's channels for each image's own class; above 0, a channel speaks for the class."""

    def __call__(
        self, model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor
    ) -> dict[str, Float[Tensor, "n c"]]:
        """Give, by layer, the relevance (n, c) of each channel to the class y of each image x."""
