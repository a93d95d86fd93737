"""A study: networks, data and attacks; every network is run once, and what it makes is kept."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from numpy import ndarray
from tqdm.auto import tqdm

from channelscope.analyses.base import (
    NORMALISATION,
    Analysis,
    Damage,
    Edges,
    Finding,
    Kind,
    Labels,
    Outcome,
    SuppressedLayer,
    analyses_of,
    make_tables,
)
from channelscope.attacks import AttackLike, Norm, attack_name, parse_attack
from channelscope.attacks.suites import SUITES, resolve_ball
from channelscope.data import Dataset, as_dataset
from channelscope.devices import resolve_device
from channelscope.distributed import check_same, is_first, world_size
from channelscope.errors import UserError, escape, suggest
from channelscope.layers.hooks import get_layer, get_parameter
from channelscope.progress import open_bar
from channelscope.result import Result, adversarial_name
from channelscope.scorers import ScoreFunction, get_scorers
from channelscope.statistics.intervals import FEWEST_REPLICATES
from channelscope.study.damage import DamageMeasurer, Repair
from channelscope.study.edges import EdgeTracer
from channelscope.study.evaluation import (
    AttackRunner,
    Evaluated,
    Images,
    Plan,
    Progress,
    attacks_on_model,
    count_parts,
    evaluate_model,
)
from channelscope.study.faults import find_faults
from channelscope.study.film import Frames
from channelscope.study.measuring import (
    Layers,
    Measurer,
    Scores,
    find_layers,
    score_model,
    to_array,
)
from channelscope.study.models import (
    Model,
    Models,
    check_network,
    group_models,
    layers_by_label,
    load_models,
    trained_on,
    with_class_names,
    without_gates,
)
from channelscope.study.normalisation import IMAGES as NORMALISATION_IMAGES
from channelscope.study.normalisation import advise_normalisation
from channelscope.study.store import Rows, RunFolder, digest_of, in_megabytes
from channelscope.study.strengths import list_strengths
from channelscope.study.suppression import (
    RelevantTo,
    Suppressor,
    plan_suppression,
    relevance_by_class,
)
from channelscope.training import default_eps
from channelscope.weights import versions

Attacks = str | AttackLike | Sequence[str | AttackLike]
Scorers = Sequence[str | ScoreFunction]
_PACKAGES = ("torchvision", "numpy", "scipy", "pandas", "matplotlib", "captum", "pyautoattack")


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """What an intervention suppresses; see ``channelscope.intervene``.

    Args:
        fractions: of a layer's channels, in (0, 1): the points of the curves beside none and all.
        random: how many random orders.
        relevant_to: the class whose channels an image loses: the network's "answer", or the
            "label".
    """

    fractions: Sequence[float] = (0.125, 0.25, 0.5, 0.75)
    random: int = 3
    relevant_to: RelevantTo = "answer"

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise UserError(
                f"fractions: {list(self.fractions)} is no list of shares between 0 and 1, such as "
                "0.125."
            )
        if self.random < 1:
            raise UserError(f"random: {self.random} orders are too few to judge by: ask for 1.")
        if self.relevant_to not in get_args(RelevantTo):
            raise UserError(
                f"relevant_to: {self.relevant_to!r} is neither 'answer' nor 'label': choose one."
            )


class Study:
    """Networks, data and attacks: every network is run once, block by block.

    What is kept, image by image, lies in a run folder as memory-mapped arrays: the answers, which
    images are correct under each attack, pooled activations and relevance of each measured layer,
    masks. Analyses are pure functions of these arrays. A study that was killed goes on where it
    was, when it is made again with the same arguments and run folder; another study with that
    folder takes over what both have in common. Results are the same to the byte for any batch size
    and number of processes (see ``distributed``), if each process has as many threads.

    Args:
        models: label -> network, or path of a checkpoint; or a sequence of paths, whose stems
            become the labels; or one of these. A network takes images in [0, 1], is used in eval
            mode where it is, and left as it was.
        data: a data set, its name, or what else ``data.as_dataset`` takes; its test split is used.
            None for the data set that the models were trained on, where their checkpoints name it.
        attack: makes the adversarial data on which activations are measured; a short name (see
            ``attacks.parse_attack``) or any attack. None for the first of ``attacks``.
        attacks: robustness is the worst case per image over these and ``attack``: suites (see
            ``attacks.suites.SUITES``), short names, attacks as such; one or several.
        eps: radius of the ball of named attacks, in image units; None for that of the attacks as
            such, or else of the data set's recipe (8/255 but for digits; of the L2 norm 0.5).
        norm: "inf" or "2", of named attacks.
        layers: names of layers to measure, or patterns such as ``layer4.*``, for all networks or by
            label; None for the penultimate layer of each. NAME.gated is what a gate makes of a
            layer, and in a network without gates the layer itself.
        scorers: names of relevance scorers, or functions of your own, beside the study's own.
        eps_sweep: further radii: at which activations are measured (comparison) or at which the
            worst case is taken (evaluation).
        step_sweep: numbers of steps after which activations are measured along a run of ``attack``.
        images: how many images of the test split to use, class shares kept; None for all.
        checks: how many images the checks for gradient masking are made on; 0 for no checks.
        cascade: give each attack only the images that all before it have left.
        save_adversarial: keep the adversarial images of every attack.
        suppression: what an intervention suppresses.
        repair: how damage is accounted for and repaired.
        output: number or name of the entry that holds the logits, for networks that return several
            tensors; None for the one that has a column for each class.
        methods: label -> standard, at, cifs, ..., for networks whose checkpoints do not say so.
        groups: name -> patterns of labels (``at-*``): networks of one method that differ in their
            seed. Those whose recipes are on record and differ in the seed alone are found.
        seed: of the choice of images, the attacks' random starts and the bootstrap.
        replicates: number of bootstrap replicates behind intervals.
        level: coverage of the intervals, in (0, 1).
        threshold: share of an image's largest channel above which a channel is active.
        thumbnails: keep small pictures of the images.
        batch_size: images that are read at a time; results do not depend on it.
        block: images that go through a network together: larger blocks are faster on a GPU. Results
            of another block differ, as rounding does. None for as many pixels as 128 images of 32 x
            32 have, at least 16 images and at most 512.
        device: where checkpoints are run: "auto" (a GPU if there is one), "cpu", "cuda", ...
        folder: the run folder, which stays; None for a temporary one.
        progress: show progress bars.
        frames: of a film: label -> the run and the epoch that the network is of.
        kind: of the result that ``run`` makes: comparison, evaluation, intervention, relevance,
            damage or film.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """

    def __init__(
        self,
        models: Models,
        data: Any = None,
        *,
        attack: str | AttackLike | None = None,
        attacks: Attacks = "adaptive",
        eps: float | None = None,
        norm: Norm = "inf",
        layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        scorers: Scorers = (),
        eps_sweep: Sequence[float] = (),
        step_sweep: Sequence[int] = (),
        images: int | None = None,
        checks: int = 0,
        cascade: bool = False,
        save_adversarial: bool = False,
        suppression: Suppression | None = None,
        repair: Repair | None = None,
        frames: Frames | None = None,
        output: int | str | None = None,
        methods: Mapping[str, str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        replicates: int = 500,
        level: float = 0.95,
        threshold: float = 0.01,
        thumbnails: bool = True,
        batch_size: int = 128,
        block: int | None = None,
        device: str = "auto",
        folder: Path | str | None = None,
        progress: bool = True,
        kind: Kind = "comparison",
    ) -> None:
        _check_numbers(images, checks, seed, replicates, level, threshold, batch_size, block)
        self.kind: Kind = kind
        self.scorers = get_scorers(scorers)
        named = list_attacks(attacks)
        _check_attack_names([*named, *([attack] if attack is not None else [])])
        self._models = load_models(models, methods or {}, resolve_device(device))
        labels = [model.label for model in self._models]
        self._wanted_layers = layers_by_label(layers, labels)
        self._check_layer_names()
        if data is None:
            data = trained_on([model.training for model in self._models])
        self._show_progress = progress and is_first()
        dataset = as_dataset(data, progress=self._show_progress)
        self.dataset = self._fit_classes(dataset, output)
        test = self.dataset.test
        if kind in ("intervention", "damage", "film") and images is not None:  # a default
            images = min(images, len(test))  # of those judged, and of those ranked on
        split = test.sample(images, seed).load(self._show_progress)
        self.images = Images(
            split=split,
            fingerprint=split.fingerprint(),
            classes=len(self.dataset.classes),
            batch_size=batch_size,
            seed=seed,
            block=block,
        )
        self._models = self._adapt_models(output)
        self._unnormalised = self._advise_normalisation()
        if len(split) < world_size():
            raise UserError(
                f"There are more processes ({world_size()}) than images ({len(split)}): start "
                "fewer, or add images."
            )
        self.attack, self.plan = self._plan_attacks(attack, named, eps, norm)
        self.plan = dataclasses.replace(
            self.plan,
            eps_sweep=tuple(eps_sweep) if kind == "evaluation" else (),
            checks=int(checks),
            cascade=bool(cascade),
            save_adversarial=bool(save_adversarial),
        )
        self._strengths = (
            list_strengths(self.attack, eps_sweep, step_sweep) if kind == "comparison" else []
        )
        self.suppression = suppression or Suppression()
        self.repair = repair or Repair()
        self._ranking_images, ranked_on = self._choose_ranking_images(images, seed)
        self._thumbnails = thumbnails
        self._memo: dict[tuple[Any, ...], Any] = {}
        self.classes = self.dataset.classes
        self.labels = self.images.labels
        self.settings: dict[str, Any] = {
            "attack": attack_name(self.attack),
            "attacks": [attack_name(one) for one in named],
            "eps": self.attack.eps,
            "norm": self.plan.norm,
            "eps_sweep": sorted(set(eps_sweep)),
            "step_sweep": sorted(set(step_sweep)),
            "checks": self.plan.checks,
            "cascade": self.plan.cascade,
            "save_adversarial": self.plan.save_adversarial,
            "scorers": list(self.scorers),
            "seed": seed,
            "replicates": replicates,
            "level": level,
            "threshold": threshold,
            "batch_size": batch_size,
            "block": self.images.block_size,
            "method_groups": group_models(groups or {}, self._models),
        }
        if kind == "intervention":
            self.settings |= vars(self.suppression) | {"ranked_on": ranked_on}
            self.settings["fractions"] = sorted(self.suppression.fractions)
        if kind == "film":
            self.settings["frames"] = {
                label: list(place) for label, place in (frames or {}).items()
            }
        if kind == "damage":
            self.settings |= vars(self.repair) | {"fractions": sorted(self.repair.fractions)}
        self._check_processes()
        self._named_folder = None if folder is None else Path(folder)

    # ------------------------------------------------------------ what an analysis may ask

    @property
    def models(self) -> tuple[str, ...]:
        """The models' labels."""
        return tuple(model.label for model in self._models)

    @cached_property
    def weights(self) -> Num[ndarray, "n r"]:
        """How often each image counts in each bootstrap replicate: column 0 is all 1.

        The others are independent Poisson(1) draws, the streaming form of resampling with
        replacement (Chamandy et al., 2012).
        """
        shape = (len(self.images), self.settings["replicates"])
        generator = torch.Generator("cpu").manual_seed(self.settings["seed"])
        draws = torch.poisson(torch.ones(shape, device="cpu"), generator=generator)
        weights: ndarray = (
            torch.cat([torch.ones(shape[0], 1, device="cpu"), draws], 1).to(torch.uint8).numpy()
        )
        return weights

    def describe(self, model: str) -> Mapping[str, Any]:
        """Return what is known of a model, as plain values, and its ``compute``."""
        subject = self._model(model)
        return subject.description | {"compute": subject.compute}

    def history(self, model: str) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a model's training log; none where it is unknown."""
        history: Sequence[Mapping[str, Any]] = self._model(model).training.get("history", ())
        return history

    def layers(self, model: str) -> tuple[str, ...]:
        """Return the measured layers, in the order given."""
        return self._layers(model).names

    def penultimate(self, model: str) -> tuple[str, ...]:
        """Return the measured layers whose relevance is the last linear layer's weight."""
        return self._layers(model).penultimate

    def head(self, model: str) -> tuple[Float[ndarray, "k c"], Float[ndarray, " k"]] | None:
        """Return weight and bias by which penultimate activations give the logits, or None."""
        last = self._layers(model).last
        if last is None or last.weight is None or last.bias is None:
            return None
        return to_array(last.weight), to_array(last.bias)

    def activations(self, model: str, layer: str, data: str = "natural") -> Float[ndarray, "n c"]:
        """Return the spatial means of a layer's feature maps, an image a row, memory-mapped.

        Args:
            model: its label.
            layer: one of ``layers(model)``.
            data: "natural", "adversarial", or a strength of the attack (see ``strengths``).
        """
        return self._rows(model, data).array(f"activations/{layer}")

    def relevance(self, model: str, layer: str, scorer: str | None = None) -> Float[ndarray, "n c"]:
        """Return each channel's relevance to the image's class, on natural images.

        Raises:
            KeyError: for a layer that the scorer refused; ``settings["refused"]`` says why.
        """
        if scorer is not None:
            return self._scores(model).scores(scorer, layer)
        return self._rows(model, "natural").array(f"relevance/{layer}")

    def answers(
        self, model: str, data: str = "natural", told: Labels = "none"
    ) -> Int[ndarray, " n"]:
        """Return the class that the model answers, its gates being told a label or none."""
        name = "answers" if told == "none" else f"answers/{told}"
        return self._rows(model, data).array(name).astype(np.int64)

    def attacks(self, model: str) -> tuple[str, ...]:
        """Return the names of the attacks on the model, in their order."""
        return tuple(name for name in self._evaluated[model].correct if name != "natural")

    def correct(self, model: str, attack: str = "natural") -> Bool[ndarray, " n"]:
        """Return which images are classified correctly: as they are ("natural"), or robustly.

        Robust under an attack are images that are right as they are and under it.
        """
        return self._evaluated[model].correct[attack]

    def outcome(self, model: str) -> Outcome:
        """Return what the attacks and checks on a model did, beside ``correct``."""
        return self._evaluated[model].outcome

    def faults(self, model: str) -> tuple[Finding, ...]:
        """Return why a model's numbers cannot be trusted, by the first block of images.

        Images that lack the normalisation it expects, gradients that are zero, a forward pass that
        is random or depends on the batch.
        """
        found: tuple[Finding, ...] = self.memo(
            ("faults", model), lambda: find_faults(self._model(model), self.images, self.attack)
        )
        return (*self._unnormalised.get(model, ()), *found)

    def gates(self, model: str) -> tuple[str, ...]:
        """Return the gated layers that have a mask."""
        return self._measurers[model].gates

    def masks(
        self, model: str, gate: str, data: str = "natural", told: Labels = "none"
    ) -> Float[ndarray, "n c"]:
        """Return a gate's mask, an image a row; the mean over space where it is of elements."""
        return self._rows(model, data).array(f"masks/{told}/{gate}")

    def probes(self, model: str, data: str = "natural") -> Mapping[str, Int[ndarray, " n"]]:
        """Return the class that each gate's probe answers, by gated layer; told no label."""
        rows = self._rows(model, data)
        gates = self._measurers[model].probed
        return {gate: rows.array(f"probes/{gate}").astype(np.int64) for gate in gates}

    def told(self, model: str) -> Mapping[Labels, Int[ndarray, " n"]]:
        """Return the labels that a model's gates are told: "true", "wrong"; empty for none."""
        return self._measurers[model].told

    def strengths(self) -> Sequence[tuple[str, float, str]]:
        """Return the swept strengths of the attack: ("eps" or "step", value, name of the data)."""
        return [(one.varied, one.value, one.name) for one in self._strengths]

    def thumbnails(
        self, model: str, data: str, images: Sequence[int]
    ) -> UInt8[ndarray, "m _ h w"] | None:
        """Return small pictures (uint8) of some images; None where none were kept."""
        if not self._thumbnails:
            return None
        return np.asarray(self._rows(model, data).array("thumbnails")[np.asarray(images, int)])

    def suppressed(self, model: str) -> Mapping[str, SuppressedLayer]:
        """Return what suppressing channels did, by layer; empty without interventions."""
        return self._suppressed[model] if self.kind == "intervention" else {}

    def damage(self, model: str) -> Damage:
        """Return what the attack does through the channels of each layer, and what repairs it."""
        scores = self._scores(model) if self.scorers else None
        return self._damagers[model].collect(self._rows(model, "adversarial"), scores)

    def edges(self, model: str) -> Edges | None:
        """Return how the damage passes from layer to layer; None where that was not traced."""
        tracer = self._tracers.get(model)
        return None if tracer is None else tracer.collect(self._traced[model])

    def adversarial_files(self) -> dict[str, Path]:
        """Return the files of kept adversarial images, by the name that a saved result has them."""
        files: dict[str, Path] = {}
        if not self.plan.save_adversarial:
            return files
        for index, model in enumerate(self._models):
            runner = self._runner(model, Progress(None))
            for name, attack in self._attacks_on(model, self.plan.eps).items():
                if (rows := runner.open_adversarial(attack)) is not None:
                    files[adversarial_name(index, name)] = rows.path("images")
        return files

    def memo(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return ``compute()``, remembered under ``key`` for the other analyses."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    # ------------------------------------------------------------ running

    def run(self, *names: str) -> Result:
        """Run the networks, as far as that has not been done, and analyses of what they made.

        Args:
            names: of analyses (see ``analyses.base.ANALYSES``); none for all of this kind.

        Raises:
            UserError: for an unknown analysis, or where running a network fails.
        """
        chosen = self._choose_analyses(names)
        self.run_networks()
        tables, arrays = make_tables(self, chosen)
        arrays["labels"] = self.labels
        if self.kind in ("comparison", "evaluation"):
            for index, model in enumerate(self.models):
                correct = self._evaluated[model].correct
                arrays |= {f"correct/{index}/{name}": mask for name, mask in correct.items()}
        return Result(self.kind, tables, arrays, self._meta())

    def run_networks(self) -> None:
        """Run the networks, as far as that has not been done: all that analyses may ask for."""
        if self.kind in ("comparison", "damage"):
            _ = self._measured
            _ = [self.faults(model) for model in self.models]
        if self.kind in ("comparison", "evaluation", "damage", "film"):
            _ = self._evaluated
        if self.kind == "damage":
            _ = self._traced
        if self.kind == "relevance":
            _ = self._scored
        if self.kind == "intervention":
            _ = self._suppressed

    def _choose_analyses(self, names: Sequence[str]) -> list[Analysis]:
        of_kind = {analysis.name: analysis for analysis in analyses_of(self.kind)}
        for name in names:
            if name not in of_kind:
                raise UserError(
                    f"There is no analysis {name!r} of this kind of study: choose from "
                    f"{', '.join(of_kind)}.{suggest(name, of_kind)}"
                )
        return [of_kind[name] for name in names] or list(of_kind.values())

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder, which is made when it is first needed."""
        folder = RunFolder(self._named_folder)
        folder.check_space(self.disk_needed)
        if self._show_progress and self._named_folder is not None:
            needed = in_megabytes(self.disk_needed)
            tqdm.write(f"run folder {self._named_folder}: at most {needed}", file=sys.stderr)
        return folder

    @property
    def disk_needed(self) -> int:
        """Bytes that the study keeps on disk, at most."""
        n = len(self.images)
        image = 4 * math.prod(self.images.split.image_shape)
        total = 0
        for model in self._models:
            attacks = self._attacks_on(model, self.plan.eps)
            total += 5 * n * (1 + count_parts(list(attacks.values())))  # a byte and a checksum
            if self.plan.save_adversarial:
                total += n * image * len(attacks)
            if self.kind == "evaluation":
                continue
            measurer = self._measurers[model.label]
            if self.kind in ("comparison", "damage", "film"):
                total += n * measurer.count_bytes(relevance=True)
            if self.kind in ("comparison", "film"):
                total += n * measurer.count_bytes() * (1 + len(self._strengths))
            if self.kind == "damage":
                total += n * self._damagers[model.label].count_bytes()
                if model.label in self._tracers:
                    total += self._tracers[model.label].count_bytes()
            if self.kind != "comparison":
                total += len(self._ranking_images) * measurer.count_score_bytes(len(self.scorers))
        return total

    @contextmanager
    def _progress(self, total: int) -> Iterator[Progress]:
        with open_bar(total=total, unit="img", shown=self._show_progress) as bar:
            yield Progress(bar)

    @cached_property
    def _measurers(self) -> dict[str, Measurer]:
        return {
            model.label: Measurer(
                model=model,
                images=self.images,
                layers=self._layers(model.label),
                thumbnails=self._thumbnails,
                digests=self._digests,
            )
            for model in self._models
        }

    @cached_property
    def _damagers(self) -> dict[str, DamageMeasurer]:
        return {
            model.label: DamageMeasurer(
                model=model,
                images=self.images,
                layers=self._layers(model.label),
                attack=self.attack,
                repair=self.repair,
                scorers=self.scorers,
                digests=self._digests,
            )
            for model in self._models
        }

    @cached_property
    def _tracers(self) -> dict[str, EdgeTracer]:
        count = min(self.repair.edges, len(self.images)) if self.kind == "damage" else 0
        several = (model for model in self.models if len(self.layers(model)) > 1)
        return {
            model: EdgeTracer(damager=self._damagers[model], count=count)
            for model in several
            if count
        }

    @cached_property
    def _traced(self) -> dict[str, Rows]:
        with self._progress(len(self.images) * len(self._tracers)) as progress:
            return {
                model: tracer.run(self.folder, progress) for model, tracer in self._tracers.items()
            }

    def _measure_damage(self) -> dict[str, dict[str, Rows]]:
        measured = {}
        scores = {label: self._scores(label) for label in self.models} if self.scorers else {}
        with self._progress(2 * len(self.images) * len(self._models)) as progress:
            for label in self.models:
                natural = self._measurers[label].measure_natural(self.folder, progress)
                damager = self._damagers[label]
                attacked = damager.run(scores.get(label), self.folder, progress)
                measured[label] = {"natural": natural, "adversarial": attacked}
        return measured

    @cached_property
    def _measured(self) -> dict[str, dict[str, Rows]]:
        """Label -> name of the data -> rows."""
        if self.kind == "damage":
            return self._measure_damage()
        measured: dict[str, dict[str, Rows]] = {}
        total = len(self.images) * len(self._models) * (2 + len(self._strengths))
        with self._progress(total) as progress:
            for model in self._models:
                measurer = self._measurers[model.label]
                place = self.folder, progress
                made = None
                if self._named_folder is not None:  # another command may have made them
                    made = self._runner(model, progress).open_adversarial(self.attack)
                rows = {
                    "natural": measurer.measure_natural(*place),
                    "adversarial": measurer.measure_attacked(
                        self.attack, *place, masks=True, made=made
                    ),
                }
                for strength in self._strengths:
                    rows[strength.name] = measurer.measure_attacked(
                        strength.attack, *place, masks=False
                    )
                measured[model.label] = rows
        return measured

    def _rows(self, model: str, data: str) -> Rows:
        return self._measured[model][data]

    @cached_property
    def _evaluated(self) -> dict[str, Evaluated]:
        """Label -> which images are correct under which attack, and what else there is to say."""
        plan = self.plan
        for eps in plan.eps_sweep:  # refuses attacks that have no eps to set
            self._attacks_on(self._models[0], eps)
        attacks = {model.label: self._attacks_on(model, plan.eps) for model in self._models}
        known: dict[str, dict[str, ndarray]] = {model.label: {} for model in self._models}
        if self.kind in ("comparison", "damage", "film"):
            for model in self._models:
                natural, attacked = (
                    self.answers(model.label, data) == self.labels
                    for data in ("natural", "adversarial")
                )
                # What the attack makes right is not robust, as in an evaluation.
                known[model.label] = {
                    "natural": natural,
                    attack_name(self.attack): natural & attacked,
                }
        for model in self._models:  # before the first attack, which may take hours
            rows = torch.arange(min(2, len(self.images)), device="cpu")
            x, _ = self.images.read_some(rows, get_parameter(model.network))
            check_network(model.network, x, self.images.classes)
        parts = sum(
            1 + count_parts(list(of_model.values())) * (1 + len(plan.eps_sweep))
            for of_model in attacks.values()
        )
        evaluated = {}
        with self._progress(parts * len(self.images)) as progress:
            for model in self._models:
                evaluated[model.label] = evaluate_model(
                    model,
                    attacks[model.label],
                    self._runner(model, progress),
                    plan,
                    known[model.label],
                    lambda eps, model=model: self._attacks_on(model, eps),  # type: ignore[misc]
                )
        if self.kind == "evaluation":  # a comparison has it among its faults
            evaluated = {label: self._add_advice(label, one) for label, one in evaluated.items()}
        return evaluated

    def _add_advice(self, model: str, evaluated: Evaluated) -> Evaluated:
        """Put what is said on a network's normalisation first among what its checks found."""
        outcome = evaluated.outcome
        findings = (*self._unnormalised.get(model, ()), *outcome.findings)
        return evaluated._replace(outcome=dataclasses.replace(outcome, findings=findings))

    def _runner(self, model: Model, progress: Progress) -> AttackRunner:
        return AttackRunner(
            model=model,
            images=self.images,
            folder=self.folder,
            save_adversarial=self.plan.save_adversarial,
            progress=progress,
            digests=self._digests,
        )

    @cached_property
    def _digests(self) -> dict[int, str]:
        return {id(model.network): model.digest for model in self._models}

    def _attacks_on(self, model: Model, eps: float) -> dict[str, AttackLike]:
        return attacks_on_model(model, self._models, self.plan, eps, self.images.classes)

    def _scores(self, model: str) -> Scores:
        return self._scored[model]

    @cached_property
    def _scored(self) -> dict[str, Scores]:
        images = self._ranking_images if self.kind == "intervention" else self.images
        scored = {}
        with self._progress(len(images) * len(self._models)) as progress:
            for model in self._models:
                layers = self._layers(model.label)
                scored[model.label] = score_model(
                    model, images, layers, self.scorers, self.folder, progress
                )
        refused = [
            {"model": label, "scorer": scorer, "layer": layer, "reason": reason}
            for label, scores in scored.items()
            for (scorer, layer), reason in scores.refused.items()
        ]
        self.settings["refused"] = refused
        if len(refused) == sum(len(self.layers(label)) for label in scored) * len(self.scorers):
            raise UserError(refused[0]["reason"])
        return scored

    @cached_property
    def _suppressed(self) -> dict[str, dict[str, SuppressedLayer]]:
        settings = self.suppression
        plans = {}
        for model in self._models:
            layers = self.layers(model.label)
            relevance = relevance_by_class(
                self._scores(model.label), layers, list(self.scorers), self._ranking_images
            )
            if bare := [layer for layer, by_scorer in relevance.items() if not by_scorer]:
                refused = self._scores(model.label).refused
                raise UserError(next(text for (_, at), text in refused.items() if at == bare[0]))
            plans[model.label] = plan_suppression(
                relevance, settings.fractions, settings.random, self.settings["seed"]
            )
        total = len(self.images) * sum(len(plan.points) for plan in plans.values())
        with self._progress(total) as progress:
            return {
                model.label: Suppressor(
                    model=model,
                    images=self.images,
                    plan=plans[model.label],
                    attack=self.attack,
                    relevant_to=settings.relevant_to,
                    folder=self.folder,
                    progress=progress,
                    digests=self._digests,
                ).run()
                for model in self._models
            }

    # ------------------------------------------------------------ arguments

    def _model(self, label: str) -> Model:
        return next(model for model in self._models if model.label == label)

    def _layers(self, label: str) -> Layers:
        layers: Layers = self.memo(
            ("layers", label),
            lambda: find_layers(self._model(label), self.images, self._wanted_layers[label]),
        )
        return layers

    def _check_layer_names(self) -> None:
        """Refuse unknown names of layers before any image is read; patterns need an image."""
        for model in self._models:
            names = without_gates(model.network, self._wanted_layers[model.label] or ())
            self._wanted_layers[model.label] = names or None
            for name in names:
                if not set("*?[") & set(name):
                    get_layer(model.network, name)

    def _adapt_models(self, output: int | str | None) -> list[Model]:
        """Return the models with networks that return plain logits."""
        rows = torch.arange(min(2, len(self.images)), device="cpu")
        adapted = []
        for model in self._models:
            x, _ = self.images.read_some(rows, get_parameter(model.network))
            adapted.append(model.adapt_output(x, self.images.classes, output))
        return adapted

    def _advise_normalisation(self) -> dict[str, tuple[Finding, ...]]:
        """Say for which networks the images would have to be normalised; nothing is changed.

        It is said at once, before hours of attacks, and goes into the result, where it is read.
        """
        rows = (
            torch.linspace(0, len(self.images) - 1, NORMALISATION_IMAGES, device="cpu")
            .long()
            .unique()
        )
        found: dict[str, tuple[Finding, ...]] = {}
        for model in self._models:
            x, y = self.images.read_some(rows, get_parameter(model.network))
            label = model.label if len(self._models) > 1 else None
            advice = advise_normalisation(model.network, x, y, ours=model.is_ours, label=label)
            if advice:
                found[model.label] = (Finding(NORMALISATION, advice, {"images": len(x)}),)
            if advice and is_first():
                tqdm.write(escape(f"{model.label}: {advice}"), file=sys.stderr)
        return found

    def _fit_classes(self, dataset: Dataset, output: int | str | None) -> Dataset:
        if reserved := {"all", "across"} & set(dataset.classes):
            raise UserError(
                f"A class cannot be called {min(reserved)!r}, as the tables' summary rows are: "
                "rename it."
            )
        dataset = with_class_names(dataset, self._models, output)
        for model in self._models:
            model.check_classes(dataset)
        return dataset

    def _plan_attacks(
        self,
        attack: str | AttackLike | None,
        attacks: Sequence[str | AttackLike],
        eps: float | None,
        norm: Norm,
    ) -> tuple[AttackLike, Plan]:
        """Return the attack that makes the adversarial data, and the plan of all attacks."""
        every = ([attack] if attack is not None else []) + list(attacks)
        eps, norm = resolve_ball(every, eps, norm)
        if isinstance(attack, str) and attack.endswith("-l2") and norm == "inf":
            norm = "2"
        eps = default_eps(self.dataset.name, norm) if eps is None else eps
        first: str | AttackLike = attack if attack is not None else _first_attack(every)
        maker = parse_attack(first, eps=eps, norm=norm) if isinstance(first, str) else first
        wanted = tuple(attacks) if self.kind == "evaluation" else (maker, *attacks)
        return maker, Plan(attacks=wanted, eps=eps, norm=norm)

    def _choose_ranking_images(self, images: int | None, seed: int) -> tuple[Images, Any]:
        """Choose the images to rank channels on for an intervention: others than those judged.

        Those that are judged serve where there are no others.
        """
        if self.kind != "intervention":
            return self.images, None
        for name in ("val", "train"):
            if (split := self.dataset.parts.get(name)) is None:
                continue
            if images is not None and images < len(split):
                split = split.sample(images, seed)
            split = split.load(self._show_progress)
            chosen = dataclasses.replace(self.images, split=split, fingerprint=split.fingerprint())
            return chosen, {"part": name, "images": len(split)}
        return self.images, {"part": "test", "images": len(self.images)}

    def _check_processes(self) -> None:
        """Refuse processes that do not share data, weights and settings."""
        described = {f"the weights of {model.label}": model.digest for model in self._models}
        described["the images"] = self.images.fingerprint
        settings = {name: value for name, value in self.settings.items() if name != "batch_size"}
        layers = {label: names and list(names) for label, names in self._wanted_layers.items()}
        described["the settings"] = digest_of(json.dumps([settings, layers], default=str))
        described["the versions of packages"] = digest_of(json.dumps(_versions()))
        check_same(described)

    def _meta(self) -> dict[str, Any]:
        """Return all that is needed to make the result again, as plain values."""
        models = {}
        for model in self._models:
            described = model.description
            if self.kind in ("evaluation", "comparison"):
                correct, outcome, checked = self._evaluated[model.label]
                described["attacks"] = [name for name in correct if name != "natural"]
                described["fallbacks"] = list(outcome.fallbacks)
                described["notes"] = list(outcome.notes)
                described["checked"] = list(checked)
                described["skipped"] = dict(outcome.skipped)
            else:  # which have no table of what is wrong
                found = self._unnormalised.get(model.label, ())
                described["notes"] = [finding.sentence for finding in found]
            if self.kind != "evaluation":
                described["layers"] = list(self.layers(model.label))
                described["penultimate"] = list(self.penultimate(model.label))
            models[model.label] = described
        meta = {
            "models": models if self.kind != "film" else self._join_frames(models),
            "data": {
                "name": self.dataset.name,
                "classes": list(self.classes),
                "images": len(self.images),
                "fingerprint": self.images.fingerprint,
            },
            **self.settings,
            "versions": _versions(),
            "hardware": {
                "device": str(get_parameter(self._models[0].network).device),
                "threads": torch.get_num_threads(),
                "processes": world_size(),
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        plain: dict[str, Any] = json.loads(json.dumps(meta))  # tuples are lists, as when read again
        return plain

    def _join_frames(self, models: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Describe the runs of a film: each by its last network, with all epochs and digests."""
        runs: dict[str, dict[str, Any]] = {}
        for label, (run, epoch) in self.settings["frames"].items():
            digests = runs.get(run, {}).get("digests", {}) | {str(epoch): models[label]["digest"]}
            runs[run] = {**models[label], "digests": digests}
        return runs


def list_attacks(attacks: Attacks) -> tuple[str | AttackLike, ...]:
    """Return one or several attacks as several.

    Raises:
        UserError: for none.
    """
    single = isinstance(attacks, str) or not isinstance(attacks, Sequence)
    listed: Any = (attacks,) if single else tuple(attacks)  # type: ignore[arg-type]
    return listed


def _first_attack(attacks: Sequence[str | AttackLike]) -> str | AttackLike:
    """Return the first single attack among names, suites and attacks as such."""
    for attack in attacks:
        if not isinstance(attack, str) or attack not in SUITES:
            return attack
    return "pgd-20"


def _check_attack_names(attacks: Sequence[str | AttackLike]) -> None:
    """Refuse unknown names before any file is read."""
    for attack in attacks:
        if isinstance(attack, str) and attack not in SUITES:
            try:
                parse_attack(attack)
            except UserError as error:
                near = suggest(attack, SUITES)
                if not near or "Did you mean" in str(error):
                    raise
                raise UserError(f"There is no attack or suite {attack!r}.{near}") from error
        elif not isinstance(attack, str) and (not callable(attack) or not hasattr(attack, "eps")):
            raise UserError(
                f"attacks: {attack!r} is no attack: give a name such as 'pgd-20', or an object "
                "such as cs.PGD(), callable with (model, x, y, generator) and with an eps."
            )


def _check_numbers(
    images: int | None,
    checks: int,
    seed: int,
    replicates: int,
    level: float,
    threshold: float,
    batch_size: int,
    block: int | None,
) -> None:
    if images is not None and images < 1:
        raise UserError(f"images: {images} is too few: use at least one image, or None for all.")
    if checks < 0:
        raise UserError(f"checks: {checks} is no number of images: use 0 for no checks.")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed: {seed} does not lie between 0 and {2**31 - 1}.")
    if replicates < FEWEST_REPLICATES:
        raise UserError(
            f"replicates: {replicates} are too few for an interval: use at least "
            f"{FEWEST_REPLICATES}."
        )
    if not 0 < level < 1:
        raise UserError(f"level: {level} does not lie between 0 and 1: use 0.95 for 95 %.")
    if not 0 <= threshold < 1:
        raise UserError(f"threshold: {threshold} is no share between 0 and 1, such as 0.01.")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} is too few: read at least one image at a time.")
    if block is not None and block < 1:
        raise UserError(f"block: {block} is too few: give a network at least one image at a time.")


def _versions() -> dict[str, str]:
    found = dict(versions())
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional one
            continue
    return found
