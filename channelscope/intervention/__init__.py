"""Is the relevance ranking true? Suppress channels of trained networks, most NR or most PR first, and see what is lost.

The attack sees the intervention: what is attacked is the network that goes without the channels.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from tqdm.auto import tqdm

from channelscope.attacks import Attack, attack_name, parse_attack
from channelscope.data import Dataset, Split, as_dataset
from channelscope.errors import UserError
from channelscope.intervention.ranked import ranked_on, relevance_of, some
from channelscope.intervention.results import COLUMNS, Interventions, check_folder
from channelscope.intervention.rows import Intervened, frames
from channelscope.intervention.run import RelevantTo, Run
from channelscope.intervention.suppression import Plan
from channelscope.intervention.verdicts import verdicts
from channelscope.statistics.alignment import FEWEST_REPLICATES
from channelscope.statistics.streaming import bootstrap_weights
from channelscope.study.models import (
    Model,
    Network,
    get_parameter,
    layers_by_label,
    load_models,
    widen_classes,
)
from channelscope.training import default_eps
from channelscope.weights import versions

__all__ = ["Interventions", "check_folder", "intervene"]

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


def intervene(
    models: Mapping[str, Network] | Sequence[str | Path],
    data: Any = "digits",
    *,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    scorers: Sequence[str] = ("gradient",),
    attack: str | Attack = "pgd-20",
    eps: float | None = None,
    fractions: Sequence[float] = FRACTIONS,
    random: int = 3,
    relevant_to: RelevantTo = "answer",
    images: int | None = 500,
    methods: Mapping[str, str] | None = None,
    seed: int = 0,
    replicates: int = 500,
    level: float = 0.95,
    batch_size: int = 128,
    device: str = "cpu",
    command: str | None = None,
    progress: bool = True,
) -> Interventions:
    """Suppress channels at test time, the most NR, the most PR or random ones first, and measure what accuracy is left.

    If the relevance is a true account of what the channels do, accuracy lasts when NR channels go first, and falls at
    once when PR ones do; random orders lie between. The area between a scorer's curve and the random one ranks the
    scorers. Whether robust accuracy even rises without the NR channels, as the hypothesis behind CIFS has it (Yan et
    al., ICML 2021, arXiv 2102.05311), is the verdict "C4 by intervention".

    The attack sees the intervention: it is made on the network that goes without the channels, gates attached. Which
    channels go depends on the network's own answer for the image at hand, attacked or not, as at test time in CIFS: a
    piecewise constant choice, whose gradient is 0. What this hides is made up for by trying out the images as well
    that the same attack makes on the untouched network, and which change its answer. An image is robust if it stands
    as it is and both.

    Args:
        models: label -> network, or path of a checkpoint; or a sequence of paths, whose stems become the labels.
            A network takes images in [0, 1] and is used in eval mode, where it is, and left as found.
        data: a data set, its name, or what else ``data.as_dataset`` takes. Channels are ranked on images of its
            validation part, or else of its training part, or else on the images that are judged (``meta`` says so).
        layers: names of layers, for all networks or by label; None for the penultimate layer of each.
        scorers: short names of relevance scorers.
        attack: a short name (see ``attacks.parse``) or any attack; "joint-sweep" is made for networks with gates.
        eps: the radius of a named attack's ball; None for that of the data set's recipe (8/255 but for digits).
        fractions: of a layer's channels, in (0, 1): the points of the curves beside no and all channels.
        random: how many random orders.
        relevant_to: the class whose NR channels an image loses. "answer": that which the untouched network answers,
            which anybody knows at test time. "label": the true one, an oracle: it tells the network about the label,
            which flatters the ranking and every accuracy, so there is no verdict then.
        images: at most so many images are judged, class shares kept, and ranked on; None for all.
        methods: label -> how the network was trained, where its checkpoint does not say so.
        seed: of the choice of images, the attack's random starts, the random orders and the bootstrap.
        replicates, level: of the bootstrap over images behind all intervals; the random orders are held.
        batch_size: images that are read at a time; results do not depend on it.
        device: where checkpoints are run.
        command: what was typed, for the record.
        progress: show a progress bar; its total is the number of images times that of suppressions, all attacked.

    Raises:
        UserError: for models, data, layers or settings that do not fit together.
    """
    _check(fractions, random, relevant_to, scorers, images, seed, replicates, level, batch_size)
    subjects, dataset = load_models(models, methods or {}, device), as_dataset(data)
    chosen = layers_by_label(layers, [subject.label for subject in subjects])
    for subject in subjects:
        subject.check(dataset)
    dataset = widen_classes(dataset, [subject.network for subject in subjects])
    part = some(dataset.test, images, seed)
    source, others = ranked_on(dataset, part, images, seed)
    attack = _attack(attack, eps, dataset)
    weights = bootstrap_weights(len(part), replicates, seed).double().numpy()
    settings = {
        "attack": attack_name(attack),
        "eps": attack.eps,
        "fractions": sorted(fractions),
        "random": random,
        "relevant_to": relevant_to,
        "ranked_on": {"part": source, "images": len(others)},
        "seed": seed,
        "replicates": replicates,
        "level": level,
        "batch_size": batch_size,
        "command": command,
    }
    planned: list[tuple[Model, Plan]] = []
    notes: dict[str, list[str]] = {}
    with tqdm(unit="img", disable=not progress, total=0) as bar:
        for subject in subjects:
            bar.set_description(f"{subject.label}: ranking")
            relevance, notes[subject.label] = relevance_of(
                subject.network,
                others,
                len(dataset.classes),
                chosen[subject.label],
                scorers,
                batch_size,
            )
            planned.append((subject, Plan.of(relevance, fractions, random, seed)))
        bar.reset(total=len(part) * sum(len(plan.points) for _, plan in planned))
        found = []
        for subject, plan in planned:
            bar.set_description(subject.label)
            run = Run(
                network=subject.network,
                attack=attack,
                relevant_to=relevant_to,
                batch_size=batch_size,
                seed=seed,
            )
            found.append(Intervened(subject, plan, run.outcomes(part, plan, bar.update), weights))
    return _assemble(found, dataset, part, settings | {"notes": notes})


def _check(
    fractions: Sequence[float],
    random: int,
    relevant_to: str,
    scorers: Sequence[str],
    images: int | None,
    seed: int,
    replicates: int,
    level: float,
    batch_size: int,
) -> None:
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise UserError(
            "Fractions of the channels lie between 0 and 1, such as 0.125: name at least one."
        )
    if random < 1:
        raise UserError("Rankings are judged against random orders: ask for at least one.")
    if relevant_to not in (known := get_args(RelevantTo)):
        raise UserError(
            f"Channels are relevant to the {' or the '.join(known)}, not to the {relevant_to}."
        )
    if isinstance(scorers, str) or not scorers:
        raise UserError("Scorers are given as a list of names, such as ['gradient', 'ablation'].")
    if images is not None and images < 1:
        raise UserError(f"An intervention needs at least one image, not {images}.")
    if replicates < FEWEST_REPLICATES or not 0 < level < 1 or batch_size < 1:
        raise UserError(
            f"An intervention needs at least {FEWEST_REPLICATES} replicates, a level between 0 and 1 and images per "
            "batch."
        )
    if not 0 <= seed < 2**31:
        raise UserError(f"A seed lies between 0 and {2**31 - 1}, not at {seed}.")


def _attack(attack: str | Attack, eps: float | None, dataset: Dataset) -> Attack:
    if isinstance(attack, str):
        norm = "2" if attack.endswith("-l2") else "inf"
        return parse_attack(attack, eps=default_eps(dataset.name, norm) if eps is None else eps)
    if eps is not None:
        raise UserError("An attack that is given as such has its own eps: set it there.")
    own = getattr(attack, "eps", None)
    if not callable(attack) or not isinstance(own, int | float) or not 0 <= own < math.inf:
        raise UserError(
            "An attack is a name such as 'pgd-20', or an object such as cs.PGD(): callable, with an eps."
        )
    return attack


def _assemble(
    found: Sequence[Intervened], dataset: Dataset, part: Split, settings: Mapping[str, Any]
) -> Interventions:
    """Put everything into frames."""
    judged = [row for item in found for row in verdicts(item, settings)]
    packages = ("torchvision", "numpy", "scipy", "pandas", "matplotlib")
    meta = {
        "models": {
            item.subject.label: item.subject.description | _described(item.plan) for item in found
        },
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "images": len(part),
            "fingerprint": part.fingerprint(),
        },
        **settings,
        "versions": versions() | {name: version(name) for name in packages},
        "hardware": {
            "device": str(get_parameter(found[0].subject.network).device),
            "threads": torch.get_num_threads(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Interventions(
        **frames(found, settings["level"]),
        verdicts=pd.DataFrame(judged, columns=sum(COLUMNS["verdicts"], ())),
        meta=json.loads(json.dumps(meta)),  # as it is when it is read again: tuples are lists
    )


def _described(plan: Plan) -> dict[str, Any]:
    """Describe what was suppressed: layers, channels, and the share of them that is negatively relevant by scorer."""
    return {
        "layers": list(plan.counts),
        "channels": {layer: counts[-1] for layer, counts in plan.counts.items()},
        "nr_share": {
            layer: {
                scorer: float((values < 0).double().mean()) for scorer, values in by_scorer.items()
            }
            for layer, by_scorer in plan.relevance.items()
        },
    }
