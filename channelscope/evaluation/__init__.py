"""Evaluate the robustness of networks: strong and adaptive attacks, worst case per image, warnings of masking."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelscope.attacks import Attack, Norm, attack_name
from channelscope.attacks.suites import SUITES, ball_of
from channelscope.data import as_dataset, sample_stratified
from channelscope.distributed import barrier, is_first
from channelscope.errors import UserError
from channelscope.evaluation.outcomes import Plan, outcomes
from channelscope.evaluation.progress import Gallery, Progress
from channelscope.evaluation.results import Evaluation, check_folder
from channelscope.evaluation.rows import assemble
from channelscope.locks import lock_path
from channelscope.study.models import Network, load_models, widen_classes
from channelscope.training import default_eps

__all__ = ["SUITES", "Evaluation", "check_folder", "evaluate", "listed"]


def evaluate(
    models: Mapping[str, Network] | Sequence[str | Path] | nn.Module,
    data: Any = "digits",
    *,
    attacks: str | Attack | Sequence[str | Attack] = "standard",
    eps: float | None = None,
    norm: Norm = "inf",
    eps_sweep: Sequence[float] = (),
    images: int | None = None,
    checks: int = 128,
    cascade: bool = False,
    save_adversarial: bool = False,
    out: Path | str | None = None,
    methods: Mapping[str, str] | None = None,
    seed: int = 0,
    level: float = 0.95,
    batch_size: int = 128,
    device: str = "cpu",
    command: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Attack networks on the test part of a data set, and tell how robust they are and whether that can be believed.

    Every attack is given the images that the network classifies correctly; the worst case is taken per image over all
    attacks. Attacks see through gates: gradients pass through their masks, but where an attack's name ends in
    ``:detached``. Then the network is checked for signs of gradient masking; an attack by which a check found what
    the others had not is run on all images that are left, and counts.

    Where several processes are joined (see ``distributed``), they share the images, and each ends with the result.
    It is the same to the byte as that of one process, if each has as many threads (see ``data.blocks``).

    Args:
        models: label -> network, or path of a checkpoint; a sequence of paths, whose stems become the labels; or one
            network. A network takes images in [0, 1] and is used in eval mode, where it is, and left as found.
        data: a data set, its name, or what else ``data.as_dataset`` takes.
        attacks: suites (see ``SUITES``), short names (see ``attacks.parse``) and attacks as such, one or several.
        eps: the radius; None for that of the attacks as such, or else of the data set's recipe (8/255 but for digits),
            of the L2 norm 0.5.
        norm: "inf" or "2", of named attacks.
        eps_sweep: further radii at which the worst case over the named attacks is taken.
        images: how many images of the test part to use, class shares kept; None for all.
        checks: how many images the checks for gradient masking are made on; 0 for no checks.
        cascade: give each attack only the images that all before it have left: much faster, the worst case is the
            same, and ``robust`` is the accuracy after this attack and those before it.
        save_adversarial: keep the adversarial images in ``out``. Every image is then attacked to the end, broken or
            not, as images for an analysis have to be; what chance decides may come out otherwise.
        out: folder to write. An evaluation that was stopped goes on when it is called again with the same arguments:
            what it has so far is in ``out`` with ".partial" after it.
        methods: label -> how the network was trained, where its checkpoint does not say so.
        seed: of the choice of images and of the attacks.
        level: of the intervals, which are Wilson's.
        batch_size: images that are read at a time; results do not depend on it.
        device: where checkpoints are run.
        command: what was typed, for the record.
        progress: show a progress bar.

    Raises:
        UserError: for models, data, attacks or settings that do not fit together.
    """
    if not 0 < level < 1 or min(batch_size, 1 if images is None else images) < 1 or checks < 0:
        raise UserError(
            "An evaluation needs a level between 0 and 1, an image and no negative number of checks."
        )
    if torch.is_inference_mode_enabled():
        raise UserError("Attacks need gradients: call evaluate outside of torch.inference_mode.")
    if not listed(attacks):
        raise UserError(
            f"An evaluation needs at least one attack: name a suite ({', '.join(SUITES)}) or attacks."
        )
    if save_adversarial and out is None:
        raise UserError("Adversarial images are kept in a folder: name it with out, or --out.")
    subjects, dataset = load_models(_labelled(models), methods or {}, device), as_dataset(data)
    for subject in subjects:
        subject.check(dataset)
    dataset = widen_classes(dataset, [subject.network for subject in subjects])
    part = (
        dataset.test
        if images is None
        else dataset.test.subset(sample_stratified(dataset.test.labels, images, seed))
    )
    eps, norm = ball_of(listed(attacks), eps, norm)
    plan = Plan(
        attacks=listed(attacks),
        eps=default_eps(dataset.name, norm) if eps is None else eps,
        norm=norm,
        eps_sweep=tuple(eps_sweep),
        checks=int(checks),
        cascade=bool(cascade),
        seed=seed,
        batch_size=batch_size,
    )
    settings = plan.described() | {"level": level, "save_adversarial": save_adversarial}
    exact = [repr(one) if is_dataclass(one) else attack_name(one) for one in plan.attacks]
    known = {
        "models": {s.label: s.digest for s in subjects},
        "data": part.fingerprint(),
        "exact": exact,
        **settings,
    }
    folder = None if out is None else Path(out).resolve()
    if folder is not None:
        check_folder(folder)
    partial = folder and folder.with_name(f"{folder.name}.partial")
    gallery = (
        Gallery(partial / "adversarial", (len(part), *part.image_shape))
        if partial and save_adversarial
        else None
    )
    with lock_path(folder, partial) if folder and partial else nullcontext():
        barrier()  # what a kill left is put right before any process looks
        state = Progress(partial, known)
        barrier()  # all have looked before one writes
        found = outcomes(subjects, part, len(dataset.classes), plan, state, gallery, shown=progress)
        result = assemble(subjects, found, dataset, part, settings | {"command": command})
        if folder is not None:
            if is_first():
                result.save(folder, adversarial=gallery.folder if gallery else None)
            barrier()
            state.remove()
    return result


def listed(attacks: str | Attack | Sequence[str | Attack]) -> tuple[str | Attack, ...]:
    """Give one or several attacks as several."""
    return (
        (attacks,)
        if isinstance(attacks, str) or not isinstance(attacks, Sequence)
        else tuple(attacks)
    )


def _labelled(models: Any) -> Any:
    return {type(models).__name__: models} if isinstance(models, nn.Module) else models
