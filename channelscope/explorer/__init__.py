"""Explore a comparison by hand: channels with their numbers and the images that excite them, silenced on demand."""

from collections.abc import Mapping
from typing import Any

from channelscope.errors import UserError
from channelscope.explorer import tables
from channelscope.explorer.live import live
from channelscope.explorer.still import Still
from channelscope.figures.words import measured_layers
from channelscope.result import Result
from channelscope.study.models import Network

__all__ = ["Still", "explore"]


def explore(
    comparison: Result,
    *,
    models: Mapping[str, Network] | None = None,
    data: Any = None,
    model: str | None = None,
    layer: str | None = None,
    class_name: str | None = None,
    order: str = "relevance",
) -> Still:
    """Explore a comparison in a notebook: choose model, layer, class and order, point at channels, silence some.

    Pointing at a channel tells its magnitudes, frequencies and relevance, and shows the images that excite it most.
    Silencing channels tells how the class's mean logit changes, by the tables: exact for the penultimate layer, of
    first order for others. With the networks themselves it also tells their accuracy with the channels set to zero.

    Where ipywidgets is missing, or the notebook is read without a kernel, the chart that the arguments choose is shown,
    still with all that pointing at it tells, and a table of the classes: one piece of HTML without a script.

    Args:
        comparison: made by ``compare`` or loaded.
        models: label in the comparison -> the network or the path of its checkpoint, to silence channels live.
        data: with ``models``: the data that was compared on.
        model, layer, class_name: shown at first; None for the first model, its last layer, the first class.
        order: what channels are sorted by at first; see ``tables.ORDERS``.

    Raises:
        UserError: for names that the comparison does not have, networks without data or of other weights.
    """
    if not isinstance(comparison, Result):
        raise UserError(
            "What is explored is a comparison: load one that was saved with cs.Result.load(folder)."
        )
    if not isinstance(models, Mapping | None):
        raise UserError(
            "Networks are given by their labels in the comparison, as in models={'at': 'at.pt'}."
        )
    if (models is None) != (data is None):
        raise UserError(
            "To silence channels live, give both the networks and the data: models={...}, data=..."
        )
    by_model = measured_layers(comparison)
    model = tables.chosen("model", model, by_model)
    start = {
        "model": model,
        "layer": tables.chosen("layer", layer, by_model[model][::-1]),
        "class_name": tables.chosen("class", class_name, comparison.meta["data"]["classes"]),
        "order": tables.chosen("order", order, tables.ORDERS),
    }
    try:
        from channelscope.explorer.widgets import Explorer
    except ImportError:
        return Still(comparison, **start)
    return Explorer(comparison, live(comparison, models or {}, data) if models else {}, **start)
