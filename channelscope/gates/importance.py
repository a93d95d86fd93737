"""Importance mask generating functions (IMGF): from the relevance of channels to their multipliers.

Yan et al., ICML 2021 (arXiv 2102.05311), section 4, with the variants of its ablation.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from channelscope.errors import UserError

Imgf = Literal["softmax", "softmax-abs", "sigmoid", "softplus", "relu", "identity"]
Budget = float | Literal["channels"]

_MOST = 1e6  # no setting of a function is larger, nor its inverse
_SOFTMAX: tuple[Imgf, ...] = ("softmax", "softmax-abs")
# The functions that take a setting which another function would ignore.
_TAKEN_BY: dict[str, tuple[Imgf, ...]] = {
    "scale": ("sigmoid",),
    "sharpness": ("softplus",),
    "temperature": _SOFTMAX,
    "budget": _SOFTMAX,
}


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A function from relevance g to a mask m, channel by channel but for the softmax.

    =============  ==========================================  ==========================
    name           mask                                        settings
    =============  ==========================================  ==========================
    softmax        m = s softmax(g / T)                        temperature T, budget s
    softmax-abs    m = s softmax(abs(g) / T)                   temperature T, budget s
    sigmoid        m = 1 / (1 + exp(-scale g))                 scale
    softplus       m = log(1 + exp(sharpness g)) / sharpness   sharpness
    relu           m = max(g, 0)
    identity       m = g, which may be negative (CAS)
    =============  ==========================================  ==========================

    A softmax's mask sums to the budget s: 1 in the authors' release, 2 in files of the paper's
    time; with "channels" (s = C) the multipliers are 1 on average, so that what stands behind the
    gate sees features as large as without it.

    Args:
        imgf: the function's name.
        scale, sharpness, temperature: between 1e-6 and 1e6, without units. The paper's ablation has
            a scale of 10 (and 0.1, 1, 5, 15), a sharpness of 5 (10, 20), temperatures 0.5 to 24.
        budget: the same, or "channels".

    Raises:
        UserError: for an unknown name, a number out of range, or a setting other than its default
            that the function does not take.
    """

    imgf: Imgf = "softmax"
    scale: float = 1.0
    sharpness: float = 1.0
    temperature: float = 1.0
    budget: Budget = 1.0

    def __post_init__(self) -> None:
        if self.imgf not in get_args(Imgf):
            choices = ", ".join(get_args(Imgf))
            raise UserError(f"There is no mask function {self.imgf!r}: choose from {choices}.")
        for name, functions in _TAKEN_BY.items():
            value = getattr(self, name)
            is_number = not isinstance(value, str) and 1 / _MOST <= value <= _MOST
            if not is_number and (name, value) != ("budget", "channels"):
                raise UserError(
                    f"The {name} of a mask function lies between 1e-6 and 1e6, not at {value}."
                )
            if value != 1 and self.imgf not in functions:
                raise UserError(
                    f"The mask function {self.imgf} takes no {name}, which is of "
                    f"{' and '.join(functions)}: leave {name} = {value} out."
                )

    def __call__(self, g: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Turn the relevance into the mask."""
        match self.imgf:
            case "softmax":
                return self._share_budget(g)
            case "softmax-abs":
                return self._share_budget(g.abs())
            case "sigmoid":
                return (self.scale * g).sigmoid()
            case "softplus":
                return F.softplus(g, beta=self.sharpness)
            case "relu":
                return g.relu()
            case _:
                return g

    def _share_budget(self, g: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return shares of the budget that grow with g."""
        budget = g.shape[1] if self.budget == "channels" else self.budget
        return (g / self.temperature).softmax(1) * budget
