"""A result as one page of HTML that needs nothing else: pictures inside, no network."""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from channelscope.errors import UserError, escape_value
from channelscope.figures.words import is_slug
from channelscope.files import atomic_write
from channelscope.reading import check_regular, read_json
from channelscope.report import sentences, tables

if TYPE_CHECKING:
    from channelscope.result import Result

_TEMPLATES = Path(__file__).parent.parent / "templates"
# Where figures and tables stand, in the page's order: title, and what there is to see.
SECTIONS = {
    "claims": (
        "Evidence for the claims",
        "What the verdicts rest on, and the classes and channels behind it.",
    ),
    "network": ("The whole network", "What an attack does to single channels, answers and layers."),
    "gates": ("Gates", "What gates do to channels, and what they reveal of the label."),
    "models": (
        "Between models",
        "What differs between two models on the same images, and which parts correspond.",
    ),
    "training": ("Training", "How the networks were trained."),
}


def load_template(name: str) -> Template:
    """Return a template that shows every value as text: no markup, no control characters."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=escape_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_report(result: "Result", folder: Path) -> Path:
    """Write ``folder/report.html``: findings, verdicts, robustness, figures, tables, settings.

    The figures are those in ``folder/figures``, as its ``captions.json`` lists them. The page shows
    all without its script, which sorts tables, closes an enlarged figure at Escape and opens what
    is folded for printing; the page's policy lets nothing else run. Returns its path.

    Raises:
        UserError: when that list or a picture in it is damaged or missing.
    """
    meta, figures = result.meta, _read_figures(folder / "figures")
    assets = {name: (_TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js")}
    page = load_template("report.html.j2").render(
        title=f"{', '.join(meta['models'])} on {meta['data']['name']}",
        setting=sentences.describe_setting(result),
        networks=sentences.list_networks(result),
        findings=sentences.list_findings(result),
        claims=sentences.list_claims(result),
        evidence=_list_evidence(figures),
        robustness=tables.list_robustness(result),
        sections=_fill_sections(result, figures),
        figures=figures,
        level=f"{meta['level']:.0%}",
        provenance=sentences.describe_provenance(meta),
        settings=tables.list_settings(meta),
        assets={name: Markup(text) for name, text in assets.items()},
        hashes={name: _hash(text) for name, text in assets.items()},
    )
    with atomic_write(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return folder / "report.html"


def _hash(text: str) -> str:
    """Return what the page's policy knows its own style and script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fill_sections(result: "Result", figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sections of the page that have a figure or a table."""
    tables_of = tables.list_tables(result)
    sections = []
    for name, (title, note) in SECTIONS.items():
        shown = [figure for figure in figures if figure["section"] == name]
        if shown or tables_of.get(name):
            section = {"name": name, "title": title, "note": note, "figures": shown}
            sections.append(section | {"tables": tables_of.get(name, [])})
    return sections


def _list_evidence(figures: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return for each claim the names of the main figures that bear on it."""
    evidence: dict[str, list[str]] = {}
    for figure in figures:
        for claim in figure["claims"] if figure["main"] else ():
            evidence.setdefault(claim.upper(), []).append(figure["name"])
    return evidence


def _read_figures(folder: Path) -> list[dict[str, Any]]:
    """Read the pictures that ``captions.json`` lists, with what it says of them."""
    listing = folder / "captions.json"
    if not listing.exists():
        return []
    try:
        return [_read_figure(folder, **entry) for entry in read_json(listing, within=folder)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The figures in {folder} are incomplete or damaged; draw them again. ({error})"
        ) from error


def _read_figure(
    folder: Path,
    name: str,
    caption: str,
    alt_text: str,
    section: str,
    claims: list[str],
    main: bool,
) -> dict[str, Any]:
    if not is_slug(name):  # a name from a file must not lead out of the folder
        raise ValueError(f"{name!r} is no name of a figure")
    if section not in SECTIONS or any(
        not isinstance(text, str) for text in (caption, alt_text, *claims)
    ):
        raise ValueError(f"the entry of {name} is not valid")
    picture = check_regular(folder / f"{name}.png", within=folder).read_bytes()
    endings = [end for end in ("pdf", "svg", "png") if (folder / f"{name}.{end}").exists()]
    # The header of a PNG has them.
    width, height = (int.from_bytes(picture[start : start + 4]) for start in (16, 20))
    return {
        "name": name,
        "file": f"{name}.{endings[0]}",
        "caption": caption,
        "alt_text": alt_text,
        "section": section,
        "claims": claims,
        "main": main,
        "width": width,
        "height": height,
        "picture": base64.b64encode(picture).decode(),
    }
