"""Compare networks channel by channel: activation, relevance, robustness, and verdicts on the paper's claims."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from channelscope.alignment import FEWEST_REPLICATES
from channelscope.attacks import FGSM, PGD, Attack, parse
from channelscope.comparison.frames import Comparison, check_folder
from channelscope.comparison.rows import assemble
from channelscope.comparison.subjects import Network, subjects_of
from channelscope.data import Dataset, as_dataset, stratified
from channelscope.distributed import is_first
from channelscope.errors import UserError
from channelscope.measurement import measure
from channelscope.objectives import Gated, Joint
from channelscope.stats import bootstrap_weights
from channelscope.training import Recipe

__all__ = ["Comparison", "check_folder", "compare"]


def compare(
    models: Mapping[str, Network] | Sequence[str | Path],
    data: Any = "digits",
    *,
    attack: str | Attack = "pgd-20",
    eps: float | None = None,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    images: int | None = None,
    methods: Mapping[str, str] | None = None,
    seed: int = 0,
    replicates: int = 500,
    level: float = 0.95,
    threshold: float = 0.01,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Compare networks on the test part of a data set and judge the claims of the CIFS paper on them.

    Every network gets the attack with the gradient passing through its masks, if it has any; a gated network also
    the same attack on its joint loss. "worst" is the worst case per image over these.

    Where several processes are joined (see ``distributed``), they share the images, and each ends with the result: let
    the first save it.

    Args:
        models: label -> network, or path of a checkpoint; or a sequence of paths, whose stems become the labels.
            A network takes images in [0, 1] and is used in eval mode, where it is, and left as found.
        data: a data set, its name, or what else ``data.as_dataset`` takes.
        attack: a short name (see ``attacks.parse``) or any attack. It makes the adversarial data.
        eps: the radius of a named attack's ball; None for that of the data set's recipe (8/255 but for digits).
        layers: names of layers to measure, for all networks or by label; None for the penultimate layer of each.
        images: how many images of the test part to use, class shares kept; None for all.
        methods: label -> standard, at, cifs or cas, for networks whose checkpoints do not say so.
        seed: of the choice of images, the attacks' random starts and the bootstrap.
        replicates, level: of the bootstrap over images behind all intervals.
        threshold: share of an image's largest channel above which a channel is active.
        batch_size: images per forward pass.
        device: where checkpoints are run.
        progress: show a progress bar.

    Raises:
        UserError: for models, data, layers or settings that do not fit together.
    """
    if replicates < FEWEST_REPLICATES or not 0 < level < 1 or batch_size < 1:
        raise UserError(
            f"A comparison needs at least {FEWEST_REPLICATES} replicates, a level between 0 and 1 and images per batch."
        )
    if not 0 <= seed < 2**31:
        raise UserError(f"A seed lies between 0 and {2**31 - 1}, not at {seed}.")
    if images is not None and images < 1:
        raise UserError(f"A comparison needs at least one image, not {images}.")
    networks = subjects_of(models, methods or {}, device)
    chosen = _layers(layers, [subject.label for subject in networks])
    dataset = as_dataset(data)
    part = dataset.test if images is None else dataset.test.subset(stratified(dataset.test.labels, images, seed))
    if reserved := {"all", "across"} & set(dataset.classes):
        raise UserError(f"A class cannot be called {min(reserved)!r}, as the tables' summary rows are: rename it.")
    attack = _attack(attack, eps, dataset)
    for subject in networks:
        subject.check(dataset)
    weights = bootstrap_weights(len(part), replicates, seed)
    shown = progress and is_first()
    with tqdm(total=len(part) * len(networks), unit="img", disable=not shown) as bar:
        for subject in networks:
            bar.set_description(subject.label)
            subject.measurement = measure(
                subject.network,
                part,
                len(dataset.classes),
                layers=chosen[subject.label],
                attacks=_attacks(attack, subject.network),
                weights=weights,
                threshold=threshold,
                batch_size=batch_size,
                seed=seed,
                progress=bar.update,
            )
    settings = {
        "attack": str(attack),
        "eps": attack.eps,
        "seed": seed,
        "replicates": replicates,
        "level": level,
        "threshold": threshold,
        "batch_size": batch_size,
    }
    return assemble(networks, dataset, part, settings)


def _layers(
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None, labels: Sequence[str]
) -> dict[str, Sequence[str] | None]:
    """Tell the layers to measure by label; None for the penultimate one."""
    by_label = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(labels, layers)
    if unknown := by_label.keys() - set(labels):
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(labels)}.")
    for names in by_label.values():
        if isinstance(names, str) or (names is not None and not names):
            raise UserError("Layers are given as a list of names, such as ['layer3', 'layer4'].")
        if names and not all(names):
            raise UserError("A layer's name is empty: 'channelscope layers' lists the names.")
    return {label: by_label.get(label) for label in labels}


def _attack(attack: str | Attack, eps: float | None, dataset: Dataset) -> Attack:
    if not isinstance(attack, str):
        if eps is not None:
            raise UserError("An attack that is given as such has its own eps: set it there.")
        if not callable(attack) or not hasattr(attack, "eps"):
            raise UserError(
                "An attack is a name such as 'pgd-20', or an object such as cs.PGD(): callable, with an eps."
            )
        return attack
    return parse(attack, eps=Recipe.suited_to(dataset.name).attack.eps if eps is None else eps)


def _attacks(attack: Attack, network: nn.Module) -> dict[str, Attack]:
    """Name the attacks on a network: a gated one is also attacked on its joint loss."""
    attacks = {str(attack): attack}
    if isinstance(network, Gated) and isinstance(attack, PGD | FGSM):
        joint = dataclasses.replace(attack, objective=Joint())
        attacks[str(joint)] = joint
    return attacks
