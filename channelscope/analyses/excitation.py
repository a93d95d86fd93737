"""Excitation: the images that excite each channel most, and small pictures of them."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy import ndarray

from channelscope.analyses.base import Analysis, Study, Table, register
from channelscope.statistics.channels import top_images

if TYPE_CHECKING:
    from channelscope.result import Result

_KEEP = 4  # images of each channel
_LIMIT = 4 * 2**20  # bytes that the pictures of one set may take
_SIDE = 64  # pixels, as ``study.measuring.shrink`` leaves
_DATA = ("natural", "adversarial")


def compute_excitation(study: Study) -> dict[str, Any]:
    """Find the images with each channel's largest activations, and pictures of them.

    The arrays ``thumbnails/natural``, of all models together, and ``thumbnails/adversarial/0``, the
    first model's, and so on, are pictures (n, c, h, w), uint8, at most 4 MB each, of the images of
    the first ranks; under the same names ended in ``/images`` are the images' numbers (n,). Absent
    where no pictures were kept. Every image has its natural picture beside its adversarial one, as
    far as there is room.

    ``references/0/1/natural`` and so on are the images (c, 4) that contribute most to their own
    class's logit through each channel of the first model's second layer: activation times
    relevance.
    """
    tops = {
        (model, layer, data): top_images(study.activations(model, layer, data), _KEEP)
        for model, data in product(study.models, _DATA)
        for layer in study.layers(model)
    }
    references = {
        (model, layer, data): top_images(
            study.activations(model, layer, data) * study.relevance(model, layer), _KEEP
        )
        for model, layer, data in tops
    }
    results: dict[str, Any] = {"excitation": _list_images(study, tops)}
    for (model, layer, data), images in references.items():
        place = f"{study.models.index(model)}/{study.layers(model).index(layer)}"
        results[f"references/{place}/{data}"] = images
    shown = [*tops.items(), *references.items()]
    results |= _collect_pictures(study, "natural", study.models[0], [top for _, top in shown])
    for index, model in enumerate(study.models):
        own = [top for (of, _, _), top in shown if of == model]
        results |= _collect_pictures(study, f"adversarial/{index}", model, own)
    return results


def _list_images(
    study: Study, tops: dict[tuple[str, str, str], Int[ndarray, "_ _"]]
) -> pd.DataFrame:
    """Return a row for each channel and rank; by columns, as there may be 100,000."""
    parts = []
    for (model, layer, data), images in tops.items():
        channels, ranks = np.indices(images.shape)
        activations = np.asarray(study.activations(model, layer, data)[images, channels], float)
        where = {"model": model, "layer": layer, "data": data}
        places = {"channel": channels.ravel(), "rank": ranks.ravel() + 1}
        columns = where | places | {"image": images.ravel(), "activation": activations.ravel()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _collect_pictures(
    study: Study, name: str, model: str, tops: Sequence[Int[ndarray, "_ _"]]
) -> dict[str, ndarray]:
    """Return the pictures of as many images as there is room for, and the images' numbers."""
    images = rank_images(tops)
    data = name.partition("/")[0]
    first = study.thumbnails(model, data, images[:1])
    if first is None:
        return {}
    images = images[: _LIMIT // first.nbytes]
    pictures = study.thumbnails(model, data, images)
    numbers = np.array(images, np.int64)
    return {f"thumbnails/{name}": np.asarray(pictures), f"thumbnails/{name}/images": numbers}


def rank_images(tops: Sequence[Int[ndarray, "_ _"]]) -> list[int]:
    """Return the images that excite any channel, once each: by their best rank, then number."""
    best: dict[int, int] = {}
    for top in tops:
        for rank, images in enumerate(top.T):
            for image in np.unique(images).tolist():
                best[image] = min(rank, best.get(image, rank))
    return sorted(best, key=lambda image: (best[image], image))


def check_excitation(result: "Result") -> None:
    """Raise ValueError where images are not those of the data, or pictures no pictures."""
    labels = result.arrays["labels"]
    names = [name for name in result.arrays if name.startswith("thumbnails/")]
    pictures = {name: result.arrays[name] for name in names if not name.endswith("/images")}
    numbers = {name: result.arrays[f"{name}/images"] for name in pictures}
    for name, array in pictures.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[:1] != numbers[name].shape:
            raise ValueError(f"{name} in arrays.npz holds no pictures")
        if array.nbytes > _LIMIT or max(array.shape[1:]) > _SIDE:
            raise ValueError(f"{name} in arrays.npz holds larger pictures than are kept")
    sizes = {array.shape[1:] for array in pictures.values()}
    if len(sizes) > 1 or not all(map(min, sizes)):
        raise ValueError("arrays.npz holds pictures of sizes that do not belong together")
    _check_indices(labels, len(result.meta["data"]["classes"]), "labels in arrays.npz")
    for images in (result.excitation["image"].to_numpy(), *numbers.values()):
        _check_indices(images, len(labels), "images")
    for name in result.arrays:
        if name.startswith("references/"):
            _check_indices(result.arrays[name].ravel(), len(labels), name)
            if result.arrays[name].ndim != 2:
                raise ValueError(f"{name} is no table of images")
    measured = {
        (model, layer)
        for model, described in result.meta["models"].items()
        for layer in described.get("layers", ())
    }
    if not {*zip(result.excitation["model"], result.excitation["layer"], strict=True)} <= measured:
        raise ValueError("excitation is of layers that were not measured")
    _check_indices(result.excitation["channel"].to_numpy(), 2**31, "channels in excitation")


def _check_indices(values: ndarray, count: int, what: str) -> None:
    """Raise ValueError unless all values are whole numbers from 0 up, below ``count``."""
    numbers = values.astype(float)
    if not ((numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers))).all():
        raise ValueError(f"{what} are not counted from 0 up to {count - 1}")


register(
    Analysis(
        name="excitation",
        help="the images that excite each channel most",
        tables={
            "excitation": Table(
                words=("model", "layer", "data"),
                numbers=("channel", "rank", "image", "activation"),
                help="rank: 1 for the image that excites the channel most; image: its place in "
                "the data",
            )
        },
        compute=compute_excitation,
        check=check_excitation,
    )
)
