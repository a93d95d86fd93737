"""The result of an intervention: tidy frames, saved and loaded whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pandas as pd
from matplotlib.figure import Figure

from channelscope import files
from channelscope.errors import UserError
from channelscope.files import atomic_folder, check_digests, write_digests
from channelscope.locks import lock_path, recover_unlocked
from channelscope.reading import read_meta, read_table

# The frames' columns; those of numbers in the second tuple.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "curves": (
        ("model", "layer", "scorer", "curve", "order", "data"),
        ("channels", "fraction", "accuracy", "low", "high"),
    ),
    "areas": (("model", "layer", "scorer", "order", "data"), ("area", "low", "high")),
    "league": (("model", "layer", "scorer", "order", "data"), ("value", "low", "high", "rank")),
    "verdicts": (
        ("claim", "model", "layer", "scorer", "verdict", "statement"),
        (
            *("estimate", "low", "high"),
            *("over_random", "over_random_low", "over_random_high"),
            *("natural", "natural_low", "natural_high"),
        ),
    ),
}


_PLACES = set(
    product(("nr", "pr", "both"), ("natural", "adversarial"))
)  # of a scorer, in the league
# What of meta.json is shown.
_META = {
    "models": {"*": {"method": str | None, "arch": str, "layers": [str]}},
    "data": {"images": int},
    "attack": str,
    "relevant_to": str,
    "ranked_on": {"part": str},
    "eps": int | float,
    "level": int | float,
    "replicates": int,
    "seed": int,
    "notes": {"*": [str]},
}


@dataclass(frozen=True)
class Interventions:
    """What ``intervene`` found, as tidy frames; the figures are drawn from it alone, without networks.

    Accuracies are fractions. data is "natural" or "adversarial"; order is "nr" (the most negatively relevant channels
    first), "pr" (the most positively relevant first) or "random", whose scorer is "random" too.

    Args:
        curves: model, layer, scorer, curve ("deletion": so many channels are suppressed; "insertion": all but so many
            are), order, data, channels, their fraction of the layer's -> accuracy, low, high. What the first channels
            of one order insert, the last of the opposite order have left: the insertion curves are the deletion
            curves, read from the other end.
        areas: model, layer, scorer, order, data -> area under the deletion curve, in [0, 1], low, high. That under the
            insertion curve of the opposite order is the same.
        league: model, layer, scorer, order, data -> value, low, high, rank: how far the deletion curve lies from the
            random one on the side where a true ranking puts it, as an area: above it for "nr", below it for "pr", and
            the mean of the two for "both". The higher, the truer; rank 1 is the highest of the scorers.
        verdicts: "C4 by intervention", model, layer, scorer -> verdict, statement; estimate: the change of the robust
            accuracy; over_random: what it is beyond that of random suppression; natural: the change of the natural
            accuracy; each with low and high.
        meta: settings, seed, versions, data fingerprint and the models' descriptions, as plain values.
    """

    curves: pd.DataFrame
    areas: pd.DataFrame
    league: pd.DataFrame
    verdicts: pd.DataFrame
    meta: dict[str, Any]

    def save(self, folder: Path | str) -> Path:
        """Write tables (CSV), ``meta.json`` and figures (PDF, PNG) into a folder.

        Earlier interventions there are replaced, when the new ones are complete.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder).resolve()
        check_folder(folder)
        with lock_path(folder), atomic_folder(folder) as temporary:
            for name in COLUMNS:
                getattr(self, name).to_csv(temporary / f"{name}.csv", index=False)
            (temporary / "meta.json").write_text(
                json.dumps(self.meta, indent=1, ensure_ascii=False), "utf-8"
            )
            write_digests(temporary)
            _plots().draw(self, temporary / "figures")
        return folder

    def plot_curves(
        self,
        layer: str | None = None,
        scorer: str | None = None,
        curve: str = "deletion",
        *,
        style: str | None = None,
    ) -> Figure:
        """Draw accuracy against the share of a layer's channels that is suppressed, a row of panels for each model.

        Args:
            layer: one of the layers; None for the last of each model.
            scorer: one of the scorers; None for the first.
            curve: "deletion", or "insertion" against the share that is not suppressed.
            style: of a paper, see ``plots.style``.
        """
        plots = _plots()
        return plots.paper.drawn(style, plots.curves, self, layer, scorer, curve)

    def plot_league(self, layer: str | None = None, *, style: str | None = None) -> Figure:
        """Draw how true each scorer's ranking is, a row of panels for each model; `layer` as in ``plot_curves``."""
        plots = _plots()
        return plots.paper.drawn(style, plots.league, self, layer)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read interventions that ``save`` wrote.

        Raises:
            UserError: for a folder that is missing, damaged or holds no interventions.
        """
        folder = Path(folder)
        if not folder.exists():
            recover_unlocked(folder)
        if not (folder / "meta.json").is_file() or not (folder / "league.csv").is_file():
            raise UserError(
                f"{folder} holds no interventions: name a folder that 'channelscope intervene' wrote."
            )
        try:
            check_digests(folder, [*(f"{name}.csv" for name in COLUMNS), "meta.json"])
            frames = {
                name: read_table(folder / f"{name}.csv", *columns)
                for name, columns in COLUMNS.items()
            }
            meta = read_meta(folder / "meta.json", _META)
            _check(frames, meta)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The interventions in {folder} are damaged ({reason}): intervene again."
            ) from error
        return cls(**frames, meta=meta)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but earlier interventions."""
    files.check_result_folder(folder, {f"{name}.csv" for name in COLUMNS} | {"meta.json"}, {"figures"})


def _plots() -> ModuleType:
    import channelscope.figures.interventions as plots

    return plots


def _check(frames: Mapping[str, pd.DataFrame], meta: Any) -> None:
    """Check that tables and settings are of the same networks; raises anything where they are not."""
    models, of_layer = set(meta["models"]), ["model", "layer"]
    if not models or any(set(frame["model"]) != models for frame in frames.values()):
        raise ValueError("the tables are of other models")
    measured = {
        (model, layer) for model, known in meta["models"].items() for layer in known["layers"]
    }
    for name in ("curves", "league"):
        if set(frames[name][of_layer].itertuples(index=False, name=None)) != measured:
            raise ValueError(f"{name}.csv is of other layers")
    for (_, layer, scorer), rows in frames["league"].groupby([*of_layer, "scorer"]):
        if {*zip(rows["order"], rows["data"], strict=True)} != _PLACES:
            raise ValueError(f"league.csv lacks rows of {scorer} at {layer}")
