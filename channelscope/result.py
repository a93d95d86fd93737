"""Results: tidy tables, arrays and settings of any analysis, saved and loaded whole.

Figures and the report are drawn from a result alone, without networks and without torch.
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Self
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from matplotlib.figure import Figure

from channelscope import gallery, report
from channelscope.analyses.base import (
    ANALYSES,
    VERDICTS,
    ChannelTable,
    Kind,
    Table,
    analyses_of,
)
from channelscope.analyses.choice import choose_part
from channelscope.errors import UserError, suggest
from channelscope.figures import paper
from channelscope.figures.words import format_radius
from channelscope.files import (
    DIGESTS,
    atomic_folder,
    check_digests,
    check_no_link,
    check_result_folder,
    write_digests,
)
from channelscope.locks import lock_path, recover_unlocked
from channelscope.reading import (
    check_array,
    check_lengths,
    check_regular,
    check_sizes,
    open_arrays,
    read_meta,
    read_table,
)

__all__ = ["Result", "check_folder"]

# The command that makes a result of each kind, and what to do when one is damaged.
COMMANDS: dict[Kind, str] = {
    "comparison": "compare",
    "evaluation": "evaluate",
    "intervention": "intervene",
    "relevance": "relevance",
    "damage": "damage",
    "film": "film",
    "sweep": "sweep",
}
_MOST_ROWS = 100_000  # of a channel table that is written as CSV in full: more is a summary there
_SAMPLE = 10_000  # numbers that tell whether an array can be compressed
_SUMMARY_WORDS = {"all", "across"}  # in the columns of classes: rows over several classes
# What of meta.json is shown or reckoned with.
_META = {
    "kind": str,
    "models": {
        "*": {
            "method?": str | None,
            "arch?": str,
            "layers?": [str],
            "penultimate?": [str],
            "gates?": [{"kind?": str}],
            "settings?": {"recipe?": {"attack?": {"steps?": int, "eps?": int | float}}},
            "digest?": str,
        }
    },
    "data": {"name": str, "images": int, "classes": [str], "fingerprint?": str},
    "tables": [str],
    "groups": {"*": [[str]]},
    "shared": {"*": str},
    "attack?": str,
    "attacks?": [str],
    "eps?": int | float,
    "norm?": str,
    "level?": int | float,
    "replicates?": int,
    "seed?": int,
    "versions?": dict,
    "hardware?": dict,
}


class _UnknownTableError(ValueError):
    """A result has a table, of this name, that no analysis here makes."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a study found: tables by name, arrays, and the settings that made them.

    A table is an attribute: ``result.alignment``, ``result.robustness``, ``result.verdicts``. Those
    of single channels (``activations``, ``flow``, ``masks``, ``relevance``) are kept as arrays and
    become a frame when asked for; ``select`` makes a frame of some of their rows.

    >>> result = Result("comparison", {}, {}, {"models": {}, "data": {"classes": []}})
    >>> result.tables
    {}

    Args:
        kind: what made it: comparison, evaluation, intervention, relevance, damage, film or
            sweep.
        tables: name -> tidy frame, or channel table; see ``analyses`` for their columns.
        arrays: the images' ``labels``; ``correct/INDEX/ATTACK``, by model (its place in
            ``meta["models"]``) the images that are classified correctly; pictures.
        meta: settings, seed, versions, hardware, data and models, as plain values.
    """

    kind: Kind
    tables: Mapping[str, pd.DataFrame | ChannelTable]
    arrays: Mapping[str, np.ndarray]
    meta: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a table, as a tidy frame."""
        tables = self.__dict__.get("tables", {})  # a copy that is being made has none yet
        if name.startswith("_") or name not in tables:
            near = "." if name.startswith("_") else self._explain_lack(name)
            raise AttributeError(f"This {self.kind} has no table {name!r}{near}")
        table = self.tables[name]
        return table.frame() if isinstance(table, ChannelTable) else table

    def __dir__(self) -> list[str]:
        """List tables beside methods, for completion."""
        return sorted({*super().__dir__(), *self.tables})

    def select(self, table: str, **wanted: Any) -> pd.DataFrame:
        """Return the rows of a table whose columns have the wanted values.

        Args:
            table: its name.
            wanted: column -> value, such as ``model="at", layer="layer4", **{"class": "cat"}``.

        Raises:
            UserError: for a table that this result does not have.
        """
        frame = self._table(table)
        if isinstance(frame, ChannelTable):
            words = {name: value for name, value in wanted.items() if name != "channel"}
            frame = frame.select(**words)
            wanted = {name: wanted[name] for name in wanted.keys() & {"channel"}}
        for column, value in wanted.items():
            frame = frame[frame[column] == value]
        return frame

    def _table(self, name: str) -> pd.DataFrame | ChannelTable:
        if name not in self.tables:
            raise UserError(
                f"This {self.kind} has no table {name!r}{self._explain_lack(name)} It has "
                f"{', '.join(self.tables)}."
            )
        return self.tables[name]

    def _explain_lack(self, name: str) -> str:
        """Return the end of a sentence that says why there is no table of this name."""
        for analysis in analyses_of(self.kind):
            if name in analysis.tables:
                return (
                    f": it was made before the analysis {analysis.name!r}, or without it. Run "
                    f"{COMMANDS[self.kind]} again."
                )
        return f".{suggest(name, self.tables)}"

    def plot(self, name: str, *, style: str | None = None, **arguments: Any) -> Figure:
        """Draw a figure: a kind of figure with its arguments, or one by its full name.

        Args:
            name: such as "relevance", "magnitude" or "magnitude-cat"; see ``figures``.
            style: "icml", "neurips" or "ieee": a paper's width and fonts; None for that in force.
            arguments: of that kind of figure, such as ``layer="layer4"`` or ``class_name="cat"``.

        Raises:
            UserError: for a figure that this result does not have, or arguments that do not fit.
        """
        with paper.style(style):
            return gallery.find_drawing(self, name, arguments)()

    def caption(self, name: str) -> str:
        """Return the caption of a figure, by its full name: plain text, ready to paste."""
        return gallery.find_picture(self, name).caption()

    def plot_data(self, name: str) -> pd.DataFrame:
        """Return the table of what a figure draws, by its full name."""
        return gallery.find_picture(self, name).data()

    @property
    def figures(self) -> list[str]:
        """The names of all figures of this result."""
        return list(gallery.list_figures(self))

    def array(self, table: str, column: str, *group: str) -> Num[np.ndarray, "k c"]:
        """Return a column of a table of single channels, by class and channel.

        Args:
            table: "activations", "flow", "masks" or "relevance".
            column: such as "magnitude" or "relevance".
            group: the words that tell the group, such as model, data and layer.

        Raises:
            UserError: for a table that this result does not have, or another group or column.
        """
        channels = self._table(table)
        if not isinstance(channels, ChannelTable) or group not in channels.groups:
            groups = list(channels.groups) if isinstance(channels, ChannelTable) else []
            raise UserError(f"{table} has no group {group}: choose from {groups[:8]}.")
        if column not in channels.numbers:
            raise UserError(
                f"{table} has no column {column!r}: choose from {', '.join(channels.numbers)}."
            )
        return channels.array(column, *group)

    def save(
        self,
        folder: Path | str,
        *,
        adversarial: Mapping[str, Path] | None = None,
        all_figures: bool = False,
        formats: Sequence[str] = gallery.FORMATS,
        progress: bool = True,
    ) -> Path:
        """Write tables (CSV), arrays (npz), ``meta.json``, figures and the report into a folder.

        An earlier result there is replaced, when the new one is complete. Tables of single
        channels are in ``arrays.npz``; their CSV has every row, or where these are more than
        100,000 the means over the channels.

        Args:
            folder: where to write.
            adversarial: files of adversarial images to be put in, by name.
            all_figures, formats: see ``draw``.
            progress: show a progress bar.

        Raises:
            UserError: where the folder holds something else, or cannot be written.
        """
        folder = Path(folder).resolve()  # of a link, what it points to is replaced
        check_folder(folder)
        with lock_path(folder), atomic_folder(folder) as temporary:
            self.write_tables(temporary)
            for name, file in (adversarial or {}).items():
                (temporary / "adversarial").mkdir(exist_ok=True)
                _link(file, temporary / "adversarial" / name)
            write_digests(temporary)
            self.draw(temporary, all_figures=all_figures, formats=formats, progress=progress)
        return folder

    def write_tables(self, folder: Path) -> None:
        """Write tables, arrays and settings, without figures, into a folder that is there."""
        arrays = dict(self.arrays)
        groups: dict[str, list[tuple[str, ...]]] = {}
        for name, table in self.tables.items():
            if isinstance(table, ChannelTable):
                groups[name] = list(table.groups)
                for index, columns in enumerate(table.groups.values()):
                    arrays |= {f"tables/{name}/{index}/{key}": columns[key] for key in columns}
        shared = _find_shared(arrays)
        arrays = {name: array for name, array in arrays.items() if name not in shared}
        with ThreadPoolExecutor(1) as thread:  # compression leaves the interpreter to the tables
            writing = thread.submit(_write_arrays, folder / "arrays.npz", arrays)
            for name, table in self.tables.items():
                if isinstance(table, ChannelTable):
                    table = table.frame() if len(table) <= _MOST_ROWS else table.summary()
                table.to_csv(folder / f"{name}.csv", index=False)
            writing.result()
        written = {"kind": self.kind, "tables": list(self.tables)}
        meta = self.meta | written | {"groups": groups, "shared": shared}
        text = json.dumps(meta, indent=1, ensure_ascii=False)
        (folder / "meta.json").write_text(text, "utf-8")
        for analysis in analyses_of(self.kind):
            analysis.export(self, folder)

    def draw(
        self,
        folder: Path | str,
        *,
        style: str | None = None,
        wide: bool = False,
        latex: bool = False,
        title: bool = False,
        notes: bool = False,
        height: float | None = None,
        models: Sequence[str] = (),
        labels: Sequence[str] = (),
        layers: Sequence[str] = (),
        classes: Sequence[str] = (),
        only: Sequence[str] = (),
        all_figures: bool = False,
        formats: Sequence[str] = gallery.FORMATS,
        progress: bool = True,
    ) -> None:
        """Draw figures into ``folder/figures``, and write ``folder/report.html``.

        Each figure's data (CSV) lies beside it, and the captions of all. Other figures stay. The
        page shows all models in one style: figures in a style of your choice, or of some of the
        models, layers or classes, go into a folder in ``figures``, such as ``figures/icml``, and
        leave the page alone.

        Args:
            folder: where to write.
            style: "icml", "neurips" or "ieee"; None for the style in force, see ``figures.style``.
            wide: make figures as wide as the paper's text rather than one column: panels stand
                side by side.
            latex: let LaTeX set the text.
            title, notes: write a title above and explanations below, in styles of papers too.
            height: the largest height of a figure, as a share of the text's; None for 0.45.
            models, labels, layers, classes: what is drawn, see ``analyses.choice.choose_part``.
            only: claims ("c1"), kinds of figures ("magnitude"), names of figures or their
                beginnings ("magnitude-cat"); none for the main ones.
            all_figures: draw all figures, where ``only`` names none.
            formats: of "pdf", "png" and "svg". The report shows SVGs that are small,
                else PNGs.
            progress: show a progress bar.

        Raises:
            UserError: for a style, a choice or a format that is unknown, where LaTeX is missing, or
                where ``folder/figures`` is a link.
        """
        look: dict[str, Any] = {"wide": wide, "latex": latex, "title": title, "notes": notes}
        look |= {"style": style, "height": height}
        part: dict[str, Any] = {
            "models": models,
            "labels": labels,
            "layers": layers,
            "classes": classes,
        }
        name = gallery.name_folder(**look, **part)
        figures = Path(folder) / "figures" / name
        check_no_link(figures, Path(folder))
        gallery.draw(
            choose_part(self, **part),
            figures,
            only=only,
            all_figures=all_figures,
            formats=formats,
            progress=progress,
            **look,
        )
        if not name:
            self.report(folder)

    def report(self, folder: Path | str) -> Path:
        """Write ``folder/report.html``, one page with all in it; return its path.

        It shows the figures that lie in ``folder/figures``.

        Raises:
            UserError: where ``folder/figures`` is a link, or holds damaged figures.
        """
        check_no_link(Path(folder) / "figures", Path(folder))
        return report.write_report(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, kind: Kind | None = None) -> Self:
        """Read a result that ``save`` wrote.

        Args:
            folder: where it is.
            kind: what it must be; None for any.

        Raises:
            UserError: for a folder that is missing, damaged or holds no such result.
        """
        folder = Path(folder)
        what = f"no {kind}" if kind else "no result"
        command = COMMANDS[kind] if kind else "compare"
        if not folder.exists():
            recover_unlocked(folder)
        if not (folder / "meta.json").is_file():
            raise UserError(
                f"{folder} holds {what}: name a folder that 'channelscope {command}' wrote."
            )
        try:
            result = cls._read(folder)
        except _UnknownTableError as error:
            raise UserError(
                f"The result in {folder} has a table {str(error)!r} of an analysis that is not "
                "installed here: add its file to channelscope/analyses."
            ) from error
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The result in {folder} is damaged ({reason}): make it again."
            ) from error
        if kind and result.kind != kind:
            raise UserError(
                f"{folder} holds {what} but the kind {result.kind!r}: name a folder that "
                f"'channelscope {command}' wrote."
            )
        return result

    @classmethod
    def _read(cls, folder: Path) -> Self:
        check_digests(folder, ["meta.json", "arrays.npz"])
        meta = read_meta(folder / "meta.json", _META)
        kind: Kind = meta.pop("kind")
        if kind not in COMMANDS:
            raise ValueError("meta.json is of an unknown kind of result")
        data = meta["data"]
        attacks = [meta.get("attack") or "", *(meta.get("attacks") or ())]
        check_lengths([*meta["models"], data["name"], *data["classes"], *attacks], "meta.json")
        columns = {"verdicts": VERDICTS} | {
            name: table for analysis in analyses_of(kind) for name, table in analysis.tables.items()
        }
        names = list(meta.pop("tables"))
        groups = dict(meta.pop("groups"))
        shared: dict[str, str] = meta.pop("shared")
        if unknown := [name for name in names if name not in columns]:
            raise _UnknownTableError(unknown[0])
        plain = [name for name in names if not columns[name].by_channel]
        check_digests(folder, [f"{name}.csv" for name in plain])
        with open_arrays(folder / "arrays.npz", within=folder) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays |= {copy: arrays[first] for copy, first in shared.items()}
        tables: dict[str, pd.DataFrame | ChannelTable] = {}
        for name in names:
            table = columns[name]
            tables[name] = (
                _take_channel_table(name, table, groups, arrays, meta["data"]["classes"])
                if table.by_channel
                else read_table(
                    folder / f"{name}.csv", table.words, table.numbers, open_ended=table.open
                )
            )
        result = cls(kind, tables, arrays, meta)
        result._check(columns)
        return result

    def _check(self, columns: Mapping[str, Table]) -> None:
        """Check that tables and settings belong together; raises ValueError where they do not."""
        models = set(self.meta["models"])
        classes = {*self.meta["data"]["classes"], *_SUMMARY_WORDS}
        if not models:
            raise ValueError("meta.json names no model")
        for name, table in self.tables.items():
            words = columns[name].words
            # Beside a scorer, "other" is another scorer.
            compared = {"model"} if "scorer" in words else {"model", "other"}
            for column in compared & set(words):
                if not _words_in(table, column) <= models:
                    raise ValueError(f"{name} is of other models")
            for column in {"class", "answer"} & set(words):
                if not _words_in(table, column) <= classes:
                    raise ValueError(f"{name} is of other classes")
        for analysis in analyses_of(self.kind):
            if set(analysis.tables) <= set(self.tables):
                analysis.check(self)

    def open_adversarial(
        self, folder: Path | str, model: str, attack: str
    ) -> Float[np.ndarray, "n c h w"]:
        """Open the adversarial images that lie in this result's folder, read-only.

        Args:
            folder: where the result was saved.
            model, attack: whose images.

        Raises:
            UserError: where there are none, or the file is damaged.
        """
        labels = list(self.meta["models"])
        name = adversarial_name(labels.index(model), attack) if model in labels else ""
        path = Path(folder) / "adversarial" / name
        if not path.is_file():
            raise UserError(
                f"{folder} holds no adversarial images of {attack} on {model}: evaluate with "
                f"--save-adversarial, and {attack} among the attacks."
            )
        try:
            with check_regular(path, within=Path(folder)).open("rb") as file:
                check_array(file, path.stat().st_size)
            check_digests(Path(folder), [f"adversarial/{name}"])
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            if images.dtype != np.float32 or images.ndim != 4:
                raise ValueError("it holds no images")
            if len(images) != self.meta["data"]["images"]:
                raise ValueError("it holds the images of another result")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): evaluate the models again.") from error
        return images

    def __repr__(self) -> str:
        """Describe the result in at most ten lines."""
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """Show the result in a notebook."""
        return f"<pre>{escape(repr(self))}</pre>"

    def _lines(self) -> list[str]:
        data = self.meta.get("data", {})
        models = ", ".join(_shorten(name, 24) for name in list(self.meta.get("models", {}))[:6])
        head = f"channelscope {self.kind} of {models or 'nothing'}"
        if "name" in data:
            head += f" on {_shorten(data['name'], 30)}, {data['images']:,} images"
        lines = [head]
        if "attack" in self.meta:
            lines.append(f"  attack: {self.meta['attack']}, eps {format_radius(self.meta['eps'])}")
        names = ", ".join(f"{name} ({len(table):,})" for name, table in self.tables.items())
        lines.append(f"  tables (rows): {_shorten(names, 400)}")
        verdicts = self.tables.get("verdicts")
        if isinstance(verdicts, pd.DataFrame):
            lines += [
                f"  {row.claim}: {row.verdict} ({_shorten(str(row.models), 60)})"
                for row in verdicts.head(5).itertuples()
            ]
        lines.append("  .plot(name), .figures, .save(folder), .report(folder)")
        return lines[:10]


def _find_shared(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the names of arrays that stand under an earlier name too, with that name.

    A channel's relevance is the same on natural and on adversarial images.
    """
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(array), name) for name, array in arrays.items()}
    return {name: earlier for name, earlier in names.items() if earlier != name}


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a compressed .npz, without loss, the same bytes for the same arrays.

    Tables' numbers that 32 bits hold exactly, as a network's weights, are written in 32. Further
    compression than the least takes many times as long for a few percent.
    """
    with ZipFile(path, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            array = np.asanyarray(array)
            if array.dtype == np.float64 and name.startswith("tables/"):
                array = _shorten_numbers(array)
            start = array.ravel()[:_SAMPLE].tobytes()
            is_dense = len(zlib.compress(start, 1)) > 0.9 * len(start)
            archive.compression = ZIP_STORED if is_dense else ZIP_DEFLATED
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _shorten_numbers(array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the numbers in 32 bits where these hold all of them exactly, else as they are."""
    for part in (array[:1], array):  # the first row tells most arrays that do not fit
        with np.errstate(over="ignore", under="ignore"):
            short = part.astype(np.float32)
        if not np.array_equal(short, part, equal_nan=True):
            return array
    return short


def _take_channel_table(
    name: str,
    table: Table,
    groups: Mapping[str, Sequence[Sequence[str]]],
    arrays: dict[str, np.ndarray],
    classes: Sequence[str],
) -> ChannelTable:
    """Take the arrays of a channel table out of those that were read."""
    taken: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for index, words in enumerate(groups.get(name, ())):
        columns = {key: arrays.pop(f"tables/{name}/{index}/{key}") for key in table.numbers}
        shapes = {array.shape for array in columns.values()}
        widths = {shape[1] for shape in shapes if len(shape) == 2} - {1}
        if any(len(shape) != 2 or shape[0] != len(classes) for shape in shapes) or len(widths) > 1:
            raise ValueError(f"the arrays of {name} are of other classes or channels")
        if any(array.dtype.kind not in "fiu" for array in columns.values()):
            raise ValueError(f"the arrays of {name} are no numbers")
        for array in columns.values():
            check_sizes(array, f"an array of {name}")
        columns = {
            key: array.astype(np.float64) if array.dtype == np.float32 else array
            for key, array in columns.items()
        }
        if len(words) != len(table.words) or tuple(words) in taken:
            raise ValueError(f"the groups of {name} do not fit its columns")
        taken[tuple(words)] = columns
    return ChannelTable(table.words, table.numbers, tuple(classes), taken)


def _words_in(table: pd.DataFrame | ChannelTable, column: str) -> set[str]:
    if isinstance(table, ChannelTable):
        return {group[table.words.index(column)] for group in table.groups}
    return set(table[column])


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def adversarial_name(model: int, attack: str) -> str:
    """Name the file of a model's adversarial images: letters that every file system takes."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "_", attack)[:80]
    return f"{model}-{plain}-{hashlib.blake2b(attack.encode(), digest_size=4).hexdigest()}.npy"


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier result.

    Raises:
        UserError: for a file, a folder with other files, or one that may not be written to.
    """
    tables = {name for analysis in ANALYSES.values() for name in analysis.tables}
    exports = {name for analysis in ANALYSES.values() for name in analysis.exports}
    names = {f"{name}.csv" for name in {*tables, "verdicts"}}
    others = {"arrays.npz", "figures", "report.html", "adversarial", DIGESTS, *exports}
    check_result_folder(folder, {"meta.json", "arrays.npz", DIGESTS}, names | others)
