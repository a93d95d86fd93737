"""Cards of single channels: through which an attack lowers a class's logit most, with images."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from channelscope.figures.words import (
    choose_layers,
    describe_class,
    format_number,
    format_percent,
)
from channelscope.report.tables import has_rows

if TYPE_CHECKING:
    from channelscope.result import Result

_MODELS = 4  # that have cards
_DATA = ("natural", "adversarial")
_VIEWS = {
    "noise": "image made from noise to drive the channel",
    "start": "natural image",
    "driven": "the same, changed within the attack's ball to drive the channel",
}
_TILE = 44  # pixels of a picture's longer side on the page


def list_cards(result: "Result") -> list[dict[str, Any]]:
    """Return the channels through which a class of each model loses most, at its last layer.

    One that speaks against the class, and one that speaks for it.

    With relevance g and magnitudes a, a' of natural and adversarial images, channel c takes
    g[k, c] (a[k, c] - a'[k, c]) from the mean logit of class k: exactly at the penultimate layer,
    to first order elsewhere.
    """
    if not has_rows(result, "activations"):
        return []
    layers = dict(list(choose_layers(result).items())[:_MODELS])
    find_picture, images = _index_pictures(result), _list_images(result, layers)
    cards = []
    for model, layer in layers.items():
        columns = _read_columns(result, model, layer)
        relevance = columns["relevance"]
        losses = relevance * (columns["magnitude_natural"] - columns["magnitude_adversarial"])
        for chosen in (relevance < 0, relevance > 0):
            worths = np.where(chosen & (losses > 0), losses, 0)
            k, channel = map(int, np.unravel_index(worths.argmax(), worths.shape))
            if not worths[k, channel]:
                continue
            card: dict[str, Any] = {"model": model, "layer": layer, "channel": channel}
            card["class_name"] = describe_class(result.meta["data"]["classes"][k])
            card["loss"] = format_number(losses[k, channel])
            card |= _describe_channel(columns, k, channel)
            card["pictures"] = {
                data: [
                    {
                        "picture": find_picture(model, data, image),
                        "words": f"{data} image {image}, {name}: {format_number(activation)}",
                    }
                    for image, name, activation in images.get((model, data, channel), ())
                ]
                for data in _DATA
            }
            card["views"] = list(_list_views(result, model, layer, channel))
            cards.append(card)
    return cards


def _list_views(result: "Result", model: str, layer: str, channel: int) -> Iterator[dict[str, Any]]:
    """Yield the images that drive a channel (``visualise``), if the result keeps them."""
    place = list(result.meta["models"]).index(model)
    name = f"views/{place}/{result.meta['models'][model]['layers'].index(layer)}"
    for row in np.flatnonzero(result.arrays.get(f"{name}/channels", np.array([])) == channel)[:1]:
        # In the order of ``ChannelViews.activations``.
        activations = result.arrays[f"{name}/activations"][row]
        for (which, words), activation in zip(_VIEWS.items(), activations, strict=False):
            picture = _encode(result.arrays[f"{name}/{which}"][row])
            yield {"picture": picture, "words": f"{words}: {format_number(activation)}"}


def _read_columns(result: "Result", model: str, layer: str) -> dict[str, Float[ndarray, "k c"]]:
    """Return relevance, and magnitude and frequency of each kind of data."""
    names = ["relevance"]
    columns = [result.array("activations", "relevance", model, "natural", layer)]
    for quantity, data in product(("magnitude", "frequency"), _DATA):
        names.append(f"{quantity}_{data}")
        columns.append(result.array("activations", quantity, model, data, layer))
    return dict(zip(names, np.broadcast_arrays(*columns), strict=True))


def _describe_channel(
    columns: Mapping[str, Float[ndarray, "k c"]], k: int, channel: int
) -> dict[str, str]:
    """Return the numbers of a channel for a class, as text."""
    values = {name: float(column[k, channel]) for name, column in columns.items()}
    is_against = values["relevance"] < 0
    return {
        "speaks": "against" if is_against else "for",
        "sign": "NR" if is_against else "PR",
        **{
            name: format_percent(value, 0) if name.startswith("freq") else format_number(value)
            for name, value in values.items()
        },
    }


def _list_images(
    result: "Result", layers: Mapping[str, str]
) -> dict[tuple[str, str, int], list[tuple[int, str, float]]]:
    """Return (model, data, channel) -> images that excite it most: number, class, activation."""
    images: dict[tuple[str, str, int], list[tuple[int, str, float]]] = {}
    if not has_rows(result, "excitation"):
        return images
    classes, labels = result.meta["data"]["classes"], result.arrays["labels"]
    rows = result.excitation
    rows = rows[rows["layer"] == rows["model"].map(layers)].sort_values("rank", kind="stable")
    for row in rows.to_dict("records"):
        image = int(row["image"])
        entry = (image, describe_class(classes[labels[image]]), float(row["activation"]))
        images.setdefault((row["model"], row["data"], int(row["channel"])), []).append(entry)
    return images


def _index_pictures(result: "Result") -> "Callable[[str, str, int], dict[str, Any] | None]":
    """Return what finds the picture of (model, kind of data, image); None for one not kept."""
    models = list(result.meta["models"])
    places: dict[str, dict[int, int]] = {}
    for name in ("natural", *(f"adversarial/{index}" for index in range(len(models)))):
        if f"thumbnails/{name}" in result.arrays:
            images = result.arrays[f"thumbnails/{name}/images"].tolist()
            places[name] = {image: place for place, image in enumerate(images)}

    def find_picture(model: str, data: str, image: int) -> dict[str, Any] | None:
        name = data if data == "natural" else f"{data}/{models.index(model)}"
        place = places.get(name, {}).get(image)
        return None if place is None else _encode(result.arrays[f"thumbnails/{name}"][place])

    return find_picture


def _encode(picture: UInt8[ndarray, "c h w"]) -> dict[str, Any]:
    """Return a picture as a PNG in base64, and its size on the page; one channel is grey."""
    channels, height, width = picture.shape
    shown = picture.transpose(1, 2, 0) if channels == 3 else picture[0]
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(png, "PNG")
    scale = _TILE / max(height, width)
    return {
        "content": base64.b64encode(png.getvalue()).decode(),
        "width": max(1, round(width * scale)),
        "height": max(1, round(height * scale)),
    }
