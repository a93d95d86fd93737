"""The result of an evaluation: tidy frames, saved and loaded whole."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from channelscope import files, reading
from channelscope.errors import UserError, suggest
from channelscope.files import atomic_folder, check_digests, write_digests
from channelscope.locks import lock_path, recover_unlocked
from channelscope.reading import read_meta, read_table

# The frames' columns; those of numbers in the second tuple.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "table": (
        ("model", "attack"),
        ("natural", "robust", "low", "high", "worst", "worst_low", "worst_high", "count"),
    ),
    "classes": (("model", "attack", "class"), ("accuracy", "low", "high", "count")),
    "worst": (("model", "decided_by"), ("natural", "robust", "low", "high", "count")),
    "parts": (("model", "attack", "part"), ("attacked", "broken")),
    "warnings": (("model", "check", "sentence", "evidence"), ()),
    "eps_sweep": (("model",), ("eps", "robust", "low", "high")),
}
# What of meta.json is shown or reckoned with.
_MODEL = {"method": str | None, "arch": str, "digest": str, "settings?": {"data?": {"name": str}}}
_META = {
    "models": {"*": _MODEL},
    "data": {"name": str, "fingerprint": str, "images": int, "classes": [str]},
    "attacks": [str],
    "eps": int | float,
    "norm": str,
    "level": int | float,
    "seed": int,
    "checks": int,
    "cascade": bool,
    "save_adversarial": bool,
    "versions": dict,
}
_OTHERS = {"arrays.npz", "meta.json", "figures", "robustbench", "adversarial"}


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found, as tidy frames. Accuracies are fractions.

    Args:
        table: a row a model and attack: natural accuracy; robust, the accuracy under this attack alone, with its
            interval low, high; worst, the accuracy in the worst case per image over this attack and those above it,
            with its interval; the number of images.
        classes: model, attack ("natural", each attack, "worst"), class -> accuracy, low, high, count.
        worst: a row a model: natural accuracy; robust, low, high: the worst case per image over all attacks;
            decided_by, the attack that breaks the most images.
        parts: model, attack, part -> how many images the part was given, and how many it broke. An attack without
            parts is its own.
        warnings: signs of gradient masking: model, check, sentence, evidence (JSON).
        eps_sweep: model, eps -> worst case over the attacks at this eps: robust, low, high; empty without a sweep.
        arrays: the labels, and ``correct/INDEX/ATTACK``: by model (its place in ``meta["models"]``) which images are
            classified correctly; True for an image that the attack did not break.
        meta: settings, seed, versions, hardware, data fingerprint and the models' descriptions, as plain values.
    """

    table: pd.DataFrame
    classes: pd.DataFrame
    worst: pd.DataFrame
    parts: pd.DataFrame
    warnings: pd.DataFrame
    eps_sweep: pd.DataFrame
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def save(self, folder: Path | str, *, adversarial: Path | None = None) -> Path:
        """Write tables (CSV), arrays (npz), ``meta.json``, figures and RobustBench's JSON into a folder.

        An earlier evaluation there is replaced, when the new one is complete.

        Args:
            folder: where to write.
            adversarial: a folder of adversarial images to be put in, on the same disk.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder).resolve()
        check_folder(folder)
        with lock_path(folder), atomic_folder(folder) as temporary:
            for name in COLUMNS:
                getattr(self, name).to_csv(temporary / f"{name}.csv", index=False)
            np.savez_compressed(temporary / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
            _write_json(temporary / "meta.json", self.meta)
            (temporary / "robustbench").mkdir()
            for index, model in enumerate(self.meta["models"]):
                name = re.sub(r"[^\w.-]", "_", model)[:60]
                _write_json(
                    temporary / "robustbench" / f"{index}-{name}.json", self.robustbench(model)
                )
            if adversarial is not None and adversarial.is_dir():
                shutil.copytree(adversarial, temporary / "adversarial", copy_function=_link)
            write_digests(temporary)
            _plots().draw(self, temporary / "figures")
        return folder

    def adversarial(self, folder: Path | str, model: str, attack: str) -> Float[ndarray, "n c h w"]:
        """Open the adversarial images of a model and an attack in the folder of this evaluation, read-only.

        Raises:
            UserError: where there are none, or the file is damaged.
        """
        index = list(self.meta["models"]).index(model)
        path = Path(folder) / "adversarial" / gallery_name(index, attack)
        if not path.is_file():
            raise UserError(
                f"{folder} holds no adversarial images of {attack} on {model}: evaluate with --save-adversarial, and "
                f"{attack} among its attacks."
            )
        try:
            with reading.check_regular(path, within=Path(folder)).open("rb") as file:
                reading.check_array(file, path.stat().st_size)
            check_digests(Path(folder), [f"adversarial/{path.name}"])
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            if (
                images.dtype != np.float32
                or images.ndim != 4
                or len(images) != self.meta["data"]["images"]
            ):
                raise ValueError("not the images of this evaluation")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): evaluate the models again.") from error
        return images

    def robustbench(self, model: str) -> dict[str, Any]:
        """Describe a model's result with the keys of RobustBench's ``model_info`` files.

        Accuracies are percentages, as text with two decimals; ``autoattack_acc`` is None unless AutoAttack was run,
        and not in a cascade;
        ``unreliable`` tells that there are signs of gradient masking.

        Raises:
            UserError: for a model that was not evaluated.
        """
        known = self.meta["models"]
        if model not in known:
            raise UserError(
                f"There is no model {model!r} in this evaluation.{suggest(model, known)}"
            )
        overall = self.worst[self.worst["model"] == model].iloc[0]
        auto = self.table[
            (self.table["model"] == model)
            & self.table["attack"].isin(["autoattack", "autoattack-l2"])
        ]
        auto = auto[:0] if self.meta["cascade"] else auto  # not its own then
        settings = known[model].get("settings") or {}
        return {
            "link": None,
            "name": model,
            "authors": None,
            "additional_data": None,
            "number_forward_passes": 1,
            "dataset": self.meta["data"]["name"],
            "venue": None,
            "architecture": known[model]["arch"],
            "eps": _fraction(self.meta["eps"]),
            "norm": {"inf": "Linf", "2": "L2"}[self.meta["norm"]],
            "clean_acc": _percentage(overall["natural"]),
            "reported": _percentage(overall["robust"]),
            "autoattack_acc": _percentage(auto.iloc[0]["robust"]) if len(auto) else None,
            "unreliable": bool((self.warnings["model"] == model).any()),
            "footnote": f"Worst case over {', '.join(self.table[self.table['model'] == model]['attack'])}; "
            f"n = {self.meta['data']['images']}, {self.meta['level']:.0%} interval [{_percentage(overall['low'])}, "
            f"{_percentage(overall['high'])}], seed {self.meta['seed']}.",
            "method": known[model]["method"],
            "training_data": (settings.get("data") or {}).get("name"),
            "versions": self.meta["versions"],
        }

    def plot(self, *, style: str | None = None) -> Figure:
        """Draw each model's accuracy under each attack and in the worst case, with intervals."""
        return _plot("attacks", style, self)

    def plot_eps(self, *, style: str | None = None) -> Figure:
        """Draw each model's worst-case accuracy against eps.

        Raises:
            UserError: for an evaluation without a sweep of eps.
        """
        return _plot("eps_sweep", style, self)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read an evaluation that ``save`` wrote.

        Raises:
            UserError: for a folder that is missing, damaged or holds no evaluation.
        """
        folder = Path(folder)
        if not folder.exists():
            recover_unlocked(folder)
        if not (folder / "meta.json").is_file() or not (folder / "worst.csv").is_file():
            raise UserError(
                f"{folder} holds no evaluation: name a folder that 'channelscope evaluate' wrote."
            )
        try:
            check_digests(folder, [*(f"{name}.csv" for name in COLUMNS), "arrays.npz", "meta.json"])
            frames = {
                name: read_table(folder / f"{name}.csv", *columns)
                for name, columns in COLUMNS.items()
            }
            with reading.open_arrays(folder / "arrays.npz", within=folder) as archive:
                arrays = {name: archive[name] for name in archive.files}
            meta = read_meta(folder / "meta.json", _META)
            _check(frames, arrays, meta)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The evaluation in {folder} is damaged ({reason}): evaluate the models again."
            ) from error
        return cls(**frames, arrays=arrays, meta=meta)


def gallery_name(model: int, attack: str) -> str:
    """Name the file of a model's adversarial images: by letters that every file system takes, and a digest."""
    safe = re.sub(r"[^A-Za-z0-9.-]", "_", attack)[:80]
    return f"{model}-{safe}-{hashlib.blake2b(attack.encode(), digest_size=4).hexdigest()}.npy"


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier evaluation."""
    files.check_result_folder(folder, {f"{name}.csv" for name in COLUMNS}, _OTHERS)


def _plots() -> ModuleType:
    import channelscope.figures.evaluations as plots

    return plots


def _plot(name: str, style: str | None, *arguments: Any) -> Figure:
    """Draw a figure in a style: the one of that name, or the one in force."""
    plots = _plots()
    figure: Figure = plots.paper.drawn(style, getattr(plots, name), *arguments)
    return figure


def _check(frames: Mapping[str, pd.DataFrame], arrays: Mapping[str, np.ndarray], meta: Any) -> None:
    """Check that tables and settings are of one evaluation; raises anything where they are not."""
    models, n = list(meta["models"]), meta["data"]["images"]
    if (
        not models
        or list(frames["worst"]["model"]) != models
        or list(dict.fromkeys(frames["table"]["model"])) != models
    ):
        raise ValueError("the tables are of other models")
    if any(frames[name]["count"].isna().any() for name in ("table", "worst", "classes")):
        raise ValueError("a table is incomplete")
    if meta["norm"] not in ("inf", "2"):
        raise ValueError("meta.json has an unknown norm")
    kinds = {name: "b" if name.startswith("correct/") else "iu" for name in arrays}
    if any(
        array.shape != (n,) or array.dtype.kind not in kinds[name] for name, array in arrays.items()
    ) or any(
        f"correct/{models.index(row.model)}/{row.attack}" not in arrays
        for row in frames["table"].itertuples()
    ):
        raise ValueError("arrays.npz is of other images or attacks")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")


def _link(source: str, target: str) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _percentage(share: float) -> str:
    return f"{100 * share:.2f}"


def _fraction(eps: float) -> str:
    levels = round(255 * float(eps), 4)
    return f"{levels:g}/255" if levels.is_integer() and 0 < eps < 1 else f"{eps:g}"
