"""What a training run is to do, and where it stands between two epochs."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn

from channelscope.attacks import PGD
from channelscope.checkpoints import LOG, Checkpoint, Gate, build, check_history, is_finite, load_tensors, save_tensors
from channelscope.data import Dataset, Split
from channelscope.errors import UserError
from channelscope.files import check_writable, remove_leftovers, replacing
from channelscope.models import Architecture
from channelscope.objectives import Joint, Objective, cross_entropy
from channelscope.training.recipes import METHODS, Recipe


@dataclass(frozen=True)
class Job:
    """What a run is to do; two runs of equal settings end with equal weights."""

    method: str
    recipe: Recipe
    data: Dataset
    out: Path
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"A seed lies between 0 and {2**31 - 1}, not at {self.seed}.")
        check_writable(self.out)
        self.data.require_train()
        if self.data.val is None or not len(self.data.val):
            raise UserError(f"{self.data.name} has no validation images, by which the best epoch is chosen.")
        if self.recipe.crop >= min(self.data.image_size):
            raise UserError(f"A crop of {self.recipe.crop} pixels is too large for images of {self.data.image_size}.")

    @cached_property
    def train(self) -> Split:
        return self.data.require_train()

    @property
    def val(self) -> Split:
        assert self.data.val is not None  # checked on construction
        return self.data.val

    @cached_property
    def architecture(self) -> Architecture:
        """The backbone, normalising by the training part's mean and standard deviation."""
        sums = [(x.sum((0, 2, 3)), x.square().sum((0, 2, 3))) for x, _ in self.train.batches(1024)]
        pixels = len(self.train) * self.data.image_size[0] * self.data.image_size[1]
        mean, square = (torch.stack(part).double().sum(0) / pixels for part in zip(*sums, strict=True))
        std = (square - mean.square()).clamp_min(1e-4).sqrt()  # a channel that never changes stays finite
        return Architecture(
            arch=self.recipe.arch,
            width=self.recipe.width,
            classes=len(self.data.classes),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
        )

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return METHODS[self.method].gates(self.architecture)

    @property
    def objective(self) -> Objective:
        return Joint(self.recipe.beta) if self.gates else cross_entropy

    @property
    def attack(self) -> PGD:
        recipe = self.recipe
        return PGD(eps=recipe.eps, step=recipe.attack_step, steps=recipe.attack_steps, objective=self.objective)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be the same for an interrupted run to go on."""
        data = {"name": self.data.name, "train": self.train.fingerprint(), "val": self.val.fingerprint()}
        recipe = dataclasses.asdict(self.recipe) | {"milestones": list(self.recipe.milestones)}
        return {"method": self.method, "recipe": recipe, "data": data, "seed": self.seed}

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")

    @property
    def log(self) -> Path:
        return self.out.with_name(self.out.name + ".csv")

    def generator(self, epoch: int) -> torch.Generator:
        """Make the source of an epoch's random numbers: no epoch needs to know of those before it."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


@dataclass
class State:
    """Where a run stands between two epochs."""

    network: nn.Module
    optimizer: torch.optim.SGD
    device: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, job: Job, device: str) -> Self:
        """Begin a run, unless there is something at its end or on its way already."""
        for path in (job.out, job.partial, job.log):
            if path.exists():
                raise UserError(f"{path} exists: choose another --out, go on with --resume, or delete it first.")
        return cls._new(job, device)

    @classmethod
    def take_up(cls, job: Job, device: str) -> Self | None:
        """Go on after the last complete epoch of a run of the same settings; None if it has reached its end."""
        for path in (job.out, job.partial, job.log):
            remove_leftovers(path)
        if not job.partial.exists():
            if not job.out.exists():
                return cls.fresh(job, device)
            _check_settings(job, Checkpoint.read(job.out).meta.get("settings"), job.out)
            return None
        kept = load_tensors(job.partial)
        _check_settings(job, kept.get("settings") if isinstance(kept, dict) else None, job.partial)
        state = cls._new(job, device)
        try:
            state.network.load_state_dict(kept["network"])
            state.optimizer.load_state_dict(kept["optimizer"])
            state.history, state.best = check_history(kept["history"]), kept["best"]
            if state.history:
                with torch.device("meta"):  # only to learn that the best weights are whole
                    build(job.architecture, job.gates).load_state_dict(state.best, assign=True)
        except Exception as error:
            raise UserError(f"{job.partial} is damaged: delete it and train again.") from error
        return state

    @classmethod
    def _new(cls, job: Job, device: str) -> Self:
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator alone: it is put back
            torch.default_generator.manual_seed(job.seed)
            network = build(job.architecture, job.gates).to(device)
        recipe = job.recipe
        optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        return cls(network, optimizer, device)

    def record(self, job: Job, row: dict[str, Any]) -> None:
        """Add an epoch's row and keep the weights if it is the best so far."""
        self.history.append(row)
        adversarial = METHODS[job.method].adversarial
        scores = [(row["val_robust"] if adversarial else 0, row["val_natural"]) for row in self.history]
        best = scores.index(max(scores))  # the first of equals
        if best == len(scores) - 1:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
            if not is_finite(self.best):
                raise UserError(
                    f"The weights are no longer numbers after epoch {len(self.history)}: lower the learning rate "
                    f"(the state of the epoch before is in {job.partial})."
                )
        for epoch, earlier in enumerate(self.history):
            earlier["best"] = epoch == best

    def keep(self, job: Job) -> None:
        """Write all that is needed to go on, and the log."""
        content = {
            "settings": job.settings,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
        }
        save_tensors(content, job.partial)
        with replacing(job.log) as temporary:
            pd.DataFrame(self.history, columns=list(LOG)).to_csv(temporary, index=False)


def _check_settings(job: Job, kept: Any, path: Path) -> None:
    if kept == job.settings:
        return
    different = [key for key in job.settings if not isinstance(kept, dict) or kept.get(key) != job.settings[key]]
    raise UserError(
        f"{path} comes from a run of other settings ({', '.join(different)}): repeat those, or choose another --out."
    )
