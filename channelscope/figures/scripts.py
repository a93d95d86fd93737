"""Letters of any script in figures: a font that has them, or else Latin letters in their place."""

import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import Formatter

from channelscope.errors import escape

_PREFERRED = ("Noto Sans", "Noto", "Arial Unicode", "WenQuanYi", "Source Han", "Unifont")
_LAST_RESORT = "Last Resort"  # has a box for every letter
_SOUND = re.compile(r"(?:LETTER|SYLLABLE|CHARACTER|VOWEL SIGN)(?: SMALL| CAPITAL| SARA)* ([A-Z]+)")
_said = set[str]()


@contextmanager
def ignore_missing() -> Iterator[None]:
    """Let matplotlib not warn of letters that fonts lack, as they are found afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def find_fonts(figure: Figure) -> tuple[str, ...]:
    """Return the fonts to add for letters of a figure that the fonts in force lack, if any have."""
    return _find_fonts("".join(sorted(_find_missing(_list_signs(figure), _families()))))


def transliterate_texts(figure: Figure) -> None:
    """Write Latin letters for those that no font here has, and say so once."""
    missing = _find_missing(_list_signs(figure), _families())
    missing = _find_missing(missing, _find_fonts("".join(sorted(missing))))
    if not missing:
        return
    lines = (line for text in _list_texts(figure) for line in text.splitlines())
    example = next(line for line in lines if missing & set(line))
    for text in figure.findobj(Text):
        text.set_text(transliterate(text.get_text(), missing.__contains__))
    for axis in _list_axes(figure):  # their labels are made anew at each drawing
        formatter = axis.major.formatter
        if formatter is not None and not isinstance(formatter, _Latin):
            axis.set_major_formatter(_Latin(formatter, missing))
    if not missing <= _said:
        _said.update(missing)
        latin = transliterate(example, missing.__contains__)
        sys.stderr.write(
            f"No font here has the letters of {escape(example)!r}: figures have {latin!r} instead; "
            "install a font that has them, such as Noto Sans (on Debian: apt install fonts-noto)."
            "\n"
        )


def transliterate(text: str, is_missing: Callable[[str], bool]) -> str:
    """Write Latin letters for the letters that are missing.

    Letters are written as Unicode's names of them sound; of Chinese characters, whose names tell no
    sound, their numbers are.

    >>> transliterate("ねこ 고양이 猫", lambda letter: letter > "z")
    'neko goyangi U+732B'
    """
    # Composed, Korean syllables have names that sound like them.
    composed = unicodedata.normalize("NFC", text)
    return "".join(_spell(sign) if is_missing(sign) else sign for sign in composed)


def _spell(sign: str) -> str:
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    name = unicodedata.name(sign, "")
    if plain:
        return plain
    if match := _SOUND.search(name):
        return match[1].lower()
    if unicodedata.category(sign).startswith("M"):  # of a vowel that is not sounded, a tone
        return ""
    is_symbol = unicodedata.category(sign).startswith("S") and name
    return name.lower().replace(" ", "-") if is_symbol else f"U+{ord(sign):04X}"


class _Latin(Formatter):
    """Labels ticks as another formatter does, in Latin letters."""

    def __init__(self, formatter: Formatter, missing: Collection[str]) -> None:
        self.formatter, self.missing = formatter, missing

    def __call__(self, x: float, pos: int | None = None) -> str:
        return transliterate(self.formatter(x, pos), self.missing.__contains__)

    def format_ticks(self, values: Any) -> list[str]:
        labels = self.formatter.format_ticks(values)
        return [transliterate(label, self.missing.__contains__) for label in labels]

    def set_locs(self, locs: Any) -> None:
        self.formatter.set_locs(locs)

    def get_offset(self) -> str:
        return self.formatter.get_offset()


def _list_axes(figure: Figure) -> Iterator[Axis]:
    for ax in figure.axes:
        yield from (ax.xaxis, ax.yaxis)


# ---------------------------------------------------------------- fonts


def _families() -> tuple[str, ...]:
    return tuple(rcParams["font.family"])


def _list_texts(figure: Figure) -> Iterator[str]:
    for axis in _list_axes(figure):
        axis.get_majorticklabels()  # makes them
    for text in figure.findobj(Text):
        yield text.get_text()


def _list_signs(figure: Figure) -> set[str]:
    """List the letters of a figure beyond ASCII.

    The composed ones are drawn where letters have to be replaced.
    """
    signs = {sign for text in _list_texts(figure) for sign in text if sign > "\x7f"}
    return signs | {sign for sign in unicodedata.normalize("NFC", "".join(signs)) if sign > "\x7f"}


def _find_missing(signs: Collection[str], families: Collection[str]) -> set[str]:
    """Return the letters that none of the fonts has."""
    covered = frozenset[int]().union(*map(_list_letters, families)) if signs else frozenset[int]()
    return {
        sign
        for sign in signs
        if ord(sign) not in covered and unicodedata.category(sign)[0] not in "CZ"
    }


@lru_cache(maxsize=64)
def _list_letters(family: str) -> frozenset[int]:
    path = font_manager.findfont(FontProperties(family=[family]))
    return frozenset(FT2Font(path).get_charmap())


@lru_cache(maxsize=64)
def _find_fonts(letters: str) -> tuple[str, ...]:
    """Return the fewest fonts, taken one by one, that have all the letters that any font has."""
    missing, families = set(letters), list[str]()
    for font in sorted(font_manager.fontManager.ttflist, key=_rank) if missing else ():
        if font.name in families or not _is_upright(font):
            continue
        if had := {sign for sign in missing if ord(sign) in _list_letters(font.name)}:
            families.append(font.name)
            missing -= had
        if not missing:
            break
    return tuple(families)


def _rank(font: FontEntry) -> tuple[int, str]:
    ranks = (rank for rank, name in enumerate(_PREFERRED) if font.name.startswith(name))
    return next(ranks, len(_PREFERRED)), font.name


def _is_upright(font: FontEntry) -> bool:
    return (
        not font.name.startswith(_LAST_RESORT)
        and font.style == "normal"
        and font.weight in (400, "normal", "regular")
    )
