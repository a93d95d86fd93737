"""How often the claims' verdicts decide where there is nothing to find, and find what is there.

    python -m benchmarks.calibration [--cases 200] [--effect-cases 100] [--nulls NAME ...]
        [--effects NAME ...] [--workers 2] [--json FILE] [--table docs/CALIBRATION.md]

A *null* is a way to make networks and images of which a claim is not true, nor its opposite: a
verdict *decides* where it says "supported" or "not supported" all the same. An *effect* is a pair
of networks built so that a quantity has twice the least effect that its claim is about, or minus
that: it is *found* where the verdict says so. "--nulls" or "--effects" without a name leaves all of
them out.

Every case is one line of FOLDER/cases.jsonl, and is not run again: a killed run goes on when the
same command is given. Lines that other source code of the package made do not count.
"""

import argparse
import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn
from tqdm.auto import tqdm

import channelscope as cs
from benchmarks.timing import describe_machine, find_version, write_report
from channelscope.analyses import claims as rules
from channelscope.analyses.base import Kind, Labels, analyses_of, make_tables
from channelscope.data import Dataset, MemorySplit, Split, load
from channelscope.errors import UserError
from channelscope.gates import FeatureSelector, LinearProbe, Selective
from channelscope.networks import Architecture
from channelscope.statistics.intervals import wilson

FOLDER = Path("runs/calibration")
IMAGES = Path(os.environ.get("CHANNELSCOPE_DATA", "data")) / "cifar10-jpeg"
DECIDES = ("supported", "not supported")
CASES_VERSION = 1  # raise it when a case is made in another way: old lines then do not count
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "CAS", "NR damage")
# The least effects that matter, should the rules not say them.
LEAST = {"C1": 0.10, "C2": 0.02, "C3": 0.45, "C4": 0.02, "C5": 0.02, "NR damage": 0.05}
LEAST |= {claim: value for claim, value in getattr(rules, "LEAST", {}).items() if claim in LEAST}

REPLICATES = 200
EPS = {"digits": 0.15, "cifar10": 8 / 255}
FEWEST_IMAGES = 100

# Trained once, on digits. Few epochs: what is tested is the rules, not the networks.
WIDTH, EPOCHS = 4, 10
TRAINED = ("standard", "at", "cifs", "cas", "trades", "trades-cifs")
SEEDS = 3
NOISY = ("standard", "at", "cifs")
NOISY_SEEDS = 6
NEARLY = 1e-3  # of each weight: how far a copy that is not exact is from the original


# ------------------------------------------------------------ judging


class Recast:
    """A study of which some things are said otherwise than they are; all else is the study's own.

    Args:
        study: any.
        source: for each image the one whose outcomes it takes; None to leave outcomes alone.
        natural: whether it takes the natural outcome, too, or the attacks' alone.

    All networks are said to have been trained with equal compute, so that no verdict is withheld
    for want of a record: that would tell nothing of its rule.
    """

    def __init__(
        self, study: cs.Study, source: Int[ndarray, " n"] | None = None, *, natural: bool = True
    ) -> None:
        self.study, self.source, self.natural = study, source, natural
        self._memo: dict[tuple[Any, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def describe(self, model: str) -> Mapping[str, Any]:
        """Return what is known of a model, its compute being that of all others."""
        return {**self.study.describe(model), "compute": {"calibration": 1}}

    def correct(self, model: str, attack: str = "natural") -> Bool[ndarray, " n"]:
        """Return which images are classified correctly, by the outcomes of their sources."""
        correct = self.study.correct(model, attack)
        if self.source is None or (attack == "natural" and not self.natural):
            return correct
        return correct[self.source]

    def answers(
        self, model: str, data: str = "natural", told: Labels = "none"
    ) -> Int[ndarray, " n"]:
        """Return the answers; where outcomes are exchanged, some that agree with ``correct``."""
        answers = self.study.answers(model, data, told)
        if self.source is None or told != "none" or data not in ("natural", "adversarial"):
            return answers
        attack = "natural" if data == "natural" else self.settings["attack"]
        wrong = np.where(answers == self.labels, (answers + 1) % len(self.classes), answers)
        return np.where(self.correct(model, attack), self.labels, wrong)

    def memo(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return ``compute()``, remembered by the study unless it rests on other outcomes."""
        if self.source is None:
            return self.study.memo(key, compute)
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def judge(study: Any) -> dict[str, list[str]]:
    """Return the verdicts on each claim: one for each network, pair or layer it is about."""
    study.run_networks()
    judging = [analysis for analysis in analyses_of(study.kind) if analysis.judge]
    verdicts: dict[str, list[str]] = {}
    table: Any = make_tables(study, judging)[0]["verdicts"]
    for claim, verdict in zip(table["claim"], table["verdict"], strict=True):
        verdicts.setdefault(claim, []).append(verdict)
    return verdicts


def make_study(
    models: Mapping[str, nn.Module],
    data: Any,
    methods: Mapping[str, str],
    seed: int,
    attack: Any = "pgd-5",
    **settings: Any,
) -> cs.Study:
    """Make the study that ``cs.compare`` makes of the same arguments."""
    return cs.Study(
        models,
        data,
        methods=methods,
        attack=attack,
        attacks=(attack,),
        replicates=REPLICATES,
        seed=seed,
        device="cpu",
        progress=False,
        **settings,
    )


# ------------------------------------------------------------ networks and images of the nulls


@cache
def load_images(name: str) -> Dataset:
    """Return a data set; CIFAR-10 is the JPEG version, with the images it is tested on."""
    if name == "digits":
        return load(name)
    data = load(f"imagefolder:{IMAGES}")
    return Dataset("cifar10", data.classes, data.test)


def draw_images(name: str, rng: np.random.Generator, most: int = 359) -> Dataset:
    """Return a data set whose test images are some of the original's: 100 to ``most``."""
    data = load_images(name)
    count = rng.integers(FEWEST_IMAGES, min(most, len(data.test)) + 1)
    chosen = rng.permutation(len(data.test))[:count]
    return Dataset(name, data.classes, data.test.subset(torch.from_numpy(chosen)))


def permute_labels(split: Split, rng: np.random.Generator) -> MemorySplit:
    """Return the images with the labels in another order."""
    loaded = split.load()
    assert isinstance(loaded, MemorySplit)
    order = torch.from_numpy(rng.permutation(len(split)))
    return MemorySplit(loaded.images, loaded.labels[order])


@dataclass(frozen=True)
class Training:
    """A network that is trained once, on digits.

    Args:
        method, seed, epochs: of its recipe.
        noisy: whether its training labels are permuted.
    """

    method: str
    seed: int
    epochs: int = EPOCHS
    noisy: bool = False

    def path(self, folder: Path) -> Path:
        kind = "noisy-" if self.noisy else ""
        name = f"{kind}{self.method}-{self.seed}-epochs-{self.epochs}-width-{WIDTH}.pt"
        return folder / "networks" / name

    def run(self, folder: Path) -> None:
        """Train the network, or what is left of its training; nothing where it is there."""
        path = self.path(folder)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        data = load("digits")
        if self.noisy:
            rng = np.random.default_rng((1, self.seed))
            assert data.train is not None
            assert data.val is not None
            train, val = permute_labels(data.train, rng), permute_labels(data.val, rng)
            data = dataclasses.replace(data, train=train, val=val)
        cs.train(
            f"digits-resnet18-{self.method}",
            data,
            out=path,
            seed=self.seed,
            resume=True,
            device="cpu",
            progress=False,
            epochs=self.epochs,
            width=WIDTH,
        )

    def read(self, folder: Path) -> nn.Module:
        return cs.load(self.path(folder))


def list_trainings(nulls: Iterable[str]) -> list[Training]:
    """Return the networks that these nulls need."""
    nulls = set(nulls)
    trainings = []
    if nulls & {
        "beside-trained",
        "permuted-labels",
        "permuted-labels-damage",
        "permuted-classes",
        "copies-at",
        "copies-gated",
    }:
        trainings += [Training(method, seed) for seed in range(SEEDS) for method in TRAINED]
    if nulls & {"noise-labels", "noise-labels-damage"}:
        trainings += [
            _noisy_training(method, seed) for seed in range(NOISY_SEEDS) for method in NOISY
        ]
    return trainings


def _noisy_training(method: str, seed: int) -> Training:
    return Training(method, seed, epochs=1 + seed % 3, noisy=True)


def make_untrained(
    arch: str, channels: int, size: int, seed: int, *, gated: bool = False
) -> nn.Module:
    """Make a network that nobody has trained, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, layer, width = _build(arch, channels, size)
        if gated:
            network = Selective(network, {layer: FeatureSelector(LinearProbe(width, 10))})
        if seed % 2:  # every other one has statistics of images in its BatchNorms
            network.train()
            with torch.no_grad():
                for _ in range(3):
                    network(torch.rand(32, channels, size, size))
    return network.eval()


def _build(arch: str, channels: int, size: int) -> tuple[nn.Module, str, int]:
    """Return a network, the layer that a gate stands behind, and its channels."""
    if arch.startswith("resnet"):
        mean, std = (0.5,) * channels, (0.25,) * channels
        architecture = Architecture(arch=arch, width=4, mean=mean, std=std)
        return architecture.build(), architecture.gate_layers[-1], architecture.channels
    if arch == "cnn":
        features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
        )
        layers = [features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        return nn.Sequential(*layers), "0", 32
    hidden = nn.Sequential(
        nn.Conv2d(channels, 64, size), nn.ReLU(), nn.Conv2d(64, 48, 1), nn.ReLU()
    )
    return nn.Sequential(hidden, nn.Flatten(), nn.Linear(48, 10)), "0", 48


ARCHS = ("resnet10", "resnet18", "cnn", "mlp")


def _choose_untrained(case: int) -> tuple[str, str, int]:
    """Return architecture, data and seed: all combinations come in turn."""
    combination, arch = divmod(case, len(ARCHS))
    names = ("digits", "cifar10") if IMAGES.is_dir() else ("digits",)
    return ARCHS[arch], names[combination % len(names)], 10 * case


# ------------------------------------------------------------ nulls


def make_untrained_case(case: int, _folder: Path, kind: Kind = "comparison") -> Recast:
    arch, name, seed = _choose_untrained(case)
    data = draw_images(name, np.random.default_rng((2, case)), most=250)
    shape = data.channels, data.image_size[0]
    models = {
        "standard": make_untrained(arch, *shape, seed),
        "at": make_untrained(arch, *shape, seed + 1 + case % 2),
        "cifs": make_untrained(arch, *shape, seed + 3, gated=True),
    }
    methods = {label: label for label in models}
    return Recast(make_study(models, data, methods, case, eps=EPS[name], kind=kind))


def make_beside_trained_case(case: int, folder: Path) -> Recast:
    arch = ARCHS[case % len(ARCHS)]
    data = draw_images("digits", np.random.default_rng((3, case)))
    models = {
        "standard": Training("standard", case % SEEDS).read(folder),
        "at": make_untrained(arch, 1, 8, 5 * case),
        "cifs": make_untrained(arch, 1, 8, 5 * case + 1, gated=True),
    }
    return Recast(make_study(models, data, {m: m for m in models}, case, eps=EPS["digits"]))


def make_permuted_labels_case(case: int, folder: Path, kind: Kind = "comparison") -> Recast:
    rng = np.random.default_rng((4, case))
    data = draw_images("digits", rng)
    data = dataclasses.replace(data, test=permute_labels(data.test, rng))
    methods = ("standard", "at", "cifs", "cas")
    models = {
        method: Training(method, (case + place) % SEEDS).read(folder)
        for place, method in enumerate(methods)
    }
    study = make_study(models, data, {m: m for m in models}, case, eps=EPS["digits"], kind=kind)
    return Recast(study)


def make_permuted_classes_case(case: int, folder: Path) -> Recast:
    """Exchange what becomes of the classes' images; in every other case under the attack alone."""
    rng = np.random.default_rng((5, case))
    base = "at" if case % 3 else "cifs"  # a network with gates serves as an AT network, too
    data = draw_images("digits", rng)
    study = make_study(
        {
            "standard": Training("standard", case % SEEDS).read(folder),
            "at": Training(base, case // 2 % SEEDS).read(folder),
        },
        data,
        {"standard": "standard", "at": "at"},
        case,
        eps=EPS["digits"],
    )
    source = exchange_classes(study.labels, len(study.classes), rng)
    return Recast(study, source, natural=case % 2 == 0)


def exchange_classes(
    labels: Int[ndarray, " n"], classes: int, rng: np.random.Generator
) -> Int[ndarray, " n"]:
    """Return for each image of class k one of class pi(k), drawn with replacement."""
    there = np.unique(labels)
    order = dict(zip(there, rng.permutation(there), strict=True))
    source = np.empty(len(labels), np.int64)
    for k in there:
        source[labels == k] = rng.choice(np.flatnonzero(labels == order[k]), (labels == k).sum())
    return source


def make_copies_at_case(case: int, folder: Path) -> Recast:
    """One network is called standard, and its copy AT."""
    method = ("standard", "at", "cifs", "trades")[case % 4]
    network = Training(method, case // 4 % SEEDS).read(folder)
    models = {"standard": network, "at": copy_network(network, case)}
    data = draw_images("digits", np.random.default_rng((6, case)))
    return Recast(make_study(models, data, {m: m for m in models}, case, eps=EPS["digits"]))


def make_copies_gated_case(case: int, folder: Path) -> Recast:
    """One network is called AT, and its copy CIFS, or TRADES and TRADES with CIFS."""
    method = ("at", "cifs", "trades", "standard", "at", "trades-cifs")[case % 6]
    base = "trades" if method.startswith("trades") else "at"
    gated = "trades-cifs" if base == "trades" else "cifs"
    network = Training(method, case // 6 % SEEDS).read(folder)
    models = {
        "standard": Training("standard", (case + 1) % SEEDS).read(folder),
        base: network,
        gated: copy_network(network, case),
    }
    data = draw_images("digits", np.random.default_rng((7, case)))
    return Recast(make_study(models, data, {m: m for m in models}, case, eps=EPS["digits"]))


def copy_network(network: nn.Module, seed: int) -> nn.Module:
    """Copy a network: exactly for even seeds, else its weights move by a part of ``NEARLY``."""
    network = copy.deepcopy(network)
    if seed % 2:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + NEARLY * torch.randn(weight.shape, generator=generator))
    return network


def make_noise_labels_case(case: int, folder: Path, kind: Kind = "comparison") -> Recast:
    rng = np.random.default_rng((8, case))
    seeds = rng.integers(NOISY_SEEDS, size=len(NOISY))
    models = {
        method: _noisy_training(method, int(seed)).read(folder)
        for method, seed in zip(NOISY, seeds, strict=True)
    }
    data = draw_images("digits", rng)
    study = make_study(models, data, {m: m for m in models}, case, eps=EPS["digits"], kind=kind)
    return Recast(study)


def make_nothing_case(claim: str, case: int, folder: Path) -> Recast:
    """Make a case of the networks of an effect, in which it is 0."""
    return Effect(claim, 0).make(case, folder)


@dataclass(frozen=True)
class Null:
    """Networks and images of which some claims are neither true nor the contrary of true.

    Args:
        help: what is done, in words.
        claims: those that have nothing to find here.
        make: (case, folder of trained networks) -> study.
    """

    help: str
    claims: tuple[str, ...]
    make: Callable[[int, Path], Recast]


NULLS = {
    "untrained": Null(
        "Networks that were never trained: ResNet-10 and 18 (width 4), a small CNN, one whose "
        "convolution covers the image, called standard, AT and (with a gate) CIFS. Images: digits, "
        "and CIFAR-10 where it is there.",
        CLAIMS[:5],
        make_untrained_case,
    ),
    "beside-trained": Null(
        "The same networks called AT and CIFS, beside a trained standard network.",
        CLAIMS[:5],
        make_beside_trained_case,
    ),
    "permuted-labels": Null(
        "Trained networks (standard, AT, CIFS, CAS); the test images' labels are permuted.",
        CLAIMS[:6],
        make_permuted_labels_case,
    ),
    "permuted-classes": Null(
        "Trained networks with their activations; each class gets the outcomes (right or wrong) "
        "of the images of another one, in every other case only those under the attack.",
        ("C3",),
        make_permuted_classes_case,
    ),
    "copies-at": Null(
        "A network called standard and its copy called AT: in every other case exact, else with "
        "weights moved by 0.1 %.",
        CLAIMS[:3],
        make_copies_at_case,
    ),
    "copies-gated": Null(
        "A network called AT (TRADES) and its copy called CIFS (TRADES with CIFS), beside a "
        "trained standard network.",
        CLAIMS[3:5],
        make_copies_gated_case,
    ),
    "noise-labels": Null(
        "Networks trained on permuted labels (standard, AT, CIFS; 1 to 3 epochs), true test "
        "labels.",
        CLAIMS[:5],
        make_noise_labels_case,
    ),
    "untrained-damage": Null(
        "The networks of untrained: the damage account of each.",
        CLAIMS[6:],
        partial(make_untrained_case, kind="damage"),
    ),
    "permuted-labels-damage": Null(
        "The networks and labels of permuted-labels: the damage account of each network.",
        CLAIMS[6:],
        partial(make_permuted_labels_case, kind="damage"),
    ),
    "noise-labels-damage": Null(
        "The networks of noise-labels: the damage account of each.",
        CLAIMS[6:],
        partial(make_noise_labels_case, kind="damage"),
    ),
    **{
        f"{claim}=0": Null(
            f"Networks built as those below for {claim}, with a planned value of 0.",
            (claim,),
            partial(make_nothing_case, claim),
        )
        for claim in ("C1", "C2", "C4", "C5", "NR damage")
    },
}


# ------------------------------------------------------------ planted effects

SIZE = 8  # of an image: its pixels are the channels
GROUP = 8  # channels of a group
PLANTED_IMAGES = 1000
BRIGHT, DARK, NOISE = 0.6, 0.2, 0.1  # of the pixels that tell the class
LEVEL, NR_LEVEL, SPREAD = 0.5, 0.25, 0.05  # of the others
HEAD = 0.5  # weight of a pixel that tells the class; the others have 1, -1 or 0
SWAPPED = 0.02  # share of images whose fate under gates is drawn anew
UNEQUAL = 0.4  # of the damage: how far the images' shares of channels that rise lie apart at most


@dataclass(frozen=True)
class Layout:
    """Which pixels of an image do what.

    The first pixels tell the class, one each. Of the next three groups the first speaks for every
    class alike and the second against it, so they make the NR mass and change no answer; the third
    has no weight, and only turns the activations. Three more pixels are seen by the attack alone:
    numbers in [0, 1] by chance, which decide whether it breaks the image.
    """

    classes: int

    @property
    def channels(self) -> int:
        return self.classes + 3 * GROUP

    @property
    def pr(self) -> slice:
        return slice(self.classes, self.classes + GROUP)

    @property
    def nr(self) -> slice:
        return slice(self.classes + GROUP, self.classes + 2 * GROUP)

    @property
    def drift(self) -> slice:
        return slice(self.classes + 2 * GROUP, self.channels)

    @property
    def dials(self) -> slice:
        return slice(self.channels, self.channels + 3)

    def make_weight(self) -> Float[Tensor, "k c"]:
        """Return the head's weight."""
        weight = torch.zeros(self.classes, self.channels)
        weight[:, : self.classes] = HEAD * torch.eye(self.classes)
        weight[:, self.pr], weight[:, self.nr] = 1, -1
        return weight

    def draw(
        self, n: int, nr_levels: Float[Tensor, " k"], seed: int
    ) -> tuple[Float[Tensor, "n 1 s s"], Int[Tensor, " n"]]:
        """Draw images, the classes of which have these levels of the NR pixels, and labels."""
        generator = torch.Generator().manual_seed(seed)
        y = (torch.arange(n) % self.classes)[torch.randperm(n, generator=generator)]
        noise = torch.randn(n, self.channels, generator=generator)
        pixels = torch.zeros(n, SIZE * SIZE)
        pixels[:, : self.classes] = DARK + NOISE * noise[:, : self.classes]
        pixels[torch.arange(n), y] += BRIGHT - DARK
        pixels[:, self.classes : self.channels] = LEVEL + SPREAD * noise[:, self.classes :]
        pixels[:, self.nr] += (nr_levels[y] - LEVEL)[:, None]
        pixels[:, self.dials] = torch.rand(n, 3, generator=generator)
        return pixels.clamp(0, 1).view(n, 1, SIZE, SIZE), y


class PixelNet(nn.Module):
    """A network whose channels are pixels, with what the attack is to do to it.

    Args:
        layout: of the images.
        robust: share of each class's images that withstand (k,).
        swapped: share of images whose fate is drawn anew, apart from that under other networks.
        rising: share of the margin's fall for which the pixel of another class rises, whose weight
            is then negative: the class's own pixel falls for what is left. None for equal steps,
            and pixels of a class that tell the others nothing.
    """

    robust: Tensor
    swapped: Tensor
    shift: Tensor
    rising: Tensor

    def __init__(
        self,
        layout: Layout,
        robust: Float[Tensor, " k"],
        swapped: float,
        rising: float | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.conv = nn.Conv2d(1, layout.channels, SIZE, bias=False)
        self.head = nn.Linear(layout.channels, layout.classes, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.eye(SIZE * SIZE)[: layout.channels].view_as(self.conv.weight)
            )
            self.head.weight.copy_(layout.make_weight())
            if rising is not None:
                self.head.weight[:, : layout.classes] -= HEAD / 2
        # Buffers, so that networks which only the attack tells apart are not taken for one.
        self.register_buffer("robust", robust)
        self.register_buffer("swapped", torch.tensor(swapped))
        self.register_buffer("shift", torch.zeros(SIZE * SIZE))
        self.register_buffer("rising", torch.tensor(0.5 if rising is None else rising))
        self.unequal = 0.0 if rising is None else UNEQUAL

    def forward(self, x: Float[Tensor, "n 1 s s"]) -> Float[Tensor, "n k"]:
        return self.head(self.conv(x).flatten(1))

    @torch.no_grad()
    def move(self, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial images: as planned, whatever the network's gradient says."""
        pixels = x.flatten(1)
        dial, swap, other = pixels[:, self.layout.dials].T
        chance = torch.where(swap < self.swapped, other, dial)
        is_broken = chance > self.robust[y]
        rows = torch.arange(len(y))
        told = pixels[:, : self.layout.classes].clone()
        own = told[rows, y].clone()
        told[rows, y] = -1
        largest, rival = told.max(1)
        # Half way and a little more, or a little of what is left.
        step = torch.where(is_broken, (own - largest).clamp_min(0) / 2 + 0.05, 0.02)
        step = torch.where(is_broken | (own - largest > 0.05), step, torch.zeros(()))
        moved = pixels + self.shift
        rising = self.rising + self.unequal * (other - 0.5)
        moved[rows, y] -= 2 * (1 - rising) * step
        moved[rows, rival] += 2 * rising * step
        return moved.clamp(0, 1).view_as(x)


@dataclass(frozen=True)
class PlannedAttack:
    """Does to images what the network under attack has planned."""

    eps: float = 1.0

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        assert isinstance(model, PixelNet)
        return model.move(x, y)

    def __str__(self) -> str:
        return "planned"


@dataclass(frozen=True)
class Measures:
    """The claims' quantities, from class means: what effects are planned in.

    Args:
        natural, adversarial: activations (k, c).
        weight: of the head (k, c).
    """

    natural: Float[Tensor, "k c"]
    adversarial: Float[Tensor, "k c"]
    weight: Float[Tensor, "k c"]

    @property
    def cosine(self) -> float:
        """Mean over classes of the centred cosine of natural and adversarial activation."""
        middle = self.natural.mean(0)
        moved = self.adversarial - middle
        return torch.cosine_similarity(self.natural - middle, moved).mean().item()

    @property
    def rise(self) -> float:
        """Adversarial less natural NR mass, the mean over classes."""
        return self._nr_mass(self.adversarial) - self._nr_mass(self.natural)

    @property
    def signed_mass(self) -> Float[Tensor, " k"]:
        """Adversarial signed mass, by class."""
        a = self.adversarial
        return (self.weight * a).sum(1) / (self.weight.abs() * a.abs()).sum(1)

    def _nr_mass(self, a: Tensor) -> float:
        against = (-self.weight).clamp_min(0)
        return ((against * a).sum(1) / (self.weight.abs() * a).sum(1)).mean().item()


def measure_pixels(network: PixelNet, x: Tensor, x_adv: Tensor, y: Tensor) -> Measures:
    """Measure a network on images."""
    channels, classes = network.layout.channels, network.layout.classes
    natural, adversarial = (
        torch.stack([pixels.flatten(1)[y == k, :channels].mean(0) for k in range(classes)])
        for pixels in (x, x_adv)
    )
    return Measures(natural, adversarial, network.head.weight.detach())


@dataclass(frozen=True)
class Plan:
    """What a network is to be like: its robust accuracy, the rise of its NR mass, its cosine."""

    robust: float | tuple[float, ...]
    rise: float
    cosine: float
    swapped: float = 0.0
    rising: float | None = None

    def build(self, layout: Layout, nr_levels: Float[Tensor, " k"]) -> PixelNet:
        """Build the network: by many images, those of a case then deviate by chance."""
        robust = torch.as_tensor(self.robust).expand(layout.classes).clone()
        network = PixelNet(layout, robust, self.swapped, self.rising)
        x, y = layout.draw(400 * layout.classes, nr_levels, seed=2**31)
        unshifted = measure_pixels(network, x, network.move(x, y), y)

        def measure(part: slice, shift: float) -> Measures:
            # A shift of all images is one of the means: next to no pixel ends at 0 or 1.
            network.shift[part] = shift
            moved = unshifted.adversarial + network.shift[: layout.channels]
            return dataclasses.replace(unshifted, adversarial=moved)

        nr, drift = layout.nr, layout.drift
        network.shift[nr] = _solve(lambda s: measure(nr, s).rise, self.rise, -0.24, 0.45)
        network.shift[drift] = _solve(lambda s: -measure(drift, s).cosine, -self.cosine, 0, 0.4)
        return network


def _solve(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Return where a rising function has the target value, by halving the interval."""
    if not rising(low) <= target <= rising(high):
        raise UserError(f"A planned value of {target:.3f} cannot be reached: choose another.")
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Effect:
    """Networks of which a claim is true, or false, by twice its least effect.

    Args:
        claim: the one.
        sign: 1 where it is true, -1 where it is false, 0 where there is nothing to find.
        classes: of the images.
    """

    claim: str
    sign: int
    classes: int = 10

    @property
    def expected(self) -> str:
        return DECIDES[self.sign < 0]

    @property
    def size(self) -> float:
        """The planned quantity; of a correlation 0.95 at most."""
        size = 2 * LEAST[self.claim]
        return self.sign * (min(size, 0.95) if self.claim == "C3" else size)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.classes)

    def make(self, case: int, _folder: Path) -> Recast:
        rng = np.random.default_rng((9, case, self.classes))
        robust, nr_levels = self._plan_classes(rng)
        networks = {
            label: plan.build(self.layout, nr_levels)
            for label, plan in self.plan_networks(robust).items()
        }
        images = self.layout.draw(PLANTED_IMAGES, nr_levels, seed=case)
        methods = {label: label for label in networks}
        kind = "damage" if self.claim == "NR damage" else "comparison"
        options = {"thumbnails": False, "kind": kind}
        return Recast(make_study(networks, images, methods, case, PlannedAttack(), **options))

    def plan_networks(self, robust: float | tuple[float, ...]) -> dict[str, Plan]:
        """Return what each network is to be like."""
        size = {claim: self.size if claim == self.claim else 0.0 for claim in LEAST}
        # Cosines that can be reached: the more NR channels rise, the lower they are.
        high, low = (0.65, 0.45) if self.claim in ("C1", "C3") else (0.45, 0.30)
        if self.claim == "C1":
            high, low = (high, high - self.size) if self.sign > 0 else (0.6 + self.size, 0.6)
        standard = Plan(robust=0.15, rise=0.08, cosine=low)
        if self.claim == "NR damage":
            return {"at": dataclasses.replace(standard, robust=robust, rising=0.5 + self.size)}
        rise = self.size if self.claim == "C2" else 0.08
        at = Plan(robust=robust, rise=rise, cosine=high)
        plans = {"standard": standard, "at": at}
        if self.claim in ("C4", "C5"):
            assert isinstance(robust, float)
            plans["cifs"] = Plan(
                robust + size["C4"], at.rise - size["C5"], standard.cosine, SWAPPED
            )
        return plans

    def _plan_classes(
        self, rng: np.random.Generator
    ) -> tuple[float | tuple[float, ...], Float[Tensor, " k"]]:
        """Return AT's robust accuracy and the level of the NR pixels, by class for C3."""
        if self.claim != "C3":
            return 0.55, torch.full((self.classes,), NR_LEVEL)
        robust = rng.permutation(np.linspace(0.15, 0.95, self.classes))
        order = _draw_order(robust, abs(self.size), rng)
        # The more NR mass, the less signed mass.
        order = self.classes - 1 - order if self.sign > 0 else order
        levels = np.linspace(0.15, 0.40, self.classes)[order]
        return tuple(robust.tolist()), torch.from_numpy(levels).float()


def _draw_order(
    values: Float[ndarray, " k"], correlation: float, rng: np.random.Generator
) -> Int[ndarray, " k"]:
    """Draw ranks whose rank correlation with the values is as wanted, to within 0.01."""
    places = values.argsort().argsort()
    for spread in np.linspace(0.05, 1, 20).repeat(500):
        noisy = values / values.std() + spread * rng.normal(size=len(values))
        ranks = noisy.argsort().argsort()
        if abs(np.corrcoef(ranks, places)[0, 1] - correlation) <= 0.01:
            return ranks
    raise UserError(f"No order of {len(values)} classes correlates by {correlation:.2f}.")


EFFECTS = {
    f"{claim}{'+' if sign > 0 else '-'}{suffix}": Effect(claim, sign, classes)
    for claim, suffix, classes in (
        ("C1", "", 10),
        ("C2", "", 10),
        ("C3", "", 10),
        ("C3", "/20", 20),
        ("C4", "", 10),
        ("C5", "", 10),
        ("NR damage", "", 10),
    )
    for sign in (1, -1)
}


# ------------------------------------------------------------ running


@cache
def digest_source() -> str:
    """Return a digest of the package's source, as far as verdicts depend on it.

    A process reads it once, at its beginning, which is when it imports the source.
    """
    root = Path(cs.__file__).parent
    apart = {"cli", "explorer", "figures", "gallery", "report", "templates", "doctor.py"}
    digest = hashlib.sha256(f"cases {CASES_VERSION}".encode())
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.toml")]):
        name = path.relative_to(root)
        if not apart & set(name.parts):
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """One case of a null or an effect."""

    kind: str
    name: str
    number: int
    folder: Path

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kind, self.name, self.number

    def run(self) -> dict[str, Any]:
        """Judge it; return a line for the record."""
        start = time.perf_counter()
        maker: Null | Effect = NULLS[self.name] if self.kind == "null" else EFFECTS[self.name]
        verdicts = judge(maker.make(self.number, self.folder))
        seconds = round(time.perf_counter() - start, 3)
        head = {"kind": self.kind, "name": self.name, "case": self.number}
        return head | {"verdicts": verdicts, "seconds": seconds, "source": digest_source()}


def read_lines(path: Path, source: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the cases on record that this source made; a line that a kill cut off is skipped."""
    lines = {}
    for text in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["source"] == source:
            lines[line["kind"], line["name"], line["case"]] = line
    return lines


def _prepare_worker() -> None:
    digest_source()
    torch.set_num_threads(1)


def _run_training(task: tuple[Training, Path]) -> None:
    training, folder = task
    training.run(folder)


def _run_case(case: Case) -> dict[str, Any]:
    return case.run()


def run_tasks(
    run: Callable[[Any], Any], tasks: Sequence[Any], workers: int, what: str
) -> Iterator[Any]:
    """Run tasks, in processes of one thread each where there are several workers."""
    if workers < 2 or len(tasks) < 2:
        yield from tqdm(map(run, tasks), what, len(tasks), disable=not tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _prepare_worker) as pool:
        yield from tqdm(pool.imap_unordered(run, tasks), what, len(tasks))
        pool.close()
        pool.join()


def run_cases(
    nulls: Mapping[str, int], effects: Mapping[str, int], folder: Path, workers: int
) -> list[dict[str, Any]]:
    """Run the cases that are not on record; return the lines of all.

    Args:
        nulls, effects: name -> number of cases.
        folder: of the record and the trained networks.
        workers: processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, record = digest_source(), folder / "cases.jsonl"
    trainings = [(training, folder) for training in list_trainings(nulls)]
    trainings = [task for task in trainings if not task[0].path(folder).exists()]
    for _ in run_tasks(_run_training, trainings, workers, "training"):
        pass
    wanted = [
        Case(kind, name, number, folder)
        for kind, counts in (("null", nulls), ("effect", effects))
        for name, count in counts.items()
        for number in range(count)
    ]
    lines = read_lines(record, source)
    missing = [case for case in wanted if case.key not in lines]
    with record.open("a", encoding="utf-8") as file:
        for line in run_tasks(_run_case, missing, workers, "cases"):
            if line["source"] != source:
                raise UserError("The package's source was changed meanwhile: start again.")
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines[line["kind"], line["name"], line["case"]] = line
    return [lines[case.key] for case in wanted]


# ------------------------------------------------------------ the report


def count_decided(lines: Sequence[Mapping[str, Any]], claim: str) -> dict[str, Any]:
    """Count the cases in which a claim is decided, if only for one pair of networks."""
    verdicts = [set(line["verdicts"].get(claim, ["not judged"])) for line in lines]
    decided = sum(bool(found & set(DECIDES)) for found in verdicts)
    counts = Counter(outcome for found in verdicts for outcome in found)
    share = wilson(decided, len(verdicts))
    return {
        "decided": decided,
        "n": len(verdicts),
        "share": share.value,
        "low": share.low,
        "high": share.high,
        "verdicts": dict(counts),
    }


def count_found(lines: Sequence[Mapping[str, Any]], effect: Effect) -> dict[str, Any]:
    """Count the cases in which an effect is found."""
    verdicts = [line["verdicts"].get(effect.claim, ["not judged"]) for line in lines]
    found = sum(set(each) == {effect.expected} for each in verdicts)
    share = wilson(found, len(verdicts))
    return {
        "claim": effect.claim,
        "planned": effect.size,
        "classes": effect.classes,
        "expected": effect.expected,
        "found": found,
        "n": len(verdicts),
        "share": share.value,
        "low": share.low,
        "high": share.high,
        "verdicts": dict(Counter(outcome for each in verdicts for outcome in each)),
    }


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of each null and claim, and of each effect, and seconds a case."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["kind"], line["name"]), []).append(line)
    summary: dict[str, Any] = {"nulls": {}, "effects": {}, "seconds": {}}
    for (kind, name), group in groups.items():
        summary["seconds"][name] = float(np.median([line["seconds"] for line in group]))
        if kind == "null":
            claims = NULLS[name].claims
            summary["nulls"][name] = {claim: count_decided(group, claim) for claim in claims}
        else:
            summary["effects"][name] = count_found(group, EFFECTS[name])
    return summary


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['share']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def format_nulls(nulls: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a table in Markdown: null x claim."""
    lines = [f"| null | {' | '.join(CLAIMS)} |", "| --- |" + " --- |" * len(CLAIMS)]
    for name, row in nulls.items():
        cells = []
        for claim in CLAIMS:
            if claim not in row:
                cells.append("–")
                continue
            cell = row[claim]
            judged = cell["n"] - cell["verdicts"].get("not judged", 0)
            text = f"{cell['decided']} of {cell['n']}, {_percent(cell)}; judged {judged}"
            cells.append(text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_effects(effects: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table in Markdown: an effect a row."""
    lines = [
        "| claim | planned | classes | expected | found | otherwise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in effects.values():
        others = ", ".join(
            f"{outcome} {count}"
            for outcome, count in row["verdicts"].items()
            if outcome != row["expected"]
        )
        lines.append(
            f"| {row['claim']} | {row['planned']:+.2f} | {row['classes']} | {row['expected']} | "
            f"{row['found']} of {row['n']}, {_percent(row)} | {others or '–'} |"
        )
    return "\n".join(lines)


_PAGE = """# How far the verdicts can be trusted

Made by `python -m benchmarks.calibration --table {path}`, which can be killed and goes on. Every
case is judged by the rules of this version of the package, on networks and images of its own.

## Where there is nothing to find

A *null* is a way to make networks and images of which a claim is not true, nor its opposite. There
a verdict should say "inconclusive" or "not judged"; it *decides* if it says "supported" or "not
supported" all the same, which should happen in at most 5 % of cases. Given are the cases decided,
their share with Wilson's 95 % interval, and how many were judged at all: a rule may refuse networks
that are no better than chance, or an AT network that is no more robust than the standard one. A
dash: the null is none for this claim.

{nulls}

{helps}

In all of them the attack is PGD-5 (eps 0.15 on digits, 8/255 on CIFAR-10), each case has its own
{fewest} to 359 test images, and intervals rest on {replicates} bootstrap replicates. Trained
networks are ResNet-18 of width {width}, {epochs} epochs on digits, {seeds} seeds of each method:
the cases of a null share them, and are not independent to that extent. All networks are said to
have been trained with equal compute, so that no verdict is withheld for want of a record.

## Where there is something to find

Networks *built* so that a claim is true, or its opposite, by twice the least effect that matters
({least}). Their channels are the pixels of {images} drawn images, their head is fixed, and the
attack moves pixels as planned: how many images of each class it breaks, how far NR channels rise,
how far activations turn. The planned value holds for the distribution that images are drawn from;
a case deviates from it by chance. An effect is *found* if the verdict is the expected one, which
should happen in at least 90 % of cases.

{effects}

C1: centred cosine, AT minus standard. C2: NR mass, adversarial minus natural: of all images and of
those that withstand the attack the smaller, where the standard network's rises too. C3: rank
correlation across the classes of signed mass and robust accuracy. C4: robust accuracy, CIFS minus
AT ({swapped} of images have another fate by chance). C5: adversarial NR mass, AT minus CIFS.
NR damage: share of the margin's fall by negatively relevant channels that rise, beside one half.

## Versions and hardware

{versions}. Seeds: 0 to the number of cases less 1. Seconds a case (median): {seconds}.
"""


def write_page(path: Path, summary: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Write the page with the tables."""
    names = [*summary["nulls"]]
    versions = [f"channelscope {machine['channelscope']} (source {digest_source()})"]
    versions += [f"{name} {find_version(name)}" for name in ("torch", "numpy", "scipy")]
    versions += [f"Python {machine['python']}", f"{machine['cpu']}, {machine['cores']} cores"]
    seconds = (f"{name} {value:.1f}" for name, value in summary["seconds"].items())
    text = _PAGE.format(
        path=path,
        nulls=format_nulls(summary["nulls"]),
        helps="\n".join(f"- **{name}**: {NULLS[name].help}" for name in names),
        effects=format_effects(summary["effects"]),
        fewest=FEWEST_IMAGES,
        replicates=REPLICATES,
        width=WIDTH,
        epochs=EPOCHS,
        seeds=SEEDS,
        least=", ".join(f"{claim} {value:g}" for claim, value in LEAST.items()),
        images=PLANTED_IMAGES,
        swapped=f"{SWAPPED:.0%}",
        versions=", ".join(versions),
        seconds=", ".join(seconds),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200, help="of each null (%(default)s)")
    parser.add_argument("--effect-cases", type=int, default=100, help="of each (%(default)s)")
    parser.add_argument("--nulls", nargs="*", choices=NULLS, default=list(NULLS))
    parser.add_argument("--effects", nargs="*", choices=EFFECTS, default=list(EFFECTS))
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the record (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--table", type=Path, help="write the page here, as docs/CALIBRATION.md")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    lines = run_cases(
        dict.fromkeys(options.nulls, options.cases),
        dict.fromkeys(options.effects, options.effect_cases),
        options.folder,
        options.workers,
    )
    summary = summarise(lines)
    print(format_nulls(summary["nulls"]), format_effects(summary["effects"]), sep="\n\n")
    print("Seconds a case:", json.dumps(summary["seconds"]))
    report = {"source": digest_source(), "least": LEAST, **summary, "cases": lines}
    write_report(report, machine, options.json)
    if options.table:
        write_page(options.table, summary, machine)


if __name__ == "__main__":
    main()
