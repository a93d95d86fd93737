"""The questions that a study answers: compare, evaluate, intervene, relevance, damage, film."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict, Unpack

from channelscope.analyses.base import Kind
from channelscope.attacks import Attack, AttackLike, Norm
from channelscope.distributed import barrier, is_first
from channelscope.errors import UserError, suggest
from channelscope.gallery import FORMATS, list_formats
from channelscope.locks import lock_path
from channelscope.result import Result, check_folder
from channelscope.study.account import BOUND
from channelscope.study.damage import Repair
from channelscope.study.film import Runs, read_frames
from channelscope.study.models import Models
from channelscope.study.store import check_run_folder, remove_run_folder
from channelscope.study.study import Attacks, Scorers, Study, Suppression, list_attacks
from channelscope.study.suppression import RelevantTo


class Options(TypedDict, total=False):
    """What all questions have in common; see ``Study`` for each.

    ``out`` is a folder to save the result to, with its main figures, or ``all_figures``, as .pdf,
    .png and .svg, or in the ``formats`` that are named. A run that was killed goes on when it is
    asked for again: what it has so far is in ``out`` with ".partial" after it, or in ``folder``,
    which stays. ``command`` is what was typed, for the record.
    """

    output: int | str | None
    images: int | None
    methods: Mapping[str, str] | None
    seed: int
    replicates: int
    level: float
    batch_size: int
    block: int | None
    device: str
    folder: Path | str | None
    progress: bool
    out: Path | str | None
    all_figures: bool
    formats: Sequence[str]
    command: str | None


def compare(
    models: Models,
    data: Any = None,
    *,
    attack: str | Attack | None = None,
    attacks: Attacks = "adaptive",
    eps: float | None = None,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    eps_sweep: Sequence[float] = (),
    step_sweep: Sequence[int] = (),
    checks: int = 0,
    threshold: float = 0.01,
    thumbnails: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[Options],
) -> Result:
    """Compare networks channel by channel, and judge the claims of the CIFS paper on them.

    One attack makes the adversarial data on which activations are compared. Robustness, and so
    claim C4, is the worst case per image over this and further attacks, those made for gates among
    them. Networks without gates have as many restarts of PGD in the place of these, as the worst
    case is lower the more attempts it is over. Attacks see through gates: gradients pass through
    their masks.

    Args:
        models: label -> network or path of a checkpoint; or a sequence of paths.
        data: a data set, its name, or what else ``as_dataset`` takes; its test split is used. None
            for the data set that the models were trained on.
        attack: makes the adversarial data; None for the first of ``attacks`` (PGD-20 of a suite).
        attacks: for the worst case: suites, short names or attacks as such.
        eps: the radius of named attacks, in image units; None for the data set's (8/255 but for
            digits).
        layers: names or patterns such as ``layer4.*``; None for each penultimate layer.
        eps_sweep, step_sweep: further radii, and numbers of steps, of ``attack`` at which alignment
            is measured.
        checks: how many images the checks for gradient masking are made on; 0 for no checks.
        threshold: share of an image's largest channel above which a channel is active.
        thumbnails: keep small pictures of the images that excite channels most.
        groups: name -> patterns of labels such as ``at-*``: networks of one method, whose seeds are
            then what varies. Networks whose recipes differ in the seed alone are found without.
        **options: output, images, methods, seed, replicates, level, batch_size, block, device,
            folder, progress, out, formats; see ``Study`` and ``Options``.

    Returns:
        Tables ``activations``, ``alignment``, ``robustness``, ``verdicts`` and more; see
        ``analyses``.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    return _answer(
        "comparison",
        models,
        data,
        options,
        attack=attack,
        attacks=attacks,
        eps=eps,
        layers=layers,
        eps_sweep=eps_sweep,
        step_sweep=step_sweep,
        checks=checks,
        threshold=threshold,
        thumbnails=thumbnails,
        groups=groups,
    )


def evaluate(
    models: Models,
    data: Any = None,
    *,
    attacks: Attacks = "standard",
    eps: float | None = None,
    norm: Norm = "inf",
    eps_sweep: Sequence[float] = (),
    checks: int = 128,
    cascade: bool = False,
    save_adversarial: bool = False,
    **options: Unpack[Options],
) -> Result:
    """Attack networks; say how robust they are, and whether that can be believed.

    Every attack gets the images that the network classifies correctly; the worst case is taken per
    image over all attacks. Beside a network with gates, to which a suite adds attacks made for
    them, those without have as many restarts of PGD. Then the network is checked for signs of
    gradient masking; an attack by which a check found what the others had not runs on all images
    that are left, and counts.

    Args:
        models, data: as in ``compare``.
        attacks: suites (see ``attacks.suites.SUITES``), short names and attacks as such.
        eps, norm: the ball of named attacks; eps None for the data set's (8/255 but for digits; of
            the L2 norm 0.5).
        eps_sweep: further radii at which the worst case over the attacks is taken.
        checks: how many images the checks for gradient masking are made on; 0 for no checks.
        cascade: give each attack only the images that all before it have left: much faster, the
            worst case is the same, and ``robust`` is the accuracy after this attack and those
            before it.
        save_adversarial: keep the adversarial images in ``out``. Every image is then attacked to
            the end, broken or not; what chance decides may come out otherwise.
        **options: as in ``compare``.

    Returns:
        Tables ``attacks``, ``worst_case``, ``robustness``, ``warnings``, ``parts``, ``eps_sweep``.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    if not list_attacks(attacks):
        raise UserError("attacks: none is named: name a suite such as 'standard', or attacks.")
    if save_adversarial and options.get("out") is None and options.get("folder") is None:
        raise UserError("out: adversarial images are kept in a folder: name it.")
    return _answer(
        "evaluation",
        models,
        data,
        options,
        attacks=attacks,
        eps=eps,
        norm=norm,
        eps_sweep=eps_sweep,
        checks=checks,
        cascade=cascade,
        save_adversarial=save_adversarial,
    )


def intervene(
    models: Models,
    data: Any = None,
    *,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    scorers: Scorers = ("gradient",),
    attack: str | Attack = "pgd-20",
    eps: float | None = None,
    fractions: Sequence[float] = (0.125, 0.25, 0.5, 0.75),
    random: int = 3,
    relevant_to: RelevantTo = "answer",
    **options: Unpack[Options],
) -> Result:
    """Suppress channels at test time, the most NR, the most PR or random ones first.

    If the relevance is a true account of what channels do, accuracy lasts when NR channels go
    first, and falls at once when PR ones do; random orders lie between. The area between a scorer's
    curve and the random one ranks the scorers. Whether robust accuracy even rises without the NR
    channels, as the hypothesis behind CIFS has it (Yan et al., ICML 2021, arXiv 2102.05311), is the
    verdict "C4 by intervention".

    The attack sees the intervention: it is made on the network that goes without the channels,
    gates attached. Which channels go depends on the network's own answer for the image at hand,
    attacked or not, as at test time in CIFS: a piecewise constant choice, whose gradient is 0. What
    this hides is made up for by trying the images as well that the same attack makes on the
    untouched network, and which change its answer.

    Args:
        models, data: as in ``compare``. Channels are ranked on images of the validation split, or
            else of the training split, or else on those that are judged (``meta`` says so).
        layers: names or patterns; None for each penultimate layer.
        scorers: names of relevance scorers, or functions of your own
            ``(model, layers, x, y) -> {layer: (n, c)}``.
        attack, eps: the attack and, of a named one, its radius; "joint-sweep" is made for gates.
        fractions: of a layer's channels, in (0, 1): the points of the curves beside none and all.
        random: how many random orders.
        relevant_to: the class whose NR channels an image loses: that which the untouched network
            answers, which anybody knows at test time; or the "label", an oracle, which flatters the
            ranking and every accuracy, so there is no verdict then.
        **options: as in ``compare``; ``images`` is 500 unless named, of those judged and of those
            ranked on.

    Returns:
        Tables ``curves``, ``areas``, ``league``, ``suppression`` and ``verdicts``.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    if not scorers:
        raise UserError("scorers: none is named: give a list such as ['gradient', 'ablation'].")
    options.setdefault("images", 500)
    return _answer(
        "intervention",
        models,
        data,
        options,
        layers=layers,
        scorers=scorers,
        attack=attack,
        attacks=attack,
        eps=eps,
        suppression=Suppression(fractions=fractions, random=random, relevant_to=relevant_to),
    )


def relevance(
    models: Models,
    data: Any = None,
    *,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    scorers: Scorers = ("gradient", "gradient-x-activation", "ablation"),
    **options: Unpack[Options],
) -> Result:
    """Score how relevant channels are to each class, by several scorers, and whether these agree.

        r[k, c] = mean over the images i of class k of the relevance of channel c to k on image i

    Above 0 a channel speaks for the class (PR), below 0 against it (NR). A scorer that does not
    apply to a layer is left out there; ``meta["refused"]`` says why.

    >>> import torch
    >>> from torch import nn
    >>> x, y = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), pool, nn.Linear(8, 3))
    >>> result = relevance({"net": net}, (x, y), layers=["0"], scorers=["gradient"], progress=False)
    >>> result.array("relevance", "relevance", "net", "0", "gradient").shape
    (3, 8)

    Args:
        models, data: as in ``compare``.
        layers: names or patterns; None for each penultimate layer.
        scorers: names of relevance scorers, or functions of your own
            ``(model, layers, x, y) -> {layer: (n, c)}``.
        **options: as in ``compare``; ``replicates`` is 200 unless named.

    Returns:
        Tables ``relevance`` and ``agreement``.

    Raises:
        UserError: for arguments that do not fit together, or where no scorer has any scores.
    """
    if not scorers:
        raise UserError("scorers: none is named: give a list such as ['gradient', 'ablation'].")
    options.setdefault("replicates", 200)
    return _answer("relevance", models, data, options, layers=layers, scorers=scorers)


def damage(
    models: Models,
    data: Any = None,
    *,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    scorers: Scorers = ("gradient",),
    attack: str | AttackLike = "pgd-20",
    eps: float | None = None,
    fractions: Sequence[float] = (0.0625, 0.125, 0.25, 0.5),
    adaptive: bool = False,
    bound: float = BOUND,
    edges: int = 0,
    groups: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[Options],
) -> Result:
    """Account for the damage that an attack does: through which channels does it get through?

    On each image that is right as it is and wrong under attack, the fall of the margin of the label
    over the wrong answer is split among a layer's channels, so that the parts add up: exactly at
    the penultimate layer, below it by integration along the path from adversarial features to
    natural ones (see ``study.account``). Whether the account is true is tested by putting channels
    back, those first that did most damage, beside random ones and the most relevant ones by each
    scorer.

    Gates are attached. Where gates are behind a layer, a second account holds their masks: features
    and masks come back each for itself and have shares of their own. An image whose account does
    not add up to its damage within the bound is refused, as where a gate's mask jumps;
    ``completeness`` says how many are.

    Args:
        models, data: as in ``compare``.
        layers: names or patterns; None for each penultimate layer.
        scorers: relevance scorers whose rankings are tried too: names, or functions of your own
            ``(model, layers, x, y) -> {layer: (n, c)}``; none for the account and chance alone.
        attack, eps: the attack and, of a named one, its radius.
        fractions: of a layer's channels, in (0, 1), that are put back, beside all.
        adaptive: attack anew the network in which the channels are back, as an attacker would who
            knows of the repair.
        bound: of an account's completeness error, a share of the damage.
        edges: number of images on which it is traced, and tried by cutting, through which channels
            of a layer the damage reaches which of the next measured one; 0 for none. The price is a
            backward pass for each channel of each layer but the first.
        groups: as in ``compare``.
        **options: as in ``compare``; ``images`` is 1000 unless named.

    Returns:
        Tables ``damage``, ``ledger``, ``kinds``, ``concentration``, ``completeness``, ``repairs``,
        ``repair_areas``, ``edges``, ``edge_cuts``, ``faults`` and ``verdicts``.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    options.setdefault("images", 1000)
    return _answer(
        "damage",
        models,
        data,
        options,
        layers=layers,
        scorers=scorers,
        attack=attack,
        attacks=(),
        eps=eps,
        groups=groups,
        thumbnails=False,
        repair=Repair(fractions=fractions, adaptive=adaptive, bound=bound, edges=edges),
    )


def film(
    runs: Runs,
    data: Any = None,
    *,
    attack: str | AttackLike = "pgd-10",
    eps: float | None = None,
    threshold: float = 0.01,
    **options: Unpack[Options],
) -> Result:
    """Film trainings: measure the network of every kept epoch on the same images.

    A run is a checkpoint that was trained with ``keep_epochs``; its kept epochs lie beside it. Of
    each: accuracy, alignment (C1), NR mass and NR part of the logit's fall (C2, C5), rank alignment
    of activation and relevance (C3), accuracy under a cheap attack (C4), kinds of damage and
    cross-class features at the penultimate layer, probes and masks of gates; beside them accuracy
    in training and on validation images, from the log. Then where a curve jumps, how far robust
    accuracy falls from the best epoch to the last (robust overfitting), how runs differ, and the
    verdict "Cross-class". See ``analyses.film``.

    Args:
        runs: label -> path of a run's checkpoint; or several paths, or one. A run that has not
            ended is filmed as far as it is.
        data: as in ``compare``: the test split is used, not the images that chose the best epoch.
        attack, eps: the attack and, of a named one, its radius.
        threshold: as in ``compare``.
        **options: as in ``compare``; ``images`` is 500 unless named.

    Returns:
        Tables ``film``, ``film_changes``, ``film_overfitting``, ``film_differences`` and
        ``verdicts``.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    options.setdefault("images", 500)
    networks, frames = read_frames(runs)
    return _answer(
        "film",
        networks,
        data,
        options,
        attack=attack,
        attacks=(),
        eps=eps,
        threshold=threshold,
        thumbnails=False,
        frames=frames,
    )


def draw_figures(
    folder: Path | str,
    *,
    style: str | None = None,
    wide: bool = False,
    latex: bool = False,
    title: bool = False,
    notes: bool = False,
    height: float | None = None,
    models: Sequence[str] = (),
    labels: Sequence[str] = (),
    layers: Sequence[str] = (),
    classes: Sequence[str] = (),
    only: Sequence[str] = (),
    all_figures: bool = False,
    formats: Sequence[str] = FORMATS,
    progress: bool = True,
) -> Result:
    """Draw the figures of a saved result again, beside its tables, and return the result.

    Args:
        folder: that ``Result.save`` wrote.
        style, wide, latex, title, notes, height: how figures look, see ``Result.draw``.
        models, labels, layers, classes: what is drawn, likewise.
        only, all_figures, formats, progress: likewise.

    Raises:
        UserError: for a folder without a result, or settings that do not fit.
    """
    with lock_path(Path(folder).resolve()):
        result = Result.load(folder)
        result.draw(
            folder,
            style=style,
            wide=wide,
            latex=latex,
            title=title,
            notes=notes,
            height=height,
            models=models,
            labels=labels,
            layers=layers,
            classes=classes,
            only=only,
            all_figures=all_figures,
            formats=formats,
            progress=progress,
        )
    return result


def _answer(kind: Kind, models: Models, data: Any, options: Options, **arguments: Any) -> Result:
    """Make a study, run its analyses, and save the result where that is asked for."""
    if unknown := options.keys() - Options.__annotations__.keys():
        name = min(unknown)
        known = [*arguments, *Options.__annotations__]
        raise UserError(f"There is no argument {name!r}: see the help.{suggest(name, known)}")
    settings: dict[str, Any] = {**options}
    command = settings.pop("command", None)
    out = settings.pop("out", None)
    folder = settings.pop("folder", None)
    formats = list_formats(settings.pop("formats", FORMATS))
    all_figures = bool(settings.pop("all_figures", False))
    if out is None:
        with lock_path(Path(folder).absolute()) if folder else nullcontext():
            return Study(models, data, kind=kind, folder=folder, **settings, **arguments).run()
    target = Path(out).resolve()
    partial = target.with_name(f"{target.name}.partial")
    check_folder(target)
    check_run_folder(Path(folder) if folder else partial)
    with lock_path(target, partial):
        study = Study(models, data, kind=kind, folder=folder or partial, **settings, **arguments)
        result = study.run()
        result.meta["command"] = command
        adversarial = study.adversarial_files()  # which all processes open together
        if is_first():
            shown = bool(settings.get("progress", True))
            result.save(
                target,
                adversarial=adversarial,
                all_figures=all_figures,
                formats=formats,
                progress=shown,
            )
        barrier()
        if is_first() and not folder:
            remove_run_folder(partial)
    return result
