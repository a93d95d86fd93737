"""The state of a training run between two epochs: begun, resumed, saved."""

from dataclasses import replace
from glob import escape
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from channelscope import distributed
from channelscope.data import MemorySplit, Split
from channelscope.devices import fork_rng
from channelscope.errors import UserError
from channelscope.files import atomic_write
from channelscope.objectives import TrainingLoss
from channelscope.reading import check_regular
from channelscope.training.hbar import HBaR
from channelscope.training.job import Job
from channelscope.training.precision import choose_layout
from channelscope.weights import Checkpoint, build, check_history, is_finite
from channelscope.weights.tensors import load_tensors, save_tensors

Row = dict[str, Any]  # the measurements of an epoch, by the columns of the log


class Diverged(UserError):
    """The loss or the weights are no longer numbers; raised in every process of the run."""


class LossModule(nn.Module):
    """A network and its training loss as one module, which data parallelism wraps."""

    def __init__(self, network: nn.Module, loss: TrainingLoss | HBaR) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the loss per image."""
        return self.loss(self.network, x, x_adv, y)


class State:
    """The state of a run, ``job``, on a device: at first with the weights that it starts with."""

    def __init__(self, job: Job, device: str) -> None:
        recipe, averaging = job.recipe.optimizer, job.recipe.averaging
        # Initial weights come from torch's global generator: its state is restored afterwards.
        with fork_rng(seed=job.seed), torch.device("cpu"):
            network = build(job.architecture, job.gates)
        if job.start is not None:
            job.start.load_into(network)
        layout = choose_layout(network, device)
        network = network.to(device, job.dtype).to(memory_format=layout)
        network = distributed.synchronise_batchnorm(network)
        loss: nn.Module = LossModule(network, job.loss)
        if distributed.world_size() > 1:
            loss = DistributedDataParallel(loss)
        self.job, self.device = job, device
        self.network = network
        self.loss = loss  # the network with its loss, over all processes
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        half = job.precision == "fp16"
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=half)
        self.average: AveragedModel | None = None
        if averaging.kind != "none":
            ema = get_ema_multi_avg_fn(averaging.decay) if averaging.kind == "ema" else None
            self.average = AveragedModel(network, multi_avg_fn=ema)
        self.train = _move(job.train, device)
        self.val = None if job.val is None else _move(job.val, device)
        self.history: list[Row] = []  # a row for each complete epoch
        self.best: dict[str, Tensor] = {}  # the weights of the best epoch
        # Of WAT: the losses of each class and of all, summed over the epochs.
        self.class_costs = torch.zeros(len(job.data.classes) + 1, dtype=torch.float64, device="cpu")

    @classmethod
    def start(cls, job: Job, device: str) -> Self:
        """Begin a run.

        Raises:
            UserError: where one of its files exists.
        """
        refuse_existing(job)
        distributed.barrier()  # all processes have looked before one writes
        return cls(job, device)

    @classmethod
    def resume(cls, job: Job, device: str) -> Self | None:
        """Go on after the last complete epoch of a run, or begin one; None if it is complete.

        Raises:
            UserError: for a run of other settings, and a damaged file.
        """
        if not job.partial.exists():
            if not job.out.exists():
                return cls.start(job, device)
            _check_settings(job, Checkpoint.read(job.out).meta, job.out)
            return None
        try:
            check_regular(job.partial, within=job.partial.parent)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{job.partial} was not written by channelscope ({error}): delete it and train "
                "again."
            ) from error
        content = load_tensors(job.partial)
        meta = content.get("meta") if isinstance(content, dict) else None
        _check_settings(job, meta, job.partial)
        try:
            state = cls(_keep_precision(job, content["meta"]), device)
            state._load(content)
        except Exception as error:
            raise UserError(f"{job.partial} is damaged: delete it and train again.") from error
        distributed.barrier()
        return state

    def _load(self, content: dict[str, Any]) -> None:
        """Take over what ``save`` wrote; raises any error where it does not fit."""
        progress = content["progress"]
        self.network.load_state_dict(progress["network"])
        self.optimizer.load_state_dict(progress["optimizer"])
        self.scaler.load_state_dict(progress["scaler"])
        if self.average is not None:
            self.average.load_state_dict(progress["average"])
        self.class_costs.copy_(progress["class_costs"])
        self.history = check_history(content["meta"]["history"], self.job.log_columns)
        if self.history:
            self.best = content["state"]
            with torch.device("meta"):  # only to check that the best weights are complete
                network = build(self.job.architecture, self.job.gates)
                network.load_state_dict(self.best, assign=True)

    def save(self) -> None:
        """Write what is needed to resume, also a checkpoint of the best epoch, and the log."""
        if not distributed.is_first():
            return
        weights = self.best or self.network.state_dict()
        content = self.job.make_checkpoint(weights, self.history).content()
        content["progress"] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "class_costs": self.class_costs,
        }
        save_tensors(content, self.job.partial)
        table = pd.DataFrame(self.history, columns=self.job.log_columns)
        with atomic_write(self.job.log) as temporary:
            table.to_csv(temporary, index=False)

    @property
    def class_weights(self) -> Float[Tensor, " k"] | None:
        """The weight of each class in the loss of this epoch; None where classes weigh the same.

        WAT (Li & Liu, AAAI 2023, arXiv 2302.04025; its release) weighs k + 1 experts, the classes
        and their mean, exponentially (Hedge), which leaves no regret in the long run:

            w = k softmax(eta C),    C_i = sum over the epochs so far of the cost of i,
            loss = sum_i w_i loss_i + w_mean loss_mean,

        where loss_i is the mean over the images of class i. So an image of class i weighs
        w_i + w_mean. A cost is the loss on attacked validation images (``engine.reweigh_classes``).
        In the first epoch all w are 1, as in the release.
        """
        eta, classes = self.job.recipe.loss.eta, len(self.class_costs) - 1
        if eta is None:
            return None
        if not self.history:
            return torch.full((classes,), 2.0, dtype=torch.float64, device="cpu")
        weights = classes * (eta * self.class_costs).softmax(0)
        return weights[:-1] + weights[-1]

    @property
    def candidate(self) -> nn.Module:
        """The network that is validated and saved: the average, once it has begun."""
        if self.average is not None and int(self.average.n_averaged):
            return self.average.module
        return self.network

    def is_averaging(self, epoch: float) -> bool:
        """Whether the weights are averaged at a moment, in epochs from 0."""
        start = self.job.recipe.averaging.start * self.job.recipe.schedule.epochs
        return self.average is not None and epoch >= start

    def update_average(self, kind: str, epoch: float) -> None:
        """Add the present weights to the average, if it is of this kind and has begun."""
        is_kind = self.job.recipe.averaging.kind == kind
        if self.average is not None and is_kind and self.is_averaging(epoch):
            self.average.update_parameters(self.network)

    def record(self, row: Row) -> None:
        """Add an epoch's row, and keep its weights if it is the best so far.

        Raises:
            Diverged: for weights that are no longer numbers.
        """
        candidate = self.candidate.state_dict()
        if not is_finite(self.network.state_dict()) or not is_finite(candidate):
            raise Diverged(
                f"The weights are no longer numbers after epoch {row['epoch']}: {self.advice()}"
            )
        self.history.append(row)
        best = self._find_best()
        if best == len(self.history) - 1:
            self.best = {name: _copy(value) for name, value in candidate.items()}
        for epoch, earlier in enumerate(self.history):
            earlier["best"] = epoch == best

    def _find_best(self) -> int:
        """Return the number of the epoch to keep, from 0: of equals the first, or the last."""
        if self.job.keeps_last:
            return len(self.history) - 1
        scores = [
            (row["val_robust"] if self.job.adversarial else 0, row["val_natural"])
            for row in self.history
        ]
        return scores.index(max(scores))

    def save_epoch(self) -> None:
        """Write a checkpoint of the last epoch besides, in half precision."""
        if not distributed.is_first():
            return
        history = [{**row, "best": row is self.history[-1]} for row in self.history]
        checkpoint = self.job.make_checkpoint(self.candidate.state_dict(), history)
        checkpoint.to_half().save(self.job.epoch_file(len(history)))

    def is_out_of_patience(self) -> bool:
        """Whether the best epoch is as many epochs ago as the recipe allows."""
        patience = self.job.recipe.schedule.patience
        waited = next((age for age, row in enumerate(reversed(self.history)) if row["best"]), 0)
        return 0 < patience <= waited

    def advice(self) -> str:
        """Return what to do where the run cannot go on, and what is left of it."""
        epochs = len(self.history)
        best = ", a checkpoint of the best network so far" if epochs else ""
        return (
            f"lower the learning rate (the state of epoch {epochs} is in {self.job.partial}{best})."
        )


def _copy(value: Tensor) -> Tensor:
    """Copy weights as files have them: on the CPU, one channel after the other."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def refuse_existing(job: Job) -> None:
    """Refuse to write over a file of an earlier run.

    Raises:
        UserError: where one of the run's files exists.
    """
    of_epochs = sorted(job.out.parent.glob(f"{escape(job.out.name)}.epoch-*"))
    for path in (job.out, job.partial, job.log, *of_epochs):
        if path.exists():
            raise UserError(
                f"{path} exists: choose another --out, go on with --resume, or delete it first."
            )


def _keep_precision(job: Job, meta: dict[str, Any]) -> Job:
    """Return the run with the precision that it began with; raises anything where none fits."""
    if job.recipe.engine.precision != "auto":
        return job
    speeds = meta["engine"]["images_per_second"]
    return replace(job, speeds={name: float(speeds[name]) for name in ("fp32", "bf16")})


def _move(split: Split, device: str) -> Split:
    """Move images to a device, unless they would take more than half of a GPU's free memory."""
    if torch.device(device).type == "cuda" and isinstance(split, MemorySplit):
        free, _ = torch.cuda.mem_get_info(device)
        if split.images.nbytes > free / 2:
            return split
    return split.to(device)


def _check_settings(job: Job, meta: Any, path: object) -> None:
    settings = meta.get("settings") if isinstance(meta, dict) else None
    if settings == job.settings:
        return
    saved = settings if isinstance(settings, dict) else {}
    different = [key for key, value in job.settings.items() if saved.get(key) != value]
    raise UserError(
        f"{path} comes from a run of other settings ({', '.join(different)}): repeat those, or "
        "choose another --out."
    )
