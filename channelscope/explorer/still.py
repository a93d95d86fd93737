"""The explorer as a file: one page of HTML with its script and data; nothing is fetched."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy import ndarray

from channelscope.explorer.sheets import encode_sheet
from channelscope.explorer.tables import ORDERS
from channelscope.figures.words import classes_to_name, describe_attack, measured_layers
from channelscope.files import atomic_write
from channelscope.report import load_template
from channelscope.result import Result

_TEMPLATES = Path(__file__).parent.parent / "templates"
_PICTURES = 512  # of each kind, at most
_NUMBERS = ("magnitude", "frequency")


def write_page(result: Result, path: Path, start: dict[str, Any]) -> Path:
    """Write the page that explores a comparison; its policy lets no script but its own run.

    Args:
        result: a comparison.
        path: where to write.
        start: model, layer, class_name and order that are shown first.
    """
    texts = {
        name: (_TEMPLATES / f"explore-page.{name}").read_text("utf-8") for name in ("css", "js")
    }
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in texts.items()
    }
    data = json.dumps(make_data(result) | {"start": start}, allow_nan=False)
    page = load_template("explore-page.html.j2").render(
        title=", ".join(result.meta["models"]),
        hashes=hashes,
        assets={name: Markup(text) for name, text in texts.items()},
        # Within the page's markup: no end of the element, no comment.
        data=Markup(data.replace("<", "\\u003c")),
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return path


def make_data(result: Result) -> dict[str, Any]:
    """Return what the page computes with; arrays are base64 of 32-bit numbers, row by row."""
    shown = classes_to_name(result)
    classes = result.meta["data"]["classes"]
    rows = [classes.index(name) for name in shown]
    models = [
        {
            "label": model,
            "layers": [
                _describe_layer(result, model, layer, index, place, rows)
                for place, layer in enumerate(layers)
            ],
            "samples": _take_samples(result, index),
        }
        for index, (model, layers) in enumerate(measured_layers(result).items())
    ]
    return {
        "attack": describe_attack(result),
        "attackName": str(result.meta["attack"]),
        "classes": classes,
        "shown": rows,
        "orders": list(ORDERS),
        "labels": np.asarray(result.arrays["labels"]).tolist(),
        "models": models,
        "strengths": result.arrays.get("magnitudes/names", np.array([], str)).tolist(),
        "matched": list(_list_matches(result)),
        "pictures": _take_pictures(result),
    }


def _encode(array: ndarray, kind: type = np.float32) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def _describe_layer(
    result: Result, model: str, layer: str, index: int, place: int, rows: list[int]
) -> dict[str, Any]:
    """Return a layer's numbers by class and channel, its reference images, and what it sees."""

    def column(quantity: str, data: str) -> ndarray:
        return result.array("activations", quantity, model, data, layer)[rows]

    relevance = column("relevance", "natural")
    described: dict[str, Any] = {
        "name": layer,
        "exact": layer in result.meta["models"][model].get("penultimate", ()),
        "channels": relevance.shape[1],
        "relevance": _encode(relevance),
    }
    for data in ("natural", "adversarial"):
        described[data] = {name: _encode(column(name, data)) for name in _NUMBERS}
        described[data]["references"] = _list_references(
            result, model, layer, f"{index}/{place}", data
        )
    strengths = result.arrays.get(f"magnitudes/{index}/{place}")
    described["strengths"] = None if strengths is None else _encode(strengths[:, rows])
    described["views"] = _take_views(result, f"views/{index}/{place}")
    return described


def _list_references(
    result: Result, model: str, layer: str, place: str, data: str
) -> dict[str, list[list[list[float]]]]:
    """Return by ranking each channel's reference images, with activations where these rank."""
    references: dict[str, list[list[list[float]]]] = {}
    if "excitation" in result.tables:
        frame = result.select("excitation", model=model, layer=layer, data=data)
        frame = frame.sort_values(["channel", "rank"], kind="stable")
        count = result.array("activations", "magnitude", model, data, layer).shape[1]
        by_channel: list[list[list[float]]] = [[] for _ in range(count)]
        for channel, image, value in zip(
            frame["channel"].astype(int), frame["image"], frame["activation"], strict=True
        ):
            if channel < count:
                by_channel[channel].append([int(image), float(np.nan_to_num(value))])
        references["activation"] = by_channel
    ranked = result.arrays.get(f"references/{place}/{data}")
    if ranked is not None:
        references["relevance"] = [[[int(image)] for image in row] for row in ranked]
    return references


def _take_samples(result: Result, index: int) -> dict[str, Any] | None:
    arrays, name = result.arrays, f"samples/{index}"
    if f"{name}/weight" not in arrays:
        return None
    taken: dict[str, Any] = {"images": arrays[f"{name}/images"].tolist()}
    for key in ("natural", "adversarial", "weight", "bias"):
        taken[key] = _encode(arrays[f"{name}/{key}"])
    return taken


def _take_views(result: Result, name: str) -> dict[str, Any] | None:
    """Return the images that drive some channels, and these channels' maps, as sheets."""
    arrays = result.arrays
    if f"{name}/channels" not in arrays:
        return None
    views: dict[str, Any] = {
        "channels": arrays[f"{name}/channels"].tolist(),
        "activations": np.nan_to_num(arrays[f"{name}/activations"]).astype(float).tolist(),
        "references": arrays[f"{name}/references"].tolist(),
    }
    for which in ("noise", "start", "driven"):
        views[which] = encode_sheet(arrays[f"{name}/{which}"])
    views["size"] = list(arrays[f"{name}/noise"].shape[2:])
    maps = arrays.get(f"{name}/maps")
    if maps is not None:
        views["maps"] = encode_sheet(maps.reshape(-1, 1, *maps.shape[-2:]))
        views["mapSize"] = list(maps.shape[-2:])
    return views


def _list_matches(result: Result) -> Iterator[list[Any]]:
    """Yield model, layer, other model, other layer, and pairs of channels that match."""
    frame = result.tables.get("matched")
    if not isinstance(frame, pd.DataFrame):
        return
    words = ["model", "layer", "other", "other_layer"]
    for names, rows in frame.groupby(words, sort=False):
        pairs = rows[["channel", "other_channel"]].astype(int).to_numpy().tolist()
        correlations = np.nan_to_num(rows["correlation"].to_numpy(float)).round(3).tolist()
        yield [*names, pairs, correlations]


def _take_pictures(result: Result) -> dict[str, Any]:
    """Return sheets of pictures by kind: "natural", "views", and "adversarial/0" and so on."""
    pictures = {}
    names = ["natural", *(f"adversarial/{index}" for index in range(len(result.meta["models"])))]
    places = {name: f"thumbnails/{name}" for name in names} | {"views": "views/pictures"}
    for name, place in places.items():
        key = "views/images" if name == "views" else f"{place}/images"
        if place not in result.arrays or key not in result.arrays:
            continue
        shown = result.arrays[place][:_PICTURES]
        if len(shown):
            images = result.arrays[key][:_PICTURES].tolist()
            size = list(shown.shape[2:])
            pictures[name] = {"images": images, "size": size, "sheet": encode_sheet(shown)}
    return pictures
