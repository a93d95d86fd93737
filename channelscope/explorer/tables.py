"""What the explorer shows of a layer for a class: its channels, and what silencing some does."""

from collections.abc import Callable, Collection

import numpy as np
import pandas as pd

from channelscope.errors import UserError, suggest
from channelscope.result import Result

DATA = ("natural", "adversarial")
_LISTED = 10  # names that an error lists, at most
# What channels can be sorted by: the largest value first, but for relevance and the number.
ORDERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "natural magnitude": lambda rows: -rows["natural"],
    "adversarial magnitude": lambda rows: -rows["adversarial"],
    "relevance": lambda rows: rows["relevance"],
    "change": lambda rows: -rows["change"].abs(),
    "channel number": lambda rows: rows["channel"],
}


def list_channels(
    result: Result, model: str, layer: str, class_name: str, order: str
) -> pd.DataFrame:
    """Return a row for each channel of a layer, for one class, in an order of ``ORDERS``.

    Columns: channel, natural and adversarial (magnitudes), change (adversarial less natural),
    frequency_natural, frequency_adversarial, relevance. Sorted by relevance, the most negatively
    relevant channel is first; by change, the one that moves most, up or down. Ties: by number.
    """
    k = result.meta["data"]["classes"].index(class_name)

    def column(quantity: str, data: str) -> np.ndarray:
        return result.array("activations", quantity, model, data, layer)[k]

    rows = pd.DataFrame({data: column("magnitude", data) for data in DATA})
    rows.insert(0, "channel", rows.index)
    rows["change"] = rows["adversarial"] - rows["natural"]
    for data in DATA:
        rows[f"frequency_{data}"] = column("frequency", data)
    rows["relevance"] = column("relevance", "natural")
    places = ORDERS[order](rows).to_numpy().argsort(kind="stable")
    return rows.iloc[places].reset_index(drop=True)


def estimate_shift(
    rows: pd.DataFrame, silenced: Collection[int], restored: Collection[int] = ()
) -> dict[str, float]:
    """Estimate how the class's mean logit changes, by kind of data.

    With magnitude a and relevance g, silencing channels changes it by - sum g[c] a[c], restoring
    them in the adversarial run by sum g[c] (a[c] natural - a[c] adversarial): exactly for a layer
    whose relevance is the last linear layer's weight, to first order for others.
    """
    zeroed, put_back = (rows[rows["channel"].isin(each)] for each in (silenced, restored))
    shift = {data: float(-(zeroed["relevance"] * zeroed[data]).sum()) for data in DATA}
    shift["adversarial"] -= float((put_back["relevance"] * put_back["change"]).sum())
    return shift


def list_images(
    result: Result, model: str, layer: str
) -> dict[tuple[int, str], list[tuple[int, str, float]]]:
    """List the images that excite each channel of a layer most.

    Returns:
        channel and kind of data -> (image, its class, activation), the largest activation first.
    """
    images: dict[tuple[int, str], list[tuple[int, str, float]]] = {}
    if "excitation" not in result.tables:
        return images
    classes, labels = result.meta["data"]["classes"], result.arrays["labels"]
    rows = result.select("excitation", model=model, layer=layer).sort_values("rank", kind="stable")
    for row in rows.to_dict("records"):
        image = int(row["image"])
        entry = (image, classes[labels[image]], float(row["activation"]))
        images.setdefault((int(row["channel"]), row["data"]), []).append(entry)
    return images


def choose_name(kind: str, name: str | None, names: Collection[str]) -> str:
    """Return a name, or the first of all for None; raise UserError for one that is not there."""
    if name is None:
        return next(iter(names))
    if name not in names:
        listed = ", ".join([*names][:_LISTED]) + ", ..." * (len(names) > _LISTED)
        near = suggest(str(name), names) or f" It has {listed}."
        raise UserError(f"There is no {kind} {name!r} in this comparison.{near}")
    return name
