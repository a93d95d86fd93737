"""The frames of a film: the networks that training runs kept, epoch by epoch."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from channelscope.errors import UserError
from channelscope.weights import Checkpoint

Runs = Mapping[str, Path | str] | Sequence[Path | str] | Path | str
Frames = Mapping[str, tuple[str, int]]  # a network's label -> its run and epoch

_FEWEST = 2


def read_frames(runs: Runs) -> tuple[dict[str, Checkpoint], dict[str, tuple[str, int]]]:
    """Read the kept epochs of training runs: the networks, and the run and epoch of each.

    The run's checkpoint itself, in half precision as kept epochs are, stands for its own epoch
    where that was not kept; of a run that has not ended, the best network so far. The last network
    of a run has the whole training log.

    Args:
        runs: label -> checkpoint of a run that was trained with ``keep_epochs``; or several
            checkpoints, or one, whose stems become the labels.

    Raises:
        UserError: for labels or files that do not fit.
    """
    networks: dict[str, Checkpoint] = {}
    frames: dict[str, tuple[str, int]] = {}
    for run, path in _label(runs).items():
        for epoch, checkpoint in _read_run(path).items():
            label = f"{run} epoch {epoch}"
            if label in networks:
                raise UserError(f"runs: {label!r} may be of two runs: give them other labels.")
            networks[label], frames[label] = checkpoint, (run, epoch)
    return networks, frames


def _label(runs: Runs) -> dict[str, Path]:
    if isinstance(runs, str | Path):
        runs = [runs]
    if not isinstance(runs, Mapping):
        if not all(isinstance(path, str | Path) for path in runs):
            raise UserError("runs: give paths of checkpoints, or {label: path}.")
        labels = [Path(path).stem for path in runs]
        if len(set(labels)) < len(labels):
            raise UserError("runs: two have the same file name: give each its own label.")
        runs = dict(zip(labels, runs, strict=True))
    if not runs:
        raise UserError("runs: there is none: name at least one checkpoint.")
    if unprintable := [label for label in runs if not label.isprintable()]:
        raise UserError(
            f"runs: the label {unprintable[0]!r} has characters that cannot be printed: choose "
            "another."
        )
    return {label: Path(path) for label, path in runs.items()}


def _read_run(path: Path) -> dict[int, Checkpoint]:
    """Read a run's networks by epoch, the last with the whole log."""
    networks = {epoch: Checkpoint.read(file) for epoch, file in _list_files(path).items()}
    if not networks:
        raise UserError(
            f"runs: {path} has no kept epochs ({path.name}.epoch-N beside it): train it with "
            "--keep-epochs N."
        )
    history = networks[max(networks)].meta.get("history", [])
    final = next((file for file in (path, Path(f"{path}.partial")) if file.exists()), None)
    if final is not None:
        checkpoint = Checkpoint.read(final)
        for epoch, kept in networks.items():
            if kept.meta.get("settings") != checkpoint.meta.get("settings"):
                raise UserError(
                    f"runs: {path}.epoch-{epoch} is of a run of other settings than {final.name}: "
                    "delete it."
                )
        history = max(history, checkpoint.meta.get("history", []), key=len)
        kept_epoch = next((row["epoch"] for row in history if row["best"]), None)
        if kept_epoch is not None:
            networks.setdefault(int(kept_epoch), _round(checkpoint))
    if len(networks) < _FEWEST:
        raise UserError(f"runs: {path} has one kept epoch alone: train it with --keep-epochs 1.")
    last = networks[max(networks)]
    networks[max(networks)] = dataclasses.replace(last, meta=last.meta | {"history": history})
    return dict(sorted(networks.items()))


def _round(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint as it is read after it was kept in half precision."""
    state = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in checkpoint.to_half().state.items()
    }
    return dataclasses.replace(checkpoint, state=state)


def _list_files(path: Path) -> dict[int, Path]:
    """Return the files of a run's kept epochs, in order."""
    pattern = re.compile(re.escape(path.name) + r"\.epoch-(\d+)")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    matches = {file: pattern.fullmatch(file.name) for file in siblings}
    files = {int(match[1]): file for file, match in matches.items() if match is not None}
    return dict(sorted(files.items()))
