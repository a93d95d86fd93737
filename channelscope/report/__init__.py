"""A result as one page of HTML that needs nothing else: pictures inside, no network."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from channelscope.errors import UserError, escape_value
from channelscope.files import atomic_write
from channelscope.reading import check_regular, read_json
from channelscope.report import tables, words

if TYPE_CHECKING:
    from channelscope.result import Result

TEMPLATES = Path(__file__).parent.parent / "templates"
# What figures and tables are sorted into, in the page's order: title, and what there is to see.
SECTIONS = {
    "claims": (
        "Evidence for the claims",
        "What the verdicts rest on, and the classes and channels behind it.",
    ),
    "network": ("The whole network", "What an attack does to single channels, answers and layers."),
    "gates": ("Gates", "What gates do to channels, and what they let know of the label."),
    "models": (
        "Between models",
        "What differs between two models on the same images, and which parts correspond.",
    ),
    "training": ("Training", "How the networks came to be."),
}


def write_report(result: "Result", folder: Path) -> Path:
    """Write `folder`/report.html: what was found, verdicts, robustness, figures, tables, how it was made.

    The figures are those that lie in `folder`/figures, as its `captions.json` lists them; the page says so if there
    are none. It shows everything without its script, which sorts tables, closes an enlarged figure at Escape and opens
    what is folded when the page is printed; nothing else is allowed to run. Returns the page's path.

    Raises:
        UserError: when that list or a picture in it is damaged or missing.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=escape_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    meta, figures = result.meta, _figures(folder / "figures")
    page = environment.get_template("report.html.j2").render(
        title=f"{', '.join(meta['models'])} on {meta['data']['name']}",
        setting=words.setting(result),
        found=words.found(result),
        claims=words.claims(result.verdicts),
        evidence=_evidence(figures),
        robustness=tables.robustness(result),
        by_class=tables.by_class(result),
        sections=_sections(result, figures),
        figures=figures,
        level=f"{meta['level']:.0%}",
        made=words.made(meta),
        settings=tables.settings(meta),
        style=_inline("report.css"),
        script=_inline("report.js"),
        hashes={name: _hash(name) for name in ("report.css", "report.js")},
    )
    with atomic_write(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return folder / "report.html"


def _inline(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text("utf-8"))


def _hash(name: str) -> str:
    """What the page's policy knows its own style and script by."""
    return base64.b64encode(
        hashlib.sha256((TEMPLATES / name).read_text("utf-8").encode()).digest()
    ).decode()


def _sections(result: "Result", figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of the page that have a figure or a table."""
    laid = tables.by_section(result)
    sections = [
        {
            "name": name,
            "title": title,
            "note": note,
            "figures": [figure for figure in figures if figure["section"] == name],
            "tables": laid.get(name, []),
        }
        for name, (title, note) in SECTIONS.items()
    ]
    return [section for section in sections if section["figures"] or section["tables"]]


def _evidence(figures: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Of each claim the names of the figures that bear on it."""
    evidence: dict[str, list[str]] = {}
    for figure in figures:
        for claim in figure["claims"] if figure["main"] else ():
            evidence.setdefault(claim.upper(), []).append(figure["name"])
    return evidence


def _figures(folder: Path) -> list[dict[str, Any]]:
    """The pictures that `captions.json` lists, ready to be put into the page."""
    listing = folder / "captions.json"
    if not listing.exists():
        return []
    try:
        return [_figure(folder, **entry) for entry in read_json(listing, within=folder)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The figures in {folder} are incomplete or damaged; draw them again. ({error})"
        ) from error


def _figure(
    folder: Path,
    name: str,
    caption: str,
    alt_text: str,
    section: str,
    claims: list[str],
    main: bool,
) -> dict[str, Any]:
    if not re.fullmatch(r"[a-z0-9-]+", name):  # a name from a file must not lead out of the folder
        raise ValueError(f"{name!r} is no name of a figure")
    if section not in SECTIONS or not all(
        isinstance(text, str) for text in (caption, alt_text, *claims)
    ):
        raise ValueError(f"what is said of {name} is not of our making")
    picture = check_regular(folder / f"{name}.png", within=folder).read_bytes()
    lying = [ending for ending in ("pdf", "svg", "png") if (folder / f"{name}.{ending}").exists()]
    width, height = (
        int.from_bytes(picture[start : start + 4]) for start in (16, 20)
    )  # as PNG's header has them
    return {
        "name": name,
        "file": f"{name}.{lying[0]}",
        "caption": caption,
        "alt_text": alt_text,
        "section": section,
        "claims": claims,
        "main": main,
        "width": width,
        "height": height,
        "picture": base64.b64encode(picture).decode(),
    }
