"""All figures of a comparison, of each of the ``KINDS``, and the folder that holds them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from channelscope.comparison import Comparison
from channelscope.errors import UserError, suggest
from channelscope.figures import frames, paper, tex
from channelscope.figures.kinds import KINDS, Kind
from channelscope.figures.subjects import Subject
from channelscope.files import atomic_write


@dataclass(frozen=True)
class _Picture:
    comparison: Comparison
    kind: Kind
    subject: Subject

    def draw(self) -> Figure:
        return self.kind.draw(self.comparison, **self.subject.arguments)

    def data(self) -> pd.DataFrame:
        return self.kind.data(self.comparison, **self.subject.arguments)

    def caption(self) -> str:
        words = {name: value for name, value in self.subject.arguments.items() if value is not None}
        return self.kind.caption.format_map(_sentences(self.comparison, words.get("layer")) | words)

    def entry(self, name: str) -> dict[str, Any]:
        """What the page is told."""
        kind = self.kind
        return {
            "name": name,
            "caption": self.caption(),
            "seen": kind.seen(self.data()),
            "section": kind.section,
            "claims": list(kind.claims),
            "main": self.subject.main,
        }

    def stem(self) -> str:
        parts = [
            self.kind.name,
            *(_slug(value) for value in self.subject.arguments.values() if value is not None),
        ]
        return "-".join(part for part in parts if part)


def _sentences(comparison: Comparison, layer: str | None) -> dict[str, str]:
    """What captions share, by name; see Kind."""
    meta, extremes = comparison.meta, [f"class {name}" for name in frames.extremes(comparison)]
    if len(extremes) == 2:
        most, least = frames.extremes(comparison)
        extremes = [f"the most robust class ({most})", f"the least robust one ({least})"]
    return {
        "extremes": " and ".join(extremes),
        "layers": f"Layer: {', '.join(dict.fromkeys(frames.layers(comparison, layer).values()))}.",
        "adversarial": f"Adversarial images: {frames.attack(comparison)}.",
        "robust": f"Robust accuracy: {frames.attacks(comparison)}.",
        "wilson": f"Bars: {meta['level']:.0%} intervals (Wilson's, over images).",
        "bars": f"Bars: {meta['level']:.0%} intervals (bootstrap over images, {meta['replicates']} replicates).",
    }


def _slug(words: str) -> str:
    """Only a-z, 0-9 and dashes, so that no class name leaves the folder or troubles a file system."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:48].strip("-")


def _pictures(comparison: Comparison) -> dict[str, _Picture]:
    """Every figure by its name; names made alike by `_slug` are numbered."""
    named: dict[str, _Picture] = {}
    for kind in KINDS:
        for subject in kind.subjects(comparison) if len(getattr(comparison, kind.frame)) else ():
            picture = _Picture(comparison, kind, subject)
            name = stem = picture.stem()
            repeat = 1
            while name in named:
                name = f"{stem}-{(repeat := repeat + 1)}"
            named[name] = picture
    return named


def figures(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """Every figure of a comparison: its name -> a function without arguments that draws it.

    Names are safe as file names: relevance, nr-share, alignment-robustness, training (if there is a log), gates (if
    there is one of a gate of CIFS), then magnitude-<class> and frequency-<class> for each class with images (above ten
    classes: the five most and the five least robust); with several layers the names of all but training and gates end
    in the layer. Names made alike by this are numbered.
    """
    return {
        name: partial(_Picture.draw, picture) for name, picture in _pictures(comparison).items()
    }


def data(name: str, comparison: Comparison) -> pd.DataFrame:
    """What a figure draws, as a table; raises UserError for a name that `figures` lacks."""
    return _picture(name, comparison).data()


def caption(name: str, comparison: Comparison) -> str:
    """The caption of a figure, plain text ready to paste; raises UserError for a name that `figures` lacks."""
    return _picture(name, comparison).caption()


def _picture(name: str, comparison: Comparison) -> _Picture:
    pictures = _pictures(comparison)
    if name not in pictures:
        raise UserError(f"No figure {name!r} in this comparison.{suggest(name, pictures)}")
    return pictures[name]


def draw(
    comparison: Comparison,
    folder: Path,
    *,
    style: str | None = None,
    wide: bool = False,
    latex: bool = False,
    only: Sequence[str] = (),
    formats: Sequence[str] = ("pdf", "png"),
    progress: bool = True,
) -> list[Path]:
    """Write figures into a folder, each beside what it draws (.csv), and the captions of all that lie there.

    `captions.txt` is for pasting, and `captions.tex` too (where LaTeX draws); `captions.json` is for the page: it lists
    the figures of which there is a .png, in the catalogue's order. The same comparison gives the same bytes.

    Args:
        comparison: what is drawn.
        folder: where to write; other figures that lie there stay.
        style, wide, latex: see ``paper.style``.
        only: claims ("c1"), kinds ("magnitude") or names of figures; all if there is none.
        formats: of pdf, png and svg.
        progress: show a progress bar.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: for a style, a choice or a format that is unknown, or where LaTeX is missing.
    """
    formats, chosen = (
        _words("format", formats),
        _chosen(comparison, _words("figure", only) if only else []),
    )
    paper.check_formats(formats)
    paths = []
    with paper.style(style, wide=wide, latex=latex):
        for name, picture in tqdm(
            chosen.items(), desc="figures", unit="figure", disable=not progress
        ):
            paths += paper.write(picture.draw(), picture.data(), folder / name, formats)
    _write_captions(comparison, folder, latex)
    return paths


def _words(what: str, given: Sequence[str]) -> list[str]:
    """The single words of what is given with spaces or commas between, none twice; UserError where there is none."""
    words = dict.fromkeys(
        " ".join([given] if isinstance(given, str) else given).replace(",", " ").split()
    )
    if not words:
        raise UserError(f"No {what} is named: name at least one, or leave the choice out.")
    return list(words)


def _chosen(comparison: Comparison, only: Sequence[str]) -> dict[str, _Picture]:
    pictures = _pictures(comparison)
    claims = sorted({claim for kind in KINDS for claim in kind.claims})
    kinds = [kind.name for kind in KINDS]
    answers = {
        word: {
            name
            for name, picture in pictures.items()
            if word.lower() in (*picture.kind.claims, picture.kind.name, name)
        }
        for word in only
    }
    for word, names in answers.items():
        if not names and word.lower() in (*claims, *kinds):
            raise UserError(f"This comparison has nothing to draw for {word!r}: leave it out.")
        if not names:
            known = suggest(word.lower(), dict.fromkeys([*claims, *kinds, *pictures]))
            raise UserError(
                f"No figure {word!r}; choose from {', '.join([*claims, *kinds])} or a figure's name.{known}"
            )
    return {
        name: picture
        for name, picture in pictures.items()
        if not only or name in set().union(*answers.values())
    }


def _write_captions(comparison: Comparison, folder: Path, latex: bool) -> None:
    """List the figures that lie in a folder."""
    lying = {
        name: picture
        for name, picture in _pictures(comparison).items()
        if (folder / f"{name}.csv").exists()
    }
    texts = {"captions.txt": [f"{name}\n{picture.caption()}\n" for name, picture in lying.items()]}
    if latex:
        texts["captions.tex"] = [
            _in_latex(name, picture.caption()) for name, picture in lying.items()
        ]
    shown = [
        picture.entry(name) for name, picture in lying.items() if (folder / f"{name}.png").exists()
    ]
    for file, parts in (
        texts | {"captions.json": [json.dumps(shown, indent=1, ensure_ascii=False)]}
    ).items():
        with atomic_write(folder / file) as part:
            part.write_text("\n".join(parts), encoding="utf-8", newline="\n")


def _in_latex(name: str, caption: str) -> str:
    width = r"\textwidth" if paper.current().wide else r"\columnwidth"
    return f"""\\begin{{figure}}[t]
  \\centering
  \\includegraphics[width={width}]{{{name}.pdf}}
  \\caption{{{tex.escaped(caption)}}}
  \\label{{fig:{name}}}
\\end{{figure}}
"""
