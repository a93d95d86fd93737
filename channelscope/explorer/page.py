"""The explorer's page: a chart of the channels that tells about the one beneath the mouse; HTML, no script."""

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from channelscope.errors import escape_value
from channelscope.explorer import tables
from channelscope.explorer.live import Live
from channelscope.explorer.pictures import Sheet
from channelscope.figures.paper import COLOURS
from channelscope.figures.words import describe_attack, describe_class, format_percent
from channelscope.result import Result

BEST = 3  # channels that the table of the classes shows for each

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
    autoescape=True,
    finalize=escape_value,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Page:
    """One layer of one model, ready to be drawn: its images are found and laid out once for all classes and orders."""

    def __init__(self, comparison: Result, model: str, layer: str) -> None:
        self.comparison, self.model, self.layer = comparison, model, layer
        self._images = tables.images(comparison, model, layer)
        wanted = {
            (data, image) for (_, data), found in self._images.items() for image, _, _ in found
        }
        self._sheet = Sheet.of(comparison, model, wanted)
        # Pages of other pictures may stand in the same notebook: each has its own style.
        self._name = f"channelscope-{hashlib.sha256(self._sheet.picture.encode()).hexdigest()[:12]}"

    def style(self) -> str:
        """Give the style and the sheet of pictures, which all charts of the layer share."""
        return self._render("style", sheet=self._sheet, colours=COLOURS)

    def chart(
        self, class_name: str, order: str, shown: int | None = None, silenced: Collection[int] = ()
    ) -> str:
        """Draw the channels for a class; ``shown`` is the one that is described while the mouse is elsewhere."""
        rows = tables.channels(self.comparison, self.model, self.layer, class_name, order)
        axes = _Axes.of(rows)
        cards = [self._card(row) | axes.drawn(row) for row in tables.listed(rows)]
        first = next((card for card in cards if card["channel"] == shown), cards[0])
        words = {
            "class_name": describe_class(class_name),
            "attack": describe_attack(self.comparison),
        }
        return self._render(
            "chart", cards=cards, first=first, silenced=silenced, order=order, axes=axes, **words
        )

    def classes(self) -> str:
        """Draw a table of the classes: for each the channels that are activated most, with their images."""
        return self._render("classes", rows=list(self._rows_of_classes()), best=BEST)

    def result(
        self, class_name: str, rows: pd.DataFrame, silenced: Collection[int], live: Live | None
    ) -> str:
        """Tell what silencing channels does: by the tables, and by running the network where it is there."""
        after = live.accuracy({self.layer: tuple(silenced)}) if live and silenced else {}
        return self._render(
            "result",
            class_name=describe_class(class_name),
            channels=len(rows),
            silenced=len(silenced),
            shift={data: number(value) for data, value in tables.shift(rows, silenced).items()},
            exact=tables.is_exact(self.comparison, self.model, self.layer),
            runs=[
                (
                    data,
                    len(live.images[data][1]),
                    format_percent(live.untouched[data]),
                    format_percent(share),
                )
                for data, share in after.items()
                if live
            ],
        )

    def _rows_of_classes(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        for name in self.comparison.meta["data"]["classes"]:
            rows = tables.channels(
                self.comparison, self.model, self.layer, name, "natural magnitude"
            ).head(BEST)
            yield describe_class(name), [self._card(row) for row in tables.listed(rows)]

    def _card(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put what is known of a channel into words."""
        channel = int(row["channel"])
        shares = {
            name: format_percent(row[name])
            for name in ("frequency_natural", "frequency_adversarial")
        }
        return {
            "channel": channel,
            "relevant": _sign(row["relevance"]),
            **{
                name: number(row[name])
                for name in ("natural", "adversarial", "change", "relevance")
            },
            **shares,
            "images": {data: self._tiles(channel, data) for data in tables.DATA},
        }

    def _tiles(self, channel: int, data: str) -> list[dict[str, Any]]:
        return [
            {
                "place": self._sheet.place(data, image),
                "words": f"image {image}, {describe_class(name)}: {number(activation)}",
            }
            for image, name, activation in self._images.get((channel, data), ())
        ]

    def _render(self, template: str, **values: Any) -> str:
        page = _TEMPLATES.get_template(f"explore-{template}.html.j2")
        return page.render(name=self._name, model=self.model, layer=self.layer, **values)


@dataclass(frozen=True)
class _Axes:
    """Magnitude from low to high, and relevance to both sides of 0, up to reach."""

    low: float
    high: float
    reach: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Self:
        magnitudes = np.nan_to_num(rows[list(tables.DATA)].to_numpy())
        low, high = min(0.0, magnitudes.min()), max(0.0, magnitudes.max())
        return cls(
            low, high if high > low else low + 1, float(rows["relevance"].abs().max()) or 1.0
        )

    def drawn(self, row: dict[str, Any]) -> dict[str, str]:
        """Place a channel's bar, line and relevance, in percent of the panels' height; hide what has no value."""
        span = self.high - self.low
        natural, adversarial, relevance = (
            row[name] for name in ("natural", "adversarial", "relevance")
        )
        return {
            "bar": _percents(
                bottom=(min(natural, 0) - self.low) / span, height=abs(natural) / span
            ),
            "line": _percents(bottom=(adversarial - self.low) / span),
            "speaks": _percents(
                **{
                    "top" if relevance < 0 else "bottom": 0.5,
                    "height": abs(relevance) / self.reach / 2,
                }
            ),
        }


def _percents(**places: float) -> str:
    """Write a style, as in "bottom:0.00%;height:31.25%"; hidden where a place is no number."""
    if any(math.isnan(place) for place in places.values()):
        return "display:none"
    return ";".join(f"{side}:{100 * place:z.2f}%" for side, place in places.items())


def _sign(relevance: float) -> str:
    if math.isnan(relevance) or relevance == 0:
        return "neither for nor against"
    return (
        "positively relevant (PR), it speaks for"
        if relevance > 0
        else "negatively relevant (NR), it speaks against"
    )


def number(value: float) -> str:
    """Three digits and a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:z.3g}".replace("-", "−")
