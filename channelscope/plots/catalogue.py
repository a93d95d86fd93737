"""All figures of a comparison, each said once in ``KINDS``, and the folder that holds them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest
from channelscope.files import replacing
from channelscope.plots import drawing, flow, frames, gated, matching, network, paper, robustness, seen, tex

EVERY_CLASS = 10  # up to so many classes each has its own figures; beyond, the five most and the five least robust


@dataclass(frozen=True)
class Subject:
    """What one figure of a kind is about.

    Args:
        arguments: further arguments of the kind's two functions, by name; None for those at their default. The
            others end the figure's name.
        main: whether the page shows the figure at once, or on demand.
    """

    arguments: Mapping[str, str | None]
    main: bool = True


def whole(_: Comparison) -> Iterator[Subject]:
    """One figure, of all there is."""
    yield Subject({})


def by_layer(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each layer that was measured, those of the models' last layers before all."""
    last = _last_layers(comparison)
    for layer in _layers(comparison):
        yield Subject({"layer": layer}, main=layer in last)


def by_depth(comparison: Comparison) -> Iterator[Subject]:
    """One figure, where several layers of a model were measured."""
    if len(_layers(comparison)) > 1:
        yield Subject({})


def by_class(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each class, at the models' last layers: the most and the least robust one first, then the others."""
    extremes, others = frames.extremes(comparison), frames.extremes(comparison, EVERY_CLASS // 2)
    for name, layer in product(dict.fromkeys([*extremes, *others]), _last_layers(comparison)):
        yield Subject({"class_name": name, "layer": layer}, main=name in extremes)


def _layers(comparison: Comparison) -> list[str | None]:
    by_model = list(frames.layers_by_model(comparison).values())
    several = any(len(names) > 1 for names in by_model)
    return list(dict.fromkeys(name for names in by_model for name in names)) if several else [None]


def by_swept(varied: str, comparison: Comparison) -> Iterator[Subject]:
    """A figure for each layer, where the attack's strength was swept in this way."""
    if len(frames.rows(comparison.decay, varied=varied)):
        yield from by_layer(comparison)


def _last_layers(comparison: Comparison) -> list[str | None]:
    last = set(frames.layers(comparison).values())
    return [layer for layer in _layers(comparison) if layer is None or layer in last]


def by_gate(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each gate; each model's last one first of all."""
    gates = comparison.masks[["model", "layer"]].drop_duplicates()
    last = set(gates.groupby("model")["layer"].last().items())
    for model, layer in gates.itertuples(index=False, name=None):
        yield Subject({"model": model, "gate": layer}, main=(model, layer) in last)


def by_pair(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each pair of models of which one has several layers; those with the first model before all."""
    pairs = comparison.matching.value_counts(["model", "other"], sort=False)
    for model, other in pairs[pairs > 1].index:
        yield Subject({"model": model, "other": other}, main=model == frames.models(comparison)[0])


def by_matched_layers(comparison: Comparison) -> Iterator[Subject]:
    """A figure for each pair of models and of layers in the same place; the first model's last layer before all."""
    first, last = frames.models(comparison)[0], frames.layers(comparison)
    names = ["model", "other", "layer"]
    for model, other, layer in comparison.matched[names].drop_duplicates().itertuples(index=False, name=None):
        yield Subject({"model": model, "other": other, "layer": layer}, main=(model, layer) == (first, last[first]))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A figure, said once.

    Args:
        name: how its files and its captions are called.
        draw, data: the two functions of (comparison, ...): the figure, and the table of what it draws.
        caption: plain words. It may have {class_name}, {model} and whatever else the subject's arguments are called,
            {extremes} (the most and the least robust class), and the sentences {layers}, {adversarial} (the attack on
            the activations), {robust} (the attacks behind robust accuracy), {bars} and {wilson} (the
            intervals).
        section: where the page and the gallery have it: claims, network, gates, models or training.
        claims: those on which it bears.
        frame: the comparison's frame without whose rows there is no such figure.
        subjects: what single figures of the kind are about.
        seen: from the table of what is drawn, what is to be seen in words; see ``plots.seen``.
    """

    name: str
    draw: Callable[..., Figure]
    data: Callable[..., pd.DataFrame]
    caption: str
    section: str
    claims: tuple[str, ...] = ()
    frame: str = "activations"
    subjects: Callable[[Comparison], Iterable[Subject]] = whole
    seen: Callable[[pd.DataFrame], str] = seen.ranges


KINDS = (
    Kind(
        name="relevance",
        draw=drawing.relevance,
        data=drawing.relevance_data,
        seen=seen.relevance,
        caption="Magnitude (mean activation) of each channel against its relevance to the class, for {extremes}. "
        "Above each panel: the model's robust accuracy on the class, and Spearman's correlation ρ on natural and on "
        "adversarial images. Channels left of the dashed line are negatively relevant (NR), right of it positively "
        "(PR). {layers} {adversarial} {robust}",
        section="claims",
        claims=("c2", "c3"),
        subjects=by_layer,
    ),
    Kind(
        name="nr-share",
        draw=drawing.nr_share,
        data=drawing.nr_share_data,
        seen=seen.nr_share,
        caption="Share of the activation mass that lies on negatively relevant (NR) channels, per class and as the "
        "mean over the classes. {layers} {adversarial} {bars}",
        section="claims",
        claims=("c2",),
        subjects=by_layer,
    ),
    Kind(
        name="alignment-robustness",
        draw=drawing.alignment_robustness,
        data=drawing.alignment_robustness_data,
        seen=seen.alignment_robustness,
        caption="Robust accuracy of each class against Spearman's correlation between the magnitudes of its "
        "adversarial images and the relevance of the channels. The legend gives the correlation across classes. "
        "{layers} {adversarial} {robust} {bars}",
        section="claims",
        claims=("c3",),
        subjects=by_layer,
    ),
    Kind(
        name="robustness",
        draw=robustness.robustness,
        data=robustness.robustness_data,
        seen=seen.robustness,
        caption="Accuracy of each model on natural images, under each attack, and in the worst case: an image counts "
        "as correct there only if it withstands every attack. An attack that is made for gates is run on models with "
        "gates alone. {bars}",
        section="claims",
        claims=("c4",),
    ),
    Kind(
        name="depth",
        draw=network.depth,
        data=network.depth_data,
        seen=seen.depth,
        caption="Alignment from layer to layer, mean over the classes: cosine of the natural and the adversarial "
        "magnitudes (mean activations) of a layer's channels, 1 where the attack leaves them in proportion; share of "
        "the activation mass that lies on negatively relevant (NR) channels, which speak against the class; Spearman's "
        "correlation ρ of magnitude and relevance. Dashed: on natural images. {adversarial} {bars}",
        section="network",
        claims=("c1", "c2"),
        subjects=by_depth,
    ),
    Kind(
        name="classes",
        draw=network.classes,
        data=network.classes_data,
        seen=seen.classes,
        caption="Each class: its robust accuracy; the cosine of the natural and the adversarial magnitudes (mean "
        "activations) of the channels, 1 where the attack leaves them in proportion; and how much more of the "
        "activation mass lies on negatively relevant (NR) channels under attack than without (1, dashed: as much). "
        "{layers} {adversarial} {robust} {bars}",
        section="network",
        claims=("c1", "c2", "c3"),
        subjects=by_layer,
    ),
    Kind(
        name="decay-eps",
        draw=partial(network.decay, varied="eps"),
        data=partial(network.decay_data, varied="eps"),
        seen=seen.decay,
        caption="What becomes of accuracy and alignment as the radius ε of the attack grows: accuracy under this "
        "attack alone; cosine of the natural and the adversarial magnitudes (mean activations) of the channels; share "
        "of the adversarial activation mass that lies on negatively relevant (NR) channels; Spearman's correlation ρ "
        "of adversarial magnitude and relevance. Means over the classes. {layers} {bars}",
        section="network",
        claims=("c1", "c2"),
        frame="decay",
        subjects=partial(by_swept, "eps"),
    ),
    Kind(
        name="decay-step",
        draw=partial(network.decay, varied="step"),
        data=partial(network.decay_data, varied="step"),
        seen=seen.decay,
        caption="What becomes of accuracy and alignment in the course of the attack, which is stopped after so many "
        "steps of the same length: accuracy under this attack alone; cosine of the natural and the adversarial "
        "magnitudes (mean activations) of the channels; share of the adversarial activation mass that lies on "
        "negatively relevant (NR) channels; Spearman's correlation ρ of adversarial magnitude and relevance. Means "
        "over the classes. {layers} {adversarial} {bars}",
        section="network",
        claims=("c1", "c2"),
        frame="decay",
        subjects=partial(by_swept, "step"),
    ),
    Kind(
        name="flow",
        draw=flow.flow,
        data=flow.flow_data,
        seen=seen.flow,
        caption="Channels that the attack awakens (up: share of the class's images on which the channel is active "
        "under attack only) and silences (down: on which it is active without the attack only), for {extremes}. Active "
        "is a channel above a share of the image's largest one (1 % if nothing else was asked for). Channels are "
        "sorted by relevance: left of the dashed line the negatively relevant (NR), right of it the positively "
        "relevant (PR) ones; the numbers above are the means over the NR channels of what is awakened, over the PR "
        "channels of what is silenced. Faint: the channel's mean activation does not change significantly (paired "
        "t-test, q > 0.05 by Benjamini and Hochberg over all that is tested of the model). {layers} {adversarial}",
        section="network",
        claims=("c1", "c2"),
        frame="flow",
        subjects=by_layer,
    ),
    Kind(
        name="flow-share",
        draw=flow.flow_share,
        data=flow.flow_share_data,
        seen=seen.flow_share,
        caption="Share of the positively relevant (PR) and of the negatively relevant (NR) channels whose mean "
        "activation on a class falls or rises significantly under attack (paired t-test over the class's images, "
        "q ≤ 0.05 by Benjamini and Hochberg over all channels, classes and layers of the model). Bars: mean over the "
        "classes, dots: the classes. {layers} {adversarial}",
        section="network",
        claims=("c1", "c2"),
        frame="flow",
        subjects=by_layer,
    ),
    Kind(
        name="confusion",
        draw=flow.confusion,
        data=flow.confusion_data,
        seen=seen.confusion,
        caption="Left: what the images of each class are taken for under attack. Right: how far two classes share "
        "their positively relevant (PR) channels (Jaccard index: shared ones over all). The diagonals are left out. "
        "Above: Spearman's correlation ρ of the two over pairs of different classes, with the p of Mantel's test (999 "
        "permutations of the classes), as the pairs are not independent: each class has part in many. {layers} "
        "{adversarial}",
        section="network",
        frame="confusion",
        subjects=by_layer,
    ),
    Kind(
        name="embedding",
        draw=network.embedding,
        data=network.embedding_data,
        seen=seen.embedding,
        caption="Where the attack moves the classes: from each class's mean activation on natural images to that on "
        "adversarial ones, in the plane of the first two principal components of all these means, for each model by "
        "itself. {layers} {adversarial}",
        section="network",
        claims=("c1",),
        subjects=by_layer,
    ),
    Kind(
        name="uniformity",
        draw=network.uniformity,
        data=network.uniformity_data,
        seen=seen.uniformity,
        caption="How evenly the channels are active: on which share of a class's images its most frequent channel is "
        "active, its second and so on, mean over the classes. Uniformity is the entropy of the frequencies over its "
        "largest possible value: 1 where all channels are active equally often, 0 where one alone ever is. {layers} "
        "{adversarial}",
        section="network",
        claims=("c1",),
        subjects=by_layer,
    ),
    Kind(
        name="training",
        draw=drawing.training,
        data=drawing.training_data,
        seen=seen.training,
        caption="Training loss, and accuracy on the natural and the attacked validation images, per epoch. Dotted: "
        "accuracy on the training images, as the network was trained on them. In gated networks the gates are given "
        "the labels there, so a gap to the validation images shows how much of the answer came with the label. The "
        "dashed line marks the epoch whose network was kept.",
        section="training",
        frame="training",
    ),
    Kind(
        name="gates",
        draw=drawing.gates,
        data=drawing.gates_data,
        seen=seen.gates,
        caption="The gates of each model per epoch, on the natural and the attacked validation images; a row for each "
        "gated layer; the natural curve is the wide one, to show where both coincide. A gate's probe is a small "
        "classifier that guesses the class from the features of that layer alone. From the guess comes the gate's "
        "mask: a factor for each channel, large where the channel speaks for the classes that the probe finds likely, "
        "by which the channel is multiplied before the rest of the network sees it. Left: accuracy of the probe; where "
        "it is wrong, the mask favours channels of wrong classes. Right: the share of the layer's C channels that the "
        "mask lets through, mean over the images (participation ratio of its factors: 100 % means that all channels "
        "pass alike, 1/C that a single one does). The dashed line marks the epoch whose network was kept.",
        section="gates",
        frame="gates",
    ),
    Kind(
        name="leakage",
        draw=gated.leakage,
        data=gated.leakage_data,
        seen=seen.leakage,
        caption="Whether gates leak the label. In training a gate is told the class of the image, and makes of it its "
        "mask: the factors by which the channels are multiplied. In use it is told nothing and guesses. Above, in each "
        "panel: the share of the images for which the network answers the true class, with its gates told nothing, the "
        "true class, or a wrong one drawn at random; then for which it answers that wrong class. A network that "
        "answers whatever its gates are told has learned to read the label there, and its accuracy in training says "
        "little about its accuracy in use. Below: the share of the images whose class a linear classifier "
        "(cross-validated) reads from one gate's mask alone. Strokes: what comes about by chance, which is the same "
        "wrong class answered with nothing told, or the share of the most frequent class. {adversarial} They were made "
        "with the gates told nothing. {wilson}",
        section="gates",
        frame="leakage",
    ),
    Kind(
        name="masks",
        draw=gated.masks,
        data=gated.masks_data,
        seen=seen.masks,
        caption="Mean mask of {model}'s gate at {gate} over the images of each class, the gate being told nothing: the "
        "factor by which each channel is multiplied before the rest of the network sees it. Channels have the same "
        "order above and below: by the class for whose natural images they are let through most, then by how much. "
        "Channels whose factors are below 1 % of the largest one, for every class and above as below, are left out "
        "here, not in the table. {adversarial}",
        section="gates",
        frame="masks",
        subjects=by_gate,
    ),
    Kind(
        name="mask-share",
        draw=gated.mask_share,
        data=gated.mask_share_data,
        seen=seen.mask_share,
        caption="Share of a layer's C channels that each gate's mask lets through, mean over the images of each class: "
        "100 % means that all channels pass alike, 1/C that a single one does (participation ratio of the mask's "
        "factors, which is the exponential of their Rényi entropy of order 2, divided by C). {adversarial} {bars}",
        section="gates",
        frame="spread",
    ),
    Kind(
        name="likeness",
        draw=matching.likeness,
        data=matching.likeness_data,
        seen=seen.likeness,
        caption="How alike the last measured layers of each two models are, by linear CKA (centred kernel alignment, "
        "without bias) of their channels' activations on the same natural images: 1 where one is the other rotated and "
        "scaled, such as a copy with its channels in another order, about 0 where they have nothing in common. "
        "{layers} {bars}",
        section="models",
        frame="matching",
    ),
    Kind(
        name="layer-likeness",
        draw=matching.layer_likeness,
        data=matching.layer_likeness_data,
        seen=seen.likeness,
        caption="How alike each layer of {model} is to each layer of {other}, by linear CKA (centred kernel alignment, "
        "without bias) of their channels' activations on the same natural images: 1 where one is the other rotated and "
        "scaled, about 0 where they have nothing in common.",
        section="models",
        frame="matching",
        subjects=by_pair,
    ),
    Kind(
        name="matched-channels",
        draw=matching.matched_channels,
        data=matching.matched_channels_data,
        seen=seen.matched_channels,
        caption="Channels of {model} (at {layer}) and of {other} that correspond, and how far the attack moves each: "
        "its mean activation on adversarial images less that on natural ones, in percent of the layer's mean "
        "magnitude. Each channel of the one is matched with one of the other, so that their activations on the same "
        "natural images correlate (r) most. Above: all pairs; on the dashed lines the change is equal, or equal but "
        "opposite; between them, left and right, are those that are moved less in {other}. Below: of the pairs that "
        "correspond, those that are moved less by most, with the numbers of the two channels. "
        "{adversarial} They were made for each model by itself.",
        section="models",
        frame="matched",
        subjects=by_matched_layers,
    ),
    Kind(
        name="magnitude",
        draw=drawing.magnitude,
        data=drawing.magnitude_data,
        seen=seen.profile,
        caption="Magnitude (mean activation) of each channel on natural and on adversarial images of class "
        "{class_name}. The channels of each model are sorted by its natural magnitude. {layers} {adversarial} {robust}",
        section="claims",
        claims=("c1",),
        subjects=by_class,
    ),
    Kind(
        name="frequency",
        draw=drawing.frequency,
        data=drawing.frequency_data,
        seen=seen.profile,
        caption="Activation frequency of each channel (the share of the images on which it is active) on natural and "
        "on adversarial images of class {class_name}. The channels of each model are sorted by its natural frequency. "
        "{layers} {adversarial} {robust}",
        section="claims",
        claims=("c1",),
        subjects=by_class,
    ),
)


@dataclass(frozen=True)
class _Picture:
    comparison: Comparison
    kind: Kind
    subject: Subject

    def draw(self) -> Figure:
        return self.kind.draw(self.comparison, **self.subject.arguments)

    def data(self) -> pd.DataFrame:
        return self.kind.data(self.comparison, **self.subject.arguments)

    def caption(self) -> str:
        words = {name: value for name, value in self.subject.arguments.items() if value is not None}
        return self.kind.caption.format_map(_sentences(self.comparison, words.get("layer")) | words)

    def entry(self, name: str) -> dict[str, Any]:
        """What the page is told."""
        kind = self.kind
        return {
            "name": name,
            "caption": self.caption(),
            "seen": kind.seen(self.data()),
            "section": kind.section,
            "claims": list(kind.claims),
            "main": self.subject.main,
        }

    def stem(self) -> str:
        parts = [self.kind.name, *(_slug(value) for value in self.subject.arguments.values() if value is not None)]
        return "-".join(part for part in parts if part)


def _sentences(comparison: Comparison, layer: str | None) -> dict[str, str]:
    """What captions share, by name; see Kind."""
    meta, extremes = comparison.meta, [f"class {name}" for name in frames.extremes(comparison)]
    if len(extremes) == 2:
        most, least = frames.extremes(comparison)
        extremes = [f"the most robust class ({most})", f"the least robust one ({least})"]
    return {
        "extremes": " and ".join(extremes),
        "layers": f"Layer: {', '.join(dict.fromkeys(frames.layers(comparison, layer).values()))}.",
        "adversarial": f"Adversarial images: {frames.attack(comparison)}.",
        "robust": f"Robust accuracy: {frames.attacks(comparison)}.",
        "wilson": f"Bars: {meta['level']:.0%} intervals (Wilson's, over images).",
        "bars": f"Bars: {meta['level']:.0%} intervals (bootstrap over images, {meta['replicates']} replicates).",
    }


def _slug(words: str) -> str:
    """Only a-z, 0-9 and dashes, so that no class name leaves the folder or troubles a file system."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:48].strip("-")


def _pictures(comparison: Comparison) -> dict[str, _Picture]:
    """Every figure by its name; names made alike by `_slug` are numbered."""
    named: dict[str, _Picture] = {}
    for kind in KINDS:
        for subject in kind.subjects(comparison) if len(getattr(comparison, kind.frame)) else ():
            picture = _Picture(comparison, kind, subject)
            name = stem = picture.stem()
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
    return {name: partial(_Picture.draw, picture) for name, picture in _pictures(comparison).items()}


def data(name: str, comparison: Comparison) -> pd.DataFrame:
    """What a figure draws, as a table; raises UserError for a name that `figures` lacks."""
    return _picture(name, comparison).data()


def caption(name: str, comparison: Comparison) -> str:
    """The caption of a figure, plain text ready to paste; raises UserError for a name that `figures` lacks."""
    return _picture(name, comparison).caption()


def _picture(name: str, comparison: Comparison) -> _Picture:
    pictures = _pictures(comparison)
    if name not in pictures:
        raise UserError(f"No figure {name!r} in this comparison.{suggest(name, pictures)}")
    return pictures[name]


def draw(
    comparison: Comparison,
    folder: Path,
    *,
    style: str | None = None,
    wide: bool = False,
    latex: bool = False,
    only: Sequence[str] = (),
    formats: Sequence[str] = ("pdf", "png"),
    progress: bool = True,
) -> list[Path]:
    """Write figures into a folder, each beside what it draws (.csv), and the captions of all that lie there.

    `captions.txt` is for pasting, and `captions.tex` too (where LaTeX draws); `captions.json` is for the page: it lists
    the figures of which there is a .png, in the catalogue's order. The same comparison gives the same bytes.

    Args:
        comparison: what is drawn.
        folder: where to write; other figures that lie there stay.
        style, wide, latex: see ``paper.style``.
        only: claims ("c1"), kinds ("magnitude") or names of figures; all if there is none.
        formats: of pdf, png and svg.
        progress: show a progress bar.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: for a style, a choice or a format that is unknown, or where LaTeX is missing.
    """
    formats, chosen = _words("format", formats), _chosen(comparison, _words("figure", only) if only else [])
    paper.check_formats(formats)
    paths = []
    with paper.style(style, wide=wide, latex=latex):
        for name, picture in tqdm(chosen.items(), desc="figures", unit="figure", disable=not progress):
            paths += paper.write(picture.draw(), picture.data(), folder / name, formats)
    _write_captions(comparison, folder, latex)
    return paths


def _words(what: str, given: Sequence[str]) -> list[str]:
    """The single words of what is given with spaces or commas between, none twice; UserError where there is none."""
    words = dict.fromkeys(" ".join([given] if isinstance(given, str) else given).replace(",", " ").split())
    if not words:
        raise UserError(f"No {what} is named: name at least one, or leave the choice out.")
    return list(words)


def _chosen(comparison: Comparison, only: Sequence[str]) -> dict[str, _Picture]:
    pictures = _pictures(comparison)
    claims = sorted({claim for kind in KINDS for claim in kind.claims})
    kinds = [kind.name for kind in KINDS]
    answers = {
        word: {
            name
            for name, picture in pictures.items()
            if word.lower() in (*picture.kind.claims, picture.kind.name, name)
        }
        for word in only
    }
    for word, names in answers.items():
        if not names and word.lower() in (*claims, *kinds):
            raise UserError(f"This comparison has nothing to draw for {word!r}: leave it out.")
        if not names:
            known = suggest(word.lower(), dict.fromkeys([*claims, *kinds, *pictures]))
            raise UserError(
                f"No figure {word!r}; choose from {', '.join([*claims, *kinds])} or a figure's name.{known}"
            )
    return {name: picture for name, picture in pictures.items() if not only or name in set().union(*answers.values())}


def _write_captions(comparison: Comparison, folder: Path, latex: bool) -> None:
    """List the figures that lie in a folder."""
    lying = {name: picture for name, picture in _pictures(comparison).items() if (folder / f"{name}.csv").exists()}
    texts = {"captions.txt": [f"{name}\n{picture.caption()}\n" for name, picture in lying.items()]}
    if latex:
        texts["captions.tex"] = [_in_latex(name, picture.caption()) for name, picture in lying.items()]
    shown = [picture.entry(name) for name, picture in lying.items() if (folder / f"{name}.png").exists()]
    for file, parts in (texts | {"captions.json": [json.dumps(shown, indent=1, ensure_ascii=False)]}).items():
        with replacing(folder / file) as part:
            part.write_text("\n".join(parts), encoding="utf-8", newline="\n")


def _in_latex(name: str, caption: str) -> str:
    width = r"\textwidth" if paper.current().wide else r"\columnwidth"
    return f"""\\begin{{figure}}[t]
  \\centering
  \\includegraphics[width={width}]{{{name}.pdf}}
  \\caption{{{tex.escaped(caption)}}}
  \\label{{fig:{name}}}
\\end{{figure}}
"""
