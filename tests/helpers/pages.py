"""Pages of HTML, as tests read them, and figures' files as drawing leaves them."""

import json
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails where tags are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.pieces.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each tag of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def add_figures(folder: Path, **main: bool) -> None:
    """Write tiny pictures and their list: name -> whether the page shows it at once."""
    (folder / "figures").mkdir(parents=True)
    for shade, name in enumerate(main):
        Image.new("RGB", (2, 2), (shade, 0, 0)).save(folder / "figures" / f"{name}.png")
    entries = [
        {
            "name": name,
            "caption": f"About {name}. More & more.",
            "alt_text": f"{name} rises.",
            "section": "claims",
            "claims": ["c1"],
            "main": at_once,
        }
        for name, at_once in main.items()
    ]
    (folder / "figures" / "captions.json").write_text(json.dumps(entries))
