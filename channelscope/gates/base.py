"""What gates return, and the registry of their kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from channelscope.devices import widen
from channelscope.errors import UserError

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class GateKind:
    """A kind of gate.

    Args:
        name: of the kind, as recipes and checkpoints say it.
        build: makes a gate of plain values: ``build(channels, classes, **options)``.
        help: one line on what such a gate does.
    """

    name: str
    build: Callable[..., nn.Module]
    help: str

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options: name -> annotation."""
        parameters = signature(self.build, eval_str=True).parameters.values()
        keywords = (one for one in parameters if one.kind is Parameter.KEYWORD_ONLY)
        return {keyword.name: keyword.annotation for keyword in keywords}


KINDS: dict[str, GateKind] = {}


def register_gate(name: str, *, help: str) -> Callable[[Builder], Builder]:
    """Register a kind of gate by its builder ``(channels, classes, **options)``.

    The options are keyword-only, annotated as bool, int, float, str, a Literal of words or a union
    of these, and have defaults: recipes and checkpoints hold them as plain values.
    """
    if name in KINDS:
        raise UserError(f"There is a gate {name!r} already: choose another name.")

    def register(build: Builder) -> Builder:
        KINDS[name] = GateKind(name, build, help)
        return build

    return register


class Selection(NamedTuple):
    """What a gate returns: the selected features, and what it has besides them.

    Args:
        features: what the rest of the network sees, z * m for the gates of CIFS.
        probe_logits: of the gate's probe, trained to tell the labels.
        mask: multipliers of the channels, or of single elements.
        extra: further logits (n, k) that are trained to tell the labels.
        rivals: logits (n, k) that are trained to tell each image's rival: the wrong class that the
            network's own logits favour most.
    """

    features: Float[Tensor, "n c *space"]
    probe_logits: Float[Tensor, "n k"] | None = None
    mask: Float[Tensor, "n c"] | Float[Tensor, "n c h w"] | None = None
    extra: tuple[Tensor, ...] = ()
    rivals: tuple[Tensor, ...] = ()

    def heads(
        self, y: Int[Tensor, " n"], logits: Float[Tensor, "n k"]
    ) -> list[tuple[Tensor, Tensor]]:
        """List the logits that the gate trains, each with its targets (n,)."""
        labelled = self.extra if self.probe_logits is None else (self.probe_logits, *self.extra)
        heads = [(head, y) for head in labelled]
        if self.rivals:
            rival = strongest_rival(logits, y)
            heads += [(head, rival) for head in self.rivals]
        return heads


def strongest_rival(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return, per image, the class of the largest logit that is not the label's."""
    first, second = logits.topk(2, dim=1).indices.unbind(1)
    return torch.where(first == y, second, first)


def mask_share(mask: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    r"""Compute, per image, the share of a mask's multipliers in effect: their participation ratio.

    .. math:: (\sum_i |m_i|)^2 \,/\, (C \sum_i m_i^2)

    of C multipliers lies between 1 / C, where one alone is not 0, and 1, where all are alike; 0 for
    a mask of zeros.
    """
    m = widen(mask).abs()
    tiny = torch.finfo(m.dtype).tiny
    return (m.sum(1) ** 2 / (m.shape[1] * (m**2).sum(1)).clamp_min(tiny)).to(mask.dtype)


def require_maps(z: Float[Tensor, "n c *space"], kind: str) -> None:
    """Refuse features that are not feature maps (n, c, h, w)."""
    if z.ndim != 4:
        raise UserError(
            f"A gate of kind {kind} selects feature maps (n, c, h, w), not features of shape "
            f"{tuple(z.shape)}: gate a convolutional layer."
        )
