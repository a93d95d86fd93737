"""The explorer's page: a chart of channels that describes the one pointed at; HTML, no script."""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy import ndarray

from channelscope.explorer.sheets import ACROSS, encode_sheet
from channelscope.explorer.still import write_page
from channelscope.explorer.tables import DATA, estimate_shift, list_channels, list_images
from channelscope.figures.paper import COLOURS
from channelscope.figures.words import describe_attack, describe_class, format_percent
from channelscope.report import load_template
from channelscope.result import Result

if TYPE_CHECKING:
    from channelscope.explorer.live import LiveNetwork

_BEST = 3  # channels that the table of classes shows for each
_TILE = 48  # pixels of a tile's longer side on the page


@dataclass
class StaticExplorer:
    """A chart of a model's layer for one class, and a table of all classes, as HTML."""

    result: Result = field(repr=False)
    model: str
    layer: str
    class_name: str
    order: str

    def save(self, path: Path | str) -> Path:
        """Write a page that needs no kernel and no network: all models, layers and classes.

        Its script answers clicks: channels are pinned, silenced, or restored (their natural values
        in the adversarial run); at the penultimate layer what that does to the answers is computed
        exactly, image by image, from the activations that the comparison keeps.

        Args:
            path: such as "explorer.html".
        """
        names = ("model", "layer", "class_name", "order")
        return write_page(self.result, Path(path), {name: getattr(self, name) for name in names})

    def _repr_html_(self) -> str:
        """Show both in a notebook."""
        page = Page(self.result, self.model, self.layer)
        chart = page.render_chart(self.class_name, self.order)
        return page.render_style() + chart + page.render_classes()


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side in one image: a page then holds each once, however often it shows it.

    Args:
        picture: the sheet as a PNG in base64; empty without pictures.
        numbers: kind of data, image -> number of its tile.
        tile: width and height of a tile on the page, in pixels.
    """

    picture: str
    numbers: Mapping[tuple[str, int], int]
    tile: tuple[int, int]

    @classmethod
    def of(cls, result: Result, model: str, wanted: set[tuple[str, int]]) -> Self:
        """Lay out the pictures that a result keeps of the wanted (kind of data, image)."""
        index = list(result.meta["models"]).index(model)
        tiles: dict[tuple[str, int], ndarray] = {}
        for data, name in (("natural", "natural"), ("adversarial", f"adversarial/{index}")):
            images = result.arrays.get(f"thumbnails/{name}/images", np.array([], int)).tolist()
            pictures = result.arrays.get(f"thumbnails/{name}", ())
            pairs = zip(images, pictures, strict=True)
            tiles |= {(data, image): tile for image, tile in pairs if (data, image) in wanted}
        if not tiles:
            return cls("", {}, (_TILE, _TILE))
        _, height, width = next(iter(tiles.values())).shape
        scale = _TILE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        numbers = {key: number for number, key in enumerate(tiles)}
        return cls(encode_sheet(np.stack([*tiles.values()])), numbers, size)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole sheet on the page, in pixels."""
        width, height = self.tile
        return width * ACROSS, height * -(-len(self.numbers) // ACROSS)

    def find(self, data: str, image: int) -> tuple[int, int] | None:
        """Return where a tile begins, in pixels from left and top; None for one not there."""
        number = self.numbers.get((data, image))
        width, height = self.tile
        return None if number is None else (number % ACROSS * width, number // ACROSS * height)


class Page:
    """One layer of one model; its pictures are laid out once for all classes and orders."""

    def __init__(self, result: Result, model: str, layer: str) -> None:
        self.result, self.model, self.layer = result, model, layer
        self._images = list_images(result, model, layer)
        wanted = {
            (data, image) for (_, data), entries in self._images.items() for image, _, _ in entries
        }
        self._sheet = Sheet.of(result, model, wanted)
        # Pages of other pictures may be in the same notebook: each has its own style.
        self._name = f"channelscope-{hashlib.sha256(self._sheet.picture.encode()).hexdigest()[:12]}"

    def render_style(self) -> str:
        """Return the style and the sheet of pictures, which all charts of the layer share."""
        return self._render("style", sheet=self._sheet, colours=COLOURS)

    def render_chart(
        self,
        class_name: str,
        order: str,
        described: int | None = None,
        silenced: Collection[int] = (),
    ) -> str:
        """Draw the channels for a class; ``described`` is the one shown without pointing."""
        rows = list_channels(self.result, self.model, self.layer, class_name, order)
        axes = _Axes.of(rows)
        cards = [self._make_card(row) | axes.place(row) for row in rows.to_dict("records")]
        first = next((card for card in cards if card["channel"] == described), cards[0])
        return self._render(
            "chart",
            cards=cards,
            first=first,
            silenced=silenced,
            order=order,
            axes=axes,
            class_name=describe_class(class_name),
            attack=describe_attack(self.result),
        )

    def render_classes(self) -> str:
        """Draw a table of the classes: the channels that each activates most, with images."""
        return self._render("classes", rows=list(self._list_classes()), best=_BEST)

    def _list_classes(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        for name in self.result.meta["data"]["classes"]:
            rows = list_channels(self.result, self.model, self.layer, name, "natural magnitude")
            best = rows.head(_BEST).to_dict("records")
            yield describe_class(name), [self._make_card(row) for row in best]

    def render_silencing(
        self,
        class_name: str,
        rows: pd.DataFrame,
        silenced: Collection[int],
        restored: Collection[int],
        network: "LiveNetwork | None",
    ) -> str:
        """Say what silencing and restoring do: by the tables, by the network where it is there."""
        runs = []
        restored = [channel for channel in restored if channel not in silenced]
        if network and (silenced or restored):
            accuracy = network.measure_accuracy(
                {self.layer: tuple(silenced)}, {self.layer: tuple(restored)}
            )
            for data, after in accuracy.items():
                before = format_percent(network.untouched[data])
                images = len(network.images[data][1])
                runs.append((data, images, before, format_percent(after)))
        shift = estimate_shift(rows, silenced, restored)
        return self._render(
            "silencing",
            class_name=describe_class(class_name),
            channels=len(rows),
            silenced=len(silenced),
            restored=len(restored),
            shift={data: format_value(value) for data, value in shift.items()},
            exact=self.layer in self.result.meta["models"][self.model].get("penultimate", ()),
            runs=runs,
        )

    def _make_card(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        """Describe a channel in words."""
        channel = int(row["channel"])
        numbers = ("natural", "adversarial", "change", "relevance")
        shares = ("frequency_natural", "frequency_adversarial")
        return {
            "channel": channel,
            "relevant": _describe_sign(row["relevance"]),
            **{name: format_value(row[name]) for name in numbers},
            **{name: format_percent(row[name]) for name in shares},
            "images": {data: self._list_tiles(channel, data) for data in DATA},
        }

    def _list_tiles(self, channel: int, data: str) -> list[dict[str, Any]]:
        return [
            {
                "place": self._sheet.find(data, image),
                "words": f"image {image}, {describe_class(name)}: {format_value(activation)}",
            }
            for image, name, activation in self._images.get((channel, data), ())
        ]

    def _render(self, template: str, **values: Any) -> str:
        names = {"name": self._name, "model": self.model, "layer": self.layer}
        return load_template(f"explore-{template}.html.j2").render(names | values)


@dataclass(frozen=True)
class _Axes:
    """Magnitude from ``low`` to ``high``; relevance to both sides of 0, up to ``reach``."""

    low: float
    high: float
    reach: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Self:
        magnitudes = np.nan_to_num(rows[list(DATA)].to_numpy())
        low, high = min(0.0, magnitudes.min()), max(0.0, magnitudes.max())
        reach = float(rows["relevance"].abs().max()) or 1.0
        return cls(low, high if high > low else low + 1, reach)

    def place(self, row: Mapping[Any, Any]) -> dict[str, str]:
        """Return the styles of a channel's bar, line and relevance, in percent of the panel."""
        span = self.high - self.low
        natural, relevance = row["natural"], row["relevance"]
        start = (min(natural, 0) - self.low) / span
        side = "top" if relevance < 0 else "bottom"
        length = abs(relevance) / self.reach / 2
        return {
            "bar": _format_style(bottom=start, height=abs(natural) / span),
            "line": _format_style(bottom=(row["adversarial"] - self.low) / span),
            "relevance_bar": _format_style(**{side: 0.5, "height": length}),
        }


def _format_style(**places: float) -> str:
    """Return a style such as "bottom:0.00%;height:31.25%"; hidden where a place is NaN."""
    if any(math.isnan(place) for place in places.values()):
        return "display:none"
    return ";".join(f"{side}:{100 * place:z.2f}%" for side, place in places.items())


def _describe_sign(relevance: float) -> str:
    if math.isnan(relevance) or relevance == 0:
        return "neither for nor against"
    if relevance > 0:
        return "positively relevant (PR), evidence for"
    return "negatively relevant (NR), evidence against"


def format_value(value: float) -> str:
    """Return a number with three digits and a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:z.3g}".replace("-", "−")
