"""A result as one page of HTML that needs nothing else: pictures inside, no network."""

import base64
import hashlib
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from channelscope import gallery
from channelscope.errors import UserError, escape_value
from channelscope.figures.words import is_slug
from channelscope.files import atomic_write
from channelscope.reading import check_regular, read_json
from channelscope.report import sentences, tables
from channelscope.report.cards import list_cards
from channelscope.report.summary import summarise

if TYPE_CHECKING:
    from channelscope.result import Result

_TEMPLATES = Path(__file__).parent.parent / "templates"
_LARGEST = 256 * 1024  # bytes of an SVG that the page holds; of larger ones it has the PNG
_SHOWN = 4  # figures that are not folded
# Where figures and tables stand, in the page's order: title, and what there is to see.
SECTIONS = {
    "claims": (
        "More evidence",
        "What the verdicts rest on, and the classes and channels behind it.",
    ),
    "network": ("Network", "What an attack does to single channels, answers and layers."),
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
    """Write ``folder/report.html``: what a result of any kind says, in one page.

    First the answer at a glance, then a row a claim, then cards of channels; figures, tables and
    settings are folded. The figures are those in ``folder/figures``, as its ``captions.json`` lists
    them. The page shows all without its script, which sorts tables, closes an enlarged figure at
    Escape, changes between light and dark and unfolds all; the page's policy lets nothing else run.
    Returns its path.

    Raises:
        UserError: when that list or a picture in it is damaged or missing.
    """
    meta, figures = result.meta, _read_figures(result, folder / "figures")
    assets = {name: (_TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js")}
    claims = sentences.list_claims(result)
    _place_evidence(claims, figures)
    page = load_template("report.html.j2").render(
        title=sentences.name_page(result),
        setting=sentences.describe_setting(result),
        networks=sentences.list_networks(result),
        summary=summarise(result),
        claims=claims,
        damage=sentences.describe_damage(result),
        cards=list_cards(result),
        shown=_choose_shown(result, figures),
        robustness=tables.list_robustness(result),
        sections=_fill_sections(result, figures),
        has_figures=bool(figures),
        words=sentences.WORDS,
        provenance=sentences.describe_provenance(meta),
        settings=tables.list_settings(meta),
        assets={name: Markup(text) for name, text in assets.items()},
        hashes={name: _hash(text) for name, text in assets.items()},
    )
    with atomic_write(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return folder / "report.html"


def _place_evidence(claims: list[dict[str, Any]], figures: list[dict[str, Any]]) -> None:
    """Put beside each claim the first main figure that bears on it, and name the others."""
    for claim in claims:
        name = str(claim["name"]).lower()
        bearing = [
            figure
            for figure in figures
            if figure["main"] and name in map(str.lower, figure["claims"])
        ]
        free = [figure for figure in bearing if not figure["placed"]]
        # The figure that bears on the fewest claims is the one about this.
        claim["figure"] = min(free, key=lambda figure: len(figure["claims"]), default=None)
        if claim["figure"]:
            claim["figure"]["placed"] = True
        claim["evidence"] = [figure["name"] for figure in bearing if figure is not claim["figure"]]


def _choose_shown(result: "Result", figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures that are not folded: a comparison's stand beside its claims."""
    if result.kind == "comparison":
        return []
    shown = [figure for figure in figures if figure["main"] and not figure["placed"]][:_SHOWN]
    for figure in shown:
        figure["placed"] = True
    return shown


def _hash(text: str) -> str:
    """Return what the page's policy knows its own style and script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fill_sections(result: "Result", figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the folded sections of the page that have a figure or a table."""
    is_comparison = result.kind == "comparison"
    tables_of = tables.list_tables(result) if is_comparison else {}
    sections = []
    for name, (title, note) in SECTIONS.items():
        shown = [figure for figure in figures if figure["section"] == name and not figure["placed"]]
        if shown or tables_of.get(name):
            section = {"name": name, "title": title, "note": note, "figures": shown}
            sections.append(section | {"tables": tables_of.get(name, [])})
    if not is_comparison and (plain := tables.list_plain_tables(result)):
        note = "As they lie beside this page, with what their columns say."
        section = {"name": "tables", "title": "Tables", "note": note, "figures": []}
        sections.append(section | {"tables": plain})
    return sections


def _read_figures(result: "Result", folder: Path) -> list[dict[str, Any]]:
    """Read the pictures that ``captions.json`` lists, with what it says of them.

    The sentences that captions share are left out: the page says them once.
    """
    listing = folder / "captions.json"
    if not listing.exists():
        return []
    try:
        figures = [_read_figure(folder, **entry) for entry in read_json(listing, within=folder)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The figures in {folder} are incomplete or damaged; draw them again. ({error})"
        ) from error
    for figure, sentence in product(figures, gallery.list_sentences(result)):
        figure["caption"] = figure["caption"].replace(sentence, "").strip()
    return figures


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
    drawing, picture = folder / f"{name}.svg", folder / f"{name}.png"
    is_drawn = drawing.exists() and (drawing.stat().st_size <= _LARGEST or not picture.exists())
    content = check_regular(drawing if is_drawn else picture, within=folder).read_bytes()
    width, height = (_measure_drawing if is_drawn else _measure_picture)(content)
    files = [f"{name}.{ending}" for ending in ("pdf", "csv")]
    return {
        "name": name,
        "files": [file for file in files if (folder / file).exists()],
        "caption": caption,
        "alt_text": alt_text,
        "section": section,
        "claims": claims,
        "main": main,
        "placed": False,
        "width": width,
        "height": height,
        "kind": "svg+xml" if is_drawn else "png",
        "picture": base64.b64encode(content).decode(),
    }


def _measure_drawing(content: bytes) -> tuple[int, int]:
    """Return width and height of an SVG, as its first lines say them."""
    sizes = [
        re.search(rb'\b%s="(\d{1,5})' % name, content[:2048]) for name in (b"width", b"height")
    ]
    if not all(sizes):
        raise ValueError("an SVG does not say how large it is")
    width, height = (int(size[1]) for size in sizes if size)
    return width, height


def _measure_picture(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG, which its header has."""
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    return width, height
