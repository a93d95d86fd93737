"""Samples: what the explorer computes with, image by image, of a few images.

At the penultimate layer the logits are linear in the activations, z = W a + b, so what silencing
channels does, or restoring them in an adversarial run, is arithmetic on what is kept here: exact,
image by image, without the network. The arrays, with M a model's place:

    samples/M/images           numbers of the images (m,)
    samples/M/natural          activations of M's first penultimate layer (m, c), float32;
    samples/M/adversarial      the same images under attack
    samples/M/weight, bias     W (k, c) and b (k,)
    magnitudes/names           the swept strengths of the attack, as "eps-0.01" (s,)
    magnitudes/M/L             magnitudes at each (s, k, c), of M's layer number L
    views/M/L/...              what channels see, where it was added; see ``visualisation``
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from channelscope.analyses.base import Analysis, Study, register
from channelscope.statistics.channels import choose_evenly

if TYPE_CHECKING:
    from channelscope.result import Result

IMAGES = 256  # of which activations are kept, at most
_LIMIT = 2**20  # bytes of the activations of one model and kind of data
_HEAD = 2**21  # bytes of a last layer that is kept: a thousand classes would be files of megabytes
_LARGEST = 2**23  # bytes of the magnitudes of one layer
DATA = ("natural", "adversarial")
# Axes of what channels see, and the axis of the channels; pictures and maps are uint8.
_VIEWS = {
    "channels": (1, 0),
    "activations": (2, 0),
    "references": (3, 1),
    "noise": (4, 0),
    "start": (4, 0),
    "driven": (4, 0),
    "maps": (5, 1),
}


def compute_samples(study: Study) -> dict[str, ndarray]:
    """Keep activations of a few images, the last layer, and magnitudes at strengths."""
    arrays: dict[str, ndarray] = {}
    for index, model in enumerate(study.models):
        head, layers = study.head(model), study.penultimate(model)[:1]
        if head is not None and head[0].nbytes <= _HEAD:
            for layer in layers:
                arrays |= _keep_samples(study, model, layer, f"samples/{index}")
                arrays |= {f"samples/{index}/weight": head[0], f"samples/{index}/bias": head[1]}
    strengths = [name for _, _, name in study.strengths()]
    if not strengths:
        return arrays
    arrays["magnitudes/names"] = np.array(strengths)
    for index, model in enumerate(study.models):
        for place, layer in enumerate(study.layers(model)):
            width = study.relevance(model, layer).shape[1]
            if 4 * len(strengths) * len(study.classes) * width <= _LARGEST:
                magnitudes = [measure_magnitudes(study, model, layer, name) for name in strengths]
                arrays[f"magnitudes/{index}/{place}"] = np.stack(magnitudes).astype(np.float32)
    return arrays


def _keep_samples(study: Study, model: str, layer: str, name: str) -> dict[str, ndarray]:
    """Keep the activations of as many images as there is room for, and their numbers."""
    width = study.activations(model, layer).shape[1]
    images = choose_evenly(len(study.labels), min(IMAGES, max(1, _LIMIT // (4 * width))))
    kept = {
        f"{name}/{data}": np.asarray(study.activations(model, layer, data)[images], np.float32)
        for data in DATA
    }
    return kept | {f"{name}/images": images}


def measure_magnitudes(study: Study, model: str, layer: str, data: str) -> Float[ndarray, "k c"]:
    """Return each channel's mean activation over the images of each class; NaN without images."""
    activations = study.activations(model, layer, data)
    rows = [activations[study.labels == k] for k in range(len(study.classes))]
    none = np.full(activations.shape[1], np.nan)
    return np.stack([np.mean(row, axis=0, dtype=float) if len(row) else none for row in rows])


def check_samples(result: "Result") -> None:
    """Raise ValueError for arrays that do not belong together."""
    arrays, classes = result.arrays, len(result.meta["data"]["classes"])
    images = len(arrays.get("labels", ()))
    names = [name for name in arrays if name.startswith(("samples/", "magnitudes/", "views/"))]
    for prefix in dict.fromkeys(name.rpartition("/")[0] for name in names):
        paths = {name: name.rpartition("/") for name in names}
        of_prefix = {path[2]: arrays[name] for name, path in paths.items() if path[0] == prefix}
        if prefix.startswith("samples/"):
            _check_samples(prefix, of_prefix, classes, images)
        elif prefix.startswith("views/"):
            _check_views(prefix, of_prefix, images)
    for name in names:
        if name.startswith("magnitudes/") and name != "magnitudes/names":
            count = arrays.get("magnitudes/names", np.zeros(0)).shape
            array = arrays[name]
            if array.ndim != 3 or array.shape[:2] != (*count, classes) or array.dtype.kind != "f":
                raise ValueError(f"{name} in arrays.npz is of other strengths or classes")
    _check_pictures(arrays.get("views/images"), arrays.get("views/pictures"), images)


def _check_samples(prefix: str, arrays: dict[str, ndarray], classes: int, count: int) -> None:
    if set(arrays) != {"images", *DATA, "weight", "bias"}:
        raise ValueError(f"{prefix} in arrays.npz lacks an array, or has another")
    images, weight = arrays["images"], arrays["weight"]
    _check_numbers(images, count, prefix)
    shapes = {arrays[data].shape for data in DATA}
    fits = weight.ndim == 2 and shapes == {(*images.shape, weight.shape[-1])}
    if not fits or arrays["bias"].shape != (classes,) or len(weight) != classes:
        raise ValueError(f"{prefix} in arrays.npz has arrays that do not belong together")
    if any(arrays[name].dtype.kind != "f" for name in (*DATA, "weight", "bias")):
        raise ValueError(f"{prefix} in arrays.npz holds no numbers")


def _check_views(prefix: str, arrays: dict[str, ndarray], count: int) -> None:
    if not set(_VIEWS) - {"maps"} <= set(arrays) <= set(_VIEWS):
        raise ValueError(f"{prefix} in arrays.npz lacks an array, or has another")
    for name, array in arrays.items():
        axes, axis = _VIEWS[name]
        if array.ndim != axes or array.shape[axis] != len(arrays["channels"]) or not array.size:
            raise ValueError(f"{prefix}/{name} in arrays.npz is of another shape")
        if axes > 3 and array.dtype != np.uint8:
            raise ValueError(f"{prefix}/{name} in arrays.npz holds no pictures")
    shapes = {arrays[name].shape for name in ("noise", "start", "driven")}
    references = arrays["references"]
    if len(shapes) > 1 or len(references) != 2 or arrays["activations"].dtype.kind != "f":
        raise ValueError(f"{prefix} in arrays.npz has arrays that do not belong together")
    if "maps" in arrays and arrays["maps"].shape[:3] != references.shape:
        raise ValueError(f"{prefix}/maps in arrays.npz is of other images")
    _check_numbers(arrays["channels"], 2**31, f"{prefix}/channels")
    _check_numbers(references.ravel(), count, f"{prefix}/references")


def _check_pictures(images: ndarray | None, pictures: ndarray | None, count: int) -> None:
    if images is None and pictures is None:
        return
    if images is None or pictures is None or pictures.ndim != 4 or pictures.dtype != np.uint8:
        raise ValueError("views/pictures in arrays.npz holds no pictures")
    if images.shape != pictures.shape[:1] or not pictures.size:
        raise ValueError("views/pictures in arrays.npz are of other images")
    _check_numbers(images, count, "views/images")


def _check_numbers(values: ndarray, count: int, name: str) -> None:
    """Raise ValueError unless the values (m,) are whole numbers from 0 up, below ``count``."""
    is_whole = values.ndim == 1 and values.dtype.kind in "iu"
    if not is_whole or not ((values >= 0) & (values < count)).all():
        raise ValueError(f"{name} in arrays.npz is not counted from 0 up to {count - 1}")


register(
    Analysis(
        name="samples",
        help="activations of a few images, with which the explorer computes",
        compute=compute_samples,
        check=check_samples,
    )
)
