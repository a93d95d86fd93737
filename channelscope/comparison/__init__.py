"""Compare networks channel by channel: activation, relevance, robustness, and verdicts on the paper's claims."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from channelscope.attacks import Attack, attack_name, parse_attack
from channelscope.attacks.suites import ball_of, norm_of
from channelscope.comparison.decay import points, strengths
from channelscope.comparison.earlier import Earlier
from channelscope.comparison.frames import Comparison, check_folder
from channelscope.comparison.rows import assemble
from channelscope.comparison.subjects import Compared
from channelscope.data import Dataset, Split, as_dataset, sample_stratified
from channelscope.distributed import is_first
from channelscope.errors import UserError
from channelscope.evaluation import Evaluation, listed
from channelscope.evaluation.outcomes import Plan, outcomes
from channelscope.evaluation.progress import Progress
from channelscope.statistics.alignment import FEWEST_REPLICATES
from channelscope.statistics.streaming import bootstrap_weights
from channelscope.study.measurement import measure
from channelscope.study.models import Network, layers_by_label, load_models, widen_classes
from channelscope.training import default_eps

__all__ = ["Comparison", "check_folder", "compare"]


def compare(
    models: Mapping[str, Network] | Sequence[str | Path],
    data: Any = "digits",
    *,
    attack: str | Attack = "pgd-20",
    eps: float | None = None,
    attacks: str | Attack | Sequence[str | Attack] = "adaptive",
    evaluation: Evaluation | Path | str | None = None,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    eps_sweep: Sequence[float] = (),
    step_sweep: Sequence[int] = (),
    images: int | None = None,
    methods: Mapping[str, str] | None = None,
    seed: int = 0,
    replicates: int = 500,
    level: float = 0.95,
    threshold: float = 0.01,
    thumbnails: bool = True,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Compare networks on the test part of a data set and judge the claims of the CIFS paper on them.

    One attack makes the adversarial data on which activations are compared. Robustness, and so claim C4, is the worst
    case per image over this and further attacks, those made for gates among them (see ``evaluation``). Attacks see
    through gates: gradients pass through their masks.

    Where several processes are joined (see ``distributed``), they share the images, and each ends with the result: let
    the first save it. It is the same to the byte as that of one process, if each has as many threads (see
    ``data.blocks``).

    Args:
        models: label -> network, or path of a checkpoint; or a sequence of paths, whose stems become the labels.
            A network takes images in [0, 1] and is used in eval mode, where it is, and left as found.
        data: a data set, its name, or what else ``data.as_dataset`` takes.
        attack: a short name (see ``attacks.parse``) or any attack. It makes the adversarial data.
        eps: the radius of a named attack's ball; None for that of the data set's recipe (8/255 but for digits).
        attacks: for the worst case, beside that one: as in ``evaluate``.
        evaluation: what ``evaluate`` found on these models and images, or the folder where it is: its worst case is
            taken, and its adversarial images where it kept them.
        layers: names of layers to measure, or patterns such as ``layer4.*`` (see ``hooks.layers_named``), for all
            networks or by label; None for the penultimate layer of each.
        eps_sweep: further radii at which to measure alignment under the attack that makes the adversarial data.
        step_sweep: numbers of steps after which to measure it along a run of that attack, which is PGD then.
        images: how many images of the test part to use, class shares kept; None for all.
        methods: label -> standard, at, cifs or cas, for networks whose checkpoints do not say so.
        seed: of the choice of images, the attacks' random starts and the bootstrap.
        replicates, level: of the bootstrap over images behind all intervals.
        threshold: share of an image's largest channel above which a channel is active.
        thumbnails: keep small pictures of the images that excite the channels most, natural and adversarial: at most
            64 pixels a side, and 4 MB for the natural ones and for each network's adversarial ones.
        batch_size: images that are read at a time; results do not depend on it.
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
    subjects = load_models(models, methods or {}, device)
    chosen = layers_by_label(layers, [subject.label for subject in subjects])
    dataset = as_dataset(data)
    part = (
        dataset.test
        if images is None
        else dataset.test.subset(sample_stratified(dataset.test.labels, images, seed))
    )
    if reserved := {"all", "across"} & set(dataset.classes):
        raise UserError(
            f"A class cannot be called {min(reserved)!r}, as the tables' summary rows are: rename it."
        )
    for subject in subjects:
        subject.check(dataset)
    dataset = widen_classes(dataset, [subject.network for subject in subjects])
    earlier = None if evaluation is None else Earlier.of(evaluation, subjects, part)
    attack = _attack(attack, eps if earlier is None or eps is not None else earlier.eps, dataset)
    if earlier is not None:
        earlier.check(attack)
    further, weights = (
        strengths(attack, eps_sweep, step_sweep),
        bootstrap_weights(len(part), replicates, seed),
    )
    compared = []
    passes = len(part) * len(subjects) * (1 + len(further))
    with tqdm(total=passes, unit="img", disable=not (progress and is_first())) as bar:
        for subject in subjects:
            bar.set_description(subject.label)
            measured = partial(
                measure,
                subject.network,
                part,
                len(dataset.classes),
                layers=chosen[subject.label],
                weights=weights,
                threshold=threshold,
                batch_size=batch_size,
                seed=seed,
                progress=bar.update,
            )
            made = earlier.images(subject, attack) if earlier else None
            measurement = measured(attack=attack, made=made, pictures=thumbnails)
            masked = earlier.masked(subject) if earlier else None
            compared.append(
                Compared(
                    subject, measurement, masked, points(further, partial(measured, pictures=False))
                )
            )
    if earlier is None:
        every = (attack, *listed(attacks))
        _, norm = ball_of(every, attack.eps, norm_of(attack))
        plan = Plan(attacks=every, eps=attack.eps, norm=norm, seed=seed, batch_size=batch_size)
        _attack_further(compared, part, len(dataset.classes), plan, progress)
    else:
        for item in compared:
            item.measurement.hits.update(earlier.stood(item.subject))
    settings = {
        "attack": attack_name(attack),
        "eps": attack.eps,
        "attacks": [attack_name(one) for one in listed(attacks)]
        if earlier is None
        else earlier.attacks,
        "eps_sweep": list(eps_sweep),
        "step_sweep": list(step_sweep),
        "seed": seed,
        "replicates": replicates,
        "level": level,
        "threshold": threshold,
        "batch_size": batch_size,
    }
    return assemble(compared, dataset, part, settings)


def _attack_further(
    compared: Sequence[Compared], part: Split, classes: int, plan: Plan, shown: bool
) -> None:
    """Take the worst case over the plan's attacks as well; the one that has been made is not made again."""
    known = {item.label: item.measurement.hits for item in compared}
    subjects = [item.subject for item in compared]
    found = outcomes(subjects, part, classes, plan, Progress(None, {}), known=known, shown=shown)
    for item in compared:
        item.measurement.hits.update(found[item.label].hits)


def _attack(attack: str | Attack, eps: float | None, dataset: Dataset) -> Attack:
    if not isinstance(attack, str):
        if eps is not None:
            raise UserError("An attack that is given as such has its own eps: set it there.")
        if not callable(attack) or not hasattr(attack, "eps"):
            raise UserError(
                "An attack is a name such as 'pgd-20', or an object such as cs.PGD(): callable, with an eps."
            )
        ball_of([attack], attack.eps, norm_of(attack))
        return attack
    norm = "2" if attack.endswith("-l2") else "inf"
    return parse_attack(attack, eps=default_eps(dataset.name, norm) if eps is None else eps)
