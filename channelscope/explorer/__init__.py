"""Explore a comparison by hand: channels, the images that excite them, and silencing on demand."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from channelscope.errors import UserError
from channelscope.explorer.page import StaticExplorer
from channelscope.explorer.tables import ORDERS, choose_name
from channelscope.figures.words import measured_layers
from channelscope.result import Result

if TYPE_CHECKING:
    from channelscope.study.models import Network

__all__ = ["StaticExplorer", "explore"]


def explore(
    result: Result,
    *,
    models: "Mapping[str, Network] | None" = None,
    data: Any = None,
    model: str | None = None,
    layer: str | None = None,
    class_name: str | None = None,
    order: str = "relevance",
) -> StaticExplorer:
    """Explore a comparison in a notebook: choose a layer and a class, point at channels.

    Pointing at a channel shows its magnitudes, frequencies and relevance, and the images that
    excite it most. Silencing channels shows how the class's mean logit changes, estimated from the
    tables: exactly for the penultimate layer, to first order for others; so does restoring them,
    their natural values put into the adversarial run. With the networks themselves, it also shows
    their accuracy. ``save`` writes it all as a page that needs no kernel.

    Without ipywidgets, or in a notebook that is read without a kernel, the chart that the arguments
    choose is shown, with all that pointing shows, and a table of the classes: HTML without scripts.

    Args:
        result: a comparison.
        models: label in the comparison -> network or path of its checkpoint, to run it with
            channels silenced.
        data: with ``models``: the data that was compared on; None for what the comparison names.
        model, layer, class_name: shown first; None for the first model, its last layer, the first
            class.
        order: what channels are sorted by at first; see ``tables.ORDERS``.

    Raises:
        UserError: for names that the comparison does not have, for data without networks, or
            that cannot be read by the comparison's name for it, and for networks of other weights.
    """
    if not isinstance(result, Result) or "activations" not in result.tables:
        raise UserError(
            "Only a comparison with its activations can be explored: load a saved one with "
            "cs.Result.load(folder)."
        )
    if not isinstance(models, Mapping | None):
        raise UserError("Name networks by their labels in the comparison: models={'at': 'at.pt'}.")
    if models is None and data is not None:
        raise UserError("data: it takes networks to run on it: pass models={...} too.")
    layers = measured_layers(result)
    model = choose_name("model", model, layers)
    start = {
        "model": model,
        "layer": choose_name("layer", layer, layers[model][::-1]),
        "class_name": choose_name("class", class_name, result.meta["data"]["classes"]),
        "order": choose_name("order", order, ORDERS),
    }
    try:
        from channelscope.explorer.widgets import Explorer
    except ImportError:
        return StaticExplorer(result, **start)
    if not models:
        return Explorer(result, {}, **start)
    from channelscope.explorer.live import load_networks  # needs torch

    return Explorer(result, load_networks(result, models, data), **start)
