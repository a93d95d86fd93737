"""All figures of a comparison, by name, with their captions, and the folder that holds them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest
from channelscope.files import replacing
from channelscope.plots import drawing, frames
from channelscope.plots.paper import save

EVERY_CLASS = 10  # up to so many classes each has its own figures; beyond, the five most and the five least robust
CAPTIONS = {
    "relevance": "Magnitude (mean activation) of each channel against its relevance to the class, for {classes}. "
    "Above each panel: the model's robust accuracy on the class, and Spearman's correlation ρ on natural and on "
    "adversarial images. Channels left of the dashed line are negatively relevant (NR), right of it positively (PR).",
    "nr-share": "Share of the activation mass that lies on negatively relevant (NR) channels, per class and as the "
    "mean over the classes.",
    "alignment-robustness": "Robust accuracy of each class against Spearman's correlation between the magnitudes of "
    "its adversarial images and the relevance of the channels. The legend gives the correlation across classes.",
    "training": "Training loss, and accuracy on the natural and the attacked validation images, per epoch. Dotted: "
    "accuracy on the training images, as the network was trained on them. In gated networks the gates are given the "
    "labels there, so a gap to the validation images shows how much of the answer came with the label. The dashed line "
    "marks the epoch whose network was kept.",
    "gates": "The gates of each model per epoch, on the natural and the attacked validation images; a row for each "
    "gated layer; where curves coincide, the adversarial one covers the natural one. A gate's probe is a small "
    "classifier that guesses the class from the features of that layer alone. From the guess comes the gate's mask: a "
    "factor for each channel, large where the channel speaks for the classes that the probe finds likely, by which "
    "the channel is multiplied before the rest of the network sees it. Left: accuracy of the probe; where it is "
    "wrong, the mask favours channels of wrong classes. Right: the share of the layer's C channels that the mask lets "
    "through, mean over the images (participation ratio of its factors: 100 % means that all channels pass alike, 1/C "
    "that a single one does). The dashed line marks the epoch whose network was kept.",
    "magnitude": "Magnitude (mean activation) of each channel on natural and on adversarial images of {classes}. "
    "The channels of each model are sorted by its natural magnitude.",
    "frequency": "Activation frequency of each channel (the share of the images on which it is active) on natural and "
    "on adversarial images of {classes}. The channels of each model are sorted by its natural frequency.",
}


@dataclass(frozen=True)
class _Picture:
    kind: str
    classes: tuple[str, ...]
    layer: str | None
    main: bool  # the page shows it at once, the others on demand
    make: Callable[[], Figure]


def _pictures(comparison: Comparison) -> Iterator[_Picture]:
    """First what sums up the classes, then the channels of single classes, those of the extreme classes first."""
    by_model = list(frames.layers_by_model(comparison).values())
    several = any(len(names) > 1 for names in by_model)
    layers = list(dict.fromkeys(name for names in by_model for name in names)) if several else [None]
    extremes = tuple(frames.extremes(comparison))
    for layer in layers:
        yield _Picture("relevance", extremes, layer, True, partial(drawing.relevance, comparison, layer))
        yield _Picture("nr-share", (), layer, True, partial(drawing.nr_share, comparison, layer))
        yield _Picture(
            "alignment-robustness", (), layer, True, partial(drawing.alignment_robustness, comparison, layer)
        )
    if len(comparison.training):
        yield _Picture("training", (), None, True, partial(drawing.training, comparison))
    if len(comparison.gates):
        yield _Picture("gates", (), None, True, partial(drawing.gates, comparison))
    ranked = frames.extremes(comparison, EVERY_CLASS // 2)
    profiles = {"magnitude": drawing.magnitude, "frequency": drawing.frequency}
    for name, layer, (kind, make) in product(dict.fromkeys([*extremes, *ranked]), layers, profiles.items()):
        yield _Picture(kind, (name,), layer, name in extremes, partial(make, comparison, name, layer))


def _slug(words: str) -> str:
    """Only a-z, 0-9 and dashes, so that no class name leaves the folder or troubles a file system."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:48].strip("-")


def _named(comparison: Comparison) -> dict[str, _Picture]:
    named: dict[str, _Picture] = {}
    for picture in _pictures(comparison):
        single = picture.classes if len(picture.classes) == 1 and picture.kind != "relevance" else ()
        parts = [picture.kind, *map(_slug, single), _slug(picture.layer or "")]
        name = stem = "-".join(part for part in parts if part)
        repeat = 1
        while name in named:
            name = f"{stem}-{(repeat := repeat + 1)}"
        named[name] = picture
    return named


def figures(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """Every figure of a comparison: its name -> a function without arguments that draws it.

    Names are safe as file names: relevance, nr-share, alignment-robustness, training (if there is a log), gates (if
    there is one of a gate of CIFS), then magnitude-<class> and frequency-<class> for each class with images (above ten
    classes: the five most and the five least robust); with several layers the names of all but training and gates end
    in the layer. Names made alike by this are numbered.
    """
    return {name: picture.make for name, picture in _named(comparison).items()}


def caption(name: str, comparison: Comparison) -> str:
    """The caption of a figure, plain text ready to paste; raises UserError for a name that `figures` lacks."""
    named = _named(comparison)
    if name not in named:
        raise UserError(f"No figure {name!r} in this comparison.{suggest(name, named)}")
    return _caption(named[name], comparison)


def _caption(picture: _Picture, comparison: Comparison) -> str:
    if picture.kind in ("training", "gates"):
        return CAPTIONS[picture.kind]
    meta, shown = comparison.meta, frames.layers(comparison, picture.layer)
    text = CAPTIONS[picture.kind].format(classes=_classes_in_words(picture))
    made = f"Layer: {', '.join(dict.fromkeys(shown.values()))}. Adversarial images: {frames.attack(comparison)}."
    robust = f" Robust accuracy: {frames.attacks(comparison)}." if picture.kind != "nr-share" else ""
    bars = f" Bars: {meta['level']:.0%} intervals (bootstrap over images, {meta['replicates']} replicates)."
    return f"{text} {made}{robust}{bars if picture.kind in ('nr-share', 'alignment-robustness') else ''}"


def _classes_in_words(picture: _Picture) -> str:
    if picture.kind == "relevance" and len(picture.classes) == 2:
        return f"the most robust class ({picture.classes[0]}) and the least robust one ({picture.classes[1]})"
    return " and ".join(f"class {name}" for name in picture.classes)


def draw(comparison: Comparison, folder: Path, *, progress: bool = True) -> list[Path]:
    """Write every figure into a folder as .pdf and .png, beside `captions.json`, which the page reads.

    `captions.json` lists the figures in the page's order: name, caption, main (whether to show it at once). The same
    comparison gives the same bytes. Returns the paths of the pictures.
    """
    paths, listed = [], []
    for name, picture in tqdm(_named(comparison).items(), desc="figures", unit="figure", disable=not progress):
        figure = picture.make()
        paths += [save(figure, folder / f"{name}.{ending}") for ending in ("pdf", "png")]
        listed.append({"name": name, "caption": _caption(picture, comparison), "main": picture.main})
    with replacing(folder / "captions.json") as part:
        part.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    return paths
