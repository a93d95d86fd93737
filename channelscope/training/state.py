"""Where a training run stands between two epochs."""

from dataclasses import dataclass, field
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from channelscope import distributed
from channelscope.data import MemorySplit, Split
from channelscope.errors import UserError
from channelscope.files import atomic_write
from channelscope.objectives import TrainingLoss
from channelscope.reading import regular
from channelscope.training.job import Job
from channelscope.weights import Checkpoint, build, check_history, is_finite, log_columns
from channelscope.weights.tensors import load_tensors, save_tensors


class Diverged(UserError):
    """A run whose loss or weights are no longer numbers; every one of its processes knows."""


class Minimised(nn.Module):
    """A network and the loss by which it is trained, as one module: what data parallelism wraps."""

    def __init__(self, network: nn.Module, loss: TrainingLoss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Give the loss per image."""
        return self.loss(self.network, x, x_adv, y)


@dataclass
class State:
    """Where a run stands.

    Args:
        network: what is trained.
        minimised: the network with its loss, over all processes.
        optimizer, scaler: of the weights; of the loss, for half precision.
        average: the average of the weights, if the recipe asks for one.
        train, val: the images, on the network's device as the bytes that they are, unless they are streamed.
        device: where the network is.
        history: a row for each complete epoch.
        best: the weights of the best one.
    """

    network: nn.Module
    minimised: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    train: Split
    val: Split
    device: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, job: Job, device: str) -> Self:
        """Begin a run, unless there is something at its end or on its way already."""
        for path in (job.out, job.partial, job.log):
            if path.exists():
                raise UserError(
                    f"{path} exists: choose another --out, go on with --resume, or delete it first."
                )
        distributed.barrier()  # all have looked before one writes
        return cls._new(job, device)

    @classmethod
    def take_up(cls, job: Job, device: str) -> Self | None:
        """Go on after the last complete epoch of a run of the same settings; None if it has reached its end."""
        if not job.partial.exists():
            if not job.out.exists():
                return cls.fresh(job, device)
            _check_settings(job, Checkpoint.read(job.out).meta.get("settings"), job.out)
            return None
        try:
            regular(job.partial, within=job.partial.parent)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{job.partial} is not ours ({error}): delete it and train again."
            ) from error
        kept = load_tensors(job.partial)
        known = kept.get("meta") if isinstance(kept, dict) else None
        _check_settings(
            job, known.get("settings") if isinstance(known, dict) else None, job.partial
        )
        state = cls._new(job, device)
        try:
            state._load(job, kept)
        except Exception as error:
            raise UserError(f"{job.partial} is damaged: delete it and train again.") from error
        distributed.barrier()
        return state

    def _load(self, job: Job, kept: dict[str, Any]) -> None:
        """Take over what ``keep`` wrote; raises anything where it does not fit."""
        progress = kept["progress"]
        self.network.load_state_dict(progress["network"])
        self.optimizer.load_state_dict(progress["optimizer"])
        self.scaler.load_state_dict(progress["scaler"])
        if self.average is not None:
            self.average.load_state_dict(progress["average"])
        self.history = check_history(kept["meta"]["history"], job.gates)
        if self.history:
            self.best = kept["state"]
            with torch.device("meta"):  # only to learn that the best weights are whole
                build(job.architecture, job.gates).load_state_dict(self.best, assign=True)

    @classmethod
    def _new(cls, job: Job, device: str) -> Self:
        with torch.random.fork_rng(
            devices=[]
        ):  # torch's layers draw from the global generator alone: it is put back
            torch.default_generator.manual_seed(job.seed)
            network = build(job.architecture, job.gates)
        dtype = torch.float64 if job.recipe.engine.precision == "fp64" else torch.float32
        layout = (
            torch.channels_last if torch.device(device).type == "cuda" else torch.preserve_format
        )
        network = distributed.synchronise_batchnorm(
            network.to(device, dtype).to(memory_format=layout)
        )
        minimised: nn.Module = Minimised(network, job.loss)
        if distributed.world_size() > 1:
            minimised = DistributedDataParallel(minimised)
        recipe, half = job.recipe.optimizer, job.recipe.engine.precision == "fp16"
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        scaler = torch.amp.GradScaler(torch.device(device).type, enabled=half)
        average = _average(job, network)
        images = _resident(job.train, device), _resident(job.val, device)
        return cls(network, minimised, optimizer, scaler, average, *images, device)

    def average_begins(self, job: Job, epoch: float) -> bool:
        """Tell whether the weights are averaged at a moment, in epochs from 0."""
        return (
            self.average is not None
            and epoch >= job.recipe.averaging.start * job.recipe.schedule.epochs
        )

    @property
    def chosen(self) -> nn.Module:
        """The network that is validated and kept: the average, once it has begun."""
        return (
            self.average.module
            if self.average is not None and int(self.average.n_averaged)
            else self.network
        )

    def record(self, job: Job, row: dict[str, Any]) -> None:
        """Add an epoch's row and keep the weights if it is the best so far."""
        if not is_finite(self.network.state_dict()) or not is_finite(self.chosen.state_dict()):
            raise Diverged(
                f"The weights are no longer numbers after epoch {row['epoch']}: {self.advice(job)}"
            )
        self.history.append(row)
        scores = [
            (row["val_robust"] if job.adversarial else 0, row["val_natural"])
            for row in self.history
        ]
        best = scores.index(max(scores))  # the first of equals
        if best == len(scores) - 1:
            self.best = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.chosen.state_dict().items()
            }
        for epoch, earlier in enumerate(self.history):
            earlier["best"] = epoch == best

    def advice(self, job: Job) -> str:
        """Say, of a run that cannot go on, what to do and what is left of it."""
        complete = len(self.history)
        best = ", a checkpoint of the best network so far" if complete else ""
        return f"lower the learning rate (the state of epoch {complete} is in {job.partial}{best})."

    def is_stale(self, job: Job) -> bool:
        """Tell whether the validation part has waited for a better epoch as long as the recipe allows."""
        patience = job.recipe.schedule.patience
        waited = next((age for age, row in enumerate(reversed(self.history)) if row["best"]), 0)
        return bool(patience) and waited >= patience

    def keep(self, job: Job) -> None:
        """Write all that is needed to go on, which is a checkpoint of the best network so far too, and the log."""
        if not distributed.is_first():
            return
        content = job.checkpoint(self.best or self.network.state_dict(), self.history).content()
        content["progress"] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        save_tensors(content, job.partial)
        with atomic_write(job.log) as temporary:
            pd.DataFrame(self.history, columns=log_columns(job.gates)).to_csv(
                temporary, index=False
            )


def _resident(part: Split, device: str) -> Split:
    """Put images on the device, unless they would take more than half of what is free of a GPU's memory."""
    if torch.device(device).type == "cuda" and isinstance(part, MemorySplit):
        free, _ = torch.cuda.mem_get_info(device)
        if part.images.nbytes > free / 2:
            return part
    return part.to(device)


def _average(job: Job, network: nn.Module) -> AveragedModel | None:
    averaging = job.recipe.averaging
    if averaging.kind == "none":
        return None
    how = get_ema_multi_avg_fn(averaging.decay) if averaging.kind == "ema" else None
    return AveragedModel(network, multi_avg_fn=how)


def _check_settings(job: Job, kept: Any, path: Any) -> None:
    if kept == job.settings:
        return
    different = [
        key
        for key in job.settings
        if not isinstance(kept, dict) or kept.get(key) != job.settings[key]
    ]
    raise UserError(
        f"{path} comes from a run of other settings ({', '.join(different)}): repeat those, or choose another --out."
    )
