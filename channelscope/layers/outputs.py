"""Plain logits of networks that return something else, or that need a graph in their forward."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.layers.hooks import find_tensor, list_items, named_layers

Entry = int | str  # the number or the name of an entry of what a network returns
_NAMES = "logits", "out"


class PlainLogits(nn.Module):
    """Returns plain logits (n, k), made of what another network returns; layers keep their names.

    Args:
        network: the other network.
        entry: of the tuple, dict or object that it returns; None for the tensor that it returns, or
            for the entry ``logits``, ``out`` or, without either, the first tensor.
        needs_graph: the network's forward takes gradients itself, and fails where there is no graph
            of them: it is run with one, which is dropped where nobody else wants it.
    """

    def __init__(
        self, network: nn.Module, entry: Entry | None = None, *, needs_graph: bool = False
    ) -> None:
        super().__init__()
        self.network, self.entry, self.needs_graph = network, entry, needs_graph

    def named_layers(self) -> dict[str, nn.Module]:
        """List the network's layers under their own names."""
        return named_layers(self.network)

    def forward(self, x: Float[Tensor, "n *image"]) -> Float[Tensor, "n k"]:
        """Return the logits; one logit z for two classes is returned as [0, z]."""
        return widen_logit(pick_entry(self._run(x), self.entry))

    def _run(self, x: Tensor) -> Any:
        if not self.needs_graph or (torch.is_grad_enabled() and x.requires_grad):
            return self.network(x)
        with torch.inference_mode(False), torch.enable_grad():
            output = self.network(x.clone().requires_grad_())
            logits = pick_entry(output, self.entry)
        return logits if torch.is_grad_enabled() else logits.detach()


def pick_entry(output: Any, entry: Entry | None) -> Tensor:
    """Return the tensor of an entry of what a network returned; see ``PlainLogits``.

    Raises:
        UserError: where there is no such entry.
    """
    if isinstance(output, Tensor):
        return output
    if entry is None:
        named = (_get_entry(output, name) for name in _NAMES)
        tensor = next((item for item in named if isinstance(item, Tensor)), None)
        tensor = find_tensor(output) if tensor is None else tensor
    else:
        tensor = find_tensor(_get_entry(output, entry))
    if tensor is None:
        entries = ", ".join(map(str, list_items(output))) or "none"
        raise UserError(
            f"output: there is no tensor {entry!r} in what the network returns, a "
            f"{type(output).__name__} with the entries {entries}: name one of these."
        )
    return tensor


def choose_entry(
    output: Any, images: int, classes: int, entry: Entry | None = None
) -> Entry | None:
    """Return which entry of a network's output holds the logits; None for the tensor as it is.

    Args:
        output: what the network returned for some images.
        images: how many.
        classes: of the data.
        entry: that was asked for; a network that returns a plain tensor has none.

    Raises:
        UserError: where several entries may be logits, and none is called so, or there is no such
            entry.
    """
    if isinstance(output, Tensor):
        return None
    if entry is not None:
        pick_entry(output, entry)
        return entry
    shapes = (images, classes), *([(images, 1), (images,)] if classes == 2 else [])
    for name in _NAMES:
        item = _get_entry(output, name)
        if isinstance(item, Tensor) and tuple(item.shape) in shapes:
            return name
    fitting = [
        key
        for key, item in list_items(output).items()
        if (tensor := find_tensor(item, 1)) is not None and tuple(tensor.shape) in shapes
    ]
    if len(fitting) > 1:
        raise UserError(
            f"The network returns {len(fitting)} tensors of {classes} columns, which may all be "
            f"logits (entries {', '.join(map(str, fitting))}): name the one that is with --output "
            f"{fitting[0]} or --output {fitting[1]} (output={fitting[0]!r} in Python)."
        )
    return fitting[0] if fitting else None


def widen_logit(logits: Tensor) -> Tensor:
    """Return one logit z (n, 1) or (n,) as those of two classes, [0, z]; others as they are."""
    column = logits.unsqueeze(1) if logits.ndim == 1 else logits
    if column.ndim == 2 and column.shape[1] == 1:
        return torch.cat([torch.zeros_like(column), column], 1)
    return logits


def _get_entry(output: Any, entry: Entry) -> Any:
    """Return an entry by number or name, or None; the entries of a dict are counted too."""
    items = list_items(output)
    if entry in items:
        return items[entry]
    if isinstance(entry, int):
        values = list(items.values())
        return values[entry] if 0 <= entry < len(values) else None
    return None if isinstance(output, Mapping) else getattr(output, entry, None)
