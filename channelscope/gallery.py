"""All figures of a result, by name, with their captions; and the folder that holds them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import pandas as pd
from matplotlib.figure import Figure

from channelscope.analyses.base import ANALYSES, SENTENCES, Plot, Section, Subject, analyses_of
from channelscope.errors import UserError, suggest
from channelscope.figures import paper, words
from channelscope.figures.axes import is_empty
from channelscope.figures.tex import escape_latex
from channelscope.files import atomic_write
from channelscope.progress import open_bar

if TYPE_CHECKING:
    from channelscope.result import Result

T = TypeVar("T")
FORMATS = ("pdf", "png", "svg")
SHOWN = ("svg", "png")  # what a browser shows
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class Picture:
    """One figure of a result: of a kind of plot, about a subject."""

    result: "Result"
    plot: Plot
    subject: Subject

    @property
    def main(self) -> bool:
        """Whether a run draws it unasked."""
        return self.plot.main and self.subject.main

    def draw(self) -> Figure:
        """Draw it."""
        with _naming(self.plot, "drawn"):
            figure = self.plot.draw(self.result, **self.subject.arguments)
            return _of_type(Figure, figure)

    def data(self) -> pd.DataFrame:
        """Return the table of what is drawn."""
        with _naming(self.plot, "put into a table"):
            data = self.plot.data(self.result, **self.subject.arguments)
            return _of_type(pd.DataFrame, data)

    def caption(self) -> str:
        """Return the caption, plain text ready to paste."""
        sentences = _Sentences(self.result, self.subject.arguments)
        with _naming(self.plot, "captioned"):
            return self.plot.caption.format_map(sentences)

    def alt_text(self) -> str:
        """Return in words what is to be seen."""
        data = self.data()
        with _naming(self.plot, "described"):
            return _of_type(str, self.plot.alt_text(data))

    def describe(self, name: str) -> dict[str, Any]:
        """Return what the page shows of it, as plain values."""
        return {
            "name": name,
            "caption": self.caption(),
            "alt_text": self.alt_text(),
            "section": self.plot.section,
            "claims": list(self.plot.claims),
            "main": self.main,
        }


@contextmanager
def _naming(plot: Plot, what: str) -> Iterator[None]:
    """Name the figure in every error of its functions, which may be the user's own."""
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"The figure {plot.name!r} cannot be {what}: {type(error).__name__}: {error}"
        ) from error


def _of_type(wanted: type[T], value: object) -> T:
    if not isinstance(value, wanted):
        raise TypeError(f"return a {wanted.__name__}, not an object of type {type(value).__name__}")
    return value


class _Sentences(dict[str, str]):
    """What a caption may name, made when it is named; see ``Plot``."""

    def __init__(self, result: "Result", arguments: Mapping[str, str | None]) -> None:
        super().__init__({name: value for name, value in arguments.items() if value is not None})
        self.result = result

    def __missing__(self, name: str) -> str:
        meta = self.result.meta
        match name:
            case "extremes":
                return _name_extremes(words.extreme_classes(self.result))
            case "layers":
                layers = words.choose_layers(self.result, self.get("layer"))
                return f"Layer: {', '.join(dict.fromkeys(layers.values()))}."
            case "adversarial":
                return f"Adversarial images: {words.describe_attack(self.result)}."
            case "robust":
                attacks = ", ".join(words.list_attacks(self.result))
                return f"Robust accuracy: worst case over {attacks}."
            case "wilson":
                return f"Bars: {meta['level']:.0%} intervals (Wilson's, over images)."
            case "bars" | "mixed_bars":
                how = f"bootstrap over images, {meta['replicates']} replicates"
                wilson = "; of accuracies Wilson's" if name == "mixed_bars" else ""
                return f"Bars: {meta['level']:.0%} intervals ({how}{wilson})."
        raise ValueError(f"{{{name}}} is unknown here: name {', '.join([*SENTENCES, *self])}")


def list_sentences(result: "Result") -> list[str]:
    """Return the sentences that captions of this result share, so that a page says them once."""
    sentences = _Sentences(result, {})
    names = ["adversarial"] * ("attack" in result.meta)
    names += ["robust"] * ("robustness" in result.tables)
    names += ["wilson", "bars", "mixed_bars"] * ({"level", "replicates"} <= {*result.meta})
    return [sentences[name] for name in names]


def _name_extremes(classes: Sequence[str]) -> str:
    if len(classes) == 2:
        return f"the most robust class ({classes[0]}) and the least robust one ({classes[1]})"
    return f"class {classes[0]}"


def list_figures(result: "Result") -> dict[str, Picture]:
    """Return every figure of a result by its name, in the page's order.

    Names are safe as file names: those of the plot and of what the figure is about, such as
    relevance, magnitude-cat or nr-mass-layer4. Names made alike by this are numbered.
    """
    plots = [plot for analysis in analyses_of(result.kind) for plot in analysis.plots]
    pictures: dict[str, Picture] = {}
    for plot in sorted(plots, key=lambda plot: (SECTIONS.index(plot.section), plot.order)):
        for subject in _list_subjects(result, plot):
            values = [value for value in subject.arguments.values() if value is not None]
            name = stem = "-".join(filter(None, [plot.name, *map(words.make_slug, values)]))
            repeat = 1
            while name in pictures:
                name = f"{stem}-{(repeat := repeat + 1)}"
            pictures[name] = Picture(result, plot, subject)
    return pictures


def _list_subjects(result: "Result", plot: Plot) -> list[Subject]:
    """Return what figures of a plot are about; none where its tables lack, or have no rows."""
    tables = result.tables
    if not {plot.table, *plot.needs} <= set(tables) or not len(tables[plot.table]):
        return []
    with _naming(plot, "drawn"):
        return [_of_type(Subject, subject) for subject in plot.subjects(result)]


def find_picture(result: "Result", name: str, further: Iterable[str] = ()) -> Picture:
    """Return a figure by its name, without its layer that of the last; see ``list_figures``.

    ``further`` are names to suggest besides.

    Raises:
        UserError: for a figure that this result does not have.
    """
    pictures = list_figures(result)
    if name not in pictures and (longer := _find_longer(pictures, name)):
        return pictures[next((full for full in longer if pictures[full].subject.main), longer[0])]
    if name not in pictures:
        kinds = dict.fromkeys(picture.plot.name for picture in pictures.values())
        raise UserError(
            f"No figure {name!r} in this {result.kind}; choose from {', '.join(kinds)} or a "
            f"figure's name.{suggest(name, [*further, *pictures])}"
        )
    return pictures[name]


def find_drawing(result: "Result", name: str, arguments: Mapping[str, Any]) -> Callable[[], Figure]:
    """Return a function that draws a kind of figure with its arguments, or one by its full name.

    Raises:
        UserError: for a figure that this result does not have, or arguments that do not fit.
    """
    plots = {plot.name: plot for item in analyses_of(result.kind) for plot in item.plots}
    if name not in plots:
        if arguments:
            raise UserError(f"No kind of figure {name!r}.{suggest(name, plots)}")
        return find_picture(result, name, plots).draw
    plot = plots[name]
    for table in (plot.table, *plot.needs):
        if table not in result.tables:
            raise UserError(f"The figure {name!r} needs the table {table!r}: run its analysis too.")
    draw = plot.draw
    try:
        signature(draw).bind(result, **arguments)
    except TypeError as error:
        parameters = [f"{part}" for part in list(signature(draw).parameters.values())[1:]]
        takes = f"takes {', '.join(parameters)}" if parameters else "takes no arguments"
        raise UserError(f"The figure {name!r} {takes} ({error}).") from error
    return Picture(result, plot, Subject(arguments)).draw


def draw(
    result: "Result",
    folder: Path,
    *,
    style: str | None = None,
    only: Sequence[str] = (),
    all_figures: bool = False,
    formats: Sequence[str] = FORMATS,
    progress: bool = True,
    **look: Any,
) -> list[Path]:
    """Write figures into a folder, each beside its data (.csv), and the captions of all there.

    Figures whose panels would all be empty are left out.

    ``captions.txt`` is for pasting, and ``captions.tex`` too (where LaTeX draws);
    ``captions.json`` is for the page: it lists the figures of which there is a .png or .svg, in the
    page's order. The same result gives the same bytes.

    Args:
        result: what is drawn.
        folder: where to write; other figures that lie there stay.
        style: a paper's, see ``paper.style``.
        only: claims ("c1"), kinds ("magnitude"), names of figures or their beginnings
            ("magnitude-cat"); none for the main ones.
        all_figures: all figures, where ``only`` names none.
        formats: of pdf, png and svg.
        progress: show a progress bar.
        look: further arguments of ``paper.style``: wide, latex, title, notes, height.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: for a style, a choice or a format that is unknown, or where LaTeX is missing.
    """
    formats = list_formats(formats)
    chosen = _choose(result, _split_words("figure", only)) if only else list_figures(result)
    if not only and not all_figures:
        chosen = {name: picture for name, picture in chosen.items() if picture.main}
    paths = []
    with paper.style(style, **look) as in_force:
        for name, picture in open_bar(chosen.items(), "figures", shown=progress, unit="figure"):
            figure = picture.draw()
            if not is_empty(figure):
                paths += paper.save_with_data(figure, picture.data(), folder / name, formats)
        _write_captions(result, folder, in_force.latex)
    return paths


def name_folder(style: str | None = None, wide: bool = False, **others: Any) -> str:
    """Return the folder in ``figures`` for figures of a look or a part: "" for the page's own.

    Args:
        style, wide, others: as ``Result.draw`` has them; what is unset or empty is the page's.
    """
    if not (style or wide or any(others.values())):
        return ""
    return f"{style or 'own'}{'-wide' if wide else ''}"


def list_formats(texts: Sequence[str]) -> list[str]:
    """Return the formats that texts name, with spaces or commas between.

    Raises:
        UserError: for none, or one that figures are not written in.
    """
    formats = _split_words("format", texts)
    paper.check_formats(formats)
    return formats


def _split_words(what: str, texts: Sequence[str]) -> list[str]:
    """Return the single words of texts with spaces or commas between, none twice."""
    joined = texts if isinstance(texts, str) else " ".join(texts)
    names = dict.fromkeys(joined.replace(",", " ").split())
    if not names:
        raise UserError(f"No {what} is named: name at least one, or leave the choice out.")
    return list(names)


def _choose(result: "Result", only: Sequence[str]) -> dict[str, Picture]:
    pictures = list_figures(result)
    plots = [plot for analysis in ANALYSES.values() for plot in analysis.plots]
    claims = sorted({claim for plot in plots for claim in plot.claims})
    kinds = [*claims, *(plot.name for plot in plots)]
    chosen = set()
    for word in only:
        names = {
            name
            for name, picture in pictures.items()
            if word.lower() in (*picture.plot.claims, picture.plot.name, name)
        } or set(_find_longer(pictures, word.lower()))
        if not names and word.lower() in kinds:
            raise UserError(f"This {result.kind} has nothing to draw for {word!r}: leave it out.")
        if not names:
            choices = suggest(word.lower(), dict.fromkeys([*kinds, *pictures]))
            raise UserError(
                f"No figure {word!r}; choose from {', '.join(kinds)} or a figure's name.{choices}"
            )
        chosen |= names
    return {name: picture for name, picture in pictures.items() if name in chosen}


def _find_longer(pictures: Mapping[str, Picture], name: str) -> list[str]:
    """Return the figures whose names go on where this one, of a kind and a part, ends.

    As magnitude-cat-layer4 does where several layers were measured.
    """
    return [
        full
        for full, picture in pictures.items()
        if full.startswith(f"{name}-") and name.startswith(f"{picture.plot.name}-")
    ]


def _write_captions(result: "Result", folder: Path, latex: bool) -> None:
    """Write the captions of all figures that lie in a folder."""
    pictures = {
        name: picture
        for name, picture in list_figures(result).items()
        if (folder / f"{name}.csv").exists()
    }
    captions = {name: picture.caption() for name, picture in pictures.items()}
    listed = [
        picture.describe(name)
        for name, picture in pictures.items()
        if any((folder / f"{name}.{ending}").exists() for ending in SHOWN)
    ]
    texts = {
        "captions.txt": "\n".join(f"{name}\n{text}\n" for name, text in captions.items()),
        "captions.json": json.dumps(listed, indent=1, ensure_ascii=False),
    }
    if latex:
        figures = [_format_latex(name, text) for name, text in captions.items()]
        texts["captions.tex"] = "\n".join(figures)
    for file, text in texts.items():
        with atomic_write(folder / file) as part:
            part.write_text(text, encoding="utf-8", newline="\n")


def _format_latex(name: str, caption: str) -> str:
    width = r"\textwidth" if paper.current_style().wide else r"\columnwidth"
    return f"""\\begin{{figure}}[t]
  \\centering
  \\includegraphics[width={width}]{{{name}.pdf}}
  \\caption{{{escape_latex(caption)}}}
  \\label{{fig:{name}}}
\\end{{figure}}
"""
