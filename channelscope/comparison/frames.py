"""The result of a comparison: tidy frames, saved and loaded whole."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from channelscope import files, reading
from channelscope.errors import UserError
from channelscope.files import atomic_folder, check_digests, write_digests
from channelscope.locks import lock_path, recover_unlocked
from channelscope.reading import read_meta, read_table
from channelscope.weights import GATE_LOG

# The frames' columns; those of numbers in the second tuple.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
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
    "gates": (("model", "layer"), ("epoch", *GATE_LOG)),
    "flow": (
        ("model", "layer", "class"),
        ("channel", "count", "change", "silenced", "awakened", "p", "q"),
    ),
    "confusion": (("model", "data", "class", "answer"), ("count",)),
    "decay": (("model", "layer", "varied", "measure"), ("at", "value", "low", "high")),
    "differences": (
        ("model", "other", "layer", "other_layer", "class", "measure"),
        ("value", "low", "high", "p", "q"),
    ),
    "masks": (("model", "layer", "data", "class"), ("channel", "mask")),
    "spread": (("model", "layer", "data", "class"), ("value", "low", "high")),
    "leakage": (("model", "layer", "data", "measure"), ("value", "low", "high")),
    "matching": (("model", "layer", "other", "other_layer"), ("cka", "low", "high")),
    "matched": (
        ("model", "layer", "other", "other_layer"),
        ("channel", "other_channel", "correlation"),
    ),
    "excitation": (("model", "layer", "data"), ("channel", "rank", "image", "activation")),
}
# What of meta.json is shown or reckoned with.
_MODEL = {
    "method": str | None,
    "arch": str,
    "layers": [str],
    "penultimate?": [str],
    "gates?": [{"kind?": str}],
    "settings?": {"recipe?": {"attack?": {"steps?": int, "eps?": int | float}}},
    "digest?": str,
}
_META = {
    "models": {"*": _MODEL},
    "data": {"name": str, "fingerprint": str, "images": int, "classes": [str]},
    "attack": str,
    "eps": int | float,
    "level": int | float,
    "replicates": int,
    "seed": int,
    "versions?": dict,
    "hardware?": dict,
}
# Where a layer is a gated one or a word for those of several models, which need not be measured.
_NOT_MEASURED = {"gates", "masks", "spread", "leakage", "verdicts"}
_OF_NETWORKS = {"decay", "differences"}  # have rows of whole networks too, which name no layer


def tidy(name: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay rows out as the frame of that name, with its columns even where there are no rows."""
    return pd.DataFrame(rows, columns=[*COLUMNS[name][0], *COLUMNS[name][1]])


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
        gates: model, layer, epoch -> probe_natural, probe_robust, mask_natural, mask_adversarial, mask_cosine, of each
            gate of CIFS on the validation images: accuracy of the probe, share of the mask in effect (0 to 1, see
            ``selection.mask_share``) and cosine between an image's natural and adversarial mask; empty where no model
            has a log of such gates.
        flow: model, layer, class, channel -> count (images), change (mean over them of adversarial less natural
            activation), silenced and awakened (shares of the images on which the channel is active on natural data
            alone, on adversarial data alone), p and q of the change; see ``channelscope.comparison.flow``.
        confusion: model, data, class (the true one), answer -> count of images; answers not given have no row.
        decay: model, layer, varied ("eps" or "step"), measure -> at, value, low, high; empty unless asked for.
        differences: model, other, layer, other_layer, class ("all" and each), measure -> value (model less other), low,
            high, p, q; see ``channelscope.comparison.differences``.
        masks: model, layer (the gated one), data, class, channel -> mask (mean over the images).
        spread: model, layer (the gated one), data, class ("all" and each) -> value, low, high: the share of the mask
            that is in effect, mean over the images; see ``selection.mask_share``.
        leakage: model, layer, data, measure -> value, low, high, of what gates tell about the labels; see
            ``channelscope.comparison.leakage``.
        matching: model, layer, other, other_layer -> cka, low, high, of natural activations; see ``matching.cka``.
        matched: model, layer, other, other_layer, channel -> other_channel, correlation, of layers in the same place;
            see ``matching.match``.
        excitation: model, layer, data, channel, rank -> image (its index), activation: what excites a channel most.
        arrays: the images' labels, and by model their correctness under each attack; small pictures of the images that
            excite channels most, see ``channelscope.comparison.excitation.thumbnails``.
        meta: settings, seed, versions, data fingerprint and the models' descriptions, as plain values.
    """

    activations: pd.DataFrame
    alignment: pd.DataFrame
    robustness: pd.DataFrame
    verdicts: pd.DataFrame
    training: pd.DataFrame
    gates: pd.DataFrame
    flow: pd.DataFrame
    confusion: pd.DataFrame
    decay: pd.DataFrame
    differences: pd.DataFrame
    masks: pd.DataFrame
    spread: pd.DataFrame
    leakage: pd.DataFrame
    matching: pd.DataFrame
    matched: pd.DataFrame
    excitation: pd.DataFrame
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def save(self, folder: Path | str, *, progress: bool = True) -> Path:
        """Write tables (CSV), arrays (npz), ``meta.json``, figures (PDF, PNG) and ``report.html`` into a folder.

        An earlier comparison there is replaced, when the new one is complete.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder).resolve()  # of a link, what it points to is replaced
        check_folder(folder)
        with lock_path(folder), atomic_folder(folder) as temporary:
            for name in COLUMNS:
                getattr(self, name).to_csv(temporary / f"{name}.csv", index=False)
            np.savez_compressed(temporary / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
            (temporary / "meta.json").write_text(
                json.dumps(self.meta, indent=1, ensure_ascii=False), "utf-8"
            )
            write_digests(temporary)
            self.draw(temporary, progress=progress)
        return folder

    def draw(
        self,
        folder: Path | str,
        *,
        style: str | None = None,
        wide: bool = False,
        latex: bool = False,
        only: Sequence[str] = (),
        formats: Sequence[str] = ("pdf", "png"),
        progress: bool = True,
    ) -> None:
        """Draw figures into ``folder/figures`` and write ``folder/report.html``, from the frames alone.

        Each figure's data (CSV) lies beside it, and the captions of all. Other figures that lie there stay.

        Args:
            folder: where to write.
            style: "icml", "neurips" or "ieee": a paper's width and fonts; None for the default, or the surrounding
                ``plots.style``'s.
            wide: make figures as wide as the paper's text rather than one column.
            latex: let LaTeX set the text.
            only: claims ("c1"), kinds of figures ("magnitude") or names of figures; all if there is none.
            formats: of "pdf", "png" and "svg". The report shows the PNGs.
            progress: show a progress bar.

        Raises:
            UserError: for a style, a choice or a format that is unknown, or where LaTeX is missing.
        """
        from channelscope import report

        how: dict[str, Any] = {
            "style": style,
            "wide": wide,
            "latex": latex,
            "only": only,
            "formats": formats,
        }
        _plots().draw(self, Path(folder) / "figures", **how, progress=progress)
        report.write_report(self, Path(folder))

    def plot_magnitude(
        self, class_name: str, layer: str | None = None, *, style: str | None = None
    ) -> Figure:
        """Draw natural and adversarial magnitude per channel, for one class, a panel for each model."""
        return _plot("magnitude", style, self, class_name, layer)

    def plot_frequency(
        self, class_name: str, layer: str | None = None, *, style: str | None = None
    ) -> Figure:
        """Draw natural and adversarial activation frequency per channel, for one class, a panel for each model."""
        return _plot("frequency", style, self, class_name, layer)

    def plot_relevance(self, layer: str | None = None, *, style: str | None = None) -> Figure:
        """Draw magnitude against relevance per channel, for the most and the least robust class."""
        return _plot("relevance", style, self, layer)

    def plot_robustness(self, *, style: str | None = None) -> Figure:
        """Draw the accuracy of every model under every attack, and in the worst case."""
        return _plot("robustness", style, self)

    def plot_nr_share(self, layer: str | None = None, *, style: str | None = None) -> Figure:
        """Draw the share of the activation mass on negatively relevant channels, by class and model."""
        return _plot("nr_share", style, self, layer)

    def plot_alignment_robustness(
        self, layer: str | None = None, *, style: str | None = None
    ) -> Figure:
        """Draw each class's robust accuracy against its alignment of activation with relevance."""
        return _plot("alignment_robustness", style, self, layer)

    def plot_training(self, *, style: str | None = None) -> Figure:
        """Draw the learning curves of the models that have a log."""
        return _plot("training", style, self)

    def plot_gates(self, *, style: str | None = None) -> Figure:
        """Draw each CIFS gate's probe accuracy and the share of channels that its mask lets through, by epoch."""
        return _plot("gates", style, self)

    def plot_leakage(self, *, style: str | None = None) -> Figure:
        """Draw what gated networks answer when their gates are told a class, and what their masks tell of it."""
        return _plot("leakage", style, self)

    def plot_masks(self, model: str, gate: str, *, style: str | None = None) -> Figure:
        """Draw the mean mask of a gate by class and channel, on natural and on adversarial images."""
        return _plot("masks", style, self, model, gate)

    def plot_mask_share(self, *, style: str | None = None) -> Figure:
        """Draw the share of the channels that each gate's mask lets through, by class."""
        return _plot("mask_share", style, self)

    def plot_likeness(self, *, style: str | None = None) -> Figure:
        """Draw how alike the last layers of each two models are (CKA)."""
        return _plot("likeness", style, self)

    def plot_layer_likeness(self, model: str, other: str, *, style: str | None = None) -> Figure:
        """Draw how alike each layer of a model is to each of another (CKA)."""
        return _plot("layer_likeness", style, self, model, other)

    def plot_matched_channels(
        self, model: str, other: str, layer: str, *, style: str | None = None
    ) -> Figure:
        """Draw how far the attack moves the channels of a model's layer, and their counterparts in another model."""
        return _plot("matched_channels", style, self, model, other, layer)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a comparison that ``save`` wrote.

        Raises:
            UserError: for a folder that is missing, damaged or holds no comparison.
        """
        folder = Path(folder)
        if not folder.exists():
            recover_unlocked(folder)
        if not (folder / "meta.json").is_file():
            raise UserError(
                f"{folder} holds no comparison: name a folder that 'channelscope compare' wrote."
            )
        try:
            check_digests(folder, [*(f"{name}.csv" for name in COLUMNS), "arrays.npz", "meta.json"])
            frames = {
                name: read_table(folder / f"{name}.csv", *columns)
                for name, columns in COLUMNS.items()
            }
            frames["training"]["best"] = frames["training"]["best"] == "True"
            with reading.open_arrays(folder / "arrays.npz", within=folder) as archive:
                arrays = {name: archive[name] for name in archive.files}
            meta = read_meta(folder / "meta.json", _META)
            _check(frames, meta)
            _check_images(frames["excitation"], arrays, len(meta["data"]["classes"]))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The comparison in {folder} is damaged ({reason}): compare the models again."
            ) from error
        return cls(**frames, arrays=arrays, meta=meta)


def _plots() -> ModuleType:
    from channelscope import figures as plots

    return plots


def _plot(name: str, style: str | None, *arguments: Any) -> Figure:
    """Draw a figure in a style: the one of that name, or the one in force."""
    plots = _plots()
    figure: Figure = plots.paper.drawn(style, getattr(plots, name), *arguments)
    return figure


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison."""
    files.check_result_folder(
        folder,
        {f"{name}.csv" for name in COLUMNS},
        {"arrays.npz", "meta.json", "figures", "report.html"},
    )


def _check(frames: Mapping[str, pd.DataFrame], meta: Any) -> None:
    """Check that tables and settings are of one comparison; raises anything where they are not."""
    models, classes = set(meta["models"]), meta["data"]["classes"]
    for name in ("activations", "alignment", "robustness"):
        if set(frames[name]["model"]) != models or not models:
            raise ValueError(f"{name}.csv is of other models")
    for name, frame in frames.items():
        owners = {
            label for column in ("model", "other") if column in frame for label in frame[column]
        }
        if not owners <= models:
            raise ValueError(f"{name}.csv is of other models")
    if len(frames["flow"]) not in (
        0,
        len(frames["activations"]) / 2,
    ):  # of natural and adversarial data
        raise ValueError("flow.csv is of other channels than activations.csv")
    if set(frames["activations"]["class"]) != set(classes):
        raise ValueError("activations.csv is of other classes")
    _check_names(frames, classes)
    _check_channels(frames)
    if not all(known["layers"] for known in meta["models"].values()):
        raise ValueError("meta.json does not tell the layers")


def _check_names(frames: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> None:
    """Check that all is of layers that were measured and of known classes; raises ValueError where it is not."""
    measured = _layers(frames["activations"], "layer")
    if _layers(frames["alignment"], "layer") != measured:
        raise ValueError("alignment.csv is of other layers than activations.csv")
    for name, frame in frames.items():
        named = frame[frame["layer"] != ""] if name in _OF_NETWORKS else frame
        of_layers = [
            column
            for column in ("layer", "other_layer")
            if column in frame and name not in _NOT_MEASURED
        ]
        if any(not _layers(named, column) <= measured for column in of_layers):
            raise ValueError(f"{name}.csv is of layers that were not measured")
        of_classes = [column for column in ("class", "answer") if column in frame]
        if any(not {*frame[column]} <= {*classes, "all", "across"} for column in of_classes):
            raise ValueError(f"{name}.csv is of other classes")


def _layers(frame: pd.DataFrame, column: str) -> set[tuple[str, str]]:
    """Give the layers in a column, each with its model."""
    return {
        *zip(frame["other" if column == "other_layer" else "model"], frame[column], strict=True)
    }


def _check_channels(frames: Mapping[str, pd.DataFrame]) -> None:
    """Check that channels are numbers and what is known of them is finite; raises ValueError where they are not."""
    if set(frames["activations"]["data"]) != {"natural", "adversarial"}:
        raise ValueError("activations.csv is of other data")
    if np.isinf(
        frames["activations"][["magnitude", "frequency", "relevance"]].to_numpy(float)
    ).any():
        raise ValueError("activations.csv holds values that are not finite")
    for name, frame in frames.items():
        if "channel" in COLUMNS[name][1]:
            _check_counts(frame["channel"], f"channels in {name}.csv")
    for name in ("activations", "masks"):
        for (model, layer), rows in frames[name].groupby(["model", "layer"]):
            whole = math.prod(rows[axis].nunique() for axis in ("data", "class", "channel")) == len(
                rows
            )
            if not whole or any(
                set(rows[axis]) != set(frames["activations"][axis]) for axis in ("data", "class")
            ):
                raise ValueError(f"{name}.csv lacks rows of {layer} of {model}")
    for (model, layer), rows in frames["masks"].groupby(["model", "layer"]):
        blank = rows["mask"].isna()  # of a class without images
        if blank.all() or (blank.groupby(rows["class"]).nunique() > 1).any():
            raise ValueError(f"masks.csv lacks masks of {layer} of {model}")


def _check_counts(values: pd.Series, what: str) -> None:
    """Check that values are whole numbers from 0 up; raises ValueError where they are not."""
    numbers = values.to_numpy(float)
    if not (
        (numbers >= 0) & (numbers < 2**31) & (numbers == np.floor(numbers))
    ).all():  # NaN is none
        raise ValueError(f"{what} are not counted from 0 up")


def _check_images(excitation: pd.DataFrame, arrays: Mapping[str, np.ndarray], classes: int) -> None:
    """Check that the images that excite channels are there, and that their pictures are pictures."""
    _check_counts(excitation["image"], "images in excitation.csv")
    images = [excitation["image"].to_numpy(np.int64)]
    pictures = [
        name for name in arrays if name.startswith("thumbnails/") and not name.endswith("/images")
    ]
    for name in pictures:
        images.append(arrays[f"{name}/images"])
        if (
            arrays[name].dtype != np.uint8
            or arrays[name].ndim != 4
            or arrays[name].shape[:1] != images[-1].shape
        ):
            raise ValueError(f"{name} in arrays.npz holds no pictures")
    sizes = {arrays[name].shape[1:] for name in pictures}
    if len(sizes) > 1 or not all(map(min, sizes)):
        raise ValueError("arrays.npz holds pictures of sizes that do not belong together")
    if any(
        array.dtype.kind not in "iu" or array.min(initial=0) < 0
        for array in (*images, arrays["labels"])
    ):
        raise ValueError("arrays.npz has labels or images that are not counted from 0 up")
    labels = arrays["labels"][np.concatenate(images)]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError("arrays.npz has labels without a class")
