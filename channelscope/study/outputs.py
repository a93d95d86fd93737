"""What networks return, tried on a few images; the true cause where they fail."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelscope.attacks.folding import same_randomness
from channelscope.errors import UserError
from channelscope.gates import Selective
from channelscope.layers.hooks import eval_mode, find_tensor, list_items
from channelscope.layers.outputs import Entry, PlainLogits, choose_entry, pick_entry, widen_logit
from channelscope.networks import ResNet, WideResNet

_NO_GRAPH = "does not require grad"  # what torch says of it
_EXPECTED = (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError)


OTHER_DATA = "choose data of the kind that it was trained on"


def adapt_network(
    network: nn.Module,
    x: Float[Tensor, "n *image"],
    classes: int,
    output: Entry | None = None,
    remedy: str = OTHER_DATA,
) -> nn.Module:
    """Return a network that returns plain logits: the network itself, or one around it.

    Which of several entries of a tuple, dict or object are the logits is told by the number of
    classes. One logit for two classes is taken as [0, z]. A network whose forward takes gradients
    is run with a graph of them.

    Args:
        network: any classifier.
        x: a few images.
        classes: of the data.
        output: number or name of the entry that holds the logits, for networks that return several.
        remedy: what to do where the network does not take the images.

    Raises:
        UserError: where several entries may be the logits, or the network fails.
    """
    if isinstance(network, Selective | ResNet | WideResNet):
        return network
    with explain_refusal(x, remedy, network):
        raw, needs_graph = _try_output(network, x)
        if is_frozen_program(network):  # it may take just as many images as in its example
            _try_output(network, x[:1])
    entry = choose_entry(raw, len(x), classes, output)
    first = find_tensor(raw) if entry is None else None
    is_single = classes == 2 and first is not None and first.numel() == len(x)
    if entry is None and not needs_graph and not is_single and not is_frozen_program(network):
        return network
    return PlainLogits(network, entry, needs_graph=needs_graph)


def _try_output(network: nn.Module, x: Tensor) -> tuple[Any, bool]:
    """Return what the network makes of x, and whether it needs a graph of gradients for it."""
    with same_randomness(x), eval_mode(network):
        try:
            with torch.no_grad():
                return network(x), False
        except RuntimeError as error:
            if _NO_GRAPH not in str(error):
                raise
        with torch.enable_grad():
            return network(x.clone().requires_grad_()), True


def count_classes(
    network: nn.Module, x: Float[Tensor, "n *image"], output: Entry | None = None
) -> int | None:
    """Return the number of a network's classes; None where its output does not tell, or it fails.

    Args:
        network, x, output: see ``adapt_network``.
    """
    try:
        raw, _ = _try_output(network, x)
    except Exception:  # that they do not fit is found, and told, in its place
        return None
    if not isinstance(raw, Tensor) and output is not None:
        with suppress(UserError):
            raw = pick_entry(raw, output)
    for name in ("logits", "out"):
        named = raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)
        raw = named if isinstance(named, Tensor) else raw
    items = [raw] if isinstance(raw, Tensor) else list(list_items(raw).values())
    tensors = [widen_logit(item) for item in items if isinstance(item, Tensor)]
    counts = {item.shape[1] for item in tensors if item.ndim == 2 and len(item) == len(x)}
    return counts.pop() if len(counts) == 1 else None


def is_frozen_program(network: nn.Module) -> bool:
    """Tell whether a network is TorchScript or of torch.export: it runs no layers as such."""
    return any(
        isinstance(module, torch.jit.ScriptModule) or _is_exported(module)
        for module in network.modules()
    )


def _is_exported(module: nn.Module) -> bool:
    return isinstance(module, torch.fx.GraphModule) and hasattr(module, "_in_spec")


@contextmanager
def explain_refusal(
    x: Float[Tensor, "n *image"], remedy: str, network: nn.Module | None = None
) -> Iterator[None]:
    """Say in a sentence why a network fails on images such as x, and what to do.

    Args:
        x: the images.
        remedy: what to do where the images are the cause.
        network: tells more causes.
    """
    try:
        yield
    except _EXPECTED as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        cause = _find_cause(error, reason, network)
        shape = tuple(x.shape[1:])
        raise UserError(
            cause or f"The network does not take images of shape {shape} ({reason}): {remedy}."
        ) from error


def _find_cause(error: Exception, reason: str, network: nn.Module | None) -> str | None:
    """Return a sentence on a failure that is not due to the images; None where it may be."""
    if "required positional argument" in reason and isinstance(error, TypeError):
        return (
            f"The network takes more inputs than the images ({reason}): wrap it in a module whose "
            "forward takes images alone."
        )
    if _NO_GRAPH in reason:
        return (
            f"The network takes a gradient in its forward pass and has none there ({reason}): "
            "remove detach, no_grad or inference_mode before that place."
        )
    if network is None or not is_frozen_program(network):
        return None
    return (
        "The network is TorchScript or an exported program, which takes only what it was made "
        f"for ({reason}): export it anew for any number of images (a dynamic first dimension), or "
        "pass the network that it was made from."
    )
