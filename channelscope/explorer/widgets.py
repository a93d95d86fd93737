"""The explorer where there is a kernel: the chart beneath the controls that choose what it shows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ipywidgets import HTML, Box, Button, Dropdown, IntSlider, Layout, SelectMultiple, VBox

from channelscope.explorer import tables
from channelscope.explorer.live import Live
from channelscope.explorer.page import Page, number
from channelscope.explorer.still import Still
from channelscope.figures.words import measured_layers
from channelscope.result import Result

WRAPPED = Layout(display="flex", flex_flow="row wrap")


class Explorer(Still):
    """Controls, and a chart that follows them; every control can be set from Python too.

    ``controls``: "model", "layer", "class_name", "order" choose the chart; "channel" is the one that is described while
    the mouse is elsewhere; "silenced" the channels that are set to zero; "first" silences so many from the left of the
    chart; the button "none" silences none. ``chart`` and ``result``, what silencing does, are HTML.
    """

    def __init__(self, comparison: Result, lives: Mapping[str, Live], **start: str) -> None:
        super().__init__(comparison, **start)
        self._lives, self._layers = lives, measured_layers(comparison)
        self.controls = self._made()
        self.style, self.chart, self.result = HTML(), HTML(), HTML()
        self._setting = False
        self._open()
        for name in ("model", "layer", "class_name", "order"):
            self.controls[name].observe(self._choose, "value")
        for name, follow in (
            ("channel", self._draw),
            ("silenced", self._draw),
            ("first", self._silence_first),
        ):
            self.controls[name].observe(follow, "value")
        self.controls["none"].on_click(self._silence_none)
        self.widget = self._laid_out()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Give notebooks the widgets, and readers without a kernel the chart as it is now."""
        return self.widget._repr_mimebundle_() | {
            "text/html": self._repr_html_(),
            "text/plain": repr(self),
        }

    def _made(self) -> dict[str, Any]:
        known = {
            "model": list(self._layers),
            "layer": self._layers[self.model],
            "class_name": self.comparison.meta["data"]["classes"],
            "order": list(tables.ORDERS),
        }
        words = {"class_name": "class", "order": "sorted by"}
        return {
            **{
                name: Dropdown(
                    options=options, value=getattr(self, name), description=words.get(name, name)
                )
                for name, options in known.items()
            },
            "channel": Dropdown(description="describe"),
            "silenced": SelectMultiple(description="silence", rows=6),
            "first": IntSlider(description="from left", max=0, continuous_update=False),
            "none": Button(description="silence none"),
        }

    def _laid_out(self) -> VBox:
        named = self.controls
        choices = Box(
            [named[name] for name in ("model", "layer", "class_name", "order", "channel")],
            layout=WRAPPED,
        )
        silencing = Box(
            [named["silenced"], VBox([named["first"], named["none"]]), self.result], layout=WRAPPED
        )
        return VBox([self.style, choices, self.chart, silencing])

    def _choose(self, change: Any) -> None:
        """Follow a choice of what the chart shows."""
        if self._setting:
            return
        before = (self.model, self.layer)
        with self._alone():
            if change.owner is self.controls["model"]:
                layers = self._layers[change.new]
                self.controls["layer"].options = layers
                self.controls["layer"].value = self.layer if self.layer in layers else layers[-1]
        self.model, self.layer, self.class_name, self.order = (
            self.controls[name].value for name in ("model", "layer", "class_name", "order")
        )
        if (self.model, self.layer) == before:
            self._sort()
        else:
            self._open()

    def _open(self) -> None:
        """Go to another layer: of no channel of it is known yet which to show or silence."""
        self._page = Page(self.comparison, self.model, self.layer)
        self.style.value = self._page.style()
        with self._alone():
            self.controls["channel"].options = [("the first", None)]
            self.controls["silenced"].options = ()
        self._sort()

    def _sort(self) -> None:
        """Lay out the channels for the class and in the order chosen."""
        self._rows = tables.channels(
            self.comparison, self.model, self.layer, self.class_name, self.order
        )
        listed = self._rows[["channel", "relevance"]].itertuples(index=False)
        options = [
            (f"{int(channel)}: relevance {number(relevance)}", int(channel))
            for channel, relevance in listed
        ]
        with self._alone():
            for name in ("channel", "silenced"):
                control, chosen = self.controls[name], self.controls[name].value
                control.options = options if name == "silenced" else [("the first", None), *options]
                control.value = chosen
            self.controls["first"].max, self.controls["first"].value = len(options), 0
        self._draw()

    def _silence_first(self, change: Any) -> None:
        if not self._setting:
            self.controls["silenced"].value = tuple(self._rows["channel"].head(change.new).tolist())

    def _silence_none(self, _: Any) -> None:
        with self._alone():
            self.controls["first"].value = 0
        self.controls["silenced"].value = ()

    def _draw(self, _: Any = None) -> None:
        """Draw the chart, and tell what silencing does."""
        if self._setting:
            return
        silenced = self.controls["silenced"].value
        self.chart.value = self._page.chart(
            self.class_name, self.order, self.controls["channel"].value, silenced
        )
        self.result.value = self._page.result(
            self.class_name, self._rows, silenced, self._lives.get(self.model)
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Set controls without that they are followed one by one."""
        self._setting = True
        try:
            yield
        finally:
            self._setting = False
