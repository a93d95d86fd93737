"""Train standard, AT, CIFS and CAS networks from recipes: resumable after a kill, the same to the bit.

AT: Madry et al., ICLR 2018. CIFS: Yan et al., ICML 2021. CAS: Bai et al., ICLR 2021.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from channelscope.attacks import PGD, correct
from channelscope.capture import capture
from channelscope.checkpoints import Checkpoint, Gate, build, load_tensors, save_tensors, versions
from channelscope.data import Dataset, Split, as_dataset, augment
from channelscope.errors import UserError, suggest
from channelscope.files import replacing
from channelscope.hooks import evaluating
from channelscope.models import Architecture
from channelscope.objectives import Joint, Objective, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD with a stepped learning rate, and the inner attack of adversarial training.

    Args:
        arch, width: see ``models.Architecture``.
        epochs, batch_size, lr, momentum, weight_decay: of SGD.
        milestones: shares of the epochs after which the learning rate falls to a tenth.
        crop, flip: augmentation: padding of the random crop in pixels, and mirroring.
        eps, attack_steps, attack_step: of the training and validation attack, PGD with a random start (L-inf).
        beta: weight of the probes in the joint loss of gated networks.
    """

    arch: str
    width: int | None = None
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]
    crop: int
    flip: bool
    eps: float
    attack_steps: int
    attack_step: float
    beta: float

    def __post_init__(self) -> None:
        for name, low in {"epochs": 1, "batch_size": 2, "attack_steps": 1}.items():
            if getattr(self, name) < low:
                raise UserError(f"A recipe's {name} is at least {low}, not {getattr(self, name)}.")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"A recipe's learning rate is a positive number, not {self.lr}.")

    @classmethod
    def named(cls, name: str) -> Self:
        """Read a recipe that ships with the package: ``paper`` or ``digits``."""
        text = resources.files("channelscope").joinpath(f"recipes/{name}.toml").read_text(encoding="utf-8")
        values = tomllib.loads(text)
        lengths = {key: float(Fraction(values[key])) for key in ("eps", "attack_step")}
        return cls(**values | lengths | {"milestones": tuple(values["milestones"])})

    @classmethod
    def suited_to(cls, data_name: str) -> Self:
        """Choose the recipe for a data set: its own, or the paper's."""
        return cls.named("digits" if data_name == "digits" else "paper")

    def override(self, **changes: Any) -> Self:
        """Change what is not None; a new eps takes the step of the inner attack along."""
        changes = {name: value for name, value in changes.items() if value is not None}
        if unknown := changes.keys() - {item.name for item in dataclasses.fields(self)}:
            raise UserError(f"A recipe has no setting {min(unknown)!r}.{suggest(min(unknown), dir(self))}")
        if "eps" in changes and self.eps:
            changes.setdefault("attack_step", self.attack_step * changes["eps"] / self.eps)
        return dataclasses.replace(self, **changes)

    def lr_at(self, epoch: int) -> float:
        """Give the learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(share * self.epochs) for share in self.milestones)


@dataclass(frozen=True)
class Method:
    """What sets the ways of training apart: adversarial images or natural ones, and which gates.

    ``gates`` makes the gates of an architecture, by layer; gated networks train, and are attacked, on the joint loss.
    """

    adversarial: bool
    gates: Callable[[Architecture], tuple[Gate, ...]] = lambda _: ()


def _cifs(architecture: Architecture) -> tuple[Gate, ...]:
    """Gate the last stage's blocks, a linear probe at the last and two-layer ones before, as in the paper."""
    *earlier, last = architecture.last_stage
    gates = [Gate(layer=layer, channels=architecture.channels, probe="two-layer") for layer in earlier]
    return (*gates, Gate(layer=last, channels=architecture.channels))


def _cas(architecture: Architecture) -> tuple[Gate, ...]:
    return tuple(
        Gate(layer=layer, channels=architecture.channels, k=1, imgf="identity") for layer in architecture.last_stage
    )


METHODS = {
    "standard": Method(adversarial=False),
    "at": Method(adversarial=True),
    "cifs": Method(adversarial=True, gates=_cifs),
    "cas": Method(adversarial=True, gates=_cas),
}


def train(
    method: str,
    data: Any = "digits",
    *,
    out: Path | str,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Train a network and write its best checkpoint to ``out`` and its log, epoch by epoch, to ``out`` + ``.csv``.

    The best epoch is chosen on the validation part: by robust accuracy under the training attack, ties by natural
    accuracy; for ``standard``, which knows of no attack, by natural accuracy. After every epoch the whole state is
    kept in ``out`` + ``.partial``, until the run is complete.

    Args:
        method: standard, at, cifs or cas.
        data: a data set, its name, or what else ``data.as_dataset`` takes, with a training part.
        out: the checkpoint to write.
        seed: of the weights, the order of the images, their augmentation and the attacks' random starts.
        resume: go on where an interrupted run of the same settings stopped (or begin, where there is none).
        device: cpu, cuda, ...
        progress: show a progress bar.
        **overrides: what to change of the recipe: arch, width, epochs, batch_size, lr, eps, ... (None: as it is).

    Returns:
        The best network, in eval mode, on the CPU.

    Raises:
        UserError: for settings that do not fit, an ``out`` that exists, or a loss that is no longer a number.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}: choose from {', '.join(METHODS)}.{suggest(method, METHODS)}")
    dataset = as_dataset(data)
    recipe = Recipe.suited_to(dataset.name).override(**overrides)
    job = _Job(method, recipe, dataset, Path(out), seed)
    state = _State.take_up(job, device) if resume else _State.fresh(job, device)
    if state is not None:
        _run(job, state, progress)
    return Checkpoint.read(out).build()


@dataclass(frozen=True)
class _Job:
    """What a run is to do; two runs of equal settings end with equal weights."""

    method: str
    recipe: Recipe
    data: Dataset
    out: Path
    seed: int

    def __post_init__(self) -> None:
        counts = torch.bincount(self.train.labels, minlength=len(self.data.classes))
        if not counts.all():
            name = self.data.classes[int(counts.argmin())]
            raise UserError(f"Class {name!r} has no training images: add some, or remove the class.")
        if self.recipe.crop >= min(self.data.image_size):
            raise UserError(f"A crop of {self.recipe.crop} pixels is too large for images of {self.data.image_size}.")

    @property
    def train(self) -> Split:
        return self._part(self.data.train)

    @property
    def val(self) -> Split:
        return self._part(self.data.val)

    def _part(self, part: Split | None) -> Split:
        if part is None or not len(part):
            raise UserError(f"{self.data.name} has no training and validation images: training needs both.")
        return part

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
class _State:
    """Where a run stands between two epochs."""

    network: nn.Module
    optimizer: torch.optim.SGD
    device: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, job: _Job, device: str) -> Self:
        """Begin a run, unless there is something at its end or on its way already."""
        for path in (job.out, job.partial):
            if path.exists():
                raise UserError(f"{path} exists: choose another --out, go on with --resume, or delete it first.")
        return cls._new(job, device)

    @classmethod
    def take_up(cls, job: _Job, device: str) -> Self | None:
        """Go on after the last complete epoch of a run of the same settings; None if it has reached its end."""
        if not job.partial.exists():
            if not job.out.exists():
                return cls._new(job, device)
            _check_settings(job, Checkpoint.read(job.out).meta.get("settings"), job.out)
            return None
        kept = load_tensors(job.partial)
        _check_settings(job, kept.get("settings") if isinstance(kept, dict) else None, job.partial)
        state = cls._new(job, device)
        try:
            state.network.load_state_dict(kept["network"])
            state.optimizer.load_state_dict(kept["optimizer"])
        except Exception as error:
            raise UserError(f"{job.partial} is damaged: delete it and train again.") from error
        state.history, state.best = kept["history"], kept["best"]
        return state

    @classmethod
    def _new(cls, job: _Job, device: str) -> Self:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(job.seed)
            network = build(job.architecture, job.gates).to(device)
        recipe = job.recipe
        optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        return cls(network, optimizer, device)

    def record(self, job: _Job, row: dict[str, Any]) -> None:
        """Add an epoch's row and keep the weights if it is the best so far."""
        self.history.append(row)
        adversarial = METHODS[job.method].adversarial
        scores = [(row["val_robust"] if adversarial else 0, row["val_natural"]) for row in self.history]
        best = scores.index(max(scores))  # the first of equals
        if best == len(scores) - 1:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        for epoch, earlier in enumerate(self.history):
            earlier["best"] = epoch == best

    def keep(self, job: _Job) -> None:
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
            pd.DataFrame(self.history).to_csv(temporary, index=False)


def _check_settings(job: _Job, kept: Any, path: Path) -> None:
    if kept == job.settings:
        return
    different = [key for key in job.settings if not isinstance(kept, dict) or kept.get(key) != job.settings[key]]
    raise UserError(
        f"{path} comes from a run of other settings ({', '.join(different)}): repeat those, or choose another --out."
    )


def _run(job: _Job, state: _State, progress: bool) -> None:
    """Train the epochs that are left and write the best network's checkpoint."""
    epochs, done = job.recipe.epochs, len(state.history)
    with tqdm(
        total=epochs * len(job.train),
        initial=done * len(job.train),
        desc=job.method,
        unit="img",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for epoch in range(done, epochs):
            start = perf_counter()
            row = {"epoch": epoch + 1} | _train_epoch(job, state, epoch, bar) | _validate(job, state)
            state.record(job, row | {"seconds": perf_counter() - start})
            state.keep(job)
    best = next(row for row in state.history if row["best"])
    Checkpoint(
        architecture=job.architecture,
        gates=job.gates,
        state=state.best,
        image=(job.data.channels, *job.data.image_size),
        class_names=job.data.classes,
        method=job.method,
        meta={"settings": job.settings, "metrics": best, "history": state.history, "versions": versions()},
    ).save(job.out)
    job.partial.unlink()


def _train_epoch(job: _Job, state: _State, epoch: int, bar: "tqdm[Any]") -> dict[str, float]:
    """Make one pass over the training part; give its mean loss and accuracy on the images trained on."""
    lr, generator = job.recipe.lr_at(epoch), job.generator(epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss_sum = hits = seen = 0.0
    for x, y in _shuffled(job, generator, state.device):
        if METHODS[job.method].adversarial:
            x = job.attack(state.network, x, y, generator)
        loss, correct_now = _step(job, state, x, y)
        if not loss < float("inf"):
            raise UserError(
                f"The loss is no longer a number in epoch {epoch + 1}: lower the learning rate "
                f"(the state of epoch {epoch} is in {job.partial})."
            )
        loss_sum, hits, seen = loss_sum + loss * len(y), hits + correct_now, seen + len(y)
        bar.update(len(y))
        bar.set_postfix(epoch=epoch + 1, loss=f"{loss_sum / seen:.3f}", acc=f"{hits / seen:.1%}", refresh=False)
    return {"loss": loss_sum / seen, "accuracy": hits / seen, "lr": lr}


def _shuffled(job: _Job, generator: torch.Generator, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the training part's batches in random order, augmented; a last batch of one image is left out."""
    order = torch.randperm(len(job.train), generator=generator)
    for x, y in job.train.batches(job.recipe.batch_size, device, order):
        if len(y) > 1:  # BatchNorm needs two
            yield augment(x, generator, crop=job.recipe.crop, flip=job.recipe.flip), y


def _step(job: _Job, state: _State, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Take one step of SGD; give the mean loss and the number of correct answers."""
    state.network.train()
    with capture(state.network, "") as answer:
        loss = job.objective(state.network, x, y).mean()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return loss.item(), int((answer[""].argmax(1) == y).sum())


def _validate(job: _Job, state: _State) -> dict[str, float]:
    """Measure natural and robust accuracy on the validation part, the same random starts each time."""
    generator, natural, robust = job.generator(-1), 0, 0
    with evaluating(state.network):
        for x, y in job.val.batches(256, state.device):
            natural += int(correct(state.network, x, y).sum())
            robust += int(correct(state.network, job.attack(state.network, x, y, generator), y).sum())
    return {"val_natural": natural / len(job.val), "val_robust": robust / len(job.val)}
