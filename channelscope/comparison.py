"""Compare networks channel by channel: activation, relevance, robustness, and verdicts on the paper's claims."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from channelscope import alignment, claims
from channelscope.attacks import FGSM, PGD, Attack, parse
from channelscope.checkpoints import Checkpoint, versions
from channelscope.data import Dataset, Split, as_dataset, stratified
from channelscope.errors import UserError
from channelscope.files import replacing_folder
from channelscope.measurement import Measurement, measure
from channelscope.objectives import Gated, Joint
from channelscope.stats import bootstrap_weights
from channelscope.training import Recipe

Network = nn.Module | str | Path

# The frames' columns; those of numbers in the second tuple.
_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "activations": (
        ("model", "data", "layer", "class"),
        ("channel", "magnitude", "frequency", "relevance", "count"),
    ),
    "alignment": (("model", "layer", "class", "measure"), ("value", "low", "high")),
    "robustness": (("model", "attack", "class"), ("accuracy", "low", "high", "count")),
    "verdicts": (("claim", "models", "layer", "verdict", "statement"), ("estimate", "low", "high")),
    "training": (
        ("model", "best"),
        ("epoch", "loss", "accuracy", "lr", "val_natural", "val_robust", "seconds"),
    ),
}


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found, as tidy frames; figures and the report are drawn from it alone, without networks.

    Args:
        activations: model, data (natural or adversarial), layer, class, channel -> magnitude, frequency, relevance,
            count. A class without images has count 0 and NaN.
        alignment: model, layer, class ("all": mean over classes; "across": over the classes), measure -> value, low,
            high; see ``channelscope.alignment``.
        robustness: model, attack ("natural", each attack, "worst": the worst case per image), class ("all" and each)
            -> accuracy, low, high, count. Fractions.
        verdicts: claim, models, layer -> verdict, estimate, low, high, statement; see ``channelscope.claims``.
        training: model, epoch -> loss, accuracy, val_natural, val_robust, lr, seconds, best; empty where unknown.
        arrays: the images' indices and labels, and by model their correctness under each attack.
        meta: settings, seed, versions, data fingerprint and the models' descriptions, as plain values.
    """

    activations: pd.DataFrame
    alignment: pd.DataFrame
    robustness: pd.DataFrame
    verdicts: pd.DataFrame
    training: pd.DataFrame
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def save(self, folder: Path | str) -> Path:
        """Write tables (CSV), arrays (npz), ``meta.json``, figures (PDF, PNG) and ``report.html`` into a folder.

        An earlier comparison there is replaced, when the new one is complete.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        check_folder(folder)
        with replacing_folder(folder) as temporary:
            for name in _COLUMNS:
                getattr(self, name).to_csv(temporary / f"{name}.csv", index=False)
            np.savez_compressed(temporary / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
            (temporary / "meta.json").write_text(json.dumps(self.meta, indent=1, ensure_ascii=False), "utf-8")
            self.draw(temporary)
        return folder

    def draw(self, folder: Path | str) -> None:
        """Draw the figures into ``folder/figures`` and write ``folder/report.html``, from the frames alone."""
        from channelscope import plots, report

        plots.draw(self, Path(folder) / "figures")
        report.write_report(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a comparison that ``save`` wrote.

        Raises:
            UserError: for a folder that is missing, damaged or holds no comparison.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise UserError(f"{folder} holds no comparison: name a folder that 'channelscope compare' wrote.")
        try:
            frames = {name: _read(folder / f"{name}.csv", *columns) for name, columns in _COLUMNS.items()}
            with np.load(folder / "arrays.npz", allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            meta = json.loads((folder / "meta.json").read_text("utf-8"))
            if not {"models", "data", "attack", "eps"} <= meta.keys():
                raise ValueError("settings are missing")
        except Exception as error:
            raise UserError(f"The comparison in {folder} is damaged ({error}): run 'channelscope compare' again.") from error
        return cls(**frames, arrays=arrays, meta=meta)


def compare(
    models: Mapping[str, Network] | Sequence[str | Path],
    data: Any = "digits",
    *,
    attack: str | Attack = "pgd-20",
    eps: float | None = None,
    layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    images: int | None = None,
    methods: Mapping[str, str] | None = None,
    seed: int = 0,
    replicates: int = 200,
    level: float = 0.95,
    threshold: float = 0.01,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Compare networks on the test part of a data set and judge the claims of the CIFS paper on them.

    Every network gets the attack with the gradient passing through its masks, if it has any; a gated network also
    the same attack on its joint loss. "worst" is the worst case per image over these.

    Args:
        models: label -> network, or path of a checkpoint; or a sequence of paths, whose stems become the labels.
            A network takes images in [0, 1] and is used in eval mode, where it is, and left as found.
        data: a data set, its name, or what else ``data.as_dataset`` takes.
        attack: a short name (see ``attacks.parse``) or any attack. It makes the adversarial data.
        eps: the radius of a named attack's ball; None for that of the data set's recipe (8/255 but for digits).
        layers: names of layers to measure, for all networks or by label; None for the penultimate layer of each.
        images: how many images of the test part to use, class shares kept; None for all.
        methods: label -> standard, at, cifs or cas, for networks whose checkpoints do not say so.
        seed: of the choice of images, the attacks' random starts and the bootstrap.
        replicates, level: of the bootstrap over images behind all intervals.
        threshold: share of an image's largest channel above which a channel is active.
        batch_size: images per forward pass.
        device: where checkpoints are run.
        progress: show a progress bar.

    Raises:
        UserError: for models, data, layers or settings that do not fit together.
    """
    if replicates < 1 or not 0 < level < 1 or batch_size < 1:
        raise UserError("A comparison needs at least one replicate, a level between 0 and 1 and images per batch.")
    networks = _networks(models, methods or {}, device)
    dataset = as_dataset(data)
    part = dataset.test if images is None else dataset.test.subset(stratified(dataset.test.labels, images, seed))
    attack = _attack(attack, eps, dataset)
    for subject in networks:
        subject.check(dataset)
    weights = bootstrap_weights(len(part), replicates, seed)
    with tqdm(total=len(part) * len(networks), unit="img", disable=not progress) as bar:
        for subject in networks:
            bar.set_description(subject.label)
            subject.measurement = measure(
                subject.network,
                part,
                len(dataset.classes),
                layers=layers.get(subject.label) if isinstance(layers, Mapping) else layers,
                attacks=_attacks(attack, subject.network),
                weights=weights,
                threshold=threshold,
                batch_size=batch_size,
                seed=seed,
                progress=bar.update,
            )
    settings = {
        "attack": str(attack),
        "eps": attack.eps,
        "seed": seed,
        "replicates": replicates,
        "level": level,
        "threshold": threshold,
        "batch_size": batch_size,
    }
    return _assemble(networks, dataset, part, settings)


@dataclass
class _Subject:
    """One network under comparison."""

    label: str
    network: nn.Module
    method: str | None
    checkpoint: Checkpoint | None
    measurement: Measurement = field(init=False)

    def check(self, dataset: Dataset) -> None:
        names = self.checkpoint.class_names if self.checkpoint else None
        if names and names != dataset.classes:
            raise UserError(
                f"{self.label} was trained on other classes ({_some(names)}) than {dataset.name} has "
                f"({_some(dataset.classes)}): choose the data that it was trained on."
            )

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the network's training."""
        return self.checkpoint.meta if self.checkpoint else {}

    @property
    def compute(self) -> dict[str, Any] | None:
        """What the training cost, as far as it is on record."""
        settings = self.training.get("settings")
        if not isinstance(settings, dict):
            return None
        costly = ("arch", "width", "epochs", "batch_size", "attack_steps")
        return {name: settings["recipe"][name] for name in costly} | {"data": settings["data"]}

    @property
    def description(self) -> dict[str, Any]:
        known: dict[str, Any] = {"method": self.method, "layers": list(self.measurement.layers)}
        if self.checkpoint:
            known |= dataclasses.asdict(self.checkpoint.architecture)
            known["gates"] = [dataclasses.asdict(gate) for gate in self.checkpoint.gates]
            known |= {name: self.training[name] for name in ("settings", "versions") if name in self.training}
        else:
            known["arch"] = type(self.network).__name__
        return known | {"attacks": [name for name in self.measurement.hits if name != "natural"]}

    @property
    def evidence(self) -> claims.Evidence:
        measured = self.measurement
        overall, by_class = measured.accuracy(measured.worst)
        return claims.Evidence(
            model=self.label,
            method=self.method,
            compute=self.compute,
            measures={layer: measured.measures(layer) for layer in measured.layers},
            robust=by_class,
            robust_overall=overall,
            decided_by=measured.decided_by,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _networks(
    models: Mapping[str, Network] | Sequence[str | Path], methods: Mapping[str, str], device: str
) -> list[_Subject]:
    """Load what is named by path, and label what is not."""
    if not isinstance(models, Mapping):
        labels = [Path(path).stem for path in models]
        if len(set(labels)) < len(labels):
            raise UserError("Two models have the same file name: give each its own label.")
        models = dict(zip(labels, models, strict=True))
    if not models:
        raise UserError("There is nothing to compare: name at least one model.")
    if unknown := methods.keys() - models.keys():
        raise UserError(f"There is no model {min(unknown)!r} among {', '.join(models)}.")
    subjects = []
    for label, model in models.items():
        if isinstance(model, nn.Module):
            subjects.append(_Subject(label, model, methods.get(label), None))
        else:
            checkpoint = Checkpoint.read(model)
            method = methods.get(label, checkpoint.method)
            subjects.append(_Subject(label, checkpoint.build().to(device), method, checkpoint))
    return subjects


def _attack(attack: str | Attack, eps: float | None, dataset: Dataset) -> Attack:
    if not isinstance(attack, str):
        if eps is not None:
            raise UserError("An attack that is given as such has its own eps: set it there.")
        return attack
    return parse(attack, eps=Recipe.suited_to(dataset.name).eps if eps is None else eps)


def _attacks(attack: Attack, network: nn.Module) -> dict[str, Attack]:
    """Name the attacks on a network: a gated one is also attacked on its joint loss."""
    attacks = {str(attack): attack}
    if isinstance(network, Gated) and isinstance(attack, PGD | FGSM):
        joint = dataclasses.replace(attack, objective=Joint())
        attacks[str(joint)] = joint
    return attacks


def _assemble(networks: Sequence[_Subject], dataset: Dataset, part: Split, settings: dict[str, Any]) -> Comparison:
    """Put the measurements into frames."""
    level = settings["level"]
    judged = claims.verdicts([subject.evidence for subject in networks], level)
    packages = ("torchvision", "numpy", "scipy", "pandas", "matplotlib")
    meta = {
        "models": {subject.label: subject.description for subject in networks},
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "images": len(part),
            "fingerprint": part.fingerprint(),
        },
        **settings,
        "versions": versions() | {name: version(name) for name in packages},
        "hardware": {"device": str(_device(networks[0].network)), "threads": torch.get_num_threads()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    arrays = {"labels": part.labels.numpy()}
    for index, subject in enumerate(networks):
        arrays |= {f"correct/{index}/{name}": hits.numpy() for name, hits in subject.measurement.hits.items()}
    histories = [
        {"model": subject.label} | row for subject in networks for row in subject.training.get("history", ())
    ]
    return Comparison(
        activations=pd.concat([_activations(subject, dataset.classes) for subject in networks], ignore_index=True),
        alignment=_frame("alignment", [row for s in networks for row in _alignment(s, dataset.classes, level)]),
        robustness=_frame("robustness", [row for s in networks for row in _robustness(s, dataset.classes, level)]),
        verdicts=_frame("verdicts", [dataclasses.asdict(verdict) for verdict in judged]),
        training=_frame("training", histories),
        arrays=arrays,
        meta=meta,
    )


def _frame(name: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*_COLUMNS[name][0], *_COLUMNS[name][1]])


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


def _activations(subject: _Subject, classes: Sequence[str]) -> pd.DataFrame:
    """Lay out one network's statistics, a row for each kind of data, layer, class and channel."""
    measured, frames = subject.measurement, []
    for data, statistics in (("natural", measured.natural), ("adversarial", measured.adversarial)):
        for layer, stats in statistics.items():
            rows = pd.MultiIndex.from_product([classes, range(stats.channels)], names=["class", "channel"])
            frame = rows.to_frame(index=False)
            frame["magnitude"] = stats.magnitude[0].flatten().numpy()
            frame["frequency"] = stats.frequency[0].flatten().numpy()
            frame["relevance"] = measured.relevance[layer].magnitude[0].flatten().numpy()
            frame["count"] = stats.count[0].repeat_interleave(stats.channels).long().numpy()
            frames.append(frame.assign(model=subject.label, data=data, layer=layer))
    return pd.concat(frames, ignore_index=True)[[*_COLUMNS["activations"][0], *_COLUMNS["activations"][1]]]


def _alignment(subject: _Subject, classes: Sequence[str], level: float) -> Iterator[dict[str, Any]]:
    """Give the alignment measures' rows: each class, all classes, and the correlation across them."""
    evidence = subject.evidence
    for layer, measures in evidence.measures.items():
        for measure, values in measures.items():
            columns = {"all": alignment.mean_over_classes(values)} | dict(zip(classes, values.T, strict=True))
            for name, replicates in columns.items():
                row = {"model": subject.label, "layer": layer, "class": name, "measure": measure}
                yield row | vars(alignment.estimate(replicates, level))
        link = alignment.across_classes(measures["relevance_spearman_adversarial"], evidence.robust)
        row = {"model": subject.label, "layer": layer, "class": "across", "measure": "relevance_robust_correlation"}
        yield row | vars(alignment.estimate(link, level))


def _robustness(subject: _Subject, classes: Sequence[str], level: float) -> Iterator[dict[str, Any]]:
    """Give the accuracy's rows: natural, under each attack and in the worst case, over all images and by class."""
    measured = subject.measurement
    counts = torch.bincount(measured.labels, minlength=len(classes)).tolist()
    for attack, hits in {**measured.hits, "worst": measured.worst}.items():
        overall, by_class = measured.accuracy(hits)
        columns = [("all", overall, len(hits)), *zip(classes, by_class.T, counts, strict=True)]
        for name, replicates, count in columns:
            found = alignment.estimate(replicates, level)
            row = {"model": subject.label, "attack": attack, "class": name, "accuracy": found.value}
            yield row | {"low": found.low, "high": found.high, "count": count}


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "meta.json").is_file():
        raise UserError(f"{folder} holds other files, which would be lost: choose another --out.")


def _read(path: Path, names: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame:
    """Read a table; a class may be called NA or nan, so only columns of numbers know of missing values."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if set(frame.columns) != {*names, *numbers}:
        raise ValueError(f"{path.name} has other columns")
    for column in numbers:
        frame[column] = pd.to_numeric(frame[column].replace("", "nan"))
    if "best" in frame:
        frame["best"] = frame["best"] == "True"
    return frame
