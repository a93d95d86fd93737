"""Every kind of figure of a comparison, said once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from channelscope.comparison import Comparison
from channelscope.figures import drawing, flow, gated, logs, matching, network, robustness, seen
from channelscope.figures.subjects import (
    Subject,
    by_class,
    by_depth,
    by_gate,
    by_layer,
    by_matched_layers,
    by_pair,
    by_swept,
    whole,
)


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
        draw=logs.training,
        data=logs.training_data,
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
        draw=logs.gates,
        data=logs.gates_data,
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
