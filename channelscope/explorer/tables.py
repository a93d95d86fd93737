"""What the explorer shows, in tables: one layer's channels for one class, and what silencing some of them does."""

from collections.abc import Callable, Collection

import pandas as pd

from channelscope.errors import UserError, suggest
from channelscope.figures.words import select_rows
from channelscope.result import Result

DATA = ("natural", "adversarial")
_LISTED = 10  # names that an error lists, at most
# What channels can be sorted by, the largest first but for relevance and the number; channels that tie by number.
ORDERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "natural magnitude": lambda rows: -rows["natural"],
    "adversarial magnitude": lambda rows: -rows["adversarial"],
    "relevance": lambda rows: rows["relevance"],
    "change": lambda rows: -rows["change"].abs(),
    "channel number": lambda rows: rows["channel"],
}


def channels(
    comparison: Result, model: str, layer: str, class_name: str, order: str
) -> pd.DataFrame:
    """Lay out one layer's channels for one class, a row each, in an order of ``ORDERS``.

    Columns: channel, natural and adversarial (magnitudes), change (adversarial less natural), frequency_natural,
    frequency_adversarial, relevance. Sorted by relevance, the most negatively relevant channel is the first; by change,
    the one that moves most, up or down.
    """
    chosen = {"model": model, "layer": layer, "class": class_name}
    by_data = {
        data: select_rows(comparison.activations, data=data, **chosen).set_index("channel")
        for data in DATA
    }
    table = pd.DataFrame({data: rows["magnitude"] for data, rows in by_data.items()})
    table["change"] = table["adversarial"] - table["natural"]
    for data, rows in by_data.items():
        table[f"frequency_{data}"] = rows["frequency"]
    table["relevance"] = by_data["natural"]["relevance"]
    table = table.rename_axis("channel").reset_index()
    return table.iloc[ORDERS[order](table).to_numpy().argsort(kind="stable")].reset_index(drop=True)


def listed(table: pd.DataFrame) -> list[dict[str, float]]:
    """List a table's rows, each by its columns' names."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def shift(table: pd.DataFrame, silenced: Collection[int]) -> dict[str, float]:
    """Estimate from the tables how the class's mean logit changes when channels are set to zero, by kind of data.

    With magnitude a and relevance g it is - sum over the silenced channels of g[c] a[c]: for the layer whose
    activations the last linear layer weighs exactly this (``is_exact``), for others its first order.
    """
    rows = table[table["channel"].isin(silenced)]
    return {data: float(-(rows["relevance"] * rows[data]).sum()) for data in DATA}


def is_exact(comparison: Result, model: str, layer: str) -> bool:
    """Tell whether ``shift`` is exact: for a layer whose relevance is the last linear layer's weight."""
    return layer in (comparison.meta["models"][model].get("penultimate") or ())


def images(
    comparison: Result, model: str, layer: str
) -> dict[tuple[int, str], list[tuple[int, str, float]]]:
    """List the images that excite each channel of a layer most.

    Returns:
        channel and kind of data -> (image, its class, activation), the largest activation first.
    """
    classes, labels = comparison.meta["data"]["classes"], comparison.arrays["labels"]
    rows = select_rows(comparison.excitation, model=model, layer=layer).sort_values(
        "rank", kind="stable"
    )
    listed: dict[tuple[int, str], list[tuple[int, str, float]]] = {}
    for channel, data, image, activation in rows[
        ["channel", "data", "image", "activation"]
    ].itertuples(index=False):
        listed.setdefault((int(channel), data), []).append(
            (int(image), classes[labels[image]], float(activation))
        )
    return listed


def chosen(kind: str, name: str | None, known: Collection[str]) -> str:
    """Give the name asked for, or else the first known one; UserError for one that is not known."""
    if name is None:
        return next(iter(known))
    if name not in known:
        near = (
            suggest(str(name), known)
            or f" It has {', '.join([*known][:_LISTED])}{', ...' * (len(known) > _LISTED)}."
        )
        raise UserError(f"There is no {kind} {name!r} in this comparison.{near}")
    return name
