"""One network on all images: answers, activations, relevance, masks, kept row by row."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from channelscope.analyses.base import Labels
from channelscope.attacks import AttackLike, attack_name, make_generators
from channelscope.distributed import barrier
from channelscope.errors import UserError
from channelscope.gates import Probed, Selective, attached, takes_labels, with_labels
from channelscope.layers.features import capture_activations, pool_features
from channelscope.layers.hooks import eval_mode, get_logits, get_parameter
from channelscope.layers.penultimate import LastLayer
from channelscope.scorers import ScoreFunction, Scorer, fit_scorers, gradient, score_block, weights
from channelscope.study.evaluation import Images, Progress, identify_attack
from channelscope.study.models import Model, check_finite, choose_layers
from channelscope.study.seeding import seed_globally
from channelscope.study.store import Rows, RunFolder, Spec, digest_of, row_bytes

_SIDE = 64  # pixels of a small picture's longer side, at most


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a network that are measured.

    Args:
        names: in the order given; the deepest last, as a rule.
        scorers: layer -> what scores its relevance: the last linear layer, or the gradient.
        few: a few images, to try the network on.
        last: the last linear layer; None where there is none.
    """

    names: tuple[str, ...]
    scorers: Mapping[str, ScoreFunction]
    few: Float[Tensor, "n *image"]
    last: LastLayer | None = None

    @property
    def penultimate(self) -> tuple[str, ...]:
        """The layers whose relevance is the last linear layer's weight."""
        return tuple(name for name, scorer in self.scorers.items() if scorer is not gradient)


def find_layers(model: Model, images: Images, layers: Sequence[str] | None) -> Layers:
    """Check on a few images that network, layers and data fit; return the layers to measure.

    Args:
        model: the network.
        images: the data.
        layers: names and patterns; None for the penultimate layer.

    Raises:
        UserError: for what does not fit together.
    """
    rows = torch.arange(min(2, len(images)), device="cpu")
    few, _ = images.read_some(rows, get_parameter(model.network))
    names, last = choose_layers(model.network, layers, few, images.classes)
    weighed = last.inputs if last is not None and last.weight is not None else ()
    scorers = {name: weights if name in weighed else gradient for name in names}
    return Layers(names=tuple(names), scorers=scorers, few=few, last=last)


@dataclass(frozen=True, eq=False)
class Observation:
    """What a network makes of some images, an image a row.

    Args:
        answers: the classes that it answers (n,).
        activations: by layer (n, c).
        masks: of its gates that have one, by gated layer (n, c); of masks of single elements, the
            mean over space.
        probes: the classes that its probes answer, by gated layer (n,).
    """

    answers: Int[Tensor, " n"]
    activations: dict[str, Float[Tensor, "n _"]]
    masks: dict[str, Float[Tensor, "n _"]]
    probes: dict[str, Int[Tensor, " n"]]


@torch.no_grad()
def observe(
    network: nn.Module,
    layers: Sequence[str],
    x: Float[Tensor, "n *image"],
    told: Int[Tensor, " n"] | None = None,
) -> Observation:
    """Run a network once; with labels, its gates are told these as they are in training."""
    if told is not None and isinstance(network, Selective):
        with with_labels(network):
            probed = network.probed(x, told.to(x.device))
        activations: dict[str, Tensor] = {}
    else:
        with capture_activations(network, *layers) as captured:
            probed = (
                network.probed(x)
                if isinstance(network, Selective)
                else Probed(get_logits(network(x)), {}, {})
            )
        activations = {layer: captured[layer] for layer in layers}
    check_finite(probed.logits)
    masks = {layer: pool_features(mask) for layer, mask in probed.masks.items()}
    probes = {layer: logits.argmax(1) for layer, logits in probed.probes.items()}
    return Observation(probed.logits.argmax(1), activations, masks, probes)


def draw_wrong_labels(labels: Int[ndarray, " n"], classes: int, seed: int) -> Int[ndarray, " n"]:
    """Draw for each image one of the other classes, each as likely."""
    generator = torch.Generator("cpu").manual_seed(seed)
    steps = torch.randint(1, classes, labels.shape, generator=generator, device="cpu").numpy()
    wrong: ndarray = (labels + steps) % classes
    return wrong


def shrink(x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c small_h small_w"]:
    """Make small pictures of images in [0, 1], the longer side at most 64 pixels."""
    height, width = x.shape[-2:]
    if (longer := max(height, width)) > _SIDE:
        size = [max(1, round(side * _SIDE / longer)) for side in (height, width)]
        x = interpolate(x.float(), size, mode="bilinear", antialias=True)
    return x.detach().float().mul(255).round().clamp(0, 255).byte().cpu()


@dataclass(eq=False, kw_only=True)
class Measurer:
    """Runs one network on natural and on attacked images, and keeps what it makes of them.

    Gates are attached throughout: an attacker sees the gradient through their masks. The relevance
    of the penultimate layer is the last linear layer's weight; of other layers, the gradient.

    Args:
        model: the network.
        images: the images.
        layers: what is measured.
        thumbnails: keep small pictures of all images.
    """

    model: Model
    images: Images
    layers: Layers
    thumbnails: bool
    digests: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def told(self) -> dict[Labels, Int[ndarray, " n"]]:
        """The labels that gates are told, where a gate takes any: the true ones, and wrong ones."""
        network = self.model.network
        gates = network.gates.values() if isinstance(network, Selective) else ()
        if self.images.classes < 2 or not any(map(takes_labels, gates)):
            return {}
        labels = self.images.labels
        return {
            "true": labels,
            "wrong": draw_wrong_labels(labels, self.images.classes, self.images.seed),
        }

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """The gated layers that have a mask."""
        return tuple(self._tried.masks)

    @property
    def probed(self) -> tuple[str, ...]:
        """The gated layers that have a probe."""
        return tuple(self._tried.probes)

    @cached_property
    def _tried(self) -> Observation:
        network = self.model.network
        with seed_globally(self.layers.few, 0), eval_mode(network):
            return observe(network, self.layers.names, self.layers.few)

    def measure_natural(self, folder: RunFolder, progress: Progress) -> Rows:
        """Run the network on all natural images, and score the relevance of its layers.

        Args:
            folder: where it is kept.
            progress: is told of images that are done.
        """
        spec = self._spec(masks=True)
        widths = {name: self._tried.activations[name].shape[1] for name in self.layers.names}
        spec |= {f"relevance/{name}": ((width,), "<f4") for name, width in widths.items()}

        def measure(x: Tensor, y: Tensor, rows: Int[ndarray, " b"]) -> dict[str, Tensor]:
            values = self._observe(x, rows, masks=True)
            return values | self._score(x, y)

        return self._run("natural", "", spec, measure, folder, progress)

    def measure_attacked(
        self,
        attack: AttackLike,
        folder: RunFolder,
        progress: Progress,
        *,
        masks: bool,
        made: Rows | None = None,
    ) -> Rows:
        """Run the network on images that an attack makes.

        Args:
            attack: makes them.
            folder, progress: as in ``measure_natural``.
            masks: keep the gates' masks and small pictures too.
            made: the images, where they have been made by this attack before.
        """

        def measure(x: Tensor, y: Tensor, rows: Int[ndarray, " b"]) -> dict[str, Tensor]:
            if made is None:
                generators = make_generators(self.images.seed, attack_name(attack), rows.tolist())
                x_adv = attack(self.model.network, x, y, generators)
            else:
                x_adv = torch.from_numpy(made.array("images")[rows]).to(x)
            return self._observe(x_adv, rows, masks=masks)

        identity = identify_attack(attack, self.digests)
        spec = self._spec(masks=masks)
        return self._run(attack_name(attack), identity, spec, measure, folder, progress)

    def count_bytes(self, *, relevance: bool = False) -> int:
        """Return how much disk an image of one kind of data takes, with its relevance or not."""
        scores = self.count_score_bytes(1) if relevance else 0
        return row_bytes(self._spec(masks=True)) + 4 + scores

    def count_score_bytes(self, scorers: int) -> int:
        """Return how much disk the relevance by so many scorers takes for an image."""
        widths = (a.shape[1] for a in self._tried.activations.values())
        return 4 * scorers * sum(widths) + 4

    def _spec(self, *, masks: bool) -> dict[str, tuple[tuple[int, ...], str]]:
        spec: dict[str, tuple[tuple[int, ...], str]] = {"answers": ((), "<i4")}
        for name in self.layers.names:
            spec[f"activations/{name}"] = ((self._tried.activations[name].shape[1],), "<f4")
        if masks:
            spec |= {f"answers/{labels}": ((), "<i4") for labels in self.told}
            spec |= {f"probes/{gate}": ((), "<i4") for gate in self._tried.probes}
            for labels in ("none", *self.told):
                for gate, mask in self._tried.masks.items():
                    spec[f"masks/{labels}/{gate}"] = ((mask.shape[1],), "<f4")
            if self.thumbnails:
                spec["thumbnails"] = (tuple(shrink(self.layers.few[:1]).shape[1:]), "|u1")
        return spec

    def _observe(self, x: Tensor, rows: Int[ndarray, " b"], *, masks: bool) -> dict[str, Tensor]:
        network = self.model.network
        seen = observe(network, self.layers.names, x)
        values = {"answers": seen.answers}
        values |= {f"activations/{name}": a for name, a in seen.activations.items()}
        if not masks:
            return values
        values |= {f"probes/{gate}": answers for gate, answers in seen.probes.items()}
        observations: dict[str, Observation] = {"none": seen}
        for labels, told in self.told.items():
            observations[labels] = observe(network, (), x, torch.from_numpy(told[rows]))
            values[f"answers/{labels}"] = observations[labels].answers
        for name, observation in observations.items():
            for gate, mask in observation.masks.items():
                values[f"masks/{name}/{gate}"] = mask
        if self.thumbnails:
            values["thumbnails"] = shrink(x)
        return values

    def _score(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Score each layer by its scorer, all layers of one scorer together."""
        scores: dict[str, Tensor] = {}
        for scorer in dict.fromkeys(self.layers.scorers.values()):
            names = [name for name, other in self.layers.scorers.items() if other is scorer]
            scores |= scorer(self.model.network, names, x, y)
        return {f"relevance/{name}": scores[name] for name in self.layers.names}

    def _run(
        self,
        stage: str,
        identity: str,
        spec: Spec,
        measure: Callable[[Tensor, Tensor, Int[ndarray, " b"]], dict[str, Tensor]],
        folder: RunFolder,
        progress: Progress,
    ) -> Rows:
        """Measure this process's blocks of all images; wait for the other processes' rows."""
        progress.start(f"{self.model.label}: {stage}")
        key = digest_of(identity, sorted(spec.items()), self.images.seed, self.layers.penultimate)
        place = (self.model.key(self.images.key), f"{stage} {key}")
        rows = folder.rows(len(self.images), spec, *place)
        everything = np.arange(len(self.images))
        missing = self.images.shard_blocks(everything, rows, progress)
        network = self.model.network
        blocks = self.images.read_blocks([block for block, _ in missing], get_parameter(network))
        for (block, x, y), (_, turn) in zip(blocks, missing, strict=True):
            with seed_globally(x, self.images.seed), eval_mode(network), attached(network):
                values = measure(x, y, block.numpy())
            rows.write(block.numpy(), {name: to_array(value) for name, value in values.items()})
            progress.advance(turn)
        barrier()
        return rows


@dataclass(frozen=True, eq=False)
class Scores:
    """The relevance that several scorers give to the channels of one network.

    Args:
        rows: scorer/layer -> scores (n, c).
        refused: (scorer, layer) -> the sentence that says why there are none.
    """

    rows: Rows
    refused: Mapping[tuple[str, str], str]

    def scores(self, scorer: str, layer: str) -> Float[ndarray, "n c"]:
        """Return the scores; KeyError where the scorer refused the layer."""
        if (scorer, layer) in self.refused:
            raise KeyError((scorer, layer))
        return self.rows.array(f"{scorer}/{layer}")


def score_model(
    model: Model,
    images: Images,
    layers: Layers,
    scorers: Mapping[str, Scorer],
    folder: RunFolder,
    progress: Progress,
) -> Scores:
    """Score the channels of layers by several scorers, image by image.

    A scorer that refuses a layer, on any image, has no scores there.
    """
    network = model.network
    like = get_parameter(network)
    progress.start(f"{model.label}: relevance")
    with eval_mode(network), torch.no_grad(), capture_activations(network, *layers.names) as few:
        network(layers.few)
    spec = {
        f"{scorer}/{name}": ((few[name].shape[1],), "<f4")
        for scorer in scorers
        for name in layers.names
    }
    identities = [identify_attack(scorer, {}) for scorer in scorers.values()]
    key = digest_of(sorted(spec.items()), identities, images.seed)
    rows = folder.rows(len(images), spec, model.key(images.key), f"relevance {key}")
    missing = images.shard_blocks(np.arange(len(images)), rows, progress)
    if missing:
        scorers = fit_scorers(scorers, network, images.split, images.classes, layers.names)
    refused: set[tuple[str, str]] = set()
    for block, x, y in images.read_blocks([block for block, _ in missing], like):
        values: dict[str, ndarray] = {}
        with seed_globally(x, images.seed):
            scored = score_block(scorers, network, layers.names, x, y)
        for scorer, by_layer in scored.items():
            for name, scores in by_layer.items():
                if isinstance(scores, UserError):
                    if (scorer, name) not in refused:
                        rows.note(json.dumps([scorer, name, str(scores)]))
                    refused.add((scorer, name))
                    scores = torch.zeros(len(y), few[name].shape[1], device="cpu")
                values[f"{scorer}/{name}"] = to_array(scores)
        rows.write(block.numpy(), values)
        progress.advance(len(block))
    barrier()
    sentences = [json.loads(sentence) for sentence in rows.notes]
    return Scores(rows, {(scorer, name): sentence for scorer, name, sentence in sentences})


def to_array(value: Tensor) -> ndarray:
    """Return a tensor's numbers, wherever they are; half precision as float32."""
    value = value.detach()
    wide = value.float() if value.is_floating_point() else value
    array: ndarray = wide.cpu().numpy()
    return array
