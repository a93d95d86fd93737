"""Cards of single channels: through which an attack lowers a class's logit most, with images."""

import base64
import io
from collections.abc import Callable, Mapping
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
        losses = _measure_losses(result, model, layer)
        relevance = result.array("activations", "relevance", model, "natural", layer)
        for chosen in (relevance < 0, relevance > 0):
            worths = np.where(chosen & (losses > 0), losses, 0)
            k, channel = map(int, np.unravel_index(worths.argmax(), worths.shape))
            if not worths[k, channel]:
                continue
            card = _describe_channel(result, (model, layer), channel, k)
            card["loss"] = format_number(losses[k, channel])
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
            cards.append(card)
    return cards


def _measure_losses(result: "Result", model: str, layer: str) -> Float[ndarray, "k c"]:
    """Return what each channel takes from the mean logit of each class under attack."""
    relevance, natural, adversarial = (
        result.array("activations", quantity, model, data, layer)
        for quantity, data in (
            ("relevance", "natural"),
            ("magnitude", "natural"),
            ("magnitude", "adversarial"),
        )
    )
    losses: ndarray = relevance * (natural - adversarial)
    return losses


def _describe_channel(
    result: "Result", place: tuple[str, str], channel: int, k: int
) -> dict[str, Any]:
    """Return the numbers of a channel for a class, as text."""
    model, layer = place
    values = {
        f"{quantity}_{data}": result.array("activations", quantity, model, data, layer)[k, channel]
        for quantity in ("magnitude", "frequency")
        for data in _DATA
    }
    relevance = float(result.array("activations", "relevance", model, "natural", layer)[k, channel])
    return {
        "model": model,
        "layer": layer,
        "channel": channel,
        "class_name": describe_class(result.meta["data"]["classes"][k]),
        "speaks": "against" if relevance < 0 else "for",
        "sign": "NR" if relevance < 0 else "PR",
        "relevance": format_number(relevance),
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
        images = result.arrays.get(f"thumbnails/{name}/images", np.array([], int)).tolist()
        places[name] = {image: place for place, image in enumerate(images)}

    def find_picture(model: str, data: str, image: int) -> dict[str, Any] | None:
        name = data if data == "natural" else f"{data}/{models.index(model)}"
        place = places[name].get(image)
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
